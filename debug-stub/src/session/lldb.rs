//! What LLDB asks and GDB does not (LLDB, "GDB Remote Protocol Extensions").

use std::fmt::Write as _;

use crate::arch::Arch;
use crate::filter::push_hex_bytes;
use crate::guest::tid;
use crate::host::Host;
use crate::request::LldbRequest;

use super::Session;

impl<H: Host> Session<H> {
    pub(super) fn answer_lldb(&mut self, request: LldbRequest) {
        match request {
            LldbRequest::ErrorStrings => {
                self.guest.client.error_strings = true;
                self.reply(b"OK");
            }
            LldbRequest::ListThreads => {
                self.guest.client.lldb = true;
                self.reply(b"OK");
            }
            LldbRequest::HostInfo => self.answer_machine(""),
            LldbRequest::ProcessInfo => self.answer_machine("pid:1;"),
        }
    }

    /// What kind of machine it is, behind `first`.
    fn answer_machine(&mut self, first: &str) {
        let Some(triple) = H::Arch::triple(self.guest.view()) else {
            return self.reply(b"");
        };
        let mut reply = format!("{first}triple:").into_bytes();
        push_hex_bytes(&mut reply, triple.as_bytes());
        let endian = if H::Arch::IS_BIG_ENDIAN {
            "big"
        } else {
            "little"
        };
        reply.extend(format!(";endian:{endian};").bytes());
        self.reply(&reply);
    }

    /// The `k` of LLDB, which sends it when its user quits without `detach`, as GDB does not. The guest is as
    /// after a connection that has closed: its end would surprise that user. `monitor quit` ends it.
    pub(super) fn leave_to_lldb(&mut self) {
        tracing::info!("LLDB has quit: monitor quit ends the guest");
        let runs_on = self.runs_on();
        // "The process exited": LLDB waits for it.
        self.reply(b"X09");
        self.leave(runs_on);
        self.closing = true;
    }

    /// What a stop reply says to LLDB, so that it need not ask: all threads ("QListThreadsInStopReply").
    pub(super) fn threads_in_stop_reply(&self) -> String {
        let mut threads = String::new();
        if self.guest.client.lldb {
            threads.push_str("threads:");
            for (index, vcpu) in self.guest.threads().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                // A String takes everything.
                let _ = write!(threads, "{comma}{:x}", tid(vcpu));
            }
            threads.push(';');
        }
        threads
    }
}

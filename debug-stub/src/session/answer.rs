//! Replies to the client's packets. The guest is stopped.

use std::fmt::Write as _;

use gdbstub::target::TargetError;
use gdbstub::target::ext::base::multithread::MultiThreadBase;
use vcpu_caps::VcpuId;

use crate::address::GuestVirtAddr;
use crate::agent::ProgramError;
use crate::arch::{Arch, Region, RegionRights};
use crate::breakpoints::{HitProgram, Point, PointKind};
use crate::filter::{push_escaped, push_hex_bytes};
use crate::guest::{OrderError, errno, tid};
use crate::host::{Action, GuestState, Host, ResetError};
use crate::memory::{SLICE, Scan, Scanned, Space};
use crate::order::{Stop, StopReason};
use crate::qemu;
use crate::request::{ClientFeatures, Request, ThreadId};

use super::{Session, State};

impl<H: Host> Session<H> {
    pub(super) fn answer(&mut self, request: Request<'_>, body: &[u8]) {
        match request {
            Request::AccessWatchpoint if !self.guest.config.watchpoints() => self.reply(b""),
            Request::Gdbstub | Request::AccessWatchpoint => self.answer_by_gdbstub(body),
            Request::StopReason => {
                let stop = self.last_stop.clone();
                self.send_stop_reply(&stop);
            }
            Request::Supported(features) => {
                // The rest LLDB says with packets of its own.
                let ClientFeatures {
                    lldb,
                    error_strings,
                    ..
                } = self.guest.client;
                self.guest.client = ClientFeatures {
                    lldb,
                    error_strings,
                    ..features
                };
                self.answer_supported();
            }
            Request::StopAcknowledging => {
                // The client acknowledges this reply, and none after it ("QStartNoAckMode").
                self.reply(b"OK");
                self.sender.stop_acknowledging();
            }
            Request::Detach => {
                self.reply(b"OK");
                // It says what it understands once in a connection.
                let client = self.guest.client;
                self.leave(true);
                if self.extended {
                    self.guest.client = client;
                    self.state = State::Idle;
                } else {
                    self.closing = true;
                }
            }
            Request::Extend => {
                self.extended = true;
                self.reply(b"OK");
            }
            // It is attached to the only process that there is ("vAttach").
            Request::Attach => self.reply_error(errno::EINVAL),
            Request::Run { reply } => self.reset_machine(reply),
            Request::Kill { reply: false } if self.guest.client.lldb => self.leave_to_lldb(),
            Request::Kill { reply } => {
                if reply {
                    self.reply(b"OK");
                }
                if self.extended && self.reset_killed() {
                    let client = self.guest.client;
                    self.guest.reset();
                    self.guest.client = client;
                    self.queued.clear();
                    self.state = State::Killed;
                } else {
                    self.end_guest();
                }
            }
            Request::SelectForAccess(thread) => match self.vcpu_of(thread) {
                Some(vcpu) => {
                    self.guest.current = vcpu;
                    self.reply(b"OK");
                }
                None => self.reply_error(errno::EINVAL),
            },
            Request::SelectForRun(thread) => match self.vcpu_of(thread) {
                Some(vcpu) => {
                    if matches!(thread, ThreadId::One(_)) {
                        self.guest.in_focus = vcpu;
                    }
                    self.run_thread = thread;
                    self.reply(b"OK");
                }
                None => self.reply_error(errno::EINVAL),
            },
            Request::CurrentThread => {
                self.reply(format!("QC{:x}", tid(self.guest.current)).as_bytes());
            }
            Request::Threads { offset, length } => self.answer_threads(offset, length),
            Request::Features {
                annex,
                offset,
                length,
            } => self.answer_features(annex, offset, length),
            Request::ReadRegister(number) => match self.guest.register_value(number) {
                Ok(Some(value)) => {
                    let mut reply = Vec::with_capacity(2 * value.len());
                    push_hex_bytes(&mut reply, &value);
                    self.reply(&reply);
                }
                // "xx": the register is unavailable ("p").
                Ok(None) => self.reply(b"xx"),
                Err(error) => self.reply_error(error),
            },
            Request::ReadMemory {
                address,
                length,
                binary,
            } => self.answer_read(address, length, binary),
            Request::WriteMemory { address, data } => {
                let thread = tid(self.guest.current);
                match self.guest.write_addrs(address, &data, thread) {
                    Ok(()) => self.reply(b"OK"),
                    Err(error) => self.reply_error(number_of(&error)),
                }
            }
            Request::Search {
                address,
                length,
                pattern,
            } => self.begin_scan(|space| Scan::search(space, address, length, pattern)),
            Request::Crc { address, length } => {
                self.begin_scan(|space| Scan::crc(space, address, length));
            }
            Request::MemoryRegion(address) => self.answer_region(address),
            Request::Insert { point, program } => self.insert(point, program),
            Request::Resume(actions) => {
                let ordered = self.order_all(actions);
                self.resume_as_ordered(ordered, body);
            }
            Request::ResumeLegacy { step, address } => self.answer_legacy(step, address, body),
            Request::Lldb(request) => self.answer_lldb(request),
            Request::Qemu(request) => {
                let reply = qemu::answer(&mut self.guest, request);
                self.reply(reply.as_bytes());
            }
            Request::Malformed => {
                tracing::warn!(packet = %body.escape_ascii(), "a packet that makes no sense");
                self.explain_to_programmers("a packet that makes no sense");
                self.reply_error(errno::EINVAL);
            }
            Request::TooLong => {
                tracing::warn!(
                    length = body.len(),
                    "a packet longer than this request may be"
                );
                self.explain_to_programmers("a packet longer than this request may be");
                self.reply_error(errno::EMSGSIZE);
            }
            Request::Unsupported => {
                tracing::debug!(packet = %body.escape_ascii(), "not supported");
                self.reply(b"");
            }
        }
    }

    /// A breakpoint with conditions or commands.
    fn insert(&mut self, point: Point, program: Result<HitProgram, ProgramError>) {
        let config = &self.guest.config;
        let offered = match point.kind {
            PointKind::Software => config.software_breakpoints() || config.hardware_breakpoints(),
            _ => config.hardware_breakpoints(),
        };
        if !offered {
            return self.reply(b"");
        }
        let inserted = match program {
            Ok(program) => self.guest.insert_point(point, program),
            Err(error) => {
                self.guest.explain_insertion(point.address, &error);
                Err(errno::EINVAL)
            }
        };
        match inserted {
            Ok(()) => self.reply(b"OK"),
            Err(error) => self.reply_error(error),
        }
    }

    fn end_guest(&mut self) {
        self.actions.push_back(Action::Kill);
        self.state = State::Ended;
        self.closing = true;
    }

    /// Replies to a client in extended mode that has detached, or killed the guest. There is no process for it: as
    /// gdbserver, the session replies to what needs none.
    pub(super) fn answer_idle(&mut self, request: Request<'_>, body: &[u8]) {
        match request {
            Request::Run { reply } if self.state == State::Killed => self.run_killed(reply),
            Request::Attach if self.state == State::Killed => self.refuse_idle(),
            Request::Attach => {
                self.interrupt_for_client();
                self.awaits_attach = true;
            }
            // "The process exited": GDB has no inferior then.
            Request::StopReason => self.reply(b"W00"),
            Request::CurrentThread => self.reply(b""),
            Request::Threads { .. } => self.reply(b"l<threads></threads>"),
            Request::Detach => self.reply(b"OK"),
            Request::Supported(_)
            | Request::Features { .. }
            | Request::StopAcknowledging
            | Request::Extend
            | Request::Unsupported
            | Request::Malformed
            | Request::TooLong => self.answer(request, body),
            Request::Gdbstub | Request::AccessWatchpoint => match body {
                b"qfThreadInfo" | b"qsThreadInfo" => self.reply(b"l"),
                // Which packets there are, and settings.
                [b'Q' | b'q', ..] | b"vMustReplyEmpty" | b"vCont?"
                    if !body.starts_with(b"qRcmd") =>
                {
                    self.answer(request, body);
                }
                _ => self.refuse_idle(),
            },
            // They have no reply.
            Request::Kill { reply: false } | Request::Run { reply: false } => {
                tracing::warn!(packet = %body.escape_ascii(), "the client has no process: ignored");
            }
            Request::Kill { .. }
            | Request::Run { .. }
            | Request::SelectForAccess(_)
            | Request::SelectForRun(_)
            | Request::ReadRegister(_)
            | Request::ReadMemory { .. }
            | Request::WriteMemory { .. }
            | Request::Search { .. }
            | Request::Crc { .. }
            | Request::MemoryRegion(_)
            | Request::Insert { .. }
            | Request::Resume(_)
            | Request::ResumeLegacy { .. }
            | Request::Qemu(_) => self.refuse_idle(),
            Request::Lldb(request) => self.answer_lldb(request),
        }
    }

    /// The guest runs, and is not the client's; or the client has killed it.
    fn refuse_idle(&mut self) {
        let why = match self.state {
            State::Killed => "the guest was killed: run starts it again",
            _ => "detached from the guest: attach 1 attaches again",
        };
        self.guest.explain(why.into());
        self.reply_error(errno::ESRCH);
    }

    /// Resets the machine whose guest a client in extended mode has killed, and may `run` again. `false` if that
    /// is the guest's end.
    fn reset_killed(&mut self) -> bool {
        match self.guest.reset_machine() {
            Ok(()) => true,
            Err(ResetError::NotSupported) => false,
            Err(error) => {
                tracing::error!(%error, "the client has killed the guest, which is its end");
                false
            }
        }
    }

    /// `run`, after `kill`: the machine was reset by that.
    fn run_killed(&mut self, reply: bool) {
        self.state = State::Stopped;
        self.found = GuestState::Stopped;
        self.begin(Vec::new());
        if reply {
            self.send_stop_reply(&self.last_stop.clone());
        }
    }

    /// `run`: resets the machine in place.
    fn reset_machine(&mut self, reply: bool) {
        match self.guest.reset_machine() {
            Ok(()) => {
                let stop = Stop {
                    vcpu: VcpuId(0),
                    reason: StopReason::Reset,
                };
                self.queued.clear();
                self.last_stop = stop.clone();
                if reply {
                    self.send_stop_reply(&stop);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the client asked for a reset");
                if reply {
                    self.guest.explain(error.to_string());
                    self.reply_error(errno::EIO);
                } else {
                    self.guest.notices.push(&error.to_string());
                }
            }
        }
    }

    /// The packet fails for this reason, which is no news for a console: only an error's text carries it.
    fn explain_to_programmers(&mut self, text: &str) {
        if self.guest.client.error_message {
            self.guest.explain(text.into());
        }
    }

    /// Hands a packet to gdbstub, which has the guest as its target. A packet without a reply is
    /// one that resumes the guest.
    fn answer_by_gdbstub(&mut self, body: &[u8]) {
        let Self {
            stub,
            guest,
            sender,
            ..
        } = self;
        let mut replies = 0;
        let mut failed = None;
        let exchanged = stub.exchange(guest, body, |reply| {
            replies += 1;
            match reply {
                // No data begins like this: its hexadecimal digits are small.
                [b'E', high, low] => failed = Some([b'E', *high, *low]),
                _ => sender.send(reply),
            }
        });
        match (exchanged, failed) {
            (Ok(()), Some(number)) => self.send_error(&number),
            (Ok(()), None) if replies == 0 => self.resume(),
            (Ok(()), None) if self.guest.ends => self.end_guest(),
            (Ok(()), None) => {}
            (Err(error), _) => {
                tracing::warn!(%error, packet = %body.escape_ascii(), "request failed");
                self.reply_error(errno::EINVAL);
            }
        }
    }

    /// gdbstub's features, with what the filter adds and without what is not offered. What the
    /// client supports changes nothing here; it changes later replies.
    fn answer_supported(&mut self) {
        let mut features = format!("PacketSize={:x}", self.packet_limit);
        for feature in [
            "QStartNoAckMode+",
            // The `x` packet, from GDB 16 on.
            "binary-upload+",
            // GDB asks for the threads at every stop. This takes one exchange; `qfThreadInfo`
            // takes two, and one more for each name.
            "qXfer:threads:read+",
            "qXfer:features:read+",
            // GDB asks for software breakpoints in any case, and a breakpoint without them is refused.
            "ConditionalBreakpoints+",
            "BreakpointCommands+",
        ] {
            features.push(';');
            features.push_str(feature);
        }
        let asked = self
            .stub
            .exchange(&mut self.guest, b"qSupported:swbreak+", |reply| {
                for feature in String::from_utf8_lossy(reply).split(';') {
                    // There is one process: thread ids are shorter without its number.
                    if !feature.starts_with("PacketSize=") && feature != "multiprocess+" {
                        features.push(';');
                        features.push_str(feature);
                    }
                }
            });
        if let Err(error) = asked {
            tracing::error!(%error, "gdbstub does not name its features");
        }
        self.reply(features.as_bytes());
    }

    /// The thread list as XML ("Thread List Format"). It is made again for each piece: nothing
    /// changes while the guest is stopped.
    fn answer_threads(&mut self, offset: u64, length: u64) {
        let mut document = String::from("<threads>");
        for vcpu in self.guest.threads() {
            // Writing to a String does not fail.
            let _ = write!(document, "<thread id=\"{:x}\">", tid(vcpu));
            for character in self.guest.thread_name(vcpu).chars() {
                match character {
                    '<' => document.push_str("&lt;"),
                    '&' => document.push_str("&amp;"),
                    _ => document.push(character),
                }
            }
            document.push_str("</thread>");
        }
        document.push_str("</threads>");
        self.answer_piece(&document, offset, length);
    }

    /// The target description. A client that reads it from its beginning gets the one for the vCPUs' mode at this
    /// time: GDB does so when it connects, and at `unset tdesc filename`.
    fn answer_features(&mut self, annex: &[u8], offset: u64, length: u64) {
        let view = if annex == b"target.xml" && offset == 0 {
            self.guest.read_view()
        } else {
            self.guest.view()
        };
        match H::Arch::target_description(view, annex) {
            Some(document) => self.answer_piece(&document, offset, length),
            // "E00: the request was malformed, or annex was invalid" ("qXfer").
            None => self.reply_error(0),
        }
    }

    /// A piece of a document ("qXfer").
    fn answer_piece(&mut self, document: &str, offset: u64, length: u64) {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| document.as_bytes().get(offset..))
            .unwrap_or_default();
        let length = self.data_that_fits(length);
        let (piece, more) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        let mut reply = vec![if more.is_empty() { b'l' } else { b'm' }];
        push_escaped(&mut reply, piece);
        self.reply(&reply);
    }

    /// How many bytes of data a reply has, of `length` that the client asks for. Hexadecimal doubles them, and
    /// escaping does at worst. A whole power of two for such a packet size: a client that reads on where a
    /// reply has ended stays aligned to pages. The letter before the data is not counted; `PacketSize` bounds
    /// what the *client* sends.
    fn data_that_fits(&self, length: u64) -> usize {
        let longest = self.packet_limit / 2;
        usize::try_from(length).map_or(longest, |length| length.min(longest))
    }

    /// `m`, `x`: a reply may be shorter than asked for; an error says that nothing is there.
    fn answer_read(&mut self, address: u64, length: u64, binary: bool) {
        let mut data = vec![0; self.data_that_fits(length)];
        let thread = tid(self.guest.current);
        match self.guest.read_addrs(address, &mut data, thread) {
            Ok(read) => data.truncate(read),
            Err(error) => return self.reply_error(number_of(&error)),
        }
        let mut reply = Vec::with_capacity(1 + 2 * data.len());
        if binary {
            reply.push(b'b');
            push_escaped(&mut reply, &data);
        } else {
            push_hex_bytes(&mut reply, &data);
        }
        self.reply(&reply);
    }

    /// LLDB's `qMemoryRegionInfo`. A region without permissions is not mapped.
    fn answer_region(&mut self, address: u64) {
        let space = match self.guest.space() {
            Ok(Space::Virtual(space)) => space,
            // No page table says what physical memory permits.
            Ok(Space::Physical) => return self.reply(b""),
            Err(error) => return self.reply_error(error),
        };
        let region = H::Arch::region(&space, &self.guest.host, GuestVirtAddr(address));
        let Some(Region {
            start,
            last,
            rights,
        }) = region
        else {
            return self.reply(b"");
        };
        // The whole of 64 bits has no size of 64 bits.
        let size = last.wrapping_sub(start).saturating_add(1);
        let mut reply = format!("start:{start:x};size:{size:x};");
        if let Some(RegionRights {
            writable,
            executable,
        }) = rights
        {
            reply.push_str("permissions:r");
            for (has, letter) in [(writable, 'w'), (executable, 'x')] {
                if has {
                    reply.push(letter);
                }
            }
            reply.push(';');
        }
        self.reply(reply.as_bytes());
    }

    fn begin_scan(&mut self, scan: impl FnOnce(Space<H::Arch>) -> Scan<H::Arch>) {
        match self.guest.space() {
            Ok(space) => {
                self.scan = Some(scan(space));
                self.go_on_scanning();
            }
            Err(error) => self.reply_error(error),
        }
    }

    /// Goes on with the search or the checksum, for one slice. It uses up the call's budget.
    pub(super) fn go_on_scanning(&mut self) {
        let Some(scan) = &mut self.scan else {
            return;
        };
        self.budget = 0;
        let Some(scanned) = scan.go_on(&self.guest.host, SLICE) else {
            return;
        };
        self.scan = None;
        match scanned {
            Scanned::Found(at) => self.reply(format!("1,{at:x}").as_bytes()),
            Scanned::NotFound => self.reply(b"0"),
            Scanned::Crc(crc) => self.reply(format!("C{crc:x}").as_bytes()),
            Scanned::Unreadable(at) => {
                // GDB says "Pattern not found", and no more, for any error.
                tracing::warn!(
                    at = format_args!("{at:#x}"),
                    "unreadable memory ends a scan"
                );
                let text = format!("memory at {at:#x} cannot be read: the scan ended there");
                self.guest.explain(text);
                self.reply_error(errno::EFAULT);
            }
        }
    }

    /// `c`, `C`, `s`, `S`: as `vCont`, for the thread of `Hc`. A step without one is the selected
    /// thread's.
    fn answer_legacy(&mut self, step: bool, address: Option<u64>, body: &[u8]) {
        let Some(vcpu) = self.vcpu_of(self.run_thread) else {
            return self.reply_error(errno::EINVAL);
        };
        if let Some(address) = address {
            if !self.guest.exists(vcpu) {
                return self.reply_error(errno::ESRCH);
            }
            let moved =
                self.guest
                    .change_registers(vcpu, H::Arch::STOP_GROUPS, |registers, host| {
                        H::Arch::set_pc(registers, host, address)?;
                        Ok(H::Arch::PC_GROUPS)
                    });
            if let Err(error) = moved {
                return self.reply_error(error);
            }
        }
        let thread = match self.run_thread {
            ThreadId::All | ThreadId::Any if !step => None,
            _ => Some(tid(vcpu)),
        };
        let ordered = self.order_one(step, thread);
        self.resume_as_ordered(ordered, body);
    }

    /// Resumes, or sends an error if the orders make no sense.
    fn resume_as_ordered(&mut self, ordered: Result<(), OrderError>, body: &[u8]) {
        match ordered {
            Ok(()) => self.resume(),
            Err(error) => {
                tracing::warn!(%error, packet = %body.escape_ascii(), "cannot resume");
                self.reply_error(errno::EINVAL);
            }
        }
    }
}

/// The error number of a reply, as gdbstub gives it.
fn number_of<E>(error: &TargetError<E>) -> u8 {
    match error {
        TargetError::Errno(number) => *number,
        _ => errno::EIO,
    }
}

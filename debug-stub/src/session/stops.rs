//! From stops to stop replies.

use gdbstub::common::Signal;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::breakpoints::WatchKind;

use crate::arch::{Expedited, GdbRegister};
use crate::guest::{refused, tid};
use crate::host::Host;
use crate::order::{Stop, StopReason, WatchAccess};
use crate::x86_64::{RegisterGroups, RegisterId};

use super::{Session, State};

impl<H: Host> Session<H> {
    /// Tells the client of one stop; keeps those that would be lost.
    pub(super) fn report_stops(&mut self, stops: Vec<Stop>) {
        let stop = self.choose(stops).unwrap_or(Stop {
            vcpu: self.guest.current,
            reason: StopReason::Interrupted,
        });
        self.report(&stop);
    }

    /// Chooses the stop to report, and queues those of the others that do not happen again.
    pub(super) fn choose(&mut self, stops: Vec<Stop>) -> Option<Stop> {
        let count = self.guest.host.vcpu_count();
        let mut stops: Vec<Stop> = stops
            .into_iter()
            .filter(|stop| stop.vcpu.0 < count)
            .collect();
        let current = self.guest.current;
        // Of equals the vCPU that the client looks at, then the first.
        stops.sort_by_key(|stop| (urgency(&stop.reason), stop.vcpu != current, stop.vcpu));
        let mut stops = stops.into_iter();
        let chosen = stops.next()?;
        for stop in stops {
            match stop.reason {
                // Trap-like or final: told now or never.
                StopReason::Watchpoint { .. }
                | StopReason::TripleFault(_)
                | StopReason::InternalError(_) => self.queued.push_back(stop),
                // Fault-like: the vCPU is before the instruction, and stops there again.
                StopReason::SoftwareBreakpoint | StopReason::HardwareBreakpoint => {}
                // All-stop: one reply answers the resume, whoever's it is.
                StopReason::Step | StopReason::Interrupted | StopReason::Exited(_) => {}
            }
        }
        // One of each vCPU at most can be true at a time.
        while self.queued.len() > usize::from(count) {
            self.queued.pop_front();
        }
        Some(chosen)
    }

    /// Sends the stop reply; the client has the word then.
    pub(super) fn report(&mut self, stop: &Stop) {
        self.early_interrupt = false;
        self.note_reason(stop);
        self.flush_notices();
        let reply = self.stop_reply(stop);
        self.reply(&reply);
        self.last_stop = Stop { ..stop.clone() };
        self.state = if matches!(stop.reason, StopReason::Exited(_)) {
            self.closing = true;
            State::Ended
        } else {
            State::Stopped
        };
    }

    /// What is to be read on the client's console about a stop.
    pub(super) fn note_reason(&mut self, stop: &Stop) {
        let thread = tid(stop.vcpu);
        match &stop.reason {
            StopReason::TripleFault(text) => self
                .guest
                .notices
                .push(&format!("thread {thread}: triple fault: {text}")),
            StopReason::InternalError(text) => self.guest.notices.push(&format!(
                "thread {thread}: the hypervisor cannot go on: {text}"
            )),
            _ => {}
        }
    }

    /// The body of the stop reply. It selects the thread, for gdbstub and for us.
    pub(super) fn stop_reply(&mut self, stop: &Stop) -> Vec<u8> {
        self.guest.current = stop.vcpu;
        let registers = self.expedited(stop);
        let reason = reason(stop);
        match self.stub.report(&mut self.guest, reason, &registers) {
            Ok(reply) => reply,
            Err(error) => {
                tracing::error!(%error, "gdbstub cannot report a stop");
                self.select_for_access();
                // What the client needs at the least, so that it does not wait for ever.
                format!("T05thread:{:x};", tid(stop.vcpu)).into_bytes()
            }
        }
    }

    /// The registers that GDB asks for at every stop: with these in the reply it asks for none.
    fn expedited(&mut self, stop: &Stop) -> Vec<Expedited> {
        if matches!(stop.reason, StopReason::Exited(_)) {
            return Vec::new();
        }
        let guest = &mut self.guest;
        let groups = RegisterGroups::EXPEDITED;
        let registers = match guest.registers.read(&mut guest.host, stop.vcpu, groups) {
            Ok(registers) => registers,
            Err(error) => {
                refused(stop.vcpu, &error);
                return Vec::new();
            }
        };
        RegisterId::all()
            .filter(|id| is_expedited(*id))
            .map(|id| {
                let mut value = [0; 16];
                let length = id.read(registers, &mut value);
                (GdbRegister(id), value.into_iter().take(length).collect())
            })
            .collect()
    }
}

/// The general-purpose registers, RIP, EFLAGS and the selectors: what comes first in the order.
fn is_expedited(id: RegisterId) -> bool {
    id.number() <= RegisterId::CS.number()
}

/// Smaller is told first.
fn urgency(reason: &StopReason) -> u8 {
    match reason {
        StopReason::Exited(_) => 0,
        StopReason::TripleFault(_) | StopReason::InternalError(_) => 1,
        // Trap-like before fault-like: the latter happens again.
        StopReason::Watchpoint { .. } => 2,
        StopReason::SoftwareBreakpoint | StopReason::HardwareBreakpoint => 3,
        StopReason::Step => 4,
        StopReason::Interrupted => 5,
    }
}

fn reason(stop: &Stop) -> MultiThreadStopReason<u64> {
    let tid = tid(stop.vcpu);
    let signal = |signal| MultiThreadStopReason::SignalWithThread { tid, signal };
    match stop.reason {
        StopReason::Step => signal(Signal::SIGTRAP),
        StopReason::SoftwareBreakpoint => MultiThreadStopReason::SwBreak(tid),
        StopReason::HardwareBreakpoint => MultiThreadStopReason::HwBreak(tid),
        StopReason::Watchpoint { address, access } => MultiThreadStopReason::Watch {
            tid,
            kind: match access {
                WatchAccess::Write => WatchKind::Write,
                WatchAccess::ReadWrite => WatchKind::ReadWrite,
            },
            addr: address,
        },
        StopReason::Interrupted => signal(Signal::SIGINT),
        StopReason::TripleFault(_) => signal(Signal::SIGSEGV),
        StopReason::InternalError(_) => signal(Signal::SIGILL),
        StopReason::Exited(status) => MultiThreadStopReason::Exited(status),
    }
}

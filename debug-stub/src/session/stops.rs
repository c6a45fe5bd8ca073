//! From stops to stop replies.

use gdbstub::common::Signal;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::breakpoints::WatchKind;

use vcpu_caps::VcpuId;

use crate::arch::Arch;
use crate::breakpoints::PointKind;
use crate::config::OnReset;
use crate::guest::{RegisterNumber, log_refused, tid};
use crate::host::Host;
use crate::order::{Stop, StopReason, VcpuOrder, WatchAccess};

use super::passing::Passing;
use super::{Session, State};

/// The registers that a stop reply carries. The buffers are kept from stop to stop.
#[derive(Debug, Default)]
pub(super) struct Expedited {
    /// Number and size of each.
    registers: Vec<(usize, usize)>,
    /// Their values, one after the other.
    values: Vec<u8>,
}

impl Expedited {
    fn clear(&mut self) {
        self.registers.clear();
        self.values.clear();
    }

    fn iter(&self) -> impl Iterator<Item = (RegisterNumber, &[u8])> {
        let mut rest = self.values.as_slice();
        self.registers.iter().map(move |(number, size)| {
            let (value, tail) = rest.split_at_checked(*size).unwrap_or((rest, &[]));
            rest = tail;
            (RegisterNumber(*number), value)
        })
    }
}

impl<H: Host> Session<H> {
    /// Reports one stop to the client, and keeps those that would be lost.
    pub(super) fn report_stops(&mut self, stops: Vec<Stop>) {
        let stop = self.choose(stops);
        let stop = stop
            .filter(|stop| stop.reason != StopReason::Interrupted)
            .unwrap_or_else(|| Stop {
                vcpu: self.interrupted_vcpu(),
                reason: StopReason::Interrupted,
            });
        self.report(&stop);
    }

    /// Resets the machine if the guest asks for that. Breakpoint instructions are out of memory.
    pub(super) fn reset_on_request(&mut self, mut stops: Vec<Stop>) -> Vec<Stop> {
        let asks = |stop: &&mut Stop| stop.reason == StopReason::ResetRequest;
        if stops.iter_mut().any(|stop| asks(&stop)) {
            self.passing = Passing::default();
            let reason = match self.guest.reset_machine() {
                Ok(()) => StopReason::Reset,
                Err(error) => {
                    StopReason::InternalError(format!("the guest asked for a reset: {error}"))
                }
            };
            for stop in stops.iter_mut().filter(asks) {
                stop.reason = reason.clone();
            }
        }
        stops
    }

    /// Lets a guest that was reset run again, if that is the policy and the client has let all of it run.
    /// Returns what is to be reported otherwise.
    pub(super) fn go_on_after_reset(&mut self, mut stops: Vec<Stop>) -> Option<Vec<Stop>> {
        let is_reset = |stop: &Stop| stop.reason == StopReason::Reset;
        let ends = |stop: &Stop| matches!(stop.reason, StopReason::Exited(_));
        let free = |order: &VcpuOrder| *order == VcpuOrder::Continue;
        if self.guest.config.on_reset != OnReset::Continue
            || !stops.iter().any(is_reset)
            || stops.iter().any(ends)
            || !(free(&self.resumed.others) && self.resumed.vcpus.iter().all(free))
        {
            return Some(stops);
        }
        self.guest.notices.push("the machine was reset");
        self.queued.clear();
        // Whatever stopped before belongs to a machine that is no more.
        stops.clear();
        if self.state == (State::Running { interrupted: true }) {
            return Some(stops);
        }
        self.flush_notices();
        match self.resumed_plan() {
            Some(plan) => self.run_on(plan),
            None => return Some(stops),
        }
        None
    }

    /// Returns the vCPU from which an interrupt is reported. Of those that ran, it is the one in focus;
    /// if that one has not been started, the first that has.
    fn interrupted_vcpu(&self) -> VcpuId {
        let guest = &self.guest;
        let ran = |vcpu: &VcpuId| *self.resumed.order(*vcpu) != VcpuOrder::Stay;
        let started = |vcpu: &VcpuId| guest.host.is_started(*vcpu);
        let all = (0..guest.host.vcpu_count()).map(VcpuId);
        let in_order = || std::iter::once(guest.in_focus).chain(all.clone());
        let candidates = || in_order().filter(|vcpu| guest.exists(*vcpu)).filter(ran);
        candidates()
            .find(started)
            .or_else(|| candidates().next())
            .or_else(|| in_order().find(|vcpu| guest.exists(*vcpu)))
            .unwrap_or(VcpuId(0))
    }

    /// Chooses the stop to report, and queues those of the others that do not happen again.
    pub(super) fn choose(&mut self, stops: Vec<Stop>) -> Option<Stop> {
        let mut stops = self.by_urgency(stops).into_iter();
        let chosen = stops.next()?;
        if chosen.reason == StopReason::Reset {
            // Whatever stopped before belongs to a machine that is no more.
            self.queued.clear();
            return Some(chosen);
        }
        for stop in stops.filter(|stop| happens_once(&stop.reason)) {
            if !self.is_the_same_change(&chosen, &stop) {
                self.queue(stop);
            }
        }
        Some(chosen)
    }

    /// Where memory is compared, each vCPU that runs notices a change.
    fn is_the_same_change(&self, one: &Stop, other: &Stop) -> bool {
        match &one.reason {
            StopReason::Watchpoint { address, .. } => {
                one.reason == other.reason && self.guest.breakpoints.compares(*address)
            }
            _ => false,
        }
    }

    /// Returns the stops that count, the one to report first in front.
    pub(super) fn by_urgency(&mut self, mut stops: Vec<Stop>) -> Vec<Stop> {
        if !self.guest.exists(self.guest.current) {
            // It was unplugged while the guest ran.
            self.guest.current = VcpuId(0);
        }
        let guest = &self.guest;
        let in_focus = if guest.exists(guest.in_focus) {
            guest.in_focus
        } else {
            VcpuId(0)
        };
        // The whole guest's end or reset counts, also from a vCPU that has gone.
        stops.retain(|stop| guest.exists(stop.vcpu) || is_of_the_guest(&stop.reason));
        for stop in stops.iter_mut().filter(|stop| !guest.exists(stop.vcpu)) {
            stop.vcpu = in_focus;
        }
        // Of equals the vCPU of the last stop, then the first.
        stops.sort_by_key(|stop| (urgency(&stop.reason), stop.vcpu != in_focus, stop.vcpu));
        stops
    }

    /// Keeps a stop for the next resume of its vCPU.
    pub(super) fn queue(&mut self, stop: Stop) {
        self.queued.push_back(stop);
        // One of each vCPU at most can be true at a time.
        while self.queued.len() > usize::from(self.guest.host.vcpu_count()) {
            self.queued.pop_front();
        }
    }

    /// Sends the stop reply; the guest is stopped for the client then.
    pub(super) fn report(&mut self, stop: &Stop) {
        self.early_interrupt = false;
        self.passing.stop();
        self.note_reason(stop);
        if stop.reason == StopReason::Step {
            self.guest.note_unguarded(stop.vcpu);
        }
        if !matches!(stop.reason, StopReason::Exited(_)) {
            self.guest.note_narrow_view(stop.vcpu);
        }
        self.flush_notices();
        self.send_stop_reply(stop);
        self.last_stop = stop.clone();
        self.state = if matches!(stop.reason, StopReason::Exited(_)) {
            self.closing = true;
            State::Ended
        } else {
            State::Stopped
        };
    }

    /// Explains a stop on the client's console, where the reply cannot.
    pub(super) fn note_reason(&mut self, stop: &Stop) {
        let thread = tid(stop.vcpu);
        let text = match &stop.reason {
            StopReason::Reset => format!("thread {thread}: the machine was reset"),
            StopReason::TripleFault(text) => format!("thread {thread}: triple fault: {text}"),
            StopReason::InternalError(text) => {
                format!("thread {thread}: the hypervisor cannot go on: {text}")
            }
            _ => return,
        };
        self.guest.notices.push(&text);
    }

    /// Sends the stop reply, which selects the thread.
    pub(super) fn send_stop_reply(&mut self, stop: &Stop) {
        self.guest.current = stop.vcpu;
        self.guest.in_focus = stop.vcpu;
        self.expedite(stop);
        let reason = reason(stop, self.names_breakpoint(stop));
        let threads = self.threads_in_stop_reply();
        let Self {
            stub,
            guest,
            sender,
            expedited,
            ..
        } = self;
        let reported = stub.report(guest, reason, expedited.iter(), |reply| match reply {
            [b'T', ..] if !threads.is_empty() => sender.send(&[reply, threads.as_bytes()].concat()),
            _ => sender.send(reply),
        });
        if let Err(error) = reported {
            tracing::error!(%error, "gdbstub cannot report a stop");
            // The client waits for a stop: this is the least that one says.
            self.reply(format!("T05thread:{:x};", tid(stop.vcpu)).as_bytes());
        }
    }

    /// Returns `true` if the reply may say that the stop is a breakpoint's: the client has announced that it
    /// understands this, and finds a breakpoint of its own at the program counter that it is sent.
    ///
    /// GDB takes the reason without a breakpoint there for one that it has removed since, and resumes
    /// ("delayed hardware breakpoint trap, ignoring"). Where CS has a base, the address of a breakpoint is not
    /// the program counter: a plain SIGTRAP then stops GDB.
    fn names_breakpoint(&mut self, stop: &Stop) -> bool {
        let guest = &mut self.guest;
        let kind = match stop.reason {
            StopReason::SoftwareBreakpoint if guest.client.swbreak => PointKind::Software,
            StopReason::HardwareBreakpoint if guest.client.hwbreak => PointKind::Hardware,
            _ => return false,
        };
        let groups = H::Arch::STOP_GROUPS;
        let registers = guest.registers.read(&mut guest.host, stop.vcpu, groups);
        registers.is_ok_and(|registers| {
            guest
                .breakpoints
                .is_set(kind, H::Arch::client_pc(registers))
        })
    }

    /// Reads the registers that GDB asks for at every stop. With these in the reply it asks for
    /// none.
    fn expedite(&mut self, stop: &Stop) {
        let Self {
            guest, expedited, ..
        } = self;
        expedited.clear();
        if matches!(stop.reason, StopReason::Exited(_)) || !guest.exists(stop.vcpu) {
            return;
        }
        let view = guest.view();
        match guest
            .registers
            .read(&mut guest.host, stop.vcpu, H::Arch::STOP_GROUPS)
        {
            Ok(registers) => {
                for register in H::Arch::expedited(view) {
                    let start = expedited.values.len();
                    // A stop reply cannot say that a register is unavailable: the client asks for it.
                    if H::Arch::read_register(register, registers, &mut expedited.values) {
                        let size = expedited.values.len() - start;
                        expedited.registers.push((H::Arch::number(register), size));
                    }
                }
            }
            Err(error) => {
                log_refused(stop.vcpu, &error);
            }
        }
    }
}

/// Returns `true` for a vCPU's stop that is lost if it is not reported.
pub(super) fn happens_once(reason: &StopReason) -> bool {
    match reason {
        // Trap-like or final: it does not happen again.
        StopReason::Watchpoint { .. }
        | StopReason::TripleFault(_)
        | StopReason::InternalError(_) => true,
        // Fault-like: the vCPU is before the instruction, and stops there again.
        StopReason::SoftwareBreakpoint | StopReason::HardwareBreakpoint => false,
        // The session looks again before it resumes the guest.
        StopReason::CodeChanged => false,
        // All-stop: a resume has one reply, which is of one vCPU.
        StopReason::Step
        | StopReason::Interrupted
        | StopReason::Reset
        | StopReason::ResetRequest
        | StopReason::Exited(_) => false,
    }
}

/// Returns `true` for a reason that is the guest's, not a vCPU's.
pub(super) fn is_of_the_guest(reason: &StopReason) -> bool {
    matches!(
        reason,
        StopReason::Exited(_) | StopReason::Reset | StopReason::ResetRequest
    )
}

/// The smallest is reported first.
fn urgency(reason: &StopReason) -> u8 {
    match reason {
        StopReason::Exited(_) => 0,
        StopReason::Reset | StopReason::ResetRequest => 1,
        StopReason::TripleFault(_) | StopReason::InternalError(_) => 2,
        // Trap-like before fault-like: the latter happens again.
        StopReason::Watchpoint { .. } => 3,
        StopReason::SoftwareBreakpoint | StopReason::HardwareBreakpoint => 4,
        StopReason::Step => 5,
        StopReason::Interrupted | StopReason::CodeChanged => 6,
    }
}

fn reason(stop: &Stop, names_breakpoint: bool) -> MultiThreadStopReason<u64> {
    let tid = tid(stop.vcpu);
    let signal = |signal| MultiThreadStopReason::SignalWithThread { tid, signal };
    match stop.reason {
        // The protocol has no stop reply for a reset; a notice explains it.
        StopReason::Step | StopReason::Reset | StopReason::ResetRequest => signal(Signal::SIGTRAP),
        StopReason::SoftwareBreakpoint | StopReason::HardwareBreakpoint if !names_breakpoint => {
            signal(Signal::SIGTRAP)
        }
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
        // The session goes on after the latter, or reports an interrupt instead.
        StopReason::Interrupted | StopReason::CodeChanged => signal(Signal::SIGINT),
        StopReason::TripleFault(_) => signal(Signal::SIGSEGV),
        StopReason::InternalError(_) => signal(Signal::SIGILL),
        StopReason::Exited(status) => MultiThreadStopReason::Exited(status),
    }
}

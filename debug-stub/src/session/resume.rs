//! From a resume packet to a plan.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use vcpu_caps::VcpuId;

use crate::address::GuestPhysAddr;
use crate::guest::{Orders, errno, refused, tid};
use crate::host::{Action, Host};
use crate::order::{Armed, ResumePlan, StepOrder, Stop, StopReason, VcpuOrder};
use crate::request::{Run, RunAction, ThreadId};
use crate::x86_64::{RegisterGroups, translate};

use super::{Session, State};

impl<H: Host> Session<H> {
    pub(super) fn answer_resume(&mut self, actions: &[RunAction]) {
        let Some(packet) = self.spell(actions) else {
            return self.reply_error(errno::EINVAL);
        };
        if self.exchange(packet.as_bytes()).is_none() {
            return;
        }
        let orders = std::mem::take(&mut self.guest.orders);
        self.resume(&orders);
    }

    /// Spells a resume packet so that gdbstub takes it: each thread at most once, steps for one
    /// thread each, and `c` for all the others, or for none.
    ///
    /// "For each inferior thread, the leftmost action with a matching thread-id is applied"
    /// ("vCont"). `None` if no vCPU is left to run, or there is no such thread.
    fn spell(&self, actions: &[RunAction]) -> Option<String> {
        let mut packet = String::from("vCont");
        let mut named = BTreeSet::new();
        let mut put = |vcpu: VcpuId, run: &Run| {
            if named.insert(vcpu) {
                let tid = tid(vcpu);
                // Writing to a String does not fail.
                let _ = match run {
                    Run::Continue => write!(packet, ";c:{tid:x}"),
                    Run::Step => write!(packet, ";s:{tid:x}"),
                    Run::Range(Range { start, end }) => {
                        write!(packet, ";r{start:x},{end:x}:{tid:x}")
                    }
                };
            }
        };
        for RunAction { run, thread } in actions {
            match (thread, run) {
                (ThreadId::One(_), _) => put(self.vcpu_of(*thread)?, run),
                (ThreadId::All | ThreadId::Any, Run::Continue) => {
                    packet.push_str(";c");
                    return Some(packet);
                }
                // To step all vCPUs "at once" has no meaning on a machine: the selected one
                // steps, and the others stay.
                (ThreadId::All | ThreadId::Any, Run::Step | Run::Range(_)) => {
                    put(self.guest.current, run);
                    return Some(packet);
                }
            }
        }
        Some(packet)
    }

    fn resume(&mut self, orders: &Orders) {
        self.state = State::Running { interrupted: false };
        self.flush_notices();
        if matches!(self.last_stop.reason, StopReason::Exited(_)) {
            // It ended as the client came, who may not have asked yet.
            return self.report(&self.last_stop.clone());
        }
        if let Some(stop) = self.next_queued(orders) {
            return self.report(&stop);
        }
        let (plan, lifted) = match self.plan(orders) {
            Ok(plan) => plan,
            Err((vcpu, text)) => return self.fail_resume(vcpu, &text),
        };
        let Session { guest, .. } = self;
        if let Err(address) = guest.breakpoints.arm(&guest.host, &lifted) {
            let text = format!("the breakpoint at physical {address} cannot be written: delete it");
            return self.fail_resume(self.guest.current, &text);
        }
        self.guest.registers.forget();
        self.actions.push_back(Action::Resume(plan));
        if std::mem::take(&mut self.early_interrupt) {
            self.interrupt();
        }
    }

    /// The vCPUs cannot run: says why, and reports a stop, since one is waited for.
    fn fail_resume(&mut self, vcpu: VcpuId, text: &str) {
        tracing::error!(%vcpu, text, "cannot resume");
        self.console(&format!("cannot resume: {text}\n"));
        self.report(&Stop {
            vcpu,
            reason: StopReason::Step,
        });
    }

    /// The plan, and the INT3s to leave out of memory meanwhile.
    fn plan(
        &mut self,
        orders: &Orders,
    ) -> Result<(ResumePlan, Vec<GuestPhysAddr>), (VcpuId, String)> {
        let mut vcpus = Vec::with_capacity(usize::from(self.guest.host.vcpu_count()));
        for index in 0..self.guest.host.vcpu_count() {
            let vcpu = VcpuId(index);
            vcpus.push(match orders.named.get(&vcpu) {
                Some(run) => self.order(vcpu, run)?,
                None if orders.others_stay => VcpuOrder::Stay,
                None => VcpuOrder::Continue,
            });
        }
        let mut armed = self.guest.breakpoints.armed();
        let mut lifted = Vec::new();
        if let Some((vcpu, address)) = self.step_from_breakpoint(&vcpus)? {
            // Memory is shared: while the INT3 is out, whoever else ran could run past it.
            for (order, index) in vcpus.iter_mut().zip(0..) {
                match order {
                    // A range that came back to the breakpoint would run past it, too. To stop
                    // short of the range's end is legal ("vCont", action r).
                    VcpuOrder::Step(step) if VcpuId(index) == vcpu => step.range = None,
                    other => *other = VcpuOrder::Stay,
                }
            }
            let mut without = Armed::clone(&armed);
            without.software.remove(&address);
            armed = Arc::new(without);
            lifted.push(address);
        }
        let plan = ResumePlan { vcpus, armed };
        Ok((plan, lifted))
    }

    fn order(&mut self, vcpu: VcpuId, run: &Run) -> Result<VcpuOrder, (VcpuId, String)> {
        let bits = self.guest.step_bits;
        let range = match run {
            Run::Continue => return Ok(VcpuOrder::Continue),
            _ if !bits.steps() => return Ok(VcpuOrder::Continue),
            Run::Step => None,
            Run::Range(range) => {
                // The client counts in RIP, the plan in linear addresses.
                let registers = self
                    .guest
                    .registers
                    .read(&mut self.guest.host, vcpu, RegisterGroups::EXPEDITED)
                    .map_err(|error| (vcpu, error.to_string()))?;
                let base = registers.linear_pc().wrapping_sub(registers.core.rip);
                let start = range.start.wrapping_add(base);
                let end = range.end.wrapping_add(base);
                (start < end).then_some(start..end)
            }
        };
        Ok(VcpuOrder::Step(StepOrder {
            range,
            mask: bits.masks(),
        }))
    }

    /// A vCPU whose step begins on an INT3 of ours, and where that is. The first such vCPU, if
    /// there are several: it is the one that runs.
    fn step_from_breakpoint(
        &mut self,
        orders: &[VcpuOrder],
    ) -> Result<Option<(VcpuId, GuestPhysAddr)>, (VcpuId, String)> {
        if !self.guest.breakpoints.any_software() {
            return Ok(None);
        }
        for (order, index) in orders.iter().zip(0..) {
            if !matches!(order, VcpuOrder::Step(_)) {
                continue;
            }
            let vcpu = VcpuId(index);
            let guest = &mut self.guest;
            let registers = guest
                .registers
                .read(&mut guest.host, vcpu, RegisterGroups::EXPEDITED)
                .map_err(|error| {
                    refused(vcpu, &error);
                    (vcpu, error.to_string())
                })?;
            let pc = crate::GuestVirtAddr(registers.linear_pc());
            // Where nothing is mapped there is no INT3 of ours, and the step will fault.
            if let Ok(found) = translate(&registers.special, &guest.host, pc) {
                if guest.breakpoints.has_software(found.gpa) {
                    return Ok(Some((vcpu, found.gpa)));
                }
            }
        }
        Ok(None)
    }

    /// A stop that the client has not heard of and that is still true, of a vCPU that it wants to
    /// run now.
    fn next_queued(&mut self, orders: &Orders) -> Option<Stop> {
        let breakpoints = &self.guest.breakpoints;
        // The client may have deleted the watchpoint meanwhile.
        self.queued.retain(|stop| match stop.reason {
            StopReason::Watchpoint { address, access } => breakpoints.watches(address, access),
            _ => true,
        });
        let at = self
            .queued
            .iter()
            .position(|stop| orders.named.contains_key(&stop.vcpu) || !orders.others_stay)?;
        self.queued.remove(at)
    }
}

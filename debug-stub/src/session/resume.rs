//! From a resume packet to a plan.

use std::sync::Arc;

use gdbstub::common::Tid;
use gdbstub::target::ext::base::multithread::{
    MultiThreadRangeStepping, MultiThreadResume, MultiThreadSchedulerLocking, MultiThreadSingleStep,
};
use vcpu_caps::{HwBreakpoint, HwBreakpointKind, VcpuId};

use crate::address::GuestPhysAddr;
use crate::arch::Arch;
use crate::guest::{OrderError, log_refused, tid};
use crate::host::{Action, Host};
use crate::memory::Space;
use crate::order::{Armed, ResumePlan, Stop, StopReason, VcpuOrder};
use crate::request::{Run, ThreadId, actions};

use super::{Session, State};

impl<H: Host> Session<H> {
    /// Gives the guest the orders of a `vCont` that gdbstub does not parse.
    pub(super) fn order_all(&mut self, text: &[u8]) -> Result<(), OrderError> {
        self.guest.clear_resume_actions()?;
        for action in actions(text) {
            let (run, thread) = action.ok_or(OrderError::Malformed)?;
            match (thread, run) {
                (ThreadId::One(id), run) => {
                    let thread = Tid::new(id).ok_or(OrderError::NoThread(id))?;
                    self.order(run, thread)?;
                }
                // Clients that send thread 0 here mean all.
                (ThreadId::All | ThreadId::Any, Run::Continue) => return self.guest.resume(),
                // A machine has no step of all vCPUs at once: the selected one steps, and the
                // others stay.
                (ThreadId::All | ThreadId::Any, run) => {
                    self.order(run, tid(self.guest.current))?;
                    break;
                }
            }
        }
        self.guest.set_resume_action_scheduler_lock()?;
        self.guest.resume()
    }

    /// Gives the guest the order of a `c` or `s`, for one thread or for all.
    pub(super) fn order_one(&mut self, step: bool, thread: Option<Tid>) -> Result<(), OrderError> {
        self.guest.clear_resume_actions()?;
        if let Some(thread) = thread {
            self.order(if step { Run::Step } else { Run::Continue }, thread)?;
            self.guest.set_resume_action_scheduler_lock()?;
        }
        self.guest.resume()
    }

    fn order(&mut self, run: Run, thread: Tid) -> Result<(), OrderError> {
        match run {
            Run::Continue => self.guest.set_resume_action_continue(thread, None),
            Run::Step => self.guest.set_resume_action_step(thread, None),
            Run::Range(start, end) => self.guest.set_resume_action_range_step(thread, start, end),
        }
    }

    /// Resumes the guest by the orders that it has.
    pub(super) fn resume(&mut self) {
        let (vcpus, others) = self.guest.orders.take();
        self.guest.place_awaited(self.guest.current);
        let mut plan = ResumePlan {
            vcpus,
            others,
            armed: self.guest.breakpoints.arm_for_resume(),
        };
        self.state = State::Running { interrupted: false };
        self.guest.notices.resumed();
        self.flush_notices();
        if self.has_ended() {
            // The guest ended while it was stopped or as the client came, and the client has not asked
            // yet.
            return self.report(&self.last_stop.clone());
        }
        if let Some(stop) = self.next_queued(&plan) {
            return self.report(&stop);
        }
        if !self.prepare(&mut plan) {
            return;
        }
        self.passing.resumed(&plan);
        let steps = |order: &VcpuOrder| matches!(order, VcpuOrder::Step(_));
        if let Some(vcpu) = (0..)
            .map(VcpuId)
            .zip(&plan.vcpus)
            .find(|(_, order)| steps(order))
        {
            self.guest.in_focus = vcpu.0;
        }
        self.resumed.clone_from(&plan);
        self.actions.push_back(Action::Resume(plan));
        if std::mem::take(&mut self.early_interrupt) {
            self.interrupt();
        }
    }

    /// Makes memory and the plan ready for an [`Action::Resume`]. Returns `false` if the vCPUs cannot run; the
    /// client has been told.
    pub(super) fn prepare(&mut self, plan: &mut ResumePlan) -> bool {
        let lifted = match self.lift(plan) {
            Ok(lifted) => lifted,
            Err((vcpu, text)) => {
                self.fail_resume(vcpu, &text);
                return false;
            }
        };
        run_alone(plan);
        let Session { guest, .. } = self;
        if let Err(address) = guest.breakpoints.write_instructions(&guest.host, lifted) {
            let text = format!("the breakpoint at physical {address} cannot be written: delete it");
            self.fail_resume(self.guest.current, &text);
            return false;
        }
        self.guest.registers.forget();
        true
    }

    /// The vCPUs cannot run. Prints why, and reports a stop: the client waits for one.
    pub(super) fn fail_resume(&mut self, vcpu: VcpuId, text: &str) {
        tracing::error!(%vcpu, text, "cannot resume");
        self.console(&format!("cannot resume: {text}\n"));
        self.report(&Stop {
            vcpu,
            reason: StopReason::Step,
        });
    }

    /// Changes the plan if a step begins on a software breakpoint: that vCPU runs alone. Returns
    /// the breakpoint to leave out of memory while it does.
    fn lift(&mut self, plan: &mut ResumePlan) -> Result<Option<GuestPhysAddr>, (VcpuId, String)> {
        let Some((vcpu, address)) = self.step_from_breakpoint(&plan.vcpus)? else {
            return Ok(None);
        };
        // Memory is shared: another vCPU that ran while the breakpoint is out could pass it.
        for (order, index) in plan.vcpus.iter_mut().zip(0..) {
            match order {
                // A range that came back to the breakpoint would pass it, too. Stopping short of
                // the range's end is legal ("vCont", action r).
                VcpuOrder::Step(step) if VcpuId(index) == vcpu => step.range = None,
                other => *other = VcpuOrder::Stay,
            }
        }
        plan.others = VcpuOrder::Stay;
        let mut without = Armed::clone(&plan.armed);
        without.software.remove(&address);
        plan.armed = Arc::new(without);
        Ok(Some(address))
    }

    /// Returns a vCPU whose step begins on a software breakpoint, and where that is. It is the
    /// first such vCPU, if there are several.
    pub(super) fn step_from_breakpoint(
        &mut self,
        orders: &[VcpuOrder],
    ) -> Result<Option<(VcpuId, GuestPhysAddr)>, (VcpuId, String)> {
        if !self.guest.breakpoints.any_software() {
            return Ok(None);
        }
        let guest = &mut self.guest;
        for (order, index) in orders.iter().zip(0..) {
            if !matches!(order, VcpuOrder::Step(_)) {
                continue;
            }
            let vcpu = VcpuId(index);
            let groups = H::Arch::STOP_GROUPS | H::Arch::SPACE_GROUPS;
            let registers = guest
                .registers
                .read(&mut guest.host, vcpu, groups)
                .map_err(|error| {
                    log_refused(vcpu, &error);
                    (vcpu, error.to_string())
                })?;
            let pc = H::Arch::pc(registers);
            let space = Space::<H::Arch>::Virtual(H::Arch::address_space(registers));
            // Where nothing is mapped there is no breakpoint, and the step will fault.
            let mapped = space.translate(&guest.host, pc.0);
            if let Some(mapped) = mapped.filter(|at| guest.breakpoints.has_software(at.gpa)) {
                return Ok(Some((vcpu, mapped.gpa)));
            }
        }
        Ok(None)
    }

    /// Returns a stop that the client does not know of yet and that is still true, of a vCPU that
    /// the client wants to run now.
    fn next_queued(&mut self, plan: &ResumePlan) -> Option<Stop> {
        let guest = &self.guest;
        self.queued.retain(|stop| {
            // The client may have deleted the watchpoint, and the vCPU may have gone.
            guest.exists(stop.vcpu)
                && match stop.reason {
                    StopReason::Watchpoint { address, access } => {
                        guest.breakpoints.watches(address, access)
                    }
                    _ => true,
                }
        });
        let at = self
            .queued
            .iter()
            .position(|stop| *plan.order(stop.vcpu) != VcpuOrder::Stay)?;
        self.queued.remove(at)
    }
}

/// Says so where one vCPU steps and no other runs, if watchpoints may have taken the debug registers: see
/// [`StepOrder::alone`](crate::StepOrder::alone). A vCPU that appears waits then.
fn run_alone(plan: &mut ResumePlan) {
    let is_watched = |at: &HwBreakpoint| at.kind() != HwBreakpointKind::Execute;
    if !plan.armed.hardware.iter().any(is_watched) {
        return;
    }
    let mut running = plan
        .vcpus
        .iter_mut()
        .filter(|order| **order != VcpuOrder::Stay);
    if let (Some(VcpuOrder::Step(step)), None) = (running.next(), running.next()) {
        step.alone = true;
        plan.others = VcpuOrder::Stay;
    }
}

//! Hits that the client does not see: a breakpoint whose condition is false, or whose commands the VMM runs.
//!
//! Such a vCPU steps off its breakpoint, alone and masked as usual, and the guest goes on by the client's
//! orders. One run cycle is the step and one the rest; the client has no part in either.

use std::collections::VecDeque;

use vcpu_caps::VcpuId;

use crate::guest::Hit;
use crate::host::{Action, Host};
use crate::order::{ResumePlan, StepOrder, Stop, StopReason, VcpuOrder};

use super::Session;

/// Where the session is in this.
#[derive(Debug, Default)]
pub(super) struct Passing {
    /// The vCPU that steps off its breakpoint now.
    stepping: Option<VcpuId>,
    /// Those that do so after it.
    waiting: VecDeque<VcpuId>,
    /// vCPUs whose commands have run at this address, and that are still there: a stop of the client's came
    /// before their step. The commands do not run again there.
    printed: Vec<(VcpuId, u64)>,
}

impl Passing {
    /// The client gets a stop. vCPUs that have not stepped off their breakpoints hit them again.
    pub(super) fn stop(&mut self) {
        self.stepping = None;
        self.waiting.clear();
    }

    /// The client resumes the guest. A vCPU that steps leaves its breakpoint.
    pub(super) fn resumed(&mut self, plan: &ResumePlan) {
        self.printed
            .retain(|(vcpu, _)| !matches!(plan.order(*vcpu), VcpuOrder::Step(_)));
    }
}

impl<H: Host> Session<H> {
    /// The guest has stopped while the client waits for it. Reports the stop, unless the client does not see it.
    pub(super) fn stopped_running(&mut self, stops: Vec<Stop>, interrupted: bool) {
        if let Some(stops) = self.pass(stops, interrupted) {
            self.report_stops(stops);
        }
    }

    /// Returns the stops to report, or goes on if there is none.
    fn pass(&mut self, mut stops: Vec<Stop>, interrupted: bool) -> Option<Vec<Stop>> {
        let changes = |stop: &Stop| stop.reason == StopReason::CodeChanged;
        let changed = stops
            .iter()
            .find(|stop| changes(stop))
            .map(|stop| stop.vcpu);
        stops.retain(|stop| !changes(stop));
        if let Some(vcpu) = changed {
            self.guest.place_awaited(vcpu);
        }
        let stepped = self.passing.stepping.take();
        if stepped.is_none() && changed.is_none() && !self.guest.breakpoints.any_program() {
            return Some(stops);
        }
        let mut goes_on = changed.is_some();
        if let Some(vcpu) = stepped {
            let own = |stop: &Stop| stop.vcpu == vcpu && stop.reason == StopReason::Step;
            if stops.iter().any(own) {
                self.passing.printed.retain(|(at, _)| *at != vcpu);
                // If the client steps this vCPU, its step is done, too. A range may end early ("vCont", action r).
                if !matches!(self.resumed.order(vcpu), VcpuOrder::Step(_)) {
                    stops.retain(|stop| !own(stop));
                    goes_on = true;
                }
            }
        }
        let (hits, others): (Vec<Stop>, Vec<Stop>) =
            stops.into_iter().partition(|stop| self.is_passed(stop));
        goes_on |= !hits.is_empty();
        // A hit that is not passed now happens again: the vCPU is before the instruction.
        if interrupted || !others.is_empty() || !goes_on {
            return Some(others);
        }
        self.passing
            .waiting
            .extend(hits.into_iter().map(|stop| stop.vcpu));
        self.go_on();
        None
    }

    /// Returns `true` if the client does not see this stop.
    fn is_passed(&mut self, stop: &Stop) -> bool {
        let is_hit = matches!(
            stop.reason,
            StopReason::SoftwareBreakpoint | StopReason::HardwareBreakpoint
        );
        is_hit && self.guest.judge(stop.vcpu) == Hit::Passed
    }

    /// Runs the guest on: the next vCPU that has to step off its breakpoint, or all by the client's orders.
    fn go_on(&mut self) {
        let count = self.guest.host.vcpu_count();
        // One may have gone while another stepped.
        self.passing.waiting.retain(|vcpu| vcpu.0 < count);
        if let Some(vcpu) = self.passing.waiting.pop_front() {
            self.print_commands(vcpu);
            self.passing.stepping = Some(vcpu);
            let mut vcpus = vec![VcpuOrder::Stay; count.into()];
            if let Some(order) = vcpus.get_mut(vcpu.index()) {
                *order = VcpuOrder::Step(StepOrder {
                    mask: self.guest.step_bits.masks(),
                    ..StepOrder::default()
                });
            }
            let armed = self.guest.breakpoints.arm_for_resume();
            return self.run_on(ResumePlan {
                vcpus,
                others: VcpuOrder::Stay,
                armed,
            });
        }
        let Some(plan) = self.resumed_plan() else {
            return self.report_stops(Vec::new());
        };
        match self.step_from_breakpoint(&plan.vcpus) {
            // Its order began elsewhere: it has come to this breakpoint and not hit it yet.
            Ok(Some((vcpu, _))) => self.stopped_running(
                vec![Stop {
                    vcpu,
                    reason: StopReason::SoftwareBreakpoint,
                }],
                false,
            ),
            Ok(None) => self.run_on(plan),
            Err((vcpu, text)) => self.fail_resume(vcpu, &text),
        }
    }

    /// The client's orders, for the vCPUs that there are now. `None` if none of them is to run any more.
    pub(super) fn resumed_plan(&mut self) -> Option<ResumePlan> {
        let mut plan = self.resumed.clone();
        let others = plan.others.clone();
        plan.vcpus
            .resize(self.guest.host.vcpu_count().into(), others);
        plan.armed = self.guest.breakpoints.arm_for_resume();
        let runs = |order: &VcpuOrder| *order != VcpuOrder::Stay;
        (runs(&plan.others) || plan.vcpus.iter().any(runs)).then_some(plan)
    }

    /// Resumes the guest without the client.
    pub(super) fn run_on(&mut self, mut plan: ResumePlan) {
        if self.prepare(&mut plan) {
            self.actions.push_back(Action::Resume(plan));
        }
    }

    /// Runs the commands of the breakpoint that a vCPU is at, once.
    fn print_commands(&mut self, vcpu: VcpuId) {
        let Some((pc, output)) = self.guest.run_commands(vcpu) else {
            return;
        };
        let printed = &mut self.passing.printed;
        if printed.contains(&(vcpu, pc)) {
            return;
        }
        printed.retain(|(at, _)| *at != vcpu);
        printed.push((vcpu, pc));
        if output.is_empty() {
            return;
        }
        if self.sender.backlog() < self.output_limit() {
            self.print(&output);
        } else {
            // The client does not read.
            self.guest.notices.lose();
        }
    }
}

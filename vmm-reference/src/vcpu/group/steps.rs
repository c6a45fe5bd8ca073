//! Steps without a hand-over.
//!
//! From the second step of a series on, the thread that asks for a step of one vCPU runs it itself,
//! for a bounded [turn](crate::wake::StepSlice). Waking another thread costs more than the step. The
//! first step after a free run stays with the vCPU's thread: before Linux 6.13 KVM waits for an RCU
//! grace period when another thread than before runs a vCPU, and a conditional breakpoint (stop,
//! step, go on) would pay for it twice. There the period is longer than a turn too, so that each
//! turn would be lost to it: after a lost turn the vCPU's thread keeps the steps to come, twice as
//! many each time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use debug_stub::{Armed, ResumePlan, StopReason, VcpuId, VcpuOrder};

use super::{VcpuGroup, lock};
use crate::vcpu::run::{OnStop, RunEnd};
use crate::wake::{STEP_SLICE, StepSlice};

/// Turns that ended before the step did, in a row, and what follows from it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LostTurns {
    in_a_row: u32,
    /// How many steps the vCPU's thread keeps.
    kept: u32,
}

impl LostTurns {
    /// Doubling up to here: then a machine that has become faster is noticed within seconds.
    const MOST: u32 = 16;

    /// Whether to try a turn for the next step.
    fn next_step(&mut self) -> bool {
        let try_it = self.kept == 0;
        self.kept = self.kept.saturating_sub(1);
        try_it
    }

    fn lose(&mut self) {
        self.in_a_row = (self.in_a_row + 1).min(Self::MOST);
        self.kept = 1 << self.in_a_row;
    }
}

impl VcpuGroup {
    /// The vCPU that the calling thread steps itself: the plan steps it alone, its last order was a step
    /// too, and time with it was not lost of late.
    pub(super) fn inline_step(&self, plan: &ResumePlan) -> Option<VcpuId> {
        let mut alone = None;
        let mut count = 0;
        for ((order, slot), id) in plan.vcpus.iter().zip(&self.shared.slots).zip(0..) {
            if *order == VcpuOrder::Stay {
                continue;
            }
            count += 1;
            let is_step = matches!(order, VcpuOrder::Step(_));
            if slot.order_is_step(is_step) && is_step {
                alone = Some(VcpuId(id));
            }
        }
        let vcpu = alone.filter(|_| count == 1)?;
        let mut lost = self.lost.get();
        let worth_a_turn = lost.next_step();
        self.lost.set(lost);
        worth_a_turn.then_some(vcpu)
    }

    /// Runs a step on the calling thread. `None` if it is not done within a turn: then the vCPU's own
    /// thread goes on with it.
    pub(super) fn step_here(
        &self,
        vcpu: VcpuId,
        order: &VcpuOrder,
        armed: &Arc<Armed>,
    ) -> Option<StopReason> {
        let slot = self.shared.slots.get(vcpu.index())?;
        let mut lost = self.lost.get();
        let mut turn = self.turn.borrow_mut();
        if turn.is_none() {
            *turn = StepSlice::new()
                .inspect_err(|error| tracing::debug!(%error, "no turns: each step is handed over"))
                .ok();
        }
        let mut vcpu = lock(&slot.vcpu);
        let run = vcpu.kvm_run();
        let turn = turn.as_mut()?;
        let start = Instant::now();
        let end = loop {
            let mut rang = false;
            let end = turn.take(run, |over| {
                let must_stop = || over.load(Ordering::Acquire);
                let end = (self.shared.run)(&mut vcpu, order, armed, &must_stop, OnStop::Yield);
                rang = over.load(Ordering::Acquire);
                end
            });
            // The timer may ring for a turn before this one. If it has not, the vCPU is halted, and
            // its own thread waits.
            let again = rang && matches!(end, Ok(RunEnd::Yielded)) && start.elapsed() < STEP_SLICE;
            if !again {
                break end;
            }
        };
        match end {
            Ok(RunEnd::Stopped(reason)) => {
                self.lost.set(LostTurns::default());
                Some(reason)
            }
            Ok(RunEnd::Yielded) => {
                lost.lose();
                self.lost.set(lost);
                None
            }
            Err(error) => {
                tracing::debug!(%error, "no turn: the step is handed over");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LostTurns;

    fn tries(lost: &mut LostTurns, steps: u32, turn_is_enough: bool) -> u32 {
        (0..steps)
            .filter(|_| {
                let tried = lost.next_step();
                if tried && turn_is_enough {
                    *lost = LostTurns::default();
                } else if tried {
                    lost.lose();
                }
                tried
            })
            .count()
            .try_into()
            .unwrap()
    }

    /// Before Linux 6.13 a turn always is: seen as 30 ms for each step under Linux 6.1.
    #[test]
    fn where_every_turn_is_lost_few_are_tried() {
        let mut lost = LostTurns::default();
        assert_eq!(tries(&mut lost, 2000, false), 10);
        assert!(tries(&mut lost, 1_000_000, false) < 25);
    }

    #[test]
    fn one_lost_turn_costs_two_hand_overs() {
        let mut lost = LostTurns::default();
        assert_eq!(tries(&mut lost, 1, false), 1);
        assert_eq!(tries(&mut lost, 100, true), 98);
        assert_eq!(tries(&mut lost, 100, true), 100);
    }
}

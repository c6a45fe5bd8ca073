//! Inline steps: steps without a hand-over.
//!
//! From the second step of a series on, the thread that asks for a step of one vCPU runs the vCPU
//! itself, for a bounded [step slice](crate::wake::StepSlice): waking another thread costs more than the
//! step. The first step after a free run stays on the vCPU's thread. Before Linux 6.13 KVM waits for an
//! RCU grace period when a different thread runs a vCPU, and a conditional breakpoint (stop, step,
//! continue) would wait for it twice. The grace period may also be longer than a slice: each slice then
//! expires before the step is done, and is lost. After a lost slice the vCPU's thread gets the next
//! steps, twice as many each time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use debug_stub::{Armed, ResumePlan, StopReason, VcpuId, VcpuOrder};

use super::{VcpuGroup, lock};
use crate::entry::MustStop;
use crate::vcpu::run::{OnStop, RunEnd};
use crate::wake::{STEP_SLICE, StepSlice, Waker};

/// Counts consecutive slices that expired before the step was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LostSlices {
    in_a_row: u32,
    /// The number of next steps that the vCPU's thread gets.
    kept: u32,
}

impl LostSlices {
    /// The limit of the doubling. A machine that has become faster is then noticed within seconds.
    const MOST: u32 = 16;

    /// Returns `true` if the next step is to be tried inline.
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
    /// Returns the vCPU that the calling thread steps itself: the plan runs only this vCPU and steps it,
    /// its last order was a step too, and recent slices were not lost.
    pub(super) fn inline_step(&self, plan: &ResumePlan) -> Option<VcpuId> {
        let mut alone = None;
        let mut count = 0;
        for ((order, slot), id) in plan.vcpus.iter().zip(&self.threads.shared.slots).zip(0..) {
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
        let worth_a_slice = lost.next_step();
        self.lost.set(lost);
        worth_a_slice.then_some(vcpu)
    }

    /// Runs a step on the calling thread. Returns `None` if it is not done within a slice: then the vCPU's
    /// own thread goes on with it.
    pub(super) fn step_here(
        &self,
        id: VcpuId,
        order: &VcpuOrder,
        armed: &Arc<Armed>,
        must_stop: &MustStop<'_>,
    ) -> Option<StopReason> {
        let slot = self.threads.shared.slots.get(id.index())?;
        let mut lost = self.lost.get();
        let mut slice = self.slice.borrow_mut();
        if slice.is_none() {
            *slice = StepSlice::new()
                .inspect_err(
                    |error| tracing::debug!(%error, "no step slices: each step is handed over"),
                )
                .ok();
        }
        let mut vcpu = lock(&slot.vcpu);
        let immediate_exit = slot.immediate_exit.byte();
        // A kick reaches this thread: what has arrived for the vCPU does not wait for the slice's end.
        let _attached = self.threads.shared.irqchip.waker(id).map(Waker::visit);
        let slice = slice.as_mut()?;
        let start = Instant::now();
        let end = loop {
            let mut expired = false;
            let end = slice.take(immediate_exit, |over| {
                let must_end = || over.load(Ordering::Acquire) || must_stop();
                let end =
                    (self.threads.shared.run)(&mut vcpu, order, armed, &must_end, OnStop::Yield);
                expired = over.load(Ordering::Acquire);
                end
            });
            // The timer may have expired for a previous slice, or it was a kick. If neither has come, the
            // vCPU is halted, and its own thread waits.
            let again = expired
                && matches!(end, Ok(RunEnd::Yielded))
                && start.elapsed() < STEP_SLICE
                && !must_stop();
            if !again {
                break end;
            }
        };
        match end {
            Ok(RunEnd::Stopped(reason)) => {
                self.lost.set(LostSlices::default());
                Some(reason)
            }
            // Its own thread ends the order.
            Ok(RunEnd::Yielded) if must_stop() => None,
            Ok(RunEnd::Yielded) => {
                lost.lose();
                self.lost.set(lost);
                None
            }
            Err(error) => {
                tracing::debug!(%error, "no step slice: the step is handed over");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LostSlices;

    fn tries(lost: &mut LostSlices, steps: u32, slice_is_enough: bool) -> u32 {
        (0..steps)
            .filter(|_| {
                let tried = lost.next_step();
                if tried && slice_is_enough {
                    *lost = LostSlices::default();
                } else if tried {
                    lost.lose();
                }
                tried
            })
            .count()
            .try_into()
            .unwrap()
    }

    /// Before Linux 6.13 every slice may be lost: a step took 30 ms under Linux 6.1.
    #[test]
    fn where_every_slice_is_lost_few_are_tried() {
        let mut lost = LostSlices::default();
        assert_eq!(tries(&mut lost, 2000, false), 10);
        assert!(tries(&mut lost, 1_000_000, false) < 25);
    }

    #[test]
    fn one_lost_slice_costs_two_hand_overs() {
        let mut lost = LostSlices::default();
        assert_eq!(tries(&mut lost, 1, false), 1);
        assert_eq!(tries(&mut lost, 100, true), 98);
        assert_eq!(tries(&mut lost, 100, true), 100);
    }
}

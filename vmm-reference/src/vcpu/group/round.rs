//! Rounds: from the orders to the vCPUs to the last one's stop.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use debug_stub::{ResumePlan, Stop, StopReason, VcpuId, VcpuOrder};

use super::shared::{Mail, Shared, Slot};
use super::{VcpuGroup, lock};

/// The round that is under way.
#[derive(Debug, Default)]
pub(super) struct Round {
    running: usize,
    /// Those that stopped for a reason of their own, first one first.
    stops: Vec<Stop>,
    /// The round is over, and nobody has been told.
    untold: bool,
}

impl Shared {
    /// Makes a vCPU stop, wherever it is. Before its thread has begun there is nothing to signal:
    /// it finds the flag.
    fn kick(&self, index: usize, slot: &Slot) {
        slot.stop.store(true, Ordering::SeqCst);
        let id = u16::try_from(index).map(VcpuId).unwrap_or_default();
        if let Some(waker) = self.irqchip.waker(id) {
            waker.rouse_for_stop();
        }
    }

    pub(super) fn kick_all(&self) {
        for (index, slot) in self.slots.iter().enumerate() {
            self.kick(index, slot);
        }
    }

    /// One vCPU has stopped.
    pub(super) fn finish(&self, stop: Stop) {
        if stop.reason != StopReason::Interrupted {
            // Before this vCPU is counted as stopped: nobody can begin another round meanwhile,
            // so this kick cannot hit one.
            for (index, slot) in self.slots.iter().enumerate() {
                if index != stop.vcpu.index() {
                    self.kick(index, slot);
                }
            }
        }
        let mut round = lock(&self.round);
        if stop.reason != StopReason::Interrupted {
            round.stops.push(stop);
        }
        round.running = round.running.saturating_sub(1);
        if round.running == 0 {
            self.irqchip.guest_stops();
            round.untold = true;
            self.signal();
        }
    }

    fn signal(&self) {
        self.stopped.ring();
    }
}

impl VcpuGroup {
    /// Begins a round. The group must be stopped; orders for vCPUs that do not exist are ignored,
    /// and vCPUs without an order stay.
    ///
    /// Answers the stops if the round is over already; [`VcpuGroup::take_stops`] has none then.
    pub fn resume(&self, plan: &ResumePlan) -> Option<Vec<Stop>> {
        let orders: Vec<_> = self
            .shared
            .slots
            .iter()
            .zip(&plan.vcpus)
            .enumerate()
            .filter(|(_, (_, order))| **order != VcpuOrder::Stay)
            .map(|(index, (slot, order))| (index, slot, order))
            .collect();
        if let [(index, slot, order)] = orders.as_slice() {
            if let Some(reason) = self.step_here(slot, order, &plan.armed) {
                let vcpu = u16::try_from(*index).map(VcpuId).unwrap_or_default();
                return Some(vec![Stop { vcpu, reason }]);
            }
        }
        let mut round = lock(&self.shared.round);
        debug_assert_eq!(round.running, 0, "a round is under way");
        if orders.is_empty() {
            return Some(Vec::new());
        }
        *round = Round {
            running: orders.len(),
            stops: Vec::new(),
            untold: false,
        };
        drop(round);
        self.shared.irqchip.guest_runs();
        // All flags before the first order: a vCPU that stops at once kicks the others.
        for slot in &self.shared.slots {
            slot.stop.store(false, Ordering::Release);
        }
        for (_, slot, order) in orders {
            let is_step = matches!(order, VcpuOrder::Step(_));
            slot.stepped.store(is_step, Ordering::Relaxed);
            slot.post(Mail::Run(order.clone(), Arc::clone(&plan.armed)));
        }
        None
    }

    /// Lets all vCPUs run with nothing armed.
    pub fn resume_all(&self) {
        // Nothing is over at once: there are vCPUs, and none is stepped.
        let _ = self.resume(&ResumePlan {
            vcpus: vec![VcpuOrder::Continue; self.count()],
            others: VcpuOrder::Continue,
            ..ResumePlan::default()
        });
    }

    /// Ends the round that is under way. Afterwards [`VcpuGroup::take_stops`] answers once,
    /// whether a round was under way or not.
    pub fn interrupt(&self) {
        let mut round = lock(&self.shared.round);
        if round.running == 0 {
            if !round.untold {
                round.untold = true;
                self.shared.signal();
            }
            return;
        }
        drop(round);
        self.shared.kick_all();
    }

    /// Becomes readable when a round is over.
    #[must_use]
    pub fn stopped_fd(&self) -> RawFd {
        self.shared.stopped.as_raw_fd()
    }

    /// The stops of the round that is over, once; `None` if no round has ended since.
    pub fn take_stops(&self) -> Option<Vec<Stop>> {
        // Only a wake-up: what counts is the round.
        self.shared.stopped.wait();
        let mut round = lock(&self.shared.round);
        if !round.untold {
            return None;
        }
        round.untold = false;
        Some(std::mem::take(&mut round.stops))
    }

    /// Whether a round is under way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        lock(&self.shared.round).running != 0
    }
}

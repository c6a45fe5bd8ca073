//! A stepper that remembers what its vCPU does next.

use std::sync::Arc;

use vcpu_caps::{Plan, VcpuId};

use super::{Next, Outcome, Stepper, StopReason, Vcpu};
use crate::host::GuestMemory;
use crate::order::{Armed, VcpuOrder};

/// What the loop of a vCPU's thread does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Enter the guest, then call [`Driver::ran`].
    Enter,
    /// Enter with `immediate_exit` set, so the hypervisor completes an access and runs no
    /// instruction. Then call [`Driver::ran`].
    Complete,
    /// The order is over: report why. Returned once.
    Stopped(StopReason),
    /// There is no order: get one, then call [`Driver::start`].
    Idle,
}

/// A [`Stepper`] for a loop that serves other requests between two entries, or hands the vCPU to
/// another thread in the middle of an order. It keeps what comes next, so the loop has one place
/// that asks:
///
/// ```text
/// loop {
///     match driver.next_entry(|| !must_stop(), &mut vcpu, &memory) {
///         Entry::Enter => driver.ran(run(), &mut vcpu, &memory),
///         Entry::Complete => driver.ran(complete(), &mut vcpu, &memory),
///         Entry::Stopped(reason) => handle.report(reason),
///         Entry::Idle => match handle.wait_for_order() {
///             Order::Run(order, armed) => driver.start(&order, &armed, &mut vcpu, &memory),
///             Order::Wait | Order::Leave => break,
///         },
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Driver {
    stepper: Stepper,
    next: Option<Next>,
}

impl Driver {
    /// For a vCPU that nothing else debugs. What the plan lacks is not used.
    #[must_use]
    pub fn new(id: VcpuId, plan: &Plan) -> Self {
        Self {
            stepper: Stepper::new(id, plan),
            next: None,
        }
    }

    /// The stepper.
    #[must_use]
    pub fn stepper(&self) -> &Stepper {
        &self.stepper
    }

    /// The stepper, to read and write registers and to release the vCPU while it is stopped.
    pub fn stepper_mut(&mut self) -> &mut Stepper {
        &mut self.stepper
    }

    /// Returns `true` if an order is under way, or its end is not reported yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.next.is_some()
    }

    /// Begins an order: [`Stepper::start`].
    pub fn start<V: Vcpu>(
        &mut self,
        order: &VcpuOrder,
        armed: &Arc<Armed>,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) {
        self.next = Some(self.stepper.start(order, armed, vcpu, memory));
    }

    /// What the loop does now. `may_run` says whether the vCPU may enter the guest; it is not
    /// called for an entry that runs no instruction. Clear the kick in it first, then read the
    /// stop request, and do not clear the kick after it: see the kick contract of [`run_control`](crate::run_control).
    pub fn next_entry<V: Vcpu>(
        &mut self,
        may_run: impl FnOnce() -> bool,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Entry {
        if self.next == Some(Next::Enter) && !may_run() {
            self.next = Some(self.stepper.interrupt(vcpu, memory));
        }
        match self.next.take() {
            None => Entry::Idle,
            Some(Next::Stopped(reason)) => Entry::Stopped(reason),
            Some(next) => {
                let entry = match next {
                    Next::Complete => Entry::Complete,
                    _ => Entry::Enter,
                };
                self.next = Some(next);
                entry
            }
        }
    }

    /// The vCPU has run, and what it asked for is served. A run that no order asked for, as of a
    /// VMM that completes an access before it pauses, ends no order; what it did to the registers, and
    /// whether the guest has ended, counts all the same.
    ///
    /// Returns `true` if the guest has come to an end within an order, as by a triple fault: the debugger
    /// shows it, and the VMM does not act on it.
    pub fn ran<V: Vcpu>(
        &mut self,
        outcome: Outcome,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> bool {
        let is_end = matches!(outcome, Outcome::Fatal(_));
        let next = self.stepper.ran(outcome, vcpu, memory);
        if matches!(self.next, Some(Next::Enter | Next::Complete)) {
            self.next = Some(next);
        }
        is_end && self.is_busy()
    }
}

//! A vCPU's own thread.

use debug_stub::run_control::{Order, VcpuHandle};
use debug_stub::{StopReason, VcpuOrder};

use super::lock;
use super::shared::Shared;
use crate::vcpu::run::{OnStop, RunEnd};
use crate::wake::{self, Kickable, Waker};

/// Runs one vCPU, order by order. If it panics, the handle reports that.
pub(super) fn vcpu_thread(mut handle: VcpuHandle, shared: &Shared) {
    let id = handle.id();
    let Some(slot) = shared.slots.get(id.index()) else {
        return;
    };
    let _kickable = Kickable::enter(slot.immediate_exit.byte())
        .inspect_err(|error| tracing::error!(%error, %id, "the vCPU cannot be stopped"));
    let _attached = shared.irqchip.waker(id).map(Waker::attach);
    if shared.irqchip.chips().has_local_timers() {
        wake::make_alarm();
    }
    let mut resumed = false;
    while let Order::Run(order, armed) = handle.wait_for_order() {
        let mut vcpu = lock(&slot.vcpu);
        if resumed && order == VcpuOrder::Continue && shared.irqchip.clock().passes_in_a_stop() {
            // The guest's watchdogs must not count the stop. EINVAL: the guest does not use kvmclock.
            let _ = vcpu.fd().kvmclock_ctrl();
        }
        resumed = true;
        let must_stop = || handle.must_stop();
        let end = (shared.run)(&mut vcpu, &order, &armed, &must_stop, OnStop::Interrupt);
        let reason = match end {
            RunEnd::Stopped(reason) => reason,
            // Does not happen on the vCPU's own thread.
            RunEnd::Yielded => StopReason::Interrupted,
        };
        drop(vcpu);
        handle.report(reason);
    }
}

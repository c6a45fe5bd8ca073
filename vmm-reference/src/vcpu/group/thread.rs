//! A vCPU's own thread.

use std::thread;

use debug_stub::kvm::{OnStop, RunEnd};
use debug_stub::{Stop, StopReason, VcpuId, VcpuOrder};

use super::lock;
use super::shared::{Mail, Shared};
use crate::wake::{self as kick, Kickable, Waker};

/// Reports a vCPU whose thread unwinds: a round must end whatever happens.
struct ReportPanic<'a> {
    id: VcpuId,
    shared: &'a Shared,
}

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.finish(Stop {
                vcpu: self.id,
                reason: StopReason::InternalError(format!("the thread of {} panicked", self.id)),
                registers: None,
            });
        }
    }
}

/// Runs one vCPU, order by order.
pub(super) fn vcpu_thread(id: VcpuId, shared: &Shared) {
    let Some(slot) = shared.slots.get(id.index()) else {
        return;
    };
    let run = lock(&slot.vcpu).kvm_run();
    let _kickable = Kickable::enter(run);
    let _attached = shared.irqchip.waker(id).map(Waker::attach);
    if shared.irqchip.user().is_some() {
        kick::make_alarm();
    }
    let mut resumed = false;
    loop {
        let (order, armed) = match slot.wait() {
            Mail::Run(order, armed) => (order, armed),
            Mail::Quit | Mail::Nothing => return,
        };
        let report = ReportPanic { id, shared };
        let mut vcpu = lock(&slot.vcpu);
        if resumed && order == VcpuOrder::Continue {
            // So that the guest's watchdogs do not count the stop. EINVAL: it uses no kvmclock.
            let _ = vcpu.fd().kvmclock_ctrl();
        }
        resumed = true;
        let end = (shared.run)(&mut vcpu, &order, &armed, &slot.stop, OnStop::Interrupt);
        let reason = match end {
            RunEnd::Stopped(reason) => reason,
            // Not on a thread of its own.
            RunEnd::Yielded => StopReason::Interrupted,
        };
        let registers = vcpu.expedited();
        drop(vcpu);
        drop(report);
        shared.finish(Stop {
            vcpu: id,
            reason,
            registers,
        });
    }
}

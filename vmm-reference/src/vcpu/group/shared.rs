//! What the vCPUs' threads and the group share.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use debug_stub::run_control::{ImmediateExit, Kick};
use debug_stub::{Armed, VcpuId, VcpuOrder};

use crate::entry::MustStop;
use crate::irqchip::Irqchip;
use crate::vcpu::run::{OnStop, RunEnd, Vcpu};

/// One vCPU, shared between its thread and the group.
#[derive(Debug)]
pub(super) struct Slot {
    /// Held by the thread while the vCPU runs.
    pub(super) vcpu: Mutex<Vcpu>,
    /// What a kick sets. Not through `vcpu`, of which the thread that is kicked may hold a reference.
    pub(super) immediate_exit: ImmediateExit,
    /// The last order was a step.
    stepped: AtomicBool,
}

impl Slot {
    pub(super) fn new(mut vcpu: Vcpu) -> io::Result<Self> {
        Ok(Self {
            immediate_exit: ImmediateExit::map(vcpu.fd())?,
            vcpu: Mutex::new(vcpu),
            stepped: AtomicBool::new(false),
        })
    }

    /// Notes that the next order is a step, or is not. Returns whether the last one was.
    pub(super) fn order_is_step(&self, is_step: bool) -> bool {
        self.stepped.swap(is_step, Ordering::Relaxed)
    }
}

/// Runs a vCPU with the machine's devices and memory.
type Run =
    dyn Fn(&mut Vcpu, &VcpuOrder, &Arc<Armed>, &MustStop<'_>, OnStop) -> RunEnd + Send + Sync;

pub(super) struct Shared {
    pub(super) slots: Vec<Slot>,
    pub(super) irqchip: Irqchip,
    pub(super) run: Box<Run>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

/// What the machine does for run control.
pub(super) struct Wakers(pub(super) Irqchip);

impl Kick for Wakers {
    /// Before the vCPU's thread has begun there is nothing to signal: it finds the request.
    fn kick(&self, vcpu: VcpuId) {
        if let Some(waker) = self.0.waker(vcpu) {
            waker.rouse_for_stop();
        }
    }

    fn all_stopped(&self) {
        self.0.guest_stops();
    }
}

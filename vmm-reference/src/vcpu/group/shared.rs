//! What the vCPUs' threads and the group share.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use debug_stub::run_control::{ImmediateExit, Kick};
use debug_stub::{Armed, GuestMemory, VcpuId, VcpuOrder};

use super::{GroupError, lock};
use crate::entry::MustStop;
use crate::irqchip::Irqchip;
use crate::vcpu::exits::Exits;
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

impl Shared {
    pub(super) fn new<E, M>(
        vcpus: Vec<Vcpu>,
        irqchip: Irqchip,
        exits: E,
        memory: M,
    ) -> Result<Self, GroupError>
    where
        E: Exits + Send + Sync + 'static,
        M: GuestMemory + Send + Sync + 'static,
    {
        let run = move |vcpu: &mut Vcpu,
                        order: &VcpuOrder,
                        armed: &Arc<Armed>,
                        must_stop: &MustStop<'_>,
                        on_stop| {
            vcpu.run(order, armed, (&exits, &memory), must_stop, on_stop)
        };
        let slot = |vcpu: Vcpu| {
            let id = vcpu.id();
            Slot::new(vcpu).map_err(|source| GroupError::Map { vcpu: id, source })
        };
        Ok(Self {
            slots: vcpus.into_iter().map(slot).collect::<Result<_, _>>()?,
            irqchip,
            run: Box::new(run),
        })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

/// What the machine does for run control. A reset replaces its chips.
#[derive(Clone, Debug)]
pub(super) struct Wakers(Arc<Mutex<Irqchip>>);

impl Wakers {
    pub(super) fn new(irqchip: Irqchip) -> Self {
        Self(Arc::new(Mutex::new(irqchip)))
    }

    pub(super) fn replace(&self, irqchip: Irqchip) {
        *lock(&self.0) = irqchip;
    }
}

impl Kick for Wakers {
    /// Before the vCPU's thread has begun there is nothing to signal: it finds the request.
    fn kick(&self, vcpu: VcpuId) {
        if let Some(waker) = lock(&self.0).waker(vcpu) {
            waker.rouse_for_stop();
        }
    }

    fn all_stopped(&self) {
        lock(&self.0).guest_stops();
    }
}

//! `--irqchip split`: the local APICs are KVM's, the board is ours.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use intr_controller::InterruptMessage;
use intr_controller::ioapic::{EoiRoutes, IoApic};
use intr_controller::kvm::{SplitEntry, SplitIrqchip, SplitVcpu};
use kvm_ioctls::{VcpuFd, VmFd};
use vcpu_caps::VcpuId;

use super::clock::GuestClock;
use super::shared::{Processors, SharedBoard, lock};
use crate::entry::{Entering, Permit};
use crate::vcpu::Waker;

/// KVM's local APICs.
#[derive(Debug)]
pub(super) struct SplitProcessors {
    pub(super) irqchip: SplitIrqchip<Arc<VmFd>>,
    vcpus: Vec<Mutex<SplitVcpu>>,
    intr: AtomicBool,
    /// What KVM has as routes: a change costs it a grace period, most writes of entries only mask, and
    /// most EOIs are of levels whose entry is as it was.
    routed: Mutex<Option<EoiRoutes>>,
    wakers: Arc<[Waker]>,
}

impl SplitProcessors {
    pub(super) fn new(irqchip: SplitIrqchip<Arc<VmFd>>, wakers: Arc<[Waker]>) -> Self {
        Self {
            irqchip,
            vcpus: wakers.iter().map(|_| Mutex::default()).collect(),
            intr: AtomicBool::new(false),
            routed: Mutex::new(None),
            wakers,
        }
    }
}

impl Processors for SplitProcessors {
    fn deliver(&self, message: &InterruptMessage) {
        // Not accepted: nobody answers to the destination, as on a real machine.
        if let Err(error) = self.irqchip.deliver(message) {
            tracing::warn!(%error, vector = message.vector, "an interrupt is lost");
        }
    }

    /// Any vCPU whose LINT0 passes it may take it; KVM knows which.
    fn intr(&self, level: bool) {
        if self.intr.swap(level, Ordering::AcqRel) == level || !level {
            return;
        }
        for waker in self.wakers.iter() {
            waker.wake();
        }
    }

    fn ioapic_changed(&self, ioapic: &IoApic) {
        let routes = ioapic.eoi_routes();
        let mut routed = lock(&self.routed);
        if *routed == Some(routes) {
            return;
        }
        match self.irqchip.route(&routes) {
            Ok(()) => *routed = Some(routes),
            Err(error) => tracing::error!(%error, "level-triggered interrupts will not end"),
        }
    }
}

/// The chips of a machine whose local APICs are KVM's.
#[derive(Debug)]
pub struct SplitChips {
    pub(super) board: Arc<SharedBoard<SplitProcessors>>,
    pub(super) clock: Arc<GuestClock>,
}

impl SplitChips {
    pub(super) fn before_entry(&self, id: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        let processors = &self.board.processors;
        let (Some(vcpu), Some(waker)) = (
            processors.vcpus.get(id.index()),
            processors.wakers.get(id.index()),
        ) else {
            return Permit::Failed(format!("{id} is unknown to the interrupt chips"));
        };
        waker.attend();
        self.board.advance(self.clock.read().now);
        loop {
            let intr = processors.intr.load(Ordering::Acquire);
            let entry = lock(vcpu).prepare(fd, intr, entering.masked);
            match entry {
                Ok(SplitEntry::Run) => return Permit::Enter,
                Ok(SplitEntry::Acknowledge) => {
                    let injected = self
                        .board
                        .acknowledge(|vector| lock(vcpu).inject_ext_int(fd, vector));
                    if let Err(error) = injected {
                        return Permit::Failed(error.to_string());
                    }
                }
                Err(error) => return Permit::Failed(error.to_string()),
            }
        }
    }

    /// KVM tells of more than is broadcast.
    pub(super) fn end_of_interrupt(&self, fd: &VcpuFd, vector: u8) {
        if !self.board.awaits_eoi(vector) {
            return;
        }
        let broadcast = SplitVcpu::broadcasts_eoi(fd, vector).unwrap_or_else(|error| {
            tracing::warn!(%error, vector, "an interrupt may end too early");
            true
        });
        if broadcast {
            self.board.end_of_interrupt(vector);
        }
    }
}

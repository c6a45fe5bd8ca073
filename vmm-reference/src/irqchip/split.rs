//! `--irqchip split`: the local APICs are KVM's, the chipset is emulated.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use intr_controller::ioapic::{EoiRoutes, IoApic};
use intr_controller::kvm::MsiOutcome::Accepted;
use intr_controller::kvm::{
    CallError, ChipStateError, LapicRegisters, Observation, ObserveError, SplitEntry, SplitIrqchip,
    SplitVcpu, observe_split,
};
use intr_controller::pit::{LostTicks, TickCounters};
use intr_controller::{Gsi, InterruptMessage, IrqchipMode, MsiMessage};
use kvm_ioctls::{VcpuFd, VmFd};
use vcpu_caps::VcpuId;
use vmm_sys_util::eventfd::EventFd;

use super::chips::{Chips, ChipsetView};
use super::chipset::{ChipsetThread, Emulated, Processors, lock};
use super::{IrqchipError, SignalError};
use crate::entry::{Entering, Permit};
use crate::exit::ExitEvent;
use crate::wake::Waker;

/// KVM's local APICs.
#[derive(Debug)]
pub(super) struct SplitProcessors {
    irqchip: SplitIrqchip<Arc<VmFd>>,
    vcpus: Vec<Mutex<SplitVcpu>>,
    intr: AtomicBool,
    /// The routes that KVM has. A change costs KVM a grace period, most writes of entries only change the
    /// mask, and most EOIs are of levels whose entry has not changed.
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
    /// KVM does not tell whether a message has merged.
    fn deliver(&self, message: &InterruptMessage) -> bool {
        // Not accepted: no local APIC has the destination, as on a real machine.
        if let Err(error) = self.irqchip.deliver(message) {
            tracing::warn!(%error, vector = message.vector, "an interrupt is lost");
        }
        false
    }

    /// Any vCPU whose LINT0 passes INTR may take it; KVM knows which.
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
impl Chips for Emulated<SplitProcessors> {
    fn mode(&self) -> IrqchipMode {
        IrqchipMode::Split
    }

    fn signal_msi(&self, message: MsiMessage) -> Result<bool, SignalError> {
        Ok(self.0.processors.irqchip.signal_msi(message)? == Accepted)
    }

    fn connect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqchipError> {
        self.0.connect(event, gsi)
    }

    fn observe(
        &self,
        _: VcpuId,
        fd: &VcpuFd,
        masked: bool,
    ) -> Result<Option<Observation>, ObserveError> {
        self.0.advance(self.0.clock.read().now);
        observe_split(fd, self.0.intr(), masked).map(Some)
    }

    fn start(&self, exit: &ExitEvent) -> io::Result<Option<ChipsetThread>> {
        ChipsetThread::start(&self.0, exit.clone()).map(Some)
    }

    fn ticks(&self) -> Option<(LostTicks, TickCounters)> {
        Some(self.0.ticks())
    }

    fn resumed(&self) {
        self.0.resumed();
    }

    fn lapic(&self, _: VcpuId, fd: &VcpuFd) -> Result<Option<LapicRegisters>, CallError> {
        LapicRegisters::of_kvm(fd).map(Some)
    }

    fn chipset(&self) -> Result<ChipsetView, ChipStateError> {
        Ok(self.0.view())
    }

    /// An ExtINT's vector. Whether LINT0 of the vCPU passes it on is known to KVM.
    fn next_interrupt(&self, id: VcpuId, enabled: bool, _: bool) -> Option<u8> {
        let processors = &self.0.processors;
        let acknowledged = lock(processors.vcpus.get(id.index())?).acknowledged_ext_int();
        if !enabled || acknowledged.is_some() {
            return acknowledged.filter(|_| enabled);
        }
        self.0.advance(self.0.clock.read().now);
        let intr = processors.intr.load(Ordering::Acquire);
        intr.then(|| self.0.next_ext_int())
    }

    fn requeue(&self, id: VcpuId, vector: u8) -> bool {
        let Some(vcpu) = self.0.processors.vcpus.get(id.index()) else {
            return false;
        };
        lock(vcpu).requeue(vector);
        true
    }

    fn before_entry(&self, id: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        let processors = &self.0.processors;
        let (Some(vcpu), Some(waker)) = (
            processors.vcpus.get(id.index()),
            processors.wakers.get(id.index()),
        ) else {
            return Permit::Failed(format!("{id} is unknown to the interrupt chips"));
        };
        waker.attend();
        self.0.advance(self.0.clock.read().now);
        loop {
            let intr = processors.intr.load(Ordering::Acquire);
            let entry = lock(vcpu).prepare(fd, intr, entering.masked);
            match entry {
                Ok(SplitEntry::Run) => return Permit::Enter,
                Ok(SplitEntry::Acknowledge) => {
                    let inject = |vector| lock(vcpu).inject_ext_int(fd, vector);
                    match self.0.acknowledge(&entering, inject) {
                        Some(Ok(())) => {}
                        Some(Err(error)) => return Permit::Failed(error.to_string()),
                        None => return Permit::PrepareAgain,
                    }
                }
                Err(error) => return Permit::Failed(error.to_string()),
            }
        }
    }

    /// KVM reports more EOIs than a local APIC broadcasts.
    fn end_of_interrupt(&self, fd: &VcpuFd, vector: u8) {
        if !self.0.awaits_eoi(vector) {
            return;
        }
        let broadcast = SplitVcpu::broadcasts_eoi(fd, vector).unwrap_or_else(|error| {
            tracing::warn!(%error, vector, "an interrupt may end too early");
            true
        });
        if broadcast {
            self.0.end_of_interrupt(vector);
        }
    }
}

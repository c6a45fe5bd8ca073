//! `--irqchip kernel`: all chips are KVM's.

use intr_controller::ioapic::{IoApicPins, IoApicState};
use intr_controller::kvm::MsiOutcome::Accepted;
use intr_controller::kvm::{
    CallError, ChipStateError, IoApicFromKvm, LapicRegisters, Observation, ObserveError, observe,
};
use intr_controller::{Gsi, GuestTime, IrqchipMode, MsiMessage};
use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;
use vmm_sys_util::eventfd::EventFd;

use super::chips::{Chips, ChipsetView};
use super::{IrqchipError, SignalError};
use crate::devices::KernelLines;

impl Chips for KernelLines {
    fn mode(&self) -> IrqchipMode {
        IrqchipMode::Kernel
    }

    fn signal_msi(&self, message: MsiMessage) -> Result<bool, SignalError> {
        Ok(self.irqchip().signal_msi(message)? == Accepted)
    }

    fn connect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqchipError> {
        let vm = self.irqchip().vm();
        vm.register_irqfd(event, gsi.0).map_err(IrqchipError::Irqfd)
    }

    /// An ExtINT's vector. The local APICs are KVM's.
    fn next_interrupt(&self, _: VcpuId, enabled: bool, _: bool) -> Option<u8> {
        if !enabled {
            return None;
        }
        self.irqchip().next_ext_int().unwrap_or_else(|error| {
            tracing::warn!(%error, "an ExtINT may enter inside a step");
            None
        })
    }

    fn observe(
        &self,
        _: VcpuId,
        fd: &VcpuFd,
        masked: bool,
    ) -> Result<Option<Observation>, ObserveError> {
        observe(fd, self.irqchip(), masked).map(Some)
    }

    fn lapic(&self, _: VcpuId, fd: &VcpuFd) -> Result<Option<LapicRegisters>, CallError> {
        LapicRegisters::of_kvm(fd).map(Some)
    }

    fn chipset(&self) -> Result<ChipsetView, ChipStateError> {
        let IoApicFromKvm { state, unsent } = self.irqchip().ioapic_state()?;
        let lines = IoApicPins(state.lines.0 | unsent.0);
        Ok(ChipsetView {
            pic: self.irqchip().pic_state()?,
            ioapic: IoApicState { lines, ..state },
            // How far the counters are is not shown, so no time is needed.
            pit: self.irqchip().pit_state(GuestTime::ZERO, i64::MAX)?,
        })
    }
}

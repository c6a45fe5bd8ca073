//! `--irqchip kernel`: all chips are KVM's.

use intr_controller::kvm::MsiOutcome::Accepted;
use intr_controller::kvm::{Observation, ObserveError, observe};
use intr_controller::{Gsi, IrqchipMode, MsiMessage};
use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;
use vmm_sys_util::eventfd::EventFd;

use super::chips::Chips;
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
}

//! What the three modes of `--irqchip` have in common.

use std::fmt;
use std::io;

use crate::entry::{Entering, Permit};
use intr_controller::kvm::{Observation, ObserveError};
use intr_controller::{Gsi, IrqchipMode, MsiMessage};
use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;
use vmm_sys_util::eventfd::EventFd;

use super::chipset::ChipsetThread;
use super::user::UserChips;
use super::{IrqchipError, SignalError};
use crate::clock::GuestClock;
use crate::devices::InterruptLines;

/// The interrupt chips of one mode.
///
/// The default methods are those of a mode in which all chips are KVM's: KVM does their work itself.
pub(super) trait Chips: InterruptLines + fmt::Debug {
    /// Which mode it is.
    fn mode(&self) -> IrqchipMode;

    /// See [`Irqchip::signal_msi`](super::Irqchip::signal_msi).
    fn signal_msi(&self, message: MsiMessage) -> Result<bool, SignalError>;

    /// See [`Irqchip::connect`](super::Irqchip::connect).
    fn connect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqchipError>;

    /// What is pending for a vCPU and why it does not enter.
    fn observe(
        &self,
        vcpu: VcpuId,
        fd: &VcpuFd,
        masked: bool,
    ) -> Result<Option<Observation>, ObserveError>;

    /// On the vCPU's thread, before each entry.
    fn before_entry(&self, _: VcpuId, _: &mut VcpuFd, _: Entering) -> Permit {
        Permit::Enter
    }

    /// KVM reports that a vCPU has written EOI for this vector.
    fn end_of_interrupt(&self, _: &VcpuFd, _: u8) {}

    /// Starts the thread that serves the emulated chips.
    fn start(&self) -> io::Result<Option<ChipsetThread>> {
        Ok(None)
    }

    /// The clock of the emulated timers.
    fn clock(&self) -> Option<&GuestClock> {
        None
    }

    /// Guest time passes again, and the thread of the chips has to look at it.
    fn resumed(&self) {}

    /// The emulated local APICs.
    fn user(&self) -> Option<&UserChips> {
        None
    }
}

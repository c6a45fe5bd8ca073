//! Creates KVM's chips, and signals to them.

use core::borrow::Borrow;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    kvm_irqchip, kvm_msi, kvm_pic_state, kvm_pit_config,
};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::calls::{CallError, failed};
use super::{FromKvmError, IoApicFromKvm, pic, routes};
use crate::ioapic::{IoApicState, IoApicVersion};
use crate::pic::{Pic, PicState};
use crate::pit::PitState;
use crate::routing::{GsiRouter, RouteEntry};
use crate::{Gsi, GuestTime, MsiMessage};

/// The VM cannot have KVM's chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CreateError {
    /// `KVM_CREATE_IRQCHIP`. `EEXIST`: the VM has chips already. `EINVAL`: it has vCPUs already.
    #[error("KVM_CREATE_IRQCHIP (create it once, before the first vCPU)")]
    Irqchip(#[source] kvm_ioctls::Error),
    /// `KVM_CREATE_PIT2`.
    #[error("KVM_CREATE_PIT2")]
    Pit(#[source] kvm_ioctls::Error),
    /// The routes of a PC.
    #[error("KVM's interrupt routes could not be set")]
    Routes(#[source] CallError),
}

/// A line could not be set: check that the GSI is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("KVM_IRQ_LINE: {gsi} to {level}")]
pub struct LineError {
    /// Which line.
    pub gsi: Gsi,
    /// The level asked for.
    pub level: bool,
    /// KVM's error.
    #[source]
    pub source: kvm_ioctls::Error,
}

/// A message could not be sent: KVM rejects it as malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("KVM_SIGNAL_MSI: address {:#x}, data {:#x}", message.address, message.data)]
pub struct MsiError {
    /// The message.
    pub message: MsiMessage,
    /// KVM's error.
    #[source]
    pub source: kvm_ioctls::Error,
}

/// An eventfd could not be bound to a GSI, or unbound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("KVM_IRQFD: {gsi}")]
pub struct IrqfdError {
    /// Which line.
    pub gsi: Gsi,
    /// KVM's error. `EBUSY`: the eventfd is bound already.
    #[source]
    pub source: kvm_ioctls::Error,
}

/// The state of a chip of KVM's could not be read; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChipStateError {
    /// KVM refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// KVM's state is one that this crate's chips cannot have.
    #[error("KVM's chip is in a state that is not known here: {0}")]
    State(#[from] FromKvmError),
}

/// The result of a message (api.rst, KVM_SIGNAL_MSI).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a message that no vCPU takes is lost"]
pub enum MsiOutcome {
    /// A local APIC accepted it, or had it pending already.
    Accepted,
    /// No local APIC took it: none matches the destination, or it is disabled.
    NotAccepted,
}

/// KVM's 8259A pair, IOAPIC, local APICs and 8254.
///
/// `V` is the VM by value, by reference or shared: `VmFd`, `&VmFd` and `Arc<VmFd>` all do. All
/// methods take `&self`, and KVM serialises them, so device threads can share one.
#[derive(Debug)]
pub struct KernelIrqchip<V> {
    vm: V,
}

impl<V: Borrow<VmFd>> KernelIrqchip<V> {
    /// Creates the chips, wired as in a PC. Call it before the first vCPU: a vCPU gets its local APIC
    /// when it is created.
    ///
    /// The PIT has port 0x61 too (`KVM_PIT_SPEAKER_DUMMY`), which guests use to calibrate
    /// their clocks. The routes are those of [`GsiRouter::pc_entries`]: the PIT's interrupt arrives at
    /// IOAPIC pin 2, and not at pin 0 as in the table that KVM starts with.
    ///
    /// # Errors
    /// If KVM refuses. The VM may then have a part of the chips; drop it.
    pub fn new(vm: V) -> Result<Self, CreateError> {
        let fd: &VmFd = vm.borrow();
        fd.create_irq_chip().map_err(CreateError::Irqchip)?;
        fd.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })
        .map_err(CreateError::Pit)?;
        let chip = Self { vm };
        chip.route(&GsiRouter::pc_entries())
            .map_err(CreateError::Routes)?;
        Ok(chip)
    }

    /// Replaces the routes of all GSIs. Eventfds that are bound to a GSI follow its new route. The ACPI
    /// and MP tables of the VM have to describe the same wiring.
    ///
    /// # Errors
    /// If KVM refuses the table; the previous one stays.
    pub fn route(&self, entries: &[RouteEntry]) -> Result<(), CallError> {
        routes::set(self.vm(), &routes::of_table(entries))
    }

    /// The VM.
    pub fn vm(&self) -> &VmFd {
        self.vm.borrow()
    }

    /// Drives a line. An edge-triggered input needs the rise and the fall.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn set_irq_line(&self, gsi: Gsi, level: bool) -> Result<(), LineError> {
        self.vm()
            .set_irq_line(gsi.0, level)
            .map_err(|source| LineError { gsi, level, source })
    }

    /// Sends a message-signalled interrupt.
    ///
    /// # Errors
    /// If KVM finds the message malformed.
    pub fn signal_msi(&self, message: MsiMessage) -> Result<MsiOutcome, MsiError> {
        let [address_lo, address_hi] = halves(message.address);
        let delivered = self
            .vm()
            .signal_msi(kvm_msi {
                address_lo,
                address_hi,
                data: message.data,
                ..Default::default()
            })
            .map_err(|source| MsiError { message, source })?;
        Ok(if delivered > 0 {
            MsiOutcome::Accepted
        } else {
            MsiOutcome::NotAccepted
        })
    }

    /// Lets an eventfd raise a GSI: each write is an edge. No thread and no ioctl is needed to
    /// signal afterwards.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn register_irqfd(&self, fd: &EventFd, gsi: Gsi) -> Result<(), IrqfdError> {
        self.vm()
            .register_irqfd(fd, gsi.0)
            .map_err(|source| IrqfdError { gsi, source })
    }

    /// Lets an eventfd hold up a level-triggered GSI until the guest's EOI, which lowers it and
    /// writes `resample`: a device that still wants service then writes `fd` again.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn register_level_irqfd(
        &self,
        fd: &EventFd,
        resample: &EventFd,
        gsi: Gsi,
    ) -> Result<(), IrqfdError> {
        self.vm()
            .register_irqfd_with_resample(fd, resample, gsi.0)
            .map_err(|source| IrqfdError { gsi, source })
    }

    /// Undoes [`Self::register_irqfd`] and [`Self::register_level_irqfd`].
    ///
    /// # Errors
    /// If the eventfd was not bound to this GSI.
    pub fn unregister_irqfd(&self, fd: &EventFd, gsi: Gsi) -> Result<(), IrqfdError> {
        self.vm()
            .unregister_irqfd(fd, gsi.0)
            .map_err(|source| IrqfdError { gsi, source })
    }

    /// Whether the 8259A pair asserts INTR. Changes nothing.
    pub(super) fn pic_asserts_intr(&self) -> Result<bool, kvm_ioctls::Error> {
        Ok(pic::asserts_intr(&self.pic(KVM_IRQCHIP_PIC_MASTER)?))
    }

    /// The vector of the ExtINT that the 8259A pair has for a vCPU that [passes it on](super::passes_ext_int).
    /// `None` if INTR is down. Changes nothing.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn next_ext_int(&self) -> Result<Option<u8>, CallError> {
        let read = |chip| self.pic(chip).map_err(failed("KVM_GET_IRQCHIP"));
        let master = read(KVM_IRQCHIP_PIC_MASTER)?;
        if !pic::asserts_intr(&master) {
            return Ok(None);
        }
        let slave = read(KVM_IRQCHIP_PIC_SLAVE)?;
        // KVM's own state is one that the chips can have.
        let Ok(state) = PicState::from_kvm(&master, &slave) else {
            return Ok(None);
        };
        let mut pair = Pic::new();
        let restored = pair.restore(&state);
        Ok(restored.is_ok().then(|| pair.acknowledge().vector))
    }

    /// The state of the 8259A pair. Changes nothing.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn pic_state(&self) -> Result<PicState, ChipStateError> {
        let read = |chip| self.pic(chip).map_err(failed("KVM_GET_IRQCHIP"));
        let master = read(KVM_IRQCHIP_PIC_MASTER)?;
        let slave = read(KVM_IRQCHIP_PIC_SLAVE)?;
        Ok(PicState::from_kvm(&master, &slave)?)
    }

    /// The state of the IOAPIC. Changes nothing.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn ioapic_state(&self) -> Result<IoApicFromKvm, ChipStateError> {
        let chip = self
            .chip(KVM_IRQCHIP_IOAPIC)
            .map_err(failed("KVM_GET_IRQCHIP"))?;
        #[expect(unsafe_code, reason = "the ioctl's result is a C union")]
        // SAFETY:
        // - `KVM_IRQCHIP_IOAPIC` selects the IOAPIC, so KVM filled `ioapic`;
        // - every bit pattern is a valid `kvm_ioapic_state`, which is made of integers only.
        let state = unsafe { chip.chip.ioapic };
        Ok(IoApicState::from_kvm(&state, IoApicVersion::V11)?)
    }

    /// The state of the 8254, at this guest time and at this time of the host's CLOCK_MONOTONIC. Changes
    /// nothing.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn pit_state(&self, now: GuestTime, monotonic_ns: i64) -> Result<PitState, ChipStateError> {
        let state = self.vm().get_pit2().map_err(failed("KVM_GET_PIT2"))?;
        Ok(PitState::from_kvm(&state, now, monotonic_ns)?)
    }

    fn chip(&self, chip_id: u32) -> Result<kvm_irqchip, kvm_ioctls::Error> {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        self.vm().get_irqchip(&mut chip)?;
        Ok(chip)
    }

    fn pic(&self, chip_id: u32) -> Result<kvm_pic_state, kvm_ioctls::Error> {
        let chip = self.chip(chip_id)?;
        #[expect(unsafe_code, reason = "the ioctl's result is a C union")]
        // SAFETY:
        // - `chip_id` selects an 8259A, so KVM filled `pic`;
        // - every bit pattern is a valid `kvm_pic_state`, which is made of integers only.
        let state = unsafe { chip.chip.pic };
        Ok(state)
    }
}

/// The low and the high half.
pub(super) fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_address_is_split_low_half_first() {
        assert_eq!(
            super::halves(0x1122_3344_5566_7788),
            [0x5566_7788, 0x1122_3344]
        );
    }
}

//! The local APICs in the kernel, all else in userspace
//! ([`IrqchipMode::Split`](crate::IrqchipMode::Split)).
//!
//! Messages of the IOAPIC go to KVM as MSIs. KVM reports the EOIs of the vectors that its routing table
//! ([`SplitIrqchip::route`]) says are level-triggered. INTR, the 8259A pair's line, is handed over vector
//! by vector ([`SplitVcpu`]).

use core::borrow::Borrow;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_msi};
use kvm_ioctls::{VcpuFd, VmFd};

use super::calls::{self, CallError, Taken, failed};
use super::chip::{MsiOutcome, halves};
use super::lapic::LapicPage;
use super::routes;
use crate::ioapic::EoiRoutes;
use crate::{InterruptMessage, MsiMessage, Vector};

/// KVM's local APICs.
#[derive(Debug)]
pub struct SplitIrqchip<V> {
    vm: V,
}

impl<V: Borrow<VmFd>> SplitIrqchip<V> {
    /// Creates KVM's local APICs. Call it before the first vCPU.
    ///
    /// # Errors
    /// If KVM cannot, or the VM has vCPUs or chips already.
    pub fn new(vm: V) -> Result<Self, CallError> {
        let mut capability = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        // Level-triggered routes of GSIs below this have EOI exits. KVM takes them for the pins of an
        // IOAPIC, and accepts three for each.
        capability.args = [EoiRoutes::GSI_COUNT.into(), 0, 0, 0];
        let fd: &VmFd = vm.borrow();
        fd.enable_cap(&capability)
            .map_err(failed("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
        Ok(Self { vm })
    }

    /// The VM.
    pub fn vm(&self) -> &VmFd {
        self.vm.borrow()
    }

    /// Gives KVM the vectors whose EOIs matter. Call it when the IOAPIC's
    /// [routes](crate::ioapic::IoApic::eoi_routes) have changed, which can be whenever an entry was
    /// written or an interrupt has ended: before anything else is delivered, and before the vCPU that
    /// did it enters the guest again. Every vCPU has left the guest when KVM returns, and goes by
    /// the new ones afterwards. That costs KVM a grace period: do not call it when nothing has changed.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn route(&self, routes: &EoiRoutes) -> Result<(), CallError> {
        let mut entries = alloc::vec::Vec::with_capacity(EoiRoutes::GSI_COUNT.into());
        for (gsi, message) in routes.iter() {
            // A route that no MSI can express has no EOI to wait for.
            let Ok(msi) = MsiMessage::encode(&message) else {
                continue;
            };
            entries.push(routes::msi(gsi, msi));
        }
        routes::set(self.vm(), &entries)
    }

    /// Hands a message of the IOAPIC, or of a device, to the local APICs.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn deliver(&self, message: &InterruptMessage) -> Result<MsiOutcome, CallError> {
        let Ok(msi) = MsiMessage::encode(message) else {
            return Ok(MsiOutcome::NotAccepted);
        };
        self.signal_msi(msi)
    }

    /// As [`Self::deliver`], for a message as a device writes it.
    ///
    /// # Errors
    /// If KVM finds it malformed.
    pub fn signal_msi(&self, msi: MsiMessage) -> Result<MsiOutcome, CallError> {
        let [address_lo, address_hi] = halves(msi.address);
        let delivered = self
            .vm()
            .signal_msi(kvm_msi {
                address_lo,
                address_hi,
                data: msi.data,
                ..Default::default()
            })
            .map_err(failed("KVM_SIGNAL_MSI"))?;
        Ok(if delivered > 0 {
            MsiOutcome::Accepted
        } else {
            MsiOutcome::NotAccepted
        })
    }
}

/// What a vCPU's thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitEntry {
    /// Call `KVM_RUN`.
    Run,
    /// The vCPU can take an ExtINT: [acknowledge](crate::chipset::Chipset::acknowledge) it and give the
    /// vector to [`SplitVcpu::inject_ext_int`], then ask again.
    Acknowledge,
}

/// The ExtINTs of one vCPU. It has no lock: it belongs to the vCPU's thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitVcpu {
    /// An acknowledged vector for which KVM had no room. It is kept, because the 8259A has given it up.
    vector: Option<u8>,
}

impl SplitVcpu {
    /// Before each `KVM_RUN`, on the vCPU's thread. `intr` is the 8259A pair's line; `masked` is
    /// whether the host's mask is on, under which nothing new is acknowledged.
    ///
    /// # Errors
    /// If KVM refuses; the vCPU cannot go on.
    pub fn prepare(
        &mut self,
        vcpu: &mut VcpuFd,
        intr: bool,
        masked: bool,
    ) -> Result<SplitEntry, CallError> {
        let ready = vcpu.get_kvm_run().ready_for_interrupt_injection != 0;
        if let Some(vector) = self.vector {
            if ready && calls::interrupt(vcpu, vector)? == Taken::Now {
                self.vector = None;
                vcpu.get_kvm_run().ready_for_interrupt_injection = 0;
            }
        } else if intr && !masked && ready {
            return Ok(SplitEntry::Acknowledge);
        }
        let window = self.vector.is_some() || (intr && !masked);
        vcpu.get_kvm_run().request_interrupt_window = window.into();
        Ok(SplitEntry::Run)
    }

    /// An ExtINT that the 8259A has given up and KVM has not been given.
    #[must_use]
    pub const fn acknowledged_ext_int(&self) -> Option<u8> {
        self.vector
    }

    /// An ExtINT that KVM was given was taken out of KVM by the caller, and may not enter now. KVM gets it again
    /// before others.
    pub const fn requeue(&mut self, vector: u8) {
        self.vector = Some(vector);
    }

    /// Whether an EOI that this vCPU has just exited for (`KVM_EXIT_IOAPIC_EOI`) has reached the IOAPIC, and
    /// [ends](crate::ioapic::IoApic::eoi) what [awaits it](crate::ioapic::IoApic::awaiting_eoi); if nothing
    /// does, do not ask. KVM reports every EOI of a vector that a route to the vCPU has (lapic.c,
    /// `kvm_ioapic_send_eoi`): also that of an edge, and also if the guest suppresses the broadcast.
    /// On the vCPU's thread, before it enters again.
    ///
    /// TMR is that of now: an edge of the same vector that arrived here since the EOI hides it, as it would
    /// on any machine if it had arrived just before (SDM 3A, "Interrupt Acceptance for Fixed Interrupts").
    ///
    /// # Errors
    /// If KVM refuses. Take it for broadcast then: a level that ends too early comes again if its line is up,
    /// and one that does not end is never seen again.
    pub fn broadcasts_eoi(vcpu: &VcpuFd, vector: u8) -> Result<bool, CallError> {
        // Illegal vectors are in no set.
        let Ok(vector) = Vector::new(vector) else {
            return Ok(true);
        };
        let page = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        Ok(LapicPage(&page).broadcasts_eoi(vector))
    }

    /// Hands the vector of an ExtINT over, after [`SplitEntry::Acknowledge`].
    ///
    /// # Errors
    /// If KVM refuses; the vCPU cannot go on.
    pub fn inject_ext_int(&mut self, vcpu: &mut VcpuFd, vector: u8) -> Result<(), CallError> {
        if calls::interrupt(vcpu, vector)? == Taken::Full {
            self.vector = Some(vector);
        }
        vcpu.get_kvm_run().ready_for_interrupt_injection = 0;
        Ok(())
    }
}

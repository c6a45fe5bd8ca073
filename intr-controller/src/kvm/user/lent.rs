//! What KVM has been given and the guest has not taken comes back under the mask.

use kvm_bindings::{KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SMM, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;

use super::UserVcpu;
use crate::kvm::calls::{CallError, failed};
use crate::{Event, Vector};

/// What is in KVM's hands and may not have reached the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lent {
    pub(super) interrupt: Option<LentInterrupt>,
    pub(super) nmi: bool,
    pub(super) smi: bool,
}

/// The last vector that KVM was given. Both kinds may have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LentInterrupt {
    Fixed(Vector),
    ExtInt(u8),
}

impl LentInterrupt {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Fixed(vector) => vector.get(),
            Self::ExtInt(number) => number,
        }
    }
}

impl UserVcpu {
    /// Takes back what KVM has been given and has not delivered, as when a kick came between the
    /// two. Otherwise a masked step would begin with it. Nothing is given under the mask, so only the
    /// first masked entry asks KVM.
    pub(super) fn recall(&mut self, vcpu: &VcpuFd) -> Result<(), CallError> {
        let lent = core::mem::take(&mut self.lent);
        if lent == Lent::default() {
            return Ok(());
        }
        let mut events = vcpu
            .get_vcpu_events()
            .map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        let taken_back = self.take_back(lent, &mut events);
        if taken_back {
            vcpu.set_vcpu_events(&events)
                .map_err(failed("KVM_SET_VCPU_EVENTS"))?;
        }
        Ok(())
    }

    /// Removes from `events` what is pending here again. Returns `true` if anything is.
    fn take_back(&mut self, lent: Lent, events: &mut kvm_vcpu_events) -> bool {
        let mut changed = false;
        let interrupt = &mut events.interrupt;
        let here = |lent: &LentInterrupt| {
            interrupt.injected != 0 && interrupt.soft == 0 && interrupt.nr == lent.number()
        };
        if let Some(lent) = lent.interrupt.filter(here) {
            interrupt.injected = 0;
            match lent {
                LentInterrupt::Fixed(vector) => self.lapic.retract(Event::Fixed(vector)),
                LentInterrupt::ExtInt(vector) => self.acknowledged = Some(vector),
            }
            changed = true;
        }
        let nmi = &mut events.nmi;
        if lent.nmi && nmi.injected != 0 {
            // An exit has interrupted its delivery. It would not have been injected while NMIs were
            // blocked, so it is what blocks them now (svm.c, `svm_inject_nmi`).
            (nmi.injected, nmi.masked) = (0, 0);
            self.lapic.retract(Event::Nmi);
            changed = true;
        }
        if lent.nmi && nmi.pending != 0 {
            for _ in 0..nmi.pending {
                self.lapic.retract(Event::Nmi);
            }
            nmi.pending = 0;
            events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
            changed = true;
        }
        if lent.smi && events.smi.pending != 0 {
            self.lapic.retract(Event::Smi);
            events.smi.pending = 0;
            events.flags |= KVM_VCPUEVENT_VALID_SMM;
            changed = true;
        }
        changed
    }
}

//! What enters the vCPU, and how it ends.

use super::registers::Lvt;
use super::{ApicMode, Effect, Lapic, LvtEntry};
use crate::{
    Activity, Decision, Delivery, Event, NotPending, Pending, Readiness, Vector, VectorSet, decide,
};

/// The answer to an interrupt-acknowledge cycle of the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acknowledge {
    /// This vector; it is in service now, until EOI.
    Vector(Vector),
    /// Nothing may be delivered any more: the spurious vector, to be delivered without a bit in
    /// ISR and without EOI (SDM 3A, "Spurious Interrupt"). It need not be above 15.
    Spurious(u8),
}

impl Lapic {
    /// What to do now. Changes nothing.
    ///
    /// [`Readiness::activity`] need not say [`Activity::WaitForSipi`]; this APIC knows.
    pub fn decide(&self, vcpu: &Readiness) -> Decision {
        if self.mode() == ApicMode::Disabled || self.waiting_for_sipi {
            return self.decide_unusual(vcpu);
        }
        self.policy.decide(vcpu, self.priority())
    }

    #[cold]
    fn decide_unusual(&self, vcpu: &Readiness) -> Decision {
        let mut vcpu = *vcpu;
        if self.waiting_for_sipi {
            vcpu.activity = Activity::WaitForSipi;
        }
        let mut pending = *self.policy.pending();
        if self.mode() == ApicMode::Disabled {
            // IRR delivers nothing, NMI, SMI and INTR are the processor's.
            pending = Pending::new(
                VectorSet::EMPTY,
                pending.nmis(),
                pending.smi(),
                pending.ext_int(),
            );
        }
        decide(&pending, &vcpu, self.priority())
    }

    /// The host took the event. A fixed interrupt moves from IRR to ISR (SDM 3A, "Interrupt
    /// Acceptance for Fixed Interrupts"): from here on it cannot be recalled, so call this when the
    /// host call has succeeded and not when it is planned.
    ///
    /// For [`Event::ExtInt`]: acknowledge the 8259A pair for the vector, hand it to the host, call
    /// this, then report the pair's INTR with [`Self::set_lint0`] again. Until then the pin counts
    /// as low, because the acknowledge answered the request that was there.
    ///
    /// # Errors
    /// If the event did not wait; nothing changed.
    #[inline]
    pub fn injected(&mut self, event: Event) -> Result<Delivery, NotPending> {
        let delivery = self.policy.injected(event)?;
        match event {
            Event::Fixed(vector) => {
                self.in_service.insert(vector);
            }
            Event::ExtInt => self.ext_int_acknowledged(),
            Event::Smi | Event::Nmi => {}
        }
        Ok(delivery)
    }

    /// The host has given back an event that it had taken ([`Self::injected`]) and that had not
    /// reached the guest, because the mask went on in between. The event is pending again. An ExtINT
    /// cannot be recalled, since its acknowledge cannot: nothing changes.
    pub fn retract(&mut self, event: Event) {
        match event {
            Event::ExtInt => return,
            Event::Fixed(vector) => {
                self.in_service.remove(vector);
            }
            Event::Smi | Event::Nmi => {}
        }
        self.policy.retract(event);
    }

    /// The interrupt-acknowledge cycle, for a host that signals first and asks for the vector
    /// later, when the task priority may have risen. Do not call it for a masked vCPU: only
    /// [`Self::decide`] takes the mask into account.
    pub fn acknowledge(&mut self) -> Acknowledge {
        let deliverable =
            self.policy.pending().fixed().highest().filter(|vector| {
                self.mode() != ApicMode::Disabled && self.priority().admits(*vector)
            });
        match deliverable.map(|vector| (vector, self.injected(Event::Fixed(vector)))) {
            Some((vector, Ok(_))) => Acknowledge::Vector(vector),
            _ => {
                self.policy.spurious();
                Acknowledge::Spurious(self.spurious.vector())
            }
        }
    }

    /// A write to the EOI register: ends the most urgent interrupt in service. If none is, nothing
    /// happens (SDM 3A, "Signaling Interrupt Servicing Completion").
    #[inline]
    pub fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.in_service.highest() else {
            return Effect::None;
        };
        self.in_service.remove(vector);
        if self.level_triggered.contains(vector) && self.ends_level(vector) {
            Effect::EoiBroadcast(vector)
        } else {
            Effect::None
        }
    }

    /// A level-triggered interrupt ended. Whether the IOAPICs are to hear.
    fn ends_level(&mut self, vector: Vector) -> bool {
        let lint0 = self.lvt(LvtEntry::Lint0);
        if lint0.remote_irr() && lint0.vector() == vector.get() {
            self.end_lint0(lint0);
        }
        // SDM 3A, "EOI-broadcast suppression": software tells the IOAPIC itself then.
        !self.spurious.suppresses_eoi()
    }

    #[cold]
    fn end_lint0(&mut self, lint0: Lvt) {
        self.set_lvt(LvtEntry::Lint0, lint0.with_remote_irr(false));
        // Still asserted: again.
        let _ = self.service_level_lint0();
    }

    /// The vCPU runs an NMI handler: of the NMIs that wait, a processor keeps one (SDM 3A,
    /// "Handling Multiple NMIs"). Call it when the host reports that NMIs are blocked; KVM does the
    /// same (x86.c, `process_nmi`). What it drops counts as merged.
    pub fn merge_nmis(&mut self) {
        self.policy.merge_nmis();
    }
}

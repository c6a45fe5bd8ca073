//! One vCPU's injection policy: the pending events, and what became of the others.

use thiserror::Error;

use crate::counters::add;
use crate::{
    Arrival, Counters, Decision, Event, Pending, PolicyState, ProcessorPriority, Readiness,
    RestoreError, decide,
};

/// What an injection was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The event is delivered to the guest.
    Delivered,
    /// An ExtINT whose line fell between the decision and the acknowledge: the guest got the
    /// 8259A's spurious vector.
    Spurious,
}

/// An event was reported as injected that was not pending. Nothing changed; the caller injected
/// something that no decision named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} was injected, but was not pending")]
pub struct NotPending(pub Event);

/// Decides what enters one vCPU, and when.
///
/// Two phases: [`decide`](Self::decide) changes nothing; when the host has taken the event,
/// [`injected`](Self::injected) records it. If the host refuses, nothing has to be undone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InjectionPolicy {
    pending: Pending,
    counters: Counters,
}

impl InjectionPolicy {
    /// Nothing is pending.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An event arrives. It is never refused: a mask delays injection, not arrival.
    ///
    /// For [`Event::ExtInt`] this is the line's rise (or the line still high after an
    /// acknowledge); its fall is [`Self::withdraw_ext_int`].
    pub fn arrive(&mut self, event: Event) -> Arrival {
        let arrival = self.pending.insert(event);
        add(&mut self.counters.arrived, 1);
        match arrival {
            Arrival::Accepted => {}
            Arrival::Merged => add(&mut self.counters.merged, 1),
        }
        arrival
    }

    /// The 8259A pair lowers INTR. Returns `true` if an ExtINT was pending.
    pub fn withdraw_ext_int(&mut self) -> bool {
        let withdrawn = self.pending.remove(Event::ExtInt);
        if withdrawn {
            add(&mut self.counters.withdrawn, 1);
        }
        withdrawn
    }

    /// What to do now. Changes nothing.
    #[inline]
    pub fn decide(&self, vcpu: &Readiness, priority: ProcessorPriority) -> Decision {
        decide(&self.pending, vcpu, priority)
    }

    /// The host has given an event back that it had taken and that had not reached the guest: it is
    /// pending again, as if [`injected`](Self::injected) had not been called. Not for an
    /// [`Event::ExtInt`], whose acknowledge cannot be taken back.
    pub(crate) fn retract(&mut self, event: Event) {
        self.counters.delivered = self.counters.delivered.saturating_sub(1);
        if self.pending.insert(event) == Arrival::Merged {
            // Another one has arrived since.
            add(&mut self.counters.merged, 1);
        }
    }

    /// The host took the event: it is not pending here any more.
    ///
    /// A mask does not refuse this: the host has the event already.
    ///
    /// # Errors
    /// If it was not pending.
    pub fn injected(&mut self, event: Event) -> Result<Delivery, NotPending> {
        if self.pending.remove(event) {
            add(&mut self.counters.delivered, 1);
            Ok(Delivery::Delivered)
        } else if event == Event::ExtInt {
            // 8259A data sheet, "Interrupt sequence": a request gone at the acknowledge is
            // answered as level 7.
            add(&mut self.counters.spurious, 1);
            Ok(Delivery::Spurious)
        } else {
            Err(NotPending(event))
        }
    }

    /// This many more arrived like the one that was merged or accepted last: a periodic timer after
    /// a long stop.
    pub(crate) fn merged(&mut self, count: u64) {
        add(&mut self.counters.arrived, count);
        add(&mut self.counters.merged, count);
    }

    /// The spurious vector was delivered.
    pub(crate) fn spurious(&mut self) {
        add(&mut self.counters.spurious, 1);
    }

    /// An NMI handler runs: of the pending NMIs a processor keeps one (SDM 3A, "Handling
    /// Multiple NMIs"; KVM: x86.c, `process_nmi`). [`NMI_LIMIT`](crate::NMI_LIMIT) applies as if
    /// none ran, because an arrival cannot see it. Call this when [`Readiness::nmi_blocked`] is set.
    pub fn merge_nmis(&mut self) {
        while self.pending.nmis() > 1 {
            self.pending.remove(Event::Nmi);
            add(&mut self.counters.merged, 1);
        }
    }

    /// The vCPU is reset: pending events are discarded.
    pub fn reset(&mut self) {
        let Self { pending, counters } = self;
        add(&mut counters.dropped, pending.len());
        *pending = Pending::default();
    }

    /// The pending events.
    #[must_use]
    pub const fn pending(&self) -> &Pending {
        &self.pending
    }

    /// Totals.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The state as plain data.
    #[must_use]
    pub fn save(&self) -> PolicyState {
        let Self { pending, counters } = self;
        PolicyState::new(pending, counters)
    }

    /// Takes a saved state over, whole or not at all.
    ///
    /// # Errors
    /// If the state is not one that [`save`](Self::save) can have made; nothing has changed then.
    pub fn restore(&mut self, state: &PolicyState) -> Result<(), RestoreError> {
        let (pending, counters) = state.validate()?;
        self.pending = pending;
        self.counters = counters;
        Ok(())
    }
}

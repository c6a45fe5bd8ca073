//! A small obvious model of the policy, and random operations that run both side by side.
//!
//! For this crate's property tests and for fuzz targets; not covered by semver.

use alloc::vec::Vec;

use crate::{
    Activity, Arrival, BlockReasons, Decision, Delivery, Event, InjectionPolicy, ProcessorPriority,
    Readiness,
};

/// One operation on a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Action {
    /// An event arrives.
    Arrive(Event),
    /// The ExtINT line falls.
    WithdrawExtInt,
    /// Ask, and inject if told to.
    Enter(Readiness, ProcessorPriority),
    /// Report an event as injected without having asked.
    ReportInjected(Event),
    /// The vCPU is reset.
    Reset,
    /// Save, and restore into another policy.
    SaveRestore,
}

/// Where the policy and the model disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The index of the operation.
    pub step: usize,
    /// The operation.
    pub action: Action,
    /// What differs.
    pub what: &'static str,
}

/// What waits, as a list with one entry per delivery, and totals.
#[derive(Debug, Default)]
struct Model {
    waiting: Vec<Event>,
    arrived: u64,
    merged: u64,
    withdrawn: u64,
    dropped: u64,
    spurious: u64,
    delivered: Vec<Event>,
}

/// The place in the order of delivery, 0 first.
fn rank(event: Event) -> u8 {
    match event {
        Event::Smi => 0,
        Event::Nmi => 1,
        Event::ExtInt => 2,
        // No vector is below 16, so these come after the others: 3 for 0xff.
        Event::Fixed(vector) => (u8::MAX - vector.get()).saturating_add(3),
    }
}

impl Model {
    fn count(&self, event: Event) -> usize {
        self.waiting.iter().filter(|e| **e == event).count()
    }

    fn arrive(&mut self, event: Event) -> Arrival {
        self.arrived += 1;
        let room = if event == Event::Nmi { 2 } else { 1 };
        if self.count(event) >= room {
            self.merged += 1;
            return Arrival::Merged;
        }
        self.waiting.push(event);
        Arrival::Accepted
    }

    fn take(&mut self, event: Event) -> bool {
        match self.waiting.iter().position(|e| *e == event) {
            Some(index) => {
                self.waiting.swap_remove(index);
                true
            }
            None => false,
        }
    }

    /// Whether the processor and the host, the mask aside, take the event now.
    fn admitted(event: Event, vcpu: &Readiness, priority: ProcessorPriority) -> bool {
        let boundary = vcpu.activity != Activity::WaitForSipi
            && !vcpu.event_in_flight
            && !vcpu.exception_pending;
        let shadow = vcpu.sti_shadow || vcpu.mov_ss_shadow;
        let interrupts = vcpu.interrupt_flag && !shadow && vcpu.host_ready;
        boundary
            && match event {
                Event::Smi => !vcpu.in_smm,
                Event::Nmi => !vcpu.nmi_blocked && !shadow,
                Event::ExtInt => interrupts,
                Event::Fixed(vector) => interrupts && vector.get() >> 4 > priority.get() >> 4,
            }
    }

    /// Whether the event ends HLT: conditions that pass by themselves and the mask do not matter.
    fn ends_halt(event: Event, vcpu: &Readiness, priority: ProcessorPriority) -> bool {
        let settled = Readiness {
            sti_shadow: false,
            mov_ss_shadow: false,
            event_in_flight: false,
            exception_pending: false,
            host_ready: true,
            ..*vcpu
        };
        Self::admitted(event, &settled, priority)
    }

    /// What the answer must be, apart from its explanation.
    fn check(
        &self,
        vcpu: &Readiness,
        priority: ProcessorPriority,
        decision: Decision,
    ) -> Result<(), &'static str> {
        let waiting = || self.waiting.iter().copied();
        let admitted = waiting()
            .filter(|event| Self::admitted(*event, vcpu, priority))
            .min_by_key(|event| rank(*event));
        let halted = vcpu.activity == Activity::Halted;
        let wakes = waiting().any(|event| Self::ends_halt(event, vcpu, priority));
        if let Some(blocked) = decision.blocked() {
            if self.count(blocked.event) == 0 {
                return Err("an event is reported that does not wait");
            }
            if blocked.reasons.is_empty() {
                return Err("blocked without a reason");
            }
            if blocked.reasons.contains(BlockReasons::MASKED) != vcpu.masked {
                return Err("the mask is reported wrongly");
            }
            let alone = blocked.reasons == BlockReasons::MASKED;
            if alone && !Self::admitted(blocked.event, vcpu, priority) {
                return Err("more than the mask is in the way");
            }
        }
        match decision {
            Decision::Inject(_) if vcpu.masked => Err("injected under the mask"),
            Decision::Inject(event) if admitted == Some(event) => Ok(()),
            Decision::Inject(_) => Err("not the most urgent event that may enter"),
            _ if !vcpu.masked && admitted.is_some() => Err("an event could have entered"),
            Decision::Idle if self.waiting.is_empty() => Ok(()),
            Decision::Idle => Err("idle, but something waits"),
            Decision::Wake(_) if halted && wakes => Ok(()),
            Decision::Wake(_) => Err("woken by nothing"),
            _ if halted && wakes => Err("not woken"),
            Decision::OpenWindow(windows, _) if windows.is_empty() => Err("no window to open"),
            Decision::OpenWindow(..) if vcpu.masked => Err("a window under the mask"),
            Decision::OpenWindow(..) if vcpu.activity != Activity::Running => {
                Err("a window that cannot open")
            }
            Decision::OpenWindow(..) | Decision::Blocked(_) => Ok(()),
        }
    }
}

/// The policy under test with its model.
#[derive(Debug, Default)]
pub struct Pair {
    policy: InjectionPolicy,
    model: Model,
}

impl Pair {
    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &InjectionPolicy {
        &self.policy
    }

    /// Every event that was injected, in order.
    #[must_use]
    pub fn delivered(&self) -> &[Event] {
        &self.model.delivered
    }

    /// Applies one operation to both and compares.
    ///
    /// # Errors
    /// With what differs.
    pub fn apply(&mut self, action: Action) -> Result<(), &'static str> {
        let Self { policy, model } = self;
        match action {
            Action::Arrive(event) => {
                if policy.arrive(event) != model.arrive(event) {
                    return Err("arrival");
                }
            }
            Action::WithdrawExtInt => {
                let withdrawn = model.take(Event::ExtInt);
                model.withdrawn += u64::from(withdrawn);
                if policy.withdraw_ext_int() != withdrawn {
                    return Err("withdrawal");
                }
            }
            Action::Enter(vcpu, priority) => {
                let before = policy.clone();
                let decision = policy.decide(&vcpu, priority);
                if policy.decide(&vcpu, priority) != decision || *policy != before {
                    return Err("deciding changed something");
                }
                model.check(&vcpu, priority, decision)?;
                if let Decision::Inject(event) = decision {
                    if policy.injected(event) != Ok(Delivery::Delivered) || !model.take(event) {
                        return Err("injection");
                    }
                    model.delivered.push(event);
                }
            }
            Action::ReportInjected(event) => {
                let expected = if model.take(event) {
                    model.delivered.push(event);
                    Some(Delivery::Delivered)
                } else if event == Event::ExtInt {
                    model.spurious += 1;
                    Some(Delivery::Spurious)
                } else {
                    None
                };
                if policy.injected(event).ok() != expected {
                    return Err("report of an injection");
                }
            }
            Action::Reset => {
                model.dropped += model.waiting.len() as u64;
                model.waiting.clear();
                policy.reset();
            }
            Action::SaveRestore => {
                let mut restored = InjectionPolicy::new();
                if restored.restore(&policy.save()).is_err() || restored != *policy {
                    return Err("save and restore");
                }
                *policy = restored;
            }
        }
        self.compare()
    }

    /// The whole state, after every operation.
    fn compare(&self) -> Result<(), &'static str> {
        let Self { policy, model } = self;
        let pending = policy.pending();
        let counters = policy.counters();
        let delivered = model.delivered.len() as u64;
        // With the numbers equal, none in the policy is missing from the model either.
        if !model.waiting.iter().all(|event| pending.contains(*event)) {
            return Err("the pending set");
        }
        let waiting = model.waiting.len() as u64;
        if pending.len() != waiting || pending.is_empty() != model.waiting.is_empty() {
            return Err("the number of pending events");
        }
        let counted = [
            counters.arrived,
            counters.merged,
            counters.delivered,
            counters.withdrawn,
            counters.dropped,
            counters.spurious,
        ];
        let expected = [
            model.arrived,
            model.merged,
            delivered,
            model.withdrawn,
            model.dropped,
            model.spurious,
        ];
        if counted != expected {
            return Err("the counters");
        }
        if model.arrived != delivered + model.merged + model.withdrawn + model.dropped + waiting {
            return Err("arrived events are unaccounted for");
        }
        Ok(())
    }

    /// Applies a sequence.
    ///
    /// # Errors
    /// At the first difference.
    pub fn run(&mut self, actions: impl IntoIterator<Item = Action>) -> Result<(), Divergence> {
        for (step, action) in actions.into_iter().enumerate() {
            self.apply(action)
                .map_err(|what| Divergence { step, action, what })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! The timer as arithmetic: when it expires and what its count reads, without ticking.

use super::registers::{TimerMode, divide_shift};
use crate::{GuestTime, TscClock};

/// What the timer's registers hold, and when it expires next.
///
/// The mode is not here: it is in the local vector table, and is passed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timer {
    /// The initial-count register.
    pub(super) initial: u32,
    /// The divide configuration register.
    pub(super) divide: u8,
    /// When the count reaches zero next, in the counting modes. `None` if it stands at zero.
    pub(super) expires: Option<GuestTime>,
    /// IA32_TSC_DEADLINE. 0 is disarmed (SDM 3A, "TSC-Deadline Mode").
    pub(super) deadline: u64,
}

impl Timer {
    /// Nanoseconds per count: a bus cycle times the divisor, below 2^23.
    fn tick_ns(&self, bus_cycle_ns: u16) -> u64 {
        u64::from(bus_cycle_ns) << divide_shift(self.divide)
    }

    /// Nanoseconds from the initial count to zero, below 2^55.
    fn period_ns(&self, bus_cycle_ns: u16) -> u64 {
        u64::from(self.initial) * self.tick_ns(bus_cycle_ns)
    }

    /// How often the timer has expired up to `now`, 0 if it has not. Bounded work: after a long
    /// stop the periods are divided out and not counted off.
    pub(super) fn advance(
        &mut self,
        mode: TimerMode,
        bus_cycle_ns: u16,
        tsc: TscClock,
        now: GuestTime,
    ) -> u64 {
        match mode {
            TimerMode::TscDeadline => {
                if self.deadline == 0 || tsc.ticks_at(now) < self.deadline {
                    return 0;
                }
                // SDM 3A, "TSC-Deadline Mode": generating the interrupt clears the MSR.
                self.deadline = 0;
                1
            }
            TimerMode::OneShot | TimerMode::Periodic => {
                let Some(expires) = self.expires.filter(|expires| *expires <= now) else {
                    return 0;
                };
                let period = self.period_ns(bus_cycle_ns);
                if mode == TimerMode::OneShot || period == 0 {
                    self.expires = None;
                    return 1;
                }
                let late = now.saturating_ns_since(expires);
                // After the last period that is over, so that the phase is kept.
                self.expires = Some(now.saturating_add_ns(period - late % period));
                late / period + 1
            }
            TimerMode::Reserved => 0,
        }
    }

    /// When [`Self::advance`] has something to say next.
    pub(super) fn next(&self, mode: TimerMode, tsc: TscClock, now: GuestTime) -> Option<GuestTime> {
        match mode {
            TimerMode::TscDeadline if self.deadline == 0 => None,
            TimerMode::TscDeadline => Some(tsc.time_of(self.deadline, now)),
            TimerMode::OneShot | TimerMode::Periodic => self.expires,
            TimerMode::Reserved => None,
        }
    }

    /// The current-count register. The caller has advanced to `now`.
    pub(super) fn current(&self, mode: TimerMode, bus_cycle_ns: u16, now: GuestTime) -> u32 {
        match (mode, self.expires) {
            (TimerMode::OneShot | TimerMode::Periodic, Some(expires)) => {
                // A count lasts a whole tick, hence rounded up.
                let left = expires.saturating_ns_since(now);
                let count = left.div_ceil(self.tick_ns(bus_cycle_ns));
                u32::try_from(count)
                    .unwrap_or(u32::MAX)
                    .min(self.initial.max(1))
            }
            _ => 0,
        }
    }

    /// A write to the initial-count register starts the count anew; 0 stops it (SDM 3A, "APIC
    /// Timer"). In TSC-deadline mode it is ignored.
    pub(super) fn set_initial(
        &mut self,
        mode: TimerMode,
        bus_cycle_ns: u16,
        initial: u32,
        now: GuestTime,
    ) {
        if mode == TimerMode::TscDeadline {
            return;
        }
        self.initial = initial;
        self.expires = (initial != 0 && mode != TimerMode::Reserved)
            .then(|| now.saturating_add_ns(self.period_ns(bus_cycle_ns)));
    }

    /// Another divisor: what is left of the count is counted off at the new rate.
    pub(super) fn set_divide(&mut self, divide: u8, now: GuestTime) {
        let (old, new) = (divide_shift(self.divide), divide_shift(divide));
        self.divide = divide;
        self.expires = self.expires.map(|expires| {
            let left = u128::from(expires.saturating_ns_since(now));
            // Rounded up: a part of a tick is not over yet.
            let left = (left << new).div_ceil(1 << old);
            now.saturating_add_ns(u64::try_from(left).unwrap_or(u64::MAX))
        });
    }

    /// IA32_TSC_DEADLINE: any value arms, 0 disarms; ignored in other modes (SDM 3A, "TSC-Deadline
    /// Mode").
    pub(super) fn set_deadline(&mut self, mode: TimerMode, deadline: u64) {
        if mode == TimerMode::TscDeadline {
            self.deadline = deadline;
        }
    }

    /// A write to the LVT's mode. "Transitioning between TSC-deadline mode and other timer modes
    /// also disarms the timer" (SDM 3A, "TSC-Deadline Mode"); one-shot to periodic and back does
    /// not: the count goes on.
    pub(super) fn change_mode(&mut self, old: TimerMode, new: TimerMode) {
        let counts = |mode| matches!(mode, TimerMode::OneShot | TimerMode::Periodic);
        if old != new && !(counts(old) && counts(new)) {
            self.disarm();
        }
    }

    /// Stops in every mode. The count that a mode change leaves is 0, as in KVM (lapic.c,
    /// `apic_update_lvtt`).
    pub(super) fn disarm(&mut self) {
        self.initial = 0;
        self.expires = None;
        self.deadline = 0;
    }

    /// For a restored count that is not the initial one: expires after `count` ticks.
    #[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
    pub(super) fn expiry_of_count(
        &self,
        count: u32,
        bus_cycle_ns: u16,
        now: GuestTime,
    ) -> Option<GuestTime> {
        (count != 0 && self.initial != 0).then(|| {
            let ticks = u64::from(count.min(self.initial));
            now.saturating_add_ns(ticks * self.tick_ns(bus_cycle_ns))
        })
    }
}

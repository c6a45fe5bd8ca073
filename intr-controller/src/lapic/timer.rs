//! The timer as arithmetic: when it expires and what its count reads, without ticking.

use core::num::NonZeroU16;

use super::registers::{DIVIDE_WRITABLE, TimerMode, divide_shift, low_byte};
use super::state::{agrees, possible};
use super::{LapicConfig, LapicRestoreError, LapicState};
use crate::{GuestTime, TscClock};

/// The timer's registers and clocks, and when it expires next.
///
/// The mode is a parameter, because it is a part of the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    /// One count before the divisor.
    bus_cycle_ns: NonZeroU16,
    /// The counter that a deadline is compared with.
    tsc: TscClock,
    /// The initial-count register.
    initial: u32,
    /// The divide configuration register.
    divide: u8,
    /// When the count reaches zero next, in the counting modes. `None` if it stands at zero.
    expires: Option<GuestTime>,
    /// IA32_TSC_DEADLINE. 0 is disarmed (SDM 3A, "TSC-Deadline Mode").
    deadline: u64,
}

impl Timer {
    /// After power-up.
    pub(super) const fn new(config: &LapicConfig) -> Self {
        Self {
            bus_cycle_ns: config.bus_cycle_ns,
            tsc: config.tsc,
            initial: 0,
            divide: 0,
            expires: None,
            deadline: 0,
        }
    }

    /// This timer with what a saved state says, of an APIC that is on or off, in this mode.
    pub(super) fn restored(
        self,
        state: &LapicState,
        on: bool,
        mode: TimerMode,
    ) -> Result<Self, LapicRestoreError> {
        possible(
            u32::from(state.timer_divide) & !DIVIDE_WRITABLE == 0,
            "timer_divide",
            state.timer_divide.into(),
        )?;
        let counts = matches!(mode, TimerMode::OneShot | TimerMode::Periodic);
        let armed = state.timer_expires_ns.is_some();
        agrees(
            !armed || counts && state.timer_initial != 0,
            "timer_expires_ns",
            "lvt or timer_initial",
        )?;
        agrees(
            state.tsc_deadline == 0 || mode == TimerMode::TscDeadline,
            "tsc_deadline",
            "lvt",
        )?;
        agrees(
            on || !armed && state.tsc_deadline == 0,
            "timer_expires_ns or tsc_deadline",
            "apic_base",
        )?;
        Ok(Self {
            initial: state.timer_initial,
            divide: state.timer_divide,
            expires: state.timer_expires_ns.map(GuestTime::from_ns),
            deadline: state.tsc_deadline,
            ..self
        })
    }

    /// Puts it into a state, without its clocks.
    pub(super) fn save(&self, state: &mut LapicState) {
        let Self {
            bus_cycle_ns: _,
            tsc: _,
            initial,
            divide,
            expires,
            deadline,
        } = *self;
        state.timer_initial = initial;
        state.timer_divide = divide;
        state.timer_expires_ns = expires.map(GuestTime::as_ns);
        state.tsc_deadline = deadline;
    }

    /// INIT: the clocks stay.
    pub(super) const fn init(&mut self) {
        self.divide = 0;
        self.disarm();
    }

    pub(super) const fn tsc(&self) -> TscClock {
        self.tsc
    }

    pub(super) const fn set_tsc(&mut self, tsc: TscClock) {
        self.tsc = tsc;
    }

    /// The initial-count register.
    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    /// The divide configuration register.
    pub(super) const fn divide(&self) -> u8 {
        self.divide
    }

    /// IA32_TSC_DEADLINE.
    pub(super) const fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Nanoseconds per count: a bus cycle times the divisor, below 2^23.
    fn tick_ns(&self) -> u64 {
        u64::from(self.bus_cycle_ns.get()) << divide_shift(self.divide)
    }

    /// Nanoseconds from the initial count to zero, below 2^55.
    fn period_ns(&self) -> u64 {
        u64::from(self.initial) * self.tick_ns()
    }

    /// How often the timer has expired up to `now`, 0 if it has not. Bounded work: after a long
    /// stop the periods are divided out and not counted off.
    #[inline]
    pub(super) fn advance(&mut self, mode: TimerMode, now: GuestTime) -> u64 {
        match mode {
            TimerMode::TscDeadline => {
                if self.deadline == 0 || self.tsc.ticks_at(now) < self.deadline {
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
                let period = self.period_ns();
                if mode == TimerMode::OneShot || period == 0 {
                    self.expires = None;
                    return 1;
                }
                let late = now.saturating_ns_since(expires);
                // After the last period that is over: the phase is kept.
                self.expires = Some(now.saturating_add_ns(period - late % period));
                late / period + 1
            }
            TimerMode::Reserved => 0,
        }
    }

    /// When [`Self::advance`] has something to say next.
    pub(super) fn next(&self, mode: TimerMode, now: GuestTime) -> Option<GuestTime> {
        match mode {
            TimerMode::TscDeadline if self.deadline == 0 => None,
            TimerMode::TscDeadline => Some(self.tsc.time_of(self.deadline, now)),
            TimerMode::OneShot | TimerMode::Periodic => self.expires,
            TimerMode::Reserved => None,
        }
    }

    /// The current-count register. The caller has advanced to `now`.
    pub(super) fn current(&self, mode: TimerMode, now: GuestTime) -> u32 {
        match (mode, self.expires) {
            (TimerMode::OneShot | TimerMode::Periodic, Some(expires)) => {
                // A count lasts a whole tick, hence rounded up.
                let left = expires.saturating_ns_since(now);
                let count = left.div_ceil(self.tick_ns());
                u32::try_from(count)
                    .unwrap_or(u32::MAX)
                    .min(self.initial.max(1))
            }
            _ => 0,
        }
    }

    /// A write to the initial-count register starts the count again; 0 stops it (SDM 3A, "APIC
    /// Timer"). In TSC-deadline mode it is ignored.
    pub(super) fn set_initial(&mut self, mode: TimerMode, initial: u32, now: GuestTime) {
        if mode == TimerMode::TscDeadline {
            return;
        }
        self.initial = initial;
        self.expires = (initial != 0 && mode != TimerMode::Reserved)
            .then(|| now.saturating_add_ns(self.period_ns()));
    }

    /// Another divisor: what is left of the count is counted off at the new rate.
    pub(super) fn set_divide(&mut self, value: u32, now: GuestTime) {
        let divide = low_byte(value & DIVIDE_WRITABLE);
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
    pub(super) const fn disarm(&mut self) {
        self.initial = 0;
        self.expires = None;
        self.deadline = 0;
    }

    /// Whether the count stands at zero, in a counting mode.
    #[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
    pub(super) const fn stands_at_zero(&self) -> bool {
        self.expires.is_none()
    }

    /// When a timer with these registers expires whose count is `count` now.
    #[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
    pub(super) fn expiry(
        config: &LapicConfig,
        (initial, divide): (u32, u8),
        count: u32,
        now: GuestTime,
    ) -> Option<GuestTime> {
        let timer = Self {
            initial,
            divide,
            ..Self::new(config)
        };
        (count != 0 && initial != 0).then(|| {
            let ticks = u64::from(count.min(initial));
            now.saturating_add_ns(ticks * timer.tick_ns())
        })
    }
}

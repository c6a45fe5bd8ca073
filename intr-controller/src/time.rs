//! Guest time, and the guest's time-stamp counter as a function of it.
//!
//! Everything here that counts takes the time as a parameter. A guest whose time stands still (a
//! stop in a debugger, a snapshot) is one whose owner passes the same [`GuestTime`] again.

use core::fmt;
use core::num::NonZeroU64;
use core::time::Duration;

/// Nanoseconds in a second.
const NS_PER_S: u128 = 1_000_000_000;

/// A reading of guest time: nanoseconds since an origin that the VMM chose, usually the guest's
/// power-on. It never goes backwards; an earlier reading than the previous one counts as the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct GuestTime(u64);

impl GuestTime {
    /// The origin.
    pub const ZERO: Self = Self(0);
    /// 584 years later, which stands for never.
    pub const MAX: Self = Self(u64::MAX);

    /// So many nanoseconds after the origin.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub const fn as_ns(self) -> u64 {
        self.0
    }

    /// So many nanoseconds later, at most [`Self::MAX`].
    #[must_use]
    pub const fn saturating_add_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// So much later, at most [`Self::MAX`].
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        self.saturating_add_ns(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Nanoseconds from `earlier` to this, or 0 if `earlier` is later.
    #[must_use]
    pub const fn saturating_ns_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time from `earlier` to this, or zero if `earlier` is later.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.saturating_ns_since(earlier))
    }
}

impl fmt::Display for GuestTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:09} s",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000
        )
    }
}

/// The guest's time-stamp counter as a function of guest time: a frequency and the value at time
/// zero.
///
/// A conversion and no clock: a guest that writes IA32_TSC or IA32_TSC_ADJUST gets another one
/// ([`Self::with_ticks_at`]). The counter wraps at 2^64, as the processor's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TscClock {
    hz: NonZeroU64,
    at_zero: u64,
}

impl TscClock {
    /// A counter of this frequency that reads 0 at [`GuestTime::ZERO`].
    #[must_use]
    pub const fn new(hz: NonZeroU64) -> Self {
        Self { hz, at_zero: 0 }
    }

    /// The same frequency, with the counter reading `ticks` at `now`.
    #[must_use]
    pub fn with_ticks_at(self, now: GuestTime, ticks: u64) -> Self {
        Self {
            at_zero: ticks.wrapping_sub(truncate(self.elapsed_ticks(now))),
            ..self
        }
    }

    /// The counter ran on for so long while guest time stood still.
    #[must_use]
    pub fn ran_on(self, pause: Duration) -> Self {
        let ticks = self.elapsed_ticks(GuestTime::ZERO.saturating_add(pause));
        Self {
            at_zero: self.at_zero.wrapping_add(truncate(ticks)),
            ..self
        }
    }

    /// Ticks in a second.
    #[must_use]
    pub const fn hz(self) -> NonZeroU64 {
        self.hz
    }

    /// Whole ticks since time zero, rounded down. Below 2^98.
    fn elapsed_ticks(self, now: GuestTime) -> u128 {
        u128::from(now.as_ns()) * u128::from(self.hz.get()) / NS_PER_S
    }

    /// What RDTSC returns at `now`: a tick counts when it is complete (rounded down).
    #[must_use]
    pub fn ticks_at(self, now: GuestTime) -> u64 {
        self.at_zero.wrapping_add(truncate(self.elapsed_ticks(now)))
    }

    /// The first nanosecond, not before `now`, at which the counter reads `deadline` or more as
    /// the processor compares (unsigned): `now` itself if it does already. It is rounded up:
    /// [`Self::ticks_at`] of the result has reached the deadline, and one nanosecond earlier has not. [`GuestTime::MAX`] if it is further away than that.
    #[must_use]
    pub fn time_of(self, deadline: u64, now: GuestTime) -> GuestTime {
        let elapsed = self.elapsed_ticks(now);
        let reads = self.at_zero.wrapping_add(truncate(elapsed));
        let Some(missing) = deadline.checked_sub(reads).filter(|ticks| *ticks > 0) else {
            return now;
        };
        // What overflows here is beyond the end of time, whatever the frequency.
        let ns = (elapsed + u128::from(missing))
            .checked_mul(NS_PER_S)
            .map(|ns| ns.div_ceil(u128::from(self.hz.get())));
        let ns = ns.and_then(|ns| u64::try_from(ns).ok());
        ns.map_or(GuestTime::MAX, GuestTime)
    }
}

/// The low 64 bits: the counter wraps.
const fn truncate(ticks: u128) -> u64 {
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = ticks.to_le_bytes();
    u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn clock(hz: u64) -> TscClock {
        TscClock::new(NonZeroU64::new(hz).unwrap())
    }

    #[test]
    fn time_stops_at_its_end_instead_of_wrapping() {
        let late = GuestTime::from_ns(u64::MAX - 1);
        assert_eq!(late.saturating_add_ns(5), GuestTime::MAX);
        assert_eq!(late.saturating_add(Duration::MAX), GuestTime::MAX);
        assert_eq!(GuestTime::ZERO.saturating_ns_since(late), 0);
        let second = GuestTime::ZERO.saturating_add(Duration::from_secs(1));
        assert_eq!(second.to_string(), "1.000000000 s");
        assert_eq!(
            second.saturating_since(GuestTime::from_ns(1)),
            Duration::from_nanos(999_999_999)
        );
    }

    #[test]
    fn a_written_counter_counts_on_from_there() {
        let now = GuestTime::from_ns(1_000_000_007);
        let clock = clock(2_400_000_000).with_ticks_at(now, 5);
        assert_eq!(clock.ticks_at(now), 5);
        assert_eq!(clock.ticks_at(now.saturating_add_ns(1000)), 2405);
        // Before that moment the counter was "negative".
        assert_eq!(
            clock.ticks_at(GuestTime::from_ns(7)),
            5u64.wrapping_sub(2_400_000_000)
        );
    }

    #[test]
    fn a_counter_that_ran_on_reaches_a_deadline_sooner() {
        let now = GuestTime::from_ns(1000);
        let clock = clock(2_000_000_000).ran_on(Duration::from_nanos(250));
        assert_eq!(clock.ticks_at(now), 2500);
        assert_eq!(clock.time_of(2502, now), GuestTime::from_ns(1001));
    }

    #[test]
    fn a_deadline_in_the_past_is_now() {
        let now = GuestTime::from_ns(1000);
        let clock = clock(1_000_000_000);
        for deadline in [0, 1, 999, 1000] {
            assert_eq!(clock.time_of(deadline, now), now);
        }
        assert_eq!(clock.time_of(1001, now), GuestTime::from_ns(1001));
        assert_eq!(clock.time_of(u64::MAX, now), GuestTime::MAX);
    }

    #[test]
    fn extremes_do_not_overflow() {
        for hz in [1, u64::MAX] {
            let clock = clock(hz)
                .with_ticks_at(GuestTime::MAX, u64::MAX)
                .ran_on(Duration::MAX);
            for now in [GuestTime::ZERO, GuestTime::MAX] {
                for deadline in [0, 1, u64::MAX] {
                    assert!(clock.time_of(deadline, now) >= now);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_deadline_is_the_first_nanosecond_that_reaches_it(
            hz in 1u64..10_000_000_000,
            now in 0u64..1 << 50,
            ahead in 1u64..1 << 40,
            ticks in 0u64..1 << 62,
        ) {
            let now = GuestTime::from_ns(now);
            let clock = clock(hz).with_ticks_at(now, ticks);
            let deadline = ticks + ahead;
            let at = clock.time_of(deadline, now);
            prop_assert!(at > now);
            if at < GuestTime::MAX {
                prop_assert!(clock.ticks_at(at) >= deadline);
                prop_assert!(clock.ticks_at(GuestTime::from_ns(at.as_ns() - 1)) < deadline);
            }
        }
    }
}

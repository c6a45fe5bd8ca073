//! The 8254's clock: 105/88 MHz.

use crate::GuestTime;

/// 14.31818 MHz / 12 is 105/88 MHz: 105 ticks in 88,000 ns.
const TICKS: u64 = 105;
const NS: u64 = 88_000;

/// Ticks of the 8254's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PitTicks(pub u64);

impl PitTicks {
    /// Complete ticks since guest time zero.
    #[must_use]
    pub const fn at(now: GuestTime) -> Self {
        let ns = now.as_ns();
        // In two parts, since ns * 105 may overflow.
        Self(ns / NS * TICKS + ns % NS * TICKS / NS)
    }

    /// The first nanosecond at which so many are complete, or `None` if guest time ends before.
    #[must_use]
    pub fn time(self) -> Option<GuestTime> {
        let part = (self.0 % TICKS * NS).div_ceil(TICKS);
        let ns = (self.0 / TICKS).checked_mul(NS)?.checked_add(part)?;
        Some(GuestTime::from_ns(ns))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_hour_is_exactly_4295454545_ticks_and_five_elevenths() {
        let hour = GuestTime::from_ns(3_600_000_000_000);
        assert_eq!(PitTicks::at(hour), PitTicks(4_295_454_545));
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        let last = PitTicks::at(GuestTime::MAX);
        assert!(last.time().is_some());
        assert_eq!(PitTicks(last.0 + 1).time(), None);
        assert_eq!(PitTicks(u64::MAX).time(), None);
    }

    proptest! {
        #[test]
        fn a_ticks_time_is_its_first_nanosecond(ticks in 1u64..1 << 54) {
            let time = PitTicks(ticks).time().unwrap();
            prop_assert_eq!(PitTicks::at(time), PitTicks(ticks));
            let before = GuestTime::from_ns(time.as_ns() - 1);
            prop_assert_eq!(PitTicks::at(before), PitTicks(ticks - 1));
        }
    }
}

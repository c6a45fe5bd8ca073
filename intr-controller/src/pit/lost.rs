//! What becomes of timer ticks that the guest could not be given in time.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use thiserror::Error;

use crate::GuestTime;

/// What becomes of a tick that is late by a period or more, or whose predecessor is still pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LostTicks {
    /// It is delivered later. Ticks come at twice their rate at most until all have come: a guest that
    /// counts ticks keeps its time.
    Reinject,
    /// It is merged with the one that is pending, as on a real chip. A guest that counts ticks loses
    /// time.
    #[default]
    Discard,
}

impl LostTicks {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Reinject, Self::Discard];

    /// The name, as in options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reinject => "reinject",
            Self::Discard => "discard",
        }
    }
}

impl fmt::Display for LostTicks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text is not the name of a policy: `reinject` or `discard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected reinject or discard")]
pub struct UnknownLostTicks;

impl FromStr for LostTicks {
    type Err = UnknownLostTicks;

    fn from_str(name: &str) -> Result<Self, UnknownLostTicks> {
        let mut all = Self::ALL.into_iter();
        all.find(|policy| policy.name() == name)
            .ok_or(UnknownLostTicks)
    }
}

/// Counts ticks. Every tick is in exactly one of `delivered`, `discarded` and `owed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TickCounters {
    /// Delivered.
    pub delivered: u64,
    /// Of these, the ones that had been lost before.
    pub reinjected: u64,
    /// Merged with another one, or dropped.
    pub discarded: u64,
    /// Still to be delivered.
    pub owed: u64,
}

/// The ticks of one timer between the timer and its interrupt line.
///
/// The caller says how often the timer's output rose; the queue says whether to deliver one tick now, and
/// when to ask again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TickQueue {
    policy: LostTicks,
    counters: TickCounters,
    /// When a tick was delivered last, and the least time from then to one that is owed.
    last: Option<(GuestTime, Duration)>,
    /// The last delivered tick was one that had been lost.
    late: bool,
}

impl TickQueue {
    /// The most ticks that are owed: four seconds at 1 kHz. A guest that has lost more does not catch up.
    pub const MOST_OWED: u64 = 4096;
    /// Ticks that are owed do not come sooner after another tick than this, however short the period is.
    pub const SHORTEST_GAP: Duration = Duration::from_micros(100);

    /// An empty queue.
    #[must_use]
    pub const fn new(policy: LostTicks) -> Self {
        Self {
            policy,
            counters: TickCounters {
                delivered: 0,
                reinjected: 0,
                discarded: 0,
                owed: 0,
            },
            last: None,
            late: false,
        }
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> LostTicks {
        self.policy
    }

    /// Sets the policy. With [`LostTicks::Discard`] nothing is owed any more.
    pub const fn set_policy(&mut self, policy: LostTicks) {
        self.policy = policy;
        if matches!(policy, LostTicks::Discard) {
            self.forget();
        }
    }

    /// The number of ticks of each fate.
    #[must_use]
    pub const fn counters(&self) -> TickCounters {
        self.counters
    }

    /// The timer's output rose `rises` times since the last call. Returns `true` if a tick is to be
    /// delivered now. `period` is the timer's, if it has one.
    #[must_use = "the tick is counted as delivered"]
    pub fn take(&mut self, now: GuestTime, rises: u64, period: Option<Duration>) -> bool {
        let TickCounters { owed, .. } = self.counters;
        let on_time = owed == 0 && rises > 0;
        if !on_time && (owed == 0 || self.next().is_some_and(|next| now < next)) {
            self.owe(rises);
            return false;
        }
        // One is delivered, and the others are not. What is owed is delivered before what is new.
        self.late = !on_time || rises > 1 && self.policy == LostTicks::Reinject;
        if !on_time {
            self.counters.owed = owed.saturating_sub(1);
        }
        self.owe(if on_time {
            rises.saturating_sub(1)
        } else {
            rises
        });
        self.counters.delivered = self.counters.delivered.saturating_add(1);
        if self.late {
            self.counters.reinjected = self.counters.reinjected.saturating_add(1);
        }
        let gap = period.map_or(Duration::ZERO, |period| period / 2);
        self.last = Some((now, gap.max(Self::SHORTEST_GAP)));
        true
    }

    /// The tick that [`Self::take`] has just delivered found its predecessor still pending: the guest
    /// has not seen it.
    pub fn lost(&mut self) {
        self.counters.delivered = self.counters.delivered.saturating_sub(1);
        if core::mem::take(&mut self.late) {
            self.counters.reinjected = self.counters.reinjected.saturating_sub(1);
        }
        self.owe(1);
    }

    fn owe(&mut self, ticks: u64) {
        let room = match self.policy {
            LostTicks::Reinject => Self::MOST_OWED.saturating_sub(self.counters.owed),
            LostTicks::Discard => 0,
        };
        let kept = ticks.min(room);
        let counters = &mut self.counters;
        counters.owed = counters.owed.saturating_add(kept);
        counters.discarded = counters
            .discarded
            .saturating_add(ticks.saturating_sub(kept));
    }

    /// Nothing is owed any more: the guest has programmed its timer again.
    pub const fn forget(&mut self) {
        let counters = &mut self.counters;
        counters.discarded = counters.discarded.saturating_add(counters.owed);
        counters.owed = 0;
    }

    /// When a tick that is owed may be delivered: call [`Self::take`] then. `None` if none is owed.
    #[must_use]
    pub fn next(&self) -> Option<GuestTime> {
        if self.counters.owed == 0 {
            return None;
        }
        Some(match self.last {
            Some((at, gap)) => at.saturating_add(gap),
            None => GuestTime::ZERO,
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn us(us: u64) -> GuestTime {
        GuestTime::from_ns(1000 * us)
    }

    fn counts(queue: &TickQueue) -> [u64; 4] {
        let counters = queue.counters();
        [
            counters.delivered,
            counters.reinjected,
            counters.discarded,
            counters.owed,
        ]
    }

    /// Calls it when it wants to be called, until nothing is owed. Returns the times, in microseconds.
    fn drain(queue: &mut TickQueue) -> Vec<u64> {
        let mut times = Vec::new();
        while let Some(next) = queue.next() {
            assert!(!queue.take(GuestTime::from_ns(next.as_ns() - 1), 0, Some(MS)));
            assert!(queue.take(next, 0, Some(MS)));
            times.push(next.as_ns() / 1000);
        }
        times
    }

    #[test]
    fn a_tick_on_time_is_delivered_with_either_policy() {
        for policy in LostTicks::ALL {
            let mut queue = TickQueue::new(policy);
            for tick in 1..=5 {
                assert!(!queue.take(us(1000 * tick - 1), 0, Some(MS)));
                assert!(queue.take(us(1000 * tick), 1, Some(MS)));
                assert_eq!(queue.next(), None);
            }
            assert_eq!(counts(&queue), [5, 0, 0, 0]);
        }
    }

    #[test]
    fn discarded_ticks_are_one_tick() {
        let mut queue = TickQueue::new(LostTicks::Discard);
        assert!(queue.take(us(50_000), 50, Some(MS)));
        assert!(!queue.take(us(50_500), 0, Some(MS)));
        assert_eq!(counts(&queue), [1, 0, 49, 0]);
        assert!(queue.take(us(51_000), 1, Some(MS)));
        queue.lost();
        assert_eq!(counts(&queue), [1, 0, 50, 0]);
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn missed_ticks_are_reinjected_half_a_period_apart() {
        let mut queue = TickQueue::new(LostTicks::Reinject);
        assert!(queue.take(us(4000), 4, Some(MS)));
        assert_eq!(drain(&mut queue), [4500, 5000, 5500]);
        assert_eq!(counts(&queue), [4, 4, 0, 0]);
    }

    #[test]
    fn the_backlog_of_a_long_time_is_no_burst() {
        let mut queue = TickQueue::new(LostTicks::Reinject);
        assert!(queue.take(us(8_000_000), 8000, Some(MS)));
        // For 300 ms, ticks of its own period go on.
        let mut delivered = 1;
        for half in 1..=600 {
            let rises = u64::from(half % 2 == 0);
            delivered += u64::from(queue.take(us(8_000_000 + 500 * half), rises, Some(MS)));
        }
        assert_eq!(delivered, 601);
        assert_eq!(queue.counters().discarded, 7999 - TickQueue::MOST_OWED);
        assert_eq!(queue.counters().owed, TickQueue::MOST_OWED - 300);
    }

    #[test]
    fn a_tick_that_finds_another_pending_comes_later() {
        let mut queue = TickQueue::new(LostTicks::Reinject);
        assert!(queue.take(us(1000), 1, Some(MS)));
        assert!(queue.take(us(2000), 1, Some(MS)));
        queue.lost();
        assert_eq!(counts(&queue), [1, 0, 0, 1]);
        assert_eq!(queue.next(), Some(us(2500)));
        assert!(queue.take(us(2500), 0, Some(MS)));
        // Still pending.
        queue.lost();
        assert_eq!(counts(&queue), [1, 0, 0, 1]);
        assert!(queue.take(us(3000), 1, Some(MS)));
        assert_eq!(counts(&queue), [2, 1, 0, 1]);
        assert_eq!(drain(&mut queue), [3500]);
        assert_eq!(counts(&queue), [3, 2, 0, 0]);
    }

    #[test]
    fn a_short_period_does_not_make_the_gap_shorter_than_100_us() {
        let mut queue = TickQueue::new(LostTicks::Reinject);
        assert!(queue.take(us(1000), 2, Some(Duration::from_micros(2))));
        assert_eq!(queue.next(), Some(us(1100)));
        let mut queue = TickQueue::new(LostTicks::Reinject);
        assert!(queue.take(us(1000), 2, None));
        assert_eq!(queue.next(), Some(us(1100)));
    }

    #[test]
    fn a_timer_that_is_programmed_again_owes_nothing() {
        for forget in [TickQueue::forget, |queue: &mut TickQueue| {
            queue.set_policy(LostTicks::Discard);
        }] {
            let mut queue = TickQueue::new(LostTicks::Reinject);
            assert!(queue.take(us(4000), 4, Some(MS)));
            forget(&mut queue);
            assert_eq!(counts(&queue), [1, 1, 3, 0]);
            assert_eq!(queue.next(), None);
        }
    }

    #[test]
    fn the_names_are_parsed() {
        for policy in LostTicks::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
        }
        for wrong in ["", "delay", "Reinject", "slew"] {
            assert_eq!(wrong.parse::<LostTicks>(), Err(UnknownLostTicks), "{wrong}");
        }
    }

    proptest! {
        /// Also if some are lost again, and however late the caller is.
        #[test]
        fn every_tick_has_one_fate_and_no_two_come_too_soon(
            reinject in any::<bool>(),
            period_us in 1u64..20_000,
            calls in prop::collection::vec((0u64..200_000, any::<bool>()), 1..200),
        ) {
            let policy = LostTicks::ALL[usize::from(!reinject)];
            let period = Duration::from_micros(period_us);
            let mut queue = TickQueue::new(policy);
            let (mut now, mut seen, mut rises) = (0, 0, 0);
            let mut last: Option<u64> = None;
            for (passes, lost) in calls {
                now += passes;
                let new = now / period_us - seen;
                seen += new;
                rises += new;
                let owed = queue.counters().owed;
                if queue.take(us(now), new, Some(period)) {
                    if owed > 0 {
                        let gap = (period_us / 2).max(100);
                        prop_assert!(last.is_none_or(|last| now >= last + gap));
                    }
                    last = Some(now);
                    if lost {
                        queue.lost();
                    }
                } else {
                    prop_assert!(new == 0 || policy == LostTicks::Reinject && owed > 0);
                }
                let TickCounters { delivered, reinjected, discarded, owed } = queue.counters();
                prop_assert_eq!(delivered + discarded + owed, rises);
                prop_assert!(reinjected <= delivered && owed <= TickQueue::MOST_OWED);
                prop_assert!(policy == LostTicks::Reinject || owed == 0 && reinjected == 0);
            }
        }
    }
}

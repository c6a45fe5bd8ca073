//! A bounded time for which another thread than the vCPU's own runs it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};

use super::kick::{self, Kickable};

/// How long a slice is. A step takes some microseconds; one that takes longer is in a handler of the
/// guest, or waits for an interrupt. Long enough for an RCU grace period, for which `KVM_RUN` waits
/// before Linux 6.13 when another thread than before calls it; short enough for Ctrl-C.
pub(crate) const STEP_SLICE: Duration = Duration::from_millis(50);

/// The calling thread may run a vCPU that is not its own, for a bounded time.
#[derive(Debug)]
pub(crate) struct StepSlice {
    /// Not `Send`, and so neither is this: it signals the thread that made it.
    timer: Timer,
    /// Once armed, the timer does not expire before this; afterwards it may have expired.
    expires: Option<Instant>,
}

impl StepSlice {
    /// For the calling thread.
    pub(crate) fn new() -> io::Result<Self> {
        kick::unblock()?;
        let timer = kick::timer_of_this_thread()?;
        Ok(Self {
            timer,
            expires: None,
        })
    }

    /// Calls `act` with a flag that is set, and the vCPU of `immediate_exit` kicked, within [`STEP_SLICE`]:
    /// sooner if the timer was armed for a previous slice, or if another thread kicks this one. The timer is neither disarmed after each slice nor
    /// armed before each: in a virtual machine that is an exit, and costs more than the step. A timer
    /// that expires outside a slice does nothing.
    ///
    /// # Errors
    /// If the timer cannot be armed; `act` has not been called.
    pub(crate) fn take<T>(
        &mut self,
        immediate_exit: &AtomicU8,
        act: impl FnOnce(&AtomicBool) -> T,
    ) -> io::Result<T> {
        let over = AtomicBool::new(false);
        // Before the clock is read: an expiry from here on sets the flag.
        let _kickable = Kickable::for_a_slice(immediate_exit, &over);
        let now = Instant::now();
        // Armed if there is any doubt. `expires` counts from a clock that was read before the timer was
        // set, so a timer whose `expires` is in the future has not expired yet. Were it the other way
        // round, a slice could begin without a timer, and a step that blocks would never end.
        if self.expires.is_none_or(|expires| expires <= now) {
            self.expires = None;
            let once = Expiration::OneShot(TimeSpec::from_duration(STEP_SLICE));
            self.timer.set(once, TimerSetTimeFlags::empty())?;
            self.expires = Some(now + STEP_SLICE);
        }
        Ok(act(&over))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::kick::{install, tests::with_blocked_signals};
    use super::*;

    /// How long a slice lasts that only the timer ends.
    fn wait_for_the_end(slice: &mut StepSlice, run: &AtomicU8) -> Duration {
        let start = Instant::now();
        slice
            .take(run, |over| {
                while !over.load(Ordering::Acquire) {
                    assert!(start.elapsed() < 40 * STEP_SLICE, "a slice that never ends");
                    std::hint::spin_loop();
                }
            })
            .unwrap();
        start.elapsed()
    }

    #[test]
    fn each_slice_ends_wherever_in_the_timers_time_it_begins() {
        install().unwrap();
        let run = &AtomicU8::new(0);
        let mut slice = StepSlice::new().unwrap();
        for late_us in 0..24 {
            // Arms the timer, and ends at once.
            slice.expires = None;
            slice.take(run, |_| ()).unwrap();
            let begin = Instant::now() + STEP_SLICE - Duration::from_micros(12)
                + Duration::from_micros(late_us);
            while Instant::now() < begin {
                std::hint::spin_loop();
            }
            wait_for_the_end(&mut slice, run);
        }
    }

    #[test]
    fn the_timer_is_not_believed_armed_for_longer_than_it_is() {
        install().unwrap();
        let run = &AtomicU8::new(0);
        let mut slice = StepSlice::new().unwrap();
        for _ in 0..1000 {
            slice.expires = None;
            slice.take(run, |_| ()).unwrap();
            let Ok(Some(Expiration::OneShot(left))) = slice.timer.get() else {
                panic!("the timer is armed, once")
            };
            // Not before it expires, since some time has passed since `left` was read.
            let expires = Instant::now() + Duration::from(left);
            assert!(slice.expires.unwrap() <= expires);
        }
    }

    #[test]
    fn the_timer_kicks_the_vcpu_of_its_slice_and_no_other() {
        install().unwrap();
        let (kicked, other) = (AtomicU8::new(0), AtomicU8::new(0));
        let mut slice = StepSlice::new().unwrap();
        slice.take(&other, |_| ()).unwrap();
        wait_for_the_end(&mut slice, &kicked);
        assert_eq!((kicked.into_inner(), other.into_inner()), (1, 0));
    }

    #[test]
    fn a_slice_ends_on_a_thread_that_was_started_with_the_signals_blocked() {
        install().unwrap();
        with_blocked_signals(|| {
            wait_for_the_end(&mut StepSlice::new().unwrap(), &AtomicU8::new(0));
        });
    }
}

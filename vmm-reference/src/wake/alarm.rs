//! The timer that makes a vCPU's own thread leave the guest when the timer of its emulated local APIC is
//! due.

use std::cell::RefCell;
use std::time::Duration;

use intr_controller::{ClockReading, GuestTime};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};

use super::kick;

thread_local! {
    static ALARM: RefCell<Option<Alarm>> = const { RefCell::new(None) };
}

/// The timer of one vCPU thread. Its signal is a kick, and sets no stop flag.
#[derive(Debug)]
struct Alarm {
    timer: Timer,
    /// The guest time that it is set for, and for how long guest time had stood still then.
    set: Option<(GuestTime, Duration)>,
}

/// A guest may ask for a timer interrupt every nanosecond, and gets an exit no more often than this.
/// KVM's own chips do the same (`min_timer_period_us`, 200 µs).
pub(crate) const SHORTEST_WAIT: Duration = Duration::from_micros(50);

/// Gives the calling thread, a vCPU's own, an alarm.
pub(crate) fn make_alarm() {
    match kick::timer_of_this_thread() {
        Ok(timer) => ALARM.set(Some(Alarm { timer, set: None })),
        Err(error) => tracing::error!(%error, "the guest's timers will be late"),
    }
}

/// Sets the calling thread's alarm, if it has one that is set for another time. Without a deadline the
/// alarm stays as it is: a superfluous kick costs less than a system call at each entry.
pub(crate) fn set_alarm(deadline: Option<GuestTime>, reading: &ClockReading) {
    let Some(deadline) = deadline else { return };
    ALARM.with_borrow_mut(|alarm| {
        let Some(alarm) = alarm else { return };
        let wanted = Some((deadline, reading.stood_still));
        if alarm.set == wanted {
            return;
        }
        let left = deadline.saturating_since(reading.now).max(SHORTEST_WAIT);
        let once = Expiration::OneShot(TimeSpec::from_duration(left));
        match alarm.timer.set(once, TimerSetTimeFlags::empty()) {
            Ok(()) => alarm.set = wanted,
            Err(error) => tracing::error!(%error, "a timer of the guest will be late"),
        }
    });
}

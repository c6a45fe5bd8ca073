//! Guest time: it passes while a vCPU may run, and stands still while all are stopped.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use intr_controller::GuestTime;

/// The clock of a machine's timers. Any thread may look at it.
#[derive(Debug, Default)]
pub struct GuestClock {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The guest time when it was last stopped.
    passed: Duration,
    /// Since when it has been running.
    since: Option<Instant>,
    stopped: Option<Instant>,
    /// Up to the last start.
    stood_still: Duration,
}

/// What a [`GuestClock`] shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// The time.
    pub now: GuestTime,
    /// For how long it had stood still, in total, when it was last started.
    pub stood_still: Duration,
    /// `true` while guest time passes.
    pub running: bool,
}

impl GuestClock {
    /// Reads it.
    pub fn read(&self) -> ClockReading {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ran = state.since.map_or(Duration::ZERO, |since| since.elapsed());
        ClockReading {
            now: GuestTime::ZERO.saturating_add(state.passed.saturating_add(ran)),
            stood_still: state.stood_still,
            running: state.since.is_some(),
        }
    }

    /// Lets time pass. Does nothing if it passes already.
    pub fn start(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none() {
            let now = Instant::now();
            if let Some(stopped) = state.stopped.take() {
                state.stood_still = state.stood_still.saturating_add(now - stopped);
            }
            state.since = Some(now);
        }
    }

    /// Makes time stand still. Does nothing if it does already.
    pub fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = state.since.take() {
            let now = Instant::now();
            state.passed = state.passed.saturating_add(now - since);
            state.stopped = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn time_stands_still_while_it_is_stopped() {
        let clock = GuestClock::default();
        assert_eq!(clock.read(), clock.read(), "not started yet");
        clock.start();
        clock.start();
        thread::sleep(Duration::from_millis(2));
        clock.stop();
        let stopped = clock.read();
        assert!(stopped.now >= GuestTime::from_ns(2_000_000));
        thread::sleep(Duration::from_millis(2));
        clock.stop();
        assert_eq!(clock.read(), stopped);
        clock.start();
        let running = clock.read();
        assert!(running.running && running.now >= stopped.now);
        assert!(running.stood_still >= Duration::from_millis(2));
    }
}

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
    /// What had passed when it was last stopped.
    passed: Duration,
    /// Since when it has been running.
    since: Option<Instant>,
    epoch: u64,
}

/// A reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The time.
    pub now: GuestTime,
    /// How often it has stood still until then.
    pub epoch: u64,
    /// Whether it passes.
    pub running: bool,
}

impl GuestClock {
    /// What it shows.
    pub fn read(&self) -> Moment {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ran = state.since.map_or(Duration::ZERO, |since| since.elapsed());
        Moment {
            now: GuestTime::ZERO.saturating_add(state.passed.saturating_add(ran)),
            epoch: state.epoch,
            running: state.since.is_some(),
        }
    }

    /// Lets time pass. It passes already: nothing changes.
    pub fn start(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none() {
            state.since = Some(Instant::now());
        }
    }

    /// Makes time stand still. It does already: nothing changes.
    pub fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = state.since.take() {
            state.passed = state.passed.saturating_add(since.elapsed());
            state.epoch += 1;
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
        assert!(running.running && running.now >= stopped.now && running.epoch == 1);
    }
}

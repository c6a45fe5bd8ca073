//! The clock of a guest that a debugger stops: when guest time passes, and by how much.
//!
//! [`GuestClock`] is given readings of a monotonic clock of the host, and returns guest time. It decides
//! three things: whether time stands still while the guest is stopped ([`DebugTime`]), how much time a
//! single step takes ([`StepTime`]), and how far the host's own clocks (TSC, kvmclock) have run ahead of
//! guest time. Guest time never goes backwards, whatever the order of the calls.
//!
//! # A step that may read a clock
//!
//! A hypervisor cannot stop its clocks. It can set them back, which costs calls. Most instructions read
//! no clock, so for them the hypervisor's clocks may be wrong. Before an instruction that may read one
//! ([`GuestClock::observe`]) they are set. Such a step takes its real time, at least, with every
//! [`StepTime`]: the guest has seen the clock run.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use thiserror::Error;

use crate::GuestTime;

/// Whether guest time passes while a debugger has stopped the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DebugTime {
    /// It stands still.
    #[default]
    Freeze,
    /// It passes.
    Run,
}

impl DebugTime {
    /// The name, as in options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Run => "run",
        }
    }
}

impl fmt::Display for DebugTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How much guest time a single step takes. With [`DebugTime::Run`] it is always what it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StepTime {
    /// What it took.
    #[default]
    Real,
    /// This much. Zero: none.
    Fixed(Duration),
}

/// The text is not a [`StepTime`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected real, none, or nanoseconds from 0 to 1000000000")]
pub struct UnknownStepTime;

/// The longest [`StepTime::Fixed`] that is parsed: a guest whose steps take longer sees its watchdogs
/// expire.
const LONGEST_STEP_NS: u64 = 1_000_000_000;

impl FromStr for StepTime {
    type Err = UnknownStepTime;

    fn from_str(text: &str) -> Result<Self, UnknownStepTime> {
        match text {
            "real" => Ok(Self::Real),
            "none" => Ok(Self::Fixed(Duration::ZERO)),
            // `u64::from_str` accepts a sign.
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => text
                .parse()
                .ok()
                .filter(|ns| *ns <= LONGEST_STEP_NS)
                .map(|ns| Self::Fixed(Duration::from_nanos(ns)))
                .ok_or(UnknownStepTime),
            _ => Err(UnknownStepTime),
        }
    }
}

impl fmt::Display for StepTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Real => f.pad("real"),
            Self::Fixed(Duration::ZERO) => f.pad("none"),
            Self::Fixed(duration) => write!(f, "{} ns", duration.as_nanos()),
        }
    }
}

/// What is about to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClockRun {
    /// The guest, until something stops it.
    Free,
    /// One instruction of one vCPU, while the others are stopped.
    Step,
}

/// A reading of a [`GuestClock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// Guest time.
    pub now: GuestTime,
    /// For how long guest time had stood still while the host's clock ran, in total, when it was last
    /// started.
    pub stood_still: Duration,
    /// `true` while guest time passes.
    pub running: bool,
}

/// What a [`GuestClock`] has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockTotals {
    /// How often the guest was stopped, including after steps.
    pub stops: u64,
    /// The number of steps.
    pub steps: u64,
    /// Of these, the ones that may have read a clock.
    pub observed: u64,
}

/// How guest time follows the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// One to one.
    Real,
    /// One to one, up to this much in all.
    Capped(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Guest time stands still since this reading of the host's clock; `None` before the first start.
    Still(Option<Duration>),
    /// Guest time passes since then.
    Passing { since: Duration, pace: Pace },
}

/// The clock of a guest: when guest time passes, and by how much. Host times are durations since any
/// fixed origin, and must not go backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestClock {
    debug_time: DebugTime,
    step_time: StepTime,
    /// Guest time at the last change of `state`.
    passed: Duration,
    /// Guest time at which the step under way ends at the earliest.
    step_end: Option<Duration>,
    state: State,
    stood_still: Duration,
    totals: ClockTotals,
}

impl GuestClock {
    /// At time zero, and standing still.
    #[must_use]
    pub const fn new(debug_time: DebugTime) -> Self {
        Self {
            debug_time,
            step_time: StepTime::Real,
            passed: Duration::ZERO,
            step_end: None,
            state: State::Still(None),
            stood_still: Duration::ZERO,
            totals: ClockTotals {
                stops: 0,
                steps: 0,
                observed: 0,
            },
        }
    }

    /// Whether time passes while the guest is stopped.
    #[must_use]
    pub const fn debug_time(&self) -> DebugTime {
        self.debug_time
    }

    /// How much time a step takes.
    #[must_use]
    pub const fn step_time(&self) -> StepTime {
        self.step_time
    }

    /// Sets how much time a step takes, from the next one on.
    pub const fn set_step_time(&mut self, step_time: StepTime) {
        self.step_time = step_time;
    }

    /// What it has done so far.
    #[must_use]
    pub const fn totals(&self) -> ClockTotals {
        self.totals
    }

    /// Reads it.
    #[must_use]
    pub fn read(&self, host: Duration) -> ClockReading {
        ClockReading {
            now: GuestTime::ZERO.saturating_add(self.guest_time(host)),
            stood_still: self.stood_still,
            running: matches!(self.state, State::Passing { .. }),
        }
    }

    fn guest_time(&self, host: Duration) -> Duration {
        let ran = match self.state {
            State::Still(_) => Duration::ZERO,
            State::Passing { since, pace } => {
                let elapsed = host.saturating_sub(since);
                match pace {
                    Pace::Real => elapsed,
                    Pace::Capped(most) => elapsed.min(most),
                }
            }
        };
        self.passed.saturating_add(ran)
    }

    /// vCPUs are about to run. If guest time passes already, a free run makes it pass really, and a step
    /// changes nothing.
    pub fn start(&mut self, host: Duration, run: ClockRun) {
        let frozen = self.debug_time == DebugTime::Freeze;
        if run == ClockRun::Step {
            self.totals.steps = self.totals.steps.saturating_add(1);
        }
        match self.state {
            State::Still(stopped) => {
                if let Some(stopped) = stopped {
                    self.stand_still(host.saturating_sub(stopped));
                }
                let pace = match (run, self.step_time) {
                    (ClockRun::Step, StepTime::Fixed(duration)) if frozen => {
                        self.step_end = Some(self.passed.saturating_add(duration));
                        Pace::Capped(duration)
                    }
                    _ => Pace::Real,
                };
                self.state = State::Passing { since: host, pace };
            }
            State::Passing { .. } if run == ClockRun::Free => self.pass_really(host),
            State::Passing { .. } => {}
        }
    }

    /// The instruction that is about to be stepped may read a clock: time passes as in a free run from
    /// here on, until the next stop.
    pub fn observe(&mut self, host: Duration) {
        if matches!(self.state, State::Passing { .. }) {
            self.totals.observed = self.totals.observed.saturating_add(1);
            self.pass_really(host);
        }
    }

    /// Guest time passes at once: the guest has read a host's clock that had run ahead by this much.
    pub fn catch_up(&mut self, ahead: Duration) {
        self.passed = self.passed.saturating_add(ahead);
    }

    fn pass_really(&mut self, host: Duration) {
        let State::Passing { since, pace } = self.state else {
            return;
        };
        if let Pace::Capped(most) = pace {
            self.stand_still(host.saturating_sub(since).saturating_sub(most));
            self.passed = self.guest_time(host);
            self.state = State::Passing {
                since: host.max(since),
                pace: Pace::Real,
            };
        }
    }

    /// All vCPUs have stopped. With [`DebugTime::Run`] guest time passes on.
    pub fn stop(&mut self, host: Duration) {
        let State::Passing { since, pace } = self.state else {
            return;
        };
        self.totals.stops = self.totals.stops.saturating_add(1);
        if self.debug_time == DebugTime::Run {
            return;
        }
        let now = self.guest_time(host);
        if let Pace::Capped(most) = pace {
            self.stand_still(host.saturating_sub(since).saturating_sub(most));
        }
        self.passed = self.step_end.take().map_or(now, |end| now.max(end));
        self.state = State::Still(Some(host.max(since)));
    }

    fn stand_still(&mut self, duration: Duration) {
        self.stood_still = self.stood_still.saturating_add(duration);
    }
}

#[cfg(test)]
mod tests;

//! Guest time: what the clocks of a machine have in common.
//!
//! [`GuestClock`] puts a lock and the host's clock around intr-controller's core, which decides when guest
//! time passes. The emulated timers read it. KVM's own clocks cannot be stopped: they are set back when the
//! guest goes on, or before a step that may read one.
//!
//! Setting kvmclock rewrites the guest's clock page, and the guest reads its clock again if the page has
//! changed in between. If each read of a stepped guest changed the page, it would read forever. So a clock that
//! is read again within `RETRY_STEPS` runs on, if it is ahead by no more than `RETRY_AHEAD`, or after
//! `RETRIES`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use intr_controller::kvm::{FrozenClocks, KvmClocks, TscControl};
use intr_controller::{ClockReading, ClockRun, ClockTotals, DebugTime, GuestTime, StepTime};
use kvm_ioctls::VmFd;

use crate::devices::EdgeLine;

/// More steps than a guest takes from one read of kvmclock to the next attempt.
const RETRY_STEPS: u32 = 32;
/// The most that a clock jumps for this reason, unless the guest has tried [`RETRIES`] times.
const RETRY_AHEAD: Duration = Duration::from_millis(20);
/// KVM's 8254 goes on in a stop. What it owes the guest is dropped once stops of this length in all have made it.
const MOST_OWED: Duration = Duration::from_millis(10);
/// How often the guest of a slow debugger reads its clock in vain: then the clock jumps, so the guest comes out.
const RETRIES: u32 = 3;

/// The clock of a machine. Any thread may read it.
#[derive(Debug)]
pub struct GuestClock {
    origin: Instant,
    debug_time: DebugTime,
    /// The host's time of day at time zero, since 1970.
    zero: OnceLock<Duration>,
    state: Mutex<State>,
    /// Something is to be done before the next entry that may read a clock ([`State::before_entry`]).
    unobserved: AtomicBool,
    kvm: OnceLock<Kvm>,
    /// How often KVM's clocks were set back.
    set_back: AtomicU64,
}

/// What is to be done before the next entry that may read a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BeforeEntry {
    Nothing,
    /// Time begins to pass. Not when the vCPUs' threads are woken: the guest would see how long that takes.
    Start,
    /// A step runs that has not read a clock so far: KVM's clocks are not set, and time may be capped.
    Observe,
}

#[derive(Debug)]
struct State {
    before_entry: BeforeEntry,
    clock: intr_controller::GuestClock,
    /// KVM's clocks at the last stop, until they are set back, and for how long guest time had stood still
    /// then.
    frozen: Option<(FrozenClocks, Duration)>,
    /// For how long guest time had stood still when KVM's 8254 last forgot what it owed.
    owes_since: Duration,
    /// Steps since they were set back.
    steps: u32,
    /// How often they were set back within `RETRY_STEPS` of the previous time, in a row.
    retries: u32,
}

/// KVM's clocks, and what may be lost while they are set back.
#[derive(Debug)]
struct Kvm {
    clocks: Mutex<KvmClocks<Arc<VmFd>>>,
    tsc: TscControl,
    lines: Vec<Arc<EdgeLine>>,
    /// An error was logged: it would be the same at each stop.
    failed: AtomicBool,
}

/// What a [`GuestClock`] has done, for `monitor time`.
#[derive(Clone, Copy, Debug)]
pub struct ClockReport {
    /// Guest time.
    pub now: GuestTime,
    /// For how long it has stood still.
    pub stood_still: Duration,
    /// Whether it passes while the guest is stopped.
    pub debug_time: DebugTime,
    /// How much of it a step takes.
    pub step_time: StepTime,
    /// Stops and steps.
    pub totals: ClockTotals,
    /// How often KVM's clocks were set back.
    pub set_back: u64,
    /// The means by which the TSC is set.
    pub tsc: TscControl,
    /// Whether the guest can be stepped through a read of kvmclock ([`KvmClocks::page_is_stable`]).
    pub page_is_stable: bool,
}

impl GuestClock {
    /// At time zero, which begins with the first start.
    #[must_use]
    pub fn new(debug_time: DebugTime) -> Self {
        Self {
            origin: Instant::now(),
            debug_time,
            zero: OnceLock::new(),
            state: Mutex::new(State {
                before_entry: BeforeEntry::Nothing,
                clock: intr_controller::GuestClock::new(debug_time),
                frozen: None,
                owes_since: Duration::ZERO,
                steps: RETRY_STEPS,
                retries: 0,
            }),
            unobserved: AtomicBool::new(false),
            kvm: OnceLock::new(),
            set_back: AtomicU64::new(0),
        }
    }

    /// Takes KVM's clocks over. `lines` are signalled again after KVM's clocks are set back, if they were
    /// signalled during the stop.
    pub(crate) fn take_over(&self, clocks: KvmClocks<Arc<VmFd>>, lines: Vec<Arc<EdgeLine>>) {
        let kvm = Kvm {
            tsc: clocks.tsc(),
            clocks: Mutex::new(clocks),
            lines,
            failed: AtomicBool::new(false),
        };
        // A machine has one set of them.
        let _ = self.kvm.set(kvm);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Reads it.
    pub fn read(&self) -> ClockReading {
        self.lock().clock.read(self.host())
    }

    /// For how long the guest's TSC had run while guest time stood still, at this reading.
    pub(crate) fn tsc_ran_on(&self, reading: &ClockReading) -> Duration {
        match self.kvm.get().map(|kvm| kvm.tsc) {
            None | Some(TscControl::None) => reading.stood_still,
            Some(TscControl::Offset | TscControl::Msr) => Duration::ZERO,
        }
    }

    /// Returns `true` if the guest's watchdogs are to be told of a stop: the guest sees time pass in it.
    pub(crate) fn passes_in_a_stop(&self) -> bool {
        self.debug_time == DebugTime::Run
            || self.kvm.get().is_none_or(|kvm| kvm.tsc == TscControl::None)
    }

    /// The time of day that the guest's clock chip shows, since 1970-01-01 00:00 UTC: the host's when the guest
    /// first ran, and guest time since.
    pub fn wall(&self) -> Duration {
        let since = Duration::from_nanos(self.read().now.as_ns());
        self.zero().saturating_add(since)
    }

    fn zero(&self) -> Duration {
        *self.zero.get_or_init(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
        })
    }

    /// vCPUs are about to run. Time begins to pass with the first `before_entry`; in a step at once.
    pub fn start(&self, run: ClockRun) {
        self.zero();
        let mut state = self.lock();
        state.before_entry = match run {
            ClockRun::Free => BeforeEntry::Start,
            ClockRun::Step => {
                state.clock.start(self.host(), run);
                state.steps = state.steps.saturating_add(1);
                BeforeEntry::Observe
            }
        };
        self.unobserved.store(true, Ordering::Release);
    }

    /// A vCPU is about to enter the guest, which may read a clock then. Returns `true` if time begins to pass.
    pub(crate) fn before_entry(&self) -> bool {
        if !self.unobserved.load(Ordering::Acquire) {
            return false;
        }
        // Other vCPUs wait here until the clocks are set.
        let mut state = self.lock();
        let host = self.host();
        let todo = std::mem::replace(&mut state.before_entry, BeforeEntry::Nothing);
        match todo {
            BeforeEntry::Nothing => {}
            BeforeEntry::Start => {
                state.clock.start(host, ClockRun::Free);
                self.thaw(&mut state, host);
                if self.debug_time == DebugTime::Run {
                    if let Some(kvm) = self.kvm.get() {
                        kvm.note(kvm.clocks().drop_ticks());
                    }
                }
            }
            BeforeEntry::Observe => self.observe(&mut state, host),
        }
        self.unobserved.store(false, Ordering::Release);
        todo == BeforeEntry::Start
    }

    /// The instruction that is stepped may read a clock.
    fn observe(&self, state: &mut State, host: Duration) {
        state.clock.observe(host);
        let ahead = state.ahead(host);
        let again = state.steps < RETRY_STEPS;
        state.retries = if again { state.retries + 1 } else { 0 };
        if again && (ahead <= RETRY_AHEAD || state.retries >= RETRIES) {
            // Once: the next read finds it set back.
            state.steps = RETRY_STEPS;
            state.frozen = None;
            state.clock.catch_up(ahead);
        } else {
            self.thaw(state, host);
        }
    }

    /// All vCPUs have stopped.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.before_entry = BeforeEntry::Nothing;
        self.unobserved.store(false, Ordering::Release);
        let host = self.host();
        let reading = state.clock.read(host);
        state.clock.stop(host);
        let stopped = reading.running && self.debug_time == DebugTime::Freeze;
        if let Some(kvm) = self.kvm.get().filter(|_| stopped) {
            // After a step that read no clock they are those of an earlier stop.
            if state.frozen.is_none() {
                let frozen = kvm.note(kvm.clocks().freeze(reading.now));
                state.frozen = frozen.map(|frozen| (frozen, state.clock.read(host).stood_still));
                for line in &kvm.lines {
                    line.begin_to_watch();
                }
            }
        }
    }

    fn thaw(&self, state: &mut State, host: Duration) {
        let Some((kvm, (frozen, _))) = self.kvm.get().zip(state.frozen.take()) else {
            return;
        };
        state.steps = 0;
        let ClockReading {
            now, stood_still, ..
        } = state.clock.read(host);
        if kvm.note(kvm.clocks().thaw(&frozen, now)).is_some() {
            self.set_back.fetch_add(1, Ordering::Relaxed);
        }
        if stood_still.saturating_sub(state.owes_since) >= MOST_OWED {
            kvm.note(kvm.clocks().drop_ticks());
            state.owes_since = stood_still;
        }
        for line in &kvm.lines {
            line.signal_again();
        }
    }

    /// Sets how much time a step takes.
    pub(crate) fn set_step_time(&self, step_time: StepTime) {
        self.lock().clock.set_step_time(step_time);
    }

    /// What it has done so far.
    pub fn report(&self) -> ClockReport {
        let clock = self.lock().clock;
        let reading = clock.read(self.host());
        ClockReport {
            now: reading.now,
            stood_still: reading.stood_still,
            debug_time: clock.debug_time(),
            step_time: clock.step_time(),
            totals: clock.totals(),
            set_back: self.set_back.load(Ordering::Relaxed),
            tsc: self.kvm.get().map_or(TscControl::None, |kvm| kvm.tsc),
            page_is_stable: self
                .kvm
                .get()
                .is_none_or(|kvm| kvm.note(kvm.clocks().page_is_stable()).unwrap_or(true)),
        }
    }
}

impl State {
    /// By how much KVM's clocks are ahead of guest time.
    fn ahead(&self, host: Duration) -> Duration {
        let Some((_, before)) = &self.frozen else {
            return Duration::ZERO;
        };
        self.clock.read(host).stood_still.saturating_sub(*before)
    }
}

impl Kvm {
    fn clocks(&self) -> MutexGuard<'_, KvmClocks<Arc<VmFd>>> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the first error.
    fn note<T, E: std::error::Error>(&self, result: Result<T, E>) -> Option<T> {
        result
            .inspect_err(|error| {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        error = %crate::error::with_causes(error),
                        "the guest's clocks could not be set back: it sees time pass in a stop"
                    );
                }
            })
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn time_stands_still_while_it_is_stopped() {
        let clock = GuestClock::new(DebugTime::Freeze);
        assert_eq!(clock.read(), clock.read(), "not started yet");
        clock.start(ClockRun::Free);
        assert_eq!(clock.read(), clock.read(), "no vCPU has entered yet");
        assert!(clock.before_entry());
        assert!(!clock.before_entry());
        thread::sleep(Duration::from_millis(2));
        clock.stop();
        let stopped = clock.read();
        assert!(stopped.now >= GuestTime::from_ns(2_000_000));
        thread::sleep(Duration::from_millis(2));
        clock.stop();
        assert_eq!(clock.read(), stopped);
        clock.start(ClockRun::Free);
        assert!(clock.before_entry());
        let running = clock.read();
        assert!(running.running && running.now >= stopped.now);
        assert!(running.stood_still >= Duration::from_millis(2));
        assert_eq!(clock.tsc_ran_on(&running), running.stood_still);
    }

    #[test]
    fn the_time_of_day_is_the_hosts_at_the_first_start_and_stands_still_in_a_stop() {
        let host = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let clock = GuestClock::new(DebugTime::Freeze);
        thread::sleep(Duration::from_millis(5));
        let before = host();
        clock.start(ClockRun::Free);
        assert!(clock.before_entry());
        assert!(clock.wall() >= before && clock.wall() <= host());
        clock.stop();
        let stopped = clock.wall();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(clock.wall(), stopped);
        clock.start(ClockRun::Free);
        assert!(clock.before_entry());
        assert!(clock.wall() >= stopped);
        assert!(clock.wall() + Duration::from_millis(5) <= host());
    }

    #[test]
    fn a_guest_that_is_stopped_before_it_has_entered_has_no_time() {
        let clock = GuestClock::new(DebugTime::Freeze);
        clock.start(ClockRun::Free);
        clock.stop();
        thread::sleep(Duration::from_millis(1));
        assert!(!clock.before_entry());
        assert_eq!(clock.read().now, GuestTime::ZERO);
    }

    #[test]
    fn time_that_runs_does_so_in_a_stop_and_the_guest_is_told() {
        let clock = GuestClock::new(DebugTime::Run);
        clock.start(ClockRun::Free);
        assert!(clock.before_entry());
        clock.stop();
        let stopped = clock.read();
        thread::sleep(Duration::from_millis(2));
        assert!(clock.read().now >= stopped.now.saturating_add(Duration::from_millis(2)));
        assert!(clock.passes_in_a_stop());
        assert_eq!(clock.report().stood_still, Duration::ZERO);
    }
}

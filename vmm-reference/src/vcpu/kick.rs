//! The race-free kick: how a vCPU that is in, or about to enter, the guest is made to leave it.
//!
//! Whoever wants the stop sets the vCPU's stop flag and then sends its thread a signal. The
//! handler sets `kvm_run.immediate_exit`, so that a signal which arrives *before* `KVM_RUN` makes
//! it return at once; one that arrives during it ends it with `EINTR`. The vCPU thread clears
//! `immediate_exit` before it looks at the flag, so a kick is either seen in the flag or still
//! set when `KVM_RUN` is called.
//!
//! A [`Turn`] uses the same handler to bound the time for which another thread than the vCPU's own
//! runs it: there the signal is a timer's, and sets the flag itself.

use std::cell::{Cell, RefCell};
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use intr_controller::GuestTime;
use kvm_bindings::kvm_run;
use libc::{c_int, c_void, pthread_t, siginfo_t};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;
use vmm_sys_util::errno;
use vmm_sys_util::signal::register_signal_handler;

use crate::irqchip::Moment;

thread_local! {
    /// The run structure of the vCPU that this thread runs. Constant-initialised and without a
    /// destructor: a signal handler may touch it.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
    /// The flag that says that this thread's turn is over; null for a vCPU's own thread.
    static OVER: Cell<*const AtomicBool> = const { Cell::new(ptr::null()) };
}

extern "C" fn leave_guest(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let over = OVER.get();
    if !over.is_null() {
        // SAFETY: not null, so a `Kickable` of this thread lives that borrows the flag.
        unsafe { &*over }.store(true, Ordering::Release);
    }
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: `run` is not null, so a `Kickable` of this thread lives, and with it the
        // mapping; KVM and this thread read the byte, and nobody holds a reference to it.
        let immediate_exit = unsafe { &raw mut (*run).immediate_exit };
        // SAFETY: as above; a byte cannot be torn.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

/// The signal of a kick. Not a real-time signal: those fail with EAGAIN while the user's queue of signals
/// is full, and a kick must arrive.
const KICK: Signal = Signal::SIGUSR1;

/// Installs the handler for the whole process. Idempotent.
pub(super) fn install() -> Result<(), errno::Error> {
    register_signal_handler(KICK as c_int, leave_guest)?;
    register_signal_handler(TURN_OVER as c_int, leave_guest)
}

/// While it lives, the calling thread's vCPU can be kicked.
#[derive(Debug)]
pub(super) struct Kickable<'a>(PhantomData<&'a AtomicBool>);

impl<'a> Kickable<'a> {
    /// For the vCPU's own thread. `run` must stay mapped while the answer lives: the caller holds
    /// the vCPU.
    pub(super) fn enter(run: *mut kvm_run) -> Self {
        RUN.set(run);
        Self(PhantomData)
    }

    /// For another thread, for as long as its turn lasts: the signal sets `over`.
    fn for_a_turn(run: *mut kvm_run, over: &'a AtomicBool) -> Self {
        OVER.set(over);
        Self::enter(run)
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
        OVER.set(ptr::null());
    }
}

/// The signal of the timer. The kernel sends it to the thread whose turn it is.
const TURN_OVER: Signal = Signal::SIGALRM;
/// How long a turn is. A step takes some microseconds; one that takes longer is in a handler of
/// the guest's, or waits for an interrupt. Long enough for an RCU grace period, which `KVM_RUN`
/// waits for before Linux 6.13 when another thread than before calls it; short enough for Ctrl-C.
pub(super) const TURN: Duration = Duration::from_millis(50);

/// The calling thread may run a vCPU that is not its own, for a bounded time.
#[derive(Debug)]
pub(super) struct Turn {
    /// Not `Send`, and so neither is this: it signals the thread that made it.
    timer: Timer,
    /// The timer does not ring before this, once armed; afterwards it may have rung.
    rings: Option<Instant>,
}

impl Turn {
    /// For the calling thread.
    pub(super) fn new() -> io::Result<Self> {
        let to_this_thread = SigEvent::new(SigevNotify::SigevThreadId {
            signal: TURN_OVER,
            thread_id: gettid().as_raw(),
            si_value: 0,
        });
        let timer = Timer::new(ClockId::CLOCK_MONOTONIC, to_this_thread)?;
        Ok(Self { timer, rings: None })
    }

    /// Calls `act` with a flag that is set, and the vCPU of `run` kicked, within [`TURN`]: sooner
    /// if the timer was armed for a turn before. It is not disarmed after each, nor armed before
    /// each: in a virtual machine that is an exit, and costs more than the step. A ring that
    /// nobody waits for does nothing.
    ///
    /// `run` must stay mapped meanwhile: the caller holds the vCPU.
    ///
    /// # Errors
    /// If the timer cannot be armed; `act` has not been called.
    pub(super) fn take<T>(
        &mut self,
        run: *mut kvm_run,
        act: impl FnOnce(&AtomicBool) -> T,
    ) -> io::Result<T> {
        let over = AtomicBool::new(false);
        // Before the look at the clock: a ring from here on sets the flag.
        let _kickable = Kickable::for_a_turn(run, &over);
        let now = Instant::now();
        // Armed if there is any doubt: `now` was read before the timer was set, so what is still
        // to come by it cannot have rung yet. The other way round a turn could begin without a
        // timer, and a step that blocks would never end.
        if self.rings.is_none_or(|rings| rings <= now) {
            self.rings = None;
            let once = Expiration::OneShot(TimeSpec::from_duration(TURN));
            self.timer.set(once, TimerSetTimeFlags::empty())?;
            self.rings = Some(now + TURN);
        }
        Ok(act(&over))
    }
}

thread_local! {
    static ALARM: RefCell<Option<Alarm>> = const { RefCell::new(None) };
}

/// The timer that makes a vCPU's own thread leave the guest when a timer of its local APIC is due,
/// where the VMM has that: the signal is a kick, which stops nothing.
#[derive(Debug)]
struct Alarm {
    timer: Timer,
    /// For when, by guest time, and for how long that had stood still.
    set: Option<(GuestTime, Duration)>,
}

/// A guest may ask for every nanosecond, and gets an exit no oftener than this. KVM's own chips do the
/// same (`min_timer_period_us`, 200 µs).
pub(crate) const SHORTEST_WAIT: Duration = Duration::from_micros(50);

/// Gives the calling thread, a vCPU's own, an alarm.
pub(super) fn make_alarm() {
    let to_this_thread = SigEvent::new(SigevNotify::SigevThreadId {
        // The same handler: it sets `immediate_exit`.
        signal: TURN_OVER,
        thread_id: gettid().as_raw(),
        si_value: 0,
    });
    match Timer::new(ClockId::CLOCK_MONOTONIC, to_this_thread) {
        Ok(timer) => ALARM.set(Some(Alarm { timer, set: None })),
        Err(error) => tracing::error!(%error, "the guest's timers will be late"),
    }
}

/// Sets the calling thread's alarm, if it has one and it is set for another time. An alarm for earlier
/// than wanted is left alone if nothing is wanted: it is not worth a system call.
pub(crate) fn set_alarm(deadline: Option<GuestTime>, moment: &Moment) {
    let Some(deadline) = deadline else { return };
    ALARM.with_borrow_mut(|alarm| {
        let Some(alarm) = alarm else { return };
        let wanted = Some((deadline, moment.stood_still));
        if alarm.set == wanted {
            return;
        }
        let left = deadline.saturating_since(moment.now).max(SHORTEST_WAIT);
        let once = Expiration::OneShot(TimeSpec::from_duration(left));
        match alarm.timer.set(once, TimerSetTimeFlags::empty()) {
            Ok(()) => alarm.set = wanted,
            Err(error) => tracing::error!(%error, "a timer of the guest's will be late"),
        }
    });
}

/// A thread that can be kicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VcpuThread(pthread_t);

impl VcpuThread {
    /// The calling thread.
    pub(super) fn current() -> Self {
        // SAFETY: has no precondition.
        Self(unsafe { libc::pthread_self() })
    }

    /// Whether it is the calling one.
    pub(super) fn is_current(&self) -> bool {
        *self == Self::current()
    }

    /// Sends the signal. The thread must not have been joined.
    pub(super) fn kick(&self) {
        // SAFETY: the handle is that of a thread which has not ended: `Waker` forgets it before, and
        // signals it under the lock that this takes.
        let error = unsafe { libc::pthread_kill(self.0, KICK as c_int) };
        if error != 0 {
            let error = io::Error::from_raw_os_error(error);
            tracing::error!(%error, "a vCPU thread could not be signalled");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a turn lasts that nobody ends: only the timer sets the flag.
    fn wait_for_the_end(turn: &mut Turn, run: *mut kvm_run) -> Duration {
        let start = Instant::now();
        turn.take(run, |over| {
            while !over.load(Ordering::Acquire) {
                assert!(start.elapsed() < 40 * TURN, "a turn that never ends");
                std::hint::spin_loop();
            }
        })
        .unwrap();
        start.elapsed()
    }

    #[test]
    fn each_turn_ends_wherever_in_the_timers_time_it_begins() {
        install().unwrap();
        let mut run = Box::new(kvm_run::default());
        let run = &raw mut *run;
        let mut turn = Turn::new().unwrap();
        for late_us in 0..24 {
            // Arms the timer, and ends at once.
            turn.rings = None;
            turn.take(run, |_| ()).unwrap();
            let begin =
                Instant::now() + TURN - Duration::from_micros(12) + Duration::from_micros(late_us);
            while Instant::now() < begin {
                std::hint::spin_loop();
            }
            wait_for_the_end(&mut turn, run);
        }
    }

    #[test]
    fn the_timer_is_not_believed_armed_for_longer_than_it_is() {
        install().unwrap();
        let mut run = Box::new(kvm_run::default());
        let run = &raw mut *run;
        let mut turn = Turn::new().unwrap();
        for _ in 0..1000 {
            turn.rings = None;
            turn.take(run, |_| ()).unwrap();
            let Ok(Some(Expiration::OneShot(left))) = turn.timer.get() else {
                panic!("the timer is armed, once")
            };
            // Not before it rings, since some time has passed since `left` was read.
            let rings = Instant::now() + Duration::from(left);
            assert!(turn.rings.unwrap() <= rings);
        }
    }

    #[test]
    fn a_ring_kicks_the_vcpu_of_the_turn_and_of_no_other() {
        install().unwrap();
        let mut kicked = Box::new(kvm_run::default());
        let mut other = Box::new(kvm_run::default());
        let mut turn = Turn::new().unwrap();
        turn.take(&raw mut *other, |_| ()).unwrap();
        wait_for_the_end(&mut turn, &raw mut *kicked);
        assert_eq!((kicked.immediate_exit, other.immediate_exit), (1, 0));
    }
}

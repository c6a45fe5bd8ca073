//! The race-free kick: a signal makes a vCPU leave the guest, or not enter it.
//!
//! The thread that wants the stop sets the vCPU's stop flag, and then sends the thread that runs the vCPU
//! a signal. The handler sets `kvm_run.immediate_exit`. A signal that arrives *before* `KVM_RUN` therefore
//! makes it return at once; one that arrives during it ends it with `EINTR`. The vCPU thread clears
//! `immediate_exit` before it looks at the flag, so a kick is either seen in the flag or still
//! set when `KVM_RUN` is called.
//!
//! A [`StepSlice`](super::StepSlice) uses the same handler to bound the time for which another thread
//! than the vCPU's own runs it. There the signal may be a timer's, and the handler sets the flag too.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use libc::{c_int, c_void, pid_t, siginfo_t};
use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal};
use nix::sys::timer::Timer;
use nix::time::ClockId;
use nix::unistd::{getpid, gettid};
use vmm_sys_util::errno;
use vmm_sys_util::signal::register_signal_handler;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs. Constant-initialised and without a
    /// destructor: a signal handler may touch it.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
    /// The flag that says that this thread's step slice is over; null for a vCPU's own thread.
    static OVER: Cell<*const AtomicBool> = const { Cell::new(ptr::null()) };
    /// The thread's id, once it was asked for.
    static THREAD: Cell<pid_t> = const { Cell::new(0) };
}

extern "C" fn leave_guest(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let over = OVER.get();
    if !over.is_null() {
        // SAFETY: not null, so a `Kickable` of this thread lives that borrows the flag: its drop resets the
        // pointer, and its owners keep it in a local variable, which they do not forget.
        unsafe { &*over }.store(true, Ordering::Release);
    }
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: as above; it borrows the byte, too.
        unsafe { &*immediate_exit }.store(1, Ordering::SeqCst);
    }
}

/// Installs the handler for the whole process. Idempotent.
pub(crate) fn install() -> Result<(), errno::Error> {
    register_signal_handler(KICK_SIGNAL as c_int, leave_guest)?;
    register_signal_handler(TIMER_SIGNAL as c_int, leave_guest)
}

/// Lets the signals of kicks and timers reach the calling thread. A thread inherits its mask, at last
/// from what has started the process.
pub(super) fn unblock() -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(KICK_SIGNAL);
    signals.add(TIMER_SIGNAL);
    Ok(signals.thread_unblock()?)
}

/// While it lives, the vCPU that the calling thread runs can be kicked. It must be dropped, not forgotten: the
/// signal's handler uses what it borrows.
#[derive(Debug)]
pub(crate) struct Kickable<'a>(PhantomData<&'a AtomicU8>);

impl<'a> Kickable<'a> {
    /// For the vCPU's own thread.
    ///
    /// # Errors
    /// If the signals cannot be unblocked.
    pub(crate) fn enter(immediate_exit: &'a AtomicU8) -> io::Result<Self> {
        unblock()?;
        IMMEDIATE_EXIT.set(immediate_exit);
        Ok(Self(PhantomData))
    }

    /// For another thread, which has [unblocked](unblock) the signals, for as long as its step slice
    /// lasts: a signal sets `over`.
    pub(super) fn for_a_slice(immediate_exit: &'a AtomicU8, over: &'a AtomicBool) -> Self {
        OVER.set(over);
        IMMEDIATE_EXIT.set(immediate_exit);
        Self(PhantomData)
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
        OVER.set(ptr::null());
    }
}

/// The signal of a kick. Not a real-time signal: those fail with EAGAIN while the user's queue of
/// signals is full, and a kick must arrive.
const KICK_SIGNAL: Signal = Signal::SIGUSR1;

/// The signal of a thread's timers, which the same handler serves.
const TIMER_SIGNAL: Signal = Signal::SIGALRM;

/// A timer that kicks the calling thread.
pub(super) fn timer_of_this_thread() -> io::Result<Timer> {
    let to_this_thread = SigEvent::new(SigevNotify::SigevThreadId {
        signal: TIMER_SIGNAL,
        thread_id: gettid().as_raw(),
        si_value: 0,
    });
    Ok(Timer::new(ClockId::CLOCK_MONOTONIC, to_this_thread)?)
}

/// A thread that can be kicked, by its id: a thread that has ended is not found. (A `pthread_t` of one must
/// not be used.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VcpuThread(pid_t);

impl VcpuThread {
    /// The calling thread.
    pub(super) fn current() -> Self {
        if THREAD.get() == 0 {
            THREAD.set(gettid().as_raw());
        }
        Self(THREAD.get())
    }

    /// Returns `true` if it is the calling one.
    pub(super) fn is_current(&self) -> bool {
        *self == Self::current()
    }

    /// Sends the signal.
    pub(super) fn kick(&self) {
        // SAFETY: `tgkill` has no precondition, and takes numbers only.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                getpid().as_raw(),
                self.0,
                KICK_SIGNAL as c_int,
            )
        };
        if sent != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ESRCH) {
                tracing::debug!("a vCPU's thread has ended");
            } else {
                tracing::error!(%error, "a vCPU thread could not be signalled");
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// Runs `test` on a thread that inherits a mask in which the signals are blocked.
    pub(in crate::wake) fn with_blocked_signals(test: impl FnOnce() + Send + 'static) {
        let outer = thread::spawn(|| {
            let mut signals = SigSet::empty();
            signals.add(KICK_SIGNAL);
            signals.add(TIMER_SIGNAL);
            signals.thread_block().unwrap();
            thread::spawn(test).join().unwrap();
        });
        outer.join().unwrap();
    }

    #[test]
    fn a_kick_reaches_a_thread_that_was_started_with_the_signals_blocked() {
        install().unwrap();
        with_blocked_signals(|| {
            let byte = AtomicU8::new(0);
            let _kickable = Kickable::enter(&byte).unwrap();
            let this = VcpuThread::current();
            thread::spawn(move || this.kick());
            let begun = Instant::now();
            while byte.load(Ordering::SeqCst) == 0 {
                assert!(begun.elapsed() < Duration::from_secs(20), "a lost kick");
                thread::yield_now();
            }
        });
    }

    #[test]
    fn a_kick_of_a_thread_that_has_ended_does_nothing() {
        install().unwrap();
        thread::spawn(VcpuThread::current).join().unwrap().kick();
    }
}

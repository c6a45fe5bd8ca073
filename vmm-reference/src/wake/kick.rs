//! The race-free kick: a signal makes a vCPU leave the guest, or not enter it.
//!
//! The thread that wants the stop sets the vCPU's stop flag, and then sends the vCPU's thread a signal.
//! The handler sets `kvm_run.immediate_exit`. A signal that arrives *before* `KVM_RUN` therefore makes
//! it return at once; one that arrives during it ends it with `EINTR`. The vCPU thread clears
//! `immediate_exit` before it looks at the flag, so a kick is either seen in the flag or still
//! set when `KVM_RUN` is called.
//!
//! A [`StepSlice`](super::StepSlice) uses the same handler to bound the time for which another thread
//! than the vCPU's own runs it: there the signal is a timer's, and the handler sets the flag too.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::kvm_run;
use libc::{c_int, c_void, pthread_t, siginfo_t};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::Timer;
use nix::time::ClockId;
use nix::unistd::gettid;
use vmm_sys_util::errno;
use vmm_sys_util::signal::register_signal_handler;

thread_local! {
    /// The run structure of the vCPU that this thread runs. Constant-initialised and without a
    /// destructor: a signal handler may touch it.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
    /// The flag that says that this thread's step slice is over; null for a vCPU's own thread.
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
        // mapping; KVM and this thread read the byte, and no reference to it exists.
        let immediate_exit = unsafe { &raw mut (*run).immediate_exit };
        // SAFETY: as above; a byte cannot be torn.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

/// Installs the handler for the whole process. Idempotent.
pub(crate) fn install() -> Result<(), errno::Error> {
    register_signal_handler(KICK_SIGNAL as c_int, leave_guest)?;
    register_signal_handler(TIMER_SIGNAL as c_int, leave_guest)
}

/// While it lives, the calling thread's vCPU can be kicked.
#[derive(Debug)]
pub(crate) struct Kickable<'a>(PhantomData<&'a AtomicBool>);

impl<'a> Kickable<'a> {
    /// For the vCPU's own thread. `run` must stay mapped while the result lives: the caller holds
    /// the vCPU.
    pub(crate) fn enter(run: *mut kvm_run) -> Self {
        RUN.set(run);
        Self(PhantomData)
    }

    /// For another thread, for as long as its step slice lasts: the signal sets `over`.
    pub(super) fn for_a_slice(run: *mut kvm_run, over: &'a AtomicBool) -> Self {
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

/// A thread that can be kicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VcpuThread(pthread_t);

impl VcpuThread {
    /// The calling thread.
    pub(super) fn current() -> Self {
        // SAFETY: has no precondition.
        Self(unsafe { libc::pthread_self() })
    }

    /// Returns `true` if it is the calling one.
    pub(super) fn is_current(&self) -> bool {
        *self == Self::current()
    }

    /// Sends the signal. The thread must not have been joined.
    pub(super) fn kick(&self) {
        // SAFETY: the handle is that of a thread which has not ended: `Waker` forgets it before, and
        // signals it under the lock that this takes.
        let error = unsafe { libc::pthread_kill(self.0, KICK_SIGNAL as c_int) };
        if error != 0 {
            let error = io::Error::from_raw_os_error(error);
            tracing::error!(%error, "a vCPU thread could not be signalled");
        }
    }
}

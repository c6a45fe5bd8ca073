//! The race-free kick: how a vCPU that is in, or about to enter, the guest is made to leave it.
//!
//! Whoever wants the stop sets the vCPU's stop flag and then sends its thread a signal. The
//! handler sets `kvm_run.immediate_exit`, so that a signal which arrives *before* `KVM_RUN` makes
//! it return at once; one that arrives during it ends it with `EINTR`. The vCPU thread clears
//! `immediate_exit` before it looks at the flag, so a kick is either seen in the flag or still
//! set when `KVM_RUN` is called.

use std::cell::Cell;
use std::ptr;

use kvm_bindings::kvm_run;
use libc::{c_int, c_void, pthread_t, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// The run structure of the vCPU that this thread runs. Constant-initialised and without a
    /// destructor: a signal handler may touch it.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn leave_guest(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: `run` is not null, so a `Kickable` of this thread lives, and with it the
        // mapping; KVM and this thread read the byte, and nobody holds a reference to it.
        let immediate_exit = unsafe { &raw mut (*run).immediate_exit };
        // SAFETY: as above; a byte cannot be torn.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

/// Installs the handler for the whole process. Idempotent.
pub(super) fn install() -> Result<(), errno::Error> {
    register_signal_handler(SIGRTMIN(), leave_guest)
}

/// While it lives, the calling thread's vCPU can be kicked.
#[derive(Debug)]
pub(super) struct Kickable(());

impl Kickable {
    /// `run` must stay mapped while the answer lives: the caller holds the vCPU.
    pub(super) fn enter(run: *mut kvm_run) -> Self {
        RUN.set(run);
        Self(())
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}

/// A thread that can be kicked.
#[derive(Clone, Copy, Debug)]
pub(super) struct VcpuThread(pthread_t);

impl VcpuThread {
    /// The calling thread.
    pub(super) fn current() -> Self {
        // SAFETY: has no precondition.
        Self(unsafe { libc::pthread_self() })
    }

    /// Sends the signal. The thread must not have been joined.
    pub(super) fn kick(&self) {
        if let Err(error) = self.kill(SIGRTMIN()) {
            tracing::error!(%error, "a vCPU thread could not be signalled");
        }
    }
}

// SAFETY: the handle is that of a thread which the group joins only when it is dropped itself,
// after the last kick.
unsafe impl Killable for VcpuThread {
    fn pthread_handle(&self) -> pthread_t {
        self.0
    }
}

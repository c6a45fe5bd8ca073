//! A hard bound on one `KVM_RUN`, without a helper thread, a descriptor or a signal handler.
//!
//! A POSIX timer sends a signal to the calling thread. The thread keeps that signal blocked.
//! `KVM_SET_SIGNAL_MASK` (api.rst 4.20) unblocks this signal alone, and inside `KVM_RUN` only.
//! A signal before the run stays pending and ends the next `KVM_RUN` before it enters the guest. A
//! signal during the run ends it. A signal after the run is taken off the queue. There is no window
//! in which the signal is lost, and no handler for it ever runs.
#![expect(
    unsafe_code,
    reason = "timers, signal masks and one ioctl have no safe wrapper"
)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use kvm_bindings::{KVMIO, kvm_signal_mask};
use kvm_ioctls::VcpuFd;
use libc::{c_int, itimerspec, sigevent, sigset_t, timer_t, timespec};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::create_sigset;

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);

/// `struct kvm_signal_mask` with its flexible array: the kernel's signal set has 64 bits.
#[repr(C)]
struct SignalMask {
    len: u32,
    sigset: [u8; 8],
}

/// Ends a `KVM_RUN` of the calling thread after a given time.
///
/// While it exists, `SIGRTMAX` is blocked in the calling thread and reserved for it.
#[derive(Debug)]
pub(super) struct Deadline {
    timer: timer_t,
    signal: c_int,
    only_signal: sigset_t,
    old_mask: sigset_t,
    /// The signal goes to the thread that created the timer; therefore the value stays there.
    _not_send: PhantomData<*const ()>,
}

impl Deadline {
    /// Blocks the signal and creates the timer, disarmed.
    pub(super) fn new() -> Result<Self, errno::Error> {
        let signal = libc::SIGRTMAX();
        let only_signal = create_sigset(&[signal])?;

        let mut old_mask = only_signal;
        // SAFETY: both pointers are to initialised sets that live across the call.
        let failed = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const only_signal, &raw mut old_mask)
        };
        if failed != 0 {
            return Err(errno::Error::new(failed));
        }

        // SAFETY: sigevent is plain data for which all zeros is a valid value.
        let mut event: sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        // SAFETY: gettid has no preconditions.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: timer_t = ptr::null_mut();
        // SAFETY: both pointers are valid for the call, and the event names this live thread.
        let failed =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if failed != 0 {
            let error = errno::Error::last();
            // SAFETY: the set was filled by the call that blocked the signal.
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut())
            };
            return Err(error);
        }
        Ok(Self {
            timer,
            signal,
            only_signal,
            old_mask,
            _not_send: PhantomData,
        })
    }

    /// Lets the signal, and nothing else, interrupt `KVM_RUN` of this vCPU.
    pub(super) fn guard(&self, vcpu: &VcpuFd) -> Result<(), errno::Error> {
        // Bit n-1 is signal n.
        let unblocked = u32::try_from(self.signal - 1)
            .ok()
            .and_then(|bit| 1_u64.checked_shl(bit))
            .ok_or_else(|| errno::Error::new(libc::EINVAL))?;
        let mask = SignalMask {
            len: 8,
            sigset: (!unblocked).to_ne_bytes(),
        };
        // SAFETY: the argument is a kvm_signal_mask header followed by the 8 bytes it announces,
        // and lives across the call.
        let failed = unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) };
        if failed == 0 {
            Ok(())
        } else {
            Err(errno::Error::last())
        }
    }

    /// Starts the clock.
    pub(super) fn arm(&self, after: Duration) -> Result<(), errno::Error> {
        self.set(timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(after.subsec_nanos()),
        })
    }

    /// Stops the clock. Returns `true` if time had run out.
    pub(super) fn disarm(&self) -> bool {
        // Look first: since Linux 6.13 a signal that is still queued goes with its setting.
        let in_time = self.take_signal();
        // Disarming a timer that exists cannot fail.
        let _ = self.set(ZERO);
        // Before 6.13 it may have come in between, and must not end the next run.
        let late = self.take_signal();
        in_time || late
    }

    fn set(&self, value: timespec) -> Result<(), errno::Error> {
        let setting = itimerspec {
            it_interval: ZERO,
            it_value: value,
        };
        // SAFETY: the timer exists until drop; the setting lives across the call; the old setting
        // is not asked for.
        let failed =
            unsafe { libc::timer_settime(self.timer, 0, &raw const setting, ptr::null_mut()) };
        if failed == 0 {
            Ok(())
        } else {
            Err(errno::Error::last())
        }
    }

    /// Takes the signal off the queue if it is there.
    fn take_signal(&self) -> bool {
        // SAFETY: the set and the timeout live across the call; no siginfo is asked for.
        let taken = unsafe {
            libc::sigtimedwait(
                &raw const self.only_signal,
                ptr::null_mut(),
                &raw const ZERO,
            )
        };
        taken == self.signal
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // SAFETY: the timer was created by `new` and is deleted only here.
        unsafe { libc::timer_delete(self.timer) };
        // The default action of the signal ends the process: none may be left when it is
        // unblocked.
        while self.take_signal() {}
        // SAFETY: the set was filled by the call that blocked the signal.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.old_mask, ptr::null_mut())
        };
    }
}

static ZERO: timespec = timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

//! Signals that request the end of the process, as events of the loop.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::signal::create_sigset;

use crate::exit::{ExitEvent, ExitReason};
use crate::{left_behind, terminal};

/// The signals of a shell, a service manager and a closing terminal.
const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Turns SIGINT, SIGTERM and SIGHUP into requests to end the machine.
#[derive(Debug)]
pub struct Signals {
    descriptor: File,
    exit: ExitEvent,
}

impl Signals {
    /// Blocks the signals and reads them from a descriptor. Call it before any other thread is created:
    /// threads inherit the mask, and a thread without it would end the process at the signal.
    ///
    /// # Errors
    /// The system's error.
    pub fn take_over(exit: ExitEvent) -> io::Result<Self> {
        let set = create_sigset(&SIGNALS).map_err(io::Error::from)?;
        // SAFETY: `set` is an initialised signal set, and the old one is not asked for.
        let errno =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: `set` is an initialised signal set, and -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just created the descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            descriptor: File::from(fd),
            exit,
        })
    }
}

/// From now on these signals end the process at once: the machine has ended, and what is left to do is not worth
/// a second signal. Cleans up first. Only the calling thread takes them.
pub fn end_at_once() {
    if let Err(error) = handle(&SIGNALS, exit_now) {
        tracing::warn!(%error, "a second signal will not end this process at once");
    }
}

/// Handles `signals`, and lets them reach the calling thread.
fn handle(signals: &[libc::c_int], handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    let set = create_sigset(signals).map_err(io::Error::from)?;
    for &signal in signals {
        terminal::handle(signal, handler, 0)?;
    }
    // SAFETY: `set` is an initialised signal set, and the old one is not asked for.
    let errno =
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
    if errno == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(errno))
    }
}

extern "C" fn exit_now(signal: libc::c_int) {
    left_behind::clean_up();
    // SAFETY: `_exit` is async-signal-safe, and has no precondition.
    unsafe { libc::_exit(128 + signal) };
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.descriptor, EventSet::IN)) {
            tracing::error!(%error, "signals are not watched: only SIGKILL ends this process");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // struct signalfd_siginfo (signalfd(2)) starts with the signal's number.
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while self.descriptor.read_exact(&mut info).is_ok() {
            let number = info.first_chunk().copied().map_or(0, i32::from_ne_bytes);
            self.exit.request(ExitReason::Signal(number));
        }
    }
}

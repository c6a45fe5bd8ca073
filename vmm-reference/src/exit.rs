//! Why the machine ends: the first request counts, and every thread can read it.

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::exit_status::ExitStatus;

/// What a reset of the machine by its guest leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// The end of the process, as with QEMU's `-no-reboot`.
    #[default]
    Exit,
    /// The machine starts again in place, and runs on. The debugger's breakpoints stay set.
    Restart,
    /// It starts again, and waits for the debugger before its first instruction.
    Stop,
}

/// Why the machine ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest reset the machine (keyboard controller, port 0x92 or port 0xcf9), and that is to end it
    /// ([`OnReset::Exit`]).
    Reset,
    /// The guest wrote this byte to the debug-exit port.
    DebugExit(u8),
    /// The user ended it at the console (Ctrl-A x).
    ConsoleQuit,
    /// The debugger ended it (`kill`).
    DebuggerKill,
    /// This signal ended it.
    Signal(i32),
    /// The guest cannot go on. The text of `debug_stub::StopReason` says which vCPU, why and where.
    GuestFailed(String),
    /// A part of the VMM has failed, and the guest cannot go on without it.
    VmmFailed(String),
}

impl ExitReason {
    /// The exit status of a process that ends for this reason.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::PowerOff | Self::Reset | Self::ConsoleQuit | Self::DebuggerKill => {
                ExitStatus::Success
            }
            Self::DebugExit(value) => ExitStatus::DebugExit(*value),
            Self::Signal(number) => ExitStatus::Signal(*number),
            Self::GuestFailed(_) => ExitStatus::GuestFailed,
            Self::VmmFailed(_) => ExitStatus::VmmFailed,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::DebugExit(value) => {
                write!(f, "the guest wrote {value:#x} to the debug-exit port")
            }
            Self::ConsoleQuit => f.write_str("ended from the console"),
            Self::DebuggerKill => f.write_str("ended by the debugger"),
            Self::Signal(number) => write!(f, "ended by signal {number}"),
            Self::GuestFailed(text) | Self::VmmFailed(text) => f.write_str(text),
        }
    }
}

/// A request for the end of the machine: the only way to end it.
///
/// Clones share one state. The first request wins. Its reason stays, and the descriptor stays readable
/// from then on; therefore every loop that waits for it wakes.
#[derive(Clone, Debug)]
pub struct ExitEvent {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    reason: OnceLock<ExitReason>,
    event: EventFd,
}

impl ExitEvent {
    /// No request yet.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            inner: Arc::new(Inner {
                reason: OnceLock::new(),
                event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            }),
        })
    }

    /// Requests the end. Returns `true` if this is the first request: its reason counts.
    pub fn request(&self, reason: ExitReason) -> bool {
        let first = self.inner.reason.set(reason).is_ok();
        if first {
            // Only a counter at its maximum makes this fail, and then the descriptor is readable.
            if let Err(error) = self.inner.event.write(1) {
                tracing::warn!(%error, "the exit event could not be signalled");
            }
        }
        first
    }

    /// Why the machine is to end, if that was requested.
    #[must_use]
    pub fn reason(&self) -> Option<ExitReason> {
        self.inner.reason.get().cloned()
    }
}

impl AsRawFd for ExitEvent {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_wins_and_the_event_stays_readable() {
        let exit = ExitEvent::new().unwrap();
        let other = exit.clone();
        assert_eq!(exit.reason(), None);
        assert!(other.request(ExitReason::Reset));
        assert!(!exit.request(ExitReason::PowerOff));
        assert_eq!(exit.reason(), Some(ExitReason::Reset));
        assert_eq!(exit.inner.event.read().unwrap(), 1, "signalled once");
    }

    #[test]
    fn statuses_are_the_documented_ones() {
        for (reason, code) in [
            (ExitReason::PowerOff, 0),
            (ExitReason::Reset, 0),
            (ExitReason::ConsoleQuit, 0),
            (ExitReason::DebuggerKill, 0),
            (ExitReason::DebugExit(0), 1),
            (ExitReason::DebugExit(0x10), 0x21),
            (ExitReason::DebugExit(0xff), 0xff),
            (ExitReason::Signal(15), 143),
            (ExitReason::GuestFailed("triple fault".to_owned()), 4),
            (ExitReason::VmmFailed("a thread panicked".to_owned()), 6),
        ] {
            assert_eq!(reason.status().code(), code, "{reason:?}");
        }
    }
}

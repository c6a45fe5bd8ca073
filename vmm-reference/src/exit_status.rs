//! The exit status of the process.

use std::process::ExitCode;

/// The exit status of the process. The numbers are a contract: scripts and tests rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: the guest powered off or reset as asked, or a command did what it should.
    Success,
    /// 2: a wrong command line, or a kernel or initrd that cannot be used.
    Usage,
    /// 3: this host cannot (no /dev/kvm, no permission, an ability missing).
    HostCannot,
    /// 4: the guest failed (triple fault, emulation failure).
    GuestFailed,
    /// 6: a part of the VMM failed: a bug of this program.
    VmmFailed,
    /// (value << 1) | 1: the guest wrote `value` to the debug-exit port, as with QEMU's
    /// `isa-debug-exit`. Always odd, so it is never mistaken for the statuses 0, 2, 4 and 6.
    DebugExit(u8),
    /// 128 + number: a signal ended the process, as a shell reports it.
    Signal(i32),
}

impl ExitStatus {
    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Usage => 2,
            Self::HostCannot => 3,
            Self::GuestFailed => 4,
            Self::VmmFailed => 6,
            Self::DebugExit(value) => (value << 1) | 1,
            Self::Signal(number) => u8::try_from(number).unwrap_or(0).saturating_add(128),
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

//! Why a command failed, and the exit status that this means.

use std::error::Error as StdError;
use std::io;

use debug_stub::server::ListenError;
use thiserror::Error;
use vcpu_caps::kvm::{OpenError, VerifyError};
use vcpu_caps::{ProfileError, Refusal};

use crate::demo::DemoError;
use crate::event_loop::EventLoopError;
use crate::exit_status::ExitStatus;
use crate::loader::LoadError;
use crate::machine::MachineError;
use crate::open_files;
use crate::vcpu::GroupError;

/// The error and its causes on one line.
#[must_use]
pub fn with_causes(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel or the initrd cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The machine cannot be created.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// `/dev/kvm` cannot be used.
    #[error(transparent)]
    OpenKvm(#[from] OpenError),
    /// The host's abilities cannot be verified.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The profile contradicts itself.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The host lacks what is needed.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The VMM cannot listen on the debugger's address.
    #[error("--gdb")]
    Listen(#[from] ListenError),
    /// The vCPU threads.
    #[error(transparent)]
    Vcpus(#[from] GroupError),
    /// The event loop.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// The demo.
    #[error("the demo failed")]
    Demo(#[from] DemoError),
    /// The demo's guest failed; the text says where and why.
    #[error("the guest failed: {0}")]
    Guest(String),
    /// A descriptor, a signal or the terminal.
    #[error("{what}")]
    System {
        /// The operation that failed.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For a command that only prints. A reader that closes the pipe early, as `caps | head` does, is no failure.
    pub(crate) fn of_output(what: &'static str, written: io::Result<()>) -> Result<(), Self> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(source) => Err(Self::System { what, source }),
            Ok(()) => Ok(()),
        }
    }

    /// What else the user may do about it, beyond what the message says.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        open_files::advice(self)
    }

    /// The exit status of a process that ends for this error.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Machine(error) => error.status(),
            Self::Guest(_) => ExitStatus::GuestFailed,
            Self::Load(_) | Self::Listen(_) => ExitStatus::Usage,
            Self::OpenKvm(_)
            | Self::Verify(_)
            | Self::Profile(_)
            | Self::Refused(_)
            | Self::Vcpus(_)
            | Self::EventLoop(_)
            | Self::Demo(_)
            | Self::System { .. } => ExitStatus::HostCannot,
        }
    }
}

//! A wake pipe: how one thread wakes another.
//!
//! A byte through a socket pair, not a condition variable and not an eventfd, for a measured reason.
//! A step hands over to the vCPU's thread and back, and each waker goes to sleep right afterwards.
//! The kernel knows that of a socket (`sock_def_readable` wakes with `WF_SYNC`) and lets the woken
//! thread have the waker's processor, whose caches are warm. A futex or an eventfd wakes an idle
//! processor instead, which in a virtual machine is an IPI and a HLT exit. `cargo bench -p
//! vmm-reference --bench step` shows the difference.
#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_types,
    reason = "a socket pair of the process's own: the core has none"
)]

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

/// How a [`WakePipe`] is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// In [`WakePipe::wait`].
    Here,
    /// In an event loop that polls the pipe's descriptor. [`WakePipe::wait`] then does not block.
    InALoop,
}

/// One thread wakes it up, another waits for it. Several wake-ups may arrive as one.
#[derive(Debug)]
pub struct WakePipe {
    writer: UnixStream,
    reader: UnixStream,
}

impl WakePipe {
    /// A pipe that nothing has arrived in.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(waiting: Waiting) -> io::Result<Self> {
        let (writer, reader) = UnixStream::pair()?;
        // A full pipe has a wake-up in it already.
        writer.set_nonblocking(true)?;
        reader.set_nonblocking(waiting == Waiting::InALoop)?;
        Ok(Self { writer, reader })
    }

    /// Wakes the waiting thread, or the next one that waits.
    pub fn wake(&self) {
        loop {
            match (&self.writer).write(&[1]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return tracing::error!(%error, "a thread could not be woken up");
                }
                _ => return,
            }
        }
    }

    /// Takes the wake-ups so far; with [`Waiting::Here`] waits until there is one. May return without
    /// one, after a signal.
    pub fn wait(&self) {
        let mut taken = [0; 64];
        match (&self.reader).read(&mut taken) {
            Err(error)
                if !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) =>
            {
                tracing::error!(%error, "a thread cannot wait");
            }
            _ => {}
        }
    }
}

impl AsFd for WakePipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl AsRawFd for WakePipe {
    fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }
}

//! How one thread wakes another: a byte through a socket pair.
//!
//! Not a condition variable and not an eventfd, for a measured reason. A step hands over to the
//! vCPU's thread and back, and the thread that wakes the other goes to sleep right afterwards. For a
//! socket the kernel knows that (`sock_def_readable` wakes with `WF_SYNC`) and lets the woken thread
//! have the processor of the other, whose caches are warm. A futex or an eventfd wakes an idle
//! processor instead, which in a virtual machine is an IPI and a HLT exit. `cargo bench -p
//! vmm-reference --bench step` shows the difference.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// Who waits at a pipe's reading end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// A thread, in [`WakePipe::wait`].
    Here,
    /// An event loop, for [`WakePipe::as_raw_fd`] to become readable. [`WakePipe::wait`] then only
    /// empties the pipe.
    InALoop,
}

/// Written by one thread, waited for by another. Several writes may become one wake-up.
#[derive(Debug)]
pub(crate) struct WakePipe {
    writer: UnixStream,
    reader: UnixStream,
}

impl WakePipe {
    pub(crate) fn new(waiting: Waiting) -> io::Result<Self> {
        let (writer, reader) = UnixStream::pair()?;
        // While the socket is full there is a byte to wake for already.
        writer.set_nonblocking(true)?;
        reader.set_nonblocking(waiting == Waiting::InALoop)?;
        Ok(Self { writer, reader })
    }

    pub(crate) fn ring(&self) {
        match (&self.writer).write(&[1]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => tracing::error!(%error, "a thread could not be woken"),
        }
    }

    /// Empties the pipe; a thread that waits here first waits for a byte. May return early.
    pub(crate) fn wait(&self) {
        let mut bytes = [0; 64];
        match (&self.reader).read(&mut bytes) {
            Ok(_) => {}
            // A kick, or an empty pipe.
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => tracing::error!(%error, "a thread cannot wait"),
        }
    }

    /// As [`Self::wait`], for a pipe that an event loop could wait for too: until it is written or
    /// this much time has passed. May return early.
    pub(crate) fn wait_for(&self, time: Option<Duration>) {
        let mut poll = [PollFd::new(self.reader.as_fd(), PollFlags::POLLIN)];
        let time = time.map(TimeSpec::from_duration);
        match ppoll(&mut poll, time, None) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => self.wait(),
            Err(error) => tracing::error!(%error, "a thread cannot wait"),
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

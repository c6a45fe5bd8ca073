//! How one thread wakes another: a byte through a socket pair.
//!
//! Not a condition variable and not an eventfd, for a measured reason. A step hands over to the
//! vCPU's thread and back, and each waker goes to sleep right afterwards. The kernel knows that of
//! a socket (`sock_def_readable` wakes with `WF_SYNC`) and lets the woken thread have the waker's
//! processor, whose caches are warm; a futex or an eventfd wakes an idle processor instead, which
//! in a virtual machine is an IPI and a HLT exit. `cargo bench -p vmm-reference --bench step`
//! shows the difference.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// Who waits for a bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// A thread, in [`Bell::wait`].
    Here,
    /// An event loop, for [`Bell::as_raw_fd`] to become readable; [`Bell::wait`] then only
    /// silences the bell.
    InALoop,
}

/// Rung by one thread, waited for by another. Several rings may be one.
#[derive(Debug)]
pub(crate) struct Bell {
    rope: UnixStream,
    ear: UnixStream,
}

impl Bell {
    pub(crate) fn new(waiting: Waiting) -> io::Result<Self> {
        let (rope, ear) = UnixStream::pair()?;
        // Nobody listens while the socket is full, and then there is a ring to be heard already.
        rope.set_nonblocking(true)?;
        ear.set_nonblocking(waiting == Waiting::InALoop)?;
        Ok(Self { rope, ear })
    }

    pub(crate) fn ring(&self) {
        match (&self.rope).write(&[1]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => tracing::error!(%error, "a thread could not be woken"),
        }
    }

    /// Takes the rings so far; waits for one, if it is a thread that waits. May return without.
    pub(crate) fn wait(&self) {
        let mut rings = [0; 64];
        match (&self.ear).read(&mut rings) {
            Ok(_) => {}
            // A kick, or nothing to silence.
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => tracing::error!(%error, "a thread cannot wait"),
        }
    }

    /// As [`Self::wait`], for a bell that an event loop could wait for too: until it rings or so
    /// much time has passed. May return without.
    pub(crate) fn wait_for(&self, time: Option<Duration>) {
        let mut poll = [PollFd::new(self.ear.as_fd(), PollFlags::POLLIN)];
        let time = time.map(TimeSpec::from_duration);
        match ppoll(&mut poll, time, None) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => self.wait(),
            Err(error) => tracing::error!(%error, "a thread cannot wait"),
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ear.as_fd()
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.ear.as_raw_fd()
    }
}

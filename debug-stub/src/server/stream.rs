//! A client's connection, of either kind.
#![expect(
    clippy::disallowed_types,
    reason = "sockets are this module's subject; the core has none"
)]
#![expect(
    unsafe_code,
    reason = "std cannot ask a socket whether its peer has gone without reading"
)]

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Whether the peer has gone, or sends no more. What it sent before may still wait; a read
    /// does not block.
    pub(super) fn has_hung_up(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.as_raw_fd(),
            events: libc::POLLRDHUP,
            revents: 0,
        };
        // SAFETY: `poll` is one `pollfd`, which lives through the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
        let gone = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
        ready == 1 && poll.revents & gone != 0
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(data),
            Self::Unix(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

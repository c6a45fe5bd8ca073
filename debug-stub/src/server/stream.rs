//! A client's connection, of either kind.
#![expect(
    clippy::disallowed_types,
    reason = "sockets are this module's subject; the core has none"
)]
#![expect(
    unsafe_code,
    reason = "std cannot ask a socket whether its peer has gone without reading, and knows no \
              TCP_QUICKACK"
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
            Self::Tcp(stream) => {
                let count = stream.read(buffer)?;
                if !ends_a_packet(buffer.get(..count).unwrap_or_default()) {
                    acknowledge_now(stream);
                }
                Ok(count)
            }
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

/// Whether the sender is likely to wait for an answer: a packet's checksum is the last that has
/// come, or Ctrl-C or an acknowledgement. If not, there is no answer to carry TCP's own
/// acknowledgement.
fn ends_a_packet(data: &[u8]) -> bool {
    match data {
        [.., b'#', _, _] => true,
        [.., last] => matches!(last, 0x03 | b'+' | b'-') && !data.contains(&b'$'),
        [] => true,
    }
}

/// Has TCP acknowledge what has come at once, not after 40 ms (tcp(7), `TCP_QUICKACK`; it is no
/// lasting setting).
///
/// A client behind a serial line or a proxy sends a packet in pieces, and one that has not turned
/// Nagle's algorithm off (RFC 896) sends the second only after the first is acknowledged: each
/// packet would take these 40 ms longer.
fn acknowledge_now(stream: &TcpStream) {
    let on: libc::c_int = 1;
    // SAFETY: `on` is a `c_int`, as this option takes, and lives through the call, which is told
    // its size.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUICKACK,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default(),
        )
    };
    if set != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "TCP_QUICKACK is not to be had");
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn only_a_packet_in_pieces_has_nobody_to_answer_it() {
        for whole in [
            &b"$g#67"[..],
            b"+",
            b"-",
            b"\x03",
            b"+$vCont;c#a8",
            b"$X0,1:#$#41",
        ] {
            assert!(ends_a_packet(whole), "{whole:?}");
        }
        for part in [
            &b"$"[..],
            b"$mffff",
            b"$g#",
            b"$g#6",
            b"+$g",
            b"$qSupported:x+",
        ] {
            assert!(!ends_a_packet(part), "{part:?}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "what is tested is a delay")]
    fn a_sender_with_nagles_algorithm_does_not_wait_for_a_delayed_acknowledgement() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nodelay(false).unwrap();
        let mut stub = Stream::Tcp(listener.accept().unwrap().0);
        let mut packet = || {
            let begin = Instant::now();
            let mut buffer = [0; 64];
            // The second piece leaves only after the first is acknowledged.
            for piece in [&b"$mffffffff81000000,"[..], b"40#c8"] {
                client.write_all(piece).unwrap();
                let count = stub.read(&mut buffer).unwrap();
                assert_eq!(&buffer[..count], piece);
            }
            stub.write_all(b"$00#60").unwrap();
            client.read_exact(&mut buffer[..6]).unwrap();
            begin.elapsed()
        };
        // At first TCP acknowledges at once of its own accord; the fastest, since others run too.
        for _ in 0..40 {
            packet();
        }
        let fastest = (0..10).map(|_| packet()).min().unwrap();
        assert!(fastest < Duration::from_millis(20), "{fastest:?}");
    }
}

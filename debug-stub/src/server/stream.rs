//! A client's connection, and the wait for it.
#![expect(
    clippy::disallowed_types,
    reason = "sockets are this module's subject; the core has none"
)]
#![expect(
    unsafe_code,
    reason = "std cannot wait for several descriptors, cannot ask a socket whether its peer has gone \
              without reading, and knows no TCP_QUICKACK"
)]

use std::io::{self, Read, Write};
use std::net::TcpStream;
#[cfg(feature = "event-manager")]
use std::os::fd::RawFd;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

#[cfg(feature = "event-manager")]
use event_manager::EventSet;

#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Whether the peer has gone, or sends no more. What it sent before may still wait; a read does not
/// block.
pub(super) fn has_hung_up(stream: &impl AsFd) -> bool {
    let fd = stream.as_fd().as_raw_fd();
    let mut poll = [Readiness::of_client(fd, false, false)];
    poll_for(&mut poll, 0).is_ok() && poll.iter().any(Readiness::has_hung_up)
}

/// What a descriptor is waited for, and what has come of it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Readiness(libc::pollfd);

impl Readiness {
    pub(super) fn of_input(fd: i32) -> Self {
        Self(libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
    }

    /// A connection: `input` and `room` say what it is waited for, beside its end.
    pub(super) fn of_client(fd: i32, input: bool, room: bool) -> Self {
        let input = if input { libc::POLLIN } else { 0 };
        let room = if room { libc::POLLOUT } else { 0 };
        Self(libc::pollfd {
            fd,
            events: libc::POLLRDHUP | input | room,
            revents: 0,
        })
    }

    /// What epoll has reported of a connection.
    #[cfg(feature = "event-manager")]
    pub(super) fn of_event(fd: i32, events: EventSet) -> Self {
        let bits = [
            (EventSet::IN, libc::POLLIN),
            (EventSet::OUT, libc::POLLOUT),
            (EventSet::ERROR, libc::POLLERR),
            (EventSet::HANG_UP, libc::POLLHUP),
            (EventSet::READ_HANG_UP, libc::POLLRDHUP),
        ];
        let revents = bits
            .into_iter()
            .filter(|(event, _)| events.contains(*event))
            .fold(0, |all, (_, bit)| all | bit);
        Self(libc::pollfd {
            fd,
            events: 0,
            revents,
        })
    }

    /// What it is waited for, as epoll takes it.
    #[cfg(feature = "event-manager")]
    pub(super) fn interest(&self) -> EventSet {
        let mut interest = EventSet::READ_HANG_UP;
        interest.set(EventSet::IN, self.0.events & libc::POLLIN != 0);
        interest.set(EventSet::OUT, self.0.events & libc::POLLOUT != 0);
        interest
    }

    fn has(&self, events: libc::c_short) -> bool {
        self.0.revents & events != 0
    }

    /// Anything has come, an error included: it is met with the next call.
    pub(super) fn is_ready(&self) -> bool {
        self.0.revents != 0
    }

    pub(super) fn has_input(&self) -> bool {
        self.has(libc::POLLIN)
    }

    pub(super) fn has_room(&self) -> bool {
        self.has(libc::POLLOUT)
    }

    pub(super) fn has_hung_up(&self) -> bool {
        self.has(libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL)
    }
}

/// Waits until one of them is ready.
pub(super) fn wait(all: &mut [Readiness]) -> io::Result<()> {
    poll_for(all, -1)
}

fn poll_for(all: &mut [Readiness], milliseconds: libc::c_int) -> io::Result<()> {
    let count = libc::nfds_t::try_from(all.len()).map_err(io::Error::other)?;
    let first = all.as_mut_ptr().cast::<libc::pollfd>();
    // SAFETY: `Readiness` is a `pollfd` by `repr(transparent)`, and `all` has `count` of them.
    let ready = unsafe { libc::poll(first, count, milliseconds) };
    if ready < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A stream of the VMM's, made ready for a session.
#[derive(Debug)]
pub(super) struct Lent<S> {
    stream: S,
    is_tcp: bool,
}

impl<S: AsFd> Lent<S> {
    pub(super) fn new(stream: S) -> io::Result<Self> {
        let fd = stream.as_fd();
        set_nonblocking(fd)?;
        let is_tcp = is_tcp(fd);
        if is_tcp {
            // Replies are whole packets: nothing is gained by waiting for more.
            set_tcp_option(fd, libc::TCP_NODELAY);
        }
        Ok(Self { stream, is_tcp })
    }

    pub(super) fn is_tcp(&self) -> bool {
        self.is_tcp
    }
}

impl<S: Read + AsFd> Read for Lent<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        if self.is_tcp && !ends_a_packet(buffer.get(..count).unwrap_or_default()) {
            acknowledge_now(self.stream.as_fd());
        }
        Ok(count)
    }
}

impl<S: Write> Write for Lent<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.stream.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: AsFd> AsFd for Lent<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointer, and the descriptor is open.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFL takes no pointer, and the descriptor is open.
    let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn is_tcp(fd: BorrowedFd<'_>) -> bool {
    let mut domain: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&domain)).unwrap_or_default();
    // SAFETY: `domain` is a `c_int`, as this option writes, and lives through the call, which is told
    // its size.
    let got = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut domain).cast(),
            &raw mut length,
        )
    };
    got == 0 && matches!(domain, libc::AF_INET | libc::AF_INET6)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => {
                let count = stream.read(buffer)?;
                if !ends_a_packet(buffer.get(..count).unwrap_or_default()) {
                    acknowledge_now(stream.as_fd());
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
/// A client behind a serial line or a proxy sends a packet in pieces, and one that uses
/// Nagle's algorithm (RFC 896) sends the second only after the first is acknowledged: each
/// packet would take these 40 ms longer.
fn acknowledge_now(fd: BorrowedFd<'_>) {
    set_tcp_option(fd, libc::TCP_QUICKACK);
}

/// Switches an option on. Without it, replies come later.
fn set_tcp_option(fd: BorrowedFd<'_>, option: libc::c_int) {
    let on: libc::c_int = 1;
    // SAFETY: `on` is a `c_int`, as these options take, and lives through the call, which is told
    // its size.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default(),
        )
    };
    if set != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, option, "a TCP option cannot be set");
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

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

#[cfg(feature = "event-manager")]
impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn only_a_part_of_a_packet_gets_no_reply() {
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

//! Listening sockets that no other user of the host reaches by accident.
#![expect(
    unsafe_code,
    reason = "std cannot set the mode of a Unix socket before its path appears"
)]
#![expect(
    clippy::disallowed_types,
    reason = "sockets are this module's subject; the core has none"
)]

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::address::ListenAddress;
use super::stream::Stream;

/// Why nothing listens.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Every client that can connect controls the guest, and reads all its memory.
    #[error("{0} is not a loopback address: every client that can connect controls the guest")]
    NotLoopback(SocketAddr),
    /// Another process listens there.
    #[error("{0} is in use: another process listens there")]
    InUse(ListenAddress),
    /// There is a file at the path, and it is no socket.
    #[error("{} exists and is no socket: remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The path does not fit in a socket address.
    #[error("{} is too long for a socket: {limit} bytes at most", .path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// The system refuses.
    #[error("cannot listen at {address}")]
    Io {
        /// Where.
        address: ListenAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Device and inode of the socket file: what is unlinked at the end is ours.
        file: (u64, u64),
    },
}

/// A listening socket. A Unix socket's file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: ListenAddress,
}

impl Listener {
    /// Listens.
    ///
    /// A Unix socket has mode 0600 from the moment its path exists. A socket file without a
    /// listener, left by a process that was killed, is replaced.
    ///
    /// # Errors
    /// If the address is in use, or is not loopback and `allow_remote` is false.
    pub fn bind(address: &ListenAddress, allow_remote: bool) -> Result<Self, ListenError> {
        let io_error = |source| ListenError::Io {
            address: address.clone(),
            source,
        };
        let (socket, address) = match address {
            ListenAddress::Tcp(at) => {
                if !at.ip().is_loopback() {
                    if !allow_remote {
                        return Err(ListenError::NotLoopback(*at));
                    }
                    tracing::warn!(
                        address = %at,
                        "listening beyond this machine: every client that can connect controls the guest"
                    );
                }
                let listener = TcpListener::bind(at).map_err(|error| match error.kind() {
                    ErrorKind::AddrInUse => ListenError::InUse(address.clone()),
                    _ => io_error(error),
                })?;
                listener.set_nonblocking(true).map_err(io_error)?;
                let bound = listener.local_addr().map_err(io_error)?;
                (Socket::Tcp(listener), ListenAddress::Tcp(bound))
            }
            ListenAddress::Unix(path) => {
                let listener = match bind_unix(path) {
                    Err(BindError::InUse) => {
                        make_way(path)?;
                        bind_unix(path)
                    }
                    other => other,
                }
                .map_err(|error| match error {
                    BindError::InUse => ListenError::InUse(address.clone()),
                    BindError::TooLong(limit) => ListenError::PathTooLong {
                        path: path.clone(),
                        limit,
                    },
                    BindError::Io(error) => io_error(error),
                })?;
                listener.set_nonblocking(true).map_err(io_error)?;
                let file = fs::symlink_metadata(path).map_err(io_error)?;
                let file = (file.dev(), file.ino());
                (Socket::Unix { listener, file }, address.clone())
            }
        };
        Ok(Self { socket, address })
    }

    /// Where it listens; for TCP port 0, the port that was chosen.
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// A client that waits; [`ErrorKind::WouldBlock`] if there is none.
    pub(super) fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                // Replies are whole packets: nothing is gained by waiting for more.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Socket::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
        }
    }
}

/// Accepts clients, one wait at a time.
#[derive(Debug)]
pub(super) struct Acceptor {
    listener: Listener,
    /// A descriptor to give up when there is none left: a client that cannot be accepted would
    /// keep the listener readable, and the loop busy.
    spare: Option<File>,
}

impl Acceptor {
    pub(super) fn new(listener: Listener) -> Self {
        Self {
            listener,
            spare: spare(),
        }
    }

    pub(super) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// A client that waits.
    pub(super) fn accept(&mut self) -> Option<Stream> {
        match self.listener.accept() {
            Ok(stream) => Some(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => {
                tracing::warn!(%error, "a debugger could not connect");
                if self.spare.take().is_some() {
                    // Turns one client away, if descriptors were what was missing.
                    let _ = self.listener.accept();
                    self.spare = spare();
                }
                None
            }
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_raw_fd(),
            Socket::Unix { listener, .. } => listener.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let (Socket::Unix { file, .. }, ListenAddress::Unix(path)) = (&self.socket, &self.address)
        else {
            return;
        };
        let ours = fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == *file);
        if ours {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "the socket stays behind");
            }
        }
    }
}

/// Removes what is at the path if it is a socket without a listener.
fn make_way(path: &Path) -> Result<(), ListenError> {
    let address = || ListenAddress::Unix(path.to_owned());
    let io_error = |source| ListenError::Io {
        address: address(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        // It has gone since.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
        Ok(_) => {}
    }
    // A datagram socket cannot connect to a stream socket (EPROTOTYPE), but learns whether there
    // is one. That does not disturb a debugging session there.
    let probe = UnixDatagram::unbound().map_err(io_error)?;
    match probe.connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing a socket without a listener");
            fs::remove_file(path).map_err(io_error)
        }
        _ => Err(ListenError::InUse(address())),
    }
}

enum BindError {
    InUse,
    TooLong(usize),
    Io(io::Error),
}

impl From<io::Error> for BindError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::AddrInUse => Self::InUse,
            _ => Self::Io(error),
        }
    }
}

/// Binds and listens, with mode 0600 from the start: Linux takes the permissions of the file from
/// those of the socket (net/unix/af_unix.c, `unix_bind_bsd`), so they are set before there
/// is a path. The umask is not used: it is one for all threads.
fn bind_unix(path: &Path) -> Result<UnixListener, BindError> {
    // SAFETY: `socket` takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: `fd` was returned by `socket` just now, and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let socket = File::from(socket);
    socket.set_permissions(Permissions::from_mode(0o600))?;
    let socket = OwnedFd::from(socket);

    // SAFETY: all zeroes is a valid `sockaddr_un`.
    let mut name: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    name.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    let bytes = path.as_os_str().as_bytes();
    // The last byte stays 0.
    let limit = name.sun_path.len() - 1;
    if bytes.len() > limit {
        return Err(BindError::TooLong(limit));
    }
    if bytes.contains(&0) {
        return Err(BindError::Io(ErrorKind::InvalidInput.into()));
    }
    for (to, from) in name.sun_path.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let length =
        libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).map_err(io::Error::other)?;
    // SAFETY: `name` is a `sockaddr_un` that lives through the call, and `length` is its size.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&name).cast::<libc::sockaddr>(),
            length,
        )
    };
    if bound != 0 {
        return Err(io::Error::last_os_error().into());
    }
    // One client at a time; a few may wait to be turned away.
    // SAFETY: `listen` takes no pointer.
    let listening = unsafe { libc::listen(socket.as_raw_fd(), 8) };
    if listening != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests;

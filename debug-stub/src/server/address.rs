//! Where to listen.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Where to listen: `tcp:127.0.0.1:1234`, `tcp:[::1]:1234`, `tcp:localhost:1234` or
/// `unix:/path`. TCP port 0 is any free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket at a path.
    Unix(PathBuf),
}

/// No address to listen at.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Neither `tcp:` nor `unix:`.
    #[error("\"{0}\" is neither tcp:ADDRESS:PORT nor unix:PATH")]
    Scheme(String),
    /// What follows `tcp:` is no address and port.
    #[error("\"{0}\" is no address and port: write tcp:127.0.0.1:1234 or tcp:[::1]:1234")]
    Tcp(String),
    /// Nothing follows `unix:`.
    #[error("unix: needs a path")]
    EmptyPath,
}

impl ListenAddress {
    /// Returns `true` for a TCP port, to which every program of this host can connect.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(address) = text.strip_prefix("tcp:") {
            // No resolver: a name could resolve to anything.
            let local = address
                .strip_prefix("localhost:")
                .and_then(|port| port.parse().ok())
                .map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
            local
                .or_else(|| address.parse().ok())
                .map(Self::Tcp)
                .ok_or_else(|| AddressError::Tcp(address.to_owned()))
        } else if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(AddressError::EmptyPath);
            }
            Ok(Self::Unix(path.into()))
        } else {
            Err(AddressError::Scheme(text.to_owned()))
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

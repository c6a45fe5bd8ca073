//! A session behind a socket: on a plain thread, or on an event-manager loop.
//!
//! | what | feature | the VMM provides |
//! |---|---|---|
//! | [`serve`] | `server` | a thread and a connection |
//! | [`serve_forever`] | `server` | a thread and a [`Listener`] |
//! | [`serve_in_background`] | `server` | a [`Listener`] |
//! | [`GdbServer`] | `event-manager` | an `EventManager` and a [`Listener`] |
//!
//! All do the same. One thread, one wait, no polling: it wakes up for a client, for bytes, and
//! for the descriptor that says that all vCPUs have stopped. A reply is one `write`. When a
//! client has gone, at whichever byte, the guest is without a trace of it, and runs or stays stopped as
//! [`OnDisconnect`](crate::OnDisconnect) says.
//!
//! The VMM's side is [`Host`](crate::Host) and [`GuestControl`]. A VMM that uses
//! [`AllStop`](crate::run_control::AllStop) implements [`AllStopGuest`], three methods, and gets
//! [`GuestControl`] for it. A server may start before the guest has vCPUs.
//!
//! # System calls
//! Beside those of the host and of its [`GuestControl`]:
//! - [`Listener::bind`], in this order: `socket`, `fchmod`, `bind`, `listen`, `statx`, `ioctl(FIONBIO)`
//!   for a Unix socket (with `connect`, `unlink` to replace one that a dead process has left); `socket`,
//!   `setsockopt(SO_REUSEADDR)`, `bind`, `listen`, `getsockname`, `ioctl(FIONBIO)` for TCP.
//! - A connection that comes: `accept4`, `ioctl(FIONBIO)`, `setsockopt(TCP_NODELAY)` for TCP; in
//!   [`serve`] `fcntl(F_GETFL, F_SETFL)` and `getsockopt(SO_DOMAIN)` in place of the first two.
//! - The loop: `poll` ([`serve`], [`serve_forever`]) or `epoll_ctl` and `poll` ([`GdbServer`]; the
//!   `epoll_wait` is the event manager's); `recvfrom`, `sendto`; `setsockopt(TCP_QUICKACK)` for TCP;
//!   `close`, with `fcntl(F_GETFD)` in debug builds.
//! - `openat` of `/dev/null` once, for the descriptor that is given up when none is left.

mod address;
mod conversation;
#[cfg(feature = "event-manager")]
mod event_loop;
mod guest_control;
mod listener;
mod serve;
mod stream;

pub use address::{AddressError, ListenAddress};
#[cfg(feature = "event-manager")]
pub use event_loop::GdbServer;
#[cfg(feature = "threads")]
pub use guest_control::AllStopGuest;
pub use guest_control::GuestControl;
pub use listener::{ListenError, Listener};
pub use serve::{Background, serve, serve_forever, serve_in_background};

//! A GDB stub for virtual machines.
//!
//! A [`Session`] is one debugger's connection to one guest, without any I/O of its own: bytes and
//! [`Stop`]s go in, bytes and [`Action`]s come out. The VMM implements [`Host`], for registers and
//! memory while the guest is stopped.
//!
//! ```text
//!            bytes             packets              packets
//! client <-----------> filter <-------> session <------------> gdbstub
//!                                        |   ^  \                 |
//!                                        |   |   own parser       |
//!                     Action::Resume ... v   |          \         v
//!                                         VMM  <--------- Target traits
//!                                            Vec<Stop>
//! ```
//!
//! - The filter assembles packets, checks sums, acknowledges and sends again, and bounds what is
//!   kept.
//! - Each packet is parsed once: by gdbstub if it survives the packet, and by the session
//!   otherwise. Both parsers end in gdbstub's `Target` traits, which say what a request does.
//! - A software breakpoint is a breakpoint instruction at a guest-physical address. It is in memory
//!   only from an [`Action::Resume`] to the next [`Session::stopped`]: a stopped guest's memory is
//!   its own.
//! - One plan goes out and one list of stops comes back. A step costs one hand-over each way, and
//!   its reply carries the registers.
//! - Conditions and commands of breakpoints are evaluated here ([`agent`]). A hit that the client does not see
//!   is two run cycles: the vCPU's step off the breakpoint, and the client's own orders again.
//! - When a client has gone, at whichever byte, nothing is armed, masked or held. The guest is as it was before
//!   the client came ([`OnDisconnect`]): one [`Action::Release`] follows if it is to run. A guest that has
//!   ended or was killed is not released.
//! - Nothing outside [`x86_64`] and `kvm` knows an x86: [`Arch`] is the seam.
//!
//! What the host can do is a [`vcpu_caps::Plan`] in [`SessionConfig`].
//!
//! # Features
//! - `session` (default): [`Session`], over the gdbstub crate. Without it the crate has orders and
//!   stops, architectures, the stepper and run control.
//! - `kvm` (default): module `kvm`, a lent vCPU of `kvm-ioctls` that a stepper can debug. It does not
//!   need `session`.
//! - `threads` (default): `run_control::AllStop`, run control for a thread per vCPU. With `kvm` also
//!   `run_control::VcpuThreads`, a ready kick.
//! - `server` (default): module `server`, a session on a plain thread.
//! - `event-manager`: the same on an event-manager loop.
//! - `log`: events go to a `log` logger where no `tracing` subscriber is set.
//! - `simulated`: `x86_64::simulated`, a simulated vCPU for tests of a run loop.
//!
//! # Unsupported
//! Non-stop mode, reverse execution, host I/O, tracepoints. Read watchpoints (x86 has none). QEMU's NOTIMER.
#![deny(unsafe_code)]
#![cfg_attr(not(any(feature = "kvm", feature = "server")), forbid(unsafe_code))]
#![cfg_attr(
    not(feature = "session"),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "the docs name Session, which is not built"
    )
)]

mod address;
pub mod agent;
pub mod arch;
#[cfg(feature = "session")]
mod breakpoints;
#[cfg(feature = "session")]
mod config;
#[cfg(feature = "session")]
mod filter;
#[cfg(feature = "session")]
mod guest;
mod host;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
#[cfg(feature = "session")]
mod memory;
#[cfg(feature = "session")]
mod monitor;
mod order;
#[cfg(feature = "session")]
mod qemu;
#[cfg(feature = "session")]
mod request;
pub mod run_control;
#[cfg(all(feature = "server", target_os = "linux"))]
pub mod server;
#[cfg(feature = "session")]
mod session;
#[cfg(feature = "session")]
mod state;
#[cfg(feature = "session")]
mod stub;
pub mod x86_64;

pub use address::{GuestPhysAddr, GuestVirtAddr};
pub use arch::Arch;
#[cfg(feature = "session")]
pub use config::{Description, OnDisconnect, OnReset, SessionConfig};
pub use host::{Action, GuestMemory, GuestState, Host, Interrupts, ResetError};
pub use order::{Armed, ResumePlan, StepOrder, Stop, StopReason, VcpuOrder, WatchAccess};
#[cfg(feature = "session")]
pub use session::Session;
/// The crate that says what the host can do: its types are in this crate's interface.
pub use vcpu_caps;
pub use vcpu_caps::VcpuId;

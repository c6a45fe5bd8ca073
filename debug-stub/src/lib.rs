//! A GDB stub for virtual machines.
//!
//! A [`Session`] is one debugger's connection to one guest, without any I/O of its own: bytes and
//! [`Stop`]s go in, bytes and [`Action`]s come out. The VMM implements [`Host`], for registers and
//! memory while the guest is stopped.
//!
//! ```text
//!            bytes             packets            canonical packets
//! client <-----------> filter <-------> session <-------------------> gdbstub
//!                                        |   ^
//!                     Action::Resume ... v   | Vec<Stop>
//!                                         VMM
//! ```
//!
//! - The filter assembles packets, checks sums, acknowledges and sends again, and bounds what is
//!   kept. No packet of the client's reaches gdbstub's state machine, which some of them would
//!   end: the session parses each, answers most of what gdbstub cannot (memory, `x`, searches,
//!   `qqemu.*`), and spells the rest anew.
//! - A software breakpoint is an INT3 at a guest-physical address, in memory only from an
//!   [`Action::Resume`] to the [`Session::stopped`] that answers it. While the guest is stopped,
//!   its memory is its own.
//! - One plan goes out and one list of stops comes back: a step costs one hand-over each way, and
//!   its reply carries the registers.
//! - However a client goes, [`Action::Release`] follows, once: nothing armed, masked or held.
//!
//! What the host can do is a [`vcpu_caps::Plan`] in [`SessionConfig`].
//!
//! # Features
//! - `kvm`: module `kvm`, a vCPU of `kvm-ioctls` that a session can run.
//! - `threads`: `run_control::AllStop`, run control for a thread per vCPU. With `kvm` also
//!   `run_control::VcpuThreads`, a ready kick.
//! - `server`: module `server`, a session on an event-manager loop.
//!
//! # Unsupported
//! Non-stop mode, reverse execution, conditions evaluated here, host I/O, tracepoints. Read
//! watchpoints (x86 has none). QEMU's NOTIMER.
#![deny(unsafe_code)]
#![cfg_attr(not(any(feature = "kvm", feature = "server")), forbid(unsafe_code))]

mod address;
mod arch;
mod breakpoints;
mod config;
mod filter;
mod guest;
mod host;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
mod memory;
mod monitor;
mod order;
mod qemu;
mod request;
pub mod run_control;
#[cfg(all(feature = "server", target_os = "linux"))]
pub mod server;
mod session;
mod state;
mod stub;
pub mod x86_64;

pub use address::{GuestPhysAddr, GuestVirtAddr};
pub use config::SessionConfig;
pub use host::{Action, GuestMemory, Host, Interrupts};
pub use order::{Armed, ResumePlan, StepOrder, Stop, StopReason, VcpuOrder, WatchAccess};
pub use session::{GuestState, Session};
pub use vcpu_caps::VcpuId;

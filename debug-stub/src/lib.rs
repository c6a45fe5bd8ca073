//! A GDB stub for virtual machines (crate docs: to be written with the crate).
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
mod qemu;
mod request;
#[cfg(all(feature = "server", target_os = "linux"))]
pub mod server;
mod session;
mod state;
mod stub;
pub mod x86_64;

pub use address::{GuestPhysAddr, GuestVirtAddr};
pub use config::SessionConfig;
pub use host::{
    Action, Armed, Focus, GuestMemory, Host, Interrupts, ResumePlan, StepOrder, Stop, StopReason,
    VcpuOrder, WatchAccess,
};
pub use session::{GuestState, Session};
pub use vcpu_caps::VcpuId;

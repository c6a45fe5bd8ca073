//! A GDB stub for virtual machines (crate docs: to be written with the crate).
#![deny(unsafe_code)]
#![cfg_attr(not(any(feature = "kvm", feature = "server")), forbid(unsafe_code))]

mod address;
mod host;
pub mod x86_64;

pub use address::{GuestPhysAddr, GuestVirtAddr};
pub use host::{
    Action, Armed, Focus, GuestMemory, Host, Interrupts, ResumePlan, StepOrder, Stop, StopReason,
    VcpuOrder, WatchAccess,
};
pub use vcpu_caps::VcpuId;

//! What can this hypervisor do for a vCPU?
//!
//! (crate docs: to be written with the rest of the crate)
#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(not(feature = "kvm"), forbid(unsafe_code))]
extern crate alloc;
#[cfg(feature = "kvm")]
extern crate std;

mod applied;
mod capability;
pub mod cpuid;
mod evidence;
mod guest_debug;
mod holds;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
mod negotiate;
mod plan;
mod profile;
mod report;
mod table;
mod vcpu_control;
mod way;

pub use applied::{AppliedDebug, Rearm};
pub use capability::{Capability, UnknownCapability, VcpuId};
pub use evidence::{Evidence, Finding, Minimum};
pub use guest_debug::{
    DebugIntent, GuestDebug, GuestDebugFlags, HwBreakpoint, HwBreakpointError, HwBreakpointKind,
    Inject,
};
pub use holds::{HoldError, Holds, Owner};
pub use negotiate::negotiate;
pub use plan::{Entry, Met, PassedOver, Plan, Reason, Refusal};
pub use profile::{Profile, ProfileBuilder, ProfileError, Wish};
pub use report::{HostFacts, HostReport};
pub use vcpu_control::{ControlError, Placement, VcpuControl};
pub use way::{IrqchipMode, Way};

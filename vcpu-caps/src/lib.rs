//! What can this hypervisor do for a vCPU, really?
//!
//! A debugger that steps a guest without landing in its timer interrupt needs the hypervisor to
//! withhold interrupts. Others need hardware breakpoints, a kick that is never lost, or registers
//! without a system call. Whether a host has these abilities is a matter of evidence:
//!
//! 1. **Claimed.** The hypervisor says so. KVM accepts debug flags that it does not know, and some
//!    hosts report flags that do nothing.
//! 2. **Verified.** A guest of a few instructions was run in a throw-away VM, and it worked.
//! 3. **Refuted.** It was run, and it did not.
//!
//! The path through the crate:
//!
//! * a [`HostReport`] holds, for each [`Capability`], a [`Finding`]: the evidence and why. For KVM
//!   `kvm::probe` fills in claims and `kvm::verify` settles them;
//! * a [`Profile`] says what is required, preferred and forbidden, and which evidence will do;
//! * [`negotiate`] makes a [`Plan`] of the two, or a [`Refusal`] that says what to do. Plan and
//!   report print as tables;
//! * a [`VcpuControl`] switches the plan's abilities on one vCPU: `set` and `get` as in bhyve,
//!   counted holds by several owners, breakpoints and steps. It composes them into the one
//!   [`GuestDebug`] that KVM keeps per vCPU;
//! * `kvm::GuestDebugControl` sets it, and is the only place that does;
//! * [`cpuid`] adapts CPUID tables to the irqchip and the topology.
//!
//! Everything but the module `kvm` is `no_std`, does no I/O, and has no clock, lock or thread.
//!
//! # Features
//! * `kvm` (default): the adapter for `/dev/kvm`, on x86-64 Linux.
//! * `serde`: reports and plans as data.
//!
//! # Unsupported
//! * Hosts other than x86-64 Linux/KVM: the core builds everywhere, and somebody else's adapter
//!   can fill a [`HostReport`].
//! * Verification at CPL3 and in protected or long mode: the guests run in real mode. An ability
//!   may be weaker there; a KVM that emulates CPL0 can differ from itself at CPL3.
//! * Several packages, threads per core and NUMA nodes in [`cpuid`].
#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(not(feature = "kvm"), forbid(unsafe_code))]
extern crate alloc;
#[cfg(feature = "kvm")]
extern crate std;

mod capability;
pub mod cpuid;
mod debug_state;
mod evidence;
mod holds;
mod irqchip;
pub mod kvm;
mod mechanism;
mod negotiate;
mod plan;
mod profile;
mod report;
mod table;
mod vcpu_control;
pub mod x86;

pub use capability::{Capability, UnknownCapability, VcpuId};
pub use debug_state::{
    DebugIntent, DebugState, HwBreakpoint, HwBreakpointError, HwBreakpointKind, Inject,
};
pub use evidence::{Evidence, Finding, Minimum};
pub use holds::{HoldError, Holds, Owner};
pub use irqchip::IrqchipMode;
pub use kvm::x86::{GuestDebug, GuestDebugFlags};
pub use mechanism::{Basis, Candidate, Mechanism, MechanismSet, RestsOn};
pub use negotiate::negotiate;
pub use plan::{Entry, Plan, Provision, Reason, Refusal, Rejected};
pub use profile::{Profile, ProfileBuilder, ProfileError, Requirement};
pub use report::{HostFacts, HostReport};
pub use vcpu_control::{ControlError, VcpuControl};

/// The README's code compiles.
#[cfg(all(doctest, feature = "kvm"))]
#[doc = include_str!("../README.md")]
struct Readme;

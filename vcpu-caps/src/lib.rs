//! What a hypervisor can do for a vCPU: claimed, verified or refuted; negotiated into a plan;
//! switched per vCPU.
//!
//! A debugger that steps a guest without landing in its timer interrupt needs a hypervisor that
//! withholds interrupts. Other users need hardware breakpoints, a kick that cannot be lost, or
//! registers without a system call. The evidence for such an ability is one of these:
//!
//! 1. **Claimed.** The hypervisor reports it. KVM accepts debug flags that it does not know, and
//!    some hosts report flags that do nothing.
//! 2. **Verified.** A guest of a few instructions ran in a throw-away VM, and it worked.
//! 3. **Refuted.** The guest ran, and it did not work.
//!
//! The path through the crate:
//!
//! * a [`HostReport`] holds a [`Finding`] for each [`Capability`]: the evidence and the reason. For
//!   KVM, `kvm::probe` records claims and `kvm::verify` settles them;
//! * a [`Profile`] says which abilities are required, preferred and forbidden, with which evidence
//!   and by which mechanisms;
//! * [`negotiate`] makes a [`Plan`] from the two, or a [`Refusal`] that says what to do. Report and
//!   plan print as tables;
//! * a [`VcpuControl`] switches the plan's abilities on one vCPU: `set` and `get` as in bhyve,
//!   counted holds by several owners, steps and debug registers. It composes them into the one
//!   [`GuestDebug`] that KVM keeps per vCPU, and `kvm::apply_pending` sets that;
//! * [`cpuid`] adapts CPUID tables to the irqchip and the topology.
//!
//! # Rules
//! * **Owners are counted here and nowhere else.** Several owners (a debugger, a snapshot, a test)
//!   hold `mask_hwintr` of a vCPU at once. It is lifted when the last hold is dropped. A debugger
//!   takes and drops holds. For intr-controller the mask is a parameter of the decision, as time
//!   is: the VMM passes [`VcpuControl::withhold_interrupts`] to it, and it counts nothing.
//! * **One composer.** [`DebugState::compose`] is the only function that makes a debug state, and
//!   [`VcpuControl`] the only owner of one. Verification uses the same function.
//! * **No breakpoint table.** The debugger has it. It says here which breakpoints go into debug
//!   registers ([`VcpuControl::set_hardware`]), and switches `bpt_exit` on while it has breakpoint
//!   instructions in guest memory.
//!
//! # Other hypervisors and architectures
//! * A [`Mechanism`] provides an ability. KVM's are in [`kvm::mechanisms`]. An embedder with
//!   another hypervisor makes its own, with its own obstacles, and offers them in a
//!   [`MechanismSet`]: see `examples/other_hypervisor.rs`.
//! * Another debug state than KVM's on x86 implements [`DebugState`]. [`VcpuControl`] works with
//!   any. [`Capability::is_x86`] says which abilities exist on x86 only. The debug registers of x86
//!   are in [`x86`], and `kvm_guest_debug` in [`kvm::x86`]; no other module knows their number.
//!
//! The core is `no_std`, does no I/O, and has no clock, lock or thread. Only the adapter in
//! [`kvm`] does I/O.
//!
//! # Features
//! * `kvm` (default): the adapter for `/dev/kvm`, on x86-64 Linux.
//! * `serde`: reports and plans as data.
//!
//! # Unsupported
//! * Adapters for hosts other than x86-64 Linux/KVM. The core builds everywhere, and another
//!   adapter can fill a [`HostReport`].
//! * Verification at CPL3 and in protected or long mode: the guests run in real mode. An ability
//!   may be weaker there. A KVM that emulates CPL0 can behave differently at CPL3.
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

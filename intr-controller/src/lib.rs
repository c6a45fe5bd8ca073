#![doc = include_str!("../README.md")]
//!
//! # The rules of the mask
//!
//! The mask ([`Readiness::masked`]) is a parameter of each decision, as time is of a timer. It
//! withholds the *injection* of SMI, NMI, ExtINT and fixed interrupts. It does not affect:
//!
//! - **arrival**: events are accepted and merged exactly as without it. What is delivered afterwards
//!   is therefore what the architecture would have kept.
//! - **exceptions**: the guest's own instructions raise them, and a guest without them behaves
//!   differently.
//! - **re-injection** of an event that the host took before the mask went on
//!   ([`Readiness::event_in_flight`]). It has left the pending set; withholding it would lose it.
//! - **wake-up**: an event that ends HLT ends it under the mask too ([`Decision::Wake`]), and stays
//!   pending.
//! - **saved state**: it does not contain the mask. A restored guest is masked if the VMM that
//!   restored it says so.
//!
//! KVM_GUESTDBG_BLOCKIRQ has the same reach, so a guest sees the same in every mode. bhyve's
//! VM_CAP_MASK_HWINTR reaches further: its injection function returns at the top (vmx.c,
//! `vmx_inject_interrupts`), so exceptions and interrupted deliveries wait too.
#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(not(feature = "kvm"), forbid(unsafe_code))]
extern crate alloc;
// `arbitrary`'s derive names it, and so do the macros of vmm-sys-util.
#[cfg(any(
    feature = "arbitrary",
    all(feature = "kvm", target_os = "linux", target_arch = "x86_64")
))]
extern crate std;

pub mod chipset;
mod clock;
mod counters;
mod decision;
mod destinations;
mod event;
pub mod ioapic;
mod ipi;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
mod lapic;
mod lapics;
mod message;
mod mode;
#[cfg(any(test, feature = "arbitrary"))]
#[doc(hidden)]
pub mod models;
mod msi;
mod pending;
pub mod pic;
pub mod pit;
mod policy;
mod readiness;
pub mod routing;
mod state;
mod time;
mod vector_set;
mod x86;

pub use clock::{
    ClockReading, ClockRun, ClockTotals, DebugTime, GuestClock, StepTime, UnknownStepTime,
};
pub use counters::Counters;
pub use decision::{BlockReasons, Blocked, Decision, Windows, decide};
pub use destinations::{
    Destination, Destinations, DestinationsError, LogicalModel, NoSuchVcpu, VcpuIndex,
};
pub use event::{Event, EventClass, IllegalVector, Vector};
pub use ipi::{Ipi, IpiTargets};
pub use lapic::{
    Acceptance, Acknowledge, ApicMode, DeadlineWatch, Effect, GeneralProtection, Lapic,
    LapicConfig, LapicRestoreError, LapicState, LocalSource, LvtEntry, Refusal, Startup, TimerMode,
};
pub use lapics::Lapics;
pub use message::{DeliveryMode, DestinationMode, Gsi, InterruptMessage, MsiMessage, TriggerMode};
pub use mode::{IrqchipMode, UnknownIrqchipMode};
pub use msi::{DestinationFormat, MsiError};
pub use pending::{Arrival, NMI_LIMIT, Pending};
pub use policy::{Delivery, InjectionPolicy, NotPending};
pub use readiness::{Activity, ProcessorPriority, Readiness};
pub use state::{PolicyState, RestoreError};
pub use time::{GuestTime, TscClock};
pub use vector_set::VectorSet;

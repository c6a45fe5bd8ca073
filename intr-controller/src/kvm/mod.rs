//! KVM's own interrupt chips ([`IrqchipMode::Kernel`](crate::IrqchipMode::Kernel)).
//!
//! In this mode KVM accepts, prioritises and injects; only KVM can withhold an interrupt. The mask is
//! therefore KVM's, KVM_GUESTDBG_BLOCKIRQ, and this module has two halves that do not touch it:
//!
//! - [`KernelIrqchip`] makes the chips and signals interrupts to them;
//! - [`observe`] reads what is pending in KVM's chips and says why it does not enter, with the same
//!   [`decide`](crate::decide) that injects in the other modes.
//!
//! `KVM_SET_GUEST_DEBUG` replaces a vCPU's whole debug state, so only the VMM's one composer of
//! `struct kvm_guest_debug` may call it. Keep the mask set for as long as the guest is stopped
//! rather than toggle it per step: since Linux 5.16 each change inhibits or allows APICv for the
//! whole VM.

mod calls;
mod chip;
mod clocks;
mod convert;
mod lapic;
mod observe;
mod pic;
mod routes;
mod split;
mod startup;
mod user;

pub use calls::CallError;
pub use chip::{
    ChipStateError, CreateError, IrqfdError, KernelIrqchip, LineError, MsiError, MsiOutcome,
};
pub use clocks::{FrozenClocks, KvmClocks, TscControl};
pub use convert::{
    FromKvmError, IoApicFromKvm, KvmLapic, LapicRegisters, ToKvmError, X2ApicFormat,
};
pub use lapic::passes_ext_int;
pub use observe::{Observation, ObserveError, observe, observe_split};
pub use split::{SplitEntry, SplitIrqchip, SplitVcpu};
pub use startup::apply_startup;
pub use user::{UserEntry, UserVcpu, UserVcpuRestoreError, UserVcpuState};

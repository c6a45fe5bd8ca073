//! KVM: its mechanisms, its debug state on x86, and the adapter for `/dev/kvm`.
//!
//! [`mechanisms`] and the composer of `kvm_guest_debug` are plain data and part of the core. With
//! the feature `kvm`, on x86-64 Linux, the module also opens, probes and verifies a host
//! (`open`, `probe`, `verify`), and sets a vCPU's debug state (`apply_pending`).

#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
mod control;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
mod cpuid;
mod mechanisms;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
mod open;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
mod plan;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
mod probe;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
mod verify;
pub mod x86;

#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub use control::{SetGuestDebugError, apply_pending, set_guest_debug};
pub use mechanisms::mechanisms;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub use open::{OpenError, open, open_at};
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub use plan::{PlanError, debugger_plan};
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub use probe::probe;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub use verify::{VerifyError, verify, verify_some};

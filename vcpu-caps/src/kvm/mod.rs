//! KVM on x86-64 Linux: open, probe and verify a host, and set a vCPU's debug state.
//!
//! ```no_run
//! use vcpu_caps::{Profile, kvm, negotiate};
//!
//! let kvm = kvm::open()?;
//! let mut report = kvm::probe(&kvm);
//! kvm::verify(&kvm, &mut report)?;
//! println!("{report}");
//! let plan = negotiate(&report, &Profile::debugger())?;
//! println!("{plan}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod control;
mod cpuid;
mod open;
mod probe;
mod verify;

pub use control::{GuestDebugControl, SetGuestDebugError, apply_pending, set_guest_debug};
pub use open::{OpenError, open, open_at};
pub use probe::probe;
pub use verify::{VerifyError, verify, verify_some};

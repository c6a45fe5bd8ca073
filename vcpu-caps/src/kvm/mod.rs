//! KVM on Linux: probe and verify a host, and set a vCPU's debug state.

mod control;
mod cpuid;
mod open;
mod probe;
mod verify;

pub use control::{GuestDebugControl, SetGuestDebugError, apply_pending};
pub use open::{OpenError, open, open_at};
pub use probe::probe;
pub use verify::{VerifyError, verify};

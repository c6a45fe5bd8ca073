//! KVM on Linux: probe and verify a host, and set a vCPU's debug state.

mod control;

pub use control::{GuestDebugControl, SetGuestDebugError};

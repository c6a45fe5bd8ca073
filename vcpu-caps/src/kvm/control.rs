//! `KVM_SET_GUEST_DEBUG`. No other file calls it.

use kvm_bindings::{kvm_guest_debug, kvm_guest_debug_arch};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use super::x86::{GuestDebug, GuestDebugFlags};
use crate::vcpu_control::VcpuControl;

impl From<&GuestDebug> for kvm_guest_debug {
    fn from(debug: &GuestDebug) -> Self {
        Self {
            control: debug.control.bits(),
            pad: 0,
            arch: kvm_guest_debug_arch {
                debugreg: debug.debugreg,
            },
        }
    }
}

/// KVM refused a `KVM_SET_GUEST_DEBUG`. The state that was in force before still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SetGuestDebugError {
    /// `EBUSY`: an exception is already pending in the vCPU, so none can be injected. Run the
    /// vCPU once (with `immediate_exit` if the guest must not move), then inject; or give the
    /// injection up ([`VcpuControl::cancel_injection`]).
    #[error(
        "KVM_SET_GUEST_DEBUG({control:?}): an exception is already pending in the vCPU; run the \
         vCPU before another is injected"
    )]
    ExceptionPending {
        /// The flags asked for.
        control: GuestDebugFlags,
    },
    /// Any other refusal. `EINVAL` means a guest whose state is protected from the host.
    #[error("KVM_SET_GUEST_DEBUG({control:?}) failed: {source}")]
    Refused {
        /// The flags asked for.
        control: GuestDebugFlags,
        /// The error from KVM.
        source: kvm_ioctls::Error,
    },
}

/// Sets the debug state that `control` has pending. Returns `true` if KVM was called.
///
/// KVM replaces the whole state at each call, so no other component may call
/// `VcpuFd::set_guest_debug` on this vCPU. If one did, call [`VcpuControl::forget_applied`] first.
///
/// Order matters. KVM captures the linear RIP at the call: write the registers first, and call
/// this last.
///
/// # Errors
/// If KVM refuses. The previous state stays in force, and what was asked for stays pending.
pub fn apply_pending(control: &mut VcpuControl, vcpu: &VcpuFd) -> Result<bool, SetGuestDebugError> {
    match control.pending() {
        None => Ok(false),
        Some(wanted) => {
            set_guest_debug(vcpu, &wanted)?;
            control.applied(&wanted);
            Ok(true)
        }
    }
}

/// `KVM_SET_GUEST_DEBUG` itself, for an adapter that keeps what is in force by other means: a
/// [`VcpuControl`] whose [`pending`](VcpuControl::pending) it sets and reports with
/// [`applied`](VcpuControl::applied).
///
/// # Errors
/// If KVM refuses. It does so before it changes anything (x86.c,
/// `kvm_arch_vcpu_ioctl_set_guest_debug`).
pub fn set_guest_debug(vcpu: &VcpuFd, wanted: &GuestDebug) -> Result<(), SetGuestDebugError> {
    vcpu.set_guest_debug(&wanted.into()).map_err(|source| {
        let control = wanted.control;
        let injects = control.intersects(GuestDebugFlags::INJECT);
        if injects && source.errno() == libc::EBUSY {
            SetGuestDebugError::ExceptionPending { control }
        } else {
            SetGuestDebugError::Refused { control, source }
        }
    })
}

//! The one place that calls `KVM_SET_GUEST_DEBUG`.

use kvm_bindings::{kvm_guest_debug, kvm_guest_debug_arch};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::applied::{AppliedDebug, Rearm};
use crate::guest_debug::{GuestDebug, GuestDebugFlags};
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
    /// `EBUSY`: an exception already waits to enter the guest, so none can be injected. Run the
    /// vCPU once (with `immediate_exit` if the guest must not move), then inject.
    #[error(
        "KVM_SET_GUEST_DEBUG({control:?}): an exception already waits in the guest; run the vCPU \
         before another is injected"
    )]
    ExceptionPending {
        /// What was asked for.
        control: GuestDebugFlags,
    },
    /// Any other refusal. `EINVAL` means a guest whose state is protected from the host.
    #[error("KVM_SET_GUEST_DEBUG({control:?}) failed: {source}")]
    Refused {
        /// What was asked for.
        control: GuestDebugFlags,
        /// What KVM answered.
        source: kvm_ioctls::Error,
    },
}

/// Sets one vCPU's debug state, and remembers it.
///
/// One per vCPU, owned by whoever owns the [`VcpuFd`]. KVM replaces the whole state at each call:
/// nobody else may call `VcpuFd::set_guest_debug` on that vCPU.
///
/// Order matters. KVM captures the linear RIP at the call, so write the registers first and call
/// [`apply`](Self::apply) last, with [`Rearm::Always`], before each single step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDebugControl {
    state: AppliedDebug,
}

impl GuestDebugControl {
    /// For a vCPU that was just created.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: AppliedDebug::fresh(),
        }
    }

    /// For a vCPU that somebody else may have debugged: the first [`apply`](Self::apply) always
    /// calls KVM.
    #[must_use]
    pub const fn adopt() -> Self {
        Self {
            state: AppliedDebug::unknown(),
        }
    }

    /// Puts `wanted` in force. Answers whether KVM had to be called.
    ///
    /// # Errors
    /// If KVM refuses; the previous state then stays in force and is remembered as such.
    pub fn apply(
        &mut self,
        vcpu: &VcpuFd,
        wanted: &GuestDebug,
        rearm: Rearm,
    ) -> Result<bool, SetGuestDebugError> {
        if !self.state.needs(wanted, rearm) {
            return Ok(false);
        }
        set_guest_debug(vcpu, wanted)?;
        self.state.record(wanted);
        Ok(true)
    }

    /// The lasting state in force, if it is known.
    #[must_use]
    pub const fn current(&self) -> Option<&GuestDebug> {
        self.state.current()
    }
}

/// Puts in force what `control` has pending. Answers whether KVM had to be called.
///
/// [`VcpuControl`] remembers the state itself: use either this or a [`GuestDebugControl`] for one
/// vCPU, not both.
///
/// # Errors
/// If KVM refuses; it is pending still, and the previous state stays in force.
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

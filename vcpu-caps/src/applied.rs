//! What a vCPU's debug state was last set to.

use crate::guest_debug::{GuestDebug, GuestDebugFlags};

/// Whether an unchanged debug state has to be set again.
///
/// KVM captures the linear RIP when `KVM_SET_GUEST_DEBUG` arms a single step, and hides or adds
/// `RFLAGS.TF` by comparing with it (`__kvm_set_rflags`, arch/x86/kvm/x86.c). A step after the
/// registers were written, or after an instruction that KVM emulated, is therefore armed again
/// although nothing in the request has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rearm {
    /// Set the state only if it differs from what is in force.
    #[default]
    IfChanged,
    /// Set it in any case: a step is about to begin.
    Always,
}

/// Remembers the debug state that a vCPU is in, so that one which is already in force is not set
/// again: the call costs about as much as a short run of the guest, and toggling
/// [`GuestDebugFlags::BLOCKIRQ`] kicks every vCPU of the VM (Linux 5.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedDebug {
    /// `None`: nobody knows.
    lasting: Option<GuestDebug>,
}

impl AppliedDebug {
    /// The state of a vCPU that was just created: nothing is set.
    #[must_use]
    pub const fn fresh() -> Self {
        Self {
            lasting: Some(GuestDebug::OFF),
        }
    }

    /// The state of a vCPU whose debug state somebody else may have set: the first request is
    /// always made.
    #[must_use]
    pub const fn unknown() -> Self {
        Self { lasting: None }
    }

    /// The lasting state in force, if it is known.
    #[must_use]
    pub const fn current(&self) -> Option<&GuestDebug> {
        self.lasting.as_ref()
    }

    /// Whether `wanted` has to be set: it differs from what is in force, it injects something
    /// (each injection is an event of its own), or `rearm` asks for it.
    #[must_use]
    pub fn needs(&self, wanted: &GuestDebug, rearm: Rearm) -> bool {
        rearm == Rearm::Always
            || wanted.control.intersects(GuestDebugFlags::INJECT)
            || self.lasting != Some(wanted.lasting())
    }

    /// Remembers that `set` has been set. Call it only when the hypervisor has accepted it: a
    /// refused `KVM_SET_GUEST_DEBUG` leaves the old state in force.
    pub fn record(&mut self, set: &GuestDebug) {
        self.lasting = Some(set.lasting());
    }
}

impl Default for AppliedDebug {
    fn default() -> Self {
        Self::fresh()
    }
}

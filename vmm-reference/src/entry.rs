//! What a vCPU's thread and the interrupt chips exchange before an entry.

/// What a vCPU is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entering {
    /// `mask_hwintr` is on, by any mechanism.
    pub masked: bool,
    /// One instruction is to be run, not the guest.
    pub stepping: bool,
    /// The guest may notice that its clocks are wrong.
    pub reads_clock: bool,
    /// KVM must still complete an access: the registers must not be replaced.
    pub incomplete: bool,
}

/// Whether a vCPU may enter the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may.
    Enter,
    /// There is nothing to run: wait, then ask again.
    Wait,
    /// KVM must first complete an access: complete it, then ask again.
    Complete,
    /// The registers have been replaced (INIT, start-up IPI): ask again.
    Restarted,
    /// It cannot go on, and why.
    Failed(String),
}

/// Returns `true` if the vCPU must stop, and again until it has stopped.
pub(crate) type MustStop<'a> = dyn Fn() -> bool + 'a;

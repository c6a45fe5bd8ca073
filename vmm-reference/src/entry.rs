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
    /// The event that the step is prepared for, if any (`Stepper::prepared_event`). `None`: any may enter.
    pub prepared: Option<Option<u8>>,
}

/// The NMI's vector (SDM 3A table 6-1).
pub(crate) const NMI: u8 = 2;

impl Entering {
    /// Returns `true` if a maskable interrupt of this vector may be handed over now. It may behind an NMI, which
    /// enters first.
    #[must_use]
    pub fn admits(&self, vector: u8) -> bool {
        match self.prepared {
            None => true,
            Some(prepared) => prepared.is_some_and(|event| event == vector || event == NMI),
        }
    }

    /// Returns `true` if an NMI may be handed over now. It may behind an interrupt: which enters first is KVM's
    /// choice.
    #[must_use]
    pub fn admits_nmi(&self) -> bool {
        self.prepared != Some(None)
    }
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
    /// An event is to enter that the step is not prepared for: prepare the step again.
    PrepareAgain,
    /// It cannot go on, and why.
    Failed(String),
}

/// Returns `true` if the vCPU must stop, and again until it has stopped.
pub(crate) type MustStop<'a> = dyn Fn() -> bool + 'a;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_admits_the_interrupt_that_it_is_prepared_for() {
        let entering = |prepared| Entering {
            masked: false,
            stepping: true,
            reads_clock: false,
            incomplete: false,
            prepared,
        };
        for (prepared, interrupt, nmi) in [
            (None, true, true),
            (Some(None), false, false),
            (Some(Some(0x41)), true, true),
            (Some(Some(0x42)), false, true),
            (Some(Some(NMI)), true, true),
        ] {
            let entering = entering(prepared);
            assert_eq!(entering.admits(0x41), interrupt, "{prepared:?}");
            assert_eq!(entering.admits_nmi(), nmi, "{prepared:?}");
        }
    }
}

//! KVM's mechanisms and their obstacles.

use crate::capability::Capability;
use crate::irqchip::IrqchipMode;
use crate::mechanism::{Candidate, Mechanism, MechanismSet};

/// The mechanisms of a VMM on KVM.
#[must_use]
pub fn mechanisms() -> MechanismSet {
    // KVM_INTERRUPT without a local APIC in the kernel marks the interrupt as injected at once,
    // and BLOCKIRQ withholds only what is not injected yet (x86.c, `kvm_check_and_inject_events`).
    let blockirq = Candidate::new(Mechanism::HOST).except(
        IrqchipMode::User,
        "KVM_GUESTDBG_BLOCKIRQ does not hold back KVM_INTERRUPT",
    );
    MechanismSet::host_only()
        .with_ladder(
            Capability::MaskHwintr,
            [
                blockirq,
                user_irqchip_only(
                    Mechanism::INJECTION_POLICY,
                    "needs the user irqchip: KVM's own local APIC injects",
                ),
            ],
        )
        .offer(Capability::BptExit, Mechanism::HARDWARE_SLOT)
        .offer(Capability::TscOffset, Mechanism::TSC_WRITE)
        // With a local APIC in the kernel, HLT waits inside KVM_RUN.
        .with_ladder(
            Capability::HaltExit,
            [user_irqchip_only(
                Mechanism::HOST,
                "needs the user irqchip: KVM's own local APIC waits in HLT",
            )],
        )
}

fn user_irqchip_only(mechanism: Mechanism, reason: &'static str) -> Candidate {
    Candidate::new(mechanism)
        .except(IrqchipMode::Kernel, reason)
        .except(IrqchipMode::Split, reason)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const KERNEL: IrqchipMode = IrqchipMode::Kernel;
    const SPLIT: IrqchipMode = IrqchipMode::Split;
    const USER: IrqchipMode = IrqchipMode::User;

    /// The mechanisms without an obstacle, the best first.
    fn usable(capability: Capability, irqchip: IrqchipMode) -> Vec<Mechanism> {
        let set = mechanisms();
        let ladder = set.ladder(capability).iter();
        ladder
            .filter(|candidate| candidate.obstacle(irqchip).is_none())
            .map(|candidate| candidate.mechanism().clone())
            .collect()
    }

    #[test]
    fn the_component_that_injects_is_the_one_that_masks() {
        for irqchip in [KERNEL, SPLIT] {
            assert_eq!(usable(Capability::MaskHwintr, irqchip), [Mechanism::HOST]);
        }
        assert_eq!(
            usable(Capability::MaskHwintr, USER),
            [Mechanism::INJECTION_POLICY]
        );
    }

    #[test]
    fn hlt_leaves_the_guest_only_without_a_local_apic_in_the_kernel() {
        for irqchip in [KERNEL, SPLIT] {
            assert_eq!(usable(Capability::HaltExit, irqchip), []);
        }
        assert_eq!(usable(Capability::HaltExit, USER), [Mechanism::HOST]);
    }

    #[test]
    fn the_counter_is_written_only_if_it_has_no_offset() {
        assert_eq!(
            usable(Capability::TscOffset, KERNEL),
            [Mechanism::HOST, Mechanism::TSC_WRITE]
        );
    }

    #[test]
    fn a_breakpoint_takes_a_debug_register_only_if_int3_does_not_leave_the_guest() {
        for irqchip in [KERNEL, SPLIT, USER] {
            assert_eq!(
                usable(Capability::BptExit, irqchip),
                [Mechanism::HOST, Mechanism::HARDWARE_SLOT]
            );
            assert_eq!(usable(Capability::SingleStep, irqchip), [Mechanism::HOST]);
        }
    }
}

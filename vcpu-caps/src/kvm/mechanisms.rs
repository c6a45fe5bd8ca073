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

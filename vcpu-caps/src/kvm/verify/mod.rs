//! What KVM really does: micro-guests of a few instructions in throw-away VMs.
//!
//! Each case runs a fresh vCPU in real mode (there is least to set up) and watches it. What it
//! shows holds for CPL0, where the code that is worth stepping without interrupts runs.
//!
//! A case that shows the opposite of a claim refutes it. A case from which nothing can be learnt,
//! because time ran out or its own control failed, leaves the claim as it is and says so.

mod deadline;
mod debug;
mod host;
mod interrupts;
mod machine;

use std::borrow::Cow;

use kvm_ioctls::Kvm;
use thiserror::Error;

use crate::capability::Capability;
use crate::evidence::{Evidence, Finding};
use crate::report::HostReport;
use crate::way::IrqchipMode;
use machine::{Clock, Machine, Stop};

/// What a case has to say: what was seen to work, or what ended it.
type Seen = Result<Cow<'static, str>, Stop>;
/// A case: what it shows, and how.
type Case = (Capability, fn(&mut Machine<'_>) -> Seen);

/// No throw-away VM can be made, so nothing can be verified. The report stays as it was, except
/// for what had been seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("cannot make a VM to verify the host with: {call}: {source}")]
pub struct VerifyError {
    call: &'static str,
    source: kvm_ioctls::Error,
}

/// Verifies or refutes what `report` has as claimed, by running it.
///
/// It takes some tens of milliseconds, most of them to make and free two VMs. Guests run for five
/// seconds at the most, all together, even if every one of them hangs.
///
/// It blocks `SIGRTMAX` in the calling thread meanwhile, and uses it. No thread, descriptor,
/// signal handler or VM is left behind.
///
/// # Errors
/// If no VM can be made.
pub fn verify(kvm: &Kvm, report: &mut HostReport) -> Result<(), VerifyError> {
    verify_some(kvm, report, Capability::ALL)
}

/// As [`verify`], but for these abilities only: for somebody who needs few of them, and at once.
///
/// # Errors
/// If no VM can be made.
pub fn verify_some(
    kvm: &Kvm,
    report: &mut HostReport,
    capabilities: &[Capability],
) -> Result<(), VerifyError> {
    let clock = Clock::start()?;
    let wanted = |(capability, _): &&Case| capabilities.contains(capability);
    let plain = debug::CASES.iter().chain(host::CASES);
    let mut plain = plain.filter(wanted).peekable();
    if plain.peek().is_some() {
        let mut machine = Machine::new(kvm, IrqchipMode::User, &clock)?;
        for case in plain {
            examine(case, &mut machine, report);
        }
    }

    // The mask is the same code in KVM for both; a split irqchip is made and freed ten times
    // faster (KVM's own PIC and IOAPIC wait for readers to go).
    let irqchip = if report.evidence(Capability::SplitIrqchip) == Evidence::Absent {
        IrqchipMode::Kernel
    } else {
        IrqchipMode::Split
    };
    let split = (irqchip == IrqchipMode::Split).then_some(&interrupts::SPLIT);
    let with_apics = split.into_iter().chain([&interrupts::MASK]);
    let mut with_apics = with_apics.filter(wanted).peekable();
    if with_apics.peek().is_some() {
        let mut machine = Machine::new(kvm, irqchip, &clock)?;
        for case in with_apics {
            examine(case, &mut machine, report);
        }
    }
    Ok(())
}

fn examine((capability, case): &Case, machine: &mut Machine<'_>, report: &mut HostReport) {
    if report.evidence(*capability) == Evidence::Absent {
        return;
    }
    let finding = match case(machine) {
        Ok(seen) => Finding::verified(seen),
        Err(Stop::Fails(why)) => Finding::refuted(why),
        Err(Stop::Unclear(why)) => Finding::claimed(why),
    };
    report.record(*capability, finding);
}

#[cfg(test)]
mod tests;

//! Verification: micro-guests of a few instructions in throw-away VMs.
//!
//! Each case runs a fresh vCPU in real mode, which needs the least set-up. The result holds for
//! CPL0: there runs the code that is worth stepping without interrupts. One case steps user code in
//! 64-bit mode: a software KVM may run that natively, and the kernel by emulation.
//!
//! A case that shows the opposite of a claim refutes it. A case can also show nothing, because
//! time ran out or its control failed. It is then tried again, with more time. If it shows nothing
//! again, the claim stays as it is, and the finding says so. An interrupt that has not come refutes a
//! claim only if it does not come in another try either.

mod deadline;
mod debug;
mod host;
mod interrupts;
mod machine;

use std::borrow::Cow;
use std::vec::Vec;

use kvm_ioctls::Kvm;
use thiserror::Error;

use crate::capability::Capability;
use crate::evidence::{Evidence, Finding};
use crate::irqchip::IrqchipMode;
use crate::report::HostReport;
use machine::{Clock, Machine, Stop};

/// The result of a case: what worked, or what ended it.
type Seen = Result<Cow<'static, str>, Stop>;
/// A case: the ability that it verifies, and how.
type Case = (Capability, fn(&mut Machine<'_>) -> Seen);

/// No throw-away VM can be made, so no ability can be verified. The report keeps what was
/// verified before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("cannot make a VM to verify the host with: {call}: {source}")]
pub struct VerifyError {
    call: &'static str,
    source: kvm_ioctls::Error,
}

/// Verifies or refutes the claims in `report`: runs a guest for each.
///
/// It takes some tens of milliseconds, most of them to make and free two VMs. All guests together
/// run for five seconds at most, even if every one of them hangs.
///
/// While it runs, it blocks and uses `SIGRTMAX` in the calling thread. It leaves no thread,
/// descriptor, signal handler or VM behind.
///
/// # Errors
/// If no VM can be made.
pub fn verify(kvm: &Kvm, report: &mut HostReport) -> Result<(), VerifyError> {
    verify_some(kvm, report, Capability::ALL)
}

/// As [`verify`], but for these abilities only, for a caller that needs few of them at once.
///
/// # Errors
/// If no VM can be made.
pub fn verify_some(
    kvm: &Kvm,
    report: &mut HostReport,
    capabilities: &[Capability],
) -> Result<(), VerifyError> {
    let mut clock = Clock::start()?;
    let mut unclear = pass(kvm, report, &clock, |case| capabilities.contains(&case.0))?;
    // On a loaded host a guest may show nothing for lack of time. That refutes nothing: it is given more.
    for _ in 0..RETRIES {
        if unclear.is_empty() || !clock.allow_more() {
            break;
        }
        let again = unclear;
        unclear = pass(kvm, report, &clock, |case| again.contains(&case.0))?;
    }
    Ok(())
}

/// How often such a case is tried again.
const RETRIES: usize = 3;

/// Runs the cases that are wanted. Returns the abilities for which another try may show more.
fn pass(
    kvm: &Kvm,
    report: &mut HostReport,
    clock: &Clock,
    wanted: impl Fn(&&Case) -> bool,
) -> Result<Vec<Capability>, VerifyError> {
    let mut unclear = Vec::new();
    let plain = debug::CASES.iter().chain(host::CASES);
    let mut plain = plain.filter(&wanted).peekable();
    if plain.peek().is_some() {
        let mut machine = Machine::new(kvm, IrqchipMode::User, clock)?;
        for case in plain {
            unclear.extend(examine(case, &mut machine, report));
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
    let mut with_apics = with_apics.filter(&wanted).peekable();
    if with_apics.peek().is_some() {
        let mut machine = Machine::new(kvm, irqchip, clock)?;
        for case in with_apics {
            unclear.extend(examine(case, &mut machine, report));
        }
    }
    Ok(unclear)
}

/// Runs a case and records what it has shown. Returns its ability if another try may show more.
fn examine(
    (capability, case): &Case,
    machine: &mut Machine<'_>,
    report: &mut HostReport,
) -> Option<Capability> {
    if report.evidence(*capability) == Evidence::Absent {
        return None;
    }
    let mut unclear = None;
    let finding = match case(machine) {
        Ok(seen) => Finding::verified(seen),
        Err(Stop::Fails(why)) => Finding::refuted(why),
        Err(Stop::Late(why)) => {
            unclear = Some(*capability);
            Finding::refuted(why)
        }
        Err(Stop::Unclear(why)) => {
            unclear = Some(*capability);
            Finding::claimed(why)
        }
    };
    report.record(*capability, finding);
    unclear
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::string::String;
    use std::time::Duration;

    use super::machine::{Clock, Exit, Machine, Stop};
    use super::{debug, interrupts};
    use crate::capability::Capability;
    use crate::debug_state::DebugIntent;
    use crate::evidence::Evidence;
    use crate::irqchip::IrqchipMode;
    use crate::kvm::{open, probe};

    /// With interrupts enabled: Bochs lets nothing end a guest that spins without.
    const SPIN: &[u8] = &[
        0xfb, //       1000: sti
        0xeb, 0xfe, // 1001: jmp 0x1001
    ];
    const HALT: &[u8] = &[
        0xf4, //       1000: hlt
        0xeb, 0xfd, // 1001: jmp 0x1000
    ];

    fn clock(one_run: Duration) -> Clock {
        Clock::with_limits(one_run, Duration::from_secs(60)).unwrap()
    }

    /// The mask of blocked signals and the pending signals of this thread.
    fn signals() -> [String; 2] {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        ["SigBlk:", "SigPnd:"].map(|name| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.unwrap().into()
        })
    }

    #[test]
    fn a_guest_that_spins_is_ended() {
        let kvm = open().unwrap();
        let clock = clock(Duration::from_millis(20));
        let mut machine = Machine::new(&kvm, IrqchipMode::User, &clock).unwrap();
        let mut guest = machine.vcpu(SPIN, None).unwrap();
        // Also the second time: nothing is left over from the first.
        for _ in 0..2 {
            let stop = guest.run().unwrap_err();
            assert!(
                matches!(&stop, Stop::Unclear(why) if why.contains("did not return")),
                "{stop:?}"
            );
        }
    }

    #[test]
    fn a_guest_that_halts_forever_is_ended() {
        let kvm = open().unwrap();
        let clock = clock(Duration::from_millis(20));
        // With a local APIC in the kernel KVM_RUN sleeps in HLT.
        let mut machine = Machine::new(&kvm, IrqchipMode::Split, &clock).unwrap();
        let mut guest = machine.vcpu(HALT, None).unwrap();
        let stop = guest.run().unwrap_err();
        assert!(matches!(stop, Stop::Unclear(_)), "{stop:?}");
    }

    #[test]
    fn a_deadline_that_passes_before_the_run_is_not_lost() {
        let kvm = open().unwrap();
        let clock = clock(Duration::from_nanos(1));
        let mut machine = Machine::new(&kvm, IrqchipMode::User, &clock).unwrap();
        let mut guest = machine.vcpu(SPIN, None).unwrap();
        for _ in 0..200 {
            assert!(matches!(guest.run(), Err(Stop::Unclear(_))));
        }
    }

    #[test]
    fn a_deadline_that_comes_late_does_not_end_the_next_run() {
        let kvm = open().unwrap();
        // About as long as one run takes: the deadline passes before, in and after runs.
        for micros in 1..60 {
            let clock = clock(Duration::from_micros(micros));
            let mut machine = Machine::new(&kvm, IrqchipMode::User, &clock).unwrap();
            let mut guest = machine.vcpu(HALT, None).unwrap();
            for _ in 0..20 {
                match guest.run() {
                    Ok(Exit::Hlt) | Err(Stop::Unclear(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn the_time_for_all_of_it_is_bounded() {
        let kvm = open().unwrap();
        let clock = Clock::with_limits(Duration::from_secs(60), Duration::ZERO).unwrap();
        let mut machine = Machine::new(&kvm, IrqchipMode::User, &clock).unwrap();
        let mut report = probe(&kvm);
        for (capability, case) in debug::CASES {
            let unclear = super::examine(&(*capability, *case), &mut machine, &mut report);
            assert_eq!(unclear, Some(*capability));
        }
        // A host that was given no time is neither verified nor refuted.
        let finding = report.finding(Capability::SingleStep);
        assert_eq!(finding.evidence, Evidence::Claimed);
        assert!(finding.detail.contains("no time was left"), "{finding}");
    }

    /// As on a host that does not run the guest in time: three times, and then it does.
    #[test]
    fn a_case_that_shows_nothing_for_lack_of_time_is_given_more() {
        let kvm = open().unwrap();
        let mut report = probe(&kvm);
        let mut clock =
            Clock::with_limits(Duration::from_nanos(1), Duration::from_secs(60)).unwrap();
        let mask = |case: &&super::Case| case.0 == Capability::MaskHwintr;
        let unclear = super::pass(&kvm, &mut report, &clock, mask).unwrap();
        assert_eq!(unclear, [Capability::MaskHwintr]);
        assert_eq!(report.evidence(Capability::MaskHwintr), Evidence::Claimed);
        let mut tries = 0;
        while report.evidence(Capability::MaskHwintr) == Evidence::Claimed {
            assert!(clock.allow_more());
            super::pass(&kvm, &mut report, &clock, mask).unwrap();
            tries += 1;
            assert!(tries < 40);
        }
    }

    #[test]
    fn what_comes_late_is_refuted_until_another_try_shows_it() {
        let kvm = open().unwrap();
        let clock = clock(Duration::from_secs(1));
        let mut machine = Machine::new(&kvm, IrqchipMode::User, &clock).unwrap();
        let mut report = probe(&kvm);
        let ability = Capability::SingleStep;
        let late = (ability, |_: &mut Machine<'_>| {
            Err(Stop::Late("0 of 1".into()))
        });
        assert_eq!(
            super::examine(&(late.0, late.1), &mut machine, &mut report),
            Some(ability)
        );
        assert_eq!(report.evidence(ability), Evidence::Refuted);
        let there = (ability, |_: &mut Machine<'_>| Ok("1 of 1".into()));
        assert_eq!(
            super::examine(&(there.0, there.1), &mut machine, &mut report),
            None
        );
        assert_eq!(report.evidence(ability), Evidence::Verified);
    }

    #[test]
    fn no_more_time_is_allowed_once_all_of_it_is_over() {
        let mut clock = Clock::with_limits(Duration::from_secs(1), Duration::ZERO).unwrap();
        assert!(!clock.allow_more());
    }

    #[test]
    fn the_threads_signals_are_left_as_they_were() {
        let before = signals();
        let kvm = open().unwrap();
        {
            let clock = clock(Duration::from_millis(1));
            assert_ne!(signals(), before);
            let mut machine = Machine::new(&kvm, IrqchipMode::User, &clock).unwrap();
            let mut guest = machine.vcpu(SPIN, None).unwrap();
            assert!(guest.run().is_err());
        }
        assert_eq!(signals(), before);
    }

    /// The case of the mask fails where there is no mask.
    #[test]
    fn steps_without_the_mask_refute_it() {
        let kvm = open().unwrap();
        let clock = Clock::start().unwrap();
        let mut machine = Machine::new(&kvm, IrqchipMode::Split, &clock).unwrap();
        let stop = interrupts::nothing_comes_in(&mut machine, &DebugIntent::default()).unwrap_err();
        assert!(matches!(stop, Stop::Fails(_)), "{stop:?}");
    }

    #[test]
    fn an_ability_that_the_host_does_not_claim_is_not_examined() {
        let kvm = open().unwrap();
        let clock = Clock::start().unwrap();
        let mut machine = Machine::new(&kvm, IrqchipMode::User, &clock).unwrap();
        let mut report = crate::HostReport::default();
        for case in debug::CASES {
            super::examine(case, &mut machine, &mut report);
        }
        assert_eq!(report, crate::HostReport::default());
    }
}

//! Any report and any profile.
//!
//! Input: a byte for the irqchip; for each ability a byte for the evidence and one for the
//! requirement (with its highest bit, the profile has a ladder: a byte for the length and one for
//! each mechanism follow); a byte for the evidence of the embedder's own mechanism; last, the
//! ability whose evidence improves, and the new evidence.
#![no_main]

use fuzz::Choices;
use libfuzzer_sys::fuzz_target;
use vcpu_caps::{
    Basis, Candidate, Capability, Evidence, Finding, HostFacts, HostReport, IrqchipMode, Mechanism,
    MechanismSet, Minimum, Plan, Profile, ProfileError, Refusal, Requirement, RestsOn, kvm,
    negotiate,
};

const MINIMA: [Minimum; 2] = [Minimum::Claimed, Minimum::Verified];
const IRQCHIPS: [IrqchipMode; 3] = [IrqchipMode::Kernel, IrqchipMode::Split, IrqchipMode::User];
/// An embedder's own mechanism for the mask, in addition to KVM's.
const SHADOW: Mechanism = Mechanism::new("interrupt_shadow", RestsOn::Itself);
const MECHANISMS: [Mechanism; 4] = [
    Mechanism::HOST,
    Mechanism::INJECTION_POLICY,
    Mechanism::HARDWARE_SLOT,
    SHADOW,
];

/// Worst first; `Refuted` and `Absent` are equally useless.
fn worth(evidence: Evidence) -> u8 {
    match evidence {
        Evidence::Absent | Evidence::Refuted => 0,
        Evidence::Claimed => 1,
        Evidence::Verified => 2,
    }
}

fn finding(choice: u8) -> Option<Finding> {
    match choice % 5 {
        0 => None,
        1 => Some(Finding::absent("")),
        2 => Some(Finding::claimed("it says so")),
        3 => Some(Finding::verified("seen")),
        _ => Some(Finding::refuted("it did not")),
    }
}

/// The mechanism in the ladder of `capability`.
fn known<'a>(
    set: &'a MechanismSet,
    capability: Capability,
    mechanism: &Mechanism,
) -> Option<&'a Candidate> {
    let mut ladder = set.ladder(capability).iter();
    ladder.find(|candidate| candidate.mechanism() == mechanism)
}

/// What was asked of the profile, kept apart from it.
#[derive(Clone, Copy, PartialEq)]
enum Asked {
    Nothing,
    Required(Minimum),
    Preferred(Minimum),
    Forbidden,
}

fn plan_of(outcome: &Result<Plan, Box<Refusal>>) -> &Plan {
    match outcome {
        Ok(plan) => plan,
        Err(refusal) => refusal.plan(),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Choices::new(data);
    let irqchip = input.one_of(&IRQCHIPS);
    let mut report = HostReport::new("fuzz", HostFacts::default());
    let set = kvm::mechanisms().offer(
        Capability::MaskHwintr,
        Candidate::new(SHADOW).except(IrqchipMode::Split, "an obstacle"),
    );
    let mut builder = Profile::builder().irqchip(irqchip).mechanisms(set.clone());
    let mut asked = Vec::new();
    let mut ladder_fits = true;
    for &capability in Capability::ALL {
        if let Some(finding) = finding(input.byte()) {
            report.record(capability, finding);
        }
        let choice = input.byte();
        let asked_for = match choice & 0xf {
            1..=3 => Asked::Required(MINIMA[usize::from(choice & 1)]),
            4..=7 => Asked::Preferred(MINIMA[usize::from(choice & 1)]),
            8 => Asked::Forbidden,
            _ => Asked::Nothing,
        };
        builder = match asked_for {
            Asked::Nothing => builder,
            Asked::Required(minimum) => builder.require(capability, minimum),
            Asked::Preferred(minimum) => builder.prefer(capability, minimum),
            Asked::Forbidden => builder.forbid(capability),
        };
        if choice & 0x80 != 0 {
            let length = usize::from(input.byte() % 4);
            let ladder: Vec<Mechanism> = (0..length)
                .map(|_| MECHANISMS[usize::from(input.byte()) % MECHANISMS.len()].clone())
                .collect();
            ladder_fits &= ladder.iter().all(|m| known(&set, capability, m).is_some());
            builder = builder.ladder(capability, &ladder);
        }
        asked.push((capability, asked_for));
    }
    if let Some(finding) = finding(input.byte()) {
        report.record_mechanism(&SHADOW, finding);
    }
    let asked_of = |capability| {
        asked
            .iter()
            .find_map(|&(c, asked_for)| (c == capability).then_some(asked_for))
            .expect("every ability is in the list")
    };

    let needs_forbidden = irqchip
        .needs()
        .is_some_and(|needed| asked_of(needed) == Asked::Forbidden);
    let profile = match builder.build() {
        Ok(profile) => profile,
        Err(ProfileError::UnknownMechanism { .. }) if !ladder_fits => return,
        Err(ProfileError::IrqchipForbidden { .. }) if needs_forbidden => return,
        Err(error) => panic!("nothing is wrong with it: {error}"),
    };
    assert!(
        ladder_fits && !needs_forbidden,
        "contradictions are refused"
    );

    let outcome = negotiate(&report, &profile);
    assert_eq!(outcome, negotiate(&report, &profile), "a pure function");
    let plan = plan_of(&outcome);

    let mut missing = Vec::new();
    for &(capability, asked_for) in &asked {
        let entry = plan.entry(capability).expect("one entry for each ability");
        assert_eq!(entry.finding, *report.finding(capability));
        // An ability that the irqchip needs is always required. One that it can use is preferred, unless
        // the profile says otherwise.
        let minimum = match asked_for {
            Asked::Required(minimum) | Asked::Preferred(minimum) => Some(minimum),
            Asked::Nothing if irqchip.needs() == Some(capability) => Some(Minimum::Claimed),
            Asked::Nothing if irqchip.wants() == Some(capability) => Some(Minimum::Verified),
            Asked::Nothing | Asked::Forbidden => None,
        };
        let required =
            matches!(asked_for, Asked::Required(_)) || irqchip.needs() == Some(capability);
        assert_eq!(
            matches!(entry.requirement, Requirement::Required(_)),
            required
        );
        let Some(minimum) = minimum else {
            assert_eq!(
                entry.provision, None,
                "{capability} was not asked for, or forbidden"
            );
            continue;
        };
        if required && entry.provision.is_none() {
            missing.push(capability);
        }
        // By the rules, independently of how the crate walks the ladder.
        let evidence_for = |mechanism: &Mechanism| match mechanism.basis(capability) {
            Basis::Ability(ability) if asked_of(ability) == Asked::Forbidden => Evidence::Absent,
            basis => report.finding_for(&basis).evidence,
        };
        let usable = |candidate: &Candidate| {
            candidate.obstacle(irqchip).is_none()
                && match evidence_for(candidate.mechanism()) {
                    Evidence::Verified => true,
                    Evidence::Claimed => minimum == Minimum::Claimed,
                    Evidence::Absent | Evidence::Refuted => false,
                }
        };
        let ladder = profile.ladder(capability);
        for candidate in ladder {
            let known = known(&set, capability, candidate.mechanism());
            assert_eq!(known, Some(candidate), "its obstacles come along");
        }
        let first = ladder.iter().position(usable);
        let chosen = entry.provision.as_ref();
        assert_eq!(
            chosen.map(|provision| &provision.mechanism),
            first.map(|index| ladder[index].mechanism())
        );
        if let Some(provision) = chosen {
            assert_eq!(provision.evidence, evidence_for(&provision.mechanism));
        }
        let rejected = entry.rejected.iter().map(|rejected| &rejected.mechanism);
        let better = ladder[..first.unwrap_or(ladder.len())].iter();
        assert!(rejected.eq(better.map(Candidate::mechanism)));
    }
    match &outcome {
        Ok(_) => assert_eq!(missing, []),
        Err(refusal) => {
            let named: Vec<Capability> = refusal.missing().map(|e| e.capability).collect();
            assert_eq!(named, missing);
            assert!(!missing.is_empty(), "refused although nothing is missing");
            let text = refusal.to_string();
            assert!(missing.iter().all(|c| text.contains(c.name())), "{text}");
        }
    }
    let table = plan.to_string();
    assert_eq!(table.lines().count(), 2 + Capability::ALL.len(), "{table}");

    // Saved and read back.
    let json = serde_json::to_string(&report).expect("a report is data");
    assert_eq!(
        serde_json::from_str::<HostReport>(&json).ok(),
        Some(report.clone())
    );
    let json = serde_json::to_string(plan).expect("a plan is data");
    assert_eq!(
        serde_json::from_str::<Plan>(&json).ok().as_ref(),
        Some(plan)
    );

    // Better evidence loses nothing.
    let better_at = input.one_of(Capability::ALL);
    let better = finding(input.byte()).unwrap_or_default();
    if worth(better.evidence) >= worth(report.evidence(better_at)) {
        report.record(better_at, better);
        let after = negotiate(&report, &profile);
        for &(capability, _) in &asked {
            assert!(
                !plan.has(capability) || plan_of(&after).has(capability),
                "{capability} is lost by better evidence of {better_at}"
            );
        }
        assert!(outcome.is_err() || after.is_ok());
    }
});

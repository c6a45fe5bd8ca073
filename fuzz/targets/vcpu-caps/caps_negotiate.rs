//! Any report and any profile.
//!
//! Input: a byte for the irqchip; for each ability a byte for the evidence (low half) and one for
//! the wish (high half says whether the ladder is the profile's own); for own ladders, a byte;
//! last, which ability's evidence gets better, and to what.
#![no_main]

use fuzz::Choices;
use libfuzzer_sys::fuzz_target;
use vcpu_caps::{
    Capability, Evidence, Finding, HostFacts, HostReport, IrqchipMode, Minimum, Plan, Profile,
    ProfileError, Refusal, Way, Wish, negotiate,
};

const MINIMA: [Minimum; 2] = [Minimum::Claimed, Minimum::Verified];
const IRQCHIPS: [IrqchipMode; 3] = [IrqchipMode::Kernel, IrqchipMode::Split, IrqchipMode::User];
const WAYS: [Way; 3] = [Way::Host, Way::InjectionPolicy, Way::HardwareSlot];

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
    let mut builder = Profile::builder().irqchip(irqchip);
    let mut asked = Vec::new();
    let mut ladder_fits = true;
    for &capability in Capability::ALL {
        if let Some(finding) = finding(input.byte()) {
            report.record(capability, finding);
        }
        let choice = input.byte();
        let wish = match choice & 0xf {
            1..=3 => Asked::Required(MINIMA[usize::from(choice & 1)]),
            4..=7 => Asked::Preferred(MINIMA[usize::from(choice & 1)]),
            8 => Asked::Forbidden,
            _ => Asked::Nothing,
        };
        builder = match wish {
            Asked::Nothing => builder,
            Asked::Required(minimum) => builder.require(capability, minimum),
            Asked::Preferred(minimum) => builder.prefer(capability, minimum),
            Asked::Forbidden => builder.forbid(capability),
        };
        if choice & 0x80 != 0 {
            let length = usize::from(input.byte() % 4);
            let ways: Vec<Way> = (0..length).map(|_| input.one_of(&WAYS)).collect();
            ladder_fits &= ways.iter().all(|w| Way::ladder(capability).contains(w));
            builder = builder.ladder(capability, &ways);
        }
        asked.push((capability, wish));
    }
    let asked_of = |capability| {
        asked
            .iter()
            .find_map(|&(c, wish)| (c == capability).then_some(wish))
            .expect("every ability is in the list")
    };

    let needs_forbidden = irqchip
        .needs()
        .is_some_and(|needed| asked_of(needed) == Asked::Forbidden);
    let profile = match builder.build() {
        Ok(profile) => profile,
        Err(ProfileError::WayDoesNotFit { .. }) if !ladder_fits => return,
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

    let mut unmet = Vec::new();
    for &(capability, wish) in &asked {
        let entry = plan.entry(capability).expect("one entry for each ability");
        assert_eq!(entry.finding, *report.finding(capability));
        // What the irqchip rests on is required, whatever was said; what it can use is preferred, if
        // nothing was said.
        let minimum = match wish {
            Asked::Required(minimum) | Asked::Preferred(minimum) => Some(minimum),
            Asked::Nothing if irqchip.needs() == Some(capability) => Some(Minimum::Claimed),
            Asked::Nothing if irqchip.wants() == Some(capability) => Some(Minimum::Verified),
            Asked::Nothing | Asked::Forbidden => None,
        };
        let required = matches!(wish, Asked::Required(_)) || irqchip.needs() == Some(capability);
        assert_eq!(matches!(entry.wish, Wish::Required(_)), required);
        let Some(minimum) = minimum else {
            assert_eq!(
                entry.met, None,
                "{capability} was not asked for, or forbidden"
            );
            continue;
        };
        if required && entry.met.is_none() {
            unmet.push(capability);
        }
        // By the rules, without looking at how the crate walks the ladder.
        let usable = |way: Way| {
            let rests_on = way.rests_on(capability);
            way.obstacle(capability, irqchip).is_none()
                && asked_of(rests_on) != Asked::Forbidden
                && match report.evidence(rests_on) {
                    Evidence::Verified => true,
                    Evidence::Claimed => minimum == Minimum::Claimed,
                    Evidence::Absent | Evidence::Refuted => false,
                }
        };
        let ladder = profile.ladder(capability);
        let first = ladder.iter().position(|&way| usable(way));
        assert_eq!(
            entry.met.map(|met| met.way),
            first.map(|index| ladder[index])
        );
        if let Some(met) = entry.met {
            assert_eq!(met.evidence, report.evidence(met.way.rests_on(capability)));
        }
        let passed: Vec<Way> = entry.passed_over.iter().map(|p| p.way).collect();
        assert_eq!(passed, ladder[..first.unwrap_or(ladder.len())]);
    }
    match &outcome {
        Ok(_) => assert_eq!(unmet, []),
        Err(refusal) => {
            let missing: Vec<Capability> = refusal.missing().map(|e| e.capability).collect();
            assert_eq!(missing, unmet);
            assert!(!unmet.is_empty(), "refused although nothing is missing");
            let text = refusal.to_string();
            assert!(unmet.iter().all(|c| text.contains(c.name())), "{text}");
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

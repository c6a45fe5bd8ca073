use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::evidence::{Evidence, Finding, Minimum};
use crate::profile::ProfileError;
use crate::report::HostFacts;
use crate::way::{IrqchipMode, Way};

fn report(findings: &[(Capability, Finding)]) -> HostReport {
    let mut report = HostReport::new("kvm_test", HostFacts::default());
    for (capability, finding) in findings {
        report.record(*capability, finding.clone());
    }
    report
}

/// What the software KVM of the build machines comes out as.
fn software_kvm() -> HostReport {
    report(&[
        (Capability::MaskHwintr, Finding::verified("held")),
        (Capability::SingleStep, Finding::verified("stepped")),
        (Capability::BptExit, Finding::refuted("INT3 went astray")),
        (Capability::HwBreakpoint, Finding::verified("hit")),
        (Capability::Watchpoint, Finding::refuted("never fired")),
        (Capability::ImmediateExit, Finding::verified("EINTR")),
    ])
}

#[test]
fn a_refuted_software_breakpoint_becomes_a_hardware_slot_and_says_why() {
    let plan = negotiate(&software_kvm(), &Profile::debugger()).unwrap();
    assert_eq!(plan.way(Capability::BptExit), Some(Way::HardwareSlot));
    assert_eq!(plan.way(Capability::MaskHwintr), Some(Way::Host));
    assert!(!plan.has(Capability::Watchpoint));
    let table = plan.to_string();
    let line = table.lines().find(|l| l.starts_with("bpt_exit")).unwrap();
    assert_eq!(
        line,
        "bpt_exit           preferred  refuted   hardware_slot  hw_breakpoint is verified; \
         not host: INT3 went astray"
    );
    let line = table.lines().find(|l| l.starts_with("watchpoint")).unwrap();
    assert!(
        line.ends_with("not available  not host: never fired"),
        "{line}"
    );
}

#[test]
fn a_claim_is_not_enough_for_a_debugger() {
    let mut report = software_kvm();
    report.record(Capability::SingleStep, Finding::claimed("mask 0x1f0003"));
    let refusal = negotiate(&report, &Profile::debugger()).unwrap_err();
    let missing: Vec<_> = refusal.missing().map(|entry| entry.capability).collect();
    assert_eq!(missing, [Capability::SingleStep]);
    assert_eq!(
        refusal.to_string(),
        "this host (kvm_test) cannot do what is needed:\n  single_step: host: single_step is \
         claimed: mask 0x1f0003 (not verified); verify the host first, or accept a claim in the \
         profile"
    );
    // The rest of the plan is there all the same.
    assert!(refusal.plan().has(Capability::MaskHwintr));
    assert!(!refusal.plan().has(Capability::SingleStep));
}

#[test]
fn a_refusal_names_every_missing_ability() {
    let refusal = negotiate(&report(&[]), &Profile::debugger()).unwrap_err();
    let text = refusal.to_string();
    for name in ["single_step", "immediate_exit"] {
        assert!(text.contains(&alloc::format!("\n  {name}: ")), "{text}");
    }
}

#[test]
fn running_without_a_debugger_takes_a_claim() {
    let report = report(&[(Capability::ImmediateExit, Finding::claimed(""))]);
    assert!(negotiate(&report, &Profile::run()).is_ok());
    assert!(negotiate(&self::report(&[]), &Profile::run()).is_err());
}

#[test]
fn blockirq_does_not_mask_a_userspace_irqchip_but_its_policy_does() {
    let mut report = software_kvm();
    report.record(Capability::UserIrqchip, Finding::verified("window"));
    let profile = Profile::debugger().with_irqchip(IrqchipMode::User).unwrap();
    let plan = negotiate(&report, &profile).unwrap();
    assert_eq!(plan.way(Capability::MaskHwintr), Some(Way::InjectionPolicy));
    // And with KVM's own chips the policy is no way.
    let mut report = software_kvm();
    report.record(Capability::MaskHwintr, Finding::refuted("landed"));
    report.record(Capability::UserIrqchip, Finding::verified("window"));
    let plan = negotiate(&report, &Profile::debugger()).unwrap();
    assert_eq!(plan.way(Capability::MaskHwintr), None);
    assert_eq!(
        plan.entry(Capability::MaskHwintr)
            .unwrap()
            .passed_over
            .iter()
            .map(|passed| passed.way)
            .collect::<Vec<_>>(),
        [Way::Host, Way::InjectionPolicy]
    );
}

#[test]
fn the_irqchip_mode_requires_what_it_rests_on() {
    let profile = Profile::run().with_irqchip(IrqchipMode::Split).unwrap();
    let mut report = report(&[(Capability::ImmediateExit, Finding::claimed(""))]);
    let refusal = negotiate(&report, &profile).unwrap_err();
    assert!(refusal.to_string().contains("split_irqchip"), "{refusal}");
    report.record(Capability::SplitIrqchip, Finding::claimed(""));
    assert!(negotiate(&report, &profile).is_ok());
}

#[test]
fn a_way_that_rests_on_something_forbidden_is_not_taken() {
    let profile = Profile::builder()
        .prefer(Capability::BptExit, Minimum::Verified)
        .forbid(Capability::HwBreakpoint)
        .build()
        .unwrap();
    let plan = negotiate(&software_kvm(), &profile).unwrap();
    assert!(!plan.has(Capability::BptExit));
    assert!(
        plan.to_string()
            .contains("the profile forbids hw_breakpoint")
    );
}

#[test]
fn a_ladder_can_rule_ways_out() {
    let profile = Profile::builder()
        .require(Capability::BptExit, Minimum::Claimed)
        .ladder(Capability::BptExit, &[Way::Host])
        .build()
        .unwrap();
    let refusal = negotiate(&software_kvm(), &profile).unwrap_err();
    assert!(
        refusal.to_string().contains("use another host"),
        "{refusal}"
    );
}

#[test]
fn contradictions_are_refused_in_any_order() {
    let both = ProfileError::WantedAndForbidden(Capability::Watchpoint);
    let forbidden_last = Profile::builder()
        .prefer(Capability::Watchpoint, Minimum::Claimed)
        .forbid(Capability::Watchpoint);
    let forbidden_first = Profile::builder()
        .forbid(Capability::Watchpoint)
        .require(Capability::Watchpoint, Minimum::Claimed);
    assert_eq!(forbidden_last.build(), Err(both));
    assert_eq!(forbidden_first.build(), Err(both));
    assert_eq!(
        Profile::builder()
            .forbid(Capability::UserIrqchip)
            .irqchip(IrqchipMode::User)
            .build(),
        Err(ProfileError::IrqchipForbidden {
            irqchip: IrqchipMode::User,
            capability: Capability::UserIrqchip
        })
    );
    assert_eq!(
        Profile::builder()
            .ladder(Capability::MaskHwintr, &[Way::Host, Way::HardwareSlot])
            .build(),
        Err(ProfileError::WayDoesNotFit {
            capability: Capability::MaskHwintr,
            way: Way::HardwareSlot
        })
    );
}

#[test]
fn forbidding_twice_is_no_contradiction() {
    let profile = Profile::builder()
        .forbid(Capability::Watchpoint)
        .forbid(Capability::Watchpoint)
        .build();
    assert_eq!(
        profile.unwrap().wish(Capability::Watchpoint),
        Wish::Forbidden
    );
}

#[test]
fn of_two_wishes_the_stronger_counts() {
    let wish = |first, second| {
        Profile::builder()
            .require(Capability::SyncRegs, first)
            .prefer(Capability::SyncRegs, second)
            .build()
            .unwrap()
            .wish(Capability::SyncRegs)
    };
    let strong = Wish::Required(Minimum::Verified);
    assert_eq!(wish(Minimum::Claimed, Minimum::Verified), strong);
    assert_eq!(wish(Minimum::Verified, Minimum::Claimed), strong);
}

#[cfg(feature = "serde")]
#[test]
fn reports_and_plans_survive_json() {
    let report = software_kvm();
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains(r#""bpt_exit":{"evidence":"refuted","detail":"INT3 went astray"}"#));
    assert_eq!(serde_json::from_str::<HostReport>(&json).unwrap(), report);
    let plan = negotiate(&report, &Profile::debugger()).unwrap();
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    assert!(serde_json::from_str::<HostReport>(r#"{"flavour":"x"}"#).is_err());
}

fn any_finding() -> impl Strategy<Value = Finding> {
    prop_oneof![
        Just(Finding::absent("a")),
        Just(Finding::claimed("c")),
        Just(Finding::verified("v")),
        Just(Finding::refuted("r")),
    ]
}

fn any_capability() -> impl Strategy<Value = Capability> {
    prop::sample::select(Capability::ALL)
}

fn any_findings() -> impl Strategy<Value = BTreeMap<Capability, Finding>> {
    prop::collection::btree_map(
        any_capability(),
        any_finding(),
        0..Capability::ALL.len() + 1,
    )
}

fn any_wishes() -> impl Strategy<Value = BTreeMap<Capability, Wish>> {
    let minimum = prop::sample::select(&[Minimum::Claimed, Minimum::Verified]);
    let wish = (0..3, minimum).prop_map(|(kind, minimum)| match kind {
        0 => Wish::Required(minimum),
        1 => Wish::Preferred(minimum),
        _ => Wish::Forbidden,
    });
    prop::collection::btree_map(any_capability(), wish, 0..Capability::ALL.len() + 1)
}

fn any_irqchip() -> impl Strategy<Value = IrqchipMode> {
    prop::sample::select(&[IrqchipMode::Kernel, IrqchipMode::Split, IrqchipMode::User])
}

/// A profile from wishes stated in the given order; `None` where the irqchip contradicts them.
fn build<'a>(
    wishes: impl IntoIterator<Item = (&'a Capability, &'a Wish)>,
    irqchip: IrqchipMode,
) -> Option<Profile> {
    let mut builder = Profile::builder().irqchip(irqchip);
    for (&capability, &wish) in wishes {
        builder = match wish {
            Wish::Required(minimum) => builder.require(capability, minimum),
            Wish::Preferred(minimum) => builder.prefer(capability, minimum),
            Wish::Forbidden => builder.forbid(capability),
            Wish::Unasked => builder,
        };
    }
    builder.build().ok()
}

fn plan_of(report: &HostReport, profile: &Profile) -> Plan {
    negotiate(report, profile).unwrap_or_else(|refusal| refusal.into_plan())
}

fn report_of<'a>(findings: impl IntoIterator<Item = (&'a Capability, &'a Finding)>) -> HostReport {
    let findings: Vec<_> = findings
        .into_iter()
        .map(|(&capability, finding)| (capability, finding.clone()))
        .collect();
    report(&findings)
}

proptest! {
    #[test]
    fn a_plan_rests_only_on_evidence_that_is_good_enough(
        findings in any_findings(), wishes in any_wishes(), irqchip in any_irqchip(),
    ) {
        let Some(profile) = build(&wishes, irqchip) else { return Ok(()) };
        let report = report_of(&findings);
        for entry in plan_of(&report, &profile).entries() {
            let Some(met) = entry.met else { continue };
            let rests_on = met.way.rests_on(entry.capability);
            let evidence = report.evidence(rests_on);
            prop_assert!(matches!(evidence, Evidence::Claimed | Evidence::Verified));
            prop_assert_eq!(met.evidence, evidence);
            let minimum = match entry.wish {
                Wish::Required(minimum) | Wish::Preferred(minimum) => minimum,
                other => return Err(TestCaseError::fail(alloc::format!("{other:?} was met"))),
            };
            prop_assert!(minimum == Minimum::Claimed || evidence == Evidence::Verified);
            prop_assert!(wishes.get(&rests_on) != Some(&Wish::Forbidden));
            prop_assert!(met.way.obstacle(entry.capability, irqchip).is_none());
        }
    }

    /// `negotiate` refuses exactly if something required is not met, and then names all of it.
    #[test]
    fn a_refusal_is_exactly_the_requirements_not_met(
        findings in any_findings(), wishes in any_wishes(), irqchip in any_irqchip(),
    ) {
        let Some(profile) = build(&wishes, irqchip) else { return Ok(()) };
        let outcome = negotiate(&report_of(&findings), &profile);
        let plan = match &outcome {
            Ok(plan) => plan,
            Err(refusal) => refusal.plan(),
        };
        let unmet: Vec<_> = Capability::ALL
            .iter()
            .filter(|&&c| matches!(profile.wish(c), Wish::Required(_)) && !plan.has(c))
            .collect();
        let named: Vec<_> = outcome
            .as_ref()
            .err()
            .map(|refusal| refusal.missing().map(|entry| &entry.capability).collect())
            .unwrap_or_default();
        prop_assert_eq!(outcome.is_ok(), unmet.is_empty());
        prop_assert_eq!(named, unmet);
    }

    /// Absent or refuted to claimed, claimed to verified: what was had is still had, no worse.
    #[test]
    fn better_evidence_never_loses_an_ability(
        findings in any_findings(), wishes in any_wishes(), irqchip in any_irqchip(),
        improved in any_capability(), to_verified in any::<bool>(),
    ) {
        let Some(profile) = build(&wishes, irqchip) else { return Ok(()) };
        let before_report = report_of(&findings);
        let mut after_report = before_report.clone();
        let better = if to_verified || before_report.evidence(improved) == Evidence::Verified {
            Finding::verified("")
        } else {
            Finding::claimed("")
        };
        after_report.record(improved, better);
        let before = plan_of(&before_report, &profile);
        let after = plan_of(&after_report, &profile);
        for &capability in Capability::ALL {
            prop_assert!(after.has(capability) || !before.has(capability));
            let rung = |plan: &Plan| {
                plan.way(capability)
                    .and_then(|way| profile.ladder(capability).iter().position(|&w| w == way))
                    .unwrap_or(usize::MAX)
            };
            prop_assert!(rung(&after) <= rung(&before));
        }
    }

    #[test]
    fn what_is_forbidden_or_unasked_is_never_used(
        findings in any_findings(), wishes in any_wishes(), irqchip in any_irqchip(),
    ) {
        let Some(profile) = build(&wishes, irqchip) else { return Ok(()) };
        let plan = plan_of(&report_of(&findings), &profile);
        for &capability in Capability::ALL {
            if matches!(profile.wish(capability), Wish::Forbidden | Wish::Unasked) {
                prop_assert!(!plan.has(capability));
            }
        }
    }

    #[test]
    fn the_order_in_which_things_are_said_does_not_matter(
        findings in any_findings(), wishes in any_wishes(), irqchip in any_irqchip(),
    ) {
        let forwards = build(&wishes, irqchip);
        let backwards = build(wishes.iter().rev(), irqchip);
        prop_assert_eq!(&forwards, &backwards);
        let Some(profile) = forwards else { return Ok(()) };
        prop_assert_eq!(
            plan_of(&report_of(&findings), &profile),
            plan_of(&report_of(findings.iter().rev()), &profile)
        );
    }

    /// Whatever comes out, the tables are tables: every ability once, and no trailing blanks.
    #[test]
    fn tables_show_every_ability_once(
        findings in any_findings(), wishes in any_wishes(), irqchip in any_irqchip(),
    ) {
        let Some(profile) = build(&wishes, irqchip) else { return Ok(()) };
        let report = report_of(&findings);
        for table in [report.to_string(), plan_of(&report, &profile).to_string()] {
            let first: Vec<String> = table
                .lines()
                .skip(2)
                .filter_map(|line| line.split_whitespace().next().map(String::from))
                .collect();
            let names: Vec<_> = Capability::ALL.iter().map(|c| c.name()).collect();
            prop_assert_eq!(first, names);
            prop_assert!(table.lines().all(|line| !line.ends_with(' ')));
        }
    }
}

/// A guest that was promised a timer mode which KVM swallows waits for ever.
#[test]
fn the_user_irqchip_takes_the_deadline_timer_only_where_it_was_seen() {
    let wanted = |irqchip, finding: Finding| {
        let mut report = HostReport::new("test", HostFacts::default());
        report.record(Capability::ImmediateExit, Finding::claimed(""));
        report.record(Capability::UserIrqchip, Finding::claimed(""));
        report.record(Capability::UserTscDeadline, finding);
        let profile = Profile::run().with_irqchip(irqchip).unwrap();
        negotiate(&report, &profile)
            .unwrap()
            .has(Capability::UserTscDeadline)
    };
    assert!(wanted(IrqchipMode::User, Finding::verified("")));
    assert!(!wanted(IrqchipMode::User, Finding::claimed("")));
    assert!(!wanted(IrqchipMode::User, Finding::refuted("")));
    assert!(!wanted(IrqchipMode::Kernel, Finding::verified("")));
}

//! From a report and a profile to a plan.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::capability::Capability;
use crate::mechanism::Basis;
use crate::plan::{Entry, Plan, Provision, Reason, Refusal, Rejected};
use crate::profile::{Profile, Requirement};
use crate::report::HostReport;

/// Decides, for each ability, which mechanism provides it on this host.
///
/// A pure function: the same report and profile give the same plan. Abilities do not compete, so
/// each is decided on its own. The plan takes the first mechanism of the ladder that has no
/// obstacle, that the profile does not forbid, and that has enough evidence.
///
/// # Errors
/// If no mechanism provides an ability that the profile requires. The [`Refusal`] names each such
/// ability, says what to do, and carries the plan without them.
pub fn negotiate(report: &HostReport, profile: &Profile) -> Result<Plan, Box<Refusal>> {
    let entries: Vec<Entry> = Capability::ALL
        .iter()
        .map(|&capability| decide(capability, report, profile))
        .collect();
    let plan = Plan::new(report.flavour(), profile.irqchip(), entries);
    if plan.entries().any(Entry::is_missing) {
        Err(Box::new(Refusal::new(plan)))
    } else {
        Ok(plan)
    }
}

fn decide(capability: Capability, report: &HostReport, profile: &Profile) -> Entry {
    let requirement = profile.requirement(capability);
    let mut entry = Entry {
        capability,
        requirement,
        finding: report.finding(capability).clone(),
        provision: None,
        rejected: Vec::new(),
    };
    let (Requirement::Required(minimum) | Requirement::Preferred(minimum)) = requirement else {
        return entry;
    };
    for candidate in profile.ladder(capability) {
        let mechanism = candidate.mechanism().clone();
        let rests_on = mechanism.basis(capability);
        let finding = report.finding_for(&rests_on);
        let reason = match (candidate.obstacle(profile.irqchip()), &rests_on) {
            (Some(obstacle), _) => Reason::Irqchip(obstacle.clone()),
            (None, Basis::Ability(ability))
                if profile.requirement(*ability) == Requirement::Forbidden =>
            {
                Reason::Forbidden(*ability)
            }
            (None, _) if finding.evidence.meets(minimum) => {
                entry.provision = Some(Provision {
                    mechanism,
                    evidence: finding.evidence,
                });
                break;
            }
            (None, _) => Reason::Evidence {
                finding: finding.clone(),
                rests_on,
                minimum,
            },
        };
        entry.rejected.push(Rejected { mechanism, reason });
    }
    entry
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::evidence::{Evidence, Finding, Minimum};
    use crate::irqchip::IrqchipMode;
    use crate::mechanism::{Candidate, Mechanism, MechanismSet, RestsOn};
    use crate::profile::ProfileError;
    use crate::report::HostFacts;

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
        assert_eq!(
            plan.mechanism(Capability::BptExit),
            Some(&Mechanism::HARDWARE_SLOT)
        );
        assert_eq!(
            plan.mechanism(Capability::MaskHwintr),
            Some(&Mechanism::HOST)
        );
        assert!(!plan.has(Capability::Watchpoint));
        let table = plan.to_string();
        let line = table.lines().find(|l| l.starts_with("bpt_exit")).unwrap();
        assert_eq!(
            line,
            "bpt_exit           preferred    refuted   hardware_slot  hw_breakpoint is verified; \
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
        assert_eq!(
            plan.mechanism(Capability::MaskHwintr),
            Some(&Mechanism::INJECTION_POLICY)
        );
        // With KVM's own chips the policy is no mechanism.
        let mut report = software_kvm();
        report.record(Capability::MaskHwintr, Finding::refuted("landed"));
        report.record(Capability::UserIrqchip, Finding::verified("window"));
        let plan = negotiate(&report, &Profile::debugger()).unwrap();
        assert_eq!(plan.mechanism(Capability::MaskHwintr), None);
        assert_eq!(
            plan.entry(Capability::MaskHwintr)
                .unwrap()
                .rejected
                .iter()
                .map(|rejected| &rejected.mechanism)
                .collect::<Vec<_>>(),
            [&Mechanism::HOST, &Mechanism::INJECTION_POLICY]
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
    fn a_mechanism_that_rests_on_something_forbidden_is_rejected() {
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
    fn a_ladder_can_rule_mechanisms_out() {
        let profile = Profile::builder()
            .require(Capability::BptExit, Minimum::Claimed)
            .ladder(Capability::BptExit, &[Mechanism::HOST])
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
        assert_eq!(forbidden_last.build(), Err(both.clone()));
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
                .ladder(
                    Capability::MaskHwintr,
                    &[Mechanism::HOST, Mechanism::HARDWARE_SLOT]
                )
                .build(),
            Err(ProfileError::UnknownMechanism {
                capability: Capability::MaskHwintr,
                mechanism: Mechanism::HARDWARE_SLOT
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
            profile.unwrap().requirement(Capability::Watchpoint),
            Requirement::Forbidden
        );
    }

    #[test]
    fn of_two_requirements_the_stronger_counts() {
        let requirement = |first, second| {
            Profile::builder()
                .require(Capability::SyncRegs, first)
                .prefer(Capability::SyncRegs, second)
                .build()
                .unwrap()
                .requirement(Capability::SyncRegs)
        };
        let strong = Requirement::Required(Minimum::Verified);
        assert_eq!(requirement(Minimum::Claimed, Minimum::Verified), strong);
        assert_eq!(requirement(Minimum::Verified, Minimum::Claimed), strong);
    }

    /// A hypervisor of an embedder: it masks by an interrupt shadow, or else by the VMM's policy.
    const SHADOW: Mechanism = Mechanism::new("interrupt_shadow", RestsOn::Itself);

    fn other_hypervisor(shadow: Candidate) -> MechanismSet {
        MechanismSet::host_only().with_ladder(
            Capability::MaskHwintr,
            [shadow, Mechanism::INJECTION_POLICY.into()],
        )
    }

    fn mask_only(mechanisms: MechanismSet) -> Profile {
        Profile::builder()
            .mechanisms(mechanisms)
            .require(Capability::MaskHwintr, Minimum::Verified)
            .build()
            .unwrap()
    }

    #[test]
    fn an_embedders_mechanism_rests_on_its_own_finding() {
        let profile = mask_only(other_hypervisor(SHADOW.into()));
        let mut report = report(&[]);
        let refusal = negotiate(&report, &profile).unwrap_err();
        assert!(
            refusal
                .to_string()
                .contains("interrupt_shadow: interrupt_shadow is absent: not probed"),
            "{refusal}"
        );
        report.record_mechanism(&SHADOW, Finding::verified("8 steps"));
        assert!(report.to_string().ends_with("verified  8 steps"));
        let plan = negotiate(&report, &profile).unwrap();
        assert_eq!(plan.mechanism(Capability::MaskHwintr), Some(&SHADOW));
        let table = plan.to_string();
        let line = table.lines().find(|l| l.starts_with("mask_hwintr"));
        assert_eq!(
            line.unwrap(),
            "mask_hwintr        required     absent  interrupt_shadow  interrupt_shadow is verified"
        );
    }

    #[test]
    fn an_embedders_obstacle_is_shown_and_the_next_mechanism_taken() {
        let shadow = Candidate::new(SHADOW).obstructed("this partition has no register page");
        let mut report = report(&[(Capability::UserIrqchip, Finding::verified(""))]);
        report.record_mechanism(&SHADOW, Finding::verified(""));
        let plan = negotiate(&report, &mask_only(other_hypervisor(shadow))).unwrap();
        assert_eq!(
            plan.mechanism(Capability::MaskHwintr),
            Some(&Mechanism::INJECTION_POLICY)
        );
        let text = plan.to_string();
        assert!(
            text.contains("not interrupt_shadow: this partition has no register page"),
            "{text}"
        );
    }

    #[test]
    fn a_profile_is_reused_with_other_mechanisms() {
        let set = other_hypervisor(SHADOW.into());
        let profile = Profile::debugger().with_mechanisms(set.clone());
        assert_eq!(
            profile.ladder(Capability::MaskHwintr),
            set.ladder(Capability::MaskHwintr)
        );
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_plan_with_an_embedders_mechanism_survives_json() {
        let mut report = report(&[]);
        report.record_mechanism(&SHADOW, Finding::verified(""));
        let plan = negotiate(&report, &mask_only(other_hypervisor(SHADOW.into()))).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<HostReport>(&json).unwrap(), report);
        // A rejected mechanism names itself.
        let refusal = negotiate(
            &HostReport::default(),
            &mask_only(other_hypervisor(SHADOW.into())),
        );
        let plan = refusal.unwrap_err().into_plan();
        let json = serde_json::to_string(&plan).unwrap();
        assert!(json.contains(r#""rests_on":"interrupt_shadow""#), "{json}");
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
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

    fn any_requirements() -> impl Strategy<Value = BTreeMap<Capability, Requirement>> {
        let minimum = prop::sample::select(&[Minimum::Claimed, Minimum::Verified]);
        let requirement = (0..3, minimum).prop_map(|(kind, minimum)| match kind {
            0 => Requirement::Required(minimum),
            1 => Requirement::Preferred(minimum),
            _ => Requirement::Forbidden,
        });
        prop::collection::btree_map(any_capability(), requirement, 0..Capability::ALL.len() + 1)
    }

    fn any_irqchip() -> impl Strategy<Value = IrqchipMode> {
        prop::sample::select(&[IrqchipMode::Kernel, IrqchipMode::Split, IrqchipMode::User])
    }

    /// A profile from requirements stated in the given order; `None` where the irqchip contradicts them.
    fn build<'a>(
        requirements: impl IntoIterator<Item = (&'a Capability, &'a Requirement)>,
        irqchip: IrqchipMode,
    ) -> Option<Profile> {
        let mut builder = Profile::builder().irqchip(irqchip);
        for (&capability, &requirement) in requirements {
            builder = match requirement {
                Requirement::Required(minimum) => builder.require(capability, minimum),
                Requirement::Preferred(minimum) => builder.prefer(capability, minimum),
                Requirement::Forbidden => builder.forbid(capability),
                Requirement::Unasked => builder,
            };
        }
        builder.build().ok()
    }

    fn plan_of(report: &HostReport, profile: &Profile) -> Plan {
        negotiate(report, profile).unwrap_or_else(|refusal| refusal.into_plan())
    }

    fn report_of<'a>(
        findings: impl IntoIterator<Item = (&'a Capability, &'a Finding)>,
    ) -> HostReport {
        let findings: Vec<_> = findings
            .into_iter()
            .map(|(&capability, finding)| (capability, finding.clone()))
            .collect();
        report(&findings)
    }

    proptest! {
        #[test]
        fn a_plan_rests_only_on_evidence_that_is_good_enough(
            findings in any_findings(), requirements in any_requirements(), irqchip in any_irqchip(),
        ) {
            let Some(profile) = build(&requirements, irqchip) else { return Ok(()) };
            let report = report_of(&findings);
            for entry in plan_of(&report, &profile).entries() {
                let Some(provision) = &entry.provision else { continue };
                let Basis::Ability(rests_on) = provision.mechanism.basis(entry.capability) else {
                    return Err(TestCaseError::fail("KVM's mechanisms rest on abilities"));
                };
                let evidence = report.evidence(rests_on);
                prop_assert!(matches!(evidence, Evidence::Claimed | Evidence::Verified));
                prop_assert_eq!(provision.evidence, evidence);
                let minimum = match entry.requirement {
                    Requirement::Required(minimum) | Requirement::Preferred(minimum) => minimum,
                    other => return Err(TestCaseError::fail(alloc::format!("{other:?} is provided"))),
                };
                prop_assert!(minimum == Minimum::Claimed || evidence == Evidence::Verified);
                prop_assert!(requirements.get(&rests_on) != Some(&Requirement::Forbidden));
                let mut ladder = profile.ladder(entry.capability).iter();
                let chosen = ladder.find(|candidate| *candidate.mechanism() == provision.mechanism);
                prop_assert!(chosen.is_some_and(|chosen| chosen.obstacle(irqchip).is_none()));
            }
        }

        /// `negotiate` refuses exactly if a required ability is missing, and then names all of them.
        #[test]
        fn a_refusal_is_exactly_the_missing_requirements(
            findings in any_findings(), requirements in any_requirements(), irqchip in any_irqchip(),
        ) {
            let Some(profile) = build(&requirements, irqchip) else { return Ok(()) };
            let outcome = negotiate(&report_of(&findings), &profile);
            let plan = match &outcome {
                Ok(plan) => plan,
                Err(refusal) => refusal.plan(),
            };
            let unmet: Vec<_> = Capability::ALL
                .iter()
                .filter(|&&c| matches!(profile.requirement(c), Requirement::Required(_)) && !plan.has(c))
                .collect();
            let named: Vec<_> = outcome
                .as_ref()
                .err()
                .map(|refusal| refusal.missing().map(|entry| &entry.capability).collect())
                .unwrap_or_default();
            prop_assert_eq!(outcome.is_ok(), unmet.is_empty());
            prop_assert_eq!(named, unmet);
        }

        /// Absent or refuted to claimed, claimed to verified: what was provided is still provided, no worse.
        #[test]
        fn better_evidence_never_loses_an_ability(
            findings in any_findings(), requirements in any_requirements(), irqchip in any_irqchip(),
            improved in any_capability(), to_verified in any::<bool>(),
        ) {
            let Some(profile) = build(&requirements, irqchip) else { return Ok(()) };
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
                    plan.mechanism(capability)
                        .and_then(|chosen| {
                            let mut ladder = profile.ladder(capability).iter();
                            ladder.position(|candidate| candidate.mechanism() == chosen)
                        })
                        .unwrap_or(usize::MAX)
                };
                prop_assert!(rung(&after) <= rung(&before));
            }
        }

        #[test]
        fn what_is_forbidden_or_unasked_is_never_used(
            findings in any_findings(), requirements in any_requirements(), irqchip in any_irqchip(),
        ) {
            let Some(profile) = build(&requirements, irqchip) else { return Ok(()) };
            let plan = plan_of(&report_of(&findings), &profile);
            for &capability in Capability::ALL {
                if matches!(profile.requirement(capability), Requirement::Forbidden | Requirement::Unasked) {
                    prop_assert!(!plan.has(capability));
                }
            }
        }

        #[test]
        fn the_order_in_which_things_are_said_does_not_matter(
            findings in any_findings(), requirements in any_requirements(), irqchip in any_irqchip(),
        ) {
            let forwards = build(&requirements, irqchip);
            let backwards = build(requirements.iter().rev(), irqchip);
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
            findings in any_findings(), requirements in any_requirements(), irqchip in any_irqchip(),
        ) {
            let Some(profile) = build(&requirements, irqchip) else { return Ok(()) };
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

    /// A guest that is promised a timer mode which KVM swallows waits forever.
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
}

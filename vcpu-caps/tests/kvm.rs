//! What each KVM is known to do and not to do, asserted by name.
//!
//! These need a KVM: without one they fail and say what to do.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests stop where a test would"
)]

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;
use vcpu_caps::cpuid::{CpuidEntry, LocalApic, Topology, for_vcpu};
use vcpu_caps::kvm::{SetGuestDebugError, apply_pending};
use vcpu_caps::{
    Capability, Evidence, Finding, GuestDebugFlags, HostReport, Inject, IrqchipMode, Mechanism,
    Minimum, Owner, Plan, Profile, VcpuControl, VcpuId, kvm, negotiate,
};

fn open() -> Kvm {
    kvm::open().unwrap_or_else(|error| panic!("{error}"))
}

fn verified() -> HostReport {
    let kvm = open();
    let mut report = kvm::probe(&kvm);
    kvm::verify(&kvm, &mut report).unwrap();
    report
}

/// The hypervisor that this machine itself runs in, by its CPUID signature (leaf 0x4000_0000).
fn under_hypervisor(signature: &[u8; 12]) -> bool {
    // SAFETY: every x86-64 CPU has CPUID; without a hypervisor the leaf holds something else.
    #[allow(unused_unsafe, reason = "safe since Rust 1.94")]
    let leaf = unsafe { std::arch::x86_64::__cpuid(0x4000_0000) };
    [leaf.ebx, leaf.ecx, leaf.edx]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .eq(*signature)
}

/// Returns `true` if this machine's clock is the time-stamp counter: it then trusts the counter.
fn tsc_is_stable() -> bool {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    std::fs::read_to_string(path).unwrap().trim() == "tsc"
}

/// What is known of the KVMs that the tests are run on.
struct Known {
    verified: &'static [Capability],
    /// With a part of the reason.
    refuted: &'static [(Capability, &'static str)],
}

fn known(flavour: &str) -> Option<Known> {
    use Capability as C;
    const ALL_BUT_BP: &[Capability] = &[
        C::SingleStep,
        C::SingleStepUser,
        C::MaskHwintr,
        C::HwBreakpoint,
        C::Watchpoint,
        C::InjectDb,
        C::ImmediateExit,
        C::SyncRegs,
        C::HaltExit,
        C::TscOffset,
        C::TscWrite,
        C::ClockSet,
        C::ClockCtrl,
        C::UserIrqchip,
        C::SplitIrqchip,
        C::UserMsrExit,
        C::UserTscDeadline,
    ];
    const ALL_BUT_TSC: &[Capability] = &[
        C::SingleStep,
        C::SingleStepUser,
        C::MaskHwintr,
        C::BptExit,
        C::HwBreakpoint,
        C::Watchpoint,
        C::InjectBp,
        C::InjectDb,
        C::ImmediateExit,
        C::SyncRegs,
        C::HaltExit,
        C::TscWrite,
        C::ClockSet,
        C::ClockCtrl,
        C::UserIrqchip,
        C::SplitIrqchip,
        C::UserMsrExit,
        C::UserTscDeadline,
    ];
    const ALL: &[Capability] = &[
        C::SingleStep,
        C::SingleStepUser,
        C::MaskHwintr,
        C::BptExit,
        C::HwBreakpoint,
        C::Watchpoint,
        C::InjectBp,
        C::InjectDb,
        C::ImmediateExit,
        C::SyncRegs,
        C::HaltExit,
        C::TscOffset,
        C::TscWrite,
        C::ClockSet,
        C::ClockCtrl,
        C::UserIrqchip,
        C::SplitIrqchip,
        C::UserMsrExit,
        C::UserTscDeadline,
    ];
    match flavour {
        // The software KVM: its emulator takes INT3 to the guest itself and knows no watchpoints,
        // and its guests read the host's time-stamp counter.
        "kvm_pvm" => Some(Known {
            verified: &[
                C::SingleStep,
                C::MaskHwintr,
                C::HwBreakpoint,
                C::InjectBp,
                C::InjectDb,
                C::ImmediateExit,
                C::SyncRegs,
                C::HaltExit,
                C::UserIrqchip,
                C::SplitIrqchip,
                C::UserMsrExit,
                C::UserTscDeadline,
                C::ClockSet,
                C::ClockCtrl,
            ],
            refuted: &[
                (C::SingleStepUser, "goes to the guest's own vector 1"),
                (C::BptExit, "INT3"),
                (C::Watchpoint, "write watchpoint at CPL0 never fired"),
                (C::TscOffset, "KVM_VCPU_TSC_OFFSET"),
                (C::TscWrite, "was written to IA32_TSC"),
            ],
        }),
        // QEMU's emulation of AMD-V does not intercept #BP, and has no NRIP save: kvm_amd then moves
        // RIP behind the instruction by its emulator before it injects a #BP, and the exception is
        // lost on the way (seen with Linux 6.1).
        "kvm_amd" if under_hypervisor(b"TCGTCGTCGTCG") => Some(Known {
            verified: ALL_BUT_BP,
            refuted: &[
                (C::BptExit, "the guest's own vector 3"),
                (C::InjectBp, "KVM_EXIT_HLT in place of KVM_EXIT_IO"),
            ],
        }),
        // Without a stable time-stamp counter KVM replaces the offset each time that it loads the
        // vCPU (x86.c, `kvm_arch_vcpu_load`): what was written does not read back.
        "kvm_amd" | "kvm_intel" if !tsc_is_stable() => Some(Known {
            verified: ALL_BUT_TSC,
            refuted: &[(C::TscOffset, "KVM_VCPU_TSC_OFFSET")],
        }),
        "kvm_amd" | "kvm_intel" => Some(Known {
            verified: ALL,
            refuted: &[],
        }),
        _ => None,
    }
}

#[test]
fn the_host_does_what_is_known_of_its_flavour() {
    let report = verified();
    println!("{report}");
    let Some(known) = known(report.flavour()) else {
        println!("nothing is known of {}", report.flavour());
        return;
    };
    for &capability in known.verified {
        assert_eq!(
            report.evidence(capability),
            Evidence::Verified,
            "{capability}: {}",
            report.finding(capability)
        );
    }
    for &(capability, why) in known.refuted {
        let finding = report.finding(capability);
        assert_eq!(
            finding.evidence,
            Evidence::Refuted,
            "{capability}: {finding}"
        );
        assert!(finding.detail.contains(why), "{capability}: {finding}");
    }
}

/// Whatever the host is: examination turns claims into knowledge, and nothing else.
#[test]
fn verifying_only_settles_what_was_claimed() {
    let kvm = open();
    let probed = kvm::probe(&kvm);
    let verified = verified();
    assert_eq!(probed.facts(), verified.facts());
    for (capability, before) in probed.iter() {
        let after = verified.evidence(capability);
        match before.evidence {
            Evidence::Absent => assert_eq!(after, Evidence::Absent, "{capability}"),
            Evidence::Claimed => assert_ne!(after, Evidence::Absent, "{capability}"),
            Evidence::Verified | Evidence::Refuted => panic!("a probe runs nothing: {capability}"),
        }
        assert!(!verified.finding(capability).detail.is_empty());
    }
}

#[test]
fn verifying_twice_finds_the_same() {
    let kvm = open();
    let first = verified();
    let mut second = first.clone();
    kvm::verify(&kvm, &mut second).unwrap();
    for (capability, finding) in second.iter() {
        assert_eq!(first.evidence(capability), finding.evidence, "{capability}");
    }
}

#[test]
fn the_debuggers_plan_uses_nothing_refuted() {
    let report = verified();
    let plan = negotiate(&report, &Profile::debugger()).unwrap_or_else(|r| panic!("{r}"));
    println!("{plan}");
    if report.flavour() == "kvm_pvm" {
        assert_eq!(
            plan.mechanism(Capability::BptExit),
            Some(&Mechanism::HARDWARE_SLOT)
        );
        assert_eq!(
            plan.mechanism(Capability::MaskHwintr),
            Some(&Mechanism::HOST)
        );
        assert!(!plan.has(Capability::Watchpoint));
    }
}

/// A plan with the debug flags, whatever this KVM makes of them: KVM accepts them all.
fn all_debug_flags() -> Plan {
    let mut report = HostReport::default();
    let mut profile = Profile::builder();
    for capability in [
        Capability::MaskHwintr,
        Capability::SingleStep,
        Capability::InjectBp,
    ] {
        report.record(capability, Finding::claimed(""));
        profile = profile.require(capability, Minimum::Claimed);
    }
    negotiate(&report, &profile.build().unwrap()).unwrap()
}

#[test]
fn kvm_is_called_only_if_something_changes_or_a_step_is_armed() {
    let kvm = open();
    let vm = kvm.create_vm().unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let mut vcpu = VcpuControl::new(VcpuId(0), &all_debug_flags());
    let apply = |vcpu: &mut VcpuControl| apply_pending(vcpu, &fd).unwrap();
    assert!(!apply(&mut vcpu));
    vcpu.set(Capability::MaskHwintr, true).unwrap();
    assert!(apply(&mut vcpu));
    assert!(!apply(&mut vcpu));
    for _ in 0..2 {
        vcpu.step().unwrap();
        assert!(apply(&mut vcpu));
        assert!(!apply(&mut vcpu));
    }
    vcpu.end_step().unwrap();
    vcpu.set(Capability::MaskHwintr, false).unwrap();
    assert!(apply(&mut vcpu));

    vcpu.forget_applied();
    assert!(apply(&mut vcpu));
    assert!(!apply(&mut vcpu));
}

#[test]
fn a_second_injection_before_the_guest_ran_is_refused_and_can_be_abandoned() {
    let kvm = open();
    let vm = kvm.create_vm().unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let mut vcpu = VcpuControl::new(VcpuId(0), &all_debug_flags());
    vcpu.inject(Inject::Breakpoint).unwrap();
    assert_eq!(apply_pending(&mut vcpu, &fd), Ok(true));
    vcpu.set(Capability::MaskHwintr, true).unwrap();
    vcpu.inject(Inject::Breakpoint).unwrap();
    let refused = Err(SetGuestDebugError::ExceptionPending {
        control: GuestDebugFlags::ENABLE | GuestDebugFlags::BLOCKIRQ | GuestDebugFlags::INJECT_BP,
    });
    // Nothing was recorded: the same is asked for again.
    assert_eq!(apply_pending(&mut vcpu, &fd), refused);
    assert_eq!(apply_pending(&mut vcpu, &fd), refused);
    // The mask alone can still be set.
    assert_eq!(vcpu.cancel_injection(), Some(Inject::Breakpoint));
    assert_eq!(apply_pending(&mut vcpu, &fd), Ok(true));
    assert_eq!(apply_pending(&mut vcpu, &fd), Ok(false));
}

#[test]
fn a_hold_on_a_real_vcpu_is_set_once_and_lifted() {
    let kvm = open();
    let report = verified();
    let plan = negotiate(&report, &Profile::debugger()).unwrap_or_else(|r| r.into_plan());
    assert!(plan.has(Capability::MaskHwintr), "{plan}");
    let vm = kvm.create_vm().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut control = VcpuControl::new(VcpuId(0), &plan);
    let debugger = Owner::new("debugger");
    control.hold(debugger, Capability::MaskHwintr).unwrap();
    assert_eq!(apply_pending(&mut control, &vcpu), Ok(true));
    assert_eq!(apply_pending(&mut control, &vcpu), Ok(false));
    control.drop_owner(debugger);
    assert_eq!(apply_pending(&mut control, &vcpu), Ok(true));
}

/// KVM takes the tables, and gives back what was set.
#[test]
fn kvm_takes_the_cpuid_table_of_every_vcpu() {
    let kvm = open();
    let supported: Vec<CpuidEntry> = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .unwrap()
        .as_slice()
        .iter()
        .map(CpuidEntry::from)
        .collect();
    for irqchip in [IrqchipMode::Split, IrqchipMode::User] {
        let vm = kvm.create_vm().unwrap();
        for index in 0..3 {
            let topology = Topology::new(VcpuId(index), 3).unwrap();
            let apic = LocalApic {
                x2apic: true,
                tsc_deadline: irqchip == IrqchipMode::Split,
            };
            let table = for_vcpu(&supported, irqchip, apic, topology);
            let entries: Vec<_> = table.iter().map(Into::into).collect();
            let vcpu = vm.create_vcpu(u64::from(index)).unwrap();
            vcpu.set_cpuid2(&CpuId::from_entries(&entries).unwrap())
                .unwrap();
            let set = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
            let leaf_1 = set.as_slice().iter().find(|e| e.function == 1).unwrap();
            assert_eq!(leaf_1.ebx >> 24, u32::from(index));
            assert_eq!((leaf_1.ebx >> 16) & 0xff, 4);
        }
    }
}

#[test]
fn one_call_makes_the_plan_that_the_steps_make() {
    let kvm = kvm::open().unwrap();
    let mut report = kvm::probe(&kvm);
    kvm::verify(&kvm, &mut report).unwrap();
    let profile = Profile::debugger();
    let plan = negotiate(&report, &profile).unwrap();
    let made = kvm::debugger_plan(profile.irqchip()).unwrap();
    for &capability in Capability::ALL {
        assert_eq!(
            made.mechanism(capability),
            plan.mechanism(capability),
            "{capability}"
        );
    }
}

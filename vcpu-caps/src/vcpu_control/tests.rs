use proptest::prelude::*;

use super::*;
use crate::evidence::{Finding, Minimum};
use crate::negotiate::negotiate;
use crate::profile::Profile;
use crate::report::{HostFacts, HostReport};
use crate::way::IrqchipMode;

const MASK: Capability = Capability::MaskHwintr;
const DEBUGGER: Owner = Owner::new("debugger");
const SNAPSHOT: Owner = Owner::new("snapshot");

const SWITCHES: &[Capability] = &[
    Capability::SingleStep,
    MASK,
    Capability::BptExit,
    Capability::HwBreakpoint,
    Capability::Watchpoint,
    Capability::InjectBp,
    Capability::InjectDb,
];

/// A vCPU of a host that can do all but `without`.
fn vcpu_without(without: &[Capability]) -> VcpuControl {
    vcpu_with(IrqchipMode::Kernel, without)
}

fn vcpu_with(irqchip: IrqchipMode, without: &[Capability]) -> VcpuControl {
    let mut report = HostReport::new("kvm_test", HostFacts::default());
    let mut builder = Profile::builder().irqchip(irqchip);
    report.record(Capability::UserIrqchip, Finding::verified(""));
    for &capability in SWITCHES {
        if !without.contains(&capability) {
            report.record(capability, Finding::verified(""));
        }
        builder = builder.prefer(capability, Minimum::Verified);
    }
    let plan = negotiate(&report, &builder.build().unwrap()).unwrap();
    VcpuControl::new(VcpuId(3), &plan)
}

/// What KVM would be asked for, and then has accepted.
fn accept(vcpu: &mut VcpuControl) -> Option<GuestDebug> {
    let pending = vcpu.pending();
    if let Some(debug) = &pending {
        vcpu.applied(debug);
    }
    pending
}

#[test]
fn a_new_vcpu_needs_nothing() {
    assert_eq!(vcpu_without(&[]).pending(), None);
}

#[test]
fn the_mask_is_asked_for_once_and_lifted_with_the_last_hold() {
    let mut vcpu = vcpu_without(&[]);
    assert_eq!(vcpu.hold(DEBUGGER, MASK), Ok(true));
    assert_eq!(accept(&mut vcpu).unwrap().control.bits(), 0x10_0001);
    assert_eq!(vcpu.hold(SNAPSHOT, MASK), Ok(false));
    assert_eq!(vcpu.release(DEBUGGER, MASK), Ok(false));
    assert_eq!(accept(&mut vcpu), None);
    assert_eq!(vcpu.release(SNAPSHOT, MASK), Ok(true));
    assert_eq!(accept(&mut vcpu), Some(GuestDebug::OFF));
}

#[test]
fn a_switch_and_a_hold_do_not_lift_each_other() {
    let mut vcpu = vcpu_without(&[]);
    vcpu.set(MASK, true).unwrap();
    assert_eq!(vcpu.hold(DEBUGGER, MASK), Ok(false));
    assert_eq!(vcpu.release(DEBUGGER, MASK), Ok(false));
    assert_eq!(vcpu.get(MASK), Ok(true));
    vcpu.hold(DEBUGGER, MASK).unwrap();
    vcpu.set(MASK, false).unwrap();
    assert_eq!(vcpu.get(MASK), Ok(true));
    assert_eq!(vcpu.drop_owner(DEBUGGER), 1);
    assert_eq!(vcpu.get(MASK), Ok(false));
}

#[test]
fn each_step_is_armed_although_nothing_has_changed() {
    let mut vcpu = vcpu_without(&[]);
    for _ in 0..3 {
        vcpu.step().unwrap();
        assert_eq!(accept(&mut vcpu).unwrap().control.bits(), 0x3);
        assert_eq!(vcpu.pending(), None);
    }
    vcpu.end_step().unwrap();
    assert_eq!(accept(&mut vcpu), Some(GuestDebug::OFF));
}

#[test]
fn a_step_that_was_refused_is_pending_still() {
    let mut vcpu = vcpu_without(&[]);
    vcpu.step().unwrap();
    assert_eq!(vcpu.pending(), vcpu.pending());
    assert!(vcpu.pending().is_some());
    // Something older is recorded in its place: the step has not been armed.
    vcpu.applied(&GuestDebug::OFF);
    assert!(vcpu.pending().is_some());
}

#[test]
fn a_step_that_is_taken_back_needs_nothing() {
    let mut vcpu = vcpu_without(&[]);
    vcpu.step().unwrap();
    vcpu.end_step().unwrap();
    assert_eq!(vcpu.pending(), None);
}

#[test]
fn an_exception_is_injected_once() {
    let mut vcpu = vcpu_without(&[]);
    vcpu.inject(Inject::Breakpoint).unwrap();
    assert_eq!(accept(&mut vcpu).unwrap().control.bits(), 0x8_0000);
    assert_eq!(vcpu.pending(), None);
    // The same again is another event.
    vcpu.inject(Inject::Breakpoint).unwrap();
    assert!(accept(&mut vcpu).is_some());
}

#[test]
fn a_mask_that_the_policy_provides_is_not_in_the_debug_state() {
    let mut vcpu = vcpu_with(IrqchipMode::User, &[]);
    vcpu.hold(DEBUGGER, MASK).unwrap();
    assert!(vcpu.withhold_interrupts());
    assert_eq!(vcpu.pending(), None);
    vcpu.drop_owner(DEBUGGER);
    assert!(!vcpu.withhold_interrupts());
}

#[test]
fn a_mask_that_the_host_provides_is_not_the_policys() {
    let mut vcpu = vcpu_without(&[]);
    vcpu.set(MASK, true).unwrap();
    assert!(!vcpu.withhold_interrupts());
}

#[test]
fn a_software_breakpoint_switches_int3_exits_on_while_one_is_left() {
    let mut vcpu = vcpu_without(&[]);
    assert_eq!(vcpu.insert_breakpoint(0x1000), Ok(Placement::Int3));
    assert_eq!(vcpu.insert_breakpoint(0x2000), Ok(Placement::Int3));
    assert_eq!(accept(&mut vcpu).unwrap().control.bits(), 0x1_0001);
    assert_eq!(vcpu.remove_breakpoint(0x1000), Ok(Placement::Int3));
    assert_eq!(vcpu.pending(), None);
    assert_eq!(vcpu.remove_breakpoint(0x2000), Ok(Placement::Int3));
    assert_eq!(vcpu.pending(), Some(GuestDebug::OFF));
    assert_eq!(
        vcpu.remove_breakpoint(0x2000),
        Err(ControlError::NoSuchBreakpoint)
    );
}

#[test]
fn without_int3_exits_breakpoints_take_slots_until_there_is_none() {
    let mut vcpu = vcpu_without(&[Capability::BptExit]);
    assert_eq!(
        vcpu.set(Capability::BptExit, true),
        Err(ControlError::NeedsSlot)
    );
    for (slot, address) in (0..4).zip([0x1000, 0x2000, 0x3000, 0x4000]) {
        assert_eq!(vcpu.insert_breakpoint(address), Ok(Placement::Slot(slot)));
    }
    assert_eq!(vcpu.insert_breakpoint(0x2000), Ok(Placement::Slot(1)));
    let before = vcpu.pending();
    assert_eq!(
        vcpu.insert_breakpoint(0x5000),
        Err(ControlError::NoFreeSlot)
    );
    assert_eq!(vcpu.pending(), before);
    assert_eq!(before.unwrap().control.bits(), 0x2_0001);
    assert_eq!(vcpu.remove_breakpoint(0x3000), Ok(Placement::Slot(2)));
    assert_eq!(vcpu.insert_breakpoint(0x5000), Ok(Placement::Slot(2)));
}

#[test]
fn software_breakpoints_are_bounded() {
    let mut vcpu = vcpu_without(&[]);
    for address in 0..4096 {
        vcpu.insert_breakpoint(address).unwrap();
    }
    assert_eq!(
        vcpu.insert_breakpoint(4096),
        Err(ControlError::TooManyBreakpoints { limit: 4096 })
    );
    assert_eq!(vcpu.insert_breakpoint(0), Ok(Placement::Int3));
}

#[test]
fn what_the_plan_lacks_is_refused_and_changes_nothing() {
    let mut vcpu = vcpu_without(SWITCHES);
    let watch = HwBreakpoint::watch(0x1000, 4, HwBreakpointKind::Write);
    let refused = |capability| Err(ControlError::NotInPlan(capability));
    assert_eq!(vcpu.set(MASK, true), refused(MASK));
    assert_eq!(vcpu.get(MASK), Err(ControlError::NotInPlan(MASK)));
    assert_eq!(
        vcpu.hold(DEBUGGER, MASK),
        Err(ControlError::NotInPlan(MASK))
    );
    assert_eq!(vcpu.step(), refused(Capability::SingleStep));
    assert_eq!(vcpu.inject(Inject::Debug), refused(Capability::InjectDb));
    assert_eq!(
        vcpu.inject(Inject::Breakpoint),
        refused(Capability::InjectBp)
    );
    assert_eq!(
        vcpu.insert_breakpoint(0x1000),
        Err(ControlError::NotInPlan(Capability::BptExit))
    );
    assert_eq!(vcpu.set_hardware(&[watch]), refused(Capability::Watchpoint));
    assert_eq!(
        vcpu.arm(HwBreakpoint::execute(0)),
        Err(ControlError::NotInPlan(Capability::HwBreakpoint))
    );
    assert_eq!(vcpu.pending(), None);
    assert_eq!(vcpu.holds().owners(MASK).count(), 0);
}

#[test]
fn a_property_of_the_host_is_no_switch() {
    let mut vcpu = vcpu_without(&[]);
    assert_eq!(
        vcpu.set(Capability::SyncRegs, true),
        Err(ControlError::NotSwitchable(Capability::SyncRegs))
    );
    // A step is one shot: holding it means nothing.
    assert_eq!(
        vcpu.hold(DEBUGGER, Capability::SingleStep),
        Err(ControlError::NotSwitchable(Capability::SingleStep))
    );
}

#[derive(Clone, Debug)]
enum Do {
    Set(Capability, bool),
    Hold(u32, Capability),
    Release(u32, Capability),
    Gone(u32),
    Step,
    EndStep,
    Insert(u64),
    Remove(u64),
    Inject(Inject),
    Run,
}

fn any_action() -> impl Strategy<Value = Do> {
    let switch = || prop::sample::select(&[MASK, Capability::BptExit, Capability::SingleStep]);
    prop_oneof![
        (switch(), any::<bool>()).prop_map(|(c, on)| Do::Set(c, on)),
        (0..3_u32, switch()).prop_map(|(o, c)| Do::Hold(o, c)),
        (0..3_u32, switch()).prop_map(|(o, c)| Do::Release(o, c)),
        (0..3_u32).prop_map(Do::Gone),
        Just(Do::Step),
        Just(Do::EndStep),
        (0..6_u64).prop_map(Do::Insert),
        (0..6_u64).prop_map(Do::Remove),
        prop::sample::select(&[Inject::Debug, Inject::Breakpoint]).prop_map(Do::Inject),
        Just(Do::Run),
    ]
}

proptest! {
    /// Before every run the state in force is the one composed of all that is wanted, nothing is
    /// set that is in force already, and when all is taken back nothing is left.
    #[test]
    fn what_is_in_force_is_what_is_wanted(
        actions in prop::collection::vec(any_action(), 0..60),
        int3_exits in any::<bool>(),
    ) {
        let without: &[Capability] = if int3_exits { &[] } else { &[Capability::BptExit] };
        let mut vcpu = vcpu_without(without);
        let mut in_force = GuestDebug::OFF;
        for action in actions {
            // Refusals change nothing.
            let before = vcpu.intent();
            let client = |n| Owner::instance("client", n);
            let refused = match action {
                Do::Set(capability, on) => vcpu.set(capability, on).is_err(),
                Do::Hold(owner, capability) => vcpu.hold(client(owner), capability).is_err(),
                Do::Release(owner, capability) => vcpu.release(client(owner), capability).is_err(),
                Do::Gone(owner) => { vcpu.drop_owner(client(owner)); false }
                Do::Step => vcpu.step().is_err(),
                Do::EndStep => vcpu.end_step().is_err(),
                Do::Insert(address) => vcpu.insert_breakpoint(address).is_err(),
                Do::Remove(address) => vcpu.remove_breakpoint(address).is_err(),
                Do::Inject(inject) => vcpu.inject(inject).is_err(),
                Do::Run => {
                    if let Some(debug) = accept(&mut vcpu) {
                        in_force = debug.lasting();
                    }
                    prop_assert_eq!(vcpu.pending(), None);
                    prop_assert_eq!(GuestDebug::compose(&vcpu.intent()), in_force);
                    false
                }
            };
            if refused {
                prop_assert_eq!(vcpu.intent(), before);
            }
        }
        for owner in 0..3 {
            vcpu.drop_owner(Owner::instance("client", owner));
        }
        vcpu.set(MASK, false).unwrap();
        vcpu.end_step().unwrap();
        if int3_exits {
            vcpu.set(Capability::BptExit, false).unwrap();
        }
        for address in 0..6 {
            let _ = vcpu.remove_breakpoint(address);
        }
        accept(&mut vcpu);
        prop_assert_eq!(vcpu.pending(), None);
        prop_assert_eq!(GuestDebug::compose(&vcpu.intent()), GuestDebug::OFF);
    }
}

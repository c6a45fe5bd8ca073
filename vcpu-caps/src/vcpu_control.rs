//! The switches of one vCPU.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use thiserror::Error;

use crate::capability::{Capability, VcpuId};
use crate::debug_state::{
    DebugIntent, DebugState, HwBreakpoint, HwBreakpointError, HwBreakpointKind, Inject,
};
use crate::holds::{HoldError, Holds, Owner};
use crate::kvm::x86::GuestDebug;
use crate::mechanism::Mechanism;
use crate::plan::Plan;

/// A request that a vCPU cannot fulfil. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The plan does not provide the ability: its entry says why.
    #[error("{0} is not in the plan for this host")]
    NotInPlan(Capability),
    /// The ability is a property of the host or the VM and cannot be switched per vCPU.
    #[error("{0} cannot be switched per vCPU")]
    NotSwitchable(Capability),
    /// A single step is one shot and cannot be held: use [`VcpuControl::step`].
    #[error("{0} cannot be held: ask for each step")]
    NotHoldable(Capability),
    /// Under this plan a breakpoint takes a debug register, which one switch cannot express: use
    /// [`VcpuControl::set_hardware`].
    #[error("INT3 does not leave the guest on this host: put breakpoints into debug registers")]
    NeedsSlot,
    /// The debug registers cannot hold the breakpoints.
    #[error(transparent)]
    Breakpoint(#[from] HwBreakpointError),
    /// A hold cannot be taken or dropped.
    #[error(transparent)]
    Hold(#[from] HoldError),
}

/// The switches of one vCPU, as bhyve's `vm_set_capability` has them, and everything else that
/// goes into its debug state.
///
/// It is the only owner of that state: the hypervisor replaces the whole state at each request.
/// It counts the owners of each hold; no other component does. It has no table of breakpoints:
/// the debugger keeps that, and says here which debug registers hold what
/// ([`set_hardware`](Self::set_hardware)) and whether breakpoint instructions leave the guest
/// (`bpt_exit`).
///
/// It does no I/O. [`pending`](Self::pending) returns the state that has to be set. When the
/// hypervisor has accepted it, [`applied`](Self::applied) records it. For KVM,
/// `kvm::apply_pending` does both.
///
/// `D` is the debug state of a hypervisor and an architecture; KVM's on x86 unless said.
///
/// ```
/// use vcpu_caps::{
///     Capability, Finding, GuestDebugFlags, HostFacts, HostReport, Minimum, Owner, Profile,
///     VcpuControl, VcpuId, negotiate,
/// };
///
/// let mut report = HostReport::new("example", HostFacts::default());
/// report.record(Capability::MaskHwintr, Finding::verified(""));
/// let profile = Profile::builder()
///     .require(Capability::MaskHwintr, Minimum::Verified)
///     .build()?;
/// let mut vcpu = VcpuControl::new(VcpuId(0), &negotiate(&report, &profile)?);
///
/// let debugger = Owner::new("debugger");
/// vcpu.hold(debugger, Capability::MaskHwintr)?;
/// let debug = vcpu.pending().ok_or("the mask has to be set")?;
/// assert!(debug.control.contains(GuestDebugFlags::BLOCKIRQ));
/// // KVM_SET_GUEST_DEBUG goes here; then:
/// vcpu.applied(&debug);
/// assert_eq!(vcpu.pending(), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct VcpuControl<D = GuestDebug> {
    id: VcpuId,
    provided: Provided,
    switched_on: BTreeSet<Capability>,
    holds: Holds,
    hardware: Vec<HwBreakpoint>,
    step: bool,
    /// A step is asked for and not armed. See [`VcpuControl::step`].
    rearm: bool,
    inject: Option<Inject>,
    /// The lasting state in force; `None` if it is not known.
    in_force: Option<D>,
}

/// Who applies an ability that can be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AppliedBy {
    /// The hypervisor: the ability goes into the debug state.
    DebugState,
    /// The VMM's injection policy.
    InjectionPolicy,
    /// Debug registers, in place of a switch.
    HardwareSlot,
    /// The embedder, by a mechanism that it has added.
    Embedder,
}

/// The part of the plan that per-vCPU control needs.
#[derive(Clone, Copy, Debug)]
struct Provided {
    mask_hwintr: Option<AppliedBy>,
    bpt_exit: Option<AppliedBy>,
    single_step: Option<AppliedBy>,
    hw_breakpoint: Option<AppliedBy>,
    watchpoint: Option<AppliedBy>,
    inject_bp: Option<AppliedBy>,
    inject_db: Option<AppliedBy>,
}

impl Provided {
    fn new(plan: &Plan) -> Self {
        let by = |capability| plan.mechanism(capability).map(AppliedBy::of);
        let bpt_exit = by(Capability::BptExit);
        Self {
            mask_hwintr: by(Capability::MaskHwintr),
            bpt_exit,
            single_step: by(Capability::SingleStep),
            // A breakpoint that takes the place of a breakpoint instruction is an execute one.
            hw_breakpoint: by(Capability::HwBreakpoint)
                .or(bpt_exit.filter(|by| *by == AppliedBy::HardwareSlot)),
            watchpoint: by(Capability::Watchpoint),
            inject_bp: by(Capability::InjectBp),
            inject_db: by(Capability::InjectDb),
        }
    }
}

impl AppliedBy {
    fn of(mechanism: &Mechanism) -> Self {
        if *mechanism == Mechanism::HOST {
            Self::DebugState
        } else if *mechanism == Mechanism::INJECTION_POLICY {
            Self::InjectionPolicy
        } else if *mechanism == Mechanism::HARDWARE_SLOT {
            Self::HardwareSlot
        } else {
            Self::Embedder
        }
    }
}

impl VcpuControl {
    /// The control of a vCPU on KVM that was just created: everything is off.
    #[must_use]
    pub fn new(id: VcpuId, plan: &Plan) -> Self {
        Self::for_state(id, plan)
    }
}

impl<D: DebugState> VcpuControl<D> {
    /// The control of a vCPU with another debug state than KVM's on x86. The vCPU was just
    /// created: everything is off.
    #[must_use]
    pub fn for_state(id: VcpuId, plan: &Plan) -> Self {
        Self {
            id,
            provided: Provided::new(plan),
            switched_on: BTreeSet::new(),
            holds: Holds::default(),
            hardware: Vec::new(),
            step: false,
            rearm: false,
            inject: None,
            in_force: Some(D::default()),
        }
    }

    /// The vCPU's id.
    #[must_use]
    pub const fn id(&self) -> VcpuId {
        self.id
    }

    /// Switches an ability on or off. A second call with the same value changes nothing. An
    /// ability that is [held](Self::hold) stays on.
    ///
    /// `mask_hwintr`, `single_step` and `bpt_exit` can be switched.
    ///
    /// # Errors
    /// If the plan does not provide the ability or it cannot be switched.
    pub fn set(&mut self, capability: Capability, on: bool) -> Result<(), ControlError> {
        self.check_switch(capability)?;
        if capability == Capability::SingleStep {
            if on { self.step() } else { self.end_step() }
        } else if on {
            self.switched_on.insert(capability);
            Ok(())
        } else {
            self.switched_on.remove(&capability);
            Ok(())
        }
    }

    /// Returns `true` if an ability is on: switched on, or held.
    ///
    /// # Errors
    /// If the plan does not provide the ability or it cannot be switched.
    pub fn get(&self, capability: Capability) -> Result<bool, ControlError> {
        self.check_switch(capability)?;
        Ok(self.is_on(capability))
    }

    /// Takes one hold on an ability that can be switched. Returns `true` if that switched it on.
    ///
    /// # Errors
    /// If the plan does not provide the ability, it cannot be held (a single step cannot), or
    /// there are too many holds.
    pub fn hold(&mut self, owner: Owner, capability: Capability) -> Result<bool, ControlError> {
        if capability == Capability::SingleStep {
            return Err(ControlError::NotHoldable(capability));
        }
        self.check_switch(capability)?;
        let was_on = self.is_on(capability);
        self.holds.take(owner, capability)?;
        Ok(!was_on)
    }

    /// Drops one hold. Returns `true` if that switched the ability off.
    ///
    /// # Errors
    /// If `owner` does not hold it.
    pub fn release(&mut self, owner: Owner, capability: Capability) -> Result<bool, ControlError> {
        self.holds.release(owner, capability)?;
        Ok(!self.is_on(capability))
    }

    /// Drops all holds of an owner that has gone. Returns the number of holds dropped.
    pub fn drop_owner(&mut self, owner: Owner) -> u32 {
        self.holds.drop_owner(owner)
    }

    /// The holds: which owner holds which ability.
    #[must_use]
    pub const fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Makes the next run a single step. Each call arms one step, also if the last run was a step
    /// too and nothing else has changed.
    ///
    /// KVM captures the linear RIP when `KVM_SET_GUEST_DEBUG` arms a step, and hides or adds
    /// `RFLAGS.TF` by comparing with it (`__kvm_set_rflags`, arch/x86/kvm/x86.c). A step after
    /// the registers were written, or after an instruction that KVM emulated, is therefore armed
    /// again.
    ///
    /// # Errors
    /// If the plan does not provide it.
    pub fn step(&mut self) -> Result<(), ControlError> {
        let by = in_plan(self.provided.single_step, Capability::SingleStep)?;
        self.step = true;
        self.rearm = by == AppliedBy::DebugState;
        Ok(())
    }

    /// Makes the next run, and those after it, free.
    ///
    /// # Errors
    /// If the plan does not provide stepping.
    pub fn end_step(&mut self) -> Result<(), ControlError> {
        in_plan(self.provided.single_step, Capability::SingleStep)?;
        self.step = false;
        self.rearm = false;
        Ok(())
    }

    /// Sets all debug registers at once: the first breakpoint into the first register, and so on.
    /// Registers without a breakpoint are free.
    ///
    /// # Errors
    /// If the plan does not provide one of the kinds, there are too few registers, or one cannot
    /// hold its breakpoint. Nothing has changed then.
    pub fn set_hardware(&mut self, hardware: &[HwBreakpoint]) -> Result<(), ControlError> {
        D::check(hardware)?;
        for breakpoint in hardware {
            let (by, capability) = match breakpoint.kind() {
                HwBreakpointKind::Execute => {
                    (self.provided.hw_breakpoint, Capability::HwBreakpoint)
                }
                HwBreakpointKind::Write | HwBreakpointKind::ReadWrite => {
                    (self.provided.watchpoint, Capability::Watchpoint)
                }
            };
            in_plan(by, capability)?;
        }
        self.hardware.clear();
        self.hardware.extend_from_slice(hardware);
        Ok(())
    }

    /// Gives an exception back to the guest with the next request. A second call before that
    /// replaces the first: KVM takes one exception at a time.
    ///
    /// # Errors
    /// If the plan does not provide it.
    pub fn inject(&mut self, inject: Inject) -> Result<(), ControlError> {
        match inject {
            Inject::Breakpoint => in_plan(self.provided.inject_bp, Capability::InjectBp),
            Inject::Debug => in_plan(self.provided.inject_db, Capability::InjectDb),
        }?;
        self.inject = Some(inject);
        Ok(())
    }

    /// Abandons an injection that is not applied yet, and returns it.
    ///
    /// KVM refuses an injection while another exception is pending in the vCPU. The rest of the
    /// state, such as a mask to be lifted, is refused with it. A debugger that leaves then gives
    /// up the injection.
    pub fn cancel_injection(&mut self) -> Option<Inject> {
        self.inject.take()
    }

    /// Returns `true` if hardware interrupts are withheld from the vCPU, by any mechanism and any
    /// owner.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.is_on(Capability::MaskHwintr)
    }

    /// Returns `true` if the VMM's injection policy has to withhold interrupts from this vCPU:
    /// `mask_hwintr` is on, and the plan provides it by [`Mechanism::INJECTION_POLICY`]. The debug
    /// state does not carry the mask then.
    #[must_use]
    pub fn withhold_interrupts(&self) -> bool {
        self.provided.mask_hwintr == Some(AppliedBy::InjectionPolicy) && self.is_masked()
    }

    /// Returns everything that the debug state has to carry.
    ///
    /// A switch that the plan provides by another mechanism than [`Mechanism::HOST`] is not part
    /// of it: the component that has the mechanism reads the switch by [`get`](Self::get).
    #[must_use]
    pub fn intent(&self) -> DebugIntent<'_> {
        let in_state = |by: Option<AppliedBy>, capability| {
            by == Some(AppliedBy::DebugState) && self.is_on(capability)
        };
        DebugIntent {
            single_step: in_state(self.provided.single_step, Capability::SingleStep),
            mask_hwintr: in_state(self.provided.mask_hwintr, Capability::MaskHwintr),
            software_breakpoints: in_state(self.provided.bpt_exit, Capability::BptExit),
            hardware: &self.hardware,
            inject: self.inject,
        }
    }

    /// Returns the state that has to be set before the vCPU runs next; `None` if it is in force.
    ///
    /// To set it costs about as much as a short run of the guest, and to toggle
    /// `KVM_GUESTDBG_BLOCKIRQ` kicks every vCPU of the VM (Linux 5.16).
    #[must_use]
    pub fn pending(&self) -> Option<D> {
        let wanted = D::compose(&self.intent());
        let needed = self.rearm
            || self.inject.is_some()
            || self
                .in_force
                .as_ref()
                .is_none_or(|in_force| *in_force != wanted);
        needed.then_some(wanted)
    }

    /// Records that the hypervisor has accepted `set`. A step in it is armed, and an exception in
    /// it is not injected again.
    ///
    /// Do not call it if the hypervisor has refused `set`: the previous state stays in force, and
    /// what was asked for stays pending.
    pub fn applied(&mut self, set: &D) {
        // If `set` arms no step, it differs from what is asked for, and that stays pending.
        self.rearm = false;
        if self.inject.is_some() && self.inject == set.injects() {
            self.inject = None;
        }
        self.in_force = Some(set.lasting());
    }

    /// Forgets which state is in force: the VMM has set another by itself, or has taken the vCPU
    /// over from a component that may have. The whole state is pending then.
    pub fn forget_applied(&mut self) {
        self.in_force = None;
    }

    fn is_on(&self, capability: Capability) -> bool {
        match capability {
            Capability::SingleStep => self.step,
            _ => self.switched_on.contains(&capability) || self.holds.is_held(capability),
        }
    }

    fn check_switch(&self, capability: Capability) -> Result<(), ControlError> {
        let by = match capability {
            Capability::MaskHwintr => self.provided.mask_hwintr,
            Capability::SingleStep => self.provided.single_step,
            Capability::BptExit => self.provided.bpt_exit,
            _ => return Err(ControlError::NotSwitchable(capability)),
        };
        match in_plan(by, capability)? {
            AppliedBy::HardwareSlot => Err(ControlError::NeedsSlot),
            AppliedBy::DebugState | AppliedBy::InjectionPolicy | AppliedBy::Embedder => Ok(()),
        }
    }
}

fn in_plan<T>(provided: Option<T>, capability: Capability) -> Result<T, ControlError> {
    provided.ok_or(ControlError::NotInPlan(capability))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::evidence::{Finding, Minimum};
    use crate::irqchip::IrqchipMode;
    use crate::mechanism::{MechanismSet, RestsOn};
    use crate::negotiate::negotiate;
    use crate::profile::Profile;
    use crate::report::{HostFacts, HostReport};

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
        VcpuControl::new(VcpuId(3), &plan_with(irqchip, without))
    }

    fn plan_with(irqchip: IrqchipMode, without: &[Capability]) -> Plan {
        let mut report = HostReport::new("kvm_test", HostFacts::default());
        let mut builder = Profile::builder().irqchip(irqchip);
        report.record(Capability::UserIrqchip, Finding::verified(""));
        for &capability in SWITCHES {
            if !without.contains(&capability) {
                report.record(capability, Finding::verified(""));
            }
            builder = builder.prefer(capability, Minimum::Verified);
        }
        negotiate(&report, &builder.build().unwrap()).unwrap()
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
    fn an_exception_that_replaces_another_stays_pending_when_the_first_is_accepted() {
        let mut vcpu = vcpu_without(&[]);
        vcpu.inject(Inject::Debug).unwrap();
        let first = vcpu.pending().unwrap();
        vcpu.inject(Inject::Breakpoint).unwrap();
        vcpu.applied(&first);
        assert_eq!(accept(&mut vcpu).unwrap().control.bits(), 0x8_0000);
    }

    #[test]
    fn breakpoints_in_place_of_int3_need_no_other_entry_in_the_plan() {
        let mut report = HostReport::new("kvm_test", HostFacts::default());
        report.record(Capability::HwBreakpoint, Finding::verified(""));
        let profile = Profile::builder()
            .require(Capability::BptExit, Minimum::Verified)
            .build()
            .unwrap();
        let mut vcpu = VcpuControl::new(VcpuId(0), &negotiate(&report, &profile).unwrap());
        vcpu.set_hardware(&[HwBreakpoint::execute(0x1000)]).unwrap();
        assert_eq!(accept(&mut vcpu).unwrap().control.bits(), 0x2_0001);
    }

    #[test]
    fn a_mask_that_the_policy_provides_is_not_in_the_debug_state() {
        let mut vcpu = vcpu_with(IrqchipMode::User, &[]);
        vcpu.hold(DEBUGGER, MASK).unwrap();
        assert!(vcpu.is_masked() && vcpu.withhold_interrupts());
        assert_eq!(vcpu.pending(), None);
        vcpu.drop_owner(DEBUGGER);
        assert!(!vcpu.withhold_interrupts());
    }

    #[test]
    fn a_mask_by_the_host_is_not_withheld_by_the_policy() {
        let mut vcpu = vcpu_without(&[]);
        vcpu.set(MASK, true).unwrap();
        assert!(vcpu.is_masked());
        assert!(!vcpu.withhold_interrupts());
    }

    #[test]
    fn a_mask_by_an_embedders_mechanism_is_the_embedders() {
        const SHADOW: Mechanism = Mechanism::new("interrupt_shadow", RestsOn::Itself);
        let mut report = HostReport::new("mshv_test", HostFacts::default());
        report.record_mechanism(&SHADOW, Finding::verified(""));
        let profile = Profile::builder()
            .mechanisms(MechanismSet::host_only().offer(MASK, SHADOW))
            .require(MASK, Minimum::Verified)
            .build()
            .unwrap();
        let mut vcpu = VcpuControl::new(VcpuId(0), &negotiate(&report, &profile).unwrap());
        vcpu.hold(DEBUGGER, MASK).unwrap();
        assert!(vcpu.is_masked());
        assert!(!vcpu.withhold_interrupts());
        assert_eq!(vcpu.pending(), None, "the debug state does not carry it");
        vcpu.drop_owner(DEBUGGER);
        assert!(!vcpu.is_masked());
    }

    #[test]
    fn a_step_by_an_embedders_mechanism_does_not_set_the_debug_state() {
        const TRAP_FLAG: Mechanism = Mechanism::new("trap_flag", RestsOn::SameAbility);
        let mut report = HostReport::new("mshv_test", HostFacts::default());
        report.record(Capability::SingleStep, Finding::verified(""));
        let profile = Profile::builder()
            .mechanisms(
                MechanismSet::host_only().with_ladder(Capability::SingleStep, [TRAP_FLAG.into()]),
            )
            .require(Capability::SingleStep, Minimum::Verified)
            .build()
            .unwrap();
        let mut vcpu = VcpuControl::new(VcpuId(0), &negotiate(&report, &profile).unwrap());
        vcpu.step().unwrap();
        assert_eq!(vcpu.get(Capability::SingleStep), Ok(true));
        assert_eq!(vcpu.pending(), None);
    }

    #[test]
    fn int3_exits_are_a_switch_that_can_be_held() {
        let mut vcpu = vcpu_without(&[]);
        vcpu.set(Capability::BptExit, true).unwrap();
        assert_eq!(accept(&mut vcpu).unwrap().control.bits(), 0x1_0001);
        assert_eq!(vcpu.hold(SNAPSHOT, Capability::BptExit), Ok(false));
        vcpu.set(Capability::BptExit, false).unwrap();
        assert_eq!(vcpu.pending(), None);
        assert_eq!(vcpu.drop_owner(SNAPSHOT), 1);
        assert_eq!(accept(&mut vcpu), Some(GuestDebug::OFF));
    }

    #[test]
    fn without_int3_exits_breakpoints_go_into_debug_registers() {
        let mut vcpu = vcpu_without(&[Capability::BptExit, Capability::Watchpoint]);
        assert_eq!(
            vcpu.set(Capability::BptExit, true),
            Err(ControlError::NeedsSlot)
        );
        let four = [0x1000, 0x2000, 0x3000, 0x4000].map(HwBreakpoint::execute);
        vcpu.set_hardware(&four).unwrap();
        let set = accept(&mut vcpu).unwrap();
        assert_eq!(set.control.bits(), 0x2_0001);
        assert_eq!(
            set.debugreg,
            [0x1000, 0x2000, 0x3000, 0x4000, 0, 0, 0, 0x6aa]
        );
        // Refused, and the four stay.
        assert_eq!(
            vcpu.set_hardware(&[HwBreakpoint::execute(0x5000); 5]),
            Err(ControlError::Breakpoint(HwBreakpointError::TooMany {
                slots: 4
            }))
        );
        let watch = HwBreakpoint::watch(0x1000, 4, HwBreakpointKind::Write);
        assert_eq!(
            vcpu.set_hardware(&[four[0], watch]),
            Err(ControlError::NotInPlan(Capability::Watchpoint))
        );
        assert_eq!(vcpu.pending(), None);
        vcpu.set_hardware(&[]).unwrap();
        assert_eq!(accept(&mut vcpu), Some(GuestDebug::OFF));
    }

    #[test]
    fn an_injection_that_was_refused_can_be_abandoned() {
        let mut vcpu = vcpu_without(&[]);
        vcpu.hold(DEBUGGER, MASK).unwrap();
        accept(&mut vcpu);
        vcpu.inject(Inject::Debug).unwrap();
        vcpu.drop_owner(DEBUGGER);
        assert_eq!(vcpu.pending().unwrap().control.bits(), 0x4_0000);
        assert_eq!(vcpu.cancel_injection(), Some(Inject::Debug));
        assert_eq!(vcpu.cancel_injection(), None);
        assert_eq!(accept(&mut vcpu), Some(GuestDebug::OFF));
    }

    #[test]
    fn a_state_that_is_not_known_is_set_in_any_case() {
        let mut vcpu = vcpu_without(&[]);
        vcpu.forget_applied();
        assert_eq!(accept(&mut vcpu), Some(GuestDebug::OFF));
        assert_eq!(vcpu.pending(), None);
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
            vcpu.set(Capability::BptExit, true),
            refused(Capability::BptExit)
        );
        assert_eq!(vcpu.set_hardware(&[watch]), refused(Capability::Watchpoint));
        assert_eq!(
            vcpu.set_hardware(&[HwBreakpoint::execute(0)]),
            refused(Capability::HwBreakpoint)
        );
        assert_eq!(vcpu.pending(), None);
        assert_eq!(vcpu.holds().owners(MASK).count(), 0);
    }

    #[test]
    fn a_property_of_the_host_cannot_be_switched() {
        let mut vcpu = vcpu_without(&[]);
        assert_eq!(
            vcpu.set(Capability::SyncRegs, true),
            Err(ControlError::NotSwitchable(Capability::SyncRegs))
        );
        // A step is one shot: holding it means nothing.
        assert_eq!(
            vcpu.hold(DEBUGGER, Capability::SingleStep),
            Err(ControlError::NotHoldable(Capability::SingleStep))
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
        SetHardware(Vec<HwBreakpoint>),
        CancelInjection,
        Forget,
        Inject(Inject),
        Run,
    }

    fn any_breakpoint() -> impl Strategy<Value = HwBreakpoint> {
        let kind = prop::sample::select(&[HwBreakpointKind::Execute, HwBreakpointKind::Write]);
        // Some of them are not aligned.
        (0..6_u64, kind).prop_map(|(address, kind)| HwBreakpoint::watch(address, 2, kind))
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
            prop::collection::vec(any_breakpoint(), 0..6).prop_map(Do::SetHardware),
            Just(Do::CancelInjection),
            Just(Do::Forget),
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
                let before = vcpu.clone();
                let client = |n| Owner::instance("client", n);
                let refused = match action {
                    Do::Set(capability, on) => vcpu.set(capability, on).is_err(),
                    Do::Hold(owner, capability) => vcpu.hold(client(owner), capability).is_err(),
                    Do::Release(owner, capability) => vcpu.release(client(owner), capability).is_err(),
                    Do::Gone(owner) => { vcpu.drop_owner(client(owner)); false }
                    Do::Step => vcpu.step().is_err(),
                    Do::EndStep => vcpu.end_step().is_err(),
                    Do::SetHardware(hardware) => vcpu.set_hardware(&hardware).is_err(),
                    Do::CancelInjection => { vcpu.cancel_injection(); false }
                    Do::Forget => { vcpu.forget_applied(); false }
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
                    prop_assert_eq!(vcpu.intent(), before.intent());
                    prop_assert_eq!(vcpu.pending(), before.pending());
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
            vcpu.set_hardware(&[]).unwrap();
            accept(&mut vcpu);
            prop_assert_eq!(vcpu.pending(), None);
            prop_assert_eq!(GuestDebug::compose(&vcpu.intent()), GuestDebug::OFF);
        }
    }

    /// A debug state with other sizes than x86: six breakpoints of four bytes, and no mask.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Toy {
        step: bool,
        breakpoints: Vec<u64>,
    }

    impl DebugState for Toy {
        fn compose(intent: &DebugIntent<'_>) -> Self {
            Self {
                step: intent.single_step,
                breakpoints: intent.hardware.iter().map(HwBreakpoint::address).collect(),
            }
        }

        fn check(hardware: &[HwBreakpoint]) -> Result<(), HwBreakpointError> {
            if hardware.len() > 6 {
                return Err(HwBreakpointError::TooMany { slots: 6 });
            }
            hardware.iter().try_for_each(|breakpoint| {
                let address = breakpoint.address();
                if address % 4 == 0 {
                    Ok(())
                } else {
                    Err(HwBreakpointError::Alignment { address, length: 4 })
                }
            })
        }

        fn lasting(&self) -> Self {
            self.clone()
        }

        fn injects(&self) -> Option<Inject> {
            None
        }
    }

    #[test]
    fn another_architecture_brings_its_own_state_and_sizes() {
        let plan = plan_with(IrqchipMode::Kernel, &[]);
        let mut vcpu = VcpuControl::<Toy>::for_state(VcpuId(0), &plan);
        assert_eq!(vcpu.pending(), None);
        let six = [0_u64, 4, 8, 12, 16, 20].map(HwBreakpoint::execute);
        vcpu.set_hardware(&six).unwrap();
        vcpu.step().unwrap();
        let set = vcpu.pending().unwrap();
        assert_eq!(
            set,
            Toy {
                step: true,
                breakpoints: [0, 4, 8, 12, 16, 20].into()
            }
        );
        vcpu.applied(&set);
        assert_eq!(vcpu.pending(), None);
        assert_eq!(
            vcpu.set_hardware(&[HwBreakpoint::execute(2)]),
            Err(ControlError::Breakpoint(HwBreakpointError::Alignment {
                address: 2,
                length: 4
            }))
        );
    }
}

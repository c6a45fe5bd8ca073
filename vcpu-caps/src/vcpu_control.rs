//! The switches of one vCPU.

use alloc::collections::BTreeSet;

use thiserror::Error;

use crate::applied::{AppliedDebug, Rearm};
use crate::capability::{Capability, VcpuId};
use crate::guest_debug::{
    DebugIntent, GuestDebug, GuestDebugFlags, HwBreakpoint, HwBreakpointError, HwBreakpointKind,
    Inject,
};
use crate::holds::{HoldError, Holds, Owner};
use crate::plan::Plan;
use crate::way::Way;

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
    /// Under this plan a breakpoint takes a debug register, which one switch cannot express: use
    /// [`VcpuControl::insert_breakpoint`].
    #[error("INT3 does not leave the guest on this host: insert breakpoints one by one")]
    NeedsSlot,
    /// All four debug-address registers are taken: remove a breakpoint or watchpoint.
    #[error("all 4 debug registers are taken")]
    NoFreeSlot,
    /// Too many software breakpoints: remove some.
    #[error("{limit} software breakpoints are set already")]
    TooManyBreakpoints {
        /// How many there may be.
        limit: usize,
    },
    /// Nothing like it is set.
    #[error("no such breakpoint is set")]
    NoSuchBreakpoint,
    /// A debug register cannot hold the breakpoint.
    #[error(transparent)]
    Breakpoint(#[from] HwBreakpointError),
    /// A hold cannot be taken or dropped.
    #[error(transparent)]
    Hold(#[from] HoldError),
}

/// Where a breakpoint has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Write an INT3 (0xcc) at the address.
    Int3,
    /// It is in this debug-address register, 0 to 3.
    Slot(u8),
}

/// The switches of one vCPU, as bhyve's `vm_set_capability` has them, and all else that goes into
/// its debug state.
///
/// It does no I/O. [`pending`](Self::pending) answers what has to be set; when the hypervisor has
/// accepted that, [`applied`](Self::applied) records it.
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
pub struct VcpuControl {
    id: VcpuId,
    ways: Ways,
    switched_on: BTreeSet<Capability>,
    holds: Holds,
    software: BTreeSet<u64>,
    hardware: [Option<HwBreakpoint>; 4],
    step: bool,
    rearm: Rearm,
    inject: Option<Inject>,
    state: AppliedDebug,
}

/// The part of the plan that per-vCPU control needs.
#[derive(Clone, Copy, Debug)]
struct Ways {
    mask_hwintr: Option<Way>,
    bpt_exit: Option<Way>,
    single_step: bool,
    hw_breakpoint: bool,
    watchpoint: bool,
    inject_bp: bool,
    inject_db: bool,
}

impl VcpuControl {
    /// How many software breakpoints there may be.
    pub const MAX_SOFTWARE_BREAKPOINTS: usize = 4096;

    /// The control of a vCPU that was just created: everything is off.
    #[must_use]
    pub fn new(id: VcpuId, plan: &Plan) -> Self {
        Self {
            id,
            ways: Ways {
                mask_hwintr: plan.way(Capability::MaskHwintr),
                bpt_exit: plan.way(Capability::BptExit),
                single_step: plan.has(Capability::SingleStep),
                hw_breakpoint: plan.has(Capability::HwBreakpoint)
                    || plan.way(Capability::BptExit) == Some(Way::HardwareSlot),
                watchpoint: plan.has(Capability::Watchpoint),
                inject_bp: plan.has(Capability::InjectBp),
                inject_db: plan.has(Capability::InjectDb),
            },
            switched_on: BTreeSet::new(),
            holds: Holds::default(),
            software: BTreeSet::new(),
            hardware: [None; 4],
            step: false,
            rearm: Rearm::IfChanged,
            inject: None,
            state: AppliedDebug::fresh(),
        }
    }

    /// Which vCPU this is.
    #[must_use]
    pub const fn id(&self) -> VcpuId {
        self.id
    }

    /// Switches an ability on or off. Saying it twice is the same as saying it once; an ability
    /// that somebody [holds](Self::hold) stays on.
    ///
    /// `mask_hwintr`, `single_step` and `bpt_exit` can be switched.
    ///
    /// # Errors
    /// If the plan does not provide the ability or it is no switch.
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

    /// Whether an ability is on: switched on, or held.
    ///
    /// # Errors
    /// If the plan does not provide the ability or it is no switch.
    pub fn get(&self, capability: Capability) -> Result<bool, ControlError> {
        self.check_switch(capability)?;
        Ok(self.is_on(capability))
    }

    /// Takes one hold on an ability that can be switched. Answers whether that switched it on.
    ///
    /// # Errors
    /// If the plan does not provide the ability, it is no switch that can be held (a single step
    /// cannot), or there are too many holds.
    pub fn hold(&mut self, owner: Owner, capability: Capability) -> Result<bool, ControlError> {
        if capability == Capability::SingleStep {
            return Err(ControlError::NotSwitchable(capability));
        }
        self.check_switch(capability)?;
        let was_on = self.is_on(capability);
        self.holds.take(owner, capability)?;
        Ok(!was_on)
    }

    /// Drops one hold. Answers whether that switched the ability off.
    ///
    /// # Errors
    /// If `owner` does not hold it.
    pub fn release(&mut self, owner: Owner, capability: Capability) -> Result<bool, ControlError> {
        self.holds.release(owner, capability)?;
        Ok(!self.is_on(capability))
    }

    /// Drops all holds of an owner that has gone. Answers how many there were.
    pub fn drop_owner(&mut self, owner: Owner) -> u32 {
        self.holds.drop_owner(owner)
    }

    /// Who holds what.
    #[must_use]
    pub const fn holds(&self) -> &Holds {
        &self.holds
    }

    /// The next run is for one instruction. Each call arms one step, also if the vCPU has been
    /// stepping all along: see [`Rearm`].
    ///
    /// # Errors
    /// If the plan does not provide it.
    pub fn step(&mut self) -> Result<(), ControlError> {
        self.check(self.ways.single_step, Capability::SingleStep)?;
        self.step = true;
        self.rearm = Rearm::Always;
        Ok(())
    }

    /// The vCPU runs freely from now on.
    ///
    /// # Errors
    /// If the plan does not provide stepping.
    pub fn end_step(&mut self) -> Result<(), ControlError> {
        self.check(self.ways.single_step, Capability::SingleStep)?;
        self.step = false;
        self.rearm = Rearm::IfChanged;
        Ok(())
    }

    /// Sets a breakpoint at a linear address, in the way the plan has for `bpt_exit`. Set twice,
    /// it is the same breakpoint.
    ///
    /// # Errors
    /// If the plan has no way, or there is no room.
    pub fn insert_breakpoint(&mut self, address: u64) -> Result<Placement, ControlError> {
        match self.ways.bpt_exit {
            Some(Way::Host) => {
                if self.software.len() >= Self::MAX_SOFTWARE_BREAKPOINTS
                    && !self.software.contains(&address)
                {
                    return Err(ControlError::TooManyBreakpoints {
                        limit: Self::MAX_SOFTWARE_BREAKPOINTS,
                    });
                }
                self.software.insert(address);
                Ok(Placement::Int3)
            }
            Some(_) => self
                .arm(HwBreakpoint::execute(address))
                .map(Placement::Slot),
            None => Err(ControlError::NotInPlan(Capability::BptExit)),
        }
    }

    /// Removes the breakpoint at a linear address. Answers where it was.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_breakpoint(&mut self, address: u64) -> Result<Placement, ControlError> {
        if self.software.remove(&address) {
            Ok(Placement::Int3)
        } else {
            self.disarm(&HwBreakpoint::execute(address))
                .map(Placement::Slot)
        }
    }

    /// Puts a breakpoint or watchpoint into a free debug-address register, and answers which. Put
    /// in twice, it is the same one.
    ///
    /// # Errors
    /// If the plan does not provide it, or all registers are taken.
    pub fn arm(&mut self, breakpoint: HwBreakpoint) -> Result<u8, ControlError> {
        self.check_breakpoint(&breakpoint)?;
        if let Some(slot) = self.slot_with(Some(breakpoint)) {
            return Ok(slot);
        }
        let slot = self.slot_with(None).ok_or(ControlError::NoFreeSlot)?;
        if let Some(place) = self.hardware.get_mut(usize::from(slot)) {
            *place = Some(breakpoint);
        }
        Ok(slot)
    }

    /// Takes a breakpoint or watchpoint out of its debug-address register, and answers which.
    ///
    /// # Errors
    /// If it is in none.
    pub fn disarm(&mut self, breakpoint: &HwBreakpoint) -> Result<u8, ControlError> {
        let slot = self
            .slot_with(Some(*breakpoint))
            .ok_or(ControlError::NoSuchBreakpoint)?;
        if let Some(place) = self.hardware.get_mut(usize::from(slot)) {
            *place = None;
        }
        Ok(slot)
    }

    /// Sets all debug-address registers at once: the first breakpoint into DR0, and so on.
    ///
    /// # Errors
    /// If the plan does not provide one of the kinds, a register cannot hold one of them, or there
    /// are more than four. Nothing has changed then.
    pub fn set_hardware(&mut self, hardware: &[HwBreakpoint]) -> Result<(), ControlError> {
        let mut slots = [None; 4];
        if hardware.len() > slots.len() {
            return Err(ControlError::NoFreeSlot);
        }
        for (slot, breakpoint) in slots.iter_mut().zip(hardware) {
            self.check_breakpoint(breakpoint)?;
            *slot = Some(*breakpoint);
        }
        self.hardware = slots;
        Ok(())
    }

    /// Gives an exception back to the guest with the next request. A second one before that
    /// replaces the first: KVM takes one at a time.
    ///
    /// # Errors
    /// If the plan does not provide it.
    pub fn inject(&mut self, inject: Inject) -> Result<(), ControlError> {
        match inject {
            Inject::Breakpoint => self.check(self.ways.inject_bp, Capability::InjectBp),
            Inject::Debug => self.check(self.ways.inject_db, Capability::InjectDb),
        }?;
        self.inject = Some(inject);
        Ok(())
    }

    /// Whether the injection policy of a userspace interrupt controller has to withhold
    /// interrupts from this vCPU: `mask_hwintr` is on and [`Way::InjectionPolicy`] is how it is
    /// had. The debug state then does not carry it.
    #[must_use]
    pub fn withhold_interrupts(&self) -> bool {
        self.ways.mask_hwintr == Some(Way::InjectionPolicy) && self.is_on(Capability::MaskHwintr)
    }

    /// All that is wanted now.
    #[must_use]
    pub fn intent(&self) -> DebugIntent {
        DebugIntent {
            single_step: self.step,
            mask_hwintr: self.ways.mask_hwintr == Some(Way::Host)
                && self.is_on(Capability::MaskHwintr),
            software_breakpoints: self.is_on(Capability::BptExit),
            hardware: self.hardware,
            inject: self.inject,
        }
    }

    /// What has to be set before the vCPU runs next; `None` if it is in force already.
    #[must_use]
    pub fn pending(&self) -> Option<GuestDebug> {
        let wanted = GuestDebug::compose(&self.intent());
        self.state.needs(&wanted, self.rearm).then_some(wanted)
    }

    /// Records that the hypervisor has accepted `set`. The step that was asked for is armed, and
    /// what was injected will not be injected again.
    pub fn applied(&mut self, set: &GuestDebug) {
        self.state.record(set);
        if !self.step || set.control.contains(GuestDebugFlags::SINGLESTEP) {
            self.rearm = Rearm::IfChanged;
        }
        let injected = match self.inject {
            Some(Inject::Breakpoint) => set.control.contains(GuestDebugFlags::INJECT_BP),
            Some(Inject::Debug) => set.control.contains(GuestDebugFlags::INJECT_DB),
            None => false,
        };
        if injected {
            self.inject = None;
        }
    }

    fn is_on(&self, capability: Capability) -> bool {
        match capability {
            Capability::SingleStep => self.step,
            Capability::BptExit if !self.software.is_empty() => true,
            _ => self.switched_on.contains(&capability) || self.holds.is_held(capability),
        }
    }

    fn check_switch(&self, capability: Capability) -> Result<(), ControlError> {
        match capability {
            Capability::MaskHwintr => self.check(self.ways.mask_hwintr.is_some(), capability),
            Capability::SingleStep => self.check(self.ways.single_step, capability),
            Capability::BptExit => match self.ways.bpt_exit {
                Some(Way::Host) => Ok(()),
                Some(_) => Err(ControlError::NeedsSlot),
                None => Err(ControlError::NotInPlan(capability)),
            },
            _ => Err(ControlError::NotSwitchable(capability)),
        }
    }

    fn check(&self, provided: bool, capability: Capability) -> Result<(), ControlError> {
        if provided {
            Ok(())
        } else {
            Err(ControlError::NotInPlan(capability))
        }
    }

    fn check_breakpoint(&self, breakpoint: &HwBreakpoint) -> Result<(), ControlError> {
        breakpoint.check_x86()?;
        match breakpoint.kind() {
            HwBreakpointKind::Execute => {
                self.check(self.ways.hw_breakpoint, Capability::HwBreakpoint)
            }
            HwBreakpointKind::Write | HwBreakpointKind::ReadWrite => {
                self.check(self.ways.watchpoint, Capability::Watchpoint)
            }
        }
    }

    fn slot_with(&self, content: Option<HwBreakpoint>) -> Option<u8> {
        (0..)
            .zip(&self.hardware)
            .find_map(|(slot, held)| (*held == content).then_some(slot))
    }
}

#[cfg(test)]
mod tests;

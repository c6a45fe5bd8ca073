//! The vCPU's debug state: what is wanted, and putting it in force.

use vcpu_caps::{
    Capability, GuestDebugFlags, HwBreakpoint, Inject, Mechanism, Owner, Plan, VcpuControl, VcpuId,
};

use super::code_guards::CodeGuards;
use super::held_trap::HeldTrap;
use super::registers::{Registers, set_tf};
use super::slots::{OwnBreakpoints, Slots};
use super::vcpu::{PendingEvents, RunState, StepperError, Vcpu};
use crate::order::Armed;
use crate::x86_64::step::Guards;
use crate::x86_64::{RegisterFile, RegisterGroups};

/// The debugger, as an owner of holds on [`Capability::MaskHwintr`]. Others may hold it too: see
/// [`Stepper::control_mut`](super::Stepper::control_mut).
pub const DEBUGGER: Owner = Owner::new("debugger");

/// The linear RIP at which a hypervisor's reset of the vCPU sets RFLAGS: CS is that of INIT already
/// (SDM 3A table 9-1), and RIP still 0 (KVM, `kvm_vcpu_reset`).
const LINEAR_RIP_OF_RESET: u64 = 0xffff_0000;

/// What an instruction blocks until the next one has ended (SDM 3A 7.8.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shadow {
    #[default]
    None,
    /// STI: interrupts.
    Sti,
    /// MOV SS, POP SS: interrupts and traps.
    MovSs,
}

/// The debug state of one vCPU, and how its single step is armed.
#[derive(Debug)]
pub(super) struct Arming {
    pub(super) control: VcpuControl,
    /// Registers come and go with exits and entries while stepping: a step in a series costs one
    /// system call.
    sync_regs: bool,
    /// A step is wanted: one is under way, or was the last thing that ran.
    stepping: bool,
    /// The single step in force was armed by [`Arming::arm_as_reset`].
    survives_init: bool,
    /// Queued for the guest, and not known to be delivered.
    queued: Option<Inject>,
    /// What is in the debug registers.
    slots: Slots,
    /// A step of the order may have run a handler that it did not stop at.
    pub(super) unguarded: bool,
    /// INT3s in place of guards that found no debug register.
    pub(super) code_guards: CodeGuards,
    /// The plan has execute breakpoints, and watchpoints.
    has_guards: bool,
    has_watchpoints: bool,
    /// INT3 leaves the guest. A plan that provides `bpt_exit` by debug registers lacks that.
    int3_exits: bool,
    /// The trap of a step of user code goes to the guest's own vector 1.
    user_traps_reach_the_guest: bool,
    /// The guest's own breakpoints, if known.
    own: Option<OwnBreakpoints>,
    /// What the instruction that was stepped last blocks until the next one has ended. A hypervisor may
    /// have dropped that with the step.
    shadow: Shadow,
    /// The trap of a step that ended may be pending still: see `held_trap`.
    pub(super) held_trap: HeldTrap,
    /// An interrupt that was taken back from the hypervisor.
    pub(super) withheld: Option<u8>,
}

impl Arming {
    pub(super) fn new(id: VcpuId, plan: &Plan) -> Self {
        Self {
            control: VcpuControl::new(id, plan),
            sync_regs: plan.has(Capability::SyncRegs),
            stepping: false,
            survives_init: false,
            queued: None,
            slots: Slots::default(),
            unguarded: false,
            code_guards: CodeGuards::default(),
            has_guards: plan.has(Capability::HwBreakpoint),
            has_watchpoints: plan.has(Capability::Watchpoint),
            int3_exits: plan.is_provided_by(Capability::BptExit, &Mechanism::HOST),
            user_traps_reach_the_guest: !plan.has(Capability::SingleStepUser),
            own: None,
            shadow: Shadow::None,
            held_trap: HeldTrap::default(),
            withheld: None,
        }
    }

    /// Returns `true` if the instruction that was stepped last blocks interrupts.
    pub(super) fn is_in_shadow(&self) -> bool {
        self.shadow != Shadow::None
    }

    /// See [`Self::shadow`].
    pub(super) fn shadow(&self) -> Shadow {
        self.shadow
    }

    /// Returns `true` if a step with `mask`, or without, lets interrupts in.
    pub(super) fn lets_interrupts_in(&self, mask: bool) -> bool {
        !(mask || (self.is_in_shadow() && self.can_mask()))
    }

    /// See [`Self::int3_exits`].
    pub(super) fn int3_exits(&self) -> bool {
        self.int3_exits
    }

    /// The plan has execute breakpoints.
    pub(super) fn has_guards(&self) -> bool {
        self.has_guards
    }

    /// Returns `true` if a halted vCPU can be woken without executing an instruction.
    pub(super) fn can_wake(&self) -> bool {
        self.has_guards && self.owed().is_none() && self.can_mask()
    }

    /// The plan has a mask.
    pub(super) fn can_mask(&self) -> bool {
        self.control.get(Capability::MaskHwintr).is_ok()
    }

    /// See [`Self::user_traps_reach_the_guest`].
    pub(super) fn user_traps_reach_the_guest(&self) -> bool {
        self.user_traps_reach_the_guest
    }

    /// See [`Self::shadow`].
    pub(super) fn set_shadow(&mut self, shadow: Shadow) {
        self.shadow = shadow;
    }

    /// What is in the debug registers.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The guest's own breakpoints.
    pub(super) fn own_breakpoints<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
    ) -> Result<OwnBreakpoints, StepperError<V::Error>> {
        if let Some(own) = self.own {
            return Ok(own);
        }
        let status = vcpu
            .debug_status()
            .map_err(StepperError::of("reading debug registers"))?;
        let own = OwnBreakpoints::new(status);
        self.own = Some(own);
        Ok(own)
    }

    /// The guest may have changed its debug registers.
    pub(super) fn forget_own_breakpoints(&mut self) {
        self.own = None;
    }

    /// The vCPU has run. `entered` says that it has certainly entered the guest.
    pub(super) fn ran(&mut self, entered: bool) {
        if entered {
            self.queued = None;
        }
        if self.stepping {
            self.held_trap.stepped();
        }
    }

    /// A new guest runs on the vCPU: nothing is owed to it.
    pub(super) fn reset(&mut self) {
        let _ = self.control.cancel_injection();
        self.forget_interrupt();
        self.queued = None;
        self.own = None;
        self.shadow = Shadow::None;
    }

    pub(super) fn is_stepping(&self) -> bool {
        self.stepping
    }

    /// Registers come with the next exit.
    pub(super) fn syncs(&self) -> bool {
        self.sync_regs && self.stepping
    }

    /// Sets what [`arm`](Self::arm) puts in force for a free run.
    pub(super) fn intend_free<V: Vcpu>(
        &mut self,
        armed: &Armed,
    ) -> Result<(), StepperError<V::Error>> {
        if std::mem::take(&mut self.stepping) {
            // A plan without steps refuses this, too: there is nothing to end then.
            let _ = self.control.end_step();
        }
        self.control.drop_owner(DEBUGGER);
        self.own = None;
        self.code_guards.forget();
        self.intend_breakpoints::<V>(armed, Slots::free(&armed.hardware))
    }

    /// The debug registers for a step of the instruction at `pc`.
    pub(super) fn slots_for_step(
        &self,
        debugger: &[HwBreakpoint],
        own: &OwnBreakpoints,
        guards: &Guards,
        pc: u64,
    ) -> Slots {
        if !self.has_guards || own.watches_ports() {
            return Slots::free(debugger);
        }
        // Where the debugger's do not fire the guest's do not either.
        let own = if self.has_watchpoints {
            *own
        } else {
            OwnBreakpoints::default()
        };
        self.slots.step(debugger, &own, guards, pc)
    }

    /// Sets what [`arm_step`](Self::arm_step) puts in force.
    pub(super) fn intend_step<V: Vcpu>(
        &mut self,
        mask: bool,
        armed: &Armed,
        slots: Slots,
    ) -> Result<(), StepperError<V::Error>> {
        self.stepping = true;
        let holds = self.control.holds();
        let held = holds
            .owners(Capability::MaskHwintr)
            .any(|(owner, _)| owner == DEBUGGER);
        let mask = mask || !self.lets_interrupts_in(mask);
        if mask && !held {
            self.control.hold(DEBUGGER, Capability::MaskHwintr)?;
        } else if held && !mask {
            self.control.drop_owner(DEBUGGER);
        }
        self.intend_breakpoints::<V>(armed, slots)
    }

    fn intend_breakpoints<V: Vcpu>(
        &mut self,
        armed: &Armed,
        slots: Slots,
    ) -> Result<(), StepperError<V::Error>> {
        let software = !armed.software.is_empty() || self.code_guards.are_wanted();
        // Off already where the plan lacks it.
        if software || self.control.get(Capability::BptExit).unwrap_or(false) {
            self.control.set(Capability::BptExit, software)?;
        }
        self.control.set_hardware(&slots.breakpoints())?;
        self.slots = slots;
        Ok(())
    }

    /// Puts in force what is pending. Registers that are to be written must be written before: the
    /// hypervisor captures the linear RIP here.
    pub(super) fn arm<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        registers: &mut Registers,
    ) -> Result<(), StepperError<V::Error>> {
        if self.stepping && registers.tf_is_in_rflags() {
            // From here on the hypervisor hides the guest's own TF.
            let mut file = RegisterFile::default();
            registers.read(vcpu, RegisterGroups::CORE, &mut file)?;
            registers.hide_tf(super::registers::has_tf(&file));
        }
        if self.sync_regs {
            vcpu.sync_registers(self.stepping);
        }
        vcpu.discard_tf_at_entry();
        if self.stepping || !registers.hides_tf() {
            self.apply(vcpu, registers)?;
            if !self.stepping {
                registers.show_tf(vcpu)?;
            }
            return Ok(());
        }
        // The write that shows TF drops an exception that is queued already: it is queued after it.
        if self.queued.is_some() && !pending_events(vcpu)?.exception {
            self.queued = None;
        }
        let exception = self.control.cancel_injection().or(self.queued.take());
        let shown = self
            .apply(vcpu, registers)
            .and_then(|()| registers.show_tf(vcpu));
        if let Some(exception) = exception {
            self.give_back::<V>(exception)?;
        }
        shown?;
        self.apply(vcpu, registers)
    }

    fn apply<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        registers: &mut Registers,
    ) -> Result<(), StepperError<V::Error>> {
        let Some(wanted) = self.control.pending() else {
            return Ok(());
        };
        let exception = self.control.intent().inject;
        vcpu.set_guest_debug(&wanted)
            .map_err(StepperError::of("setting the debug state"))?;
        self.control.applied(&wanted);
        self.survives_init = false;
        if exception.is_some() {
            self.queued = exception;
            registers.event_queued();
        }
        Ok(())
    }

    /// Leaves the vCPU as without a debugger, but for holds of other owners.
    pub(super) fn disarm<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        registers: &mut Registers,
    ) -> Result<(), StepperError<V::Error>> {
        self.intend_free::<V>(&Armed::default())?;
        self.arm(vcpu, registers)
    }

    /// Arms one step more: an emulated instruction drops the TF of the one before.
    ///
    /// If the debug state is in force and the registers came with the last exit, TF goes back in
    /// with them, and the entry is the step's only system call. Otherwise the hypervisor sets TF
    /// where it finds RIP.
    ///
    /// `now` is [`RegisterGroups::EXPEDITED`] as the vCPU has them, but for TF: the guest's own.
    pub(super) fn arm_step<V: Vcpu>(
        &mut self,
        now: &RegisterFile,
        vcpu: &mut V,
        registers: &mut Registers,
    ) -> Result<(), StepperError<V::Error>> {
        // Not in force if the vCPU was to run freely since, and was stopped before it had begun.
        let in_force = self.control.get(Capability::SingleStep).unwrap_or(false);
        let in_series = in_force && registers.are_cached() && self.control.pending().is_none();
        let survives = self.survives_init || !V::TF_FOLLOWS_ARMED_RIP;
        if in_series && survives && registers.trapped() && vcpu.set_tf_at_entry() {
            return Ok(());
        }
        self.control.step()?;
        let mut may_write = registers.trapped();
        if !may_write {
            let events = pending_events(vcpu)?;
            may_write = !events.exception;
            self.withhold_interrupt(events.interrupt, vcpu)?;
        }
        let runs = matches!(registers.run_state(), RunState::Runnable | RunState::Halted);
        if V::TF_FOLLOWS_ARMED_RIP && runs && !self.injects() && may_write {
            self.arm_as_reset(now, vcpu, registers)
        } else {
            self.arm(vcpu, registers)
        }
    }

    /// Returns `true` if an exception is on its way to the guest. A write of registers would drop
    /// it.
    fn injects(&self) -> bool {
        let pending = self.control.pending();
        pending.is_some_and(|wanted| wanted.control.intersects(GuestDebugFlags::INJECT))
    }

    /// Arms a step that survives INIT.
    ///
    /// A `KVM_RUN` takes INIT and the start-up IPI, if both are there or the vCPU is halted, and
    /// goes on in the guest. The reset has cleared TF; the vCPU would run on, masked. But KVM adds
    /// TF to RFLAGS that it sets while the linear RIP is the one of `KVM_SET_GUEST_DEBUG`
    /// (`__kvm_set_rflags`), and a start-up IPI leaves RFLAGS alone. So the call is made with RIP
    /// where the reset has it. The instruction that is stepped without INIT gets its TF by hand,
    /// as all that follow in a series do.
    ///
    /// No exception may be queued: the writes of registers would lose it. And since `now` was read
    /// nothing may have read the run state: that takes INIT, and what is written would be stale.
    fn arm_as_reset<V: Vcpu>(
        &mut self,
        now: &RegisterFile,
        vcpu: &mut V,
        registers: &mut Registers,
    ) -> Result<(), StepperError<V::Error>> {
        let mut file = now.clone();
        registers.hide_tf(super::registers::has_tf(&file));
        let mut elsewhere = file.clone();
        let distance = LINEAR_RIP_OF_RESET.wrapping_sub(file.linear_pc());
        elsewhere.core.rip = file.core.rip.wrapping_add(distance);
        let cached = registers.take();
        registers.write(vcpu, RegisterGroups::CORE, &elsewhere)?;
        let armed = self.arm(vcpu, registers);
        set_tf(&mut file, armed.is_ok());
        let core = RegisterGroups::CORE;
        // RIP must not stay elsewhere: one more attempt.
        let back = match vcpu.write_registers(core, &file) {
            Ok(()) => Ok(()),
            Err(error) => {
                let failed = StepperError::of("writing registers back")(error);
                vcpu.write_registers(core, &file)
                    .map_or(Err(failed), |()| Ok(()))
            }
        };
        self.survives_init = armed.is_ok() && back.is_ok();
        registers.restore(cached);
        armed.and(back)
    }

    /// The exception that is given back with the next entry.
    pub(super) fn owed(&self) -> Option<Inject> {
        self.control.intent().inject.or(self.queued)
    }

    /// Gives an exception back to the guest with the next entry.
    pub(super) fn give_back<V: Vcpu>(
        &mut self,
        exception: Inject,
    ) -> Result<(), StepperError<V::Error>> {
        Ok(self.control.inject(exception)?)
    }
}

/// Returns `true` if no exception waits that a write of registers would lose.
pub(super) fn may_write<V: Vcpu>(
    vcpu: &mut V,
    registers: &Registers,
) -> Result<bool, StepperError<V::Error>> {
    if registers.trapped() {
        return Ok(true);
    }
    Ok(!pending_events(vcpu)?.exception)
}

pub(super) fn pending_events<V: Vcpu>(
    vcpu: &mut V,
) -> Result<PendingEvents, StepperError<V::Error>> {
    vcpu.pending_events()
        .map_err(StepperError::of("reading pending events"))
}

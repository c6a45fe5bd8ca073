//! One instruction whose step is armed, and not known to be done.

use vcpu_caps::{HwBreakpoint, HwBreakpointKind, Inject};

use super::arming::{Arming, Shadow, pending_events};
use super::code_guards::CodeGuards;
use super::debug_exit::owe_debug_exception;
use super::registers::{Registers, has_tf};
use super::slots::Slots;
use super::system_call::Lent;
use super::user_code::{UserTrap, return_to_user};
use super::vcpu::{DebugExit, RunState, StepperError, Vcpu};
use crate::address::{GuestPhysAddr, GuestVirtAddr};
use crate::host::GuestMemory;
use crate::order::{Armed, StepOrder};
use crate::x86_64::bits::{
    CR0_PE, DR6_BD, DR6_BS, DR6_HITS, MAX_INSTRUCTION, RFLAGS_IF, RFLAGS_RF,
};
use crate::x86_64::{
    Progress, RegisterFile, RegisterGroups, Settlement, StepClass, StepPlan, translate,
};

/// INT1's opcode.
const INT1: u8 = 0xf1;

/// What a step works on.
pub(super) struct Context<'a, V, M> {
    pub(super) arming: &'a mut Arming,
    pub(super) registers: &'a mut Registers,
    pub(super) vcpu: &'a mut V,
    pub(super) memory: &'a M,
}

/// An instruction whose step is armed, and not known to be done.
#[derive(Debug)]
pub(super) struct PendingStep {
    plan: StepPlan,
    /// [`RegisterGroups::EXPEDITED`] before it.
    before: RegisterFile,
    run_state: RunState,
    /// To be taken back when the step has ended.
    lent: Lent,
    /// The step's trap goes to the guest's own handler.
    user_trap: Option<UserTrap>,
    /// It needs no entry.
    is_done: bool,
    /// See [`Stepper::prepared_event`](super::Stepper::prepared_event).
    prepared: Option<Option<u8>>,
}

impl PendingStep {
    /// Returns `true` if the guest may notice in this step that its clocks are wrong.
    pub(super) fn may_read_clock(&self) -> bool {
        // A vCPU that waits is woken by an interrupt.
        self.run_state != RunState::Runnable || self.plan.may_read_clock()
    }

    /// Plans and arms the step of the instruction at the PC. The `first` of an order is stepped off
    /// a breakpoint, which is no hit of it.
    ///
    /// # Errors
    /// If the vCPU refuses. What was lent is in `lent` then, and the caller takes it back.
    pub(super) fn arm<V: Vcpu, M: GuestMemory>(
        order: &StepOrder,
        armed: &Armed,
        first: bool,
        context: &mut Context<'_, V, M>,
        lent: &mut Lent,
    ) -> Result<Self, StepperError<V::Error>> {
        let Context {
            arming,
            registers,
            vcpu,
            memory,
        } = context;
        let mask = order.mask;
        arming.code_guards.forget();
        let before = registers.expedited(*vcpu)?;
        let run_state = registers.run_state();
        let pc = before.linear_pc();
        let mut plan = StepPlan::new(&before, *memory);
        let own = arming.own_breakpoints(*vcpu)?;
        // Faults: they come before the instruction.
        let mut faults = 0;
        if before.core.rflags & RFLAGS_RF == 0 {
            faults |= own.execute_hits(pc);
        }
        if own.detects_accesses() && plan.accesses_debug_register() {
            // kvm_intel looks at DR7 as it is in force, which is the debugger's (`handle_dr`).
            faults |= DR6_BD;
        }
        if faults != 0 && arming.owed().is_none() {
            owe_debug_exception(faults, arming, *vcpu)?;
        }
        let mut event = arming.owed().map(vector);
        let enabled = before.core.rflags & RFLAGS_IF != 0;
        let lets_in = event.is_none() && arming.lets_interrupts_in(mask);
        if event.is_none() && arming.lets_interrupts_in(mask) {
            event = arming.give_interrupt_back(&before, *vcpu)?;
            if event.is_some() {
                registers.event_queued();
            }
        }
        if event.is_none() && arming.lets_interrupts_in(mask) {
            event = vcpu
                .next_interrupt(enabled)
                .map_err(StepperError::of("reading pending interrupts"))?;
        }
        let ready = event.is_none() && run_state == RunState::Runnable;
        let returns = ready && return_to_user(&plan, &before, *vcpu, *memory, arming, registers)?;
        if returns {
            arming.set_shadow(Shadow::None);
            arming.intend_step::<V>(mask, armed, arming.slots().clone())?;
            return Ok(Self {
                plan,
                before,
                run_state,
                lent: Lent::default(),
                user_trap: None,
                is_done: true,
                prepared: None,
            });
        }
        let mut now = before.clone();
        *lent = Lent::lend(plan.system_call(), &mut now, *vcpu, registers)?;
        if let Some(mask) = lent.system_call_mask() {
            plan.set_system_call_mask(mask);
        }
        let stays = |breakpoint: &&HwBreakpoint| !(first && executes_at(breakpoint, pc));
        let hardware: Vec<HwBreakpoint> = armed.hardware.iter().filter(stays).copied().collect();
        let user_trap = UserTrap::of(&plan, *vcpu, *memory, arming)?;
        let mut guards = plan.guards(event, *memory);
        if let Some(trap) = &user_trap {
            guards.need_first(trap.handler());
        }
        let slots = arming.slots_for_step(&hardware, &own, &guards, pc);
        if let Some(trap) = &user_trap {
            trap.check_guarded(&slots)?;
        }
        if slots.lack(&guards, pc) {
            if order.alone && mask && arming.int3_exits() {
                // What is not mapped does not run, unless the step leads there.
                let may_run = |address: &u64| {
                    guards.needed.contains(address)
                        || translate(&before.special, *memory, GuestVirtAddr(*address)).is_ok()
                };
                let missed = slots.missed(&guards, pc).filter(may_run).collect();
                arming.code_guards.want(missed);
            } else {
                arming.unguarded = true;
            }
        }
        arming.intend_step::<V>(mask, armed, slots)?;
        let is_done = plan.halts() && ready && halt(&before, plan.next_rip(), *vcpu, registers)?;
        if is_done {
            arming.set_shadow(Shadow::None);
            if has_tf(&before) {
                owe_debug_exception(DR6_BS, arming, *vcpu)?;
            }
        } else {
            arming.arm_step(&now, *vcpu, registers)?;
        }
        Ok(Self {
            plan,
            before,
            run_state,
            lent: std::mem::take(lent),
            user_trap,
            is_done,
            prepared: lets_in.then_some(event),
        })
    }

    /// Has a halted vCPU wait for what wakes it, and stop before it executes anything: an execute breakpoint is
    /// where it goes on.
    ///
    /// # Errors
    /// If the vCPU refuses.
    pub(super) fn arm_wake_up<V: Vcpu, M: GuestMemory>(
        order: &StepOrder,
        armed: &Armed,
        context: &mut Context<'_, V, M>,
    ) -> Result<Self, StepperError<V::Error>> {
        let Context {
            arming,
            registers,
            vcpu,
            memory,
        } = context;
        arming.code_guards.forget();
        let before = registers.expedited(*vcpu)?;
        let run_state = registers.run_state();
        let nowhere = Slots::nowhere(before.linear_pc());
        arming.intend_step::<V>(order.mask, armed, nowhere)?;
        arming.arm_step(&before, *vcpu, registers)?;
        Ok(Self {
            plan: StepPlan::new(&before, *memory),
            before,
            run_state,
            lent: Lent::default(),
            user_trap: None,
            is_done: false,
            prepared: None,
        })
    }

    /// Writes the INT3s that the step wants, for one entry. Returns `false` if it goes without them.
    pub(super) fn write_code_guards(
        &self,
        guards: &mut CodeGuards,
        memory: &impl GuestMemory,
    ) -> bool {
        guards.write(&self.plan, memory)
    }

    /// Returns `true` if the step, which has ended at `pc`, has certainly not written the byte at this linear
    /// address.
    pub(super) fn leaves_alone(
        &self,
        address: u64,
        pc: u64,
        arming: &Arming,
        memory: &impl GuestMemory,
    ) -> bool {
        // An event or an exception stores a frame.
        let in_handler = arming.slots().guards(pc);
        self.prepared.is_none() && !in_handler && self.plan.leaves_alone(address, memory)
    }

    /// See [`Stepper::prepared_event`](super::Stepper::prepared_event).
    pub(super) fn prepared_event(&self) -> Option<Option<u8>> {
        self.prepared
    }

    /// Returns `true` if the step is done without an entry.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Linear address of the instruction.
    pub(super) fn pc(&self) -> u64 {
        self.before.linear_pc()
    }

    /// Returns `true` if this exit is INT1's own #DB. kvm_intel comes back with RIP at the instruction,
    /// as after a spurious trap. In both cases INT1 is still to be carried out.
    pub(super) fn is_int1(&self, exit: &DebugExit) -> bool {
        let conditions = DR6_BD | DR6_HITS;
        exit.exception == 1
            && exit.dr6 & conditions == 0
            && exit.pc == self.pc()
            && self.plan.code().last() == Some(&INT1)
            && self.plan.class() == StepClass::SoftwareInterrupt
    }

    /// Moves RIP past the instruction, and owes the guest the #DB of INT1.
    pub(super) fn skip_int1<V: Vcpu, M>(
        &self,
        context: &mut Context<'_, V, M>,
    ) -> Result<(), StepperError<V::Error>> {
        let mut after = self.before.clone();
        after.core.rip = self.plan.next_rip();
        let registers = &mut context.registers;
        registers.write(context.vcpu, RegisterGroups::CORE, &after)?;
        owe_debug_exception(0, context.arming, context.vcpu)
    }

    /// What was lent for its duration.
    pub(super) fn lent(&mut self) -> &mut Lent {
        &mut self.lent
    }

    /// Returns `true` if the hypervisor has taken INIT for a vCPU that waited for it. KVM comes
    /// back for that with EAGAIN or EINTR (`kvm_arch_vcpu_ioctl_run`), and without TF.
    pub(super) fn has_been_reset<V: Vcpu>(
        &self,
        registers: &mut Registers,
        vcpu: &mut V,
    ) -> Result<bool, StepperError<V::Error>> {
        Ok(self.run_state == RunState::WaitForInit
            && registers.refresh_run_state(vcpu)? != RunState::WaitForInit)
    }

    /// The registers that the step left; `None` if INIT has replaced them: the instruction is no more, and
    /// nothing of it is to be mended.
    fn registers_after<V: Vcpu, M: GuestMemory>(
        &self,
        context: &mut Context<'_, V, M>,
    ) -> Result<Option<RegisterFile>, StepperError<V::Error>> {
        let mut after = context.registers.expedited(context.vcpu)?;
        self.lent.hide(&mut after);
        if is_restarted(&self.before, &after, context.memory) {
            context.registers.set_guest_tf(false);
            context.arming.forget_interrupt();
            return Ok(None);
        }
        Ok(Some(after))
    }

    /// Mends what the step left, of which it is not known how far it got.
    pub(super) fn mend<V: Vcpu, M: GuestMemory>(
        &self,
        context: &mut Context<'_, V, M>,
    ) -> Result<(), StepperError<V::Error>> {
        let Some(after) = self.registers_after(context)? else {
            return Ok(());
        };
        let settlement = self.plan.settle(&after, context.memory);
        if settlement.progress == Progress::Done {
            self.apply(&settlement, after, context)?;
        }
        Ok(())
    }

    /// Mends what the step left, and says whether it got anywhere. `trapped` says that a debug
    /// exception or HLT ended it.
    pub(super) fn settle<V: Vcpu, M: GuestMemory>(
        &self,
        trapped: bool,
        context: &mut Context<'_, V, M>,
    ) -> Result<Progress, StepperError<V::Error>> {
        let Some(mut after) = self.registers_after(context)? else {
            return Ok(Progress::Done);
        };
        let Context {
            registers,
            vcpu,
            memory,
            ..
        } = context;
        let trapped = match &self.user_trap {
            Some(trap) => trap.take_back(&mut after, *vcpu, *memory, registers)? || trapped,
            None => trapped,
        };
        if !trapped && after.core.rip == self.before.core.rip {
            return Ok(Progress::NotStarted);
        }
        if trapped && self.nothing_was_executed(&after) {
            // Also for an instruction that may end where it begins, a string instruction with REP.
            context.arming.held_trap.noticed();
        }
        let settlement = self.plan.settle(&after, context.memory);
        if settlement.progress == Progress::NotStarted {
            return Ok(Progress::NotStarted);
        }
        self.apply(&settlement, after, context)?;
        let opens = self.before.core.rflags & RFLAGS_IF == 0;
        context.arming.set_shadow(match self.plan.class() {
            StepClass::EnableInterrupts if opens => Shadow::Sti,
            StepClass::LoadStackSegment => Shadow::MovSs,
            _ => Shadow::None,
        });
        if self.plan.class() == StepClass::Halt {
            // It may be halted now: the next step reads the run state, together with the registers.
            context.registers.forget();
        }
        if settlement.guest_trap {
            owe_debug_exception(DR6_BS, context.arming, context.vcpu)?;
        }
        Ok(Progress::Done)
    }

    /// Returns `true` if the registers are as before. JMP to itself looks like that too.
    fn nothing_was_executed(&self, after: &RegisterFile) -> bool {
        // KVM sets and clears it for itself.
        let without_rf = |file: &RegisterFile| {
            let mut core = file.core;
            core.rflags &= !RFLAGS_RF;
            core
        };
        without_rf(after) == without_rf(&self.before)
    }

    /// Writes what the step is to have left: stored RFLAGS, R11, the guest's own TF.
    fn apply<V: Vcpu, M: GuestMemory>(
        &self,
        settlement: &Settlement,
        mut after: RegisterFile,
        context: &mut Context<'_, V, M>,
    ) -> Result<(), StepperError<V::Error>> {
        let Context {
            arming,
            registers,
            vcpu,
            memory,
        } = context;
        if !settlement.mend(*memory) {
            tracing::warn!(
                vcpu = %arming.control.id(), pc = format_args!("{:#x}", self.pc()),
                "the RFLAGS that a stepped instruction stored keep TF: their page is not memory"
            );
        }
        if let Some(r11) = settlement.r11 {
            after.core.r11 = r11;
            // Twice if need be: R11 must not keep TF.
            registers
                .write(*vcpu, RegisterGroups::CORE, &after)
                .or_else(|_| registers.write(*vcpu, RegisterGroups::CORE, &after))?;
        }
        let before = has_tf(&self.before);
        // A handler that ran inside a step may have copied the TF in its frame.
        registers.tf_may_be_copied |= settlement.ran_handler && !before;
        let own = settlement.guest_tf && (before || !registers.tf_may_be_copied);
        registers.set_guest_tf(own);
        if settlement.ran_handler || self.plan.touches_debug_registers() {
            arming.forget_own_breakpoints();
        }
        Ok(())
    }
}

/// Returns `true` if the vCPU has taken INIT and a start-up IPI since, and run one instruction there
/// at most, or entered the handler of an event. Both leave it in real-address mode, at IP 0 of
/// another code segment, with neither stack nor data (SDM 3A 9.4.4 and table 9-1); one instruction
/// changes little of that.
///
/// The frame of an event that came there shows the debugger's TF: it is mended.
fn is_restarted(before: &RegisterFile, after: &RegisterFile, memory: &impl GuestMemory) -> bool {
    let special = &after.special;
    let real = special.cr0 & CR0_PE == 0;
    let unset = [&special.ds, &special.es, &special.ss].map(|segment| segment.selector == 0);
    let nearly_unset = unset.into_iter().filter(|unset| !unset).count() <= 1;
    if !real || !nearly_unset {
        return false;
    }
    let sp = after.core.rsp & 0xffff;
    let frame = !has_tf(before)
        && [0, FRAME_AFTER_RESTART].contains(&sp)
        && mend_frame_after_restart(after, memory);
    let moved = before.special.cs.base != special.cs.base && is_within_first(after.core.rip);
    let at_start = moved && (after.core.rsp == 0 || before.special.cr0 & CR0_PE != 0);
    at_start || (frame && sp == FRAME_AFTER_RESTART)
}

/// Returns `true` if one instruction that began at IP 0 may have led to this IP.
fn is_within_first(ip: u64) -> bool {
    usize::try_from(ip).is_ok_and(|ip| ip <= MAX_INSTRUCTION)
}

/// Offset of the first frame on the stack of a vCPU that was restarted, whose SP was 0.
const FRAME_AFTER_RESTART: u64 = 0xfffa;
/// RFLAGS after a reset, with the TF of a step.
const RFLAGS_AFTER_RESTART: u16 = 0x102;

/// Takes TF out of the frame of an event that entered a vCPU that was restarted: IP within the first
/// instruction, CS as a start-up IPI sets it, FLAGS. Returns `true` if there is one.
fn mend_frame_after_restart(after: &RegisterFile, memory: &impl GuestMemory) -> bool {
    let at = after.special.ss.base.wrapping_add(FRAME_AFTER_RESTART);
    let mut frame = [0; 6];
    if memory.read_memory(GuestPhysAddr(at), &mut frame) != frame.len() {
        return false;
    }
    let [ip, ip_high, cs, _, flags, flags_high] = frame;
    let found = is_within_first(u64::from(ip))
        && ip_high == 0
        && cs == 0
        && u16::from_le_bytes([flags, flags_high]) == RFLAGS_AFTER_RESTART;
    // Bit 8 of the image.
    found && memory.write_memory(GuestPhysAddr(at.wrapping_add(5)), &[flags_high & !1]) == 1
}

/// Executes HLT: RIP moves on, and the vCPU waits (SDM 2 "HLT"). A single step of it is none on
/// kvm_pvm, which halts later. Returns `false` if the hypervisor has to do it.
fn halt<V: Vcpu>(
    before: &RegisterFile,
    next_rip: u64,
    vcpu: &mut V,
    registers: &mut Registers,
) -> Result<bool, StepperError<V::Error>> {
    const CALL: &str = "setting the run state";
    if !registers.trapped() {
        let events = pending_events(vcpu)?;
        if events.exception || events.interrupt.is_some() {
            return Ok(false);
        }
    }
    if !vcpu
        .set_run_state(RunState::Halted)
        .map_err(StepperError::of(CALL))?
    {
        return Ok(false);
    }
    let mut after = before.clone();
    after.core.rip = next_rip;
    let written = registers.write(vcpu, RegisterGroups::CORE, &after);
    if written.is_err() {
        vcpu.set_run_state(RunState::Runnable)
            .map_err(StepperError::of(CALL))?;
    }
    written.map(|()| true)
}

/// #DB or #BP.
fn vector(exception: Inject) -> u8 {
    match exception {
        Inject::Debug => 1,
        Inject::Breakpoint => 3,
    }
}

/// Returns `true` if the breakpoint is for the instruction at `pc`.
pub(super) fn executes_at(breakpoint: &HwBreakpoint, pc: u64) -> bool {
    breakpoint.kind() == HwBreakpointKind::Execute && breakpoint.address() == pc
}

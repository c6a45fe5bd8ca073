//! Steps of a vCPU that leave no trace in the guest, driven by the VMM's own loop.
//!
//! A hypervisor steps with RFLAGS.TF. What that does to the guest differs between kvm_intel,
//! kvm_amd and software KVMs; [`StepPlan`] knows from the instruction what may go wrong and what to
//! mend. The [`Stepper`] runs the protocol around it, without I/O of its own: the VMM keeps its
//! loop, its exits, its threads and its descriptor.
//!
//! ```text
//! let mut next = stepper.start(&order, &armed, &mut vcpu, &memory);
//! loop {
//!     let outcome = match next {
//!         Next::Stopped(reason) => break reason,
//!         Next::Enter if must_stop() => { next = stepper.interrupt(&mut vcpu, &memory); continue }
//!         Next::Enter => run(),                   // KVM_RUN, and serve its exit
//!         Next::Complete => complete(),           // KVM_RUN with immediate_exit, and serve
//!     };
//!     next = stepper.ran(outcome, &mut vcpu, &memory);
//! }
//! ```
//!
//! 1. TF is set before every instruction, since an emulated one drops it: with the registers of the
//!    last exit, or by `KVM_SET_GUEST_DEBUG` if something else changes, too.
//! 2. An access is served and then completed without running on: an emulated OUT or MMIO write ends
//!    *without* a trap and would take one more instruction along.
//! 3. SYSCALL and SYSRET need help to trap at all (`system_call`).
//! 4. A trap that moved nothing though the instruction must move is spurious: it is stepped again.
//! 5. A step that may enter a handler has execute breakpoints at its first instruction, in debug
//!    registers that are free (`slots`): it ends there, and the frame is mended before the guest reads
//!    it. An instruction that certainly raises nothing has none, because debug registers cost time. Where
//!    watchpoints have taken the debug registers, INT3s serve if they cannot be noticed (`code_guards`).
//! 6. An interrupt that the hypervisor is delivering as a masked step begins is taken back
//!    (`withheld`).
//!    A trap that the hypervisor holds at the end of a step is taken before a free run (`held_trap`).
//! 7. HLT is carried out where the hypervisor knows what a vCPU waits for.
//! 8. Where bytes are to be compared that no debug register watches, a free run is steps (`compared`).
//! 9. A vCPU that waits may be restarted by INIT inside its step, which ends then with its first
//!    instruction there, or before it.
//!
//! # Errors
//! A call of the [`Vcpu`] that fails ends the order with [`StopReason::InternalError`], which names
//! the call; the vCPU is left unarmed and unmasked, and the next order may succeed.

mod arming;
mod code_changes;
mod code_guards;
mod compared;
mod debug_exit;
mod driver;
mod held_trap;
mod pending;
mod registers;
mod slots;
mod system_call;
#[cfg(test)]
mod tests;
mod user_code;
mod vcpu;
mod withheld;

use std::sync::Arc;

use vcpu_caps::{Plan, VcpuControl, VcpuId};

pub use arming::DEBUGGER;
pub use driver::{Driver, Entry};
pub use vcpu::{DebugExit, Next, Outcome, PendingEvents, RunState, StepperError, Vcpu};

use self::arming::{Arming, Shadow};
use self::code_changes::CodeChanges;
use self::compared::Compared;
use self::debug_exit::Cause;
use self::pending::{Context, PendingStep, executes_at};
use self::registers::Registers;
use self::system_call::Lent;
use super::bits::{RFLAGS_IF, RFLAGS_TF};
use super::place;
use crate::address::GuestPhysAddr;
use crate::host::GuestMemory;
use crate::order::{Armed, StepOrder, StopReason, VcpuOrder, WatchAccess};
use crate::x86_64::{Progress, RegisterFile, RegisterGroups, StepPlan};

/// How often an instruction may be started without getting anywhere. One spurious trap for each
/// page that it touches has been seen (an EPT violation in Bochs); an instruction touches fewer
/// than ten.
const MAX_ATTEMPTS: u32 = 64;

/// The first instruction after a reset (SDM 3A table 10-1).
const RESET_VECTOR: u64 = 0xffff_fff0;

/// What the vCPU does.
#[derive(Debug)]
enum State {
    /// No order.
    Stopped,
    /// [`VcpuOrder::Continue`]. `stops`: an access is completed, to stop then for this reason.
    Free { stops: Option<StopReason> },
    /// [`VcpuOrder::Continue`], and the trap of an earlier step is taken first. `resumes`: RFLAGS.RF is to be
    /// set again afterwards.
    TakingTrap { resumes: bool },
    /// [`VcpuOrder::Step`].
    Stepping(Box<Stepping>),
    /// The guest has ended, and why. Every order ends with the same.
    Over(StopReason),
}

/// A step order that is under way.
#[derive(Debug)]
struct Stepping {
    order: StepOrder,
    step: PendingStep,
    attempts: u32,
    /// The hypervisor could not enter, and one more entry is tried.
    refused: bool,
    phase: Phase,
    purpose: Purpose,
}

/// Why instructions are stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The order says so.
    Step,
    /// The order is a free run, which begins when an interrupt may be given back.
    UntilFree,
    /// The order is a free run, in which bytes are compared.
    Compare,
    /// The same, and the vCPU is halted: the step ends when that is over, before the instruction.
    Wake,
}

/// What an instruction is to its order.
#[derive(Clone, Copy, Debug)]
struct Part {
    is_first: bool,
    purpose: Purpose,
}

/// Where the pending step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is entered, or about to be.
    Entered,
    /// An access was served, and is being completed. `interrupted`: the order ends then.
    Completing { interrupted: bool },
}

/// Runs orders of one vCPU: steps, ranges of steps, and free runs with breakpoints armed.
///
/// It never enters the guest itself: see the [module](self).
#[derive(Debug)]
pub struct Stepper {
    arming: Arming,
    registers: Registers,
    /// What the order has armed.
    armed: Arc<Armed>,
    compared: Compared,
    code_changes: CodeChanges,
    /// An access was served, and the hypervisor has not completed the instruction yet: registers
    /// are not consistent (KVM, api.rst 5 "For KVM_EXIT_IO ...").
    incomplete: bool,
    /// RIP of a halted vCPU that the debugger has made runnable, by another RIP.
    left_halt: Option<u64>,
    state: State,
}

impl Stepper {
    /// For a vCPU that nothing else debugs. What the plan lacks is not used.
    #[must_use]
    pub fn new(id: VcpuId, plan: &Plan) -> Self {
        Self {
            arming: Arming::new(id, plan),
            registers: Registers::default(),
            armed: Arc::default(),
            compared: Compared::default(),
            code_changes: CodeChanges::default(),
            incomplete: false,
            left_halt: None,
            state: State::Stopped,
        }
    }

    /// The vCPU's id.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.arming.control.id()
    }

    /// The vCPU's switches, holds and debug state.
    #[must_use]
    pub fn control(&self) -> &VcpuControl {
        &self.arming.control
    }

    /// For another owner than the debugger to take or drop a hold, while the vCPU does not run.
    /// Takes effect when it runs next.
    pub fn control_mut(&mut self) -> &mut VcpuControl {
        &mut self.arming.control
    }

    /// Returns `true` if hardware interrupts are withheld, by any owner and mechanism.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.control().is_masked()
    }

    /// Returns `true` if one instruction is to be run, not the guest.
    #[must_use]
    pub fn is_stepping(&self) -> bool {
        self.arming.is_stepping()
    }

    /// Returns `true` if a step of the last order may have run an exception's handler to its end, and what the
    /// handler stores may show TF: watchpoints had taken the debug registers by which the step stops at a handler,
    /// and an INT3 there might have been noticed.
    #[must_use]
    pub fn is_unguarded(&self) -> bool {
        self.arming.unguarded
    }

    /// For a VMM that injects interrupts itself: the vector of the event that the step under way is prepared for,
    /// if any (see [`Vcpu::next_interrupt`]). If another one is to enter now, [start](Self::start) the order again
    /// in place of the entry: the handler would run inside the step. `None` if no step is under way that lets
    /// interrupts in, or an exception goes first.
    #[must_use]
    pub fn prepared_event(&self) -> Option<Option<u8>> {
        match &self.state {
            State::Stepping(stepping) => stepping.step.prepared_event(),
            State::Stopped | State::Free { .. } | State::TakingTrap { .. } | State::Over(_) => None,
        }
    }

    /// Returns `true` if the guest may notice during the next entry that its clocks are wrong: unless one
    /// instruction that reads no clock is stepped, and no interrupt's handler can run in between.
    #[must_use]
    pub fn may_read_clock(&self) -> bool {
        match &self.state {
            State::Stepping(stepping) => !self.is_masked() || stepping.step.may_read_clock(),
            // Nothing is executed.
            State::TakingTrap { .. } => false,
            State::Stopped | State::Free { .. } | State::Over(_) => true,
        }
    }

    /// Returns `true` if the hypervisor has still to complete an access: the registers must be
    /// neither read nor written.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The vector of an interrupt that was taken back because a masked step began while it was being
    /// delivered. It enters with the first entry that may take it.
    #[must_use]
    pub fn withheld_interrupt(&self) -> Option<u8> {
        self.arming.withheld
    }

    /// Begins an order. One that is still under way is given up.
    ///
    /// The stepper counts what `armed` has as armed by the caller: INT3s are in guest memory.
    pub fn start<V: Vcpu>(
        &mut self,
        order: &VcpuOrder,
        armed: &Arc<Armed>,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Next {
        let restored = self.arming.code_guards.restore(memory);
        let next = self.start_order(order, armed, vcpu, memory);
        self.with_code_guards(restored, next, vcpu, memory)
    }

    fn start_order<V: Vcpu>(
        &mut self,
        order: &VcpuOrder,
        armed: &Arc<Armed>,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Next {
        if let State::Over(reason) = &self.state {
            return Next::Stopped(reason.clone());
        }
        if let Err(error) = self.give_up_step(vcpu) {
            return self.fail(&error, vcpu, memory);
        }
        self.armed = Arc::clone(armed);
        self.arming.unguarded = false;
        if let Err(error) = self.begin_to_compare(vcpu, memory) {
            return self.fail(&error, vcpu, memory);
        }
        let started = match order {
            VcpuOrder::Stay => Ok(Next::Stopped(StopReason::Interrupted)),
            VcpuOrder::Continue if self.compared.is_empty() => self.start_continue(vcpu, memory),
            VcpuOrder::Continue => self.step_and_compare(true, vcpu, memory),
            VcpuOrder::Step(order) => self.start_step(order.clone(), true, vcpu, memory),
        };
        started.unwrap_or_else(|error| self.fail(&error, vcpu, memory))
    }

    /// Writes the INT3s of the step for the entry that comes `next`. `restored` says whether those of the last
    /// entry are out of memory.
    fn with_code_guards<V: Vcpu>(
        &mut self,
        restored: Result<(), GuestPhysAddr>,
        next: Next,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Next {
        if let Err(at) = restored {
            let _ = self.give_up_step(vcpu);
            let text = format!(
                "{}: the INT3 that a step has written at physical {at} cannot be taken back",
                self.id()
            );
            return self.stop(StopReason::InternalError(text));
        }
        if let (State::Stepping(stepping), Next::Enter | Next::Complete) = (&self.state, &next) {
            self.arming.unguarded |= !stepping
                .step
                .write_code_guards(&mut self.arming.code_guards, memory);
        }
        next
    }

    /// The vCPU has run, and what it asked for is served: what to do next.
    ///
    /// An outcome that does not fit what the vCPU was asked to do ends the order with an error.
    pub fn ran<V: Vcpu>(
        &mut self,
        outcome: Outcome,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Next {
        let restored = self.arming.code_guards.restore(memory);
        let next = self.ran_once(outcome, vcpu, memory);
        self.with_code_guards(restored, next, vcpu, memory)
    }

    fn ran_once<V: Vcpu>(
        &mut self,
        outcome: Outcome,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Next {
        self.incomplete = outcome == Outcome::Served;
        if let State::Stopped | State::Over(_) = &self.state {
            // Not known to have run: registers that came with an earlier exit may be stale.
            self.forget_registers(vcpu);
        }
        let ordered = !matches!(self.state, State::Stopped | State::Over(_));
        let trapped = matches!(outcome, Outcome::Debug(_)) && ordered;
        let synced = self.arming.syncs() && ordered;
        self.registers.ran(vcpu, synced, trapped);
        self.arming.ran(outcome != Outcome::Nothing);
        if outcome == Outcome::Restarted {
            vcpu.discard_tf_at_entry();
            self.registers.restarted();
            self.arming.forget_interrupt();
        }
        let next = match (&mut self.state, outcome) {
            (State::Over(reason), _) => return Next::Stopped(reason.clone()),
            (_, Outcome::Fatal(reason)) => return self.end(reason, vcpu, memory),
            (State::Stopped, outcome) => {
                let text = format!("a run ended with {outcome:?}, and there was no order to run");
                return self.stop(StopReason::InternalError(text));
            }
            (State::Free { .. }, outcome) => self.ran_free(&outcome, vcpu, memory),
            (State::TakingTrap { .. }, outcome) => self.ran_taking_trap(&outcome, vcpu, memory),
            (State::Stepping(_), outcome) => self.ran_step(&outcome, vcpu, memory),
        };
        next.unwrap_or_else(|error| self.fail(&error, vcpu, memory))
    }

    /// The vCPU is to stop: call it in place of an entry, as often as the loop would enter while
    /// the stop is wanted. The order ends with [`StopReason::Interrupted`], or with what the
    /// completion of an access brings.
    pub fn interrupt<V: Vcpu>(&mut self, vcpu: &mut V, memory: &impl GuestMemory) -> Next {
        let restored = self.arming.code_guards.restore(memory);
        let next = self.interrupt_order(vcpu, memory);
        self.with_code_guards(restored, next, vcpu, memory)
    }

    fn interrupt_order<V: Vcpu>(&mut self, vcpu: &mut V, memory: &impl GuestMemory) -> Next {
        let incomplete = self.incomplete;
        let next = match &mut self.state {
            State::Over(reason) => return Next::Stopped(reason.clone()),
            State::Free { stops } if incomplete => {
                stops.get_or_insert(StopReason::Interrupted);
                Ok(Next::Complete)
            }
            State::Stepping(stepping) if incomplete => {
                stepping.phase = Phase::Completing { interrupted: true };
                Ok(Next::Complete)
            }
            State::Stepping(_) => self.interrupt_step(vcpu, memory),
            State::TakingTrap { .. } if incomplete => Ok(Next::Complete),
            State::TakingTrap { .. } => {
                // As for a step: reading the registers may accept INIT.
                vcpu.discard_tf_at_entry();
                self.registers.forget();
                match self.end_taking_trap(vcpu) {
                    Ok(()) => return self.stop(StopReason::Interrupted),
                    Err(error) => Err(error),
                }
            }
            State::Stopped | State::Free { .. } => return self.stop(StopReason::Interrupted),
        };
        next.unwrap_or_else(|error| self.fail(&error, vcpu, memory))
    }

    /// Leaves no trace of a debugger: nothing armed, nothing held by it, nothing written, the guest's own TF
    /// restored. The vCPU is stopped, and its last access is completed.
    ///
    /// Let the vCPU go on by [`VcpuOrder::Continue`]: a trap that the hypervisor holds from the last step (seen
    /// in Bochs) is taken at the begin of that order.
    ///
    /// # Errors
    /// If the vCPU refuses, also a second time. Call it again.
    pub fn release<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<(), StepperError<V::Error>> {
        if let Err(address) = self.arming.code_guards.restore(memory) {
            tracing::error!(%address, "the byte under an INT3 of a step cannot be restored");
        }
        let given_up = self.give_up_step(vcpu);
        // The rest is released in any case.
        let disarmed = self.disarm(vcpu);
        let Self {
            arming, registers, ..
        } = self;
        let returned = arming
            .release_interrupt(vcpu, registers)
            .or_else(|_| arming.release_interrupt(vcpu, registers));
        let shadowed = self
            .restore_shadow(vcpu)
            .or_else(|_| self.restore_shadow(vcpu));
        // The VMM may run it by itself.
        self.registers.forget();
        given_up.and(disarmed).and(returned).and(shadowed)
    }

    /// A new guest runs on the vCPU: the VMM has reset its registers. A guest that had ended may
    /// be run again. Where an order is under way, call [`interrupt`](Self::interrupt) first, before memory is
    /// loaded again.
    pub fn reset(&mut self) {
        self.registers.restarted();
        self.arming.reset();
        self.incomplete = false;
        self.left_halt = None;
        self.state = State::Stopped;
    }

    /// Fills the `groups` of `file`. RFLAGS.TF is the guest's own.
    ///
    /// # Errors
    /// If the vCPU refuses.
    pub fn read_registers<V: Vcpu>(
        &mut self,
        groups: RegisterGroups,
        file: &mut RegisterFile,
        vcpu: &mut V,
    ) -> Result<(), StepperError<V::Error>> {
        self.registers.read(vcpu, groups, file)
    }

    /// Sets the `groups` from `file`. RFLAGS.TF is the guest's own.
    ///
    /// A halted vCPU that gets another RIP becomes runnable: the debugger calls a function there, or
    /// goes on elsewhere. When the RIP is written back, it is halted again.
    ///
    /// # Errors
    /// If the vCPU refuses.
    pub fn write_registers<V: Vcpu>(
        &mut self,
        groups: RegisterGroups,
        file: &RegisterFile,
        vcpu: &mut V,
    ) -> Result<(), StepperError<V::Error>> {
        if groups.contains(RegisterGroups::CORE) {
            self.halt_or_wake(file.core.rip, vcpu)?;
        }
        self.registers.write(vcpu, groups, file)
    }

    /// Reads an MSR, for the debugger's user.
    ///
    /// # Errors
    /// If the vCPU refuses.
    pub fn read_msr<V: Vcpu>(
        &mut self,
        number: u32,
        vcpu: &mut V,
    ) -> Result<u64, StepperError<V::Error>> {
        vcpu.read_msr(number)
            .map_err(StepperError::of("reading an MSR"))
    }

    /// Writes an MSR, for the debugger's user. Registers are read again: some are MSRs.
    ///
    /// # Errors
    /// If the vCPU refuses.
    pub fn write_msr<V: Vcpu>(
        &mut self,
        number: u32,
        value: u64,
        vcpu: &mut V,
    ) -> Result<(), StepperError<V::Error>> {
        self.registers.forget();
        vcpu.discard_tf_at_entry();
        vcpu.write_msr(number, value)
            .map_err(StepperError::of("writing an MSR"))
    }

    /// The vCPU is about to get this RIP from the debugger.
    fn halt_or_wake<V: Vcpu>(
        &mut self,
        rip: u64,
        vcpu: &mut V,
    ) -> Result<(), StepperError<V::Error>> {
        let state = self.run_state(vcpu)?;
        let halts = state == RunState::Runnable && self.left_halt == Some(rip);
        if state != RunState::Halted && !halts {
            return Ok(());
        }
        let mut now = RegisterFile::default();
        self.registers.read(vcpu, RegisterGroups::CORE, &mut now)?;
        if now.core.rip == rip {
            return Ok(());
        }
        let (wanted, left) = if halts {
            (RunState::Halted, None)
        } else {
            (RunState::Runnable, Some(now.core.rip))
        };
        let known = vcpu
            .set_run_state(wanted)
            .map_err(StepperError::of("setting the run state"))?;
        if known {
            self.left_halt = left;
        }
        Ok(())
    }

    /// What the vCPU waits for. A vCPU that has just run an instruction is not asked: the hypervisor
    /// would accept INIT, and what is known of the registers would be stale.
    ///
    /// # Errors
    /// If the vCPU refuses.
    pub fn run_state<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<RunState, StepperError<V::Error>> {
        if self.registers.are_cached() {
            return Ok(RunState::Runnable);
        }
        self.registers.refresh_run_state(vcpu)
    }

    /// The VMM has written the vCPU's registers or read its run state by itself, which accepts INIT
    /// and start-up IPIs: what is known of the registers is stale.
    pub fn forget_registers<V: Vcpu>(&mut self, vcpu: &mut V) {
        self.registers.forget();
        vcpu.discard_tf_at_entry();
    }

    fn stop(&mut self, reason: StopReason) -> Next {
        self.state = State::Stopped;
        Next::Stopped(reason)
    }

    /// A call failed: the order is over, and nothing stays armed, masked or lent.
    fn fail<V: Vcpu>(
        &mut self,
        error: &StepperError<V::Error>,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Next {
        let mut text = format!("{}: {error}", self.id());
        // What the instruction left is mended all the same, as far as that is possible.
        if let State::Stepping(stepping) = &self.state {
            let mut context = Context {
                arming: &mut self.arming,
                registers: &mut self.registers,
                vcpu: &mut *vcpu,
                memory,
            };
            if let Err(again) = stepping.step.mend(&mut context) {
                text += &format!("; also {again}");
            }
        }
        if let Err(again) = self.give_up_step(vcpu) {
            text += &format!("; also {again}");
        }
        match self.disarm(vcpu) {
            Ok(()) => text += "; the vCPU is stopped, with nothing armed or masked",
            Err(again) => text += &format!("; it may still be armed or masked: {again}"),
        }
        self.stop(StopReason::InternalError(text))
    }

    /// Disarms; tries once more if that fails.
    fn disarm<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<(), StepperError<V::Error>> {
        let Self {
            arming, registers, ..
        } = self;
        arming
            .disarm(vcpu, registers)
            .or_else(|_| arming.disarm(vcpu, registers))
    }

    /// Takes back what the pending step was lent, if there is one. It is not gone on with.
    fn give_up_step<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<(), StepperError<V::Error>> {
        if let State::TakingTrap { .. } = self.state {
            vcpu.discard_tf_at_entry();
            self.end_taking_trap(vcpu)
                .or_else(|_| self.end_taking_trap(vcpu))?;
        }
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Stepping(mut stepping) => {
                vcpu.discard_tf_at_entry();
                let lent = stepping.step.lent();
                take_back(lent, vcpu, &mut self.registers)
            }
            State::Over(reason) => {
                self.state = State::Over(reason);
                Ok(())
            }
            State::Stopped | State::Free { .. } | State::TakingTrap { .. } => Ok(()),
        }
    }

    /// The guest cannot go on, or has ended.
    fn end<V: Vcpu>(
        &mut self,
        reason: StopReason,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Next {
        let mut reason = self.explain(reason, vcpu, memory);
        let given_up = self.give_up_step(vcpu);
        if let (StopReason::InternalError(text), Err(error)) = (&mut reason, given_up) {
            *text += &format!("; also {error}");
        }
        // An internal error is not the end: a debugger may move RIP past what the hypervisor cannot
        // do. After a triple fault kvm_amd has reset the vCPU, and there is nothing to go on with.
        if matches!(reason, StopReason::TripleFault(_) | StopReason::Exited(_)) {
            self.state = State::Over(reason.clone());
        }
        Next::Stopped(reason)
    }

    /// Adds to a fatal stop where the vCPU is.
    fn explain<V: Vcpu>(
        &mut self,
        reason: StopReason,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> StopReason {
        if !matches!(
            reason,
            StopReason::TripleFault(_) | StopReason::InternalError(_)
        ) {
            return reason;
        }
        let id = self.id();
        let registers = self.registers.expedited(vcpu);
        let place = match &registers {
            Ok(file) => place::of(file, memory),
            Err(error) => format!("at an unknown place: {error}"),
        };
        match reason {
            StopReason::TripleFault(text) => {
                let text = if text.is_empty() {
                    "triple fault"
                } else {
                    &text
                };
                // kvm_amd does it (svm.c, `shutdown_interception`).
                let is_reset = registers.is_ok_and(|file| file.linear_pc() == RESET_VECTOR);
                let but = if is_reset {
                    "; the hypervisor has reset the vCPU, and where it was is not known"
                } else {
                    ""
                };
                StopReason::TripleFault(format!("{id}: {text} {place}{but}"))
            }
            StopReason::InternalError(text) => {
                StopReason::InternalError(format!("{id}: {text} {place}"))
            }
            other => other,
        }
    }

    fn start_continue<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        if self.withholds_interrupt(vcpu)? || self.halts_behind_sti(vcpu, memory)? {
            return self.step_until_free(true, vcpu, memory);
        }
        self.start_free(vcpu)
    }

    /// Returns `true` for HLT behind a stepped STI. It is carried out, as in a step: Bochs takes a breakpoint
    /// behind HLT before the interrupt that ends it.
    fn halts_behind_sti<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<bool, StepperError<V::Error>> {
        if self.arming.shadow() != Shadow::Sti {
            return Ok(false);
        }
        let now = self.registers.expedited(vcpu)?;
        Ok(StepPlan::new(&now, memory).halts())
    }

    /// An interrupt was taken back, and the vCPU may not take it yet.
    fn withholds_interrupt<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
    ) -> Result<bool, StepperError<V::Error>> {
        if self.arming.withheld.is_none() {
            return Ok(false);
        }
        let now = self.registers.expedited(vcpu)?;
        Ok(self.arming.must_wait_for_interrupts(&now))
    }

    fn step_until_free<V: Vcpu>(
        &mut self,
        first: bool,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        let order = StepOrder {
            range: None,
            mask: self.arming.can_mask(),
            ..StepOrder::default()
        };
        let part = Part {
            is_first: first,
            purpose: Purpose::UntilFree,
        };
        self.start_instruction(order, part, vcpu, memory)
    }

    fn start_free<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<Next, StepperError<V::Error>> {
        if self.take_held_trap(vcpu)? {
            return Ok(Next::Enter);
        }
        self.restore_shadow(vcpu)?;
        self.arming.set_shadow(Shadow::None);
        if self.arming.withheld.is_some() {
            let now = self.registers.expedited(vcpu)?;
            self.registers.event_queued();
            self.arming.give_interrupt_back(&now, vcpu)?;
        }
        self.arming.intend_free::<V>(&self.armed)?;
        self.arming.arm(vcpu, &mut self.registers)?;
        self.state = State::Free { stops: None };
        Ok(Next::Enter)
    }

    /// Returns `true` if a software breakpoint is to be written, as far as this exit shows.
    fn code_has_changed<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<bool, StepperError<V::Error>> {
        if self.code_changes.is_overwritten(&self.armed, memory) {
            return Ok(true);
        }
        if self.armed.awaited.is_empty() {
            return Ok(false);
        }
        // Not the run state: reading it may accept INIT, and the access may not be completed yet.
        let mut file = RegisterFile::default();
        vcpu.read_registers(RegisterGroups::SPECIAL, &mut file)
            .map_err(StepperError::of("reading registers"))?;
        let special = &file.special;
        Ok(self.code_changes.has_come(&self.armed, special, memory))
    }

    /// The instruction behind a stepped STI is not interrupted, as without a debugger: HLT would wait for
    /// what was taken before it. kvm_intel drops that while a single step is armed (`vmx_vcpu_run`).
    fn restore_shadow<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<(), StepperError<V::Error>> {
        if self.arming.shadow() != Shadow::Sti || self.arming.owed().is_some() {
            return Ok(());
        }
        let now = self.registers.expedited(vcpu)?;
        let runs = self.registers.run_state() == RunState::Runnable;
        // With TF the processor wants to see the trap of STI pending (SDM 3C 26.3.1.5).
        if runs && now.core.rflags & (RFLAGS_IF | RFLAGS_TF) == RFLAGS_IF {
            vcpu.restore_sti_shadow()
                .map_err(StepperError::of("blocking interrupts behind STI"))?;
        }
        Ok(())
    }

    fn ran_free<V: Vcpu>(
        &mut self,
        outcome: &Outcome,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        let free = State::Free { stops: None };
        let stops = match std::mem::replace(&mut self.state, free) {
            State::Free { stops } => stops,
            _ => None,
        };
        match outcome {
            Outcome::Debug(exit) => match self.sort(exit, vcpu, memory)? {
                Cause::Hit(reason) => Ok(self.stop(reason)),
                // Not asked for: a hypervisor reports a trap only while a step is armed, or for
                // the guest's own TF, which is told apart.
                Cause::Trap => Ok(Next::Enter),
                Cause::Guest => {
                    self.arming.arm(vcpu, &mut self.registers)?;
                    Ok(Next::Enter)
                }
            },
            // A REP INS or OUTS that is emulated asks again for each chunk.
            Outcome::Served if stops.is_some() => {
                self.state = State::Free { stops };
                Ok(Next::Complete)
            }
            Outcome::Served if self.code_has_changed(vcpu, memory)? => {
                let stops = Some(StopReason::CodeChanged);
                self.state = State::Free { stops };
                Ok(Next::Complete)
            }
            Outcome::Nothing => match stops {
                Some(reason) => Ok(self.stop(reason)),
                None if self.code_has_changed(vcpu, memory)? => {
                    Ok(self.stop(StopReason::CodeChanged))
                }
                None => Ok(Next::Enter),
            },
            Outcome::NotEntered(text) => {
                let reason = StopReason::InternalError(text.clone());
                Ok(self.end(reason, vcpu, memory))
            }
            _ => Ok(Next::Enter),
        }
    }

    fn sort<V: Vcpu>(
        &mut self,
        exit: &DebugExit,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Cause, StepperError<V::Error>> {
        debug_exit::sort(
            exit,
            &self.armed,
            &mut self.arming,
            &mut self.registers,
            vcpu,
            memory,
        )
    }

    fn begin_to_compare<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<(), StepperError<V::Error>> {
        if !(self.armed.compared.is_empty() && self.compared.is_empty()) {
            let special = self.registers.expedited(vcpu)?.special;
            self.compared.begin(&self.armed, &special, memory);
        }
        Ok(())
    }

    /// The next instruction of a free run in which bytes are compared.
    ///
    /// A halted vCPU is woken first, where that can be done without executing an instruction. Which interrupt will
    /// come is not known before: its handler could not be guarded, would run inside the step, and find TF in its
    /// frame.
    fn step_and_compare<V: Vcpu>(
        &mut self,
        first: bool,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        let waits = self.registers.run_state() != RunState::Runnable;
        let wakes = self.registers.run_state() == RunState::Halted && self.arming.can_wake();
        let order = StepOrder {
            range: None,
            mask: wakes || !waits && self.arming.can_mask() && self.compared.withholds(),
            alone: false,
        };
        let part = Part {
            is_first: first,
            purpose: if wakes {
                Purpose::Wake
            } else {
                Purpose::Compare
            },
        };
        self.start_instruction(order, part, vcpu, memory)
    }

    /// The stop, if bytes that are compared have changed.
    fn compare<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Option<StopReason>, StepperError<V::Error>> {
        if self.compared.is_empty() {
            return Ok(None);
        }
        let now = self.registers.expedited(vcpu)?;
        let pc = now.linear_pc();
        let changed = self.compared.changed(&now.special, memory);
        let own = |at: &&u64| changed.is_full() || !self.leaves_alone(**at, pc, memory);
        let reported = match (changed.iter().find(own), changed.first()) {
            (Some(own), _) => Some(*own),
            (None, Some(other)) => {
                self.compared.leave_to_writer(*other);
                None
            }
            (None, None) => self.compared.overdue(),
        };
        Ok(reported.map(|address| StopReason::Watchpoint {
            address,
            access: WatchAccess::Write,
        }))
    }

    /// Returns `true` if the step that has ended at `pc` has not written this byte.
    fn leaves_alone(&self, address: u64, pc: u64, memory: &impl GuestMemory) -> bool {
        match &self.state {
            State::Stepping(stepping) => {
                (stepping.step).leaves_alone(address, pc, &self.arming, memory)
            }
            _ => false,
        }
    }

    /// Plans and arms the next instruction of a step order.
    fn start_step<V: Vcpu>(
        &mut self,
        order: StepOrder,
        first: bool,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        let part = Part {
            is_first: first,
            purpose: Purpose::Step,
        };
        self.start_instruction(order, part, vcpu, memory)
    }

    fn start_instruction<V: Vcpu>(
        &mut self,
        order: StepOrder,
        part: Part,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        let mut lent = Lent::default();
        let mut context = Context {
            arming: &mut self.arming,
            registers: &mut self.registers,
            vcpu: &mut *vcpu,
            memory,
        };
        let step = match part.purpose {
            Purpose::Wake => PendingStep::arm_wake_up(&order, &self.armed, &mut context),
            Purpose::Step | Purpose::UntilFree | Purpose::Compare => {
                PendingStep::arm(&order, &self.armed, part.is_first, &mut context, &mut lent)
            }
        };
        match step {
            Ok(step) => {
                let is_done = step.is_done();
                self.state = State::Stepping(Box::new(Stepping {
                    order,
                    step,
                    attempts: 0,
                    refused: false,
                    phase: Phase::Entered,
                    purpose: part.purpose,
                }));
                if is_done {
                    return self.finish_instruction(vcpu, memory);
                }
                Ok(Next::Enter)
            }
            Err(error) => {
                // What ends the order is the first error.
                let _ = take_back(&mut lent, vcpu, &mut self.registers);
                Err(error)
            }
        }
    }

    fn ran_step<V: Vcpu>(
        &mut self,
        outcome: &Outcome,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        let State::Stepping(stepping) = &mut self.state else {
            return Ok(self.stop(StopReason::Interrupted));
        };
        let phase = std::mem::replace(&mut stepping.phase, Phase::Entered);
        let purpose = stepping.purpose;
        let pc = stepping.step.pc();
        let trapped = match (outcome, phase) {
            (Outcome::Nothing, Phase::Entered) => {
                if stepping.step.has_been_reset(&mut self.registers, vcpu)? {
                    vcpu.discard_tf_at_entry();
                    self.registers.restarted();
                    self.arming.forget_interrupt();
                    return self.end_step(StopReason::Step, vcpu);
                }
                // A signal for something else. TF is as it was, here or in a handler's frame.
                return Ok(Next::Enter);
            }
            (Outcome::Served, Phase::Entered) => {
                stepping.phase = Phase::Completing { interrupted: false };
                return Ok(Next::Complete);
            }
            // A REP INS or OUTS that is emulated asks again for each chunk.
            (Outcome::Served, completing) => {
                stepping.phase = completing;
                return Ok(Next::Complete);
            }
            (Outcome::Nothing, Phase::Completing { interrupted: true }) => {
                return self.interrupt_step(vcpu, memory);
            }
            // No trap: a completed access has moved RIP, or there is more to come.
            (Outcome::Nothing, Phase::Completing { interrupted: false }) => false,
            (Outcome::Debug(exit), _) if stepping.step.is_int1(exit) => {
                let order = stepping.order.clone();
                stepping.step.skip_int1(&mut Context {
                    arming: &mut self.arming,
                    registers: &mut self.registers,
                    vcpu: &mut *vcpu,
                    memory,
                })?;
                let part = Part {
                    is_first: false,
                    purpose,
                };
                return self.start_instruction(order, part, vcpu, memory);
            }
            (Outcome::Debug(exit), _) => {
                let sorted = self.sort(exit, vcpu, memory);
                if sorted.is_err() {
                    self.arming.held_trap.noticed();
                }
                match sorted? {
                    // An interrupt that was taken back comes first: see `finish_instruction`.
                    Cause::Hit(StopReason::HardwareBreakpoint) if purpose == Purpose::UntilFree => {
                        true
                    }
                    Cause::Hit(reason) => {
                        // A watchpoint traps after the access: what the step did is mended all the
                        // same.
                        self.settle(true, vcpu, memory)?;
                        let reason = self.compare(vcpu, memory)?.unwrap_or(reason);
                        return self.end_step(reason, vcpu);
                    }
                    Cause::Guest => return self.retry_step(vcpu, memory),
                    Cause::Trap if purpose == Purpose::Wake && exit.pc == pc => {
                        self.compared.woken();
                        return self.step_and_compare(false, vcpu, memory);
                    }
                    Cause::Trap => true,
                }
            }
            (Outcome::NotEntered(text), _) if stepping.refused => {
                let reason = StopReason::InternalError(text.clone());
                return Ok(self.end(reason, vcpu, memory));
            }
            (Outcome::NotEntered(_), _) => {
                stepping.refused = true;
                // If the instruction is done, its trap has not come yet.
                self.arming.held_trap.noticed();
                false
            }
            // A userspace local APIC: HLT is the instruction's end.
            (Outcome::Halted, _) => true,
            // The instruction is no more, and nothing of it is to be mended.
            (Outcome::Restarted, _) => return self.end_step(StopReason::Step, vcpu),
            (Outcome::Fatal(reason), _) => return Ok(Next::Stopped(reason.clone())),
        };
        let settled = self.settle(trapped, vcpu, memory);
        if trapped && settled.is_err() {
            // Whether the trap came too early cannot be found out later.
            self.arming.held_trap.noticed();
        }
        match settled? {
            Progress::Done => self.finish_instruction(vcpu, memory),
            Progress::NotStarted => self.retry_step(vcpu, memory),
        }
    }

    /// Arms the pending step once more.
    fn retry_step<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        let id = self.id();
        let State::Stepping(stepping) = &mut self.state else {
            return Ok(self.stop(StopReason::Interrupted));
        };
        stepping.attempts += 1;
        if stepping.attempts >= MAX_ATTEMPTS {
            tracing::warn!(
                vcpu = %id, pc = format_args!("{:#x}", stepping.step.pc()),
                "the instruction did not move RIP in {MAX_ATTEMPTS} attempts; reported as a step"
            );
            return self.finish_instruction(vcpu, memory);
        }
        let now = self.registers.expedited(vcpu)?;
        self.arming.arm_step(&now, vcpu, &mut self.registers)?;
        Ok(Next::Enter)
    }

    fn settle<V: Vcpu>(
        &mut self,
        trapped: bool,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Progress, StepperError<V::Error>> {
        match &self.state {
            State::Stepping(stepping) => {
                let mut context = Context {
                    arming: &mut self.arming,
                    registers: &mut self.registers,
                    vcpu,
                    memory,
                };
                stepping.step.settle(trapped, &mut context)
            }
            _ => Ok(Progress::Done),
        }
    }

    /// The step ends where it is: in a handler that the instruction called, perhaps. What the
    /// hypervisor left there of TF is mended now, since nothing comes back to this step.
    fn interrupt_step<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        // What was to go in with the entry does not: reading the registers may accept INIT.
        vcpu.discard_tf_at_entry();
        // The vCPU may wait: the next step reads the run state, together with the registers.
        self.registers.forget();
        self.settle(false, vcpu, memory)?;
        // The instruction may be done.
        let reason = self.compare(vcpu, memory)?;
        self.end_step(reason.unwrap_or(StopReason::Interrupted), vcpu)
    }

    fn end_step<V: Vcpu>(
        &mut self,
        reason: StopReason,
        vcpu: &mut V,
    ) -> Result<Next, StepperError<V::Error>> {
        self.give_up_step(vcpu)?;
        Ok(self.stop(reason))
    }

    /// The pending instruction is done: stops, or goes on with the next one of the range.
    fn finish_instruction<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        let State::Stepping(stepping) = &mut self.state else {
            return Ok(self.stop(StopReason::Interrupted));
        };
        take_back(stepping.step.lent(), vcpu, &mut self.registers)?;
        let (order, purpose) = (stepping.order.clone(), stepping.purpose);
        if purpose == Purpose::UntilFree && !self.withholds_interrupt(vcpu)? {
            // It comes before a breakpoint here.
            return self.start_free(vcpu);
        }
        if let Some(reason) = self.compare(vcpu, memory)? {
            return Ok(self.stop(reason));
        }
        let pc = self.registers.expedited(vcpu)?.linear_pc();
        // A step onto an armed breakpoint is reported as a plain step.
        if self.armed.hardware.iter().any(|at| executes_at(at, pc)) {
            return Ok(self.stop(StopReason::HardwareBreakpoint));
        }
        let registers = &mut self.registers;
        if debug_exit::software_breakpoint_at(pc, &self.armed, registers, vcpu, memory)? {
            return Ok(self.stop(StopReason::SoftwareBreakpoint));
        }
        match (purpose, &order.range) {
            (Purpose::UntilFree, _) => self.step_until_free(false, vcpu, memory),
            (Purpose::Compare | Purpose::Wake, _) => self.step_and_compare(false, vcpu, memory),
            (Purpose::Step, Some(range)) if range.contains(&pc) => {
                self.start_step(order, false, vcpu, memory)
            }
            (Purpose::Step, _) => Ok(self.stop(StopReason::Step)),
        }
    }
}

/// Takes back what was lent; tries once more if that fails.
fn take_back<V: Vcpu>(
    lent: &mut Lent,
    vcpu: &mut V,
    registers: &mut Registers,
) -> Result<(), StepperError<V::Error>> {
    lent.take_back(vcpu, registers)
        .or_else(|_| lent.take_back(vcpu, registers))
}

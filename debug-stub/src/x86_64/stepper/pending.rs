//! One instruction whose step is armed, and not known to be done.

use vcpu_caps::{HwBreakpoint, HwBreakpointKind};

use super::arming::Arming;
use super::debug_exit::owe_debug_exception;
use super::registers::Registers;
use super::system_call::Lent;
use super::vcpu::{RunState, StepperError, Vcpu};
use crate::host::GuestMemory;
use crate::order::Armed;
use crate::x86_64::bits::{CR0_PE, DR6_BS};
use crate::x86_64::{Progress, RegisterFile, RegisterGroups, StepClass, StepPlan};

/// The longest instruction, in bytes (SDM 2A 2.3.11).
const LONGEST_INSTRUCTION: u64 = 15;

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
}

impl PendingStep {
    /// Plans and arms the step of the instruction at the PC. The `first` of an order is stepped off
    /// a breakpoint, which is no hit of it.
    ///
    /// # Errors
    /// If the vCPU refuses. What was lent is in `lent` then, and the caller takes it back.
    pub(super) fn arm<V: Vcpu, M: GuestMemory>(
        mask: bool,
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
        let before = registers.expedited(*vcpu)?;
        let run_state = registers.run_state();
        let pc = before.linear_pc();
        let plan = StepPlan::new(&before, *memory);
        *lent = Lent::lend(plan.class(), &before, *vcpu, registers)?;
        let stays = |breakpoint: &&HwBreakpoint| !(first && executes_at(breakpoint, pc));
        let hardware: Vec<HwBreakpoint> = armed.hardware.iter().filter(stays).copied().collect();
        arming.intend_step::<V>(mask, armed, &hardware)?;
        arming.arm_step(*vcpu, registers)?;
        Ok(Self {
            plan,
            before,
            run_state,
            lent: std::mem::take(lent),
        })
    }

    /// Linear address of the instruction.
    pub(super) fn pc(&self) -> u64 {
        self.before.linear_pc()
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

    /// Mends what the step left, and says whether it got anywhere. `trapped` says that a debug
    /// exception or HLT ended it.
    pub(super) fn settle<V: Vcpu, M: GuestMemory>(
        &self,
        trapped: bool,
        context: &mut Context<'_, V, M>,
    ) -> Result<Progress, StepperError<V::Error>> {
        let Context {
            arming,
            registers,
            vcpu,
            memory,
        } = context;
        let mut after = registers.expedited(*vcpu)?;
        self.lent.hide(&mut after);
        if is_restarted(&self.before, &after) {
            // The instruction is no more, and nothing of it is to be mended.
            registers.set_guest_tf(false);
            return Ok(Progress::Done);
        }
        if !trapped && after.core.rip == self.before.core.rip {
            return Ok(Progress::NotStarted);
        }
        let settlement = self.plan.settle(&after, *memory);
        if settlement.progress == Progress::NotStarted {
            return Ok(Progress::NotStarted);
        }
        if !settlement.mend(*memory) {
            tracing::warn!(
                vcpu = %arming.control.id(), pc = format_args!("{:#x}", self.pc()),
                "the RFLAGS that a stepped instruction stored keep TF: their page is not memory"
            );
        }
        if let Some(r11) = settlement.r11 {
            after.core.r11 = r11;
            registers.write(*vcpu, RegisterGroups::CORE, &after)?;
        }
        if self.plan.class() == StepClass::Halt {
            // It may be halted now: the next step reads the run state, together with the registers.
            registers.forget();
        }
        registers.set_guest_tf(settlement.guest_tf);
        if settlement.guest_trap {
            owe_debug_exception(DR6_BS, arming, *vcpu)?;
        }
        Ok(Progress::Done)
    }
}

/// Returns `true` if the vCPU has taken INIT and a start-up IPI since, and run one instruction there
/// at most. Both leave it in real-address mode, at IP 0 of another code segment, with neither stack
/// nor data (SDM 3A 9.4.4 and table 9-1); one instruction changes little of that.
fn is_restarted(before: &RegisterFile, after: &RegisterFile) -> bool {
    let special = &after.special;
    let moved = before.special.cs.base != special.cs.base && after.core.rip <= LONGEST_INSTRUCTION;
    let unset = [&special.ds, &special.es, &special.ss].map(|segment| segment.selector == 0);
    let nearly_unset = unset.into_iter().filter(|unset| !unset).count() <= 1;
    let real = special.cr0 & CR0_PE == 0;
    moved && real && nearly_unset && (after.core.rsp == 0 || before.special.cr0 & CR0_PE != 0)
}

/// Returns `true` if the breakpoint is for the instruction at `pc`.
pub(super) fn executes_at(breakpoint: &HwBreakpoint, pc: u64) -> bool {
    breakpoint.kind() == HwBreakpointKind::Execute && breakpoint.address() == pc
}

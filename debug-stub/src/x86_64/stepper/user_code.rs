//! Steps of user code where the plan lacks `single_step_user`: the hypervisor runs that code natively.
//!
//! There the #DB of a step goes to the guest's own vector 1, and a return to user code does not trap at all.
//! The step stops at the handler's first instruction, and takes the delivery back: the frame, the stack that it
//! overwrote, and DR6. A plain IRET or SYSRET is carried out, as HLT is.
//!
//! # Limits
//! The accessed and dirty bits that the delivery sets in the page tables stay: another access may need them.
//! A return to user code that is not plain is left to the hypervisor, and runs on to the next exception. So is
//! each return of 32-bit kernels. Breakpoints of the debugger in user code are seen by steps only.

use super::arming::{Arming, may_write};
use super::debug_exit::owe_debug_exception;
use super::registers::{Registers, has_tf, set_tf};
use super::slots::Slots;
use super::vcpu::{RunState, StepperError, Vcpu};
use crate::host::GuestMemory;
use crate::x86_64::bits::{DR6_BD, DR6_BS, DR6_HITS};
use crate::x86_64::step::{Delivery, UserReturn};
use crate::x86_64::{RegisterFile, RegisterGroups, StepPlan};

/// IA32_STAR (SDM 4 table 2-2).
const IA32_STAR: u32 = 0xc000_0081;

/// The trap of a step that goes to the guest's own handler.
#[derive(Debug)]
pub(super) struct UserTrap {
    delivery: Delivery,
    /// DR6 before the step.
    dr6: u64,
}

impl UserTrap {
    /// `None` where the trap leaves the guest, and where the guest is to get a #DB before or by the
    /// instruction.
    pub(super) fn of<V: Vcpu>(
        plan: &StepPlan,
        vcpu: &mut V,
        memory: &impl GuestMemory,
        arming: &Arming,
    ) -> Result<Option<Self>, StepperError<V::Error>> {
        let reaches = arming.user_traps_reach_the_guest() && plan.is_user_code();
        if !reaches || arming.owed().is_some() || plan.calls_debug_handler() {
            return Ok(None);
        }
        let delivery = plan.trap_delivery(memory).map_err(StepperError::UserStep)?;
        let dr6 = vcpu
            .debug_status()
            .map_err(StepperError::of("reading DR6"))?
            .dr6;
        Ok(Some(Self { delivery, dr6 }))
    }

    /// Linear address of the handler's first instruction.
    pub(super) fn handler(&self) -> u64 {
        self.delivery.handler()
    }

    /// Without the guard the handler would run.
    pub(super) fn check_guarded<E: std::error::Error + 'static>(
        &self,
        slots: &Slots,
    ) -> Result<(), StepperError<E>> {
        if slots.guards(self.handler()) {
            return Ok(());
        }
        Err(StepperError::UserStep(
            "no debug register is free to stop at its handler",
        ))
    }

    /// Undoes the delivery, if there was one. Returns `true` then: the step has trapped, and `after` is as if
    /// the trap had left the guest. A #DB with other causes than the step is the guest's, and stays.
    pub(super) fn take_back<V: Vcpu>(
        &self,
        after: &mut RegisterFile,
        vcpu: &mut V,
        memory: &impl GuestMemory,
        registers: &mut Registers,
    ) -> Result<bool, StepperError<V::Error>> {
        let Some(undone) = self.delivery.undone(after, memory) else {
            return Ok(false);
        };
        let dr6 = vcpu
            .debug_status()
            .map_err(StepperError::of("reading DR6"))?
            .dr6;
        let others = dr6 & !self.dr6 & (DR6_HITS | DR6_BD);
        if dr6 & DR6_BS == 0 || others != 0 {
            return Ok(false);
        }
        registers.write(vcpu, RegisterGroups::EXPEDITED, &undone)?;
        vcpu.set_dr6(self.dr6)
            .map_err(StepperError::of("writing DR6 back"))?;
        if !self.delivery.restore_memory(memory) {
            return Err(StepperError::UserStep(
                "the stack that it overwrote cannot be written back",
            ));
        }
        *after = undone;
        Ok(true)
    }
}

/// Carries out a plain IRET or SYSRET to user code, if the hypervisor would run on there. Returns `false` if
/// the hypervisor has to do it.
pub(super) fn return_to_user<V: Vcpu>(
    plan: &StepPlan,
    before: &RegisterFile,
    vcpu: &mut V,
    memory: &impl GuestMemory,
    arming: &mut Arming,
    registers: &mut Registers,
) -> Result<bool, StepperError<V::Error>> {
    let Some(kind) = plan.user_return() else {
        return Ok(false);
    };
    if !arming.user_traps_reach_the_guest() || !may_write(vcpu, registers)? {
        return Ok(false);
    }
    let star = match kind {
        UserReturn::Iret => {
            // IRET ends that.
            if vcpu
                .nmis_blocked()
                .map_err(StepperError::of("reading whether NMIs are blocked"))?
            {
                return Ok(false);
            }
            0
        }
        UserReturn::Sysret => vcpu
            .read_msr(IA32_STAR)
            .map_err(StepperError::of("reading IA32_STAR"))?,
    };
    let Some(mut after) = plan.after_user_return(before, star, memory) else {
        return Ok(false);
    };
    let own = has_tf(&after) && (has_tf(before) || !registers.tf_may_be_copied);
    set_tf(&mut after, own);
    if kind == UserReturn::Sysret && own {
        // Whether it traps at once depends on the hypervisor.
        return Ok(false);
    }
    if arming.in_shadow() {
        // What blocks interrupts ends with the instruction.
        vcpu.set_run_state(RunState::Runnable)
            .map_err(StepperError::of("setting the run state"))?;
    }
    registers.write(vcpu, RegisterGroups::EXPEDITED, &after)?;
    if kind == UserReturn::Iret && has_tf(before) {
        owe_debug_exception(DR6_BS, arming, vcpu)?;
    }
    Ok(true)
}

//! The trap of a step that the hypervisor holds, though the step has ended.
//!
//! An exit may save the trap as pending although the instruction has not been executed yet: Bochs does so
//! at each exit while TF is set (SDM 3C 27.3.3 has it saved as clear). The hypervisor then carries out the
//! instruction, and reports the trap by itself. The next entry brings another one. A step counts that as
//! spurious and begins again; a free run would hand it to the guest as a #DB that nothing there has caused.
//!
//! So where this has been seen on the vCPU, a free run after a step begins with an entry that takes
//! the trap. An execute breakpoint at RIP makes sure that it executes nothing, trap or not.

use std::sync::Arc;

use super::arming::{Arming, pending_events};
use super::slots::Slots;
use super::vcpu::{RunState, StepperError, Vcpu};
use super::{Next, Outcome, State, Stepper};
use crate::host::GuestMemory;
use crate::order::StopReason;
use crate::x86_64::RegisterGroups;
use crate::x86_64::bits::RFLAGS_RF;

/// What is known of the trap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldTrap {
    /// The hypervisor holds traps: one came before its instruction was executed.
    seen: bool,
    /// A step has run, and no entry since has taken its trap.
    possible: bool,
}

impl HeldTrap {
    /// An entry with a single step armed has ended.
    pub(super) fn stepped(&mut self) {
        self.possible = true;
    }

    /// A trap came although nothing was executed, or is known to be pending.
    pub(super) fn noticed(&mut self) {
        self.seen = true;
    }

    fn is_likely(self) -> bool {
        self.seen && self.possible
    }

    fn taken(&mut self) {
        self.possible = false;
    }
}

impl Arming {
    /// Returns `true` if an entry can take the trap and execute nothing.
    fn can_take_trap<V: Vcpu>(
        &self,
        run_state: RunState,
        vcpu: &mut V,
    ) -> Result<bool, StepperError<V::Error>> {
        // The delivery of an event drops the trap, also of one that ends HLT.
        let runs = run_state == RunState::Runnable && self.owed().is_none();
        Ok(self.has_guards() && self.can_mask() && runs && !pending_events(vcpu)?.exception)
    }
}

impl Stepper {
    /// Before a free run: arms the entry that takes the trap. Returns `false` if none is needed.
    pub(super) fn take_held_trap<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
    ) -> Result<bool, StepperError<V::Error>> {
        if !self.arming.held_trap.is_likely() {
            return Ok(false);
        }
        let mut now = self.registers.expedited(vcpu)?;
        let run_state = self.registers.run_state();
        if !self.arming.can_take_trap(run_state, vcpu)? {
            return Ok(false);
        }
        // RF would let the instruction begin: KVM sets it between two iterations of REP INS.
        let resumes = now.core.rflags & RFLAGS_RF != 0;
        self.state = State::TakingTrap { resumes };
        if resumes {
            now.core.rflags &= !RFLAGS_RF;
            self.registers.write(vcpu, RegisterGroups::CORE, &now)?;
        }
        let armed = Arc::clone(&self.armed);
        self.arming.code_guards.forget();
        let nowhere = Slots::nowhere(now.linear_pc());
        self.arming.intend_step::<V>(true, &armed, nowhere)?;
        self.arming.arm_step(&now, vcpu, &mut self.registers)?;
        Ok(true)
    }

    /// That entry is over, or is not made: RF is as it was. If a call fails, call it again.
    pub(super) fn end_taking_trap<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
    ) -> Result<(), StepperError<V::Error>> {
        if let State::TakingTrap { resumes: true } = self.state {
            let mut now = self.registers.expedited(vcpu)?;
            now.core.rflags |= RFLAGS_RF;
            self.registers.write(vcpu, RegisterGroups::CORE, &now)?;
            self.state = State::TakingTrap { resumes: false };
        }
        Ok(())
    }

    /// That entry has ended.
    pub(super) fn ran_taking_trap<V: Vcpu>(
        &mut self,
        outcome: &Outcome,
        vcpu: &mut V,
        memory: &impl GuestMemory,
    ) -> Result<Next, StepperError<V::Error>> {
        match outcome {
            // A signal for something else.
            Outcome::Nothing => Ok(Next::Enter),
            // Only if the breakpoint did not fire.
            Outcome::Served => Ok(Next::Complete),
            Outcome::NotEntered(text) => {
                let reason = StopReason::InternalError(text.clone());
                Ok(self.end(reason, vcpu, memory))
            }
            _ => {
                self.arming.held_trap.taken();
                self.end_taking_trap(vcpu)?;
                self.start_continue(vcpu, memory)
            }
        }
    }
}

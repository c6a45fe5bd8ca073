//! An interrupt that the hypervisor is already delivering as a masked step begins.
//!
//! A kick between the injection and the entry leaves it so: the interrupt controller has handed it
//! out, and the next entry enters its handler whatever is masked (KVM, `kvm_check_and_inject_events`
//! injects again what was injected). It is taken back, and given back with the first entry that may
//! take it: not masked, RFLAGS.IF set, no exception before it. A free run that may not take it yet
//! begins with masked steps.

use super::arming::Arming;
use super::registers::Registers;
use super::vcpu::{RunState, StepperError, Vcpu};
use crate::x86_64::RegisterFile;
use crate::x86_64::bits::RFLAGS_IF;

impl Arming {
    /// Before a masked entry: takes back what would enter.
    pub(super) fn withhold_interrupt<V: Vcpu>(
        &mut self,
        interrupt: Option<u8>,
        vcpu: &mut V,
    ) -> Result<(), StepperError<V::Error>> {
        // Where the VMM's policy withholds interrupts it takes them back by itself.
        let by_hypervisor = self.control.is_masked() && !self.control.withhold_interrupts();
        if let (Some(vector), true) = (interrupt, by_hypervisor) {
            vcpu.set_injected_interrupt(None)
                .map_err(StepperError::of("taking an interrupt back"))?;
            self.withheld = Some(vector);
        }
        Ok(())
    }

    /// Returns `true` if an interrupt waits that must be given back, and cannot yet.
    pub(super) fn must_wait_for_interrupts(&self, now: &RegisterFile) -> bool {
        self.withheld.is_some() && !self.is_open(now)
    }

    fn is_open(&self, now: &RegisterFile) -> bool {
        now.core.rflags & RFLAGS_IF != 0 && !self.is_in_shadow() && self.owed().is_none()
    }

    /// Before an entry that masks nothing: gives back what was taken, if the vCPU may take it. Returns
    /// its vector.
    pub(super) fn give_interrupt_back<V: Vcpu>(
        &mut self,
        now: &RegisterFile,
        vcpu: &mut V,
    ) -> Result<Option<u8>, StepperError<V::Error>> {
        let Some(vector) = self.withheld.filter(|_| self.is_open(now)) else {
            return Ok(None);
        };
        self.return_interrupt(vector, vcpu)?;
        Ok(Some(vector))
    }

    /// The debugger goes: gives back what was taken in any case.
    pub(super) fn release_interrupt<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        registers: &mut Registers,
    ) -> Result<(), StepperError<V::Error>> {
        let Some(vector) = self.withheld else {
            return Ok(());
        };
        let now = registers.expedited(vcpu)?;
        if self.give_interrupt_back(&now, vcpu)?.is_none() {
            vcpu.requeue_interrupt(vector)
                .map_err(StepperError::of("giving an interrupt back"))?;
            self.withheld = None;
        }
        Ok(())
    }

    fn return_interrupt<V: Vcpu>(
        &mut self,
        vector: u8,
        vcpu: &mut V,
    ) -> Result<(), StepperError<V::Error>> {
        const CALL: &str = "giving an interrupt back";
        // It ends a HLT that was stepped since.
        vcpu.set_run_state(RunState::Runnable)
            .map_err(StepperError::of(CALL))?;
        vcpu.set_injected_interrupt(Some(vector))
            .map_err(StepperError::of(CALL))?;
        self.withheld = None;
        Ok(())
    }

    /// INIT, or a reset: it is lost with all that was pending.
    pub(super) fn forget_interrupt(&mut self) {
        self.withheld = None;
    }
}

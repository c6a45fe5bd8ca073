//! A vCPU of KVM as the stepper sees it, with the answers of the machine's interrupt chips.
//!
//! The stepper asks what enters next, what the vCPU waits for, and puts interrupts back. KVM knows that of its own
//! chips, but not with one ioctl of what its 8259A has. With `--irqchip user` it has no chips, and with `split` no
//! 8259A. [`WithChips`] asks the machine's chips for the rest, so the same stepper leaves no trace in all three
//! modes. A masked step asks them nothing but the run state, which costs a lock in place of an ioctl.
//!
//! The chips take their locks in their own methods (see `irqchip/user.rs`). None is held from one call to the
//! next.

use debug_stub::kvm::KvmVcpu;
use debug_stub::x86_64::stepper::{PendingEvents, RunState, Vcpu};
use debug_stub::x86_64::{
    CoreRegisters, DebugRegisters, RegisterFile, RegisterGroups, SpecialRegisters,
};
use intr_controller::IrqchipMode;
use intr_controller::kvm::passes_ext_int;
use vcpu_caps::{GuestDebug, VcpuId};

use crate::irqchip::Chips;

/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;

/// What emulated chips have to know of the host's vCPU.
pub(super) trait Injectable: Vcpu {
    /// Returns `true` if KVM's local APIC passes ExtINTs on to the vCPU.
    fn passes_ext_int(&mut self) -> bool;

    /// Returns `true` if the host takes an interrupt of emulated chips with the next entry.
    fn takes_interrupt_now(&mut self) -> bool;

    /// No instruction blocks interrupts any more, and nothing is on its way in: the host's report of the last
    /// exit is stale.
    fn report_open(&mut self);
}

impl Injectable for KvmVcpu<'_> {
    fn passes_ext_int(&mut self) -> bool {
        passes_ext_int(self.0).unwrap_or_else(|error| {
            tracing::warn!(%error, "an ExtINT may enter inside a step");
            false
        })
    }

    fn takes_interrupt_now(&mut self) -> bool {
        self.0.get_kvm_run().ready_for_interrupt_injection != 0
    }

    fn report_open(&mut self) {
        // If KVM does not say, it reports at the next exit.
        let enabled = self
            .0
            .get_regs()
            .is_ok_and(|registers| registers.rflags & RFLAGS_IF != 0);
        let run = self.0.get_kvm_run();
        run.if_flag = enabled.into();
        run.ready_for_interrupt_injection = enabled.into();
    }
}

/// The host's vCPU, lent with the machine's chips for one call of the stepper.
#[derive(Debug)]
pub(super) struct WithChips<'a, V> {
    id: VcpuId,
    vcpu: V,
    chips: &'a dyn Chips,
}

impl<'a, V: Injectable> WithChips<'a, V> {
    pub(super) fn new(id: VcpuId, vcpu: V, chips: &'a dyn Chips) -> Self {
        Self { id, vcpu, chips }
    }

    /// With emulated local APICs. KVM has only what it was given.
    fn next_of_emulated(&mut self, enabled: bool) -> Result<Option<u8>, V::Error> {
        if let Some(given) = self.vcpu.next_interrupt(false)? {
            return Ok(Some(given));
        }
        let blocked = self.vcpu.nmis_blocked()?;
        Ok(self.chips.next_interrupt(self.id, enabled, blocked))
    }

    /// With KVM's local APICs. Behind an NMI an ExtINT comes before the local APIC's interrupts (irq.c,
    /// `kvm_cpu_get_interrupt`), if KVM has it by then.
    fn next_of_kvm(&mut self, enabled: bool, has_8259a: bool) -> Result<Option<u8>, V::Error> {
        let given = self.vcpu.next_interrupt(false)?;
        if given.is_some() || !enabled {
            return Ok(given);
        }
        let ext_int = self.chips.next_interrupt(self.id, enabled, false);
        let ext_int = ext_int.filter(|_| self.vcpu.passes_ext_int());
        if ext_int.is_some() && (has_8259a || self.vcpu.takes_interrupt_now()) {
            return Ok(ext_int);
        }
        Ok(self.vcpu.next_interrupt(enabled)?.or(ext_int))
    }
}

impl<V: Injectable> Vcpu for WithChips<'_, V> {
    type Error = V::Error;

    const TF_FOLLOWS_ARMED_RIP: bool = V::TF_FOLLOWS_ARMED_RIP;

    fn next_interrupt(&mut self, enabled: bool) -> Result<Option<u8>, V::Error> {
        match self.chips.mode() {
            IrqchipMode::Kernel => self.next_of_kvm(enabled, true),
            IrqchipMode::Split => self.next_of_kvm(enabled, false),
            IrqchipMode::User => self.next_of_emulated(enabled),
        }
    }

    fn run_state(&mut self) -> Result<RunState, V::Error> {
        match self.chips.run_state(self.id) {
            Some(state) => Ok(state),
            None => self.vcpu.run_state(),
        }
    }

    fn set_run_state(&mut self, state: RunState) -> Result<bool, V::Error> {
        if self.chips.run_state(self.id).is_none() {
            return self.vcpu.set_run_state(state);
        }
        // The host has no such state, but blocks interrupts behind STI.
        self.vcpu.set_run_state(RunState::Runnable)?;
        self.vcpu.report_open();
        self.chips.set_halted(self.id, state == RunState::Halted);
        Ok(true)
    }

    fn requeue_interrupt(&mut self, vector: u8) -> Result<(), V::Error> {
        let emulated = self.chips.run_state(self.id).is_some();
        if emulated && self.chips.requeue(self.id, vector) {
            return Ok(());
        }
        // What KVM's local APIC does not have in service is an ExtINT.
        self.vcpu.requeue_interrupt(vector).or_else(|error| {
            if self.chips.requeue(self.id, vector) {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    fn read_registers(
        &mut self,
        groups: RegisterGroups,
        file: &mut RegisterFile,
    ) -> Result<(), V::Error> {
        self.vcpu.read_registers(groups, file)
    }

    fn write_registers(
        &mut self,
        groups: RegisterGroups,
        file: &RegisterFile,
    ) -> Result<(), V::Error> {
        self.vcpu.write_registers(groups, file)
    }

    fn read_msr(&mut self, index: u32) -> Result<u64, V::Error> {
        self.vcpu.read_msr(index)
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), V::Error> {
        self.vcpu.write_msr(index, value)
    }

    fn debug_status(&mut self) -> Result<DebugRegisters, V::Error> {
        self.vcpu.debug_status()
    }

    fn set_dr6(&mut self, dr6: u64) -> Result<(), V::Error> {
        self.vcpu.set_dr6(dr6)
    }

    fn pending_events(&mut self) -> Result<PendingEvents, V::Error> {
        self.vcpu.pending_events()
    }

    fn set_injected_interrupt(&mut self, vector: Option<u8>) -> Result<(), V::Error> {
        self.vcpu.set_injected_interrupt(vector)
    }

    fn nmis_blocked(&mut self) -> Result<bool, V::Error> {
        self.vcpu.nmis_blocked()
    }

    fn restore_sti_shadow(&mut self) -> Result<(), V::Error> {
        self.vcpu.restore_sti_shadow()
    }

    fn set_guest_debug(&mut self, debug: &GuestDebug) -> Result<(), V::Error> {
        self.vcpu.set_guest_debug(debug)
    }

    fn sync_registers(&mut self, on: bool) {
        self.vcpu.sync_registers(on);
    }

    fn synced_registers(&mut self) -> Option<(CoreRegisters, SpecialRegisters)> {
        self.vcpu.synced_registers()
    }

    fn set_tf_at_entry(&mut self) -> bool {
        self.vcpu.set_tf_at_entry()
    }

    fn discard_tf_at_entry(&mut self) {
        self.vcpu.discard_tf_at_entry();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use debug_stub::x86_64::simulated::{Exit, Habits, Ram, SimulatedVcpu, host_report};
    use debug_stub::x86_64::stepper::{Next, Stepper};
    use debug_stub::{Armed, GuestMemory, GuestPhysAddr, StepOrder, StopReason, VcpuOrder};
    use intr_controller::MsiMessage;
    use proptest::prelude::*;
    use vcpu_caps::{Profile, negotiate};

    use super::*;
    use crate::irqchip::chips_for_tests;

    const VCPU: VcpuId = VcpuId(0);
    const CODE: u16 = 0x1000;
    const STACK: u16 = 0x8000;
    const HANDLER: u16 = 0x3000;
    const VECTOR: u8 = 0x41;
    const NMI: u32 = 4 << 8;
    const TF: u16 = 1 << 8;

    impl Injectable for SimulatedVcpu {
        fn passes_ext_int(&mut self) -> bool {
            true
        }

        fn takes_interrupt_now(&mut self) -> bool {
            true
        }

        fn report_open(&mut self) {}
    }

    fn arrives(chips: &dyn Chips, data: u32) {
        let message = MsiMessage {
            address: 0xfee0_0000,
            data,
        };
        assert!(chips.signal_msi(message).unwrap());
    }

    /// A stepped vCPU with emulated chips.
    struct Machine {
        vcpu: WithChips<'static, SimulatedVcpu>,
        memory: Ram,
        stepper: Stepper,
        chips: &'static dyn Chips,
    }

    fn machine(habits: Habits, code: &[u8]) -> Machine {
        let memory = Ram::new(0x1_0000);
        memory.put(CODE.into(), code);
        // inc cx; pushf; iret
        memory.put(HANDLER.into(), &[0x41, 0x9c, 0xcf]);
        for vector in [2, VECTOR] {
            memory.put(4 * u64::from(vector), &HANDLER.to_le_bytes());
        }
        let plan = negotiate(&host_report(&[]), &Profile::debugger()).unwrap();
        let mut vcpu = SimulatedVcpu::real_mode(habits, CODE, STACK);
        vcpu.registers_mut().core.rflags |= RFLAGS_IF;
        let chips: &'static dyn Chips = Box::leak(Box::new(chips_for_tests()));
        Machine {
            vcpu: WithChips::new(VCPU, vcpu, chips),
            memory,
            stepper: Stepper::new(VCPU, &plan),
            chips,
        }
    }

    impl Machine {
        /// One step. What the chips have enters where the step is prepared for it, as `before_entry` sees to.
        fn step(&mut self, mask: bool) -> StopReason {
            let order = VcpuOrder::Step(StepOrder {
                mask,
                ..StepOrder::default()
            });
            let armed = Arc::<Armed>::default();
            let mut next = (self.stepper).start(&order, &armed, &mut self.vcpu, &self.memory);
            loop {
                match next {
                    Next::Stopped(reason) => return reason,
                    Next::Enter | Next::Complete => {}
                }
                if let Some(Some(vector)) = self.stepper.prepared_event() {
                    self.vcpu.set_injected_interrupt(Some(vector)).unwrap();
                    self.chips.set_halted(VCPU, false);
                }
                let complete = next == Next::Complete;
                let exit = self.vcpu.vcpu.run(&self.memory, complete, 100);
                assert_ne!(exit, Exit::Sleeps);
                let outcome = SimulatedVcpu::outcome(&exit);
                next = (self.stepper).ran(outcome, &mut self.vcpu, &self.memory);
            }
        }

        fn rip(&self) -> u64 {
            self.vcpu.vcpu.registers().core.rip
        }
    }

    #[test]
    fn an_unmasked_step_ends_at_the_handler_of_what_the_chips_have() {
        for (habits, message) in Habits::ALL
            .into_iter()
            .flat_map(|habits| [(habits, u32::from(VECTOR)), (habits, NMI)])
        {
            let mut machine = machine(habits, &[0x90; 16]);
            assert_eq!(machine.step(false), StopReason::Step);
            assert_eq!(machine.rip(), u64::from(CODE) + 1);
            arrives(machine.chips, message);
            // A masked step lets nothing in.
            assert_eq!(machine.step(true), StopReason::Step);
            assert_eq!(machine.rip(), u64::from(CODE) + 2);
            assert_eq!(machine.step(false), StopReason::Step);
            assert_eq!(machine.rip(), u64::from(HANDLER), "{}", habits.name);
            let mut frame = [0; 6];
            let at = GuestPhysAddr(u64::from(STACK) - 6);
            machine.memory.read_memory(at, &mut frame);
            let flags = u16::from_le_bytes([frame[4], frame[5]]);
            assert_eq!(flags & TF, 0, "{}", habits.name);
        }
    }

    #[test]
    fn hlt_that_is_stepped_is_known_to_the_chips_and_ended_by_another_rip() {
        for habits in Habits::ALL {
            // sti; hlt; nop
            let mut machine = machine(habits, &[0xfb, 0xf4, 0x90, 0x90]);
            for _ in 0..2 {
                assert_eq!(machine.step(true), StopReason::Step);
            }
            assert_eq!(machine.rip(), u64::from(CODE) + 2);
            assert_eq!(machine.chips.run_state(VCPU), Some(RunState::Halted));
            let Machine {
                vcpu,
                stepper,
                chips,
                ..
            } = &mut machine;
            assert_eq!(stepper.run_state(vcpu).unwrap(), RunState::Halted);
            let mut file = RegisterFile::default();
            let core = RegisterGroups::CORE;
            stepper.read_registers(core, &mut file, vcpu).unwrap();
            let here = file.core.rip;
            for (rip, state) in [
                (CODE.into(), RunState::Runnable),
                (here, RunState::Halted),
                (u64::from(CODE) + 3, RunState::Runnable),
            ] {
                file.core.rip = rip;
                stepper.write_registers(core, &file, vcpu).unwrap();
                assert_eq!(chips.run_state(VCPU), Some(state), "{rip:#x}");
            }
            assert_eq!(machine.step(true), StopReason::Step);
            assert_eq!(machine.rip(), u64::from(CODE) + 4);
        }
    }

    #[test]
    fn an_unmasked_step_of_a_halted_vcpu_ends_at_the_handler() {
        for habits in Habits::ALL {
            let mut machine = machine(habits, &[0xfb, 0xf4, 0x90]);
            arrives(machine.chips, VECTOR.into());
            // The instruction behind STI is stepped masked in any case: IF is clear before it.
            machine.vcpu.vcpu.registers_mut().core.rflags &= !RFLAGS_IF;
            for at in [CODE + 1, CODE + 2, HANDLER] {
                assert_eq!(machine.step(false), StopReason::Step);
                assert_eq!(machine.rip(), u64::from(at), "{}", habits.name);
            }
            assert_eq!(machine.chips.run_state(VCPU), Some(RunState::Runnable));
        }
    }

    proptest! {
        /// What enters next is what KVM has already, an NMI, what was put back, or the highest vector.
        #[test]
        fn the_next_interrupt_is_the_most_urgent_of_kvm_and_the_chips(
            vectors in proptest::collection::btree_set(0x30_u8..=0xff, 0..4),
            nmi in any::<bool>(),
            given in proptest::option::of(0x30_u8..=0xff),
            put_back in proptest::option::of(0x30_u8..=0xff),
            enabled in any::<bool>(),
        ) {
            let mut machine = machine(Habits::AMD, &[0x90]);
            for vector in &vectors {
                arrives(machine.chips, (*vector).into());
            }
            if nmi {
                arrives(machine.chips, NMI);
            }
            machine.vcpu.set_injected_interrupt(given).unwrap();
            if let Some(vector) = put_back {
                machine.vcpu.requeue_interrupt(vector).unwrap();
            }
            let maskable = put_back.or(vectors.last().copied()).filter(|_| enabled);
            let put_back = put_back.filter(|_| enabled);
            let expected = given.or(put_back).or(nmi.then_some(2)).or(maskable);
            prop_assert_eq!(machine.vcpu.next_interrupt(enabled).unwrap(), expected);
        }
    }
}

//! A vCPU of KVM as the stepper sees it, with the answers of the machine's interrupt chips.
//!
//! The stepper asks what enters next, what the vCPU waits for, and puts interrupts back. KVM knows that of its own
//! chips. With `--irqchip user` it has none, and with `split` it does not know the 8259A. [`WithChips`] asks the
//! emulated chips in these cases, so the same stepper leaves no trace in all three modes. A masked step asks them
//! nothing but the run state, which costs a lock in place of an ioctl.
//!
//! The chips take their locks in their own methods (see `irqchip/user.rs`). None is held from one call to the
//! next.

use debug_stub::kvm::KvmVcpu;
use debug_stub::x86_64::stepper::{DebugStatus, PendingEvents, RunState, Vcpu};
use debug_stub::x86_64::{CoreRegisters, RegisterFile, RegisterGroups, SpecialRegisters};
use intr_controller::IrqchipMode;
use intr_controller::kvm::SplitVcpu;
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
        SplitVcpu::passes_ext_int(self.0).unwrap_or_else(|error| {
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

    /// With KVM's local APICs and an emulated 8259A. Behind an NMI an ExtINT comes before the local APIC's
    /// interrupts (irq.c, `kvm_cpu_get_interrupt`), if KVM has it by then.
    fn next_of_split(&mut self, enabled: bool) -> Result<Option<u8>, V::Error> {
        let given = self.vcpu.next_interrupt(false)?;
        if given.is_some() || !enabled {
            return Ok(given);
        }
        let ext_int = self.chips.next_interrupt(self.id, enabled, false);
        let ext_int = ext_int.filter(|_| self.vcpu.passes_ext_int());
        if ext_int.is_some() && self.vcpu.takes_interrupt_now() {
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
            IrqchipMode::Kernel => self.vcpu.next_interrupt(enabled),
            IrqchipMode::Split => self.next_of_split(enabled),
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

    fn debug_status(&mut self) -> Result<DebugStatus, V::Error> {
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

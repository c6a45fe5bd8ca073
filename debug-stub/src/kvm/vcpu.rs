//! A lent `VcpuFd` as the stepper's vCPU.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_SHADOW,
    kvm_mp_state,
};
use kvm_ioctls::{SyncReg, VcpuFd};
use thiserror::Error;
use vcpu_caps::kvm::{SetGuestDebugError, set_guest_debug};
use vcpu_caps::{GuestDebug, GuestDebugFlags};

use super::interrupts::{move_to_irr, requested};
use super::registers::{
    RegistersError, core_from_kvm, ioctl, read_debug_registers, read_msr, read_registers,
    special_from_kvm, write_msr, write_registers,
};
use crate::x86_64::bits::{RFLAGS_IF, RFLAGS_TF};
use crate::x86_64::stepper::{PendingEvents, RunState, Vcpu};
use crate::x86_64::{
    CoreRegisters, DebugRegisters, RegisterFile, RegisterGroups, SpecialRegisters,
};

/// The NMI's vector (SDM 3A table 6-1).
const NMI: u8 = 2;

/// `KVM_X86_SHADOW_INT_STI` (asm/kvm.h).
const STI_SHADOW: u8 = 2;

/// A `VcpuFd`, lent to a [`Stepper`](crate::x86_64::stepper::Stepper) for one call.
///
/// It holds no state: create one wherever a `&mut VcpuFd` is at hand.
#[derive(Debug)]
pub struct KvmVcpu<'a>(pub &'a mut VcpuFd);

/// KVM refused an ioctl.
#[derive(Debug, Error)]
pub enum KvmError {
    /// A register ioctl.
    #[error(transparent)]
    Registers(#[from] RegistersError),
    /// `KVM_SET_GUEST_DEBUG`.
    #[error(transparent)]
    SetGuestDebug(#[from] SetGuestDebugError),
    /// An interrupt of an 8259A was accepted while RFLAGS.IF was set, and IF was cleared by steps: no
    /// interrupt controller can take it back.
    #[error(
        "interrupt {0:#x} is lost: the local APIC does not have it in service; continue a vCPU before you detach from it"
    )]
    NotInService(u8),
}

impl Vcpu for KvmVcpu<'_> {
    type Error = KvmError;

    const TF_FOLLOWS_ARMED_RIP: bool = true;

    fn read_registers(
        &mut self,
        groups: RegisterGroups,
        file: &mut RegisterFile,
    ) -> Result<(), KvmError> {
        Ok(read_registers(self.0, groups, file)?)
    }

    fn write_registers(
        &mut self,
        groups: RegisterGroups,
        file: &RegisterFile,
    ) -> Result<(), KvmError> {
        if groups.contains(RegisterGroups::CORE) {
            // KVM's report of the last exit, which decides what enters where the chips are in
            // userspace. It depends on no register but RFLAGS (`kvm_arch_interrupt_allowed`).
            let enabled = u8::from(file.core.rflags & RFLAGS_IF != 0);
            let run = self.0.get_kvm_run();
            if run.if_flag != enabled {
                run.if_flag = enabled;
                run.ready_for_interrupt_injection = 0;
            }
        }
        Ok(write_registers(self.0, groups, file)?)
    }

    fn read_msr(&mut self, index: u32) -> Result<u64, KvmError> {
        Ok(read_msr(self.0, index)?)
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), KvmError> {
        Ok(write_msr(self.0, index, value)?)
    }

    fn debug_status(&mut self) -> Result<DebugRegisters, KvmError> {
        Ok(read_debug_registers(self.0)?)
    }

    fn set_dr6(&mut self, dr6: u64) -> Result<(), KvmError> {
        let mut registers = self
            .0
            .get_debug_regs()
            .map_err(ioctl("KVM_GET_DEBUGREGS"))?;
        registers.dr6 = dr6;
        self.0
            .set_debug_regs(&registers)
            .map_err(ioctl("KVM_SET_DEBUGREGS"))?;
        Ok(())
    }

    fn pending_events(&mut self) -> Result<PendingEvents, KvmError> {
        let events = self
            .0
            .get_vcpu_events()
            .map_err(ioctl("KVM_GET_VCPU_EVENTS"))?;
        let interrupt = &events.interrupt;
        let is_hardware = interrupt.injected != 0 && interrupt.soft == 0;
        Ok(PendingEvents {
            exception: events.exception.pending != 0 || events.exception.injected != 0,
            interrupt: is_hardware.then_some(interrupt.nr),
        })
    }

    fn set_injected_interrupt(&mut self, vector: Option<u8>) -> Result<(), KvmError> {
        let mut events = self
            .0
            .get_vcpu_events()
            .map_err(ioctl("KVM_GET_VCPU_EVENTS"))?;
        events.interrupt.injected = u8::from(vector.is_some());
        events.interrupt.nr = vector.unwrap_or_default();
        events.interrupt.soft = 0;
        // The rest stays as it is: the shadow, NMIs and SMM are not named.
        events.flags = 0;
        self.0
            .set_vcpu_events(&events)
            .map_err(ioctl("KVM_SET_VCPU_EVENTS"))?;
        if vector.is_some() {
            // There is room for one. KVM's report of the last exit is stale.
            self.0.get_kvm_run().ready_for_interrupt_injection = 0;
        }
        Ok(())
    }

    /// Moves it from ISR to IRR of KVM's local APIC. An interrupt that a device sends between the two
    /// calls would be lost (`KVM_SET_LAPIC` writes all of IRR): this is for a debugger that leaves while
    /// RFLAGS.IF, which was set as the interrupt was accepted, is clear. One of the same vector that is
    /// requested already becomes one with it.
    fn requeue_interrupt(&mut self, vector: u8) -> Result<(), KvmError> {
        let mut lapic = self.0.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
        if !move_to_irr(&mut lapic.regs, vector) {
            return Err(KvmError::NotInService(vector));
        }
        self.0.set_lapic(&lapic).map_err(ioctl("KVM_SET_LAPIC"))?;
        Ok(())
    }

    fn nmis_blocked(&mut self) -> Result<bool, KvmError> {
        let events = self
            .0
            .get_vcpu_events()
            .map_err(ioctl("KVM_GET_VCPU_EVENTS"))?;
        Ok(events.nmi.masked != 0)
    }

    /// Of KVM's local APIC. What an 8259A is about to deliver by itself is not known here.
    fn next_interrupt(&mut self, enabled: bool) -> Result<Option<u8>, KvmError> {
        let events = self
            .0
            .get_vcpu_events()
            .map_err(ioctl("KVM_GET_VCPU_EVENTS"))?;
        // KVM was delivering it as the vCPU was kicked.
        if events.nmi.injected != 0 {
            return Ok(Some(NMI));
        }
        if events.interrupt.injected != 0 && events.interrupt.soft == 0 {
            return Ok(Some(events.interrupt.nr));
        }
        if events.nmi.pending != 0 && events.nmi.masked == 0 {
            return Ok(Some(NMI));
        }
        if !enabled {
            return Ok(None);
        }
        match self.0.get_lapic() {
            Ok(lapic) => Ok(requested(&lapic.regs).next_back()),
            // There is no local APIC in the kernel.
            Err(error) if error.errno() == libc::EINVAL => Ok(None),
            Err(error) => Err(ioctl("KVM_GET_LAPIC")(error).into()),
        }
    }

    /// Without a local APIC in the kernel KVM says `KVM_MP_STATE_RUNNABLE`.
    fn run_state(&mut self) -> Result<RunState, KvmError> {
        let state = self.0.get_mp_state().map_err(ioctl("KVM_GET_MP_STATE"))?;
        Ok(match state.mp_state {
            KVM_MP_STATE_HALTED => RunState::Halted,
            KVM_MP_STATE_UNINITIALIZED => RunState::WaitForInit,
            KVM_MP_STATE_INIT_RECEIVED => RunState::WaitForSipi,
            KVM_MP_STATE_SIPI_RECEIVED => RunState::Starting,
            _ => RunState::Runnable,
        })
    }

    /// Without a local APIC in the kernel KVM knows no other state than `KVM_MP_STATE_RUNNABLE`.
    fn set_run_state(&mut self, state: RunState) -> Result<bool, KvmError> {
        let mp_state = match state {
            RunState::Halted => KVM_MP_STATE_HALTED,
            _ => KVM_MP_STATE_RUNNABLE,
        };
        match self.0.set_mp_state(kvm_mp_state { mp_state }) {
            Ok(()) => {}
            Err(error) if error.errno() == libc::EINVAL => return Ok(false),
            Err(error) => return Err(ioctl("KVM_SET_MP_STATE")(error).into()),
        }
        let mut events = self
            .0
            .get_vcpu_events()
            .map_err(ioctl("KVM_GET_VCPU_EVENTS"))?;
        if events.interrupt.shadow != 0 {
            events.interrupt.shadow = 0;
            events.flags = KVM_VCPUEVENT_VALID_SHADOW;
            self.0
                .set_vcpu_events(&events)
                .map_err(ioctl("KVM_SET_VCPU_EVENTS"))?;
        }
        Ok(true)
    }

    fn restore_sti_shadow(&mut self) -> Result<(), KvmError> {
        let mut events = self
            .0
            .get_vcpu_events()
            .map_err(ioctl("KVM_GET_VCPU_EVENTS"))?;
        if events.interrupt.shadow == 0 {
            events.interrupt.shadow = STI_SHADOW;
            events.flags = KVM_VCPUEVENT_VALID_SHADOW;
            self.0
                .set_vcpu_events(&events)
                .map_err(ioctl("KVM_SET_VCPU_EVENTS"))?;
        }
        // KVM's report of the last exit, by which the VMM hands interrupts over, is stale. kvm_intel cannot enter
        // with one behind STI (SDM 3C 26.3.1.5).
        self.0.get_kvm_run().ready_for_interrupt_injection = 0;
        Ok(())
    }

    fn set_guest_debug(&mut self, debug: &GuestDebug) -> Result<(), KvmError> {
        set_guest_debug(self.0, debug)?;
        if debug.control.intersects(GuestDebugFlags::INJECT) {
            // It goes first. KVM's report of the last exit, by which the VMM hands interrupts over, is stale.
            self.0.get_kvm_run().ready_for_interrupt_injection = 0;
        }
        Ok(())
    }

    fn sync_registers(&mut self, on: bool) {
        for registers in [SyncReg::Register, SyncReg::SystemRegister] {
            if on {
                self.0.set_sync_valid_reg(registers);
            } else {
                self.0.clear_sync_valid_reg(registers);
            }
        }
    }

    fn synced_registers(&mut self) -> Option<(CoreRegisters, SpecialRegisters)> {
        let synced = self.0.sync_regs();
        Some((core_from_kvm(&synced.regs), special_from_kvm(&synced.sregs)))
    }

    fn set_tf_at_entry(&mut self) -> bool {
        self.0.sync_regs_mut().regs.rflags |= RFLAGS_TF;
        self.0.set_sync_dirty_reg(SyncReg::Register);
        true
    }

    fn discard_tf_at_entry(&mut self) {
        self.0.clear_sync_dirty_reg(SyncReg::Register);
    }
}

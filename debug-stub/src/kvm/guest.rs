//! The debugger's host for a VMM whose vCPUs are `VcpuFd`s with a stepper each.

use std::fmt;

use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vcpu_caps::VcpuId;

use super::{KvmError, KvmVcpu, pending_interrupts};
use crate::address::GuestPhysAddr;
use crate::host::{GuestMemory, Host, Interrupts};
use crate::x86_64::stepper::{RunState, Stepper, StepperError};
use crate::x86_64::{RegisterFile, RegisterGroups, X86_64};

/// A guest of KVM, as its VMM keeps it. Whatever implements this is a [`Host`].
///
/// A VMM whose local APICs are its own implements [`Host`] by itself, since CR8 and pending
/// interrupts are in these.
pub trait KvmGuest: GuestMemory {
    /// The number of vCPUs: [`Host::vcpu_count`].
    fn vcpu_count(&self) -> u16;

    /// Calls `act` with a vCPU that does not run, and returns `true`. Returns `false` if there is no
    /// such vCPU.
    fn with_vcpu(&self, vcpu: VcpuId, act: &mut dyn FnMut(&mut Stepper, &mut VcpuFd)) -> bool;

    /// Reads devices where there is no memory: [`Host::read_device`].
    fn read_device(
        &mut self,
        vcpu: VcpuId,
        address: GuestPhysAddr,
        data: &mut [u8],
        side_effects: bool,
    ) -> usize {
        let _ = (vcpu, address, data, side_effects);
        0
    }

    /// The VMM's own `monitor` commands: [`Host::monitor`].
    fn monitor(&mut self, vcpu: VcpuId, command: &str, out: &mut dyn fmt::Write) -> bool {
        let _ = (vcpu, command, out);
        false
    }

    /// Their help: [`Host::monitor_help`].
    fn monitor_help(&self) -> &str {
        ""
    }
}

/// A vCPU could not be read or written.
#[derive(Debug, Error)]
pub enum KvmGuestError {
    /// There is no such vCPU, or no longer.
    #[error("there is no {0}")]
    NoVcpu(VcpuId),
    /// KVM refused.
    #[error(transparent)]
    Stepper(#[from] StepperError<KvmError>),
}

fn with<T>(
    guest: &impl KvmGuest,
    vcpu: VcpuId,
    mut act: impl FnMut(&mut Stepper, &mut KvmVcpu<'_>) -> T,
) -> Result<T, KvmGuestError> {
    let mut result = None;
    guest.with_vcpu(vcpu, &mut |stepper, fd| {
        result = Some(act(stepper, &mut KvmVcpu(fd)));
    });
    result.ok_or(KvmGuestError::NoVcpu(vcpu))
}

impl<G: KvmGuest> Host for G {
    type Arch = X86_64;
    type Error = KvmGuestError;

    fn vcpu_count(&self) -> u16 {
        KvmGuest::vcpu_count(self)
    }

    fn vcpu_name(&self, vcpu: VcpuId) -> String {
        let state = with(self, vcpu, |stepper, fd| stepper.run_state(fd));
        let waits = state.ok().and_then(|state| state.ok()?.waits());
        match waits {
            Some(waits) => format!("CPU#{} [{waits}]", vcpu.0),
            None => format!("CPU#{}", vcpu.0),
        }
    }

    fn is_started(&self, vcpu: VcpuId) -> bool {
        let state = with(self, vcpu, |stepper, fd| stepper.run_state(fd));
        let waits = |state| matches!(state, RunState::WaitForInit | RunState::WaitForSipi);
        !matches!(state, Ok(Ok(state)) if waits(state))
    }

    fn read_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &mut RegisterFile,
    ) -> Result<(), KvmGuestError> {
        let read = |stepper: &mut Stepper, fd: &mut KvmVcpu<'_>| {
            stepper.read_registers(groups, registers, fd)
        };
        Ok(with(self, vcpu, read)??)
    }

    fn write_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), KvmGuestError> {
        let write = |stepper: &mut Stepper, fd: &mut KvmVcpu<'_>| {
            stepper.write_registers(groups, registers, fd)
        };
        Ok(with(self, vcpu, write)??)
    }

    fn read_system_register(
        &mut self,
        vcpu: VcpuId,
        number: u32,
    ) -> Option<Result<u64, KvmGuestError>> {
        let read = |stepper: &mut Stepper, fd: &mut KvmVcpu<'_>| stepper.read_msr(number, fd);
        Some(with(self, vcpu, read).and_then(|read| Ok(read?)))
    }

    fn write_system_register(
        &mut self,
        vcpu: VcpuId,
        number: u32,
        value: u64,
    ) -> Option<Result<(), KvmGuestError>> {
        let write =
            |stepper: &mut Stepper, fd: &mut KvmVcpu<'_>| stepper.write_msr(number, value, fd);
        Some(with(self, vcpu, write).and_then(|written| Ok(written?)))
    }

    fn disarm(&mut self, vcpu: VcpuId) -> Result<(), KvmGuestError> {
        let memory = &*self;
        Ok(with(memory, vcpu, |stepper, fd| {
            stepper.release(fd, memory)
        })??)
    }

    fn is_unguarded(&mut self, vcpu: VcpuId) -> bool {
        with(self, vcpu, |stepper, _| stepper.is_unguarded()).unwrap_or_default()
    }

    fn interrupts(&mut self, vcpu: VcpuId) -> Interrupts {
        let pending = |stepper: &mut Stepper, fd: &mut KvmVcpu<'_>| {
            let masked = stepper.is_masked();
            let mut all = pending_interrupts(fd.0, masked).unwrap_or_else(|error| Interrupts {
                masked,
                blocked: format!("not known: {error}"),
                ..Interrupts::default()
            });
            all.pending.extend(stepper.withheld_interrupt());
            all
        };
        with(self, vcpu, pending).unwrap_or_default()
    }

    fn read_device(
        &mut self,
        vcpu: VcpuId,
        address: GuestPhysAddr,
        data: &mut [u8],
        side_effects: bool,
    ) -> usize {
        KvmGuest::read_device(self, vcpu, address, data, side_effects)
    }

    fn monitor(&mut self, vcpu: VcpuId, command: &str, out: &mut dyn fmt::Write) -> bool {
        KvmGuest::monitor(self, vcpu, command, out)
    }

    fn monitor_help(&self) -> &str {
        KvmGuest::monitor_help(self)
    }
}

//! The ioctls that the split and user modes need, with names for their failures.

use core::ffi::c_int;

use kvm_bindings::{KVMIO, Msrs, kvm_interrupt, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);

/// IA32_TIME_STAMP_COUNTER.
pub(super) const MSR_TSC: u32 = 0x10;

/// `EEXIST`, from `KVM_INTERRUPT` while one waits already.
const EEXIST: c_int = 17;

/// KVM refused a call that it takes from every VM of this kind: the vCPU cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{call} failed")]
pub struct CallError {
    /// Which.
    pub call: &'static str,
    /// KVM's error.
    #[source]
    pub source: errno::Error,
}

/// For `map_err`.
pub(super) fn failed(call: &'static str) -> impl FnOnce(errno::Error) -> CallError {
    move |source| CallError { call, source }
}

/// What became of a vector that was given to KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// KVM has it, and injects it at the next entry.
    Now,
    /// KVM has another one (split irqchip only).
    Full,
}

/// `KVM_INTERRUPT`. Without a local APIC in the kernel KVM checks nothing: the vCPU must have been
/// ready (`ready_for_interrupt_injection`), and there is no second one before it has entered.
pub(super) fn interrupt(vcpu: &VcpuFd, vector: u8) -> Result<Taken, CallError> {
    let argument = kvm_interrupt { irq: vector.into() };
    #[expect(unsafe_code, reason = "kvm-ioctls does not have KVM_INTERRUPT")]
    // SAFETY: KVM_INTERRUPT reads a `kvm_interrupt`, which lives across the call.
    let answer = unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &argument) };
    if answer == 0 {
        return Ok(Taken::Now);
    }
    match errno::Error::last() {
        error if error.errno() == EEXIST => Ok(Taken::Full),
        error => Err(failed("KVM_INTERRUPT")(error)),
    }
}

/// One MSR of a vCPU.
pub(super) fn read_msr(vcpu: &VcpuFd, index: u32) -> Result<u64, CallError> {
    let mut msrs = one(index, 0)?;
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => Ok(msrs.as_slice().first().map_or(0, |entry| entry.data)),
        Ok(_) => Err(absent("KVM_GET_MSRS")),
        Err(error) => Err(failed("KVM_GET_MSRS")(error)),
    }
}

/// Sets one MSR of a vCPU.
pub(super) fn write_msr(vcpu: &VcpuFd, index: u32, value: u64) -> Result<(), CallError> {
    match vcpu.set_msrs(&one(index, value)?) {
        Ok(1) => Ok(()),
        Ok(_) => Err(absent("KVM_SET_MSRS")),
        Err(error) => Err(failed("KVM_SET_MSRS")(error)),
    }
}

fn one(index: u32, data: u64) -> Result<Msrs, CallError> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).map_err(|_| absent("a list of one MSR"))
}

/// KVM returns the number of MSRs that it could read or set.
fn absent(call: &'static str) -> CallError {
    /// `ENOENT`.
    const ABSENT: c_int = 2;
    failed(call)(errno::Error::new(ABSENT))
}

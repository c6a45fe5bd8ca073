//! The CPUID that a vCPU sees: the host's, with the leaves that differ from vCPU to vCPU.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;
use vcpu_caps::VcpuId;

/// CPUID.1:ECX[31]: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:EDX[28]: the count in EBX[23:16] is valid.
const HTT: u32 = 1 << 28;

/// The table for one vCPU of `count`.
pub(super) fn for_vcpu(kvm: &Kvm, id: VcpuId, count: u16) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let apic_id = u32::from(id.0);
    let logical = u32::from(count.next_power_of_two()).min(0xff);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                // Initial APIC id in bits 31:24, logical processors in 23:16 (SDM 2A, CPUID).
                entry.ebx = (entry.ebx & 0xffff) | (apic_id << 24) | (logical << 16);
                entry.ecx |= HYPERVISOR;
                if count > 1 {
                    entry.edx |= HTT;
                }
            }
            // The x2APIC id, in every sub-leaf.
            0xb | 0x1f => entry.edx = apic_id,
            _ => {}
        }
    }
    Ok(cpuid)
}

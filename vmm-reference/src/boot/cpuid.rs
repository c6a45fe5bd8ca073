//! The CPUID that a vCPU sees: KVM's, adapted by vcpu-caps to KVM's chips and to the vCPU's place.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use vcpu_caps::cpuid::{CpuidEntry, LocalApic, Topology, for_vcpu};
use vcpu_caps::{IrqchipMode, VcpuId};

use super::SetupError;

/// The tables for all vCPUs of a machine.
#[derive(Debug)]
pub(crate) struct CpuidTables {
    supported: Vec<CpuidEntry>,
    apic: LocalApic,
    count: u16,
}

impl CpuidTables {
    /// Asks KVM once; the answer holds for each of the `count` vCPUs.
    pub(crate) fn new(kvm: &Kvm, count: u16) -> Result<Self, SetupError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|source| SetupError::Ioctl {
                vcpu: VcpuId(0),
                call: "KVM_GET_SUPPORTED_CPUID",
                source,
            })?;
        Ok(Self {
            supported: supported.as_slice().iter().map(CpuidEntry::from).collect(),
            apic: LocalApic {
                x2apic: true,
                tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            },
            count,
        })
    }

    /// One vCPU's table.
    pub(super) fn table(&self, vcpu: VcpuId) -> Result<CpuId, SetupError> {
        let topology = Topology::new(vcpu, self.count)?;
        let entries: Vec<kvm_cpuid_entry2> =
            for_vcpu(&self.supported, IrqchipMode::Kernel, self.apic, topology)
                .iter()
                .map(kvm_cpuid_entry2::from)
                .collect();
        CpuId::from_entries(&entries).map_err(|_| SetupError::CpuidTooLong(entries.len()))
    }
}

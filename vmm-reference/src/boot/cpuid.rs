//! The CPUID that a vCPU sees: KVM's, adapted by vcpu-caps to the chips and to the vCPU's place.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use vcpu_caps::cpuid::{CpuidEntry, LocalApic, Topology, for_vcpu};
use vcpu_caps::{IrqchipMode, VcpuId};

use super::SetupError;
use crate::irqchip;

/// The tables for all vCPUs of a machine.
#[derive(Debug)]
pub(crate) struct CpuidTables {
    supported: Vec<CpuidEntry>,
    irqchip: IrqchipMode,
    apic: LocalApic,
    count: u16,
}

impl CpuidTables {
    /// Queries KVM once; the result is the same for each of the `count` vCPUs. `x2apic` says whether they
    /// have that mode.
    pub(crate) fn new(
        kvm: &Kvm,
        count: u16,
        irqchip: intr_controller::IrqchipMode,
        user_tsc_deadline: bool,
        x2apic: bool,
    ) -> Result<Self, SetupError> {
        let irqchip = irqchip::capability_mode(irqchip);
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|source| SetupError::Ioctl {
                vcpu: VcpuId(0),
                call: "KVM_GET_SUPPORTED_CPUID",
                source,
            })?;
        Ok(Self {
            supported: supported.as_slice().iter().map(CpuidEntry::from).collect(),
            irqchip,
            apic: LocalApic {
                x2apic,
                tsc_deadline: match irqchip {
                    IrqchipMode::User => user_tsc_deadline,
                    IrqchipMode::Kernel | IrqchipMode::Split => {
                        kvm.check_extension(Cap::TscDeadlineTimer)
                    }
                },
            },
            count,
        })
    }

    /// What the tables say of the local APICs.
    pub(crate) fn apic(&self) -> LocalApic {
        self.apic
    }

    /// MAXPHYADDR: the number of bits of a guest-physical address (SDM 2A, CPUID leaf 8000_0008H).
    pub(crate) fn physical_address_bits(&self) -> u8 {
        /// Of processors without the leaf.
        const OLD: u8 = 36;
        let leaf = self.supported.iter().find(|e| e.leaf == 0x8000_0008);
        leaf.map_or(OLD, |entry| {
            let [bits, ..] = entry.eax.to_le_bytes();
            bits
        })
    }

    /// One vCPU's table.
    pub(super) fn table(&self, vcpu: VcpuId) -> Result<CpuId, SetupError> {
        let topology = Topology::new(vcpu, self.count)?;
        let entries: Vec<kvm_cpuid_entry2> =
            for_vcpu(&self.supported, self.irqchip, self.apic, topology)
                .iter()
                .map(kvm_cpuid_entry2::from)
                .collect();
        CpuId::from_entries(&entries).map_err(|_| SetupError::CpuidTooLong(entries.len()))
    }
}

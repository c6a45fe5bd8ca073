//! What a vCPU says of itself: CPUID and MSR negotiation, as pure functions on tables.
//!
//! A hypervisor reports what it supports (`KVM_GET_SUPPORTED_CPUID`), with the APIC id of whatever
//! host CPU answered and with features of *its* local APIC. [`for_vcpu`] makes one vCPU's table of
//! it: its own ids, one package of single-threaded cores, and only features that the chosen
//! irqchip has and that a guest which a debugger stops can rely on.
//!
//! Unsupported: several packages, several threads per core, NUMA nodes.

mod entry;
mod features;
mod topology;

pub use entry::CpuidEntry;
pub use features::{LocalApic, MsrRange, filtered_msrs};
pub use topology::{Topology, TopologyError};

use alloc::vec::Vec;

use crate::way::IrqchipMode;

/// One vCPU's table.
///
/// `supported` is what the hypervisor reports. The entries come out in the same order; those that
/// have to do with neither topology nor interrupt controllers come out unchanged. Doing it twice
/// is the same as doing it once.
#[must_use]
pub fn for_vcpu(
    supported: &[CpuidEntry],
    irqchip: IrqchipMode,
    apic: LocalApic,
    topology: Topology,
) -> Vec<CpuidEntry> {
    let amd = supported.iter().any(CpuidEntry::is_amd_vendor);
    let mut table = Vec::with_capacity(supported.len() + 4);
    for entry in supported {
        match entry.leaf {
            // The list of levels is written anew, where its first entry was.
            0xb | 0x1f => {
                if entry.subleaf == 0 {
                    table.extend(topology.levels(entry.leaf));
                }
            }
            // AMD's newer list of levels (APM 3, Fn8000_0026) describes the host; without it a
            // guest takes leaf 0xb.
            0x8000_0026 => {}
            _ => {
                let mut entry = *entry;
                features::adapt(&mut entry, irqchip, apic);
                topology.adapt(&mut entry, amd);
                table.push(entry);
            }
        }
    }
    table
}

#[cfg(test)]
mod tests;

//! The topology: one package of single-threaded cores.

use thiserror::Error;

use super::entry::{CpuidEntry, set_bit, set_field};
use crate::capability::VcpuId;

/// The vCPU's index is not below the number of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{vcpu} is not one of {count} vCPUs")]
pub struct TopologyError {
    /// The vCPU asked for.
    pub vcpu: VcpuId,
    /// The number of vCPUs.
    pub count: u16,
}

/// One vCPU's place: one package, in which each vCPU is a core with a single thread. The APIC id
/// is the vCPU's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topology {
    vcpu: VcpuId,
    count: u16,
}

/// The level types of leaves 0xb and 0x1f (SDM 2A, CPUID): ECX bits 15:8.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

impl Topology {
    /// The place of `vcpu` among `count`.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub const fn new(vcpu: VcpuId, count: u16) -> Result<Self, TopologyError> {
        if vcpu.0 < count {
            Ok(Self { vcpu, count })
        } else {
            Err(TopologyError { vcpu, count })
        }
    }

    /// The APIC id.
    #[must_use]
    pub const fn apic_id(&self) -> u32 {
        // `u32::from` is not const.
        self.vcpu.0 as u32
    }

    /// The number of bits of an APIC id.
    fn id_bits(&self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }

    /// The number of APIC ids with that many bits. CPUID counts by it.
    fn addressable(&self) -> u32 {
        1 << self.id_bits()
    }

    /// Leaf 0xb or 0x1f: a level of threads, one of cores, and the end.
    pub(super) fn levels(&self, leaf: u32) -> [CpuidEntry; 3] {
        let level = |subleaf, kind: u32, shift, processors| CpuidEntry {
            leaf,
            subleaf,
            indexed: true,
            eax: shift,
            ebx: processors,
            ecx: (kind << 8) | subleaf,
            // The x2APIC id, in every subleaf.
            edx: self.apic_id(),
        };
        [
            level(0, LEVEL_THREAD, 0, 1),
            level(1, LEVEL_CORE, self.id_bits(), u32::from(self.count)),
            level(2, 0, 0, 0),
        ]
    }

    pub(super) fn adapt(&self, entry: &mut CpuidEntry, amd: bool) {
        let several = self.count > 1;
        match entry.leaf {
            1 => {
                // The initial APIC id has 8 bits; the whole is in leaf 0xb.
                set_field(&mut entry.ebx, 24, 8, self.apic_id() & 0xff);
                set_field(&mut entry.ebx, 16, 8, self.addressable());
                // HTT: more than one logical processor in the package.
                set_bit(&mut entry.edx, 28, several);
            }
            // Caches: Intel's list and AMD's, which have the same layout (SDM 2A, CPUID leaf 4;
            // APM 3, Fn8000_001D). Type 0 ends the list.
            4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 0x7;
                // The last level is shared by all, the others by none.
                let sharing = if level >= 3 { self.addressable() } else { 1 };
                set_field(&mut entry.eax, 14, 12, sharing - 1);
                if entry.leaf == 4 {
                    set_field(&mut entry.eax, 26, 6, self.addressable() - 1);
                }
            }
            // CmpLegacy: the count in leaf 1 is of cores, not of threads (APM 3, Fn8000_0001).
            0x8000_0001 if amd => set_bit(&mut entry.ecx, 1, several),
            // Number of cores less one, and bits of APIC id for them (APM 3, Fn8000_0008).
            0x8000_0008 if amd => {
                set_field(&mut entry.ecx, 0, 8, u32::from(self.count) - 1);
                set_field(&mut entry.ecx, 12, 4, self.id_bits());
            }
            // Extended APIC id, core id with one thread each, one node (APM 3, Fn8000_001E).
            0x8000_001e => {
                entry.eax = self.apic_id();
                entry.ebx = self.apic_id() & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

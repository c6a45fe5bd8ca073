//! CPUID and MSR negotiation on x86, as pure functions on tables.
//!
//! A hypervisor reports what it supports (`KVM_GET_SUPPORTED_CPUID`). The report has the APIC id
//! of some host CPU, and the features of the hypervisor's local APIC. [`for_vcpu`] turns it into
//! the table of one vCPU: the vCPU's ids, one package of single-threaded cores, and only features
//! that the chosen irqchip has and that work in a guest that a debugger stops.
//!
//! Unsupported: several packages, several threads per core, NUMA nodes.

mod entry;
mod features;
mod topology;

pub use entry::CpuidEntry;
pub use features::{LocalApic, MsrRange, filtered_msrs};
pub use topology::{Topology, TopologyError};

use alloc::vec::Vec;

use crate::irqchip::IrqchipMode;

/// One vCPU's table.
///
/// `supported` is the hypervisor's report. The entries keep their order. Entries that describe
/// neither topology nor interrupt controllers stay unchanged. To apply the function twice is the
/// same as to apply it once.
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
            // The list of levels is replaced, where its first entry was.
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
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::capability::VcpuId;

    const fn entry(leaf: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        CpuidEntry {
            leaf,
            subleaf,
            indexed: matches!(leaf, 4 | 0xb | 0x1f | 0x8000_001d | 0x8000_0026),
            eax,
            ebx,
            ecx,
            edx,
        }
    }

    fn place(vcpu: u16, count: u16) -> Topology {
        Topology::new(VcpuId(vcpu), count).unwrap()
    }

    const ALL_OF_IT: LocalApic = LocalApic {
        x2apic: true,
        tsc_deadline: true,
    };

    /// "GenuineIntel" and "AuthenticAMD", as EBX, EDX, ECX.
    const INTEL: CpuidEntry = entry(0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    const AMD: CpuidEntry = entry(0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);

    fn find(table: &[CpuidEntry], leaf: u32, subleaf: u32) -> CpuidEntry {
        let found: Vec<_> = table
            .iter()
            .filter(|e| (e.leaf, e.subleaf) == (leaf, subleaf))
            .collect();
        assert_eq!(found.len(), 1, "leaf {leaf:#x}.{subleaf}");
        *found[0]
    }

    #[test]
    fn leaf_1_gets_this_vcpus_id_and_the_irqchips_features() {
        // A host answer from CPU 0x2a, with neither APIC nor hypervisor bit.
        let host = [entry(
            1,
            0,
            [0x000a_0671, 0x2a20_0800, 0x7ffa_f38b, 0xafcb_f9ff],
        )];
        let table = for_vcpu(&host, IrqchipMode::Kernel, ALL_OF_IT, place(2, 3));
        // id 2; 4 addressable for 3; x2APIC 21, TSC-deadline 24 and hypervisor 31 on; HTT on.
        assert_eq!(
            table,
            [entry(
                1,
                0,
                [0x000a_0671, 0x0204_0800, 0xfffa_f38b, 0xbfcb_fbff]
            )]
        );
        let table = for_vcpu(&host, IrqchipMode::User, LocalApic::default(), place(0, 1));
        assert_eq!(
            table,
            [entry(
                1,
                0,
                [0x000a_0671, 0x0001_0800, 0xfeda_f38b, 0xafcb_fbff]
            )]
        );
    }

    #[test]
    fn the_levels_of_leaf_b_and_1f_are_replaced() {
        // A host with two threads per core and 64 processors, and a fourth level.
        let host = [
            INTEL,
            entry(0xb, 0, [1, 2, 0x100, 0x2a]),
            entry(0xb, 1, [6, 64, 0x201, 0x2a]),
            entry(0xb, 2, [0, 0, 2, 0x2a]),
            entry(0xd, 0, [7, 0x340, 0x340, 0]),
            entry(0x1f, 0, [1, 2, 0x100, 0x2a]),
            entry(0x1f, 1, [6, 64, 0x201, 0x2a]),
            entry(0x1f, 2, [7, 128, 0x502, 0x2a]),
            entry(0x1f, 3, [0, 0, 3, 0x2a]),
        ];
        let table = for_vcpu(&host, IrqchipMode::Kernel, ALL_OF_IT, place(4, 5));
        let levels = |leaf| {
            vec![
                entry(leaf, 0, [0, 1, 0x100, 4]),
                entry(leaf, 1, [3, 5, 0x201, 4]),
                entry(leaf, 2, [0, 0, 2, 4]),
            ]
        };
        let wanted: Vec<_> = [INTEL]
            .into_iter()
            .chain(levels(0xb))
            .chain([host[4]])
            .chain(levels(0x1f))
            .collect();
        assert_eq!(table, wanted);
    }

    #[test]
    fn one_vcpu_needs_no_bits_for_its_id() {
        let table = for_vcpu(
            &[entry(0xb, 0, [1, 2, 0x100, 9])],
            IrqchipMode::Kernel,
            ALL_OF_IT,
            place(0, 1),
        );
        assert_eq!(find(&table, 0xb, 1), entry(0xb, 1, [0, 1, 0x201, 0]));
    }

    #[test]
    fn an_apic_id_beyond_8_bits_is_whole_in_the_x2apic_leaf() {
        let host = [entry(1, 0, [0; 4]), entry(0xb, 0, [0; 4])];
        let table = for_vcpu(&host, IrqchipMode::Kernel, ALL_OF_IT, place(0x123, 0x124));
        assert_eq!(find(&table, 0xb, 0).edx, 0x123);
        // 512 addressable ids saturate the 8-bit count.
        assert_eq!(find(&table, 1, 0).ebx, 0x23ff_0000);
    }

    #[test]
    fn caches_are_shared_by_none_but_the_last_level_by_all() {
        // EAX: cores-1 31:26, sharers-1 25:14, level 7:5, type 4:0.
        let host = [
            INTEL,
            entry(4, 0, [0xfc00_4121, 0x02c0_003f, 63, 0]),
            entry(4, 2, [0xfc00_4143, 0x03c0_003f, 0x3ff, 0]),
            entry(4, 3, [0xfc1f_c163, 0x02c0_003f, 0xffff, 4]),
            entry(4, 4, [0, 0, 0, 0]),
        ];
        let table = for_vcpu(&host, IrqchipMode::Kernel, ALL_OF_IT, place(0, 4));
        assert_eq!(find(&table, 4, 0).eax, (3 << 26) | 0x121);
        assert_eq!(find(&table, 4, 2).eax, (3 << 26) | 0x143);
        assert_eq!(find(&table, 4, 3).eax, (3 << 26) | (3 << 14) | 0x163);
        assert_eq!(find(&table, 4, 3).ebx, 0x02c0_003f);
        assert_eq!(find(&table, 4, 4), host[4]);
    }

    #[test]
    fn amd_leaves_count_cores_and_name_this_one() {
        let host = [
            AMD,
            entry(0x8000_0001, 0, [0x00a0_0f11, 0, 0x0040_0001, 0]),
            entry(0x8000_0008, 0, [0x3030, 0x1000, 0x0000_707f, 0x0007_0007]),
            entry(0x8000_001d, 3, [0x0003_c163, 0x03c0_003f, 0x3fff, 1]),
            entry(0x8000_001e, 0, [0x2a, 0x0115, 0x0103, 0]),
            entry(0x8000_0026, 0, [1, 2, 0x100, 0x2a]),
        ];
        let table = for_vcpu(&host, IrqchipMode::Kernel, ALL_OF_IT, place(5, 6));
        assert_eq!(
            table,
            [
                AMD,
                entry(0x8000_0001, 0, [0x00a0_0f11, 0, 0x0040_0003, 0]),
                entry(0x8000_0008, 0, [0x3030, 0x1000, 0x0000_3005, 0x0007_0007]),
                entry(0x8000_001d, 3, [0x0001_c163, 0x03c0_003f, 0x3fff, 1]),
                entry(0x8000_001e, 0, [5, 5, 0, 0]),
            ]
        );
    }

    #[test]
    fn intel_has_no_core_count_in_leaf_80000008() {
        let host = [INTEL, entry(0x8000_0008, 0, [0x3027, 0, 0x55, 0])];
        assert_eq!(
            for_vcpu(&host, IrqchipMode::Kernel, ALL_OF_IT, place(0, 2)),
            host
        );
    }

    #[test]
    fn a_guest_that_can_be_stopped_has_no_invariant_tsc() {
        let host = [entry(0x8000_0007, 0, [0, 1, 2, 0x0000_0fff])];
        for irqchip in [IrqchipMode::Kernel, IrqchipMode::Split, IrqchipMode::User] {
            assert_eq!(
                for_vcpu(&host, irqchip, ALL_OF_IT, place(0, 1)),
                [entry(0x8000_0007, 0, [0, 1, 2, 0x0000_0eff])]
            );
        }
    }

    #[test]
    fn kvm_features_of_its_own_apic_go_with_it() {
        let host = [
            entry(
                0x4000_0000,
                0,
                [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
            ),
            entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        ];
        for irqchip in [IrqchipMode::Kernel, IrqchipMode::Split] {
            assert_eq!(for_vcpu(&host, irqchip, ALL_OF_IT, place(0, 1)), host);
        }
        // Left: clock 0 and 3, NOP_IO_DELAY 1, STEAL_TIME 5, PV_TLB_FLUSH 9, CLOCKSOURCE_STABLE 24.
        let table = for_vcpu(&host, IrqchipMode::User, ALL_OF_IT, place(0, 1));
        assert_eq!(table[0], host[0]);
        assert_eq!(table[1].eax, (1 << 24) | 0x22b);
    }

    #[test]
    fn only_the_user_irqchip_filters_the_apics_msrs() {
        assert!(filtered_msrs(IrqchipMode::Split).is_empty());
        let covered = |msr| {
            filtered_msrs(IrqchipMode::User)
                .iter()
                .any(|range| (range.first..range.first + range.count).contains(&msr))
        };
        assert!(covered(0x1b) && covered(0x6e0));
        // KVM refuses a filter over x2APIC registers.
        assert!(!(0x800..0x900).any(covered));
    }

    #[test]
    fn a_vcpu_beyond_the_count_is_refused() {
        assert!(Topology::new(VcpuId(0), 0).is_err());
        let error = Topology::new(VcpuId(4), 4).unwrap_err();
        assert_eq!(alloc::format!("{error}"), "vcpu4 is not one of 4 vCPUs");
    }

    /// Leaves with a meaning here, and some without.
    fn any_leaf() -> impl Strategy<Value = u32> {
        prop_oneof![
            prop::sample::select(&[
                0,
                1,
                4,
                0xb,
                0x1f,
                0x4000_0001,
                0x8000_0001,
                0x8000_0007,
                0x8000_0008,
                0x8000_001d,
                0x8000_001e,
                0x8000_0026
            ]),
            any::<u32>(),
        ]
    }

    prop_compose! {
        fn any_entry()(
            leaf in any_leaf(),
            subleaf in 0..4_u32,
            registers in any::<[u32; 4]>(),
        ) -> CpuidEntry {
            entry(leaf, subleaf, registers)
        }
    }

    prop_compose! {
        fn any_place()(count in 1..=u16::MAX)(vcpu in 0..count, count in Just(count)) -> Topology {
            place(vcpu, count)
        }
    }

    fn any_irqchip() -> impl Strategy<Value = IrqchipMode> {
        prop::sample::select(&[IrqchipMode::Kernel, IrqchipMode::Split, IrqchipMode::User])
    }

    proptest! {
        #[test]
        fn twice_is_the_same_as_once(
            host in prop::collection::vec(any_entry(), 0..40),
            irqchip in any_irqchip(),
            (x2apic, tsc_deadline) in any::<(bool, bool)>(),
            place in any_place(),
        ) {
            let apic = LocalApic { x2apic, tsc_deadline };
            let once = for_vcpu(&host, irqchip, apic, place);
            prop_assert_eq!(&for_vcpu(&once, irqchip, apic, place), &once);
        }

        /// The ids that two vCPUs see differ in every leaf that has a whole id.
        #[test]
        fn whole_ids_are_this_vcpus(
            host in prop::collection::vec(any_entry(), 0..40),
            irqchip in any_irqchip(),
            place in any_place(),
        ) {
            for entry in for_vcpu(&host, irqchip, ALL_OF_IT, place) {
                match entry.leaf {
                    1 => prop_assert_eq!(entry.ebx >> 24, place.apic_id() & 0xff),
                    0xb | 0x1f => prop_assert_eq!(entry.edx, place.apic_id()),
                    0x8000_001e => prop_assert_eq!(entry.eax, place.apic_id()),
                    _ => {}
                }
            }
        }

        #[test]
        fn other_leaves_are_left_alone(
            registers in any::<[u32; 4]>(),
            leaf in 0x10_u32..0x1f,
            irqchip in any_irqchip(),
            place in any_place(),
        ) {
            let host = [entry(leaf, 0, registers)];
            prop_assert_eq!(for_vcpu(&host, irqchip, ALL_OF_IT, place), host);
        }
    }
}

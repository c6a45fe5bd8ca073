//! SDM 3A, "Determining IPI Destination", "Lowest Priority Delivery Mode", "x2APIC Mode":
//! the targets of each message.

use alloc::vec;
use alloc::vec::Vec;
use core::num::NonZeroU64;

use proptest::prelude::*;

use super::*;
use crate::{
    ApicMode, DeliveryMode, Destination, DestinationMode, Event, IpiTargets, LogicalModel,
    TriggerMode,
};

const NOW: GuestTime = GuestTime::ZERO;

fn config(apic_id: u32) -> LapicConfig {
    LapicConfig::new(apic_id, apic_id == 0, NonZeroU64::MIN)
}

fn store(lapics: &mut Lapics, vcpu: u16, offset: u16, value: u32) -> Vec<u16> {
    let vcpu = VcpuIndex(vcpu);
    let effect = lapics
        .get_mut(vcpu)
        .unwrap()
        .mmio_write(offset, &value.to_le_bytes(), NOW);
    let mut targets = vec![];
    lapics
        .apply(vcpu, effect, |target, _| targets.push(target.0))
        .unwrap();
    targets
}

fn wrmsr(lapics: &mut Lapics, vcpu: u16, msr: u32, value: u64) -> Vec<u16> {
    let vcpu = VcpuIndex(vcpu);
    let effect = lapics
        .get_mut(vcpu)
        .unwrap()
        .write_msr(msr, value, NOW)
        .unwrap();
    let mut targets = vec![];
    lapics
        .apply(vcpu, effect, |target, _| targets.push(target.0))
        .unwrap();
    targets
}

/// Enabled, xAPIC mode, ids 0, 1, 2, …
fn xapic(count: u32) -> Lapics {
    with_ids(&(0..count).collect::<Vec<_>>())
}

fn with_ids(ids: &[u32]) -> Lapics {
    let mut lapics = Lapics::new(ids.iter().copied().map(config)).unwrap();
    for vcpu in (0..).take(ids.len()) {
        store(&mut lapics, vcpu, 0xf0, 0x1ff);
    }
    lapics
}

fn x2apic(ids: &[u32]) -> Lapics {
    let mut lapics = with_ids(ids);
    for vcpu in (0..).take(ids.len()) {
        let base = lapics.lapics()[usize::from(vcpu)].apic_base();
        wrmsr(&mut lapics, vcpu, 0x1b, base | 0x400);
    }
    lapics
}

fn physical(destination: u32) -> InterruptMessage {
    InterruptMessage {
        destination,
        destination_mode: DestinationMode::Physical,
        delivery_mode: DeliveryMode::Fixed,
        trigger_mode: TriggerMode::Edge,
        level: true,
        vector: 0x41,
    }
}

fn logical(destination: u32) -> InterruptMessage {
    InterruptMessage {
        destination_mode: DestinationMode::Logical,
        ..physical(destination)
    }
}

fn lowest(vector: u8, message: InterruptMessage) -> InterruptMessage {
    InterruptMessage {
        delivery_mode: DeliveryMode::LowestPriority,
        vector,
        ..message
    }
}

fn targets(lapics: &mut Lapics, message: &InterruptMessage) -> Vec<u16> {
    let mut targets = vec![];
    let count = lapics.deliver(message, |vcpu, _| targets.push(vcpu.0));
    assert_eq!(count, targets.len());
    targets.sort_unstable();
    targets
}

#[test]
fn a_physical_destination_is_one_apic() {
    let mut lapics = with_ids(&[5, 0, 9]);
    assert_eq!(targets(&mut lapics, &physical(9)), [2]);
    assert_eq!(targets(&mut lapics, &physical(0)), [1]);
    let waits = Event::Fixed(Vector::new(0x41).unwrap());
    assert!(lapics.lapics()[2].policy().pending().contains(waits));
}

#[test]
fn crosvm_defect_an_ipi_to_an_id_that_no_apic_has_is_lost_and_no_panic() {
    let mut lapics = xapic(2);
    for id in [2, 7, 0xfe, 0x100, 0xffff_fffe] {
        assert_eq!(targets(&mut lapics, &physical(id)), [] as [u16; 0]);
    }
    store(&mut lapics, 0, 0x310, 0x7700_0000);
    assert_eq!(store(&mut lapics, 0, 0x300, 0x4041), [] as [u16; 0]);
}

#[test]
fn duplicate_ids_are_refused_by_name() {
    let error = Lapics::new([1, 0, 1].map(config)).unwrap_err();
    assert_eq!(
        error,
        DestinationsError::DuplicateId {
            apic_id: 1,
            first: 0,
            second: 2
        }
    );
    assert!(Lapics::new([u32::MAX].map(config)).is_err());
}

#[test]
fn ids_that_differ_above_bit_7_are_not_duplicates() {
    let mut lapics = with_ids(&[0x23, 0x123]);
    assert_eq!(targets(&mut lapics, &physical(0x23)), [0]);
    assert_eq!(targets(&mut lapics, &physical(0x123)), [1]);
}

#[test]
fn an_id_that_the_guest_gave_twice_is_heard_twice() {
    let mut lapics = xapic(3);
    store(&mut lapics, 2, 0x20, 0x0100_0000);
    assert_eq!(targets(&mut lapics, &physical(1)), [1, 2]);
    assert_eq!(targets(&mut lapics, &physical(2)), [] as [u16; 0]);
}

#[test]
fn physical_broadcast_in_xapic_mode_is_0xff() {
    let mut lapics = xapic(3);
    assert_eq!(targets(&mut lapics, &physical(0xff)), [0, 1, 2]);
    assert_eq!(targets(&mut lapics, &logical(0xff)), [0, 1, 2]);
}

#[test]
fn physical_broadcast_in_x2apic_mode_is_all_ones_and_0xff_is_an_id() {
    let mut lapics = x2apic(&[0, 1, 0xff]);
    assert_eq!(targets(&mut lapics, &physical(0xff)), [2]);
    assert_eq!(targets(&mut lapics, &physical(u32::MAX)), [0, 1, 2]);
    assert_eq!(targets(&mut lapics, &logical(u32::MAX)), [0, 1, 2]);
}

#[test]
fn in_mixed_modes_0xff_reaches_those_in_xapic_mode_and_that_id() {
    let mut lapics = with_ids(&[0, 1, 0xff]);
    for vcpu in [1, 2] {
        wrmsr(&mut lapics, vcpu, 0x1b, 0xfee0_0c00);
    }
    assert_eq!(targets(&mut lapics, &physical(0xff)), [0, 2]);
    assert_eq!(targets(&mut lapics, &physical(u32::MAX)), [0, 1, 2]);
    assert_eq!(targets(&mut lapics, &physical(0)), [0]);
    assert_eq!(targets(&mut lapics, &physical(1)), [1]);
}

#[test]
fn the_flat_model_is_any_overlap() {
    let mut lapics = xapic(4);
    for (vcpu, ldr) in [(0, 0x01), (1, 0x02), (2, 0x80), (3, 0x00)] {
        store(&mut lapics, vcpu, 0xd0, ldr << 24);
    }
    assert_eq!(targets(&mut lapics, &logical(0x03)), [0, 1]);
    assert_eq!(targets(&mut lapics, &logical(0x82)), [1, 2]);
    assert_eq!(targets(&mut lapics, &logical(0x04)), [] as [u16; 0]);
    assert_eq!(targets(&mut lapics, &logical(0)), [] as [u16; 0]);
}

#[test]
fn crosvm_defect_the_cluster_model_is_an_equal_cluster_and_an_overlap() {
    let mut lapics = xapic(4);
    for (vcpu, ldr) in [(0, 0x11), (1, 0x12), (2, 0x21), (3, 0xf1)] {
        store(&mut lapics, vcpu, 0xe0, 0x0fff_ffff);
        store(&mut lapics, vcpu, 0xd0, ldr << 24);
    }
    assert_eq!(targets(&mut lapics, &logical(0x11)), [0]);
    assert_eq!(targets(&mut lapics, &logical(0x13)), [0, 1]);
    assert_eq!(targets(&mut lapics, &logical(0x1f)), [0, 1]);
    assert_eq!(targets(&mut lapics, &logical(0x21)), [2]);
    assert_eq!(targets(&mut lapics, &logical(0x31)), [] as [u16; 0]);
    assert_eq!(
        targets(&mut lapics, &logical(0xff)),
        [0, 1, 2, 3],
        "broadcast"
    );
}

#[test]
fn openvmm_defect_an_apic_with_a_reserved_model_hears_broadcasts_only() {
    let mut lapics = xapic(1);
    store(&mut lapics, 0, 0xd0, 0xff00_0000);
    store(&mut lapics, 0, 0xe0, 0x5fff_ffff);
    assert_eq!(targets(&mut lapics, &logical(0x01)), [] as [u16; 0]);
    assert_eq!(targets(&mut lapics, &logical(0xff)), [0]);
    assert_eq!(targets(&mut lapics, &physical(0)), [0]);
}

#[test]
fn an_x2apic_logical_destination_is_an_equal_cluster_and_an_overlap() {
    let mut lapics = x2apic(&[0, 1, 15, 16, 17, 0x123]);
    assert_eq!(targets(&mut lapics, &logical(0x0000_8003)), [0, 1, 2]);
    assert_eq!(targets(&mut lapics, &logical(0x0001_0003)), [3, 4]);
    assert_eq!(targets(&mut lapics, &logical(0x0012_0008)), [5]);
    assert_eq!(targets(&mut lapics, &logical(0x0012_0001)), [] as [u16; 0]);
    assert_eq!(targets(&mut lapics, &logical(0x0007_ffff)), [] as [u16; 0]);
    assert_eq!(targets(&mut lapics, &logical(0xffff_ffff)).len(), 6);
}

#[test]
fn more_than_255_vcpus_are_addressed_in_x2apic_mode() {
    let ids: Vec<u32> = (0..1000).collect();
    let mut lapics = x2apic(&ids);
    assert_eq!(targets(&mut lapics, &physical(999)), [999]);
    assert_eq!(targets(&mut lapics, &physical(256)), [256]);
    assert_eq!(targets(&mut lapics, &logical(62 << 16 | 0x80)), [999]);
    assert_eq!(targets(&mut lapics, &physical(u32::MAX)).len(), 1000);
}

#[test]
fn the_shorthands_reach_all_or_all_others() {
    let mut lapics = xapic(4);
    assert_eq!(store(&mut lapics, 2, 0x300, 0x8_4041), [0, 1, 2, 3]);
    assert_eq!(store(&mut lapics, 2, 0x300, 0xc_4041), [0, 1, 3]);
    assert_eq!(store(&mut lapics, 2, 0x300, 0x4_4041), [] as [u16; 0]);
}

#[test]
fn a_disabled_apic_hears_nothing() {
    let mut lapics = xapic(3);
    wrmsr(&mut lapics, 1, 0x1b, 0xfee0_0000);
    assert_eq!(targets(&mut lapics, &physical(1)), [] as [u16; 0]);
    assert_eq!(targets(&mut lapics, &physical(0xff)), [0, 2]);
    assert_eq!(targets(&mut lapics, &physical(u32::MAX)), [0, 2]);
    assert_eq!(store(&mut lapics, 0, 0x300, 0x8_4041), [0, 2]);
}

#[test]
fn kvms_rule_of_the_lowest_priority_is_the_vector_modulo_the_candidates() {
    let mut lapics = xapic(3);
    for (vcpu, ldr) in [(0, 0x01), (1, 0x02), (2, 0x04)] {
        store(&mut lapics, vcpu, 0xd0, ldr << 24);
    }
    for vector in 0x30..0x90 {
        let to = targets(&mut lapics, &lowest(vector, logical(0x07)));
        assert_eq!(to, [u16::from(vector % 3)], "{vector:#x}");
    }
    assert_eq!(targets(&mut lapics, &lowest(0x31, logical(0x06))), [2]);
}

#[test]
fn only_software_enabled_apics_arbitrate() {
    let mut lapics = xapic(3);
    store(&mut lapics, 1, 0xf0, 0xff);
    let mut reached: Vec<_> = (0x30..0x40)
        .flat_map(|vector| targets(&mut lapics, &lowest(vector, physical(0xff))))
        .collect();
    reached.sort_unstable();
    reached.dedup();
    assert_eq!(reached, [0, 2]);
    for vcpu in [0, 2] {
        store(&mut lapics, vcpu, 0xf0, 0xff);
    }
    assert_eq!(
        targets(&mut lapics, &lowest(0x41, physical(0xff))),
        [] as [u16; 0]
    );
}

#[test]
fn a_lowest_priority_shorthand_picks_one_of_the_others() {
    let mut lapics = xapic(3);
    for vector in 0x40..0x50 {
        let to = store(&mut lapics, 0, 0x300, 0xc_4100 | vector);
        assert_eq!(to, [1 + u16::try_from(vector % 2).unwrap()]);
    }
}

#[test]
fn an_init_and_start_up_ipi_start_the_other_processor() {
    let mut lapics = xapic(2);
    store(&mut lapics, 0, 0x310, 0x0100_0000);
    assert_eq!(store(&mut lapics, 0, 0x300, 0x4500), [1]);
    assert_eq!(store(&mut lapics, 0, 0x300, 0x469a), [1]);
    let lapic = lapics.get_mut(VcpuIndex(1)).unwrap();
    assert!(matches!(
        lapic.take_startup(),
        Some(crate::Startup::Init { .. })
    ));
    assert_eq!(
        lapic.take_startup(),
        Some(crate::Startup::Sipi { vector: 0x9a })
    );
    lapics.refresh(VcpuIndex(1)).unwrap();
    assert!(!lapics.destinations().rows()[1].software_enabled);
}

#[test]
fn an_eoi_goes_out_to_the_ioapics() {
    let mut lapics = xapic(1);
    let vcpu = VcpuIndex(0);
    let vector = Vector::new(0x41).unwrap();
    let effect = Effect::EoiBroadcast(vector);
    assert_eq!(lapics.apply(vcpu, effect, |_, _| ()), Ok(Some(vector)));
}

#[test]
fn a_vcpu_that_does_not_exist_is_named() {
    let mut lapics = xapic(1);
    let absent = VcpuIndex(1);
    assert_eq!(lapics.refresh(absent), Err(NoSuchVcpu(absent)));
    assert_eq!(
        lapics.apply(absent, Effect::IdentityChanged, |_, _| ()),
        Err(NoSuchVcpu(absent))
    );
    assert!(lapics.get(absent).is_none() && lapics.get_mut(absent).is_none());
}

#[test]
fn the_next_deadline_is_the_nearest_of_all() {
    let mut lapics = xapic(3);
    for (vcpu, count) in [(0, 500), (1, 300), (2, 400)] {
        store(&mut lapics, vcpu, 0x320, 0xec);
        store(&mut lapics, vcpu, 0x380, count);
    }
    assert_eq!(lapics.next_deadline(NOW), Some(GuestTime::from_ns(600)));
    let mut fired = vec![];
    lapics.advance(GuestTime::from_ns(800), |vcpu| fired.push(vcpu.0));
    assert_eq!(fired, [1, 2]);
    assert_eq!(lapics.next_deadline(NOW), Some(GuestTime::from_ns(1000)));
}

/// The rules again, one row at a time.
fn answers(row: &Destination, message: &InterruptMessage) -> bool {
    let to = message.destination;
    if row.mode == ApicMode::Disabled {
        return false;
    }
    if to == u32::MAX || (row.mode == ApicMode::XApic && to == 0xff) {
        return true;
    }
    if message.destination_mode == DestinationMode::Physical {
        return row.apic_id == to;
    }
    match row.model {
        LogicalModel::Flat => to < 0x100 && row.logical_id & to != 0,
        LogicalModel::Cluster => {
            to < 0x100 && row.logical_id >> 4 == to >> 4 && row.logical_id & to & 0xf != 0
        }
        LogicalModel::Reserved => false,
        LogicalModel::X2Apic => {
            row.logical_id >> 16 == to >> 16 && row.logical_id & to & 0xffff != 0
        }
    }
}

fn row(id: u32) -> impl Strategy<Value = Destination> {
    let model = prop_oneof![
        Just(LogicalModel::Flat),
        Just(LogicalModel::Cluster),
        Just(LogicalModel::Reserved)
    ];
    (0..5u8, any::<u8>(), model, any::<bool>(), 0..3u8).prop_map(
        move |(mode, ldr, model, software_enabled, other_id)| {
            let x2apic = mode > 2;
            Destination {
                mode: match mode {
                    0 => ApicMode::Disabled,
                    1 | 2 => ApicMode::XApic,
                    _ => ApicMode::X2Apic,
                },
                apic_id: if !x2apic && other_id == 0 { 1 } else { id },
                logical_id: if x2apic {
                    (id >> 4) << 16 | 1 << (id & 15)
                } else {
                    ldr.into()
                },
                model: if x2apic { LogicalModel::X2Apic } else { model },
                software_enabled,
            }
        },
    )
}

fn in_x2apic_mode(id: u32) -> Destination {
    Destination {
        mode: ApicMode::X2Apic,
        apic_id: id,
        logical_id: (id >> 4) << 16 | 1 << (id & 15),
        model: LogicalModel::X2Apic,
        software_enabled: true,
    }
}

/// No guest can do this, but the table does not rely on it.
#[test]
fn two_in_x2apic_mode_with_one_id_both_answer() {
    let rows = (0..4).map(in_x2apic_mode).collect();
    let mut destinations = Destinations::new(rows).unwrap();
    destinations
        .update(VcpuIndex(0), in_x2apic_mode(1))
        .unwrap();
    for message in [physical(1), logical(1 << 1)] {
        let mut targets = vec![];
        assert_eq!(destinations.route(&message, |vcpu| targets.push(vcpu.0)), 2);
        assert_eq!(targets, [0, 1]);
    }
    for message in [physical(0), logical(1 << 0)] {
        assert_eq!(destinations.route(&message, |_| ()), 0);
    }
}

#[test]
fn eight_logical_bits_may_name_one_in_each_mode() {
    let mut destinations = Destinations::new((0..4).map(in_x2apic_mode).collect()).unwrap();
    let xapic = Destination {
        mode: ApicMode::XApic,
        apic_id: 0,
        logical_id: 1 << 3,
        model: LogicalModel::Flat,
        software_enabled: true,
    };
    destinations.update(VcpuIndex(0), xapic).unwrap();
    let mut targets = vec![];
    destinations.route(&logical(1 << 3), |vcpu| targets.push(vcpu.0));
    assert_eq!(targets, [3, 0]);
}

/// Ids with gaps, or ids that count up; of the latter nearly all in x2APIC mode, or in any.
fn table() -> impl Strategy<Value = Vec<Destination>> {
    let gaps = [0u32, 1, 2, 3, 14, 16, 31, 0xfe, 0xff, 0x100, 0x123];
    let gaps: Vec<_> = gaps.into_iter().map(row).collect();
    let counting = |count: u32| (0..count).map(row).collect::<Vec<_>>();
    let nearly_all = |id| {
        (row(id), 0..20u8).prop_map(move |(any, one_in)| match one_in {
            0 => any,
            _ => in_x2apic_mode(id),
        })
    };
    let x2apic: Vec<_> = (0..0x102).map(nearly_all).collect();
    prop_oneof![gaps, counting(40), x2apic]
}

fn destination() -> impl Strategy<Value = u32> {
    let members = (0u32..4, 0u32..0x1_0000).prop_map(|(cluster, members)| cluster << 16 | members);
    let member = (0u32..4, 0u32..16).prop_map(|(cluster, member)| cluster << 16 | 1 << member);
    prop_oneof![0u32..0x140, members, member, Just(0xff), Just(u32::MAX)]
}

proptest! {
    #[test]
    fn routes_are_those_of_the_rules(
        rows in table(),
        to in destination(),
        is_logical in any::<bool>(),
        is_lowest in any::<bool>(),
        vector in 0x10u8..,
        sender in 0u16..11,
        targets in prop_oneof![
            Just(IpiTargets::Destination), Just(IpiTargets::All), Just(IpiTargets::Others)
        ],
    ) {
        let unlike = rows.iter().zip(0..).map(|(row, id)| Destination { apic_id: id, ..*row });
        let mut destinations = Destinations::new(unlike.collect()).unwrap();
        for (vcpu, row) in (0..).map(VcpuIndex).zip(&rows) {
            destinations.update(vcpu, *row).unwrap();
        }
        let to = if is_logical { logical(to) } else { physical(to) };
        let ipi = crate::Ipi {
            vector,
            delivery_mode: if is_lowest { DeliveryMode::LowestPriority } else { DeliveryMode::Fixed },
            destination_mode: to.destination_mode,
            targets,
            destination: to.destination,
        };
        let message = ipi.message();
        let mut expected: Vec<u16> = (0..).zip(&rows).filter(|(vcpu, row)| match targets {
            IpiTargets::Destination => answers(row, &message),
            IpiTargets::All => row.mode != ApicMode::Disabled,
            IpiTargets::Others => row.mode != ApicMode::Disabled && *vcpu != sender,
        }).map(|(vcpu, _)| vcpu).collect();
        let mut targets = vec![];
        let count = destinations.route_ipi(VcpuIndex(sender), ipi, |vcpu, delivered| {
            assert_eq!(*delivered, message);
            targets.push(vcpu.0);
        });
        prop_assert_eq!(count, targets.len());
        targets.sort_unstable();
        if is_lowest {
            expected.retain(|vcpu| rows[usize::from(*vcpu)].software_enabled);
            prop_assert_eq!(targets.len(), usize::from(!expected.is_empty()));
            prop_assert!(targets.iter().all(|vcpu| expected.contains(vcpu)));
        } else {
            prop_assert_eq!(targets, expected);
        }
    }
}

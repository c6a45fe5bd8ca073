//! Logical destinations in xAPIC mode: the flat and the cluster model (SDM 3A, "Logical Destination
//! Mode").

use crate::prelude::*;

use super::MODE;

/// Gives each vCPU its logical id, and lets the first send to a logical destination. Returns the
/// vCPUs that were interrupted.
fn reached(dfr: u32, ids: &[u8], destination: u8) -> Vec<u16> {
    let cpus = u16::try_from(ids.len()).unwrap();
    let mut p = Program::smp(MODE, cpus);
    p.start_all();
    for (cpu, id) in (0..).zip(ids) {
        p.cpu(cpu).lapic_write(DFR, dfr);
        p.cpu(cpu).lapic_write(LDR, u32::from(*id) << 24);
    }
    p.meet();
    p.ipi_to(destination, ICR_LOGICAL | ICR_ASSERT | 0x41);
    p.meet();
    for cpu in 0..cpus {
        p.cpu(cpu).window();
    }
    p.meet();
    let log = p.run();
    (0..cpus)
        .filter(|cpu| match log.vectors_of(*cpu).as_slice() {
            [] => false,
            [0x41] => true,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn flat_is_an_overlap_of_bits() {
    assert_eq!(reached(DFR_FLAT, &[1, 2, 4], 4), [2]);
    assert_eq!(reached(DFR_FLAT, &[1, 2, 4], 3), [0, 1]);
}

#[test]
fn flat_reaches_a_processor_with_several_bits_once() {
    assert_eq!(reached(DFR_FLAT, &[1, 0x06], 0x06), [1]);
}

#[test]
fn flat_reaches_all_processors_with_the_same_bit() {
    let kvm = MODE.deviates_if(
        !linux_is_at_least(6, 3),
        Chip::LocalApic,
        "before Linux 6.3 a logical id that two have is the last one's alone (lapic.c, \
         kvm_recalculate_apic_map)",
    );
    let expected: &[u16] = if kvm { &[2] } else { &[1, 2] };
    assert_eq!(reached(DFR_FLAT, &[1, 2, 2], 2), expected);
}

#[test]
fn flat_with_all_bits_reaches_everybody_who_has_one() {
    assert_eq!(reached(DFR_FLAT, &[1, 2, 0x80], 0xff), [0, 1, 2]);
}

#[test]
fn flat_without_a_bit_in_common_reaches_no_apic() {
    assert_eq!(reached(DFR_FLAT, &[1, 2], 0x0c), [0; 0]);
    assert_eq!(reached(DFR_FLAT, &[1, 2], 0), [0; 0]);
}

#[test]
fn a_logical_id_of_0_is_not_reached() {
    assert_eq!(reached(DFR_FLAT, &[1, 0], 0x0f), [0]);
}

#[test]
fn cluster_is_an_equal_cluster_and_an_overlap_in_it() {
    assert_eq!(reached(DFR_CLUSTER, &[0x11, 0x12, 0x21], 0x12), [1]);
    assert_eq!(reached(DFR_CLUSTER, &[0x11, 0x12, 0x21], 0x13), [0, 1]);
    assert_eq!(reached(DFR_CLUSTER, &[0x11, 0x12, 0x21], 0x21), [2]);
}

#[test]
fn cluster_numbers_are_compared_and_not_overlapped() {
    assert_eq!(reached(DFR_CLUSTER, &[0x11, 0x21], 0x31), [0; 0]);
}

#[test]
fn cluster_0_is_a_cluster() {
    assert_eq!(reached(DFR_CLUSTER, &[0x01, 0x02, 0x11], 0x02), [1]);
}

#[test]
fn a_cluster_destination_without_bits_reaches_no_apic() {
    assert_eq!(reached(DFR_CLUSTER, &[0x11, 0x12], 0x10), [0; 0]);
}

#[test]
fn cluster_ff_reaches_everybody() {
    assert_eq!(reached(DFR_CLUSTER, &[0x11, 0x21, 0x38], 0xff), [0, 1, 2]);
}

/// OpenVMM's chip panicked here: the model bits can have any value.
#[test]
fn an_unknown_model_does_no_harm() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    for model in 0..16 {
        p.lapic_write(DFR, model << 28 | 0x0fff_ffff);
        p.lapic_write(LDR, 0x0100_0000);
        p.ipi_to(0x01, ICR_LOGICAL | ICR_ASSERT | 0x41);
    }
    p.window();
    p.mark(1);
    p.lapic_write(DFR, DFR_FLAT);
    p.ipi_to(0x01, ICR_LOGICAL | ICR_ASSERT | 0x42);
    p.window();
    let log = p.run();
    assert!(log.events().ends_with(&[Mark(1), Got(0x42)]));
}

#[test]
fn a_changed_logical_id_counts_at_once() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(LDR, 0x0100_0000);
    p.ipi_to(0x02, ICR_LOGICAL | ICR_ASSERT | 0x41);
    p.lapic_write(LDR, 0x0200_0000);
    p.ipi_to(0x02, ICR_LOGICAL | ICR_ASSERT | 0x42);
    p.ipi_to(0x01, ICR_LOGICAL | ICR_ASSERT | 0x43);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x42]);
}

#[test]
fn lowest_priority_takes_one_of_a_logical_destination() {
    let mut p = Program::smp(MODE, 3);
    p.start_all();
    for cpu in 0..3 {
        p.cpu(cpu).lapic_write(LDR, 0x0100_0000 << cpu);
    }
    p.meet();
    for vector in 0x41..0x45 {
        p.ipi_to(0x06, ICR_LOGICAL | ICR_LOWEST | ICR_ASSERT | vector);
    }
    p.meet();
    for cpu in 0..3 {
        p.cpu(cpu).window();
    }
    p.meet();
    let log = p.run();
    assert_eq!(log.vectors_of(0), NOTHING);
    let mut both = log.vectors_of(1);
    both.extend(log.vectors_of(2));
    both.sort_unstable();
    assert_eq!(both, [0x41, 0x42, 0x43, 0x44]);
}

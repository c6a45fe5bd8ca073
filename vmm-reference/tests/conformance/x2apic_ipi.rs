//! Destinations in x2APIC mode (SDM 3A, "Interrupt Destination and x2APIC ID").

use crate::prelude::*;

use super::MODE;

/// This many vCPUs in x2APIC mode, of which the first does something. Returns the vCPUs that then get vector 0x41.
fn reached(cpus: u16, act: impl FnOnce(&mut Program)) -> Vec<u16> {
    let mut p = Program::smp(MODE, cpus);
    p.end_with_x2_eoi();
    p.start_all();
    for cpu in 0..cpus {
        let bsp = if cpu == 0 { APIC_BASE_BSP } else { 0 };
        let base = APIC_PAGE | APIC_BASE_EN | APIC_BASE_X2 | bsp;
        p.cpu(cpu).wrmsr(APIC_BASE, base);
    }
    p.meet();
    act(&mut p);
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
fn a_physical_destination_is_an_id() {
    let to = reached(3, |p| {
        p.x2_ipi(2, ICR_ASSERT | 0x41);
    });
    assert_eq!(to, [2]);
}

#[test]
fn all_ones_is_everybody() {
    let to = reached(3, |p| {
        p.x2_ipi(0xffff_ffff, ICR_ASSERT | 0x41);
    });
    assert_eq!(to, [0, 1, 2]);
}

#[test]
fn ff_is_an_id_and_not_everybody() {
    let to = reached(2, |p| {
        p.x2_ipi(0xff, ICR_ASSERT | 0x41);
    });
    assert_eq!(to, [0; 0]);
}

#[test]
fn an_id_is_compared_with_all_its_bits() {
    let to = reached(2, |p| {
        p.x2_ipi(0x0100_0001, ICR_ASSERT | 0x41);
        p.x2_ipi(0x101, ICR_ASSERT | 0x41);
    });
    assert_eq!(to, [0; 0]);
}

#[test]
fn shorthands_work() {
    let all = reached(3, |p| {
        p.x2_ipi(0, ICR_ALL | ICR_ASSERT | 0x41);
    });
    assert_eq!(all, [0, 1, 2]);
    let others = reached(3, |p| {
        p.x2_ipi(0, ICR_ALL_BUT_SELF | ICR_ASSERT | 0x41);
    });
    assert_eq!(others, [1, 2]);
    let own = reached(3, |p| {
        p.x2_ipi(2, ICR_SELF | ICR_ASSERT | 0x41);
    });
    assert_eq!(own, [0]);
}

#[test]
fn a_logical_destination_is_a_cluster_and_bits_in_it() {
    let to = reached(4, |p| {
        p.x2_ipi(0b1010, ICR_LOGICAL | ICR_ASSERT | 0x41);
    });
    assert_eq!(to, [1, 3]);
}

#[test]
fn another_cluster_is_not_reached() {
    let to = reached(2, |p| {
        p.x2_ipi(1 << 16 | 0b11, ICR_LOGICAL | ICR_ASSERT | 0x41);
    });
    assert_eq!(to, [0; 0]);
}

#[test]
fn the_second_cluster_begins_with_id_16() {
    let to = reached(18, |p| {
        p.x2_ipi(1 << 16 | 0b11, ICR_LOGICAL | ICR_ASSERT | 0x41);
    });
    assert_eq!(to, [16, 17]);
}

#[test]
fn all_ones_is_everybody_logically_too() {
    let to = reached(17, |p| {
        p.x2_ipi(0xffff_ffff, ICR_LOGICAL | ICR_ASSERT | 0x41);
    });
    assert_eq!(to, (0..17).collect::<Vec<u16>>());
}

#[test]
fn lowest_priority_takes_one() {
    let to = reached(3, |p| {
        p.x2_ipi(0b110, ICR_LOGICAL | ICR_LOWEST | ICR_ASSERT | 0x41);
    });
    assert_eq!(to.len(), 1);
    assert!(matches!(to[0], 1 | 2));
}

#[test]
fn an_ipi_to_no_apic_is_dropped() {
    let to = reached(2, |p| {
        p.x2_ipi(77, ICR_ASSERT | 0x41);
        p.x2_ipi(0x8000_0000, ICR_ASSERT | 0x41);
        p.x2_ipi(0xfffe_ffff, ICR_LOGICAL | ICR_ASSERT | 0x41);
    });
    assert_eq!(to, [0; 0]);
}

/// The first starts the second from x2APIC mode.
#[test]
fn init_and_startup_work() {
    let mut p = Program::smp(MODE, 2);
    p.enable_x2apic();
    p.x2_ipi(1, INIT);
    p.x2_ipi(1, STARTUP | 0x70);
    p.meet();
    let log = p.run();
    assert_eq!(log.events_of(1), [Started(0x70)]);
}

/// IA32_APIC_BASE is kept (SDM 3A, "Local APIC State After It Receives an INIT-Deassert IPI"; "x2APIC
/// State Transitions": INIT).
#[test]
fn init_keeps_the_mode_and_the_id() {
    let mut p = Program::smp(MODE, 2);
    p.start_all();
    let base = APIC_PAGE | APIC_BASE_EN | APIC_BASE_X2;
    p.cpu(1).wrmsr(APIC_BASE, base);
    p.cpu(1).wrmsr(x2(TPR), 0x30);
    p.meet();
    p.cpu(1).hlt();
    p.enable_x2apic();
    p.x2_ipi(1, INIT);
    p.x2_ipi(1, STARTUP | 0x70);
    let after = p.restart(1);
    let values = [ID, LDR, TPR, SVR].map(|register| after.rdmsr(x2(register)));
    let base_after = after.rdmsr(APIC_BASE);
    after.barrier(100, 2);
    p.barrier(100, 2);
    let log = p.run();
    assert_eq!(log[base_after], base);
    assert_eq!(values.map(|value| log[value]), [1, 2, 0, 0xff]);
}

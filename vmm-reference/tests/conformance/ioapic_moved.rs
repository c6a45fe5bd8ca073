//! An entry is written while its level is being delivered or in service. The level still ends by the EOI
//! of the local APIC that has it, if the vector is still the entry's (82093AA, 3.2.4, "Remote IRR";
//! ICH10 data sheet, 13.5.4, "EOIR").

use crate::prelude::*;

use super::MODE;

/// A pin that no device of the machine has.
const PIN: u8 = 20;
const GSI: u32 = 20;
const VECTOR: u8 = 0x41;

/// Two vCPUs, of which the first is the pin's destination. Nothing is ended by handlers.
fn two() -> Program {
    let mut p = Program::smp(MODE, 2);
    p.only_log(0x20..0xff);
    p.start_all();
    p.rte_level(PIN, VECTOR);
    p
}

/// The first vCPU has the level in service, and the line is still up.
fn in_service() -> Program {
    let mut p = two();
    p.line(GSI, true);
    p.window();
    p
}

/// Writes the destination alone.
fn send_to(p: &mut Script, pin: u8, cpu: u8) {
    p.ioapic_write(rte_high(pin), u32::from(cpu) << 24);
}

#[test]
fn a_level_that_is_moved_in_service_ends_at_its_eoi() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        send_to(&mut p, PIN, 1);
        let moved = p.rte_read(PIN);
        p.eoi();
        let ended = p.rte_read(PIN);
        let log = p.run();
        assert_ne!(log[moved] & RTE_REMOTE_IRR, 0);
        assert_eq!(log[ended] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.vectors_of(0), [VECTOR]);
        assert_eq!(log.vectors_of(1), NOTHING);
    });
}

#[test]
fn it_can_come_again_and_does_so_at_its_new_destination() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        send_to(&mut p, PIN, 1);
        p.eoi();
        p.line(GSI, true);
        p.window();
        p.meet();
        let second = p.cpu(1);
        second.window();
        second.line(GSI, false);
        second.eoi();
        let ended = second.rte_read(PIN);
        p.meet();
        let log = p.run();
        assert_eq!(log.vectors_of(0), [VECTOR]);
        assert_eq!(log.vectors_of(1), [VECTOR]);
        assert_eq!(log[ended] & RTE_REMOTE_IRR, 0);
    });
}

#[test]
fn a_level_that_is_still_high_at_the_eoi_is_delivered_to_its_new_destination() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        send_to(&mut p, PIN, 1);
        p.eoi();
        p.window();
        p.meet();
        p.cpu(1).window();
        p.meet();
        let log = p.run();
        assert_eq!(log.vectors_of(0), [VECTOR]);
        assert_eq!(log.vectors_of(1), [VECTOR]);
    });
}

#[test]
fn a_level_that_another_processor_moves_ends_at_its_eoi() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        p.meet();
        send_to(p.cpu(1), PIN, 1);
        p.meet();
        p.eoi();
        let ended = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log[ended] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.vectors_of(0), [VECTOR]);
    });
}

#[test]
fn a_level_that_is_moved_twice_ends_at_its_eoi() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        send_to(&mut p, PIN, 9);
        send_to(&mut p, PIN, 1);
        p.eoi();
        let ended = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log[ended] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.vectors_of(0), [VECTOR]);
    });
}

/// The local APIC has accepted it.
#[test]
fn a_level_that_is_moved_before_it_is_taken_ends_where_it_went() {
    let mut p = two();
    p.line(GSI, true);
    p.line(GSI, false);
    send_to(&mut p, PIN, 1);
    p.window();
    p.eoi();
    let ended = p.rte_read(PIN);
    p.meet();
    p.cpu(1).window();
    p.meet();
    let log = p.run();
    assert_eq!(log[ended] & RTE_REMOTE_IRR, 0);
    assert_eq!(log.vectors_of(0), [VECTOR]);
    assert_eq!(log.vectors_of(1), NOTHING);
}

/// As the image ioapic of kvm-unit-tests does.
#[test]
fn one_in_service_and_one_that_waits_are_moved_and_both_end() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.rte_level(21, 0x61);
        p.line(21, true);
        for pin in [21, PIN] {
            p.line(pin.into(), false);
            send_to(&mut p, pin, 1);
        }
        p.eoi();
        let first = p.rte_read(PIN);
        let waits = p.rte_read(21);
        p.window();
        p.eoi();
        let second = p.rte_read(21);
        let log = p.run();
        assert_eq!(log[first] & RTE_REMOTE_IRR, 0);
        assert_ne!(log[waits] & RTE_REMOTE_IRR, 0);
        assert_eq!(log[second] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.vectors_of(0), [VECTOR, 0x61]);
    });
}

#[test]
fn a_level_that_is_masked_moved_and_unmasked_in_service_ends_at_its_eoi() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | RTE_MASKED);
        p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | RTE_MASKED | 1 << 56);
        p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | 1 << 56);
        p.eoi();
        let ended = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log[ended] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.vectors_of(0), [VECTOR]);
    });
}

#[test]
fn a_level_whose_destination_becomes_a_logical_one_ends_at_its_eoi() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        // No vCPU has this id.
        p.rte(
            PIN,
            u64::from(VECTOR) | RTE_LEVEL | RTE_LOGICAL | 0x80 << 56,
        );
        p.eoi();
        let ended = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log[ended] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.vectors_of(0), [VECTOR]);
    });
}

/// An EOI is that of a vector.
#[test]
fn a_level_whose_vector_is_changed_in_service_does_not_end_at_the_eoi_of_the_old_one() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        p.rte_level(PIN, 0x51);
        p.eoi();
        let old = p.rte_read(PIN);
        p.line(GSI, true);
        p.window();
        p.mark(1);
        // This ends it if there is no EOI register. Its line is up.
        p.rte(PIN, 0x51 | RTE_MASKED);
        p.rte_level(PIN, 0x51);
        p.window();
        let log = p.run();
        assert_ne!(log[old] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.events_of(0), [Got(VECTOR), Mark(1), Got(0x51)]);
    });
}

#[test]
fn a_level_that_is_moved_and_whose_vector_is_changed_and_restored_ends_at_its_eoi() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        p.rte(PIN, 0x51 | RTE_LEVEL | 1 << 56);
        p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | 1 << 56);
        p.eoi();
        let ended = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log[ended] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.vectors_of(0), [VECTOR]);
    });
}

#[test]
fn a_level_that_becomes_an_edge_in_service_takes_the_next_edge() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        p.rte(PIN, u64::from(VECTOR) | 1 << 56);
        let edge = p.rte_read(PIN);
        p.pulse(GSI);
        p.eoi();
        p.meet();
        p.cpu(1).window();
        p.meet();
        let log = p.run();
        assert_eq!(log[edge] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.vectors_of(0), [VECTOR]);
        assert_eq!(log.vectors_of(1), [VECTOR]);
    });
}

/// The level waits at its new destination, and the old one has an edge of the same vector.
#[test]
fn once_it_has_ended_its_old_destination_ends_it_no_more() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        send_to(&mut p, PIN, 1);
        p.eoi();
        p.line(GSI, false);
        p.self_ipi(VECTOR);
        p.window();
        p.eoi();
        let entry = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log.vectors_of(0), [VECTOR; 2]);
        assert_ne!(log[entry] & RTE_REMOTE_IRR, 0);
    });
}

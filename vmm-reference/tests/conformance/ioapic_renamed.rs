//! A local APIC gets another id while a level is being delivered to it or in service there. The level
//! still ends, because an EOI is broadcast with the vector alone (SDM 3A, "Signaling Interrupt Servicing
//! Completion").

use crate::prelude::*;

use super::MODE;

/// A pin that no device of the machine has.
const PIN: u8 = 20;
const GSI: u32 = 20;
const VECTOR: u8 = 0x41;

const LOGICAL_0: u32 = 0x0100_0000;
const LOGICAL_1: u32 = 0x0200_0000;
const ANOTHER: u32 = 0x0400_0000;

/// Two vCPUs, with the logical ids 1 and 2 of the flat model. Nothing is ended by handlers.
fn two() -> Program {
    let mut p = Program::smp(MODE, 2);
    p.only_log(0x20..0xff);
    p.start_all();
    p.lapic_write(LDR, LOGICAL_0);
    p.cpu(1).lapic_write(LDR, LOGICAL_1);
    p.meet();
    p
}

/// Sends the pin's level to a logical id.
fn send_to(p: &mut Script, id: u8) {
    let entry = u64::from(VECTOR) | RTE_LEVEL | RTE_LOGICAL;
    p.rte(PIN, entry | u64::from(id) << 56);
}

/// The first vCPU has a level in service that went to its logical id, and the line is still up.
fn in_service() -> Program {
    let mut p = two();
    send_to(&mut p, 1);
    p.line(GSI, true);
    p.window();
    p
}

/// The line falls, the first vCPU is renamed, and that alone does not end the level, but its EOI does.
fn ends(mut p: Program, rename: impl FnOnce(&mut Script)) {
    p.line(GSI, false);
    rename(&mut p);
    let before = p.rte_read(PIN);
    p.eoi();
    let after = p.rte_read(PIN);
    let log = p.run();
    assert_ne!(log[before] & RTE_REMOTE_IRR, 0);
    assert_eq!(log[after] & RTE_REMOTE_IRR, 0);
    assert_eq!(log.vectors_of(0), [VECTOR]);
    assert_eq!(log.vectors_of(1), NOTHING);
}

/// The same, from one model and id to another; the destination is the id.
fn ends_from(before: (u32, u8), after: (u32, u8)) {
    with_in_service(MODE, STORM, || {
        let name = |p: &mut Script, (model, id): (u32, u8)| {
            p.lapic_write(DFR, model);
            p.lapic_write(LDR, u32::from(id) << 24);
        };
        let mut p = two();
        p.cpu(1).lapic_write(LDR, 0);
        p.meet();
        name(&mut p, before);
        send_to(&mut p, before.1);
        p.line(GSI, true);
        p.window();
        ends(p, |p| name(p, after));
    });
}

#[test]
fn a_level_ends_at_the_eoi_of_a_processor_that_has_another_logical_id_now() {
    ends_from((DFR_FLAT, 0x01), (DFR_FLAT, 0x04));
}

#[test]
fn or_that_has_none_any_more() {
    ends_from((DFR_FLAT, 0x01), (DFR_FLAT, 0));
}

#[test]
fn or_that_is_in_another_cluster_now() {
    ends_from((DFR_CLUSTER, 0x11), (DFR_CLUSTER, 0x21));
}

/// 0x11 overlaps 0x31, and is not of its cluster.
#[test]
fn or_that_goes_from_the_flat_model_to_the_cluster_model() {
    with_in_service(MODE, STORM, || {
        let mut p = two();
        p.lapic_write(LDR, 0x1100_0000);
        send_to(&mut p, 0x31);
        p.line(GSI, true);
        p.window();
        ends(p, |p| p.lapic_write(DFR, DFR_CLUSTER));
    });
}

#[test]
fn or_that_goes_from_the_cluster_model_to_the_flat_model() {
    ends_from((DFR_CLUSTER, 0x11), (DFR_FLAT, 0x02));
}

/// A physical destination, and the id that is compared with it.
#[test]
fn or_that_has_another_apic_id_now() {
    with_in_service(MODE, STORM, || {
        let mut p = two();
        p.rte_level(PIN, VECTOR);
        p.line(GSI, true);
        p.window();
        p.line(GSI, false);
        p.lapic_write(ID, 7 << 24);
        p.eoi();
        let entry = p.rte_read(PIN);
        let log = p.run();
        let kvm = MODE == Mode::Split
            && MODE.deviates_if(
                !linux_is_at_least(6, 2),
                Chip::LocalApic,
                "before Linux 6.2 an EOI is reported if a level-triggered route names the vCPU as it is \
                 now (irq_comm.c, kvm_scan_ioapic_routes), and an APIC id is taken to be for good",
            );
        assert_eq!(log.vectors_of(0), [VECTOR]);
        assert_eq!(log[entry] & RTE_REMOTE_IRR != 0, kvm);
    });
}

#[test]
fn or_that_was_disabled_and_enabled_by_software() {
    with_in_service(MODE, STORM, || {
        ends(in_service(), |p| {
            p.lapic_write(SVR, SPURIOUS.into());
            p.enable_lapic();
        });
    });
}

/// In x2APIC mode the logical id of the first is 1 (SDM 3A, "Deriving Logical x2APIC ID from the Local
/// x2APIC ID").
#[test]
fn or_that_goes_to_x2apic_mode() {
    with_in_service(MODE, STORM, || {
        let mut p = two();
        p.lapic_write(LDR, ANOTHER);
        send_to(&mut p, 4);
        p.line(GSI, true);
        p.window();
        p.line(GSI, false);
        p.switch_to_x2apic();
        p.wrmsr(X2_EOI, 0);
        let after = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log[after] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.vectors_of(0), [VECTOR]);
    });
}

/// The local APIC has accepted it.
#[test]
fn a_level_that_waits_ends_at_the_eoi_of_the_processor_that_accepted_it() {
    let mut p = two();
    send_to(&mut p, 1);
    p.line(GSI, true);
    p.line(GSI, false);
    p.lapic_write(LDR, ANOTHER);
    p.window();
    p.eoi();
    let ended = p.rte_read(PIN);
    let log = p.run();
    assert_eq!(log[ended] & RTE_REMOTE_IRR, 0);
    assert_eq!(log.vectors_of(0), [VECTOR]);
}

#[test]
fn the_next_one_goes_to_the_processor_that_has_the_id_now() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        p.lapic_write(LDR, ANOTHER);
        p.meet();
        p.cpu(1).lapic_write(LDR, LOGICAL_0);
        p.meet();
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
fn a_level_that_is_still_high_at_the_eoi_goes_to_the_entrys_new_destination() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.lapic_write(LDR, ANOTHER);
        send_to(&mut p, 2);
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
fn a_level_whose_entry_and_processor_are_renamed_and_back_ends_at_its_eoi() {
    with_in_service(MODE, STORM, || {
        ends(in_service(), |p| {
            p.lapic_write(LDR, ANOTHER);
            send_to(p, 4);
            p.lapic_write(LDR, LOGICAL_0);
        });
    });
}

#[test]
fn a_level_whose_destination_becomes_a_physical_one_ends_at_the_eoi_of_a_processor_renamed() {
    with_in_service(MODE, STORM, || {
        ends(in_service(), |p| {
            p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | 1 << 56);
            p.lapic_write(LDR, ANOTHER);
        });
    });
}

/// An EOI is broadcast if TMR has the vector.
#[test]
fn an_edge_of_the_vector_that_another_processor_ends_does_not_end_it() {
    with_in_service(MODE, STORM, || {
        let mut p = in_service();
        p.line(GSI, false);
        p.meet();
        let second = p.cpu(1);
        second.self_ipi(VECTOR);
        second.window();
        second.eoi();
        p.meet();
        let edge = p.rte_read(PIN);
        p.eoi();
        let level = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log.vectors_of(1), [VECTOR]);
        assert_ne!(log[edge] & RTE_REMOTE_IRR, 0);
        assert_eq!(log[level] & RTE_REMOTE_IRR, 0);
    });
}

#[test]
fn nor_does_an_edge_that_another_processor_ends_that_is_renamed() {
    let mut p = two();
    send_to(&mut p, 2);
    p.line(GSI, true);
    p.line(GSI, false);
    p.self_ipi(VECTOR);
    p.window();
    p.lapic_write(LDR, ANOTHER);
    p.eoi();
    let edge = p.rte_read(PIN);
    p.meet();
    let second = p.cpu(1);
    second.window();
    second.eoi();
    let level = second.rte_read(PIN);
    p.meet();
    let log = p.run();
    assert_eq!(log.vectors_of(0), [VECTOR]);
    assert_eq!(log.vectors_of(1), [VECTOR]);
    assert_ne!(log[edge] & RTE_REMOTE_IRR, 0);
    assert_eq!(log[level] & RTE_REMOTE_IRR, 0);
}

//! Message-signalled interrupts (SDM 3A, "Message Signalled Interrupts").

use crate::prelude::*;

use super::MODE;

const LOGICAL: u64 = 1 << 2;
const REDIRECTION_HINT: u64 = 1 << 3;
const LEVEL: u32 = 1 << 15;
const ASSERT: u32 = 1 << 14;

fn to(destination: u8) -> u64 {
    APIC_PAGE | u64::from(destination) << 12
}

/// A device sends a message after each vCPU has its flat logical id. Returns the device's result
/// and the vCPUs that got vector 0x41.
fn reached(cpus: u16, address: u64, data: u32) -> (u64, Vec<u16>) {
    let mut p = Program::smp(MODE, cpus);
    p.start_all();
    for cpu in 0..cpus {
        p.cpu(cpu).lapic_write(LDR, 0x0100_0000 << cpu);
    }
    p.meet();
    let taken = p.msi(address, data);
    p.meet();
    for cpu in 0..cpus {
        p.cpu(cpu).window();
    }
    p.meet();
    let log = p.run();
    let cpus = (0..cpus)
        .filter(|cpu| match log.vectors_of(*cpu).as_slice() {
            [] => false,
            [0x41] => true,
            other => panic!("{other:?}"),
        })
        .collect();
    (log[taken], cpus)
}

#[test]
fn a_message_is_a_vector_to_an_apic_id() {
    assert_eq!(reached(3, to(0), 0x41), (1, vec![0]));
    assert_eq!(reached(3, to(2), 0x41), (1, vec![2]));
}

#[test]
fn a_message_to_no_apic_is_reported_as_lost() {
    assert_eq!(reached(2, to(2), 0x41), (0, vec![]));
    assert_eq!(reached(2, to(0xfe), 0x41), (0, vec![]));
}

#[test]
fn a_message_to_ff_is_for_every_vcpu() {
    let (_, to) = reached(3, to(0xff), 0x41);
    assert_eq!(to, [0, 1, 2]);
}

#[test]
fn a_logical_message_is_an_overlap_of_bits() {
    let (_, to) = reached(3, to(0b101) | LOGICAL | REDIRECTION_HINT, 0x41);
    // With the hint to one of them or to all: in KVM the fixed mode goes to all.
    assert!(!to.is_empty() && !to.contains(&1), "{to:?}");
}

#[test]
fn a_logical_message_without_hint_reaches_all_its_targets() {
    let (_, to) = reached(3, to(0b101) | LOGICAL, 0x41);
    assert_eq!(to, [0, 2]);
}

#[test]
fn a_lowest_priority_message_reaches_one() {
    let address = to(0b111) | LOGICAL | REDIRECTION_HINT;
    let (taken, to) = reached(3, address, ICR_LOWEST | 0x41);
    assert_eq!((taken, to.len()), (1, 1));
}

#[test]
fn a_message_is_edge_triggered() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.msi(to(0), 0x41);
    let tmr = p.lapic_read_set(TMR, 0x41);
    let irr = p.lapic_read_set(IRR, 0x41);
    let log = p.run();
    assert!(bit(log[irr], 0x41) && !bit(log[tmr], 0x41));
}

#[test]
fn a_level_message_sets_tmr() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.msi(to(0), LEVEL | ASSERT | 0x41);
    let tmr = p.lapic_read_set(TMR, 0x41);
    p.window();
    let log = p.run();
    assert!(bit(log[tmr], 0x41));
    assert_eq!(log.vectors(), [0x41]);
}

#[test]
fn tmr_follows_the_last_acceptance() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.msi(to(0), LEVEL | ASSERT | 0x41);
    p.window();
    let during = p.lapic_read_set(TMR, 0x41);
    p.msi(to(0), 0x41);
    let after = p.lapic_read_set(TMR, 0x41);
    let log = p.run();
    assert!(bit(log[during], 0x41), "it stays after delivery");
    assert!(!bit(log[after], 0x41));
}

#[test]
fn a_second_message_is_merged_while_the_first_is_pending() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.msi(to(0), 0x41);
    p.msi(to(0), 0x41);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x41]);
}

#[test]
fn a_message_to_a_disabled_apic_is_lost() {
    let mut p = Program::new(MODE);
    p.msi(to(0), 0x41);
    p.enable_lapic();
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn a_message_wakes_a_halted_processor() {
    let mut p = Program::smp(MODE, 2);
    p.start_all();
    p.cpu(1).sti_hlt();
    p.cpu(1).mark(1);
    p.msi(to(1), 0x41);
    p.meet();
    let log = p.run();
    assert!(log.events_of(1).ends_with(&[Got(0x41), Mark(1)]));
}

#[test]
fn messages_reach_x2apics() {
    let mut p = Program::new(MODE);
    p.end_with_x2_eoi();
    p.enable_x2apic();
    p.msi(to(0), 0x41);
    p.msi(to(1) | LOGICAL, 0x42);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x42, 0x41]);
}

/// Delivery mode 110 of a message is reserved (SDM 3A, "Message Data Register Format").
#[test]
fn a_message_is_no_startup_ipi() {
    let mut p = Program::smp(MODE, 2);
    p.enable_lapic();
    p.msi(to(1), INIT);
    let taken = p.msi(to(1), STARTUP | 0x70);
    if MODE.deviates(
        Chip::LocalApic,
        "a message can be a start-up IPI (lapic.c, __apic_accept_irq)",
    ) {
        p.meet();
        let log = p.run();
        assert_eq!(log.events_of(1), [Started(0x70)]);
    } else {
        p.window();
        let log = p.run();
        assert_eq!(log[taken], crate::host::REFUSED);
        assert_eq!(log.events_of(1), []);
    }
}

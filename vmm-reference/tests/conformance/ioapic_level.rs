//! The IOAPIC's level-triggered pins: remote IRR, and how an EOI ends it (82093AA, 3.2.4; SDM 3A,
//! "Signaling Interrupt Servicing Completion").

use crate::prelude::*;

use super::MODE;

/// A pin that no device of the machine has.
const PIN: u8 = 20;
const GSI: u32 = 20;
const VECTOR: u8 = 0x41;

fn enabled() -> Program {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p
}

/// Its vector's handler lowers the line, and ends the interrupt.
fn level() -> Program {
    let mut p = enabled();
    let handler = p.on(VECTOR);
    handler.line(GSI, false);
    handler.eoi();
    p.rte_level(PIN, VECTOR);
    p
}

#[test]
fn an_edge_does_not_set_remote_irr_or_tmr() {
    let mut p = enabled();
    p.rte_edge(PIN, VECTOR);
    p.pulse(GSI);
    let entry = p.rte_read(PIN);
    let tmr = p.lapic_read_set(TMR, VECTOR);
    let log = p.run();
    assert_eq!(log[entry], u64::from(VECTOR));
    assert!(!bit(log[tmr], VECTOR));
}

#[test]
fn a_level_sets_remote_irr_and_tmr() {
    let mut p = enabled();
    p.rte_level(PIN, VECTOR);
    p.line(GSI, true);
    let entry = p.rte_read(PIN);
    let tmr = p.lapic_read_set(TMR, VECTOR);
    let log = p.run();
    assert_eq!(log[entry], u64::from(VECTOR) | RTE_LEVEL | RTE_REMOTE_IRR);
    assert!(bit(log[tmr], VECTOR));
}

#[test]
fn an_eoi_clears_remote_irr() {
    with_eois(MODE, "left: [Got(65), Got(65)]", || {
        let mut p = level();
        p.line(GSI, true);
        p.window();
        let entry = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log[entry], u64::from(VECTOR) | RTE_LEVEL);
        assert_eq!(quieted(MODE, log.events()), [Got(VECTOR)]);
    });
}

#[test]
fn a_level_that_is_still_high_after_eoi_is_delivered_again() {
    with_in_service(MODE, STORM, || {
        let mut p = enabled();
        // Every second run lowers the line.
        p.rte_level(PIN, VECTOR);
        p.only_log([VECTOR]);
        p.line(GSI, true);
        p.window();
        p.eoi();
        p.mark(1);
        p.window();
        p.line(GSI, false);
        p.eoi();
        p.mark(2);
        p.window();
        let log = p.run();
        assert_eq!(log.events(), [Got(VECTOR), Mark(1), Got(VECTOR), Mark(2)]);
    });
}

#[test]
fn a_level_is_delivered_once_until_eoi() {
    with_in_service(MODE, STORM, || {
        let mut p = enabled();
        p.rte_level(PIN, VECTOR);
        p.only_log([VECTOR]);
        p.line(GSI, true);
        p.window();
        // Remote IRR is set: changes of the line are ignored now.
        p.line(GSI, false);
        p.line(GSI, true);
        p.window();
        let irr = p.lapic_read_set(IRR, VECTOR);
        let isr = p.lapic_read_set(ISR, VECTOR);
        let log = p.run();
        assert_eq!(log.vectors(), [VECTOR]);
        assert!(!bit(log[irr], VECTOR) && bit(log[isr], VECTOR));
    });
}

#[test]
fn a_level_that_fell_before_eoi_is_not_delivered_again() {
    with_eois(MODE, "left: [Got(65), Got(65), Mark(1)]", || {
        let mut p = level();
        p.line(GSI, true);
        p.window();
        p.mark(1);
        p.window();
        let log = p.run();
        assert_eq!(quieted(MODE, log.events()), [Got(VECTOR), Mark(1)]);
    });
}

/// The local APIC has accepted it.
#[test]
fn a_level_that_falls_before_delivery_is_delivered() {
    let mut p = level();
    p.line(GSI, true);
    p.line(GSI, false);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR]);
}

#[test]
fn a_level_that_is_high_when_unmasked_is_delivered() {
    with_eois(MODE, "left: [Mark(1), Got(65), Got(65)]", || {
        let mut p = level();
        p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | RTE_MASKED);
        p.line(GSI, true);
        p.window();
        p.mark(1);
        p.rte_level(PIN, VECTOR);
        p.window();
        let log = p.run();
        assert_eq!(quieted(MODE, log.events()), [Mark(1), Got(VECTOR)]);
    });
}

#[test]
fn a_level_that_falls_while_masked_is_not_delivered() {
    let mut p = level();
    p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | RTE_MASKED);
    p.line(GSI, true);
    p.line(GSI, false);
    p.rte_level(PIN, VECTOR);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn an_eoi_while_masked_clears_remote_irr_and_delivers_nothing() {
    with_in_service(MODE, STORM, || {
        let mut p = enabled();
        p.rte_level(PIN, VECTOR);
        p.only_log([VECTOR]);
        p.line(GSI, true);
        p.window();
        p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | RTE_MASKED);
        p.eoi();
        let entry = p.rte_read(PIN);
        p.window();
        p.mark(1);
        p.rte_level(PIN, VECTOR);
        p.window();
        let log = p.run();
        assert_eq!(log[entry] & RTE_REMOTE_IRR, 0);
        assert_eq!(log.events(), [Got(VECTOR), Mark(1), Got(VECTOR)]);
    });
}

#[test]
fn a_write_of_the_entry_keeps_remote_irr() {
    let mut p = enabled();
    p.rte_level(PIN, VECTOR);
    p.line(GSI, true);
    p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | RTE_MASKED);
    let masked = p.rte_read(PIN);
    p.rte_level(PIN, VECTOR);
    let unmasked = p.rte_read(PIN);
    let log = p.run();
    assert_ne!(log[masked] & RTE_REMOTE_IRR, 0);
    assert_ne!(log[unmasked] & RTE_REMOTE_IRR, 0);
}

/// What Linux does instead of an EOI if there is no EOI register.
#[test]
fn to_become_edge_triggered_clears_remote_irr() {
    let mut p = enabled();
    p.rte_level(PIN, VECTOR);
    p.line(GSI, true);
    p.rte(PIN, u64::from(VECTOR) | RTE_MASKED);
    let edge = p.rte_read(PIN);
    p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | RTE_MASKED);
    let level = p.rte_read(PIN);
    let log = p.run();
    assert_eq!(log[edge] & RTE_REMOTE_IRR, 0);
    assert_eq!(log[level] & RTE_REMOTE_IRR, 0);
}

#[test]
fn after_that_a_high_level_is_delivered_again() {
    with_in_service(MODE, STORM, || {
        let mut p = enabled();
        p.only_log([VECTOR]);
        let handler = p.on(0x52);
        handler.line(GSI, false);
        handler.eoi();
        p.rte_level(PIN, VECTOR);
        p.line(GSI, true);
        p.window();
        p.mark(1);
        p.rte(PIN, u64::from(VECTOR) | RTE_MASKED);
        p.rte_level(PIN, 0x52);
        p.window();
        let log = p.run();
        assert_eq!(log.events(), [Got(VECTOR), Mark(1), Got(0x52)]);
    });
}

#[test]
fn an_eoi_ends_all_pins_with_the_vector() {
    with_in_service(MODE, STORM, || {
        let mut p = enabled();
        p.only_log([VECTOR]);
        p.rte_level(20, VECTOR);
        p.rte_level(21, VECTOR);
        p.line(20, true);
        p.line(21, true);
        p.window();
        p.line(20, false);
        p.line(21, false);
        p.eoi();
        let first = p.rte_read(20);
        let second = p.rte_read(21);
        let log = p.run();
        assert_eq!(log.vectors(), [VECTOR]);
        assert_eq!(log[first] & RTE_REMOTE_IRR, 0);
        assert_eq!(log[second] & RTE_REMOTE_IRR, 0);
    });
}

#[test]
fn an_eoi_of_another_vector_ends_nothing() {
    with_in_service(MODE, STORM, || {
        let mut p = enabled();
        p.only_log([VECTOR]);
        p.rte_level(PIN, VECTOR);
        p.line(GSI, true);
        p.window();
        p.self_ipi(0x81);
        p.window();
        let entry = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log.vectors(), [VECTOR, 0x81]);
        assert_ne!(log[entry] & RTE_REMOTE_IRR, 0);
    });
}

/// The vector comes from an edge: TMR is clear, and the EOI is not broadcast.
#[test]
fn an_eoi_of_an_edge_is_not_broadcast() {
    let mut p = enabled();
    p.rte_level(PIN, VECTOR);
    p.lapic_write(TPR, 0x50);
    p.line(GSI, true);
    p.line(GSI, false);
    // The same vector, by an edge: TMR follows.
    p.self_ipi(VECTOR);
    p.lapic_write(TPR, 0);
    p.window();
    let entry = p.rte_read(PIN);
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR]);
    assert_ne!(log[entry] & RTE_REMOTE_IRR, 0);
}

/// With the broadcast suppressed, the IOAPIC's own EOI register ends a level.
#[test]
fn eoir_ends_a_level() {
    let mut p = enabled();
    p.rte_level(PIN, VECTOR);
    p.line(GSI, true);
    p.line(GSI, false);
    p.write(Size::Dword, IOEOIR, 0x42);
    let other = p.rte_read(PIN);
    p.write(Size::Dword, IOEOIR, VECTOR.into());
    let ended = p.rte_read(PIN);
    let log = p.run();
    assert_ne!(log[other] & RTE_REMOTE_IRR, 0, "of another vector");
    let kvm = MODE.deviates(
        Chip::Ioapic,
        "there is no EOI register (ioapic.c, ioapic_mmio_write)",
    );
    assert_eq!(log[ended] & RTE_REMOTE_IRR != 0, kvm);
}

#[test]
fn svr_bit_12_suppresses_the_broadcast_where_it_exists() {
    let mut p = enabled();
    p.rte_level(PIN, VECTOR);
    let version = p.lapic_read(VERSION);
    p.lapic_write(SVR, SVR_ENABLE | SVR_NO_EOI_BROADCAST | 0xff);
    p.line(GSI, true);
    p.line(GSI, false);
    p.window();
    let entry = p.rte_read(PIN);
    let log = p.run();
    let suppressed = log[version] & VERSION_DIRECTED_EOI != 0;
    assert_eq!(log[entry] & RTE_REMOTE_IRR != 0, suppressed);
}

//! What the IOAPIC's pins deliver, by edge and by level (82093AA, 3.2.4; SDM 3A, "Signaling
//! Interrupt Servicing Completion").

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
fn an_edge_is_delivered_once() {
    let mut p = enabled();
    p.rte_edge(PIN, VECTOR);
    p.line(GSI, true);
    p.window();
    p.mark(1);
    p.window();
    p.line(GSI, false);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Got(VECTOR), Mark(1)]);
}

#[test]
fn each_edge_is_delivered() {
    let mut p = enabled();
    p.rte_edge(PIN, VECTOR);
    for _ in 0..3 {
        p.pulse(GSI);
        p.window();
    }
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR; 3]);
}

#[test]
fn a_raise_without_a_fall_is_no_edge() {
    let mut p = enabled();
    p.rte_edge(PIN, VECTOR);
    p.line(GSI, true);
    p.window();
    p.line(GSI, true);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR]);
}

#[test]
fn an_edge_while_masked_is_lost() {
    let mut p = enabled();
    p.rte(PIN, u64::from(VECTOR) | RTE_MASKED);
    p.pulse(GSI);
    p.rte_edge(PIN, VECTOR);
    p.window();
    p.mark(1);
    p.pulse(GSI);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Got(VECTOR)]);
}

#[test]
fn an_edge_that_is_still_high_when_unmasked_is_lost() {
    let mut p = enabled();
    p.rte(PIN, u64::from(VECTOR) | RTE_MASKED);
    p.line(GSI, true);
    p.rte_edge(PIN, VECTOR);
    p.window();
    p.line(GSI, false);
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
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
    with_in_service(MODE, || {
        let mut p = level();
        p.line(GSI, true);
        p.window();
        let entry = p.rte_read(PIN);
        let log = p.run();
        assert_eq!(log[entry], u64::from(VECTOR) | RTE_LEVEL);
        assert_eq!(log.vectors(), [VECTOR]);
    });
}

#[test]
fn a_level_that_is_still_high_after_eoi_is_delivered_again() {
    with_in_service(MODE, || {
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
    with_in_service(MODE, || {
        let mut p = enabled();
        p.rte_level(PIN, VECTOR);
        p.only_log([VECTOR]);
        p.line(GSI, true);
        p.window();
        // Remote IRR is set: what the line does now is not seen.
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
    with_in_service(MODE, || {
        let mut p = level();
        p.line(GSI, true);
        p.window();
        p.mark(1);
        p.window();
        let log = p.run();
        assert_eq!(log.events(), [Got(VECTOR), Mark(1)]);
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
    with_in_service(MODE, || {
        let mut p = level();
        p.rte(PIN, u64::from(VECTOR) | RTE_LEVEL | RTE_MASKED);
        p.line(GSI, true);
        p.window();
        p.mark(1);
        p.rte_level(PIN, VECTOR);
        p.window();
        let log = p.run();
        assert_eq!(log.events(), [Mark(1), Got(VECTOR)]);
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
    with_in_service(MODE, || {
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

/// What Linux does in place of an EOI where there is no EOI register.
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
    with_in_service(MODE, || {
        let mut p = enabled();
        p.rte_level(PIN, VECTOR);
        p.line(GSI, true);
        p.window();
        p.mark(1);
        p.rte(PIN, u64::from(VECTOR) | RTE_MASKED);
        p.line(GSI, false);
        p.line(GSI, true);
        p.on(0x52).line(GSI, false);
        p.rte_level(PIN, 0x52);
        p.window();
        let log = p.run();
        assert!(log.events().ends_with(&[Mark(1), Got(0x52)]));
    });
}

#[test]
fn an_eoi_ends_all_pins_with_the_vector() {
    with_in_service(MODE, || {
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
    with_in_service(MODE, || {
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

#[test]
fn several_pins_are_delivered_by_their_vectors() {
    let mut p = enabled();
    p.rte_edge(20, 0x41);
    p.rte_edge(21, 0x61);
    p.rte_edge(22, 0x51);
    for pin in 20..23 {
        p.pulse(pin);
    }
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x61, 0x51, 0x41]);
}

#[test]
fn every_pin_is_its_gsi() {
    let mut p = enabled();
    // 0, 2 and 4 may have devices, 2 the PIT in place of 0.
    let pins = [
        1, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23,
    ];
    for pin in pins {
        p.rte_edge(pin, 0x60 + pin);
    }
    for pin in pins {
        p.pulse(pin.into());
    }
    p.window();
    let log = p.run();
    let expected: Vec<u8> = pins.iter().rev().map(|pin| 0x60 + pin).collect();
    assert_eq!(log.vectors(), expected);
}

#[test]
fn a_pin_is_delivered_to_its_destination() {
    let mut p = Program::smp(MODE, 3);
    p.start_all();
    p.rte(20, u64::from(VECTOR) | 2 << 56);
    p.pulse(20);
    p.meet();
    for cpu in 0..3 {
        p.cpu(cpu).window();
    }
    p.meet();
    let log = p.run();
    assert_eq!(log.vectors_of(0), NOTHING);
    assert_eq!(log.vectors_of(1), NOTHING);
    assert_eq!(log.vectors_of(2), [VECTOR]);
}

#[test]
fn a_pin_is_delivered_to_a_logical_destination() {
    let mut p = Program::smp(MODE, 3);
    p.start_all();
    for cpu in 0..3 {
        p.cpu(cpu).lapic_write(LDR, 0x0100_0000 << cpu);
    }
    p.meet();
    p.rte(20, u64::from(VECTOR) | RTE_LOGICAL | 0b101 << 56);
    p.pulse(20);
    p.meet();
    for cpu in 0..3 {
        p.cpu(cpu).window();
    }
    p.meet();
    let log = p.run();
    assert_eq!(log.vectors_of(0), [VECTOR]);
    assert_eq!(log.vectors_of(1), NOTHING);
    assert_eq!(log.vectors_of(2), [VECTOR]);
}

#[test]
fn lowest_priority_reaches_one_of_the_destination() {
    let mut p = Program::smp(MODE, 3);
    p.start_all();
    for cpu in 0..3 {
        p.cpu(cpu).lapic_write(LDR, 0x0100_0000 << cpu);
    }
    p.meet();
    p.rte(
        20,
        u64::from(VECTOR) | RTE_LOGICAL | RTE_LOWEST | 0b110 << 56,
    );
    p.pulse(20);
    p.meet();
    for cpu in 0..3 {
        p.cpu(cpu).window();
    }
    p.meet();
    let log = p.run();
    let counts = [0, 1, 2].map(|cpu| log.vectors_of(cpu).len());
    assert_eq!(counts[0], 0);
    assert_eq!(counts[1] + counts[2], 1);
}

#[test]
fn a_pin_without_a_destination_does_no_harm() {
    let mut p = enabled();
    p.rte(20, u64::from(VECTOR) | 9 << 56);
    p.pulse(20);
    p.rte_edge(20, VECTOR);
    p.pulse(20);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR]);
}

/// A device asserts and de-asserts; what voltage that is, is the board's.
#[test]
fn the_polarity_does_not_invert_what_a_device_asserts() {
    let mut p = enabled();
    p.rte(PIN, u64::from(VECTOR) | RTE_ACTIVE_LOW);
    p.window();
    p.mark(1);
    p.pulse(GSI);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Got(VECTOR)]);
}

#[test]
fn a_changed_vector_is_that_of_the_next_interrupt() {
    let mut p = enabled();
    p.rte_edge(PIN, VECTOR);
    p.pulse(GSI);
    p.rte_edge(PIN, 0x51);
    p.pulse(GSI);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x51, VECTOR]);
}

#[test]
fn an_illegal_vector_is_not_delivered() {
    let mut p = enabled();
    p.only_log([0x0a]);
    p.rte_edge(PIN, 0x0a);
    p.pulse(GSI);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn a_pin_wakes_a_halted_processor() {
    let mut p = Program::smp(MODE, 2);
    p.start_all();
    p.rte(20, u64::from(VECTOR) | 1 << 56);
    p.cpu(1).sti_hlt();
    p.cpu(1).mark(1);
    p.pulse(20);
    p.meet();
    let log = p.run();
    assert!(log.events_of(1).ends_with(&[Got(VECTOR), Mark(1)]));
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

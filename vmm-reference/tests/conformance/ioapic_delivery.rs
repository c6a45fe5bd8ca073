//! What the IOAPIC's pins deliver by edges, and to whom (82093AA, 3.2.4).

use crate::prelude::*;

use super::MODE;

/// The 8254 has pin 2, and GSI 2 would be the line between the 8259As.
#[test]
fn line_n_is_at_pin_n_but_for_0_and_2() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    for pin in 0..PINS {
        p.rte_edge(pin, 0x40 + pin);
    }
    for line in 1..PINS {
        p.pulse(line.into());
        p.window();
    }
    let log = p.run();
    let expected: Vec<u8> = (1..PINS)
        .filter(|line| *line != 2)
        .map(|line| 0x40 + line)
        .collect();
    assert_eq!(log.vectors(), expected);
}

/// A pin that no device of the machine has.
const PIN: u8 = 20;
const GSI: u32 = 20;
const VECTOR: u8 = 0x41;

fn enabled() -> Program {
    let mut p = Program::new(MODE);
    p.enable_lapic();
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

/// A device asserts and de-asserts; the voltage is a matter of the wiring.
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

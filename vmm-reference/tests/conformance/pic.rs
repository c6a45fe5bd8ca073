//! The two 8259As: initialisation, delivery, masks and the ends of interrupts (8259A data sheet).
//!
//! Their interrupts come to the first processor through LINT0, and never touch the local APIC's
//! registers.

use crate::prelude::*;

use super::MODE;

/// Inputs of the two that no device of the machine has: of the second, 10 to 12.
const A: u32 = 3;
const B: u32 = 5;
const C: u32 = 6;
const SLAVE: u32 = 10;

fn vector(gsi: u32) -> u8 {
    PIC1_BASE + u8::try_from(gsi).unwrap()
}

/// Both initialised, and no handler ends what it handles.
fn pics() -> Program {
    let mut p = Program::new(MODE);
    p.only_log(0x20..=0xfe);
    p.init_pics();
    p
}

fn eoi(script: &mut Script) {
    script.outb(PIC1, OCW2_EOI);
}

#[test]
fn an_edge_is_delivered_as_base_plus_input() {
    let mut p = pics();
    p.pulse(A);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [vector(A)]);
}

#[test]
fn the_low_bits_of_the_base_are_ignored() {
    let mut p = pics();
    p.outb(PIC1, ICW1 | ICW1_ICW4);
    p.outb(PIC1_IMR, 0x5f);
    p.outb(PIC1_IMR, 1 << 2);
    p.outb(PIC1_IMR, ICW4_8086);
    p.outb(PIC1_IMR, 0);
    p.pulse(A);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x58 + 3]);
}

#[test]
fn an_input_of_the_second_comes_through_the_first() {
    let mut p = pics();
    p.pulse(SLAVE);
    p.window();
    let first = p.pic_isr(PIC1);
    let second = p.pic_isr(PIC2);
    let log = p.run();
    assert_eq!(log.vectors(), [PIC2_BASE + 2]);
    assert_eq!((log[first], log[second]), (1 << 2, 1 << 2));
}

#[test]
fn what_is_delivered_is_in_service_and_no_longer_requested() {
    let mut p = pics();
    p.pulse(A);
    let requested = p.pic_irr(PIC1);
    let not_yet = p.pic_isr(PIC1);
    p.window();
    let delivered = p.pic_irr(PIC1);
    let in_service = p.pic_isr(PIC1);
    eoi(&mut p);
    let ended = p.pic_isr(PIC1);
    let log = p.run();
    assert_eq!((log[requested], log[not_yet]), (1 << A, 0));
    assert_eq!((log[delivered], log[in_service]), (0, 1 << A));
    assert_eq!(log[ended], 0);
}

#[test]
fn the_local_apic_knows_nothing_of_it() {
    let mut p = pics();
    let handler = p.on(vector(A));
    let isr = handler.lapic_read_set(ISR, vector(A));
    let irr = handler.lapic_read_set(IRR, vector(A));
    p.pulse(A);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [vector(A)]);
    assert_eq!((log[isr], log[irr]), (0, 0));
}

#[test]
fn the_lowest_input_is_delivered_first() {
    let mut p = Program::new(MODE);
    p.end_with(eoi);
    p.init_pics();
    for input in [C, A, B] {
        p.pulse(input);
    }
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [A, B, C].map(vector));
}

#[test]
fn the_second_has_the_priority_of_input_2() {
    let mut p = Program::new(MODE);
    p.end_with(|s| {
        s.outb(PIC2, OCW2_EOI);
        s.outb(PIC1, OCW2_EOI);
    });
    p.init_pics();
    p.pulse(A);
    p.pulse(SLAVE);
    p.pulse(1);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [vector(1), PIC2_BASE + 2, vector(A)]);
}

#[test]
fn what_is_in_service_holds_back_its_like_and_those_below() {
    let mut p = pics();
    p.pulse(B);
    p.window();
    p.pulse(B);
    p.pulse(C);
    p.window();
    p.mark(1);
    p.pulse(A);
    p.window();
    p.mark(2);
    eoi(&mut p);
    eoi(&mut p);
    p.window();
    let log = p.run();
    assert_eq!(
        log.events(),
        [
            Got(vector(B)),
            Mark(1),
            Got(vector(A)),
            Mark(2),
            Got(vector(B))
        ]
    );
}

#[test]
fn a_masked_input_is_not_delivered() {
    let mut p = pics();
    p.outb(PIC1_IMR, 1 << A);
    let imr = p.inb(PIC1_IMR);
    p.pulse(A);
    p.pulse(B);
    p.window();
    let log = p.run();
    assert_eq!(log[imr], 1 << A);
    assert_eq!(log.vectors(), [vector(B)]);
}

#[test]
fn an_edge_while_masked_is_delivered_when_unmasked() {
    let mut p = pics();
    p.outb(PIC1_IMR, 1 << A);
    p.line(A, true);
    let irr = p.pic_irr(PIC1);
    p.window();
    p.mark(1);
    p.outb(PIC1_IMR, 0);
    p.window();
    p.line(A, false);
    let log = p.run();
    assert_eq!(log[irr], 1 << A);
    assert_eq!(log.events(), [Mark(1), Got(vector(A))]);
}

#[test]
fn input_2_masked_silences_the_second() {
    let mut p = pics();
    p.outb(PIC1_IMR, 1 << 2);
    p.line(SLAVE, true);
    p.window();
    p.mark(1);
    p.outb(PIC1_IMR, 0);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Got(PIC2_BASE + 2)]);
}

#[test]
fn a_line_that_stays_high_is_one_edge() {
    let mut p = pics();
    p.line(A, true);
    p.window();
    eoi(&mut p);
    p.line(A, true);
    p.window();
    p.mark(1);
    p.line(A, false);
    p.line(A, true);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Got(vector(A)), Mark(1), Got(vector(A))]);
}

#[test]
fn a_non_specific_eoi_ends_the_highest() {
    let mut p = pics();
    p.pulse(C);
    p.window();
    p.pulse(A);
    p.window();
    let both = p.pic_isr(PIC1);
    eoi(&mut p);
    let one = p.pic_isr(PIC1);
    eoi(&mut p);
    let none = p.pic_isr(PIC1);
    eoi(&mut p);
    let still = p.pic_isr(PIC1);
    let log = p.run();
    assert_eq!(log[both], 1 << A | 1 << C);
    assert_eq!((log[one], log[none], log[still]), (1 << C, 0, 0));
}

#[test]
fn a_specific_eoi_ends_its_own() {
    let mut p = pics();
    p.pulse(C);
    p.window();
    p.pulse(A);
    p.window();
    p.outb(PIC1, OCW2_SPECIFIC | 6);
    let isr = p.pic_isr(PIC1);
    let log = p.run();
    assert_eq!(log[isr], 1 << A);
}

#[test]
fn an_eoi_of_the_second_leaves_the_first_in_service() {
    let mut p = pics();
    p.pulse(SLAVE);
    p.window();
    p.outb(PIC2, OCW2_EOI);
    let second = p.pic_isr(PIC2);
    let first = p.pic_isr(PIC1);
    let log = p.run();
    assert_eq!((log[second], log[first]), (0, 1 << 2));
}

#[test]
fn without_special_full_nesting_the_second_waits_for_the_firsts_eoi() {
    let mut p = pics();
    p.pulse(SLAVE + 1);
    p.window();
    p.pulse(SLAVE);
    p.window();
    p.mark(1);
    eoi(&mut p);
    p.window();
    let log = p.run();
    assert_eq!(
        log.events(),
        [Got(PIC2_BASE + 3), Mark(1), Got(PIC2_BASE + 2)]
    );
}

#[test]
fn with_special_full_nesting_a_higher_input_of_the_second_is_delivered() {
    let mut p = pics();
    p.init_pic1(ICW4_8086 | ICW4_FULLY_NESTED);
    p.pulse(SLAVE + 1);
    p.window();
    p.pulse(SLAVE);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [PIC2_BASE + 3, PIC2_BASE + 2]);
}

#[test]
fn icw1_clears_the_mask() {
    let mut p = pics();
    p.outb(PIC1_IMR, 0xff);
    p.outb(PIC1, ICW1 | ICW1_ICW4);
    p.outb(PIC1_IMR, PIC1_BASE);
    p.outb(PIC1_IMR, 1 << 2);
    p.outb(PIC1_IMR, ICW4_8086);
    let imr = p.inb(PIC1_IMR);
    let log = p.run();
    assert_eq!(log[imr], 0);
}

#[test]
fn icw1_forgets_edges() {
    let mut p = pics();
    p.pulse(A);
    p.init_pic1(ICW4_8086);
    let irr = p.pic_irr(PIC1);
    p.window();
    let log = p.run();
    assert_eq!(log[irr], 0);
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn icw1_selects_irr_for_reading() {
    let mut p = pics();
    p.outb(PIC1, OCW3_READ_ISR);
    p.init_pic1(ICW4_8086);
    p.pulse(A);
    let read = p.inb(PIC1);
    let log = p.run();
    assert_eq!(log[read], 1 << A);
}

#[test]
fn icw1_without_icw4_ends_automatic_eoi() {
    let mut p = pics();
    p.init_pic1(ICW4_8086 | ICW4_AUTO_EOI);
    p.outb(PIC1, ICW1);
    p.outb(PIC1_IMR, PIC1_BASE);
    p.outb(PIC1_IMR, 1 << 2);
    p.outb(PIC1_IMR, 0);
    p.pulse(A);
    p.window();
    let isr = p.pic_isr(PIC1);
    let log = p.run();
    assert_eq!(log.vectors(), [vector(A)]);
    assert_eq!(log[isr], 1 << A);
}

#[test]
fn the_register_to_be_read_stays_selected() {
    let mut p = pics();
    p.pulse(A);
    p.outb(PIC1, OCW3_READ_IRR);
    let first = p.inb(PIC1);
    let second = p.inb(PIC1);
    // An OCW2 selects nothing.
    p.outb(PIC1, OCW2_EOI);
    let third = p.inb(PIC1);
    let log = p.run();
    assert_eq!([log[first], log[second], log[third]], [1 << A; 3]);
}

#[test]
fn a_wider_write_does_not_reach_the_port() {
    let mut p = pics();
    p.out(Size::Dword, PIC1_IMR, 0xff);
    let imr = p.inb(PIC1_IMR);
    let log = p.run();
    assert_eq!(log[imr], 0);
}

//! The 8259As' rotation, automatic EOI, special mask, poll command, levels and spurious interrupts
//! (8259A data sheet; ELCR: 82371SB, 4.2.4).

use crate::prelude::*;

use super::MODE;

const A: u32 = 3;
const B: u32 = 5;
const C: u32 = 6;
const SLAVE: u32 = 10;

fn vector(gsi: u32) -> u8 {
    PIC1_BASE + u8::try_from(gsi).unwrap()
}

fn pics() -> Program {
    let mut p = Program::new(MODE);
    p.only_log(0x20..=0xfe);
    p.init_pics();
    p
}

#[test]
fn automatic_eoi_leaves_nothing_in_service() {
    let mut p = pics();
    p.init_pic1(ICW4_8086 | ICW4_AUTO_EOI);
    let handler = p.on(vector(A));
    let isr = handler.pic_isr(PIC1);
    p.pulse(A);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [vector(A)]);
    assert_eq!(log[isr], 0);
}

#[test]
fn with_automatic_eoi_everything_is_delivered_in_turn() {
    let mut p = pics();
    p.init_pic1(ICW4_8086 | ICW4_AUTO_EOI);
    p.pulse(C);
    p.pulse(A);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [vector(A), vector(C)]);
}

#[test]
fn rotation_in_automatic_eoi_makes_the_served_input_the_lowest() {
    let mut p = pics();
    p.init_pic1(ICW4_8086 | ICW4_AUTO_EOI);
    p.outb(PIC1, OCW2_ROTATE_IN_AEOI);
    p.pulse(B);
    p.window();
    p.mark(1);
    // 5 is the lowest now, and 6 the highest.
    for input in [A, B, C] {
        p.pulse(input);
    }
    p.window();
    let log = p.run();
    let after: Vec<_> = log.events();
    assert_eq!(
        after,
        [
            Got(vector(B)),
            Mark(1),
            Got(vector(C)),
            Got(vector(A)),
            Got(vector(B))
        ]
    );
}

#[test]
fn rotation_in_automatic_eoi_can_be_stopped() {
    let mut p = pics();
    p.init_pic1(ICW4_8086 | ICW4_AUTO_EOI);
    p.outb(PIC1, OCW2_ROTATE_IN_AEOI);
    p.outb(PIC1, OCW2_STOP_ROTATE_IN_AEOI);
    p.pulse(B);
    p.window();
    p.pulse(C);
    p.pulse(A);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [vector(B), vector(A), vector(C)]);
}

#[test]
fn the_lowest_priority_can_be_set() {
    let mut p = Program::new(MODE);
    p.end_with(|s| s.outb(PIC1, OCW2_EOI));
    p.init_pics();
    p.outb(PIC1, OCW2_SET_PRIORITY | 5);
    for input in [A, B, C] {
        p.pulse(input);
    }
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [C, A, B].map(vector));
}

#[test]
fn a_rotating_eoi_makes_what_it_ends_the_lowest() {
    let mut p = pics();
    p.pulse(A);
    p.window();
    p.outb(PIC1, OCW2_ROTATE_EOI);
    let isr = p.pic_isr(PIC1);
    p.pulse(A);
    p.pulse(1);
    p.pulse(B);
    p.window();
    let log = p.run();
    assert_eq!(log[isr], 0);
    // 3 is the lowest: 5 goes before 1.
    assert_eq!(log.vectors(), [vector(A), vector(B)]);
}

#[test]
fn a_rotating_specific_eoi_ends_and_rotates() {
    let mut p = pics();
    p.pulse(A);
    p.window();
    p.outb(PIC1, OCW2_ROTATE_SPECIFIC | 3);
    let isr = p.pic_isr(PIC1);
    p.pulse(1);
    p.pulse(B);
    p.window();
    let log = p.run();
    assert_eq!(log[isr], 0);
    assert_eq!(log.vectors(), [vector(A), vector(B)]);
}

#[test]
fn a_non_specific_eoi_ends_the_highest_under_rotation() {
    let mut p = pics();
    // Priorities from high to low: 5, 6, 7, 0, …, 4.
    p.outb(PIC1, OCW2_SET_PRIORITY | 4);
    p.pulse(A);
    p.window();
    p.pulse(B);
    p.window();
    let both = p.pic_isr(PIC1);
    p.outb(PIC1, OCW2_EOI);
    let isr = p.pic_isr(PIC1);
    let log = p.run();
    assert_eq!(log.vectors(), [vector(A), vector(B)]);
    assert_eq!((log[both], log[isr]), (1 << A | 1 << B, 1 << A));
}

#[test]
fn in_special_mask_mode_a_masked_input_in_service_holds_nothing_back() {
    let mut p = pics();
    p.pulse(A);
    p.window();
    p.outb(PIC1_IMR, 1 << A);
    p.outb(PIC1, OCW3_SPECIAL_MASK);
    p.pulse(B);
    p.window();
    let log = p.run();
    if MODE.deviates(
        Chip::Pic,
        "special mask mode is kept and not heeded (i8259.c, pic_get_irq)",
    ) {
        assert_eq!(log.vectors(), [vector(A)]);
    } else {
        assert_eq!(log.vectors(), [vector(A), vector(B)]);
    }
}

#[test]
fn without_special_mask_mode_it_does() {
    let mut p = pics();
    p.pulse(A);
    p.window();
    p.outb(PIC1_IMR, 1 << A);
    p.outb(PIC1, OCW3_SPECIAL_MASK);
    p.outb(PIC1, OCW3_NO_SPECIAL_MASK);
    p.pulse(B);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [vector(A)]);
}

#[test]
fn a_poll_answers_the_highest_request_with_bit_7() {
    let mut p = pics();
    p.pulse(B);
    p.pulse(A);
    let poll = p.pic_poll(PIC1);
    let log = p.run();
    assert_eq!(log[poll] & 0x07, 3);
    let kvm = MODE.deviates_if(
        log[poll] & 0x80 == 0,
        Chip::Pic,
        "a poll does not say whether there was a request (i8259.c, pic_poll_read)",
    );
    assert_eq!(log[poll] & 0x80 == 0, kvm);
}

#[test]
fn a_poll_without_a_request_answers_no_bit_7() {
    let mut p = pics();
    let poll = p.pic_poll(PIC1);
    let log = p.run();
    assert_eq!(log[poll] & 0x80, 0);
}

#[test]
fn a_poll_is_an_acknowledgement() {
    let mut p = pics();
    p.pulse(A);
    p.pic_poll(PIC1);
    let irr = p.pic_irr(PIC1);
    let isr = p.pic_isr(PIC1);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
    assert_eq!(log[irr], 0);
    let kvm = MODE.deviates(
        Chip::Pic,
        "what is polled is not in service (i8259.c, pic_poll_read: pic_clear_isr)",
    );
    assert_eq!(log[isr], if kvm { 0 } else { 1 << A });
}

#[test]
fn a_poll_is_one_read() {
    let mut p = pics();
    p.outb(PIC1_IMR, 0x5a);
    p.outb(PIC1, OCW3_POLL);
    p.inb(PIC1);
    p.outb(PIC1, OCW3_READ_ISR);
    let isr = p.inb(PIC1);
    let imr = p.inb(PIC1_IMR);
    let log = p.run();
    assert_eq!((log[isr], log[imr]), (0, 0x5a));
}

#[test]
fn elcr_is_0_at_reset() {
    let mut p = Program::new(MODE);
    let first = p.inb(ELCR1);
    let second = p.inb(ELCR2);
    let log = p.run();
    // The firmware or the VMM may have made the inputs of PCI level-triggered.
    assert_eq!(log[first] & 0x07, 0);
    assert_eq!(log[second] & 0x21, 0);
}

/// crosvm's 8259A combined the wrong operands here.
#[test]
fn elcr_keeps_the_inputs_that_can_be_level_triggered() {
    let mut p = Program::new(MODE);
    p.outb(ELCR1, 0xff);
    p.outb(ELCR2, 0xff);
    let all = [p.inb(ELCR1), p.inb(ELCR2)];
    p.outb(ELCR1, 0x28);
    p.outb(ELCR2, 0x0c);
    let some = [p.inb(ELCR1), p.inb(ELCR2)];
    p.outb(ELCR1, 0x40);
    let other = p.inb(ELCR1);
    let log = p.run();
    assert_eq!(all.map(|read| log[read]), [0xf8, 0xde]);
    assert_eq!(some.map(|read| log[read]), [0x28, 0x0c]);
    assert_eq!(log[other], 0x40);
}

#[test]
fn a_level_is_delivered_as_long_as_it_is_high() {
    let mut p = pics();
    p.outb(ELCR1, 1 << B);
    p.line(B, true);
    p.window();
    p.outb(PIC1, OCW2_EOI);
    p.mark(1);
    p.window();
    p.line(B, false);
    p.outb(PIC1, OCW2_EOI);
    p.mark(2);
    p.window();
    let log = p.run();
    assert_eq!(
        log.events(),
        [Got(vector(B)), Mark(1), Got(vector(B)), Mark(2)]
    );
}

#[test]
fn a_level_that_falls_before_delivery_is_a_spurious_interrupt() {
    let mut p = pics();
    p.outb(ELCR1, 1 << B);
    p.line(B, true);
    let high = p.pic_irr(PIC1);
    p.line(B, false);
    let low = p.pic_irr(PIC1);
    p.window();
    let log = p.run();
    assert_eq!((log[high], log[low]), (1 << B, 0));
    // "If the IR input goes low before this time a DEFAULT IR7 will occur when the CPU acknowledges the
    // interrupt" (8259A data sheet, "Edge and level triggered modes").
    if MODE.deviates(
        Chip::Pic,
        "a level of the first that falls leaves no trace (i8259.c, pic_set_irq1)",
    ) {
        assert_eq!(log.vectors(), NOTHING);
    } else {
        assert_eq!(log.vectors(), [PIC1_BASE + 7]);
    }
}

#[test]
fn a_level_of_the_second_works_too() {
    let mut p = pics();
    p.outb(ELCR2, 1 << 2);
    p.line(SLAVE, true);
    p.window();
    p.line(SLAVE, false);
    p.outb(PIC2, OCW2_EOI);
    p.outb(PIC1, OCW2_EOI);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [PIC2_BASE + 2]);
}

#[test]
fn the_initialisation_leaves_elcr_alone() {
    let mut p = Program::new(MODE);
    p.outb(ELCR1, 0x28);
    p.init_pics();
    let elcr = p.inb(ELCR1);
    let log = p.run();
    assert_eq!(log[elcr], 0x28);
}

#[test]
fn a_level_survives_icw1() {
    let mut p = pics();
    p.outb(ELCR1, 1 << B);
    p.line(B, true);
    p.init_pic1(ICW4_8086);
    p.window();
    p.line(B, false);
    let log = p.run();
    assert_eq!(log.vectors(), [vector(B)]);
}

/// The second's request goes away while the processor has not yet asked for the vector: the first
/// then has no request either.
#[test]
fn a_request_of_the_second_that_goes_away_is_a_spurious_interrupt() {
    let mut p = pics();
    p.outb(ELCR2, 1 << 2);
    p.line(SLAVE, true);
    p.line(SLAVE, false);
    p.window();
    let first = p.pic_isr(PIC1);
    let second = p.pic_isr(PIC2);
    let log = p.run();
    assert_eq!(log.vectors(), [PIC2_BASE + 7]);
    // "The default IR7 will not set ISR bit 7", but the first has been acknowledged for the second.
    assert_eq!((log[first], log[second]), (1 << 2, 0));
}

mod model;

use alloc::string::ToString;

use super::*;

/// As the PC's firmware leaves it: vectors 0x08 and 0x70, nothing masked.
fn initialised() -> Pic {
    let mut pic = Pic::new();
    initialise(&mut pic, 0x11, 0x01);
    pic
}

fn initialise(pic: &mut Pic, icw1: u8, icw4: u8) {
    for (port, base, icw3) in [(0x20, 0x08, 0x04), (0xa0, 0x70, 0x02)] {
        out(pic, port, icw1);
        out(pic, port + 1, base);
        if icw1 & 0x02 == 0 {
            out(pic, port + 1, icw3);
        }
        if icw1 & 0x01 != 0 {
            out(pic, port + 1, icw4);
        }
    }
}

fn out(pic: &mut Pic, port: u16, value: u8) {
    let _ = pic.write(port, &[value]);
}

fn inp(pic: &mut Pic, port: u16) -> u8 {
    let mut data = [0x5a];
    let _ = pic.read(port, &mut data);
    data[0]
}

fn pin(number: u8) -> PicPin {
    PicPin::new(number).unwrap()
}

fn up(pic: &mut Pic, number: u8) {
    pic.set_line(pin(number), true);
}

fn down(pic: &mut Pic, number: u8) {
    pic.set_line(pin(number), false);
}

/// Rises and stays; then an acknowledge.
fn vector(pic: &mut Pic) -> u8 {
    pic.acknowledge().vector
}

fn isr(pic: &mut Pic, port: u16) -> u8 {
    out(pic, port, 0x0b);
    inp(pic, port)
}

fn irr(pic: &mut Pic, port: u16) -> u8 {
    out(pic, port, 0x0a);
    inp(pic, port)
}

/// Puts a level in service.
fn serve(pic: &mut Pic, number: u8) {
    up(pic, number);
    assert_eq!(pic.acknowledge().pin, Some(pin(number)));
    down(pic, number);
}

#[test]
fn pins_are_0_to_15_without_the_cascade() {
    for number in 0..=u8::MAX {
        let exists = number < 16 && number != 2;
        assert_eq!(PicPin::new(number).is_ok(), exists, "{number}");
    }
}

#[test]
fn a_rise_raises_intr_and_is_acknowledged_with_its_vector() {
    for (number, expected) in [(0, 0x08), (7, 0x0f), (8, 0x70), (15, 0x77)] {
        let mut pic = initialised();
        assert!(!pic.intr());
        up(&mut pic, number);
        assert!(pic.intr());
        let acknowledge = pic.acknowledge();
        assert_eq!(acknowledge.vector, expected);
        assert_eq!(acknowledge.pin, Some(pin(number)));
        assert!(!pic.intr());
    }
}

#[test]
fn an_edge_input_that_stays_up_interrupts_once() {
    let mut pic = initialised();
    up(&mut pic, 4);
    let _ = pic.acknowledge();
    out(&mut pic, 0x20, 0x20);
    up(&mut pic, 4);
    assert!(!pic.intr());
    down(&mut pic, 4);
    up(&mut pic, 4);
    assert!(pic.intr());
}

#[test]
fn a_level_input_that_stays_up_interrupts_after_each_eoi() {
    let mut pic = initialised();
    out(&mut pic, 0x4d0, 0x20);
    up(&mut pic, 5);
    for _ in 0..3 {
        assert!(pic.intr());
        assert_eq!(vector(&mut pic), 0x0d);
        assert!(!pic.intr());
        out(&mut pic, 0x20, 0x20);
    }
    down(&mut pic, 5);
    // It fell before the acknowledge: a spurious interrupt, and then nothing.
    assert_eq!(pic.acknowledge().pin, None);
    assert!(!pic.intr());
}

#[test]
fn a_level_that_falls_while_it_is_served_leaves_nothing() {
    let mut pic = initialised();
    out(&mut pic, 0x4d1, 0x08);
    up(&mut pic, 11);
    assert_eq!(vector(&mut pic), 0x73);
    down(&mut pic, 11);
    out(&mut pic, 0xa0, 0x20);
    out(&mut pic, 0x20, 0x20);
    assert!(!pic.intr());
}

#[test]
fn ltim_makes_every_input_level_triggered() {
    let mut pic = Pic::new();
    initialise(&mut pic, 0x19, 0x01);
    for number in [0, 1, 8, 13] {
        assert!(pic.is_level_triggered(pin(number)));
        up(&mut pic, number);
        for _ in 0..2 {
            assert_eq!(pic.acknowledge().pin, Some(pin(number)));
            out(&mut pic, 0xa0, 0x20);
            out(&mut pic, 0x20, 0x20);
        }
        down(&mut pic, number);
        let _ = pic.acknowledge();
        out(&mut pic, 0x20, 0x20);
    }
}

/// crosvm masked the written value with the wrong operand.
#[test]
fn elcr_keeps_what_is_written_but_for_the_fixed_edge_inputs() {
    for value in [0x00, 0xff, 0x20, 0x21, 0x07, 0xf8, 0xde] {
        let mut pic = initialised();
        out(&mut pic, 0x4d0, 0xff);
        out(&mut pic, 0x4d1, 0xff);
        out(&mut pic, 0x4d0, value);
        assert_eq!(inp(&mut pic, 0x4d0), value & 0xf8);
        assert_eq!(inp(&mut pic, 0x4d1), 0xde);
        out(&mut pic, 0x4d1, value);
        assert_eq!(inp(&mut pic, 0x4d0), value & 0xf8);
        assert_eq!(inp(&mut pic, 0x4d1), value & 0xde);
    }
}

#[test]
fn an_input_made_level_triggered_forgets_its_edge() {
    let mut pic = initialised();
    pic.pulse(pin(5));
    assert!(pic.intr());
    out(&mut pic, 0x4d0, 0x20);
    assert!(!pic.intr());
    out(&mut pic, 0x4d0, 0x00);
    assert!(!pic.intr());
}

#[test]
fn a_request_that_falls_before_its_acknowledge_is_spurious_7_without_isr() {
    for elcr in [0x00, 0x20] {
        let mut pic = initialised();
        out(&mut pic, 0x4d0, elcr);
        up(&mut pic, 5);
        down(&mut pic, 5);
        assert_eq!(irr(&mut pic, 0x20), 0);
        assert!(pic.intr(), "INT stays up until the acknowledge");
        let acknowledge = pic.acknowledge();
        assert_eq!((acknowledge.vector, acknowledge.pin), (0x0f, None));
        assert_eq!(isr(&mut pic, 0x20), 0);
        assert!(!pic.intr());
    }
}

#[test]
fn a_spurious_interrupt_of_the_slave_leaves_the_masters_isr_bit_2() {
    for elcr in [0x00, 0x04] {
        let mut pic = initialised();
        out(&mut pic, 0x4d1, elcr);
        up(&mut pic, 10);
        down(&mut pic, 10);
        assert!(pic.intr());
        let acknowledge = pic.acknowledge();
        assert_eq!((acknowledge.vector, acknowledge.pin), (0x77, None));
        assert_eq!(isr(&mut pic, 0xa0), 0);
        assert_eq!(isr(&mut pic, 0x20), 0x04);
        // Until the handler's EOI to the master, less urgent inputs wait.
        up(&mut pic, 3);
        assert!(!pic.intr());
        out(&mut pic, 0x20, 0x20);
        assert!(pic.intr());
    }
}

#[test]
fn an_acknowledge_without_any_request_is_spurious() {
    let mut pic = initialised();
    assert_eq!(vector(&mut pic), 0x0f);
    assert_eq!(isr(&mut pic, 0x20), 0);
}

#[test]
fn a_fallen_request_does_not_hide_a_real_one() {
    let mut pic = initialised();
    up(&mut pic, 1);
    up(&mut pic, 6);
    down(&mut pic, 1);
    assert_eq!(vector(&mut pic), 0x0e);
    out(&mut pic, 0x20, 0x20);
    assert!(!pic.intr(), "the glitch is over with the acknowledge");
}

#[test]
fn a_fallen_request_that_rises_again_is_a_request() {
    let mut pic = initialised();
    up(&mut pic, 1);
    down(&mut pic, 1);
    up(&mut pic, 1);
    assert_eq!(vector(&mut pic), 0x09);
}

#[test]
fn masking_a_fallen_request_takes_int_down() {
    let mut pic = initialised();
    up(&mut pic, 1);
    down(&mut pic, 1);
    out(&mut pic, 0x21, 0x02);
    assert!(!pic.intr());
}

#[test]
fn a_masked_or_inhibited_request_that_falls_leaves_nothing() {
    let mut pic = initialised();
    out(&mut pic, 0x21, 0x10);
    up(&mut pic, 4);
    down(&mut pic, 4);
    out(&mut pic, 0x21, 0x00);
    assert!(!pic.intr());

    serve(&mut pic, 3);
    up(&mut pic, 4);
    down(&mut pic, 4);
    out(&mut pic, 0x20, 0x20);
    assert!(!pic.intr());
}

#[test]
fn a_pulse_waits_for_its_acknowledge() {
    let mut pic = initialised();
    pic.pulse(pin(12));
    pic.pulse(pin(12));
    assert_eq!(irr(&mut pic, 0xa0), 0x10);
    assert_eq!(vector(&mut pic), 0x74);
    out(&mut pic, 0xa0, 0x20);
    out(&mut pic, 0x20, 0x20);
    assert!(!pic.intr(), "two pulses before the acknowledge are one");
    pic.pulse(pin(12));
    assert!(pic.intr());
}

#[test]
fn a_pulse_on_a_level_input_is_no_request() {
    let mut pic = initialised();
    out(&mut pic, 0x4d1, 0x10);
    pic.pulse(pin(12));
    assert!(!pic.intr());
}

#[test]
fn an_edge_is_latched_while_masked() {
    let mut pic = initialised();
    out(&mut pic, 0x21, 0x01);
    up(&mut pic, 0);
    assert!(!pic.intr());
    assert_eq!(irr(&mut pic, 0x20), 0x01);
    out(&mut pic, 0x21, 0x00);
    assert_eq!(vector(&mut pic), 0x08);
}

#[test]
fn only_a_more_urgent_input_interrupts_service() {
    let mut pic = initialised();
    serve(&mut pic, 4);
    up(&mut pic, 5);
    assert!(!pic.intr());
    up(&mut pic, 3);
    assert!(pic.intr());
    assert_eq!(vector(&mut pic), 0x0b);
    assert_eq!(isr(&mut pic, 0x20), 0x18);
}

#[test]
fn the_same_input_does_not_interrupt_its_own_service() {
    let mut pic = initialised();
    serve(&mut pic, 4);
    up(&mut pic, 4);
    assert!(!pic.intr());
    out(&mut pic, 0x20, 0x20);
    assert!(pic.intr());
}

#[test]
fn simultaneous_requests_come_in_the_order_0_1_8_to_15_3_to_7() {
    let mut pic = initialised();
    let order = [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7];
    for number in order.iter().rev() {
        up(&mut pic, *number);
    }
    for number in order {
        assert_eq!(pic.acknowledge().pin, Some(pin(number)));
        out(&mut pic, 0xa0, 0x20);
        out(&mut pic, 0x20, 0x20);
    }
    assert!(!pic.intr());
}

// OCW2, all eight commands.

#[test]
fn non_specific_eoi_ends_the_most_urgent() {
    let mut pic = initialised();
    serve(&mut pic, 6);
    serve(&mut pic, 1);
    let ended = pic.write(0x20, &[0x20]);
    assert!(ended.contains(pin(1)) && !ended.contains(pin(6)));
    assert_eq!(isr(&mut pic, 0x20), 0x40);
}

#[test]
fn specific_eoi_ends_the_one_it_names() {
    let mut pic = initialised();
    serve(&mut pic, 6);
    serve(&mut pic, 1);
    assert_eq!(pic.write(0x20, &[0x66]), EndedInputs(1 << 6));
    assert_eq!(isr(&mut pic, 0x20), 0x02);
    assert_eq!(pic.write(0x20, &[0x63]), EndedInputs::NONE);
    assert_eq!(isr(&mut pic, 0x20), 0x02);
}

#[test]
fn an_eoi_with_nothing_in_service_does_nothing() {
    let mut pic = initialised();
    let before = pic;
    for command in [0x20, 0xa0, 0x40] {
        assert_eq!(pic.write(0x20, &[command]), EndedInputs::NONE);
    }
    assert_eq!(pic, before);
}

#[test]
fn rotation_on_non_specific_eoi_makes_the_ended_level_the_lowest() {
    let mut pic = initialised();
    serve(&mut pic, 4);
    out(&mut pic, 0x20, 0xa0);
    assert_eq!(isr(&mut pic, 0x20), 0);
    up(&mut pic, 4);
    up(&mut pic, 5);
    up(&mut pic, 3);
    for number in [5, 3, 4] {
        assert_eq!(pic.acknowledge().pin, Some(pin(number)));
        out(&mut pic, 0x20, 0x20);
    }
}

#[test]
fn rotation_on_specific_eoi_names_the_lowest() {
    let mut pic = initialised();
    serve(&mut pic, 6);
    out(&mut pic, 0x20, 0xe6);
    assert_eq!(isr(&mut pic, 0x20), 0);
    up(&mut pic, 6);
    up(&mut pic, 7);
    assert_eq!(vector(&mut pic), 0x0f);
}

#[test]
fn set_priority_changes_the_order_and_ends_nothing() {
    let mut pic = initialised();
    serve(&mut pic, 5);
    out(&mut pic, 0x20, 0xc5);
    assert_eq!(isr(&mut pic, 0x20), 0x20);
    // 6 is the highest now, 5 the lowest.
    up(&mut pic, 0);
    up(&mut pic, 6);
    assert_eq!(vector(&mut pic), 0x0e);
}

#[test]
fn non_specific_eoi_follows_the_rotated_order() {
    let mut pic = initialised();
    serve(&mut pic, 6);
    serve(&mut pic, 1);
    out(&mut pic, 0x20, 0xc3);
    out(&mut pic, 0x20, 0x20);
    assert_eq!(isr(&mut pic, 0x20), 0x02, "6 is before 1 after 3");
}

#[test]
fn rotation_in_automatic_eoi_mode_is_switched_by_two_commands() {
    let mut pic = Pic::new();
    initialise(&mut pic, 0x11, 0x03);
    out(&mut pic, 0x20, 0x80);
    up(&mut pic, 3);
    assert_eq!(pic.acknowledge().ended, EndedInputs(1 << 3));
    assert_eq!(isr(&mut pic, 0x20), 0);
    assert_eq!(pic.save().master.lowest, 3);
    out(&mut pic, 0x20, 0x00);
    up(&mut pic, 6);
    let _ = pic.acknowledge();
    assert_eq!(pic.save().master.lowest, 3);
}

#[test]
fn ocw2_010_does_nothing() {
    let mut pic = initialised();
    serve(&mut pic, 3);
    let before = pic;
    out(&mut pic, 0x20, 0x43);
    assert_eq!(pic, before);
}

#[test]
fn automatic_eoi_leaves_isr_clear_on_both_chips() {
    let mut pic = Pic::new();
    initialise(&mut pic, 0x11, 0x03);
    up(&mut pic, 9);
    up(&mut pic, 14);
    assert_eq!(pic.acknowledge().ended, EndedInputs(1 << 9));
    assert_eq!(isr(&mut pic, 0x20) | isr(&mut pic, 0xa0), 0);
    assert!(
        pic.intr(),
        "the slave raises an edge for each of its requests"
    );
    assert_eq!(vector(&mut pic), 0x76);
    assert!(!pic.intr());
}

// OCW3.

#[test]
fn special_mask_mode_lets_others_interrupt_a_masked_level_in_service() {
    // KVM sets special_mask and never looks at it (i8259.c, `pic_get_irq`).
    let mut pic = initialised();
    serve(&mut pic, 1);
    out(&mut pic, 0x21, 0x02);
    up(&mut pic, 6);
    assert!(!pic.intr());
    out(&mut pic, 0x20, 0x68);
    assert!(pic.intr());
    out(&mut pic, 0x20, 0x48);
    assert!(!pic.intr());
}

#[test]
fn special_mask_mode_still_inhibits_by_levels_that_are_not_masked() {
    let mut pic = initialised();
    serve(&mut pic, 4);
    serve(&mut pic, 1);
    out(&mut pic, 0x21, 0x02);
    out(&mut pic, 0x20, 0x68);
    up(&mut pic, 6);
    assert!(!pic.intr(), "4 is in service and not masked");
    up(&mut pic, 3);
    assert!(pic.intr());
}

#[test]
fn non_specific_eoi_passes_over_masked_levels_in_special_mask_mode() {
    let mut pic = initialised();
    serve(&mut pic, 4);
    serve(&mut pic, 1);
    out(&mut pic, 0x21, 0x02);
    out(&mut pic, 0x20, 0x68);
    out(&mut pic, 0x20, 0x20);
    assert_eq!(isr(&mut pic, 0x20), 0x02);
    out(&mut pic, 0x20, 0x20);
    assert_eq!(isr(&mut pic, 0x20), 0x02);
}

#[test]
fn esmm_clear_leaves_the_special_mask_alone() {
    let mut pic = initialised();
    out(&mut pic, 0x20, 0x68);
    out(&mut pic, 0x20, 0x28);
    out(&mut pic, 0x20, 0x0b);
    assert!(pic.save().master.special_mask);
}

#[test]
fn reads_give_irr_until_told_otherwise_and_remember_the_choice() {
    let mut pic = initialised();
    serve(&mut pic, 1);
    up(&mut pic, 4);
    assert_eq!(inp(&mut pic, 0x20), 0x10);
    out(&mut pic, 0x20, 0x0b);
    assert_eq!(inp(&mut pic, 0x20), 0x02);
    assert_eq!(inp(&mut pic, 0x20), 0x02);
    out(&mut pic, 0x20, 0x08);
    assert_eq!(inp(&mut pic, 0x20), 0x02);
    out(&mut pic, 0x20, 0x0a);
    assert_eq!(inp(&mut pic, 0x20), 0x10);
}

#[test]
fn a0_reads_imr() {
    let mut pic = initialised();
    out(&mut pic, 0x21, 0xa5);
    out(&mut pic, 0xa1, 0x3c);
    out(&mut pic, 0x21, 0xa6);
    assert_eq!((inp(&mut pic, 0x21), inp(&mut pic, 0xa1)), (0xa6, 0x3c));
}

#[test]
fn a_poll_is_an_acknowledge_that_returns_the_level() {
    // KVM returns the level without bit 7, and does not set ISR (i8259.c, `pic_poll_read`).
    let mut pic = initialised();
    up(&mut pic, 5);
    out(&mut pic, 0x20, 0x0c);
    assert_eq!(inp(&mut pic, 0x20), 0x85);
    assert!(!pic.intr());
    assert_eq!(isr(&mut pic, 0x20), 0x20);
}

#[test]
fn a_poll_lasts_for_one_read_and_comes_before_the_registers() {
    let mut pic = initialised();
    up(&mut pic, 5);
    out(&mut pic, 0x20, 0x0f);
    assert_eq!(inp(&mut pic, 0x20), 0x85);
    assert_eq!(inp(&mut pic, 0x20), 0x20, "ISR, chosen with the poll");
}

#[test]
fn a_poll_may_be_read_at_either_address() {
    let mut pic = initialised();
    up(&mut pic, 5);
    out(&mut pic, 0x20, 0x0c);
    assert_eq!(inp(&mut pic, 0x21), 0x85);
    assert_eq!(inp(&mut pic, 0x21), 0x00);
}

#[test]
fn a_poll_without_a_request_reads_0_and_serves_nothing() {
    let mut pic = initialised();
    out(&mut pic, 0x20, 0x0c);
    assert_eq!(inp(&mut pic, 0x20), 0);
    assert_eq!(isr(&mut pic, 0x20), 0);
}

#[test]
fn polls_of_both_chips_serve_an_input_of_the_slave() {
    let mut pic = initialised();
    up(&mut pic, 11);
    out(&mut pic, 0x20, 0x0c);
    assert_eq!(inp(&mut pic, 0x20), 0x82);
    out(&mut pic, 0xa0, 0x0c);
    assert_eq!(inp(&mut pic, 0xa0), 0x83);
    assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (0x04, 0x08));
    assert!(!pic.intr());
}

#[test]
fn a_poll_of_the_slave_takes_its_request_from_the_master() {
    let mut pic = initialised();
    up(&mut pic, 11);
    out(&mut pic, 0xa0, 0x0c);
    assert_eq!(inp(&mut pic, 0xa0), 0x83);
    assert!(!pic.intr());
    assert_eq!(irr(&mut pic, 0x20), 0);
}

#[test]
fn a_poll_in_automatic_eoi_mode_ends_the_service() {
    let mut pic = Pic::new();
    initialise(&mut pic, 0x11, 0x03);
    up(&mut pic, 11);
    out(&mut pic, 0xa0, 0x0c);
    let mut data = [0];
    assert_eq!(pic.read(0xa0, &mut data), EndedInputs(1 << 11));
    assert_eq!(isr(&mut pic, 0xa0), 0);
}

// Special fully nested mode.

#[test]
fn fully_nested_the_slave_does_not_interrupt_its_own_service() {
    let mut pic = initialised();
    serve(&mut pic, 12);
    up(&mut pic, 8);
    assert!(!pic.intr());
}

#[test]
fn special_fully_nested_a_more_urgent_input_of_the_slave_does() {
    let mut pic = Pic::new();
    initialise(&mut pic, 0x11, 0x11);
    serve(&mut pic, 12);
    up(&mut pic, 8);
    assert!(pic.intr());
    assert_eq!(vector(&mut pic), 0x70);
    up(&mut pic, 14);
    assert!(!pic.intr());
}

#[test]
fn special_fully_nested_less_urgent_inputs_of_the_master_stay_inhibited() {
    // KVM and QEMU leave ISR bit 2 out of the order altogether, so input 3 interrupts.
    let mut pic = Pic::new();
    initialise(&mut pic, 0x11, 0x11);
    serve(&mut pic, 12);
    up(&mut pic, 3);
    assert!(!pic.intr());
    up(&mut pic, 1);
    assert!(pic.intr());
}

// The cascade.

#[test]
fn the_masters_mask_of_input_2_masks_the_slave() {
    let mut pic = initialised();
    out(&mut pic, 0x21, 0x04);
    up(&mut pic, 9);
    assert!(!pic.intr());
    out(&mut pic, 0x21, 0x00);
    assert_eq!(vector(&mut pic), 0x71);
}

#[test]
fn masking_the_slaves_request_takes_it_from_the_master_without_a_spurious_interrupt() {
    let mut pic = initialised();
    up(&mut pic, 9);
    assert_eq!(irr(&mut pic, 0x20), 0x04);
    out(&mut pic, 0xa1, 0x02);
    assert!(!pic.intr());
    assert_eq!(irr(&mut pic, 0x20), 0);
    out(&mut pic, 0xa1, 0x00);
    assert!(pic.intr());
}

#[test]
fn an_eoi_to_the_slave_alone_lets_its_next_request_wait_for_the_master() {
    let mut pic = initialised();
    up(&mut pic, 9);
    up(&mut pic, 10);
    assert_eq!(vector(&mut pic), 0x71);
    out(&mut pic, 0xa0, 0x20);
    assert!(!pic.intr());
    out(&mut pic, 0x20, 0x20);
    assert_eq!(vector(&mut pic), 0x72);
}

#[test]
fn the_order_of_the_two_eois_does_not_matter() {
    let mut pic = initialised();
    up(&mut pic, 9);
    up(&mut pic, 10);
    assert_eq!(vector(&mut pic), 0x71);
    out(&mut pic, 0x20, 0x20);
    assert!(!pic.intr());
    out(&mut pic, 0xa0, 0x20);
    assert_eq!(vector(&mut pic), 0x72);
}

// Initialisation.

#[test]
fn icw2_keeps_only_the_upper_five_bits() {
    let mut pic = initialised();
    for (port, value) in [(0x20, 0x11), (0x21, 0x3f), (0x21, 0x04), (0x21, 0x01)] {
        out(&mut pic, port, value);
    }
    up(&mut pic, 1);
    assert_eq!(vector(&mut pic), 0x39);
}

#[test]
fn icw1_clears_mask_requests_service_rotation_special_mask_and_read_choice() {
    let mut pic = initialised();
    serve(&mut pic, 1);
    up(&mut pic, 0);
    out(&mut pic, 0x20, 0xc3);
    out(&mut pic, 0x20, 0x6b);
    out(&mut pic, 0x20, 0x80);
    out(&mut pic, 0x21, 0x40);
    out(&mut pic, 0x20, 0x0c);
    out(&mut pic, 0x20, 0x11);
    let state = pic.save().master;
    assert_eq!((state.imr, state.latched, state.isr), (0, 0, 0));
    assert_eq!(state.lowest, 7);
    assert!(!state.special_mask && !state.read_isr && !state.poll);
    assert!(!state.rotate_in_auto_eoi);
    assert_eq!(state.lines, 0x01, "the wire is still up");
}

#[test]
fn an_input_that_was_up_at_icw1_must_rise_again() {
    // KVM forgets the line as well, so a device's next assertion of it counts as a rise.
    let mut pic = initialised();
    up(&mut pic, 4);
    initialise(&mut pic, 0x11, 0x01);
    assert!(!pic.intr());
    up(&mut pic, 4);
    assert!(!pic.intr());
    down(&mut pic, 4);
    up(&mut pic, 4);
    assert!(pic.intr());
}

#[test]
fn a_level_that_is_up_survives_icw1() {
    let mut pic = initialised();
    out(&mut pic, 0x4d0, 0x20);
    up(&mut pic, 5);
    initialise(&mut pic, 0x11, 0x01);
    assert_eq!(inp(&mut pic, 0x4d0), 0x20);
    assert!(pic.intr());
}

#[test]
fn icw1_without_ic4_clears_what_icw4_sets_and_expects_none() {
    let mut pic = Pic::new();
    initialise(&mut pic, 0x11, 0x13);
    initialise(&mut pic, 0x10, 0x00);
    let state = pic.save().master;
    assert!(!state.auto_eoi && !state.special_fully_nested);
    assert_eq!(state.init, InitStep::Ready);
    out(&mut pic, 0x21, 0x77);
    assert_eq!(inp(&mut pic, 0x21), 0x77);
}

#[test]
fn single_mode_expects_no_icw3() {
    let mut pic = Pic::new();
    initialise(&mut pic, 0x13, 0x03);
    assert!(pic.save().master.auto_eoi);
    out(&mut pic, 0x21, 0x77);
    assert_eq!(inp(&mut pic, 0x21), 0x77);
    initialise(&mut pic, 0x12, 0);
    out(&mut pic, 0x21, 0x66);
    assert_eq!(inp(&mut pic, 0x21), 0x66);
}

#[test]
fn no_int_before_the_last_icw() {
    let mut pic = initialised();
    for value in [0x08, 0x04, 0x01] {
        if value == 0x08 {
            out(&mut pic, 0x20, 0x11);
        }
        pic.pulse(pin(3));
        assert!(!pic.intr());
        assert_eq!(pic.acknowledge().pin, None);
        out(&mut pic, 0x21, value);
    }
    assert!(pic.intr());
}

#[test]
fn icw1_in_the_middle_starts_again() {
    let mut pic = initialised();
    for (port, value) in [(0x20, 0x11), (0x21, 0x50), (0x20, 0x11), (0x21, 0x60)] {
        out(&mut pic, port, value);
    }
    out(&mut pic, 0x21, 0x04);
    out(&mut pic, 0x21, 0x01);
    up(&mut pic, 3);
    assert_eq!(vector(&mut pic), 0x63);
}

#[test]
fn power_on_takes_operation_commands_at_once() {
    // Linux without firmware writes IMR and reads it back before any ICW.
    let mut pic = Pic::new();
    out(&mut pic, 0xa1, 0xff);
    out(&mut pic, 0x21, 0xfb);
    assert_eq!(inp(&mut pic, 0x21), 0xfb);
}

#[test]
fn reset_keeps_the_wires() {
    let mut pic = initialised();
    out(&mut pic, 0x4d1, 0x08);
    up(&mut pic, 11);
    up(&mut pic, 4);
    pic.reset();
    assert!(!pic.intr());
    assert!(pic.line(pin(11)) && pic.line(pin(4)));
    assert_eq!(inp(&mut pic, 0x4d1), 0);
}

// Accesses.

#[test]
fn wide_accesses_are_bytes_at_ascending_ports() {
    let mut pic = initialised();
    let _ = pic.write(0x20, &[0x0a, 0x81]);
    assert_eq!(inp(&mut pic, 0x21), 0x81);
    let _ = pic.write(0x4d0, &[0xff, 0xff]);
    let mut data = [0; 4];
    let _ = pic.read(0x4d0, &mut data);
    assert_eq!(data, [0xf8, 0xde, 0xff, 0xff]);
    let _ = pic.read(0x1f, &mut data);
    assert_eq!(data, [0xff, 0x00, 0x81, 0xff]);
}

#[test]
fn no_access_of_any_size_at_any_port_panics() {
    for port in 0..=u16::MAX {
        for size in [0, 1, 2, 3, 4, 8, 16] {
            let mut pic = initialised();
            let _ = pic.write(port, &[0xa5; 16][..size]);
            let _ = pic.read(port, &mut [0; 16][..size]);
        }
    }
}

#[test]
fn the_last_port_wraps_around() {
    let mut data = [0; 2];
    let _ = initialised().read(0xffff, &mut data);
    assert_eq!(data, [0xff, 0xff]);
}

// State.

#[test]
fn restore_refuses_what_a_chip_cannot_be_and_changes_nothing() {
    type Break = fn(&mut PicState);
    let cases: [(&str, Break); 8] = [
        ("version", |state| state.version = 2),
        ("master.lowest", |state| state.master.lowest = 8),
        ("slave.vector_base", |state| state.slave.vector_base = 0x71),
        ("master.elcr", |state| state.master.elcr = 0x01),
        ("slave.elcr", |state| state.slave.elcr = 0x20),
        ("master.latched", |state| {
            state.master.elcr = 0x20;
            state.master.latched = 0x20;
        }),
        ("slave.fallen", |state| {
            state.slave.lines = 1;
            state.slave.fallen = 1;
        }),
        ("master.lines", |state| state.master.lines = 0x04),
    ];
    for (field, spoil) in cases {
        let mut pic = initialised();
        serve(&mut pic, 1);
        let before = pic;
        let mut state = Pic::new().save();
        assert_eq!(Pic::new().restore(&state), Ok(()));
        spoil(&mut state);
        let error = pic.restore(&state).unwrap_err();
        assert!(error.to_string().starts_with(field), "{field}: {error}");
        assert_eq!(pic, before);
    }
}

#[cfg(feature = "serde")]
#[test]
fn the_state_survives_serde_and_unknown_fields_do_not() {
    let mut pic = initialised();
    serve(&mut pic, 12);
    let json = serde_json::to_string(&pic.save()).unwrap();
    assert_eq!(serde_json::from_str::<PicState>(&json).unwrap(), pic.save());
    let odd = json.replacen('{', "{\"more\":1,", 1);
    assert!(serde_json::from_str::<PicState>(&odd).is_err());
}

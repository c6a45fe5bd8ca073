//! Devices that only pulse, latched and not.

use super::*;

fn pulse(ioapic: &mut IoApic, number: u8) -> Option<InterruptMessage> {
    ioapic.pulse(pin(number))
}

fn pulse_latched(ioapic: &mut IoApic, number: u8) -> Option<InterruptMessage> {
    ioapic.pulse_latched(pin(number))
}

#[test]
fn a_pulse_is_one_rise() {
    let mut ioapic = with_entry(4, 0x41);
    assert!(pulse(&mut ioapic, 4).is_some());
    assert!(pulse(&mut ioapic, 4).is_some());
    let _ = up(&mut ioapic, 4);
    assert_eq!(pulse(&mut ioapic, 4), None, "no rise");
    assert!(ioapic.line(pin(4)), "nor a fall");
}

#[test]
fn a_pulse_that_meets_its_level_in_service_is_lost() {
    let mut ioapic = with_entry(4, LEVEL | 0x41);
    assert!(pulse(&mut ioapic, 4).is_some());
    assert_eq!(pulse(&mut ioapic, 4), None);
    assert_eq!(eoi(&mut ioapic, 0x41), []);
}

#[test]
fn latched_it_is_sent_at_the_eoi_once() {
    let mut ioapic = with_entry(4, LEVEL | 0x41);
    let message = pulse_latched(&mut ioapic, 4).unwrap();
    for _ in 0..3 {
        assert_eq!(pulse_latched(&mut ioapic, 4), None);
    }
    assert_eq!(eoi(&mut ioapic, 0x41), [message]);
    assert_eq!(eoi(&mut ioapic, 0x41), [], "three pulses are one");
    assert_eq!(pulse_latched(&mut ioapic, 4), Some(message));
}

#[test]
fn a_latched_pulse_is_no_line() {
    let mut ioapic = with_entry(4, LEVEL | 0x41);
    let _ = pulse_latched(&mut ioapic, 4);
    let _ = pulse_latched(&mut ioapic, 4);
    assert!(!ioapic.line(pin(4)));
    assert_eq!(ioapic.save().lines, IoApicPins(0));
    assert_eq!(ioapic.save().latched, IoApicPins(1 << 4));
}

#[test]
fn a_line_of_another_device_and_a_latched_pulse_are_one_message() {
    let mut ioapic = with_entry(4, LEVEL | 0x41);
    let message = up(&mut ioapic, 4).unwrap();
    assert_eq!(pulse_latched(&mut ioapic, 4), None);
    assert_eq!(eoi(&mut ioapic, 0x41), [message]);
    down(&mut ioapic, 4);
    assert_eq!(eoi(&mut ioapic, 0x41), []);
    // The line falls, and the pulse alone is left.
    let _ = up(&mut ioapic, 4);
    let _ = pulse_latched(&mut ioapic, 4);
    down(&mut ioapic, 4);
    assert_eq!(eoi(&mut ioapic, 0x41), [message]);
    assert_eq!(eoi(&mut ioapic, 0x41), []);
}

#[test]
fn a_latched_pulse_waits_for_the_mask_of_a_level() {
    let mut ioapic = with_entry(4, LEVEL | MASKED | 0x41);
    assert_eq!(pulse_latched(&mut ioapic, 4), None);
    let sent = set_entry(&mut ioapic, 4, LEVEL | 0x41);
    assert_eq!(sent.len(), 1);
    assert_eq!(eoi(&mut ioapic, 0x41), []);
}

#[test]
fn an_eoi_under_the_mask_leaves_a_latched_pulse_for_the_unmasking() {
    let mut ioapic = with_entry(4, LEVEL | 0x41);
    let message = pulse_latched(&mut ioapic, 4).unwrap();
    let _ = pulse_latched(&mut ioapic, 4);
    assert_eq!(set_entry(&mut ioapic, 4, LEVEL | MASKED | 0x41), []);
    assert_eq!(eoi(&mut ioapic, 0x41), []);
    assert_eq!(set_entry(&mut ioapic, 4, LEVEL | 0x41), [message]);
    assert_eq!(eoi(&mut ioapic, 0x41), []);
}

/// Linux's EOI on an IOAPIC without EOI register: a masked edge for a moment.
#[test]
fn a_pulse_in_the_middle_of_a_pseudo_eoi_is_kept() {
    let mut ioapic = with_entry(4, LEVEL | 0x41);
    let message = pulse_latched(&mut ioapic, 4).unwrap();
    assert_eq!(set_entry(&mut ioapic, 4, MASKED | 0x41), []);
    assert_eq!(pulse_latched(&mut ioapic, 4), None);
    assert_eq!(set_entry(&mut ioapic, 4, LEVEL | 0x41), [message]);
}

#[test]
fn an_edge_is_pulsed_as_without_the_latch() {
    let mut ioapic = with_entry(4, 0x41);
    assert!(pulse_latched(&mut ioapic, 4).is_some());
    assert!(pulse_latched(&mut ioapic, 4).is_some());
    assert_eq!(ioapic.save().latched, IoApicPins(0));
    // A masked edge is ignored for good, unless it becomes a level.
    let mut ioapic = with_entry(4, MASKED | 0x41);
    assert_eq!(pulse_latched(&mut ioapic, 4), None);
    assert_eq!(set_entry(&mut ioapic, 4, 0x41), []);
    assert!(pulse_latched(&mut ioapic, 4).is_some());
    assert_eq!(ioapic.save().latched, IoApicPins(0), "any message takes it");
}

#[test]
fn a_latched_pulse_is_saved_and_restored() {
    let mut ioapic = with_entry(4, LEVEL | 0x41);
    let message = pulse_latched(&mut ioapic, 4).unwrap();
    let _ = pulse_latched(&mut ioapic, 4);
    let mut restored = IoApic::default();
    restored.restore(&ioapic.save()).unwrap();
    assert_eq!(restored, ioapic);
    assert_eq!(eoi(&mut restored, 0x41), [message]);
    assert_eq!(eoi(&mut restored, 0x41), []);
}

#[test]
fn a_reset_forgets_latched_pulses() {
    let mut ioapic = with_entry(4, LEVEL | MASKED | 0x41);
    assert_eq!(pulse_latched(&mut ioapic, 4), None);
    ioapic.reset();
    assert_eq!(set_entry(&mut ioapic, 4, LEVEL | 0x41), []);
}

//! The 8254 (8254 data sheet), and its gate and output at port 0x61.
//!
//! It counts 1,193,182 times a second; a bound on its time is asserted from below only.

use crate::prelude::*;

use super::MODE;

/// Input 0 of the 8259As.
const VECTOR: u8 = PIC1_BASE;
/// Channel 2's gate, the speaker, and channel 2's output.
const GATE: u8 = 1 << 0;
const OUT: u32 = 1 << 5;
/// Read-back command (8254, figure 5): not count, not status, channels.
const READ_BACK: u8 = 0xc0;
const NO_COUNT: u8 = 1 << 5;
const NO_STATUS: u8 = 1 << 4;
/// Status byte: output, null count.
const STATUS_OUT: u64 = 1 << 7;
const NULL_COUNT: u64 = 1 << 6;

fn channel(number: u8) -> u8 {
    1 << (number + 1)
}

fn with_pic() -> Program {
    let mut p = Program::new(MODE);
    p.end_with(|s| s.outb(PIC1, OCW2_EOI));
    p.init_pics();
    p
}

/// Channel 2 with its gate open.
fn channel_2() -> Program {
    let mut p = Program::new(MODE);
    p.outb(PORT_B, GATE);
    p
}

/// Returns what channel 2 showed before its count of 55 ms can have ended. Tries again if the machine was
/// too slow.
fn in_time<T>(write: impl Fn(&mut Program) -> T) -> (crate::log::Log, T) {
    for _ in 0..20 {
        let mut p = channel_2();
        let begin = p.rdmsr(TSC);
        let handles = write(&mut p);
        let end = p.rdmsr(TSC);
        let log = p.run();
        if log[end] - log[begin] < 50 * crate::host::tsc_khz() {
            return (log, handles);
        }
    }
    panic!("this machine never does in 50 ms what takes 5");
}

/// The least that a count goes down in this many milliseconds.
fn counts_in_ms(ms: u64) -> u64 {
    if clocks_agree() { ms * 1193 } else { 1 }
}

/// The low byte and the high byte.
fn read_count(script: &mut Script, channel: u8) -> [Handle; 2] {
    let port = PIT0 + u16::from(channel);
    [script.inb(port), script.inb(port)]
}

fn latched(script: &mut Script, channel: u8) -> [Handle; 2] {
    script.outb(PIT_CONTROL, channel << 6);
    read_count(script, channel)
}

fn status(script: &mut Script, number: u8) -> Handle {
    script.outb(PIT_CONTROL, READ_BACK | NO_COUNT | channel(number));
    script.inb(PIT0 + u16::from(number))
}

fn count(log: &crate::log::Log, bytes: [Handle; 2]) -> u64 {
    log[bytes[0]] | log[bytes[1]] << 8
}

#[test]
fn mode_2_interrupts_again_and_again() {
    let mut p = with_pic();
    p.pit(0, 2, 1193);
    let came = p.wait(VECTOR, 5);
    let log = p.run();
    assert!(log[came] >= 5);
}

#[test]
fn mode_3_interrupts_again_and_again() {
    let mut p = with_pic();
    p.pit(0, 3, 1193);
    let came = p.wait(VECTOR, 5);
    let log = p.run();
    assert!(log[came] >= 5);
}

#[test]
fn mode_0_interrupts_once() {
    let mut p = with_pic();
    p.pit(0, 0, 1193);
    let came = p.wait(VECTOR, 1);
    p.wait_ms(VECTOR, 2, 10);
    let log = p.run();
    assert_eq!(log[came], 1);
    assert_eq!(log.vectors(), [VECTOR]);
}

#[test]
fn a_new_count_in_mode_0_interrupts_again() {
    let mut p = with_pic();
    p.pit(0, 0, 1193);
    p.wait(VECTOR, 1);
    p.outb(PIT0, 0x00);
    p.outb(PIT0, 0x04);
    let came = p.wait(VECTOR, 2);
    let log = p.run();
    assert_eq!(log[came], 2);
}

#[test]
fn a_control_word_stops_the_interrupts() {
    let mut p = with_pic();
    p.pit(0, 2, 1193);
    p.wait(VECTOR, 2);
    // Mode 0, and no count yet.
    p.outb(PIT_CONTROL, 0x30);
    p.window();
    let before = p.count(VECTOR);
    p.wait_ms(VECTOR, 1000, 200);
    let after = p.count(VECTOR);
    let log = p.run();
    if MODE.deviates(
        Chip::Pit,
        "a control word alone stops nothing: the count that follows does (i8254.c, \
         pit_ioport_write)",
    ) {
        assert!(log[after] > log[before]);
    } else {
        assert_eq!(log[before], log[after]);
    }
}

#[test]
fn it_does_not_interrupt_early() {
    let mut p = with_pic();
    let begin = p.rdmsr(TSC);
    // 50 ms.
    p.pit(0, 0, 59_659);
    p.wait(VECTOR, 1);
    let end = p.rdmsr(TSC);
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR]);
    if clocks_agree() {
        assert!(log[end] - log[begin] >= 49 * crate::host::tsc_khz());
    }
}

#[test]
fn it_ticks_at_ioapic_pin_2_and_not_at_pin_0() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.rte_edge(0, 0x50);
    p.rte_edge(2, 0x52);
    p.pit(0, 2, 1193);
    let at_pin_2 = p.wait(0x52, 5);
    let at_pin_0 = p.count(0x50);
    let log = p.run();
    assert!(log[at_pin_2] >= 5);
    assert_eq!(log[at_pin_0], 0);
}

#[test]
fn ioapic_pin_2_ticks_once_it_is_unmasked() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.rte(2, 0x52 | RTE_MASKED);
    p.pit(0, 2, 1193);
    p.wait_ms(0x52, 1, 5);
    let masked = p.count(0x52);
    p.rte_edge(2, 0x52);
    let unmasked = p.wait(0x52, 3);
    let log = p.run();
    assert_eq!(log[masked], 0);
    assert!(log[unmasked] >= 3);
}

#[test]
fn a_count_is_latched() {
    let (log, (first, second)) = in_time(|p| {
        p.pit(2, 0, 0xffff);
        p.outb(PIT_CONTROL, 2 << 6);
        p.spin_ms(2);
        // A second latch command is ignored while the first has not been read.
        p.outb(PIT_CONTROL, 2 << 6);
        (read_count(p, 2), latched(p, 2))
    });
    let (first, second) = (count(&log, first), count(&log, second));
    assert!(second + counts_in_ms(2) <= first, "{first} {second}");
}

#[test]
fn a_count_goes_down_in_real_time() {
    let (log, (first, second)) = in_time(|p| {
        p.pit(2, 0, 0xffff);
        let first = latched(p, 2);
        p.spin_ms(5);
        (first, latched(p, 2))
    });
    let (first, second) = (count(&log, first), count(&log, second));
    assert!(second + counts_in_ms(5) <= first, "{first} {second}");
}

#[test]
fn the_closed_gate_stops_the_count() {
    let mut p = channel_2();
    p.pit(2, 0, 0xffff);
    p.outb(PORT_B, 0);
    let first = latched(&mut p, 2);
    p.spin_ms(5);
    let second = latched(&mut p, 2);
    let log = p.run();
    let (first, second) = (count(&log, first), count(&log, second));
    let kvm = MODE.deviates(
        Chip::Pit,
        "the count goes on while the gate is closed (i8254.c, pit_set_gate: \"XXX: just disable/\
         enable counting\")",
    );
    assert_eq!(first != second, kvm, "{first} {second}");
}

#[test]
fn the_output_of_channel_2_is_low_until_mode_0_has_counted() {
    let (log, (before, after)) = in_time(|p| {
        p.pit(2, 0, 0xffff);
        let before = p.inb(PORT_B);
        p.pit(2, 0, 100);
        p.spin_ms(2);
        (before, p.inb(PORT_B))
    });
    assert_eq!(log[before] & u64::from(OUT), 0);
    assert_ne!(log[after] & u64::from(OUT), 0);
}

#[test]
fn port_61_keeps_gate_and_speaker() {
    let mut p = Program::new(MODE);
    let reads = [0b00, 0b01, 0b10, 0b11].map(|value| {
        p.outb(PORT_B, value);
        p.inb(PORT_B)
    });
    let log = p.run();
    assert_eq!(reads.map(|read| log[read] & 0b11), [0b00, 0b01, 0b10, 0b11]);
}

#[test]
fn the_status_shows_mode_and_access() {
    let mut p = channel_2();
    for mode in [0, 1, 2, 3, 4, 5] {
        p.pit(2, mode, 0x8000);
    }
    let last = status(&mut p, 2);
    p.outb(PIT_CONTROL, 2 << 6 | 0x10 | 2 << 1);
    let low_byte_only = status(&mut p, 2);
    let log = p.run();
    assert_eq!(log[last] & 0x3f, 0x30 | 5 << 1);
    assert_eq!(log[low_byte_only] & 0x3f, 0x10 | 2 << 1);
}

#[test]
fn the_status_shows_the_output() {
    let (log, (low, high)) = in_time(|p| {
        p.pit(2, 0, 0xffff);
        let low = status(p, 2);
        p.pit(2, 0, 100);
        p.spin_ms(2);
        (low, status(p, 2))
    });
    assert_eq!(log[low] & STATUS_OUT, 0);
    assert_ne!(log[high] & STATUS_OUT, 0);
}

#[test]
fn the_status_shows_a_count_that_is_not_yet_loaded() {
    let mut p = channel_2();
    p.outb(PIT_CONTROL, 0xb0);
    let before = status(&mut p, 2);
    p.outb(PIT2, 0x00);
    p.outb(PIT2, 0x80);
    p.spin_ms(1);
    let after = status(&mut p, 2);
    let log = p.run();
    let kvm = MODE.deviates(
        Chip::Pit,
        "null count is always 0 (i8254.c, pit_latch_status)",
    );
    assert_eq!(log[before] & NULL_COUNT == 0, kvm);
    assert_eq!(log[after] & NULL_COUNT, 0);
}

#[test]
fn read_back_latches_status_before_count() {
    let mut p = channel_2();
    p.pit(2, 2, 0x4000);
    p.outb(PIT_CONTROL, READ_BACK | channel(2));
    let first = p.inb(PIT2);
    let bytes = read_count(&mut p, 2);
    let log = p.run();
    assert_eq!(log[first] & 0x3f, 0x30 | 2 << 1);
    assert!((1..=0x4000).contains(&count(&log, bytes)));
}

#[test]
fn read_back_of_no_status_latches_the_count() {
    let (log, (first, second)) = in_time(|p| {
        p.pit(2, 0, 0xffff);
        p.outb(PIT_CONTROL, READ_BACK | NO_STATUS | channel(2));
        p.spin_ms(2);
        (read_count(p, 2), latched(p, 2))
    });
    let (first, second) = (count(&log, first), count(&log, second));
    assert!(second + counts_in_ms(2) <= first, "{first} {second}");
}

#[test]
fn the_low_byte_alone_can_be_written_and_read() {
    let mut p = channel_2();
    p.outb(PIT_CONTROL, 2 << 6 | 0x10);
    p.outb(PIT2, 0xff);
    p.outb(PORT_B, 0);
    p.outb(PIT_CONTROL, READ_BACK | NO_STATUS | channel(2));
    let low = p.inb(PIT2);
    let log = p.run();
    assert!(log[low] <= 0xff);
}

#[test]
fn a_count_of_0_is_65536() {
    let (log, (early, bytes)) = in_time(|p| {
        p.pit(2, 0, 0);
        p.spin_ms(1);
        (p.inb(PORT_B), latched(p, 2))
    });
    assert_eq!(log[early] & u64::from(OUT), 0, "it has counted already");
    let count = count(&log, bytes);
    assert!(
        count > 0 && count <= 0x1_0000 - counts_in_ms(1),
        "{count:#x}"
    );
}

#[test]
fn mode_3_counts_down_by_two() {
    let mut p = channel_2();
    p.pit(2, 3, 0x8000);
    let bytes = latched(&mut p, 2);
    let log = p.run();
    assert_eq!(count(&log, bytes) & 1, 0);
}

#[test]
fn the_control_port_cannot_be_read() {
    let mut p = channel_2();
    p.pit(2, 2, 0x4000);
    p.inb(PIT_CONTROL);
    let after = status(&mut p, 2);
    let log = p.run();
    assert_eq!(log[after] & 0x3f, 0x30 | 2 << 1);
}

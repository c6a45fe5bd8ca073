#![expect(
    clippy::cast_possible_truncation,
    reason = "registers are cut into halves and bytes"
)]

mod model;

use alloc::string::ToString;
use alloc::vec::Vec;

use super::*;
use crate::GuestTime;

/// The first nanosecond of a tick.
fn at(tick: u64) -> GuestTime {
    PitTicks(tick).time().unwrap()
}

/// A channel programmed at tick 0 with its low byte only.
fn programmed(channel: u16, mode: u8, count: u8) -> Pit {
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[(channel as u8) << 6 | 0x10 | mode << 1]);
    pit.write(at(0), 0x40 + channel, &[count]);
    pit
}

fn inp(pit: &mut Pit, tick: u64, port: u16) -> u8 {
    let mut data = [0x5a];
    pit.read(at(tick), port, &mut data);
    data[0]
}

fn gate(pit: &mut Pit, tick: u64, up: bool) {
    pit.write(at(tick), 0x61, &[u8::from(up)]);
}

fn out2(pit: &mut Pit, tick: u64) -> bool {
    inp(pit, tick, 0x61) & 0x20 != 0
}

/// OUT of channel 0, or of channel 2, over some ticks.
fn wave0(pit: &mut Pit, ticks: core::ops::Range<u64>) -> Vec<u8> {
    ticks.map(|tick| pit.irq0(at(tick)).level.into()).collect()
}

fn wave2(pit: &mut Pit, ticks: core::ops::Range<u64>) -> Vec<u8> {
    ticks.map(|tick| out2(pit, tick).into()).collect()
}

/// The status of channel 0 by the read-back command.
fn status(pit: &mut Pit, tick: u64) -> u8 {
    pit.write(at(tick), 0x43, &[0xe2]);
    inp(pit, tick, 0x40)
}

// Mode 0.

#[test]
fn mode_0_rises_n_plus_1_ticks_after_the_write_and_stays() {
    let mut pit = programmed(0, 0, 3);
    assert_eq!(wave0(&mut pit, 0..8), [0, 0, 0, 0, 1, 1, 1, 1]);
    let rises = programmed(0, 0, 3).irq0(at(10_000_000)).rises;
    assert_eq!(rises, 1);
}

#[test]
fn mode_0_counts_on_through_zero() {
    let mut pit = programmed(0, 0, 3);
    let counts: Vec<u8> = (1..7).map(|tick| inp(&mut pit, tick, 0x40)).collect();
    assert_eq!(counts, [3, 2, 1, 0, 0xff, 0xfe]);
}

#[test]
fn mode_0_stops_while_the_gate_is_low() {
    let mut pit = programmed(2, 0, 3);
    // Loaded all the same.
    assert_eq!(inp(&mut pit, 1, 0x42), 3);
    assert_eq!(inp(&mut pit, 9, 0x42), 3);
    gate(&mut pit, 10, true);
    assert_eq!(wave2(&mut pit, 11..15), [0, 0, 1, 1]);
}

#[test]
fn mode_0_a_new_count_lowers_the_output_and_starts_again() {
    let mut pit = programmed(0, 0, 3);
    assert!(pit.irq0(at(6)).level);
    pit.write(at(6), 0x40, &[2]);
    assert!(!pit.irq0(at(6)).level);
    assert_eq!(wave0(&mut pit, 7..11), [0, 0, 1, 1]);
}

#[test]
fn mode_0_the_first_byte_of_two_stops_counting() {
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[0x30]);
    pit.write(at(0), 0x40, &[10]);
    pit.write(at(0), 0x40, &[0]);
    pit.write(at(5), 0x40, &[4]);
    assert_eq!(pit.next_deadline(), None);
    assert_eq!(pit.irq0(at(50)), Irq0::default());
    pit.write(at(50), 0x40, &[0]);
    assert_eq!(pit.next_deadline(), Some(at(55)));
}

// Mode 1.

#[test]
fn mode_1_waits_for_a_trigger_and_may_be_triggered_again() {
    let mut pit = programmed(2, 1, 3);
    assert_eq!(wave2(&mut pit, 1..4), [1, 1, 1]);
    gate(&mut pit, 4, true);
    assert_eq!(wave2(&mut pit, 4..10), [1, 0, 0, 0, 1, 1]);
    gate(&mut pit, 10, false);
    gate(&mut pit, 10, true);
    assert_eq!(wave2(&mut pit, 11..13), [0, 0]);
    gate(&mut pit, 12, false);
    gate(&mut pit, 12, true);
    assert_eq!(wave2(&mut pit, 13..17), [0, 0, 0, 1]);
}

#[test]
fn mode_1_a_new_count_waits_for_the_next_trigger() {
    let mut pit = programmed(2, 1, 3);
    gate(&mut pit, 0, true);
    pit.write(at(2), 0x42, &[9]);
    assert_eq!(wave2(&mut pit, 3..6), [0, 1, 1]);
}

#[test]
fn mode_1_on_channel_0_never_interrupts_since_its_gate_is_tied_high() {
    let pit = programmed(0, 1, 3);
    assert_eq!(pit.next_deadline(), None);
}

// Mode 2.

#[test]
fn mode_2_is_low_for_the_last_tick_of_each_period() {
    let mut pit = programmed(0, 2, 3);
    assert_eq!(wave0(&mut pit, 0..11), [1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1]);
}

#[test]
fn mode_2_a_new_count_is_loaded_at_the_end_of_the_period() {
    let mut pit = programmed(0, 2, 4);
    pit.write(at(2), 0x40, &[2]);
    assert_eq!(wave0(&mut pit, 2..10), [1, 1, 0, 1, 0, 1, 0, 1]);
}

#[test]
fn mode_2_a_low_gate_sets_the_output_high_at_once_and_its_rise_reloads() {
    let mut pit = programmed(2, 2, 3);
    gate(&mut pit, 0, true);
    assert!(!out2(&mut pit, 3));
    gate(&mut pit, 3, false);
    assert!(out2(&mut pit, 3));
    assert_eq!(wave2(&mut pit, 4..8), [1, 1, 1, 1]);
    gate(&mut pit, 8, true);
    assert_eq!(wave2(&mut pit, 8..13), [1, 1, 1, 0, 1]);
}

#[test]
fn mode_2_with_the_illegal_count_1_stays_high_until_another_is_written() {
    let mut pit = programmed(0, 2, 1);
    assert_eq!(pit.next_deadline(), None);
    assert_eq!(pit.irq0(at(1000)).rises, 0);
    pit.write(at(1000), 0x40, &[5]);
    assert_eq!(pit.next_deadline(), Some(at(1006)));
    assert_eq!(pit.irq0(at(1006)).rises, 1);
}

// Mode 3.

#[test]
fn mode_3_even_counts_are_high_and_low_for_half_each() {
    let mut pit = programmed(0, 3, 4);
    assert_eq!(wave0(&mut pit, 1..10), [1, 1, 0, 0, 1, 1, 0, 0, 1]);
    let counts: Vec<u8> = (13..17).map(|tick| inp(&mut pit, tick, 0x40)).collect();
    assert_eq!(counts, [4, 2, 4, 2]);
}

#[test]
fn mode_3_odd_counts_are_high_for_one_tick_more() {
    let mut pit = programmed(0, 3, 5);
    assert_eq!(wave0(&mut pit, 1..12), [1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1]);
    let mut pit = programmed(0, 3, 5);
    let counts: Vec<u8> = (1..8).map(|tick| inp(&mut pit, tick, 0x40)).collect();
    assert_eq!(counts, [4, 2, 0, 4, 2, 4, 2]);
}

#[test]
fn mode_3_a_new_count_is_loaded_at_the_end_of_the_half_cycle() {
    let mut pit = programmed(0, 3, 8);
    pit.write(at(2), 0x40, &[2]);
    assert_eq!(wave0(&mut pit, 2..9), [1, 1, 1, 0, 1, 0, 1]);
}

// Modes 4 and 5.

#[test]
fn mode_4_is_low_for_one_tick_n_plus_1_ticks_after_the_write() {
    let mut pit = programmed(0, 4, 3);
    assert_eq!(wave0(&mut pit, 0..8), [1, 1, 1, 1, 0, 1, 1, 1]);
    let mut pit = programmed(0, 4, 3);
    assert_eq!(pit.next_deadline(), Some(at(5)));
    assert_eq!(pit.irq0(at(1_000_000)).rises, 1);
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn mode_4_a_new_count_starts_again_at_once() {
    let mut pit = programmed(0, 4, 9);
    pit.write(at(5), 0x40, &[2]);
    assert_eq!(wave0(&mut pit, 6..10), [1, 1, 0, 1]);
}

#[test]
fn mode_5_strobes_after_a_trigger_whatever_the_gate_does_then() {
    let mut pit = programmed(2, 5, 3);
    assert_eq!(wave2(&mut pit, 1..8), [1; 7]);
    gate(&mut pit, 8, true);
    gate(&mut pit, 9, false);
    assert_eq!(wave2(&mut pit, 9..15), [1, 1, 1, 0, 1, 1]);
}

#[test]
fn modes_6_and_7_are_2_and_3() {
    let mut pit = programmed(0, 6, 3);
    assert_eq!(wave0(&mut pit, 1..5), [1, 1, 0, 1]);
    let mut pit = programmed(0, 7, 4);
    assert_eq!(wave0(&mut pit, 1..6), [1, 1, 0, 0, 1]);
}

// Counts.

#[test]
fn count_0_is_65536_and_10000_in_bcd() {
    for (bcd, count) in [(0, 65_536), (1, 10_000)] {
        let mut pit = Pit::new();
        pit.write(at(0), 0x43, &[0x34 | bcd]);
        pit.write(at(0), 0x40, &[0]);
        pit.write(at(0), 0x40, &[0]);
        assert_eq!(pit.next_deadline(), Some(at(1 + count)));
        assert_eq!(pit.irq0(at(1 + 10 * count)).rises, 10);
    }
}

#[test]
fn bcd_counts_decimally() {
    // KVM stores the bit and counts in binary.
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[0x31]);
    pit.write(at(0), 0x40, &[0x00]);
    pit.write(at(0), 0x40, &[0x12]);
    assert_eq!(pit.next_deadline(), Some(at(1201)));
    assert_eq!(inp(&mut pit, 2, 0x40), 0x99);
    assert_eq!(inp(&mut pit, 2, 0x40), 0x11);
    assert_eq!(inp(&mut pit, 1202, 0x40), 0x99);
    assert_eq!(inp(&mut pit, 1202, 0x40), 0x99);
}

#[test]
fn high_byte_access_writes_and_reads_the_high_byte() {
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[0x20]);
    pit.write(at(0), 0x40, &[0x12]);
    assert_eq!(inp(&mut pit, 1, 0x40), 0x12);
    assert_eq!(inp(&mut pit, 2, 0x40), 0x11);
    assert_eq!(pit.next_deadline(), Some(at(0x1201)));
}

#[test]
fn two_byte_reads_alternate_and_a_control_word_starts_with_the_low_byte() {
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[0x30]);
    pit.write(at(0), 0x40, &[0x34]);
    pit.write(at(0), 0x40, &[0x12]);
    assert_eq!(inp(&mut pit, 1, 0x40), 0x34);
    assert_eq!(inp(&mut pit, 1, 0x40), 0x12);
    assert_eq!(inp(&mut pit, 1, 0x40), 0x34);
    pit.write(at(1), 0x43, &[0x30]);
    assert_eq!(inp(&mut pit, 1, 0x40), 0x34);
}

#[test]
fn channels_are_programmed_on_their_own() {
    let mut pit = Pit::new();
    for (channel, count) in [(0u8, 0x11), (1, 0x22), (2, 0x33)] {
        pit.write(at(0), 0x43, &[channel << 6 | 0x10]);
        pit.write(at(0), 0x40 + u16::from(channel), &[count]);
    }
    let counts: Vec<u8> = (0x40..0x43).map(|port| inp(&mut pit, 1, port)).collect();
    assert_eq!(counts, [0x11, 0x22, 0x33]);
}

// Latches.

#[test]
fn a_latched_count_is_held_until_it_is_read_whole() {
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[0x30]);
    pit.write(at(0), 0x40, &[0x00]);
    pit.write(at(0), 0x40, &[0x10]);
    pit.write(at(2), 0x43, &[0x00]);
    pit.write(at(9), 0x43, &[0x00]);
    assert_eq!(inp(&mut pit, 20, 0x40), 0xff);
    assert_eq!(inp(&mut pit, 40, 0x40), 0x0f);
    assert_eq!(inp(&mut pit, 41, 0x40), 0xd8);
}

#[test]
fn a_latched_count_of_one_byte_is_gone_after_one_read() {
    let mut pit = programmed(0, 0, 0x80);
    pit.write(at(1), 0x43, &[0x00]);
    assert_eq!(inp(&mut pit, 9, 0x40), 0x80);
    assert_eq!(inp(&mut pit, 9, 0x40), 0x78);
}

#[test]
fn a_control_word_drops_what_was_latched() {
    let mut pit = programmed(0, 0, 0x80);
    pit.write(at(1), 0x43, &[0xc2]);
    pit.write(at(5), 0x43, &[0x10]);
    assert_eq!(
        inp(&mut pit, 9, 0x40),
        0x7c,
        "where it was when it was stopped"
    );
}

#[test]
fn read_back_latches_several_counts_at_once() {
    let mut pit = Pit::new();
    for channel in 0u8..2 {
        pit.write(at(0), 0x43, &[channel << 6 | 0x10]);
        pit.write(at(0), 0x40 + u16::from(channel), &[0x40]);
    }
    pit.write(at(5), 0x43, &[0xd6]);
    assert_eq!(inp(&mut pit, 30, 0x40), 0x3c);
    assert_eq!(inp(&mut pit, 40, 0x41), 0x3c);
}

#[test]
fn status_comes_before_the_count_that_was_latched_with_it() {
    let mut pit = programmed(0, 0, 0x40);
    pit.write(at(5), 0x43, &[0xc2]);
    assert_eq!(inp(&mut pit, 30, 0x40), 0x10);
    assert_eq!(inp(&mut pit, 30, 0x40), 0x3c);
}

#[test]
fn a_second_status_latch_is_ignored_until_the_first_is_read() {
    let mut pit = programmed(0, 0, 5);
    pit.write(at(1), 0x43, &[0xe2]);
    pit.write(at(9), 0x43, &[0xe2]);
    assert_eq!(inp(&mut pit, 9, 0x40), 0x10);
    assert_eq!(status(&mut pit, 9), 0x90);
}

#[test]
fn status_shows_the_control_word_as_written() {
    for control in [0x10, 0x1c, 0x1e, 0x35, 0x2b, 0x34] {
        let mut pit = Pit::new();
        pit.write(at(0), 0x43, &[control]);
        assert_eq!(status(&mut pit, 0) & 0x3f, control);
    }
}

#[test]
fn null_count_is_set_from_the_write_to_the_load() {
    // KVM never sets it.
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[0x14]);
    assert_eq!(status(&mut pit, 5) & 0x40, 0x40, "by the control word");
    pit.write(at(5), 0x40, &[10]);
    assert_eq!(status(&mut pit, 5) & 0x40, 0x40);
    assert_eq!(status(&mut pit, 6) & 0x40, 0x00);
    pit.write(at(8), 0x40, &[20]);
    assert_eq!(status(&mut pit, 15) & 0x40, 0x40, "until the period ends");
    assert_eq!(status(&mut pit, 16) & 0x40, 0x00);
}

#[test]
fn null_count_is_set_by_the_second_byte_only() {
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[0x34]);
    pit.write(at(0), 0x40, &[10]);
    pit.write(at(0), 0x40, &[0]);
    assert_eq!(status(&mut pit, 2) & 0x40, 0);
    pit.write(at(2), 0x40, &[20]);
    assert_eq!(status(&mut pit, 2) & 0x40, 0);
    pit.write(at(2), 0x40, &[0]);
    assert_eq!(status(&mut pit, 2) & 0x40, 0x40);
}

#[test]
fn the_control_port_reads_0xff() {
    assert_eq!(inp(&mut Pit::new(), 0, 0x43), 0xff);
}

// Port 0x61.

#[test]
fn port_61_gates_channel_2_and_shows_its_output() {
    let mut pit = programmed(2, 0, 3);
    assert_eq!(inp(&mut pit, 10, 0x61) & 0x21, 0x00);
    gate(&mut pit, 10, true);
    assert_eq!(inp(&mut pit, 12, 0x61) & 0x21, 0x01);
    assert_eq!(inp(&mut pit, 13, 0x61) & 0x21, 0x21);
}

#[test]
fn port_61_keeps_bits_3_to_1_and_ignores_the_status_bits() {
    let mut pit = Pit::new();
    pit.write(at(0), 0x61, &[0xff]);
    assert_eq!(inp(&mut pit, 0, 0x61), 0x2f);
    pit.write(at(0), 0x61, &[0x04]);
    assert_eq!(inp(&mut pit, 0, 0x61), 0x24);
}

#[test]
fn the_refresh_bit_toggles_every_18_ticks() {
    let mut pit = Pit::new();
    let toggle: Vec<bool> = [0, 17, 18, 35, 36]
        .map(|tick| inp(&mut pit, tick, 0x61) & 0x10 != 0)
        .to_vec();
    assert_eq!(toggle, [false, false, true, true, false]);
}

#[test]
fn the_speaker_needs_its_data_bit() {
    let mut pit = programmed(2, 3, 4);
    gate(&mut pit, 0, true);
    assert!(!pit.speaker(at(1)));
    pit.write(at(1), 0x61, &[0x03]);
    assert!(pit.speaker(at(2)));
    assert!(!pit.speaker(at(3)));
}

// Time.

#[test]
fn missed_rises_are_counted_and_taken_once() {
    let mut pit = programmed(0, 2, 100);
    assert_eq!(pit.irq0(at(1050)).rises, 10);
    assert_eq!(pit.irq0(at(1050)).rises, 0);
    assert_eq!(pit.irq0(at(1101)).rises, 1);
}

#[test]
fn an_hour_at_100_hz_has_its_rises_to_the_one() {
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[0x34]);
    // 11932, as PCs take for 100 Hz.
    pit.write(at(0), 0x40, &[0x9c]);
    pit.write(at(0), 0x40, &[0x2e]);
    let hour = GuestTime::from_ns(3_600_000_000_000);
    assert_eq!(pit.irq0(hour).rises, (4_295_454_545 - 1) / 11_932);
}

#[test]
fn time_that_goes_backwards_is_time_that_stands_still() {
    let mut pit = programmed(0, 2, 100);
    let _ = pit.irq0(at(50));
    let before = pit;
    assert_eq!(pit.irq0(at(10)).rises, 0);
    assert_eq!(pit, before);
}

#[test]
fn the_end_of_time_is_reached_in_one_step() {
    for mode in 0..6 {
        for count in [0, 1, 2, 3] {
            let mut pit = programmed(0, mode, count);
            let _ = pit.irq0(GuestTime::MAX);
            let _ = pit.next_deadline();
            assert_eq!(Pit::new().restore(&pit.save()), Ok(()));
        }
    }
}

#[test]
fn a_deadline_is_the_first_moment_of_the_rise() {
    let mut pit = programmed(0, 2, 100);
    let deadline = pit.next_deadline().unwrap();
    let before = GuestTime::from_ns(deadline.as_ns() - 1);
    assert_eq!(pit.irq0(before).rises, 0);
    assert_eq!(pit.irq0(deadline).rises, 1);
    assert_eq!(pit.next_deadline(), Some(at(201)));
}

#[test]
fn a_rise_that_no_call_asked_for_is_a_deadline_in_the_past() {
    let mut pit = programmed(0, 2, 100);
    let _ = inp(&mut pit, 150, 0x40);
    assert!(pit.next_deadline().unwrap() <= at(150));
    assert_eq!(pit.irq0(at(150)).rises, 1);
}

#[test]
fn a_control_word_that_raises_the_output_is_a_rise() {
    let mut pit = programmed(0, 0, 100);
    let _ = pit.irq0(at(5));
    pit.write(at(5), 0x43, &[0x14]);
    assert_eq!(
        pit.irq0(at(5)),
        Irq0 {
            rises: 1,
            level: true
        }
    );
}

#[test]
fn at_power_on_nothing_counts() {
    let mut pit = Pit::new();
    assert_eq!(pit.next_deadline(), None);
    assert_eq!(
        pit.irq0(at(1_000_000)),
        Irq0 {
            rises: 0,
            level: true
        }
    );
}

#[test]
fn an_armed_timer_is_restored_exactly() {
    let mut pit = programmed(0, 2, 100);
    let _ = pit.irq0(at(142));
    let mut restored = Pit::new();
    restored.restore(&pit.save()).unwrap();
    assert_eq!(restored.next_deadline(), Some(at(201)));
    assert_eq!(inp(&mut restored, 142, 0x40), inp(&mut pit, 142, 0x40));
}

// Accesses and state.

#[test]
fn wide_accesses_are_bytes_at_ascending_ports() {
    let mut pit = Pit::new();
    pit.write(at(0), 0x43, &[0x10]);
    pit.write(at(0), 0x43, &[0x50]);
    pit.write(at(0), 0x40, &[0x11, 0x22]);
    let mut data = [0; 8];
    pit.read(at(1), 0x3f, &mut data);
    assert_eq!(data[..3], [0xff, 0x11, 0x22]);
    assert_eq!(data[4..], [0xff; 4]);
}

#[test]
fn no_access_of_any_size_at_any_port_panics() {
    for port in (0..0x100).chain(0xfff0..=0xffff) {
        for size in [0, 1, 2, 3, 4, 8] {
            for value in 0..=u8::MAX {
                let mut pit = programmed(0, 2, 7);
                pit.write(at(3), port, &[value; 8][..size]);
                pit.read(at(9), port, &mut [0; 8][..size]);
            }
        }
    }
}

#[test]
fn a_binary_count_left_behind_by_a_bcd_period_is_a_valid_state() {
    let mut pit = Pit::new();
    pit.write(at(0), 0x41, &[0]);
    pit.write(at(0), 0x41, &[40]);
    // BCD, mode 2: the counting element still holds 10240.
    pit.write(at(1), 0x43, &[0x55]);
    pit.write(at(1), 0x41, &[0]);
    let _ = pit.irq0(at(2));
    assert_eq!(Pit::new().restore(&pit.save()), Ok(()));
}

#[test]
fn restore_refuses_what_a_counter_cannot_be_and_changes_nothing() {
    type Break = fn(&mut PitState);
    let cases: [(&str, Break); 14] = [
        ("version", |state| state.version = 9),
        ("at", |state| state.at = PitTicks(u64::MAX)),
        ("channels[0].control", |state| {
            state.channels[0].control = 0x06
        }),
        ("channels[1].control", |state| {
            state.channels[1].control = 0x76
        }),
        ("channels[1].gate", |state| state.channels[1].gate = false),
        ("channels[2].reload", |state| state.channels[2].reload = 0),
        ("channels[0].reload", |state| {
            state.channels[0].reload = 65_537
        }),
        ("channels[0].running", |state| {
            state.channels[0].armed = false
        }),
        ("channels[0].cycle", |state| state.channels[0].cycle = 0),
        ("channels[0].phase", |state| state.channels[0].phase = 100),
        ("channels[0].remaining", |state| {
            state.channels[0].remaining = 1
        }),
        ("channels[0].terminal", |state| {
            state.channels[0].terminal = true
        }),
        ("channels[0].low_byte", |state| {
            state.channels[0].low_byte = Some(1)
        }),
        ("port_61", |state| state.port_61 = 0x10),
    ];
    for (field, spoil) in cases {
        let mut running = programmed(0, 2, 100);
        let _ = running.irq0(at(30));
        let mut state = running.save();
        let mut pit = programmed(2, 0, 5);
        let before = pit;
        assert_eq!(Pit::new().restore(&state), Ok(()));
        spoil(&mut state);
        let error = pit.restore(&state).unwrap_err();
        assert!(error.to_string().starts_with(field), "{field}: {error}");
        assert_eq!(pit, before);
    }
}

#[cfg(feature = "serde")]
#[test]
fn the_state_survives_serde_and_unknown_fields_do_not() {
    let pit = programmed(0, 2, 100);
    let json = serde_json::to_string(&pit.save()).unwrap();
    assert_eq!(serde_json::from_str::<PitState>(&json).unwrap(), pit.save());
    let odd = json.replacen('{', "{\"more\":1,", 1);
    assert!(serde_json::from_str::<PitState>(&odd).is_err());
}

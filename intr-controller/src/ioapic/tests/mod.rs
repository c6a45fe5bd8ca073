#![expect(
    clippy::cast_possible_truncation,
    reason = "registers are cut into halves and bytes"
)]

mod model;
mod pulses;
mod state;

use alloc::vec::Vec;

use super::*;
use crate::{DeliveryMode, DestinationFormat, DestinationMode, InterruptMessage, TriggerMode};

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;

fn pin(number: u8) -> IoApicPin {
    IoApicPin::new(number).unwrap()
}

fn select(ioapic: &mut IoApic, index: u8) {
    let _ = ioapic.write(0x00, &[index, 0, 0, 0], |_| {
        panic!("a selection sends nothing")
    });
}

fn read(ioapic: &mut IoApic, index: u8) -> u32 {
    select(ioapic, index);
    let mut data = [0x5a; 4];
    ioapic.read(0x10, &mut data);
    u32::from_le_bytes(data)
}

fn write(ioapic: &mut IoApic, index: u8, value: u32) -> Vec<InterruptMessage> {
    select(ioapic, index);
    let mut sent = Vec::new();
    let _ = ioapic.write(0x10, &value.to_le_bytes(), |message| sent.push(message));
    sent
}

fn entry(ioapic: &mut IoApic, number: u8) -> u64 {
    let index = 0x10 + 2 * number;
    u64::from(read(ioapic, index + 1)) << 32 | u64::from(read(ioapic, index))
}

/// The upper half first, as operating systems do.
fn set_entry(ioapic: &mut IoApic, number: u8, bits: u64) -> Vec<InterruptMessage> {
    let index = 0x10 + 2 * number;
    let mut sent = write(ioapic, index + 1, (bits >> 32) as u32);
    sent.extend(write(ioapic, index, bits as u32));
    sent
}

fn eoi(ioapic: &mut IoApic, vector: u8) -> Vec<InterruptMessage> {
    let mut sent = Vec::new();
    let _ = ioapic.eoi(vector, |message| sent.push(message));
    sent
}

fn up(ioapic: &mut IoApic, number: u8) -> Option<InterruptMessage> {
    ioapic.set_line(pin(number), true)
}

fn down(ioapic: &mut IoApic, number: u8) {
    assert_eq!(ioapic.set_line(pin(number), false), None);
}

fn with_entry(number: u8, bits: u64) -> IoApic {
    let mut ioapic = IoApic::default();
    assert_eq!(set_entry(&mut ioapic, number, bits), []);
    ioapic
}

// Registers.

#[test]
fn at_reset_every_entry_is_masked_and_all_else_is_zero() {
    let mut ioapic = IoApic::default();
    for number in 0..24 {
        assert_eq!(entry(&mut ioapic, number), MASKED);
    }
    assert_eq!(read(&mut ioapic, 0), 0);
}

#[test]
fn the_version_says_24_pins_and_whether_there_is_an_eoi_register() {
    let format = DestinationFormat::Xapic;
    for (model, version) in [
        (IoApicVersion::V11, 0x0017_0011),
        (IoApicVersion::V20, 0x0017_0020),
    ] {
        let mut ioapic = IoApic::new(model, format);
        assert_eq!(read(&mut ioapic, 1), version);
        assert_eq!(write(&mut ioapic, 1, 0xffff_ffff), []);
        assert_eq!(read(&mut ioapic, 1), version);
    }
}

#[test]
fn the_id_has_four_bits_and_the_arbitration_id_follows_it() {
    let mut ioapic = IoApic::default();
    for (written, id) in [(0xff00_0000, 0x0f00_0000), (0x05ff_ffff, 0x0500_0000)] {
        write(&mut ioapic, 0, written);
        assert_eq!(read(&mut ioapic, 0), id);
        assert_eq!(read(&mut ioapic, 2), id);
    }
    write(&mut ioapic, 2, 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 2), 0x0500_0000);
}

#[test]
fn registers_that_do_not_exist_read_all_ones_and_ignore_writes() {
    let mut ioapic = IoApic::default();
    for index in (3..0x10).chain(0x40..=0xff) {
        let before = ioapic.save();
        assert_eq!(write(&mut ioapic, index, 0), []);
        assert_eq!(read(&mut ioapic, index), 0xffff_ffff, "{index:#x}");
        assert_eq!(ioapic.save().entries, before.entries);
    }
}

/// Cloud Hypervisor's pins were off by one.
#[test]
fn entry_n_is_at_index_16_plus_2_n_and_belongs_to_pin_n() {
    let mut ioapic = IoApic::default();
    for number in 0..24 {
        set_entry(&mut ioapic, number, 0x30 + u64::from(number));
    }
    for number in 0..24 {
        assert_eq!(entry(&mut ioapic, number), 0x30 + u64::from(number));
        assert_eq!(up(&mut ioapic, number).unwrap().vector, 0x30 + number);
    }
}

#[test]
fn the_selected_index_is_read_back() {
    let mut ioapic = IoApic::default();
    select(&mut ioapic, 0x31);
    let mut data = [0xff; 4];
    ioapic.read(0, &mut data);
    assert_eq!(data, [0x31, 0, 0, 0]);
}

#[test]
fn delivery_status_and_remote_irr_and_reserved_bits_are_read_only() {
    let mut ioapic = IoApic::default();
    set_entry(&mut ioapic, 3, u64::MAX);
    assert_eq!(entry(&mut ioapic, 3), 0xff00_0000_0001_afff);
    set_entry(&mut ioapic, 3, 0);
    assert_eq!(entry(&mut ioapic, 3), 0);
}

#[test]
fn with_extended_ids_bits_55_to_49_can_be_written_and_48_cannot() {
    let mut ioapic = IoApic::new(IoApicVersion::V20, DestinationFormat::Extended);
    set_entry(&mut ioapic, 3, u64::MAX);
    assert_eq!(entry(&mut ioapic, 3), 0xfffe_0000_0001_afff);
}

#[test]
fn remote_irr_survives_a_write_that_keeps_the_level() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let _ = up(&mut ioapic, 5);
    assert_eq!(set_entry(&mut ioapic, 5, LEVEL | MASKED | 0x41), []);
    assert_eq!(entry(&mut ioapic, 5), LEVEL | MASKED | REMOTE_IRR | 0x41);
}

// Edges.

#[test]
fn an_edge_is_sent_once_for_each_rise() {
    let mut ioapic = with_entry(4, 0x0300_0000_0000_0031);
    let message = InterruptMessage {
        destination: 3,
        destination_mode: DestinationMode::Physical,
        delivery_mode: DeliveryMode::Fixed,
        trigger_mode: TriggerMode::Edge,
        level: true,
        vector: 0x31,
    };
    assert_eq!(up(&mut ioapic, 4), Some(message));
    assert_eq!(up(&mut ioapic, 4), None);
    down(&mut ioapic, 4);
    assert_eq!(up(&mut ioapic, 4), Some(message));
    assert_eq!(entry(&mut ioapic, 4) & REMOTE_IRR, 0);
}

#[test]
fn an_edge_on_a_masked_pin_is_ignored_for_good() {
    let mut ioapic = with_entry(4, MASKED | 0x31);
    assert_eq!(up(&mut ioapic, 4), None);
    assert_eq!(set_entry(&mut ioapic, 4, 0x31), []);
    assert_eq!(up(&mut ioapic, 4), None);
    down(&mut ioapic, 4);
    assert!(up(&mut ioapic, 4).is_some());
}

#[test]
fn rewriting_an_edge_entry_with_its_line_up_sends_nothing() {
    let mut ioapic = with_entry(4, 0x31);
    let _ = up(&mut ioapic, 4);
    assert_eq!(set_entry(&mut ioapic, 4, 0x32), []);
}

#[test]
fn an_eoi_does_not_send_an_edge_again() {
    let mut ioapic = with_entry(4, 0x31);
    let _ = up(&mut ioapic, 4);
    assert_eq!(eoi(&mut ioapic, 0x31), []);
}

// Levels.

#[test]
fn a_level_is_sent_once_and_sets_remote_irr() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let message = up(&mut ioapic, 5).unwrap();
    assert_eq!(message.trigger_mode, TriggerMode::Level);
    assert_eq!(entry(&mut ioapic, 5), LEVEL | REMOTE_IRR | 0x41);
    down(&mut ioapic, 5);
    assert_eq!(up(&mut ioapic, 5), None, "until its EOI");
}

#[test]
fn an_eoi_clears_remote_irr_and_a_line_that_fell_is_not_sent_again() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let _ = up(&mut ioapic, 5);
    down(&mut ioapic, 5);
    assert_eq!(eoi(&mut ioapic, 0x41), []);
    assert_eq!(entry(&mut ioapic, 5), LEVEL | 0x41);
    assert!(up(&mut ioapic, 5).is_some());
}

#[test]
fn an_eoi_with_the_line_still_up_sends_again() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let first = up(&mut ioapic, 5).unwrap();
    assert_eq!(eoi(&mut ioapic, 0x41), [first]);
    assert_eq!(entry(&mut ioapic, 5), LEVEL | REMOTE_IRR | 0x41);
}

#[test]
fn an_eoi_of_another_vector_ends_nothing() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let _ = up(&mut ioapic, 5);
    let before = ioapic;
    for vector in (0..=u8::MAX).filter(|vector| *vector != 0x41) {
        assert_eq!(eoi(&mut ioapic, vector), []);
    }
    assert_eq!(ioapic, before);
}

#[test]
fn an_eoi_ends_every_pin_with_its_vector() {
    let mut ioapic = IoApic::default();
    for number in [5, 9, 23] {
        set_entry(&mut ioapic, number, LEVEL | 0x41 | u64::from(number) << 56);
        let _ = up(&mut ioapic, number);
    }
    down(&mut ioapic, 9);
    assert_eq!(
        ioapic.awaiting_eoi(0x41),
        IoApicPins(1 << 5 | 1 << 9 | 1 << 23)
    );
    let mut sent = Vec::new();
    let ended = ioapic.eoi(0x41, |message| sent.push(message.destination));
    assert_eq!(ended, IoApicPins(1 << 5 | 1 << 9 | 1 << 23));
    assert_eq!(
        ended.iter().map(IoApicPin::get).collect::<Vec<_>>(),
        [5, 9, 23]
    );
    assert_eq!(sent, [5, 23]);
}

#[test]
fn an_eoi_without_remote_irr_does_not_send_a_masked_level() {
    let mut ioapic = with_entry(5, LEVEL | MASKED | 0x41);
    assert_eq!(up(&mut ioapic, 5), None);
    assert_eq!(eoi(&mut ioapic, 0x41), []);
}

#[test]
fn an_eoi_of_a_masked_pin_clears_remote_irr_and_unmasking_sends() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let _ = up(&mut ioapic, 5);
    set_entry(&mut ioapic, 5, LEVEL | MASKED | 0x41);
    assert_eq!(eoi(&mut ioapic, 0x41), []);
    assert_eq!(set_entry(&mut ioapic, 5, LEVEL | 0x41).len(), 1);
}

#[test]
fn unmasking_a_level_that_is_up_sends_it() {
    let mut ioapic = with_entry(5, LEVEL | MASKED | 0x41);
    assert_eq!(up(&mut ioapic, 5), None);
    let sent = set_entry(&mut ioapic, 5, LEVEL | 0x41);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].vector, 0x41);
    assert_eq!(
        set_entry(&mut ioapic, 5, LEVEL | 0x41),
        [],
        "its EOI is awaited"
    );
}

#[test]
fn a_level_that_fell_while_masked_leaves_nothing() {
    let mut ioapic = with_entry(5, LEVEL | MASKED | 0x41);
    let _ = up(&mut ioapic, 5);
    down(&mut ioapic, 5);
    assert_eq!(set_entry(&mut ioapic, 5, LEVEL | 0x41), []);
}

#[test]
fn making_an_entry_edge_triggered_clears_remote_irr() {
    // Linux ends interrupts so on IOAPICs without EOI register.
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let _ = up(&mut ioapic, 5);
    assert_eq!(set_entry(&mut ioapic, 5, MASKED | 0x41), []);
    assert_eq!(entry(&mut ioapic, 5), MASKED | 0x41);
    let sent = set_entry(&mut ioapic, 5, LEVEL | 0x41);
    assert_eq!(sent.len(), 1, "the line is still up");
}

#[test]
fn an_edge_entry_made_level_with_its_line_up_is_sent() {
    let mut ioapic = with_entry(5, 0x41);
    let _ = up(&mut ioapic, 5);
    assert_eq!(set_entry(&mut ioapic, 5, LEVEL | 0x41).len(), 1);
}

#[test]
fn an_eoi_loop_costs_one_message_for_each_pin_and_eoi() {
    let mut ioapic = IoApic::default();
    for number in 0..24 {
        set_entry(&mut ioapic, number, LEVEL | 0x41);
        let _ = up(&mut ioapic, number);
    }
    for _ in 0..20_000 {
        assert_eq!(eoi(&mut ioapic, 0x41).len(), 24);
    }
}

// The EOI register.

#[test]
fn a_write_to_the_eoi_register_is_an_eoi() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let _ = up(&mut ioapic, 5);
    down(&mut ioapic, 5);
    let outcome = ioapic.write(0x40, &[0x41, 0xff, 0xff, 0xff], |_| {
        panic!("the line is down")
    });
    assert_eq!(outcome.ended, IoApicPins(1 << 5));
    assert_eq!(entry(&mut ioapic, 5), LEVEL | 0x41);
}

#[test]
fn version_11_has_no_eoi_register() {
    let mut ioapic = IoApic::new(IoApicVersion::V11, DestinationFormat::Xapic);
    set_entry(&mut ioapic, 5, LEVEL | 0x41);
    let _ = up(&mut ioapic, 5);
    let outcome = ioapic.write(0x40, &[0x41, 0, 0, 0], |_| panic!("no register"));
    assert_eq!(outcome, IoApicWrite::default());
    assert!(ioapic.entry(pin(5)).remote_irr());
}

#[test]
fn the_eoi_register_reads_0() {
    let mut data = [0x5a; 4];
    IoApic::default().read(0x40, &mut data);
    assert_eq!(data, [0; 4]);
}

// Delivery modes.

#[test]
fn each_delivery_mode_is_sent_as_such_and_reserved_ones_are_not() {
    for (bits, mode) in [
        (0, Some(DeliveryMode::Fixed)),
        (1, Some(DeliveryMode::LowestPriority)),
        (2, Some(DeliveryMode::Smi)),
        (3, None),
        (4, Some(DeliveryMode::Nmi)),
        (5, Some(DeliveryMode::Init)),
        (6, None),
        (7, Some(DeliveryMode::ExtInt)),
    ] {
        let mut ioapic = with_entry(0, bits << 8 | 0x41);
        let sent = up(&mut ioapic, 0).map(|message| message.delivery_mode);
        assert_eq!(sent, mode);
    }
}

#[test]
fn smi_nmi_init_and_ext_int_are_edges_even_if_the_entry_says_level() {
    for bits in [2, 4, 5, 7] {
        let mut ioapic = with_entry(0, LEVEL | bits << 8 | 0x41);
        let message = up(&mut ioapic, 0).unwrap();
        assert_eq!(message.trigger_mode, TriggerMode::Edge);
        assert_eq!(entry(&mut ioapic, 0) & REMOTE_IRR, 0);
        down(&mut ioapic, 0);
        assert!(up(&mut ioapic, 0).is_some(), "it awaits no EOI");
    }
}

#[test]
fn a_level_in_a_reserved_delivery_mode_is_sent_when_the_mode_is_mended() {
    let mut ioapic = with_entry(0, LEVEL | 3 << 8 | 0x41);
    assert_eq!(up(&mut ioapic, 0), None);
    assert_eq!(set_entry(&mut ioapic, 0, LEVEL | 0x41).len(), 1);
}

#[test]
fn an_illegal_vector_is_sent_for_the_local_apic_to_report() {
    let mut ioapic = with_entry(0, 0x0f);
    assert_eq!(up(&mut ioapic, 0).unwrap().vector, 0x0f);
}

// Destinations.

#[test]
fn the_destination_is_the_upper_byte_in_either_mode() {
    for (bits, mode) in [
        (0, DestinationMode::Physical),
        (1 << 11, DestinationMode::Logical),
    ] {
        let mut ioapic = with_entry(0, 0xa500_0000_0000_0041 | bits);
        let message = up(&mut ioapic, 0).unwrap();
        assert_eq!(
            (message.destination, message.destination_mode),
            (0xa5, mode)
        );
    }
}

#[test]
fn destination_0xff_is_everyone_unless_ids_are_extended() {
    let mut ioapic = with_entry(0, 0xff00_0000_0000_0041);
    assert_eq!(up(&mut ioapic, 0).unwrap().destination, u32::MAX);

    let mut ioapic = IoApic::new(IoApicVersion::V20, DestinationFormat::Extended);
    set_entry(&mut ioapic, 0, 0xff00_0000_0000_0041);
    assert_eq!(up(&mut ioapic, 0).unwrap().destination, 0xff);
}

#[test]
fn extended_ids_have_bits_14_to_8_in_bits_55_to_49() {
    let mut ioapic = IoApic::new(IoApicVersion::V20, DestinationFormat::Extended);
    for (bits, destination) in [
        (0x0102_0000_0000_0041, 0x0101),
        (0x0280_0000_0000_0041, 0x4002),
        (0xfffe_0000_0000_0041, 0x7fff),
    ] {
        set_entry(&mut ioapic, 0, bits);
        assert_eq!(up(&mut ioapic, 0).unwrap().destination, destination);
        down(&mut ioapic, 0);
    }
}

#[test]
fn a_route_is_what_an_unmasked_pin_is_sent_as() {
    let mut ioapic = with_entry(7, LEVEL | 0x51);
    let route = ioapic.route(pin(7));
    assert_eq!(route, up(&mut ioapic, 7));
    assert_eq!(ioapic.route(pin(8)), None, "masked");
}

#[test]
fn a_write_names_the_pin_whose_entry_it_changed() {
    let mut ioapic = IoApic::default();
    select(&mut ioapic, 0x10 + 2 * 9 + 1);
    let outcome = ioapic.write(0x10, &[0; 4], |_| panic!("masked"));
    assert_eq!(outcome.changed, IoApicPins(1 << 9));
    select(&mut ioapic, 0);
    let outcome = ioapic.write(0x10, &[0; 4], |_| panic!("the id"));
    assert_eq!(outcome, IoApicWrite::default());
}

// Accesses.

/// OpenVMM panicked on a read of eight bytes.
#[test]
fn a_read_of_eight_bytes_is_the_register_with_zeros_above() {
    let mut ioapic = IoApic::default();
    select(&mut ioapic, 1);
    let mut data = [0xff; 8];
    ioapic.read(0x10, &mut data);
    assert_eq!(data, [0x20, 0, 0x17, 0, 0, 0, 0, 0]);
}

#[test]
fn narrow_reads_are_the_low_bytes() {
    let mut ioapic = IoApic::default();
    select(&mut ioapic, 1);
    let mut data = [0xff; 2];
    ioapic.read(0x10, &mut data);
    assert_eq!(data, [0x20, 0]);
    let mut data = [0xff; 1];
    ioapic.read(0x10, &mut data);
    assert_eq!(data, [0x20]);
}

#[test]
fn narrow_writes_are_zero_extended_and_wide_ones_cut() {
    let mut ioapic = IoApic::default();
    let _ = ioapic.write(0, &[0x13], |_| panic!());
    let _ = ioapic.write(
        0x10,
        &[0x12, 0, 0, 0x34, 0xff, 0xff, 0xff, 0xff],
        |_| panic!(),
    );
    assert_eq!(entry(&mut ioapic, 1), 0x3400_0000_0001_0000);
    select(&mut ioapic, 0x13);
    let _ = ioapic.write(0x10, &[0xff, 0xff], |_| panic!());
    assert_eq!(entry(&mut ioapic, 1), 0x0000_0000_0001_0000);
}

#[test]
fn other_offsets_and_sizes_read_0_and_write_nothing() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let before = ioapic;
    for offset in (0..0x1010).chain([u64::MAX - 3, u64::MAX]) {
        for size in [0, 1, 2, 3, 4, 5, 8, 16] {
            let whole = matches!(size, 1 | 2 | 4 | 8);
            if whole && matches!(offset, 0 | 0x10 | 0x40) {
                continue;
            }
            let mut data = [0x5a; 16];
            ioapic.read(offset, &mut data[..size]);
            assert_eq!(data[..size], [0; 16][..size], "{offset:#x} {size}");
            let outcome = ioapic.write(offset, &[0x41; 16][..size], |_| panic!());
            assert_eq!(outcome, IoApicWrite::default());
        }
    }
    assert_eq!(ioapic, before);
}

// State.

#[test]
fn reset_masks_everything_and_keeps_the_wires() {
    let mut ioapic = with_entry(5, LEVEL | 0x41);
    let _ = up(&mut ioapic, 5);
    write(&mut ioapic, 0, 0x0300_0000);
    ioapic.reset();
    assert_eq!(entry(&mut ioapic, 5), MASKED);
    assert_eq!(read(&mut ioapic, 0), 0);
    assert_eq!(set_entry(&mut ioapic, 5, LEVEL | 0x41).len(), 1);
}

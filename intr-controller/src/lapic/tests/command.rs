//! SDM 3A, "Issuing Interprocessor Interrupts", in xAPIC mode.

use super::*;
use crate::{Ipi, IpiTargets};

fn sent(lapic: &mut Lapic, icr: u32) -> Ipi {
    match write(lapic, ICR, icr) {
        Effect::Ipi(ipi) => ipi,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_low_half_sends_and_the_high_half_does_not() {
    let mut lapic = xapic();
    assert_eq!(write(&mut lapic, ICR2, 0x0500_0000), Effect::None);
    let ipi = sent(&mut lapic, 0x4041);
    assert_eq!(ipi.targets(), IpiTargets::Destination);
    assert_eq!(
        ipi.message(),
        InterruptMessage {
            destination: 5,
            ..edge(0x41)
        }
    );
}

#[test]
fn each_delivery_mode_is_sent_as_itself() {
    let mut lapic = xapic();
    for (bits, mode) in [
        (0x000, DeliveryMode::Fixed),
        (0x100, DeliveryMode::LowestPriority),
        (0x200, DeliveryMode::Smi),
        (0x400, DeliveryMode::Nmi),
        (0x500, DeliveryMode::Init),
        (0x600, DeliveryMode::StartUp),
    ] {
        assert_eq!(
            sent(&mut lapic, 0x4041 | bits).message().delivery_mode,
            mode
        );
    }
}

#[test]
fn remote_read_and_extint_are_named_and_not_sent() {
    for bits in [3, 7] {
        let mut lapic = xapic();
        assert_eq!(
            write(&mut lapic, ICR, 0x4041 | bits << 8),
            Effect::NotSent {
                delivery_mode: u8::try_from(bits).unwrap()
            }
        );
        assert_eq!(read(&mut lapic, ICR), 0x4041 | bits << 8);
    }
}

#[test]
fn bit_11_makes_the_destination_logical() {
    let mut lapic = xapic();
    let ipi = sent(&mut lapic, 0x4841);
    assert_eq!(ipi.message().destination_mode, DestinationMode::Logical);
}

#[test]
fn the_shorthands() {
    let mut lapic = xapic();
    assert_eq!(sent(&mut lapic, 0x8_4041).targets(), IpiTargets::All);
    assert_eq!(sent(&mut lapic, 0xc_4041).targets(), IpiTargets::Others);
    assert_eq!(write(&mut lapic, ICR, 0x4_4041), Effect::None);
    assert_eq!(take_vector(&mut lapic), Some(0x41), "self");
}

#[test]
fn delivery_status_reads_idle() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, ICR, 0x5041);
    assert_eq!(read(&mut lapic, ICR), 0x4041);
}

#[test]
fn reserved_bits_of_icr_are_ignored() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, ICR, 0xfff3_6041);
    assert_eq!(read(&mut lapic, ICR), 0x4041);
}

#[test]
fn kvm_deviation_a_level_triggered_fixed_ipi_is_an_edge() {
    // The trigger mode is for INIT de-assert and "ignored for all other delivery modes"; KVM sets
    // TMR from it, and its EOI then looks for an IOAPIC pin.
    let mut lapic = xapic();
    for icr in [0xc041, 0x8041] {
        let message = sent(&mut lapic, icr).message();
        assert_eq!(
            (message.trigger_mode, message.level),
            (TriggerMode::Edge, true)
        );
    }
}

#[test]
fn init_level_deassert_is_stored_and_sends_nothing() {
    let mut lapic = xapic();
    assert_eq!(write(&mut lapic, ICR, 0x8500), Effect::None);
    assert_eq!(read(&mut lapic, ICR), 0x8500);
}

#[test]
fn init_level_deassert_as_a_message_does_nothing() {
    let mut lapic = xapic();
    let before = lapic.clone();
    assert_eq!(
        lapic.accept(&InterruptMessage {
            delivery_mode: DeliveryMode::Init,
            trigger_mode: TriggerMode::Level,
            level: false,
            ..InterruptMessage::default()
        }),
        Acceptance::Refused(Refusal::Deasserted)
    );
    assert_eq!(lapic, before);
}

#[test]
fn init_with_level_and_assert_is_an_init() {
    let mut lapic = xapic();
    let message = sent(&mut lapic, 0xc500).message();
    assert_eq!(lapic.accept(&message), Acceptance::Accepted);
    assert!(lapic.startup_pending());
}

#[test]
fn an_ipi_is_no_change_of_the_sender() {
    let mut lapic = xapic();
    let _ = sent(&mut lapic, 0x4041);
    assert_eq!(take(&mut lapic), None);
}

/// What it costs if not is said at [`Ipi`].
#[test]
fn what_a_write_asks_for_fits_a_register() {
    assert_eq!(size_of::<Result<Effect, GeneralProtection>>(), 8);
}

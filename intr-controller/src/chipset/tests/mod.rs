mod model;

use alloc::vec::Vec;

use super::*;

pub(super) const IOREGSEL: u64 = 0xfec0_0000;
pub(super) const IOWIN: u64 = 0xfec0_0010;
/// Mode 2 on channel 0, low byte then high byte.
pub(super) const RATE_GENERATOR: u8 = 0x34;

fn chipset() -> Chipset {
    Chipset::new(
        &GsiRouter::pc_entries(),
        IoApicVersion::V20,
        DestinationFormat::Xapic,
    )
    .unwrap()
}

pub(super) fn source(id: u8) -> SourceId {
    SourceId::new(id).unwrap()
}

pub(super) fn ns(ns: u64) -> GuestTime {
    GuestTime::from_ns(ns)
}

/// The vectors that a call delivers.
pub(super) fn sent(act: impl FnOnce(&mut dyn FnMut(InterruptMessage))) -> Vec<u8> {
    let mut vectors = Vec::new();
    act(&mut |message| vectors.push(message.vector));
    vectors
}

/// Writes the low half of a pin's entry.
pub(super) fn program(chipset: &mut Chipset, pin: u8, low: u32) -> ChipsetAccess {
    let _ = chipset.write_memory(IOREGSEL, &[0x10 + 2 * pin], |_| ());
    chipset.write_memory(IOWIN, &low.to_le_bytes(), |_| ())
}

/// Vectors from 0x20 and 0x28, nothing masked.
pub(super) fn initialise_pic(chipset: &mut Chipset) {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0x21, 0x00),
        (0xa1, 0x00),
    ] {
        assert!(chipset.write_port(port, &[value], GuestTime::ZERO, |_| ()));
    }
}

#[test]
fn a_line_reaches_the_pair_and_the_ioapic_at_once() {
    let mut chipset = chipset();
    initialise_pic(&mut chipset);
    program(&mut chipset, 4, 0x41);
    let vectors = sent(|deliver| chipset.set_line(Gsi(4), source(0), true, deliver).unwrap());
    assert_eq!(vectors, [0x41]);
    assert!(chipset.intr());
    assert_eq!(chipset.acknowledge(), 0x24);
    assert!(!chipset.intr());
}

#[test]
fn a_shared_level_is_sent_again_until_its_last_source_is_quiet() {
    let mut chipset = chipset();
    program(&mut chipset, 10, 0x8051);
    let rise = sent(|deliver| chipset.set_line(Gsi(10), source(1), true, deliver).unwrap());
    let second = sent(|deliver| chipset.set_line(Gsi(10), source(2), true, deliver).unwrap());
    assert_eq!((rise, second), (alloc::vec![0x51], Vec::new()));
    chipset.set_line(Gsi(10), source(1), false, |_| ()).unwrap();
    let again = sent(|deliver| assert_eq!(chipset.eoi(0x51, deliver), IoApicPins(1 << 10)));
    assert_eq!(again, [0x51]);
    chipset.set_line(Gsi(10), source(2), false, |_| ()).unwrap();
    let none = sent(|deliver| assert_eq!(chipset.eoi(0x51, deliver), IoApicPins(1 << 10)));
    assert!(none.is_empty());
}

#[test]
fn an_event_is_an_edge_that_waits_for_its_acknowledge() {
    let mut chipset = chipset();
    initialise_pic(&mut chipset);
    program(&mut chipset, 4, 0x41);
    assert_eq!(
        sent(|deliver| chipset.pulse(Gsi(4), deliver).unwrap()),
        [0x41]
    );
    assert!(chipset.intr());
    assert_eq!(chipset.acknowledge(), 0x24);
    assert_eq!(
        chipset.pulse(Gsi(24), |_| ()),
        Err(NoRoute(Gsi(24))),
        "no such pin"
    );
}

#[test]
fn a_latched_event_is_sent_again_at_the_eoi() {
    let mut chipset = chipset();
    program(&mut chipset, 10, 0x8051);
    let pulse =
        |chipset: &mut Chipset| sent(|deliver| chipset.pulse_latched(Gsi(10), deliver).unwrap());
    assert_eq!(pulse(&mut chipset), [0x51]);
    assert!(pulse(&mut chipset).is_empty(), "in service");
    let eoi = |chipset: &mut Chipset| {
        sent(|deliver| {
            let _ = chipset.eoi(0x51, deliver);
        })
    };
    assert_eq!(eoi(&mut chipset), [0x51]);
    assert!(eoi(&mut chipset).is_empty());
    assert_eq!(
        chipset.pulse_latched(Gsi(24), |_| ()),
        Err(NoRoute(Gsi(24))),
        "no such pin"
    );
}

#[test]
fn the_timer_is_at_pin_2_and_ticks_that_were_missed_are_one() {
    let mut chipset = chipset();
    initialise_pic(&mut chipset);
    program(&mut chipset, 0, 0x31);
    program(&mut chipset, 2, 0x30);
    for (port, value) in [(0x43, RATE_GENERATOR), (0x40, 0xa9), (0x40, 0x04)] {
        chipset.write_port(port, &[value], GuestTime::ZERO, |_| ());
    }
    // 1193 ticks are 0.99985 ms.
    let deadline = chipset.next_deadline().unwrap();
    assert!(
        (990_000..1_010_000).contains(&deadline.as_ns()),
        "{deadline}"
    );
    assert!(sent(|deliver| chipset.advance(ns(900_000), deliver)).is_empty());
    assert_eq!(sent(|deliver| chipset.advance(deadline, deliver)), [0x30]);
    assert_eq!(chipset.acknowledge(), 0x20);
    assert!(chipset.write_port(0x20, &[0x20], deadline, |_| ()), "EOI");
    assert_eq!(
        sent(|deliver| chipset.advance(ns(50_000_000), deliver)),
        [0x30]
    );
    assert_eq!(chipset.acknowledge(), 0x20);
    assert!(!chipset.intr());
    assert!(chipset.next_deadline().unwrap() > ns(50_000_000));
}

/// At 1 kHz, to IOAPIC pin 2 with this vector, or masked there.
fn ticking(pin_2: u32) -> Chipset {
    let mut chipset = chipset();
    chipset.set_lost_ticks(LostTicks::Reinject);
    initialise_pic(&mut chipset);
    program(&mut chipset, 2, pin_2);
    for (port, value) in [(0x43, RATE_GENERATOR), (0x40, 0xa9), (0x40, 0x04)] {
        chipset.write_port(port, &[value], GuestTime::ZERO, |_| ());
    }
    chipset
}

#[test]
fn ticks_that_were_missed_come_one_by_one_if_they_are_reinjected() {
    let mut chipset = ticking(0x30);
    let mut now = ns(4_100_000);
    for left in [3, 2] {
        assert_eq!(sent(|deliver| chipset.advance(now, deliver)), [0x30]);
        assert!(sent(|deliver| chipset.advance(now, deliver)).is_empty());
        assert_eq!(chipset.tick_counters().owed, left);
        let soon = now.saturating_add_ns(390_000);
        assert!(chipset.next_deadline().unwrap() > soon, "{left}");
        assert!(sent(|deliver| chipset.advance(soon, deliver)).is_empty());
        now = now.saturating_add_ns(500_000);
    }
    // A tick that is due at its own time waits for its turn.
    assert!(sent(|deliver| chipset.advance(ns(5_010_000), deliver)).is_empty());
    assert_eq!(chipset.tick_counters().owed, 3);
    assert_eq!(chipset.next_deadline(), Some(ns(4_600_000 + 499_924)));
    let restored = {
        let mut restored = ticking(0x30);
        restored.restore(&chipset.save()).unwrap();
        restored
    };
    assert_eq!(restored.save(), chipset.save());
    // A new count: the guest does not want what the old one owed.
    chipset.write_port(0x40, &[0x12], now, |_| ());
    chipset.write_port(0x40, &[0x34], now, |_| ());
    assert_eq!(chipset.tick_counters().owed, 0);
}

#[test]
fn a_tick_that_merges_is_reinjected() {
    // The caller is told by the local APIC.
    let mut chipset = ticking(0x30);
    let tick = ns(1_010_000);
    assert_eq!(sent(|deliver| chipset.advance(tick, deliver)), [0x30]);
    chipset.tick_was_lost();
    assert_eq!(chipset.next_deadline(), Some(ns(1_010_000 + 499_924)));
    // The 8259A pair is a part of the chipset.
    let mut chipset = ticking(0x1_0030);
    // The line was down before the timer was programmed.
    assert_eq!(chipset.acknowledge(), 0x20);
    chipset.write_port(0x20, &[0x20], GuestTime::ZERO, |_| ());
    chipset.advance(ns(1_010_000), |_| ());
    chipset.advance(ns(2_010_000), |_| ());
    assert_eq!(chipset.tick_counters().owed, 1);
    assert_eq!(chipset.acknowledge(), 0x20);
    chipset.write_port(0x20, &[0x20], ns(2_020_000), |_| ());
    assert!(!chipset.intr());
    chipset.advance(ns(2_600_000), |_| ());
    assert!(chipset.intr());
    assert_eq!(chipset.tick_counters().owed, 0);
    assert_eq!(chipset.tick_counters().delivered, 2);
}

#[test]
fn time_that_stands_still_brings_no_tick() {
    let mut chipset = chipset();
    program(&mut chipset, 2, 0x30);
    for (port, value) in [(0x43, RATE_GENERATOR), (0x40, 0xa9), (0x40, 0x04)] {
        chipset.write_port(port, &[value], GuestTime::ZERO, |_| ());
    }
    let now = ns(1_100_000);
    assert_eq!(sent(|deliver| chipset.advance(now, deliver)), [0x30]);
    for _ in 0..1000 {
        assert!(sent(|deliver| chipset.advance(now, deliver)).is_empty());
    }
}

#[test]
fn what_is_not_the_chipsets_is_not_claimed() {
    let mut chipset = chipset();
    let mut data = [0x5a; 4];
    for port in [
        0, 0x1f, 0x22, 0x3f, 0x44, 0x60, 0x62, 0x9f, 0xa2, 0x4cf, 0x4d2, 0xffff,
    ] {
        assert!(!chipset.read_port(port, &mut data, GuestTime::ZERO));
        assert!(!chipset.write_port(port, &data, GuestTime::ZERO, |_| ()));
    }
    for address in [0, 0xfebf_ffff, 0xfec0_0100, 0xfee0_0000, u64::MAX] {
        assert!(!chipset.read_memory(address, &mut data));
        assert!(!chipset.write_memory(address, &data, |_| ()).claimed);
    }
    assert_eq!(data, [0x5a; 4]);
}

#[test]
fn a_written_entry_is_named_and_other_registers_are_not() {
    let mut chipset = chipset();
    let access = program(&mut chipset, 7, 0x8051);
    assert!(access.claimed);
    assert_eq!(
        access.changed.iter().collect::<Vec<_>>(),
        [IoApicPin::new(7).unwrap()]
    );
    let select = chipset.write_memory(IOREGSEL, &[0], |_| ());
    assert!(select.claimed && select.changed.is_empty());
}

#[test]
fn a_pin_that_eoir_ended_is_named() {
    let mut chipset = chipset();
    program(&mut chipset, 7, 0x8051);
    chipset.set_line(Gsi(7), source(1), true, |_| ()).unwrap();
    chipset.set_line(Gsi(7), source(1), false, |_| ()).unwrap();
    let eoir = IOREGSEL + IoApic::EOIR;
    assert!(
        chipset
            .write_memory(eoir, &[0x52], |_| ())
            .changed
            .is_empty()
    );
    let access = chipset.write_memory(eoir, &[0x51], |_| ());
    assert_eq!(access.changed, IoApicPins(1 << 7));
}

#[test]
fn a_state_is_taken_whole_or_not_at_all() {
    let mut chipset = chipset();
    initialise_pic(&mut chipset);
    program(&mut chipset, 10, 0x8051);
    chipset.set_line(Gsi(10), source(1), true, |_| ()).unwrap();
    let state = chipset.save();
    let mut other = self::chipset();
    other.restore(&state).unwrap();
    assert_eq!(other, chipset);

    let mut spoilt = state;
    spoilt.ioapic.id = 0xff;
    spoilt.pic.master.lines = 0x55;
    let before = self::chipset();
    let mut target = before.clone();
    let error = target.restore(&spoilt).unwrap_err();
    assert!(
        matches!(
            error,
            ChipsetRestoreError::IoApic(_) | ChipsetRestoreError::Pic(_)
        ),
        "{error}"
    );
    assert_eq!(target, before);
}

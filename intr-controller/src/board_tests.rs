use alloc::vec::Vec;

use super::*;

pub(super) const IOREGSEL: u64 = 0xfec0_0000;
pub(super) const IOWIN: u64 = 0xfec0_0010;
/// Mode 2 on channel 0, low byte then high byte.
pub(super) const RATE_GENERATOR: u8 = 0x34;

fn board() -> Board {
    Board::new(
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
pub(super) fn program(board: &mut Board, pin: u8, low: u32) -> BoardAccess {
    let _ = board.write_memory(IOREGSEL, &[0x10 + 2 * pin], |_| ());
    board.write_memory(IOWIN, &low.to_le_bytes(), |_| ())
}

/// Vectors from 0x20 and 0x28, nothing masked.
pub(super) fn initialise_pic(board: &mut Board) {
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
        assert!(board.write_port(port, &[value], GuestTime::ZERO, |_| ()));
    }
}

#[test]
fn a_line_reaches_the_pair_and_the_ioapic_at_once() {
    let mut board = board();
    initialise_pic(&mut board);
    program(&mut board, 4, 0x41);
    let vectors = sent(|deliver| board.set_line(Gsi(4), source(0), true, deliver).unwrap());
    assert_eq!(vectors, [0x41]);
    assert!(board.intr());
    assert_eq!(board.acknowledge(), 0x24);
    assert!(!board.intr());
}

#[test]
fn a_shared_level_is_sent_again_until_its_last_source_is_quiet() {
    let mut board = board();
    program(&mut board, 10, 0x8051);
    let rise = sent(|deliver| board.set_line(Gsi(10), source(1), true, deliver).unwrap());
    let second = sent(|deliver| board.set_line(Gsi(10), source(2), true, deliver).unwrap());
    assert_eq!((rise, second), (alloc::vec![0x51], Vec::new()));
    board.set_line(Gsi(10), source(1), false, |_| ()).unwrap();
    let again = sent(|deliver| assert_eq!(board.eoi(0x51, deliver), IoApicPins(1 << 10)));
    assert_eq!(again, [0x51]);
    board.set_line(Gsi(10), source(2), false, |_| ()).unwrap();
    let none = sent(|deliver| assert_eq!(board.eoi(0x51, deliver), IoApicPins(1 << 10)));
    assert!(none.is_empty());
}

#[test]
fn an_event_is_an_edge_that_waits_for_its_acknowledge() {
    let mut board = board();
    initialise_pic(&mut board);
    program(&mut board, 4, 0x41);
    assert_eq!(
        sent(|deliver| board.pulse(Gsi(4), deliver).unwrap()),
        [0x41]
    );
    assert!(board.intr());
    assert_eq!(board.acknowledge(), 0x24);
    assert_eq!(
        board.pulse(Gsi(24), |_| ()),
        Err(NoRoute(Gsi(24))),
        "no such pin"
    );
}

#[test]
fn a_latched_event_is_sent_again_at_the_eoi() {
    let mut board = board();
    program(&mut board, 10, 0x8051);
    let pulse = |board: &mut Board| sent(|deliver| board.pulse_latched(Gsi(10), deliver).unwrap());
    assert_eq!(pulse(&mut board), [0x51]);
    assert!(pulse(&mut board).is_empty(), "in service");
    let eoi = |board: &mut Board| {
        sent(|deliver| {
            let _ = board.eoi(0x51, deliver);
        })
    };
    assert_eq!(eoi(&mut board), [0x51]);
    assert!(eoi(&mut board).is_empty());
    assert_eq!(
        board.pulse_latched(Gsi(24), |_| ()),
        Err(NoRoute(Gsi(24))),
        "no such pin"
    );
}

#[test]
fn the_timer_is_at_pin_2_and_ticks_that_were_missed_are_one() {
    let mut board = board();
    initialise_pic(&mut board);
    program(&mut board, 0, 0x31);
    program(&mut board, 2, 0x30);
    for (port, value) in [(0x43, RATE_GENERATOR), (0x40, 0xa9), (0x40, 0x04)] {
        board.write_port(port, &[value], GuestTime::ZERO, |_| ());
    }
    // 1193 ticks are 0.99985 ms.
    let deadline = board.next_deadline().unwrap();
    assert!(
        (990_000..1_010_000).contains(&deadline.as_ns()),
        "{deadline}"
    );
    assert!(sent(|deliver| board.advance(ns(900_000), deliver)).is_empty());
    assert_eq!(sent(|deliver| board.advance(deadline, deliver)), [0x30]);
    assert_eq!(board.acknowledge(), 0x20);
    assert!(board.write_port(0x20, &[0x20], deadline, |_| ()), "EOI");
    assert_eq!(
        sent(|deliver| board.advance(ns(50_000_000), deliver)),
        [0x30]
    );
    assert_eq!(board.acknowledge(), 0x20);
    assert!(!board.intr());
    assert!(board.next_deadline().unwrap() > ns(50_000_000));
}

#[test]
fn time_that_stands_still_brings_no_tick() {
    let mut board = board();
    program(&mut board, 2, 0x30);
    for (port, value) in [(0x43, RATE_GENERATOR), (0x40, 0xa9), (0x40, 0x04)] {
        board.write_port(port, &[value], GuestTime::ZERO, |_| ());
    }
    let now = ns(1_100_000);
    assert_eq!(sent(|deliver| board.advance(now, deliver)), [0x30]);
    for _ in 0..1000 {
        assert!(sent(|deliver| board.advance(now, deliver)).is_empty());
    }
}

#[test]
fn what_is_not_the_boards_is_not_claimed() {
    let mut board = board();
    let mut data = [0x5a; 4];
    for port in [
        0, 0x1f, 0x22, 0x3f, 0x44, 0x60, 0x62, 0x9f, 0xa2, 0x4cf, 0x4d2, 0xffff,
    ] {
        assert!(!board.read_port(port, &mut data, GuestTime::ZERO));
        assert!(!board.write_port(port, &data, GuestTime::ZERO, |_| ()));
    }
    for address in [0, 0xfebf_ffff, 0xfec0_0100, 0xfee0_0000, u64::MAX] {
        assert!(!board.read_memory(address, &mut data));
        assert!(!board.write_memory(address, &data, |_| ()).claimed);
    }
    assert_eq!(data, [0x5a; 4]);
}

#[test]
fn a_written_entry_is_named_and_other_registers_are_not() {
    let mut board = board();
    let access = program(&mut board, 7, 0x8051);
    assert!(access.claimed);
    assert_eq!(
        access.changed.iter().collect::<Vec<_>>(),
        [IoApicPin::new(7).unwrap()]
    );
    let select = board.write_memory(IOREGSEL, &[0], |_| ());
    assert!(select.claimed && select.changed.is_empty());
}

#[test]
fn a_pin_that_eoir_ended_is_named() {
    let mut board = board();
    program(&mut board, 7, 0x8051);
    board.set_line(Gsi(7), source(1), true, |_| ()).unwrap();
    board.set_line(Gsi(7), source(1), false, |_| ()).unwrap();
    let eoir = IOREGSEL + IoApic::EOIR;
    assert!(board.write_memory(eoir, &[0x52], |_| ()).changed.is_empty());
    let access = board.write_memory(eoir, &[0x51], |_| ());
    assert_eq!(access.changed, IoApicPins(1 << 7));
}

#[test]
fn a_state_is_taken_whole_or_not_at_all() {
    let mut board = board();
    initialise_pic(&mut board);
    program(&mut board, 10, 0x8051);
    board.set_line(Gsi(10), source(1), true, |_| ()).unwrap();
    let state = board.save();
    let mut other = self::board();
    other.restore(&state).unwrap();
    assert_eq!(other, board);

    let mut spoilt = state;
    spoilt.ioapic.id = 0xff;
    spoilt.pic.master.lines = 0x55;
    let before = self::board();
    let mut target = before.clone();
    let error = target.restore(&spoilt).unwrap_err();
    assert!(
        matches!(
            error,
            BoardRestoreError::IoApic(_) | BoardRestoreError::Pic(_)
        ),
        "{error}"
    );
    assert_eq!(target, before);
}

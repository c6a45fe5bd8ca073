//! Any guest and any devices at the chipset: no access panics, one operation sends at most one message
//! for each pin, time that has been served is not due again, and a chipset that was restored from any
//! state does from then on exactly what the one does that was saved.
//!
//! Input: operations of a few bytes each, an operation's number first. See `step`.
#![no_main]

use fuzz::Choices;
use intr_controller::chipset::Chipset;
use intr_controller::ioapic::{IoApicVersion, PIN_COUNT};
use intr_controller::routing::{GsiRouter, SourceId};
use intr_controller::{DestinationFormat, Gsi, GuestTime, InterruptMessage};
use libfuzzer_sys::fuzz_target;

const PORTS: [u16; 12] = [
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x1f,
];
/// IOREGSEL, IOWIN, EOIR, and beside them.
const ADDRESSES: [u64; 6] = [
    0xfec0_0000,
    0xfec0_0010,
    0xfec0_0040,
    0xfec0_00ff,
    0xfec0_0100,
    u64::MAX,
];

fn chipset() -> Chipset {
    let routes = GsiRouter::pc_entries();
    Chipset::new(&routes, IoApicVersion::V20, DestinationFormat::Xapic)
        .expect("the routes are a PC's")
}

/// A PC has no device at the line between the 8259As.
fn has_route(gsi: Gsi) -> bool {
    gsi.0 < u32::from(PIN_COUNT) && gsi != Gsi(2)
}

fn data(input: &mut Choices) -> Vec<u8> {
    let size = [1, 1, 4, 4, 2, 8, 0, 3][usize::from(input.byte()) % 8];
    (0..size).map(|_| input.byte()).collect()
}

/// One operation; what it sent, and what it read.
fn step(
    input: &mut Choices,
    chipset: &mut Chipset,
    now: &mut GuestTime,
) -> (Vec<InterruptMessage>, Vec<u8>) {
    let mut sent = Vec::new();
    let mut read = Vec::new();
    let mut deliver = |message| sent.push(message);
    match input.byte() % 9 {
        0 => {
            let port = input.one_of(&PORTS);
            let data = data(input);
            chipset.write_port(port, &data, *now, &mut deliver);
        }
        1 => {
            let port = input.one_of(&PORTS);
            read = data(input);
            chipset.read_port(port, &mut read, *now);
        }
        2 => {
            let address = input.one_of(&ADDRESSES);
            let data = data(input);
            chipset.write_memory(address, &data, &mut deliver);
        }
        3 => {
            let address = input.one_of(&ADDRESSES);
            read = data(input);
            chipset.read_memory(address, &mut read);
        }
        4 => {
            let gsi = Gsi(u32::from(input.byte() % 26));
            let source = SourceId::new(input.byte() % 64).expect("below 64");
            let up = input.flag();
            let result = chipset.set_line(gsi, source, up, &mut deliver);
            assert_eq!(result.is_ok(), has_route(gsi));
        }
        5 => {
            let gsi = Gsi(u32::from(input.byte() % 26));
            let result = if input.flag() {
                chipset.pulse_latched(gsi, &mut deliver)
            } else {
                chipset.pulse(gsi, &mut deliver)
            };
            assert_eq!(result.is_ok(), has_route(gsi));
        }
        6 => {
            chipset.eoi(input.byte(), &mut deliver);
        }
        7 => {
            *now = now.saturating_add_ns(u64::from(input.word()) * 1000);
            chipset.advance(*now, &mut deliver);
            assert!(chipset.next_deadline().is_none_or(|next| next > *now));
        }
        _ => {
            let intr = chipset.intr();
            read = vec![chipset.acknowledge()];
            if !intr {
                assert_eq!(read[0] & 7, 7, "spurious, and no vector 7");
            }
        }
    }
    assert!(
        sent.len() <= usize::from(PIN_COUNT),
        "{} messages",
        sent.len()
    );
    (sent, read)
}

fuzz_target!(|data: &[u8]| {
    let mut input = Choices::new(data);
    let (mut chipset, mut other) = (chipset(), chipset());
    let mut now = GuestTime::ZERO;
    while !input.is_empty() {
        if input.byte() % 8 == 7 {
            let state = chipset.save();
            other = self::chipset();
            other.restore(&state).expect("a state of a chipset's own");
        }
        // The same operation at the same time.
        let (mut again, mut then) = (input.clone(), now);
        let did = step(&mut input, &mut chipset, &mut now);
        assert_eq!(step(&mut again, &mut other, &mut then), did);
        // The counters of lost ticks are not part of a state.
        assert_eq!(chipset.save(), other.save());
    }
});

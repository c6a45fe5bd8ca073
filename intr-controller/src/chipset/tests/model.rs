//! A naive chipset beside the real one, and what holds whatever a guest does to it.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::super::*;
use super::{
    IOREGSEL, IOWIN, RATE_GENERATOR, initialise_pic, ns, program, sent as vectors, source,
};
use crate::ioapic::PIN_COUNT;
use crate::routing::RouteTarget;
use crate::{MsiMessage, TriggerMode};

/// A GSI that is a message, and the two that are nothing: IOAPIC pin 2 is GSI 0.
const MSI_GSI: u32 = 24;
const MSI_VECTOR: u8 = 0x77;
const NO_ROUTES: [u32; 2] = [2, 25];
/// The 8259A's inputs, most urgent first.
const URGENCY: [u8; 15] = [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7];
/// The inputs that can be level-triggered, as ELCR has them.
const ELCR_MASK: u16 = 0xdef8;

const NOTHING: [u8; 0] = [];

/// As a PC's ACPI tables say, and a message.
fn chipset() -> Chipset {
    let mut routes = GsiRouter::pc_entries();
    routes.push(RouteEntry {
        gsi: Gsi(MSI_GSI),
        target: RouteTarget::Msi(MsiMessage {
            address: 0xfee0_0000,
            data: MSI_VECTOR.into(),
        }),
    });
    Chipset::new(&routes, IoApicVersion::V20, DestinationFormat::Xapic).unwrap()
}

fn pin_of(gsi: u32) -> u8 {
    match gsi {
        0 => 2,
        gsi => u8::try_from(gsi).unwrap(),
    }
}

fn gsi_of(pin: u8) -> Option<u32> {
    (0..24)
        .filter(|gsi| !NO_ROUTES.contains(gsi))
        .find(|gsi| pin_of(*gsi) == pin)
}

/// When the 8254 has made so many ticks: a twelfth of 315/22 MHz.
fn at_tick(tick: u64) -> GuestTime {
    ns((tick * 88_000).div_ceil(105))
}

/// A handler's specific EOI, and that of the cascade.
fn serve(chipset: &mut Chipset, vector: u8, now: GuestTime) {
    let mut end = |port, level| chipset.write_port(port, &[0x60 | level], now, |_| ());
    if vector >= 0x28 {
        end(0xa0, vector & 7);
        end(0x20, 2);
    } else {
        end(0x20, vector & 7);
    }
}

/// Pin, vector, and whether it is a level.
type Sent = (u32, u8, bool);

fn sent_as(message: &InterruptMessage) -> Sent {
    let level = message.trigger_mode == TriggerMode::Level;
    (message.destination, message.vector, level)
}

#[derive(Clone, Default)]
struct Pin {
    vector: u8,
    level: bool,
    masked: bool,
    awaits_eoi: bool,
}

/// What a chipset does for a guest that serves one interrupt of the 8259A after the other.
struct Model {
    /// By GSI: who holds the line up.
    holders: Vec<BTreeSet<u8>>,
    /// The IOAPIC's.
    pins: Vec<Pin>,
    /// By input of the pair: an edge waits. IMR, ELCR.
    edges: [bool; 16],
    mask: u16,
    level: u16,
    /// A line of this chip fell before it was served: a spurious interrupt may come of it.
    fell: [bool; 2],
    /// The 8254's first tick with its count, and the count.
    timer: Option<(u64, u64)>,
    /// Up to where its rises were taken.
    taken: u64,
    sent: Vec<Sent>,
}

impl Model {
    fn new() -> Self {
        let pin = Pin {
            masked: true,
            ..Pin::default()
        };
        Self {
            holders: vec![BTreeSet::new(); 26],
            pins: vec![pin; 24],
            edges: [false; 16],
            mask: 0,
            level: 0,
            fell: [false; 2],
            timer: None,
            taken: 0,
            sent: Vec::new(),
        }
    }

    fn up(&self, gsi: u32) -> bool {
        !self.holders[gsi as usize].is_empty()
    }

    fn send(&mut self, pin: u8) {
        let Pin {
            vector,
            level,
            masked,
            awaits_eoi,
        } = &mut self.pins[usize::from(pin)];
        if *masked || *awaits_eoi {
            return;
        }
        *awaits_eoi = *level;
        self.sent.push((pin.into(), *vector, *level));
    }

    /// A level that is up is sent whenever nothing keeps it.
    fn send_level(&mut self, pin: u8) {
        let up = gsi_of(pin).is_some_and(|gsi| self.up(gsi));
        if up && self.pins[usize::from(pin)].level {
            self.send(pin);
        }
    }

    fn rise(&mut self, gsi: u32) {
        if gsi == MSI_GSI {
            self.sent.push((0, MSI_VECTOR, false));
            return;
        }
        if gsi < 16 {
            self.edges[gsi as usize] = self.level >> gsi & 1 == 0;
        }
        self.send(pin_of(gsi));
    }

    fn line(&mut self, gsi: u32, source: u8, up: bool) {
        let was_up = self.up(gsi);
        let holders = &mut self.holders[gsi as usize];
        if up {
            holders.insert(source);
        } else {
            holders.remove(&source);
        }
        match (was_up, self.up(gsi)) {
            (false, true) => self.rise(gsi),
            (true, false) if gsi < 16 => {
                self.edges[gsi as usize] = false;
                self.fell[gsi as usize / 8] = true;
            }
            _ => {}
        }
    }

    /// The input of the 8259A pair that is served next.
    fn next(&self) -> Option<u8> {
        URGENCY.into_iter().find(|input| {
            let bit = 1 << input;
            let asks = match self.level & bit {
                0 => self.edges[usize::from(*input)],
                _ => self.up(u32::from(*input)),
            };
            let cascade_masked = *input >= 8 && self.mask & 1 << 2 != 0;
            asks && self.mask & bit == 0 && !cascade_masked
        })
    }

    /// The 8254's rises until then, and its output: low for the last tick of each period.
    fn output(&self, tick: u64) -> (u64, bool) {
        let Some((start, count)) = self.timer else {
            return (0, true);
        };
        let since = tick.saturating_sub(start);
        (since / count, since % count != count - 1)
    }

    fn advance(&mut self, tick: u64, reset: bool) {
        let (rises, level) = self.output(tick);
        let rose = rises > self.output(self.taken).0 || reset && !level;
        self.taken = tick;
        if rose {
            self.line(0, Chipset::TIMER_SOURCE, false);
            self.line(0, Chipset::TIMER_SOURCE, true);
        }
        self.line(0, Chipset::TIMER_SOURCE, level || reset);
    }

    fn deadline(&self) -> Option<GuestTime> {
        let (start, count) = self.timer?;
        Some(at_tick(start + (self.output(self.taken).0 + 1) * count))
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Line(u32, u8, bool),
    Pulse(u32),
    /// The low half of a pin's entry: vector, level, masked.
    Entry(u8, u8, bool, bool),
    Eoi(u8),
    EoiRegister(u8),
    /// INTA, and an EOI at each chip.
    Serve,
    /// Both chips' IMR, and ELCR.
    Mask(u16),
    Levels(u16),
    /// Channel 0 in mode 2 with this count.
    Timer(u16),
    ReadTimer,
    /// Guest time passes.
    Ticks(u64),
    Advance,
    SaveRestore,
}

/// Few lines, sources and vectors: they meet.
fn action() -> impl Strategy<Value = Action> {
    let gsi = || prop_oneof![6 => 0u32..6, 3 => 8u32..12, 2 => 0u32..26];
    let pin = || prop_oneof![6 => 1u8..6, 3 => 8u8..12, 1 => 0u8..24];
    let vector = || 0x41u8..0x44;
    prop_oneof![
        10 => (gsi(), 0u8..3, any::<bool>()).prop_map(|(gsi, id, up)| Action::Line(gsi, id, up)),
        2 => gsi().prop_map(Action::Pulse),
        6 => (pin(), vector(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(pin, vector, level, masked)| Action::Entry(pin, vector, level, masked)),
        6 => vector().prop_map(Action::Eoi),
        1 => vector().prop_map(Action::EoiRegister),
        6 => Just(Action::Serve),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Action::Mask(a & b)),
        1 => any::<u16>().prop_map(Action::Levels),
        1 => prop_oneof![4 => 2u16..20, 1 => 2u16..].prop_map(Action::Timer),
        1 => Just(Action::ReadTimer),
        4 => prop_oneof![4 => 0u64..12, 1 => 0u64..200_000].prop_map(Action::Ticks),
        4 => Just(Action::Advance),
        1 => Just(Action::SaveRestore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every message and every vector is the model's: none is lost, and none comes twice.
    #[test]
    fn the_chipset_is_the_model(actions in proptest::collection::vec(action(), 0..150)) {
        let mut chipset = chipset();
        let mut model = Model::new();
        initialise_pic(&mut chipset);
        // Destinations tell the pins apart.
        for pin in 0..PIN_COUNT {
            let _ = chipset.write_memory(IOREGSEL, &[0x11 + 2 * pin], |_| ());
            let _ = chipset.write_memory(IOWIN, &[0, 0, 0, pin], |_| ());
        }
        let mut tick = 0;
        for action in actions {
            let now = at_tick(tick);
            let mut sent = Vec::new();
            let mut deliver = |message| sent.push(sent_as(&message));
            match action {
                Action::Line(gsi, id, up) => {
                    let answer = chipset.set_line(Gsi(gsi), source(id), up, &mut deliver);
                    prop_assert_eq!(answer.is_err(), NO_ROUTES.contains(&gsi));
                    if answer.is_ok() {
                        model.line(gsi, id, up);
                    }
                }
                Action::Pulse(gsi) => {
                    let answer = chipset.pulse(Gsi(gsi), &mut deliver);
                    prop_assert_eq!(answer.is_err(), NO_ROUTES.contains(&gsi));
                    // A message is the only sign of a line that another source holds up.
                    if answer.is_ok() && (!model.up(gsi) || gsi == MSI_GSI) {
                        model.rise(gsi);
                    }
                }
                Action::Entry(n, vector, level, masked) => {
                    let low = u32::from(vector) | u32::from(level) << 15 | u32::from(masked) << 16;
                    let _ = chipset.write_memory(IOREGSEL, &[0x10 + 2 * n], &mut deliver);
                    let _ = chipset.write_memory(IOWIN, &low.to_le_bytes(), &mut deliver);
                    let pin = &mut model.pins[usize::from(n)];
                    let awaits_eoi = pin.awaits_eoi && level;
                    *pin = Pin { vector, level, masked, awaits_eoi };
                    model.send_level(n);
                }
                Action::Eoi(vector) | Action::EoiRegister(vector) => {
                    if matches!(action, Action::Eoi(_)) {
                        let _ = chipset.eoi(vector, &mut deliver);
                    } else {
                        let _ = chipset.write_memory(IOREGSEL + 0x40, &[vector], &mut deliver);
                    }
                    for n in 0..PIN_COUNT {
                        let pin = &mut model.pins[usize::from(n)];
                        if pin.awaits_eoi && pin.vector == vector {
                            pin.awaits_eoi = false;
                            model.send_level(n);
                        }
                    }
                }
                Action::Serve => {
                    let next = model.next();
                    let spurious = match next {
                        // Cascade is input 2 of the first: the second one's glitch goes before.
                        Some(3..8) => vec![0x2f],
                        Some(_) => vec![],
                        None => vec![0x2f, 0x27],
                    };
                    let vector = chipset.acknowledge();
                    if next.map(|input| 0x20 + input) != Some(vector) {
                        prop_assert!(spurious.contains(&vector), "{:#x} for {:?}", vector, next);
                        prop_assert!(vector == 0x27 || model.fell[1], "{:#x}", vector);
                    } else if let Some(input) = next {
                        model.edges[usize::from(input)] = false;
                    }
                    model.fell[0] = false;
                    model.fell[1] &= vector < 0x28;
                    serve(&mut chipset, vector, now);
                }
                Action::Mask(mask) => {
                    let [first, second] = mask.to_le_bytes();
                    chipset.write_port(0x21, &[first], now, &mut deliver);
                    chipset.write_port(0xa1, &[second], now, &mut deliver);
                    model.mask = mask;
                }
                Action::Levels(levels) => {
                    chipset.write_port(0x4d0, &levels.to_le_bytes(), now, &mut deliver);
                    model.level = levels & ELCR_MASK;
                    for (n, edge) in model.edges.iter_mut().enumerate() {
                        *edge &= model.level >> n & 1 == 0;
                    }
                }
                Action::Timer(count) => {
                    let [low, high] = count.to_le_bytes();
                    for (port, value) in [(0x43, RATE_GENERATOR), (0x40, low), (0x40, high)] {
                        chipset.write_port(port, &[value], now, &mut deliver);
                    }
                    // Mode 2 begins with a high output.
                    model.advance(tick, true);
                    model.timer = Some((tick + 1, count.into()));
                    prop_assert_eq!(chipset.next_deadline(), model.deadline());
                }
                Action::ReadTimer => {
                    chipset.read_port(0x40, &mut [0; 2], now);
                }
                Action::Ticks(ticks) => tick += ticks,
                Action::Advance => {
                    chipset.advance(now, &mut deliver);
                    model.advance(tick, false);
                    prop_assert_eq!(chipset.next_deadline(), model.deadline());
                    prop_assert!(chipset.next_deadline().is_none_or(|deadline| deadline > now));
                }
                Action::SaveRestore => {
                    let mut restored = self::chipset();
                    prop_assert_eq!(restored.restore(&chipset.save()), Ok(()));
                    chipset = restored;
                }
            }
            prop_assert_eq!(sent, core::mem::take(&mut model.sent), "{:?}", action);
            if model.next().is_some() || model.fell == [false; 2] {
                prop_assert_eq!(chipset.intr(), model.next().is_some(), "INTR after {:?}", action);
            }
        }
    }
}

/// What a guest and devices can do at all.
#[derive(Clone, Debug)]
enum Access {
    WritePort(u16, Vec<u8>),
    ReadPort(u16, usize),
    WriteMemory(u64, Vec<u8>),
    ReadMemory(u64, usize),
    Line(u32, u8, bool),
    Pulse(u32),
    Eoi(u8),
    Acknowledge,
    /// Guest time passes, and the chipset comes to it.
    Pass(u64),
}

fn access() -> impl Strategy<Value = Access> {
    let port = || {
        prop_oneof![
            8 => prop::sample::select(vec![0x20u16, 0x21, 0xa0, 0xa1, 0x40, 0x43]),
            2 => prop::sample::select(vec![0x4d0u16, 0x4d1, 0x41, 0x42, 0x61, 0x1f, 0x4cf]),
            1 => any::<u16>(),
        ]
    };
    let address =
        || prop_oneof![6 => Just(IOREGSEL), 6 => Just(IOWIN), 2 => IOREGSEL - 8..IOREGSEL + 0x108];
    let data = || {
        prop_oneof![
            // An entry's index, and one that is not masked.
            2 => (0x10u8..0x40).prop_map(|index| vec![index]),
            1 => (any::<u16>(), any::<u8>()).prop_map(|(low, high)| {
                let [a, b] = low.to_le_bytes();
                vec![a, b, 0, high]
            }),
            3 => prop::collection::vec(any::<u8>(), 0..9),
        ]
    };
    let gsi = || prop_oneof![4 => 0u32..6, 1 => 0u32..26];
    prop_oneof![
        5 => (port(), data()).prop_map(|(port, data)| Access::WritePort(port, data)),
        2 => (port(), 0usize..9).prop_map(|(port, size)| Access::ReadPort(port, size)),
        6 => (address(), data()).prop_map(|(address, data)| Access::WriteMemory(address, data)),
        1 => (address(), 0usize..9).prop_map(|(address, size)| Access::ReadMemory(address, size)),
        4 => (gsi(), 0u8..3, any::<bool>()).prop_map(|(gsi, id, up)| Access::Line(gsi, id, up)),
        1 => gsi().prop_map(Access::Pulse),
        2 => any::<u8>().prop_map(Access::Eoi),
        2 => Just(Access::Acknowledge),
        3 => prop_oneof![4 => 0u64..3000, 1 => 0u64..1 << 40].prop_map(Access::Pass),
    ]
}

/// Answers what was sent and what was read.
fn act(
    chipset: &mut Chipset,
    access: &Access,
    now: &mut GuestTime,
) -> (Vec<InterruptMessage>, Vec<u8>) {
    let mut sent = Vec::new();
    let mut read = Vec::new();
    let mut deliver = |message| sent.push(message);
    match access {
        Access::WritePort(port, data) => {
            chipset.write_port(*port, data, *now, &mut deliver);
        }
        Access::ReadPort(port, size) => {
            read = vec![0x5a; *size];
            chipset.read_port(*port, &mut read, *now);
        }
        Access::WriteMemory(address, data) => {
            let _ = chipset.write_memory(*address, data, &mut deliver);
        }
        Access::ReadMemory(address, size) => {
            read = vec![0x5a; *size];
            chipset.read_memory(*address, &mut read);
        }
        Access::Line(gsi, id, up) => {
            let _ = chipset.set_line(Gsi(*gsi), source(*id), *up, &mut deliver);
        }
        Access::Pulse(gsi) => {
            let _ = chipset.pulse(Gsi(*gsi), &mut deliver);
        }
        Access::Eoi(vector) => {
            let _ = chipset.eoi(*vector, &mut deliver);
        }
        Access::Acknowledge => read = vec![chipset.acknowledge()],
        Access::Pass(ns) => {
            *now = now.saturating_add_ns(*ns);
            chipset.advance(*now, &mut deliver);
        }
    }
    (sent, read)
}

/// How many messages it may send: one for a line, and for an EOI one for each pin.
fn most(access: &Access) -> usize {
    match access {
        Access::ReadPort(..) | Access::ReadMemory(..) | Access::Acknowledge => 0,
        Access::Line(..) | Access::Pulse(_) | Access::Pass(_) | Access::WritePort(..) => 1,
        Access::Eoi(_) | Access::WriteMemory(..) => 24,
    }
}

/// By GSI: whether devices hold it up after all of it.
fn lines(accesses: &[Access]) -> [bool; 24] {
    let mut holders = BTreeSet::new();
    for access in accesses {
        match access {
            Access::Line(gsi, id, true) => {
                holders.insert((*gsi, *id));
            }
            Access::Line(gsi, id, false) => {
                holders.remove(&(*gsi, *id));
            }
            _ => {}
        }
    }
    core::array::from_fn(|gsi| holders.iter().any(|(held, _)| *held as usize == gsi))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest does: nothing comes from a masked pin, an operation sends a bounded number
    /// of messages, and a chipset that was saved and restored in between is the same.
    #[test]
    fn any_guest_gets_few_messages_and_none_that_it_masked(
        accesses in prop::collection::vec((access(), prop::bool::weighted(0.1)), 0..150),
    ) {
        let (mut chipset, mut twin) = (chipset(), chipset());
        let (mut now, mut then) = (GuestTime::ZERO, GuestTime::ZERO);
        for (access, restore) in accesses {
            if restore {
                let mut restored = self::chipset();
                prop_assert_eq!(restored.restore(&twin.save()), Ok(()));
                twin = restored;
            }
            let done = act(&mut chipset, &access, &mut now);
            prop_assert_eq!(&act(&mut twin, &access, &mut then), &done, "{:?}", access);
            let (sent, _) = done;
            prop_assert!(sent.len() <= most(&access), "{:?} sends {:?}", access, sent);
            for message in sent {
                let pins = (0..PIN_COUNT).filter_map(|pin| IoApicPin::new(pin).ok());
                let mut unmasked = pins.filter_map(|pin| chipset.ioapic().route(pin));
                let msi = message.vector == MSI_VECTOR && matches!(access, Access::Line(MSI_GSI, ..) | Access::Pulse(MSI_GSI));
                prop_assert!(msi || unmasked.any(|route| route == message), "{:?}", access);
            }
            if matches!(access, Access::Pass(_)) {
                prop_assert!(chipset.next_deadline().is_none_or(|deadline| deadline > now));
            }
        }
    }

    /// Whatever state a guest has brought the chips to: a driver that programs them gets each line
    /// that is up, and of one that rises once exactly one interrupt.
    #[test]
    fn no_state_keeps_a_driver_from_its_interrupts(accesses in prop::collection::vec(access(), 0..100)) {
        let mut chipset = chipset();
        let mut now = GuestTime::ZERO;
        for access in &accesses {
            act(&mut chipset, access, &mut now);
        }
        let lines = lines(&accesses);
        initialise_pic(&mut chipset);
        chipset.write_port(0x4d0, &ELCR_MASK.to_le_bytes(), now, |_| ());
        for input in (0u8..16).filter(|input| ELCR_MASK >> input & 1 != 0) {
            let [first, second] = (!(1u16 << input | 1 << 2)).to_le_bytes();
            chipset.write_port(0x21, &[first], now, |_| ());
            chipset.write_port(0xa1, &[second], now, |_| ());
            let up = lines[usize::from(input)];
            prop_assert_eq!(chipset.intr(), up, "input {}", input);
            if up {
                prop_assert_eq!(chipset.acknowledge(), 0x20 + input);
                prop_assert!(!chipset.intr(), "it is in service");
                serve(&mut chipset, 0x20 + input, now);
                prop_assert!(chipset.intr(), "input {} after its EOI", input);
            }
        }
        // As an operating system begins: an entry that was left unmasked may have any vector.
        for pin in 0..PIN_COUNT {
            program(&mut chipset, pin, 0x1_0000);
        }
        // GSI 0 has the timer's own level.
        for gsi in (1u32..24).filter(|gsi| !NO_ROUTES.contains(gsi)) {
            let (pin, up) = (pin_of(gsi), lines[gsi as usize]);
            let vector = 0x40 + pin;
            // A level: again with each EOI while it is up, and not otherwise.
            program(&mut chipset, pin, 0x8000 | u32::from(vector));
            for _ in 0..3 {
                let again = vectors(|deliver| { let _ = chipset.eoi(vector, deliver); });
                let own = again.iter().filter(|sent| **sent == vector).count();
                prop_assert_eq!(own, usize::from(up), "{:?} at pin {}", again, pin);
            }
            // An edge.
            program(&mut chipset, pin, vector.into());
            for id in 0..3 {
                chipset.set_line(Gsi(gsi), source(id), false, |_| ()).unwrap();
            }
            let line = |chipset: &mut Chipset, up| vectors(|deliver| chipset.set_line(Gsi(gsi), source(0), up, deliver).unwrap());
            prop_assert_eq!(line(&mut chipset, true), [vector]);
            prop_assert_eq!(line(&mut chipset, true), NOTHING);
            prop_assert_eq!(vectors(|deliver| { let _ = chipset.eoi(vector, deliver); }), NOTHING);
            prop_assert_eq!(line(&mut chipset, false), NOTHING);
            program(&mut chipset, pin, 0x1_0000);
        }
    }
}

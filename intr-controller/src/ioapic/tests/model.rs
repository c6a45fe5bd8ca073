//! A naive IOAPIC beside the real one: booleans, and each rule once.
#![expect(
    clippy::cast_possible_truncation,
    reason = "registers are cut into halves and bytes"
)]

use alloc::vec::Vec;

use proptest::prelude::*;

use super::super::*;
use crate::{DestinationFormat, InterruptMessage};

#[derive(Clone, Debug, Default)]
struct Pin {
    line: bool,
    latched: bool,
    masked: bool,
    level: bool,
    awaits_eoi: bool,
    mode: u8,
    vector: u8,
    destination: u8,
    logical: bool,
    polarity: bool,
    /// What awaits its EOI: vector, destination, whether that is logical, delivery mode.
    sent: (u8, u8, bool, u8),
}

impl Pin {
    fn has_levels(&self) -> bool {
        self.level && self.mode < 2
    }

    fn route(&self) -> (u8, u8, bool, u8) {
        (self.vector, self.destination, self.logical, self.mode)
    }

    /// Whose EOIs matter, beside that of the entry.
    fn old_route(&self) -> Option<(u8, u8, bool, u8)> {
        let moved = self.route() != self.sent && self.vector == self.sent.0;
        (self.awaits_eoi && moved).then_some(self.sent)
    }

    /// A line that is up, or a latched pulse, is sent if the entry has levels.
    fn send_level(&mut self, sent: &mut Vec<(u8, u8, bool)>) {
        if (self.line || self.latched) && self.has_levels() {
            self.send(sent);
        }
    }

    /// (pin's vector, destination), if something is sent.
    fn send(&mut self, sent: &mut Vec<(u8, u8, bool)>) {
        if self.masked || self.mode == 3 || self.mode == 6 {
            return;
        }
        if self.has_levels() {
            if self.awaits_eoi {
                return;
            }
            self.awaits_eoi = true;
            self.sent = self.route();
        }
        self.latched = false;
        sent.push((self.vector, self.destination, self.has_levels()));
    }

    fn bits(&self) -> u64 {
        u64::from(self.vector)
            | u64::from(self.mode) << 8
            | u64::from(self.logical) << 11
            | u64::from(self.polarity) << 13
            | u64::from(self.awaits_eoi) << 14
            | u64::from(self.level) << 15
            | u64::from(self.masked) << 16
            | u64::from(self.destination) << 56
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Line(u8, bool),
    Pulse(u8),
    PulseLatched(u8),
    Low(u8, u32),
    High(u8, u32),
    Eoi(u8),
    EoiRegister(u8),
    SaveRestore,
}

/// Few pins and vectors: they meet.
fn action() -> impl Strategy<Value = Action> {
    let pin = || prop_oneof![4 => 0u8..4, 1 => 0u8..24];
    let vector = || prop_oneof![4 => 0x41u8..0x44, 1 => any::<u8>()];
    let low = (
        vector(),
        prop_oneof![3 => Just(0u32), 1 => any::<u32>()],
        any::<u32>(),
    )
        .prop_map(|(vector, mode, flags)| {
            u32::from(vector) | mode & 0x700 | flags & 0xffff_f800 & !0x4000
        });
    prop_oneof![
        6 => (pin(), any::<bool>()).prop_map(|(pin, up)| Action::Line(pin, up)),
        1 => pin().prop_map(Action::Pulse),
        4 => pin().prop_map(Action::PulseLatched),
        4 => (pin(), low).prop_map(|(pin, value)| Action::Low(pin, value)),
        2 => (pin(), any::<u32>()).prop_map(|(pin, value)| Action::Low(pin, value)),
        2 => (pin(), any::<u32>()).prop_map(|(pin, value)| Action::High(pin, value)),
        5 => vector().prop_map(Action::Eoi),
        1 => vector().prop_map(Action::EoiRegister),
        1 => Just(Action::SaveRestore),
    ]
}

fn write(ioapic: &mut IoApic, index: u8, value: u32, sent: &mut Vec<InterruptMessage>) {
    let _ = ioapic.write(0, &[index], |message| sent.push(message));
    let _ = ioapic.write(0x10, &value.to_le_bytes(), |message| sent.push(message));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_ioapic_is_the_model(actions in proptest::collection::vec(action(), 0..150)) {
        let mut ioapic = IoApic::new(IoApicVersion::V20, DestinationFormat::Xapic);
        let mut pins: Vec<Pin> = (0..24).map(|_| Pin { masked: true, ..Pin::default() }).collect();
        for action in actions {
            let mut sent = Vec::new();
            let mut expected = Vec::new();
            match action {
                Action::Line(n, up) => {
                    sent.extend(ioapic.set_line(IoApicPin::new(n).unwrap(), up));
                    let pin = &mut pins[usize::from(n)];
                    let rise = up && !pin.line;
                    pin.line = up;
                    if rise {
                        pin.send(&mut expected);
                    }
                }
                Action::Pulse(n) => {
                    sent.extend(ioapic.pulse(IoApicPin::new(n).unwrap()));
                    let pin = &mut pins[usize::from(n)];
                    if !pin.line {
                        pin.send(&mut expected);
                    }
                }
                Action::PulseLatched(n) => {
                    sent.extend(ioapic.pulse_latched(IoApicPin::new(n).unwrap()));
                    let pin = &mut pins[usize::from(n)];
                    let rise = !pin.line || pin.has_levels();
                    if rise {
                        pin.send(&mut expected);
                    }
                    pin.latched |= expected.is_empty() && (pin.has_levels() || pin.masked);
                }
                Action::Low(n, value) => {
                    write(&mut ioapic, 0x10 + 2 * n, value, &mut sent);
                    let pin = &mut pins[usize::from(n)];
                    let bit = |n: u32| value >> n & 1 != 0;
                    pin.vector = value as u8;
                    pin.mode = (value >> 8 & 7) as u8;
                    pin.logical = bit(11);
                    pin.polarity = bit(13);
                    pin.level = bit(15);
                    pin.masked = bit(16);
                    pin.awaits_eoi &= pin.level;
                    pin.send_level(&mut expected);
                }
                Action::High(n, value) => {
                    write(&mut ioapic, 0x11 + 2 * n, value, &mut sent);
                    let pin = &mut pins[usize::from(n)];
                    pin.destination = (value >> 24) as u8;
                    pin.send_level(&mut expected);
                }
                Action::Eoi(vector) | Action::EoiRegister(vector) => {
                    let awaiting = ioapic.awaiting_eoi(vector);
                    let ended = if matches!(action, Action::Eoi(_)) {
                        ioapic.eoi(vector, |message| sent.push(message))
                    } else {
                        ioapic.write(0x40, &[vector], |message| sent.push(message)).ended
                    };
                    prop_assert_eq!(ended, awaiting);
                    for (n, pin) in pins.iter_mut().enumerate() {
                        let ends = pin.awaits_eoi && pin.vector == vector;
                        prop_assert_eq!(ended.0 >> n & 1 != 0, ends, "pin {} after {:?}", n, action);
                        if ends {
                            pin.awaits_eoi = false;
                            if pin.line || pin.latched {
                                pin.send(&mut expected);
                            }
                        }
                    }
                }
                Action::SaveRestore => {
                    let mut restored = IoApic::default();
                    prop_assert_eq!(restored.restore(&ioapic.save()), Ok(()));
                    prop_assert_eq!(restored, ioapic);
                    ioapic = restored;
                }
            }
            let sent: Vec<_> = sent
                .iter()
                .map(|message| {
                    let level = message.trigger_mode == crate::TriggerMode::Level;
                    (message.vector, message.destination as u8, level)
                })
                .collect();
            prop_assert_eq!(sent, expected, "{:?}", action);
            let latched = (0u8..).zip(&pins).filter(|(_, pin)| pin.latched);
            let latched: IoApicPins = latched.map(|(n, _)| IoApicPin::new(n).unwrap()).collect();
            prop_assert_eq!(ioapic.save().latched, latched, "after {:?}", action);
            for (n, pin) in (0u8..).zip(&pins) {
                let entry = ioapic.entry(IoApicPin::new(n).unwrap());
                prop_assert_eq!(entry.bits(), pin.bits(), "pin {} after {:?}", n, action);
            }
            let routes = ioapic.eoi_routes();
            let has_routes = |(n, pin): &(u32, &Pin)| {
                let now = pin.has_levels().then_some((*n, pin.route()));
                let old = pin.old_route();
                let logical = now.is_some() && pin.logical || old.is_some_and(|(_, _, logical, _)| logical);
                let everyone = logical.then_some((n + 48, (pin.vector, 0xff, false, 0)));
                [now, old.map(|route| (n + 24, route)), everyone]
            };
            let mut expected: Vec<_> = (0..).zip(&pins).flat_map(|pin| has_routes(&pin)).flatten().collect();
            expected.sort_unstable();
            let routes: Vec<_> = routes
                .iter()
                .map(|(gsi, message)| {
                    let logical = message.destination_mode == crate::DestinationMode::Logical;
                    let mode = u8::from(message.delivery_mode == crate::DeliveryMode::LowestPriority);
                    (gsi.0, (message.vector, message.destination as u8, logical, mode))
                })
                .collect();
            prop_assert_eq!(routes, expected, "after {:?}", action);
        }
    }

    /// Each EOI of a level sends one message if pulses came since the last one, and none otherwise.
    #[test]
    fn each_eoi_delivers_the_latched_pulses_as_one(pulses in proptest::collection::vec(0u8..4, 1..30)) {
        let pin = IoApicPin::new(5).unwrap();
        let mut ioapic = IoApic::default();
        let mut sent = Vec::new();
        write(&mut ioapic, 0x10 + 2 * 5, 0x8041, &mut sent);
        prop_assert!(ioapic.pulse_latched(pin).is_some());
        for count in pulses {
            for _ in 0..count {
                prop_assert_eq!(ioapic.pulse_latched(pin), None, "in service");
            }
            let mut again = 0;
            let _ = ioapic.eoi(0x41, |_| again += 1);
            prop_assert_eq!(again, u32::from(count > 0));
            if count == 0 {
                prop_assert!(ioapic.pulse_latched(pin).is_some(), "nothing is in service");
            }
        }
        prop_assert!(sent.is_empty());
    }

    #[test]
    fn no_access_panics_and_the_state_stays_valid(
        accesses in proptest::collection::vec(
            (prop_oneof![Just(0u64), Just(0x10), Just(0x40), 0u64..0x50, any::<u64>()],
             proptest::collection::vec(any::<u8>(), 0..20), 0u8..24, any::<bool>()),
            0..100,
        ),
        extended in any::<bool>(),
    ) {
        let format = if extended { DestinationFormat::Extended } else { DestinationFormat::Xapic };
        let mut ioapic = IoApic::new(IoApicVersion::V20, format);
        for (offset, data, pin, up) in accesses {
            let mut sent = 0;
            let _ = ioapic.write(offset, &data, |_| sent += 1);
            prop_assert!(sent <= 24);
            ioapic.read(offset, &mut data.clone());
            let _ = ioapic.set_line(IoApicPin::new(pin).unwrap(), up);
            let _ = ioapic.pulse_latched(IoApicPin::new((pin + 1) % 24).unwrap());
            prop_assert_eq!(IoApic::default().restore(&ioapic.save()), Ok(()));
        }
    }
}

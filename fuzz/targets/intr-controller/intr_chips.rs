//! Any guest and any devices at the 8259A pair, the IOAPIC, the 8254 and the routes to them: no
//! access panics, an operation's work is bounded, deadlines are kept, and every state that a chip
//! reaches is one that it takes back. Tampered states are refused, and nothing
//! has changed, or they are taken over, and the chip works on.
//!
//! Input: operations of a few bytes each, an operation's number first. See `step`.
#![no_main]

use fuzz::Choices;
use intr_controller::ioapic::{IoApic, IoApicPin, IoApicState, IoApicVersion, RedirectionEntry};
use intr_controller::pic::{Pic, PicPin};
use intr_controller::pit::{Pit, PitTicks};
use intr_controller::routing::{GsiRouter, LineChange, RouteEntry, RouteTarget, SourceId};
use intr_controller::{DestinationFormat, Gsi, GuestTime, MsiMessage};
use libfuzzer_sys::fuzz_target;

struct Machine {
    now: GuestTime,
    pic: Pic,
    ioapic: IoApic,
    pit: Pit,
    router: GsiRouter,
}

/// A port: mostly one of the chips', sometimes any.
fn port(input: &mut Choices) -> u16 {
    const PORTS: [u16; 12] = [
        0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x1f,
    ];
    match input.byte() {
        0xff => input.word(),
        choice => PORTS[usize::from(choice) % PORTS.len()],
    }
}

fn data(input: &mut Choices) -> Vec<u8> {
    let size = [1, 1, 1, 4, 2, 8, 0, 3][usize::from(input.byte()) % 8];
    (0..size).map(|_| input.byte()).collect()
}

impl Machine {
    fn write(&mut self, port: u16, data: &[u8]) {
        let _ = self.pic.write(port, data);
        self.pit.write(self.now, port, data);
    }

    fn read(&mut self, port: u16, mut data: Vec<u8>) {
        let _ = self.pic.read(port, &mut data);
        self.pit.read(self.now, port, &mut data);
    }

    fn acknowledge(&mut self) {
        let intr = self.pic.intr();
        let acknowledge = self.pic.acknowledge();
        assert!(
            intr || acknowledge.pin.is_none(),
            "a request without INTR: {acknowledge:?}"
        );
        let state = self.pic.save();
        if let Some(pin) = acknowledge.pin {
            let chip = if pin.get() < 8 {
                state.master
            } else {
                state.slave
            };
            let in_service = chip.isr >> (pin.get() % 8) & 1 != 0;
            assert_eq!(in_service, !chip.auto_eoi);
        }
        assert_eq!(state.master.fallen, 0, "an acknowledge ends a glitch");
    }

    fn line(&mut self, gsi: u32, source: u8, up: bool) {
        let Ok(source) = SourceId::new(source % 64) else {
            return;
        };
        let (targets, up) = match self.router.set_line(Gsi(gsi), source, up) {
            Ok(LineChange::Rose(targets)) => (targets, true),
            Ok(LineChange::Fell(targets)) => (targets, false),
            Ok(LineChange::Unchanged) | Err(_) => return,
        };
        if let Some(pin) = targets.pic {
            self.pic.set_line(pin, up);
        }
        if let Some(pin) = targets.ioapic {
            let _ = self.ioapic.set_line(pin, up);
        }
    }

    fn pass_time(&mut self, ns: u64) {
        let deadline = self.pit.next_deadline();
        self.now = self.now.saturating_add_ns(ns);
        let rises = self.pit.irq0(self.now).rises;
        let due = deadline.is_some_and(|deadline| deadline <= self.now);
        assert_eq!(due, rises > 0, "{deadline:?} {} {rises}", self.now);
    }

    fn tamper(&mut self, input: &mut Choices) {
        match input.byte() % 3 {
            0 => {
                let mut state = self.pic.save();
                let chip = if input.flag() {
                    &mut state.master
                } else {
                    &mut state.slave
                };
                let value = input.byte();
                match input.byte() % 8 {
                    0 => chip.lines = value,
                    1 => chip.latched = value,
                    2 => chip.fallen = value,
                    3 => chip.isr = value,
                    4 => chip.elcr = value,
                    5 => chip.vector_base = value,
                    6 => chip.lowest = value,
                    _ => chip.level_triggered = value & 1 != 0,
                }
                let before = self.pic;
                if self.pic.restore(&state).is_err() {
                    assert_eq!(self.pic, before);
                }
            }
            1 => {
                let mut state = self.ioapic.save();
                state.id = input.byte();
                state.lines.0 ^= u32::from(input.word()) << (input.byte() % 17);
                state.latched.0 ^= u32::from(input.word()) << (input.byte() % 17);
                let entry = usize::from(input.byte()) % state.entries.len();
                let everything = DestinationFormat::Extended;
                state.entries[entry] = RedirectionEntry::from_bits(input.quad(), everything);
                let before = self.ioapic;
                if self.ioapic.restore(&state).is_err() {
                    assert_eq!(self.ioapic, before);
                }
            }
            _ => {
                let mut state = self.pit.save();
                let channel = &mut state.channels[usize::from(input.byte() % 3)];
                let wide = u32::from(input.word());
                match input.byte() % 10 {
                    0 => channel.control = wide as u8,
                    1 => channel.reload = wide,
                    2 => channel.armed = wide & 1 != 0,
                    3 => channel.running = wide & 1 != 0,
                    4 => channel.load_pending = wide & 1 != 0,
                    5 => channel.null_count = wide & 1 != 0,
                    6 => channel.cycle = wide,
                    7 => channel.phase = wide,
                    8 => channel.remaining = wide,
                    _ => channel.terminal = wide & 1 != 0,
                }
                if input.byte() == 0xff {
                    state.at = PitTicks(input.quad());
                    state.rises = input.quad();
                }
                let before = self.pit;
                if self.pit.restore(&state).is_err() {
                    assert_eq!(self.pit, before);
                }
                // Time does not go backwards.
                if let Some(at) = self.pit.save().at.time() {
                    self.now = self.now.max(at);
                }
            }
        }
    }

    fn step(&mut self, input: &mut Choices) {
        match input.byte() % 12 {
            0 | 1 => {
                let port = port(input);
                self.write(port, &data(input));
            }
            2 => {
                let port = port(input);
                self.read(port, data(input));
            }
            3 => self.acknowledge(),
            4 | 5 => {
                let (gsi, source) = (u32::from(input.byte() % 26), input.byte());
                self.line(gsi, source, source & 0x40 != 0);
            }
            6 => {
                let offset = match input.byte() {
                    choice @ 0..0xf0 => [0x00, 0x10, 0x10, 0x40][usize::from(choice) % 4],
                    0xf0..0xff => u64::from(input.byte()),
                    0xff => input.quad(),
                };
                let data = data(input);
                let mut sent = 0;
                let _ = self.ioapic.write(offset, &data, |_| sent += 1);
                assert!(sent <= 24);
                self.ioapic.read(offset, &mut data.clone());
            }
            7 => {
                let vector = input.byte();
                let awaiting = self.ioapic.awaiting_eoi(vector);
                let mut sent = 0;
                let ended = self.ioapic.eoi(vector, |message| {
                    assert_eq!(message.vector, vector);
                    sent += 1;
                });
                assert_eq!(ended, awaiting);
                assert!(sent <= ended.0.count_ones());
            }
            8 => {
                let ns = input.quad() >> (input.byte() % 64);
                self.pass_time(ns);
            }
            9 => {
                if let Ok(pin) = PicPin::new(input.byte() % 16) {
                    self.pic.pulse(pin);
                }
                let pin = input.byte();
                if let Ok(pin) = IoApicPin::new(pin % 24) {
                    let _ = if pin.get() & 1 == 0 {
                        self.ioapic.pulse(pin)
                    } else {
                        self.ioapic.pulse_latched(pin)
                    };
                }
            }
            10 => self.tamper(input),
            _ => {
                let entries: Vec<_> = (0..input.byte() % 40)
                    .map(|_| RouteEntry {
                        gsi: Gsi(u32::from(input.byte() % 30)),
                        target: match input.byte() % 8 {
                            0 => RouteTarget::Msi(MsiMessage {
                                address: 0xfee0_0000 | u64::from(input.word()),
                                data: input.word().into(),
                            }),
                            1..4 => RouteTarget::Pic(input.byte() % 18),
                            _ => RouteTarget::IoApic(input.byte() % 26),
                        },
                    })
                    .collect();
                if let Ok(pins) = self.router.replace(&entries) {
                    for pin in pins {
                        if let Some(input) = pin.target.pic {
                            self.pic.set_line(input, pin.up);
                        }
                        if let Some(input) = pin.target.ioapic {
                            let _ = self.ioapic.set_line(input, pin.up);
                        }
                    }
                }
            }
        }
    }

    /// What always holds.
    fn check(&mut self) {
        let Self {
            now: _,
            pic,
            ioapic,
            pit,
            router,
        } = self;
        let mut restored = Pic::new();
        restored.restore(&pic.save()).expect("the pair's own state");
        assert_eq!(restored, *pic);

        let state: IoApicState = ioapic.save();
        let mut restored = IoApic::default();
        restored.restore(&state).expect("the IOAPIC's own state");
        assert_eq!(restored, *ioapic);

        let mut restored = Pit::new();
        restored
            .restore(&pit.save())
            .expect("the timer's own state");
        assert_eq!(restored, *pit);

        let mut restored = GsiRouter::default();
        restored
            .restore(&router.save())
            .expect("the router's own state");
        assert_eq!(restored, *router);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Choices::new(bytes);
    let format = if input.flag() {
        DestinationFormat::Extended
    } else {
        DestinationFormat::Xapic
    };
    let mut machine = Machine {
        now: GuestTime::ZERO,
        pic: Pic::new(),
        ioapic: IoApic::new(IoApicVersion::V20, format),
        pit: Pit::new(),
        router: GsiRouter::new(&GsiRouter::pc_entries(), format).expect("a good table"),
    };
    while !input.is_empty() {
        machine.step(&mut input);
        machine.check();
    }
});

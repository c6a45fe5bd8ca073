//! A naive 8254 beside the real one: it counts tick by tick, as the data sheet tells it.

use proptest::prelude::*;

use super::super::*;
use crate::GuestTime;

#[derive(Clone, Debug)]
struct Counter {
    control: u8,
    gate: bool,
    register: u32,
    written: bool,
    element: u32,
    /// The count that the element was loaded with.
    loaded: Option<u32>,
    load: bool,
    null: bool,
    /// A terminal count is ahead.
    ahead: bool,
    out: bool,
    low: Option<u8>,
    high_next: bool,
    latched: Option<u16>,
    status: Option<u8>,
    rises: u64,
}

impl Counter {
    fn new(gate: bool) -> Self {
        Self {
            control: 0x36,
            gate,
            register: 0,
            written: false,
            element: 0,
            loaded: None,
            load: false,
            null: true,
            ahead: false,
            out: true,
            low: None,
            high_next: false,
            latched: None,
            status: None,
            rises: 0,
        }
    }

    fn mode(&self) -> u8 {
        match self.control >> 1 & 7 {
            6 => 2,
            7 => 3,
            mode => mode,
        }
    }

    fn base(&self) -> u32 {
        if self.control & 1 != 0 {
            10_000
        } else {
            65_536
        }
    }

    fn set_out(&mut self, out: bool) {
        if out && !self.out {
            self.rises += 1;
        }
        self.out = out;
    }

    fn reload(&mut self) {
        self.null = false;
        self.loaded = Some(self.register);
        self.element = match self.mode() {
            3 => self.register / 2 * 2,
            2 => self.register,
            _ => self.register % self.base(),
        };
    }

    fn tick(&mut self) {
        let mode = self.mode();
        if mode >= 4 {
            self.set_out(true);
        }
        if self.load {
            self.load = false;
            self.reload();
            self.ahead = true;
            match mode {
                1 => self.set_out(false),
                2 | 3 => self.set_out(true),
                _ => {}
            }
            return;
        }
        let Some(loaded) = self.loaded else { return };
        let stopped = match mode {
            0 => !self.gate || self.low.is_some(),
            2..=4 => !self.gate,
            _ => false,
        };
        if stopped {
            return;
        }
        match mode {
            2 | 3 if loaded == 1 => self.reload(),
            2 => {
                self.element -= 1;
                if self.element == 0 {
                    self.reload();
                    self.set_out(true);
                } else if self.element == 1 {
                    self.set_out(false);
                }
            }
            3 => {
                if self.out && loaded % 2 == 1 && self.element == 0 {
                    self.reload();
                    let one = self.register == 1;
                    self.set_out(one);
                    return;
                }
                self.element -= 2;
                let odd_high = self.out && loaded % 2 == 1;
                if self.element == 0 && !odd_high {
                    self.reload();
                    let out = !self.out || self.register == 1;
                    self.set_out(out);
                }
            }
            _ => {
                let base = self.base();
                self.element = if self.element == 0 {
                    base - 1
                } else {
                    self.element - 1
                };
                // A BCD count above 9999 passes zero on its way.
                let full = loaded > base && loaded - base > 0;
                if self.ahead && self.element == 0 {
                    if full {
                        self.loaded = Some(loaded - base);
                        return;
                    }
                    self.ahead = false;
                    self.set_out(mode < 4);
                }
            }
        }
    }

    fn control(&mut self, control: u8) {
        let rises = self.rises;
        let element = if self.loaded.is_some() {
            self.element % self.base()
        } else {
            self.element
        };
        let was = self.out;
        *self = Self {
            control: control & 0x3f,
            element,
            ..Self::new(self.gate)
        };
        self.rises = rises;
        self.out = was;
        let out = self.mode() != 0;
        self.set_out(out);
    }

    fn write(&mut self, value: u8) {
        let word = match (self.control >> 4 & 3, self.low) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, None) => {
                self.low = Some(value);
                if self.mode() == 0 {
                    self.ahead = false;
                    self.set_out(false);
                }
                return;
            }
            (_, Some(low)) => u16::from_le_bytes([low, value]),
        };
        self.low = None;
        let mut number = u32::from(word);
        if self.control & 1 != 0 {
            number = (0..4)
                .map(|n| (number >> (4 * n) & 0xf) * 10u32.pow(n))
                .sum();
        }
        self.register = if number == 0 { self.base() } else { number };
        self.written = true;
        self.null = true;
        match self.mode() {
            0 => {
                self.ahead = false;
                self.set_out(false);
                self.load = true;
            }
            4 => self.load = true,
            2 | 3 if self.loaded.is_none() => self.load = true,
            _ => {}
        }
    }

    fn gate(&mut self, gate: bool) {
        let rise = gate && !self.gate;
        self.gate = gate;
        match self.mode() {
            1 | 5 if rise && self.written => self.load = true,
            2 | 3 => {
                if rise && self.written {
                    self.load = true;
                }
                if !gate {
                    self.set_out(true);
                }
            }
            _ => {}
        }
    }

    fn value(&self) -> u16 {
        let mut element = self.element;
        if self.loaded.is_some() {
            element %= self.base();
        }
        if self.control & 1 != 0 {
            element = (0..4)
                .map(|n| (element / 10u32.pow(n) % 10) << (4 * n))
                .sum();
        }
        (element & 0xffff) as u16
    }

    fn read(&mut self) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or(self.value()).to_le_bytes();
        match self.control >> 4 & 3 {
            1 => {
                self.latched = None;
                low
            }
            2 => {
                self.latched = None;
                high
            }
            _ if self.high_next => {
                self.high_next = false;
                self.latched = None;
                high
            }
            _ => {
                self.high_next = true;
                low
            }
        }
    }

    fn latch(&mut self, count: bool, status: bool) {
        if count && self.latched.is_none() {
            self.latched = Some(self.value());
        }
        if status && self.status.is_none() {
            self.status = Some(self.control | u8::from(self.null) << 6 | u8::from(self.out) << 7);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Control(u8),
    Count(u8, u8),
    Gate(bool),
    Read(u8),
    Ticks(u32),
    TakeRises,
    SaveRestore,
}

fn action() -> impl Strategy<Value = Action> {
    let control =
        (0u8..3, 1u8..4, 0u8..8, any::<bool>()).prop_map(|(counter, access, mode, bcd)| {
            // Mostly binary, low byte only.
            counter << 6 | access << 4 | mode << 1 | u8::from(bcd)
        });
    let low_only = (0u8..3, 0u8..6).prop_map(|(counter, mode)| counter << 6 | 0x10 | mode << 1);
    let latch = prop_oneof![
        (0u8..3).prop_map(|counter| counter << 6),
        (0u8..16, 0u8..4).prop_map(|(counters, what)| 0xc0 | what << 4 | (counters & 0xe)),
    ];
    let value = prop_oneof![4 => 0u8..12, 1 => any::<u8>()];
    prop_oneof![
        2 => low_only.prop_map(Action::Control),
        2 => control.prop_map(Action::Control),
        2 => latch.prop_map(Action::Control),
        6 => (0u8..3, value).prop_map(|(counter, value)| Action::Count(counter, value)),
        2 => any::<bool>().prop_map(Action::Gate),
        6 => (0u8..3).prop_map(Action::Read),
        8 => (1u32..15).prop_map(Action::Ticks),
        1 => (1u32..80_000).prop_map(Action::Ticks),
        2 => Just(Action::TakeRises),
        1 => Just(Action::SaveRestore),
    ]
}

fn time(tick: u64) -> GuestTime {
    PitTicks(tick).time().unwrap()
}

/// After how many ticks OUT rises, if that is soon.
fn next_rise(counter: &Counter, limit: u64) -> Option<u64> {
    let mut counter = counter.clone();
    let before = counter.rises;
    (1..=limit).find(|_| {
        counter.tick();
        counter.rises > before
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_timer_is_the_model(actions in proptest::collection::vec(action(), 0..80)) {
        let mut pit = Pit::new();
        let mut model = [Counter::new(true), Counter::new(true), Counter::new(false)];
        let mut tick = 0;
        for action in actions {
            let now = time(tick);
            match action {
                Action::Control(value) => {
                    pit.write(now, 0x43, &[value]);
                    match value >> 6 {
                        3 => {
                            for (n, counter) in model.iter_mut().enumerate() {
                                if value >> (n + 1) & 1 != 0 {
                                    counter.latch(value & 0x20 == 0, value & 0x10 == 0);
                                }
                            }
                        }
                        n if value & 0x30 == 0 => model[usize::from(n)].latch(true, false),
                        n => model[usize::from(n)].control(value),
                    }
                }
                Action::Count(n, value) => {
                    pit.write(now, 0x40 + u16::from(n), &[value]);
                    model[usize::from(n)].write(value);
                }
                Action::Gate(gate) => {
                    pit.write(now, 0x61, &[u8::from(gate)]);
                    model[2].gate(gate);
                }
                Action::Read(n) => {
                    let mut data = [0];
                    pit.read(now, 0x40 + u16::from(n), &mut data);
                    prop_assert_eq!(data[0], model[usize::from(n)].read(), "read at tick {}", tick);
                }
                Action::Ticks(ticks) => {
                    tick += u64::from(ticks);
                    for _ in 0..ticks {
                        model.iter_mut().for_each(Counter::tick);
                    }
                }
                Action::TakeRises => {
                    let Irq0 { rises, level } = pit.irq0(now);
                    prop_assert_eq!(rises, model[0].rises, "rises at tick {}", tick);
                    prop_assert_eq!(level, model[0].out);
                    model[0].rises = 0;
                    let deadline = pit.next_deadline().map(PitTicks::at);
                    match next_rise(&model[0], 3000) {
                        Some(ticks) => prop_assert_eq!(deadline, Some(PitTicks(tick + ticks))),
                        None => prop_assert!(deadline.is_none_or(|at| at.0 > tick + 3000)),
                    }
                }
                Action::SaveRestore => {
                    let mut restored = Pit::new();
                    prop_assert_eq!(restored.restore(&pit.save()), Ok(()));
                    prop_assert_eq!(restored, pit);
                    pit = restored;
                }
            }
            let mut data = [0];
            pit.read(time(tick), 0x61, &mut data);
            prop_assert_eq!(data[0] & 0x20 != 0, model[2].out, "OUT2 after {:?}", action);
        }
    }

    /// One long step is as many short ones, however long.
    #[test]
    fn time_may_pass_in_any_steps(
        control in (1u8..4, 0u8..8, any::<bool>())
            .prop_map(|(access, mode, bcd)| access << 4 | mode << 1 | u8::from(bcd)),
        counts in proptest::collection::vec(any::<u8>(), 1..5),
        steps in proptest::collection::vec(0u64..1 << 40, 1..20),
    ) {
        let mut stepped = Pit::new();
        stepped.write(GuestTime::ZERO, 0x43, &[control]);
        for count in counts {
            stepped.write(GuestTime::ZERO, 0x40, &[count]);
        }
        let mut jumped = stepped;
        let mut now = 0;
        let mut rises = 0;
        for step in steps {
            now += step;
            rises += stepped.irq0(GuestTime::from_ns(now)).rises;
        }
        let jump = jumped.irq0(GuestTime::from_ns(now));
        prop_assert_eq!(jump.rises, rises);
        prop_assert_eq!(jumped, stepped);
    }
}

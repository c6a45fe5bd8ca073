//! A naive pair beside the real one: booleans and loops, written from the data sheet.

use alloc::vec::Vec;

use proptest::prelude::*;

use super::super::*;

#[derive(Clone, Default)]
struct Level {
    line: bool,
    edge: bool,
    fell: bool,
    masked: bool,
    in_service: bool,
    level: bool,
}

/// A chip that is initialised, with ICW4's modes as parameters.
#[derive(Clone)]
struct Chip {
    levels: Vec<Level>,
    /// Most urgent first.
    order: Vec<usize>,
    base: u8,
    auto_eoi: bool,
    rotate: bool,
    nested: bool,
    special_mask: bool,
    poll: bool,
    read_isr: bool,
}

impl Chip {
    fn new(base: u8, auto_eoi: bool, nested: bool) -> Self {
        Self {
            levels: (0..8).map(|_| Level::default()).collect(),
            order: (0..8).collect(),
            base,
            auto_eoi,
            rotate: false,
            nested,
            special_mask: false,
            poll: false,
            read_isr: false,
        }
    }

    fn requests(&self, n: usize) -> bool {
        let level = &self.levels[n];
        if level.level { level.line } else { level.edge }
    }

    /// The level that interrupts, among those for which `asks` holds.
    fn winner(&self, asks: impl Fn(usize) -> bool) -> Option<usize> {
        for n in &self.order {
            let level = &self.levels[*n];
            if asks(*n) && !level.masked && (!level.in_service || (self.nested && *n == 2)) {
                return Some(*n);
            }
            if level.in_service && !(self.special_mask && level.masked) {
                return None;
            }
            // In special mask mode a level in service that is masked asks for nothing and blocks
            // nothing.
        }
        None
    }

    fn int(&self) -> bool {
        self.winner(|n| self.requests(n) || self.levels[n].fell)
            .is_some()
    }

    fn drive(&mut self, n: usize, up: bool, glitch: bool) {
        let level = &self.levels[n];
        match (level.line, up) {
            (false, true) => {
                let level = &mut self.levels[n];
                level.line = true;
                level.fell = false;
                level.edge = !level.level;
            }
            (true, false) => {
                let asked = self.requests(n) && self.winner(|other| other == n).is_some();
                let level = &mut self.levels[n];
                level.line = false;
                level.edge = false;
                level.fell |= asked && glitch;
            }
            _ => {}
        }
    }

    fn take(&mut self) -> Option<usize> {
        let winner = self.winner(|n| self.requests(n));
        self.levels.iter_mut().for_each(|level| level.fell = false);
        let n = winner?;
        self.levels[n].edge = false;
        if !self.auto_eoi {
            self.levels[n].in_service = true;
        } else if self.rotate {
            self.make_lowest(n);
        }
        Some(n)
    }

    fn make_lowest(&mut self, n: usize) {
        while *self.order.last().unwrap() != n {
            self.order.rotate_left(1);
        }
    }

    fn bits(&self, bit: impl Fn(usize) -> bool) -> u8 {
        (0..8).map(|n| u8::from(bit(n)) << n).sum()
    }

    fn eoi(&mut self, specific: Option<usize>, rotate: bool) {
        let n = specific.or_else(|| {
            let mut order = self.order.iter().copied();
            order.find(|n| {
                let level = &self.levels[*n];
                level.in_service && !(self.special_mask && level.masked)
            })
        });
        if let Some(n) = n {
            self.levels[n].in_service = false;
            if rotate {
                self.make_lowest(n);
            }
        }
    }

    fn command(&mut self, value: u8) {
        let n = usize::from(value & 7);
        match value & 0xf8 {
            0x00 => self.rotate = false,
            0x80 => self.rotate = true,
            0x20 => self.eoi(None, false),
            0xa0 => self.eoi(None, true),
            0x60 => self.eoi(Some(n), false),
            0xe0 => self.eoi(Some(n), true),
            0xc0 => self.make_lowest(n),
            0x68 => self.special_mask = true,
            0x48 => self.special_mask = false,
            0x08 => {
                self.poll |= value & 4 != 0;
                if value & 2 != 0 {
                    self.read_isr = value & 1 != 0;
                }
            }
            _ => {}
        }
    }
}

#[derive(Clone)]
struct Model {
    chips: [Chip; 2],
}

impl Model {
    fn rewire(&mut self, reset: bool) {
        if reset {
            self.chips[0].drive(2, false, false);
        }
        let int = self.chips[1].int();
        self.chips[0].drive(2, int, false);
    }

    fn acknowledge(&mut self) -> u8 {
        let taken = self.chips[0].take();
        let (chip, level) = if taken == Some(2) {
            let taken = self.chips[1].take();
            self.rewire(true);
            (1, taken)
        } else {
            (0, taken)
        };
        self.chips[chip].base + u8::try_from(level.unwrap_or(7)).unwrap()
    }

    fn read(&mut self, chip: usize, a0: bool) -> u8 {
        if self.chips[chip].poll {
            self.chips[chip].poll = false;
            let taken = self.chips[chip].take();
            if chip == 1 {
                self.rewire(true);
            }
            return taken.map_or(0, |n| 0x80 + u8::try_from(n).unwrap());
        }
        let chip = &self.chips[chip];
        match (a0, chip.read_isr) {
            (true, _) => chip.bits(|n| chip.levels[n].masked),
            (false, true) => chip.bits(|n| chip.levels[n].in_service),
            (false, false) => chip.bits(|n| chip.requests(n)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Line(u8, bool),
    Pulse(u8),
    Acknowledge,
    Command(usize, u8),
    Mask(usize, u8),
    Elcr(usize, u8),
    Read(usize, bool),
    SaveRestore,
}

const CHIP: [u16; 2] = [0x20, 0xa0];
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

fn action() -> impl Strategy<Value = Action> {
    let pin = || (0u8..16).prop_filter("cascade", |pin| *pin != 2);
    let chip = || 0usize..2;
    // Operation commands: not ICW1, and of OCW3 not both special mask and poll at once.
    let command = prop_oneof![
        3 => Just(0x20),
        4 => (0u8..8, 0u8..8).prop_map(|(command, level)| command << 5 | level),
        1 => prop_oneof![Just(0x68), Just(0x48)],
        2 => (0u8..8).prop_map(|low| 0x08 | low),
    ];
    prop_oneof![
        8 => (pin(), any::<bool>()).prop_map(|(pin, up)| Action::Line(pin, up)),
        2 => pin().prop_map(Action::Pulse),
        5 => Just(Action::Acknowledge),
        5 => (chip(), command).prop_map(|(chip, value)| Action::Command(chip, value)),
        2 => (chip(), any::<u8>(), any::<u8>()).prop_map(|(chip, a, b)| Action::Mask(chip, a & b)),
        1 => (chip(), any::<u8>()).prop_map(|(chip, value)| Action::Elcr(chip, value)),
        3 => (chip(), any::<bool>()).prop_map(|(chip, a0)| Action::Read(chip, a0)),
        1 => Just(Action::SaveRestore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_pair_is_the_model(
        icw4 in prop_oneof![Just(0x01u8), Just(0x03), Just(0x11), Just(0x13)],
        actions in proptest::collection::vec(action(), 0..150),
    ) {
        let mut pic = Pic::new();
        let (auto_eoi, nested) = (icw4 & 2 != 0, icw4 & 16 != 0);
        let mut model = Model {
            chips: [Chip::new(0x30, auto_eoi, nested), Chip::new(0x48, auto_eoi, false)],
        };
        for (port, words) in [(0x20, [0x30, 4, icw4]), (0xa0, [0x48, 2, icw4])] {
            let _ = pic.write(port, &[0x11]);
            for word in words {
                let _ = pic.write(port + 1, &[word]);
            }
        }
        for action in actions {
            match action {
                Action::Line(pin, up) => {
                    pic.set_line(PicPin::new(pin).unwrap(), up);
                    model.chips[usize::from(pin / 8)].drive((pin % 8).into(), up, true);
                    model.rewire(false);
                }
                Action::Pulse(pin) => {
                    pic.pulse(PicPin::new(pin).unwrap());
                    let level = &mut model.chips[usize::from(pin / 8)].levels[usize::from(pin % 8)];
                    if !level.line {
                        level.fell = false;
                        level.edge = !level.level;
                    }
                    model.rewire(false);
                }
                Action::Acknowledge => {
                    prop_assert_eq!(pic.acknowledge().vector, model.acknowledge());
                }
                Action::Command(chip, value) => {
                    let _ = pic.write(CHIP[chip], &[value]);
                    model.chips[chip].command(value);
                    model.rewire(false);
                }
                Action::Mask(chip, value) => {
                    let _ = pic.write(CHIP[chip] + 1, &[value]);
                    for (n, level) in model.chips[chip].levels.iter_mut().enumerate() {
                        level.masked = value >> n & 1 != 0;
                    }
                    model.rewire(false);
                }
                Action::Elcr(chip, value) => {
                    let _ = pic.write(0x4d0 + u16::try_from(chip).unwrap(), &[value]);
                    for (n, level) in model.chips[chip].levels.iter_mut().enumerate() {
                        level.level = (value & ELCR_MASK[chip]) >> n & 1 != 0;
                        level.edge &= !level.level;
                    }
                    model.rewire(false);
                }
                Action::Read(chip, a0) => {
                    let mut data = [0];
                    let _ = pic.read(CHIP[chip] + u16::from(a0), &mut data);
                    prop_assert_eq!(data[0], model.read(chip, a0));
                }
                Action::SaveRestore => {
                    let mut restored = Pic::new();
                    prop_assert_eq!(restored.restore(&pic.save()), Ok(()));
                    prop_assert_eq!(restored, pic);
                    pic = restored;
                }
            }
            prop_assert_eq!(pic.intr(), model.chips[0].int(), "INTR after {:?}", action);
        }
    }

    /// Any bytes at any of the ports: the state stays one that is taken over.
    #[test]
    fn any_writes_leave_a_valid_state(
        writes in proptest::collection::vec(
            (prop_oneof![Just(0x20u16), Just(0x21), Just(0xa0), Just(0xa1), Just(0x4d0), Just(0x4d1)],
             any::<u8>(), 0u8..16, any::<bool>(), 0u8..4),
            0..200,
        ),
    ) {
        let mut pic = Pic::new();
        for (port, value, pin, up, then) in writes {
            let _ = pic.write(port, &[value]);
            if let Ok(pin) = PicPin::new(pin) {
                pic.set_line(pin, up);
            }
            match then {
                0 => { let _ = pic.acknowledge(); }
                1 => { let _ = pic.read(port, &mut [0; 2]); }
                _ => {}
            }
            let mut restored = Pic::new();
            prop_assert_eq!(restored.restore(&pic.save()), Ok(()));
            prop_assert_eq!(restored, pic);
        }
    }
}

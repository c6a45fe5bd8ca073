//! One 8259A. Sections are those of the 8259A data sheet (Intel 231468).

use super::command::{Command, Icw1, Icw4, Ocw2, Ocw3};
use super::state::{InitStep, Pic8259State};
use super::{CASCADE, INPUTS};

/// Which of the pair it is. That is wiring and not state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Master,
    Slave,
}

impl Role {
    /// The inputs that may be level-triggered by ELCR: not the timer, keyboard, cascade, real-time
    /// clock and coprocessor, which the chipset's registers keep at zero.
    pub(super) const fn elcr_mask(self) -> u8 {
        match self {
            Self::Master => 0xf8,
            Self::Slave => 0xde,
        }
    }
}

/// How an input falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fall {
    /// The device let go: INT stays up until the next acknowledge.
    Glitch,
    /// The chip behind the input was programmed or acknowledged: INT follows.
    Quiet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chip {
    pub(super) state: Pic8259State,
    role: Role,
}

/// What an INTA cycle found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// The level, or `None`: the default IR7.
    pub(super) level: Option<u8>,
    /// Levels whose service ended at once (automatic EOI).
    pub(super) ended: u8,
}

impl Chip {
    pub(super) const fn new(role: Role) -> Self {
        Self::from_state(role, Pic8259State::POWER_ON)
    }

    pub(super) const fn from_state(role: Role, state: Pic8259State) -> Self {
        Self { state, role }
    }

    /// The inputs that are level-triggered: all by LTIM, or each by ELCR.
    pub(super) const fn level_inputs(&self) -> u8 {
        if self.state.level_triggered {
            u8::MAX
        } else {
            self.state.elcr
        }
    }

    /// "Interrupt request register": an edge that was latched, or a level as it is.
    pub(super) const fn irr(&self) -> u8 {
        let level = self.level_inputs();
        self.state.latched & !level | self.state.lines & level
    }

    /// The place of the most urgent of these levels in the order, 0 first; 8 for none.
    /// ("Automatic rotation": the level after the lowest is the highest.)
    fn rank(&self, levels: u8) -> u8 {
        let highest = (self.state.lowest + 1) % INPUTS;
        let zeros = levels.rotate_right(highest.into()).trailing_zeros();
        // At most 8.
        zeros.to_le_bytes()[0]
    }

    /// The level at a place in the order.
    const fn level_at(&self, rank: u8) -> u8 {
        (self.state.lowest + 1 + rank) % INPUTS
    }

    /// "Priority resolver": which of these requests interrupts what is in service.
    fn resolve(&self, requests: u8) -> Option<u8> {
        let requests = self.rank(requests & !self.state.imr);
        if requests >= INPUTS {
            return None;
        }
        let mut in_service = self.state.isr;
        if self.state.special_mask {
            // "Special mask mode": a masked level in service inhibits no other.
            in_service &= !self.state.imr;
        }
        let in_service = self.rank(in_service);
        let level = self.level_at(requests);
        // "The special fully nested mode": a slave in service is not locked out from the master's
        // priority logic, while less urgent inputs stay locked out (KVM and QEMU let those pass).
        let nested = self.state.special_fully_nested
            && self.role == Role::Master
            && level == CASCADE
            && requests == in_service;
        (requests < in_service || nested).then_some(level)
    }

    /// The INT output.
    pub(super) fn int(&self) -> bool {
        self.state.init == InitStep::Ready && self.resolve(self.irr() | self.state.fallen).is_some()
    }

    /// Drives an input, 0 to 7.
    pub(super) fn drive(&mut self, level: u8, up: bool, fall: Fall) {
        let bit = 1 << (level % INPUTS);
        let was_up = self.state.lines & bit != 0;
        if up == was_up {
            return;
        }
        if up {
            self.state.lines |= bit;
            self.state.fallen &= !bit;
            self.latch(bit);
            return;
        }
        // "Edge and level triggered modes": the input must stay high until INTA.
        let raises_int = self.irr() & bit != 0 && self.resolve(bit).is_some();
        self.state.lines &= !bit;
        self.state.latched &= !bit;
        if raises_int && fall == Fall::Glitch && self.state.init == InitStep::Ready {
            self.state.fallen |= bit;
        }
    }

    /// The edge sense latch, which inputs that are level-triggered do not use.
    const fn latch(&mut self, bit: u8) {
        self.state.latched |= bit & !self.level_inputs();
    }

    /// A rise that lasts until it is acknowledged, if the input is not up already.
    pub(super) const fn pulse(&mut self, level: u8) {
        let bit = 1 << (level % INPUTS);
        if self.state.lines & bit == 0 {
            self.state.fallen &= !bit;
            self.latch(bit);
        }
    }

    /// "Interrupt sequence": an INTA cycle, or the read of a poll.
    pub(super) fn take(&mut self) -> Taken {
        let level = match self.state.init {
            InitStep::Ready => self.resolve(self.irr()),
            _ => None,
        };
        self.state.fallen = 0;
        let Some(level) = level else {
            // "A DEFAULT IR7 will occur": its ISR bit is not set.
            return Taken { level, ended: 0 };
        };
        let bit = 1 << level;
        self.state.latched &= !bit;
        if !self.state.auto_eoi {
            self.state.isr |= bit;
            return Taken {
                level: Some(level),
                ended: 0,
            };
        }
        // "Automatic end of interrupt mode": EOI at the last INTA, with rotation if set.
        if self.state.rotate_in_auto_eoi {
            self.state.lowest = level;
        }
        Taken {
            level: Some(level),
            ended: bit,
        }
    }

    /// The vector of a level. The default is 7.
    pub(super) fn vector(&self, level: Option<u8>) -> u8 {
        self.state.vector_base | level.unwrap_or(7)
    }

    /// A write with A0 = 0. Returns the levels whose service ended.
    pub(super) fn command(&mut self, value: u8) -> u8 {
        match Command::decode(value) {
            Command::Icw1(icw1) => self.initialise(icw1),
            Command::Ocw2(ocw2) => self.ocw2(ocw2),
            Command::Ocw3(ocw3) => {
                self.ocw3(ocw3);
                0
            }
        }
    }

    /// "Initialization command words 1 and 2": what ICW1 does at once.
    fn initialise(&mut self, icw1: Icw1) -> u8 {
        let Icw1 {
            needs_icw4,
            single,
            level_triggered,
        } = icw1;
        let old = self.state;
        self.state = Pic8259State {
            // Pins and the chipset's registers are not the chip's own.
            lines: old.lines,
            elcr: old.elcr,
            // Rewritten by ICW2.
            vector_base: old.vector_base,
            // (f) "If IC4 = 0, then all functions selected in ICW4 are set to zero."
            auto_eoi: old.auto_eoi && needs_icw4,
            special_fully_nested: old.special_fully_nested && needs_icw4,
            level_triggered,
            single,
            needs_icw4,
            init: InitStep::Icw2,
            // (a) The edge sense circuit is reset: an input must rise again. (b) IMR is cleared.
            // (c) IR7 is assigned priority 7. (e) Special mask mode is cleared and status read is
            // set to IRR. Of (d), the slave's address, nothing is left.
            ..Pic8259State::POWER_ON
        };
        old.isr
    }

    fn ocw2(&mut self, ocw2: Ocw2) -> u8 {
        match ocw2 {
            Ocw2::RotateInAutoEoi(rotate) => {
                self.state.rotate_in_auto_eoi = rotate;
                0
            }
            Ocw2::NonSpecificEoi => self.non_specific_eoi().map_or(0, |level| 1 << level),
            Ocw2::RotateOnNonSpecificEoi => self.non_specific_eoi().map_or(0, |level| {
                self.state.lowest = level;
                1 << level
            }),
            Ocw2::SpecificEoi(level) => self.eoi(level),
            Ocw2::SetPriority(level) => {
                self.state.lowest = level % INPUTS;
                0
            }
            Ocw2::RotateOnSpecificEoi(level) => {
                self.state.lowest = level % INPUTS;
                self.eoi(level)
            }
            Ocw2::NoOperation => 0,
        }
    }

    fn eoi(&mut self, level: u8) -> u8 {
        let bit = self.state.isr & 1 << (level % INPUTS);
        self.state.isr &= !bit;
        bit
    }

    /// "End of interrupt": the highest in-service level; in special mask mode not one that IMR
    /// masks.
    fn non_specific_eoi(&mut self) -> Option<u8> {
        let mut in_service = self.state.isr;
        if self.state.special_mask {
            in_service &= !self.state.imr;
        }
        let rank = self.rank(in_service);
        if rank >= INPUTS {
            return None;
        }
        let level = self.level_at(rank);
        self.state.isr &= !(1 << level);
        Some(level)
    }

    fn ocw3(&mut self, ocw3: Ocw3) {
        if let Some(special_mask) = ocw3.special_mask {
            self.state.special_mask = special_mask;
        }
        if let Some(read_isr) = ocw3.read_isr {
            self.state.read_isr = read_isr;
        }
        // A poll waits for its read; a later OCW3 without P does not take it back.
        self.state.poll |= ocw3.poll;
    }

    /// A write with A0 = 1: the ICW that is due, or OCW1.
    pub(super) const fn data(&mut self, value: u8) {
        let state = &mut self.state;
        state.init = match state.init {
            InitStep::Ready => {
                state.imr = value;
                InitStep::Ready
            }
            InitStep::Icw2 => {
                // In 8086 mode A10 to A8 are not part of the vector.
                state.vector_base = value & 0xf8;
                match (state.single, state.needs_icw4) {
                    (false, _) => InitStep::Icw3,
                    (true, true) => InitStep::Icw4,
                    (true, false) => InitStep::Ready,
                }
            }
            InitStep::Icw3 if state.needs_icw4 => InitStep::Icw4,
            InitStep::Icw3 => InitStep::Ready,
            InitStep::Icw4 => {
                let icw4 = Icw4::decode(value);
                state.auto_eoi = icw4.auto_eoi;
                state.special_fully_nested = icw4.special_fully_nested;
                InitStep::Ready
            }
        };
    }

    /// "Reading the 8259A status", without the poll.
    pub(super) const fn register(&self, a0: bool) -> u8 {
        match (a0, self.state.read_isr) {
            (true, _) => self.state.imr,
            (false, true) => self.state.isr,
            (false, false) => self.irr(),
        }
    }

    /// ELCR is the chipset's: bits of inputs that cannot be level-triggered stay zero.
    pub(super) const fn set_elcr(&mut self, value: u8) {
        self.state.elcr = value & self.role.elcr_mask();
        self.state.latched &= !self.level_inputs();
    }
}

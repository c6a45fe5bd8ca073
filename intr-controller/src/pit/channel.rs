//! One counter. Sections are those of the 82C54 data sheet (Intel 231244).

use super::state::{Access, Mode, PitChannelState};

/// What a number of ticks brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rises(pub(super) u64);

impl PitChannelState {
    /// The OUT pin.
    pub(super) const fn out(&self) -> bool {
        match self.mode() {
            Mode::InterruptOnTerminalCount => self.terminal,
            Mode::HardwareOneShot => self.remaining == 0,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => !self.terminal,
            // GATE low sets OUT high, until its rise has loaded the count.
            Mode::RateGenerator | Mode::SquareWave
                if !self.gate || self.load_pending || !self.running =>
            {
                true
            }
            Mode::RateGenerator => self.cycle == 1 || self.phase != self.cycle - 1,
            Mode::SquareWave => self.phase < high_half(self.cycle),
        }
    }

    /// The counting element as a number.
    const fn element(&self) -> u32 {
        if !self.running || !self.periodic() {
            return self.count;
        }
        let Self { cycle, phase, .. } = *self;
        let element = match self.mode() {
            // "Mode 3", even counts: N, N - 2, …, 2 in each half. Odd counts: N - 1, N - 3, … to 0
            // in the high half, which is the longer by a tick, and to 2 in the low one.
            Mode::SquareWave => {
                let high = high_half(cycle);
                let position = if phase < high { phase } else { phase - high };
                (cycle & !1) - 2 * position
            }
            _ => cycle - phase,
        };
        element % self.base()
    }

    /// The counting element as the guest reads it.
    fn shown(&self) -> u16 {
        let element = self.element();
        let shown = if self.bcd() {
            let digit = |place| element / place % 10;
            digit(1) | digit(10) << 4 | digit(100) << 8 | digit(1000) << 12
        } else {
            element
        };
        let [low, high, ..] = shown.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Whether the counter counts, GATE and a half-written count permitting ("Gate pin operations
    /// summary").
    const fn counts(&self) -> bool {
        self.running
            && match self.mode() {
                // "Writing the first byte disables counting."
                Mode::InterruptOnTerminalCount => self.gate && self.low_byte.is_none(),
                Mode::RateGenerator | Mode::SquareWave | Mode::SoftwareStrobe => self.gate,
                Mode::HardwareOneShot | Mode::HardwareStrobe => true,
            }
    }

    /// Lets ticks pass. Returns how often OUT rose.
    pub(super) fn advance(&mut self, mut ticks: u64) -> Rises {
        let mut rises = Rises(0);
        if ticks == 0 {
            return rises;
        }
        if self.terminal && self.mode() != Mode::InterruptOnTerminalCount {
            // "OUT will go low for one CLK pulse and then go high again."
            self.terminal = false;
            rises.0 += 1;
        }
        if self.load_pending {
            self.load();
            ticks -= 1;
        }
        if !self.counts() || ticks == 0 {
            return rises;
        }
        if self.periodic() {
            self.cycle_on(ticks, &mut rises);
        } else {
            self.count_down(ticks, &mut rises);
        }
        rises
    }

    /// The count register goes into the counting element.
    const fn load(&mut self) {
        self.load_pending = false;
        self.null_count = false;
        self.running = true;
        self.terminal = false;
        if self.periodic() {
            self.cycle = self.reload;
            self.phase = 0;
        } else {
            self.remaining = self.reload;
            self.count = self.reload % self.base();
        }
    }

    /// Modes 0, 1, 4 and 5. After the terminal count they wrap and count on.
    fn count_down(&mut self, ticks: u64, rises: &mut Rises) {
        let base = self.base();
        let wrapped = remainder(ticks, base);
        self.count = (self.count + base - wrapped) % base;
        if self.remaining == 0 {
            return;
        }
        let missing = u64::from(self.remaining);
        if ticks < missing {
            self.remaining -= remainder(ticks, self.remaining);
            return;
        }
        self.remaining = 0;
        match self.mode() {
            Mode::InterruptOnTerminalCount => {
                self.terminal = true;
                rises.0 += 1;
            }
            Mode::HardwareOneShot => rises.0 += 1,
            _ if ticks == missing => self.terminal = true,
            // The strobe is over.
            _ => rises.0 += 1,
        }
    }

    /// Modes 2 and 3.
    fn cycle_on(&mut self, mut ticks: u64, rises: &mut Rises) {
        if self.null_count {
            // A count that was written during the cycle is loaded at the end of the cycle, in mode 3 of
            // the half-cycle.
            let high = high_half(self.cycle);
            let ends_high = self.mode() == Mode::SquareWave && self.phase < high && self.cycle > 1;
            let end = if ends_high { high } else { self.cycle };
            let missing = u64::from(end - self.phase);
            if ticks < missing {
                self.phase += remainder(ticks, end);
                return;
            }
            ticks -= missing;
            self.null_count = false;
            if !ends_high && self.cycle > 1 {
                rises.0 += 1;
            }
            self.cycle = self.reload;
            self.phase = if ends_high && self.cycle > 1 {
                high_half(self.cycle)
            } else {
                0
            };
        }
        let cycle = u64::from(self.cycle);
        // No overflow: a phase is below 2^17, and ticks below 2^55 (PitTicks).
        let position = u64::from(self.phase).saturating_add(ticks);
        if self.cycle > 1 {
            rises.0 += position / cycle;
        }
        self.phase = remainder(position, self.cycle);
    }

    /// The ticks of a cycle, if it counts in a periodic mode.
    pub(super) fn cycle_length(&self) -> Option<u64> {
        (self.periodic() && self.running && self.cycle > 1).then(|| self.cycle.into())
    }

    /// In how many ticks OUT rises next, if nothing is written.
    pub(super) fn next_rise(&self) -> Option<u64> {
        if self.terminal && self.mode() != Mode::InterruptOnTerminalCount {
            return Some(1);
        }
        let mut loaded = *self;
        let wait = u64::from(self.load_pending);
        if self.load_pending {
            loaded.load();
        }
        if !loaded.counts() {
            return None;
        }
        loaded.rise_while_counting().map(|ticks| ticks + wait)
    }

    fn rise_while_counting(&self) -> Option<u64> {
        let Self {
            cycle,
            phase,
            reload,
            remaining,
            ..
        } = *self;
        let ticks = match self.mode() {
            Mode::InterruptOnTerminalCount | Mode::HardwareOneShot => {
                (remaining > 0).then_some(remaining)
            }
            Mode::SoftwareStrobe | Mode::HardwareStrobe => (remaining > 0).then(|| remaining + 1),
            Mode::RateGenerator | Mode::SquareWave if cycle == 1 => {
                (self.null_count && reload > 1).then(|| 1 + reload)
            }
            Mode::SquareWave if self.null_count && phase < high_half(cycle) => {
                // The low half has the new length.
                (reload > 1).then(|| high_half(cycle) - phase + reload / 2)
            }
            Mode::RateGenerator | Mode::SquareWave => Some(cycle - phase),
        };
        ticks.map(u64::from)
    }

    /// A control word other than a latch command ("Programming the 82C54").
    pub(super) fn set_control(&mut self, control: u8) {
        let programmed = Self {
            control: control & 0x3f,
            gate: self.gate,
            // The counting element is not reset.
            count: self.element(),
            // "Counter latch command": a latched count is held until it is read or the counter is
            // programmed.
            ..Self::POWER_ON
        };
        *self = Self {
            reload: programmed.base(),
            ..programmed
        };
    }

    /// A write to the counter.
    pub(super) fn write(&mut self, value: u8) {
        match (self.access(), self.low_byte) {
            (Access::Low, _) => self.set_count(value, 0),
            (Access::High, _) => self.set_count(0, value),
            (Access::LowThenHigh, None) => {
                self.low_byte = Some(value);
                if self.mode() == Mode::InterruptOnTerminalCount {
                    // "OUT is set low immediately."
                    self.forget_terminal_count();
                }
            }
            (Access::LowThenHigh, Some(low)) => {
                self.low_byte = None;
                self.set_count(low, value);
            }
        }
    }

    const fn forget_terminal_count(&mut self) {
        self.terminal = false;
        self.remaining = 0;
    }

    fn set_count(&mut self, low: u8, high: u8) {
        let written = if self.bcd() {
            let digits = [low & 0xf, low >> 4, high & 0xf, high >> 4];
            let places = digits.into_iter().zip([1, 10, 100, 1000]);
            places.map(|(digit, place)| u32::from(digit) * place).sum()
        } else {
            u32::from_le_bytes([low, high, 0, 0])
        };
        // "The largest possible initial count is 0."
        self.reload = if written == 0 { self.base() } else { written };
        self.armed = true;
        self.null_count = true;
        match self.mode() {
            Mode::InterruptOnTerminalCount => {
                self.forget_terminal_count();
                self.load_pending = true;
            }
            Mode::SoftwareStrobe => self.load_pending = true,
            Mode::RateGenerator | Mode::SquareWave => self.load_pending |= !self.running,
            // These wait for the trigger.
            Mode::HardwareOneShot | Mode::HardwareStrobe => {}
        }
    }

    /// A read from the counter: the latched status, then the latched count, then the count.
    pub(super) fn read(&mut self) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched_count
            .unwrap_or_else(|| self.shown())
            .to_le_bytes();
        let last = match self.access() {
            Access::Low | Access::High => true,
            Access::LowThenHigh => self.read_high,
        };
        let value = match self.access() {
            Access::Low => low,
            Access::High => high,
            Access::LowThenHigh if self.read_high => high,
            Access::LowThenHigh => low,
        };
        self.read_high = !last;
        if last {
            self.latched_count = None;
        }
        value
    }

    /// "Counter latch command": a second one before the read is ignored.
    pub(super) fn latch_count(&mut self) {
        let shown = self.shown();
        self.latched_count.get_or_insert(shown);
    }

    /// "Read-back command", status: OUT, NULL COUNT, and the control word as written.
    pub(super) fn latch_status(&mut self) {
        let status = u8::from(self.out()) << 7 | u8::from(self.null_count) << 6 | self.control;
        self.latched_status.get_or_insert(status);
    }

    /// The GATE input.
    pub(super) fn set_gate(&mut self, gate: bool) {
        let rises = gate && !self.gate;
        self.gate = gate;
        // Level in modes 0 and 4, rise in modes 1 and 5, both in modes 2 and 3. A rise loads the
        // count at the next tick, if there is one.
        let triggers = !matches!(
            self.mode(),
            Mode::InterruptOnTerminalCount | Mode::SoftwareStrobe
        );
        if rises && triggers && self.armed {
            self.load_pending = true;
        }
    }
}

/// "Mode 3": an odd count is high for (N + 1) / 2 and low for (N - 1) / 2.
const fn high_half(cycle: u32) -> u32 {
    cycle.div_ceil(2)
}

/// `ticks % divisor`, which fits.
fn remainder(ticks: u64, divisor: u32) -> u32 {
    match u64::from(divisor) {
        0 => 0,
        divisor => u32::try_from(ticks % divisor).unwrap_or(0),
    }
}

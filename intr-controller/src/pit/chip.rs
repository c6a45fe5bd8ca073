//! Ports and time.

use core::time::Duration;

use super::clock::PitTicks;
use super::state::{PitChannelState, PitRestoreError, PitState};
use crate::GuestTime;

/// I/O ports.
const COUNTER_0: u16 = 0x40;
const COUNTER_1: u16 = 0x41;
const COUNTER_2: u16 = 0x42;
const CONTROL: u16 = 0x43;
const PORT_61: u16 = 0x61;

/// Port 0x61 (ICH data sheet, "NMI Status and Control Register").
const GATE_2: u8 = 1 << 0;
const SPEAKER_DATA: u8 = 1 << 1;
/// The speaker, and the disabling of SERR# and IOCHK# NMIs, which have no source here.
const KEPT: u8 = 0b1110;
const REFRESH_TOGGLE: u8 = 1 << 4;
const OUT_2: u8 = 1 << 5;
/// Channel 1's period in a PC, 15.085 µs: the refresh toggle changes with each.
const REFRESH_TICKS: u64 = 18;

/// What channel 0's output did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[must_use = "the rises have been taken"]
pub struct Irq0 {
    /// How often it rose since the last time this was asked. More than one: ticks were missed.
    pub rises: u64,
    /// The output now.
    pub level: bool,
}

/// An 8254 and port 0x61. See the [module](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pit {
    state: PitState,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// Its ports, with how many follow one another.
    pub const PORTS: [(u16, u16); 2] = [(COUNTER_0, 4), (PORT_61, 1)];

    /// At power-on, at guest time zero.
    #[must_use]
    pub const fn new() -> Self {
        let channel = PitChannelState::POWER_ON;
        Self {
            state: PitState {
                version: PitState::VERSION,
                at: PitTicks(0),
                channels: [
                    channel,
                    channel,
                    // Its gate is bit 0 of port 0x61.
                    PitChannelState {
                        gate: false,
                        ..channel
                    },
                ],
                rises: 0,
                port_61: 0,
            },
        }
    }

    /// Back to power-on.
    pub const fn reset(&mut self, now: GuestTime) {
        *self = Self::new();
        self.state.at = PitTicks::at(now);
    }

    fn advance(&mut self, now: GuestTime) {
        let now = PitTicks::at(now);
        let ticks = now.0.saturating_sub(self.state.at.0);
        if ticks == 0 {
            return;
        }
        self.state.at = now;
        let [channel_0, channel_1, channel_2] = &mut self.state.channels;
        let rises = channel_0.advance(ticks);
        self.state.rises = self.state.rises.saturating_add(rises.0);
        let _ = channel_1.advance(ticks);
        let _ = channel_2.advance(ticks);
    }

    /// What channel 0's output, ISA interrupt 0, did until now. Drive the line down and up for each
    /// rise that is to be delivered, and leave it at the level.
    pub fn irq0(&mut self, now: GuestTime) -> Irq0 {
        self.advance(now);
        Irq0 {
            rises: core::mem::take(&mut self.state.rises),
            level: self.irq0_level(),
        }
    }

    /// When channel 0's output rises next, if the guest writes nothing: call [`Self::irq0`] then. In
    /// the past if it rose already and [`Self::irq0`] was not called since.
    #[must_use]
    pub fn next_deadline(&self) -> Option<GuestTime> {
        let [channel_0, ..] = &self.state.channels;
        let ticks = if self.state.rises > 0 {
            0
        } else {
            channel_0.next_rise()?
        };
        PitTicks(self.state.at.0.checked_add(ticks)?).time()
    }

    /// How long channel 0's output takes from one rise to the next, while it counts in a periodic mode
    /// (2 or 3).
    #[must_use]
    pub fn irq0_period(&self) -> Option<Duration> {
        let [channel_0, ..] = &self.state.channels;
        let period = PitTicks(channel_0.cycle_length()?).time()?;
        Some(Duration::from_nanos(period.as_ns()))
    }

    /// What the speaker's membrane is driven with.
    pub fn speaker(&mut self, now: GuestTime) -> bool {
        self.advance(now);
        let [.., channel_2] = &self.state.channels;
        self.state.port_61 & SPEAKER_DATA != 0 && channel_2.out()
    }

    /// A guest's write; data is in the order of the ports.
    pub fn write(&mut self, now: GuestTime, port: u16, data: &[u8]) {
        self.advance(now);
        for (port, value) in (0u16..).map(|index| port.wrapping_add(index)).zip(data) {
            let was_up = self.irq0_level();
            self.write_byte(port, *value);
            if self.irq0_level() && !was_up {
                self.state.rises = self.state.rises.saturating_add(1);
            }
        }
    }

    const fn irq0_level(&self) -> bool {
        let [channel_0, ..] = &self.state.channels;
        channel_0.out()
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        let [channel_0, channel_1, channel_2] = &mut self.state.channels;
        match port {
            COUNTER_0 => channel_0.write(value),
            COUNTER_1 => channel_1.write(value),
            COUNTER_2 => channel_2.write(value),
            CONTROL => self.control(value),
            PORT_61 => {
                self.state.port_61 = value & KEPT;
                channel_2.set_gate(value & GATE_2 != 0);
            }
            _ => {}
        }
    }

    /// "Control word format", "Read-back command".
    fn control(&mut self, value: u8) {
        let selected = usize::from(value >> 6);
        if let Some(channel) = self.state.channels.get_mut(selected) {
            if value >> 4 & 3 == 0 {
                channel.latch_count();
            } else {
                channel.set_control(value);
            }
            return;
        }
        for (index, channel) in self.state.channels.iter_mut().enumerate() {
            if value >> 1 >> index & 1 == 0 {
                continue;
            }
            // COUNT# and STATUS# are active-low.
            if value & 1 << 5 == 0 {
                channel.latch_count();
            }
            if value & 1 << 4 == 0 {
                channel.latch_status();
            }
        }
    }

    /// A guest's read.
    pub fn read(&mut self, now: GuestTime, port: u16, data: &mut [u8]) {
        self.advance(now);
        for (port, value) in (0u16..).map(|index| port.wrapping_add(index)).zip(data) {
            let [channel_0, channel_1, channel_2] = &mut self.state.channels;
            *value = match port {
                COUNTER_0 => channel_0.read(),
                COUNTER_1 => channel_1.read(),
                COUNTER_2 => channel_2.read(),
                PORT_61 => {
                    let bit = |set, bit| if set { bit } else { 0 };
                    let refresh = self.state.at.0 / REFRESH_TICKS % 2 != 0;
                    self.state.port_61
                        | bit(channel_2.gate, GATE_2)
                        | bit(refresh, REFRESH_TOGGLE)
                        | bit(channel_2.out(), OUT_2)
                }
                // Nothing drives the bus.
                _ => u8::MAX,
            };
        }
    }

    /// The state as plain data, as it was when it was last asked something.
    #[must_use]
    pub const fn save(&self) -> PitState {
        self.state
    }

    /// Takes a saved state over.
    ///
    /// # Errors
    /// If it is not one that a timer can be in; then nothing has changed.
    pub fn restore(&mut self, state: &PitState) -> Result<(), PitRestoreError> {
        state.validate()?;
        self.state = *state;
        Ok(())
    }
}

//! The saved form of the timer.

use thiserror::Error;

use super::clock::PitTicks;

/// The largest count: 0 is written for it.
pub(super) const BINARY_BASE: u32 = 0x1_0000;
pub(super) const BCD_BASE: u32 = 10_000;
/// What four digits of 15 are worth.
const BCD_LIMIT: u32 = 15 * 1111;

/// How a counter counts (82C54 data sheet, "Mode definitions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    InterruptOnTerminalCount,
    HardwareOneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

/// Which bytes of a count are read and written ("Control word format", RW1 and RW0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Low,
    High,
    LowThenHigh,
}

/// One counter as plain data, at the tick of its [`PitState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct PitChannelState {
    /// Bits 5 to 0 of the last control word: access, mode, BCD.
    pub control: u8,
    /// The GATE input.
    pub gate: bool,
    /// The count register: what was written last, 1 to 65536 (0 is the largest).
    pub reload: u32,
    /// A count was written since the control word.
    pub armed: bool,
    /// The counting element was loaded since the control word.
    pub running: bool,
    /// The next tick loads it.
    pub load_pending: bool,
    /// NULL COUNT: the count register was not loaded yet.
    pub null_count: bool,
    /// Modes 2 and 3, running: the length of this cycle.
    pub cycle: u32,
    /// Modes 2 and 3, running: ticks since the cycle began.
    pub phase: u32,
    /// Other modes, or not running: the counting element, below 65536 (BCD: 10000).
    pub count: u32,
    /// Other modes, running: ticks until the terminal count; 0 after it.
    pub remaining: u32,
    /// Mode 0: the terminal count was reached. Modes 4 and 5: it is reached at this tick.
    pub terminal: bool,
    /// The low byte of a count of which the high byte is to come.
    pub low_byte: Option<u8>,
    /// The next read gives the high byte.
    pub read_high: bool,
    /// A latched count.
    pub latched_count: Option<u16>,
    /// A latched status.
    pub latched_status: Option<u8>,
}

impl PitChannelState {
    /// Undefined by the data sheet: here mode 3, low and high byte, high and not counting.
    pub(super) const POWER_ON: Self = Self {
        control: 0x36,
        gate: true,
        reload: BINARY_BASE,
        armed: false,
        running: false,
        load_pending: false,
        null_count: true,
        cycle: BINARY_BASE,
        phase: 0,
        count: 0,
        remaining: 0,
        terminal: false,
        low_byte: None,
        read_high: false,
        latched_count: None,
        latched_status: None,
    };

    pub(super) const fn mode(&self) -> Mode {
        match self.control >> 1 & 7 {
            0 => Mode::InterruptOnTerminalCount,
            1 => Mode::HardwareOneShot,
            // "X10" and "X11".
            2 | 6 => Mode::RateGenerator,
            3 | 7 => Mode::SquareWave,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        }
    }

    pub(super) const fn access(&self) -> Access {
        match self.control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        }
    }

    pub(super) const fn bcd(&self) -> bool {
        self.control & 1 != 0
    }

    pub(super) const fn base(&self) -> u32 {
        if self.bcd() { BCD_BASE } else { BINARY_BASE }
    }

    pub(super) const fn periodic(&self) -> bool {
        matches!(self.mode(), Mode::RateGenerator | Mode::SquareWave)
    }

    pub(super) fn validate(&self, channel: usize) -> Result<(), PitRestoreError> {
        let Self {
            control,
            gate,
            reload,
            armed,
            running,
            load_pending,
            null_count: _,
            cycle,
            phase,
            count,
            remaining,
            terminal,
            low_byte,
            read_high,
            latched_count: _,
            latched_status: _,
        } = *self;
        let limit = if self.bcd() { BCD_LIMIT } else { BINARY_BASE };
        let mode = self.mode();
        let rules = [
            ("control", control <= 0x3f && control >> 4 != 0),
            // GATE of channels 0 and 1 is tied high in a PC.
            ("gate", gate || channel == 2),
            ("reload", (1..=limit).contains(&reload)),
            ("running", armed || !running),
            ("load_pending", armed || !load_pending),
            ("cycle", (1..=BINARY_BASE).contains(&cycle)),
            ("cycle", !(running && self.periodic()) || cycle <= limit),
            ("phase", phase < cycle),
            ("count", count < BINARY_BASE),
            // Modes 2 and 3 keep their place in `phase`.
            ("count", !running || self.periodic() || count < self.base()),
            ("remaining", remaining <= limit),
            ("remaining", remaining == 0 || (running && !self.periodic())),
            (
                "terminal",
                !terminal
                    || (running
                        && remaining == 0
                        && !matches!(
                            mode,
                            Mode::HardwareOneShot | Mode::RateGenerator | Mode::SquareWave
                        )),
            ),
            (
                "low_byte",
                low_byte.is_none() || self.access() == Access::LowThenHigh,
            ),
            (
                "read_high",
                !read_high || self.access() == Access::LowThenHigh,
            ),
        ];
        match rules.iter().find(|(_, holds)| !holds) {
            Some((field, _)) => Err(PitRestoreError::Channel { channel, field }),
            None => Ok(()),
        }
    }
}

/// The timer's state as plain data, for a snapshot or a migration. It goes with the guest's time:
/// its ticks are counted from the same origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct PitState {
    /// The layout, [`PitState::VERSION`].
    pub version: u16,
    /// The time that the counters are shown at.
    pub at: PitTicks,
    /// The counters.
    pub channels: [PitChannelState; 3],
    /// Rises of channel 0's output that [`Pit::irq0`](super::Pit::irq0) has not returned yet.
    pub rises: u64,
    /// Bits 3 to 1 of port 0x61. (Bit 0 is channel 2's gate.)
    pub port_61: u8,
}

/// A saved state was refused; the timer is as it was. The state is damaged, or from a version that
/// this crate does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PitRestoreError {
    /// `version`.
    #[error("version: {found} is unknown, this build reads {}", PitState::VERSION)]
    Version {
        /// What the state says.
        found: u16,
    },
    /// `at`.
    #[error("at: tick {found} is after the end of guest time")]
    At {
        /// What the state says.
        found: u64,
    },
    /// A field of a counter.
    #[error("channels[{channel}].{field}: a value that a counter cannot have in this mode")]
    Channel {
        /// The counter.
        channel: usize,
        /// The field.
        field: &'static str,
    },
    /// `port_61`.
    #[error("port_61: {found:#x} has bits other than 3 to 1")]
    Port61 {
        /// What the state says.
        found: u8,
    },
}

impl PitState {
    /// The layout that this build writes and reads.
    pub const VERSION: u16 = 1;

    pub(super) fn validate(&self) -> Result<(), PitRestoreError> {
        let Self {
            version,
            at,
            channels,
            rises: _,
            port_61,
        } = self;
        if *version != Self::VERSION {
            return Err(PitRestoreError::Version { found: *version });
        }
        if at.time().is_none() {
            return Err(PitRestoreError::At { found: at.0 });
        }
        for (channel, state) in channels.iter().enumerate() {
            state.validate(channel)?;
        }
        if port_61 & !0b1110 != 0 {
            return Err(PitRestoreError::Port61 { found: *port_61 });
        }
        Ok(())
    }
}

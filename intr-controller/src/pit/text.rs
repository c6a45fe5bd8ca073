//! The timer as text, for a debugger's user.

use core::fmt;

use super::state::{Access, Mode};
use super::{PitChannelState, PitState};

/// The 8254's clock, 105/88 MHz, in Hz times 88.
const CLOCK_TIMES_88: u64 = 105_000_000;

fn channel(f: &mut fmt::Formatter<'_>, number: usize, state: &PitChannelState) -> fmt::Result {
    let use_of_it = match number {
        0 => "IRQ 0",
        1 => "refresh",
        _ => "speaker",
    };
    write!(f, "channel {number} ({use_of_it}): ")?;
    let mode = match state.mode() {
        Mode::InterruptOnTerminalCount => "mode 0, interrupt on terminal count",
        Mode::HardwareOneShot => "mode 1, hardware one-shot",
        Mode::RateGenerator => "mode 2, rate generator",
        Mode::SquareWave => "mode 3, square wave",
        Mode::SoftwareStrobe => "mode 4, software strobe",
        Mode::HardwareStrobe => "mode 5, hardware strobe",
    };
    let access = match state.access() {
        Access::Low => "low byte",
        Access::High => "high byte",
        Access::LowThenHigh => "low and high byte",
    };
    let counting = if state.bcd() { "BCD" } else { "binary" };
    write!(f, "{mode}, {access}, {counting}")?;
    if state.armed {
        write!(f, "; count {:#x}", state.reload)?;
        if state.periodic() && state.reload != 0 {
            let millihertz = CLOCK_TIMES_88 * 1000 / 88 / u64::from(state.reload);
            write!(f, " ({}.{:03} Hz)", millihertz / 1000, millihertz % 1000)?;
        }
    } else {
        f.write_str("; no count was written")?;
    }
    writeln!(f, "; gate {}", if state.gate { "high" } else { "low" })
}

/// A line for each counter: how it is programmed. What it has counted to is left out: KVM's 8254 does not say.
impl fmt::Display for PitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, state) in self.channels.iter().enumerate() {
            channel(f, number, state)?;
        }
        writeln!(f, "port 0x61, bits 3 to 1: {:#x}", self.port_61)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use crate::GuestTime;
    use crate::pit::Pit;

    #[test]
    fn a_channel_says_its_mode_its_count_and_its_frequency() {
        let mut pit = Pit::new();
        for (port, value) in [(0x43, 0x34), (0x40, 0x9b), (0x40, 0x2e), (0x43, 0xb0)] {
            pit.write(GuestTime::ZERO, port, &[value]);
        }
        let text = pit.save().to_string();
        for line in [
            "channel 0 (IRQ 0): mode 2, rate generator, low and high byte, binary; count 0x2e9b (100.006 Hz); gate high",
            "channel 1 (refresh): mode 3, square wave, low and high byte, binary; no count was written; gate high",
            "channel 2 (speaker): mode 0, interrupt on terminal count, low and high byte, binary; no count was written; gate low",
        ] {
            assert!(text.lines().any(|has| has == line), "{line}\n---\n{text}");
        }
    }
}

//! The IOAPIC as text, for a debugger's user.

use core::fmt;

use super::{IoApicPins, IoApicState};
use crate::InterruptMessage;

/// A set of pins as their numbers.
struct Numbers(IoApicPins);

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(" none");
        }
        self.0
            .iter()
            .try_for_each(|pin| write!(f, " {}", pin.get()))
    }
}

/// A line for each pin, and the pins that are asserted.
impl fmt::Display for IoApicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "IOAPIC: ID {:#x}, version {:#x}, selected register {:#x}",
            self.id,
            self.model.number(),
            self.select
        )?;
        for (pin, entry) in self.entries.iter().enumerate() {
            write!(f, "pin {pin:<2} {:#018x}: ", entry.bits())?;
            if entry.masked() {
                f.write_str("masked, ")?;
            }
            match entry.message(self.destination_format) {
                Some(InterruptMessage {
                    destination,
                    destination_mode,
                    delivery_mode,
                    vector,
                    ..
                }) => {
                    if delivery_mode.has_vector() {
                        write!(f, "vector {vector:#04x}, ")?;
                    }
                    write!(f, "{delivery_mode}, {}", entry.trigger_mode())?;
                    f.write_str(if entry.active_low() {
                        ", active low"
                    } else {
                        ""
                    })?;
                    if destination == InterruptMessage::BROADCAST {
                        f.write_str(", to all")?;
                    } else {
                        write!(f, ", to {destination_mode} {destination:#x}")?;
                    }
                }
                None => f.write_str("a reserved delivery mode")?,
            }
            f.write_str(if entry.remote_irr() {
                ", awaits its EOI\n"
            } else {
                "\n"
            })?;
        }
        writeln!(f, "asserted pins:{}", Numbers(self.lines))?;
        if !self.latched.is_empty() {
            writeln!(f, "latched pulses:{}", Numbers(self.latched))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::DestinationFormat;
    use crate::ioapic::{IoApic, RedirectionEntry};

    #[test]
    fn each_pin_has_a_line_that_says_where_its_interrupts_go() {
        let mut state = IoApic::default().save();
        let entry = |bits| RedirectionEntry::from_bits(bits, DestinationFormat::Xapic);
        state.entries[4] = entry(0x0300_0000_0000_0934);
        state.entries[9] = entry(0xff00_0000_0000_e029);
        state.entries[23] = entry(0x0000_0000_0001_0300);
        state.lines = IoApicPins(1 << 9 | 1 << 23);
        let text = state.to_string();
        assert_eq!(text.lines().count(), 1 + 24 + 1);
        for line in [
            "pin 0  0x0000000000010000: masked, vector 0x00, fixed, edge, to physical 0x0",
            "pin 4  0x0300000000000934: vector 0x34, lowest priority, edge, to logical 0x3",
            "pin 9  0xff0000000000e029: vector 0x29, fixed, level, active low, to all, awaits its EOI",
            "pin 23 0x0000000000010300: masked, a reserved delivery mode",
            "asserted pins: 9 23",
        ] {
            assert!(text.lines().any(|has| has == line), "{line}\n---\n{text}");
        }
    }
}

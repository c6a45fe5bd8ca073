//! Registers as text, for a debugger's user.

use core::fmt;

use super::base::{ApicBase, ApicMode};
use super::registers::{Command, Lvt, LvtEntry, Spurious, TimerMode};
use crate::{DestinationMode, TriggerMode};

impl fmt::Display for LvtEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Timer => "timer",
            Self::Thermal => "thermal",
            Self::Performance => "performance",
            Self::Lint0 => "LINT0",
            Self::Lint1 => "LINT1",
            Self::Error => "error",
            Self::Cmci => "CMCI",
        })
    }
}

/// IA32_APIC_BASE.
pub(crate) struct BaseText(pub(crate) u64);

impl fmt::Display for BaseText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = ApicBase::from_host(self.0);
        let mode = match base.mode() {
            ApicMode::Disabled => "disabled",
            ApicMode::XApic => "xAPIC mode",
            ApicMode::X2Apic => "x2APIC mode",
        };
        write!(f, "{:#x}: {mode}", base.get())?;
        if base.bootstrap() {
            f.write_str(", bootstrap processor")?;
        }
        Ok(())
    }
}

/// The spurious-interrupt vector register.
pub(crate) struct SpuriousText(pub(crate) u32);

impl fmt::Display for SpuriousText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spurious = Spurious(self.0);
        let enabled = if spurious.enabled() {
            "enabled"
        } else {
            "disabled"
        };
        write!(
            f,
            "{:#010x}: {enabled} by software, vector {:#04x}",
            self.0,
            spurious.vector()
        )?;
        if spurious.suppresses_eoi() {
            f.write_str(", suppresses the broadcast of EOIs")?;
        }
        Ok(())
    }
}

/// An entry of the local vector table.
pub(crate) struct LvtText(pub(crate) LvtEntry, pub(crate) u32);

impl fmt::Display for LvtText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(entry, bits) = *self;
        let lvt = Lvt(bits);
        write!(f, "{bits:#010x}: ")?;
        if lvt.is_masked() {
            f.write_str("masked, ")?;
        }
        match entry {
            LvtEntry::Timer => {
                let mode = match lvt.timer_mode() {
                    TimerMode::OneShot => "one-shot",
                    TimerMode::Periodic => "periodic",
                    TimerMode::TscDeadline => "TSC deadline",
                    TimerMode::Reserved => "a reserved mode",
                };
                return write!(f, "vector {:#04x}, {mode}", lvt.vector());
            }
            LvtEntry::Error => return write!(f, "vector {:#04x}", lvt.vector()),
            _ => {}
        }
        match lvt.delivery_mode() {
            Some(mode) if mode.has_vector() => {
                write!(f, "vector {:#04x}, {mode}", lvt.vector())?;
            }
            Some(mode) => write!(f, "{mode}")?,
            None => f.write_str("a reserved delivery mode")?,
        }
        if matches!(entry, LvtEntry::Lint0 | LvtEntry::Lint1) {
            let polarity = if lvt.active_low() { "low" } else { "high" };
            write!(f, ", {}, active {polarity}", lvt.trigger_mode())?;
            if lvt.remote_irr() {
                f.write_str(", awaits its EOI")?;
            }
        }
        Ok(())
    }
}

/// The interrupt command register, with its destination as the mode has it.
pub(crate) struct CommandText {
    pub(crate) low: u32,
    pub(crate) high: u32,
    pub(crate) x2apic: bool,
}

impl fmt::Display for CommandText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = Command(u64::from(self.high) << 32 | u64::from(self.low));
        let destination = if self.x2apic {
            self.high
        } else {
            self.high >> 24
        };
        write!(f, "{:#010x} {:#010x}: ", self.high, self.low)?;
        match command.delivery_mode() {
            Some(mode) => write!(f, "{mode}")?,
            None => f.write_str("a reserved delivery mode")?,
        }
        write!(f, ", vector {:#04x}", command.vector())?;
        match command.shorthand() {
            1 => f.write_str(", to itself")?,
            2 => f.write_str(", to all")?,
            3 => f.write_str(", to all others")?,
            _ => {
                let mode = DestinationMode::from_bit(command.logical());
                write!(f, ", to {mode} {destination:#x}")?;
            }
        }
        if command.trigger_mode() == TriggerMode::Level {
            let level = if command.deasserts() {
                "de-assert"
            } else {
                "assert"
            };
            write!(f, ", level, {level}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn entries_of_the_local_vector_table_say_what_they_do() {
        for (entry, bits, text) in [
            (
                LvtEntry::Timer,
                0x0004_00ec,
                "0x000400ec: vector 0xec, TSC deadline",
            ),
            (
                LvtEntry::Timer,
                0x0003_0020,
                "0x00030020: masked, vector 0x20, periodic",
            ),
            (
                LvtEntry::Lint0,
                0x0000_0700,
                "0x00000700: ExtINT, edge, active high",
            ),
            (
                LvtEntry::Lint1,
                0x0000_a431,
                "0x0000a431: NMI, level, active low",
            ),
            (
                LvtEntry::Lint0,
                0x0001_c031,
                "0x0001c031: masked, vector 0x31, fixed, level, active high, awaits its EOI",
            ),
            (
                LvtEntry::Thermal,
                0x0000_0300,
                "0x00000300: a reserved delivery mode",
            ),
            (LvtEntry::Error, 0x0000_00fe, "0x000000fe: vector 0xfe"),
        ] {
            assert_eq!(LvtText(entry, bits).to_string(), text);
        }
    }

    #[test]
    fn a_command_names_its_destination_as_the_mode_has_it() {
        let text = |low, high, x2apic| CommandText { low, high, x2apic }.to_string();
        assert_eq!(
            text(0x08fd, 0x0300_0000, false),
            "0x03000000 0x000008fd: fixed, vector 0xfd, to logical 0x3"
        );
        assert_eq!(
            text(0x0608, 0x0001_0002, true),
            "0x00010002 0x00000608: start-up, vector 0x08, to physical 0x10002"
        );
        assert!(
            text(0x000c_8500, 0, false)
                .ends_with("INIT, vector 0x00, to all others, level, de-assert")
        );
    }

    #[test]
    fn the_base_and_the_spurious_register_say_whether_it_is_enabled() {
        assert_eq!(
            BaseText(0xfee0_0d00).to_string(),
            "0xfee00d00: x2APIC mode, bootstrap processor"
        );
        assert_eq!(BaseText(0xfee0_0000).to_string(), "0xfee00000: disabled");
        assert_eq!(
            SpuriousText(0x11ff).to_string(),
            "0x000011ff: enabled by software, vector 0xff, suppresses the broadcast of EOIs"
        );
    }
}

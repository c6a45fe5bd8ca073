//! The IOAPIC: 24 pins, each with an entry that says what a rise or a level becomes.
//!
//! 82093AA, with the EOI register of its successors (version 0x20, which ICH data sheets
//! describe) unless it is [made](IoApicVersion::V11) without. A device's [line](IoApic::set_line), a guest's
//! [access](IoApic::write) and a local APIC's [EOI](IoApic::eoi) go in;
//! [messages](crate::InterruptMessage) come out, for the caller to deliver when it has let go of
//! its lock.
//!
//! # Where the data sheet leaves room
//!
//! - **Delivery is by posted write**: a message is accepted when it leaves. So delivery status reads
//!   0, and remote IRR is set when a level's message leaves.
//! - **An edge on a masked pin is ignored** (82093AA, 3.2.4, "Interrupt mask"), in KVM too.
//! - **NMI, INIT, SMI and ExtINT are edges** whatever the entry says (3.2.4, "Delivery mode"); KVM
//!   sends them as levels, and sets remote IRR, if the entry says level. The delivery modes 011 and
//!   110 are reserved and send nothing.
//! - **A level whose line is still up at its EOI is sent again at once.** Each EOI sends at most one
//!   message for each pin, and nothing here recurses. A guest that never quiets a device gets the
//!   interrupt forever, once per EOI of its own. KVM delays every 10,000th for the same reason.
//! - **A pulse (rise and fall) at a level-triggered pin whose previous interrupt is in service** sends
//!   nothing, now or at the EOI, because the line is down then. KVM's does the same. Devices that only
//!   pulse use [`pulse_latched`](IoApic::pulse_latched), which sends it at the EOI.
//! - **An entry that is written while its level is in service** keeps remote IRR, unless it becomes an
//!   edge. The level ends with an EOI of the entry's new vector, from any local APIC. A level that was
//!   moved to another local APIC therefore ends where it is in service. One whose vector was changed does
//!   not end until the new vector is written to EOIR, or until it becomes an edge. KVM's does the same.
//! - **Reserved bits** of an entry (17 to 48, and 49 to 55 without
//!   [extended ids](crate::DestinationFormat::Extended)) read 0. KVM keeps what was written.
//! - **Accesses**: registers sit at offsets 0x00, 0x10 and 0x40 and are 32 bits wide. An access of
//!   1, 2, 4 or 8 bytes at one of those works on the register's low bytes, and what a narrow write
//!   does not give is zero; all else reads 0 and writes nothing. So does KVM's.

mod access;
mod chip;
mod entry;
mod eoi_routes;
mod state;
mod text;

pub use access::IoApicWrite;
pub use chip::IoApic;
pub use entry::{RedirectionEntry, SentEntry};
pub use eoi_routes::EoiRoutes;
pub use state::{IoApicRestoreError, IoApicState};

use core::fmt;

use thiserror::Error;

/// Pins.
pub const PIN_COUNT: u8 = 24;

/// A pin of the IOAPIC, 0 to 23.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u8", into = "u8"))]
pub struct IoApicPin(u8);

/// The IOAPIC has no such pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the IOAPIC has no pin {0}: use 0 to 23")]
pub struct NoSuchIoApicPin(pub u8);

impl IoApicPin {
    /// # Errors
    /// If there is no such pin.
    pub const fn new(pin: u8) -> Result<Self, NoSuchIoApicPin> {
        if pin >= PIN_COUNT {
            return Err(NoSuchIoApicPin(pin));
        }
        Ok(Self(pin))
    }

    /// Its number, 0 to 23.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for IoApicPin {
    type Error = NoSuchIoApicPin;

    fn try_from(pin: u8) -> Result<Self, NoSuchIoApicPin> {
        Self::new(pin)
    }
}

impl From<IoApicPin> for u8 {
    fn from(pin: IoApicPin) -> Self {
        pin.0
    }
}

impl fmt::Display for IoApicPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IOAPIC pin {}", self.0)
    }
}

/// A set of pins: pin `n` is bit `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IoApicPins(pub u32);

impl IoApicPins {
    /// Every pin there is.
    pub const ALL: Self = Self(0x00ff_ffff);

    /// Whether the pin is in it.
    #[must_use]
    pub const fn contains(self, pin: IoApicPin) -> bool {
        self.0 >> pin.get() & 1 != 0
    }

    /// Whether it has no pin.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn set(&mut self, pin: IoApicPin, member: bool) {
        self.0 = self.0 & !(1 << pin.get()) | (member as u32) << pin.get();
    }

    /// Its pins, lowest first.
    pub fn iter(self) -> impl Iterator<Item = IoApicPin> {
        let mut rest = self.0 & Self::ALL.0;
        core::iter::from_fn(move || {
            let pin = u8::try_from(rest.trailing_zeros()).ok()?;
            rest &= rest.checked_sub(1)?;
            Some(IoApicPin(pin))
        })
    }
}

impl FromIterator<IoApicPin> for IoApicPins {
    fn from_iter<I: IntoIterator<Item = IoApicPin>>(pins: I) -> Self {
        let mut set = Self::default();
        for pin in pins {
            set.set(pin, true);
        }
        set
    }
}

/// Which IOAPIC it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum IoApicVersion {
    /// 0x11, the 82093AA: no EOI register.
    V11,
    /// 0x20: with one, which local APICs that suppress the broadcast of EOIs need.
    #[default]
    V20,
}

impl IoApicVersion {
    /// Bits 7 to 0 of the version register.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V11 => 0x11,
            Self::V20 => 0x20,
        }
    }
}

#[cfg(test)]
mod tests;

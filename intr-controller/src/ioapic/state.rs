//! The saved form of the IOAPIC.

use thiserror::Error;

use super::{IoApicPins, IoApicVersion, PIN_COUNT, RedirectionEntry, SentEntry};
use crate::DestinationFormat;

/// The IOAPIC's state as plain data, for a snapshot or a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct IoApicState {
    /// The layout, [`IoApicState::VERSION`].
    pub version: u16,
    /// Which IOAPIC it is.
    pub model: IoApicVersion,
    /// Which destinations its entries have.
    pub destination_format: DestinationFormat,
    /// IOAPICID, 0 to 15.
    pub id: u8,
    /// IOREGSEL.
    pub select: u8,
    /// The pins whose line is up.
    pub lines: IoApicPins,
    /// The pins with a [latched](super::IoApic::pulse_latched) pulse that has not been sent.
    pub latched: IoApicPins,
    /// The redirection table.
    pub entries: [RedirectionEntry; PIN_COUNT as usize],
    /// The entry that a level awaiting its EOI was sent by, if the pin's entry has changed since.
    pub sent_by: [Option<SentEntry>; PIN_COUNT as usize],
}

/// A saved state was refused; the IOAPIC is as it was. The state is damaged, or from a version
/// that this crate does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IoApicRestoreError {
    /// `version`.
    #[error(
        "version: {found} is unknown, this build reads {}",
        IoApicState::VERSION
    )]
    Version {
        /// What the state says.
        found: u16,
    },
    /// `id`.
    #[error("id: {found:#x} has more than four bits")]
    Id {
        /// What the state says.
        found: u32,
    },
    /// `select`.
    #[error("select: {found:#x} has more than eight bits")]
    Select {
        /// What the state says.
        found: u32,
    },
    /// `lines`.
    #[error("lines: {found:#x} has pins above 23")]
    Lines {
        /// What the state says.
        found: u32,
    },
    /// `latched`.
    #[error("latched: {found:#x} has pins above 23")]
    Latched {
        /// What the state says.
        found: u32,
    },
    /// `entries`.
    #[error("entries[{pin}]: {bits:#x} has a reserved bit, or remote IRR without level trigger")]
    Entry {
        /// The pin.
        pin: usize,
        /// What the state says.
        bits: u64,
    },
    /// `sent_by`.
    #[error("sent_by[{pin}]: {bits:#x} has a reserved bit, or no EOI is awaited")]
    SentBy {
        /// The pin.
        pin: usize,
        /// What the state says.
        bits: u64,
    },
    /// `entries`, `lines` and `latched`: an unmasked level that is asserted has been sent.
    #[error("entries[{pin}]: {bits:#x}: its pin is asserted and unmasked, but remote IRR is clear")]
    Unsent {
        /// The pin.
        pin: usize,
        /// What the state says.
        bits: u64,
    },
}

impl IoApicState {
    /// The layout that this build writes and reads. Version 1 had no latched pulses.
    pub const VERSION: u16 = 2;

    /// Whether nothing is asserted, nothing has been moved, and no entry is wrong: seen without a branch for each
    /// pin, and true of most states.
    fn is_plain(&self) -> bool {
        let moved = |moved, sent_by: &Option<SentEntry>| moved | sent_by.is_some();
        let wrong =
            |wrong, entry: &RedirectionEntry| wrong | entry.wrong_bits(self.destination_format);
        self.lines.0 | self.latched.0 == 0
            && !self.sent_by.iter().fold(false, moved)
            && self.entries.iter().fold(0, wrong) == 0
    }

    pub(super) fn validate(&self) -> Result<(), IoApicRestoreError> {
        let Self {
            version,
            model: IoApicVersion::V11 | IoApicVersion::V20,
            destination_format,
            id,
            select: _,
            lines,
            latched,
            entries,
            sent_by,
        } = self;
        if *version != Self::VERSION {
            return Err(IoApicRestoreError::Version { found: *version });
        }
        if *id > 0xf {
            return Err(IoApicRestoreError::Id {
                found: u32::from(*id),
            });
        }
        if lines.0 & !IoApicPins::ALL.0 != 0 {
            return Err(IoApicRestoreError::Lines { found: lines.0 });
        }
        if latched.0 & !IoApicPins::ALL.0 != 0 {
            return Err(IoApicRestoreError::Latched { found: latched.0 });
        }
        if self.is_plain() {
            return Ok(());
        }
        for (pin, entry) in entries.iter().enumerate() {
            let bits = entry.bits();
            if !entry.is_valid(*destination_format) {
                return Err(IoApicRestoreError::Entry { pin, bits });
            }
            if (lines.0 | latched.0) >> pin & 1 != 0 && entry.owes_level() {
                return Err(IoApicRestoreError::Unsent { pin, bits });
            }
        }
        for (pin, (entry, sent_by)) in entries.iter().zip(sent_by).enumerate() {
            let Some(sent_by) = sent_by.map(SentEntry::entry) else {
                continue;
            };
            let awaits_eoi = entry.remote_irr() && sent_by.remote_irr();
            if !awaits_eoi || !sent_by.is_valid(*destination_format) {
                let bits = sent_by.bits();
                return Err(IoApicRestoreError::SentBy { pin, bits });
            }
        }
        Ok(())
    }
}

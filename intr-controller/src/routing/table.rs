//! A routing table and its mistakes.

use alloc::vec;
use alloc::vec::Vec;

use thiserror::Error;

use super::RoutingState;
use crate::ioapic::IoApicPin;
use crate::pic::PicPin;
use crate::{DestinationFormat, Gsi, InterruptMessage, MsiError, MsiMessage};

/// GSIs are 0 to 4095, as many as KVM routes.
pub const GSI_LIMIT: u32 = 4096;
/// Entries of a table: at most two pins for each GSI.
const ENTRY_LIMIT: usize = 2 * GSI_LIMIT as usize;

/// Where a GSI goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum RouteTarget {
    /// An input of the 8259A pair. Not its number 2: see [`PicPin`].
    Pic(u8),
    /// A pin of the IOAPIC, 0 to 23.
    IoApic(u8),
    /// A message, sent at each rise of the line.
    Msi(MsiMessage),
}

/// An entry of a routing table. A GSI that goes to two pins has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct RouteEntry {
    /// The GSI, below [`GSI_LIMIT`].
    pub gsi: Gsi,
    /// Where it goes.
    pub target: RouteTarget,
}

/// A table or a state was refused, and the one before it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RouteError {
    /// `version` of a saved state.
    #[error(
        "version: {found} is unknown, this build reads {}",
        RoutingState::VERSION
    )]
    Version {
        /// What the state says.
        found: u16,
    },
    /// Too many entries.
    #[error("entries: {found}, at most {ENTRY_LIMIT} can be")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// A GSI out of range.
    #[error("entries[{index}].gsi: {found} is not below {GSI_LIMIT}")]
    Gsi {
        /// The entry.
        index: usize,
        /// The GSI.
        found: u32,
    },
    /// A pin of the 8259A pair that does not exist.
    #[error("entries[{index}].target: the 8259A pair has no input {pin} (0, 1, 3 to 15)")]
    PicPin {
        /// The entry.
        index: usize,
        /// The pin.
        pin: u8,
    },
    /// A pin of the IOAPIC that does not exist.
    #[error("entries[{index}].target: the IOAPIC has no pin {pin} (0 to 23)")]
    IoApicPin {
        /// The entry.
        index: usize,
        /// The pin.
        pin: u8,
    },
    /// An MSI that is no interrupt.
    #[error("entries[{index}].target: {source}")]
    Msi {
        /// The entry.
        index: usize,
        /// Why.
        source: MsiError,
    },
    /// Two routes of one GSI to one chip, or an MSI beside another route.
    #[error("entries[{index}].target: GSI {gsi} has such a route already, or an MSI")]
    Duplicate {
        /// The entry.
        index: usize,
        /// The GSI.
        gsi: u32,
    },
    /// Two GSIs that go to one pin.
    #[error("entries[{index}].target: another GSI goes to this pin")]
    SharedPin {
        /// The entry.
        index: usize,
    },
    /// `asserted` of a saved state: a GSI without a route, one that is there twice, or one
    /// without a source.
    #[error("asserted[{index}]: GSI {gsi} has no route, is there twice, or has no source")]
    Asserted {
        /// The entry.
        index: usize,
        /// The GSI.
        gsi: u32,
    },
}

/// Where a GSI goes, in full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Targets {
    /// An input of the 8259A pair.
    pub pic: Option<PicPin>,
    /// A pin of the IOAPIC.
    pub ioapic: Option<IoApicPin>,
    /// A message.
    pub msi: Option<InterruptMessage>,
}

impl Targets {
    pub(super) const fn is_empty(&self) -> bool {
        self.pic.is_none() && self.ioapic.is_none() && self.msi.is_none()
    }
}

/// One GSI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) targets: Targets,
    pub(super) sources: u64,
}

/// Builds the lines of a table, with all its mistakes found.
pub(super) fn check(
    entries: &[RouteEntry],
    format: DestinationFormat,
) -> Result<Vec<Line>, RouteError> {
    if entries.len() > ENTRY_LIMIT {
        return Err(RouteError::TooMany {
            found: entries.len(),
        });
    }
    let gsi_count = entries.iter().map(|entry| entry.gsi.0.saturating_add(1));
    let gsi_count = gsi_count.max().unwrap_or(0).min(GSI_LIMIT);
    let mut lines = vec![Line::default(); usize::try_from(gsi_count).unwrap_or(0)];
    let mut pic_pins = 0u16;
    let mut ioapic_pins = 0u32;
    for (
        index,
        RouteEntry {
            gsi: Gsi(gsi),
            target,
        },
    ) in entries.iter().enumerate()
    {
        let line = usize::try_from(*gsi)
            .ok()
            .and_then(|gsi| lines.get_mut(gsi));
        let Some(Line { targets, .. }) = line else {
            return Err(RouteError::Gsi { index, found: *gsi });
        };
        let duplicate = RouteError::Duplicate { index, gsi: *gsi };
        match *target {
            RouteTarget::Pic(pin) => {
                let pin = PicPin::new(pin).map_err(|_| RouteError::PicPin { index, pin })?;
                if targets.msi.is_some() || targets.pic.replace(pin).is_some() {
                    return Err(duplicate);
                }
                let bit = 1 << pin.get();
                if pic_pins & bit != 0 {
                    return Err(RouteError::SharedPin { index });
                }
                pic_pins |= bit;
            }
            RouteTarget::IoApic(pin) => {
                let pin = IoApicPin::new(pin).map_err(|_| RouteError::IoApicPin { index, pin })?;
                if targets.msi.is_some() || targets.ioapic.replace(pin).is_some() {
                    return Err(duplicate);
                }
                let bit = 1 << pin.get();
                if ioapic_pins & bit != 0 {
                    return Err(RouteError::SharedPin { index });
                }
                ioapic_pins |= bit;
            }
            RouteTarget::Msi(msi) => {
                let message = msi.decode(format);
                let message = message.map_err(|source| RouteError::Msi { index, source })?;
                if !targets.is_empty() {
                    return Err(duplicate);
                }
                targets.msi = Some(message);
            }
        }
    }
    Ok(lines)
}

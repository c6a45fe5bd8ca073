//! GSI routing: where a global system interrupt goes, and lines that several sources share.
//!
//! A [`Gsi`] goes to a pin of the 8259A pair, a pin of the IOAPIC, both, or to an MSI, as in KVM's
//! `KVM_SET_GSI_ROUTING`. A shared line is up as long as one of its sources holds it up; what comes
//! back from here is what has changed, for the caller to pass on to the chips.
//!
//! A table is checked whole, when it is made: a route to a pin that does not exist, a second route
//! to the same chip, an MSI that is no interrupt, two GSIs on one pin (their levels would overwrite
//! each other) are refused. Nothing after that can fail but a GSI without a route.

use alloc::vec;
use alloc::vec::Vec;

use thiserror::Error;

use crate::ioapic::{IoApicPin, PIN_COUNT};
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

/// One of up to 64 sources of a shared line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u8);

/// There are only 64 sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("source id {0}: use 0 to 63")]
pub struct NoSuchSource(pub u8);

impl SourceId {
    /// # Errors
    /// If it is above 63.
    pub const fn new(id: u8) -> Result<Self, NoSuchSource> {
        if id >= 64 {
            return Err(NoSuchSource(id));
        }
        Ok(Self(id))
    }
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
    /// `asserted` of a saved state: a GSI without a route, one that is there twice, or one that
    /// nobody asserts.
    #[error("asserted[{index}]: GSI {gsi} has no route, is there twice, or has no source")]
    Asserted {
        /// The entry.
        index: usize,
        /// The GSI.
        gsi: u32,
    },
}

/// The GSI has no route: it is dropped, as KVM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} has no route")]
pub struct NoRoute(pub Gsi);

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
    const fn is_empty(&self) -> bool {
        self.pic.is_none() && self.ioapic.is_none() && self.msi.is_none()
    }
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the chips have to be told"]
pub enum LineChange {
    /// It is as it was.
    Unchanged,
    /// It rose: pins up, and the message is sent.
    Rose(Targets),
    /// It fell: pins down. A message has no fall.
    Fell(Targets),
}

/// A pin that has to be driven because its routes have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PinLevel {
    /// The pin: `pic` or `ioapic`, the one that is there.
    pub target: Targets,
    /// Its level from now on.
    pub up: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Line {
    targets: Targets,
    sources: u64,
}

/// Routes and shared lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GsiRouter {
    format: DestinationFormat,
    entries: Vec<RouteEntry>,
    /// By GSI.
    lines: Vec<Line>,
}

impl GsiRouter {
    /// # Errors
    /// If the table has a mistake, with the place.
    pub fn new(entries: &[RouteEntry], format: DestinationFormat) -> Result<Self, RouteError> {
        Ok(Self {
            format,
            entries: entries.to_vec(),
            lines: check(entries, format)?,
        })
    }

    /// The table that KVM starts with: GSI `n` goes to IOAPIC pin `n`, and below 16 to input `n` of
    /// the 8259A pair as well (KVM also lists input 2, where no device can be).
    #[must_use]
    pub fn identity_entries() -> Vec<RouteEntry> {
        let pic = (0..16).filter(|pin| *pin != 2).map(|pin| RouteEntry {
            gsi: Gsi(u32::from(pin)),
            target: RouteTarget::Pic(pin),
        });
        let ioapic = (0..PIN_COUNT).map(|pin| RouteEntry {
            gsi: Gsi(u32::from(pin)),
            target: RouteTarget::IoApic(pin),
        });
        pic.chain(ioapic).collect()
    }

    /// The table of a PC whose ACPI tables say that ISA interrupt 0 is IOAPIC pin 2: as
    /// [`Self::identity_entries`], but for that.
    #[must_use]
    pub fn pc_entries() -> Vec<RouteEntry> {
        let mut entries = Self::identity_entries();
        entries.retain(|entry| entry.target != RouteTarget::IoApic(0) && entry.gsi != Gsi(2));
        entries.push(RouteEntry {
            gsi: Gsi(0),
            target: RouteTarget::IoApic(2),
        });
        entries
    }

    /// The table.
    #[must_use]
    pub fn entries(&self) -> &[RouteEntry] {
        &self.entries
    }

    /// Where a GSI goes.
    ///
    /// # Errors
    /// If nowhere.
    pub fn targets(&self, gsi: Gsi) -> Result<Targets, NoRoute> {
        let line = usize::try_from(gsi.0)
            .ok()
            .and_then(|gsi| self.lines.get(gsi));
        match line {
            Some(line) if !line.targets.is_empty() => Ok(line.targets),
            _ => Err(NoRoute(gsi)),
        }
    }

    /// Whether a source holds the line of this GSI up.
    #[must_use]
    pub fn is_up(&self, gsi: Gsi) -> bool {
        let line = usize::try_from(gsi.0)
            .ok()
            .and_then(|gsi| self.lines.get(gsi));
        line.is_some_and(|line| line.sources != 0)
    }

    /// One source drives its end of a line. A source that signals by an event rises and falls; the
    /// chips' `pulse` is for a GSI of its own ([`Self::targets`]).
    ///
    /// # Errors
    /// If the GSI has no route; then nothing has changed.
    pub fn set_line(
        &mut self,
        gsi: Gsi,
        source: SourceId,
        up: bool,
    ) -> Result<LineChange, NoRoute> {
        let line = usize::try_from(gsi.0)
            .ok()
            .and_then(|gsi| self.lines.get_mut(gsi))
            .filter(|line| !line.targets.is_empty())
            .ok_or(NoRoute(gsi))?;
        let bit = 1 << source.0;
        let was_up = line.sources != 0;
        if up {
            line.sources |= bit;
        } else {
            line.sources &= !bit;
        }
        Ok(match (was_up, line.sources != 0) {
            (false, true) => LineChange::Rose(line.targets),
            (true, false) => LineChange::Fell(line.targets),
            _ => LineChange::Unchanged,
        })
    }

    /// Takes another table. Sources go on holding up what they hold up, but for GSIs that have no
    /// route any more. Returns the pins whose level is another by that, those that fall first.
    ///
    /// # Errors
    /// If the table has a mistake, with the place; then nothing has changed.
    pub fn replace(&mut self, entries: &[RouteEntry]) -> Result<Vec<PinLevel>, RouteError> {
        let mut lines = check(entries, self.format)?;
        for (new, old) in lines.iter_mut().zip(&self.lines) {
            if !new.targets.is_empty() {
                new.sources = old.sources;
            }
        }
        let [old, new] = [pins_up(&self.lines), pins_up(&lines)];
        let changes = |from: &[Targets], to: &[Targets], up| -> Vec<PinLevel> {
            let gone = from.iter().filter(|pin| !to.contains(pin));
            gone.map(|target| PinLevel {
                target: *target,
                up,
            })
            .collect()
        };
        let mut pins = changes(&old, &new, false);
        pins.extend(changes(&new, &old, true));
        self.lines = lines;
        self.entries = entries.to_vec();
        Ok(pins)
    }

    /// The state as plain data.
    #[must_use]
    pub fn save(&self) -> RoutingState {
        let asserted = (0u32..).zip(&self.lines);
        RoutingState {
            version: RoutingState::VERSION,
            destination_format: self.format,
            entries: self.entries.clone(),
            asserted: asserted
                .filter(|(_, line)| line.sources != 0)
                .map(|(gsi, line)| (Gsi(gsi), line.sources))
                .collect(),
        }
    }

    /// Takes a saved state over. Pins are not driven: their chips have states of their own.
    ///
    /// # Errors
    /// If the state has a mistake, with the place; then nothing has changed.
    pub fn restore(&mut self, state: &RoutingState) -> Result<(), RouteError> {
        let RoutingState {
            version,
            destination_format,
            entries,
            asserted,
        } = state;
        if *version != RoutingState::VERSION {
            return Err(RouteError::Version { found: *version });
        }
        let mut lines = check(entries, *destination_format)?;
        for (index, (gsi, sources)) in asserted.iter().enumerate() {
            let line = usize::try_from(gsi.0)
                .ok()
                .and_then(|gsi| lines.get_mut(gsi))
                .filter(|line| !line.targets.is_empty() && line.sources == 0 && *sources != 0)
                .ok_or(RouteError::Asserted { index, gsi: gsi.0 })?;
            line.sources = *sources;
        }
        *self = Self {
            format: *destination_format,
            entries: entries.clone(),
            lines,
        };
        Ok(())
    }
}

/// A router's state as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct RoutingState {
    /// The layout, [`RoutingState::VERSION`].
    pub version: u16,
    /// Which destinations its MSIs have.
    pub destination_format: DestinationFormat,
    /// The table.
    pub entries: Vec<RouteEntry>,
    /// The lines that are up, with their sources: source `n` is bit `n`.
    pub asserted: Vec<(Gsi, u64)>,
}

impl RoutingState {
    /// The layout that this build writes and reads.
    pub const VERSION: u16 = 1;
}

/// Builds the lines of a table, with all its mistakes found.
fn check(entries: &[RouteEntry], format: DestinationFormat) -> Result<Vec<Line>, RouteError> {
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

/// The pins of lines that are up, one by one.
fn pins_up(lines: &[Line]) -> Vec<Targets> {
    let up = lines.iter().filter(|line| line.sources != 0);
    let pins = up.flat_map(|Line { targets, .. }| {
        let pic = targets.pic.map(|pin| Targets {
            pic: Some(pin),
            ..Targets::default()
        });
        let ioapic = targets.ioapic.map(|pin| Targets {
            ioapic: Some(pin),
            ..Targets::default()
        });
        [pic, ioapic].into_iter().flatten()
    });
    pins.collect()
}

#[cfg(test)]
#[path = "routing_tests.rs"]
mod tests;

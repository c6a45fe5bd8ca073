//! Lines, their sources, and the table they follow.

use alloc::vec::Vec;

use thiserror::Error;

use super::table::{Line, RouteEntry, RouteError, RouteTarget, Targets, check};
use crate::ioapic::PIN_COUNT;
use crate::{DestinationFormat, Gsi};

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

/// The GSI has no route: it is dropped, as KVM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} has no route")]
pub struct NoRoute(pub Gsi);

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
    /// the 8259A pair as well (KVM also lists input 2, where no device can be). For a VMM without an
    /// 8254; with one, kernels that know PCs look for its interrupt at IOAPIC pin 2
    /// ([`Self::pc_entries`]).
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

    /// The table of a PC, as QEMU and VirtualBox have it: [`Self::identity_entries`], but GSI 0, the
    /// 8254's interrupt, goes to IOAPIC pin 2 ([`Self::PC_TIMER_PIN`]). Nothing goes to IOAPIC pin 0,
    /// and GSI 2 has no route.
    ///
    /// A guest learns this from an interrupt source override in the MADT (ISA 0 is at global system
    /// interrupt 2), or from the MP table (ISA 0 is at pin 2). ACPI counts the IOAPIC's pins there; a
    /// [`Gsi`] counts lines of devices, as KVM does.
    #[must_use]
    pub fn pc_entries() -> Vec<RouteEntry> {
        let mut entries = Self::identity_entries();
        entries.retain(|entry| entry.gsi.0 != u32::from(Self::PC_TIMER_PIN));
        for entry in &mut entries {
            if entry.target == RouteTarget::IoApic(0) {
                entry.target = RouteTarget::IoApic(Self::PC_TIMER_PIN);
            }
        }
        entries
    }

    /// The IOAPIC pin of the 8254's interrupt in a PC.
    pub const PC_TIMER_PIN: u8 = 2;

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

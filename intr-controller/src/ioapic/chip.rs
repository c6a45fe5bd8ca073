//! Registers, pins and EOIs. Sections are those of the 82093AA data sheet (Intel 290566).

use super::eoi_routes::PinRoutes;
use super::{
    EoiRoutes, IoApicPin, IoApicPins, IoApicRestoreError, IoApicState, IoApicVersion, PIN_COUNT,
    RedirectionEntry,
};
use crate::{DestinationFormat, InterruptMessage, TriggerMode};

/// Offsets of the registers in memory (3.1).
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;

/// What IOREGSEL selects (3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Id,
    Version,
    Arbitration,
    Entry { pin: u8, upper: bool },
    Absent,
}

impl Register {
    const fn select(index: u8) -> Self {
        match index {
            0x00 => Self::Id,
            0x01 => Self::Version,
            0x02 => Self::Arbitration,
            0x10..=0x3f => Self::Entry {
                pin: (index - 0x10) / 2,
                upper: index & 1 != 0,
            },
            _ => Self::Absent,
        }
    }
}

/// What a guest's write did, apart from the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IoApicWrite {
    /// Pins whose entry was written: what they are sent as may be different now.
    pub changed: IoApicPins,
    /// Pins whose interrupt ended, by a write to EOIR.
    pub ended: IoApicPins,
}

/// An IOAPIC. See the [module](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    model: IoApicVersion,
    format: DestinationFormat,
    id: u8,
    select: u8,
    lines: IoApicPins,
    entries: [RedirectionEntry; PIN_COUNT as usize],
    /// By what entry a level that awaits its EOI was sent, if the entry now says something else.
    sent_by: [Option<RedirectionEntry>; PIN_COUNT as usize],
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new(IoApicVersion::default(), DestinationFormat::default())
    }
}

impl IoApic {
    /// Bytes of memory that it answers at; at 0xfec0_0000 in a PC.
    pub const WINDOW: u64 = 0x100;

    /// The offset of the EOI register, whose low byte is the vector to end (version 0x20).
    pub const EOIR: u64 = 0x40;

    /// At reset.
    #[must_use]
    pub const fn new(model: IoApicVersion, format: DestinationFormat) -> Self {
        Self {
            model,
            format,
            id: 0,
            select: 0,
            lines: IoApicPins(0),
            entries: [RedirectionEntry::RESET; PIN_COUNT as usize],
            sent_by: [None; PIN_COUNT as usize],
        }
    }

    /// Back to reset, except for the pins, which are the devices'. All is masked, so nothing is
    /// sent.
    pub fn reset(&mut self) {
        let Self {
            model,
            format,
            id: _,
            select: _,
            lines,
            entries: _,
            sent_by: _,
        } = *self;
        *self = Self {
            lines,
            ..Self::new(model, format)
        };
    }

    /// Drives a pin, which is asserted (`true`) or not; what polarity the wire has is between the
    /// device and the board. Returns what has to be delivered. The same level again is no event.
    #[must_use = "the message has to be delivered"]
    #[inline]
    pub fn set_line(&mut self, pin: IoApicPin, up: bool) -> Option<InterruptMessage> {
        let bit = 1 << pin.get();
        let was_up = self.lines.0 & bit != 0;
        if !up {
            self.lines.0 &= !bit;
            return None;
        }
        self.lines.0 |= bit;
        if was_up {
            return None;
        }
        self.entries
            .get_mut(usize::from(pin.get()))?
            .send(self.format)
    }

    /// A rise and a fall: what a device that signals by an event means by it. A level that is not
    /// masked is sent once.
    #[must_use = "the message has to be delivered"]
    pub fn pulse(&mut self, pin: IoApicPin) -> Option<InterruptMessage> {
        if self.line(pin) {
            return None;
        }
        let message = self.set_line(pin, true);
        let _ = self.set_line(pin, false);
        message
    }

    /// Whether a pin is asserted.
    #[must_use]
    pub const fn line(&self, pin: IoApicPin) -> bool {
        self.lines.contains(pin)
    }

    /// A pin's entry.
    #[must_use]
    pub fn entry(&self, pin: IoApicPin) -> RedirectionEntry {
        let entry = self.entries.get(usize::from(pin.get()));
        // A pin has an entry: its number is checked.
        entry.copied().unwrap_or(RedirectionEntry::RESET)
    }

    /// What a pin's requests are sent as: for the routes of a host that delivers them itself
    /// (`split`). `None` if it is masked, or sends nothing.
    #[must_use]
    pub fn route(&self, pin: IoApicPin) -> Option<InterruptMessage> {
        let entry = self.entry(pin);
        if entry.masked() {
            return None;
        }
        entry.message(self.format)
    }

    /// Which destinations its entries have.
    #[must_use]
    pub const fn destination_format(&self) -> DestinationFormat {
        self.format
    }

    /// The pins whose interrupt an EOI of this vector would end. A VMM that resamples level
    /// sources lowers theirs before it calls [`Self::eoi`].
    #[must_use]
    pub fn awaiting_eoi(&self, vector: u8) -> IoApicPins {
        let awaits = |entry: &RedirectionEntry| entry.remote_irr() && entry.vector() == vector;
        let pins = self.entries.iter().rev();
        IoApicPins(pins.fold(0, |pins, entry| pins << 1 | u32::from(awaits(entry))))
    }

    /// The vectors of levels, masked or not: vector `n` is bit `n % 64` of word `n / 64`. A local
    /// APIC need not tell of EOIs of others.
    #[must_use]
    pub fn level_vectors(&self) -> [u64; 4] {
        let mut vectors = [0; 4];
        for entry in &self.entries {
            if entry.trigger_mode() == TriggerMode::Level || entry.remote_irr() {
                let vector = entry.vector();
                if let Some(word) = vectors.get_mut(usize::from(vector / 64)) {
                    *word |= 1 << (vector % 64);
                }
            }
        }
        vectors
    }

    /// What a host that has the local APICs has to know of the entries to tell of EOIs.
    #[must_use]
    pub fn eoi_routes(&self) -> EoiRoutes {
        let level = |entry: RedirectionEntry| {
            let message = entry.message(self.format)?;
            (message.trigger_mode == TriggerMode::Level).then_some(message)
        };
        let mut routes = EoiRoutes::default();
        let pins = self.entries.iter().zip(&self.sent_by);
        for (route, (entry, sent_by)) in routes.pins.iter_mut().zip(pins) {
            // See `eoi`: one of another vector would end nothing.
            let sent_by = sent_by.filter(|sent_by| sent_by.vector() == entry.vector());
            *route = PinRoutes::new(level(*entry), sent_by.and_then(level));
        }
        routes
    }

    /// A local APIC's EOI of this vector, or a write of it to EOIR: every pin that awaits it has
    /// its remote IRR cleared ("Remote IRR"), and those still asserted are sent again. Returns the
    /// pins whose interrupt ended.
    ///
    /// The vector is compared with that of the entry as it is now, whatever the interrupt was sent
    /// as (ICH10 data sheet, 13.5.4, "EOIR": "compare it with the vector field for each entry").
    /// Where it came from does not matter: of a level that was moved, the old destination's ends it.
    pub fn eoi(&mut self, vector: u8, mut deliver: impl FnMut(InterruptMessage)) -> IoApicPins {
        let mut ended = 0;
        let format = self.format;
        let pins = self.entries.iter_mut().zip(&mut self.sent_by);
        for (pin, (entry, sent_by)) in pins.enumerate() {
            if !entry.remote_irr() || entry.vector() != vector {
                continue;
            }
            ended |= 1 << pin;
            entry.set_remote_irr(false);
            *sent_by = None;
            if self.lines.0 >> pin & 1 != 0 {
                entry.send(format).into_iter().for_each(&mut deliver);
            }
        }
        IoApicPins(ended)
    }

    /// A guest's read, at an offset into the window.
    #[must_use]
    pub fn read_register(&self, offset: u64) -> u32 {
        match offset {
            IOREGSEL => self.select.into(),
            IOWIN => match Register::select(self.select) {
                // 3.2.1 and 3.2.3: the arbitration id is loaded with the id, and there is no bus
                // to rotate it on.
                Register::Id | Register::Arbitration => u32::from(self.id) << 24,
                // 3.2.2.
                Register::Version => {
                    u32::from(PIN_COUNT - 1) << 16 | u32::from(self.model.number())
                }
                Register::Entry { pin, upper } => {
                    let entry = self.entries.get(usize::from(pin));
                    entry.map_or(u32::MAX, |entry| entry.half(upper))
                }
                Register::Absent => u32::MAX,
            },
            _ => 0,
        }
    }

    /// A guest's read of any size, at an offset into the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match data.len() {
            1 | 2 | 4 | 8 => self.read_register(offset),
            _ => 0,
        };
        let bytes = value.to_le_bytes().into_iter().chain(core::iter::repeat(0));
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }

    /// A guest's write of any size, at an offset into the window. What has to be delivered goes to
    /// `deliver`.
    pub fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        deliver: impl FnMut(InterruptMessage),
    ) -> IoApicWrite {
        if !matches!(data.len(), 1 | 2 | 4 | 8) {
            return IoApicWrite::default();
        }
        let mut value = [0; 4];
        for (byte, written) in value.iter_mut().zip(data) {
            *byte = *written;
        }
        self.write_register(offset, u32::from_le_bytes(value), deliver)
    }

    /// A guest's write of 32 bits, otherwise as [`Self::write`].
    pub fn write_register(
        &mut self,
        offset: u64,
        value: u32,
        mut deliver: impl FnMut(InterruptMessage),
    ) -> IoApicWrite {
        let mut outcome = IoApicWrite::default();
        let [low, .., high] = value.to_le_bytes();
        match (offset, Register::select(self.select)) {
            (IOREGSEL, _) => self.select = low,
            (IOWIN, Register::Id) => self.id = high & 0xf,
            (IOWIN, Register::Entry { pin, upper }) => {
                let format = self.format;
                let up = self.lines.0 >> pin & 1 != 0;
                let index = usize::from(pin);
                if let (Some(entry), Some(sent_by)) =
                    (self.entries.get_mut(index), self.sent_by.get_mut(index))
                {
                    let before = *entry;
                    *entry = entry.with_half(upper, value, format);
                    *sent_by = sent_by
                        .or(Some(before))
                        .filter(|_| entry.remote_irr())
                        .filter(|sent_by| sent_by.message(format) != entry.message(format));
                    // A level that is up and was masked, or an edge, or awaited an EOI until now.
                    if up && entry.owes_level() {
                        entry.send(format).into_iter().for_each(&mut deliver);
                    }
                }
                outcome.changed = IoApicPins(1 << pin);
            }
            (Self::EOIR, _) if self.model == IoApicVersion::V20 => {
                outcome.ended = self.eoi(low, deliver);
            }
            _ => {}
        }
        outcome
    }

    /// The state as plain data.
    #[must_use]
    pub const fn save(&self) -> IoApicState {
        let Self {
            model,
            format,
            id,
            select,
            lines,
            entries,
            sent_by,
        } = *self;
        IoApicState {
            version: IoApicState::VERSION,
            model,
            destination_format: format,
            id,
            select,
            lines,
            entries,
            sent_by,
        }
    }

    /// Takes a saved state over. Nothing is sent: a level that is up has been.
    ///
    /// # Errors
    /// If it is not one that an IOAPIC can be in; then nothing has changed.
    pub fn restore(&mut self, state: &IoApicState) -> Result<(), IoApicRestoreError> {
        state.validate()?;
        let IoApicState {
            version: _,
            model,
            destination_format: format,
            id,
            select,
            lines,
            entries,
            sent_by,
        } = *state;
        *self = Self {
            model,
            format,
            id,
            select,
            lines,
            entries,
            sent_by,
        };
        Ok(())
    }
}

impl RedirectionEntry {
    /// Whether an asserted line would have to be sent now, as a level that is not in service.
    pub(crate) const fn owes_level(self) -> bool {
        !self.masked() && !self.remote_irr() && self.trigger_mode().bit()
    }

    /// Sends a rise, or a level that is up: unless it is masked, or its last one awaits its EOI.
    const fn send(&mut self, format: DestinationFormat) -> Option<InterruptMessage> {
        let level = self.trigger_mode().bit();
        if self.masked() || (level && self.remote_irr()) {
            return None;
        }
        let message = self.message(format);
        if message.is_some() && level {
            self.set_remote_irr(true);
        }
        message
    }
}

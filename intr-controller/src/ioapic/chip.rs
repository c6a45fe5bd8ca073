//! Pins, entries and EOIs. Sections are those of the 82093AA data sheet (Intel 290566).

use super::eoi_routes::PinRoutes;
use super::{
    EoiRoutes, IoApicPin, IoApicPins, IoApicRestoreError, IoApicState, IoApicVersion, PIN_COUNT,
    RedirectionEntry, SentEntry,
};
use crate::{DestinationFormat, InterruptMessage, TriggerMode};

/// An IOAPIC. See the [module](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    pub(super) model: IoApicVersion,
    format: DestinationFormat,
    pub(super) id: u8,
    pub(super) select: u8,
    lines: IoApicPins,
    /// Pins with a [latched](Self::pulse_latched) pulse that has not been sent.
    latched: IoApicPins,
    entries: [RedirectionEntry; PIN_COUNT as usize],
    /// The pins whose entry has remote IRR set. An EOI looks only at these.
    remote_irr: IoApicPins,
    /// The entry that a level awaiting its EOI was sent by, if the pin's entry has changed since.
    sent_by: [Option<SentEntry>; PIN_COUNT as usize],
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new(IoApicVersion::default(), DestinationFormat::default())
    }
}

impl IoApic {
    /// At reset.
    #[must_use]
    pub const fn new(model: IoApicVersion, format: DestinationFormat) -> Self {
        Self {
            model,
            format,
            id: 0,
            select: 0,
            lines: IoApicPins(0),
            latched: IoApicPins(0),
            entries: [RedirectionEntry::RESET; PIN_COUNT as usize],
            remote_irr: IoApicPins(0),
            sent_by: [None; PIN_COUNT as usize],
        }
    }

    /// Back to reset, except for the lines, which are the devices'. Latched pulses are gone. All pins are
    /// masked, so nothing is sent.
    pub fn reset(&mut self) {
        let Self {
            model,
            format,
            id: _,
            select: _,
            lines,
            latched: _,
            entries: _,
            remote_irr: _,
            sent_by: _,
        } = *self;
        *self = Self {
            lines,
            ..Self::new(model, format)
        };
    }

    /// Drives a pin, which is asserted (`true`) or not; what polarity the wire has is between the
    /// device and the chipset. Returns what has to be delivered. The same level again is no event.
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
        self.send(pin)
    }

    /// Sends a pin's rise or its level, unless it is masked or its previous level awaits its EOI.
    #[inline]
    fn send(&mut self, pin: IoApicPin) -> Option<InterruptMessage> {
        let entry = self.entries.get_mut(usize::from(pin.get()))?;
        let message = entry.send(self.format);
        if entry.remote_irr() {
            self.remote_irr.set(pin, true);
        }
        if message.is_some() {
            self.latched.set(pin, false);
        }
        message
    }

    /// A rise and a fall of a pin: the signal of a device that has no line to hold up, such as an
    /// eventfd. A pin whose line is up has no rise, and nothing is sent.
    ///
    /// On a level-triggered pin the pulse is sent like a level that is up for a moment. **It is lost
    /// if the pin is masked, or if the previous interrupt of the pin is in service** (remote IRR is
    /// set): at the EOI the line is down. A device whose driver checks for more work before its EOI,
    /// but not after it, then stalls. Use [`Self::pulse_latched`] for such devices, or edge-triggered
    /// pins, or a line that the device lowers when its driver has served it.
    #[must_use = "the message has to be delivered"]
    pub fn pulse(&mut self, pin: IoApicPin) -> Option<InterruptMessage> {
        if self.line(pin) {
            return None;
        }
        let message = self.set_line(pin, true);
        let _ = self.set_line(pin, false);
        message
    }

    /// As [`Self::pulse`], but a pulse that cannot be sent now is latched: the pin counts as asserted
    /// until its next message. A pulse that arrives while the previous interrupt of a level-triggered
    /// pin is in service is therefore sent at the EOI, and one that arrives while the pin is masked is
    /// sent when the guest unmasks it as a level. However many pulses arrive in between, they become
    /// one message.
    ///
    /// An edge-triggered pin that is not masked takes it as [`Self::pulse`] does. An edge that the mask
    /// withholds is latched, because Linux ends a level on an IOAPIC without EOI register by making
    /// the entry a masked edge for a moment; unmasking the entry as an edge does not send it.
    #[must_use = "the message has to be delivered"]
    pub fn pulse_latched(&mut self, pin: IoApicPin) -> Option<InterruptMessage> {
        let entry = self.entry(pin);
        if entry.trigger_mode() == TriggerMode::Edge && !entry.masked() {
            return self.pulse(pin);
        }
        let message = self.send(pin);
        if message.is_none() {
            self.latched.set(pin, true);
        }
        message
    }

    /// Whether a level-triggered entry would find its pin asserted: by its line, or by a latched pulse.
    const fn asserted(&self, pin: IoApicPin) -> bool {
        IoApicPins(self.lines.0 | self.latched.0).contains(pin)
    }

    /// Whether a pin's line is up. A latched pulse does not count.
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
        let awaits = |pin: &IoApicPin| self.entry(*pin).vector() == vector;
        self.remote_irr.iter().filter(awaits).collect()
    }

    /// The routes that a host with its own local APICs needs to report EOIs.
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
            let sent_by = sent_by
                .map(SentEntry::entry)
                .filter(|sent_by| sent_by.vector() == entry.vector());
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
        let ended = self.awaiting_eoi(vector);
        for pin in ended.iter() {
            let index = usize::from(pin.get());
            if let Some(sent_by) = self.sent_by.get_mut(index) {
                *sent_by = None;
            }
            if let Some(entry) = self.entries.get_mut(index) {
                entry.set_remote_irr(false);
            }
            self.remote_irr.set(pin, false);
            if self.asserted(pin) {
                self.send(pin).into_iter().for_each(&mut deliver);
            }
        }
        ended
    }

    /// Half of an entry. What has to be sent then: a level that is up and was masked, or an edge, or
    /// awaited an EOI until now.
    #[inline]
    pub(super) fn write_entry(
        &mut self,
        pin: IoApicPin,
        upper: bool,
        value: u32,
    ) -> Option<InterruptMessage> {
        let format = self.format;
        let index = usize::from(pin.get());
        let entry = self.entries.get_mut(index)?;
        let before = *entry;
        *entry = entry.with_half(upper, value, format);
        let now = *entry;
        self.remote_irr.set(pin, now.remote_irr());
        if let Some(sent_by) = self.sent_by.get_mut(index) {
            *sent_by = if now.remote_irr() {
                let was = sent_by.map_or(before, SentEntry::entry);
                let moved = was.message(format) != now.message(format);
                SentEntry::new(was).filter(|_| moved)
            } else {
                None
            };
        }
        if self.asserted(pin) && now.owes_level() {
            self.send(pin)
        } else {
            None
        }
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
            latched,
            entries,
            remote_irr: _,
            sent_by,
        } = *self;
        IoApicState {
            version: IoApicState::VERSION,
            model,
            destination_format: format,
            id,
            select,
            lines,
            latched,
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
            latched,
            entries,
            sent_by,
        } = *state;
        let pins = entries.iter().rev();
        let remote_irr = pins.fold(0, |pins, entry| pins << 1 | u32::from(entry.remote_irr()));
        *self = Self {
            model,
            format,
            id,
            select,
            lines,
            latched,
            entries,
            remote_irr: IoApicPins(remote_irr),
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
    #[inline]
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

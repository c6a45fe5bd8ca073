//! The chips outside the processors, wired as a PC has them.
//!
//! GSIs go through the [router](crate::routing) to the 8259A pair and the IOAPIC. The 8254's channel 0
//! is a source of GSI 0, which a PC has at IOAPIC pin 2. What has to reach a processor comes out in two forms:
//! [messages](InterruptMessage), handed to the `deliver` of the call that caused them, and one
//! line, [`Chipset::intr`], which goes to every local APIC's LINT0. A VMM with threads keeps a chipset
//! under one lock, collects the messages, and delivers them when it has let go of it.
//!
//! Accesses are decoded here: ports and the IOAPIC's window of memory. Each returns `true` if it was
//! one of the chipset's, and costs bounded time.

use crate::ioapic::{
    IoApic, IoApicPin, IoApicPins, IoApicRestoreError, IoApicState, IoApicVersion, IoApicWrite,
};
use crate::pic::{Pic, PicRestoreError, PicState};
use crate::pit::{LostTicks, Pit, PitRestoreError, PitState, TickCounters, TickQueue};
use crate::routing::{
    GsiRouter, LineChange, NoRoute, RouteEntry, RouteError, RoutingState, SourceId, Targets,
};
use crate::x86::IOAPIC_ADDRESS;
use crate::{DestinationFormat, Gsi, GuestTime, InterruptMessage};

/// The timer's interrupt.
const TIMER_GSI: Gsi = Gsi(0);

/// The 8259A pair, the IOAPIC, the 8254 and the wires between them. See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chipset {
    router: GsiRouter,
    pic: Pic,
    ioapic: IoApic,
    pit: Pit,
    ticks: TickQueue,
}

/// What a guest's access to the chipset did, apart from the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChipsetAccess {
    /// It was the chipset's.
    pub claimed: bool,
    /// IOAPIC pins whose entry was written, or whose interrupt ended by a write to EOIR: a host that
    /// reports EOIs by routes of its own (`split`) may need [others](IoApic::eoi_routes) before
    /// anything else is delivered.
    pub changed: IoApicPins,
}

const CLAIMED: ChipsetAccess = ChipsetAccess {
    claimed: true,
    changed: IoApicPins(0),
};

/// A saved chipset.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct ChipsetState {
    /// Routes, and who holds lines up.
    pub routing: RoutingState,
    /// The 8259A pair.
    pub pic: PicState,
    /// The IOAPIC.
    pub ioapic: IoApicState,
    /// The 8254. Ticks that are owed are in its [`rises`](PitState::rises). The policy for lost ticks and
    /// the counters are the VMM's, and not saved.
    pub pit: PitState,
}

/// A chipset's state was refused, and the chipset is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChipsetRestoreError {
    /// Its routes.
    #[error("routing.{0}")]
    Routing(#[from] RouteError),
    /// Its 8259A pair.
    #[error("pic.{0}")]
    Pic(#[from] PicRestoreError),
    /// Its IOAPIC.
    #[error("ioapic.{0}")]
    IoApic(#[from] IoApicRestoreError),
    /// Its 8254.
    #[error("pit.{0}")]
    Pit(#[from] PitRestoreError),
}

impl Chipset {
    /// The id of the 8254 as a source of GSI 0, above those that devices should use.
    pub const TIMER_SOURCE: u8 = 63;

    /// At power-on, with these routes.
    ///
    /// # Errors
    /// If the table has a mistake, with the place.
    pub fn new(
        routes: &[RouteEntry],
        version: IoApicVersion,
        format: DestinationFormat,
    ) -> Result<Self, RouteError> {
        Ok(Self {
            router: GsiRouter::new(routes, format)?,
            pic: Pic::new(),
            ioapic: IoApic::new(version, format),
            pit: Pit::new(),
            ticks: TickQueue::new(LostTicks::default()),
        })
    }

    /// The IOAPIC.
    #[must_use]
    pub const fn ioapic(&self) -> &IoApic {
        &self.ioapic
    }

    /// The 8259A pair's INTR, for LINT0 of every local APIC. Look at it after each call that
    /// changes the chipset.
    #[must_use]
    pub fn intr(&self) -> bool {
        self.pic.intr()
    }

    /// The number of the 8254's ticks of each fate.
    #[must_use]
    pub const fn tick_counters(&self) -> TickCounters {
        self.ticks.counters()
    }

    /// The policy for ticks that the guest could not be given in time.
    #[must_use]
    pub const fn lost_ticks(&self) -> LostTicks {
        self.ticks.policy()
    }

    /// Sets the policy for ticks that the guest could not be given in time. It is
    /// [`LostTicks::Discard`] at first.
    pub fn set_lost_ticks(&mut self, policy: LostTicks) {
        self.ticks.set_policy(policy);
    }

    /// The message that [`Self::advance`] has just delivered found its predecessor still pending in each
    /// local APIC that it was for. The guest has not seen this tick.
    pub fn tick_was_lost(&mut self) {
        self.ticks.lost();
    }

    /// The processor's two INTA cycles, for an ExtINT that is injected now: its vector.
    pub fn acknowledge(&mut self) -> u8 {
        self.pic.acknowledge().vector
    }

    /// The vector that [`Self::acknowledge`] would return. Changes nothing.
    #[must_use]
    pub fn next_ext_int(&self) -> u8 {
        let mut pic = self.pic;
        pic.acknowledge().vector
    }

    /// One source drives its end of a line.
    ///
    /// # Errors
    /// If the GSI has no route; then nothing has changed.
    pub fn set_line(
        &mut self,
        gsi: Gsi,
        source: SourceId,
        up: bool,
        mut deliver: impl FnMut(InterruptMessage),
    ) -> Result<(), NoRoute> {
        match self.router.set_line(gsi, source, up)? {
            LineChange::Unchanged => {}
            LineChange::Rose(targets) => {
                let Targets { pic, ioapic, msi } = targets;
                if let Some(pin) = pic {
                    self.pic.set_line(pin, true);
                }
                if let Some(message) = ioapic.and_then(|pin| self.ioapic.set_line(pin, true)) {
                    deliver(message);
                }
                if let Some(message) = msi {
                    deliver(message);
                }
            }
            LineChange::Fell(Targets { pic, ioapic, .. }) => {
                if let Some(pin) = pic {
                    self.pic.set_line(pin, false);
                }
                if let Some(pin) = ioapic {
                    // A fall sends nothing.
                    let _ = self.ioapic.set_line(pin, false);
                }
            }
        }
        Ok(())
    }

    /// One event of a device that signals by events (an eventfd): an edge that is long enough to
    /// be acknowledged. A line that is up has no edge, a level-triggered 8259A input takes none, and
    /// a level-triggered IOAPIC pin loses one that arrives while its previous interrupt is in service
    /// ([`IoApic::pulse`]).
    ///
    /// # Errors
    /// If the GSI has no route; then nothing has changed.
    pub fn pulse(
        &mut self,
        gsi: Gsi,
        deliver: impl FnMut(InterruptMessage),
    ) -> Result<(), NoRoute> {
        self.pulse_with(gsi, IoApic::pulse, deliver)
    }

    /// As [`Self::pulse`], but a level-triggered IOAPIC pin keeps an event that it cannot send now, and
    /// sends it at the EOI ([`IoApic::pulse_latched`]). For devices that only pulse.
    ///
    /// # Errors
    /// If the GSI has no route; then nothing has changed.
    pub fn pulse_latched(
        &mut self,
        gsi: Gsi,
        deliver: impl FnMut(InterruptMessage),
    ) -> Result<(), NoRoute> {
        self.pulse_with(gsi, IoApic::pulse_latched, deliver)
    }

    fn pulse_with(
        &mut self,
        gsi: Gsi,
        pulse: fn(&mut IoApic, IoApicPin) -> Option<InterruptMessage>,
        mut deliver: impl FnMut(InterruptMessage),
    ) -> Result<(), NoRoute> {
        let Targets { pic, ioapic, msi } = self.router.targets(gsi)?;
        if let Some(pin) = pic {
            self.pic.pulse(pin);
        }
        if let Some(message) = ioapic.and_then(|pin| pulse(&mut self.ioapic, pin)) {
            deliver(message);
        }
        if let Some(message) = msi {
            deliver(message);
        }
        Ok(())
    }

    /// A local APIC's EOI of a level-triggered vector. Returns the IOAPIC pins whose interrupt ended,
    /// with the same meaning to a host as [`ChipsetAccess::changed`].
    pub fn eoi(&mut self, vector: u8, deliver: impl FnMut(InterruptMessage)) -> IoApicPins {
        self.ioapic.eoi(vector, deliver)
    }

    /// A guest's read of ports.
    pub fn read_port(&mut self, port: u16, data: &mut [u8], now: GuestTime) -> bool {
        if claims(&Pit::PORTS, port) {
            self.pit.read(now, port, data);
            return true;
        }
        if claims(&Pic::PORTS, port) {
            self.pic.read(port, data);
            return true;
        }
        false
    }

    /// A guest's write of ports.
    pub fn write_port(
        &mut self,
        port: u16,
        data: &[u8],
        now: GuestTime,
        deliver: impl FnMut(InterruptMessage),
    ) -> bool {
        if claims(&Pit::PORTS, port) {
            let program = self.timer_program();
            self.pit.write(now, port, data);
            if self.timer_program() != program {
                self.ticks.forget();
            }
            // The output may have risen with the write.
            self.advance(now, deliver);
            return true;
        }
        if claims(&Pic::PORTS, port) {
            self.pic.write(port, data);
            return true;
        }
        false
    }

    /// A guest's read of memory.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        let Some(offset) = ioapic_offset(address) else {
            return false;
        };
        self.ioapic.read(offset, data);
        true
    }

    /// A guest's write of memory.
    pub fn write_memory(
        &mut self,
        address: u64,
        data: &[u8],
        deliver: impl FnMut(InterruptMessage),
    ) -> ChipsetAccess {
        let Some(offset) = ioapic_offset(address) else {
            return ChipsetAccess::default();
        };
        let IoApicWrite { changed, ended } = self.ioapic.write(offset, data, deliver);
        ChipsetAccess {
            changed: IoApicPins(changed.0 | ended.0),
            ..CLAIMED
        }
    }

    /// The control word and the count of the 8254's channel 0.
    const fn timer_program(&self) -> (u8, u32) {
        let [channel_0, ..] = self.pit.save().channels;
        (channel_0.control, channel_0.reload)
    }

    /// Brings the 8254 up to `now`. If its output rose since the last time, once or often, one interrupt
    /// at most is sent: more of them at once would merge, or keep the guest in its handler. The
    /// [policy](Self::set_lost_ticks) says what becomes of the others.
    ///
    /// A caller that learns that the message of the tick has merged with one that is pending calls
    /// [`Self::tick_was_lost`]. What merges in the 8259A is noticed here.
    pub fn advance(&mut self, now: GuestTime, mut deliver: impl FnMut(InterruptMessage)) {
        let irq0 = self.pit.irq0(now);
        let Ok(timer) = SourceId::new(Self::TIMER_SOURCE) else {
            return;
        };
        if self.ticks.take(now, irq0.rises, self.pit.irq0_period()) {
            let targets = self.router.targets(TIMER_GSI).unwrap_or_default();
            let merges = targets.pic.is_some_and(|pin| self.pic.is_requested(pin));
            let mut sent = false;
            let mut deliver = |message| {
                sent = true;
                deliver(message);
            };
            // A line without a route goes nowhere.
            let _ = self.set_line(TIMER_GSI, timer, false, &mut deliver);
            let _ = self.set_line(TIMER_GSI, timer, true, &mut deliver);
            if merges && !sent {
                self.ticks.lost();
            }
        }
        let _ = self.set_line(TIMER_GSI, timer, irq0.level, &mut deliver);
    }

    /// When to call [`Self::advance`] next. The guest chooses it, and may choose every microsecond: a VMM
    /// that waits for it needs a minimum.
    #[must_use]
    pub fn next_deadline(&self) -> Option<GuestTime> {
        let (rise, owed) = (self.pit.next_deadline(), self.ticks.next());
        rise.into_iter().chain(owed).min()
    }

    /// The state as plain data.
    #[must_use]
    pub fn save(&self) -> ChipsetState {
        let Self {
            router,
            pic,
            ioapic,
            pit,
            ticks,
        } = self;
        let mut pit = pit.save();
        pit.rises = pit.rises.saturating_add(ticks.counters().owed);
        ChipsetState {
            routing: router.save(),
            pic: pic.save(),
            ioapic: ioapic.save(),
            pit,
        }
    }

    /// Takes a saved state over. Nothing is sent.
    ///
    /// # Errors
    /// If a part of it is not one that the chip can be in; then nothing has changed.
    pub fn restore(&mut self, state: &ChipsetState) -> Result<(), ChipsetRestoreError> {
        let ChipsetState {
            routing,
            pic,
            ioapic,
            pit,
        } = state;
        let mut restored = self.clone();
        restored.router.restore(routing)?;
        restored.pic.restore(pic)?;
        restored.ioapic.restore(ioapic)?;
        restored.pit.restore(pit)?;
        restored.ticks = TickQueue::new(self.ticks.policy());
        *self = restored;
        Ok(())
    }
}

fn claims(ports: &[(u16, u16)], port: u16) -> bool {
    ports
        .iter()
        .any(|(first, count)| port.wrapping_sub(*first) < *count)
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address
        .checked_sub(IOAPIC_ADDRESS)
        .filter(|offset| *offset < IoApic::WINDOW)
}

#[cfg(test)]
mod tests;

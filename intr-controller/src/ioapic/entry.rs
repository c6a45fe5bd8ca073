//! A redirection-table entry (82093AA, 3.2.4, "IOREDTBL[23:0]").

use core::fmt;
use core::num::NonZeroU64;

use crate::msi::delivery_mode;
use crate::{DeliveryMode, DestinationFormat, DestinationMode, InterruptMessage, TriggerMode};

/// Bits.
const DESTINATION_MODE: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const POLARITY: u64 = 1 << 13;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask, destination: what a guest
/// may write. Delivery status and remote IRR are read-only.
const WRITABLE: u64 = 0x7ff | DESTINATION_MODE | POLARITY | LEVEL | MASKED | 0xff00_0000_0000_0000;
/// Bits 14 to 8 of an extended destination: 55 to 49, as Linux has them. 48 is the remappable
/// format's.
const EXTENDED: u64 = 0x00fe_0000_0000_0000;

/// One entry, of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RedirectionEntry(u64);

impl RedirectionEntry {
    /// At reset: masked, all else zero.
    pub const RESET: Self = Self(MASKED);

    /// From its bits; those that do not exist in this format are left out, and so is delivery
    /// status, which is never set.
    #[must_use]
    pub const fn from_bits(bits: u64, format: DestinationFormat) -> Self {
        Self(bits & (Self::writable(format) | REMOTE_IRR))
    }

    /// Its bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    const fn writable(format: DestinationFormat) -> u64 {
        match format {
            DestinationFormat::Xapic => WRITABLE,
            DestinationFormat::Extended => WRITABLE | EXTENDED,
        }
    }

    /// Whether a state may have these bits.
    pub(crate) const fn is_valid(self, format: DestinationFormat) -> bool {
        self.wrong_bits(format) == 0
    }

    /// Bits that a state may not have: those that do not exist, and remote IRR (moved to the trigger mode's
    /// place) of an edge.
    pub(super) const fn wrong_bits(self, format: DestinationFormat) -> u64 {
        let unknown = self.0 & !(Self::writable(format) | REMOTE_IRR);
        unknown | (self.0 & REMOTE_IRR) << 1 & !self.0
    }

    /// Either half, as the guest reads it.
    pub(super) const fn half(self, upper: bool) -> u32 {
        let [a, b, c, d, e, f, g, h] = self.0.to_le_bytes();
        if upper {
            u32::from_le_bytes([e, f, g, h])
        } else {
            u32::from_le_bytes([a, b, c, d])
        }
    }

    /// With one half written by the guest.
    pub(super) const fn with_half(
        self,
        upper: bool,
        value: u32,
        format: DestinationFormat,
    ) -> Self {
        let (shift, half) = if upper { (32, !0 << 32) } else { (0, !0 >> 32) };
        let writable = Self::writable(format) & half;
        let mut bits = self.0 & !writable | (value as u64) << shift & writable;
        // Linux makes an entry edge-triggered and level-triggered again to end an interrupt on
        // IOAPICs without EOI register, because that clears remote IRR in the hardware.
        if bits & LEVEL == 0 {
            bits &= !REMOTE_IRR;
        }
        Self(bits)
    }

    /// The vector of a fixed or lowest-priority interrupt.
    #[must_use]
    pub const fn vector(self) -> u8 {
        let [vector, ..] = self.0.to_le_bytes();
        vector
    }

    /// Whether the pin is masked.
    #[must_use]
    pub const fn masked(self) -> bool {
        self.0 & MASKED != 0
    }

    /// Whether a level's EOI is awaited.
    #[must_use]
    pub const fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    pub(super) const fn set_remote_irr(&mut self, set: bool) {
        self.0 = if set {
            self.0 | REMOTE_IRR
        } else {
            self.0 & !REMOTE_IRR
        };
    }

    /// Whether the pin is asserted while it is low.
    #[must_use]
    pub const fn active_low(self) -> bool {
        self.0 & POLARITY != 0
    }

    const fn trigger_bit(self) -> bool {
        self.0 & LEVEL != 0
    }

    /// The delivery mode, or `None` for a reserved one.
    #[must_use]
    pub const fn delivery_mode(self) -> Option<DeliveryMode> {
        let [_, mode, ..] = self.0.to_le_bytes();
        delivery_mode(mode)
    }

    /// How its interrupts are triggered: by level only if the entry says so and the delivery mode
    /// has levels. ("Delivery mode": SMI and ExtINT require edge; NMI and INIT are "treated as an
    /// edge triggered interrupt even if it is programmed as a level triggered interrupt".)
    #[must_use]
    pub const fn trigger_mode(self) -> TriggerMode {
        match self.delivery_mode() {
            Some(DeliveryMode::Fixed | DeliveryMode::LowestPriority) => {
                TriggerMode::from_bit(self.trigger_bit())
            }
            _ => TriggerMode::Edge,
        }
    }

    /// What a request on its pin is sent as, masked or not. `None` if its delivery mode is
    /// reserved.
    #[must_use]
    pub const fn message(self, format: DestinationFormat) -> Option<InterruptMessage> {
        let Some(delivery_mode) = self.delivery_mode() else {
            return None;
        };
        let [.., high, low] = self.0.to_le_bytes();
        Some(InterruptMessage {
            destination: format.destination(low, high >> 1),
            destination_mode: DestinationMode::from_bit(self.0 & DESTINATION_MODE != 0),
            delivery_mode,
            trigger_mode: self.trigger_mode(),
            level: true,
            vector: self.vector(),
        })
    }
}

/// The entry that a level was sent by which awaits its EOI: remote IRR is set in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SentEntry(NonZeroU64);

impl SentEntry {
    /// `None` if it awaits none.
    #[must_use]
    pub const fn new(entry: RedirectionEntry) -> Option<Self> {
        match NonZeroU64::new(entry.0) {
            Some(bits) if entry.remote_irr() => Some(Self(bits)),
            _ => None,
        }
    }

    /// The entry.
    #[must_use]
    pub const fn entry(self) -> RedirectionEntry {
        RedirectionEntry(self.0.get())
    }
}

impl fmt::Debug for SentEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SentEntry({:#018x})", self.0)
    }
}

impl fmt::Debug for RedirectionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedirectionEntry({:#018x})", self.0)
    }
}

const _: () = assert!(REMOTE_IRR << 1 == LEVEL);
// Read-only, and 0: a message is accepted when it is sent.
const _: () = assert!(WRITABLE & (DELIVERY_STATUS | REMOTE_IRR) == 0);

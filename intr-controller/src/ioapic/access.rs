//! The registers in memory: loads and stores of a guest. Sections are those of the 82093AA data sheet
//! (Intel 290566).

use super::{IoApic, IoApicPin, IoApicPins, IoApicVersion, PIN_COUNT};
use crate::InterruptMessage;

/// Offsets of the registers in memory (3.1).
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;

/// What IOREGSEL selects (3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Id,
    Version,
    Arbitration,
    Entry { pin: IoApicPin, upper: bool },
    Absent,
}

impl Register {
    const fn select(index: u8) -> Self {
        match index {
            0x00 => Self::Id,
            0x01 => Self::Version,
            0x02 => Self::Arbitration,
            0x10..=0x3f => Self::Entry {
                pin: IoApicPin((index - 0x10) / 2),
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

impl IoApic {
    /// Bytes of memory that it answers at; at 0xfec0_0000 in a PC.
    pub const WINDOW: u64 = 0x100;

    /// The offset of the EOI register, whose low byte is the vector to end (version 0x20).
    pub const EOIR: u64 = 0x40;

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
                Register::Entry { pin, upper } => self.entry(pin).half(upper),
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
        // What a guest does.
        if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *data) {
            *word = value.to_le_bytes();
            return;
        }
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
        deliver: impl FnMut(InterruptMessage),
    ) -> IoApicWrite {
        let [low, .., high] = value.to_le_bytes();
        let mut outcome = IoApicWrite::default();
        match offset {
            IOREGSEL => self.select = low,
            IOWIN => match Register::select(self.select) {
                Register::Id => self.id = high & 0xf,
                Register::Entry { pin, upper } => {
                    let message = self.write_entry(pin, upper, value);
                    message.into_iter().for_each(deliver);
                    outcome.changed.set(pin, true);
                }
                // Read-only, or not there.
                Register::Version | Register::Arbitration | Register::Absent => {}
            },
            Self::EOIR if self.model == IoApicVersion::V20 => {
                outcome.ended = self.eoi(low, deliver);
            }
            _ => {}
        }
        outcome
    }
}

//! An interprocessor interrupt between its sender and its targets.

use crate::{DeliveryMode, DestinationMode, InterruptMessage, TriggerMode};

/// Who of all APICs an IPI is for. The shorthand "self" never leaves its APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpiTargets {
    /// Those that the message's destination names.
    Destination = 0b00,
    /// All, the sender too.
    All = 0b10,
    /// All but the sender.
    Others = 0b11,
}

/// An IPI that leaves its APIC.
///
/// It and the [`Effect`](crate::Effect) around it are as small as a register, and the vector is first
/// as in ICR, so it is passed in a register. Through memory it would be written as bytes and read back
/// as a word, which waits for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Ipi {
    pub(crate) vector: u8,
    pub(crate) delivery_mode: DeliveryMode,
    pub(crate) destination_mode: DestinationMode,
    pub(crate) targets: IpiTargets,
    pub(crate) destination: u32,
}

impl Ipi {
    /// To whom.
    #[must_use]
    pub const fn targets(&self) -> IpiTargets {
        self.targets
    }

    /// What each target is sent. An edge, whose EOI is not broadcast: ICR's trigger mode "is ignored
    /// for all other delivery modes" than INIT level de-assert (SDM 3A, "Interrupt Command Register
    /// (ICR)"), which is not sent.
    #[must_use]
    #[inline]
    pub const fn message(&self) -> InterruptMessage {
        InterruptMessage {
            destination: self.destination,
            destination_mode: self.destination_mode,
            delivery_mode: self.delivery_mode,
            trigger_mode: TriggerMode::Edge,
            level: true,
            vector: self.vector,
        }
    }
}

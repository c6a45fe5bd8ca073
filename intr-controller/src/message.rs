//! How interrupts are addressed before they reach a vCPU.

use core::fmt;

/// A global system interrupt: a pin, counted over all chips. With KVM's default routing 0 to 15
/// are both the 8259A pair's inputs and the IOAPIC's, and 16 to 23 the IOAPIC's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gsi(pub u32);

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}

/// A message-signalled interrupt, as a device writes it (SDM 3A, "Message Signalled Interrupts").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiMessage {
    /// Message address: destination id, redirection hint, destination mode.
    pub address: u64,
    /// Message data: vector, delivery mode, trigger mode.
    pub data: u32,
}

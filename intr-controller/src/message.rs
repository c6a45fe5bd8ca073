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

/// How the destination of an interrupt message names its targets (SDM 3A, "Determining IPI
/// Destination").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum DestinationMode {
    /// By APIC id.
    #[default]
    Physical,
    /// By a set of logical ids (LDR, DFR).
    Logical,
}

impl DestinationMode {
    /// From the destination-mode bit of an ICR, a redirection-table entry or an MSI address.
    #[must_use]
    pub const fn from_bit(bit: bool) -> Self {
        if bit { Self::Logical } else { Self::Physical }
    }

    /// The bit.
    #[must_use]
    pub const fn bit(self) -> bool {
        matches!(self, Self::Logical)
    }
}

impl fmt::Display for DestinationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Physical => "physical",
            Self::Logical => "logical",
        })
    }
}

/// What an interrupt message does to its targets (SDM 3A, "Interrupt Command Register (ICR)").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum DeliveryMode {
    /// The vector, to every target.
    #[default]
    Fixed = 0b000,
    /// The vector, to one of the targets.
    LowestPriority = 0b001,
    /// A system-management interrupt.
    Smi = 0b010,
    /// A non-maskable interrupt.
    Nmi = 0b100,
    /// INIT.
    Init = 0b101,
    /// Start-up IPI; the vector is the page of the first instruction.
    StartUp = 0b110,
    /// An interrupt whose vector the 8259A pair supplies.
    ExtInt = 0b111,
}

impl DeliveryMode {
    /// From the three-bit field of an ICR, an LVT, a redirection-table entry or MSI data; higher
    /// bits are ignored. `None` for 0b011, which is reserved in all of them.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 0b111 {
            0b000 => Some(Self::Fixed),
            0b001 => Some(Self::LowestPriority),
            0b010 => Some(Self::Smi),
            0b100 => Some(Self::Nmi),
            0b101 => Some(Self::Init),
            0b110 => Some(Self::StartUp),
            0b111 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// The three-bit field.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self as u8
    }

    /// Whether an interrupt of this mode has a vector.
    #[must_use]
    pub const fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority | Self::StartUp)
    }
}

impl fmt::Display for DeliveryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "fixed",
            Self::LowestPriority => "lowest priority",
            Self::Smi => "SMI",
            Self::Nmi => "NMI",
            Self::Init => "INIT",
            Self::StartUp => "start-up",
            Self::ExtInt => "ExtINT",
        })
    }
}

/// How an interrupt is triggered (SDM 3A, "Local Vector Table", trigger mode).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum TriggerMode {
    /// By a rise; its EOI is not broadcast.
    #[default]
    Edge,
    /// By a level; its EOI is broadcast to the IOAPICs.
    Level,
}

impl TriggerMode {
    /// From the trigger-mode bit.
    #[must_use]
    pub const fn from_bit(bit: bool) -> Self {
        if bit { Self::Level } else { Self::Edge }
    }

    /// The bit.
    #[must_use]
    pub const fn bit(self) -> bool {
        matches!(self, Self::Level)
    }
}

impl fmt::Display for TriggerMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Edge => "edge",
            Self::Level => "level",
        })
    }
}

/// An interrupt on its way to local APICs: what an IOAPIC pin, an MSI or an IPI becomes.
///
/// Plain data that has not been checked: a target that gets an illegal vector reports it in its error
/// status register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct InterruptMessage {
    /// APIC id or logical destination. [`InterruptMessage::BROADCAST`] means every local APIC in
    /// either mode; 0xff means every one that is in xAPIC mode (SDM 3A, "Broadcast/Self Delivery
    /// Mode"), and the one with that id in x2APIC mode. A decoder of an eight-bit format, where
    /// 0xff can mean only "all", widens it.
    pub destination: u32,
    /// What `destination` means.
    pub destination_mode: DestinationMode,
    /// What the targets do.
    pub delivery_mode: DeliveryMode,
    /// Edge or level.
    pub trigger_mode: TriggerMode,
    /// Assert (true) or de-assert. De-assert means something only to INIT, and there only that
    /// nothing is to be done (SDM 3A, ICR: "INIT Level De-assert").
    pub level: bool,
    /// The vector, or the page of a start-up IPI. Unused by SMI, NMI, INIT and ExtINT.
    pub vector: u8,
}

impl InterruptMessage {
    /// The destination that names every local APIC (SDM 3A, "x2APIC ... Interrupt Delivery").
    pub const BROADCAST: u32 = u32::MAX;
}

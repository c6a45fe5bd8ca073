//! The events that may enter a vCPU, and their order.

use core::fmt;

use thiserror::Error;

use crate::x86::FIRST_VECTOR;

/// An interrupt vector that a local APIC accepts: 16 to 255.
///
/// [`Vector::new`] refuses 0 to 15 (SDM 3A, "Valid Interrupt Vectors": the APIC records them in its
/// error status register and does not deliver them). An interrupt from an 8259A is not bound by this: its vector is read by the acknowledge
/// cycle, when the event is injected, and never passes through an APIC ([`Event::ExtInt`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u8", into = "u8"))]
pub struct Vector(u8);

/// An APIC does not deliver this vector: set "receive illegal vector" in its error status register
/// and drop the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("vector {0:#04x} is illegal: an APIC delivers only 0x10 to 0xff")]
pub struct IllegalVector(pub u8);

impl Vector {
    /// # Errors
    /// If the vector is below 16.
    pub const fn new(vector: u8) -> Result<Self, IllegalVector> {
        if vector < FIRST_VECTOR {
            return Err(IllegalVector(vector));
        }
        Ok(Self(vector))
    }

    /// The number that selects the IDT entry.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The interrupt-priority class, 1 to 15: the vector's upper half (SDM 3A, "Interrupt, Task,
    /// and Processor Priority").
    #[must_use]
    pub const fn class(self) -> u8 {
        self.0 >> 4
    }
}

impl TryFrom<u8> for Vector {
    type Error = IllegalVector;

    fn try_from(vector: u8) -> Result<Self, IllegalVector> {
        Self::new(vector)
    }
}

impl From<Vector> for u8 {
    fn from(vector: Vector) -> Self {
        vector.0
    }
}

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for Vector {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        u.int_in_range(FIRST_VECTOR..=u8::MAX).map(Self)
    }
}

/// A hardware event that may be injected, and that a hold withholds.
///
/// Exceptions are not here: they are consequences of the guest's own instructions and no policy
/// may delay them. INIT and SIPI are not here either: they replace the vCPU's state rather than
/// enter it, and neither KVM's nor bhyve's mask applies to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[non_exhaustive]
pub enum Event {
    /// System-management interrupt.
    Smi,
    /// Non-maskable interrupt, vector 2.
    Nmi,
    /// The 8259A pair's INTR line. Its vector comes from the acknowledge cycle that the injector
    /// runs: acknowledge, inject, then [`crate::InjectionPolicy::injected`].
    ExtInt,
    /// An interrupt that the local APIC accepted.
    Fixed(Vector),
}

impl Event {
    /// The event's row in the table.
    #[must_use]
    pub const fn class(self) -> EventClass {
        match self {
            Self::Smi => EventClass::ExternalIntervention,
            Self::Nmi => EventClass::Nmi,
            Self::ExtInt | Self::Fixed(_) => EventClass::MaskableInterrupt,
        }
    }

    /// Whether RFLAGS.IF and the host's readiness for an interrupt apply to it.
    #[must_use]
    pub const fn is_maskable(self) -> bool {
        matches!(self.class(), EventClass::MaskableInterrupt)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Smi => f.write_str("SMI"),
            Self::Nmi => f.write_str("NMI"),
            Self::ExtInt => f.write_str("ExtINT"),
            Self::Fixed(vector) => write!(f, "vector {vector}"),
        }
    }
}

/// SDM 3A, table "Priority Among Concurrent Events", row by row; an earlier row is served first.
///
/// The policy chooses among the rows that carry an [`Event`]. Rows 1, 2, 4 and 7 to 10 are the
/// processor's own or exceptions; those already raised are in [`crate::Readiness`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventClass {
    /// RESET, machine check.
    ResetOrMachineCheck = 1,
    /// The T flag of the new task's TSS.
    TaskSwitchTrap = 2,
    /// FLUSH, STOPCLK, SMI, INIT.
    ExternalIntervention = 3,
    /// Breakpoints, single-step, data and I/O breakpoints of the previous instruction.
    PreviousInstructionTrap = 4,
    /// Non-maskable interrupt.
    Nmi = 5,
    /// INTR and the local APIC.
    MaskableInterrupt = 6,
    /// Code breakpoint on the next instruction.
    CodeBreakpoint = 7,
    /// Fetching the next instruction.
    FetchFault = 8,
    /// Decoding the next instruction.
    DecodeFault = 9,
    /// Executing the next instruction.
    ExecutionFault = 10,
}

impl EventClass {
    /// The whole table, most urgent first.
    pub const TABLE: [Self; 10] = [
        Self::ResetOrMachineCheck,
        Self::TaskSwitchTrap,
        Self::ExternalIntervention,
        Self::PreviousInstructionTrap,
        Self::Nmi,
        Self::MaskableInterrupt,
        Self::CodeBreakpoint,
        Self::FetchFault,
        Self::DecodeFault,
        Self::ExecutionFault,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_below_16_are_refused_and_named() {
        for vector in 0..16 {
            assert_eq!(Vector::new(vector), Err(IllegalVector(vector)));
        }
        for vector in 16..=255 {
            assert_eq!(Vector::new(vector).map(Vector::get), Ok(vector));
        }
    }

    #[test]
    fn the_table_is_sorted_and_complete() {
        for (row, class) in EventClass::TABLE.iter().enumerate() {
            assert_eq!(*class as usize, row + 1);
        }
    }

    #[test]
    fn smi_precedes_nmi_precedes_interrupts() {
        let fixed = Event::Fixed(Vector::new(0xff).unwrap());
        assert!(Event::Smi.class() < Event::Nmi.class());
        assert!(Event::Nmi.class() < fixed.class());
        assert_eq!(Event::ExtInt.class(), fixed.class());
    }
}

//! What comes of an arrival, of an access, and of an acknowledge.

use crate::{Arrival, Ipi, Vector};

/// The guest gets #GP(0): a WRMSR or RDMSR that the architecture refuses. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("#GP(0)")]
pub struct GeneralProtection;

/// What a register access asks of the world outside this APIC. Plain data: act on it when no lock
/// is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an EOI, an IPI or a change of identity would be lost"]
pub enum Effect {
    /// Nothing.
    None,
    /// A level-triggered interrupt of this vector ended: report it to the IOAPICs (SDM 3A, "Signaling
    /// Interrupt Servicing Completion").
    EoiBroadcast(Vector),
    /// Deliver this. Already done for the shorthand "self".
    Ipi(Ipi),
    /// Mode, ids, logical destination, base address or the software-enable bit changed: give
    /// [`Lapic::destination`](super::Lapic::destination) to the fabric before the vCPU runs on.
    IdentityChanged,
    /// An ICR write whose delivery mode does not exist; nothing was sent.
    NotSent {
        /// Bits 8 to 10 of ICR: 0b011 (remote read) or 0b111 (ExtINT).
        delivery_mode: u8,
    },
}

/// What became of an interrupt at a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "an accepted interrupt may have to wake the vCPU"]
pub enum Acceptance {
    /// It waits: ask [`Lapic::decide`](super::Lapic::decide) again, and wake the vCPU.
    Accepted,
    /// It waits already, and is delivered once.
    Merged,
    /// It is gone.
    Refused(Refusal),
}

/// Why an interrupt is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// IA32_APIC_BASE has the APIC off.
    Disabled,
    /// The spurious-interrupt vector register has it off: only NMI, SMI, INIT and SIPI are taken
    /// (SDM 3A, "Local APIC State After It Has Been Software Disabled").
    SoftwareDisabled,
    /// The entry of the local vector table is masked.
    Masked,
    /// The vector is below 16. ESR says so.
    IllegalVector,
    /// The delivery mode does not exist at this place.
    DeliveryMode,
    /// The end of a level, which asks for nothing.
    Deasserted,
    /// A start-up IPI for a vCPU that does not wait for one.
    NotWaitingForSipi,
}

impl From<Arrival> for Acceptance {
    fn from(arrival: Arrival) -> Self {
        match arrival {
            Arrival::Accepted => Self::Accepted,
            Arrival::Merged => Self::Merged,
        }
    }
}

/// The vCPU's own sources of interrupts that have no pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum LocalSource {
    /// The thermal sensor.
    Thermal,
    /// A performance counter overflowed. The entry masks itself with the delivery (SDM 3A, "Local
    /// Vector Table").
    Performance,
    /// A corrected machine check.
    Cmci,
}

/// The answer to an interrupt-acknowledge cycle of the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acknowledge {
    /// This vector; it is in service now, until EOI.
    Vector(Vector),
    /// Nothing may be delivered any more: the spurious vector, to be delivered without a bit in
    /// ISR and without EOI (SDM 3A, "Spurious Interrupt"). It need not be above 15.
    Spurious(u8),
}

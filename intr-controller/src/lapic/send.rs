//! What leaves: the interrupt command register and SELF IPI.

use super::registers::{Command, Errors};
use super::{Effect, Lapic};
use crate::{DeliveryMode, DestinationMode, Ipi, IpiTargets, TriggerMode};

impl Lapic {
    /// Writes ICR and sends what it says (SDM 3A, "Issuing Interprocessor Interrupts"). The
    /// destination is ICR's in the format of the mode.
    pub(super) fn send(&mut self, command: Command, destination: u32) -> Effect {
        self.command = command;
        let Some(delivery_mode) = command.delivery_mode() else {
            return Effect::NotSent {
                delivery_mode: 0b011,
            };
        };
        if delivery_mode == DeliveryMode::ExtInt {
            return Effect::NotSent {
                delivery_mode: delivery_mode.bits(),
            };
        }
        let has_vector = matches!(
            delivery_mode,
            DeliveryMode::Fixed | DeliveryMode::LowestPriority
        );
        if has_vector && command.vector() < 16 {
            return self.illegal_vector();
        }
        if delivery_mode == DeliveryMode::Init && command.deasserts() {
            // It sets arbitration ids, which no APIC has any more.
            return Effect::None;
        }
        let to = |targets| Ipi {
            vector: command.vector(),
            delivery_mode,
            destination_mode: DestinationMode::from_bit(command.logical()),
            targets,
            destination,
        };
        Effect::Ipi(to(match command.shorthand() {
            0b00 => IpiTargets::Destination,
            0b10 => IpiTargets::All,
            0b11 => IpiTargets::Others,
            _ => return self.accept_own(to(IpiTargets::Destination)),
        }))
    }

    #[inline(never)]
    fn accept_own(&mut self, ipi: Ipi) -> Effect {
        let _ = self.accept(&ipi.message());
        Effect::None
    }

    #[cold]
    #[inline(never)]
    fn illegal_vector(&mut self) -> Effect {
        self.report(Errors::SEND_ILLEGAL_VECTOR);
        Effect::None
    }

    /// The SELF IPI register of x2APIC mode.
    pub(super) fn send_self(&mut self, vector: u8) -> Effect {
        if vector < 16 {
            return self.illegal_vector();
        }
        let _ = self.accept_vector(vector, TriggerMode::Edge);
        Effect::None
    }
}

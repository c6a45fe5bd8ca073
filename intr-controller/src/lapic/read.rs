//! What a register reads, in either mode.

use super::registers::{Register, TimerMode, low_word, version};
use super::{ApicMode, Lapic, LvtEntry};
use crate::{GuestTime, VectorSet};

/// Word 0 to 7 of a 256-bit register.
fn word(set: &VectorSet, index: u8) -> u32 {
    let pair = set.words().get(usize::from(index / 2)).copied();
    low_word(pair.unwrap_or(0) >> (32 * u32::from(index & 1)))
}

impl Lapic {
    /// How the timer counts.
    #[must_use]
    pub fn timer_mode(&self) -> TimerMode {
        self.lvt(LvtEntry::Timer).timer_mode()
    }

    #[inline(always)]
    pub(super) fn read_register(&mut self, register: Register, now: GuestTime) -> u32 {
        match register {
            Register::Id => self.id_register(),
            Register::Version => version(self.config.cmci, self.config.eoi_suppression),
            Register::TaskPriority => self.tpr.into(),
            Register::ProcessorPriority => self.priority().get().into(),
            Register::LogicalDestination => self.logical_destination_register(),
            Register::DestinationFormat => u32::from(self.dfr) << 28 | 0x0fff_ffff,
            Register::Spurious => self.spurious.0,
            Register::InService(index) => word(&self.in_service, index),
            Register::TriggerMode(index) => word(&self.level_triggered, index),
            Register::Request(index) => word(self.policy.pending().fixed(), index),
            Register::ErrorStatus => self.error_status.bits(),
            Register::Command => self.command.low(),
            Register::CommandHigh => self.command.high(),
            Register::Lvt(entry) => self.lvt(entry).0,
            Register::InitialCount => self.timer.initial,
            Register::CurrentCount => self.current_count(now),
            Register::DivideConfiguration => self.timer.divide.into(),
            // Write-only, or gone (see the module).
            Register::EndOfInterrupt
            | Register::SelfIpi
            | Register::ArbitrationPriority
            | Register::RemoteRead => 0,
        }
    }

    fn id_register(&self) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => self.config.apic_id,
            _ => u32::from(self.xapic_id) << 24,
        }
    }

    fn logical_destination_register(&self) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => crate::destinations::x2apic_logical_id(self.config.apic_id),
            _ => u32::from(self.ldr) << 24,
        }
    }

    #[inline(never)]
    fn current_count(&mut self, now: GuestTime) -> u32 {
        self.advance(now);
        self.timer
            .current(self.timer_mode(), self.config.bus_cycle_ns.get(), now)
    }
}

//! What a write of a register does, in either mode; ICR and SELF IPI are in `send`.

use super::registers::{DIVIDE_WRITABLE, Lvt, Register, Spurious, high_byte, low_byte};
use super::{Effect, Lapic, LvtEntry};
use crate::{DeliveryMode, GuestTime, TriggerMode};

impl Lapic {
    /// A write in either mode; read-only and reserved bits are ignored. x2APIC mode has refused
    /// what it refuses before.
    #[inline(always)]
    pub(super) fn write_register(
        &mut self,
        register: Register,
        value: u32,
        now: GuestTime,
    ) -> Effect {
        match register {
            Register::TaskPriority => self.tpr = low_byte(value),
            Register::EndOfInterrupt => return self.end_of_interrupt(),
            Register::Id
            | Register::LogicalDestination
            | Register::DestinationFormat
            | Register::Spurious => {
                if self.write_identity(register, value, now) {
                    return Effect::IdentityChanged;
                }
            }
            Register::ErrorStatus => {
                self.error_status = core::mem::take(&mut self.errors);
            }
            Register::Command => {
                let command = self.command.with_low(value);
                return self.send(command, command.high() >> 24);
            }
            Register::CommandHigh => self.command = self.command.with_high(value & 0xff00_0000),
            Register::Lvt(entry) => self.write_lvt(entry, value, now),
            Register::InitialCount | Register::DivideConfiguration => {
                self.write_timer(register, value, now);
            }
            Register::SelfIpi => return self.send_self(low_byte(value)),
            // Read-only.
            Register::Version
            | Register::ArbitrationPriority
            | Register::ProcessorPriority
            | Register::RemoteRead
            | Register::InService(_)
            | Register::TriggerMode(_)
            | Register::Request(_)
            | Register::CurrentCount => {}
        }
        Effect::None
    }

    fn write_timer(&mut self, register: Register, value: u32, now: GuestTime) {
        self.advance(now);
        if register == Register::InitialCount {
            let (mode, cycle) = (self.timer_mode(), self.config.bus_cycle_ns.get());
            self.timer.set_initial(mode, cycle, value, now);
        } else {
            let divide = low_byte(value & DIVIDE_WRITABLE);
            self.timer.set_divide(divide, now);
        }
    }

    /// A write that may change how others reach this APIC. Whether it did.
    fn write_identity(&mut self, register: Register, value: u32, now: GuestTime) -> bool {
        let before = self.destination();
        match register {
            Register::Id => self.xapic_id = high_byte(value),
            Register::LogicalDestination => self.ldr = high_byte(value),
            Register::DestinationFormat => self.dfr = high_byte(value) >> 4,
            _ => {
                self.advance(now);
                self.write_spurious(value);
            }
        }
        self.destination() != before
    }

    fn write_spurious(&mut self, value: u32) {
        self.spurious = Spurious(value & Spurious::writable(self.config.eoi_suppression));
        if !self.spurious.enabled() {
            // SDM 3A, "Local APIC State After It Has Been Software Disabled": the mask bits are
            // set, and cannot be cleared until it is enabled again, which does not clear them.
            self.lvt = self.lvt.map(Lvt::masked);
            let _ = self.update_ext_int();
        }
    }

    fn write_lvt(&mut self, entry: LvtEntry, value: u32, now: GuestTime) {
        let writable = Lvt::writable(entry, self.config.tsc_deadline);
        let mut new = Lvt(value & writable);
        if !self.software_enabled() {
            new = new.masked();
        }
        match entry {
            LvtEntry::Timer => {
                self.advance(now);
                self.timer.change_mode(self.timer_mode(), new.timer_mode());
                self.set_lvt(entry, new);
            }
            LvtEntry::Lint0 | LvtEntry::Lint1 => self.write_lint(entry, new),
            LvtEntry::Thermal | LvtEntry::Performance | LvtEntry::Error | LvtEntry::Cmci => {
                self.set_lvt(entry, new);
            }
        }
    }

    fn write_lint(&mut self, entry: LvtEntry, new: Lvt) {
        let remote_irr = self.lvt(entry).remote_irr();
        let new = Self::normalise_lint(new.with_remote_irr(remote_irr));
        self.set_lvt(entry, new);
        if entry == LvtEntry::Lint0 {
            let _ = self.update_ext_int();
            if new.trigger_mode() == TriggerMode::Level
                && new.delivery_mode() == Some(DeliveryMode::Fixed)
            {
                // A level that stands is seen when the entry is unmasked.
                let _ = self.service_level_lint0();
            }
        }
    }
}

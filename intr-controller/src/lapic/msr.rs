//! The registers as MSRs, in x2APIC mode; and IA32_APIC_BASE and IA32_TSC_DEADLINE, in any.

use super::registers::{Command, DIVIDE_WRITABLE, Lvt, Register, Spurious, low_word};
use super::{ApicMode, Effect, GeneralProtection, Lapic, LvtEntry};
use crate::GuestTime;

/// IA32_APIC_BASE.
const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The first MSR of the x2APIC range, which has 256.
const MSR_X2APIC: u32 = 0x800;

impl Lapic {
    /// Whether the MSR is this APIC's: IA32_APIC_BASE, IA32_TSC_DEADLINE, the x2APIC range.
    #[must_use]
    pub const fn owns_msr(msr: u32) -> bool {
        matches!(msr, MSR_APIC_BASE | MSR_TSC_DEADLINE | 0x800..=0x8ff)
    }

    /// The slot of an x2APIC MSR, in the mode that has them.
    fn x2apic_slot(&self, msr: u32) -> Option<u8> {
        let slot = u8::try_from(msr.checked_sub(MSR_X2APIC)?).ok()?;
        (self.mode() == ApicMode::X2Apic).then_some(slot)
    }

    /// SDM 3A, table "Local APIC Register Address Map Supported by x2APIC".
    #[inline(always)]
    fn x2apic_register(&self, slot: u8) -> Result<Register, GeneralProtection> {
        match Register::from_slot(slot) {
            None
            | Some(
                Register::ArbitrationPriority
                | Register::RemoteRead
                | Register::DestinationFormat
                | Register::CommandHigh,
            ) => Err(GeneralProtection),
            Some(Register::Lvt(LvtEntry::Cmci)) if !self.config.cmci => Err(GeneralProtection),
            Some(register) => Ok(register),
        }
    }

    /// RDMSR of an MSR that this APIC [owns](Self::owns_msr).
    ///
    /// # Errors
    /// #GP for one that does not exist in the present mode or cannot be read.
    #[inline]
    pub fn read_msr(&mut self, msr: u32, now: GuestTime) -> Result<u64, GeneralProtection> {
        match self.x2apic_slot(msr) {
            Some(slot) => self.read_x2apic(slot, now),
            None => self.read_other_msr(msr, now),
        }
    }

    fn read_other_msr(&mut self, msr: u32, now: GuestTime) -> Result<u64, GeneralProtection> {
        match msr {
            MSR_APIC_BASE => Ok(self.apic_base()),
            MSR_TSC_DEADLINE if self.config.tsc_deadline => {
                self.advance(now);
                Ok(self.timer.deadline)
            }
            _ => Err(GeneralProtection),
        }
    }

    fn read_x2apic(&mut self, slot: u8, now: GuestTime) -> Result<u64, GeneralProtection> {
        match self.x2apic_register(slot)? {
            Register::EndOfInterrupt | Register::SelfIpi => Err(GeneralProtection),
            Register::Command => Ok(self.command.0),
            register => Ok(u64::from(self.read_register(register, now))),
        }
    }

    /// WRMSR of an MSR that this APIC [owns](Self::owns_msr).
    ///
    /// # Errors
    /// #GP for one that does not exist in the present mode or cannot be written, and for a reserved
    /// bit (SDM 3A, "Reserved Bit Checking").
    #[inline]
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: GuestTime,
    ) -> Result<Effect, GeneralProtection> {
        match self.x2apic_slot(msr) {
            Some(slot) => self.write_x2apic(slot, value, now),
            None => self.write_other_msr(msr, value, now),
        }
    }

    fn write_other_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: GuestTime,
    ) -> Result<Effect, GeneralProtection> {
        match msr {
            MSR_APIC_BASE => self.set_apic_base(value, now),
            MSR_TSC_DEADLINE if self.config.tsc_deadline => {
                self.advance(now);
                if self.mode() != ApicMode::Disabled {
                    self.timer.set_deadline(self.timer_mode(), value);
                    // One in the past fires at once.
                    self.advance(now);
                }
                Ok(Effect::None)
            }
            _ => Err(GeneralProtection),
        }
    }

    fn write_x2apic(
        &mut self,
        slot: u8,
        value: u64,
        now: GuestTime,
    ) -> Result<Effect, GeneralProtection> {
        // The bits that may be one.
        let check = |legal: u64| {
            if value & !legal == 0 {
                Ok(())
            } else {
                Err(GeneralProtection)
            }
        };
        match self.x2apic_register(slot)? {
            Register::EndOfInterrupt => {
                check(0)?;
                Ok(self.end_of_interrupt())
            }
            Register::Command => {
                check(Command::WRITABLE | Command::IGNORED)?;
                let command = Command(value & Command::WRITABLE);
                Ok(self.send(command, command.high()))
            }
            register => {
                check(self.x2apic_writable(register).ok_or(GeneralProtection)?)?;
                Ok(self.write_register(register, low_word(value), now))
            }
        }
    }

    /// The bits that may be one in a write of another register than the above. `None` if it is
    /// read-only.
    #[inline(always)]
    fn x2apic_writable(&self, register: Register) -> Option<u64> {
        Some(match register {
            Register::TaskPriority | Register::SelfIpi => 0xff,
            Register::ErrorStatus => 0,
            Register::Spurious => Spurious::writable(self.config.eoi_suppression).into(),
            Register::Lvt(entry) => {
                let writable = Lvt::writable(entry, self.config.tsc_deadline);
                (writable | Lvt::read_only(entry)).into()
            }
            Register::InitialCount => u32::MAX.into(),
            Register::DivideConfiguration => DIVIDE_WRITABLE.into(),
            _ => return None,
        })
    }
}

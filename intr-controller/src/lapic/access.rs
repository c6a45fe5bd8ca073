//! The registers, as the guest accesses them: in memory in xAPIC mode, as MSRs in x2APIC mode.
//! IA32_APIC_BASE and IA32_TSC_DEADLINE are MSRs in every mode.

use super::base::ApicBase;
use super::local_vectors::has_level;
use super::registers::{
    Command, DIVIDE_WRITABLE, Errors, Lvt, Register, Spurious, low_byte, low_word, version,
};
use super::{ApicMode, Effect, GeneralProtection, Lapic, LvtEntry, TimerMode};
use crate::x86::{self, FIRST_VECTOR, MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC};
use crate::{DeliveryMode, DestinationMode, GuestTime, Ipi, IpiTargets, TriggerMode, VectorSet};

/// Word 0 to 7 of a 256-bit register.
fn word(set: &VectorSet, index: u8) -> u32 {
    let pair = set.words().get(usize::from(index / 2)).copied();
    low_word(pair.unwrap_or(0) >> (32 * u32::from(index & 1)))
}

/// In memory.
impl Lapic {
    /// The offset into the registers' page, if the address is in it and the registers are in
    /// memory. In x2APIC mode and while the APIC is disabled the page is not the APIC's.
    #[must_use]
    pub fn mmio_offset(&self, address: u64) -> Option<u16> {
        let offset = address.checked_sub(self.base_address())?;
        (self.mode() == ApicMode::XApic && offset < x86::LOCAL_APIC_WINDOW)
            .then(|| u16::try_from(offset).ok())
            .flatten()
    }

    /// A load from the registers' page. Where the page is not the APIC's
    /// ([`Self::mmio_offset`]) it reads as an empty bus does, all ones.
    #[inline]
    pub fn mmio_read(&mut self, offset: u16, data: &mut [u8], now: GuestTime) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) if offset & 0xf == 0 && self.mode() == ApicMode::XApic => {
                *word = self.load(offset, now).to_le_bytes();
            }
            _ => self.mmio_read_unaligned(offset, data, now),
        }
    }

    /// Any load. The one that the architecture defines has a shorter way.
    #[cold]
    fn mmio_read_unaligned(&mut self, offset: u16, data: &mut [u8], now: GuestTime) {
        data.fill(0);
        if self.mode() != ApicMode::XApic {
            data.fill(0xff);
            return;
        }
        let first = usize::from(offset & 0xf);
        if data.is_empty() || first.saturating_add(data.len()) > 4 {
            return;
        }
        let value = self.load(offset, now);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes().iter().skip(first)) {
            *to = *from;
        }
    }

    /// A register of xAPIC mode.
    fn load(&mut self, offset: u16, now: GuestTime) -> u32 {
        match self.xapic_register(offset) {
            Some(register) => self.read_register(register, now),
            None => self.illegal_register(0),
        }
    }

    /// An access of a register that does not exist.
    #[cold]
    #[inline(never)]
    fn illegal_register<T>(&mut self, result: T) -> T {
        self.report(Errors::ILLEGAL_REGISTER);
        result
    }

    /// A store to the registers' page.
    #[inline]
    pub fn mmio_write(&mut self, offset: u16, data: &[u8], now: GuestTime) -> Effect {
        if self.mode() != ApicMode::XApic || offset & 0xf != 0 {
            return Effect::None;
        }
        match <[u8; 4]>::try_from(data) {
            Ok(bytes) => self.store(offset, u32::from_le_bytes(bytes), now),
            Err(_) => Effect::None,
        }
    }

    /// A register of xAPIC mode.
    fn store(&mut self, offset: u16, value: u32, now: GuestTime) -> Effect {
        match self.xapic_register(offset) {
            Some(register) => self.write_register(register, value, now),
            None => self.illegal_register(Effect::None),
        }
    }

    #[inline(always)]
    fn xapic_register(&self, offset: u16) -> Option<Register> {
        match Register::from_slot(u8::try_from(offset >> 4).ok()?)? {
            // SDM 3A, "x2APIC Register Address Space": x2APIC mode only.
            Register::SelfIpi => None,
            Register::Lvt(LvtEntry::Cmci) if !self.config.cmci => None,
            register => Some(register),
        }
    }
}

/// As MSRs.
impl Lapic {
    /// Returns `true` if the MSR is a local APIC's: IA32_APIC_BASE, IA32_TSC_DEADLINE, the x2APIC range.
    #[must_use]
    pub const fn owns_msr(msr: u32) -> bool {
        matches!(msr, MSR_APIC_BASE | MSR_TSC_DEADLINE)
            || x86::MSRS_X2APIC.start <= msr && msr < x86::MSRS_X2APIC.end
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
                Ok(self.timer.deadline())
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

    /// Writes IA32_APIC_BASE.
    ///
    /// Turning the APIC off stops its timer, because there is none then, and restores its initial id.
    /// The other registers, IRR and ISR stay, as in KVM (SDM 3A, "Enabling or
    /// Disabling the Local APIC": they "may" be lost).
    ///
    /// # Errors
    /// #GP for a reserved bit and for a transition that does not exist.
    pub fn set_apic_base(
        &mut self,
        value: u64,
        now: GuestTime,
    ) -> Result<Effect, GeneralProtection> {
        let base = ApicBase::new(value, self.config.physical_address_bits, self.config.x2apic)
            .filter(|base| base.follows(self.identity.base()))
            .ok_or(GeneralProtection)?;
        if base == self.identity.base() {
            return Ok(Effect::None);
        }
        let old = self.mode();
        // What was due before the change happened before it.
        self.advance(now);
        self.identity.set_base(base, &self.config);
        match base.mode() {
            mode if mode == old => {}
            ApicMode::Disabled => self.timer.disarm(),
            ApicMode::X2Apic => self.command = self.command.with_high(0),
            ApicMode::XApic => {}
        }
        let _ = self.update_ext_int();
        Ok(Effect::IdentityChanged)
    }
}

/// What a register reads and what a write does, in either mode.
impl Lapic {
    /// The timer's mode.
    #[must_use]
    pub fn timer_mode(&self) -> TimerMode {
        self.vectors.get(LvtEntry::Timer).timer_mode()
    }

    #[inline(always)]
    fn read_register(&mut self, register: Register, now: GuestTime) -> u32 {
        match register {
            Register::Id => self.identity.id_register(&self.config),
            Register::Version => version(self.config.cmci, self.config.eoi_suppression),
            Register::TaskPriority => self.priority.tpr().into(),
            Register::ProcessorPriority => self.priority().get().into(),
            Register::LogicalDestination => {
                self.identity.logical_destination_register(&self.config)
            }
            Register::DestinationFormat => self.identity.destination_format_register(),
            Register::Spurious => self.spurious.0,
            Register::InService(index) => word(self.priority.in_service(), index),
            Register::TriggerMode(index) => word(self.priority.level_triggered(), index),
            Register::Request(index) => word(self.policy.pending().fixed(), index),
            Register::ErrorStatus => self.errors.shown(),
            Register::Command => self.command.low(),
            Register::CommandHigh => self.command.high(),
            Register::Lvt(entry) => self.vectors.get(entry).0,
            Register::InitialCount => self.timer.initial(),
            Register::CurrentCount => self.current_count(now),
            Register::DivideConfiguration => self.timer.divide().into(),
            // Write-only, or not there (see the module's documentation).
            Register::EndOfInterrupt
            | Register::SelfIpi
            | Register::ArbitrationPriority
            | Register::RemoteRead => 0,
        }
    }

    #[inline(never)]
    fn current_count(&mut self, now: GuestTime) -> u32 {
        self.advance(now);
        self.timer.current(self.timer_mode(), now)
    }

    /// A write in either mode; read-only and reserved bits are ignored. x2APIC mode has refused
    /// what it refuses before.
    #[inline(always)]
    fn write_register(&mut self, register: Register, value: u32, now: GuestTime) -> Effect {
        match register {
            Register::TaskPriority => self.priority.set_tpr(low_byte(value)),
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
                self.errors.write();
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
            self.timer.set_initial(self.timer_mode(), value, now);
        } else {
            self.timer.set_divide(value, now);
        }
    }

    /// A write that may change how others reach this APIC. Returns `true` if it did.
    fn write_identity(&mut self, register: Register, value: u32, now: GuestTime) -> bool {
        let before = self.destination();
        match register {
            Register::Id => self.identity.write_id(value),
            Register::LogicalDestination => self.identity.write_logical_destination(value),
            Register::DestinationFormat => self.identity.write_destination_format(value),
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
            self.vectors.mask_all();
            let _ = self.update_ext_int();
        }
    }

    fn write_lvt(&mut self, entry: LvtEntry, value: u32, now: GuestTime) {
        if entry == LvtEntry::Timer {
            self.advance(now);
        }
        let old = self.timer_mode();
        let enabled = self.software_enabled();
        let new = self.vectors.write(entry, value, &self.config, enabled);
        match entry {
            LvtEntry::Timer => self.timer.change_mode(old, new.timer_mode()),
            LvtEntry::Lint0 => {
                let _ = self.update_ext_int();
                if has_level(new) {
                    // A level that stands is seen when the entry is unmasked.
                    let _ = self.service_level_lint0();
                }
            }
            LvtEntry::Lint1
            | LvtEntry::Thermal
            | LvtEntry::Performance
            | LvtEntry::Error
            | LvtEntry::Cmci => {}
        }
    }
}

/// ICR and SELF IPI.
impl Lapic {
    /// Writes ICR and sends what it says (SDM 3A, "Issuing Interprocessor Interrupts"). The
    /// destination is ICR's in the format of the mode.
    #[inline]
    fn send(&mut self, command: Command, destination: u32) -> Effect {
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
        if has_vector && command.vector() < FIRST_VECTOR {
            return self.illegal_vector();
        }
        if delivery_mode == DeliveryMode::Init && command.deasserts() {
            // It sets arbitration ids, which later APICs do not have.
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
    fn send_self(&mut self, vector: u8) -> Effect {
        if vector < FIRST_VECTOR {
            return self.illegal_vector();
        }
        let _ = self.accept_vector(vector, TriggerMode::Edge);
        Effect::None
    }
}

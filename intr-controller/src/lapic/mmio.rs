//! The registers in memory: loads and stores of a guest in xAPIC mode.

use super::registers::{Errors, Register};
use super::{ApicMode, Effect, Lapic, LvtEntry};
use crate::GuestTime;

impl Lapic {
    /// The offset into the registers' page, if the address is in it and the registers are in
    /// memory. In x2APIC mode and while the APIC is disabled the page is not the APIC's.
    #[must_use]
    pub fn mmio_offset(&self, address: u64) -> Option<u16> {
        let offset = address.checked_sub(self.base_address())?;
        (self.mode() == ApicMode::XApic && offset < 0x1000)
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

    /// What the access of a register that does not exist comes to.
    #[cold]
    #[inline(never)]
    fn illegal_register<T>(&mut self, answer: T) -> T {
        self.report(Errors::ILLEGAL_REGISTER);
        answer
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

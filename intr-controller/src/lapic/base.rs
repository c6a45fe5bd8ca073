//! IA32_APIC_BASE: where the APIC is and in which mode (SDM 3A, "Local APIC Status and Location",
//! "x2APIC State Transitions").

use super::{Effect, GeneralProtection, Lapic};
use crate::GuestTime;

/// The mode of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApicMode {
    /// Off: the processor is as one without an APIC. INTR and NMI are wired to it directly.
    Disabled,
    /// Registers in memory, ids of 8 bits.
    XApic,
    /// Registers as MSRs, ids of 32 bits.
    X2Apic,
}

/// A value of IA32_APIC_BASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ApicBase(u64);

impl ApicBase {
    const BSP: u64 = 1 << 8;
    const EXTD: u64 = 1 << 10;
    const EN: u64 = 1 << 11;
    const PAGE: u64 = 0xfff;
    /// SDM 3A, "Relocating the Local APIC Registers".
    const DEFAULT_ADDRESS: u64 = 0xfee0_0000;

    /// After reset: xAPIC mode at the default address.
    pub(super) const fn reset(bootstrap: bool) -> Self {
        let bsp = if bootstrap { Self::BSP } else { 0 };
        Self(Self::DEFAULT_ADDRESS | Self::EN | bsp)
    }

    /// `None` if a reserved bit is set, or for the invalid state EN=0, EXTD=1.
    pub(super) fn new(value: u64, address_bits: u8, x2apic: bool) -> Option<Self> {
        let address = u64::MAX
            .checked_shl(u32::from(address_bits))
            .map_or(u64::MAX, |above| !above);
        let mut legal = address & !Self::PAGE | Self::BSP | Self::EN;
        if x2apic {
            legal |= Self::EXTD;
        }
        let invalid = value & Self::EXTD != 0 && value & Self::EN == 0;
        (value & !legal == 0 && !invalid).then_some(Self(value))
    }

    pub(super) const fn get(self) -> u64 {
        self.0
    }

    pub(super) const fn mode(self) -> ApicMode {
        if self.0 & Self::EN == 0 {
            ApicMode::Disabled
        } else if self.0 & Self::EXTD == 0 {
            ApicMode::XApic
        } else {
            ApicMode::X2Apic
        }
    }

    pub(super) const fn bootstrap(self) -> bool {
        self.0 & Self::BSP != 0
    }

    pub(super) const fn address(self) -> u64 {
        self.0 & !Self::PAGE
    }
}

impl Lapic {
    /// IA32_APIC_BASE.
    #[must_use]
    pub const fn apic_base(&self) -> u64 {
        self.base.get()
    }

    /// The mode that IA32_APIC_BASE selects. CPUID.1:EDX.APIC is 0 while it is
    /// [`ApicMode::Disabled`].
    #[must_use]
    pub const fn mode(&self) -> ApicMode {
        self.base.mode()
    }

    /// Writes IA32_APIC_BASE.
    ///
    /// Turning the APIC off stops its timer, because there is none then, and gives its id back;
    /// the other registers and what is in IRR and ISR stay, as in KVM (SDM 3A, "Enabling or
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
            .ok_or(GeneralProtection)?;
        let old = self.base.mode();
        match (old, base.mode()) {
            (ApicMode::X2Apic, ApicMode::XApic) | (ApicMode::Disabled, ApicMode::X2Apic) => {
                return Err(GeneralProtection);
            }
            _ => {}
        }
        if base == self.base {
            return Ok(Effect::None);
        }
        // What was due before the change happened before it.
        self.advance(now);
        self.base = base;
        match base.mode() {
            mode if mode == old => {}
            ApicMode::Disabled => {
                self.timer.disarm();
                self.xapic_id = self.config.xapic_id();
            }
            // SDM 3A, "State Changes From xAPIC Mode to x2APIC Mode": all is preserved but the
            // LDR, an id that software wrote, and the upper half of ICR.
            ApicMode::X2Apic => {
                self.ldr = 0;
                self.xapic_id = self.config.xapic_id();
                self.command = self.command.with_high(0);
            }
            ApicMode::XApic => {}
        }
        let _ = self.update_ext_int();
        Ok(Effect::IdentityChanged)
    }
}

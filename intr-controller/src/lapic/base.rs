//! IA32_APIC_BASE: where the APIC is and in which mode (SDM 3A, "Local APIC Status and Location",
//! "x2APIC State Transitions").

use crate::x86;

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

    /// After reset: xAPIC mode at the default address.
    pub(super) const fn reset(bootstrap: bool) -> Self {
        let bsp = if bootstrap { Self::BSP } else { 0 };
        Self(x86::LOCAL_APIC_ADDRESS | Self::EN | bsp)
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

    /// A value that the host has checked.
    #[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
    pub(super) const fn from_host(value: u64) -> Self {
        Self(value)
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

    /// Whether a guest may write this value after another one: a change of mode must exist (SDM 3A,
    /// "x2APIC State Transitions").
    pub(super) const fn follows(self, old: Self) -> bool {
        !matches!(
            (old.mode(), self.mode()),
            (ApicMode::X2Apic, ApicMode::XApic) | (ApicMode::Disabled, ApicMode::X2Apic)
        )
    }
}

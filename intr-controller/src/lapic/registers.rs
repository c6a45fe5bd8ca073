//! The register map, and the layout of each register: which bits exist, which software writes.

use crate::{DeliveryMode, TriggerMode};

/// The local APIC's registers by their 16-byte slot (SDM 3A, table "Local APIC Register Address
/// Map"). In x2APIC mode the same slot is the MSR 0x800 + slot (SDM 3A, "x2APIC Register Address
/// Space").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Id,
    Version,
    TaskPriority,
    ArbitrationPriority,
    ProcessorPriority,
    EndOfInterrupt,
    RemoteRead,
    LogicalDestination,
    DestinationFormat,
    Spurious,
    /// Word 0 to 7 of a 256-bit register.
    InService(u8),
    TriggerMode(u8),
    Request(u8),
    ErrorStatus,
    Command,
    CommandHigh,
    Lvt(LvtEntry),
    InitialCount,
    CurrentCount,
    DivideConfiguration,
    SelfIpi,
}

impl Register {
    /// `None` for a reserved slot. Whether a register exists in a mode is for the caller to know.
    #[inline(always)]
    pub(super) const fn from_slot(slot: u8) -> Option<Self> {
        Some(match slot {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::TaskPriority,
            0x09 => Self::ArbitrationPriority,
            0x0a => Self::ProcessorPriority,
            0x0b => Self::EndOfInterrupt,
            0x0c => Self::RemoteRead,
            0x0d => Self::LogicalDestination,
            0x0e => Self::DestinationFormat,
            0x0f => Self::Spurious,
            0x10..=0x17 => Self::InService(slot & 7),
            0x18..=0x1f => Self::TriggerMode(slot & 7),
            0x20..=0x27 => Self::Request(slot & 7),
            0x28 => Self::ErrorStatus,
            0x2f => Self::Lvt(LvtEntry::Cmci),
            0x30 => Self::Command,
            0x31 => Self::CommandHigh,
            0x32 => Self::Lvt(LvtEntry::Timer),
            0x33 => Self::Lvt(LvtEntry::Thermal),
            0x34 => Self::Lvt(LvtEntry::Performance),
            0x35 => Self::Lvt(LvtEntry::Lint0),
            0x36 => Self::Lvt(LvtEntry::Lint1),
            0x37 => Self::Lvt(LvtEntry::Error),
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::DivideConfiguration,
            0x3f => Self::SelfIpi,
            _ => return None,
        })
    }
}

/// The entries of the local vector table (SDM 3A, figure "Local Vector Table (LVT)").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum LvtEntry {
    /// The timer.
    Timer = 0,
    /// The thermal sensor.
    Thermal = 1,
    /// Performance-monitoring counters. Delivery masks the entry.
    Performance = 2,
    /// The LINT0 pin, to which the 8259A pair's INTR goes.
    Lint0 = 3,
    /// The LINT1 pin, to which NMI goes.
    Lint1 = 4,
    /// Errors of the APIC itself.
    Error = 5,
    /// Corrected machine checks, where there is one.
    Cmci = 6,
}

impl LvtEntry {
    /// Every entry, in the order of [`super::LapicState::lvt`].
    pub const ALL: [Self; 7] = [
        Self::Timer,
        Self::Thermal,
        Self::Performance,
        Self::Lint0,
        Self::Lint1,
        Self::Error,
        Self::Cmci,
    ];
}

/// One entry of the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lvt(pub(super) u32);

impl Lvt {
    const VECTOR: u32 = 0xff;
    const DELIVERY_MODE: u32 = 0b111 << 8;
    /// Read-only: this APIC delivers at once, so it is always idle.
    const DELIVERY_STATUS: u32 = 1 << 12;
    const POLARITY: u32 = 1 << 13;
    /// Read-only.
    const REMOTE_IRR: u32 = 1 << 14;
    const LEVEL: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;
    const TIMER_PERIODIC: u32 = 1 << 17;
    const TIMER_TSC_DEADLINE: u32 = 1 << 18;

    /// After power-up, reset and INIT (SDM 3A, "Local APIC State After Power-Up or Reset").
    pub(super) const RESET: Self = Self(Self::MASKED);
    /// LINT0 in virtual-wire mode (SDM 3A, "Local Vector Table", ExtINT).
    pub(super) const VIRTUAL_WIRE: Self = Self((DeliveryMode::ExtInt as u32) << 8);

    /// The bits that software writes.
    pub(super) const fn writable(entry: LvtEntry, tsc_deadline: bool) -> u32 {
        let common = Self::VECTOR | Self::MASKED;
        match entry {
            LvtEntry::Timer if tsc_deadline => {
                common | Self::TIMER_PERIODIC | Self::TIMER_TSC_DEADLINE
            }
            LvtEntry::Timer => common | Self::TIMER_PERIODIC,
            LvtEntry::Error => common,
            LvtEntry::Thermal | LvtEntry::Performance | LvtEntry::Cmci => {
                common | Self::DELIVERY_MODE
            }
            LvtEntry::Lint0 | LvtEntry::Lint1 => {
                common | Self::DELIVERY_MODE | Self::POLARITY | Self::LEVEL
            }
        }
    }

    /// The bits that a write does not change and that are not reserved.
    pub(super) const fn read_only(entry: LvtEntry) -> u32 {
        match entry {
            LvtEntry::Lint0 | LvtEntry::Lint1 => Self::DELIVERY_STATUS | Self::REMOTE_IRR,
            _ => Self::DELIVERY_STATUS,
        }
    }

    pub(super) const fn vector(self) -> u8 {
        low_byte(self.0)
    }

    pub(super) const fn is_masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    pub(super) const fn masked(self) -> Self {
        Self(self.0 | Self::MASKED)
    }

    /// `None` for the reserved encoding 0b011.
    pub(super) const fn delivery_mode(self) -> Option<DeliveryMode> {
        DeliveryMode::from_bits(low_byte(self.0 >> 8))
    }

    pub(super) const fn trigger_mode(self) -> TriggerMode {
        TriggerMode::from_bit(self.0 & Self::LEVEL != 0)
    }

    pub(super) const fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    pub(super) const fn with_remote_irr(self, set: bool) -> Self {
        if set {
            Self(self.0 | Self::REMOTE_IRR)
        } else {
            Self(self.0 & !Self::REMOTE_IRR)
        }
    }

    pub(super) const fn timer_mode(self) -> TimerMode {
        match (
            self.0 & Self::TIMER_TSC_DEADLINE != 0,
            self.0 & Self::TIMER_PERIODIC != 0,
        ) {
            (false, false) => TimerMode::OneShot,
            (false, true) => TimerMode::Periodic,
            (true, false) => TimerMode::TscDeadline,
            (true, true) => TimerMode::Reserved,
        }
    }

    /// The pin is asserted while it is low.
    #[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
    pub(super) const fn active_low(self) -> bool {
        self.0 & Self::POLARITY != 0
    }

    /// LINT0 passes the 8259A pair's INTR on.
    pub(super) fn passes_ext_int(self) -> bool {
        !self.is_masked() && self.delivery_mode() == Some(DeliveryMode::ExtInt)
    }
}

/// How the timer counts (SDM 3A, "APIC Timer", table "LVT Timer Register ... timer mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimerMode {
    /// Down to zero, once.
    OneShot,
    /// Down to zero, again and again.
    Periodic,
    /// Until the TSC reaches a value.
    TscDeadline,
    /// The encoding 0b11: the timer stands still.
    Reserved,
}

/// The spurious-interrupt vector register (SDM 3A, figure of that name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spurious(pub(super) u32);

impl Spurious {
    const ENABLE: u32 = 1 << 8;
    const FOCUS: u32 = 1 << 9;
    const SUPPRESS_EOI: u32 = 1 << 12;
    /// SDM 3A, "Local APIC State After Power-Up or Reset".
    pub(super) const RESET: Self = Self(0xff);

    pub(super) const fn writable(eoi_suppression: bool) -> u32 {
        let always = 0xff | Self::ENABLE | Self::FOCUS;
        if eoi_suppression {
            always | Self::SUPPRESS_EOI
        } else {
            always
        }
    }

    pub(super) const fn vector(self) -> u8 {
        low_byte(self.0)
    }

    pub(super) const fn enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    pub(super) const fn suppresses_eoi(self) -> bool {
        self.0 & Self::SUPPRESS_EOI != 0
    }
}

/// The version register: 0x14 for the integrated APIC, the number of LVT entries less one, and
/// whether EOI broadcasts can be suppressed (SDM 3A, "Local APIC Version Register").
pub(super) const fn version(cmci: bool, eoi_suppression: bool) -> u32 {
    let max_lvt: u32 = if cmci { 6 } else { 5 };
    0x14 | max_lvt << 16 | (eoi_suppression as u32) << 24
}

/// The interrupt command register (SDM 3A, figure "Interrupt Command Register (ICR)").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command(pub(super) u64);

impl Command {
    const LOGICAL: u64 = 1 << 11;
    const BUSY: u64 = 1 << 12;
    const ASSERT: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const DESTINATION: u64 = 0xffff_ffff << 32;
    /// Vector, delivery mode, destination mode, level, trigger mode, shorthand, destination.
    pub(super) const WRITABLE: u64 =
        0x7ff | Self::LOGICAL | Self::ASSERT | Self::LEVEL | 0b11 << 18 | Self::DESTINATION;
    /// In x2APIC mode there is no delivery-status bit. KVM ignores a one there, as Intel
    /// processors do, rather than raise #GP (lapic.c, `__kvm_x2apic_icr_write`).
    pub(super) const IGNORED: u64 = Self::BUSY;

    pub(super) const fn vector(self) -> u8 {
        low_byte_64(self.0)
    }

    pub(super) const fn delivery_mode(self) -> Option<DeliveryMode> {
        DeliveryMode::from_bits(low_byte_64(self.0 >> 8))
    }

    pub(super) const fn logical(self) -> bool {
        self.0 & Self::LOGICAL != 0
    }

    #[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
    pub(super) const fn trigger_mode(self) -> TriggerMode {
        TriggerMode::from_bit(self.0 & Self::LEVEL != 0)
    }

    /// "INIT Level De-assert": trigger mode level, level 0.
    pub(super) const fn deasserts(self) -> bool {
        self.0 & Self::LEVEL != 0 && self.0 & Self::ASSERT == 0
    }

    pub(super) const fn shorthand(self) -> u8 {
        low_byte_64(self.0 >> 18) & 0b11
    }

    pub(super) const fn low(self) -> u32 {
        low_word(self.0)
    }

    pub(super) const fn high(self) -> u32 {
        low_word(self.0 >> 32)
    }

    pub(super) fn with_low(self, low: u32) -> Self {
        Self(self.0 & Self::DESTINATION | u64::from(low) & Self::WRITABLE)
    }

    pub(super) fn with_high(self, high: u32) -> Self {
        Self(self.0 & !Self::DESTINATION | u64::from(high) << 32)
    }
}

bitflags::bitflags! {
    /// The error status register (SDM 3A, "Error Handling"). Bits 0 to 3 are of the APIC bus that
    /// later processors do not have, and bit 4 of those that cannot send lowest-priority IPIs.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Errors: u32 {
        /// Sent an illegal vector.
        const SEND_ILLEGAL_VECTOR = 1 << 5;
        /// Received one, or generated one by the local vector table.
        const RECEIVE_ILLEGAL_VECTOR = 1 << 6;
        /// A reserved register was accessed (xAPIC mode; x2APIC mode raises #GP instead).
        const ILLEGAL_REGISTER = 1 << 7;
    }
}

/// The divide configuration register: bits 3, 1 and 0 (SDM 3A, figure of that name).
pub(super) const DIVIDE_WRITABLE: u32 = 0b1011;

/// log2 of the divisor: 0b000 divides by 2, 0b110 by 128, 0b111 by 1.
pub(super) const fn divide_shift(register: u8) -> u32 {
    let field = (register & 0b11) | (register & 0b1000) >> 1;
    ((field as u32) + 1) & 0b111
}

pub(super) const fn low_byte(value: u32) -> u8 {
    let [byte, ..] = value.to_le_bytes();
    byte
}

const fn low_byte_64(value: u64) -> u8 {
    let [byte, ..] = value.to_le_bytes();
    byte
}

pub(super) const fn low_word(value: u64) -> u32 {
    let [b0, b1, b2, b3, ..] = value.to_le_bytes();
    u32::from_le_bytes([b0, b1, b2, b3])
}

pub(super) const fn high_byte(value: u32) -> u8 {
    let [.., byte] = value.to_le_bytes();
    byte
}

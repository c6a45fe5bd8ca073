//! The vocabulary of x86 interrupts that several modules share: addresses, MSRs, vectors.

use core::ops::Range;

/// Where the local APIC's registers are after reset (SDM 3A, "Relocating the Local APIC Registers").
/// A message signalled interrupt is a write to the same megabyte (SDM 3A, "Message Address Register
/// Format").
pub(crate) const LOCAL_APIC_ADDRESS: u64 = 0xfee0_0000;
/// Bytes of memory that the local APIC answers at.
pub(crate) const LOCAL_APIC_WINDOW: u64 = 0x1000;
/// Where the IOAPIC's registers are in a PC (82093AA, 3.0).
pub(crate) const IOAPIC_ADDRESS: u64 = 0xfec0_0000;

/// IA32_APIC_BASE.
pub(crate) const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub(crate) const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The x2APIC registers: a register's MSR is this one plus its 16-byte slot.
pub(crate) const MSR_X2APIC: u32 = 0x800;
/// Their range.
pub(crate) const MSRS_X2APIC: Range<u32> = MSR_X2APIC..0x900;

/// Vectors below this are the processor's exceptions, and illegal for interrupts (SDM 3A, "Valid
/// Interrupt Vectors").
pub(crate) const FIRST_VECTOR: u8 = 16;

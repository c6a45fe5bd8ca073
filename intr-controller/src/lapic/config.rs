//! What a local APIC is made with.

use core::num::{NonZeroU16, NonZeroU64};

use super::registers::low_byte;
use crate::TscClock;

/// What of a local APIC does not change while its vCPU exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LapicConfig {
    /// The initial APIC id, as in CPUID leaves 1 (its low eight bits), 0xb and 0x1f.
    pub apic_id: u32,
    /// The bootstrap processor: runs after reset instead of waiting for its start-up IPI.
    pub bootstrap: bool,
    /// LINT0 passes the 8259A's INTR from reset on. The architecture masks it and firmware turns
    /// it on; a VMM that starts kernels without firmware does that here, for the bootstrap
    /// processor (KVM: the quirk LINT0_REENABLED).
    pub virtual_wire: bool,
    /// x2APIC mode exists (CPUID.1:ECX bit 21).
    pub x2apic: bool,
    /// The timer has TSC-deadline mode (CPUID.1:ECX bit 24).
    pub tsc_deadline: bool,
    /// There is an LVT entry for corrected machine checks (MCG_CAP bit 10).
    pub cmci: bool,
    /// EOI broadcasts can be suppressed, which makes sense only if the IOAPICs have an EOI
    /// register (version 0x20).
    pub eoi_suppression: bool,
    /// The timer counts one for each of these, before the divisor (KVM:
    /// `KVM_CAP_X86_APIC_BUS_CYCLES_NS`).
    pub bus_cycle_ns: NonZeroU16,
    /// MAXPHYADDR, for the reserved bits of IA32_APIC_BASE.
    pub physical_address_bits: u8,
    /// The vCPU's time-stamp counter at the start; [`Lapic::set_tsc`](super::Lapic::set_tsc) later.
    pub tsc: TscClock,
}

impl LapicConfig {
    /// With everything but CMCI, a timer that counts nanoseconds as KVM's does, 46 physical address
    /// bits, and a TSC of this frequency.
    #[must_use]
    pub const fn new(apic_id: u32, bootstrap: bool, tsc_hz: NonZeroU64) -> Self {
        Self {
            apic_id,
            bootstrap,
            virtual_wire: false,
            x2apic: true,
            tsc_deadline: true,
            cmci: false,
            eoi_suppression: true,
            bus_cycle_ns: NonZeroU16::MIN,
            physical_address_bits: 46,
            tsc: TscClock::new(tsc_hz),
        }
    }

    /// The initial id of xAPIC mode.
    pub(super) const fn xapic_id(&self) -> u8 {
        low_byte(self.apic_id)
    }
}

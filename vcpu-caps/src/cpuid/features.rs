//! Features that depend on the irqchip, or that a stopped guest cannot rely on.

use super::entry::{CpuidEntry, set_bit};
use crate::irqchip::IrqchipMode;

/// The features that the guest's local APICs implement, in the kernel or in userspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LocalApic {
    /// The MSR interface. KVM's local APIC has it.
    pub x2apic: bool,
    /// The timer's TSC-deadline mode. KVM's local APIC has it if `KVM_CAP_TSC_DEADLINE_TIMER`
    /// says so; `KVM_GET_SUPPORTED_CPUID` does not show it. Without a local APIC in the kernel
    /// the MSR is swallowed by KVM and the guest waits forever, so do not claim it there unless
    /// the MSR is filtered and emulated.
    pub tsc_deadline: bool,
}

/// Bits of KVM's feature leaf (cpuid.rst) that work only with KVM's own local APIC.
const NEEDS_KERNEL_APIC: [u32; 8] = [
    4,  // KVM_FEATURE_ASYNC_PF
    6,  // KVM_FEATURE_PV_EOI
    7,  // KVM_FEATURE_PV_UNHALT
    10, // KVM_FEATURE_ASYNC_PF_VMEXIT
    11, // KVM_FEATURE_PV_SEND_IPI
    12, // KVM_FEATURE_POLL_CONTROL: HLT polls in the kernel
    13, // KVM_FEATURE_PV_SCHED_YIELD: finds its target in KVM's APIC map
    14, // KVM_FEATURE_ASYNC_PF_INT
];

pub(super) fn adapt(entry: &mut CpuidEntry, irqchip: IrqchipMode, apic: LocalApic) {
    match entry.leaf {
        1 => {
            set_bit(&mut entry.ecx, 21, apic.x2apic);
            set_bit(&mut entry.ecx, 24, apic.tsc_deadline);
            // Not on real CPUs: there is a hypervisor, and its leaves are at 0x4000_0000.
            set_bit(&mut entry.ecx, 31, true);
            // There is a local APIC. KVM follows IA32_APIC_BASE.EN from here on.
            set_bit(&mut entry.edx, 9, true);
        }
        // An invariant TSC (SDM 3B 18.17.1) never stops. The TSC of this guest does, or jumps: a
        // debugger stops the guest, and not every host can shift its TSC. Without the bit Linux
        // uses kvmclock, to which KVM_KVMCLOCK_CTRL reports a stop. With the bit it uses the TSC.
        0x8000_0007 => set_bit(&mut entry.edx, 8, false),
        0x4000_0001 if irqchip == IrqchipMode::User => {
            for bit in NEEDS_KERNEL_APIC {
                set_bit(&mut entry.eax, bit, false);
            }
        }
        _ => {}
    }
}

/// MSRs that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsrRange {
    /// The first.
    pub first: u32,
    /// The number of MSRs.
    pub count: u32,
}

/// The MSRs that a VMM with this irqchip has to filter (`KVM_X86_SET_MSR_FILTER`) to see what the
/// guest does to its local APIC.
///
/// Without the filter KVM handles these by itself: there is no exit, although there is no local
/// APIC in the kernel. The x2APIC registers, 0x800 to 0x8ff, cannot be filtered: without a local APIC in the
/// kernel they fail, and leave the guest with `KVM_MSR_EXIT_REASON_INVAL`.
#[must_use]
pub const fn filtered_msrs(irqchip: IrqchipMode) -> &'static [MsrRange] {
    match irqchip {
        IrqchipMode::Kernel | IrqchipMode::Split => &[],
        IrqchipMode::User => &[
            // IA32_APIC_BASE
            MsrRange {
                first: 0x1b,
                count: 1,
            },
            // IA32_TSC_DEADLINE
            MsrRange {
                first: 0x6e0,
                count: 1,
            },
        ],
    }
}

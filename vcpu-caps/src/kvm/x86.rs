//! `struct kvm_guest_debug` on x86, and its one composer.

use bitflags::bitflags;

use crate::debug_state::{DebugIntent, DebugState, HwBreakpoint, HwBreakpointError, Inject};
use crate::x86::{self, DebugRegisters};

bitflags! {
    /// `kvm_guest_debug.control` on x86 (api.rst 4.87; arch/x86/include/uapi/asm/kvm.h).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct GuestDebugFlags: u32 {
        /// Debugging is on. Without this flag KVM clears the whole state.
        const ENABLE = 0x1;
        /// Trap after one instruction.
        const SINGLESTEP = 0x2;
        /// INT3 leaves the guest.
        const USE_SW_BP = 0x1_0000;
        /// DR0-3 and DR7 come from the debugger.
        const USE_HW_BP = 0x2_0000;
        /// Queue a #DB for the guest.
        const INJECT_DB = 0x4_0000;
        /// Queue a #BP for the guest.
        const INJECT_BP = 0x8_0000;
        /// Inject no IRQ, NMI or SMI (Linux 5.15).
        const BLOCKIRQ = 0x10_0000;
        /// The one-shot flags. They queue an event and are not part of the lasting state.
        const INJECT = Self::INJECT_DB.bits() | Self::INJECT_BP.bits();
    }
}

/// `struct kvm_guest_debug` on x86, as plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestDebug {
    /// `control`.
    pub control: GuestDebugFlags,
    /// `arch.debugreg`: DR0-DR7, of which KVM uses 0-3 and 7.
    pub debugreg: DebugRegisters,
}

impl GuestDebug {
    /// No debugging: the state of a new vCPU.
    pub const OFF: Self = Self {
        control: GuestDebugFlags::empty(),
        debugreg: [0; 8],
    };

    /// Turns what is asked for into flags. No other function does.
    #[must_use]
    pub fn compose(intent: &DebugIntent<'_>) -> Self {
        let mut control = GuestDebugFlags::empty();
        control.set(GuestDebugFlags::SINGLESTEP, intent.single_step);
        control.set(GuestDebugFlags::BLOCKIRQ, intent.mask_hwintr);
        control.set(GuestDebugFlags::USE_SW_BP, intent.software_breakpoints);
        control.set(GuestDebugFlags::USE_HW_BP, !intent.hardware.is_empty());
        if !control.is_empty() {
            control |= GuestDebugFlags::ENABLE;
        }
        // KVM injects without ENABLE too.
        match intent.inject {
            Some(Inject::Debug) => control |= GuestDebugFlags::INJECT_DB,
            Some(Inject::Breakpoint) => control |= GuestDebugFlags::INJECT_BP,
            None => {}
        }
        Self {
            control,
            debugreg: x86::debug_registers(intent.hardware),
        }
    }

    /// Returns what stays in force after the request: the state without its one-shot flags.
    #[must_use]
    pub const fn lasting(&self) -> Self {
        Self {
            control: self.control.difference(GuestDebugFlags::INJECT),
            debugreg: self.debugreg,
        }
    }
}

impl DebugState for GuestDebug {
    fn compose(intent: &DebugIntent<'_>) -> Self {
        Self::compose(intent)
    }

    fn check(hardware: &[HwBreakpoint]) -> Result<(), HwBreakpointError> {
        x86::check(hardware)
    }

    fn lasting(&self) -> Self {
        self.lasting()
    }

    fn injects(&self) -> Option<Inject> {
        if self.control.contains(GuestDebugFlags::INJECT_DB) {
            Some(Inject::Debug)
        } else if self.control.contains(GuestDebugFlags::INJECT_BP) {
            Some(Inject::Breakpoint)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::debug_state::HwBreakpointKind;

    #[test]
    fn an_empty_intent_is_no_debugging() {
        assert_eq!(
            GuestDebug::compose(&DebugIntent::default()),
            GuestDebug::OFF
        );
        assert_eq!(GuestDebug::default(), GuestDebug::OFF);
    }

    #[test]
    fn injecting_alone_does_not_enable_debugging() {
        // KVM injects without ENABLE too, and ENABLE would have to be taken back afterwards.
        let debug = GuestDebug::compose(&DebugIntent {
            inject: Some(Inject::Breakpoint),
            ..DebugIntent::default()
        });
        assert_eq!(debug.control.bits(), 0x8_0000);
        assert_eq!(debug.lasting(), GuestDebug::OFF);
    }

    #[test]
    fn breakpoints_come_with_their_flag() {
        let debug = GuestDebug::compose(&DebugIntent {
            hardware: &[HwBreakpoint::execute(0x1000)],
            ..DebugIntent::default()
        });
        assert_eq!(debug.control.bits(), 0x2_0001, "ENABLE and USE_HW_BP");
        assert_eq!(debug.debugreg, [0x1000, 0, 0, 0, 0, 0, 0, 0x602]);
    }

    fn any_breakpoint() -> impl Strategy<Value = HwBreakpoint> {
        let kind = prop::sample::select(&[
            HwBreakpointKind::Execute,
            HwBreakpointKind::Write,
            HwBreakpointKind::ReadWrite,
        ]);
        (any::<u64>(), kind, 0..4_u32).prop_map(|(address, kind, exponent)| {
            let length = 1 << exponent;
            HwBreakpoint::watch(address & !(length - 1), length, kind)
        })
    }

    /// A [`DebugIntent`] that owns its breakpoints.
    #[derive(Clone, Debug, PartialEq)]
    struct Asked {
        flags: [bool; 3],
        hardware: Vec<HwBreakpoint>,
        inject: Option<Inject>,
    }

    impl Asked {
        fn intent(&self) -> DebugIntent<'_> {
            let [single_step, mask_hwintr, software_breakpoints] = self.flags;
            DebugIntent {
                single_step,
                mask_hwintr,
                software_breakpoints,
                hardware: &self.hardware,
                inject: self.inject,
            }
        }
    }

    fn any_intent() -> impl Strategy<Value = Asked> {
        let inject = prop::sample::select(&[None, Some(Inject::Debug), Some(Inject::Breakpoint)]);
        let hardware = prop::collection::vec(any_breakpoint(), 0..=4);
        (any::<[bool; 3]>(), hardware, inject).prop_map(|(flags, hardware, inject)| Asked {
            flags,
            hardware,
            inject,
        })
    }

    /// Reads a request back with the manual's table and no code of `compose`.
    fn decode(debug: &GuestDebug) -> Asked {
        let flag = |bit: u32| debug.control.bits() & bit != 0;
        let dr7 = debug.debugreg[7];
        let hardware = (0..4)
            .filter(|slot| flag(0x2_0000) && dr7 & (2 << (2 * slot)) != 0)
            .map(|slot| {
                let kind = match dr7 >> (16 + 4 * slot) & 3 {
                    0 => HwBreakpointKind::Execute,
                    1 => HwBreakpointKind::Write,
                    3 => HwBreakpointKind::ReadWrite,
                    other => panic!("R/W {other} is I/O"),
                };
                let length = [1, 2, 8, 4][usize::try_from(dr7 >> (18 + 4 * slot) & 3).unwrap()];
                HwBreakpoint::watch(debug.debugreg[slot], length, kind)
            })
            .collect();
        Asked {
            flags: [flag(0x2), flag(0x10_0000), flag(0x1_0000)],
            hardware,
            inject: match (flag(0x4_0000), flag(0x8_0000)) {
                (true, false) => Some(Inject::Debug),
                (false, true) => Some(Inject::Breakpoint),
                (false, false) => None,
                (true, true) => panic!("KVM takes one at a time"),
            },
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_added(asked in any_intent()) {
            let debug = GuestDebug::compose(&asked.intent());
            prop_assert_eq!(debug.injects(), asked.inject);
            prop_assert_eq!(decode(&debug), asked);
        }

        /// Without ENABLE KVM clears every other flag.
        #[test]
        fn every_lasting_flag_comes_with_enable(asked in any_intent()) {
            let debug = GuestDebug::compose(&asked.intent());
            let lasting = debug.lasting();
            prop_assert_eq!(
                lasting.control.contains(GuestDebugFlags::ENABLE),
                lasting != GuestDebug::OFF,
                "{}", format!("{debug:?}")
            );
        }

        /// The reserved bits and GD (13), which would make the guest's own MOV DR trap.
        #[test]
        fn dr7_sets_no_other_bit(asked in any_intent()) {
            let dr7 = GuestDebug::compose(&asked.intent()).debugreg[7];
            prop_assert_eq!(dr7 & 0xffff_ffff_0000_f800, 0);
            // A task switch clears the local enables.
            prop_assert_eq!(dr7 & 0x55, 0);
        }
    }
}

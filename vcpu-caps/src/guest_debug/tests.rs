use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

/// DR7 written out by hand from SDM 3B figure 19-1: for each slot the global-enable bit, and for
/// each kind and length the four bits at 16 + 4n, length first.
#[test]
fn every_dr7_encoding_is_the_manuals() {
    let global = [0x2, 0x8, 0x20, 0x80];
    let cases = [
        (HwBreakpoint::execute(0x1000), 0b0000),
        (watch(1, HwBreakpointKind::Write), 0b0001),
        (watch(2, HwBreakpointKind::Write), 0b0101),
        (watch(4, HwBreakpointKind::Write), 0b1101),
        (watch(8, HwBreakpointKind::Write), 0b1001),
        (watch(1, HwBreakpointKind::ReadWrite), 0b0011),
        (watch(2, HwBreakpointKind::ReadWrite), 0b0111),
        (watch(4, HwBreakpointKind::ReadWrite), 0b1111),
        (watch(8, HwBreakpointKind::ReadWrite), 0b1011),
    ];
    for (breakpoint, nibble) in cases {
        for (slot, global) in global.into_iter().enumerate() {
            let mut hardware = [None; 4];
            hardware[slot] = Some(breakpoint);
            let debug = GuestDebug::compose(&DebugIntent {
                hardware,
                ..DebugIntent::default()
            });
            let mut debugreg = [0; 8];
            debugreg[slot] = 0x1000;
            debugreg[7] = 0x600 | global | (nibble << [16, 20, 24, 28][slot]);
            assert_eq!(debug.debugreg, debugreg, "{breakpoint} in slot {slot}");
            assert_eq!(debug.control.bits(), 0x2_0001, "ENABLE and USE_HW_BP");
        }
    }
}

fn watch(length: u64, kind: HwBreakpointKind) -> HwBreakpoint {
    HwBreakpoint::watch(0x1000, length, kind)
}

#[test]
fn four_slots_share_one_dr7() {
    let debug = GuestDebug::compose(&DebugIntent {
        hardware: [
            Some(HwBreakpoint::execute(0xffff_ffff_8100_0001)),
            Some(HwBreakpoint::watch(0x2008, 8, HwBreakpointKind::Write)),
            None,
            Some(HwBreakpoint::watch(0x3004, 4, HwBreakpointKind::ReadWrite)),
        ],
        ..DebugIntent::default()
    });
    assert_eq!(
        debug.debugreg,
        [
            0xffff_ffff_8100_0001,
            0x2008,
            0,
            0x3004,
            0,
            0,
            0,
            0xf090_068a
        ]
    );
}

#[test]
fn a_watchpoint_is_aligned_to_its_length() {
    for length in [1_u64, 2, 4, 8] {
        for offset in 0..16_u64 {
            let watched = HwBreakpoint::watch(0x7000 + offset, length, HwBreakpointKind::Write);
            if offset % length == 0 {
                assert_eq!(watched.check_x86(), Ok(()));
            } else {
                assert_eq!(
                    watched.check_x86(),
                    Err(HwBreakpointError::Alignment {
                        address: 0x7000 + offset,
                        length
                    })
                );
            }
        }
    }
}

#[test]
fn odd_lengths_are_refused() {
    for length in [0, 3, 5, 6, 7, 9, 16, u64::MAX] {
        for kind in [HwBreakpointKind::Write, HwBreakpointKind::ReadWrite] {
            assert_eq!(
                HwBreakpoint::watch(0, length, kind).check_x86(),
                Err(HwBreakpointError::Length(length))
            );
        }
    }
}

#[test]
fn an_execute_breakpoint_needs_no_alignment_and_has_length_1() {
    let breakpoint = HwBreakpoint::watch(0x1003, 4, HwBreakpointKind::Execute);
    assert_eq!(breakpoint, HwBreakpoint::execute(0x1003));
}

#[test]
fn breakpoints_print_what_they_wait_for() {
    assert_eq!(HwBreakpoint::execute(0xabc).to_string(), "execute at 0xabc");
    assert_eq!(
        watch(4, HwBreakpointKind::ReadWrite).to_string(),
        "read/write at 0x1000 (4 bytes)"
    );
}

#[test]
fn no_wish_is_no_debugging() {
    assert_eq!(
        GuestDebug::compose(&DebugIntent::default()),
        GuestDebug::OFF
    );
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

pub(crate) fn any_intent() -> impl Strategy<Value = DebugIntent> {
    let inject = prop::sample::select(&[None, Some(Inject::Debug), Some(Inject::Breakpoint)]);
    let hardware = prop::array::uniform4(prop::option::of(any_breakpoint()));
    (any::<[bool; 3]>(), hardware, inject).prop_map(
        |([single_step, mask_hwintr, software_breakpoints], hardware, inject)| DebugIntent {
            single_step,
            mask_hwintr,
            software_breakpoints,
            hardware,
            inject,
        },
    )
}

/// Reads a request back, with the manual's table and no code of `compose`.
fn decode(debug: &GuestDebug) -> DebugIntent {
    let flag = |bit: u32| debug.control.bits() & bit != 0;
    let dr7 = debug.debugreg[7];
    let slots: Vec<_> = (0..4)
        .map(|slot| {
            let enabled = flag(0x2_0000) && dr7 & (2 << (2 * slot)) != 0;
            enabled.then(|| {
                let kind = match dr7 >> (16 + 4 * slot) & 3 {
                    0 => HwBreakpointKind::Execute,
                    1 => HwBreakpointKind::Write,
                    3 => HwBreakpointKind::ReadWrite,
                    other => panic!("R/W {other} is I/O"),
                };
                let length = [1, 2, 8, 4][usize::try_from(dr7 >> (18 + 4 * slot) & 3).unwrap()];
                HwBreakpoint::watch(debug.debugreg[slot], length, kind)
            })
        })
        .collect();
    DebugIntent {
        single_step: flag(0x2),
        mask_hwintr: flag(0x10_0000),
        software_breakpoints: flag(0x1_0000),
        hardware: [slots[0], slots[1], slots[2], slots[3]],
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
    fn nothing_is_lost_or_added(intent in any_intent()) {
        prop_assert_eq!(decode(&GuestDebug::compose(&intent)), intent);
    }

    /// Without ENABLE KVM clears every other flag.
    #[test]
    fn every_lasting_wish_comes_with_enable(intent in any_intent()) {
        let debug = GuestDebug::compose(&intent);
        let lasting = debug.lasting();
        prop_assert_eq!(
            lasting.control.contains(GuestDebugFlags::ENABLE),
            lasting != GuestDebug::OFF,
            "{}", format!("{debug:?}")
        );
    }

    /// The reserved bits and GD (13), which would make the guest's own MOV DR trap.
    #[test]
    fn dr7_has_no_bit_of_its_own(intent in any_intent()) {
        let dr7 = GuestDebug::compose(&intent).debugreg[7];
        prop_assert_eq!(dr7 & 0xffff_ffff_0000_f800, 0);
        // Local enables are cleared by a task switch.
        prop_assert_eq!(dr7 & 0x55, 0);
    }

    #[test]
    fn what_was_recorded_is_not_needed_again_unless_it_is_an_event(intent in any_intent()) {
        use crate::applied::{AppliedDebug, Rearm};
        let debug = GuestDebug::compose(&intent);
        for mut state in [AppliedDebug::fresh(), AppliedDebug::unknown()] {
            state.record(&debug);
            prop_assert_eq!(state.needs(&debug, Rearm::IfChanged), intent.inject.is_some());
            prop_assert!(!state.needs(&debug.lasting(), Rearm::IfChanged));
            prop_assert!(state.needs(&debug, Rearm::Always));
        }
        prop_assert!(AppliedDebug::unknown().needs(&debug, Rearm::IfChanged));
    }
}

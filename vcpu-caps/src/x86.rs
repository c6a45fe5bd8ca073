//! The debug registers of x86 (SDM 3B 19.2), for every hypervisor.

use crate::debug_state::{HwBreakpoint, HwBreakpointError, HwBreakpointKind};

/// The number of debug-address registers: DR0 to DR3.
pub const DEBUG_SLOTS: usize = 4;

/// DR7.GE (bit 9), which the SDM recommends to set, and bit 10, which reads as 1.
const DR7_FIXED: u64 = 0x600;

/// DR0 to DR7. DR4 to DR6 are 0.
pub type DebugRegisters = [u64; 8];

/// Returns the debug registers that arm `hardware`: the first breakpoint in DR0, each enabled
/// globally. All are 0 if there is no breakpoint.
///
/// [`check`] says whether the registers can hold the breakpoints. Those after the fourth are left
/// out.
#[must_use]
pub fn debug_registers(hardware: &[HwBreakpoint]) -> DebugRegisters {
    let mut registers = [0; 8];
    if !hardware.is_empty() {
        let [dr0, dr1, dr2, dr3, _, _, _, dr7] = &mut registers;
        *dr7 = DR7_FIXED;
        let slots = [dr0, dr1, dr2, dr3].into_iter().enumerate();
        for ((slot, register), breakpoint) in slots.zip(hardware) {
            *register = breakpoint.address();
            *dr7 |= dr7_bits(breakpoint, slot);
        }
    }
    registers
}

/// Checks that the debug registers can hold these breakpoints, all at once.
///
/// # Errors
/// If there are more than [`DEBUG_SLOTS`], or [`HwBreakpoint::check_x86`] refuses one.
pub fn check(hardware: &[HwBreakpoint]) -> Result<(), HwBreakpointError> {
    if hardware.len() > DEBUG_SLOTS {
        return Err(HwBreakpointError::TooMany { slots: DEBUG_SLOTS });
    }
    hardware.iter().try_for_each(HwBreakpoint::check_x86)
}

impl HwBreakpoint {
    /// Checks that an x86 debug-address register can hold it.
    ///
    /// # Errors
    /// If the length or the alignment cannot be expressed (SDM 3B 19.2.5).
    pub const fn check_x86(&self) -> Result<(), HwBreakpointError> {
        let (address, length) = (self.address(), self.length());
        if !matches!(length, 1 | 2 | 4 | 8) {
            return Err(HwBreakpointError::Length(length));
        }
        if address % length != 0 {
            return Err(HwBreakpointError::Alignment { address, length });
        }
        Ok(())
    }
}

/// The bits of DR7 that enable `breakpoint` globally in `slot` (SDM 3B 19.2.4).
const fn dr7_bits(breakpoint: &HwBreakpoint, slot: usize) -> u64 {
    let rw = match breakpoint.kind() {
        HwBreakpointKind::Execute => 0b00,
        HwBreakpointKind::Write => 0b01,
        HwBreakpointKind::ReadWrite => 0b11,
    };
    // The length of an execute breakpoint must be encoded as 0.
    let len = match (breakpoint.kind(), breakpoint.length()) {
        (HwBreakpointKind::Execute, _) => 0b00,
        (_, 2) => 0b01,
        (_, 8) => 0b10,
        (_, 4) => 0b11,
        _ => 0b00,
    };
    (0b10 << (2 * slot)) | (rw << (16 + 4 * slot)) | (len << (18 + 4 * slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DR7 written out by hand from SDM 3B figure 19-1: for each slot the global-enable bit, and
    /// for each kind and length the four bits at 16 + 4n, length first.
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
        let others = HwBreakpoint::execute(0);
        for (breakpoint, nibble) in cases {
            for slot in 0..4 {
                let mut hardware = [others; 4];
                hardware[slot] = breakpoint;
                let mut expected = [0; 8];
                expected[slot] = 0x1000;
                // All four enabled; an execute breakpoint adds nothing else.
                let enabled: u64 = global[..=slot].iter().sum();
                expected[7] = 0x600 | enabled | (nibble << [16, 20, 24, 28][slot]);
                assert_eq!(
                    debug_registers(&hardware[..=slot]),
                    expected,
                    "{breakpoint} in slot {slot}"
                );
            }
        }
    }

    fn watch(length: u64, kind: HwBreakpointKind) -> HwBreakpoint {
        HwBreakpoint::watch(0x1000, length, kind)
    }

    #[test]
    fn four_slots_share_one_dr7() {
        let registers = debug_registers(&[
            HwBreakpoint::execute(0xffff_ffff_8100_0001),
            HwBreakpoint::watch(0x2008, 8, HwBreakpointKind::Write),
            HwBreakpoint::execute(0x1234),
            HwBreakpoint::watch(0x3004, 4, HwBreakpointKind::ReadWrite),
        ]);
        assert_eq!(
            registers,
            [
                0xffff_ffff_8100_0001,
                0x2008,
                0x1234,
                0x3004,
                0,
                0,
                0,
                0xf090_06aa
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
    fn a_fifth_breakpoint_is_refused() {
        let five = [HwBreakpoint::execute(0x1000); 5];
        assert_eq!(check(&five[..4]), Ok(()));
        assert_eq!(check(&five), Err(HwBreakpointError::TooMany { slots: 4 }));
    }
}

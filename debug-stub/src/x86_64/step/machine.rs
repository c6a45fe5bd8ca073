//! The state before a step, as the decoder and the stack need it.

use super::super::bits::{CR0_PE, EFER_LMA, RFLAGS_TF, RFLAGS_VM};
use super::super::paging::read_virtual;
use super::super::{CoreRegisters, RegisterFile, Segment, SpecialRegisters};
use crate::{GuestMemory, GuestVirtAddr};

/// CORE and SPECIAL of a vCPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) core: CoreRegisters,
    pub(super) special: SpecialRegisters,
}

impl Machine {
    pub(super) fn of(registers: &RegisterFile) -> Self {
        Self {
            core: registers.core,
            special: registers.special,
        }
    }

    pub(super) fn long_mode(&self) -> bool {
        self.special.efer & EFER_LMA != 0
    }

    pub(super) fn is_64_bit(&self) -> bool {
        self.long_mode() && self.special.cs.long
    }

    pub(super) fn virtual_8086(&self) -> bool {
        !self.long_mode() && self.special.cr0 & CR0_PE != 0 && self.core.rflags & RFLAGS_VM != 0
    }

    /// Real mode or virtual-8086 mode: a segment's base is 16 times its selector.
    pub(super) fn real_segments(&self) -> bool {
        self.special.cr0 & CR0_PE == 0 || self.virtual_8086()
    }

    /// Default operand and address size of the code: 16, 32 or 64.
    pub(super) fn bitness(&self) -> u32 {
        if self.is_64_bit() {
            64
        } else if self.special.cs.default_big && !self.virtual_8086() {
            // Also in "unreal mode", before the far jump that ends the switch to real mode.
            32
        } else {
            16
        }
    }

    /// Wraps RIP at the width of the code.
    pub(super) fn ip_mask(&self) -> u64 {
        width_mask(self.bitness())
    }

    /// Width of the stack pointer in use: RSP, ESP or SP (SDM 3A 6.2.3).
    pub(super) fn stack_bits(&self) -> u32 {
        if self.is_64_bit() {
            64
        } else if self.special.ss.default_big {
            32
        } else {
            16
        }
    }

    /// The bits of RSP in use.
    pub(super) fn sp_mask(&self) -> u64 {
        width_mask(self.stack_bits())
    }

    /// The stack pointer.
    pub(super) fn sp(&self) -> u64 {
        self.core.rsp & self.sp_mask()
    }

    pub(super) fn cpl(&self) -> u16 {
        if self.virtual_8086() {
            3
        } else if self.special.cr0 & CR0_PE == 0 {
            0
        } else {
            self.special.cs.selector & 3
        }
    }

    pub(super) fn tf(&self) -> bool {
        self.core.rflags & RFLAGS_TF != 0
    }

    /// The linear address `offset` bytes above the top of the stack. Wraps at the stack's width.
    pub(super) fn stack_address(&self, offset: u64) -> GuestVirtAddr {
        let in_segment = self.sp().wrapping_add(offset) & self.sp_mask();
        self.linear(&self.special.ss, in_segment)
    }

    /// A segment's base. In 64-bit mode only FS and GS have one, and these are not read here.
    pub(super) fn linear(&self, segment: &Segment, offset: u64) -> GuestVirtAddr {
        if self.is_64_bit() {
            GuestVirtAddr(offset)
        } else {
            GuestVirtAddr(segment.base.wrapping_add(offset) & 0xffff_ffff)
        }
    }

    /// `size` (2, 4 or 8) bytes at a linear address.
    pub(super) fn read(
        &self,
        memory: &impl GuestMemory,
        address: GuestVirtAddr,
        size: u64,
    ) -> Option<u64> {
        let mut bytes = [0; 8];
        let wanted = bytes.get_mut(..usize::try_from(size).ok()?)?;
        if read_virtual(&self.special, memory, address, wanted) != wanted.len() {
            return None;
        }
        Some(u64::from_le_bytes(bytes))
    }

    /// The value `offset` bytes above the top of the stack.
    pub(super) fn stack_value(
        &self,
        memory: &impl GuestMemory,
        offset: u64,
        size: u64,
    ) -> Option<u64> {
        self.read(memory, self.stack_address(offset), size)
    }
}

/// The low `bits` of 16, 32 or 64.
pub(super) fn width_mask(bits: u32) -> u64 {
    u64::MAX >> 64u32.saturating_sub(bits).min(63)
}

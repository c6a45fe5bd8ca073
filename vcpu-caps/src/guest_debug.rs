//! The one composer of `struct kvm_guest_debug`.
//!
//! KVM replaces the whole debug state of a vCPU at each `KVM_SET_GUEST_DEBUG`. Two owners that
//! each set "their" flag therefore clear each other's. Here every wish is gathered in a
//! [`DebugIntent`], and [`GuestDebug::compose`] is the only place that turns wishes into flags.

use core::fmt;

use bitflags::bitflags;
use thiserror::Error;

bitflags! {
    /// `kvm_guest_debug.control` on x86 (api.rst 4.87; arch/x86/include/uapi/asm/kvm.h).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct GuestDebugFlags: u32 {
        /// Any debugging at all; without it KVM clears the whole state.
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
        /// The one-shot flags: they queue an event, and are no part of the lasting state.
        const INJECT = Self::INJECT_DB.bits() | Self::INJECT_BP.bits();
    }
}

/// What a debug-address register watches for (SDM 3B 19.2.4, the R/Wn field).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum HwBreakpointKind {
    /// The instruction at the address is about to execute.
    Execute,
    /// Data is written.
    Write,
    /// Data is read or written. x86 has no read-only watchpoint.
    ReadWrite,
}

impl fmt::Display for HwBreakpointKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Execute => "execute",
            Self::Write => "write",
            Self::ReadWrite => "read/write",
        })
    }
}

/// Why a debug-address register cannot hold this breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HwBreakpointError {
    /// Only 1, 2, 4 and 8 bytes can be watched: split the range.
    #[error("a debug register watches 1, 2, 4 or 8 bytes, not {0}")]
    Length(u64),
    /// The address must be a multiple of the length (SDM 3B 19.2.5): split or align the range.
    #[error("{address:#x} is not aligned to the {length} bytes to watch")]
    Alignment {
        /// Linear address asked for.
        address: u64,
        /// Bytes asked for.
        length: u64,
    },
}

/// A breakpoint or watchpoint that takes a debug-address register.
///
/// The type fits any architecture; [`HwBreakpoint::check_x86`] says whether an x86 debug register
/// can hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HwBreakpoint {
    address: u64,
    kind: HwBreakpointKind,
    length: u64,
}

impl HwBreakpoint {
    /// An execute breakpoint at a linear address.
    #[must_use]
    pub const fn execute(address: u64) -> Self {
        Self {
            address,
            kind: HwBreakpointKind::Execute,
            length: 1,
        }
    }

    /// A watchpoint over `length` bytes at a linear address. An execute breakpoint has no length:
    /// it is that of [`HwBreakpoint::execute`].
    #[must_use]
    pub const fn watch(address: u64, length: u64, kind: HwBreakpointKind) -> Self {
        match kind {
            HwBreakpointKind::Execute => Self::execute(address),
            HwBreakpointKind::Write | HwBreakpointKind::ReadWrite => Self {
                address,
                kind,
                length,
            },
        }
    }

    /// The linear address.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// What is watched for.
    #[must_use]
    pub const fn kind(&self) -> HwBreakpointKind {
        self.kind
    }

    /// Bytes watched; 1 for an execute breakpoint.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Returns `true` if an access of `length` bytes at `address` touches what is watched.
    #[must_use]
    pub const fn overlaps(&self, address: u64, length: u64) -> bool {
        address.wrapping_sub(self.address) < self.length
            || self.address.wrapping_sub(address) < length
    }

    /// Checks that an x86 debug-address register can hold it.
    ///
    /// # Errors
    /// If the length or the alignment cannot be expressed (SDM 3B 19.2.5).
    pub const fn check_x86(&self) -> Result<(), HwBreakpointError> {
        let Self {
            address, length, ..
        } = *self;
        if !matches!(length, 1 | 2 | 4 | 8) {
            return Err(HwBreakpointError::Length(length));
        }
        if address % length != 0 {
            return Err(HwBreakpointError::Alignment { address, length });
        }
        Ok(())
    }

    /// The bits of DR7 that enable this breakpoint globally in `slot` (SDM 3B 19.2.4).
    const fn dr7(&self, slot: usize) -> u64 {
        let rw = match self.kind {
            HwBreakpointKind::Execute => 0b00,
            HwBreakpointKind::Write => 0b01,
            HwBreakpointKind::ReadWrite => 0b11,
        };
        // The length of an execute breakpoint must be encoded as 0.
        let len = match (self.kind, self.length) {
            (HwBreakpointKind::Execute, _) => 0b00,
            (_, 2) => 0b01,
            (_, 8) => 0b10,
            (_, 4) => 0b11,
            _ => 0b00,
        };
        (0b10 << (2 * slot)) | (rw << (16 + 4 * slot)) | (len << (18 + 4 * slot))
    }
}

impl fmt::Display for HwBreakpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}", self.kind, self.address)?;
        if self.kind != HwBreakpointKind::Execute {
            write!(f, " ({} bytes)", self.length)?;
        }
        Ok(())
    }
}

/// An exception to hand back to the guest on the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inject {
    /// #DB. KVM queues it without a DR6 payload: set DR6 first.
    Debug,
    /// #BP.
    Breakpoint,
}

/// All that anybody wants of one vCPU's debug state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugIntent {
    /// Trap after one instruction.
    pub single_step: bool,
    /// Withhold hardware interrupts.
    pub mask_hwintr: bool,
    /// INT3 leaves the guest.
    pub software_breakpoints: bool,
    /// DR0-DR3.
    pub hardware: [Option<HwBreakpoint>; 4],
    /// Hand an exception back to the guest. One shot: not part of the lasting state.
    pub inject: Option<Inject>,
}

/// `struct kvm_guest_debug`, as plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestDebug {
    /// `control`.
    pub control: GuestDebugFlags,
    /// `arch.debugreg`: DR0-DR7, of which KVM uses 0-3 and 7.
    pub debugreg: [u64; 8],
}

/// DR7 bits that read as 1, and LE/GE, which the SDM recommends to set.
const DR7_FIXED: u64 = 0x600;

impl GuestDebug {
    /// No debugging: the state of a new vCPU.
    pub const OFF: Self = Self {
        control: GuestDebugFlags::empty(),
        debugreg: [0; 8],
    };

    /// What stays in force after the request: the same without its one-shot flags.
    #[must_use]
    pub fn lasting(&self) -> Self {
        Self {
            control: self.control.difference(GuestDebugFlags::INJECT),
            debugreg: self.debugreg,
        }
    }

    /// The only way from wishes to flags.
    #[must_use]
    pub fn compose(intent: &DebugIntent) -> Self {
        let mut control = GuestDebugFlags::empty();
        control.set(GuestDebugFlags::SINGLESTEP, intent.single_step);
        control.set(GuestDebugFlags::BLOCKIRQ, intent.mask_hwintr);
        control.set(GuestDebugFlags::USE_SW_BP, intent.software_breakpoints);
        let mut debugreg = [0; 8];
        if intent.hardware.iter().any(Option::is_some) {
            control |= GuestDebugFlags::USE_HW_BP;
            let [dr0, dr1, dr2, dr3, _, _, _, dr7] = &mut debugreg;
            *dr7 = DR7_FIXED;
            for (slot, (register, breakpoint)) in [dr0, dr1, dr2, dr3]
                .into_iter()
                .zip(&intent.hardware)
                .enumerate()
            {
                if let Some(breakpoint) = breakpoint {
                    *register = breakpoint.address;
                    *dr7 |= breakpoint.dr7(slot);
                }
            }
        }
        if !control.is_empty() {
            control |= GuestDebugFlags::ENABLE;
        }
        match intent.inject {
            Some(Inject::Debug) => control |= GuestDebugFlags::INJECT_DB,
            Some(Inject::Breakpoint) => control |= GuestDebugFlags::INJECT_BP,
            None => {}
        }
        Self { control, debugreg }
    }
}

#[cfg(test)]
mod tests;

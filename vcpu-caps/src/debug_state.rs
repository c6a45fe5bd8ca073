//! What is asked of a vCPU's debug state, without naming an architecture.
//!
//! A hypervisor replaces the whole debug state of a vCPU at each request. Two owners that each
//! set one flag therefore clear each other's. Here every request is gathered in a [`DebugIntent`],
//! and one composer, [`DebugState::compose`], turns it into the state.

use core::fmt;

use thiserror::Error;

/// What a hardware breakpoint waits for.
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

/// Why the debug registers cannot hold these breakpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HwBreakpointError {
    /// A debug register cannot watch that many bytes: split the range. x86 watches 1, 2, 4 or 8.
    #[error("a debug register cannot watch {0} bytes: split the range")]
    Length(u64),
    /// The address must be a multiple of the length: split or align the range.
    #[error("{address:#x} is not aligned to the {length} bytes to watch: split the range")]
    Alignment {
        /// Virtual address asked for.
        address: u64,
        /// Bytes asked for.
        length: u64,
    },
    /// The processor has fewer debug registers: remove a breakpoint or watchpoint.
    #[error("all {slots} debug registers are taken: remove a breakpoint or watchpoint")]
    TooMany {
        /// How many debug registers there are.
        slots: usize,
    },
}

/// A breakpoint or watchpoint that takes a debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HwBreakpoint {
    address: u64,
    kind: HwBreakpointKind,
    length: u64,
}

impl HwBreakpoint {
    /// An execute breakpoint at a virtual address (on x86: linear).
    #[must_use]
    pub const fn execute(address: u64) -> Self {
        Self {
            address,
            kind: HwBreakpointKind::Execute,
            length: 1,
        }
    }

    /// A watchpoint over `length` bytes at a virtual address. With the kind
    /// [`HwBreakpointKind::Execute`] the length is ignored, as in [`HwBreakpoint::execute`].
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

    /// The virtual address.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// What the breakpoint waits for.
    #[must_use]
    pub const fn kind(&self) -> HwBreakpointKind {
        self.kind
    }

    /// The number of bytes watched; 1 for an execute breakpoint.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Returns `true` if an access of `length` bytes at `address` touches a watched byte.
    #[must_use]
    pub const fn overlaps(&self, address: u64, length: u64) -> bool {
        address.wrapping_sub(self.address) < self.length
            || self.address.wrapping_sub(address) < length
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

/// An exception that is given back to the guest on the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inject {
    /// The debug exception; on x86 #DB. KVM queues it without a DR6 payload: set DR6 first.
    Debug,
    /// The breakpoint exception; on x86 #BP.
    Breakpoint,
}

/// Everything that is asked of one vCPU's debug state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugIntent<'a> {
    /// Trap after one instruction.
    pub single_step: bool,
    /// Withhold hardware interrupts.
    pub mask_hwintr: bool,
    /// A breakpoint instruction in guest memory leaves the guest.
    pub software_breakpoints: bool,
    /// The contents of the debug registers: the first breakpoint goes into the first register.
    pub hardware: &'a [HwBreakpoint],
    /// Give an exception back to the guest. One shot: not part of the lasting state.
    pub inject: Option<Inject>,
}

/// The debug state of a vCPU as one hypervisor and architecture has it.
///
/// [`GuestDebug`](crate::GuestDebug) is KVM's on x86. Another architecture or hypervisor
/// implements this trait and uses [`VcpuControl`](crate::VcpuControl) with it. The default value
/// is the state of a new vCPU: no debugging.
pub trait DebugState: Clone + fmt::Debug + Default + PartialEq {
    /// Turns what is asked for into the state. No other function does.
    fn compose(intent: &DebugIntent<'_>) -> Self;

    /// Checks that the debug registers can hold these breakpoints, all at once.
    ///
    /// # Errors
    /// If there are too few registers, or one cannot hold its breakpoint.
    fn check(hardware: &[HwBreakpoint]) -> Result<(), HwBreakpointError>;

    /// Returns what stays in force: the state without its one-shot part.
    #[must_use]
    fn lasting(&self) -> Self;

    /// Returns the exception that the state injects.
    fn injects(&self) -> Option<Inject>;
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn an_execute_breakpoint_needs_no_alignment_and_has_length_1() {
        let breakpoint = HwBreakpoint::watch(0x1003, 4, HwBreakpointKind::Execute);
        assert_eq!(breakpoint, HwBreakpoint::execute(0x1003));
    }

    #[test]
    fn breakpoints_print_what_they_wait_for() {
        assert_eq!(HwBreakpoint::execute(0xabc).to_string(), "execute at 0xabc");
        assert_eq!(
            HwBreakpoint::watch(0x1000, 4, HwBreakpointKind::ReadWrite).to_string(),
            "read/write at 0x1000 (4 bytes)"
        );
    }

    #[test]
    fn a_watchpoint_overlaps_exactly_the_accesses_that_touch_it() {
        let watched = HwBreakpoint::watch(0x1004, 4, HwBreakpointKind::Write);
        for (address, length, touches) in [
            (0x1000, 4, false),
            (0x1000, 5, true),
            (0x1004, 1, true),
            (0x1007, 1, true),
            (0x1008, 8, false),
        ] {
            assert_eq!(
                watched.overlaps(address, length),
                touches,
                "{length} bytes at {address:#x}"
            );
        }
    }
}

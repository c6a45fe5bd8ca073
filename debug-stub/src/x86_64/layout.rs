//! GDB's view of the registers, as one table: QEMU's registers, in QEMU's order, and more behind them.
//!
//! Scripts written for QEMU's stub name and number registers as it does, so the order is part of
//! the interface. Everything else follows from the table: the `g` and `p` packets, the checks of
//! `G` and `P`, and `target.xml`.
//!
//! # Linear addresses
//! RIP and RSP are linear addresses in every view: CS.base + RIP and SS.base + RSP outside 64-bit mode. GDB knows
//! no segments. It disassembles at `$pc`, compares it with its breakpoints, and reads the stack at `$sp`. (QEMU
//! shows the offsets.)
//!
//! # A view that is too narrow
//! A register of 32 bits that holds more is unavailable, and cannot be written. The program counter is shown
//! nevertheless, without its upper half: GDB cannot stop without it.

mod access;
mod checks;
mod table;
mod write;

use thiserror::Error;

use super::{Mode, RegisterFile, RegisterGroups, View};
use crate::GuestMemory;

pub(super) use table::{Feature, Kind};
use table::{Row, Rule};
pub use write::write_all;

/// A register as GDB numbers them in a view.
///
/// The numbers are QEMU's (and those of `target.xml`), not the architecture's: with 64-bit registers, rbx is 1 and
/// rcx is 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegisterId {
    view: View,
    number: u8,
}

impl View {
    /// Length of the longest `g` packet's data in bytes.
    pub const LONGEST: usize = table::wide_bytes();

    /// The number of its registers.
    #[must_use]
    pub fn count(self) -> usize {
        table::count(self)
    }

    /// Length of the `g` packet's data in bytes (before hexadecimal).
    #[must_use]
    pub fn total_bytes(self) -> usize {
        self.registers_in_g().map(RegisterId::size_bytes).sum()
    }

    /// The register with this number, if there is one.
    #[must_use]
    pub fn register(self, number: usize) -> Option<RegisterId> {
        let number = u8::try_from(number).ok()?;
        (usize::from(number) < self.count()).then_some(RegisterId { view: self, number })
    }

    /// The register that GDB shows under this name: `rax`, `st0`, `k_gs_base`.
    #[must_use]
    pub fn register_named(self, name: &str) -> Option<RegisterId> {
        self.registers().find(|id| id.name() == name)
    }

    /// All registers, by number.
    pub fn registers(self) -> impl DoubleEndedIterator<Item = RegisterId> + Clone {
        (0..self.count()).filter_map(move |number| self.register(number))
    }

    /// The registers of the `g` packet, in its order: QEMU's.
    pub fn registers_in_g(self) -> impl DoubleEndedIterator<Item = RegisterId> + Clone {
        (0..table::count_in_g(self)).filter_map(move |number| self.register(number))
    }

    /// The general-purpose registers, the program counter, the flags and CS: GDB asks for these at every stop.
    pub(super) fn expedited(self) -> impl Iterator<Item = RegisterId> {
        let mut done = false;
        self.registers().take_while(move |id| {
            let wanted = !done;
            done = matches!(id.row().rule, Rule::Selector(table::SegmentName::Code, _));
            wanted
        })
    }

    /// The program counter.
    pub(super) fn program_counter(self) -> Option<RegisterId> {
        self.registers()
            .find(|id| matches!(id.row().rule, Rule::ProgramCounter))
    }
}

impl RegisterId {
    /// Size of the longest register in bytes.
    pub const LONGEST: usize = 32;

    /// GDB's number.
    #[must_use]
    pub fn number(self) -> usize {
        usize::from(self.number)
    }

    /// GDB's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let row = self.row();
        if self.view.is_wide() {
            row.name
        } else {
            row.narrow.unwrap_or(row.name)
        }
    }

    /// Size in the packets, in bytes.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        self.row().kind.bytes(self.view)
    }

    /// What it holds, for GDB.
    pub(super) fn kind(self) -> Kind {
        self.row().kind
    }

    /// The feature of the description that it is in, or `None` if it is in the `g` packet.
    pub(super) fn feature(self) -> Option<Feature> {
        let behind_g = self.number().checked_sub(table::count_in_g(self.view))?;
        table::behind_g(self.view, behind_g).map(|(feature, _)| feature)
    }

    /// The groups that hold it: what must be filled before a read.
    #[must_use]
    pub fn groups(self) -> RegisterGroups {
        self.row().groups | self.mode_groups()
    }

    /// The groups that must be filled before a [`write`](Self::write): its own, and those that
    /// decide whether a value is legal.
    #[must_use]
    pub fn groups_for_write(self) -> RegisterGroups {
        self.row().groups | RegisterGroups::EXPEDITED
    }

    /// The groups that decide whether a narrow register holds all of the value.
    fn mode_groups(self) -> RegisterGroups {
        if self.view.is_wide() {
            RegisterGroups::empty()
        } else {
            RegisterGroups::EXPEDITED
        }
    }

    /// Puts the value, little-endian, into the first bytes of `value`. Returns their number, or `None` if the
    /// view has too few bits for the value, or the guest has not enabled its state component.
    pub fn read(self, registers: &RegisterFile, value: &mut [u8; Self::LONGEST]) -> Option<usize> {
        if let Rule::ZmmHigh(index) = self.row().rule {
            *value = *registers.fpu.avx512.as_ref()?.zmm_high.get(index)?;
        } else {
            *value = [0; Self::LONGEST];
            let shown = self.shown(registers)?.to_le_bytes();
            for (to, from) in value.iter_mut().zip(shown) {
                *to = from;
            }
        }
        Some(self.size_bytes())
    }

    /// Sets the register from `value`, little-endian and exactly [`size_bytes`](Self::size_bytes)
    /// long. All or nothing: after an error `registers` is as it was.
    ///
    /// A value that the architecture refuses is refused here, with the reason: the guest would fail
    /// at its next entry otherwise. Bits that the CPU ignores (CR0, EFLAGS) are ignored.
    ///
    /// A segment selector is loaded with its hidden part, as the CPU does it. In real and
    /// virtual-8086 mode, the base is selector * 16. Otherwise the descriptor is read from the
    /// guest's GDT or LDT in `memory`. Writing the value that a register has changes nothing.
    ///
    /// # Errors
    /// If the length or the value is wrong. Send the client an error.
    pub fn write(
        self,
        registers: &mut RegisterFile,
        memory: &impl GuestMemory,
        value: &[u8],
    ) -> Result<(), WriteError> {
        write::write_one(self, registers, memory, value)
    }

    /// Returns the value as GDB sees it, or `None` if it is unavailable. Of 128 bits at most: it is 0 for
    /// [`Rule::ZmmHigh`].
    fn shown(self, registers: &RegisterFile) -> Option<u128> {
        let shown = match self.row().rule {
            Rule::ProgramCounter => true,
            Rule::Component(component) => registers.fpu.components().contains(component),
            _ => self.is_whole(registers),
        };
        shown.then(|| self.value(registers))
    }

    /// Returns the value without bits beyond the register's size.
    fn value(self, registers: &RegisterFile) -> u128 {
        let row = self.row();
        (row.get)(registers) & self.mask()
    }

    /// The bits of the register.
    fn mask(self) -> u128 {
        u128::MAX >> 128usize.saturating_sub(8 * self.size_bytes())
    }

    /// Returns `true` if the view has enough bits for the value.
    fn is_whole(self, registers: &RegisterFile) -> bool {
        if self.view.is_wide() || (self.row().get)(registers) & !self.mask() == 0 {
            return true;
        }
        // Outside 64-bit mode the upper halves of these do not exist (SDM 1 3.4.1.1).
        let general = self.row().groups == RegisterGroups::CORE;
        general && !Mode::of(registers).is_64_bit()
    }

    fn row(self) -> &'static Row {
        // The number was checked when the id was made; the fallback is never taken.
        table::row(self.view, self.number()).unwrap_or(&table::RAX)
    }
}

/// The data of a `g` packet, in order, appended to `data`. A register that the view has too
/// few bits for is zeros here; the packet calls it unavailable.
pub fn read_all(view: View, registers: &RegisterFile, data: &mut Vec<u8>) {
    for id in view.registers_in_g() {
        let mut value = [0; RegisterId::LONGEST];
        let length = id.read(registers, &mut value).unwrap_or(id.size_bytes());
        data.extend(value.iter().take(length));
    }
}

/// Why a register was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// `P` with a value of another length.
    #[error("{register} has {expected} bytes, not {actual}")]
    Length {
        /// The register's name.
        register: &'static str,
        /// Its size.
        expected: usize,
        /// The size of the value.
        actual: usize,
    },
    /// `G` with data of another length.
    #[error("the registers have {expected} bytes in all, not {actual}")]
    TotalLength {
        /// [`View::total_bytes`].
        expected: usize,
        /// The size of the data.
        actual: usize,
    },
    /// Bits that do not exist.
    #[error("{register} has no bits {bits:#x}")]
    ReservedBits {
        /// The register's name.
        register: &'static str,
        /// The bits.
        bits: u64,
    },
    /// An address that the CPU refuses in this mode.
    #[error(
        "{register} cannot hold {value:#x}: not canonical, or beyond 4 GiB outside 64-bit mode"
    )]
    Address {
        /// The register's name.
        register: &'static str,
        /// The address.
        value: u64,
    },
    /// A register of 32 bits that holds more: the description is not that of the vCPU's mode.
    #[error(
        "{register} has 32 bits in this target description, and the vCPU uses 64: read another description (monitor mode)"
    )]
    TooNarrow {
        /// The register's name.
        register: &'static str,
    },
    /// A value that contradicts other registers.
    #[error("{register} cannot be {value:#x}: {reason}")]
    State {
        /// The register's name.
        register: &'static str,
        /// The value.
        value: u64,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A register of a state component that XCR0 does not enable.
    #[error("{register} cannot be written: the guest has not enabled {component}")]
    NotEnabled {
        /// The register's name.
        register: &'static str,
        /// The component.
        component: &'static str,
    },
    /// A selector whose descriptor cannot be loaded.
    #[error("{register} cannot be {selector:#x}: {reason}")]
    Selector {
        /// The register's name.
        register: &'static str,
        /// The selector.
        selector: u16,
        /// Why.
        reason: &'static str,
    },
}

#[cfg(test)]
mod tests;

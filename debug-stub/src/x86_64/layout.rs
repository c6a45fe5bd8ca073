//! GDB's view of the registers: QEMU's 66, in QEMU's order, as one table.
//!
//! Scripts written for QEMU's stub name and number registers as it does, so the order is part of
//! the interface. Everything else follows from the table: the `g` and `p` packets, the checks of
//! `G` and `P`, and `target.xml`.

mod access;
mod checks;
mod table;
mod write;

use thiserror::Error;

use super::{RegisterFile, RegisterGroups};
use crate::GuestMemory;

pub(super) use table::{Kind, TABLE};
pub use write::write_all;

/// A register as GDB numbers them: 0 to 65.
///
/// The numbers are QEMU's (and those of `target.xml`), not the architecture's: rbx is 1 and rcx
/// is 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegisterId(u8);

impl RegisterId {
    /// The number of registers.
    pub const COUNT: usize = TABLE.len();
    /// Length of the `g` packet's data in bytes (before hexadecimal).
    pub const TOTAL_BYTES: usize = table::total_bytes();
    /// RSP.
    pub const RSP: Self = Self(7);
    /// RIP.
    pub const RIP: Self = Self(16);
    /// EFLAGS.
    pub const EFLAGS: Self = Self(17);
    /// CS.
    pub const CS: Self = Self(18);

    /// The register with this number, if there is one.
    #[must_use]
    pub fn new(number: usize) -> Option<Self> {
        u8::try_from(number)
            .ok()
            .filter(|_| number < Self::COUNT)
            .map(Self)
    }

    /// The register that GDB shows under this name: `rax`, `st0`, `k_gs_base`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|id| id.name() == name)
    }

    /// All registers, in the order of the `g` packet.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + Clone {
        (0..Self::COUNT).filter_map(Self::new)
    }

    /// GDB's number.
    #[must_use]
    pub fn number(self) -> usize {
        usize::from(self.0)
    }

    /// GDB's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Size in the packets, in bytes.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        self.row().kind.bytes()
    }

    /// The group that holds it: what must be filled before a read, and is to be written back
    /// after a [`write`](Self::write).
    #[must_use]
    pub fn groups(self) -> RegisterGroups {
        self.row().groups
    }

    /// The groups that must be filled before a [`write`](Self::write): its own, and those that
    /// decide whether a value is legal.
    #[must_use]
    pub fn groups_for_write(self) -> RegisterGroups {
        self.row().groups | RegisterGroups::EXPEDITED
    }

    /// Puts the value, little-endian, into the first bytes of `value`. Returns their number.
    pub fn read(self, registers: &RegisterFile, value: &mut [u8; 16]) -> usize {
        *value = self.value(registers).to_le_bytes();
        self.size_bytes()
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

    /// Returns the value as GDB sees it: no bit beyond the register's size.
    fn value(self, registers: &RegisterFile) -> u128 {
        let row = self.row();
        let unused_bits = 128 - 8 * row.kind.bytes();
        (row.get)(registers) & (u128::MAX >> unused_bits)
    }

    fn row(self) -> &'static table::Row {
        // The index was checked when the id was made; the fallback is never taken.
        TABLE.get(self.number()).unwrap_or(&table::RAX)
    }
}

/// The data of a `g` packet: all registers, in order, appended to `data`.
pub fn read_all(registers: &RegisterFile, data: &mut Vec<u8>) {
    data.reserve(RegisterId::TOTAL_BYTES);
    let mut value = [0; 16];
    for id in RegisterId::all() {
        let length = id.read(registers, &mut value);
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
        /// [`RegisterId::TOTAL_BYTES`].
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

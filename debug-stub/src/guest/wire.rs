//! The architecture as gdbstub's types have it. They carry bytes and numbers between a packet and
//! [`Arch`](crate::Arch), so one set of them serves every architecture.

use std::num::NonZeroUsize;

use gdbstub::arch::{Arch, RegId, Registers};

/// Any architecture with addresses of up to 64 bits.
#[derive(Debug)]
pub(crate) enum AnyArch {}

impl Arch for AnyArch {
    type Usize = u64;
    type Registers = RegisterBytes;
    type BreakpointKind = usize;
    type RegId = RegisterNumber;
}

/// The data of a `g` or `G` packet. A byte that is `None` is of a register that is unavailable.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RegisterBytes(pub(crate) Vec<Option<u8>>);

impl Registers for RegisterBytes {
    type ProgramCounter = u64;

    /// gdbstub needs it for tracepoints, which are not supported.
    fn pc(&self) -> u64 {
        0
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        for &byte in &self.0 {
            write_byte(byte);
        }
    }

    /// Takes data of any length: [`Arch::write_all`](crate::Arch::write_all) checks it.
    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0.clear();
        self.0.extend(bytes.iter().copied().map(Some));
        Ok(())
    }
}

/// A register, by the client's number. The target checks it: gdbstub would answer that `p` is not
/// supported where only this register does not exist.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegisterNumber(pub(crate) usize);

impl RegId for RegisterNumber {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        Some((Self(id), None))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

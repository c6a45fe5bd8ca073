//! x86-64 as gdbstub wants to have it: our register file behind gdbstub's traits.

use std::num::NonZeroUsize;

use arrayvec::ArrayVec;
use gdbstub::arch::{Arch, RegId, Registers};

use crate::x86_64::{RegisterFile, RegisterId, read_all};

/// The architecture of every session. The mode of the CPU (16, 32 or 64 bits) does not change
/// the layout of the packets: one 64-bit register file, whatever runs.
#[derive(Debug)]
pub(crate) enum X86_64 {}

impl Arch for X86_64 {
    type Usize = u64;
    type Registers = GdbRegisters;
    type BreakpointKind = usize;
    type RegId = GdbRegister;
}

/// All registers, for a `g` packet. `G` does not pass through here: what it means depends on
/// what the registers were.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GdbRegisters(pub(crate) RegisterFile);

impl Registers for GdbRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.0.core.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        let mut data = Vec::with_capacity(RegisterId::TOTAL_BYTES);
        read_all(&self.0, &mut data);
        for byte in data {
            write_byte(Some(byte));
        }
    }

    fn gdb_deserialize(&mut self, _bytes: &[u8]) -> Result<(), ()> {
        Err(())
    }
}

/// One register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GdbRegister(pub(crate) RegisterId);

impl RegId for GdbRegister {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let id = RegisterId::new(id)?;
        Some((Self(id), NonZeroUsize::new(id.size_bytes())))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0.number())
    }
}

/// A register and its value, for a stop reply.
pub(crate) type Expedited = (GdbRegister, ArrayVec<u8, 16>);

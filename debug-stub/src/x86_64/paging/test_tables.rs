//! Page tables for unit tests.

use std::cell::Cell;

use crate::GuestPhysAddr;
use crate::host::GuestMemory;
use crate::x86_64::SpecialRegisters;
use crate::x86_64::bits::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, EFER_NXE};

/// 64 KiB.
pub(super) struct Tables {
    ram: Vec<u8>,
    /// Reads of it so far.
    pub(super) reads: Cell<u32>,
}

impl Tables {
    /// With these 8-byte entries.
    pub(super) fn new(entries: &[(usize, u64)]) -> Self {
        let mut ram = vec![0; 0x10000];
        for (at, entry) in entries {
            ram[*at..*at + 8].copy_from_slice(&entry.to_le_bytes());
        }
        Self {
            ram,
            reads: Cell::new(0),
        }
    }
}

impl GuestMemory for Tables {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        self.reads.set(self.reads.get() + 1);
        let at = usize::try_from(address.0).unwrap().min(self.ram.len());
        let length = data.len().min(self.ram.len() - at);
        data[..length].copy_from_slice(&self.ram[at..at + length]);
        length
    }

    fn write_memory(&self, _: GuestPhysAddr, _: &[u8]) -> usize {
        0
    }
}

/// 4-level paging from 0x1000.
pub(super) fn long() -> SpecialRegisters {
    SpecialRegisters {
        cr0: CR0_PE | CR0_PG,
        cr3: 0x1000,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA | EFER_NXE,
        ..SpecialRegisters::default()
    }
}

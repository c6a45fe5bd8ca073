//! The simulated guest's memory.

use std::cell::{Cell, RefCell};

use crate::address::GuestPhysAddr;
use crate::host::GuestMemory;

/// PRESENT, WRITE and USER of an entry of page tables (SDM 3A table 5-20).
const ENTRY: u64 = 7;
/// The entry of a page directory maps 2 MiB.
const LARGE: u64 = 0x80;
const PAGE: u64 = 0x1000;

/// RAM from guest-physical 0 on. It counts the calls of [`GuestMemory`].
#[derive(Clone, Debug)]
pub struct Ram {
    bytes: RefCell<Vec<u8>>,
    read_only: Vec<std::ops::Range<u64>>,
    reads: Cell<usize>,
    writes: Cell<usize>,
}

impl Ram {
    /// `size` bytes of zeros.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self {
            bytes: RefCell::new(vec![0; size]),
            read_only: Vec::new(),
            reads: Cell::new(0),
            writes: Cell::new(0),
        }
    }

    /// Writes page tables of four levels, which map the first 2 MiB one to one for every privilege
    /// level: one page each for PML4, PDPT and page directory, from `tables` on. Returns CR3.
    pub fn map_one_to_one(&self, tables: u64) -> u64 {
        self.put_u64(tables, (tables + PAGE) | ENTRY);
        self.put_u64(tables + PAGE, (tables + 2 * PAGE) | ENTRY);
        self.put_u64(tables + 2 * PAGE, LARGE | ENTRY);
        tables
    }

    /// Maps the 4 KiB at linear 2 MiB to `page`, in the tables of
    /// [`map_one_to_one`](Self::map_one_to_one) and one page more behind them.
    pub fn map_alias(&self, tables: u64, page: u64) {
        self.put_u64(tables + 2 * PAGE + 8, (tables + 3 * PAGE) | ENTRY);
        self.put_u64(tables + 3 * PAGE, page | ENTRY);
    }

    /// Refuses writes of the guest and the debugger to this range.
    pub fn protect(&mut self, range: std::ops::Range<u64>) {
        self.read_only.push(range);
    }

    /// Writes bytes, also where the range is protected. What lies outside is left out.
    pub fn put(&self, address: u64, data: &[u8]) {
        let mut bytes = self.bytes.borrow_mut();
        let to = place(&bytes, address, data.len());
        if let Some(to) = bytes.get_mut(to) {
            to.copy_from_slice(data.get(..to.len()).unwrap_or_default());
        }
    }

    /// Writes eight bytes, little-endian.
    pub fn put_u64(&self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    /// Reads `length` bytes; what lies outside is left out.
    #[must_use]
    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let bytes = self.bytes.borrow();
        let from = place(&bytes, address, length);
        bytes.get(from).unwrap_or_default().to_vec()
    }

    /// All of it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }

    /// Returns the number of reads through [`GuestMemory`] since the last
    /// [`reset_counts`](Self::reset_counts).
    #[must_use]
    pub fn reads(&self) -> usize {
        self.reads.get()
    }

    /// As [`reads`](Self::reads), of writes.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.writes.get()
    }

    /// Counts from 0 again.
    pub fn reset_counts(&self) {
        self.reads.set(0);
        self.writes.set(0);
    }
}

#[cfg(test)]
impl Ram {
    pub(crate) fn put_u16(&self, at: u64, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn put_u32(&self, at: u64, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn get_u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at, 2).try_into().unwrap())
    }

    pub(crate) fn get_u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(at, 4).try_into().unwrap())
    }

    pub(crate) fn get_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.get(at, 8).try_into().unwrap())
    }
}

fn place(bytes: &[u8], address: u64, length: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(address).map_or(bytes.len(), |at| at.min(bytes.len()));
    start..start.saturating_add(length).min(bytes.len())
}

impl GuestMemory for Ram {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        self.reads.set(self.reads.get() + 1);
        let bytes = self.bytes.borrow();
        let from = place(&bytes, address.0, data.len());
        let from = bytes.get(from).unwrap_or_default();
        if let Some(data) = data.get_mut(..from.len()) {
            data.copy_from_slice(from);
        }
        from.len()
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        self.writes.set(self.writes.get() + 1);
        if self
            .read_only
            .iter()
            .any(|range| range.contains(&address.0))
        {
            return 0;
        }
        let mut bytes = self.bytes.borrow_mut();
        let to = place(&bytes, address.0, data.len());
        let to = bytes.get_mut(to).unwrap_or_default();
        if let Some(data) = data.get(..to.len()) {
            to.copy_from_slice(data);
        }
        to.len()
    }
}

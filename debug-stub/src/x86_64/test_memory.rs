//! Guest RAM for tests.

use std::cell::{Cell, RefCell};

use crate::{GuestMemory, GuestPhysAddr};

/// RAM from address 0, and counters.
#[derive(Debug)]
pub(crate) struct Ram {
    bytes: RefCell<Vec<u8>>,
    pub(crate) reads: Cell<usize>,
    pub(crate) writes: Cell<usize>,
}

impl Ram {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            bytes: RefCell::new(vec![0; size]),
            reads: Cell::new(0),
            writes: Cell::new(0),
        }
    }

    pub(crate) fn put(&self, at: u64, data: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.bytes.borrow_mut()[at..at + data.len()].copy_from_slice(data);
    }

    pub(crate) fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let at = usize::try_from(at).unwrap();
        self.bytes.borrow()[at..at + N].try_into().unwrap()
    }

    pub(crate) fn put_u16(&self, at: u64, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn put_u32(&self, at: u64, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn put_u64(&self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn get_u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    pub(crate) fn get_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.get(at))
    }

    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }
}

impl GuestMemory for Ram {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        self.reads.set(self.reads.get() + 1);
        let bytes = self.bytes.borrow();
        let Ok(start) = usize::try_from(address.0) else {
            return 0;
        };
        let from = bytes.get(start..).unwrap_or_default();
        let length = from.len().min(data.len());
        data[..length].copy_from_slice(&from[..length]);
        length
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        self.writes.set(self.writes.get() + 1);
        let mut bytes = self.bytes.borrow_mut();
        let Ok(start) = usize::try_from(address.0) else {
            return 0;
        };
        let Some(to) = bytes.get_mut(start..) else {
            return 0;
        };
        let length = to.len().min(data.len());
        to[..length].copy_from_slice(&data[..length]);
        length
    }
}

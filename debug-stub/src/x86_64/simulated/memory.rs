//! The simulated guest's memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::address::GuestPhysAddr;
use crate::host::GuestMemory;

/// RAM from guest-physical 0 on.
#[derive(Debug)]
pub struct Ram {
    bytes: Mutex<Vec<u8>>,
    read_only: Vec<std::ops::Range<u64>>,
}

impl Ram {
    /// `size` bytes of zeros.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self {
            bytes: Mutex::new(vec![0; size]),
            read_only: Vec::new(),
        }
    }

    /// Refuses writes of the guest and the debugger to this range.
    pub fn protect(&mut self, range: std::ops::Range<u64>) {
        self.read_only.push(range);
    }

    /// Writes bytes, also where the range is protected. What lies outside is left out.
    pub fn put(&self, address: u64, data: &[u8]) {
        let mut bytes = self.lock();
        let to = place(&bytes, address, data.len());
        if let Some(to) = bytes.get_mut(to) {
            to.copy_from_slice(data.get(..to.len()).unwrap_or_default());
        }
    }

    /// Reads `length` bytes; what lies outside is left out.
    #[must_use]
    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let bytes = self.lock();
        let from = place(&bytes, address, length);
        bytes.get(from).unwrap_or_default().to_vec()
    }

    /// All of it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(bytes: &[u8], address: u64, length: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(address).map_or(bytes.len(), |at| at.min(bytes.len()));
    start..start.saturating_add(length).min(bytes.len())
}

impl GuestMemory for Ram {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        let bytes = self.lock();
        let from = place(&bytes, address.0, data.len());
        let from = bytes.get(from).unwrap_or_default();
        for (to, byte) in data.iter_mut().zip(from) {
            *to = *byte;
        }
        from.len()
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        if self
            .read_only
            .iter()
            .any(|range| range.contains(&address.0))
        {
            return 0;
        }
        let mut bytes = self.lock();
        let to = place(&bytes, address.0, data.len());
        let to = bytes.get_mut(to).unwrap_or_default();
        for (to, byte) in to.iter_mut().zip(data) {
            *to = *byte;
        }
        to.len()
    }
}

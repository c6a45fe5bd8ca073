//! pc-testdev's memory: 64 KiB of I/O memory, and the port that flushes a page of RAM.

use std::io;
use std::sync::{Mutex, PoisonError};

use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::{GuestRam, PAGE};

/// Bytes of I/O memory.
pub(super) const IO_MEMORY_LENGTH: MmioAddressOffset = 64 << 10;

/// Memory that keeps what is written, with an exit for each access.
pub(super) struct IoMemory(Mutex<Vec<u8>>);

impl Default for IoMemory {
    fn default() -> Self {
        Self(Mutex::new(vec![0; 64 << 10]))
    }
}

impl DeviceMmio for IoMemory {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in bytes.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
    }
}

/// The page of a physical address that is written here is removed from KVM's page tables and keeps its
/// contents. The guest's next access to it is a page fault or EPT violation in the host, also if the
/// processor makes it while it delivers an exception.
pub(super) struct FlushPage(GuestRam);

impl FlushPage {
    pub(super) fn new(memory: GuestRam) -> Self {
        Self(memory)
    }

    fn flush(&self, address: u32) {
        let page = GuestAddress(u64::from(address) & !(PAGE - 1));
        let Ok(host) = self.0.get_host_address(page) else {
            tracing::debug!(address, "there is no memory to flush");
            return;
        };
        // Any change of protection makes Linux notify KVM (mmu_notifier_invalidate_range_start in
        // mm/mprotect.c), and KVM then drops the page. QEMU removes all access for a short time, and
        // another vCPU that needs the page during that time fails. This adds a permission instead,
        // which disturbs no vCPU.
        let flushed = protect(host, ACCESS | libc::PROT_EXEC).and_then(|()| protect(host, ACCESS));
        if let Err(error) = flushed {
            tracing::warn!(address, %error, "the page is not flushed");
        }
    }
}

/// How guest memory is mapped.
const ACCESS: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

fn protect(page: *mut u8, access: libc::c_int) -> io::Result<()> {
    const LENGTH: usize = 4096;
    // SAFETY:
    // - `page` is the host's address of a page of guest memory, which is mapped as long as the
    //   `GuestRam` that it comes from, of which the caller holds a clone;
    // - it is page-aligned: so are the regions' beginnings (MemoryLayout), in guest and host;
    // - every access that was allowed stays allowed, so no other user of the memory is affected.
    let result = unsafe { libc::mprotect(page.cast(), LENGTH, access) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl DevicePio for FlushPage {
    /// The port is write-only: it reads as a port without a device.
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (0, &[a, b, c, d]) = (offset, data) {
            self.flush(u32::from_le_bytes([a, b, c, d]));
        }
    }
}

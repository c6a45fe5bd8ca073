//! QEMU's firmware configuration, as far as test images read it (QEMU's docs/specs/fw_cfg.rst).
//!
//! A word written to the first port selects an item, and each read of the second port returns its
//! next byte. Bytes beyond an item's end, and of an item that does not exist, are zero. There is no DMA
//! interface, the directory of files is empty, and no item can be written.

use std::sync::{Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;
use crate::memory::GuestRam;

/// The items' selectors, by the names that QEMU gives them.
const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const RAM_SIZE: u16 = 0x03;
const NB_CPUS: u16 = 0x05;
const MAX_CPUS: u16 = 0x0f;

/// The bits of ID: bit 0, the two ports; bit 1, the DMA interface, is clear.
const TRADITIONAL_INTERFACE: u32 = 1 << 0;

/// The device.
pub(super) struct FwCfg {
    items: Vec<(u16, Vec<u8>)>,
    selected: Mutex<Selected>,
}

/// The selected item and its next byte.
#[derive(Default)]
struct Selected {
    item: u16,
    offset: usize,
}

impl FwCfg {
    pub(super) fn new(cpus: u16, memory: &GuestRam) -> Self {
        let ram_size: u64 = memory
            .iter()
            .filter(|region| region.start_addr() != layout::FIRMWARE_PAGE)
            .map(GuestMemoryRegion::len)
            .sum();
        let items = vec![
            (SIGNATURE, b"QEMU".to_vec()),
            (ID, TRADITIONAL_INTERFACE.to_le_bytes().to_vec()),
            (RAM_SIZE, ram_size.to_le_bytes().to_vec()),
            (NB_CPUS, cpus.to_le_bytes().to_vec()),
            (MAX_CPUS, cpus.to_le_bytes().to_vec()),
        ];
        Self {
            items,
            selected: Mutex::default(),
        }
    }

    fn next_byte(&self) -> u8 {
        let mut selected = self.selected.lock().unwrap_or_else(PoisonError::into_inner);
        let item = self.items.iter().find(|(key, _)| *key == selected.item);
        let byte = item.and_then(|(_, bytes)| bytes.get(selected.offset));
        // No item is that long. A guest that keeps reading must not come back to its start.
        selected.offset = selected.offset.saturating_add(1);
        byte.copied().unwrap_or(0)
    }
}

impl DevicePio for FwCfg {
    /// One byte at a time. As in QEMU either port returns it.
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.next_byte();
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (0, &[low, high]) = (offset, data) {
            *self.selected.lock().unwrap_or_else(PoisonError::into_inner) = Selected {
                item: u16::from_le_bytes([low, high]),
                offset: 0,
            };
        }
    }
}

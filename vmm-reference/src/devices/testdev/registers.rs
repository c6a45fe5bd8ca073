//! pc-testdev's four bytes. Images test the widths of port accesses with them.

use std::sync::{Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// Bytes that keep what is written.
#[derive(Default)]
pub(super) struct Registers(Mutex<[u8; 4]>);

impl DevicePio for Registers {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (to, from) in data.iter_mut().zip(bytes.iter().skip(offset.into())) {
            *to = *from;
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (to, from) in bytes.iter_mut().skip(offset.into()).zip(data) {
            *to = *from;
        }
    }
}

//! An empty PCI bus: a host bridge with nothing behind it, by configuration mechanism 1 (PCI Local Bus
//! Specification 3.0, 3.2.2.3.2).
//!
//! Kernels look for the mechanism at ports 0xcf8 and 0xcfc, and for a host bridge on bus 0 that proves it. The
//! bridge is 00:00.0. All other functions read as all-ones: there is no device. As in PC chipsets, a byte at
//! 0xcf9 is the reset control register, and not a part of the address.

use std::sync::{Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::control::ResetControl;

/// The address and the data port, four bytes each.
pub(super) const PORTS: u16 = 0xcf8;
pub(super) const PORT_COUNT: PioAddressOffset = 8;
const DATA: PioAddressOffset = 4;
/// The reset control register, among the address's bytes.
const RESET: PioAddressOffset = 1;

/// The address: bit 31 enables, bits 23 to 2 are bus, device, function and register. The others read as zero.
const ENABLE: u32 = 1 << 31;
const FUNCTION: u32 = 0x00ff_ff00;
const REGISTER: u32 = 0xfc;
const WRITABLE: u32 = ENABLE | FUNCTION | REGISTER;

/// The host bridge's first 16 bytes (6.1): "generic PCI host bridge" of Red Hat, which no kernel has quirks for;
/// no commands, no status; class 06 00 00, a host bridge; a plain header. The rest is zero.
const BRIDGE: [u8; 16] = [
    0x36, 0x1b, 0x08, 0x00, // vendor 1b36, device 0008
    0x00, 0x00, 0x00, 0x00, // command, status
    0x00, 0x00, 0x00, 0x06, // revision, class
    0x00, 0x00, 0x00, 0x00, // cache line, latency, header type, self-test
];

/// The bridge, with the reset control register of its chipset.
pub(super) struct PciHost {
    address: Mutex<u32>,
    reset: ResetControl,
}

impl PciHost {
    pub(super) fn new(reset: ResetControl) -> Self {
        Self {
            address: Mutex::new(0),
            reset,
        }
    }
}

impl DevicePio for PciHost {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, data) {
            (0, data) if data.len() == 4 => data.copy_from_slice(&address.to_le_bytes()),
            (RESET, data) if data.len() == 1 => self.reset.pio_read(base, 0, data),
            (DATA.., data) if address & ENABLE != 0 && address & FUNCTION == 0 => {
                let [register, ..] = (address & REGISTER).to_le_bytes();
                let first = usize::from(register) + usize::from(offset - DATA);
                for (at, byte) in (first..).zip(data) {
                    *byte = BRIDGE.get(at).copied().unwrap_or(0);
                }
            }
            // There is no such function, or no such register: all-ones.
            _ => {}
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => {
                let address = u32::from_le_bytes([a, b, c, d]) & WRITABLE;
                *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
            }
            (RESET, data) if data.len() == 1 => self.reset.pio_write(base, 0, data),
            // Nothing of the bridge can be written.
            _ => {}
        }
    }
}

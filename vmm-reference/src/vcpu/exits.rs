//! The guest's way from a vCPU's exits to the devices.

use std::sync::Arc;

use debug_stub::kvm::ExitHandler;

use crate::devices::{AccessSize, Devices};
use crate::exit::ExitEvent;

/// The devices, and the machine's end, as a vCPU thread needs them.
#[derive(Clone, Debug)]
pub struct MachineExits {
    /// The devices.
    pub devices: Arc<Devices>,
    /// The machine's end.
    pub exit: ExitEvent,
}

impl ExitHandler for MachineExits {
    fn io_in(&self, port: u16, data: &mut [u8]) {
        match AccessSize::from_bytes(data.len()) {
            Some(size) => self.devices.io_in(port, size, data),
            // x86 has no other, so no device has either.
            None => data.fill(0xff),
        }
    }

    fn io_out(&self, port: u16, data: &[u8]) {
        if let Some(size) = AccessSize::from_bytes(data.len()) {
            self.devices.io_out(port, size, data);
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.devices.mmio_read(address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.devices.mmio_write(address, data);
    }

    fn exited(&self) -> Option<u8> {
        self.exit.reason().map(|reason| reason.status().code())
    }
}

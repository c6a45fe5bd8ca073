//! QEMU's `isa-debug-exit`: a test image writes its result, and the VMM ends with it.

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::exit::{ExitEvent, ExitReason};

/// The port: `outb` and `outl` both count, and the low byte is the value.
pub(super) struct DebugExit(ExitEvent);

impl DebugExit {
    pub(super) fn new(exit: ExitEvent) -> Self {
        Self(exit)
    }
}

impl DevicePio for DebugExit {
    /// QEMU's device reads as zero; test images detect it by that.
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (0, Some(&value)) = (offset, data.first()) {
            self.0.request(ExitReason::DebugExit(value));
        }
    }
}

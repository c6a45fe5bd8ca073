//! pc-testdev's interrupt lines: a byte written to port n sets line n.

use std::sync::Arc;

use intr_controller::Gsi;
use intr_controller::routing::SourceId;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::devices::lines::{self, InterruptLines};

/// The number of lines: that of an IOAPIC's pins.
pub(super) const COUNT: PioAddressOffset = 24;

/// The ports.
pub(super) struct IrqLines {
    lines: Arc<dyn InterruptLines>,
}

impl IrqLines {
    pub(super) fn new(lines: Arc<dyn InterruptLines>) -> Self {
        Self { lines }
    }
}

/// This device, as a source of the shared lines.
const SOURCE: SourceId = lines::TESTDEV_SOURCE;

impl DevicePio for IrqLines {
    /// The ports are write-only: they read as ports without a device.
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        // Other widths do nothing in QEMU either.
        if let (&[level], true) = (data, offset < COUNT) {
            self.lines.set_line(Gsi(offset.into()), SOURCE, level != 0);
        }
    }
}

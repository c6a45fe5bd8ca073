//! The devices of the machine, and their bus.
//!
//! | ports | device |
//! |---|---|
//! | 0x3f8–0x3ff | 16550A serial port, interrupt 4 |
//! | 0x60, 0x64 | i8042; only resets are emulated: command 0xfe, and the output port |
//! | 0x70–0x71 | MC146818 clock that cannot be set, and the CMOS |
//! | 0x92 | system control A; only the reset is emulated |
//! | 0xe9 | Bochs's debug console, with `--debugcon` |
//! | 0xcf8, 0xcfc–0xcff | PCI configuration: a host bridge, and nothing behind it |
//! | 0xcf9 | reset control |
//! | 0x600–0x603 | ACPI PM1a event, without events |
//! | 0x604–0x605 | ACPI PM1a control, for powering off |
//!
//! With `--testdev` also those of test images:
//!
//! | where | device |
//! |---|---|
//! | ports 0xf4–0xf7 | debug exit |
//! | ports 0xe0–0xe3, 0xe8–0xeb | pc-testdev: four bytes that keep what is written |
//! | port 0xe4 | pc-testdev: flushes a page from KVM's page tables |
//! | ports 0x2000–0x2017 | pc-testdev: interrupt lines 0 to 23 |
//! | memory 0xff00_0000–0xff00_ffff | pc-testdev: memory that takes an exit for each access |
//! | port 0xf00 | the firmware's: loads the kernel again |
//! | ports 0x510–0x511 | firmware configuration: signature, id, memory size, number of vCPUs |
//!
//! Emulated interrupt chips are on the bus too ([`crate::irqchip`]). A port or address without a device
//! reads as all-ones and ignores writes, as on a real bus. So does an access that reaches beyond the
//! device's last port.

mod acpi;
mod control;
mod debugcon;
pub mod lines;
mod output;
mod pci;
mod rtc;
mod serial;
mod testdev;

use std::fmt;
use std::sync::Arc;

use intr_controller::Gsi;
use thiserror::Error;
use vm_device::bus::{
    self, MmioAddress, MmioAddressOffset, MmioRange, PioAddress, PioAddressOffset, PioRange,
};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};

use control::Resets;
pub use debugcon::{DebugConsole, DebugConsoleError};
pub use lines::{EdgeLine, InterruptLines, KernelLines};
pub use output::{OutputError, SerialOutput};
pub(crate) use rtc::CENTURY as RTC_CENTURY;
pub use rtc::{Rtc, WallClock};
pub use serial::{SerialDevice, SerialError};
pub use testdev::{DEBUG_EXIT_PORT, Firmware, TestMachine};

use crate::exit::{ExitEvent, OnReset};

/// COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub const SERIAL_IRQ: Gsi = Gsi(4);
/// The keyboard controller's data port; its command port is four above.
pub const I8042_PORT: u16 = 0x60;
/// The clock chip: the index of a byte; the byte is one above.
pub const RTC_PORT: u16 = rtc::PORTS;
/// System control port A.
pub const SYSTEM_CONTROL_PORT: u16 = 0x92;
/// The debug console.
pub const DEBUG_CONSOLE_PORT: u16 = 0xe9;
/// The PCI host bridge's reset control register.
pub const RESET_PORT: u16 = 0xcf9;
/// The value that resets the machine when it is written there.
pub const RESET_VALUE: u8 = control::RESET_HARD;
/// ACPI PM1a event, where QEMU has it: status and, two ports above, enable.
pub const PM1_EVENT_PORT: u16 = 0x600;
/// ACPI PM1a control, where QEMU has it.
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// The interrupt of ACPI events, which never comes: there are none.
pub const SCI_IRQ: u8 = 9;

/// The width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessSize {
    /// `INB`, `OUTB`.
    Byte,
    /// `INW`, `OUTW`.
    Word,
    /// `INL`, `OUTL`.
    Dword,
}

impl AccessSize {
    /// The width in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }

    /// From a number of bytes, such as `kvm_run.io.size`.
    #[must_use]
    pub fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            _ => None,
        }
    }
}

/// The devices could not be created.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The serial port.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// The debug console.
    #[error(transparent)]
    DebugConsole(#[from] DebugConsoleError),
    /// Two devices claim one port.
    #[error("two devices claim port {port:#x}")]
    Bus {
        /// The second one's first port.
        port: u16,
        /// The bus's error.
        #[source]
        source: bus::Error,
    },
    /// Two devices claim one address.
    #[error("two devices claim address {address:#x}")]
    MmioBus {
        /// The second one's first address.
        address: u64,
        /// The bus's error.
        #[source]
        source: bus::Error,
    },
}

/// All devices. Any number of vCPU threads may call at once: each device has its own lock.
pub struct Devices {
    bus: IoManager,
    serial: Arc<SerialDevice>,
    debug_console: Option<Arc<DebugConsole>>,
    resets: Resets,
}

impl Devices {
    /// Creates the devices. The serial port outlives a reset of the machine, with its output.
    ///
    /// # Errors
    /// If two claim one port.
    pub fn new(
        serial: Arc<SerialDevice>,
        exit: &ExitEvent,
        on_reset: OnReset,
    ) -> Result<Self, DeviceError> {
        let resets = Resets::new(exit.clone(), on_reset);
        let mut devices = Self {
            bus: IoManager::new(),
            serial: Arc::clone(&serial),
            debug_console: None,
            resets: resets.clone(),
        };
        devices.add(SERIAL_PORT, 8, serial)?;
        // Between the two is the 8254's port 0x61.
        let i8042 = Arc::new(control::I8042::new(resets.clone()));
        devices.add(I8042_PORT, 1, Arc::clone(&i8042) as _)?;
        devices.add(I8042_PORT + 4, 1, i8042)?;
        let system_control = control::SystemControlA::new(resets.clone());
        devices.add(SYSTEM_CONTROL_PORT, 1, Arc::new(system_control))?;
        let pci = pci::PciHost::new(control::ResetControl::new(resets));
        devices.add(pci::PORTS, pci::PORT_COUNT, Arc::new(pci))?;
        devices.add(PM1_EVENT_PORT, 6, Arc::new(acpi::Pm1::new(exit.clone())))?;
        Ok(devices)
    }

    /// Adds the debug console, which outlives a reset of the machine, too.
    ///
    /// # Errors
    /// If another device has its place.
    pub fn add_debug_console(&mut self, console: Arc<DebugConsole>) -> Result<(), DeviceError> {
        self.debug_console = Some(Arc::clone(&console));
        self.add(DEBUG_CONSOLE_PORT, 1, console)
    }

    /// Adds the clock chip, which reads the time of the guest.
    ///
    /// # Errors
    /// If another device has its place.
    pub fn add_rtc(&mut self, rtc: Rtc) -> Result<(), DeviceError> {
        self.add(RTC_PORT, rtc::PORT_COUNT, Arc::new(rtc))
    }

    pub(crate) fn add(
        &mut self,
        port: u16,
        count: PioAddressOffset,
        device: Arc<dyn DevicePio + Send + Sync>,
    ) -> Result<(), DeviceError> {
        PioRange::new(PioAddress(port), count)
            .and_then(|range| self.bus.register_pio(range, device))
            .map_err(|source| DeviceError::Bus { port, source })
    }

    pub(crate) fn add_mmio(
        &mut self,
        address: u64,
        length: MmioAddressOffset,
        device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<(), DeviceError> {
        MmioRange::new(MmioAddress(address), length)
            .and_then(|range| self.bus.register_mmio(range, device))
            .map_err(|source| DeviceError::MmioBus { address, source })
    }

    /// Whether the guest has asked for a reset that the machine survives.
    #[must_use]
    pub fn reset_requested(&self) -> bool {
        self.resets.is_requested()
    }

    /// COM1, for the console to feed.
    #[must_use]
    pub fn serial(&self) -> &Arc<SerialDevice> {
        &self.serial
    }

    /// The debug console, if there is one.
    #[must_use]
    pub fn debug_console(&self) -> Option<&Arc<DebugConsole>> {
        self.debug_console.as_ref()
    }

    /// Reads a port. `data` holds one access of `size` for `IN`, several for `REP INS`.
    pub fn io_in(&self, port: u16, size: AccessSize, data: &mut [u8]) {
        for access in data.chunks_mut(size.bytes()) {
            access.fill(0xff);
            if self.bus.pio_read(PioAddress(port), access).is_err() {
                tracing::trace!(port, ?size, "read of a port without a device");
            }
        }
    }

    /// Writes a port. `data` holds one access of `size` for `OUT`, several for `REP OUTS`.
    pub fn io_out(&self, port: u16, size: AccessSize, data: &[u8]) {
        for access in data.chunks(size.bytes()) {
            if self.bus.pio_write(PioAddress(port), access).is_err() {
                tracing::trace!(port, ?size, "write to a port without a device");
            }
        }
    }

    /// Reads memory that is not RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if !self.read_device(address, data) {
            tracing::trace!(address, "read of an address without a device");
        }
    }

    /// The same. Returns `false` if there is no device at the address; then it reads all ones.
    pub(crate) fn read_device(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        self.bus.mmio_read(MmioAddress(address), data).is_ok()
    }

    /// Writes memory that is not RAM.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if self.bus.mmio_write(MmioAddress(address), data).is_err() {
            tracing::trace!(address, "write to an address without a device");
        }
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices")
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

//! The registers by which a guest resets itself: i8042, port 0x92 and port 0xcf9.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::{I8042Device, Trigger};

use super::I8042_PORT;
use crate::exit::{ExitEvent, ExitReason};

/// Asks for a reset when vm-superio's keyboard controller sees the reset command.
struct ResetRequest(ExitEvent);

impl Trigger for ResetRequest {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.request(ExitReason::Reset);
        Ok(())
    }
}

/// The keyboard controller: command 0xfe pulses the reset line (IBM PC/AT, 8042 commands).
pub(super) struct I8042(Mutex<I8042Device<ResetRequest>>);

impl I8042 {
    pub(super) fn new(exit: ExitEvent) -> Self {
        Self(Mutex::new(I8042Device::new(ResetRequest(exit))))
    }
}

/// The register at a port: the controller's two are not neighbours.
fn register(base: PioAddress, offset: PioAddressOffset) -> Option<u8> {
    let port = base.0.checked_add(offset)?;
    u8::try_from(port.checked_sub(I8042_PORT)?).ok()
}

impl DevicePio for I8042 {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if let ([byte], Some(offset)) = (data, register(base, offset)) {
            *byte = self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read(offset);
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (&[byte], Some(offset)) = (data, register(base, offset)) {
            let mut chip = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(()) = chip.write(offset, byte);
        }
    }
}

/// System control port A (Intel ICH9 datasheet, 13.7.3 PORT92: fast A20 and init).
pub(super) struct SystemControlA {
    value: Mutex<u8>,
    exit: ExitEvent,
}

/// Bit 0: the processor is reset when it goes from 0 to 1.
const FAST_INIT: u8 = 0b01;
/// Bit 1: address line 20 is not masked. It never is, so the bit does nothing but stay.
const A20: u8 = 0b10;

impl SystemControlA {
    pub(super) fn new(exit: ExitEvent) -> Self {
        Self {
            value: Mutex::new(A20),
            exit,
        }
    }
}

impl DevicePio for SystemControlA {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        if let [byte] = data {
            *byte = *self.value.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
        let &[byte] = data else { return };
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if *value & FAST_INIT == 0 && byte & FAST_INIT != 0 {
            self.exit.request(ExitReason::Reset);
        }
        *value = byte & (FAST_INIT | A20);
    }
}

/// The reset control register (Intel ICH9 datasheet, 13.7.5 RST_CNT): a reset happens when bit 2
/// goes from 0 to 1.
pub(super) struct ResetControl {
    value: Mutex<u8>,
    exit: ExitEvent,
}

/// Bit 1, system reset (hard rather than soft); bit 2, reset the processor; bit 3, full reset.
const RESET_BITS: u8 = 0b1110;
const RESET_SYSTEM: u8 = 0b0010;
const RESET_CPU: u8 = 0b0100;
/// A hard reset, whatever was in the register before.
pub(super) const RESET_HARD: u8 = RESET_SYSTEM | RESET_CPU;

impl ResetControl {
    pub(super) fn new(exit: ExitEvent) -> Self {
        Self {
            value: Mutex::new(0),
            exit,
        }
    }
}

impl DevicePio for ResetControl {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        if let [byte] = data {
            *byte = *self.value.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
        let &[byte] = data else { return };
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if *value & RESET_CPU == 0 && byte & RESET_CPU != 0 {
            self.exit.request(ExitReason::Reset);
        }
        *value = byte & RESET_BITS;
    }
}

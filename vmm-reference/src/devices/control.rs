//! The registers by which a guest ends itself: i8042, port 0xcf9 and ACPI PM1a.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::{I8042Device, Trigger};

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

impl DevicePio for I8042 {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read(offset);
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            let mut chip = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(()) = chip.write(offset, byte);
        }
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
const RESET_CPU: u8 = 0b0100;

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

/// The ACPI PM1a control register (ACPI 6.5, 4.8.3.2.1), 16 bits.
pub(super) struct Pm1a {
    value: Mutex<[u8; 2]>,
    exit: ExitEvent,
}

/// SCI_EN, bit 0: this machine is always in ACPI mode.
const SCI_ENABLED: [u8; 2] = [1, 0];
/// SLP_EN, bit 13, is bit 5 of the high byte. It is write-only.
const SLEEP_ENABLE: u8 = 1 << 5;

impl Pm1a {
    pub(super) fn new(exit: ExitEvent) -> Self {
        Self {
            value: Mutex::new(SCI_ENABLED),
            exit,
        }
    }
}

impl DevicePio for Pm1a {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, register) in data.iter_mut().zip(value.iter().skip(usize::from(offset))) {
            *byte = *register;
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, register) in data.iter().zip(value.iter_mut().skip(usize::from(offset))) {
            *register = *byte;
        }
        let [low, high] = *value;
        *value = [low | SCI_ENABLED[0], high & !SLEEP_ENABLE];
        // S5 is the only sleep that there is, so SLP_TYP (bits 10 to 12) is not looked at.
        if high & SLEEP_ENABLE != 0 {
            self.exit.request(ExitReason::PowerOff);
        }
    }
}

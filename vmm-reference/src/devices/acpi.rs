//! The fixed registers of ACPI (ACPI 6.5, 4.8.3): PM1a event and PM1a control, side by side.

use std::sync::{Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::exit::{ExitEvent, ExitReason};

/// The registers in the order of their ports: status, enable, control; 16 bits each.
pub(super) struct Pm1 {
    registers: Mutex<[u8; LENGTH]>,
    exit: ExitEvent,
}

/// Bytes of all registers.
const LENGTH: usize = 6;
/// The bits of each byte that a write changes. No event happens that the status could show, and
/// writing ones clears it (4.8.3.1.1). Enable (4.8.3.1.2) has GBL_EN (5), and PWRBTN_EN (8),
/// SLPBTN_EN (9) and RTC_EN (10) for buttons and a clock that do not exist. Control (4.8.3.2.1) has
/// BM_RLD (1) and SLP_TYP (10 to 12); GBL_RLS (2) and SLP_EN (13) are write-only.
const WRITABLE: [u8; LENGTH] = [0, 0, 1 << 5, 0b111, 1 << 1, 0b111 << 2];
/// The bytes of control.
const CONTROL_LOW: usize = 4;
const CONTROL_HIGH: usize = 5;
/// SCI_EN, bit 0 of control: this machine is always in ACPI mode.
const SCI_ENABLED: u8 = 1;
/// SLP_EN, bit 13 of control, is bit 5 of its high byte.
const SLEEP_ENABLE: u8 = 1 << 5;

impl Pm1 {
    pub(super) fn new(exit: ExitEvent) -> Self {
        let mut registers = [0; LENGTH];
        registers[CONTROL_LOW] = SCI_ENABLED;
        Self {
            registers: Mutex::new(registers),
            exit,
        }
    }
}

impl DevicePio for Pm1 {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (byte, register) in data
            .iter_mut()
            .zip(registers.iter().skip(usize::from(offset)))
        {
            *byte = *register;
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let bytes = registers.iter_mut().zip(WRITABLE).enumerate();
        for (&byte, (at, (register, writable))) in data.iter().zip(bytes.skip(usize::from(offset)))
        {
            *register = (*register & !writable) | (byte & writable);
            // S5 is the only sleep state, so SLP_TYP is ignored.
            if at == CONTROL_HIGH && byte & SLEEP_ENABLE != 0 {
                self.exit.request(ExitReason::PowerOff);
            }
        }
    }
}

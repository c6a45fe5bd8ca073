//! How the firmware boots again: a write loads the kernel, and reads return its entry. A second write before
//! the first read does nothing: string output makes many writes in one exit.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::boot::Entry;
use crate::exit::{ExitEvent, ExitReason};

/// Loads the kernel, or returns why it cannot be loaded.
pub(super) type Load = Box<dyn Fn() -> Result<Entry, String> + Send + Sync>;

/// The number of reads after a load.
const REGISTERS: usize = 3;

/// The device.
pub(super) struct BootAgain {
    load: Load,
    exit: ExitEvent,
    /// EIP, EBX and EAX, as far as they have not been read.
    registers: Mutex<VecDeque<u32>>,
}

impl BootAgain {
    pub(super) fn new(load: Load, exit: ExitEvent) -> Self {
        Self {
            load,
            exit,
            registers: Mutex::default(),
        }
    }
}

impl DevicePio for BootAgain {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        let mut registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if data.len() == 4 {
            let register = registers.pop_front().unwrap_or(0);
            data.copy_from_slice(&register.to_le_bytes());
        }
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {
        let mut registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if registers.len() == REGISTERS {
            return;
        }
        let problem = match (self.load)() {
            Ok(Entry::Protected { rip, eax, ebx }) => {
                *registers = VecDeque::from([rip, ebx, eax]);
                return;
            }
            Ok(Entry::Linux32 { .. } | Entry::Long { .. }) => "it is Linux".to_owned(),
            Err(error) => error,
        };
        let text = format!("the kernel cannot be booted a second time: {problem}");
        self.exit.request(ExitReason::GuestFailed(text));
    }
}

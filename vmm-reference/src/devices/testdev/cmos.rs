//! The CMOS of an MC146818 (its data sheet, "address map"): 128 bytes that keep what is written. Test images use
//! the shutdown status. There is no clock.

use std::sync::{Arc, Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// The shutdown status, where IBM's PC/AT has it, and its value for "go on at 40:67".
const SHUTDOWN_STATUS: usize = 0x0f;
const JUMP_40_67: u8 = 0x0a;
/// The index without bit 7, which masks NMIs in a PC. Here it does nothing.
const INDEX: u8 = 0x7f;

/// The device. Clones share their state.
#[derive(Clone)]
pub(super) struct Cmos(Arc<Mutex<State>>);

struct State {
    selected: u8,
    bytes: [u8; 128],
}

impl State {
    fn byte(&mut self) -> Option<&mut u8> {
        self.bytes.get_mut(usize::from(self.selected & INDEX))
    }
}

impl Default for Cmos {
    fn default() -> Self {
        let state = State {
            selected: 0,
            bytes: [0; 128],
        };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl Cmos {
    /// Returns `true` if the guest wants to go on after a reset of its processor.
    pub(super) fn wants_to_resume(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes.get(SHUTDOWN_STATUS) == Some(&JUMP_40_67)
    }
}

impl DevicePio for Cmos {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The index port is write-only.
        if let ([data], 1, Some(byte)) = (data, offset, state.byte()) {
            *data = *byte;
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (data, offset) {
            (&[index], 0) => state.selected = index,
            (&[value], 1) => {
                if let Some(byte) = state.byte() {
                    *byte = value;
                }
            }
            _ => {}
        }
    }
}

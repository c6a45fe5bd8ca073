//! The debug console of Bochs at port 0xE9 (Bochs user manual, "port_e9_hack"; QEMU's isa-debugcon): each byte
//! that is written is output. It has no status and never makes the guest wait: bytes that find the buffer full
//! are dropped, and counted.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::output::{Output, OutputError, SerialOutput};
use crate::background::{Events, Loss};

/// Bytes of output that may wait for the descriptor.
const OUTPUT_BUFFER: usize = 1 << 20;
/// What a read returns: how a guest finds the console.
const PRESENT: u8 = 0xe9;

/// The debug console's output cannot be opened.
#[derive(Debug, Error)]
#[error("cannot write the debug console to {place}")]
pub struct DebugConsoleError {
    place: OutputError,
    source: io::Error,
}

/// The console.
pub struct DebugConsole(Mutex<Output>);

struct Errors;

impl Events for Errors {
    fn failed(&self, error: &io::Error) {
        tracing::error!(%error, "the debug console cannot be written: it is lost until a write succeeds");
    }
}

impl DebugConsole {
    /// Opens its output.
    ///
    /// # Errors
    /// If the file cannot be opened, or there is no descriptor or thread left.
    pub fn new(place: &SerialOutput) -> Result<Self, DebugConsoleError> {
        let output = Output::open(place, "the debug console", OUTPUT_BUFFER)
            .map_err(|(place, source)| DebugConsoleError { place, source })?;
        output.set_events(Box::new(Errors));
        Ok(Self(Mutex::new(output)))
    }

    /// Waits until the output has been written, as [`super::SerialDevice::finish`] does.
    pub fn finish(&self, limit: Duration, while_it_moves: bool) -> Loss {
        // Not under the lock, which vCPUs take.
        let output = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        output.finish(limit, while_it_moves)
    }
}

impl DevicePio for DebugConsole {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It takes all of it, or drops it.
        let _ = output.write(data);
    }
}

impl fmt::Debug for DebugConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugConsole").finish_non_exhaustive()
    }
}

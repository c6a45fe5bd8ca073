//! COM1: vm-superio's 16550A, with its interrupt, its output, and back-pressure for its input.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::EdgeLine;

/// Where the guest's output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialOutput {
    /// Standard output; standard input is the guest's input.
    Stdio,
    /// Nowhere.
    None,
    /// A file. It is created, or truncated.
    File(PathBuf),
}

/// The serial port could not be created.
#[derive(Debug, Error)]
pub enum SerialError {
    /// The output file.
    #[error("cannot write the serial output to {path}")]
    Output {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// No descriptor left.
    #[error("cannot create an event descriptor for the serial port")]
    EventFd(#[source] io::Error),
}

/// The interrupt line.
struct Interrupt(Arc<EdgeLine>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.signal()
    }
}

/// Wakes the console when the guest has taken all input, if the console waits for that.
struct InputSpace {
    wanted: AtomicBool,
    event: EventFd,
}

impl SerialEvents for InputSpace {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {
        tracing::debug!("a byte of serial output was lost: it cannot be written");
    }

    fn in_buffer_empty(&self) {
        if self.wanted.swap(false, Ordering::AcqRel) {
            // A full counter is readable too.
            let _ = self.event.write(1);
        }
    }
}

enum Output {
    Stdout(io::Stdout),
    Discard,
    File(File),
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::Discard => Ok(bytes.len()),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::Discard => Ok(()),
            Self::File(file) => file.flush(),
        }
    }
}

/// COM1.
pub struct SerialDevice {
    chip: Mutex<Serial<Interrupt, Arc<InputSpace>, Output>>,
    interrupt: Arc<EdgeLine>,
    space: Arc<InputSpace>,
}

impl SerialDevice {
    /// A port at reset.
    ///
    /// # Errors
    /// If the output cannot be opened, or no descriptor is left.
    pub fn new(output: &SerialOutput) -> Result<Self, SerialError> {
        let output = match output {
            SerialOutput::Stdio => Output::Stdout(io::stdout()),
            SerialOutput::None => Output::Discard,
            SerialOutput::File(path) => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)
                .map(Output::File)
                .map_err(|source| SerialError::Output {
                    path: path.clone(),
                    source,
                })?,
        };
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(SerialError::EventFd);
        let interrupt = Arc::new(EdgeLine::new().map_err(SerialError::EventFd)?);
        let space = Arc::new(InputSpace {
            wanted: AtomicBool::new(false),
            event: event()?,
        });
        Ok(Self {
            chip: Mutex::new(Serial::with_events(
                Interrupt(Arc::clone(&interrupt)),
                Arc::clone(&space),
                output,
            )),
            interrupt,
            space,
        })
    }

    /// The line that is signalled for each interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &Arc<EdgeLine> {
        &self.interrupt
    }

    /// The descriptor that is signalled when there is room again, after [`Self::room`] was 0.
    #[must_use]
    pub fn space_event(&self) -> &EventFd {
        &self.space.event
    }

    /// Returns the number of bytes of input that fit now. If it is 0, [`Self::space_event`] is
    /// signalled when there is room.
    #[must_use]
    pub fn room(&self) -> usize {
        let chip = self.chip.lock().unwrap_or_else(PoisonError::into_inner);
        let room = chip.fifo_capacity();
        if room == 0 {
            // Under the lock: the guest cannot empty the buffer between the check and the request.
            self.space.wanted.store(true, Ordering::Release);
        }
        room
    }

    /// Gives the guest input. Returns the number of bytes taken. A port in loopback mode is cut off
    /// from its line and takes none.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut chip = self.chip.lock().unwrap_or_else(PoisonError::into_inner);
        match chip.enqueue_raw_bytes(bytes) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::debug!(%error, "serial input was not taken");
                0
            }
        }
    }
}

impl DevicePio for SerialDevice {
    /// An access of several bytes accesses one register after the other, as on the 8-bit ISA bus.
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let mut chip = self.chip.lock().unwrap_or_else(PoisonError::into_inner);
        for (register, byte) in (offset..).zip(data) {
            *byte = u8::try_from(register).map_or(0xff, |register| chip.read(register));
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut chip = self.chip.lock().unwrap_or_else(PoisonError::into_inner);
        for (register, &byte) in (offset..).zip(data) {
            let Ok(register) = u8::try_from(register) else {
                return;
            };
            if let Err(error) = chip.write(register, byte) {
                tracing::debug!(%error, "serial port");
            }
        }
    }
}

impl fmt::Debug for SerialDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialDevice").finish_non_exhaustive()
    }
}

//! COM1: vm-superio's 16550A, with its interrupt, its output, and back-pressure in both directions.
//!
//! vm-superio's transmitter is always empty. This one is busy while the output's buffer is full: the line
//! status says so, and the interrupt of an empty transmitter comes when there is room again. A guest that
//! writes to a busy transmitter loses the byte, as on the real chip.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use thiserror::Error;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::EdgeLine;
use super::output::{Output, OutputError, SerialOutput};
use crate::background::{self, Loss};

/// Bytes of output that may wait for the descriptor.
const OUTPUT_BUFFER: usize = 64 << 10;

/// Registers and their bits (TL16C550C data sheet, "Accessible Registers").
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const IIR_NONE: u8 = 1;
const IIR_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IIR_CAUSE: u8 = 0b1111;
const LCR_DIVISOR_LATCH: u8 = 1 << 7;
const MCR_LOOPBACK: u8 = 1 << 4;
const LSR_HOLDING_EMPTY: u8 = 1 << 5;
const LSR_TRANSMITTER_EMPTY: u8 = 1 << 6;

/// The serial port could not be created.
#[derive(Debug, Error)]
pub enum SerialError {
    /// The output.
    #[error("cannot write the serial output to {0}")]
    Output(OutputError, #[source] io::Error),
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

type Chip = Serial<Interrupt, Arc<InputSpace>, Output>;

/// What happens to the output.
struct OutputEvents(Weak<Mutex<Chip>>);

impl background::Events for OutputEvents {
    /// The transmitter is empty again: raises its interrupt, if the guest has enabled it.
    fn room(&self) {
        let Some(chip) = self.0.upgrade() else {
            return;
        };
        let mut chip = lock(&chip);
        // vm-superio raises the interrupts of all conditions that hold when IER is written.
        let lcr = chip.read(LCR);
        let raised = chip
            .write(LCR, lcr & !LCR_DIVISOR_LATCH)
            .and_then(|()| {
                let enabled = chip.read(IER);
                chip.write(IER, enabled)
            })
            .and_then(|()| chip.write(LCR, lcr));
        if let Err(error) = raised {
            tracing::debug!(%error, "serial port");
        }
    }

    fn failed(&self, error: &io::Error) {
        tracing::error!(%error, "the serial output cannot be written: it is lost until a write succeeds");
    }
}

fn lock(chip: &Mutex<Chip>) -> MutexGuard<'_, Chip> {
    chip.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_chip(line: Arc<EdgeLine>, space: &Arc<InputSpace>, output: &Output) -> Chip {
    Serial::with_events(Interrupt(line), Arc::clone(space), output.clone())
}

/// COM1.
pub struct SerialDevice {
    chip: Arc<Mutex<Chip>>,
    output: Output,
    space: Arc<InputSpace>,
}

impl SerialDevice {
    /// A port at reset.
    ///
    /// # Errors
    /// If the output cannot be opened, or no descriptor is left.
    pub fn new(output: &SerialOutput) -> Result<Self, SerialError> {
        let output = Output::open(output, "the serial output", OUTPUT_BUFFER)
            .map_err(|(place, source)| SerialError::Output(place, source))?;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(SerialError::EventFd);
        let interrupt = Arc::new(EdgeLine::new().map_err(SerialError::EventFd)?);
        let space = Arc::new(InputSpace {
            wanted: AtomicBool::new(false),
            event: event()?,
        });
        let chip = Arc::new(Mutex::new(new_chip(interrupt, &space, &output)));
        output.set_events(Box::new(OutputEvents(Arc::downgrade(&chip))));
        Ok(Self {
            chip,
            output,
            space,
        })
    }

    /// The machine was reset: the chip is as at power-on, and signals this line. Output that waits is still
    /// written.
    pub(crate) fn reset(&self, line: Arc<EdgeLine>) {
        *lock(&self.chip) = new_chip(line, &self.space, &self.output);
        self.space.in_buffer_empty();
    }

    /// The line that is signalled for each interrupt.
    #[must_use]
    pub fn interrupt(&self) -> Arc<EdgeLine> {
        Arc::clone(&lock(&self.chip).interrupt_evt().0)
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
        let mut chip = lock(&self.chip);
        let room = free(&mut chip);
        if room == 0 {
            // Under the lock: the guest cannot empty the buffer between the check and the request.
            self.space.wanted.store(true, Ordering::Release);
        }
        room
    }

    /// Gives the guest input. Returns the number of bytes taken. A port in loopback mode is cut off
    /// from its line and takes none: it has no [`room`](Self::room).
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut chip = lock(&self.chip);
        match chip.enqueue_raw_bytes(bytes) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::debug!(%error, "serial input was not taken");
                0
            }
        }
    }
}

impl SerialDevice {
    /// Waits until the output has been written, for at most `limit`. With `while_it_moves` the limit begins
    /// again with each write that succeeds. Returns what was lost so far.
    pub fn finish(&self, limit: Duration, while_it_moves: bool) -> Loss {
        self.output.finish(limit, while_it_moves)
    }
}

impl SerialDevice {
    /// Reads a register. A full output is a busy transmitter.
    fn read(&self, chip: &mut Chip, register: u8) -> u8 {
        let value = chip.read(register);
        match register {
            LSR if !self.output.has_room() => value & !(LSR_HOLDING_EMPTY | LSR_TRANSMITTER_EMPTY),
            IIR if value & IIR_TRANSMITTER_EMPTY != 0 && !self.output.has_room() => {
                let value = value & !IIR_TRANSMITTER_EMPTY;
                if value & IIR_CAUSE == 0 {
                    value | IIR_NONE
                } else {
                    value
                }
            }
            _ => value,
        }
    }
}

/// Returns how much input the chip takes now.
fn free(chip: &mut Chip) -> usize {
    if chip.read(MCR) & MCR_LOOPBACK != 0 {
        0
    } else {
        chip.fifo_capacity()
    }
}

impl DevicePio for SerialDevice {
    /// An access of several bytes accesses one register after the other, as on the 8-bit ISA bus.
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let mut chip = lock(&self.chip);
        for (register, byte) in (offset..).zip(data) {
            *byte = u8::try_from(register).map_or(0xff, |register| self.read(&mut chip, register));
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut chip = lock(&self.chip);
        for (register, &byte) in (offset..).zip(data) {
            let Ok(register) = u8::try_from(register) else {
                return;
            };
            if let Err(error) = chip.write(register, byte) {
                tracing::debug!(%error, "serial port");
            }
            if register == MCR && free(&mut chip) > 0 {
                // The end of loopback mode.
                self.space.in_buffer_empty();
            }
        }
    }
}

impl fmt::Debug for SerialDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialDevice").finish_non_exhaustive()
    }
}

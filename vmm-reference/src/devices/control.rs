//! The registers by which a guest resets itself: i8042, port 0x92 and port 0xcf9.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::{I8042Device, Trigger};

use super::I8042_PORT;
use crate::exit::{ExitEvent, ExitReason, OnReset};

/// Sends INIT to the processors. Returns `true` if they have firmware to go on with.
type SendInit = Box<dyn Fn() -> bool + Send + Sync>;

/// Carries out resets. Clones share their state.
#[derive(Clone)]
pub(super) struct Resets {
    exit: ExitEvent,
    /// Set by a reset of the whole machine, if that is not its end.
    requested: Option<Arc<AtomicBool>>,
    send_init: Arc<OnceLock<SendInit>>,
}

impl Resets {
    pub(super) fn new(exit: ExitEvent, policy: OnReset) -> Self {
        Self {
            exit,
            requested: (policy != OnReset::Exit).then(Arc::default),
            send_init: Arc::default(),
        }
    }

    /// Whether the guest has asked for a reset that the machine survives.
    pub(super) fn is_requested(&self) -> bool {
        let requested = self.requested.as_ref();
        requested.is_some_and(|requested| requested.load(Ordering::SeqCst))
    }

    /// A reset of the processors alone sends them INIT from now on. It ends the machine only if they have
    /// no firmware to go on with.
    pub(super) fn survive_init(&self, send_init: SendInit) {
        let _ = self.send_init.set(send_init);
    }

    /// Resets the whole machine.
    fn machine(&self) {
        match &self.requested {
            Some(requested) => requested.store(true, Ordering::SeqCst),
            None => {
                self.exit.request(ExitReason::Reset);
            }
        }
    }

    /// Resets the processors.
    fn processors(&self) {
        if !self.send_init.get().is_some_and(|send_init| send_init()) {
            self.machine();
        }
    }
}

impl fmt::Debug for Resets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resets")
            .field("survives_init", &self.send_init.get().is_some())
            .finish_non_exhaustive()
    }
}

/// Asks for a reset when vm-superio's keyboard controller sees the reset command.
struct ResetRequest(Resets);

impl Trigger for ResetRequest {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.processors();
        Ok(())
    }
}

/// The keyboard controller, as far as it resets (IBM PC/AT, 8042 commands): command 0xfe pulses the reset line,
/// and so does bit 0 of the output port when it falls.
pub(super) struct I8042 {
    state: Mutex<Controller>,
    resets: Resets,
}

struct Controller {
    rest: I8042Device<ResetRequest>,
    output_port: u8,
    /// The byte that the data port returns.
    answer: Option<u8>,
    /// The next byte for the data port is the output port's.
    writes_output_port: bool,
}

/// Commands: read and write the output port.
const READ_OUTPUT_PORT: u8 = 0xd0;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
/// The output port: the processor is not reset, and address line 20 is not masked. It never is.
const NOT_RESET: u8 = 0b01;
const GATE_A20: u8 = 0b10;
/// The status port: the data port has a byte to read.
const OUTPUT_BUFFER_FULL: u8 = 1;
/// Registers: data; status and command.
const DATA: u8 = 0;
const STATUS: u8 = 4;

impl I8042 {
    pub(super) fn new(resets: Resets) -> Self {
        let controller = Controller {
            rest: I8042Device::new(ResetRequest(resets.clone())),
            output_port: NOT_RESET | GATE_A20,
            answer: None,
            writes_output_port: false,
        };
        Self {
            state: Mutex::new(controller),
            resets,
        }
    }
}

/// The register at a port: the controller's two are not neighbours.
fn register(base: PioAddress, offset: PioAddressOffset) -> Option<u8> {
    let port = base.0.checked_add(offset)?;
    u8::try_from(port.checked_sub(I8042_PORT)?).ok()
}

impl DevicePio for I8042 {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let ([byte], Some(register)) = (data, register(base, offset)) else {
            return;
        };
        let mut chip = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *byte = match (register, chip.answer) {
            (DATA, Some(answer)) => {
                chip.answer = None;
                answer
            }
            (STATUS, Some(_)) => OUTPUT_BUFFER_FULL,
            _ => chip.rest.read(register),
        };
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let (&[byte], Some(register)) = (data, register(base, offset)) else {
            return;
        };
        let mut chip = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let writes_output_port = std::mem::take(&mut chip.writes_output_port);
        match (register, byte) {
            (DATA, byte) if writes_output_port => {
                let falls = chip.output_port & !byte & NOT_RESET != 0;
                // A pulse: the output port stays as it is.
                chip.output_port = byte | NOT_RESET;
                if falls {
                    self.resets.processors();
                }
            }
            (STATUS, READ_OUTPUT_PORT) => chip.answer = Some(chip.output_port),
            (STATUS, WRITE_OUTPUT_PORT) => chip.writes_output_port = true,
            _ => {
                let Ok(()) = chip.rest.write(register, byte);
            }
        }
    }
}

/// System control port A (Intel ICH9 datasheet, 13.7.3 PORT92: fast A20 and init).
pub(super) struct SystemControlA {
    value: Mutex<u8>,
    resets: Resets,
}

/// Bit 0: the processor is reset when it goes from 0 to 1.
const FAST_INIT: u8 = 0b01;
/// Bit 1: address line 20 is not masked. It never is, so the bit does nothing but stay.
const A20: u8 = 0b10;

impl SystemControlA {
    pub(super) fn new(resets: Resets) -> Self {
        Self {
            value: Mutex::new(A20),
            resets,
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
            self.resets.processors();
        }
        *value = byte & (FAST_INIT | A20);
    }
}

/// The reset control register (Intel ICH9 datasheet, 13.7.5 RST_CNT): a reset happens when bit 2
/// goes from 0 to 1, and bit 1 says which.
pub(super) struct ResetControl {
    value: Mutex<u8>,
    resets: Resets,
}

/// Bit 1, system reset (hard rather than soft); bit 2, reset the processor; bit 3, full reset.
const RESET_BITS: u8 = 0b1110;
const RESET_SYSTEM: u8 = 0b0010;
const RESET_CPU: u8 = 0b0100;
/// A hard reset, for any previous value of the register.
pub(super) const RESET_HARD: u8 = RESET_SYSTEM | RESET_CPU;

impl ResetControl {
    pub(super) fn new(resets: Resets) -> Self {
        Self {
            value: Mutex::new(0),
            resets,
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
            if byte & RESET_SYSTEM != 0 {
                self.resets.machine();
            } else {
                self.resets.processors();
            }
        }
        *value = byte & RESET_BITS;
    }
}

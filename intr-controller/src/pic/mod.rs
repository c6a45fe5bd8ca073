//! The PC's two 8259A interrupt controllers with their edge/level control registers.
//!
//! Two chips of fifteen inputs: the slave's INT output is the master's input 2. The pair is driven
//! by its [inputs](Pic::set_line) and by the guest's [port accesses](Pic::write); it drives one
//! line, INTR ([`Pic::intr`]), and gives a vector to the processor's two INTA cycles
//! ([`Pic::acknowledge`]).
//!
//! # Where the data sheet leaves room
//!
//! - **A request that falls before it is acknowledged is gone, and INT stays up** until the next
//!   acknowledge, which then finds the default IR7 (8259A data sheet, "Edge and level triggered
//!   modes": the input must stay high until the first INTA, "if the IR input goes low before this
//!   time a DEFAULT IR7 will occur"). So a glitch on an input of the slave ends in the slave's
//!   vector 7 with the master's ISR bit 2 set. KVM and QEMU keep an edge forever, and forget a
//!   level on the master without a trace. For a device that signals by a pulse, which would be long
//!   enough on a real machine, there is [`Pic::pulse`].
//! - **Masking** takes INT down again: the resolver looks at IRR and IMR.
//! - **ICW1** also clears ISR, IRR and the rotation of automatic EOI, none of which are in the data
//!   sheet's list, because an operating system that starts again cannot send the EOIs of the
//!   previous one. KVM keeps ISR.
//! - **ICW3** is read and ignored, as in the chipsets, which fix the wiring; and a chip between
//!   ICW1 and the last ICW raises no INT, since it has no vector yet.
//! - **8080 mode** (ICW4 bit 0 clear, or no ICW4) responds to INTA as 8086 mode does.
//! - **A poll that finds nothing** reads 0; **a chip at power-on** is initialised, unmasked, with
//!   vectors from 0, which is what KVM's is.
//! - **Accesses wider than a byte** are split by the bus into bytes at ascending ports, as on
//!   ISA and LPC; bytes that fall beside the pair's ports read 0xff. KVM ignores such accesses.

mod chip;
mod command;
mod pair;
mod state;
mod text;

pub use pair::{Acknowledge, Pic};
pub use state::{InitStep, Pic8259State, PicRestoreError, PicState};

use core::fmt;

use thiserror::Error;

/// The master's input that is the slave's output.
const CASCADE: u8 = 2;
/// Inputs of one chip.
const INPUTS: u8 = 8;

/// An input of the pair, as ISA numbers them: 0 to 7 on the master, 8 to 15 on the slave. Not 2,
/// which is the slave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u8", into = "u8"))]
pub struct PicPin(u8);

/// The pair has no such input: use 0, 1 or 3 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the 8259A pair has no input {0}: use 0, 1 or 3 to 15 (2 is the cascade)")]
pub struct NoSuchPicPin(pub u8);

impl PicPin {
    /// # Errors
    /// If there is no such input.
    pub const fn new(pin: u8) -> Result<Self, NoSuchPicPin> {
        if pin >= 2 * INPUTS || pin == CASCADE {
            return Err(NoSuchPicPin(pin));
        }
        Ok(Self(pin))
    }

    /// Its number, 0 to 15.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for PicPin {
    type Error = NoSuchPicPin;

    fn try_from(pin: u8) -> Result<Self, NoSuchPicPin> {
        Self::new(pin)
    }
}

impl From<PicPin> for u8 {
    fn from(pin: PicPin) -> Self {
        pin.0
    }
}

impl fmt::Display for PicPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PIC input {}", self.0)
    }
}

/// Inputs whose service has ended: input `n` is bit `n`. What a VMM resamples a level source on
/// (KVM's resamplefd).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndedInputs(pub u16);

impl EndedInputs {
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether this input's service has ended.
    #[must_use]
    pub const fn contains(self, pin: PicPin) -> bool {
        self.0 >> pin.get() & 1 != 0
    }
}

#[cfg(test)]
mod tests;

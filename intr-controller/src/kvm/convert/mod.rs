//! Conversions between the states of this crate's chips and of KVM's.

mod ioapic;
mod lapic;
mod pic;
mod pit;

pub use ioapic::IoApicFromKvm;
pub use lapic::{KvmLapic, LapicRegisters, X2ApicFormat};

use thiserror::Error;

/// A KVM chip's state was refused whole. It is damaged, or of a chip that the emulated one cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{place}{field}: {value:#x}: {rule}")]
pub struct FromKvmError {
    /// Which part of the structure: "master.", `channels[0].`, or nothing.
    pub place: &'static str,
    /// The field, by KVM's name.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// A state that KVM's chip cannot be in. Let the guest go on until it has left it, or stay in this
/// mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{field}: {rule}")]
pub struct ToKvmError {
    /// The field of our state.
    pub field: &'static str,
    /// What KVM cannot do.
    pub rule: &'static str,
}

/// Checks the fields of one part.
#[derive(Clone, Copy)]
pub(super) struct Part(pub(super) &'static str);

impl Part {
    pub(super) fn refuse(
        self,
        field: &'static str,
        value: impl Into<u64>,
        rule: &'static str,
    ) -> FromKvmError {
        FromKvmError {
            place: self.0,
            field,
            value: value.into(),
            rule,
        }
    }

    pub(super) fn require(
        self,
        holds: bool,
        field: &'static str,
        value: impl Into<u64>,
        rule: &'static str,
    ) -> Result<(), FromKvmError> {
        if holds {
            Ok(())
        } else {
            Err(self.refuse(field, value, rule))
        }
    }

    pub(super) fn flag(self, field: &'static str, value: u8) -> Result<bool, FromKvmError> {
        self.require(value <= 1, field, value, "0 or 1")?;
        Ok(value == 1)
    }
}

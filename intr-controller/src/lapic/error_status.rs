//! The error status register, ESR.

use super::LapicRestoreError;
use super::registers::Errors;

/// What ESR reads, and the errors since it was last written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorStatus {
    shown: Errors,
    /// What the next write of ESR makes it read.
    collected: Errors,
}

impl ErrorStatus {
    /// From a saved state.
    pub(super) fn from_parts(shown: u32, collected: u32) -> Result<Self, LapicRestoreError> {
        let errors = |field, bits: u32| {
            Errors::from_bits(bits).ok_or(LapicRestoreError::Value {
                field,
                value: bits.into(),
            })
        };
        Ok(Self {
            shown: errors("error_status", shown)?,
            collected: errors("errors", collected)?,
        })
    }

    /// What ESR reads.
    pub(super) const fn shown(self) -> u32 {
        self.shown.bits()
    }

    /// The errors since ESR was last written.
    pub(super) const fn collected(self) -> u32 {
        self.collected.bits()
    }

    /// A write of ESR.
    pub(super) fn write(&mut self) {
        self.shown = core::mem::take(&mut self.collected);
    }

    /// An error. Returns `true` if it raises the error interrupt: only the first since ESR was last
    /// written does, because the write "rearms the APIC error interrupt triggering mechanism" (SDM 3A,
    /// "Error Handling").
    pub(super) fn report(&mut self, error: Errors) -> bool {
        let armed = self.collected.is_empty();
        self.collected |= error;
        armed
    }
}

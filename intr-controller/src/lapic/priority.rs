//! Task priority, the vectors in service, and their trigger modes: TPR, ISR, TMR.

use super::{GeneralProtection, LapicRestoreError};
use crate::{ProcessorPriority, TriggerMode, Vector, VectorSet};

/// What decides which vectors may be delivered, and what an EOI ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Priority {
    tpr: u8,
    /// ISR.
    in_service: VectorSet,
    /// TMR.
    level_triggered: VectorSet,
}

impl Priority {
    /// From a saved state.
    pub(super) fn from_parts(
        tpr: u8,
        in_service: [u64; 4],
        level_triggered: [u64; 4],
    ) -> Result<Self, LapicRestoreError> {
        let vectors = |field, words: [u64; 4]| {
            let [value, ..] = words;
            VectorSet::from_words(words).ok_or(LapicRestoreError::Value { field, value })
        };
        Ok(Self {
            tpr,
            in_service: vectors("in_service", in_service)?,
            level_triggered: vectors("level_triggered", level_triggered)?,
        })
    }

    /// PPR.
    #[inline]
    pub(super) fn processor(&self) -> ProcessorPriority {
        ProcessorPriority::new(self.tpr, self.in_service.highest())
    }

    pub(super) const fn tpr(&self) -> u8 {
        self.tpr
    }

    #[inline]
    pub(super) const fn set_tpr(&mut self, value: u8) {
        self.tpr = value;
    }

    /// CR8: the upper half of TPR, which is the same register (SDM 3A, "Task Priority in IA-32e Mode").
    pub(super) const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// The lower half of TPR becomes 0, unless CR8 does not change: then nothing does.
    pub(super) const fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value > 0xf {
            return Err(GeneralProtection);
        }
        let [value, ..] = value.to_le_bytes();
        if value != self.cr8() {
            self.tpr = value << 4;
        }
        Ok(())
    }

    pub(super) const fn in_service(&self) -> &VectorSet {
        &self.in_service
    }

    pub(super) const fn level_triggered(&self) -> &VectorSet {
        &self.level_triggered
    }

    /// A vector is accepted into the IRR: "the corresponding TMR bit is cleared for edge-triggered
    /// interrupts and set for level-triggered interrupts" (SDM 3A, "Interrupt Acceptance for Fixed
    /// Interrupts").
    #[inline(always)]
    pub(super) fn accept(&mut self, vector: Vector, trigger: TriggerMode) {
        if self.level_triggered.contains(vector) != trigger.bit() {
            self.level_triggered.toggle(vector);
        }
    }

    /// A vector is delivered.
    #[inline]
    pub(super) fn begin(&mut self, vector: Vector) {
        self.in_service.insert(vector);
    }

    /// A delivery did not take place.
    pub(super) fn retract(&mut self, vector: Vector) {
        self.in_service.remove(vector);
    }

    /// An EOI: ends the most urgent vector in service. Returns it, and whether it is level-triggered.
    #[inline]
    pub(super) fn end(&mut self) -> Option<(Vector, bool)> {
        let vector = self.in_service.highest()?;
        self.in_service.remove(vector);
        Some((vector, self.level_triggered.contains(vector)))
    }
}

//! The local vector table.

use super::registers::{Lvt, LvtEntry};
use super::state::{agrees, possible};
use super::{LapicConfig, LapicRestoreError};
use crate::{DeliveryMode, TriggerMode};

/// The seven entries, in the order of [`LvtEntry::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LocalVectors([Lvt; 7]);

impl LocalVectors {
    /// After reset and INIT.
    pub(super) fn reset(config: &LapicConfig) -> Self {
        let mut vectors = Self([Lvt::RESET; 7]);
        if config.virtual_wire && config.bootstrap {
            vectors.set(LvtEntry::Lint0, Lvt::VIRTUAL_WIRE);
        }
        vectors
    }

    /// From a saved state of an APIC that software has enabled, or not.
    pub(super) fn from_bits(
        bits: [u32; 7],
        config: &LapicConfig,
        enabled: bool,
    ) -> Result<Self, LapicRestoreError> {
        let vectors = Self(bits.map(Lvt));
        for entry in LvtEntry::ALL {
            let value = vectors.get(entry);
            let mut legal = Lvt::writable(entry, config.tsc_deadline);
            if entry == LvtEntry::Lint0 && has_level(value) {
                legal |= Lvt::read_only(entry);
            }
            // Delivery is at once, so the status is always idle.
            legal &= !Lvt::read_only(LvtEntry::Timer);
            possible(value.0 & !legal == 0, "lvt", value.0.into())?;
            // A software-disabled APIC may have one unmasked entry: virtual wire from reset on.
            let from_reset = entry == LvtEntry::Lint0 && value == Lvt::VIRTUAL_WIRE;
            agrees(
                enabled || value.is_masked() || from_reset,
                "lvt",
                "spurious",
            )?;
        }
        Ok(vectors)
    }

    pub(super) fn bits(self) -> [u32; 7] {
        self.0.map(|entry| entry.0)
    }

    #[inline]
    pub(super) const fn get(&self, entry: LvtEntry) -> Lvt {
        let [timer, thermal, performance, lint0, lint1, error, cmci] = self.0;
        match entry {
            LvtEntry::Timer => timer,
            LvtEntry::Thermal => thermal,
            LvtEntry::Performance => performance,
            LvtEntry::Lint0 => lint0,
            LvtEntry::Lint1 => lint1,
            LvtEntry::Error => error,
            LvtEntry::Cmci => cmci,
        }
    }

    const fn set(&mut self, entry: LvtEntry, value: Lvt) {
        let [timer, thermal, performance, lint0, lint1, error, cmci] = &mut self.0;
        *match entry {
            LvtEntry::Timer => timer,
            LvtEntry::Thermal => thermal,
            LvtEntry::Performance => performance,
            LvtEntry::Lint0 => lint0,
            LvtEntry::Lint1 => lint1,
            LvtEntry::Error => error,
            LvtEntry::Cmci => cmci,
        } = value;
    }

    /// A guest's write, while software has enabled the APIC or not. Returns the entry as it is now.
    #[inline]
    pub(super) fn write(
        &mut self,
        entry: LvtEntry,
        value: u32,
        config: &LapicConfig,
        enabled: bool,
    ) -> Lvt {
        let mut new = Lvt(value & Lvt::writable(entry, config.tsc_deadline));
        if !enabled {
            new = new.masked();
        }
        if matches!(entry, LvtEntry::Lint0 | LvtEntry::Lint1) && has_level(new) {
            // Remote IRR is read-only; an entry without levels has none.
            new = new.with_remote_irr(self.get(entry).remote_irr());
        }
        self.set(entry, new);
        new
    }

    /// Software disables the APIC. The mask bits are set, and cannot be cleared until it is enabled
    /// again, which does not clear them (SDM 3A, "Local APIC State After It Has Been Software
    /// Disabled").
    pub(super) fn mask_all(&mut self) {
        self.0 = self.0.map(Lvt::masked);
    }

    /// A delivery masks the performance counters' entry (SDM 3A, "Local Vector Table").
    pub(super) const fn mask(&mut self, entry: LvtEntry) {
        self.set(entry, self.get(entry).masked());
    }

    /// A level at LINT0 was delivered, or has ended.
    pub(super) const fn set_lint0_remote_irr(&mut self, set: bool) {
        let lint0 = self.get(LvtEntry::Lint0).with_remote_irr(set);
        self.set(LvtEntry::Lint0, lint0);
    }
}

/// Whether an entry of a LINT pin is level-triggered: only Fixed has levels (SDM 3A, "Local Vector
/// Table", trigger mode).
pub(super) fn has_level(lint: Lvt) -> bool {
    lint.trigger_mode() == TriggerMode::Level && lint.delivery_mode() == Some(DeliveryMode::Fixed)
}

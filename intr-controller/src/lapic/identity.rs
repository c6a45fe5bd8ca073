//! How others reach the APIC: its mode, its ids, and its logical destination.

use super::base::{ApicBase, ApicMode};
use super::registers::high_byte;
use super::state::{agrees, possible};
use super::{LapicConfig, LapicRestoreError, LapicState};
use crate::destinations::{Destination, LogicalModel, x2apic_logical_id};

/// IA32_APIC_BASE, the ID register, LDR and DFR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    base: ApicBase,
    /// The id of xAPIC mode, which software may write.
    xapic_id: u8,
    /// The logical id of xAPIC mode. That of x2APIC mode follows from the id.
    ldr: u8,
    /// The model nibble of the destination format register.
    dfr: u8,
}

/// DFR after reset: flat.
const DFR_FLAT: u8 = 0xf;
/// Bits of DFR that read 1.
const DFR_ONES: u32 = 0x0fff_ffff;

impl Identity {
    /// After power-up and reset.
    pub(super) const fn reset(config: &LapicConfig) -> Self {
        Self {
            base: ApicBase::reset(config.bootstrap),
            xapic_id: config.xapic_id(),
            ldr: 0,
            dfr: DFR_FLAT,
        }
    }

    /// From a saved state.
    pub(super) fn from_state(
        state: &LapicState,
        config: &LapicConfig,
    ) -> Result<Self, LapicRestoreError> {
        let base = ApicBase::new(state.apic_base, config.physical_address_bits, config.x2apic)
            .ok_or(LapicRestoreError::Value {
                field: "apic_base",
                value: state.apic_base,
            })?;
        agrees(
            base.mode() == ApicMode::XApic || state.xapic_id == config.xapic_id(),
            "xapic_id",
            "apic_base",
        )?;
        let x2apic = base.mode() == ApicMode::X2Apic;
        agrees(!x2apic || state.ldr == 0, "ldr", "apic_base")?;
        possible(state.dfr <= DFR_FLAT, "dfr", state.dfr.into())?;
        Ok(Self {
            base,
            xapic_id: state.xapic_id,
            ldr: state.ldr,
            dfr: state.dfr,
        })
    }

    /// Puts it into a state.
    pub(super) const fn save(self, state: &mut LapicState) {
        let Self {
            base,
            xapic_id,
            ldr,
            dfr,
        } = self;
        state.apic_base = base.get();
        state.xapic_id = xapic_id;
        state.ldr = ldr;
        state.dfr = dfr;
    }

    /// INIT: IA32_APIC_BASE and the id stay, also an id that software wrote (SDM 3A, "Local APIC State
    /// After an INIT Reset"; KVM restores the initial id).
    pub(super) const fn init(&mut self) {
        self.ldr = 0;
        self.dfr = DFR_FLAT;
    }

    pub(super) const fn base(&self) -> ApicBase {
        self.base
    }

    #[inline]
    pub(super) const fn mode(&self) -> ApicMode {
        self.base.mode()
    }

    /// Another value of IA32_APIC_BASE, which is [legal](ApicBase::follows) after the present one.
    pub(super) const fn set_base(&mut self, base: ApicBase, config: &LapicConfig) {
        let changes = base.mode() as u8 != self.base.mode() as u8;
        self.base = base;
        if !changes {
            return;
        }
        match base.mode() {
            ApicMode::Disabled => self.xapic_id = config.xapic_id(),
            // SDM 3A, "State Changes From xAPIC Mode to x2APIC Mode": all is preserved but the LDR, an
            // id that software wrote, and the upper half of ICR.
            ApicMode::X2Apic => {
                self.ldr = 0;
                self.xapic_id = config.xapic_id();
            }
            ApicMode::XApic => {}
        }
    }

    /// The APIC id in the present mode.
    pub(super) const fn apic_id(&self, config: &LapicConfig) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => config.apic_id,
            // An id that does not fit is unreachable in xAPIC mode by its low byte, which is another
            // vCPU's. It is addressed in full, so it can be started at all. KVM does the same (lapic.c,
            // `kvm_apic_match_physical_addr`, "hotplug hack").
            _ if config.apic_id > 0xff && self.xapic_id == config.xapic_id() => config.apic_id,
            _ => self.xapic_id as u32,
        }
    }

    /// The APIC's row in the fabric's table.
    pub(super) fn destination(&self, config: &LapicConfig, software_enabled: bool) -> Destination {
        let (logical_id, model) = match self.mode() {
            ApicMode::X2Apic => (x2apic_logical_id(config.apic_id), LogicalModel::X2Apic),
            _ => (u32::from(self.ldr), LogicalModel::from_dfr(self.dfr)),
        };
        Destination {
            mode: self.mode(),
            apic_id: self.apic_id(config),
            logical_id,
            model,
            software_enabled,
        }
    }

    /// What the ID register reads.
    pub(super) fn id_register(&self, config: &LapicConfig) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => config.apic_id,
            _ => u32::from(self.xapic_id) << 24,
        }
    }

    /// What LDR reads.
    pub(super) fn logical_destination_register(&self, config: &LapicConfig) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => x2apic_logical_id(config.apic_id),
            _ => u32::from(self.ldr) << 24,
        }
    }

    /// What DFR reads.
    pub(super) fn destination_format_register(&self) -> u32 {
        u32::from(self.dfr) << 28 | DFR_ONES
    }

    /// A write of the ID register in xAPIC mode.
    pub(super) const fn write_id(&mut self, value: u32) {
        self.xapic_id = high_byte(value);
    }

    /// A write of LDR in xAPIC mode.
    pub(super) const fn write_logical_destination(&mut self, value: u32) {
        self.ldr = high_byte(value);
    }

    /// A write of DFR.
    pub(super) const fn write_destination_format(&mut self, value: u32) {
        self.dfr = high_byte(value) >> 4;
    }
}

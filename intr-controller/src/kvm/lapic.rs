//! Reading KVM's local APIC page.

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

use super::calls::{CallError, failed};
use crate::lapic::kvm_parts;
use crate::{ProcessorPriority, Vector, VectorSet};

/// Register offsets (SDM 3A, table "Local APIC Register Address Map").
const TPR: usize = 0x080;
const SPURIOUS: usize = 0x0f0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const LVT_LINT0: usize = 0x350;

/// `struct kvm_lapic_state` with names.
pub(super) struct LapicPage<'a>(pub(super) &'a kvm_lapic_state);

impl LapicPage<'_> {
    /// A 32-bit register. Zero outside the page, which none of the offsets above is.
    fn register(&self, offset: usize) -> u32 {
        let bytes = self.0.regs.get(offset..).and_then(<[_]>::first_chunk::<4>);
        bytes.map_or(0, |bytes| {
            u32::from_le_bytes(bytes.map(|byte| u8::from_ne_bytes(byte.to_ne_bytes())))
        })
    }

    /// A 256-bit register: eight 32-bit registers, 16 bytes apart.
    fn vectors(&self, offset: usize) -> VectorSet {
        let word = |index: usize| {
            let register = |index| u64::from(self.register(offset + 0x10 * index));
            register(2 * index) | register(2 * index + 1) << 32
        };
        VectorSet::from_words_truncate([word(0), word(1), word(2), word(3)])
    }

    pub(super) fn irr(&self) -> VectorSet {
        self.vectors(IRR)
    }

    pub(super) fn isr(&self) -> VectorSet {
        self.vectors(ISR)
    }

    pub(super) fn tmr(&self) -> VectorSet {
        self.vectors(TMR)
    }

    /// Computed, because KVM brings the PPR register up to date only when it needs it (lapic.c,
    /// `apic_update_ppr`).
    pub(super) fn priority(&self) -> ProcessorPriority {
        let [tpr, ..] = self.register(TPR).to_le_bytes();
        ProcessorPriority::new(tpr, self.isr().highest())
    }

    pub(super) fn software_enabled(&self) -> bool {
        kvm_parts::software_enabled(self.register(SPURIOUS))
    }

    /// Whether an EOI of the vector is broadcast to the IOAPICs: that of a level, by TMR, unless it is
    /// suppressed (SDM 3A, "Signaling Interrupt Servicing Completion").
    pub(super) fn broadcasts_eoi(&self, vector: Vector) -> bool {
        let suppressed = kvm_parts::suppresses_eoi(self.register(SPURIOUS));
        self.tmr().contains(vector) && !suppressed
    }

    /// Whether LINT0 passes the 8259A's INTR on: "virtual wire" mode.
    pub(super) fn lint0_passes_ext_int(&self) -> bool {
        kvm_parts::passes_ext_int(self.register(LVT_LINT0))
    }
}

/// Whether KVM's local APIC of this vCPU passes ExtINTs on: LINT0 does, or the local APIC is disabled (lapic.c,
/// `kvm_apic_accept_pic_intr`).
///
/// # Errors
/// If KVM refuses.
pub fn passes_ext_int(vcpu: &VcpuFd) -> Result<bool, CallError> {
    let page = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    if LapicPage(&page).lint0_passes_ext_int() {
        return Ok(true);
    }
    let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    Ok(!kvm_parts::is_enabled(sregs.apic_base))
}

#[cfg(test)]
mod tests {
    use core::ffi::c_char;

    use super::*;

    fn page(bytes: &[(usize, u8)]) -> kvm_lapic_state {
        let mut page = kvm_lapic_state::default();
        for (offset, value) in bytes {
            page.regs[*offset] = c_char::from_ne_bytes(value.to_ne_bytes());
        }
        page
    }

    #[test]
    fn vectors_sit_in_registers_16_bytes_apart() {
        // Vector 0xa9 is bit 9 of the register at IRR + 0x10 * 5.
        let page = page(&[(0x251, 0x02), (0x113, 0x80), (0x180 + 0x72, 0x01)]);
        let page = LapicPage(&page);
        let one = |vector| Vector::new(vector).unwrap();
        assert_eq!(page.irr(), VectorSet::from_iter([one(0xa9)]));
        assert_eq!(page.isr(), VectorSet::from_iter([one(0x3f)]));
        assert_eq!(page.tmr(), VectorSet::from_iter([one(0xf0)]));
    }

    #[test]
    fn the_priority_is_computed_from_task_priority_and_service() {
        // PPR's own register says 0xee, and is not believed.
        let page = page(&[(0x080, 0x25), (0x0a0, 0xee), (0x113, 0x80)]);
        assert_eq!(LapicPage(&page).priority().get(), 0x30);
    }

    #[test]
    fn lint0_passes_the_pic_only_unmasked_and_as_ext_int() {
        for (mode, mask, passes) in [
            (0x07, 0x00, true),
            (0x07, 0x01, false),
            (0x04, 0x00, false),
            (0x00, 0x00, false),
        ] {
            let page = page(&[(0x351, mode), (0x352, mask)]);
            assert_eq!(LapicPage(&page).lint0_passes_ext_int(), passes);
        }
    }

    #[test]
    fn an_eoi_is_broadcast_by_tmr_unless_bit_12_suppresses_it() {
        let vector = Vector::new(0x41).unwrap();
        for (tmr, spurious, broadcast) in [
            (0x02, 0x01, true),
            (0x02, 0x00, true),
            (0x02, 0x11, false),
            (0x01, 0x01, false),
            (0x00, 0x11, false),
        ] {
            // Vector 0x41 is bit 1 of the register at TMR + 0x10 * 2.
            let page = page(&[(0x1a0, tmr), (0x0f1, spurious)]);
            assert_eq!(LapicPage(&page).broadcasts_eoi(vector), broadcast);
        }
    }

    #[test]
    fn bit_8_enables_by_software() {
        assert!(!LapicPage(&page(&[(0x0f0, 0xff)])).software_enabled());
        assert!(LapicPage(&page(&[(0x0f1, 0x01)])).software_enabled());
    }
}

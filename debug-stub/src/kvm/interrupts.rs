//! The pending interrupts of a vCPU with KVM's local APIC, for `monitor mask status`.

use kvm_bindings::{KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI};
use kvm_ioctls::VcpuFd;

use super::registers::{RegistersError, ioctl};
use crate::host::Interrupts;
use crate::x86_64::bits::RFLAGS_IF;

/// Offset of the first IRR register in a local APIC page, 32 vectors each 16 bytes (SDM 3A
/// table 11-1).
const IRR: usize = 0x200;
/// The same of ISR.
const ISR: usize = 0x100;
const REGISTERS: usize = 8;

/// Reads the pending interrupts from KVM's local APIC. `masked` is [`Stepper::is_masked`]. Changes nothing.
///
/// # Errors
/// If KVM refuses. It does if the local APIC is emulated: the VMM then fills in [`Interrupts`] itself.
///
/// [`Stepper::is_masked`]: crate::x86_64::stepper::Stepper::is_masked
pub fn pending_interrupts(fd: &VcpuFd, masked: bool) -> Result<Interrupts, RegistersError> {
    let lapic = fd.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
    let events = fd.get_vcpu_events().map_err(ioctl("KVM_GET_VCPU_EVENTS"))?;
    let regs = fd.get_regs().map_err(ioctl("KVM_GET_REGS"))?;
    let pending = requested(&lapic.regs).collect();
    let mut why = Vec::new();
    if masked {
        why.push("masked");
    }
    if regs.rflags & RFLAGS_IF == 0 {
        why.push("IF=0");
    }
    let shadow = u32::from(events.interrupt.shadow);
    if shadow & KVM_X86_SHADOW_INT_STI != 0 {
        why.push("STI shadow");
    }
    if shadow & KVM_X86_SHADOW_INT_MOV_SS != 0 {
        why.push("MOV SS shadow");
    }
    Ok(Interrupts {
        masked,
        pending,
        nmi_pending: events.nmi.pending != 0,
        blocked: why.join(", "),
    })
}

/// Moves a vector from ISR to IRR. Returns `false` if it is not in service.
pub(super) fn move_to_irr(page: &mut [i8], vector: u8) -> bool {
    let at = 16 * usize::from(vector / 32) + usize::from(vector % 32 / 8);
    let bit = 1 << (vector % 8);
    let mut take = |base: usize, set: bool| {
        let byte = page.get_mut(base + at)?;
        let [now] = byte.to_ne_bytes();
        let had = now & bit != 0;
        let after = if set { now | bit } else { now & !bit };
        *byte = i8::from_ne_bytes([after]);
        Some(had)
    };
    take(ISR, false) == Some(true) && take(IRR, true).is_some()
}

/// The vectors whose bit is set in IRR, lowest first.
pub(super) fn requested(page: &[i8]) -> impl DoubleEndedIterator<Item = u8> + use<'_> {
    (0..=u8::MAX).filter(|vector| {
        let (register, bit) = (usize::from(vector / 32), vector % 32);
        debug_assert!(register < REGISTERS);
        let at = IRR + 16 * register + usize::from(bit / 8);
        let byte = page.get(at).map_or(0, |byte| byte.to_ne_bytes()[0]);
        byte >> (bit % 8) & 1 == 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_found_at_their_bits_of_the_request_registers() {
        let mut page = [0_i8; 1024];
        let requested = |page: &[i8]| requested(page).collect::<Vec<_>>();
        assert_eq!(requested(&page), []);
        // SDM 3A figure 11-20: IRR 31:0 at 0x200, 63:32 at 0x210, ... 255:224 at 0x270.
        page[0x212] = 0b10;
        page[0x273] = i8::MIN;
        page[0x200 - 1] = -1;
        page[0x204] = -1;
        page[0x280] = -1;
        assert_eq!(requested(&page), [32 + 17, 255]);
    }
}

//! INIT and start-up IPIs, where the local APIC is not KVM's: they replace a vCPU's state, which
//! KVM then leaves to its user.

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;

use super::calls::{CallError, failed};
use crate::Startup;

/// CR0 after INIT (SDM 3A, table "IA-32 and Intel 64 Processor States Following Power-up, Reset, or
/// INIT"): ET, and CD and NW as they were.
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
/// RFLAGS and DR6, DR7 have bits that are always one.
const RFLAGS_RESET: u64 = 1 << 1;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;
/// Where a bootstrap processor goes on.
const RESET_VECTOR: u64 = 0xfff0;

/// Gives a vCPU the state that INIT or a start-up IPI gives it. Call it on the vCPU's thread, when
/// it does not run; IA32_APIC_BASE, the time-stamp counter, x87 and SSE state and the other MSRs stay
/// (same table).
///
/// # Errors
/// If KVM refuses; the vCPU may then have a part of the state, and must not run.
pub fn apply_startup(vcpu: &VcpuFd, startup: Startup) -> Result<(), CallError> {
    match startup {
        Startup::Init { .. } => init(vcpu),
        Startup::Sipi { vector } => sipi(vcpu, vector),
    }
}

fn init(vcpu: &VcpuFd) -> Result<(), CallError> {
    let old = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    vcpu.set_sregs(&sregs_after_init(&old))
        .map_err(failed("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: RESET_VECTOR,
        rflags: RFLAGS_RESET,
        // Family, model and stepping.
        rdx: signature(vcpu)?.into(),
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
    let debug = kvm_debugregs {
        dr6: DR6_RESET,
        dr7: DR7_RESET,
        ..Default::default()
    };
    vcpu.set_debug_regs(&debug)
        .map_err(failed("KVM_SET_DEBUGREGS"))?;
    // Nothing is on its way in, no NMI is blocked, no shadow.
    let events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    vcpu.set_vcpu_events(&events)
        .map_err(failed("KVM_SET_VCPU_EVENTS"))
}

fn sregs_after_init(old: &kvm_sregs) -> kvm_sregs {
    let data = kvm_segment {
        limit: 0xffff,
        // Read, write, accessed.
        type_: 3,
        present: 1,
        s: 1,
        ..Default::default()
    };
    let table = kvm_dtable {
        limit: 0xffff,
        ..Default::default()
    };
    kvm_sregs {
        cs: kvm_segment {
            selector: 0xf000,
            base: 0xffff_0000,
            // Execute, read, accessed.
            type_: 11,
            ..data
        },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        // Busy 32-bit TSS, which is the one that VMX takes; and LDT.
        tr: kvm_segment {
            type_: 11,
            s: 0,
            ..data
        },
        ldt: kvm_segment {
            type_: 2,
            s: 0,
            ..data
        },
        gdt: table,
        idt: table,
        cr0: CR0_ET | old.cr0 & (CR0_CD | CR0_NW),
        apic_base: old.apic_base,
        ..Default::default()
    }
}

/// SDM 3A, "MP Initialization Protocol Algorithm": the vector is the page.
fn sipi(vcpu: &VcpuFd, vector: u8) -> Result<(), CallError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    sregs.cs.selector = u16::from(vector) << 8;
    sregs.cs.base = u64::from(vector) << 12;
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let mut regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
    regs.rip = 0;
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
}

/// CPUID.1:EAX of this vCPU.
fn signature(vcpu: &VcpuFd) -> Result<u32, CallError> {
    let cpuid = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_CPUID2"))?;
    let leaf_1 = cpuid.as_slice().iter().find(|entry| entry.function == 1);
    Ok(leaf_1.map_or(0, |entry| entry.eax))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// crosvm and others start an AP for the second time with the paging and EFER of the first.
    #[test]
    fn init_keeps_nothing_but_the_cache_bits_and_the_apic_base() {
        let old = kvm_sregs {
            cr0: 0xe005_003b,
            cr2: 1,
            cr3: 2,
            cr4: 3,
            cr8: 4,
            efer: 0xd01,
            apic_base: 0xfee0_0c00,
            interrupt_bitmap: [1; 4],
            ..Default::default()
        };
        let new = sregs_after_init(&old);
        assert_eq!((new.cr0, new.apic_base), (0x6000_0010, 0xfee0_0c00));
        assert_eq!(
            (new.cr2, new.cr3, new.cr4, new.cr8, new.efer),
            (0, 0, 0, 0, 0)
        );
        assert_eq!(new.interrupt_bitmap, [0; 4]);
        assert_eq!(
            (new.cs.selector, new.cs.base, new.cs.limit),
            (0xf000, 0xffff_0000, 0xffff)
        );
        assert_eq!((new.idt.base, new.idt.limit), (0, 0xffff));
    }
}

//! A KVM vCPU's registers as a [`RegisterFile`], and back.
//!
//! Reads never change the vCPU. Writes are read-modify-write: fields that a debugger cannot name (the
//! interrupt bitmap, the APIC base) stay as they are.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use super::fxsave::{self, Offsets};
use crate::x86_64::bits::CR4_OSXSAVE;
use crate::x86_64::{
    CoreRegisters, DebugRegisters, DescriptorTable, RegisterFile, RegisterGroups, Segment,
    SpecialRegisters, StateComponents,
};

/// IA32_KERNEL_GS_BASE (SDM 4, table 2-2).
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// A register ioctl that KVM refused. Groups that were written before the named one are written; the
/// rest of the vCPU is unchanged.
#[derive(Debug, Error)]
pub enum RegistersError {
    /// The ioctl failed.
    #[error("{ioctl} failed")]
    Ioctl {
        /// The ioctl's name.
        ioctl: &'static str,
        /// The errno.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// `KVM_GET_MSRS` or `KVM_SET_MSRS` did not accept the register.
    #[error("{ioctl} refused MSR {msr:#x}: the value is not valid there, or this KVM lacks it")]
    Msr {
        /// The ioctl's name.
        ioctl: &'static str,
        /// The MSR's number.
        msr: u32,
    },
}

/// Names the ioctl in an error.
pub(super) fn ioctl(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RegistersError {
    move |source| RegistersError::Ioctl { ioctl, source }
}

/// Fills the `groups` of `file` from a vCPU that does not run. For [`RegisterGroups::FPU`] its special registers
/// are in `file`.
///
/// # Errors
/// If KVM refuses.
pub(super) fn read_registers(
    vcpu: &VcpuFd,
    groups: RegisterGroups,
    file: &mut RegisterFile,
) -> Result<(), RegistersError> {
    if groups.contains(RegisterGroups::CORE) {
        file.core = core_from_kvm(&vcpu.get_regs().map_err(ioctl("KVM_GET_REGS"))?);
    }
    if groups.contains(RegisterGroups::SPECIAL) {
        file.special = special_from_kvm(&vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?);
    }
    if groups.contains(RegisterGroups::FPU) {
        // Not KVM_GET_FPU: that leaves MXCSR out (x86.c, `kvm_arch_vcpu_ioctl_get_fpu`).
        let xsave = vcpu.get_xsave().map_err(ioctl("KVM_GET_XSAVE"))?;
        // XCR0 is in force if CR4.OSXSAVE is set (SDM 1 13.3).
        let enabled = if file.special.cr4 & CR4_OSXSAVE == 0 {
            StateComponents::empty()
        } else {
            fxsave::components(xcr0(vcpu))
        };
        file.fpu = fxsave::decode(&xsave.region, enabled, Offsets::of_host());
    }
    if groups.contains(RegisterGroups::MSRS) {
        file.kernel_gs_base = read_msr(vcpu, MSR_KERNEL_GS_BASE)?;
    }
    if groups.contains(RegisterGroups::DEBUG) {
        file.debug = read_debug_registers(vcpu)?;
    }
    Ok(())
}

/// Sets the `groups` of a vCPU that does not run from `file`.
///
/// # Errors
/// If KVM refuses, for instance a control register that the architecture forbids.
pub(super) fn write_registers(
    vcpu: &VcpuFd,
    groups: RegisterGroups,
    file: &RegisterFile,
) -> Result<(), RegistersError> {
    // Special registers first: they decide what the others mean, and KVM checks them.
    if groups.contains(RegisterGroups::SPECIAL) {
        let mut sregs = vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?;
        special_to_kvm(&file.special, &mut sregs);
        vcpu.set_sregs(&sregs).map_err(ioctl("KVM_SET_SREGS"))?;
    }
    if groups.contains(RegisterGroups::CORE) {
        vcpu.set_regs(&core_to_kvm(&file.core))
            .map_err(ioctl("KVM_SET_REGS"))?;
    }
    if groups.contains(RegisterGroups::FPU) {
        let mut xsave = vcpu.get_xsave().map_err(ioctl("KVM_GET_XSAVE"))?;
        fxsave::encode(&file.fpu, &mut xsave.region, Offsets::of_host());
        #[expect(
            unsafe_code,
            reason = "kvm-ioctls leaves the size of the buffer to the caller"
        )]
        // SAFETY: KVM_GET_XSAVE has just succeeded for this vCPU, which it does only if its state
        // fits into `struct kvm_xsave` (x86.c, `kvm_vcpu_ioctl_x86_get_xsave`).
        unsafe { vcpu.set_xsave(&xsave) }.map_err(ioctl("KVM_SET_XSAVE"))?;
    }
    if groups.contains(RegisterGroups::MSRS) {
        write_msr(vcpu, MSR_KERNEL_GS_BASE, file.kernel_gs_base)?;
    }
    if groups.contains(RegisterGroups::DEBUG) {
        let DebugRegisters { dr, dr6, dr7 } = file.debug;
        let registers = kvm_debugregs {
            db: dr,
            dr6,
            dr7,
            ..get_debug_registers(vcpu)?
        };
        vcpu.set_debug_regs(&registers)
            .map_err(ioctl("KVM_SET_DEBUGREGS"))?;
    }
    Ok(())
}

/// XCR0. A KVM without one has no component to enable.
fn xcr0(vcpu: &VcpuFd) -> u64 {
    let Ok(all) = vcpu.get_xcrs() else {
        return 0;
    };
    let count = usize::try_from(all.nr_xcrs).unwrap_or(0);
    let found = all.xcrs.iter().take(count).find(|xcr| xcr.xcr == 0);
    found.map_or(0, |xcr| xcr.value)
}

fn get_debug_registers(vcpu: &VcpuFd) -> Result<kvm_debugregs, RegistersError> {
    vcpu.get_debug_regs().map_err(ioctl("KVM_GET_DEBUGREGS"))
}

/// The guest's own debug registers: KVM keeps those of `KVM_SET_GUEST_DEBUG` elsewhere.
pub(super) fn read_debug_registers(vcpu: &VcpuFd) -> Result<DebugRegisters, RegistersError> {
    let kvm_debugregs { db, dr6, dr7, .. } = get_debug_registers(vcpu)?;
    Ok(DebugRegisters { dr: db, dr6, dr7 })
}

fn one_msr(index: u32, data: u64) -> Option<Msrs> {
    Msrs::from_entries(&[kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }])
    .ok()
}

pub(super) fn read_msr(vcpu: &VcpuFd, msr: u32) -> Result<u64, RegistersError> {
    const NAME: &str = "KVM_GET_MSRS";
    let refused = RegistersError::Msr { ioctl: NAME, msr };
    let Some(mut msrs) = one_msr(msr, 0) else {
        return Err(refused);
    };
    if vcpu.get_msrs(&mut msrs).map_err(ioctl(NAME))? != 1 {
        return Err(refused);
    }
    msrs.as_slice()
        .first()
        .map(|entry| entry.data)
        .ok_or(refused)
}

pub(super) fn write_msr(vcpu: &VcpuFd, msr: u32, data: u64) -> Result<(), RegistersError> {
    const NAME: &str = "KVM_SET_MSRS";
    let refused = RegistersError::Msr { ioctl: NAME, msr };
    let Some(msrs) = one_msr(msr, data) else {
        return Err(refused);
    };
    if vcpu.set_msrs(&msrs).map_err(ioctl(NAME))? != 1 {
        return Err(refused);
    }
    Ok(())
}

/// Copies one struct's fields into another, by name. Both are named in full: if a field is missing in
/// either, this does not compile.
macro_rules! same_names {
    ($value:expr, $from:ident, $to:ident: $($field:ident)*) => {{
        let $from { $($field),* } = $value;
        $to { $($field),* }
    }};
}

macro_rules! same_core_registers {
    ($value:expr, $from:ident, $to:ident) => {
        same_names!($value, $from, $to:
            rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags)
    };
}

/// General-purpose registers from `struct kvm_regs`.
#[must_use]
pub(super) fn core_from_kvm(regs: &kvm_regs) -> CoreRegisters {
    same_core_registers!(*regs, kvm_regs, CoreRegisters)
}

/// `struct kvm_regs` from general-purpose registers.
#[must_use]
pub(super) fn core_to_kvm(core: &CoreRegisters) -> kvm_regs {
    same_core_registers!(*core, CoreRegisters, kvm_regs)
}

fn segment_from_kvm(segment: &kvm_segment) -> Segment {
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        kind: segment.type_,
        dpl: segment.dpl,
        present: segment.present != 0,
        code_or_data: segment.s != 0,
        long: segment.l != 0,
        default_big: segment.db != 0,
        granularity: segment.g != 0,
        available: segment.avl != 0,
        unusable: segment.unusable != 0,
    }
}

fn segment_to_kvm(segment: &Segment) -> kvm_segment {
    kvm_segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        type_: segment.kind,
        dpl: segment.dpl,
        present: segment.present.into(),
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        db: segment.default_big.into(),
        g: segment.granularity.into(),
        avl: segment.available.into(),
        unusable: segment.unusable.into(),
        padding: 0,
    }
}

fn table_from_kvm(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: table.base,
        limit: table.limit,
    }
}

fn table_to_kvm(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..Default::default()
    }
}

/// Special registers from `struct kvm_sregs`.
#[must_use]
pub(super) fn special_from_kvm(sregs: &kvm_sregs) -> SpecialRegisters {
    let kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        // Injection state: KVM_GET_VCPU_EVENTS has it in full.
        interrupt_bitmap: _,
    } = sregs;
    SpecialRegisters {
        cs: segment_from_kvm(cs),
        ss: segment_from_kvm(ss),
        ds: segment_from_kvm(ds),
        es: segment_from_kvm(es),
        fs: segment_from_kvm(fs),
        gs: segment_from_kvm(gs),
        tr: segment_from_kvm(tr),
        ldtr: segment_from_kvm(ldt),
        gdtr: table_from_kvm(gdt),
        idtr: table_from_kvm(idt),
        cr0: *cr0,
        cr2: *cr2,
        cr3: *cr3,
        cr4: *cr4,
        cr8: *cr8,
        efer: *efer,
        apic_base: *apic_base,
    }
}

/// Puts special registers into `struct kvm_sregs`, and leaves the interrupt bitmap alone.
pub(super) fn special_to_kvm(special: &SpecialRegisters, sregs: &mut kvm_sregs) {
    let SpecialRegisters {
        cs,
        ss,
        ds,
        es,
        fs,
        gs,
        tr,
        ldtr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
    } = special;
    *sregs = kvm_sregs {
        cs: segment_to_kvm(cs),
        ds: segment_to_kvm(ds),
        es: segment_to_kvm(es),
        fs: segment_to_kvm(fs),
        gs: segment_to_kvm(gs),
        ss: segment_to_kvm(ss),
        tr: segment_to_kvm(tr),
        ldt: segment_to_kvm(ldtr),
        gdt: table_to_kvm(gdtr),
        idt: table_to_kvm(idtr),
        cr0: *cr0,
        cr2: *cr2,
        cr3: *cr3,
        cr4: *cr4,
        cr8: *cr8,
        efer: *efer,
        apic_base: *apic_base,
        interrupt_bitmap: sregs.interrupt_bitmap,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each register gets a different value: a swapped pair shows.
    #[test]
    fn general_purpose_registers_keep_their_names() {
        let regs = kvm_regs {
            rax: 1,
            rbx: 2,
            rcx: 3,
            rdx: 4,
            rsi: 5,
            rdi: 6,
            rsp: 7,
            rbp: 8,
            r8: 9,
            r9: 10,
            r10: 11,
            r11: 12,
            r12: 13,
            r13: 14,
            r14: 15,
            r15: 16,
            rip: 17,
            rflags: 18,
        };
        let core = core_from_kvm(&regs);
        assert_eq!((core.rax, core.rbx, core.rcx, core.rdx), (1, 2, 3, 4));
        assert_eq!((core.rsi, core.rdi, core.rsp, core.rbp), (5, 6, 7, 8));
        assert_eq!((core.r8, core.r9, core.r10, core.r11), (9, 10, 11, 12));
        assert_eq!((core.r12, core.r13, core.r14, core.r15), (13, 14, 15, 16));
        assert_eq!((core.rip, core.rflags), (17, 18));
        assert_eq!(core_to_kvm(&core), regs);
    }

    #[test]
    fn special_registers_survive_the_way_there_and_back() {
        let segment = |n: u8| kvm_segment {
            base: u64::from(n) << 32,
            limit: u32::from(n),
            selector: u16::from(n) << 3,
            type_: n & 0xf,
            present: n & 1,
            dpl: n & 3,
            db: (n >> 1) & 1,
            s: 1,
            l: (n >> 2) & 1,
            g: n & 1,
            avl: (n >> 1) & 1,
            unusable: (n >> 2) & 1,
            padding: 0,
        };
        let table = |n: u16| kvm_dtable {
            base: u64::from(n),
            limit: n,
            ..Default::default()
        };
        let sregs = kvm_sregs {
            cs: segment(1),
            ds: segment(2),
            es: segment(3),
            fs: segment(4),
            gs: segment(5),
            ss: segment(6),
            tr: segment(7),
            ldt: segment(8),
            gdt: table(9),
            idt: table(10),
            cr0: 11,
            cr2: 12,
            cr3: 13,
            cr4: 14,
            cr8: 15,
            efer: 16,
            apic_base: 17,
            interrupt_bitmap: [1, 2, 3, 4],
        };
        let special = special_from_kvm(&sregs);
        assert_eq!(special.fs.base, 4 << 32);
        assert_eq!(special.gs.base, 5 << 32);
        assert_eq!(special.ldtr.selector, 8 << 3);
        assert_eq!((special.gdtr.limit, special.idtr.limit), (9, 10));
        let mut back = kvm_sregs {
            interrupt_bitmap: [1, 2, 3, 4],
            ..Default::default()
        };
        special_to_kvm(&special, &mut back);
        assert_eq!(back, sregs);
    }
}

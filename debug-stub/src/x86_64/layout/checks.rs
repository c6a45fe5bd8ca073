//! Which values a register accepts, and what else they change.

use super::table::{Rule, SegmentName};
use super::{RegisterId, WriteError};
use crate::GuestMemory;
use crate::x86_64::bits::{
    CR0_CD, CR0_DEFINED, CR0_ET, CR0_NW, CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, CR4_PCIDE,
    DR6_ACTIVE_LOW, DR6_WRITABLE, DR7_FIXED, DR7_WRITABLE, EFER_LMA, EFER_LME, RFLAGS_FIXED,
    RFLAGS_RESERVED, RFLAGS_VM, is_canonical,
};
use crate::x86_64::descriptor::{self, SELECTOR_RPL};
use crate::x86_64::registers::LINEAR_32;
use crate::x86_64::{
    CoreRegisters, Mode, RegisterFile, Segment, SpecialRegisters, StateComponents,
};

/// Descriptor type bit 3: code.
const KIND_CODE: u8 = 1 << 3;
/// Descriptor type bit 2 of code: conforming.
const KIND_CONFORMING: u8 = 1 << 2;
/// Descriptor type bit 1: data can be written, code can be read.
const KIND_ACCESSIBLE: u8 = 1 << 1;
/// Descriptor type bit 0: accessed.
const KIND_ACCESSED: u8 = 1;

/// Stores one value in `after`, unless it is wrong in every mode.
pub(super) fn store(
    id: RegisterId,
    after: &mut RegisterFile,
    memory: &impl GuestMemory,
    value: u128,
) -> Result<(), WriteError> {
    let row = id.row();
    let name = id.name();
    if !id.is_whole(after) {
        return Err(WriteError::TooNarrow { register: name });
    }
    // What a narrow register does not show is kept.
    let hidden = match row.rule {
        Rule::ProgramCounter | Rule::StackPointer => 0,
        _ => (row.get)(after) & !id.mask(),
    };
    let set = |after: &mut RegisterFile, value: u64| (row.set)(after, u128::from(value) | hidden);
    // Registers with rules have at most 64 bits.
    let low = u64::try_from(value & u128::from(u64::MAX)).unwrap_or_default();
    let only = |defined: u64| match low & !defined {
        0 => Ok(low),
        bits => Err(WriteError::ReservedBits {
            register: name,
            bits,
        }),
    };
    match row.rule {
        Rule::Any | Rule::Address => (row.set)(after, value | hidden),
        Rule::ProgramCounter => after.core.rip = instruction_pointer(name, after, low)?,
        Rule::StackPointer => after.core.rsp = stack_pointer(name, after, low)?,
        Rule::Bits(defined) => set(after, only(defined)?),
        Rule::Flags => set(after, (low & !RFLAGS_RESERVED) | RFLAGS_FIXED),
        Rule::SegmentBase if low > LINEAR_32 => return address(name, low),
        Rule::SegmentBase if after.core.rflags & RFLAGS_VM != 0 => {
            return Err(WriteError::State {
                register: name,
                value: low,
                reason: "it is 16 times the selector in virtual-8086 mode",
            });
        }
        Rule::SegmentBase => set(after, low),
        Rule::Dr6 => set(after, (only(0xffff_ffff)? & DR6_WRITABLE) | DR6_ACTIVE_LOW),
        Rule::Dr7 => set(after, (only(0xffff_ffff)? & DR7_WRITABLE) | DR7_FIXED),
        Rule::Component(component) if !after.fpu.components().contains(component) => {
            return Err(not_enabled(id, component));
        }
        Rule::Component(_) => (row.set)(after, value),
        // Written whole, and not as a number.
        Rule::ZmmHigh(_) => return Err(not_enabled(id, StateComponents::AVX512)),
        Rule::ReadOnly(reason) => {
            return Err(WriteError::State {
                register: name,
                value: low,
                reason,
            });
        }
        Rule::Cr0 => set(after, (only(0xffff_ffff)? & CR0_DEFINED) | CR0_ET),
        Rule::Selector(role, segment) => {
            let selector = u16::try_from(only(0xffff)?).unwrap_or_default();
            let old = *segment(&mut after.special);
            let new = load(&after.core, &after.special, memory, role, old, selector).map_err(
                |reason| WriteError::Selector {
                    register: name,
                    selector,
                    reason,
                },
            )?;
            *segment(&mut after.special) = new;
        }
    }
    Ok(())
}

/// The error of a register whose state component the guest has not enabled.
pub(super) fn not_enabled(id: RegisterId, component: StateComponents) -> WriteError {
    WriteError::NotEnabled {
        register: id.name(),
        component: match component {
            StateComponents::AVX => "AVX",
            StateComponents::AVX512 => "AVX-512",
            _ => "PKRU",
        },
    }
}

/// Returns RIP for an instruction at a linear address.
fn instruction_pointer(
    register: &'static str,
    file: &RegisterFile,
    linear: u64,
) -> Result<u64, WriteError> {
    if Mode::of(file).is_64_bit() {
        return Ok(linear);
    }
    if linear > LINEAR_32 {
        return address(register, linear);
    }
    let cs = &file.special.cs;
    let offset = linear.wrapping_sub(cs.base) & LINEAR_32;
    if offset > u64::from(cs.limit) {
        return Err(WriteError::State {
            register,
            value: linear,
            reason: "it is outside the code segment: write cs first",
        });
    }
    Ok(offset)
}

/// Returns RSP for a top of the stack at a linear address. Bits that the stack does not use are kept.
fn stack_pointer(
    register: &'static str,
    file: &RegisterFile,
    linear: u64,
) -> Result<u64, WriteError> {
    if Mode::of(file).is_64_bit() {
        return Ok(linear);
    }
    if linear > LINEAR_32 {
        return address(register, linear);
    }
    let mask = file.stack_mask();
    let offset = linear.wrapping_sub(file.special.ss.base) & LINEAR_32;
    if offset & !mask != 0 {
        return Err(WriteError::State {
            register,
            value: linear,
            reason: "it is outside the stack segment: write ss first",
        });
    }
    Ok(file.core.rsp & !mask | offset)
}

/// Returns what a segment register holds after a load of `selector`.
fn load(
    core: &CoreRegisters,
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    name: SegmentName,
    old: Segment,
    selector: u16,
) -> Result<Segment, &'static str> {
    let base = u64::from(selector) << 4;
    if core.rflags & RFLAGS_VM != 0 {
        // SDM 3B 21.2.1: 64 KiB of read/write data at DPL 3, CS as well.
        return Ok(Segment {
            selector,
            base,
            limit: 0xffff,
            kind: KIND_ACCESSIBLE | KIND_ACCESSED,
            dpl: 3,
            present: true,
            code_or_data: true,
            ..Segment::default()
        });
    }
    if special.cr0 & CR0_PE == 0 {
        // SDM 3A 10.9.1, 21.1.1: the limit and the rest stay. "Unreal mode" depends on it.
        let hidden = if old.unusable || !old.present {
            Segment {
                limit: 0xffff,
                kind: KIND_ACCESSIBLE | KIND_ACCESSED,
                present: true,
                code_or_data: true,
                ..Segment::default()
            }
        } else {
            old
        };
        return Ok(Segment {
            selector,
            base,
            ..hidden
        });
    }
    load_protected(special, memory, name, selector)
}

/// SDM 2 "MOV—Move", loading segment registers; SDM 3A 5.5, 5.7.
fn load_protected(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    name: SegmentName,
    selector: u16,
) -> Result<Segment, &'static str> {
    let rpl = rpl(selector);
    let cpl = rpl_of(&special.cs);
    if descriptor::is_null(selector) {
        let allowed = match name {
            SegmentName::Data => true,
            SegmentName::Stack => is_64_bit(special) && cpl != 3 && rpl == cpl,
            SegmentName::Code => false,
        };
        if !allowed {
            return Err("a null selector cannot be loaded here");
        }
        return Ok(Segment {
            selector,
            dpl: rpl,
            unusable: true,
            ..Segment::default()
        });
    }
    let segment = descriptor::read(special, memory, selector)?;
    let kind = segment.kind;
    let code = kind & KIND_CODE != 0;
    if !segment.code_or_data {
        return Err("its descriptor is that of a system segment");
    }
    if !segment.present {
        return Err("its descriptor is not present");
    }
    match name {
        SegmentName::Code if !code => return Err("its descriptor is not that of code"),
        SegmentName::Code if segment.long && segment.default_big => {
            return Err("its descriptor has both L and D set");
        }
        SegmentName::Stack if code || kind & KIND_ACCESSIBLE == 0 => {
            return Err("its descriptor is not that of writable data");
        }
        SegmentName::Data if code && kind & KIND_ACCESSIBLE == 0 => {
            return Err("its descriptor is that of code that cannot be read");
        }
        SegmentName::Data
            if !(code && kind & KIND_CONFORMING != 0) && segment.dpl < rpl.max(cpl) =>
        {
            return Err("its descriptor is more privileged than the CPL or RPL");
        }
        _ => {}
    }
    Ok(Segment {
        // The CPU sets it at the load, and hypervisors require it. Memory is not changed.
        kind: kind | KIND_ACCESSED,
        ..segment
    })
}

/// Makes values that depend on several registers consistent, and refuses a change that the CPU
/// would refuse. Only changes are checked: the rest is the guest's own.
pub(super) fn settle(before: &RegisterFile, after: &mut RegisterFile) -> Result<(), WriteError> {
    control_registers(&before.special, &mut after.special)?;
    let old = &before.special;
    let new = &after.special;
    let refuse = |register, value, reason| {
        Err(WriteError::State {
            register,
            value,
            reason,
        })
    };
    let vm = after.core.rflags & RFLAGS_VM;
    if vm != before.core.rflags & RFLAGS_VM {
        // The hidden parts of all segments differ between the two modes.
        let reason = "only the guest itself can enter or leave virtual-8086 mode";
        return refuse("eflags", after.core.rflags, reason);
    }
    if vm != 0 && new.cr0 & CR0_PE == 0 {
        return refuse("cr0", new.cr0, "virtual-8086 mode needs protected mode");
    }
    if vm == 0 && new.cr0 & CR0_PE != 0 && (old.cs != new.cs || old.ss != new.ss) {
        privilege(new)?;
    }
    if (old.cs, before.core.rip) != (new.cs, after.core.rip) {
        let rip = after.core.rip;
        let fits = if is_64_bit(new) {
            is_canonical(rip, linear_width(new))
        } else {
            rip >> 32 == 0
        };
        if !fits {
            return address("rip", rip);
        }
    }
    for (register, was, is) in [
        ("fs_base", old.fs.base, new.fs.base),
        ("gs_base", old.gs.base, new.gs.base),
        ("k_gs_base", before.kernel_gs_base, after.kernel_gs_base),
        ("gdtr_base", old.gdtr.base, new.gdtr.base),
        ("idtr_base", old.idtr.base, new.idtr.base),
    ] {
        if was != is && !is_canonical(is, linear_width(new)) {
            return address(register, is);
        }
    }
    Ok(())
}

fn address<T>(register: &'static str, value: u64) -> Result<T, WriteError> {
    Err(WriteError::Address { register, value })
}

/// CR0, CR3, CR4 and EFER together (SDM 3A 2.5, 10.8.5; the same as KVM_SET_SREGS checks).
fn control_registers(old: &SpecialRegisters, new: &mut SpecialRegisters) -> Result<(), WriteError> {
    if (old.cr0, old.cr3, old.cr4, old.efer) == (new.cr0, new.cr3, new.cr4, new.efer) {
        return Ok(());
    }
    let paging = new.cr0 & CR0_PG != 0;
    let long = paging && new.efer & EFER_LME != 0;
    // The CPU sets LMA; software cannot.
    new.efer = if long {
        new.efer | EFER_LMA
    } else {
        new.efer & !EFER_LMA
    };
    let was_long = old.efer & EFER_LMA != 0;
    let state = |register, value, reason| {
        Err(WriteError::State {
            register,
            value,
            reason,
        })
    };
    if paging && new.cr0 & CR0_PE == 0 {
        return state("cr0", new.cr0, "PG needs PE");
    }
    if new.cr0 & CR0_NW != 0 && new.cr0 & CR0_CD == 0 {
        return state("cr0", new.cr0, "NW needs CD");
    }
    if long && new.cr4 & CR4_PAE == 0 {
        return state("cr4", new.cr4, "long mode needs PAE");
    }
    if long != was_long {
        if paging && old.cr0 & CR0_PG != 0 {
            return state("efer", new.efer, "LME changes only while paging is off");
        }
        if new.cs.long {
            return state("cr0", new.cr0, "long mode starts and ends with CS.L clear");
        }
    }
    if long && was_long && (old.cr4 ^ new.cr4) & CR4_LA57 != 0 {
        return state("cr4", new.cr4, "LA57 changes only outside long mode");
    }
    if new.cr4 & CR4_PCIDE != 0 && !long {
        return state("cr4", new.cr4, "PCIDE needs long mode");
    }
    if !long && new.cr3 >> 32 != 0 {
        return state("cr3", new.cr3, "CR3 has 32 bits outside long mode");
    }
    Ok(())
}

/// One privilege level for CS and SS (SDM 3A 5.5; SDM 3C 27.3.1.2).
fn privilege(new: &SpecialRegisters) -> Result<(), WriteError> {
    let cpl = rpl_of(&new.cs);
    let refuse = |register, segment: &Segment, reason| {
        Err(WriteError::Selector {
            register,
            selector: segment.selector,
            reason,
        })
    };
    let conforming = new.cs.kind & KIND_CONFORMING != 0;
    if new.cs.dpl != cpl && !(conforming && new.cs.dpl < cpl) {
        return refuse("cs", &new.cs, "its descriptor has another privilege level");
    }
    if rpl_of(&new.ss) != cpl || new.ss.dpl != cpl {
        let reason = "the privilege levels of CS and SS would differ";
        return refuse("ss", &new.ss, reason);
    }
    Ok(())
}

fn is_64_bit(special: &SpecialRegisters) -> bool {
    special.efer & EFER_LMA != 0 && special.cs.long
}

fn linear_width(special: &SpecialRegisters) -> u32 {
    if special.cr4 & CR4_LA57 != 0 { 57 } else { 48 }
}

fn rpl_of(segment: &Segment) -> u8 {
    rpl(segment.selector)
}

fn rpl(selector: u16) -> u8 {
    u8::try_from(selector & SELECTOR_RPL).unwrap_or_default()
}

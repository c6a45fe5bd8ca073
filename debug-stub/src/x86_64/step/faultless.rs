//! Instructions that certainly raise nothing: their steps need no execute breakpoint at a handler.
//!
//! Debug registers cost a step more than all else that it needs. So an instruction is looked at
//! closely: what it is, each byte of memory that it touches, and where it leads. What is not known
//! to be harmless is not.
//!
//! Not covered: a TLB entry with fewer rights than the tables have (SDM 3A 4.10.4.3), and tables
//! that another vCPU changes between the plan and the step.

use iced_x86::{
    CpuidFeature, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess,
    Register, UsedMemory,
};

use super::StepClass;
use super::decode::Successor;
use super::machine::Machine;
use super::operand::{self, Extent};
use super::unit::Unit;
use crate::x86_64::bits::{
    CR0_AM, CR0_EM, CR0_TS, CR0_WP, CR4_CET, CR4_OSFXSR, CR4_PKE, CR4_SMAP, CR4_SMEP, RFLAGS_AC,
    RFLAGS_IOPL,
};
use crate::x86_64::paging::{PagingMode, translate};
use crate::x86_64::{Segment, Translation};
use crate::{GuestMemory, GuestVirtAddr};

/// Bytes that all iterations of a string instruction touch, at most: more pages are not looked up for each step.
const MOST: u64 = 1 << 14;

/// Returns `true` if the instruction certainly raises no exception.
pub(super) fn is_faultless(unit: &Unit, memory: &impl GuestMemory) -> bool {
    let machine = &unit.machine;
    let instruction = &unit.decoded.instruction;
    let special = &machine.special;
    // Rights that are not looked at.
    let strict = special.cr4 & (CR4_CET | CR4_PKE) != 0
        || (machine.cpl() == 3
            && special.cr0 & CR0_AM != 0
            && machine.core.rflags & RFLAGS_AC != 0);
    // A stack of another width than the code's is rare.
    let stacks_differ = machine.stack_bits() != machine.bitness();
    !strict
        && !machine.virtual_8086()
        && !stacks_differ
        && is_harmless(machine, unit.class(), instruction)
        && may_fetch(unit, memory)
        && leads_somewhere(unit)
        && touches_only_what_it_may(unit, memory)
}

/// The instruction itself raises nothing, whatever its operands are.
fn is_harmless(machine: &Machine, class: StepClass, instruction: &Instruction) -> bool {
    let special = &machine.special;
    let class_is_plain = match class {
        StepClass::Plain | StepClass::Branch | StepClass::PushFlags | StepClass::PopFlags => true,
        StepClass::EnableInterrupts | StepClass::PortIo => may_do_io(machine),
        StepClass::RepeatString => !is_port_string(instruction),
        _ => false,
    };
    let raises = matches!(
        instruction.mnemonic(),
        Mnemonic::Div
            | Mnemonic::Idiv
            | Mnemonic::Aam
            | Mnemonic::Bound
            | Mnemonic::Ud0
            | Mnemonic::Ud1
            | Mnemonic::Ud2
            | Mnemonic::Retf
            | Mnemonic::Lds
            | Mnemonic::Les
            | Mnemonic::Lfs
            | Mnemonic::Lgs
            | Mnemonic::Lss
            | Mnemonic::Enter
    );
    let loads_segment = instruction.op_count() > 0
        && instruction.op0_register().is_segment_register()
        && !machine.real_segments();
    let io = !matches!(instruction.mnemonic(), Mnemonic::Cli | Mnemonic::Sti) || may_do_io(machine);
    let far = instruction.is_jmp_far()
        || instruction.is_call_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far_indirect();
    let privileged = instruction.is_privileged()
        && !matches!(instruction.mnemonic(), Mnemonic::Cli | Mnemonic::Sti)
        && class != StepClass::PortIo;
    let simd_works = special.cr0 & (CR0_TS | CR0_EM) == 0 && special.cr4 & CR4_OSFXSR != 0;
    let known = instruction
        .cpuid_features()
        .iter()
        .all(|feature| match feature {
            CpuidFeature::INTEL8086
            | CpuidFeature::INTEL8086_ONLY
            | CpuidFeature::INTEL186
            | CpuidFeature::INTEL386
            | CpuidFeature::INTEL386_ONLY
            | CpuidFeature::INTEL486
            | CpuidFeature::X64
            | CpuidFeature::CMOV
            | CpuidFeature::MULTIBYTENOP
            | CpuidFeature::PAUSE => true,
            // Arithmetic of floating point may raise #XM: moves and integers do not.
            CpuidFeature::SSE | CpuidFeature::SSE2 => simd_works && is_integer(instruction),
            _ => false,
        });
    class_is_plain && known && io && !raises && !loads_segment && !far && !privileged
}

fn is_port_string(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Insb
            | Mnemonic::Insw
            | Mnemonic::Insd
            | Mnemonic::Outsb
            | Mnemonic::Outsw
            | Mnemonic::Outsd
    )
}

/// Moves and logic of SSE, of which those that need alignment are left out.
fn is_integer(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Movups
            | Mnemonic::Movdqu
            | Mnemonic::Movd
            | Mnemonic::Movq
            | Mnemonic::Pxor
            | Mnemonic::Xorps
    ) && (instruction.op_count() < 2
        || instruction.op0_kind() == iced_x86::OpKind::Memory
        || instruction.op1_kind() != iced_x86::OpKind::Memory
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Movups | Mnemonic::Movdqu | Mnemonic::Movd | Mnemonic::Movq
        ))
}

/// CPL does not exceed IOPL (SDM 1 19.5.1).
fn may_do_io(machine: &Machine) -> bool {
    u64::from(machine.cpl()) <= (machine.core.rflags & RFLAGS_IOPL) >> 12
}

fn may_fetch(unit: &Unit, memory: &impl GuestMemory) -> bool {
    let machine = &unit.machine;
    let cs = &machine.special.cs;
    let length = u64::try_from(unit.decoded.length).unwrap_or(u64::MAX);
    let last = machine.core.rip.wrapping_add(length).wrapping_sub(1);
    if !machine.is_64_bit() && last > u64::from(cs.limit) {
        return false;
    }
    let start = machine.linear(cs, machine.core.rip);
    each_page(machine, memory, start, length, |page| {
        let user = machine.cpl() == 3;
        let smep = machine.special.cr4 & CR4_SMEP != 0;
        page.executable
            && if user {
                page.user
            } else {
                !(smep && page.user)
            }
    })
}

/// The next instruction is at an address that there is.
fn leads_somewhere(unit: &Unit) -> bool {
    let machine = &unit.machine;
    let exists = |target: u64| {
        if machine.is_64_bit() {
            PagingMode::of(&machine.special).is_valid(GuestVirtAddr(target))
        } else {
            target <= u64::from(machine.special.cs.limit)
        }
    };
    match unit.decoded.successor {
        Successor::Next => exists(unit.next()),
        Successor::NextOr(target) => exists(unit.next()) && exists(target),
        Successor::Only(target, _) => exists(target),
        Successor::Anywhere => false,
    }
}

fn touches_only_what_it_may(unit: &Unit, memory: &impl GuestMemory) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(
        &unit.decoded.instruction,
        InstructionInfoOptions::NO_REGISTER_USAGE,
    );
    info.used_memory()
        .iter()
        .all(|used| may_touch(unit, used, memory))
}

fn may_touch(unit: &Unit, used: &UsedMemory, memory: &impl GuestMemory) -> bool {
    let machine = &unit.machine;
    let writes = match used.access() {
        // LEA and NOP name memory that they leave alone.
        OpAccess::None | OpAccess::NoMemAccess => return true,
        OpAccess::Read | OpAccess::CondRead => false,
        _ => true,
    };
    let extent = operand::extent(unit, used).filter(|extent| extent.length <= MOST);
    let Some(Extent { start, length }) = extent else {
        return false;
    };
    if length == 0 {
        return true;
    }
    if !machine.is_64_bit() {
        let Some(segment) = segment(machine, used.segment()) else {
            return false;
        };
        let offset = start.wrapping_sub(segment.base) & 0xffff_ffff;
        if !allows(machine, segment, offset, length, writes) {
            return false;
        }
    }
    let start = GuestVirtAddr(start);
    let user = machine.cpl() == 3;
    let protects = machine.special.cr0 & CR0_WP != 0;
    let smap = machine.special.cr4 & CR4_SMAP != 0 && machine.core.rflags & RFLAGS_AC == 0;
    each_page(machine, memory, start, length, |page| {
        (page.writable || !writes || !(user || protects))
            && if user {
                page.user
            } else {
                !(smap && page.user)
            }
    })
}

fn segment(machine: &Machine, register: Register) -> Option<&Segment> {
    let special = &machine.special;
    Some(match register {
        Register::CS => &special.cs,
        Register::DS => &special.ds,
        Register::ES => &special.es,
        Register::FS => &special.fs,
        Register::GS => &special.gs,
        Register::SS => &special.ss,
        _ => return None,
    })
}

/// Limit and type (SDM 3A 5.3, 5.5), of segments that grow upwards.
fn allows(machine: &Machine, segment: &Segment, offset: u64, length: u64, writes: bool) -> bool {
    let fits = offset
        .checked_add(length - 1)
        .is_some_and(|last| last <= u64::from(segment.limit));
    if machine.real_segments() {
        return fits;
    }
    let is_code = segment.kind & 8 != 0;
    let second = segment.kind & 2 != 0;
    let may = match (is_code, writes) {
        // Data that grows downwards is left out.
        (false, _) if segment.kind & 4 != 0 => false,
        (false, true) => second,
        (false, false) => true,
        (true, true) => false,
        (true, false) => second,
    };
    fits && may && !segment.unusable && segment.present
}

/// `may` holds for each page of the bytes.
fn each_page(
    machine: &Machine,
    memory: &impl GuestMemory,
    start: GuestVirtAddr,
    length: u64,
    may: impl Fn(&Translation) -> bool,
) -> bool {
    let mut done = 0;
    while done < length {
        let Some(at) = start.checked_add(done) else {
            return false;
        };
        match translate(&machine.special, memory, at) {
            Ok(page) if may(&page) => done += page.bytes_to_page_end(),
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::RegisterFile;
    use crate::x86_64::bits::RFLAGS_DF;
    use crate::x86_64::simulated::{Habits, Ram, SimulatedVcpu};
    use crate::x86_64::step::StepPlan;

    const CODE: u64 = 0x8000;
    const TABLES: u64 = 0x1_0000;
    const IDT: u64 = 0x1_8000;
    /// The first address that has no page.
    const HOLE: u64 = 0x20_1000;

    /// The last page before the hole is mapped by [`Ram::map_alias`].
    fn faultless(code: &[u8], change: impl FnOnce(&mut RegisterFile)) -> bool {
        let memory = Ram::new(0x2_0000);
        memory.put(CODE, code);
        let cr3 = memory.map_one_to_one(TABLES);
        memory.map_alias(TABLES, 0x9000);
        let vcpu = SimulatedVcpu::long_mode(Habits::INTEL, cr3, IDT, CODE, 0x7000);
        let mut file = vcpu.registers().clone();
        change(&mut file);
        is_faultless(&StepPlan::new(&file, &memory).first, &memory)
    }

    #[test]
    fn a_load_is_faultless_up_to_the_end_of_its_page() {
        let load = |at| faultless(&[0x48, 0x8b, 0x03], |file| file.core.rbx = at);
        assert!(load(HOLE - 8));
        assert!(!load(HOLE - 7));
        assert!(!load(HOLE));
        assert!(!load(0x8000_0000_0000_0000));
    }

    #[test]
    fn a_string_instruction_is_faultless_if_all_iterations_are() {
        let repeat = |code: &[u8], count, from, to, backwards: bool| {
            faultless(code, |file| {
                (file.core.rcx, file.core.rsi, file.core.rdi) = (count, from, to);
                file.core.rflags |= if backwards { RFLAGS_DF } else { 0 };
            })
        };
        let moves = |count, from, to, back| repeat(&[0xf3, 0x48, 0xa5], count, from, to, back); // rep movsq
        assert!(moves(2, 0x4000, HOLE - 16, false));
        assert!(!moves(3, 0x4000, HOLE - 16, false));
        assert!(!moves(3, HOLE - 16, 0x4000, false));
        assert!(moves(3, 0x4000, HOLE - 8, true));
        assert!(!moves(1, 0x4000, HOLE - 4, true));
        // Below address 0.
        assert!(moves(3, 0x4000, 16, true));
        assert!(!moves(4, 0x4000, 16, true));
        // No iteration touches anything.
        assert!(moves(0, HOLE, HOLE, false));
        // More than is looked at.
        assert!(moves(MOST / 8, 0x1_0000, 0x4000, false));
        assert!(!moves(MOST / 8 + 1, 0x1_0000, 0x4000, false));
        assert!(!moves(u64::MAX, 0x1_0000, 0x4000, false));
        // By ESI and EDI, and ECX counts.
        let moves32 = |count, from, to| repeat(&[0x67, 0xf3, 0xa4], count, from, to, false);
        assert!(moves32(1 << 32 | 4, 1 << 32 | 0x4000, HOLE - 4));
        assert!(!moves32(1 << 32 | 5, 0x4000, HOLE - 4));
        for code in [
            &[0xf3, 0xaa][..], // rep stosb
            &[0xf2, 0xae],     // repne scasb
            &[0xf3, 0xa6],     // repe cmpsb
        ] {
            assert!(repeat(code, 4, 0x4000, HOLE - 4, false), "{code:x?}");
            assert!(!repeat(code, 5, 0x4000, HOLE - 4, false), "{code:x?}");
        }
        assert!(!repeat(&[0xf3, 0x6c], 1, 0x4000, 0x4000, false), "rep insb");
    }
}

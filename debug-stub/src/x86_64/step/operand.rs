//! Reads the operands that say where an instruction leads, as the instruction will read them.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register, UsedMemory};

use super::StepClass;
use super::machine::{Machine, width_mask};
use super::unit::Unit;
use crate::x86_64::bits::RFLAGS_DF;
use crate::x86_64::{Segment, descriptor};
use crate::{GuestMemory, GuestVirtAddr};

/// A far pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Popped {
    pub(super) ip: u64,
    pub(super) selector: u16,
}

/// The value of operand `index`: a register, or memory of the operand's size.
pub(super) fn value(
    machine: &Machine,
    memory: &impl GuestMemory,
    instruction: &Instruction,
    index: u32,
) -> Option<u64> {
    match instruction.try_op_kind(index).ok()? {
        OpKind::Register => register(machine, instruction.try_op_register(index).ok()?),
        OpKind::Memory => {
            let size = u64::try_from(instruction.memory_size().size()).ok()?;
            machine.read(memory, address(machine, instruction)?, size)
        }
        _ => None,
    }
}

/// The far pointer in memory that a JMP or CALL names.
pub(super) fn far_pointer(
    machine: &Machine,
    memory: &impl GuestMemory,
    instruction: &Instruction,
) -> Option<Popped> {
    let ip_size = match instruction.memory_size() {
        MemorySize::SegPtr16 => 2,
        MemorySize::SegPtr32 => 4,
        MemorySize::SegPtr64 => 8,
        _ => return None,
    };
    let at = address(machine, instruction)?;
    let ip = machine.read(memory, at, ip_size)?;
    let selector = machine.read(memory, at.checked_add(ip_size)?, 2)?;
    Some(Popped {
        ip,
        selector: u16::try_from(selector).ok()?,
    })
}

/// The far pointer that RETF is about to pop.
pub(super) fn popped_far(
    machine: &Machine,
    memory: &impl GuestMemory,
    size: u64,
) -> Option<Popped> {
    let ip = machine.stack_value(memory, 0, size)?;
    let selector = machine.stack_value(memory, size, 2)?;
    Some(Popped {
        ip,
        selector: u16::try_from(selector).ok()?,
    })
}

/// Returns `true` if a far transfer to `selector` goes through a call gate, a task gate or a TSS, which
/// name the target themselves (SDM 3A 5.8.2), or if that is unknown.
pub(super) fn is_gate(machine: &Machine, memory: &impl GuestMemory, selector: u16) -> bool {
    !machine.real_segments()
        && !descriptor::read(&machine.special, memory, selector)
            .is_ok_and(|segment| segment.code_or_data)
}

/// Applies MOV SS or POP SS to `machine`. Returns `None` if the result is unknown, or the instruction
/// faults.
pub(super) fn load_stack_segment(
    machine: &mut Machine,
    memory: &impl GuestMemory,
    instruction: &Instruction,
) -> Option<()> {
    let selector = if instruction.mnemonic() == Mnemonic::Pop {
        let selector = machine.stack_value(memory, 0, 2)?;
        // POP SS moves the stack pointer by the operand size, which is that of the code unless a
        // prefix says otherwise.
        let size = match instruction.stack_pointer_increment() {
            2 => 2,
            4 => 4,
            8 => 8,
            _ => return None,
        };
        let sp_mask = machine.sp_mask();
        let sp = machine.core.rsp.wrapping_add(size) & sp_mask;
        machine.core.rsp = (machine.core.rsp & !sp_mask) | sp;
        selector
    } else {
        match instruction.op1_kind() {
            OpKind::Register => register(machine, instruction.op1_register())? & 0xffff,
            _ => machine.read(memory, address(machine, instruction)?, 2)?,
        }
    };
    let selector = u16::try_from(selector).ok()?;
    if machine.real_segments() {
        machine.special.ss.selector = selector;
        machine.special.ss.base = u64::from(selector) << 4;
    } else if descriptor::is_null(selector) {
        // Allowed in 64-bit mode only, where the base is ignored.
        machine.special.ss.selector = selector;
    } else {
        machine.special.ss = descriptor::read(&machine.special, memory, selector).ok()?;
    }
    Some(())
}

/// The linear address of the memory operand.
pub(super) fn address(machine: &Machine, instruction: &Instruction) -> Option<GuestVirtAddr> {
    let index = (0..instruction.op_count())
        .find(|index| matches!(instruction.try_op_kind(*index), Ok(OpKind::Memory)))?;
    let linear = instruction.virtual_address(index, 0, |register_name, _, _| {
        register(machine, register_name)
    })?;
    let bits = if machine.is_64_bit() { 64 } else { 32 };
    Some(GuestVirtAddr(linear & width_mask(bits)))
}

/// The bytes of a memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The linear address of the first one.
    pub(super) start: u64,
    /// None: no iteration.
    pub(super) length: u64,
}

/// The bytes of a memory operand that the instruction touches; of a string instruction with REP the bytes of all
/// iterations, because one step may be one iteration, or all.
///
/// `None` if they are not known, or not one range: the addresses wrap.
pub(super) fn extent(unit: &Unit, used: &UsedMemory) -> Option<Extent> {
    let machine = &unit.machine;
    let linear = used.virtual_address(0, |name, _, _| register(machine, name))?;
    if used.vsib_size() != 0 {
        return None;
    }
    let (before, length) = if unit.class() == StepClass::RepeatString {
        iterations(unit, used.base())?
    } else {
        let length = u64::try_from(used.memory_size().size()).ok()?;
        (0, (length != 0).then_some(length)?)
    };
    let highest = width_mask(if machine.is_64_bit() { 64 } else { 32 });
    let start = linear.wrapping_sub(before) & highest;
    let last = start.checked_add(length.saturating_sub(1))?;
    (last <= highest).then_some(Extent { start, length })
}

/// What a string instruction with REP touches from its index register on: bytes before the first element, and
/// all bytes.
fn iterations(unit: &Unit, index: Register) -> Option<(u64, u64)> {
    let machine = &unit.machine;
    let size = u64::try_from(unit.decoded.instruction.memory_size().size()).ok()?;
    let (counter, bits) = match index.size() {
        2 => (Register::CX, 16),
        4 => (Register::ECX, 32),
        8 => (Register::RCX, 64),
        _ => return None,
    };
    let length = register(machine, counter)?.checked_mul(size)?;
    let before = if machine.core.rflags & RFLAGS_DF == 0 {
        0
    } else {
        length.saturating_sub(size)
    };
    let first = register(machine, index)?.checked_sub(before)?;
    let last = first.checked_add(length.saturating_sub(1))?;
    (size != 0 && last <= width_mask(bits)).then_some((before, length))
}

/// A general-purpose register's value, or a segment register's base. Selectors are not read here.
pub(super) fn register(machine: &Machine, register: Register) -> Option<u64> {
    let core = &machine.core;
    let special = &machine.special;
    // ES, CS, SS and DS have no base in 64-bit mode (SDM 3A 3.4.4).
    let flat = |segment: &Segment| if machine.is_64_bit() { 0 } else { segment.base };
    let full = match register.full_register() {
        Register::RAX => core.rax,
        Register::RBX => core.rbx,
        Register::RCX => core.rcx,
        Register::RDX => core.rdx,
        Register::RSI => core.rsi,
        Register::RDI => core.rdi,
        Register::RBP => core.rbp,
        Register::RSP => core.rsp,
        Register::R8 => core.r8,
        Register::R9 => core.r9,
        Register::R10 => core.r10,
        Register::R11 => core.r11,
        Register::R12 => core.r12,
        Register::R13 => core.r13,
        Register::R14 => core.r14,
        Register::R15 => core.r15,
        Register::ES => flat(&special.es),
        Register::CS => flat(&special.cs),
        Register::SS => flat(&special.ss),
        Register::DS => flat(&special.ds),
        Register::FS => special.fs.base,
        Register::GS => special.gs.base,
        _ => return None,
    };
    if register.is_segment_register() {
        return Some(full);
    }
    match register.size() {
        8 => Some(full),
        4 => Some(full & 0xffff_ffff),
        2 => Some(full & 0xffff),
        _ => None,
    }
}

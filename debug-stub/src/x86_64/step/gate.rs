//! Where an event leads: the gates of the IDT, and the tasks behind task gates (SDM 3A 6.11, 8.2).

use super::machine::Machine;
use crate::x86_64::bits::{CR4_VME, RFLAGS_VM};
use crate::x86_64::{Segment, descriptor};
use crate::{GuestMemory, GuestVirtAddr};

/// #DF, #TS, #NP, #GP: what is raised where a gate cannot be used (SDM 3A 6.15).
const DOUBLE_FAULT: u8 = 8;
const SEGMENT_NOT_PRESENT: u8 = 11;
const GENERAL_PROTECTION: u8 = 13;

/// Type fields of gates and system segments (SDM 3A table 3-2).
const TASK_GATE: u64 = 5;
const INTERRUPT_GATE_16: u64 = 6;
const TRAP_GATE_16: u64 = 7;
const INTERRUPT_GATE_32: u64 = 0xe;
const TRAP_GATE_32: u64 = 0xf;
const TSS_BUSY: u8 = 2;
const TSS_16: u8 = 1;
const TSS_32: u8 = 9;

/// Offset of the redirection bitmap's end in a 32-bit TSS (SDM 3B figure 20-5).
const IO_MAP_BASE: u64 = 0x66;

/// The linear address of the first instruction that an event of this vector leads to. An error is
/// the vector of the exception that is raised in its place.
pub(super) fn handler(machine: &Machine, memory: &impl GuestMemory, vector: u8) -> Result<u64, u8> {
    let idtr = machine.special.idtr;
    let index = u64::from(vector);
    if machine.real_segments() && !machine.virtual_8086() {
        return real_mode_handler(machine, memory, idtr.base, idtr.limit, index);
    }
    let long = machine.long_mode();
    let size = if long { 16 } else { 8 };
    if index * size + size - 1 > u64::from(idtr.limit) {
        return Err(GENERAL_PROTECTION);
    }
    let at = GuestVirtAddr(idtr.base.wrapping_add(index * size));
    let low = machine.read(memory, at, 8).ok_or(DOUBLE_FAULT)?;
    let kind = low >> 40 & 0x1f;
    let selector = u16::try_from(low >> 16 & 0xffff).unwrap_or_default();
    let offset = low & 0xffff | low >> 32 & 0xffff_0000;
    let known = match kind {
        INTERRUPT_GATE_32 | TRAP_GATE_32 => true,
        TASK_GATE | INTERRUPT_GATE_16 | TRAP_GATE_16 => !long,
        _ => false,
    };
    if !known {
        return Err(GENERAL_PROTECTION);
    }
    if low >> 47 & 1 == 0 {
        return Err(SEGMENT_NOT_PRESENT);
    }
    if long {
        let upper = at.checked_add(8).and_then(|at| machine.read(memory, at, 4));
        return Ok(offset | upper.ok_or(DOUBLE_FAULT)? << 32);
    }
    if kind == TASK_GATE {
        return task(machine, memory, selector)
            .map(|task| task.start)
            .ok_or(GENERAL_PROTECTION);
    }
    let wide = matches!(kind, INTERRUPT_GATE_32 | TRAP_GATE_32);
    let offset = if wide { offset } else { offset & 0xffff };
    let code = descriptor::read(&machine.special, memory, selector);
    let base = code.map_err(|_| GENERAL_PROTECTION)?.base;
    Ok(base.wrapping_add(offset) & 0xffff_ffff)
}

/// What an interrupt or trap gate of protected or 64-bit mode names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Linear address of the handler's first instruction.
    pub(super) address: u64,
    /// Its code segment.
    pub(super) selector: u16,
    /// The interrupt stack, from 1; 0 if none.
    pub(super) stack: u64,
}

/// What the gate of this vector names. `None` if it cannot be used, and for task gates and gates to 16-bit
/// code.
pub(super) fn target(machine: &Machine, memory: &impl GuestMemory, vector: u8) -> Option<Target> {
    let address = handler(machine, memory, vector).ok()?;
    let long = machine.long_mode();
    let at = u64::from(vector) * if long { 16 } else { 8 };
    let at = GuestVirtAddr(machine.special.idtr.base.wrapping_add(at));
    let low = machine.read(memory, at, 8)?;
    let kind = low >> 40 & 0x1f;
    matches!(kind, INTERRUPT_GATE_32 | TRAP_GATE_32).then(|| Target {
        address,
        selector: u16::try_from(low >> 16 & 0xffff).unwrap_or_default(),
        stack: if long { low >> 32 & 7 } else { 0 },
    })
}

/// The handler of INT n, which virtual-8086 mode may call without a gate (SDM 3B 20.3.3).
pub(super) fn software_handler(
    machine: &Machine,
    memory: &impl GuestMemory,
    vector: u8,
) -> Result<u64, u8> {
    if machine.virtual_8086()
        && machine.special.cr4 & CR4_VME != 0
        && is_redirected(machine, memory, vector) == Some(true)
    {
        return real_mode_handler(machine, memory, 0, 0x3ff, vector.into());
    }
    handler(machine, memory, vector)
}

fn is_redirected(machine: &Machine, memory: &impl GuestMemory, vector: u8) -> Option<bool> {
    let tss = GuestVirtAddr(machine.special.tr.base);
    let io_map = machine.read(memory, tss.checked_add(IO_MAP_BASE)?, 2)?;
    let byte = io_map.checked_sub(32)? + u64::from(vector / 8);
    let byte = machine.read(memory, tss.checked_add(byte)?, 1)?;
    Some(byte >> (vector % 8) & 1 == 0)
}

fn real_mode_handler(
    machine: &Machine,
    memory: &impl GuestMemory,
    base: u64,
    limit: u16,
    index: u64,
) -> Result<u64, u8> {
    if index * 4 + 3 > u64::from(limit) {
        return Err(DOUBLE_FAULT);
    }
    let at = GuestVirtAddr(base.wrapping_add(index * 4));
    let entry = machine.read(memory, at, 4).ok_or(DOUBLE_FAULT)?;
    Ok((entry >> 16 << 4) + (entry & 0xffff))
}

/// A task that may be switched to, or away from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// Linear address of its next instruction.
    pub(super) start: u64,
    /// Linear address of the RFLAGS that its TSS holds.
    pub(super) flags_at: GuestVirtAddr,
}

/// The task that a selector names: that of a TSS, or of a task gate in the GDT or LDT.
pub(super) fn task(machine: &Machine, memory: &impl GuestMemory, selector: u16) -> Option<Task> {
    let segment = descriptor::read(&machine.special, memory, selector).ok()?;
    if segment.code_or_data || machine.long_mode() {
        return None;
    }
    if u64::from(segment.kind) == TASK_GATE {
        // Its selector is where a segment has the low half of its base.
        let inner = u16::try_from(segment.base & 0xffff).ok()?;
        let segment = descriptor::read(&machine.special, memory, inner).ok()?;
        return of_tss(machine, memory, &segment);
    }
    of_tss(machine, memory, &segment)
}

/// The task that IRET returns to while NT is set (SDM 3A 8.3): the link of the present TSS.
pub(super) fn linked_task(machine: &Machine, memory: &impl GuestMemory) -> Option<Task> {
    let link = machine.read(memory, GuestVirtAddr(machine.special.tr.base), 2)?;
    task(machine, memory, u16::try_from(link).ok()?)
}

/// Where the present TSS keeps the RFLAGS of its task.
pub(super) fn saved_flags(machine: &Machine) -> Option<GuestVirtAddr> {
    let tr = &machine.special.tr;
    let (_, flags, _) = layout(tr.kind)?;
    GuestVirtAddr(tr.base).checked_add(flags)
}

fn of_tss(machine: &Machine, memory: &impl GuestMemory, tss: &Segment) -> Option<Task> {
    let (ip, flags, cs) = layout(tss.kind)?;
    let size = flags - ip;
    let at = |offset| GuestVirtAddr(tss.base).checked_add(offset);
    let ip = machine.read(memory, at(ip)?, size)?;
    let cs = u16::try_from(machine.read(memory, at(cs)?, 2)?).ok()?;
    let flags_at = at(flags)?;
    let virtual_8086 = machine.read(memory, flags_at, size)? & RFLAGS_VM != 0;
    let base = if virtual_8086 {
        u64::from(cs) << 4
    } else {
        descriptor::read(&machine.special, memory, cs).ok()?.base
    };
    Some(Task {
        start: base.wrapping_add(ip) & 0xffff_ffff,
        flags_at,
    })
}

/// Offsets of IP, FLAGS and CS (SDM 3A figures 8-2 and 8-10).
fn layout(kind: u8) -> Option<(u64, u64, u64)> {
    match kind & !TSS_BUSY {
        TSS_32 => Some((0x20, 0x24, 0x4c)),
        TSS_16 => Some((0x0e, 0x10, 0x24)),
        _ => None,
    }
}

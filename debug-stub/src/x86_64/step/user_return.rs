//! IRETQ and SYSRET to user code, carried out without the processor.
//!
//! A software KVM runs user code natively, and does not trap where such a return ends. Only the plain case is
//! carried out here: nothing that faults, changes a descriptor or nulls a segment register.

use iced_x86::Code;

use super::StepPlan;
use super::machine::Machine;
use crate::x86_64::bits::{
    CR4_SMAP, EFER_SCE, RFLAGS_FIXED, RFLAGS_NT, RFLAGS_RESERVED, RFLAGS_RF, RFLAGS_VM,
};
use crate::x86_64::descriptor::{self, SELECTOR_RPL};
use crate::x86_64::paging::{PagingMode, translate};
use crate::x86_64::{RegisterFile, Segment};
use crate::{GuestMemory, GuestVirtAddr};

/// The accessed bit of a code or data segment (SDM 3A table 3-1).
const ACCESSED: u8 = 1;
/// A data segment that can be written; otherwise one that only grows down differs.
const DATA: u8 = 2 | ACCESSED;
/// A code segment that is not conforming and can be read, or not.
const CODE: u8 = 8 | ACCESSED;
const READABLE: u8 = 2;

/// A return to user code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserReturn {
    Iret,
    Sysret,
}

impl StepPlan {
    /// IRETQ or SYSRET of 64-bit code at CPL0.
    pub(crate) fn user_return(&self) -> Option<UserReturn> {
        let machine = &self.first.machine;
        if !machine.is_64_bit() || machine.cpl() != 0 {
            return None;
        }
        match self.first.decoded.instruction.code() {
            Code::Iretq => Some(UserReturn::Iret),
            Code::Sysretd | Code::Sysretq => Some(UserReturn::Sysret),
            _ => None,
        }
    }

    /// CORE and SPECIAL after it (SDM 2 "IRET/IRETD/IRETQ", "SYSRET"), TF as the guest has stored it.
    /// `None` unless it is the plain case of a return to CPL3. `star` is IA32_STAR.
    pub(crate) fn after_user_return(
        &self,
        registers: &RegisterFile,
        star: u64,
        memory: &impl GuestMemory,
    ) -> Option<RegisterFile> {
        match self.user_return()? {
            UserReturn::Iret => interrupt_return(registers, memory),
            UserReturn::Sysret => {
                let wide = self.first.decoded.instruction.code() == Code::Sysretq;
                system_return(registers, star, wide)
            }
        }
    }
}

fn interrupt_return(before: &RegisterFile, memory: &impl GuestMemory) -> Option<RegisterFile> {
    let machine = Machine::of(before);
    let special = &before.special;
    let item = |index: u64| machine.stack_value(memory, 8 * index, 8);
    let [rip, cs, flags, rsp, ss] = [item(0)?, item(1)?, item(2)?, item(3)?, item(4)?];
    let selector = |item: u64| u16::try_from(item & 0xffff).unwrap_or_default();
    let user_page = translate(special, memory, machine.stack_address(0))
        .ok()?
        .user;
    let no_access = user_page && special.cr4 & CR4_SMAP != 0;
    if machine.core.rflags & RFLAGS_NT != 0 || no_access {
        return None;
    }
    let user = |selector: u16| {
        let is_user = selector & SELECTOR_RPL == 3 && !descriptor::is_null(selector);
        let found = descriptor::read(special, memory, selector).ok()?;
        (is_user && found.code_or_data && found.present && found.dpl == 3).then_some(found)
    };
    let (code, stack) = (user(selector(cs))?, user(selector(ss))?);
    if code.kind & !READABLE != CODE || stack.kind != DATA || (code.long && code.default_big) {
        return None;
    }
    // The processor nulls others (SDM 2 "IRET/IRETD/IRETQ"); kvm_pvm does not.
    let stays = |segment: &Segment| descriptor::is_null(segment.selector) || segment.dpl == 3;
    let data = [&special.ds, &special.es, &special.fs, &special.gs];
    if !data.into_iter().all(stays) {
        return None;
    }
    let reachable = if code.long {
        PagingMode::of(special).is_valid(GuestVirtAddr(rip))
    } else {
        rip <= u64::from(code.limit)
    };
    let mut after = before.clone();
    (after.special.cs, after.special.ss) = (code, stack);
    (after.core.rip, after.core.rsp) = (rip, rsp);
    after.core.rflags = flags & !(RFLAGS_RESERVED | RFLAGS_VM) | RFLAGS_FIXED;
    reachable.then_some(after)
}

fn system_return(before: &RegisterFile, star: u64, wide: bool) -> Option<RegisterFile> {
    let special = &before.special;
    let rcx = before.core.rcx;
    let rip = if wide { rcx } else { rcx & 0xffff_ffff };
    if special.efer & EFER_SCE == 0 || !PagingMode::of(special).is_valid(GuestVirtAddr(rip)) {
        return None;
    }
    let base = u16::try_from(star >> 48).unwrap_or_default();
    let flat = Segment {
        selector: base.wrapping_add(8) | SELECTOR_RPL,
        limit: u32::MAX,
        kind: DATA,
        code_or_data: true,
        dpl: 3,
        present: true,
        default_big: true,
        granularity: true,
        ..Segment::default()
    };
    let mut after = before.clone();
    after.special.ss = flat;
    after.special.cs = Segment {
        selector: base.wrapping_add(if wide { 16 } else { 0 }) | SELECTOR_RPL,
        kind: CODE | READABLE,
        long: wide,
        default_big: !wide,
        ..flat
    };
    after.core.rip = rip;
    let loaded = !(RFLAGS_RESERVED | RFLAGS_RF | RFLAGS_VM);
    after.core.rflags = before.core.r11 & loaded | RFLAGS_FIXED;
    Some(after)
}

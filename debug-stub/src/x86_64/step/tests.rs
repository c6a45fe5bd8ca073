//! The guest in these tests is a pair of register files, before and after: what a CPU does to
//! them, with the debugger's TF leaking, is written out by hand in each test.

mod any_guest;
mod classes;
mod events;
mod flags;

use super::*;
use crate::x86_64::simulated::Ram;
use crate::x86_64::{RegisterFile, Segment};

const TF: u64 = 0x100;
const CODE: u64 = 0x1000;
const STACK: u64 = 0x8000;

fn real_segment(selector: u16) -> Segment {
    Segment {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        kind: 3,
        present: true,
        code_or_data: true,
        ..Segment::default()
    }
}

/// Real mode at 0100:0000 (linear 0x1000), stack 0700:1000 (linear 0x8000).
fn real(memory: &Ram, code: &[u8]) -> RegisterFile {
    let mut file = RegisterFile::default();
    file.special.cr0 = 0x10;
    file.special.cs = real_segment(0x100);
    file.special.ss = real_segment(0x700);
    file.special.ds = real_segment(0);
    file.special.es = real_segment(0);
    file.core.rip = 0;
    file.core.rsp = 0x1000;
    file.core.rflags = 0x202;
    memory.put(CODE, code);
    file
}

/// Flat 32-bit protected mode without paging, at privilege level 0.
fn protected(memory: &Ram, code: &[u8]) -> RegisterFile {
    let mut file = real(memory, code);
    file.special.cr0 = 0x11;
    let flat = |selector, kind| Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        kind,
        default_big: true,
        granularity: true,
        ..real_segment(0)
    };
    file.special.cs = flat(0x08, 0xb);
    file.special.ss = flat(0x10, 3);
    file.special.ds = flat(0x10, 3);
    file.core.rip = CODE;
    file.core.rsp = STACK;
    file
}

/// 64-bit mode, the first 2 MiB mapped one to one, at privilege level 0.
fn long(memory: &Ram, code: &[u8]) -> RegisterFile {
    let mut file = protected(memory, code);
    file.special.cr0 = 0x8000_0011;
    file.special.cr3 = memory.map_one_to_one(0x1_0000);
    file.special.cr4 = 0x20;
    file.special.efer = 0x500;
    file.special.cs.long = true;
    file.special.cs.default_big = false;
    file
}

/// [`long`] at privilege level 3, with a TSS at 0x3000 whose RSP0 is 0xa000.
fn user(memory: &Ram, code: &[u8]) -> RegisterFile {
    let mut file = long(memory, code);
    for segment in [&mut file.special.cs, &mut file.special.ss] {
        segment.selector |= 0x23;
        segment.dpl = 3;
    }
    file.special.tr.base = 0x3000;
    file.special.tr.kind = 11;
    memory.put_u64(0x3004, 0xa000);
    file
}

fn ram() -> Ram {
    Ram::new(0x2_0000)
}

/// What the vCPU shows after the instruction has gone on to `rip`.
fn moved(before: &RegisterFile, rip: u64) -> RegisterFile {
    let mut after = before.clone();
    after.core.rip = rip;
    after
}

/// The settlement that says: done, nothing to mend.
fn clean(guest_tf: bool) -> Settlement {
    Settlement {
        progress: Progress::Done,
        guest_tf,
        guest_trap: guest_tf,
        r11: None,
        ran_handler: false,
        mends: ArrayVec::new(),
    }
}

/// The mended bytes, by address.
fn mended(settlement: &Settlement) -> Vec<(u64, u8)> {
    settlement
        .mends
        .iter()
        .map(|mend| (mend.address.0, mend.value))
        .collect()
}

/// Settles, mends, and settles again: the second time there is nothing left.
fn settle(plan: &StepPlan, after: &RegisterFile, memory: &Ram) -> Settlement {
    let settlement = plan.settle(after, memory);
    assert!(settlement.mend(memory));
    let mut again = after.clone();
    if let Some(r11) = settlement.r11 {
        again.core.r11 = r11;
    }
    let second = plan.settle(&again, memory);
    assert_eq!(
        second,
        Settlement {
            r11: None,
            mends: ArrayVec::new(),
            ..settlement.clone()
        }
    );
    settlement
}

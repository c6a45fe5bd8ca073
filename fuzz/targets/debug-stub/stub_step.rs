//! Any instruction of any guest, and any state after the step: the planner reads a bounded amount
//! of memory and changes none, and what it mends is bit 8 of a stored RFLAGS image and nothing
//! else.
//!
//! Input: a byte of mode (real, 32-bit, 64-bit, 64-bit at privilege level 3), one for the change
//! of the registers, the length of the code and the code; registers, eight bytes each; then words
//! in memory: two bytes for the place, eight for the value.
#![no_main]

use std::collections::BTreeSet;

use debug_stub::x86_64::simulated::Ram;
use debug_stub::x86_64::{Progress, RegisterFile, Segment, StepPlan};
use debug_stub::{GuestMemory, GuestPhysAddr};
use fuzz::Choices;
use libfuzzer_sys::fuzz_target;

const RAM: usize = 64 << 10;
const CODE: u64 = 0x1000;
const STACK: u64 = 0x8000;
const TF: u64 = 1 << 8;
/// SDM 2 2.3.11.
const LONGEST: usize = 15;

fn segment(selector: u16, base: u64, big: bool, kind: u8, dpl: u8) -> Segment {
    Segment {
        selector,
        base,
        limit: if big { u32::MAX } else { 0xffff },
        kind,
        dpl,
        present: true,
        code_or_data: true,
        default_big: big,
        granularity: big,
        ..Segment::default()
    }
}

/// A guest about to execute at `CODE`, with its stack at `STACK`.
fn guest(mode: u8, memory: &Ram) -> RegisterFile {
    let mut file = RegisterFile::default();
    file.core.rflags = 0x202;
    if mode == 0 {
        file.special.cr0 = 0x10;
        file.special.cs = segment(0x100, CODE, false, 3, 0);
        file.special.ss = segment(0x700, 0x7000, false, 3, 0);
        file.core.rsp = STACK - 0x7000;
        return file;
    }
    (file.core.rip, file.core.rsp) = (CODE, STACK);
    file.special.cr0 = 0x11;
    file.special.cs = segment(0x08, 0, true, 0xb, 0);
    file.special.ss = segment(0x10, 0, true, 3, 0);
    file.special.ds = file.special.ss;
    if mode >= 2 {
        // A page of 2 MiB at 0, and one of 1 GiB at 1 GiB, both from physical 0 on.
        file.special.cr3 = memory.map_one_to_one(0x2000);
        memory.put_u64(0x3008, 0x87);
        file.special.cr0 |= 1 << 31;
        file.special.cr4 = 0x20;
        file.special.efer = 0x500;
        file.special.cs.long = true;
        file.special.cs.default_big = false;
        file.special.tr.base = 0x5000;
        file.special.tr.limit = 0x67;
        file.special.tr.kind = 11;
        memory.put_u64(0x5004, 0x9000);
    }
    if mode == 3 {
        file.special.cs.selector = 0x2b;
        file.special.ss.selector = 0x23;
        (file.special.cs.dpl, file.special.ss.dpl) = (3, 3);
    }
    file
}

/// Changes registers as the input says: to a value near the old one, or to any.
fn bend(file: &mut RegisterFile, input: &mut Choices<'_>) {
    let which = input.byte();
    let bit = |index: u8| which >> index & 1 == 1;
    let core = &mut file.core;
    if bit(0) {
        core.rsp = core.rsp.wrapping_add_signed(input.distance());
    }
    if bit(1) {
        core.rflags = input.quad() & 0x003f_7fd7 | 2;
    }
    if bit(2) {
        core.rip = core.rip.wrapping_add_signed(input.distance());
    }
    if bit(3) {
        (core.rcx, core.r11) = (input.quad(), input.quad());
    }
    if bit(4) {
        (core.rsp, core.rax) = (input.quad(), input.quad());
    }
    if bit(5) {
        (core.rip, file.special.cs.selector) = (input.quad(), input.word());
    }
    if bit(6) {
        let special = &mut file.special;
        special.ss.base = input.quad();
        special.ss.default_big = input.flag();
        special.gdtr.base = u64::from(input.word());
        special.gdtr.limit = input.word();
        special.tr.base = u64::from(input.word());
    }
    if bit(7) {
        let special = &mut file.special;
        special.cs.base = input.quad();
        special.cs.default_big = input.flag();
        special.cr3 = u64::from(input.word()) << 4;
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Choices::new(data);
    let memory = Ram::new(RAM);
    let mut before = guest(input.byte() & 3, &memory);
    let how = input.byte();
    for at in 0..input.byte() % 32 {
        memory.put(CODE + u64::from(at), &[input.byte()]);
    }
    bend(&mut before, &mut input);
    let mut after = before.clone();
    if how & 1 == 1 {
        bend(&mut after, &mut input);
    }
    while !input.is_empty() {
        memory.put_u64(input.word().into(), input.quad());
    }
    let untouched = memory.snapshot();
    memory.reset_counts();

    let plan = StepPlan::new(&before, &memory);
    assert!(plan.code().len() <= LONGEST);
    // A step is planned and settled a hundred thousand times a second.
    assert!(
        memory.reads() <= 1000,
        "{} reads to plan one step",
        memory.reads()
    );
    if how & 2 == 0 {
        let behind = before.core.rip.wrapping_add(plan.code().len() as u64);
        assert!(plan.next_rip() == before.core.rip || (plan.next_rip() ^ behind) & 0xffff == 0);
        let moved = after.core.rip.wrapping_sub(before.core.rip);
        after.core.rip = plan.next_rip().wrapping_add(moved);
    }
    memory.reset_counts();
    let settlement = plan.settle(&after, &memory);
    assert!(
        memory.reads() <= 1000,
        "{} reads to settle one step",
        memory.reads()
    );
    assert_eq!(memory.writes(), 0, "to plan and to settle changes nothing");
    assert_eq!(settlement, plan.settle(&after, &memory), "a pure function");

    if let Some(r11) = settlement.r11 {
        assert_eq!(r11 ^ after.core.r11, TF);
    }
    let mut places = BTreeSet::new();
    for mend in &settlement.mends {
        assert!(places.insert(mend.address), "one byte is mended twice");
        let mut byte = [0];
        assert_eq!(memory.read_memory(mend.address, &mut byte), 1);
        assert_eq!(byte[0] ^ mend.value, 1, "bit 8 of the image, and no other");
    }
    if settlement.progress == Progress::NotStarted {
        assert_eq!(settlement.guest_tf, before.core.rflags & TF != 0);
        assert!(!settlement.guest_trap && settlement.r11.is_none() && places.is_empty());
        assert!(!plan.may_stay());
    }

    assert!(settlement.mend(&memory));
    let changed: BTreeSet<_> = fuzz::differences(&untouched, &memory.snapshot())
        .into_iter()
        .map(|at| GuestPhysAddr(at as u64))
        .collect();
    assert_eq!(changed, places);
    // A mended step needs no mending.
    if let Some(r11) = settlement.r11 {
        after.core.r11 = r11;
    }
    let again = plan.settle(&after, &memory);
    assert!(
        again.mends.is_empty() && again.r11.is_none(),
        "{again:?} after {settlement:?}"
    );
});

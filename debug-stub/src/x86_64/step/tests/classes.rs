//! What is decoded, and where it may lead.

use super::*;

fn check(file: &RegisterFile, memory: &Ram, class: StepClass, length: usize, may_stay: bool) {
    let plan = StepPlan::new(file, memory);
    assert_eq!(plan.class(), class, "{:x?}", plan.code());
    assert_eq!(plan.code().len(), length, "{:x?}", plan.code());
    assert_eq!(plan.may_stay(), may_stay, "{:x?}", plan.code());
}

#[test]
fn every_class_is_known_in_every_width() {
    use StepClass::*;
    // Class, 16-bit code, 32-bit code, 64-bit code.
    type Case = (StepClass, &'static [u8], &'static [u8], &'static [u8]);
    let cases: &[Case] = &[
        (Plain, &[0x90], &[0x01, 0xd8], &[0x48, 0x01, 0xd8]),
        (Plain, &[0x0f, 0x0b], &[0x0f, 0x0b], &[0x0f, 0x0b]),
        (PushFlags, &[0x9c], &[0x9c], &[0x9c]),
        (PushFlags, &[0x66, 0x9c], &[0x66, 0x9c], &[0x66, 0x9c]),
        (PopFlags, &[0x9d], &[0x9d], &[0x9d]),
        (InterruptReturn, &[0xcf], &[0xcf], &[0x48, 0xcf]),
        (
            SoftwareInterrupt,
            &[0xcd, 0x80],
            &[0xcd, 0x80],
            &[0xcd, 0x80],
        ),
        (SoftwareInterrupt, &[0xcc], &[0xcc], &[0xcc]),
        (SoftwareInterrupt, &[0xf1], &[0xf1], &[0xf1]),
        (SoftwareInterrupt, &[0xce], &[0xce], &[0xcc]),
        (Halt, &[0xf4], &[0xf4], &[0xf4]),
        (EnableInterrupts, &[0xfb], &[0xfb], &[0xfb]),
        (
            LoadStackSegment,
            &[0x8e, 0xd0],
            &[0x8e, 0xd0],
            &[0x8e, 0xd0],
        ),
        (LoadStackSegment, &[0x17], &[0x17], &[0x8e, 0x10]),
        (Plain, &[0x8e, 0xd8], &[0x8e, 0xd8], &[0x8e, 0xd8]),
        (PortIo, &[0xe6, 0x80], &[0xed], &[0xee]),
        (PortIo, &[0x6c], &[0x6f], &[0x6e]),
    ];
    for (class, code16, code32, code64) in cases {
        let memory = ram();
        check(&real(&memory, code16), &memory, *class, code16.len(), false);
        check(
            &protected(&memory, code32),
            &memory,
            *class,
            code32.len(),
            false,
        );
        check(&long(&memory, code64), &memory, *class, code64.len(), false);
    }
}

#[test]
fn instructions_that_read_a_clock_are_told_apart() {
    let check = |code: &[u8], reads: bool| {
        let memory = ram();
        let mut file = long(&memory, code);
        // The local APIC's page, at any address.
        file.core.rbx = 0x7f12_3000;
        assert_eq!(
            StepPlan::new(&file, &memory).may_read_clock(),
            reads,
            "{code:x?}"
        );
    };
    for code in [
        &[0x0f, 0x31][..],               // rdtsc
        &[0x0f, 0x01, 0xf9],             // rdtscp
        &[0x0f, 0x32],                   // rdmsr
        &[0x0f, 0x30],                   // wrmsr
        &[0xe4, 0x40],                   // in al, 0x40
        &[0xee],                         // out dx, al
        &[0xf3, 0x6c],                   // rep insb
        &[0xf4],                         // hlt
        &[0x0f, 0x01, 0xc9],             // mwait
        &[0x0f, 0x01, 0xc1],             // vmcall
        &[0xcd, 0x80],                   // int 0x80
        &[0x06],                         // no instruction
        &[0x8b, 0x83, 0x90, 0x03, 0, 0], // mov eax, [rbx + 0x390]
        &[0x89, 0x83, 0x80, 0x03, 0, 0], // mov [rbx + 0x380], eax
        &[0xfb, 0x0f, 0x31],             // sti: one step may execute rdtsc, too
    ] {
        check(code, true);
    }
    for code in [
        &[0x90][..],
        &[0x48, 0x01, 0xd8],
        &[0x8b, 0x03],                         // mov eax, [rbx]
        &[0x89, 0x83, 0xb0, 0, 0, 0],          // mov [rbx + 0xb0], eax: EOI
        &[0x8d, 0x83, 0x90, 0x03, 0, 0],       // lea eax, [rbx + 0x390]
        &[0x0f, 0x1f, 0x83, 0x90, 0x03, 0, 0], // nop [rbx + 0x390]
        &[0x9c],
        &[0x0f, 0xa2],
        &[0x0f, 0x05],
        &[0xf3, 0xa4],
        &[0xeb, 0x10],
        &[0xfb, 0x90],
    ] {
        check(code, false);
    }
}

#[test]
fn system_calls_are_told_apart() {
    use StepClass::*;
    for (class, code) in [
        (SystemCall, &[0x0f, 0x05][..]),
        (SystemReturn, &[0x48, 0x0f, 0x07]),
        (FastSystemCall, &[0x0f, 0x35]),
    ] {
        let memory = ram();
        check(&long(&memory, code), &memory, class, code.len(), false);
    }
    // SYSENTER: an MSR says where.
    let memory = ram();
    check(
        &long(&memory, &[0x0f, 0x34]),
        &memory,
        FastSystemCall,
        2,
        true,
    );
}

#[test]
fn only_a_prefix_makes_a_string_instruction_stay() {
    use StepClass::*;
    let memory = ram();
    check(
        &real(&memory, &[0xf3, 0xa4]),
        &memory,
        RepeatString,
        2,
        true,
    );
    check(
        &long(&memory, &[0xf2, 0xae]),
        &memory,
        RepeatString,
        2,
        true,
    );
    check(
        &long(&memory, &[0xf3, 0x6c]),
        &memory,
        RepeatString,
        2,
        true,
    );
    check(&real(&memory, &[0xa4]), &memory, Plain, 1, false);
    // F3 before others is PAUSE, POPCNT, RET: no repetition.
    check(&long(&memory, &[0xf3, 0x90]), &memory, Plain, 2, false);
    memory.put_u64(STACK, 0x1234);
    check(&long(&memory, &[0xf3, 0xc3]), &memory, Branch, 2, false);
}

#[test]
fn a_jump_to_itself_may_stay_and_others_must_move() {
    let memory = ram();
    let branch = |code: &[u8], may_stay| {
        check(
            &long(&memory, code),
            &memory,
            StepClass::Branch,
            code.len(),
            may_stay,
        );
    };
    branch(&[0xeb, 0xfe], true);
    branch(&[0xeb, 0xfd], false);
    branch(&[0xe9, 0xfb, 0xff, 0xff, 0xff], true);
    branch(&[0x74, 0xfe], true);
    branch(&[0x74, 0x00], false);
    branch(&[0xe2, 0xfe], true);
    branch(&[0xe3, 0xfe], true);
    branch(&[0xe8, 0xfb, 0xff, 0xff, 0xff], true);
    branch(&[0xe8, 0x00, 0x00, 0x00, 0x00], false);
}

#[test]
fn indirect_targets_are_looked_up() {
    let memory = ram();
    let with_rax = |code: &[u8], rax| {
        let mut file = long(&memory, code);
        file.core.rax = rax;
        StepPlan::new(&file, &memory).may_stay()
    };
    // JMP RAX.
    assert!(with_rax(&[0xff, 0xe0], CODE));
    assert!(!with_rax(&[0xff, 0xe0], CODE + 2));
    // JMP [RAX+8].
    memory.put_u64(0x4008, CODE);
    memory.put_u64(0x4018, CODE + 1);
    assert!(with_rax(&[0xff, 0x60, 0x08], 0x4000));
    assert!(!with_rax(&[0xff, 0x60, 0x08], 0x4010));
    // Not mapped: unknown.
    assert!(with_rax(&[0xff, 0x60, 0x08], 0x4000_0000));
    // CALL [RIP+0x0ffa], that is [0x2000].
    memory.put_u64(0x2000, CODE);
    assert!(with_rax(&[0xff, 0x15, 0xfa, 0x0f, 0, 0], 0));
    memory.put_u64(0x2000, CODE + 6);
    assert!(!with_rax(&[0xff, 0x15, 0xfa, 0x0f, 0, 0], 0));
    // RET.
    memory.put_u64(STACK, CODE);
    assert!(with_rax(&[0xc3], 0));
    memory.put_u64(STACK, CODE + 1);
    assert!(!with_rax(&[0xc3], 0));
    // IRETQ to itself.
    memory.put_u64(STACK, CODE);
    memory.put_u64(STACK + 8, 0x08);
    assert!(with_rax(&[0x48, 0xcf], 0));
}

#[test]
fn far_targets_need_both_parts_to_be_the_same() {
    let memory = ram();
    let may_stay = |code: &[u8]| StepPlan::new(&real(&memory, code), &memory).may_stay();
    assert!(may_stay(&[0xea, 0x00, 0x00, 0x00, 0x01]));
    assert!(!may_stay(&[0xea, 0x00, 0x00, 0x00, 0x02]));
    assert!(!may_stay(&[0xea, 0x05, 0x00, 0x00, 0x01]));
    // CALL FAR [0x4000].
    memory.put(0x4000, &[0, 0, 0, 1]);
    assert!(may_stay(&[0xff, 0x1e, 0x00, 0x40]));
    memory.put(0x4000, &[0, 0, 0, 2]);
    assert!(!may_stay(&[0xff, 0x1e, 0x00, 0x40]));
    // RETF.
    memory.put(STACK, &[0, 0, 0, 1]);
    assert!(may_stay(&[0xcb]));
    memory.put(STACK, &[2, 0, 0, 1]);
    assert!(!may_stay(&[0xcb]));
}

#[test]
fn a_segment_base_is_added_where_it_counts() {
    let memory = ram();
    // JMP GS:[0x10] in 64-bit mode.
    let mut file = long(&memory, &[0x65, 0xff, 0x24, 0x25, 0x10, 0, 0, 0]);
    file.special.gs.base = 0x5000;
    memory.put_u64(0x5010, CODE);
    assert!(StepPlan::new(&file, &memory).may_stay());
    // JMP [BX] in real mode with DS = 0x400.
    let mut file = real(&memory, &[0xff, 0x27]);
    file.special.ds = real_segment(0x400);
    file.core.rbx = 0xdead_0010;
    memory.put_u16(0x4010, 0);
    assert!(StepPlan::new(&file, &memory).may_stay());
    memory.put_u16(0x4010, 9);
    assert!(!StepPlan::new(&file, &memory).may_stay());
}

#[test]
fn the_successor_wraps_at_the_width_of_the_code() {
    let memory = ram();
    let mut file = real(&memory, &[]);
    memory.put(0x1_0fff, &[0x90]);
    file.core.rip = 0xffff;
    let plan = StepPlan::new(&file, &memory);
    assert_eq!((plan.class(), plan.next_rip()), (StepClass::Plain, 0));
    // Wrapped or not, as the hypervisor shows it.
    for rip in [0, 0x1_0000] {
        assert_eq!(settle(&plan, &moved(&file, rip), &memory), clean(false));
    }
    // JMP -2 at offset 0 of 16-bit code: to 0.
    let file = real(&memory, &[0xeb, 0xfe]);
    assert!(StepPlan::new(&file, &memory).may_stay());
    // JMP -3: to 0xffff.
    let file = real(&memory, &[0xeb, 0xfd]);
    let plan = StepPlan::new(&file, &memory);
    assert_eq!(settle(&plan, &moved(&file, 0xffff), &memory), clean(false));
}

#[test]
fn code_is_decoded_in_its_own_width() {
    let memory = ram();
    // 16-bit: MOV AX, 0x4890. 32-bit: MOV EAX, imm32. 64-bit: the same.
    let code = [0xb8, 0x90, 0x48, 0x90, 0x90, 0x90];
    check(&real(&memory, &code), &memory, StepClass::Plain, 3, false);
    check(
        &protected(&memory, &code),
        &memory,
        StepClass::Plain,
        5,
        false,
    );
    check(&long(&memory, &code), &memory, StepClass::Plain, 5, false);
    // DEC EAX or a REX prefix.
    check(
        &protected(&memory, &[0x48, 0xcf]),
        &memory,
        StepClass::Plain,
        1,
        false,
    );
    // A 16-bit segment in protected mode, and big real mode.
    let mut file = protected(&memory, &code);
    file.special.cs.default_big = false;
    check(&file, &memory, StepClass::Plain, 3, false);
    let mut file = real(&memory, &code);
    file.special.cs.default_big = true;
    check(&file, &memory, StepClass::Plain, 5, false);
    // Virtual-8086 mode.
    let mut file = real(&memory, &code);
    file.special.cr0 = 0x11;
    file.core.rflags = 0x2_3202;
    check(&file, &memory, StepClass::Plain, 3, false);
}

#[test]
fn what_cannot_be_decoded_may_stay() {
    let memory = ram();
    let mut file = long(&memory, &[0x06]);
    check(&file, &memory, StepClass::Unknown, 15, true);
    // Not mapped at all.
    file.core.rip = 0x4000_0000;
    check(&file, &memory, StepClass::Unknown, 0, true);
    // Cut off by the end of RAM.
    let mut file = protected(&memory, &[]);
    memory.put(0x1_ffff, &[0xe9]);
    file.core.rip = 0x1_ffff;
    check(&file, &memory, StepClass::Unknown, 1, true);
    assert_eq!(StepPlan::new(&file, &memory).next_rip(), 0x1_ffff);
}

#[test]
fn a_step_that_did_nothing_is_armed_again() {
    let memory = ram();
    let file = long(&memory, &[0x48, 0x8b, 0x00]);
    let plan = StepPlan::new(&file, &memory);
    // RF and TF may show; nothing else moved.
    let mut after = file.clone();
    after.core.rflags |= 0x1_0100;
    let settlement = plan.settle(&after, &memory);
    assert_eq!(settlement.progress, Progress::NotStarted);
    assert!(!settlement.guest_tf && !settlement.guest_trap);
    assert!(settlement.mends.is_empty());
    // Nor is it progress that the CPU has a segment's accessed bit set, as kvm_intel shows after
    // the first entry.
    after.special.cs.kind ^= 1;
    after.special.ss.kind ^= 1;
    let settlement = plan.settle(&after, &memory);
    assert_eq!(settlement.progress, Progress::NotStarted);
    // Another segment is: a far jump to the same offset.
    after.special.cs.base += 0x10;
    assert_eq!(plan.settle(&after, &memory).progress, Progress::Done);
    // A loop that stays where it is has done its work.
    let file = long(&memory, &[0xeb, 0xfe]);
    let plan = StepPlan::new(&file, &memory);
    assert_eq!(settle(&plan, &file, &memory), clean(false));
    // So has one iteration of REP MOVSB.
    let mut file = long(&memory, &[0xf3, 0xa4]);
    file.core.rcx = 3;
    let plan = StepPlan::new(&file, &memory);
    let mut after = file.clone();
    after.core.rcx = 2;
    assert_eq!(settle(&plan, &after, &memory), clean(false));
}

#[test]
fn a_step_whose_registers_moved_has_started_even_at_the_same_rip() {
    let memory = ram();
    // CALL to itself is known to stay; a NOP never is, but if RSP moved something happened.
    let file = long(&memory, &[0x90]);
    let plan = StepPlan::new(&file, &memory);
    let mut after = file.clone();
    after.core.rsp -= 8;
    assert_eq!(plan.settle(&after, &memory).progress, Progress::Done);
}

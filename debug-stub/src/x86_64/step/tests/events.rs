//! Events delivered during a step.

use super::*;

/// Real mode: pushes FLAGS, CS, IP as the CPU does, and enters 0x0200:0x0010.
fn deliver_real(before: &RegisterFile, memory: &Ram, ip: u16, flags: u16) -> RegisterFile {
    let mut after = moved(before, 0x10);
    after.special.cs = real_segment(0x200);
    after.core.rsp -= 6;
    memory.put_u16(STACK - 2, flags);
    memory.put_u16(STACK - 4, 0x100);
    memory.put_u16(STACK - 6, ip);
    after
}

/// Long mode: pushes the five items, and an error code if there is one, below `top`; enters
/// 0x08:0x5000.
fn deliver_long(
    before: &RegisterFile,
    memory: &Ram,
    top: u64,
    rip: u64,
    flags: u64,
    error_code: Option<u64>,
) -> RegisterFile {
    let mut after = moved(before, 0x5000);
    after.special.cs.selector = 0x08;
    after.special.ss.selector = if before.special.cs.selector & 3 == 0 {
        0x10
    } else {
        0
    };
    after.core.rflags &= !0x300;
    memory.put_u64(top - 8, u64::from(before.special.ss.selector));
    memory.put_u64(top - 16, before.core.rsp);
    memory.put_u64(top - 24, flags);
    memory.put_u64(top - 32, u64::from(before.special.cs.selector));
    memory.put_u64(top - 40, rip);
    after.core.rsp = top - 40;
    if let Some(code) = error_code {
        memory.put_u64(top - 48, code);
        after.core.rsp = top - 48;
    }
    after
}

#[test]
fn a_real_mode_frame_is_mended_for_faults_and_software_interrupts() {
    // DIV by zero saves its own IP, INT n the next.
    for (code, ip) in [
        (&[0xf6, 0xf1][..], 0),
        (&[0xcd, 0x21], 2),
        (&[0xcc], 1),
        (&[0xce], 1),
    ] {
        let memory = ram();
        let file = real(&memory, code);
        let plan = StepPlan::new(&file, &memory);
        let after = deliver_real(&file, &memory, ip, 0x302);
        let settlement = settle(&plan, &after, &memory);
        assert_eq!(mended(&settlement), [(STACK - 1, 0x02)], "{code:x?}");
        assert!(!settlement.guest_tf && !settlement.guest_trap);
        assert_eq!(memory.get_u16(STACK - 2), 0x202);
        assert_eq!(memory.get_u16(STACK - 4), 0x100);
        assert_eq!(memory.get_u16(STACK - 6), ip);
    }
}

#[test]
fn a_clean_frame_is_left_alone() {
    let memory = ram();
    let file = real(&memory, &[0xcd, 0x21]);
    let plan = StepPlan::new(&file, &memory);
    let after = deliver_real(&file, &memory, 2, 0x202);
    assert_eq!(settle(&plan, &after, &memory), clean(false));
}

#[test]
fn the_guests_own_tf_belongs_into_the_frame() {
    let memory = ram();
    let mut file = real(&memory, &[0xcd, 0x21]);
    file.core.rflags |= TF;
    let plan = StepPlan::new(&file, &memory);
    // An emulator that hides TF has pushed it clear.
    let after = deliver_real(&file, &memory, 2, 0x202);
    let settlement = settle(&plan, &after, &memory);
    assert_eq!(memory.get_u16(STACK - 2), 0x302);
    assert!(!settlement.guest_tf && !settlement.guest_trap);
}

#[test]
fn a_handler_that_ran_inside_the_step_leaves_a_mended_frame_behind() {
    let memory = ram();
    let file = real(&memory, &[0xcd, 0x21, 0x90, 0x9c]);
    let plan = StepPlan::new(&file, &memory);
    deliver_real(&file, &memory, 2, 0x302);
    // Stopped right behind INT, or one instruction later.
    for rip in [2, 3] {
        memory.put_u16(STACK - 2, 0x302);
        let settlement = settle(&plan, &moved(&file, rip), &memory);
        assert_eq!(mended(&settlement), [(STACK - 1, 0x02)]);
        assert!(!settlement.guest_tf && !settlement.guest_trap);
    }
}

#[test]
fn an_interrupt_before_the_instruction_is_mended_though_the_handler_is_gone() {
    // The CPU aligns the stack in long mode.
    for sp in [STACK, STACK + 8, STACK - 3] {
        let memory = ram();
        let mut file = long(&memory, &[0x90]);
        file.core.rsp = sp;
        let top = sp & !0xf;
        let plan = StepPlan::new(&file, &memory);
        deliver_long(&file, &memory, top, CODE, 0x302, None);
        let settlement = settle(&plan, &moved(&file, CODE + 1), &memory);
        assert_eq!(mended(&settlement), [(top - 23, 0x02)]);
    }
}

#[test]
fn a_step_that_ends_in_the_middle_of_a_handler_is_mended() {
    let memory = ram();
    let file = long(&memory, &[0x90]);
    let plan = StepPlan::new(&file, &memory);
    let mut after = deliver_long(&file, &memory, STACK, CODE, 0x302, None);
    // It has pushed registers and was stopped by an emulated instruction.
    after.core.rip = 0x5044;
    after.core.rsp -= 0x38;
    let settlement = settle(&plan, &after, &memory);
    assert_eq!(mended(&settlement), [(STACK - 23, 0x02)]);
    assert!(!settlement.guest_tf && !settlement.guest_trap);
}

#[test]
fn a_frame_is_mended_whatever_the_stack_held_before() {
    // Seen in Linux's idle loop: bit 8 was set where the flags came to be.
    let memory = ram();
    let file = long(&memory, &[0x90]);
    memory.put_u64(STACK - 24, 0xffff_ffff_81a0_df80);
    let plan = StepPlan::new(&file, &memory);
    let mut after = deliver_long(&file, &memory, STACK, CODE, 0x302, None);
    after.core.rip = 0x5044;
    after.core.rsp -= 0x38;
    let settlement = settle(&plan, &after, &memory);
    assert_eq!(mended(&settlement), [(STACK - 23, 0x02)]);
    assert_eq!(memory.get_u64(STACK - 24), 0x202);
}

#[test]
fn old_frames_are_none_of_this_step() {
    // A dead frame of the same instruction, in which the guest's own TF was set.
    let memory = ram();
    let file = long(&memory, &[0x90]);
    deliver_long(&file, &memory, STACK, CODE, 0x302, None);
    let plan = StepPlan::new(&file, &memory);
    assert_eq!(
        settle(&plan, &moved(&file, CODE + 1), &memory),
        clean(false)
    );
    // What the instruction itself pushes is no frame.
    let memory = ram();
    let mut file = real(&memory, &[0x50]);
    file.core.rax = 0x302;
    memory.put_u16(STACK - 4, 0x100);
    memory.put_u16(STACK - 6, 0);
    let plan = StepPlan::new(&file, &memory);
    let mut after = moved(&file, 1);
    after.core.rsp -= 2;
    memory.put_u16(STACK - 2, 0x302);
    assert_eq!(settle(&plan, &after, &memory), clean(false));
}

#[test]
fn chaining_to_a_handler_is_not_mistaken_for_an_interrupt() {
    // PUSHF; CALL FAR [old vector] builds a frame by hand, here with the guest's own TF.
    let memory = ram();
    let mut file = real(&memory, &[0xff, 0x1e, 0x00, 0x40]);
    file.core.rflags |= TF;
    memory.put(0x4000, &[0x10, 0, 0, 2]);
    memory.put_u16(STACK, 0x302);
    let plan = StepPlan::new(&file, &memory);
    let mut after = moved(&file, 0x10);
    after.special.cs = real_segment(0x200);
    after.core.rsp -= 4;
    memory.put_u16(STACK - 2, 0x100);
    memory.put_u16(STACK - 4, 4);
    assert_eq!(settle(&plan, &after, &memory), clean(true));
}

#[test]
fn long_mode_frames_are_found_with_and_without_error_code() {
    for error_code in [None, Some(0), Some(0xffff_ffff)] {
        // UD2 with an aligned and an unaligned stack; RF is set in the image of a fault.
        for sp in [STACK, STACK - 8, STACK + 4] {
            let memory = ram();
            let mut file = long(&memory, &[0x0f, 0x0b]);
            file.core.rsp = sp;
            let plan = StepPlan::new(&file, &memory);
            let top = sp & !0xf;
            let after = deliver_long(&file, &memory, top, CODE, 0x1_0302, error_code);
            let settlement = settle(&plan, &after, &memory);
            assert_eq!(mended(&settlement), [(top - 23, 0x02)]);
            assert_eq!(memory.get_u64(top - 24), 0x1_0202);
            assert!(!settlement.guest_tf);
        }
    }
}

#[test]
fn frames_on_the_kernel_stack_are_found_from_user_mode() {
    // At the handler's first instruction.
    let memory = ram();
    let file = user(&memory, &[0xcd, 0x80]);
    let plan = StepPlan::new(&file, &memory);
    let after = deliver_long(&file, &memory, 0xa000, CODE + 2, 0x302, None);
    assert_eq!(
        mended(&settle(&plan, &after, &memory)),
        [(0xa000 - 23, 0x02)]
    );
    // Back in user mode.
    memory.put_u64(0xa000 - 24, 0x302);
    let settlement = settle(&plan, &moved(&file, CODE + 2), &memory);
    assert_eq!(mended(&settlement), [(0xa000 - 23, 0x02)]);
    // On an interrupt stack, which only the CPU at the handler's first instruction shows.
    let memory = ram();
    let file = user(&memory, &[0x90]);
    let plan = StepPlan::new(&file, &memory);
    let after = deliver_long(&file, &memory, 0xb000, CODE, 0x302, Some(0));
    assert_eq!(
        mended(&settle(&plan, &after, &memory)),
        [(0xb000 - 23, 0x02)]
    );
}

#[test]
fn a_handler_right_behind_the_faulting_instruction_is_recognised() {
    let memory = ram();
    let file = long(&memory, &[0x0f, 0x0b]);
    let plan = StepPlan::new(&file, &memory);
    let mut after = deliver_long(&file, &memory, STACK, CODE, 0x1_0302, None);
    after.core.rip = CODE + 2;
    assert_eq!(
        mended(&settle(&plan, &after, &memory)),
        [(STACK - 23, 0x02)]
    );
}

/// 32-bit protected mode: pushes below `top` in items of `slot` bytes and enters 0x08:0x5000.
fn deliver_protected(
    before: &RegisterFile,
    memory: &Ram,
    top: u64,
    items: &[u32],
    slot: u64,
) -> RegisterFile {
    let mut after = moved(before, 0x5000);
    after.special.cs.selector = 0x08;
    after.core.rflags &= !0x2_0300;
    after.core.rsp = top;
    for item in items {
        after.core.rsp -= slot;
        let bytes = item.to_le_bytes();
        memory.put(after.core.rsp, &bytes[..usize::try_from(slot).unwrap()]);
    }
    after
}

#[test]
fn protected_mode_frames_are_found_in_both_gate_sizes() {
    let fault = [0x302, 0x08, 0x1000];
    let with_code = [0x302, 0x08, 0x1000, 0x18];
    for (items, slot) in [
        (&fault[..], 4),
        (&with_code, 4),
        (&fault, 2),
        (&with_code, 2),
    ] {
        let memory = ram();
        let file = protected(&memory, &[0xf7, 0xf1]);
        let plan = StepPlan::new(&file, &memory);
        let after = deliver_protected(&file, &memory, STACK, items, slot);
        let settlement = settle(&plan, &after, &memory);
        assert_eq!(
            mended(&settlement),
            [(STACK - slot + 1, 0x02)],
            "{items:x?} {slot}"
        );
    }
}

fn with_tss(file: &mut RegisterFile, memory: &Ram) {
    // GDT at 0x3000: flat data at 0x10. TSS at 0x3100: ESP0, SS0.
    memory.put_u64(0x3010, 0x00cf_9300_0000_ffff);
    file.special.gdtr.base = 0x3000;
    file.special.gdtr.limit = 0x1f;
    file.special.tr.base = 0x3100;
    file.special.tr.kind = 11;
    memory.put_u32(0x3104, 0xa000);
    memory.put_u32(0x3108, 0x10);
}

#[test]
fn protected_mode_frames_on_the_inner_stack_are_found() {
    let memory = ram();
    let mut file = protected(&memory, &[0xcd, 0x80]);
    with_tss(&mut file, &memory);
    file.special.cs.selector = 0x1b;
    file.special.ss.selector = 0x23;
    let plan = StepPlan::new(&file, &memory);
    let items = [0x23, 0x8000, 0x302, 0x1b, 0x1002];
    let mut after = deliver_protected(&file, &memory, 0xa000, &items, 4);
    after.special.ss.selector = 0x10;
    assert_eq!(
        mended(&settle(&plan, &after, &memory)),
        [(0xa000 - 11, 0x02)]
    );
    // And after the handler has returned.
    memory.put_u32(0xa000 - 12, 0x302);
    let settlement = settle(&plan, &moved(&file, CODE + 2), &memory);
    assert_eq!(mended(&settlement), [(0xa000 - 11, 0x02)]);
}

#[test]
fn virtual_8086_frames_hold_the_data_segments_as_well() {
    let memory = ram();
    let mut file = real(&memory, &[0x9c]);
    with_tss(&mut file, &memory);
    file.special.cr0 = 0x11;
    // IOPL 0: PUSHF faults.
    file.core.rflags = 0x2_0202;
    let plan = StepPlan::new(&file, &memory);
    assert_eq!(plan.class(), StepClass::PushFlags);
    let items = [0, 0, 0, 0, 0x700, 0x1000, 0x3_0302, 0x100, 0, 0];
    let mut after = deliver_protected(&file, &memory, 0xa000, &items, 4);
    let flat = protected(&ram(), &[]).special;
    after.special.cs = flat.cs;
    after.special.ss = flat.ss;
    let settlement = settle(&plan, &after, &memory);
    assert_eq!(mended(&settlement), [(0xa000 - 27, 0x02)]);
    assert!(!settlement.guest_tf);
}

#[test]
fn an_interrupt_between_sti_and_the_next_instruction_is_mended() {
    let memory = ram();
    let mut file = long(&memory, &[0xfb, 0xf4]);
    file.core.rflags = 0x2;
    let plan = StepPlan::new(&file, &memory);
    // The saved flags have IF, which STI has just set.
    let after = deliver_long(&file, &memory, STACK, CODE + 1, 0x302, None);
    let settlement = settle(&plan, &after, &memory);
    assert_eq!(mended(&settlement), [(STACK - 23, 0x02)]);
}

#[test]
fn a_halt_that_is_woken_by_an_interrupt_is_mended() {
    let memory = ram();
    let file = long(&memory, &[0xf4]);
    let plan = StepPlan::new(&file, &memory);
    assert_eq!(
        settle(&plan, &moved(&file, CODE + 1), &memory),
        clean(false)
    );
    let after = deliver_long(&file, &memory, STACK, CODE + 1, 0x302, None);
    assert_eq!(
        mended(&settle(&plan, &after, &memory)),
        [(STACK - 23, 0x02)]
    );
}

#[test]
fn an_interrupted_string_instruction_is_mended_whatever_its_flags() {
    let memory = ram();
    let mut file = long(&memory, &[0xf3, 0xa6]);
    file.core.rcx = 9;
    let plan = StepPlan::new(&file, &memory);
    // CMPSB has set ZF and PF in the meantime.
    let mut after = deliver_long(&file, &memory, STACK, CODE, 0x1_0346, None);
    after.core.rcx = 5;
    let settlement = settle(&plan, &after, &memory);
    assert_eq!(memory.get_u64(STACK - 24), 0x1_0246);
    assert!(!settlement.guest_tf);
}

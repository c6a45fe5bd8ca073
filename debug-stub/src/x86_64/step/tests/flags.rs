//! Instructions that store or load RFLAGS.

use super::*;

#[test]
fn pushf_stores_the_guests_own_tf() {
    type Make = fn(&Ram, &[u8]) -> RegisterFile;
    let widths: [(Make, u64); 3] = [(real, 2), (protected, 4), (long, 8)];
    for (make, size) in widths {
        for (own, leaked) in [(false, true), (false, false), (true, true), (true, false)] {
            let memory = ram();
            let mut file = make(&memory, &[0x9c]);
            file.core.rflags |= if own { TF } else { 0 };
            let plan = StepPlan::new(&file, &memory);
            let mut after = moved(&file, file.core.rip + 1);
            after.core.rsp -= size;
            let image = 0x202 | if leaked { TF } else { 0 };
            memory.put(
                STACK - size,
                &image.to_le_bytes()[..usize::try_from(size).unwrap()],
            );
            let settlement = settle(&plan, &after, &memory);
            let expected = if own { 0x302 } else { 0x202 };
            assert_eq!(memory.get_u16(STACK - size), expected);
            assert_eq!(settlement.mends.len(), usize::from(own != leaked));
            assert_eq!((settlement.guest_tf, settlement.guest_trap), (own, own));
        }
    }
}

#[test]
fn pushf_at_the_end_of_a_16_bit_stack_wraps() {
    let memory = ram();
    let mut file = real(&memory, &[0x9c]);
    file.special.ss = real_segment(0x100);
    file.core.rsp = 0xabcd_0000;
    let plan = StepPlan::new(&file, &memory);
    let mut after = moved(&file, 1);
    after.core.rsp = 0xabcd_fffe;
    memory.put_u16(0x1000 + 0xfffe, 0x302);
    settle(&plan, &after, &memory);
    assert_eq!(memory.get_u16(0x1000 + 0xfffe), 0x202);
}

#[test]
fn pushf_over_two_pages_is_mended_in_the_right_one() {
    let memory = ram();
    let mut file = long(&memory, &[0x9c]);
    // Pages 0x20_0000 and 0x20_1000 are physical 0x4000 and 0x6000.
    memory.put_u64(0x1_2008, 0x1_3007);
    memory.put_u64(0x1_3000, 0x4007);
    memory.put_u64(0x1_3008, 0x6007);
    file.core.rsp = 0x20_1007;
    let plan = StepPlan::new(&file, &memory);
    let mut after = moved(&file, CODE + 1);
    after.core.rsp = 0x20_0fff;
    memory.put(0x4fff, &[0x02]);
    memory.put(0x6000, &[0x03]);
    let settlement = settle(&plan, &after, &memory);
    assert_eq!(mended(&settlement), [(0x6000, 0x02)]);
}

#[test]
fn popf_loads_the_guests_tf() {
    for (popped, own) in [(0x302, false), (0x202, true), (0x302, true), (0x202, false)] {
        let memory = ram();
        let mut file = long(&memory, &[0x9d]);
        file.core.rflags |= if own { TF } else { 0 };
        memory.put_u64(STACK, popped);
        let plan = StepPlan::new(&file, &memory);
        let mut after = moved(&file, CODE + 1);
        after.core.rsp += 8;
        let settlement = settle(&plan, &after, &memory);
        assert_eq!(settlement.guest_tf, popped & TF != 0);
        // The trap is owed for the TF that was set as POPF began.
        assert_eq!(settlement.guest_trap, own);
        assert!(settlement.mends.is_empty());
    }
}

#[test]
fn iret_loads_the_guests_tf_in_every_width() {
    // Real mode: IP, CS, FLAGS.
    let memory = ram();
    let file = real(&memory, &[0xcf]);
    for (at, value) in [(0, 0x20), (2, 0x0110), (4, 0x302)] {
        memory.put_u16(STACK + at, value);
    }
    let plan = StepPlan::new(&file, &memory);
    let mut after = moved(&file, 0x20);
    after.special.cs = real_segment(0x110);
    after.core.rsp += 6;
    assert!(settle(&plan, &after, &memory).guest_tf);

    let memory = ram();
    let file = protected(&memory, &[0xcf]);
    for (at, value) in [(0, 0x2000), (4, 0x08), (8, 0x302)] {
        memory.put_u32(STACK + at, value);
    }
    let plan = StepPlan::new(&file, &memory);
    let mut after = moved(&file, 0x2000);
    after.core.rsp += 12;
    assert!(settle(&plan, &after, &memory).guest_tf);

    let memory = ram();
    let mut file = long(&memory, &[0x48, 0xcf]);
    file.core.rflags |= TF;
    for (at, value) in [
        (0, 0x2000),
        (8, 0x08),
        (16, 0x202),
        (24, 0x9000),
        (32, 0x10),
    ] {
        memory.put_u64(STACK + at, value);
    }
    let plan = StepPlan::new(&file, &memory);
    let mut after = moved(&file, 0x2000);
    after.core.rsp = 0x9000;
    let settlement = settle(&plan, &after, &memory);
    assert!(!settlement.guest_tf);
    assert!(settlement.guest_trap);
}

#[test]
fn syscall_does_not_show_the_debuggers_tf_in_r11() {
    for own in [false, true] {
        let memory = ram();
        let mut file = user(&memory, &[0x0f, 0x05]);
        file.core.rflags |= if own { TF } else { 0 };
        let plan = StepPlan::new(&file, &memory);
        let mut after = moved(&file, 0x5000);
        after.special.cs.selector = 0x08;
        after.core.rcx = CODE + 2;
        after.core.r11 = 0x302;
        after.core.rflags = 0x2;
        let settlement = settle(&plan, &after, &memory);
        assert_eq!(settlement.r11, (!own).then_some(0x202));
        assert!(!settlement.guest_tf && !settlement.guest_trap);
        // A hypervisor that hides TF there, too.
        after.core.r11 = 0x202;
        let settlement = settle(&plan, &after, &memory);
        assert_eq!(settlement.r11, own.then_some(0x302));
    }
}

#[test]
fn syscall_whose_kernel_ran_inside_the_step_leaves_r11_mended_too() {
    let memory = ram();
    let file = user(&memory, &[0x0f, 0x05]);
    let plan = StepPlan::new(&file, &memory);
    let mut after = moved(&file, CODE + 2);
    after.core.rcx = CODE + 2;
    after.core.r11 = 0x302;
    assert_eq!(settle(&plan, &after, &memory).r11, Some(0x202));
    // R11 that is something else is let alone.
    after.core.r11 = 0x1_0302;
    after.core.rcx = 0;
    assert_eq!(settle(&plan, &after, &memory).r11, None);
}

#[test]
fn sysret_loads_the_guests_tf_from_r11() {
    for tf in [false, true] {
        let memory = ram();
        let mut file = long(&memory, &[0x48, 0x0f, 0x07]);
        file.core.rcx = 0x5000;
        file.core.r11 = if tf { 0x302 } else { 0x202 };
        let plan = StepPlan::new(&file, &memory);
        let mut after = moved(&file, 0x5000);
        after.special.cs.selector = 0x33;
        let settlement = settle(&plan, &after, &memory);
        assert_eq!((settlement.guest_tf, settlement.guest_trap), (tf, tf));
    }
}

#[test]
fn a_step_over_mov_ss_takes_the_next_instruction_along() {
    // MOV SS, AX; PUSHF, with AX another stack.
    let memory = ram();
    let mut file = real(&memory, &[0x8e, 0xd0, 0x9c]);
    file.core.rax = 0x600;
    let plan = StepPlan::new(&file, &memory);
    assert_eq!(plan.class(), StepClass::LoadStackSegment);
    // Alone: no trap is owed, the next instruction blocks it.
    let mut after = moved(&file, 2);
    after.special.ss = real_segment(0x600);
    assert_eq!(settle(&plan, &after, &memory), clean(false));
    // Both.
    let mut after = moved(&file, 3);
    after.special.ss = real_segment(0x600);
    after.core.rsp -= 2;
    memory.put_u16(0x7000 - 2, 0x302);
    settle(&plan, &after, &memory);
    assert_eq!(memory.get_u16(0x7000 - 2), 0x202);
}

#[test]
fn a_step_over_pop_ss_reads_the_popf_behind_it_on_the_new_stack() {
    let memory = ram();
    let file = real(&memory, &[0x17, 0x9d]);
    memory.put_u16(STACK, 0x600);
    // The old stack says clear, the new one set.
    memory.put_u16(STACK + 2, 0x202);
    memory.put_u16(0x6000 + 0x1002, 0x302);
    let plan = StepPlan::new(&file, &memory);
    let mut after = moved(&file, 2);
    after.special.ss = real_segment(0x600);
    after.core.rsp += 4;
    assert!(settle(&plan, &after, &memory).guest_tf);
}

#[test]
fn a_jump_behind_mov_ss_is_followed() {
    let memory = ram();
    let file = long(&memory, &[0x8e, 0xd0, 0xeb, 0x10]);
    let plan = StepPlan::new(&file, &memory);
    assert_eq!(
        settle(&plan, &moved(&file, CODE + 0x14), &memory),
        clean(false)
    );
}

#[test]
fn the_guests_own_steps_are_reported() {
    let memory = ram();
    let mut file = long(&memory, &[0x90]);
    file.core.rflags |= TF;
    let plan = StepPlan::new(&file, &memory);
    // The hypervisor hides TF in what it shows.
    let mut after = moved(&file, CODE + 1);
    after.core.rflags &= !TF;
    assert_eq!(settle(&plan, &after, &memory), clean(true));
    // MOV SS blocks the trap.
    let mut file = long(&memory, &[0x8e, 0xd0, 0x90]);
    file.core.rflags |= TF;
    let plan = StepPlan::new(&file, &memory);
    let settlement = settle(&plan, &moved(&file, CODE + 2), &memory);
    assert!(settlement.guest_tf && !settlement.guest_trap);
    let settlement = settle(&plan, &moved(&file, CODE + 3), &memory);
    assert!(settlement.guest_tf && settlement.guest_trap);
}

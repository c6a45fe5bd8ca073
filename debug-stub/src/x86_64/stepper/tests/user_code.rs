//! User code on a hypervisor that delivers the trap of its steps to the guest.

use vcpu_caps::HwBreakpointKind;

use super::habits::long_mode;
use super::*;

const GDT: u64 = 0xd000;
const TSS: u64 = 0xd100;
const IDT: u64 = 0xc000;
/// The top of the stack for vector 1, and of the one for all others.
const DEBUG_STACK: u64 = 0x7800;
const KERNEL_STACK: u64 = 0x7000;
const USER_CODE: u16 = 0x33;
const USER_DATA: u16 = 0x2b;
/// What is below the tops of the stacks.
const STALE: u64 = 0x1122_3344_5566_7788;
const BS: u64 = 1 << 14;

/// 64-bit code on a hypervisor with the habits of kvm_pvm, at CPL0. The handler of vector 1 is
/// `pop %rax; jmp $`, on an interrupt stack, and that of #UD `nop; iretq`.
fn kernel(code: &[u8]) -> Machine {
    let mut machine = long_mode(Habits::PVM, code, &[0x90, 0x48, 0xcf], TF);
    let memory = &machine.memory;
    memory.put(DEBUG_HANDLER.into(), &[0x58, 0xeb, 0xfe]);
    let gate =
        |handler: u16, stack: u64| u64::from(handler) | 0x10 << 16 | stack << 32 | 0x8e00 << 32;
    memory.put_u64(IDT + 16, gate(DEBUG_HANDLER, 1));
    memory.put_u64(IDT + 6 * 16, gate(HANDLER, 0));
    memory.put_u64(TSS + 4, KERNEL_STACK);
    memory.put_u64(TSS + 0x24, DEBUG_STACK);
    for top in [DEBUG_STACK, KERNEL_STACK] {
        for item in 1..8 {
            memory.put_u64(top - 8 * item, STALE + item);
        }
    }
    for (selector, descriptor) in [
        (0x10, 0x00af_9b00_0000_ffff_u64),
        (0x18, 0x00cf_9300_0000_ffff),
        (USER_DATA, 0x00cf_f300_0000_ffff),
        (USER_CODE, 0x00af_fb00_0000_ffff),
    ] {
        memory.put_u64(GDT + u64::from(selector & !7), descriptor);
    }
    let special = &mut machine.vcpu.registers_mut().special;
    (special.gdtr.base, special.gdtr.limit) = (GDT, 0xff);
    (special.tr.base, special.tr.present) = (TSS, true);
    for segment in [
        &mut special.ds,
        &mut special.es,
        &mut special.fs,
        &mut special.gs,
    ] {
        (segment.selector, segment.dpl) = (USER_DATA, 3);
    }
    machine
}

/// The same at CPL3.
fn user(code: &[u8]) -> Machine {
    let mut machine = kernel(code);
    let special = &mut machine.vcpu.registers_mut().special;
    (special.cs.selector, special.cs.dpl) = (USER_CODE, 3);
    (special.ss.selector, special.ss.dpl) = (USER_DATA, 3);
    machine
}

#[track_caller]
fn assert_stacks_are_untouched(machine: &Machine) {
    for top in [DEBUG_STACK, KERNEL_STACK] {
        for item in 1..8 {
            assert_eq!(machine.memory.get_u64(top - 8 * item), STALE + item);
        }
    }
}

#[test]
fn a_step_of_user_code_takes_the_delivery_of_its_trap_back() {
    // inc rax; pushf; pop rax; jmp $
    let mut machine = user(&[0x48, 0xff, 0xc0, 0x9c, 0x58, 0xeb, 0xfe]);
    let before = machine.registers();
    machine.step_to(CODE + 3);
    let after = machine.registers();
    assert_eq!(after.core.rax, 1);
    assert_eq!(after.core.rsp, before.core.rsp);
    assert_eq!(after.core.rflags, before.core.rflags);
    assert_eq!(after.special.cs, before.special.cs);
    assert_eq!(after.special.ss, before.special.ss);
    machine.step_to(CODE + 4);
    machine.step_to(CODE + 5);
    assert_eq!(machine.registers().core.rax, 2, "no TF in the image");
    machine.step_to(CODE + 5);
    assert_stacks_are_untouched(&machine);
    assert_eq!(machine.vcpu.debug_status().unwrap().dr6 & BS, 0);
    machine.release();
}

#[test]
fn the_users_own_single_step_reaches_its_handler() {
    // nop; nop; jmp $
    let mut machine = user(&[0x90, 0x90, 0xeb, 0xfe]);
    machine.set(|file| file.core.rflags |= TF);
    machine.step_to(CODE + 1);
    assert_ne!(machine.registers().core.rflags & TF, 0);
    // Its #DB comes before the next instruction.
    machine.step_to(DEBUG_HANDLER);
    assert_ne!(machine.vcpu.debug_status().unwrap().dr6 & BS, 0);
    assert_eq!(
        machine.memory.get_u64(DEBUG_STACK - 40),
        u64::from(CODE) + 1
    );
    let flags = machine.memory.get_u64(DEBUG_STACK - 24);
    assert_ne!(flags & TF, 0, "the guest's own TF");
}

#[test]
fn a_fault_of_user_code_ends_the_step_at_its_handler() {
    // ud2
    let mut machine = user(&[0x0f, 0x0b]);
    machine.step_to(HANDLER);
    assert_eq!(machine.memory.get_u64(KERNEL_STACK - 40), u64::from(CODE));
    assert_eq!(machine.memory.get_u64(KERNEL_STACK - 24), 2, "no TF");
}

#[test]
fn a_return_to_user_code_is_one_step() {
    // iretq; the user: nop; jmp $
    let mut machine = kernel(&[0x48, 0xcf]);
    machine
        .memory
        .put(SOFTWARE_HANDLER.into(), &[0x90, 0xeb, 0xfe]);
    let frame = [
        SOFTWARE_HANDLER.into(),
        USER_CODE.into(),
        0x8d7,
        0x6800,
        USER_DATA.into(),
    ];
    let top = u64::from(STACK) - 40;
    for (value, offset) in frame.into_iter().zip([0, 8, 16, 24, 32]) {
        machine.memory.put_u64(top + offset, value);
    }
    machine.set(|file| file.core.rsp = top);
    machine.step_to(SOFTWARE_HANDLER);
    let file = machine.registers();
    assert_eq!((file.core.rsp, file.core.rflags), (0x6800, 0x8d7));
    assert_eq!(file.special.cs.selector, USER_CODE);
    assert!(file.special.cs.long && file.special.cs.dpl == 3);
    machine.step_to(SOFTWARE_HANDLER + 1);
    machine.step_to(SOFTWARE_HANDLER + 1);
}

#[test]
fn sysret_to_user_code_is_one_step() {
    // sysretq; the user: nop; jmp $
    let mut machine = kernel(&[0x48, 0x0f, 0x07]);
    machine
        .memory
        .put(SOFTWARE_HANDLER.into(), &[0x90, 0xeb, 0xfe]);
    machine.set(|file| (file.core.rcx, file.core.r11) = (SOFTWARE_HANDLER.into(), IF | 2));
    machine.step_to(SOFTWARE_HANDLER);
    let file = machine.registers();
    assert_eq!(file.core.rflags, IF | 2);
    assert_eq!(file.core.r11, IF | 2);
    assert_eq!(file.special.cs.selector, USER_CODE);
    machine.step_to(SOFTWARE_HANDLER + 1);
}

#[test]
fn a_step_whose_trap_cannot_be_taken_back_is_refused() {
    let no_gate = user(&[0x90]);
    no_gate.memory.put_u64(IDT + 16, 0);
    let no_stack = user(&[0x90]);
    no_stack.memory.put_u64(TSS + 0x24, 0x4000_0000);
    let mut no_register = user(&[0x90]);
    let watch = |at| HwBreakpoint::watch(at, 8, HwBreakpointKind::Write);
    no_register.arm([0x100, 0x200, 0x300, 0x400].map(watch).to_vec(), &[]);
    for mut machine in [no_gate, no_stack, no_register] {
        let StopReason::InternalError(text) = machine.step() else {
            panic!("it was stepped");
        };
        assert!(text.contains("cannot step user code here"), "{text}");
        assert_eq!(machine.registers().core.rip, u64::from(CODE));
        assert_eq!(machine.vcpu.delivered(), []);
        machine.assert_is_clean();
    }
}

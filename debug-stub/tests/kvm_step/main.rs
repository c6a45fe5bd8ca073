//! Steps, breakpoints and stops of a real KVM vCPU, through `debug_stub::kvm`.
//!
//! Every guest is a few instructions of real-mode code, assembled beside the bytes. What a KVM
//! cannot do is asserted as such, by the name of its module.
#![cfg(all(feature = "kvm", target_arch = "x86_64"))]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is the world around the core, and it stops where what must hold does not"
)]

mod guest;
mod seccomp;
mod started;

use std::sync::atomic::Ordering;

use debug_stub::kvm::KvmVcpu;

use debug_stub::x86_64::stepper::Vcpu as _;
use debug_stub::x86_64::{RegisterGroups, StateComponents};
use debug_stub::{
    Armed, GuestMemory, GuestPhysAddr, StepOrder, StopReason, VcpuOrder, WatchAccess,
};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_segment, kvm_xcrs};
use kvm_ioctls::Kvm;
use vcpu_caps::{
    Capability, DebugIntent, Evidence, HwBreakpoint, HwBreakpointKind, Mechanism, Minimum, Owner,
    Profile, negotiate,
};

use guest::{Access, CODE, COUNTER, Guest, HANDLER, IF, OnStop, STACK, TF, is_pvm, plan, report};

/// KVM's single step is not in force any more then: TF alone would go to the guest as a #DB. With the
/// mask BLOCKIRQ changes, and hid it.
#[test]
fn a_step_is_a_step_after_a_run_that_was_stopped_before_it_began() {
    // inc ax, four times
    let mut guest = Guest::new(&[0x40, 0x40, 0x40, 0x40, 0xeb, 0xfe]);
    let unmasked = |guest: &mut Guest| guest.step_with(false, &Armed::default());
    assert_eq!(unmasked(&mut guest), StopReason::Step);
    assert_eq!(unmasked(&mut guest), StopReason::Step);
    guest.stop.store(true, Ordering::Release);
    let stopped = guest.run(&VcpuOrder::Continue, &Armed::default());
    assert_eq!(stopped, StopReason::Interrupted);
    guest.stop.store(false, Ordering::Release);
    assert_eq!(unmasked(&mut guest), StopReason::Step);
    assert_eq!(guest.rip(), CODE + 3);
    assert_eq!(guest.word(COUNTER), 0, "the guest had a #DB");
    assert_eq!(guest.registers().core.rflags & TF, 0);
}

#[test]
fn each_step_is_one_instruction_with_and_without_registers_in_the_run_structure() {
    // nop; inc ax; mov bx, ax; jmp $
    let code = [0x90, 0x40, 0x89, 0xc3, 0xeb, 0xfe];
    let profile = Profile::builder()
        .require(Capability::SingleStep, Minimum::Verified)
        .prefer(Capability::MaskHwintr, Minimum::Verified)
        .forbid(Capability::SyncRegs)
        .build()
        .unwrap();
    let without = negotiate(report(), &profile).unwrap();
    assert!(plan().has(Capability::SyncRegs));
    for plan in [plan(), &without] {
        let mut guest = Guest::with(&code, plan);
        guest.step_to(CODE + 1);
        guest.step_to(CODE + 2);
        guest.step_to(CODE + 4);
        assert_eq!(guest.registers().core.rbx, guest.registers().core.rax);
        guest.step_to(CODE + 4);
        guest.step_to(CODE + 4);
    }
}

#[test]
fn a_pending_interrupt_stays_out_while_masked_and_enters_once_afterwards() {
    // sti; nop x8; jmp $
    let code = [
        0xfb, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe,
    ];
    let mut guest = Guest::new(&code);
    guest.step_to(CODE + 1);
    guest.step_to(CODE + 2);
    guest.raise();
    for n in 3..=9 {
        guest.step_to(CODE + n);
    }
    assert_eq!(guest.word(COUNTER), 0, "nothing entered the guest");
    // Unmasked, the same steps are hit: the test can fail.
    for _ in 0..4 {
        assert_eq!(guest.step_with(false, &Armed::default()), StopReason::Step);
    }
    assert_eq!(
        guest.word(COUNTER),
        1,
        "the interrupt was not lost, nor doubled"
    );
    assert!(!guest.vcpu.stepper.is_masked());
}

#[test]
fn a_pushed_flags_image_holds_no_trap_flag_of_the_debugger() {
    // pushf; pop ax; jmp $
    let mut guest = Guest::new(&[0x9c, 0x58, 0xeb, 0xfe]);
    guest.step_to(CODE + 1);
    assert_eq!(guest.word(STACK - 2), 2);
    guest.step_to(CODE + 2);
    assert_eq!(guest.registers().core.rax & 0xffff, 2);
}

#[test]
fn the_guests_own_trap_flag_is_shown_and_survives_stepping() {
    // nop; pushf; pop ax; jmp $
    let mut guest = Guest::new(&[0x90, 0x9c, 0x58, 0xeb, 0xfe]);
    guest.step_to(CODE + 1);
    assert_eq!(guest.registers().core.rflags & TF, 0);
    guest.set(|file| file.core.rflags |= TF);
    assert_ne!(guest.registers().core.rflags & TF, 0, "shown as written");
    guest.vcpu.release(&guest.memory);
    assert_ne!(
        guest.registers().core.rflags & TF,
        0,
        "there after the debugger has gone"
    );
}

#[test]
fn an_out_in_mid_step_is_served_once_and_takes_no_further_instruction_along() {
    // out 0x80, al; inc bx; in al, 0x81; inc bx; jmp $
    let mut guest = Guest::new(&[0xe6, 0x80, 0x43, 0xe4, 0x81, 0x43, 0xeb, 0xfe]);
    guest.set(|file| {
        file.core.rax = 0x42;
        file.core.rbx = 0;
    });
    guest.step_to(CODE + 2);
    assert_eq!(guest.devices.take(), [Access::Out(0x80, vec![0x42])]);
    assert_eq!(guest.registers().core.rbx, 0);
    guest.step_to(CODE + 3);
    guest.step_to(CODE + 5);
    assert_eq!(guest.devices.take(), [Access::In(0x81, 1)]);
    assert_eq!(guest.registers().core.rax & 0xff, 0x5a);
    assert_eq!(guest.registers().core.rbx, 1);
    guest.step_to(CODE + 6);
    assert_eq!(guest.registers().core.rbx, 2);
}

#[test]
fn mmio_in_mid_step_is_served_once_and_takes_no_further_instruction_along() {
    // mov [bx], ax; inc cx; mov dx, [bx]; inc cx; jmp $   with DS.base beyond memory
    let mut guest = Guest::new(&[0x89, 0x07, 0x41, 0x8b, 0x17, 0x41, 0xeb, 0xfe]);
    let mut file = guest.registers();
    file.special.ds.base = 0x2_0000;
    file.special.ds.selector = 0x2000;
    file.core.rax = 0x1234;
    file.core.rbx = 4;
    file.core.rcx = 0;
    guest.vcpu.write_registers(RegisterGroups::EXPEDITED, &file);
    guest.step_to(CODE + 2);
    assert_eq!(
        guest.devices.take(),
        [Access::Write(0x2_0004, vec![0x34, 0x12])]
    );
    assert_eq!(guest.registers().core.rcx, 0);
    guest.step_to(CODE + 3);
    guest.step_to(CODE + 5);
    assert_eq!(guest.devices.take(), [Access::Read(0x2_0004, 2)]);
    assert_eq!(guest.registers().core.rdx & 0xffff, 0x5a5a);
    assert_eq!(guest.registers().core.rcx, 1);
}

#[test]
fn string_output_reaches_the_device_element_by_element() {
    // cld; rep outsw; jmp $
    let mut guest = Guest::new(&[0xfc, 0xf3, 0x6f, 0xeb, 0xfe]);
    guest
        .memory
        .write_memory(GuestPhysAddr(0x5000), &[1, 2, 3, 4, 5, 6]);
    guest.set(|file| {
        file.core.rsi = 0x5000;
        file.core.rcx = 3;
        file.core.rdx = 0x90;
    });
    guest.step_to(CODE + 1);
    let mut steps = 0;
    while guest.rip() != CODE + 3 {
        assert_eq!(guest.step(), StopReason::Step);
        steps += 1;
        assert!(
            steps <= 4,
            "REP OUTSW of three elements in at most four steps"
        );
    }
    assert_eq!(
        guest.devices.take(),
        [vec![1, 2], vec![3, 4], vec![5, 6]].map(|data| Access::Out(0x90, data))
    );
}

#[test]
fn an_execute_breakpoint_stops_before_its_instruction_and_is_stepped_off() {
    // nop; nop; inc ax; jmp -3 (to the inc)
    let mut guest = Guest::new(&[0x90, 0x90, 0x40, 0xeb, 0xfd]);
    let armed = Armed {
        hardware: vec![HwBreakpoint::execute(CODE + 2)],
        ..Armed::default()
    };
    guest.set(|file| file.core.rax = 0);
    assert_eq!(
        guest.run(&VcpuOrder::Continue, &armed),
        StopReason::HardwareBreakpoint
    );
    assert_eq!(guest.rip(), CODE + 2);
    assert_eq!(
        guest.registers().core.rax,
        0,
        "the instruction has not executed"
    );
    // Continuing on it hits it again: a debugger that wants past it steps.
    assert_eq!(
        guest.run(&VcpuOrder::Continue, &armed),
        StopReason::HardwareBreakpoint
    );
    assert_eq!(guest.step_with(true, &armed), StopReason::Step);
    assert_eq!(guest.rip(), CODE + 3);
    // A step *onto* it is a hit.
    assert_eq!(
        guest.step_with(true, &armed),
        StopReason::HardwareBreakpoint
    );
    assert_eq!(guest.registers().core.rax, 1);
}

#[test]
fn a_range_step_ends_at_the_first_instruction_outside_and_at_a_breakpoint_inside() {
    // nop x4; jmp $
    let mut guest = Guest::new(&[0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe]);
    let range = VcpuOrder::Step(StepOrder {
        range: Some(CODE..CODE + 4),
        mask: true,
        ..StepOrder::default()
    });
    let armed = Armed {
        hardware: vec![HwBreakpoint::execute(CODE + 2)],
        ..Armed::default()
    };
    assert_eq!(guest.run(&range, &armed), StopReason::HardwareBreakpoint);
    assert_eq!(guest.rip(), CODE + 2);
    assert_eq!(guest.run(&range, &armed), StopReason::Step);
    assert_eq!(guest.rip(), CODE + 4);
}

#[test]
fn a_halted_vcpu_is_kicked_out_of_its_step() {
    // cli; hlt; jmp $
    let mut guest = Guest::new(&[0xfa, 0xf4, 0xeb, 0xfe]);
    guest.step_to(CODE + 1);
    guest.step_to(CODE + 2);
    // The next KVM_RUN would block for good.
    guest.stop.store(true, Ordering::Release);
    assert_eq!(guest.step(), StopReason::Interrupted);
    assert_eq!(guest.rip(), CODE + 2);
    assert_eq!(guest.vcpu.waiting(), Some("halted"));
}

/// `print f(1)` in gdb, on a vCPU that waits.
#[test]
fn a_halted_vcpu_runs_where_the_debugger_sends_it_and_is_halted_again_when_it_is_sent_back() {
    // cli; hlt; jmp $; inc ax; inc ax; jmp $
    let mut guest = Guest::new(&[0xfa, 0xf4, 0xeb, 0xfe, 0x40, 0x40, 0xeb, 0xfe]);
    guest.step_to(CODE + 1);
    guest.step_to(CODE + 2);
    assert_eq!(guest.vcpu.waiting(), Some("halted"));
    let before = guest.registers();
    // The same RIP changes nothing.
    guest.set(|file| file.core.rcx = 1);
    assert_eq!(guest.vcpu.waiting(), Some("halted"));
    guest.set(|file| file.core.rip = CODE + 4);
    assert_eq!(guest.vcpu.waiting(), None);
    guest.step_to(CODE + 5);
    let armed = Armed {
        hardware: vec![HwBreakpoint::execute(CODE + 6)],
        ..Armed::default()
    };
    let stopped = guest.run(&VcpuOrder::Continue, &armed);
    assert_eq!(stopped, StopReason::HardwareBreakpoint);
    assert_eq!(guest.registers().core.rax, before.core.rax + 2);
    guest.set(|file| *file = before.clone());
    assert_eq!(guest.vcpu.waiting(), Some("halted"));
    guest.stop.store(true, Ordering::Release);
    assert_eq!(guest.step(), StopReason::Interrupted);
    assert_eq!(guest.registers().core, before.core);
}

#[test]
fn a_step_that_yields_is_gone_on_with_and_registers_written_in_between_count() {
    // nop; inc ax; jmp $
    let mut guest = Guest::new(&[0x90, 0x40, 0xeb, 0xfe]);
    let order = VcpuOrder::Step(StepOrder {
        range: None,
        mask: true,
        ..StepOrder::default()
    });
    guest.step_to(CODE + 1);
    guest.set(|file| file.core.rax = 0);
    guest.stop.store(true, Ordering::Release);
    let end = guest.run_until(OnStop::Yield, &order, &Armed::default());
    assert_eq!(end, None);
    guest.stop.store(false, Ordering::Release);
    assert_eq!(guest.run(&order, &Armed::default()), StopReason::Step);
    assert_eq!((guest.rip(), guest.registers().core.rax), (CODE + 2, 1));
    // An armed step that never ran leaves nothing to overwrite what is written now.
    guest.stop.store(true, Ordering::Release);
    assert_eq!(guest.step(), StopReason::Interrupted);
    guest.stop.store(false, Ordering::Release);
    guest.set(|file| file.core.rip = CODE);
    guest.step_to(CODE + 1);
}

#[test]
fn no_interrupt_is_handed_over_behind_sti() {
    let mut guest = Guest::new(&[0xfb, 0x90, 0xeb, 0xfe]);
    assert_eq!(guest.step(), StopReason::Step);
    let fd = &mut guest.vcpu.fd;
    fd.get_kvm_run().ready_for_interrupt_injection = 1;
    KvmVcpu(fd).restore_sti_shadow().unwrap();
    assert_eq!(fd.get_kvm_run().ready_for_interrupt_injection, 0);
}

#[test]
fn what_is_released_is_neither_masked_nor_armed() {
    let mut guest = Guest::new(&[0x90, 0xeb, 0xfe]);
    let armed = Armed {
        hardware: vec![HwBreakpoint::execute(CODE)],
        ..Armed::default()
    };
    assert_eq!(guest.step_with(true, &armed), StopReason::Step);
    assert!(guest.vcpu.stepper.is_masked());
    guest.vcpu.release(&guest.memory);
    assert!(!guest.vcpu.stepper.is_masked());
    let intent = guest.vcpu.stepper.control().intent();
    assert_eq!(intent, DebugIntent::default());
    assert_eq!(
        guest.vcpu.stepper.control().pending(),
        None,
        "and KVM has been told"
    );
}

#[test]
fn a_hold_of_another_owner_outlives_the_debuggers() {
    // sti; nop x6; jmp $
    let mut guest = Guest::new(&[0xfb, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe]);
    let snapshot = Owner::new("snapshot");
    guest
        .vcpu
        .stepper
        .control_mut()
        .hold(snapshot, Capability::MaskHwintr)
        .unwrap();
    guest.step_to(CODE + 1);
    guest.step_to(CODE + 2);
    guest.raise();
    // The debugger does not mask, and then goes: the other hold stays.
    for n in 3..=5 {
        assert_eq!(guest.step_with(false, &Armed::default()), StopReason::Step);
        assert_eq!(guest.rip(), CODE + n);
    }
    guest.vcpu.release(&guest.memory);
    assert!(guest.vcpu.stepper.is_masked());
    assert_eq!(guest.word(COUNTER), 0);
    guest
        .vcpu
        .stepper
        .control_mut()
        .release(snapshot, Capability::MaskHwintr)
        .unwrap();
    for _ in 0..4 {
        assert_eq!(guest.step_with(false, &Armed::default()), StopReason::Step);
    }
    assert_eq!(guest.word(COUNTER), 1);
}

#[test]
fn a_triple_fault_is_told_with_its_place_and_the_guest_stays_dead() {
    // lidt [0x5000] (all zero: limit 0); mov eax, cr0; or al, 1; mov cr0, eax; ud2
    // In protected mode: KVM's emulator does not look at the limit in real mode.
    let mut guest = Guest::new(&[
        0x0f, 0x01, 0x1e, 0x00, 0x50, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x0f, 0x0b,
    ]);
    let reason = guest.run(&VcpuOrder::Continue, &Armed::default());
    let StopReason::TripleFault(text) = &reason else {
        panic!("{reason:?}")
    };
    assert!(text.contains("vcpu0: triple fault at 0x"), "{text}");
    assert_eq!(guest.run(&VcpuOrder::Continue, &Armed::default()), reason);
}

#[test]
fn an_instruction_kvm_cannot_do_is_told_with_its_bytes() {
    // jmp 0x2000:0 : beyond memory
    let mut guest = Guest::new(&[0xea, 0x00, 0x00, 0x00, 0x20]);
    let reason = guest.run(&VcpuOrder::Continue, &Armed::default());
    let StopReason::InternalError(text) = &reason else {
        panic!("{reason:?}")
    };
    assert!(
        text.contains("suberror 1") && text.contains("at 0x20000"),
        "{text}"
    );
}

#[test]
fn interrupts_are_enabled_in_no_register_by_masking() {
    let mut guest = Guest::new(&[0xfb, 0x90, 0x90, 0xeb, 0xfe]);
    guest.step_to(CODE + 1);
    assert_ne!(
        guest.registers().core.rflags & IF,
        0,
        "masking does not touch RFLAGS.IF"
    );
}

#[test]
fn floating_point_registers_are_written_and_read_back_mxcsr_among_them() {
    let mut guest = Guest::new(&[0x90, 0xeb, 0xfe]);
    let mut file = guest.registers();
    assert_eq!(file.fpu.mxcsr, 0x1f80, "as after reset");
    file.fpu.mxcsr = 0x1fbf;
    file.fpu.fcw = 0x027f;
    file.fpu.xmm[15] = [0x5a; 16];
    file.fpu.st[0] = [1, 2, 3, 4, 5, 6, 7, 0x88, 9, 10];
    file.fpu.ftw_abridged = 0x80;
    file.kernel_gs_base = 0x1234_5678;
    let groups = RegisterGroups::FPU | RegisterGroups::MSRS;
    guest.vcpu.write_registers(groups, &file);
    assert_eq!(guest.step(), StopReason::Step);
    let after = guest.registers();
    assert_eq!(after.fpu, file.fpu);
    assert_eq!(after.kernel_gs_base, 0x1234_5678);
}

/// Those of AVX, AVX-512 and PKRU that this host and its KVM have, and no others.
#[test]
fn state_components_that_a_guest_enables_are_written_and_read_back() {
    let mut guest = Guest::new(&[0x90, 0xeb, 0xfe]);
    let cpuid = Kvm::new()
        .unwrap()
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .unwrap();
    let leaf = |function| {
        let mut leaves = cpuid.as_slice().iter();
        leaves.find(move |leaf| leaf.function == function && leaf.index == 0)
    };
    let xsave = leaf(1).is_some_and(|leaf| leaf.ecx & XSAVE != 0);
    let can: u64 = leaf(0xd).map_or(0, |leaf| leaf.eax).into();
    // XCR0 bits, SDM 1 13.3.
    let mut xcr0 = 0b11;
    let mut expected = StateComponents::empty();
    for (bits, component) in [
        (0x4, StateComponents::AVX),
        (0xe0, StateComponents::AVX512),
        (0x200, StateComponents::PKRU),
    ] {
        if xsave && can & bits == bits {
            xcr0 |= bits;
            expected |= component;
        }
    }
    let fd = &guest.vcpu.fd;
    fd.set_cpuid2(&cpuid).unwrap();
    if xsave {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = xcr0;
        fd.set_xcrs(&xcrs).unwrap();
    }
    let none = guest.registers().fpu.components();
    assert_eq!(none, StateComponents::empty(), "CR4.OSXSAVE is clear");
    if xsave {
        let mut sregs = guest.vcpu.fd.get_sregs().unwrap();
        sregs.cr4 |= OSXSAVE;
        guest.vcpu.fd.set_sregs(&sregs).unwrap();
    }

    let mut file = guest.registers();
    assert_eq!(file.fpu.components(), expected, "XCR0 is {xcr0:#x}");
    for (n, register) in (1..).zip(file.fpu.ymm_high.iter_mut().flatten()) {
        *register = [n; 16];
    }
    if let Some(state) = &mut file.fpu.avx512 {
        for (n, register) in (1..).zip(&mut state.opmask) {
            *register = 0x1111_1111_1111_1111 * n;
        }
        for (n, register) in (0x20..).zip(&mut state.zmm_high) {
            *register = [n; 32];
        }
        let low = state.xmm.iter_mut().chain(&mut state.ymm_high);
        for (n, register) in (0x60..).zip(low) {
            *register = [n; 16];
        }
    }
    if let Some(pkru) = &mut file.fpu.pkru {
        *pkru = 0x5555_5554;
    }
    guest.vcpu.write_registers(RegisterGroups::FPU, &file);
    assert_eq!(guest.step(), StopReason::Step);
    assert_eq!(guest.registers().fpu, file.fpu);
    // Back to the initial state.
    file.fpu.avx512 = file.fpu.avx512.map(|_| Box::default());
    file.fpu.pkru = file.fpu.pkru.map(|_| 0);
    guest.vcpu.write_registers(RegisterGroups::FPU, &file);
    assert_eq!(guest.registers().fpu, file.fpu);
}

/// CPUID leaf 1, ECX.
const XSAVE: u32 = 1 << 26;
/// CR4.OSXSAVE.
const OSXSAVE: u64 = 1 << 18;

/// What this host was seen not to do is refused, with these words. `rigs/matrix` reads the line.
fn assert_refused(capability: Capability, reason: &StopReason, words: &str) {
    let finding = report().finding(capability);
    assert_eq!(finding.evidence, Evidence::Refuted, "{capability}");
    let StopReason::InternalError(text) = reason else {
        panic!("{reason:?}, though {capability} is refuted")
    };
    assert!(text.contains(words), "{text}");
    println!("expected refusal: {capability}: {}", finding.detail);
}

#[test]
fn a_watchpoint_stops_behind_the_access_and_tells_its_address() {
    // mov ax, [0x5000]; mov [0x5000], ax; jmp $
    let mut guest = Guest::new(&[0xa1, 0x00, 0x50, 0xa3, 0x00, 0x50, 0xeb, 0xfe]);
    for (kind, access, next) in [
        (HwBreakpointKind::ReadWrite, WatchAccess::ReadWrite, 3),
        (HwBreakpointKind::Write, WatchAccess::Write, 6),
    ] {
        guest.set(|file| file.core.rip = CODE);
        let armed = Armed {
            hardware: vec![HwBreakpoint::watch(0x5000, 2, kind)],
            ..Armed::default()
        };
        let reason = guest.run(&VcpuOrder::Continue, &armed);
        if !plan().has(Capability::Watchpoint) {
            assert_refused(
                Capability::Watchpoint,
                &reason,
                "watchpoint is not in the plan",
            );
            assert_eq!(guest.rip(), CODE, "nothing was run without it");
            continue;
        }
        let address = 0x5000;
        assert_eq!(reason, StopReason::Watchpoint { address, access });
        assert_eq!(guest.rip(), CODE + next);
    }
}

#[test]
fn an_int3_of_the_debugger_stops_at_it_and_one_of_the_guest_goes_back_to_it() {
    // nop; int3 (the debugger's); int3 (the guest's); jmp $
    let mut guest = Guest::new(&[0x90, 0xcc, 0xcc, 0xeb, 0xfe]);
    let armed = Armed {
        software: [GuestPhysAddr(CODE + 1)].into(),
        ..Armed::default()
    };
    let reason = guest.run(&VcpuOrder::Continue, &armed);
    if !plan().is_provided_by(Capability::BptExit, &Mechanism::HOST) {
        assert_refused(
            Capability::BptExit,
            &reason,
            "INT3 does not leave the guest",
        );
        assert_eq!(guest.rip(), CODE, "nothing was run without it");
        return;
    }
    assert_eq!(reason, StopReason::SoftwareBreakpoint);
    assert_eq!(guest.rip(), CODE + 1);
    // The handler of vector 3 counts, and returns behind the INT3 that is the guest's own.
    guest.set(|file| file.core.rip = CODE + 2);
    let armed = Armed {
        hardware: vec![HwBreakpoint::execute(CODE + 3)],
        ..armed
    };
    assert_eq!(
        guest.run(&VcpuOrder::Continue, &armed),
        StopReason::HardwareBreakpoint
    );
    assert_eq!(guest.rip(), CODE + 3);
    assert_eq!(guest.word(COUNTER), 1);
}

#[test]
fn a_breakpoint_that_the_guest_has_not_enabled_is_no_hit_of_its_own() {
    // nop x4; jmp $
    let mut guest = Guest::new(&[0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe]);
    let fd = guest.vcpu.fd();
    let mut registers = fd.get_debug_regs().unwrap();
    // DR0, not enabled, is where the step ends: some processors set DR6.B0 for it. DR1 is enabled,
    // so KVM loads all of them.
    registers.db = [CODE + 1, 0xfff0, 0, 0];
    registers.dr7 = 0x408;
    fd.set_debug_regs(&registers).unwrap();
    for n in 1..=4 {
        guest.step_to(CODE + n);
    }
    assert_eq!(guest.word(COUNTER), 0, "the guest took no #DB");
}

/// MSRs of SYSCALL and SYSRET (SDM 4, table 2-2).
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;

fn msr(index: u32, data: u64) -> Msrs {
    Msrs::from_entries(&[kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }])
    .unwrap()
}

impl Guest {
    /// A kernel in 64-bit mode about to execute `code`: pages one to one, which user code may
    /// use; system calls come in at [`HANDLER`] and clear what `mask` has.
    fn in_long_mode(code: &[u8], handler: &[u8], mask: u64) -> Self {
        let mut guest = Self::new(code);
        let put = |at: u64, bytes: &[u8]| {
            guest.memory.write_memory(GuestPhysAddr(at), bytes);
        };
        put(HANDLER, handler);
        // Present, writable, user; the last one is a page of 2 MiB.
        for (at, entry) in [(0x9000, 0xa007_u64), (0xa000, 0xb007), (0xb000, 0x87)] {
            put(at, &entry.to_le_bytes());
        }
        let fd = guest.vcpu.fd();
        let mut sregs = fd.get_sregs().unwrap();
        (sregs.cr0, sregs.cr3, sregs.cr4) = (0x8000_0011, 0x9000, 0x20);
        // SCE, LME, LMA.
        sregs.efer = 0x501;
        sregs.cs = kvm_segment {
            selector: 0x10,
            limit: u32::MAX,
            type_: 11,
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        sregs.ss = kvm_segment {
            selector: 0x18,
            type_: 3,
            l: 0,
            db: 1,
            ..sregs.cs
        };
        (sregs.ds, sregs.es) = (sregs.ss, sregs.ss);
        fd.set_sregs(&sregs).unwrap();
        // SYSCALL to CS 0x10, SYSRET to CS 0x33.
        for (index, data) in [(STAR, 0x0023_0010 << 32), (LSTAR, HANDLER), (FMASK, mask)] {
            assert_eq!(fd.set_msrs(&msr(index, data)).unwrap(), 1);
        }
        guest
    }

    fn fmask(&mut self) -> u64 {
        let mut msrs = msr(FMASK, 0);
        assert_eq!(self.vcpu.fd().get_msrs(&mut msrs).unwrap(), 1);
        msrs.as_slice()[0].data
    }
}

#[test]
fn a_step_of_syscall_ends_in_the_kernel_though_fmask_clears_tf() {
    // As Linux has it: every system call would run to its end, and one that sleeps would sleep
    // with interrupts masked.
    let mask = 0x25_7fd5;
    // syscall; jmp $; at the handler: nop; jmp $
    let mut guest = Guest::in_long_mode(&[0x0f, 0x05, 0xeb, 0xfe], &[0x90, 0xeb, 0xfe], mask);
    guest.step_to(HANDLER);
    let core = guest.registers().core;
    assert_eq!((core.rcx, core.r11 & (TF | IF)), (CODE + 2, 0));
    assert_eq!(core.rflags & TF, 0);
    assert_eq!(guest.fmask(), mask, "as the guest has set it");
    guest.step_to(HANDLER + 1);
    guest.step_to(HANDLER + 1);
}

#[test]
fn a_step_of_sysret_ends_in_user_space_though_r11_has_no_tf() {
    // sysretq; in user space: nop; jmp $
    let mut guest = Guest::in_long_mode(&[0x48, 0x0f, 0x07], &[0x90, 0xeb, 0xfe], TF);
    guest.set(|file| {
        file.core.rcx = HANDLER;
        file.core.r11 = 0x2;
    });
    assert_eq!(guest.step(), StopReason::Step);
    let registers = guest.registers();
    assert_eq!(registers.core.rip, HANDLER);
    assert_eq!(registers.special.cs.selector, 0x33);
    assert_eq!((registers.core.r11, registers.core.rflags), (0x2, 0x2));
    if is_pvm() {
        let stop = guest.step();
        assert!(
            matches!(&stop, StopReason::InternalError(text) if text.contains("cannot step user code")),
            "a trap in user code goes to the guest, which has no handler: {stop:?}"
        );
        assert_eq!(guest.registers().core.rip, HANDLER);
        return;
    }
    guest.step_to(HANDLER + 1);
    assert_eq!(guest.registers().core.r11, 0x2);
}

//! What kvm_intel does to a step, seen and mended; on the others nothing is lost by that.

use vcpu_caps::GuestDebugFlags;

use super::habits::long_mode;
use super::*;
use crate::x86_64::bits::{DR6_BD, DR7_GD, RFLAGS_RF};

/// Steps `count` times, and lets the guest run free: by an order, or after the debugger has gone.
fn step_and_run_free(machine: &mut Machine, count: usize, release: bool) {
    for _ in 0..count {
        assert_eq!(machine.step(), StopReason::Step);
    }
    if release {
        machine.release();
    }
    let stop = machine.run_until(&VcpuOrder::Continue, |entries, _| entries == 4);
    assert_eq!(stop, StopReason::Interrupted);
}

#[test]
fn the_trap_of_a_step_does_not_reach_a_guest_that_runs_free() {
    for habits in Habits::ALL {
        for (code, ds) in [
            // An access, then: inc bx; jmp $
            (&[0xe6, 0x80, 0x43, 0xeb, 0xfe][..], 0),
            (&[0xe4, 0x81, 0x43, 0xeb, 0xfe], 0),
            (&[0x88, 0x07, 0x43, 0xeb, 0xfe], 0x2_0000),
            (&[0x8a, 0x07, 0x43, 0xeb, 0xfe], 0x2_0000),
        ] {
            for release in [false, true] {
                let mut machine = Machine::new(habits, code);
                machine.vcpu.registers_mut().special.ds.base = ds;
                step_and_run_free(&mut machine, 1, release);
                assert_eq!(machine.vcpu.delivered(), [], "on {}", habits.name);
                let core = machine.registers().core;
                assert_eq!((core.rip, core.rbx), (u64::from(CODE) + 3, 1));
            }
        }
    }
}

#[test]
fn a_trap_is_held_where_nothing_takes_it() {
    // out 0x80, al; inc bx; jmp $
    let mut machine = Machine::new(Habits::INTEL, &[0xe6, 0x80, 0x43, 0xeb, 0xfe]);
    machine.step_to(CODE + 2);
    machine.release();
    machine.vcpu.run(&machine.memory, false, 4);
    assert_eq!(machine.vcpu.delivered(), [1], "the VMM runs it by itself");
}

#[test]
fn the_entry_that_takes_the_trap_executes_nothing_and_lets_nothing_in() {
    // sti; out 0x80, al; inc bx; jmp $
    let mut machine = Machine::new(Habits::INTEL, &[0xfb, 0xe6, 0x80, 0x43, 0xeb, 0xfe]);
    machine.step_to(CODE + 1);
    machine.step_to(CODE + 3);
    machine.vcpu.interrupt(VECTOR);
    let mut seen = Vec::new();
    machine.run_until(&VcpuOrder::Continue, |entries, vcpu| {
        let flags = vcpu.debug().control;
        let steps = flags.contains(GuestDebugFlags::SINGLESTEP | GuestDebugFlags::BLOCKIRQ);
        seen.push((vcpu.registers().core.rip, vcpu.delivered().len(), steps));
        entries == 2
    });
    let at = u64::from(CODE) + 3;
    assert_eq!(seen[..2], [(at, 0, true), (at, 0, false)]);
    assert_eq!(machine.vcpu.delivered(), [VECTOR]);
}

#[test]
fn a_free_run_begins_at_once_where_no_trap_is_held() {
    for habits in [Habits::AMD, Habits::PVM] {
        let mut machine = Machine::new(habits, &[0xe6, 0x80, 0x43, 0xeb, 0xfe]);
        machine.step_to(CODE + 2);
        let stop = machine.run_until(&VcpuOrder::Continue, |entries, vcpu| {
            assert_eq!(*vcpu.debug(), GuestDebug::OFF);
            entries == 1
        });
        assert_eq!(stop, StopReason::Interrupted);
    }
}

#[test]
fn a_kick_before_the_trap_is_taken_leaves_it_to_the_next_free_run() {
    let mut machine = Machine::new(Habits::INTEL, &[0xe6, 0x80, 0x43, 0xeb, 0xfe]);
    machine.step_to(CODE + 2);
    assert_eq!(
        machine.run_until(&VcpuOrder::Continue, |_, _| true),
        StopReason::Interrupted
    );
    assert_eq!(machine.registers().core.rflags & TF, 0);
    step_and_run_free(&mut machine, 0, true);
    assert_eq!(machine.vcpu.delivered(), []);
}

#[test]
fn the_trap_is_taken_though_rf_lets_the_next_instruction_pass_a_breakpoint() {
    // out 0x80, al; inc bx; jmp $
    let code = [0xe6, 0x80, 0x43, 0xeb, 0xfe];
    let rf = |machine: &mut Machine| machine.registers().core.rflags & RFLAGS_RF != 0;
    for kicked in [false, true] {
        let mut machine = Machine::new(Habits::INTEL, &code);
        machine.step_to(CODE + 2);
        machine.set(|file| file.core.rflags |= RFLAGS_RF);
        let stop = machine.run_until(&VcpuOrder::Continue, |entries, vcpu| {
            let rip = vcpu.registers().core.rip;
            assert_eq!(
                entries < 2,
                rip == u64::from(CODE) + 2,
                "nothing is executed"
            );
            kicked || entries == 2
        });
        assert_eq!(stop, StopReason::Interrupted);
        assert_eq!(machine.vcpu.delivered(), []);
        assert_eq!(
            rf(&mut machine),
            kicked,
            "RF ends with the next instruction"
        );
    }
}

/// Found by the fuzz target: it is the same for a step that may end where it begins.
#[test]
fn a_trap_that_comes_before_a_string_instruction_is_noticed() {
    // rep movsb; out 0x80, al; inc bx; jmp $
    let code = [0xf3, 0xa4, 0xe6, 0x80, 0x43, 0xeb, 0xfe];
    let mut machine = Machine::new(Habits::INTEL, &code);
    machine.set(|file| (file.core.rcx, file.core.rsi, file.core.rdi) = (1, 0x6000, 0x6100));
    for _ in 0..4 {
        machine.run(&step(true));
        if machine.registers().core.rip == u64::from(CODE) + 4 {
            break;
        }
    }
    assert_eq!(machine.registers().core.rip, u64::from(CODE) + 4);
    let stop = machine.run_until(&VcpuOrder::Continue, |entries, _| entries > 2);
    assert_eq!(stop, StopReason::Interrupted);
    assert_eq!(machine.vcpu.delivered(), []);
}

/// Found by the fuzz target: the call failed by which the step would have seen that its trap came too early.
#[test]
fn the_trap_is_taken_though_a_call_of_the_step_failed() {
    let synced = [plan(&[]), plan(&[Capability::SyncRegs])];
    for (plan, fails) in synced
        .iter()
        .flat_map(|plan| (0..24).map(move |n| (plan, n)))
    {
        // out 0x80, al; inc bx; jmp $
        let mut machine = Machine::with(Habits::INTEL, &[0xe6, 0x80, 0x43, 0xeb, 0xfe], plan);
        machine.vcpu.fail_call(fails);
        for _ in 0..2 {
            let _ = machine.run(&step(true));
            if machine.vcpu.registers().core.rip == u64::from(CODE) + 2 {
                break;
            }
        }
        let stop = machine.run_until(&VcpuOrder::Continue, |entries, _| entries > 2);
        if machine.vcpu.has_failed() {
            let text = format!("{stop:?}");
            assert!(
                text.contains("Interrupted") || text.contains("made to fail"),
                "{text}"
            );
        }
        machine.release();
        let _ = machine.run_until(&VcpuOrder::Continue, |entries, _| entries > 2);
        assert_eq!(machine.vcpu.delivered(), [], "call {fails} failed");
    }
}

#[test]
fn int1_enters_its_handler_once() {
    for habits in [Habits::AMD, Habits::INTEL] {
        // int1; nop; jmp $
        let mut machine = Machine::new(habits, &[0xf1, 0x90, 0xeb, 0xfe]);
        machine.step_to(DEBUG_HANDLER);
        assert_eq!(machine.vcpu.delivered(), [1], "on {}", habits.name);
        assert_eq!(machine.word(STACK - 2), 2, "the frame's RFLAGS");
        assert_eq!(machine.word(STACK - 6), CODE + 1, "it returns behind INT1");
        machine.step_to(DEBUG_HANDLER + 1);
        machine.step_to(CODE + 1);
        machine.step_to(CODE + 2);
    }
}

#[test]
fn an_access_to_a_debug_register_raises_its_exception_under_general_detect() {
    for habits in Habits::ALL {
        // mov eax, dr0; jmp $
        let mut machine = Machine::new(habits, &[0x0f, 0x21, 0xc0, 0xeb, 0xfe]);
        machine.vcpu.set_own_breakpoint(0, 0x5a5a, 0x400 | DR7_GD);
        machine.step_to(DEBUG_HANDLER);
        let status = machine.vcpu.debug_status().unwrap();
        assert_ne!(status.dr6 & DR6_BD, 0, "on {}", habits.name);
        assert_eq!(machine.registers().core.rax, 0);
        assert_eq!(machine.word(STACK - 6), CODE, "a fault");
        assert_eq!(machine.vcpu.delivered(), [1]);
        // The delivery has cleared GD.
        machine.step_to(DEBUG_HANDLER + 1);
        machine.step_to(CODE);
        machine.step_to(CODE + 3);
        assert_eq!(machine.registers().core.rax, 0x5a5a);
    }
}

#[test]
fn hlt_behind_a_stepped_sti_is_woken() {
    for habits in Habits::ALL {
        for release in [false, true] {
            // sti; hlt; inc ax; jmp $
            let mut machine = Machine::new(habits, &[0xfb, 0xf4, 0x40, 0xeb, 0xfe]);
            machine.step_to(CODE + 1);
            machine.vcpu.interrupt(VECTOR);
            if release {
                machine.release();
            }
            machine.arm(vec![HwBreakpoint::execute(u64::from(CODE) + 2)], &[]);
            assert_eq!(
                machine.run(&VcpuOrder::Continue),
                StopReason::HardwareBreakpoint,
                "on {}",
                habits.name
            );
            assert_eq!(machine.vcpu.delivered(), [VECTOR]);
        }
    }
}

#[test]
fn an_interrupt_that_is_withheld_behind_sti_wakes_hlt() {
    for habits in Habits::ALL {
        // nop; sti; hlt; inc ax; jmp $
        let mut machine = Machine::new(habits, &[0x90, 0xfb, 0xf4, 0x40, 0xeb, 0xfe]);
        machine.set(|file| file.core.rflags |= IF);
        machine.vcpu.interrupt(VECTOR);
        assert!(machine.vcpu.kick_behind_injection());
        machine.step_to(CODE + 1);
        assert_eq!(machine.stepper.withheld_interrupt(), Some(VECTOR));
        machine.set(|file| file.core.rflags &= !IF);
        machine.step_to(CODE + 2);
        machine.release();
        machine.arm(vec![HwBreakpoint::execute(u64::from(CODE) + 3)], &[]);
        assert_eq!(
            machine.run(&VcpuOrder::Continue),
            StopReason::HardwareBreakpoint,
            "on {}",
            habits.name
        );
        assert_eq!(machine.vcpu.delivered(), [VECTOR]);
    }
}

/// mov cr8, rax; inc rax; jmp $, with an interrupt that the TPR holds back before, and not afterwards.
fn lowers_the_tpr(habits: Habits) -> Machine {
    let code = [0x44, 0x0f, 0x22, 0xc0, 0x48, 0xff, 0xc0, 0xeb, 0xfe];
    let mut machine = long_mode(habits, &code, &[0x90, 0xeb, 0xfe], 0);
    let gate = u64::from(HANDLER) | 0x10 << 16 | 0x8e00 << 32;
    let at = 0xc000 + 16 * u64::from(VECTOR);
    machine.memory.put(at, &gate.to_le_bytes());
    machine.vcpu.registers_mut().special.cr8 = 8;
    machine.set(|file| (file.core.rax, file.core.rflags) = (2, IF | 2));
    machine.vcpu.interrupt(VECTOR);
    machine
}

#[test]
fn a_masked_step_may_lower_the_tpr_below_a_pending_interrupt() {
    for habits in Habits::ALL {
        let mut machine = lowers_the_tpr(habits);
        machine.step_to(CODE + 4);
        assert_eq!(machine.registers().special.cr8, 2);
        machine.step_to(CODE + 7);
        assert_eq!(machine.vcpu.delivered(), []);
        let mut machine = lowers_the_tpr(habits);
        step_and_run_free(&mut machine, 1, false);
        assert_eq!(machine.vcpu.delivered(), [VECTOR], "on {}", habits.name);
    }
}

#[test]
fn a_processor_that_goes_on_refusing_to_enter_is_an_error() {
    let refused = || Outcome::NotEntered("refused".to_owned());
    for order in [step(true), VcpuOrder::Continue] {
        let mut machine = Machine::new(Habits::INTEL, &[0x90; 16]);
        let armed = Arc::default();
        let Machine {
            stepper,
            vcpu,
            memory,
            ..
        } = &mut machine;
        let mut next = stepper.start(&order, &armed, vcpu, memory);
        let mut entries = 0;
        while next == Next::Enter {
            next = stepper.ran(refused(), vcpu, memory);
            entries += 1;
        }
        let Next::Stopped(StopReason::InternalError(text)) = next else {
            panic!("{order:?} ended with {next:?}");
        };
        assert!(text.contains("refused"), "{text}");
        assert!(entries <= 2);
        machine.release();
    }
}

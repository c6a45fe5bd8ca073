//! What a hypervisor or a VMM may report at any time, and the simulated vCPU does not by itself.

use super::habits::long_mode;
use super::*;
use crate::x86_64::bits::DR6_BS;

/// `inc ax`, many times, with the registers of the last step cached.
fn in_a_series() -> Machine {
    let mut machine = Machine::new(Habits::AMD, &[0x40; 16]);
    for n in 1..=3 {
        machine.step_to(CODE + n);
    }
    machine
}

fn start(machine: &mut Machine, order: &VcpuOrder) -> Next {
    let armed = Arc::clone(&machine.armed);
    let Machine {
        stepper,
        vcpu,
        memory,
        ..
    } = machine;
    stepper.start(order, &armed, vcpu, memory)
}

fn ran(machine: &mut Machine, outcome: Outcome) -> Next {
    let Machine {
        stepper,
        vcpu,
        memory,
        ..
    } = machine;
    stepper.ran(outcome, vcpu, memory)
}

fn interrupt(machine: &mut Machine) -> Next {
    let Machine {
        stepper,
        vcpu,
        memory,
        ..
    } = machine;
    stepper.interrupt(vcpu, memory)
}

#[test]
fn an_access_in_several_parts_is_completed_before_an_interrupt_stops_the_vcpu() {
    for order in [step(true), VcpuOrder::Continue] {
        let mut machine = in_a_series();
        assert_eq!(start(&mut machine, &order), Next::Enter);
        let next = ran(&mut machine, Outcome::Served);
        assert!(machine.stepper.is_incomplete());
        assert_ne!(next, Next::Stopped(StopReason::Interrupted));
        // REP OUTS asks again for each part.
        assert_eq!(interrupt(&mut machine), Next::Complete);
        for _ in 0..3 {
            assert_eq!(ran(&mut machine, Outcome::Served), Next::Complete);
            assert_eq!(interrupt(&mut machine), Next::Complete);
        }
        assert_eq!(ran(&mut machine, Outcome::Served), Next::Complete);
        assert_eq!(
            ran(&mut machine, Outcome::Nothing),
            Next::Stopped(StopReason::Interrupted),
            "{order:?}"
        );
        machine.release();
    }
}

#[test]
fn an_instruction_that_never_moves_is_reported_as_a_step_at_last() {
    let mut machine = in_a_series();
    let mut next = start(&mut machine, &step(true));
    let pc = machine.registers().linear_pc();
    let trap = DebugExit {
        exception: 1,
        pc,
        dr6: DR6_BS,
    };
    let mut attempts = 0;
    while next == Next::Enter {
        next = ran(&mut machine, Outcome::Debug(trap));
        attempts += 1;
        assert!(attempts <= 100, "it never ends");
    }
    assert_eq!(next, Next::Stopped(StopReason::Step));
    assert!(attempts > 10, "spurious traps are put up with");
}

#[test]
fn registers_of_before_a_restart_by_the_vmm_are_neither_shown_nor_kept() {
    for order in [step(true), VcpuOrder::Continue] {
        let mut machine = Machine::new(Habits::AMD, &[0x90; 16]);
        machine.set(|file| file.core.rflags |= TF);
        machine.step_to(CODE + 1);
        machine.vcpu.registers_mut().core.rbp = 0xbad;
        let mut next = start(&mut machine, &order);
        assert_eq!(next, Next::Enter);
        machine.vcpu.run(&machine.memory, false, 1);
        let fresh = SimulatedVcpu::real_mode(Habits::AMD, HANDLER, 0);
        machine.vcpu.reset(fresh.registers());
        next = ran(&mut machine, Outcome::Restarted);
        if order == VcpuOrder::Continue {
            assert_eq!(next, Next::Enter);
            next = interrupt(&mut machine);
            assert_eq!(next, Next::Stopped(StopReason::Interrupted));
        }
        assert!(matches!(next, Next::Stopped(_)));
        let core = machine.registers().core;
        assert_eq!((core.rip, core.rbp), (HANDLER.into(), 0), "{order:?}");
        assert_eq!(core.rflags & TF, 0, "TF of the previous guest, {order:?}");
        machine.release();
        assert_eq!(machine.vcpu.registers().core.rflags & TF, 0);
    }
}

#[test]
fn nothing_of_the_guest_before_a_reset_is_shown() {
    let mut machine = in_a_series();
    machine.set(|file| file.core.rflags |= TF);
    machine.step_to(CODE + 4);
    let fresh = SimulatedVcpu::real_mode(Habits::AMD, CODE, STACK);
    machine.vcpu.reset(fresh.registers());
    machine.stepper.reset();
    let core = machine.registers().core;
    assert_eq!((core.rip, core.rax), (CODE.into(), 0));
    assert_eq!(core.rflags & TF, 0);
    machine.step_to(CODE + 1);
    machine.release();
    assert_eq!(machine.vcpu.registers().core.rflags & TF, 0);
}

#[test]
fn registers_that_the_vmm_writes_itself_are_shown_and_kept() {
    let mut machine = in_a_series();
    // TF is set to go in with the next entry, and registers with it.
    assert_eq!(start(&mut machine, &step(true)), Next::Enter);
    machine.stepper.forget_registers(&mut machine.vcpu);
    machine.vcpu.registers_mut().core.rax = 0x55;
    assert_eq!(machine.registers().core.rax, 0x55);
    machine.vcpu.run(&machine.memory, false, 1);
    assert_eq!(machine.vcpu.registers().core.rax, 0x56);
}

#[test]
fn what_a_vcpu_waits_for_is_known_after_a_step_that_was_interrupted() {
    for habits in [Habits::AMD, Habits::INTEL] {
        // hlt
        let mut machine = Machine::new(habits, &[0xf4, 0x40, 0xeb, 0xfe]);
        machine.step_to(CODE + 1);
        for _ in 0..2 {
            assert_eq!(machine.step(), StopReason::Interrupted);
            let state = machine.stepper.run_state(&mut machine.vcpu).unwrap();
            assert_eq!(state, RunState::Halted, "on {}", habits.name);
        }
    }
}

#[test]
fn a_guests_tf_is_shown_while_a_step_waits_for_a_startup_ipi() {
    for habits in Habits::ALL {
        let mut machine = Machine::new(habits, &[0x40; 4]);
        machine.vcpu.registers_mut().core.rflags |= TF;
        machine.vcpu.set_run_state(RunState::WaitForSipi);
        assert_eq!(machine.step(), StopReason::Interrupted);
        assert_ne!(
            machine.registers().core.rflags & TF,
            0,
            "on {}",
            habits.name
        );
        machine.release();
        assert_ne!(machine.vcpu.registers().core.rflags & TF, 0);
    }
}

/// A step that gives an exception back to the guest cannot be armed to survive INIT: the one behind
/// it must be armed again.
#[test]
fn a_step_behind_a_delivered_exception_survives_init() {
    for habits in [Habits::AMD, Habits::INTEL] {
        // inc ax; int3; inc ax, many times
        let mut code = [0x40; 16];
        code[1] = 0xcc;
        let mut machine = Machine::new(habits, &code);
        machine.arm(Vec::new(), &[0x9000]);
        machine.step_to(CODE + 1);
        assert_eq!(machine.step(), StopReason::Step);
        assert_eq!(machine.vcpu.delivered(), [3]);
        let reason = machine.run_until(&step(true), |entries, vcpu| {
            if entries == 0 {
                vcpu.init();
                vcpu.startup(STARTUP_PAGE);
            }
            entries > 20
        });
        assert_eq!(reason, StopReason::Step, "on {}", habits.name);
        let file = machine.registers();
        assert_eq!(file.special.cs.selector, u16::from(STARTUP_PAGE) << 8);
        assert!(file.core.rip <= 1, "{:#x}", file.core.rip);
        machine.release();
    }
}

#[test]
fn a_guest_that_steps_itself_is_restarted_without_tf() {
    for habits in Habits::ALL {
        for steps in 0..4 {
            let mut machine = Machine::new(habits, &[0x40; 16]);
            machine.set(|file| file.core.rflags |= TF);
            for _ in 0..steps {
                assert_eq!(machine.step(), StopReason::Step);
            }
            for _ in 0..3 {
                let reason = machine.run_until(&step(true), |entries, vcpu| {
                    if entries == 0 {
                        vcpu.init();
                        vcpu.startup(STARTUP_PAGE);
                    }
                    entries > 20
                });
                assert!(matches!(reason, StopReason::Step | StopReason::Interrupted));
                let file = machine.registers();
                let context = format!("{} after {steps}", habits.name);
                assert_eq!(file.core.rflags & TF, 0, "{context}");
                assert_eq!(file.special.cs.selector, u16::from(STARTUP_PAGE) << 8);
            }
            machine.release();
            assert_eq!(machine.vcpu.registers().core.rflags & TF, 0);
        }
    }
}

#[test]
fn a_step_that_is_given_up_is_mended_though_a_call_fails_once() {
    let mask = 0x25_7fd5;
    for after in 0..4 {
        // syscall
        let mut machine = long_mode(Habits::AMD, &[0x0f, 0x05], &[0xeb, 0xfe], mask);
        assert_eq!(start(&mut machine, &step(true)), Next::Enter);
        assert_eq!(machine.vcpu.fmask(), mask & !TF, "lent");
        machine.vcpu.fail_call(after);
        start(&mut machine, &VcpuOrder::Continue);
        assert_eq!(machine.vcpu.fmask(), mask, "call {after}");
    }
}

#[test]
fn a_step_that_ends_at_a_watchpoint_is_mended() {
    for habits in [Habits::AMD, Habits::INTEL] {
        // pushf
        let mut machine = Machine::new(habits, &[0x9c, 0xeb, 0xfe]);
        let at = u64::from(STACK) - 2;
        let watch = HwBreakpoint::watch(at, 2, vcpu_caps::HwBreakpointKind::Write);
        machine.arm(vec![watch], &[]);
        let hit = StopReason::Watchpoint {
            address: at,
            access: WatchAccess::Write,
        };
        assert_eq!(machine.step(), hit);
        assert_eq!(machine.word(STACK - 2), 2, "no TF in the image");
        assert_eq!(machine.registers().core.rflags & TF, 0);
    }
}

#[test]
fn bits_of_dr6_for_a_breakpoint_elsewhere_are_neither_a_hit_nor_the_guests() {
    let mut machine = Machine::new(Habits::AMD, &[0x40; 16]);
    machine.arm(vec![HwBreakpoint::execute(0x9000)], &[]);
    // The guest has enabled its own DR0, which is not in force.
    machine.vcpu.set_own_breakpoint(0, 0x7000, 0x401);
    for _ in 0..2 {
        assert_eq!(start(&mut machine, &step(true)), Next::Enter);
        let exit = machine.vcpu.run(&machine.memory, false, 1);
        let Exit::Debug(mut exit) = exit else {
            panic!("{exit:?}")
        };
        // B0 (SDM 3B 19.2.3: also for conditions that are not met).
        exit.dr6 |= 1;
        let next = ran(&mut machine, Outcome::Debug(exit));
        assert_eq!(next, Next::Stopped(StopReason::Step));
    }
    assert_eq!(machine.vcpu.delivered(), []);
    assert_eq!(machine.registers().core.rax, 2);
}

#[test]
fn a_step_that_ends_in_an_error_of_the_hypervisor_shows_the_guests_tf() {
    for absent in [&[][..], &[Capability::SyncRegs]] {
        let mut machine = Machine::with(Habits::AMD, &[0x40; 16], &plan(absent));
        machine.set(|file| file.core.rflags |= TF);
        assert_eq!(start(&mut machine, &step(true)), Next::Enter);
        machine.vcpu.run(&machine.memory, true, 1);
        let fatal = Outcome::Fatal(StopReason::InternalError(String::new()));
        let next = ran(&mut machine, fatal);
        assert!(
            matches!(&next, Next::Stopped(StopReason::InternalError(text)) if text.contains("at 0x1000")),
            "{next:?}"
        );
        assert_ne!(machine.registers().core.rflags & TF, 0);
        machine.release();
        assert_ne!(machine.vcpu.registers().core.rflags & TF, 0);
    }
}

#[test]
fn a_step_of_a_vcpu_that_waits_for_init_ends_as_it_takes_it() {
    for habits in Habits::ALL {
        let mut machine = Machine::new(habits, &[0x40; 4]);
        machine.vcpu.set_run_state(RunState::WaitForInit);
        let reason = machine.run_until(&step(true), |entries, vcpu| {
            if entries == 0 {
                vcpu.init();
            }
            entries > 20
        });
        assert_eq!(reason, StopReason::Step, "on {}", habits.name);
        let state = machine.stepper.run_state(&mut machine.vcpu).unwrap();
        assert_eq!(state, RunState::WaitForSipi);
        assert_eq!(machine.registers().core.rip, 0xfff0);
    }
}

/// A write of registers, as SYSRET's step needs one, loses it.
#[test]
fn an_exception_that_waits_at_sysret_is_delivered() {
    for habits in Habits::ALL {
        // sysretq; the handler: nop; jmp $
        let mut machine = long_mode(habits, &[0x48, 0x0f, 0x07], &[0x90, 0xeb, 0xfe], TF);
        let gate = u64::from(HANDLER) | 0x10 << 16 | 0x8e00 << 32;
        machine.memory.put_u64(0xc000 + 13 * 16, gate);
        machine.vcpu.queue_exception(13);
        let reason = machine.run_until(&step(true), |entries, _| entries > 4);
        assert!(matches!(reason, StopReason::Step | StopReason::Interrupted));
        assert_eq!(machine.vcpu.delivered(), [13], "on {}", habits.name);
        assert_eq!(machine.registers().core.r11, 0);
    }
}

/// `nop`, many times, with TF of the guest's own set, stepped once: its #DB is owed.
fn owes_a_trap() -> Machine {
    let mut machine = Machine::new(Habits::AMD, &[0x90; 64]);
    machine.set(|file| file.core.rflags |= TF);
    machine.step_to(CODE + 1);
    machine
}

/// The #DBs that the guest has got by the end of its third instruction, as a free run has them.
fn traps_of_a_free_run() -> usize {
    let mut machine = Machine::new(Habits::AMD, &[0x90; 64]);
    machine.vcpu.registers_mut().core.rflags |= TF;
    run_freely_to(&mut machine, CODE + 3)
}

fn run_freely_to(machine: &mut Machine, end: u16) -> usize {
    for _ in 0..100 {
        if machine.vcpu.registers().core.rip == u64::from(end) {
            break;
        }
        machine.vcpu.run(&machine.memory, false, 1);
    }
    let delivered = machine.vcpu.delivered().iter();
    delivered.filter(|vector| **vector == 1).count()
}

#[test]
fn a_trap_that_the_guest_is_owed_outlives_a_release() {
    let mut machine = owes_a_trap();
    machine
        .stepper
        .release(&mut machine.vcpu, &machine.memory)
        .unwrap();
    assert_ne!(machine.vcpu.registers().core.rflags & TF, 0);
    assert_eq!(run_freely_to(&mut machine, CODE + 3), traps_of_a_free_run());
}

#[test]
fn a_trap_that_the_guest_is_owed_comes_before_a_free_run() {
    let mut machine = owes_a_trap();
    assert_eq!(start(&mut machine, &VcpuOrder::Continue), Next::Enter);
    assert_eq!(run_freely_to(&mut machine, CODE + 3), traps_of_a_free_run());
}

#[test]
fn a_trap_that_is_owed_outlives_a_release_of_which_any_call_fails() {
    for call in 0..12 {
        let mut machine = owes_a_trap();
        machine.vcpu.fail_call(call);
        machine
            .stepper
            .release(&mut machine.vcpu, &machine.memory)
            .unwrap();
        let traps = run_freely_to(&mut machine, CODE + 3);
        assert_eq!(traps, traps_of_a_free_run(), "call {call} fails");
    }
}

#[test]
fn a_trap_that_is_queued_outlives_a_stop_before_the_entry() {
    let mut machine = owes_a_trap();
    // It is queued, and another vCPU's breakpoint stops this one before it enters.
    assert_eq!(start(&mut machine, &step(true)), Next::Enter);
    assert_eq!(
        interrupt(&mut machine),
        Next::Stopped(StopReason::Interrupted)
    );
    assert_eq!(machine.step(), StopReason::Step);
    assert_eq!(machine.vcpu.delivered(), [1]);
}

#[test]
fn a_trap_that_a_free_run_queued_outlives_a_stop_before_the_entry() {
    let mut machine = Machine::new(Habits::AMD, &[0x90; 64]);
    // A breakpoint elsewhere: the guest's own traps leave the guest.
    machine.arm(vec![HwBreakpoint::execute(0x9000)], &[]);
    machine.set(|file| file.core.rflags |= TF);
    let end = machine.run_until(&VcpuOrder::Continue, |entries, _| entries == 1);
    assert_eq!(end, StopReason::Interrupted);
    assert!(!machine.vcpu.is_quiet(), "its #DB is queued");
    machine.arm(Vec::new(), &[]);
    assert_eq!(machine.step(), StopReason::Step);
    assert_eq!(machine.vcpu.delivered(), [1]);
}

#[test]
fn a_reset_drops_a_trap_that_the_guest_before_it_was_owed() {
    let mut machine = owes_a_trap();
    let fresh = SimulatedVcpu::real_mode(Habits::AMD, CODE, STACK);
    machine.vcpu.reset(fresh.registers());
    machine.stepper.reset();
    machine.step_to(CODE + 1);
    machine.release();
    assert_eq!(machine.vcpu.delivered(), []);
}

/// "Leaves no trace of a debugger": the VMM may run the vCPU by itself then.
#[test]
fn registers_of_before_a_release_are_not_brought_back() {
    let mut machine = in_a_series();
    machine.release();
    machine.vcpu.run(&machine.memory, false, 5);
    let rip = machine.vcpu.registers().core.rip;
    assert_eq!(rip, u64::from(CODE) + 8);
    machine.step_to(CODE + 9);
    assert_eq!(machine.registers().core.rax, 9);
}

/// A guest that was stopped with an interrupt on its way in: `sti; nop ...`, then `cli; nop; sti`.
fn stopped_behind_injection(habits: Habits) -> Machine {
    let code = [
        0x90, 0x90, 0x90, 0xfa, 0x40, 0x40, 0xfb, 0x90, 0x90, 0xeb, 0xfe,
    ];
    let mut machine = Machine::new(habits, &code);
    machine.vcpu.registers_mut().core.rflags |= IF;
    machine.vcpu.interrupt(VECTOR);
    assert!(machine.vcpu.kick_behind_injection());
    machine
}

#[test]
fn an_interrupt_that_is_on_its_way_in_does_not_enter_a_masked_step() {
    for habits in Habits::ALL {
        let mut machine = stopped_behind_injection(habits);
        machine.step_to(CODE + 1);
        machine.step_to(CODE + 2);
        assert_eq!(machine.vcpu.delivered(), [], "{}", habits.name);
        // It enters with the first entry that may take it.
        assert_eq!(machine.run(&step(false)), StopReason::Step);
        assert_eq!(machine.vcpu.delivered(), [VECTOR], "{}", habits.name);
        machine.release();
    }
}

#[test]
fn an_interrupt_that_was_taken_back_waits_until_the_guest_may_take_it() {
    for habits in Habits::ALL {
        let mut machine = stopped_behind_injection(habits);
        for ip in 1..=5 {
            machine.step_to(CODE + ip);
        }
        // IF is clear now.
        machine.arm(vec![HwBreakpoint::execute(u64::from(CODE) + 8)], &[]);
        let end = machine.run(&VcpuOrder::Continue);
        assert_eq!(end, StopReason::HardwareBreakpoint);
        assert_eq!(machine.vcpu.delivered(), [VECTOR], "{}", habits.name);
        assert_eq!(machine.registers().core.rcx, 1);
    }
}

#[test]
fn an_interrupt_that_was_taken_back_outlives_a_release() {
    for (steps, queued) in [(2, vec![]), (5, vec![VECTOR])] {
        let mut machine = stopped_behind_injection(Habits::AMD);
        for ip in 1..=steps {
            machine.step_to(CODE + ip);
        }
        machine.release();
        // With IF clear it must not enter: it is in the interrupt controller again.
        assert_eq!(machine.vcpu.pending(), queued);
        machine.vcpu.run(&machine.memory, false, 20);
        assert_eq!(machine.vcpu.delivered(), [VECTOR]);
    }
}

#[test]
fn init_drops_an_interrupt_that_was_taken_back() {
    let mut machine = stopped_behind_injection(Habits::INTEL);
    machine.step_to(CODE + 1);
    machine.vcpu.init();
    machine.vcpu.startup(STARTUP_PAGE);
    assert_eq!(machine.step(), StopReason::Step);
    machine.release();
    machine.vcpu.registers_mut().core.rflags |= IF;
    machine.vcpu.run(&machine.memory, false, 3);
    assert_eq!(machine.vcpu.delivered(), []);
}

/// The trap by which the hypervisor finds the end of an NMI's handler is not the guest's.
#[test]
fn an_nmi_that_waits_for_iret_brings_no_trap_into_a_free_run() {
    for habits in Habits::ALL {
        let mut machine = Machine::new(habits, &[0x90; 64]);
        machine.vcpu.nmi();
        for at in [HANDLER, CODE + 3] {
            machine.arm(vec![HwBreakpoint::execute(at.into())], &[]);
            let end = machine.run(&VcpuOrder::Continue);
            assert_eq!(end, StopReason::HardwareBreakpoint, "{}", habits.name);
            assert_eq!(machine.registers().core.rip, u64::from(at));
            if at == HANDLER {
                machine.vcpu.nmi();
            }
        }
        assert_eq!(machine.vcpu.delivered(), [2, 2], "{}", habits.name);
    }
}

/// An unmasked step is prepared for what enters, and says so; a masked one and one behind an exception do not.
#[test]
fn a_step_says_what_it_is_prepared_for() {
    let mut machine = Machine::new(Habits::AMD, &[0x90; 64]);
    let prepared = |machine: &mut Machine, mask| {
        assert_eq!(start(machine, &step(mask)), Next::Enter);
        machine.stepper.prepared_event()
    };
    assert_eq!(machine.stepper.prepared_event(), None);
    machine.vcpu.interrupt(VECTOR);
    assert_eq!(prepared(&mut machine, true), None);
    assert_eq!(prepared(&mut machine, false), Some(None), "IF is clear");
    machine.set(|file| file.core.rflags |= IF);
    assert_eq!(prepared(&mut machine, false), Some(Some(VECTOR)));
    machine.vcpu.nmi();
    assert_eq!(prepared(&mut machine, false), Some(Some(2)));
    let _ = start(&mut machine, &VcpuOrder::Continue);
    assert_eq!(machine.stepper.prepared_event(), None);
    assert_eq!(machine.run(&step(false)), StopReason::Step);
    assert_eq!(machine.registers().core.rip, u64::from(HANDLER));
    let mut machine = owes_a_trap();
    machine.vcpu.interrupt(VECTOR);
    machine.set(|file| file.core.rflags |= IF);
    assert_eq!(
        prepared(&mut machine, false),
        None,
        "the exception is first"
    );
}

//! The table of what three KVMs do to a step (one line each), seen and mended.

use vcpu_caps::{HwBreakpointKind, Owner};

use super::*;
use crate::order::WatchAccess;

/// Runs a test for each hypervisor, with registers that come with exits and without.
fn on_each(code: &[u8], test: impl Fn(&mut Machine)) {
    for habits in Habits::ALL {
        for absent in [&[][..], &[Capability::SyncRegs]] {
            let mut machine = Machine::with(habits, code, &plan(absent));
            println!("on {}, without {absent:?}", habits.name);
            test(&mut machine);
        }
    }
}

#[test]
fn each_step_is_one_instruction() {
    // nop; inc ax; inc ax; jmp $
    on_each(&[0x90, 0x40, 0x40, 0xeb, 0xfe], |machine| {
        machine.step_to(CODE + 1);
        machine.step_to(CODE + 2);
        machine.step_to(CODE + 3);
        machine.step_to(CODE + 3);
        assert_eq!(machine.registers().core.rax, 2);
    });
}

#[test]
fn a_pushed_image_shows_no_tf() {
    // pushf; pop ax; jmp $
    on_each(&[0x9c, 0x58, 0xeb, 0xfe], |machine| {
        machine.step_to(CODE + 1);
        assert_eq!(machine.word(STACK - 2), 2);
        machine.step_to(CODE + 2);
        assert_eq!(machine.registers().core.rax, 2);
    });
}

#[test]
fn mov_ss_is_one_step_or_takes_the_next_instruction_along() {
    // mov ss, ax; pushf; jmp $
    on_each(&[0x8e, 0xd0, 0x9c, 0xeb, 0xfe], |machine| {
        assert_eq!(machine.step(), StopReason::Step);
        if machine.registers().core.rip == u64::from(CODE) + 2 {
            assert_eq!(machine.step(), StopReason::Step);
        }
        assert_eq!(machine.registers().core.rip, u64::from(CODE) + 3);
        assert_eq!(machine.word(STACK - 2), 2, "no TF in the image");
    });
}

#[test]
fn a_port_write_is_served_once_and_takes_no_instruction_along() {
    // out 0x80, al; inc bx; in al, 0x81; inc bx; jmp $
    on_each(
        &[0xe6, 0x80, 0x43, 0xe4, 0x81, 0x43, 0xeb, 0xfe],
        |machine| {
            machine.set(|file| file.core.rax = 0x42);
            machine.step_to(CODE + 2);
            assert_eq!(machine.served, [Exit::PortWrite(0x80, 0x42)]);
            assert_eq!(machine.registers().core.rbx, 0);
            machine.step_to(CODE + 3);
            machine.step_to(CODE + 5);
            assert_eq!(machine.registers().core.rax, 0x5a);
            assert_eq!(machine.registers().core.rbx, 1);
            assert_eq!(machine.served.len(), 2);
            machine.step_to(CODE + 6);
        },
    );
}

#[test]
fn memory_accesses_are_served_once_and_take_no_instruction_along() {
    // mov [bx], al; inc cx; mov al, [bx]; inc cx; jmp $   with DS beyond memory
    on_each(
        &[0x88, 0x07, 0x41, 0x8a, 0x07, 0x41, 0xeb, 0xfe],
        |machine| {
            machine.vcpu.registers_mut().special.ds.base = 0x2_0000;
            machine.set(|file| file.core.rax = 0x12);
            machine.step_to(CODE + 2);
            assert_eq!(machine.served, [Exit::MemoryWrite(0x2_0000, 0x12)]);
            assert_eq!(machine.registers().core.rcx, 0);
            machine.step_to(CODE + 3);
            machine.step_to(CODE + 5);
            assert_eq!(machine.served.len(), 2);
            assert_eq!(machine.registers().core.rax, 0x5a);
            assert_eq!(machine.registers().core.rcx, 1);
        },
    );
}

#[test]
fn a_repeated_string_instruction_ends_within_its_iterations_and_one() {
    // rep movsb; jmp $
    on_each(&[0xf3, 0xa4, 0xeb, 0xfe], |machine| {
        machine.memory.put(0x6000, b"abc");
        machine.set(|file| {
            (file.core.rsi, file.core.rdi, file.core.rcx) = (0x6000, 0x7000, 3);
        });
        let mut steps = 0;
        while machine.registers().core.rip == u64::from(CODE) {
            assert_eq!(machine.step(), StopReason::Step);
            steps += 1;
            assert!(steps <= 4);
        }
        assert_eq!(machine.memory.get(0x7000, 3), b"abc");
        assert_eq!(machine.registers().core.rcx, 0);
    });
}

#[test]
fn a_pending_interrupt_stays_out_while_masked_and_enters_once_afterwards() {
    // sti; nop x6; jmp $
    let code = [0xfb, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe];
    on_each(&code, |machine| {
        machine.step_to(CODE + 1);
        machine.step_to(CODE + 2);
        machine.vcpu.interrupt(VECTOR);
        machine.vcpu.nmi();
        for n in 3..=5 {
            machine.step_to(CODE + n);
        }
        assert_eq!(machine.vcpu.delivered(), []);
        for _ in 0..8 {
            assert_eq!(machine.run(&step(false)), StopReason::Step);
        }
        let mut delivered = machine.vcpu.delivered().to_vec();
        delivered.sort_unstable();
        assert_eq!(delivered, [2, VECTOR]);
        assert!(!machine.stepper.is_masked());
        assert_eq!(machine.registers().core.rflags & TF, 0);
    });
}

#[test]
fn a_hold_of_another_owner_outlives_the_debuggers() {
    let code = [0xfb, 0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe];
    on_each(&code, |machine| {
        let snapshot = Owner::new("snapshot");
        machine
            .stepper
            .control_mut()
            .hold(snapshot, Capability::MaskHwintr)
            .unwrap();
        machine.vcpu.interrupt(VECTOR);
        machine.step_to(CODE + 1);
        assert_eq!(machine.run(&step(false)), StopReason::Step);
        machine
            .stepper
            .release(&mut machine.vcpu, &machine.memory)
            .unwrap();
        assert!(machine.stepper.is_masked());
        assert_eq!(machine.run(&step(false)), StopReason::Step);
        assert_eq!(machine.vcpu.delivered(), []);
    });
}

#[test]
fn the_guests_own_tf_is_shown_and_survives_the_debugger() {
    // nop; nop; jmp $
    on_each(&[0x90, 0x90, 0xeb, 0xfe], |machine| {
        machine.step_to(CODE + 1);
        assert_eq!(machine.registers().core.rflags & TF, 0);
        machine.set(|file| file.core.rflags |= TF);
        assert_ne!(machine.registers().core.rflags & TF, 0);
        machine
            .stepper
            .release(&mut machine.vcpu, &machine.memory)
            .unwrap();
        assert_ne!(machine.vcpu.registers().core.rflags & TF, 0);
        assert_ne!(machine.registers().core.rflags & TF, 0);
    });
}

#[test]
fn a_guest_that_steps_itself_gets_its_trap_once() {
    // nop; nop; nop; jmp $
    on_each(&[0x90, 0x90, 0x90, 0xeb, 0xfe], |machine| {
        machine.set(|file| file.core.rflags |= TF);
        machine.step_to(CODE + 1);
        // Its #DB is delivered with the next entry; the handler returns.
        let mut steps = 0;
        while !machine.vcpu.delivered().contains(&1) || machine.registers().core.rip > 0x2000 {
            assert_eq!(machine.step(), StopReason::Step);
            steps += 1;
            assert!(steps < 8);
        }
        assert_ne!(machine.registers().core.rflags & TF, 0, "it steps on");
    });
}

#[test]
fn int_n_leaves_no_tf_in_its_frame() {
    // int 0x41; nop; jmp $
    on_each(&[0xcd, 0x41, 0x90, 0xeb, 0xfe], |machine| {
        machine.set(|file| file.core.rflags |= IF);
        while machine.registers().core.rip < u64::from(CODE) + 3
            || machine.registers().core.rip > u64::from(CODE) + 5
        {
            assert_eq!(machine.step(), StopReason::Step);
        }
        assert_eq!(machine.word(STACK - 2), 0x202, "the frame's RFLAGS");
        assert_eq!(machine.registers().core.rbx, 1);
        assert_eq!(machine.registers().core.rflags & TF, 0);
    });
}

#[test]
fn a_fault_leaves_no_tf_in_its_frame() {
    // div bl; nop; jmp $
    on_each(&[0xf6, 0xf3, 0x90, 0xeb, 0xfe], |machine| {
        machine.set(|file| file.core.rax = 6);
        let behind = u64::from(CODE) + 2;
        let mut steps = 0;
        while !(behind..=behind + 2).contains(&machine.registers().core.rip) {
            assert_eq!(machine.step(), StopReason::Step);
            steps += 1;
            assert!(steps < 8);
        }
        assert_eq!(machine.word(STACK - 2), 2, "the frame's RFLAGS");
        assert_eq!(machine.registers().core.rax & 0xffff, 6);
    });
}

#[test]
fn a_halted_vcpu_is_interrupted_and_steps_on_when_it_wakes() {
    // sti; hlt; inc ax; jmp $
    on_each(&[0xfb, 0xf4, 0x40, 0xeb, 0xfe], |machine| {
        machine.step_to(CODE + 1);
        machine.step_to(CODE + 2);
        if machine.stepper.run_state(&mut machine.vcpu).unwrap() == RunState::Halted {
            assert_eq!(machine.step(), StopReason::Interrupted);
            assert_eq!(machine.registers().core.rip, u64::from(CODE) + 2);
            machine.vcpu.interrupt(VECTOR);
        }
        machine.step_to(CODE + 3);
        assert!(!machine.vcpu.delivered().contains(&VECTOR), "masked");
    });
}

#[test]
fn an_execute_breakpoint_stops_before_its_instruction_and_is_stepped_off() {
    // nop; nop; inc ax; jmp -3 (to the inc)
    on_each(&[0x90, 0x90, 0x40, 0xeb, 0xfd], |machine| {
        machine.arm(vec![HwBreakpoint::execute(u64::from(CODE) + 2)], &[]);
        let hit = StopReason::HardwareBreakpoint;
        assert_eq!(machine.run(&VcpuOrder::Continue), hit);
        assert_eq!(machine.registers().core.rip, u64::from(CODE) + 2);
        assert_eq!(machine.run(&VcpuOrder::Continue), hit, "hit again");
        machine.step_to(CODE + 3);
        assert_eq!(machine.step(), hit, "a step onto it");
        assert_eq!(machine.registers().core.rax, 1);
    });
}

#[test]
fn a_range_step_ends_outside_and_at_a_breakpoint_inside() {
    on_each(&[0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe], |machine| {
        machine.arm(vec![HwBreakpoint::execute(u64::from(CODE) + 2)], &[]);
        let order = range(CODE..CODE + 4);
        assert_eq!(machine.run(&order), StopReason::HardwareBreakpoint);
        assert_eq!(machine.registers().core.rip, u64::from(CODE) + 2);
        assert_eq!(machine.run(&order), StopReason::Step);
        assert_eq!(machine.registers().core.rip, u64::from(CODE) + 4);
    });
}

#[test]
fn watchpoints_stop_behind_the_access_where_there_are_any() {
    // mov al, [bx]; mov [bx], al; jmp $
    on_each(&[0x8a, 0x07, 0x88, 0x07, 0xeb, 0xfe], |machine| {
        if !machine.vcpu.habits().watchpoints {
            return;
        }
        machine.set(|file| file.core.rbx = 0x6001);
        for (kind, access, rip) in [
            (
                HwBreakpointKind::ReadWrite,
                WatchAccess::ReadWrite,
                CODE + 2,
            ),
            (HwBreakpointKind::Write, WatchAccess::Write, CODE + 4),
        ] {
            machine.arm(vec![HwBreakpoint::watch(0x6000, 2, kind)], &[]);
            for order in [VcpuOrder::Continue, step(true)] {
                machine.set(|file| file.core.rip = u64::from(rip) - 2);
                let stop = StopReason::Watchpoint {
                    address: 0x6000,
                    access,
                };
                assert_eq!(machine.run(&order), stop);
                assert_eq!(machine.registers().core.rip, u64::from(rip));
            }
            // The other kind of access is none.
            if kind == HwBreakpointKind::Write {
                machine.set(|file| file.core.rip = CODE.into());
                machine.step_to(CODE + 2);
            }
        }
    });
}

#[test]
fn int3_of_the_debugger_stops_and_one_of_the_guest_goes_back_to_it() {
    // nop; int3; int3; nop; jmp $
    on_each(&[0x90, 0xcc, 0xcc, 0x90, 0xeb, 0xfe], |machine| {
        if !machine.vcpu.habits().int3_exits {
            return;
        }
        let at = u64::from(CODE) + 1;
        machine.arm(vec![HwBreakpoint::execute(at + 2)], &[at]);
        assert_eq!(
            machine.run(&VcpuOrder::Continue),
            StopReason::SoftwareBreakpoint
        );
        assert_eq!(machine.registers().core.rip, at);
        machine.set(|file| file.core.rip = at + 1);
        assert_eq!(
            machine.run(&VcpuOrder::Continue),
            StopReason::HardwareBreakpoint
        );
        // KVM injects #BP as a fault at the INT3's own address.
        assert!(machine.vcpu.delivered().contains(&3));
    });
}

#[test]
fn a_step_onto_int3_of_the_debugger_is_a_hit() {
    on_each(&[0x90, 0xcc, 0xeb, 0xfe], |machine| {
        machine.arm(Vec::new(), &[u64::from(CODE) + 1]);
        assert_eq!(machine.step(), StopReason::SoftwareBreakpoint);
    });
}

#[test]
fn a_breakpoint_that_the_guest_has_not_enabled_is_no_hit_of_its_own() {
    on_each(&[0x90, 0x90, 0x90, 0xeb, 0xfe], |machine| {
        // DR0 is where the step ends, and not enabled.
        machine
            .vcpu
            .set_own_breakpoint(0, u64::from(CODE) + 1, 0x408);
        for n in 1..=3 {
            machine.step_to(CODE + n);
        }
        assert_eq!(machine.vcpu.delivered(), []);
    });
}

#[test]
fn a_step_is_a_step_after_a_run_that_was_stopped_before_it_began() {
    on_each(&[0x40, 0x40, 0x40, 0xeb, 0xfe], |machine| {
        assert_eq!(machine.run(&step(false)), StopReason::Step);
        let stop = machine.run_until(&VcpuOrder::Continue, |_, _| true);
        assert_eq!(stop, StopReason::Interrupted);
        assert_eq!(machine.run(&step(false)), StopReason::Step);
        assert_eq!(machine.registers().core.rip, u64::from(CODE) + 2);
        assert_eq!(machine.vcpu.delivered(), [], "the guest had a #DB");
    });
}

#[test]
fn a_triple_fault_is_told_with_its_place_and_the_guest_stays_dead() {
    // ud2 with an empty IDT
    on_each(&[0x0f, 0x0b], |machine| {
        machine.vcpu.registers_mut().special.idtr.limit = 0;
        let reason = machine.run(&VcpuOrder::Continue);
        let StopReason::TripleFault(text) = &reason else {
            panic!("{reason:?}")
        };
        assert!(text.contains("vcpu0: triple fault at 0x1000"), "{text}");
        // Also from where it could run.
        machine.memory.put(HANDLER.into(), &[0x90]);
        machine.set(|file| file.core.rip = HANDLER.into());
        assert_eq!(machine.step(), reason);
        machine.set(|file| file.core.rip = CODE.into());
        machine.stepper.reset();
        assert!(matches!(machine.step(), StopReason::TripleFault(_)));
    });
}

/// 64-bit mode with SYSCALL to HANDLER; pages one to one.
pub(super) fn long_mode(habits: Habits, code: &[u8], handler: &[u8], fmask: u64) -> Machine {
    let absent: &[Capability] = if habits.user_traps_reach_the_guest {
        &[Capability::SingleStepUser]
    } else {
        &[]
    };
    let mut machine = Machine::with(habits, code, &plan(absent));
    machine.memory.put(HANDLER.into(), handler);
    let cr3 = machine.memory.map_one_to_one(0x9000);
    machine.vcpu = SimulatedVcpu::long_mode(habits, cr3, 0xc000, CODE.into(), STACK.into());
    machine.vcpu.set_system_call(HANDLER.into(), fmask);
    machine
}

#[test]
fn a_step_of_syscall_ends_in_the_kernel_though_fmask_clears_tf() {
    for habits in Habits::ALL {
        let mask = 0x25_7fd5;
        // syscall; at the handler: nop; jmp $
        let mut machine = long_mode(habits, &[0x0f, 0x05], &[0x90, 0xeb, 0xfe], mask);
        machine.step_to(HANDLER);
        let core = machine.registers().core;
        assert_eq!((core.rcx, core.r11), (u64::from(CODE) + 2, 2));
        assert_eq!(core.rflags & TF, 0);
        assert_eq!(machine.vcpu.fmask(), mask);
        machine.step_to(HANDLER + 1);
    }
}

#[test]
fn a_step_of_sysret_ends_in_user_space_though_r11_has_no_tf() {
    for habits in Habits::ALL {
        let habits = Habits {
            user_traps_reach_the_guest: false,
            ..habits
        };
        // sysretq; in user space: nop; jmp $
        let mut machine = long_mode(habits, &[0x48, 0x0f, 0x07], &[0x90, 0xeb, 0xfe], TF);
        machine.set(|file| (file.core.rcx, file.core.r11) = (HANDLER.into(), 2));
        machine.step_to(HANDLER);
        let core = machine.registers().core;
        assert_eq!((core.r11, core.rflags), (2, 2));
        machine.step_to(HANDLER + 1);
        assert_eq!(machine.registers().core.r11, 2);
    }
}

#[test]
fn a_step_that_is_given_up_gives_back_what_it_was_lent() {
    for habits in Habits::ALL {
        let mask = 0x25_7fd5;
        let mut machine = long_mode(habits, &[0x0f, 0x05], &[0xeb, 0xfe], mask);
        let stop = machine.run_until(&step(true), |_, vcpu| {
            assert_eq!(vcpu.fmask(), mask & !TF, "lent");
            true
        });
        assert_eq!(stop, StopReason::Interrupted);
        assert_eq!(machine.vcpu.fmask(), mask);
        // Or by the next order, which the VMM gives without an end of the first.
        let armed = Arc::default();
        let Machine {
            stepper,
            vcpu,
            memory,
            ..
        } = &mut machine;
        assert_eq!(
            stepper.start(&step(true), &armed, vcpu, memory),
            Next::Enter
        );
        assert_eq!(vcpu.fmask(), mask & !TF);
        let next = stepper.start(&VcpuOrder::Continue, &armed, vcpu, memory);
        assert_eq!(next, Next::Enter);
        assert_eq!(vcpu.fmask(), mask);
    }
}

/// A step in a series costs one entry and no other call where registers come with exits.
#[test]
fn a_step_in_a_series_makes_no_call_but_the_entry() {
    // inc ax, sixteen times
    let mut machine = Machine::new(Habits::AMD, &[0x40; 16]);
    for n in 1..=2 {
        machine.step_to(CODE + n);
    }
    let (calls, entries) = (machine.vcpu.calls(), machine.entries);
    for n in 3..=10 {
        machine.step_to(CODE + n);
    }
    // The second step of a series arms for INIT once more; all that follow are free.
    assert_eq!(machine.entries - entries, 8);
    assert!(
        machine.vcpu.calls() - calls <= 8,
        "{}",
        machine.vcpu.calls() - calls
    );
    let calls = machine.vcpu.calls();
    machine.step_to(CODE + 11);
    assert_eq!(machine.vcpu.calls(), calls);
}

/// KVM queues the page fault of the destination; a write of registers would lose it, and the device
/// would be read again, for ever.
#[test]
fn a_device_is_read_once_though_the_destination_faults() {
    for habits in Habits::ALL {
        for order in [step(true), range(CODE..CODE + 1)] {
            // movsb: from a device to a page that is not there; the handler: jmp $
            let mut machine = long_mode(habits, &[0xa4], &[0x90, 0xeb, 0xfe], 0);
            let gate = u64::from(HANDLER) | 0x10 << 16 | 0x8e00 << 32;
            machine.memory.put(0xc000 + 14 * 16, &gate.to_le_bytes());
            machine.set(|file| (file.core.rsi, file.core.rdi) = (0x2_0000, 0x40_0000));
            // The handler does not return: it is run, and the step is interrupted there.
            let stop = machine.run_until(&order, |entries, _| entries > 10);
            assert!(matches!(stop, StopReason::Step | StopReason::Interrupted));
            assert_eq!(machine.served, [Exit::MemoryRead(0x2_0000)]);
            assert_eq!(machine.vcpu.delivered(), [14], "on {}", habits.name);
            assert!((0x3000..=0x3002).contains(&machine.registers().core.rip));
        }
    }
}

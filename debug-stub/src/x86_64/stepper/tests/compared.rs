//! Free runs in which bytes are compared after each instruction.

use std::slice;

use super::*;

/// Data in the loop's page.
const DATA: u16 = 0x2000;
const HABITS: [Habits; 3] = [Habits::AMD, Habits::INTEL, Habits::PVM];
const CHANGED: StopReason = StopReason::Watchpoint {
    address: DATA as u64,
    access: WatchAccess::Write,
};
/// sti; inc ax, seven times; mov [bx], al; pushf; popf; jmp to the first inc
const LOOP: [u8; 14] = [
    0xfb, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x88, 0x07, 0x9c, 0x9d, 0xeb, 0xf3,
];
const BEHIND_MOV: u64 = CODE as u64 + 10;

fn comparing(habits: Habits) -> Machine {
    let mut machine = Machine::new(habits, &LOOP);
    machine.set(|file| file.core.rbx = DATA.into());
    machine.armed = Arc::new(Armed {
        compared: slice::from_ref(&(u64::from(DATA)..u64::from(DATA) + 2)).to_vec(),
        ..Armed::default()
    });
    machine
}

#[test]
fn the_guest_stops_behind_each_instruction_that_changes_them() {
    for habits in HABITS {
        let mut machine = comparing(habits);
        for round in 1..=5_u8 {
            assert_eq!(machine.run(&VcpuOrder::Continue), CHANGED);
            assert_eq!(machine.registers().core.rip, BEHIND_MOV);
            assert_eq!(machine.memory.get(DATA.into(), 1), [7 * round]);
        }
        // A single step says so, too.
        machine.set(|file| file.core.rip = BEHIND_MOV - 2);
        machine.memory.put(DATA.into(), &[0]);
        assert_eq!(machine.step(), CHANGED);
        // What the debugger writes, and what stays the same, is no change.
        machine.set(|file| file.core.rip = BEHIND_MOV - 2);
        machine.memory.put(DATA.into(), &[35]);
        assert_eq!(machine.step(), StopReason::Step);
        machine.release();
    }
}

#[test]
fn interrupts_are_let_in_and_breakpoints_stop() {
    for habits in HABITS {
        let mut machine = comparing(habits);
        // inc ax; mov [bx], al; iret
        machine
            .memory
            .put(HANDLER.into(), &[0x40, 0x88, 0x07, 0xcf]);
        machine.vcpu.interrupt(VECTOR);
        let handled = |machine: &mut Machine| {
            assert_eq!(machine.run(&VcpuOrder::Continue), CHANGED);
            machine.registers().core.rip == u64::from(HANDLER) + 3
        };
        assert!((0..3).any(|_| handled(&mut machine)), "each run lets it in");
        assert_eq!(machine.word(STACK - 2) & 0x100, 0, "no TF in the frame");
        let mut armed = Armed::clone(&machine.armed);
        armed.hardware = vec![HwBreakpoint::execute(u64::from(CODE) + 5)];
        machine.armed = Arc::new(armed);
        let stop = machine.run(&VcpuOrder::Continue);
        assert_eq!(stop, StopReason::HardwareBreakpoint);
        assert_eq!(machine.registers().core.rip, u64::from(CODE) + 5);
        assert_eq!(machine.run(&VcpuOrder::Continue), CHANGED);
        machine.release();
    }
}

#[test]
fn an_interrupt_enters_also_if_nothing_stops_the_guest() {
    for habits in HABITS {
        let mut machine = comparing(habits);
        // AL stays what DATA holds.
        machine.memory.put(CODE.into(), &[0xfb, 0x90, 0xeb, 0xfd]);
        let mut armed = Armed::clone(&machine.armed);
        armed.hardware = vec![HwBreakpoint::execute(HANDLER.into())];
        machine.armed = Arc::new(armed);
        let stop = machine.run_until(&VcpuOrder::Continue, |entries, vcpu| {
            if entries == 10 {
                vcpu.interrupt(VECTOR);
            }
            false
        });
        assert_eq!(stop, StopReason::HardwareBreakpoint);
        assert_eq!(machine.registers().core.rip, u64::from(HANDLER));
        machine.release();
    }
}

#[test]
fn a_host_that_cannot_mask_compares_too() {
    for habits in HABITS {
        let mut machine = Machine::with(habits, &LOOP, &plan(&[Capability::MaskHwintr]));
        machine.set(|file| file.core.rbx = DATA.into());
        machine.armed = comparing(habits).armed;
        for round in 1..=3_u8 {
            machine.vcpu.interrupt(VECTOR);
            assert_eq!(machine.run(&VcpuOrder::Continue), CHANGED, "{habits:?}");
            assert_eq!(machine.memory.get(DATA.into(), 1), [7 * round]);
        }
        // HLT behind a stepped STI is carried out.
        machine.armed = Arc::default();
        machine.memory.put(CODE.into(), &[0xfb, 0xf4, 0x90]);
        machine.set(|file| {
            file.core.rip = CODE.into();
            file.core.rflags &= !IF;
        });
        assert_eq!(machine.run(&step(false)), StopReason::Step);
        let stop = machine.run(&VcpuOrder::Continue);
        assert_eq!(stop, StopReason::Interrupted, "{habits:?}");
        assert!(machine.vcpu.is_halted());
        machine.release();
    }
}

#[test]
fn a_handler_that_ends_a_halt_is_compared_and_finds_no_tf() {
    for habits in HABITS {
        let mut machine = comparing(habits);
        // sti; hlt; cli; jmp to sti: the interrupt can enter behind HLT alone.
        machine
            .memory
            .put(CODE.into(), &[0xfb, 0xf4, 0xfa, 0xeb, 0xfb]);
        // A handler that no exception has: inc ax; mov [bx], al; iret
        let handler = 0x3400_u16;
        let entry = u32::from(handler).to_le_bytes();
        machine.memory.put(4 * u64::from(VECTOR), &entry);
        let handler = u64::from(handler);
        machine.memory.put(handler, &[0x40, 0x88, 0x07, 0xcf]);
        for round in 1..4 {
            // Nothing comes but a kick.
            assert_eq!(machine.run(&VcpuOrder::Continue), StopReason::Interrupted);
            assert!(machine.vcpu.is_halted());
            // It comes when the step is armed.
            let stop = machine.run_until(&VcpuOrder::Continue, |entries, vcpu| {
                if entries == 0 {
                    vcpu.interrupt(VECTOR);
                }
                false
            });
            assert_eq!(stop, CHANGED, "{habits:?}");
            let rip = machine.registers().core.rip;
            assert_eq!(rip, handler + 3, "{habits:?}");
            assert_eq!(machine.word(STACK - 2) & 0x300, 0x200, "{habits:?}");
            assert_eq!(machine.word(STACK - 6), CODE + 2, "behind HLT");
            assert_eq!(machine.memory.get(DATA.into(), 1), [round]);
        }
        machine.release();
    }
}

/// Another vCPU's, which will report it. If none does, it was a device.
#[test]
fn a_change_that_the_instruction_cannot_have_made_is_left_to_its_writer() {
    for habits in HABITS {
        let mut machine = comparing(habits);
        // nop; jmp to the nop
        machine.memory.put(CODE.into(), &[0x90, 0xeb, 0xfd]);
        let armed = Arc::clone(&machine.armed);
        let Machine {
            stepper,
            vcpu,
            memory,
            ..
        } = &mut machine;
        let mut next = stepper.start(&VcpuOrder::Continue, &armed, vcpu, memory);
        let mut noticed = 0;
        let stop = loop {
            if let Next::Stopped(reason) = next {
                break reason;
            }
            if noticed == 10 {
                memory.put(DATA.into(), &[1]);
            }
            noticed += 1;
            let exit = vcpu.run(memory, false, 1000);
            next = stepper.ran(SimulatedVcpu::outcome(&exit), vcpu, memory);
        };
        assert_eq!(stop, CHANGED, "{habits:?}");
        assert!((1000..3000).contains(&noticed), "after {noticed} entries");
        // Nor is it said twice, and what the guest writes is said at once.
        let stop = machine.run_until(&VcpuOrder::Continue, |entries, _| entries > 1500);
        assert_eq!(stop, StopReason::Interrupted);
        machine.set(|file| file.core.rip = CODE.into());
        machine.memory.put(CODE.into(), &LOOP);
        assert_eq!(machine.run(&VcpuOrder::Continue), CHANGED);
        assert_eq!(machine.registers().core.rip, BEHIND_MOV);
        machine.release();
    }
}

/// The guest's own change is reported, though another one's is in front of it.
#[test]
fn an_own_change_is_not_taken_for_that_of_another_vcpu() {
    for habits in HABITS {
        let mut machine = comparing(habits);
        machine.set(|file| file.core.rbx = u64::from(DATA) + 1);
        let armed = Arc::clone(&machine.armed);
        let Machine {
            stepper,
            vcpu,
            memory,
            ..
        } = &mut machine;
        let mut next = stepper.start(&VcpuOrder::Continue, &armed, vcpu, memory);
        let stop = loop {
            if let Next::Stopped(reason) = next {
                break reason;
            }
            // Before MOV.
            if vcpu.registers().core.rip == BEHIND_MOV - 2 {
                memory.put(DATA.into(), &[0x77]);
            }
            let exit = vcpu.run(memory, false, 1000);
            next = stepper.ran(SimulatedVcpu::outcome(&exit), vcpu, memory);
        };
        let own = StopReason::Watchpoint {
            address: u64::from(DATA) + 1,
            access: WatchAccess::Write,
        };
        assert_eq!(stop, own, "{habits:?}");
        assert_eq!(machine.registers().core.rip, BEHIND_MOV);
        machine.release();
    }
}

/// A kick may come when the instruction is done, and its trap has not been reported yet.
#[test]
fn no_change_is_lost_when_the_guest_is_interrupted_at_any_moment() {
    for habits in HABITS {
        for moment in 0..60 {
            let mut machine = comparing(habits);
            let mut stops = Vec::new();
            let mut interrupted = false;
            while stops.len() < 3 {
                let stop = machine.run_until(&VcpuOrder::Continue, |entries, _| {
                    !interrupted && entries == moment
                });
                if stop == StopReason::Interrupted {
                    interrupted = true;
                } else {
                    assert_eq!(stop, CHANGED, "at {moment}");
                    stops.push(machine.memory.get(DATA.into(), 1)[0]);
                }
            }
            assert_eq!(stops, [7, 14, 21], "at {moment}");
            machine.release();
        }
    }
}

/// Not even where a free run begins with steps.
#[test]
fn nothing_is_compared_after_the_watchpoint_is_gone() {
    for habits in HABITS {
        let mut machine = comparing(habits);
        assert_eq!(machine.run(&VcpuOrder::Continue), CHANGED);
        machine.armed = Arc::new(Armed {
            hardware: vec![HwBreakpoint::execute(BEHIND_MOV + 1)],
            ..Armed::default()
        });
        machine.vcpu.interrupt(VECTOR);
        for _ in 0..3 {
            let stop = machine.run(&VcpuOrder::Continue);
            assert_eq!(stop, StopReason::HardwareBreakpoint);
        }
        machine.release();
    }
}

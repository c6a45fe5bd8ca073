//! Free runs in which the code at software breakpoints comes, or changes.

use super::*;

const HABITS: [Habits; 3] = [Habits::AMD, Habits::INTEL, Habits::PVM];
/// mov [bx], al; out 0x80, al; jmp $
const OVERWRITES: [u8; 6] = [0x88, 0x07, 0xe6, 0x80, 0xeb, 0xfe];
const BEHIND_OUT: u64 = CODE as u64 + 4;
const INT3: u8 = 0xcc;

/// With INT3s at these addresses; the guest overwrites what is at `target`.
fn overwriting(habits: Habits, breakpoints: &[u64], target: u64) -> Machine {
    let mut machine = Machine::new(habits, &OVERWRITES);
    machine.set(|file| {
        file.core.rbx = target;
        file.core.rax = 0x90;
    });
    for at in breakpoints {
        machine.memory.put(*at, &[INT3]);
    }
    machine.arm(Vec::new(), breakpoints);
    machine
}

#[test]
fn an_exit_shows_that_the_guest_has_overwritten_an_int3() {
    for habits in HABITS {
        let mut machine = overwriting(habits, &[0x4000, 0x4100], 0x4100);
        let stop = machine.run(&VcpuOrder::Continue);
        assert_eq!(stop, StopReason::CodeChanged);
        assert_eq!(machine.served.len(), 1, "the access is completed, once");
        assert_eq!(machine.registers().core.rip, BEHIND_OUT);
        assert!(!machine.stepper.is_incomplete());
        // Nothing is wrong with the other one.
        machine.arm(Vec::new(), &[0x4000]);
        let interrupted = machine.run_until(&VcpuOrder::Continue, |entries, _| entries > 20);
        assert_eq!(interrupted, StopReason::Interrupted);
        machine.release();
    }
}

#[test]
fn an_interrupt_and_a_change_in_one_access_are_one_stop() {
    let mut machine = overwriting(Habits::INTEL, &[0x4000], 0x4000);
    // From the second entry on, which completes the access.
    let stop = machine.run_until(&VcpuOrder::Continue, |entries, _| entries > 0);
    assert_eq!(stop, StopReason::CodeChanged);
    assert_eq!(machine.served.len(), 1);
    machine.release();
}

/// A few at each exit, and each in its turn.
#[test]
fn every_breakpoint_is_looked_at() {
    let all: Vec<u64> = (0..100).map(|n| 0x4000 + 2 * n).collect();
    for target in &all {
        let mut machine = overwriting(Habits::AMD, &all, *target);
        let stop = machine.run_until(&VcpuOrder::Continue, |entries, _| entries > 100);
        assert_eq!(stop, StopReason::CodeChanged, "{target:#x}");
        machine.release();
    }
}

#[test]
fn memory_is_noticed_where_a_breakpoint_waits_for_it() {
    for habits in HABITS {
        // jmp $
        let mut machine = Machine::new(habits, &[0xeb, 0xfe]);
        let nowhere: Vec<u64> = (0..50).map(|n| 0xf_0000 + n).collect();
        let mut awaited = nowhere.clone();
        machine.armed = Arc::new(Armed {
            awaited: awaited.clone(),
            ..Armed::default()
        });
        let stop = machine.run_until(&VcpuOrder::Continue, |entries, _| entries > 50);
        assert_eq!(stop, StopReason::Interrupted, "there is no memory");
        awaited.push(0x4000);
        machine.armed = Arc::new(Armed {
            awaited,
            ..Armed::default()
        });
        let stop = machine.run_until(&VcpuOrder::Continue, |entries, _| entries > 50);
        assert_eq!(stop, StopReason::CodeChanged);
        machine.release();
    }
}

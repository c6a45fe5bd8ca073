//! A loop around a [`Driver`].

use super::*;

fn run(driver: &mut Driver, vcpu: &mut SimulatedVcpu, memory: &Ram, may_run: bool) -> Entry {
    for _ in 0..PATIENCE {
        let complete = match driver.next_entry(|| may_run, vcpu, memory) {
            Entry::Enter => false,
            Entry::Complete => true,
            end => return end,
        };
        let exit = vcpu.run(memory, complete, 100);
        driver.ran(SimulatedVcpu::outcome(&exit), vcpu, memory);
    }
    panic!("the order does not end");
}

#[test]
fn an_order_ends_once_and_then_there_is_none() {
    // out 0x80, al; inc ax; jmp $
    let mut machine = Machine::new(Habits::AMD, &[0xe6, 0x80, 0x40, 0xeb, 0xfe]);
    let mut driver = Driver::new(VcpuId(0), &plan(&[]));
    let (vcpu, memory) = (&mut machine.vcpu, &machine.memory);
    assert_eq!(run(&mut driver, vcpu, memory, true), Entry::Idle);
    for ip in [2, 3] {
        driver.start(&step(true), &Arc::default(), vcpu, memory);
        assert!(driver.is_busy());
        let end = run(&mut driver, vcpu, memory, true);
        assert_eq!(end, Entry::Stopped(StopReason::Step));
        assert_eq!(vcpu.registers().core.rip, u64::from(CODE) + ip);
        assert!(!driver.is_busy());
        assert_eq!(run(&mut driver, vcpu, memory, true), Entry::Idle);
    }
    // The VMM runs it for itself: no order is under way, and nothing is made of it.
    driver.ran(Outcome::Nothing, vcpu, memory);
    assert_eq!(run(&mut driver, vcpu, memory, true), Entry::Idle);
    driver.start(&VcpuOrder::Continue, &Arc::default(), vcpu, memory);
    let end = run(&mut driver, vcpu, memory, false);
    assert_eq!(end, Entry::Stopped(StopReason::Interrupted));
}

/// The loop may leave, and come back on another thread: the entry is still there.
#[test]
fn an_entry_that_was_not_made_is_returned_again() {
    let mut machine = Machine::new(Habits::AMD, &[0x40, 0xeb, 0xfe]);
    let mut driver = Driver::new(VcpuId(0), &plan(&[]));
    let (vcpu, memory) = (&mut machine.vcpu, &machine.memory);
    driver.start(&step(true), &Arc::default(), vcpu, memory);
    for _ in 0..3 {
        let entry = driver.next_entry(|| true, vcpu, memory);
        assert_eq!(entry, Entry::Enter);
    }
    let end = run(&mut driver, vcpu, memory, true);
    assert_eq!(end, Entry::Stopped(StopReason::Step));
    assert_eq!(vcpu.registers().core.rip, u64::from(CODE) + 1);
}

/// A VMM with local APICs of its own serves INIT while the debugger holds the vCPU.
#[test]
fn a_restart_or_an_end_without_an_order_is_seen() {
    let mut machine = Machine::new(Habits::AMD, &[0x40; 16]);
    let mut driver = Driver::new(VcpuId(0), &plan(&[]));
    let (vcpu, memory) = (&mut machine.vcpu, &machine.memory);
    for _ in 0..2 {
        driver.start(&step(true), &Arc::default(), vcpu, memory);
        run(&mut driver, vcpu, memory, true);
    }
    let fresh = SimulatedVcpu::real_mode(Habits::AMD, HANDLER, 0);
    vcpu.reset(fresh.registers());
    driver.ran(Outcome::Restarted, vcpu, memory);
    assert_eq!(run(&mut driver, vcpu, memory, true), Entry::Idle);
    driver.start(&step(true), &Arc::default(), vcpu, memory);
    run(&mut driver, vcpu, memory, true);
    assert_eq!(vcpu.registers().core.rip, u64::from(HANDLER) + 1);

    let fatal = StopReason::TripleFault("by itself".to_owned());
    driver.ran(Outcome::Fatal(fatal), vcpu, memory);
    driver.start(&step(true), &Arc::default(), vcpu, memory);
    let end = run(&mut driver, vcpu, memory, true);
    assert!(matches!(end, Entry::Stopped(StopReason::TripleFault(_))));
}

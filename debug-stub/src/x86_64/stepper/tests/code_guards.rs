//! INT3s at handlers, where watchpoints have taken the debug registers.

use vcpu_caps::{HwBreakpointKind, Mechanism, MechanismSet};

use super::*;

/// div bl: BL is 0
const DIVIDE: &[u8] = &[0xf6, 0xf3, 0x40, 0xeb, 0xfe];
const INT3: u8 = 0xcc;
const OTHER_HANDLER: u16 = 0x3400;

/// A step while no other vCPU runs.
fn alone(mask: bool) -> VcpuOrder {
    VcpuOrder::Step(StepOrder {
        mask,
        alone: true,
        ..StepOrder::default()
    })
}

/// All debug registers watch data that nothing touches.
fn watched(habits: Habits, code: &[u8]) -> Machine {
    with_watchpoints(habits, code, &plan(&[]))
}

fn with_watchpoints(habits: Habits, code: &[u8], plan: &Plan) -> Machine {
    let mut machine = Machine::with(habits, code, plan);
    // An operating system has a handler for each exception.
    for vector in (1..32).filter(|vector| ![1, 2, 3].contains(vector)) {
        machine.memory.put(vector * 4, &OTHER_HANDLER.to_le_bytes());
    }
    machine.memory.put(OTHER_HANDLER.into(), &[0x90, 0xcf]);
    watch(&mut machine, &[]);
    machine
}

fn watch(machine: &mut Machine, software: &[u64]) {
    let watch = |at| HwBreakpoint::watch(at, 8, HwBreakpointKind::ReadWrite);
    machine.arm(
        [0x9000, 0x9008, 0x9010, 0x9018].map(watch).to_vec(),
        software,
    );
}

/// Runs an order, and tells whether INT3s were in the handlers of #DE and INT n at any entry.
fn run_and_look(machine: &mut Machine, order: &VcpuOrder) -> (StopReason, bool) {
    let armed = Arc::clone(&machine.armed);
    let mut seen = false;
    let Machine {
        stepper,
        vcpu,
        memory,
        ..
    } = machine;
    let mut next = stepper.start(order, &armed, vcpu, memory);
    for _ in 0..PATIENCE {
        let complete = match next {
            Next::Stopped(reason) => return (reason, seen),
            Next::Enter => false,
            Next::Complete => true,
        };
        seen |= has_int3(memory);
        let exit = vcpu.run(memory, complete, 1000);
        vcpu.answer(0x5a);
        next = stepper.ran(SimulatedVcpu::outcome(&exit), vcpu, memory);
    }
    panic!("{order:?} does not end");
}

fn has_int3(memory: &Ram) -> bool {
    [DIVIDE_HANDLER, SOFTWARE_HANDLER, DEBUG_HANDLER]
        .iter()
        .any(|handler| memory.get(u64::from(*handler), 1) == [INT3])
}

/// FLAGS in the frame on top of the stack.
fn saved_flags(machine: &mut Machine) -> u64 {
    let sp = u16::try_from(machine.registers().core.rsp).unwrap();
    machine.word(sp + 4).into()
}

#[test]
fn a_step_stops_at_a_handler_by_an_int3_that_it_takes_back() {
    for habits in [Habits::AMD, Habits::INTEL] {
        for (code, handler) in [
            (DIVIDE, DIVIDE_HANDLER),
            (&[0xcd, SOFTWARE], SOFTWARE_HANDLER),
            // Its own INT3.
            (&[INT3], SOFTWARE_HANDLER),
        ] {
            let mut machine = watched(habits, code);
            let (reason, seen) = run_and_look(&mut machine, &alone(true));
            assert_eq!(reason, StopReason::Step, "{}", habits.name);
            assert!(seen, "{}: it was not written", habits.name);
            assert_eq!(machine.registers().core.rip, u64::from(handler));
            assert_eq!(saved_flags(&mut machine) & TF, 0, "{}", habits.name);
            assert!(!machine.stepper.is_unguarded());
            assert!(!has_int3(&machine.memory));
            // The handler itself is stepped.
            machine.step_to(handler + 1);
            assert!(!has_int3(&machine.memory));
        }
    }
}

#[test]
fn no_int3_is_written_where_it_could_be_noticed() {
    for (name, habits, absent, order) in [
        ("other vCPUs run", Habits::INTEL, &[][..], step(true)),
        ("interrupts enter", Habits::INTEL, &[], alone(false)),
        (
            "it does not leave the guest",
            Habits::AMD,
            &[Capability::BptExit],
            alone(true),
        ),
        (
            "it is not emulated",
            Habits::PVM,
            &[Capability::BptExit],
            alone(true),
        ),
    ] {
        let mut machine = with_watchpoints(habits, DIVIDE, &plan(absent));
        let (_, seen) = run_and_look(&mut machine, &order);
        assert!(!seen, "{name}");
        assert!(machine.stepper.is_unguarded(), "{name}");
    }
    // The debugger's breakpoints take debug registers in place of INT3s.
    let slots = MechanismSet::host_only().offer(Capability::BptExit, Mechanism::HARDWARE_SLOT);
    let profile = Profile::debugger().with_mechanisms(slots);
    let slots = negotiate(&host_report(&[Capability::BptExit]), &profile).unwrap();
    assert!(slots.has(Capability::BptExit));
    let mut machine = with_watchpoints(Habits::AMD, DIVIDE, &slots);
    let (_, seen) = run_and_look(&mut machine, &alone(true));
    assert!(
        !seen && machine.stepper.is_unguarded(),
        "by a debug register"
    );
    // The instruction reads the byte: mov al, [bx]
    let mut machine = watched(Habits::INTEL, &[0x8a, 0x07]);
    machine.set(|file| file.core.rbx = DIVIDE_HANDLER.into());
    for vector in 4..32 {
        machine
            .memory
            .put(vector * 4, &DIVIDE_HANDLER.to_le_bytes());
    }
    let (_, seen) = run_and_look(&mut machine, &alone(true));
    assert!(!seen, "it is read");
    assert_eq!(
        machine.registers().core.rax & 0xff,
        0x43,
        "the guest's own byte"
    );
    // It cannot be written.
    let mut machine = watched(Habits::INTEL, DIVIDE);
    machine
        .memory
        .protect(u64::from(DIVIDE_HANDLER)..u64::from(DIVIDE_HANDLER) + 1);
    let (_, seen) = run_and_look(&mut machine, &alone(true));
    assert!(!seen && machine.stepper.is_unguarded(), "it is in ROM");
    // With a debug register none is needed.
    let mut machine = Machine::new(Habits::INTEL, DIVIDE);
    let (_, seen) = run_and_look(&mut machine, &alone(true));
    assert!(
        !seen && !machine.stepper.is_unguarded(),
        "a debug register is free"
    );
}

#[test]
fn whatever_ends_the_step_no_int3_stays() {
    for habits in [Habits::AMD, Habits::INTEL] {
        // A call fails.
        let mut failures = 0;
        for after in 0..40 {
            let mut machine = watched(habits, DIVIDE);
            machine.vcpu.fail_call(after);
            let (reason, _) = run_and_look(&mut machine, &alone(true));
            failures += usize::from(matches!(reason, StopReason::InternalError(_)));
            assert!(!has_int3(&machine.memory), "{} call {after}", habits.name);
        }
        assert!(failures > 0, "{}: nothing failed", habits.name);
        // It is interrupted before each of its entries.
        for entries in 0..4 {
            let mut machine = watched(habits, DIVIDE);
            machine.run_until(&alone(true), |so_far, _| so_far >= entries);
            assert!(
                !has_int3(&machine.memory),
                "{} entry {entries}",
                habits.name
            );
        }
        // The client is lost, or another order comes, in place of the entry.
        for release in [true, false] {
            let mut machine = watched(habits, DIVIDE);
            let armed = Arc::clone(&machine.armed);
            let Machine {
                stepper,
                vcpu,
                memory,
                ..
            } = &mut machine;
            let next = stepper.start(&alone(true), &armed, vcpu, memory);
            assert_eq!(next, Next::Enter);
            assert!(has_int3(memory));
            if release {
                stepper.release(vcpu, memory).unwrap();
            } else {
                stepper.start(&VcpuOrder::Continue, &armed, vcpu, memory);
            }
            assert!(!has_int3(memory), "{} release {release}", habits.name);
        }
    }
}

#[test]
fn what_is_written_over_an_int3_stays_and_one_that_cannot_be_taken_back_is_named() {
    let mut machine = watched(Habits::INTEL, DIVIDE);
    let armed = Arc::clone(&machine.armed);
    let Machine {
        stepper,
        vcpu,
        memory,
        ..
    } = &mut machine;
    stepper.start(&alone(true), &armed, vcpu, memory);
    memory.put(DIVIDE_HANDLER.into(), &[0x90]);
    stepper.interrupt(vcpu, memory);
    assert_eq!(memory.get(DIVIDE_HANDLER.into(), 1), [0x90]);

    let mut machine = watched(Habits::INTEL, DIVIDE);
    let Machine {
        stepper,
        vcpu,
        memory,
        ..
    } = &mut machine;
    stepper.start(&alone(true), &armed, vcpu, memory);
    memory.protect(u64::from(DIVIDE_HANDLER)..u64::from(DIVIDE_HANDLER) + 1);
    let next = stepper.interrupt(vcpu, memory);
    assert!(
        matches!(&next, Next::Stopped(StopReason::InternalError(text)) if text.contains("0x3300")),
        "{next:?}"
    );
}

#[test]
fn an_int3_of_the_debugger_or_the_guest_at_the_handler_serves() {
    for habits in [Habits::AMD, Habits::INTEL] {
        // The guest's: its handler begins with INT3.
        let mut machine = watched(habits, DIVIDE);
        machine.memory.put(DIVIDE_HANDLER.into(), &[INT3]);
        let (reason, _) = run_and_look(&mut machine, &alone(true));
        assert_eq!(reason, StopReason::Step);
        assert_eq!(machine.registers().core.rip, u64::from(DIVIDE_HANDLER));
        assert_eq!(saved_flags(&mut machine) & TF, 0);
        let (reason, _) = run_and_look(&mut machine, &alone(true));
        assert_eq!(reason, StopReason::Step);
        assert_eq!(machine.registers().core.rip, u64::from(SOFTWARE_HANDLER));
        assert_eq!(machine.memory.get(DIVIDE_HANDLER.into(), 1), [INT3]);
        // The debugger's.
        let mut machine = watched(habits, DIVIDE);
        watch(&mut machine, &[DIVIDE_HANDLER.into()]);
        machine.memory.put(DIVIDE_HANDLER.into(), &[INT3]);
        let (reason, _) = run_and_look(&mut machine, &alone(true));
        assert_eq!(reason, StopReason::SoftwareBreakpoint);
        assert_eq!(saved_flags(&mut machine) & TF, 0);
    }
}

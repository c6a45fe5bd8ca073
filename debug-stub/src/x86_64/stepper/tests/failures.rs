//! Each call of the vCPU made to fail once.

use super::habits::long_mode;
use super::*;

/// Orders that between them make every kind of call.
fn cases() -> Vec<(&'static str, Vec<u8>, VcpuOrder)> {
    let steps = range(CODE..CODE + 0x100);
    vec![
        // inc ax, nop, until the end of the range; an OUT and an INT among them
        (
            "range",
            vec![
                0x40, 0xe6, 0x80, 0x9c, 0x58, 0xcd, SOFTWARE, 0x90, 0xeb, 0xf6,
            ],
            steps,
        ),
        ("step", vec![0x40, 0xeb, 0xfe], step(true)),
        ("continue", vec![0x40, 0xeb, 0xfd], VcpuOrder::Continue),
    ]
}

#[test]
fn a_call_that_fails_is_named_and_leaves_the_vcpu_unarmed_and_unmasked() {
    for habits in Habits::ALL {
        for synced in [true, false] {
            let absent = if synced {
                &[][..]
            } else {
                &[Capability::SyncRegs]
            };
            for (name, code, order) in cases() {
                let mut failures = 0;
                for after in 0..200 {
                    let mut machine = Machine::with(habits, &code, &plan(absent));
                    machine.set(|file| file.core.rflags |= TF);
                    machine.arm(vec![HwBreakpoint::execute(0x9000)], &[]);
                    machine.vcpu.fail_call(after);
                    let reason = machine.run_until(&order, |entries, _| entries >= 40);
                    if !machine.vcpu.has_failed() {
                        break;
                    }
                    let context = format!("{} {name} call {after}: {reason:?}", habits.name);
                    let StopReason::InternalError(text) = &reason else {
                        // A call whose second attempt worked.
                        continue;
                    };
                    failures += 1;
                    assert!(text.contains("was made to fail"), "{context}");
                    assert!(text.starts_with("vcpu0: "), "{context}");
                    assert!(text.contains("nothing armed or masked"), "{context}");
                    machine.assert_is_clean();
                    // The session lives: the next step works.
                    assert_eq!(machine.step(), StopReason::Step, "{context}");
                    machine.release();
                }
                assert!(failures > 0, "{} {name}: nothing failed", habits.name);
            }
        }
    }
}

#[test]
fn a_failed_step_of_syscall_leaves_fmask_and_r11_as_they_were() {
    for habits in Habits::ALL {
        for after in 0..12 {
            let mask = 0x25_7fd5;
            let mut machine = long_mode(habits, &[0x0f, 0x05], &[0x48, 0x0f, 0x07], mask);
            for _ in 0..2 {
                machine.vcpu.fail_call(after);
                let _ = machine.step();
                assert_eq!(
                    machine.vcpu.fmask(),
                    mask,
                    "call {after} on {}",
                    habits.name
                );
            }
            machine.release();
            assert_eq!(machine.vcpu.registers().core.r11 & TF, 0, "call {after}");
        }
    }
}

#[test]
fn a_release_that_fails_once_is_a_release() {
    for habits in Habits::ALL {
        for after in 0..10 {
            let mut machine = Machine::new(habits, &[0x40, 0x40, 0x40, 0xeb, 0xfe]);
            machine.set(|file| file.core.rflags |= TF);
            assert_eq!(machine.step(), StopReason::Step);
            machine.vcpu.fail_call(after);
            machine.release();
            assert_ne!(machine.vcpu.registers().core.rflags & TF, 0, "the guest's");
        }
    }
}

#[test]
fn an_exit_without_an_order_is_an_error_and_so_is_an_unknown_exception() {
    let mut machine = Machine::new(Habits::AMD, &[0x40, 0xeb, 0xfe]);
    let Machine {
        stepper,
        vcpu,
        memory,
        ..
    } = &mut machine;
    let next = stepper.ran(Outcome::Halted, vcpu, memory);
    assert!(
        matches!(&next, Next::Stopped(StopReason::InternalError(text)) if text.contains("no order"))
    );
    assert_eq!(
        stepper.interrupt(vcpu, memory),
        Next::Stopped(StopReason::Interrupted)
    );
    assert_eq!(
        stepper.start(&step(true), &Arc::default(), vcpu, memory),
        Next::Enter
    );
    let odd = DebugExit {
        exception: 7,
        ..DebugExit::default()
    };
    let next = stepper.ran(Outcome::Debug(odd), vcpu, memory);
    assert!(
        matches!(&next, Next::Stopped(StopReason::InternalError(text)) if text.contains("exception 7"))
    );
    assert_eq!(machine.step(), StopReason::Step);
}

#[test]
fn what_the_plan_lacks_is_refused_and_nothing_runs() {
    let nothing = Profile::builder().build().unwrap();
    let lacks = negotiate(&host_report(Capability::ALL), &nothing).unwrap();
    let mut machine = Machine::with(Habits::AMD, &[0x40, 0xeb, 0xfe], &lacks);
    let reason = machine.run(&step(false));
    assert!(
        matches!(&reason, StopReason::InternalError(text) if text.contains("single_step")),
        "{reason:?}"
    );
    assert_eq!(machine.entries, 0);
    machine.assert_is_clean();
}

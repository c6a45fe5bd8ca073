//! A vCPU that waits in KVM, and is started again in its step: INIT and the startup IPI come while its
//! thread sleeps in `KVM_RUN`.

use std::hint::spin_loop;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use debug_stub::{Armed, StopReason, VcpuId};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, kvm_mp_state,
};

use crate::guest::{CODE, COUNTER, Guest, HANDLER, IF, TF, plan, send};

/// An application processor.
const AP: VcpuId = VcpuId(1);
/// Of a message (SDM 3A, figure 10-25): delivery mode INIT, and start-up with the page of [`CODE`].
const INIT: u32 = 0x500;
const STARTUP: u32 = 0x601;
const _: () = assert!(CODE == 0x1000);
/// CS and IP, where a step may end: after INIT, after a startup IPI, and one instruction later.
const RESET: (u16, u64) = (0xf000, 0xfff0);
const STARTED: (u16, u64) = (0x100, 0);
const FIRST: (u16, u64) = (STARTED.0, 1);

/// How many times of a step are tried.
const ROUNDS: u64 = 100;

/// A processor that waits, with code to start at.
fn waiting(mp_state: u32) -> Guest {
    // inc ax, four times; jmp $
    let code = [0x40, 0x40, 0x40, 0x40, 0xeb, 0xfe];
    let mut guest = Guest::of(AP, &code, plan());
    guest.set(|file| file.core.rip = CODE + 4);
    guest
        .vcpu
        .fd()
        .set_mp_state(kvm_mp_state { mp_state })
        .unwrap();
    guest
}

/// A step that does not end, and is stopped where it waits.
fn interrupt_in_kvm_run(guest: &mut Guest) {
    let patience = std::mem::replace(&mut guest.patience, Duration::from_millis(50));
    assert_eq!(guest.step(), StopReason::Interrupted);
    guest.patience = patience;
    guest.stop.store(false, Ordering::Release);
}

fn place(guest: &mut Guest) -> (u16, u64) {
    let file = guest.registers();
    assert_eq!(file.core.rflags & TF, 0, "the debugger's TF");
    (file.special.cs.selector, file.core.rip)
}

/// Steps, while these messages come, each some time after the one before.
fn step_beside(guest: &mut Guest, mask: bool, messages: &'static [u32], pause: Duration) {
    let vm = Arc::clone(&guest.vm);
    let sender = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        for message in messages {
            send(&vm, AP, *message);
            thread::sleep(pause);
        }
    });
    assert_eq!(guest.step_with(mask, &Armed::default()), StopReason::Step);
    sender.join().unwrap();
}

fn assert_is_at_its_first_instruction(
    mp_state: u32,
    messages: &'static [u32],
    before: &[(u16, u64)],
) {
    for pause in [Duration::ZERO, Duration::from_millis(50)] {
        for mask in [true, false] {
            let mut guest = waiting(mp_state);
            interrupt_in_kvm_run(&mut guest);

            step_beside(&mut guest, mask, messages, pause);
            let mut places = vec![place(&mut guest)];
            while *places.last().unwrap() != FIRST && places.len() <= before.len() {
                assert_eq!(guest.step_with(mask, &Armed::default()), StopReason::Step);
                places.push(place(&mut guest));
            }
            assert_eq!(places.pop(), Some(FIRST), "{places:x?}");
            assert!(
                places.iter().all(|place| before.contains(place)),
                "{places:x?}"
            );
            guest.set(|file| file.core.rax = 0);
            for ip in 2..=4 {
                guest.step_to(ip);
            }
            assert_eq!(guest.registers().core.rax & 0xffff, 3);
            assert_eq!(guest.vcpu.waiting(), None);
        }
    }
}

/// KVM goes on in the entry that takes INIT and the startup IPI. In Bochs the first fetch from a page traps
/// once for nothing, before the instruction.
#[test]
fn a_halted_vcpu_stops_at_its_first_instruction() {
    assert_is_at_its_first_instruction(KVM_MP_STATE_HALTED, &[INIT, STARTUP], &[STARTED]);
}

#[test]
fn a_vcpu_that_waits_for_a_startup_ipi_stops_at_its_first_instruction() {
    assert_is_at_its_first_instruction(KVM_MP_STATE_INIT_RECEIVED, &[STARTUP], &[STARTED]);
}

/// KVM comes back after INIT, and may have taken the startup IPI by then, too.
#[test]
fn a_vcpu_that_waits_for_init_stops_at_it_and_at_its_first_instruction() {
    let before = [RESET, STARTED];
    assert_is_at_its_first_instruction(KVM_MP_STATE_UNINITIALIZED, &[INIT, STARTUP], &before);
}

/// Messages that come at any time of a step: before it is armed, in the middle of that, and when its thread
/// sleeps.
fn assert_starts_at_any_time(mp_state: u32, messages: &'static [u32], before: &[(u16, u64)]) {
    for round in 0..ROUNDS {
        let mut guest = waiting(mp_state);
        let vm = Arc::clone(&guest.vm);
        let begun = Arc::new(Barrier::new(2));
        let delay = Duration::from_micros(round * round / 10);
        let sender = thread::spawn({
            let begun = Arc::clone(&begun);
            move || {
                begun.wait();
                let start = Instant::now();
                while start.elapsed() < delay {
                    spin_loop();
                }
                messages.iter().for_each(|message| send(&vm, AP, *message));
            }
        });
        begun.wait();
        let mut places = Vec::new();
        while places.last() != Some(&FIRST) && places.len() <= before.len() {
            assert_eq!(guest.step(), StopReason::Step, "{delay:?}: {places:x?}");
            places.push(place(&mut guest));
        }
        sender.join().unwrap();
        assert_eq!(places.pop(), Some(FIRST), "{delay:?}: {places:x?}");
        let known = |place| before.contains(place);
        assert!(places.iter().all(known), "{delay:?}: {places:x?}");
    }
}

#[test]
fn a_halted_vcpu_may_be_started_at_any_time_of_its_step() {
    assert_starts_at_any_time(KVM_MP_STATE_HALTED, &[INIT, STARTUP], &[STARTED]);
}

#[test]
fn a_vcpu_that_waits_for_a_startup_ipi_may_get_it_at_any_time_of_its_step() {
    assert_starts_at_any_time(KVM_MP_STATE_INIT_RECEIVED, &[STARTUP], &[STARTED]);
}

#[test]
fn a_vcpu_that_waits_for_init_may_get_it_at_any_time_of_its_step() {
    let before = [RESET, STARTED];
    assert_starts_at_any_time(KVM_MP_STATE_UNINITIALIZED, &[INIT, STARTUP], &before);
}

/// From the second step of a series on. Before that an exception that is on its way counts more.
#[test]
fn a_vcpu_that_runs_may_be_started_again_at_any_time_of_a_series_of_steps() {
    for round in 0..ROUNDS {
        let mut guest = waiting(KVM_MP_STATE_RUNNABLE);
        guest.set(|file| file.core.rip = CODE);
        for ip in 1..=3 {
            guest.step_to(CODE + ip);
        }
        let vm = Arc::clone(&guest.vm);
        let delay = Duration::from_micros(round * 4);
        let sender = thread::spawn(move || {
            thread::sleep(delay);
            send(&vm, AP, INIT);
            send(&vm, AP, STARTUP);
        });
        let mut places = Vec::new();
        while !places.ends_with(&[FIRST]) && places.len() < 100_000 {
            assert_eq!(guest.step(), StopReason::Step, "{places:x?}");
            places.push(place(&mut guest));
        }
        sender.join().unwrap();
        let in_time = |place: &&(u16, u64)| place.0 == STARTED.0;
        let first = places.iter().find(in_time);
        assert!(
            [Some(&STARTED), Some(&FIRST)].contains(&first),
            "{first:x?}"
        );
        guest.step_to(2);
    }
}

/// Reading its registers in between does not bring back stale ones.
#[test]
fn a_vcpu_that_is_started_again_between_its_steps_stops_at_its_first_instruction() {
    let asks: [fn(&mut Guest); 4] = [
        |_| (),
        |guest| assert_eq!(guest.vcpu.waiting(), None),
        |guest| {
            let _ = guest.registers();
        },
        |guest| {
            let _ = guest.vcpu.fd().get_mp_state().unwrap();
        },
    ];
    for ask in asks {
        for steps in 2..=4 {
            let mut guest = waiting(KVM_MP_STATE_RUNNABLE);
            guest.set(|file| file.core.rip = CODE);
            for ip in 1..=steps {
                guest.step_to(CODE + ip);
            }
            send(&guest.vm, AP, INIT);
            send(&guest.vm, AP, STARTUP);
            ask(&mut guest);
            let mut places = Vec::new();
            while places.last() != Some(&FIRST) && places.len() < 2 {
                assert_eq!(guest.step(), StopReason::Step, "{places:x?}");
                places.push(place(&mut guest));
            }
            assert!(
                matches!(places[..], [FIRST] | [STARTED, FIRST]),
                "{places:x?}"
            );
        }
    }
}

#[test]
fn a_halted_vcpu_that_nothing_starts_is_as_it_was() {
    let mut guest = waiting(KVM_MP_STATE_HALTED);
    for guests_own in [0, TF] {
        guest.set(|file| file.core.rflags = 2 | IF | guests_own);
        let before = guest.registers();
        for _ in 0..3 {
            interrupt_in_kvm_run(&mut guest);
            assert_eq!(guest.registers().core, before.core);
            assert_eq!(guest.registers().special.cs, before.special.cs);
        }
        assert_eq!(guest.vcpu.waiting(), Some("halted"));
    }
    guest.vcpu.release(&guest.memory);
    assert_ne!(guest.registers().core.rflags & TF, 0, "the guest's own");
}

#[test]
fn a_halted_vcpu_that_is_woken_steps_its_next_instruction() {
    let mut guest = waiting(KVM_MP_STATE_HALTED);
    guest.set(|file| {
        file.core.rip = CODE;
        file.core.rflags = 2 | IF;
    });
    step_beside(&mut guest, true, &[0x40], Duration::ZERO);
    assert_eq!(guest.rip(), CODE + 1);
    assert_eq!(guest.vcpu.waiting(), None);
    guest.step_to(CODE + 2);
    assert_eq!(guest.word(COUNTER), 0, "masked");
    // To the handler's first instruction, or past it.
    while guest.word(COUNTER) == 0 {
        assert_eq!(guest.step_with(false, &Armed::default()), StopReason::Step);
        assert!(guest.rip() < CODE || guest.rip() >= HANDLER, "not taken");
    }
    assert_eq!(guest.word(COUNTER), 1, "neither lost nor doubled");
}

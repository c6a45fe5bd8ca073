//! A machine that is reset in place, by its guest or by the debugger.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use common::{Chips, Resources, Setup, Vmm, eventually, rounds};
use vmm_reference::guests::{FAULT, SMP, TIMER};

with_all_chips! {
    a_guest_that_resets_itself_starts_again_without_growth,
    a_triple_fault_is_a_reset,
    breakpoints_stay_over_the_guests_resets,
    a_reset_may_stop_the_guest_for_the_debugger,
    a_guest_that_was_reset_waits_for_the_debugger,
    run_starts_the_machine_again,
    monitor_system_reset_starts_all_vcpus_again,
    ctrl_c_stops_a_guest_that_is_reset_all_the_time,
    a_step_of_the_reset_ends_at_the_first_instruction,
}

fn fault(cmdline: &str, on_reset: &str, chips: Chips) -> Setup {
    Setup::new(&FAULT)
        .with(&["--cmdline", cmdline, "--on-reset", on_reset])
        .with(chips)
}

fn boots(vmm: &Vmm) -> usize {
    vmm.serial().matches("fault guest").count()
}

fn a_guest_that_resets_itself_starts_again_without_growth(chips: Chips) {
    let mut vmm = fault("reset", "restart", chips).start();
    // The least, at a moment between two machines.
    let least = |vmm: &Vmm| {
        let samples = (0..8).map(|_| vmm.resources());
        let resources = samples.reduce(|a, b| Resources {
            descriptors: a.descriptors.min(b.descriptors),
            threads: a.threads.min(b.threads),
        });
        (resources.unwrap(), vmm.resident())
    };
    eventually("it boots again", || boots(&vmm) > 5);
    let (before, resident) = least(&vmm);
    let goal = boots(&vmm) + rounds(40);
    eventually("it boots again and again", || boots(&vmm) > goal);
    let (after, more) = least(&vmm);
    // Of a machine that is being built while the other one is still there.
    let slack = 24;
    assert!(
        after.descriptors <= before.descriptors + slack,
        "{before:?} {after:?}"
    );
    assert!(after.threads <= before.threads + 4, "{before:?} {after:?}");
    assert!(more < resident + (4 << 20), "{resident} {more}");
    assert!(vmm.is_alive());
    // The debugger may still come, and end it.
    let mut client = vmm.client();
    client.send("k").unwrap();
    assert_eq!(vmm.wait(), 0);
}

fn a_triple_fault_is_a_reset(chips: Chips) {
    let vmm = fault("triple", "restart", chips).start();
    eventually("it boots again", || boots(&vmm) > 3);
    vmm.assert_logs("triple fault at 0x");
    let log = vmm.log();
    assert_eq!(
        log.matches("the machine is reset").count(),
        1,
        "said each time:\n{log}"
    );
}

fn breakpoints_stay_over_the_guests_resets(chips: Chips) {
    let vmm = fault("reset", "restart", chips).paused().start();
    let gdb = vmm.gdb(
        "hbreak main64\ncontinue\ncontinue\ncontinue\nprintf \"pc=%#lx\\n\", $pc\n\
         delete\nbreak main64\ncontinue\ncontinue\nprintf \"pc=%#lx\\n\", $pc",
    );
    gdb.expect(&[
        "Breakpoint 1, ",
        "the machine was reset",
        "Breakpoint 1, ",
        "the machine was reset",
        "Breakpoint 1, ",
        "Breakpoint 2, ",
        "the machine was reset",
        "Breakpoint 2, ",
    ]);
    let main = vmm.symbol("main64");
    for pc in gdb.values("pc") {
        assert!((main..main + 8).contains(&pc), "{pc:#x}");
    }
}

fn a_reset_may_stop_the_guest_for_the_debugger(chips: Chips) {
    let vmm = fault("reset", "stop", chips).paused().start();
    let gdb = vmm.gdb(
        "printf \"start=%#lx\\n\", $pc\ncontinue\nprintf \"again=%#lx\\n\", $pc\ncontinue\n\
         printf \"again=%#lx\\n\", $pc\nstepi\nprintf \"next=%#lx\\n\", $pc",
    );
    gdb.expect(&["the machine was reset", "SIGTRAP", "the machine was reset"]);
    let start = gdb.value("start");
    assert_eq!(gdb.values("again"), [start, start]);
    assert_ne!(gdb.value("next"), start);
}

fn a_guest_that_was_reset_waits_for_the_debugger(chips: Chips) {
    let vmm = fault("reset", "stop", chips).start();
    eventually("it has been reset", || {
        vmm.log().contains("waits for a debugger")
    });
    assert_eq!(boots(&vmm), 1);
    let gdb = vmm.gdb("hbreak main64\ncontinue");
    gdb.expect(&["Breakpoint 1, "]);
}

fn run_starts_the_machine_again(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    vmm.assert_rises("iterations");
    let target = vmm.socket.display().to_string();
    let gdb = vmm.gdb(&format!(
        "disconnect\ntarget extended-remote {target}\nset remote exec-file whatever\n\
         printf \"before=%ld\\n\", *(long*)&iterations\n\
         starti\nprintf \"after=%ld\\n\", *(long*)&iterations\n\
         hbreak loop_start\ncontinue\nset $ticks = *(long*)&ticks\nstepi\nstepi\n\
         printf \"landed=%ld\\n\", *(long*)&ticks - $ticks\n\
         run\nprintf \"pc=%#lx\\n\", $pc\nkill\nstarti\nprintf \"last=%ld\\n\", *(long*)&iterations",
    ));
    assert_ne!(gdb.value("before"), 0);
    assert_eq!(gdb.value("after"), 0, "memory is as at the start");
    // `run` goes on to the first breakpoint.
    gdb.expect(&["Breakpoint 1, ", "Breakpoint 1, "]);
    assert_eq!(
        gdb.value("landed"),
        0,
        "a step landed in the timer's handler"
    );
    assert_eq!(gdb.value("pc"), vmm.symbol("loop_start"));
    assert_eq!(gdb.value("last"), 0);
    // Its timer ticks as before.
    vmm.assert_rises("ticks");
}

fn monitor_system_reset_starts_all_vcpus_again(chips: Chips) {
    let vmm = Setup::new(&SMP).with(&["--cpus", "2"]).with(chips).start();
    vmm.assert_rises("ap_counter");
    let gdb = vmm.gdb(
        "monitor time step none\nmonitor system_reset\nflushregs\ninfo threads\nmonitor time step\n\
         printf \"ap=%ld\\n\", *(long*)&ap_counter",
    );
    // The debugger's setting is kept.
    gdb.expect(&["the machine was reset", "a step takes no time"]);
    assert_eq!(gdb.value("ap"), 0);
    // gdb has detached, and the guest starts its second processor again.
    vmm.assert_rises("bsp_counter");
    vmm.assert_rises("ap_counter");
}

fn ctrl_c_stops_a_guest_that_is_reset_all_the_time(chips: Chips) {
    let vmm = fault("reset", "restart", chips).start();
    let mut client = vmm.client();
    for round in 0..rounds(60) {
        client.send("vCont;c").unwrap();
        std::thread::sleep(std::time::Duration::from_micros(317 * (round as u64 % 40)));
        client.interrupt().unwrap();
        let reply = client.reply().unwrap();
        assert!(reply.starts_with("T02"), "{reply}");
    }
    client.request("D").unwrap();
    let before = boots(&vmm);
    eventually("it runs on", || boots(&vmm) > before + 2);
}

/// The step of an instruction that resets the machine has no other end.
fn a_step_of_the_reset_ends_at_the_first_instruction(chips: Chips) {
    let vmm = fault("reset", "restart", chips).paused().start();
    let mut client = vmm.client();
    let start = client.read_rip().unwrap();
    let mut steps = 0;
    // The guest's whole life, from its first instruction to its reset.
    loop {
        let reply = client.request("vCont;s:1").unwrap();
        assert!(reply.starts_with("T05"), "{reply}");
        steps += 1;
        if client.read_rip().unwrap() == start {
            break;
        }
        assert!(steps < 5000, "it does not end");
    }
    assert!(steps > 10);
    assert_eq!(boots(&vmm), 1);
    client.request("D").unwrap();
    eventually("it runs on", || boots(&vmm) > 2);
}

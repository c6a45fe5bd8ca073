//! Breakpoints with conditions and `dprintf`, which the VMM evaluates, with the real gdb.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use std::thread;
use std::time::Duration;

use common::{Chips, Setup, Vmm, eventually, rounds};
use vmm_reference::guests::{SMP, TIMER};

with_all_chips! {
    a_condition_is_evaluated_in_the_vmm_and_gdb_sees_one_hit,
    dprintf_in_the_agent_prints_and_the_guest_goes_on,
    ctrl_c_ends_a_storm_of_false_hits_and_leaves_nothing,
    false_hits_of_two_vcpus_leave_both_running,
}

/// A counter of the guest's, as gdb compiles it. It makes no bytecode of a symbol without debug information.
fn counter(vmm: &Vmm, name: &str) -> String {
    format!("*(unsigned long*){:#x}", vmm.symbol(name))
}

/// The counter of the loop.
fn iterations(vmm: &Vmm) -> String {
    counter(vmm, "iterations")
}

fn a_condition_is_evaluated_in_the_vmm_and_gdb_sees_one_hit(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let (counter, passes) = (iterations(&vmm), rounds(300));
    let gdb = vmm.gdb(&format!(
        r#"
set debug remote 1
show breakpoint condition-evaluation
hbreak *loop_start
continue
delete
set $goal = {counter} + {passes}
printf "goal=%#lx\n", $goal
eval "break *loop_start if {counter} == %lu", $goal
continue
set debug remote 0
printf "reached=%#lx\n", {counter}
printf "pc=%#lx\n", $pc
info breakpoints
eval "condition 2 {counter} == %lu && $rip != 0", $goal + 5
continue
printf "again=%#lx\n", {counter}
"#
    ));
    let goal = gdb.value("goal");
    assert_eq!(gdb.value("reached"), goal, "{}", gdb.0);
    assert_eq!(gdb.value("again"), goal + 5, "{}", gdb.0);
    assert_eq!(gdb.value("pc"), vmm.symbol("loop_start"));
    gdb.expect(&[
        "currently target",
        ",1;X",
        "(target evals)",
        "already hit 1 time",
    ]);
}

#[test]
fn a_condition_may_use_registers_and_a_handler_of_the_guest_too() {
    let vmm = Setup::new(&TIMER).start();
    let ticks = counter(&vmm, "ticks");
    let gdb = vmm.gdb(&format!(
        r#"
break *work if $rdi == 3 && *(unsigned long*)$rsp > 0x1000 && $rcx != 0x12345
continue
printf "rdi=%ld\n", $rdi
info breakpoints
delete
hbreak *timer_handler if {ticks} % 16 == 5
continue
printf "ticks=%ld\n", {ticks}
info breakpoints
"#
    ));
    gdb.expect(&["(target evals)", "(target evals)"]);
    assert_eq!(gdb.value("rdi"), 3);
    assert_eq!(gdb.value("ticks") % 16, 5, "{}", gdb.0);
}

#[test]
fn ignore_counts_only_the_hits_whose_condition_is_true() {
    let vmm = Setup::new(&TIMER).start();
    let counter = iterations(&vmm);
    let gdb = vmm.gdb(&format!(
        r#"
break *loop_start if ({counter} & 3) == 1
continue
printf "first=%ld\n", {counter}
ignore 1 3
continue
printf "then=%ld\n", {counter}
info breakpoints
"#
    ));
    assert_eq!(gdb.value("then"), gdb.value("first") + 16, "{}", gdb.0);
    gdb.expect(&["already hit 5 times"]);
}

fn dprintf_in_the_agent_prints_and_the_guest_goes_on(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let counter = iterations(&vmm);
    let text = vmm.symbol("banner");
    let gdb = vmm.gdb(&format!(
        r#"
set dprintf-style agent
hbreak *loop_start
continue
delete
dprintf *loop_start,"pass %lu of %.5s, %#x\n", {counter}, (char*){text:#x}, (int)$rsp & 0
set $goal = {counter} + 4
eval "break *work if {counter} == %lu", $goal
continue
printf "reached=%ld\n", {counter}
info breakpoints
"#
    ));
    let reached = gdb.value("reached");
    // gdb steps off the first instruction itself.
    let printed: Vec<u64> = gdb
        .0
        .lines()
        .filter_map(|line| line.strip_prefix("pass "))
        .map(|rest| {
            rest.strip_suffix(" of timer, 0")
                .unwrap_or_else(|| panic!("{rest}"))
        })
        .map(|number| number.parse().unwrap())
        .collect();
    assert_eq!(
        printed,
        (reached - 3..reached).collect::<Vec<_>>(),
        "{}",
        gdb.0
    );
    gdb.expect_not("agent-printf on the target");
    vmm.assert_rises("ticks");
}

#[test]
fn a_condition_that_reads_what_is_not_mapped_stops_and_says_so() {
    let vmm = Setup::new(&TIMER).start();
    vmm.gdb("break *loop_start if *(char*)0xd0000000 == 1\ncontinue\nprintf \"pc=%#lx\\n\", $pc")
        .expect(&[
            "memory at 0xd0000000 cannot be read",
            "Error in testing breakpoint condition",
        ]);
    vmm.assert_rises("ticks");
}

fn ctrl_c_ends_a_storm_of_false_hits_and_leaves_nothing(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let mut gdb = vmm.typing();
    gdb.command(&format!("break *loop_start if {} == 0", iterations(&vmm)));
    for _ in 0..rounds(20) {
        gdb.enter("continue");
        gdb.wait_for("Continuing.");
        thread::sleep(Duration::from_millis(20));
        gdb.ctrl_c();
        gdb.wait_for("SIGINT");
        gdb.command("x/i $pc");
    }
    assert!(gdb.command("info breakpoints").contains("(target evals)"));
    let shown = gdb.command("x/xb loop_start");
    assert!(shown.contains("0x48"), "{shown}");
    gdb.command("detach");
    vmm.assert_rises("ticks");
    gdb.quit();
}

fn false_hits_of_two_vcpus_leave_both_running(chips: Chips) {
    let vmm = Setup::new(&SMP).with(&["--cpus", "2"]).with(chips).start();
    eventually("the second processor starts", || {
        vmm.serial().contains("second cpu")
    });
    let (ap, bsp) = (counter(&vmm, "ap_counter"), counter(&vmm, "bsp_counter"));
    let passes = rounds(100);
    let gdb = vmm.gdb(&format!(
        r#"
set $ap = {ap}
set $bsp = {bsp}
break *bsp_spin if 0
eval "break *ap_spin if {ap} == %lu", $ap + {passes}
continue
printf "ap=%ld\n", {ap} - $ap
printf "bsp=%d\n", {bsp} > $bsp
info breakpoints
"#
    ));
    gdb.expect(&["(target evals)", "(target evals)", "already hit 1 time"]);
    assert_eq!(gdb.value("ap"), u64::try_from(passes).unwrap(), "{}", gdb.0);
    assert_eq!(gdb.value("bsp"), 1, "{}", gdb.0);
    vmm.assert_rises("ap_counter");
}

//! The main purpose: gdb steps a guest with a 1 kHz timer and never lands in the interrupt.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use common::gdb::Transcript;
use common::{Chips, Setup, Vmm, rounds};
use vmm_reference::guests::TIMER;

with_all_chips! {
    a_thousand_steps_stay_in_the_loop_and_continue_delivers_what_waited,
    without_the_mask_the_same_steps_land_in_the_handler,
    the_flags_that_a_stepped_guest_stores_have_no_trap_flag,
}

/// At full speed.
const STEPS: usize = 1000;

/// Steps from the loop's start, and prints where each step ended.
fn script(policy: &str, after: &str) -> String {
    let steps = rounds(STEPS);
    format!(
        r#"
{policy}
hbreak *loop_start
continue
delete
printf "before=%ld\n", (long)ticks
set $i = 0
while $i < {steps}
  stepi
  printf "pc=%#lx\n", $pc
  set $i = $i + 1
end
printf "after=%ld\n", (long)ticks
monitor mask status
{after}
"#
    )
}

fn landings(vmm: &Vmm, gdb: &Transcript) -> usize {
    let inside = vmm.symbol("loop_start")..vmm.symbol("loop_end");
    let pcs = gdb.values("pc");
    assert_eq!(pcs.len(), rounds(STEPS));
    pcs.iter().filter(|pc| !inside.contains(pc)).count()
}

fn a_thousand_steps_stay_in_the_loop_and_continue_delivers_what_waited(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let gdb = vmm.gdb(&script(
        "monitor mask status",
        r#"
thbreak *timer_handler
continue
printf "handler=%#lx\n", $pc
printf "delivered=%ld\n", (long)ticks
thbreak *loop_start
continue
printf "later=%ld\n", (long)ticks
monitor mask status
"#,
    ));
    assert_eq!(landings(&vmm, &gdb), 0, "{}", gdb.0);
    let ticks = gdb.value("before");
    assert_eq!(gdb.value("after"), ticks, "the handler ran:\n{}", gdb.0);
    // A thousand steps take longer than the timer's millisecond: there is an interrupt to mask. The first
    // stop in the handler is before it counts.
    assert_eq!(gdb.value("handler"), vmm.symbol("timer_handler"));
    assert_eq!(gdb.value("delivered"), ticks);
    assert!(gdb.value("later") > ticks, "{}", gdb.0);
    gdb.expect(&[
        // Nothing is held before the first step; then until the continue.
        "steps hold mask_hwintr",
        "vcpu0: not masked",
        "steps hold mask_hwintr",
        "vcpu0: masked, pending: 0x20; blocked: masked\n",
        "steps hold mask_hwintr",
        "vcpu0: not masked",
    ]);
    gdb.expect_not("may be injected");
    vmm.assert_rises("ticks");
}

fn without_the_mask_the_same_steps_land_in_the_handler(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let gdb = vmm.gdb(&script("maintenance packet Qqemu.sstep=0x1", ""));
    gdb.expect(&[
        "received: \"OK\"",
        "steps do not mask: interrupts enter stepped vCPUs",
        "vcpu0: not masked",
    ]);
    let landings = landings(&vmm, &gdb);
    let runs = gdb.value("after") - gdb.value("before");
    println!(
        "{landings} of {} steps ended in the handler, which ran {runs} times",
        rounds(STEPS)
    );
    assert!(runs > 0, "{}", gdb.0);
    let caps = vmm.gdb("monitor caps").0;
    if caps.contains("host kvm_pvm") {
        assert!(landings > 0, "{}", gdb.0);
    }
    // On kvm_intel and kvm_amd the handler runs within a step: only its counter shows that.
}

#[test]
fn the_next_client_finds_the_mask_on_again() {
    let vmm = Setup::new(&TIMER).start();
    vmm.gdb("monitor mask off\nmonitor mask status")
        .expect(&["steps do not mask", "steps do not mask"]);
    vmm.gdb("maintenance packet qqemu.sstep\nmonitor mask status")
        .expect(&["received: \"0x3\"", "steps hold mask_hwintr", "not masked"]);
}

fn the_flags_that_a_stepped_guest_stores_have_no_trap_flag(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    // Several iterations of the loop, in which PUSHFQ, POPFQ and the handler's IRETQ are stepped.
    let steps = rounds(400);
    let gdb = vmm.gdb(&format!(
        r#"
monitor mask off
hbreak *loop_start
continue
delete
set $i = 0
while $i < {steps}
  stepi
  printf "flags=%#lx\n", (long)flags_image
  printf "eflags=%#lx\n", $eflags + 0
  set $i = $i + 1
end
"#
    ));
    let trap_flag = 1 << 8;
    for name in ["flags", "eflags"] {
        let images = gdb.values(name);
        assert_eq!(images.len(), steps);
        assert!(images.iter().all(|flags| flags & trap_flag == 0), "{name}");
    }
    vmm.assert_rises("iterations");
    assert_eq!(vmm.peek("flags_image") & trap_flag, 0);
}

#[test]
fn a_host_that_cannot_mask_gets_the_emulated_chips_unless_others_are_named() {
    let status = "monitor mask status\nmonitor caps";
    let chosen = Setup::new(&TIMER).with(&["--no-host-mask"]).start();
    chosen
        .gdb(status)
        .expect(&["provided by: injection_policy"]);
    let told = Setup::new(&TIMER)
        .with(&["--no-host-mask", "--irqchip", "kernel"])
        .start();
    let said = told.gdb("monitor mask on\nmonitor mask status");
    said.expect_not("provided by");
    said.expect(&["not to be used (--no-host-mask)"]);
}

//! Steps of a vCPU that has nothing to run: it is halted, or was never started.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use std::os::unix::net::UnixStream;

use common::{Chips, Setup, USER, Vmm, eventually};
use vmm_reference::guests::SLEEP;
use vmm_reference::remote::{RemoteClient, expedited, register, unhex};

type Client = RemoteClient<UnixStream>;

/// The commands for the guest's first processor.
const START: u8 = 1;
const WAKE: u8 = 2;
const SAY_SO: u8 = 3;

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;

with_all_chips! {
    a_step_of_a_halted_vcpu_lasts_until_ctrl_c,
    a_step_of_a_halted_vcpu_lasts_until_an_interrupt_which_waits_for_the_continue,
    with_an_interrupt_that_waits_a_halt_is_stepped_like_any_instruction,
    a_halted_vcpu_that_is_started_again_in_its_step_is_at_its_first_instruction,
    a_step_of_a_vcpu_that_was_never_started_lasts_until_ctrl_c,
    a_vcpu_that_is_started_in_its_step_is_at_its_first_instruction,
    what_no_debug_register_is_free_for_is_watched_in_a_vcpu_that_sleeps,
}

/// The machine, whose second processor waits for INIT.
fn never_started(chips: Chips) -> Vmm {
    let vmm = Setup::new(&SLEEP)
        .with(&["--cpus", "2"])
        .with(chips)
        .start();
    eventually("it boots", || vmm.serial() == "sleep guest\n");
    vmm
}

/// The machine, whose second processor is halted.
fn halted(chips: Chips) -> Vmm {
    let vmm = never_started(chips);
    start(&vmm, 1);
    vmm
}

fn starts(vmm: &Vmm) -> usize {
    vmm.serial().matches("second cpu\n").count()
}

/// Starts the second processor, for the `times`th time, and waits until it is halted.
fn start(vmm: &Vmm, times: usize) {
    tell(&mut vmm.client(), vmm, START);
    eventually("it starts", || starts(vmm) == times);
    eventually("it halts", || name(&mut vmm.client()).contains("[halted]"));
}

/// Writes the first processor's command, which it carries out when it runs.
fn tell(client: &mut Client, vmm: &Vmm, command: u8) {
    let write = format!("M{:x},1:{command:02x}", vmm.symbol("command"));
    assert_eq!(client.request(&write).unwrap(), "OK");
}

/// The second vCPU's name, as `info threads` shows it.
fn name(client: &mut Client) -> String {
    let answer = client.request("qThreadExtraInfo,2").unwrap();
    String::from_utf8(unhex(&answer).unwrap()).unwrap()
}

fn flags(client: &mut Client) -> u64 {
    assert_eq!(client.request("Hg2").unwrap(), "OK");
    register(&client.request("p11").unwrap()).unwrap()
}

/// Asserts that the step does not end by itself: neither alone nor beside the other vCPU, which runs.
fn assert_waits_in_its_step(vmm: &Vmm, client: &mut Client, pc: u64, waits: &str) {
    for _ in 0..10 {
        client.send("vCont;s:2").unwrap();
        client.interrupt().unwrap();
        let stop = client.reply().unwrap();
        assert!(stop.starts_with("T02"), "{stop}");
    }
    tell(client, vmm, SAY_SO);
    client.send("vCont;s:2;c").unwrap();
    eventually("the other one runs", || vmm.serial().contains("awake"));
    client.interrupt().unwrap();
    let stop = client.reply().unwrap();
    assert!(stop.starts_with("T02"), "{stop}");
    assert!(name(client).contains(waits), "{}", name(client));
    assert_eq!(client.request("Hg2").unwrap(), "OK");
    assert_eq!(client.read_rip().unwrap(), pc);
    assert_eq!(flags(client) & RFLAGS_TF, 0);
}

/// Without a debugger it halts, and one interrupt wakes it once.
fn assert_sleeps_and_wakes(vmm: &Vmm) {
    let before = {
        let mut client = vmm.client();
        let status = client.monitor("mask status").unwrap();
        assert!(status.contains("vcpu1: not masked"), "{status}");
        assert!(name(&mut client).contains("[halted]"));
        tell(&mut client, vmm, WAKE);
        ["wakes", "handled"].map(|name| client.read_u64(vmm.symbol(name)).unwrap())
    };
    eventually("it wakes", || vmm.peek("wakes") == before[0] + 1);
    assert_eq!(vmm.peek("handled"), before[1] + 1);
    assert_eq!(vmm.peek("flags_image") & (RFLAGS_TF | RFLAGS_IF), RFLAGS_IF);
    eventually("it halts", || name(&mut vmm.client()).contains("[halted]"));
    assert_eq!(vmm.peek("wakes"), before[0] + 1);
}

fn a_step_of_a_halted_vcpu_lasts_until_ctrl_c(chips: Chips) {
    let vmm = halted(chips);
    let mut client = vmm.client();
    assert_waits_in_its_step(&vmm, &mut client, vmm.symbol("ap_woken"), "[halted]");
    drop(client);
    assert_sleeps_and_wakes(&vmm);
    assert_eq!(vmm.peek("wakes"), 1);
}

/// Steps the halted vCPU until a pending interrupt ends HLT.
fn wake_in_a_step(vmm: &Vmm, client: &mut Client) {
    tell(client, vmm, WAKE);
    let stop = client.request("vCont;s:2;c").unwrap();
    assert!(stop.starts_with("T05"), "{stop}");
    assert_eq!(expedited(&stop, 0x10), Some(vmm.symbol("ap_counted")));
    assert_eq!(client.read_u64(vmm.symbol("handled")).unwrap(), 0);
    let status = client.monitor("mask status").unwrap();
    assert!(status.contains("vcpu1: masked, pending: 0x20;"), "{status}");
}

fn a_step_of_a_halted_vcpu_lasts_until_an_interrupt_which_waits_for_the_continue(chips: Chips) {
    let vmm = halted(chips);
    let mut client = vmm.client();
    wake_in_a_step(&vmm, &mut client);
    drop(client);
    eventually("it is handled", || vmm.peek("handled") == 1);
    assert_eq!(vmm.peek("flags_image") & (RFLAGS_TF | RFLAGS_IF), RFLAGS_IF);
    eventually("it halts", || name(&mut vmm.client()).contains("[halted]"));
    assert_eq!(vmm.peek("wakes"), 1);
    assert_sleeps_and_wakes(&vmm);
}

fn with_an_interrupt_that_waits_a_halt_is_stepped_like_any_instruction(chips: Chips) {
    let vmm = halted(chips);
    let mut client = vmm.client();
    wake_in_a_step(&vmm, &mut client);
    for place in ["ap_halt", "ap_woken", "ap_counted"] {
        let stop = client.request("vCont;s:2").unwrap();
        assert!(stop.starts_with("T05"), "{stop}");
        assert_eq!(expedited(&stop, 0x10), Some(vmm.symbol(place)), "{place}");
    }
    assert_eq!(client.read_u64(vmm.symbol("wakes")).unwrap(), 2);
    assert_eq!(client.read_u64(vmm.symbol("handled")).unwrap(), 0);
    drop(client);
    eventually("it is handled", || vmm.peek("handled") == 1);
    eventually("it halts", || name(&mut vmm.client()).contains("[halted]"));
    assert_eq!(vmm.peek("wakes"), 2);
    assert_sleeps_and_wakes(&vmm);
}

fn a_step_of_a_vcpu_that_was_never_started_lasts_until_ctrl_c(chips: Chips) {
    let vmm = never_started(chips);
    let mut client = vmm.client();
    // SDM 3A, table 9-1.
    assert_waits_in_its_step(&vmm, &mut client, 0xffff_fff0, "[waits for ");
    drop(client);
    start(&vmm, 1);
    assert_sleeps_and_wakes(&vmm);
}

/// CS and the linear program counter where INIT and the startup IPI may end a step each.
const ENDS: [(u64, u64); 2] = [(0xf000, 0xffff_fff0), (0x7000, 0x7_0000)];

fn a_vcpu_that_is_started_in_its_step_is_at_its_first_instruction(chips: Chips) {
    let vmm = never_started(chips);
    is_started_in_its_step(&vmm, &ENDS, 1);
}

fn a_halted_vcpu_that_is_started_again_in_its_step_is_at_its_first_instruction(chips: Chips) {
    let vmm = halted(chips);
    // KVM goes on in the entry that accepts them; in Bochs the first fetch from a page causes a spurious trap.
    is_started_in_its_step(&vmm, if chips == USER { &ENDS } else { &ENDS[1..] }, 2);
}

fn is_started_in_its_step(vmm: &Vmm, mut before: &[(u64, u64)], times: usize) {
    let mut client = vmm.client();
    tell(&mut client, vmm, START);
    // After the CLI of the trampoline.
    let first = (0x7000, 0x7_0001);
    loop {
        let stop = client.request("vCont;s:2;c").unwrap();
        assert!(stop.starts_with("T05"), "{stop}");
        assert_eq!(flags(&mut client) & RFLAGS_TF, 0);
        let place = [0x12, 0x10].map(|register| expedited(&stop, register).unwrap());
        let place = (place[0], place[1]);
        if place == first {
            break;
        }
        let at = before.iter().position(|known| *known == place);
        before = &before[at.unwrap_or_else(|| panic!("{place:x?}, of {before:x?}")) + 1..];
    }
    drop(client);
    eventually("it starts", || starts(vmm) == times);
    eventually("it halts", || name(&mut vmm.client()).contains("[halted]"));
    assert_sleeps_and_wakes(vmm);
}

/// 64 bytes are more than four debug registers watch: all vCPUs are stepped, one of them through HLT, an interrupt
/// and its handler.
fn what_no_debug_register_is_free_for_is_watched_in_a_vcpu_that_sleeps(chips: Chips) {
    let vmm = halted(chips);
    let mut client = vmm.client();
    let watched = vmm.symbol("wakes");
    let watchpoint = format!("2,{watched:x},40");
    assert_eq!(client.request(&format!("Z{watchpoint}")).unwrap(), "OK");
    tell(&mut client, &vmm, WAKE);
    for written in ["flags_image", "handled", "wakes"] {
        let at = vmm.symbol(written);
        let before = client.read_u64(at).unwrap();
        let stop = client.request("vCont;c").unwrap();
        // Of the writer, if that is not kept from its processor for long.
        assert!(stop.starts_with("T05"), "{stop}");
        assert!(
            stop.contains(&format!("watch:{at:x};")),
            "{written}: {stop}"
        );
        assert_ne!(client.read_u64(at).unwrap(), before);
        assert_eq!(flags(&mut client) & RFLAGS_TF, 0);
    }
    assert_eq!(client.read_u64(watched).unwrap(), 1);
    assert_eq!(client.request(&format!("z{watchpoint}")).unwrap(), "OK");
    drop(client);
    assert_eq!(vmm.peek("flags_image") & (RFLAGS_TF | RFLAGS_IF), RFLAGS_IF);
    eventually("it halts", || name(&mut vmm.client()).contains("[halted]"));
    assert_sleeps_and_wakes(&vmm);
}

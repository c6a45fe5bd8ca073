//! `monitor` commands with the real gdb: interrupt chips, translation, CPUID.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use common::{Chips, Setup, Vmm, eventually};
use vmm_reference::guests::{CLOCKS, SMP};

with_all_chips! {
    the_local_apic_is_shown_as_the_guest_has_programmed_it,
    the_chipset_is_shown_as_the_guest_has_programmed_it,
    showing_the_chips_changes_nothing,
    the_selected_vcpus_local_apic_is_shown,
}

fn clocks(chips: Chips) -> Vmm {
    let vmm = Setup::new(&CLOCKS).with(chips).start();
    eventually("it boots", || vmm.serial() == "clocks guest\n");
    vmm.assert_rises("pit_ticks");
    vmm
}

fn the_local_apic_is_shown_as_the_guest_has_programmed_it(chips: Chips) {
    let vmm = clocks(chips);
    let gdb = vmm.gdb("monitor lapic\nmonitor info lapic\nmonitor irq");
    gdb.expect(&[
        "local APIC of vcpu0",
        "APIC base 0xfee00900: xAPIC mode, bootstrap processor",
        "enabled by software",
        "LVT timer ",
        "periodic",
        "in service (ISR):",
        "pending (IRR):",
        "local APIC of vcpu0",
        "vcpu0: pending:",
    ]);
}

fn the_chipset_is_shown_as_the_guest_has_programmed_it(chips: Chips) {
    let vmm = clocks(chips);
    let gdb = vmm.gdb("monitor ioapic\nmonitor pic\nmonitor pit\nmonitor info pic");
    gdb.expect(&[
        "IOAPIC: ID ",
        "pin 0 ",
        "pin 23 ",
        "asserted pins:",
        "8259A master: IRQ 0 to 7",
        "8259A slave: IRQ 8 to 15",
        // 100 Hz.
        "channel 0 (IRQ 0): mode 2, rate generator",
        "count 0x2e9c (99.998 Hz)",
        "channel 2 (speaker)",
        "IOAPIC: ID ",
        "8259A master",
    ]);
}

fn showing_the_chips_changes_nothing(chips: Chips) {
    let vmm = clocks(chips);
    let show = "monitor lapic\nmonitor ioapic\nmonitor pic\nmonitor pit\n";
    let twice = vmm.gdb(&format!("{show}echo ---\\n\n{show}")).0;
    let (first, second) = twice.split_once("---\n").expect(&twice);
    // KVM's timers run on while the guest is stopped, and are set back when it goes on.
    let live = [
        "timer:",
        "pending (IRR):",
        "8259A master:",
        "  requested (IRR",
        "asserted pins:",
    ];
    let steady = |text: &str| -> Vec<String> {
        text.lines()
            .skip_while(|line| !line.starts_with("local APIC of"))
            .filter(|line| !live.iter().any(|start| line.starts_with(start)))
            .map(str::to_owned)
            .collect()
    };
    let (first, second) = (steady(first), steady(second));
    assert!(first.len() > 40, "{twice}");
    // gdb says more when it detaches.
    assert_eq!(first, second[..first.len()], "{twice}");
    vmm.assert_rises("pit_ticks");
    vmm.assert_rises("ticks");
}

fn the_selected_vcpus_local_apic_is_shown(chips: Chips) {
    let vmm = Setup::new(&SMP).with(chips).with(&["--cpus", "2"]).start();
    vmm.assert_rises("ap_counter");
    vmm.gdb("thread 2\nmonitor lapic\nmonitor threads\nthread 1\nmonitor lapic\nmonitor info cpus")
        .expect(&[
            "local APIC of vcpu1",
            "ID 0x1,",
            "  thread 1: CPU#0",
            "* thread 2: CPU#1",
            "local APIC of vcpu0",
            "bootstrap processor",
            "* thread 1: CPU#0",
        ]);
}

#[test]
fn addresses_are_translated_and_walks_are_shown() {
    let vmm = clocks(common::KERNEL);
    let at = vmm.symbol("iterations");
    vmm.gdb(&format!(
        "monitor translate {at:#x}\nmonitor gva2gpa {at:#x}\nmonitor pagewalk {at:#x}\n\
         monitor pagewalk 0xdead00000000\nmonitor kaslr\nmonitor regs\nmonitor mem\n"
    ))
    .expect(&[
        &format!("gpa: {at:#x}"),
        &format!("gpa: {at:#x}"),
        "4-level paging, CR3 0x",
        "PML4E at 0x",
        &format!("{at:#x} is at physical {at:#x}"),
        "0xdead00000000 is no",
        "no Linux kernel",
        "RIP=",
        "0000000000000000-",
    ]);
}

#[test]
fn the_guests_cpuid_and_the_names_of_qemus_commands_are_shown() {
    let vmm = Setup::new(&CLOCKS).start();
    vmm.gdb(
        "monitor cpuid\nmonitor info tlb\nmonitor info nonsense\nmonitor help qemu\nmonitor help",
    )
    .expect(&[
        "leaf       subleaf",
        "0x00000000 0x00000000",
        "0x40000000",
        "QEMU's \"info tlb\" is not here: monitor pagewalk",
        "unknown command \"info nonsense\"",
        "gva2gpa ",
        "monitor pagewalk ADDRESS",
        "monitor lapic ",
    ]);
}

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
    the_chips_registers_are_read_as_memory,
    showing_the_chips_changes_nothing,
    the_selected_vcpus_local_apic_is_shown,
    gdb_opens_a_core_file_with_all_vcpus,
    exits_and_steps_are_counted,
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

/// As a program of the guest reads them, in registers of 32 bits.
fn the_chips_registers_are_read_as_memory(chips: Chips) {
    let vmm = clocks(chips);
    let mut client = vmm.client();
    let shown = client.monitor("lapic").unwrap();
    let version = client.read_memory(0xfee0_0030, 4).unwrap();
    let version = u32::from_le_bytes(version.try_into().unwrap());
    assert!(
        shown.contains(&format!(", version {version:#x}\n")),
        "{shown}"
    );
    assert_eq!(version & 0xf0, 0x10, "an integrated local APIC");
    // The rest of the sixteen bytes.
    assert_eq!(client.request("mfee00034,c").unwrap(), "0".repeat(24));
    assert_eq!(client.request("mfee01000,4").unwrap(), "E0e");
    // The second register is the one that the first one selects.
    assert_eq!(client.request("Qqemu.PhyMemMode:1").unwrap(), "OK");
    let window = client.request("mfec00000,14").unwrap();
    assert_eq!(window.len(), 2 * 0x14, "{window}");
    assert_eq!(client.request("mfec00100,4").unwrap(), "E0e");
    assert_eq!(client.request("mfec00000,14").unwrap(), window);
    assert_eq!(client.request("Qqemu.PhyMemMode:0").unwrap(), "OK");
    assert_eq!(
        client.monitor("lapic").unwrap().lines().next(),
        shown.lines().next()
    );
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

fn exits_and_steps_are_counted(chips: Chips) {
    let vmm = clocks(chips);
    let gdb = vmm.gdb("monitor stats\nstepi\nstepi\nmonitor info stats\nmonitor stats vcpu");
    let injected = if chips == common::USER {
        "  interrupts injected by the VMM"
    } else {
        "interrupts: the local APICs are KVM's"
    };
    gdb.expect(&[
        "vcpu0: ",
        " entries (KVM_RUN), 0 of them to step one instruction, 0 with interrupts masked",
        // Its line on the serial port.
        "  KVM_EXIT_IO\n",
        injected,
        "vcpu0: ",
        "  KVM_EXIT_DEBUG\n",
        injected,
        "vcpu0: ",
    ]);
    let steps = |line: &&str| line.contains(" of them to step ");
    let lines: Vec<&str> = gdb.0.lines().filter(steps).collect();
    let count = |line: &str| -> u64 {
        let (_, rest) = line.split_once("(KVM_RUN), ").unwrap();
        let (count, _) = rest.split_once(' ').unwrap();
        count.parse().unwrap()
    };
    assert!(count(lines[1]) >= 2, "{}", gdb.0);
    // Showing them changes nothing.
    assert_eq!(lines[1], lines[2]);
    vmm.gdb("monitor help").expect(&["monitor stats "]);
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

fn gdb_opens_a_core_file_with_all_vcpus(chips: Chips) {
    let vmm = Setup::new(&SMP).with(chips).with(&["--cpus", "2"]).start();
    vmm.assert_rises("ap_counter");
    let file = vmm.directory().join("a core");
    let show = r#"
thread 1
printf "pc1=%#lx\n", $pc
printf "sp1=%#lx\n", $sp
thread 2
printf "pc2=%#lx\n", $pc
printf "rax2=%#lx\n", $rax
printf "bsp=%#lx\n", *(unsigned long*)&bsp_counter
printf "ap=%#lx\n", *(unsigned long*)&ap_counter
"#;
    let gdb = vmm.gdb(&format!(
        "{show}monitor dump {file}\nmonitor dump {file}\nmonitor dump\ndetach\ncore-file {file}\ninfo threads\n{show}",
        file = file.display()
    ));
    gdb.expect(&[
        "a core: 2 vCPUs, ",
        "refused: ",
        "a core could not be created: File exists",
        "dump FILE: ",
        "detached",
    ]);
    for name in ["pc1", "sp1", "pc2", "rax2", "bsp", "ap"] {
        let values = gdb.values(name);
        assert_eq!(values.len(), 2, "{name}: {}", gdb.0);
        assert_eq!(values[0], values[1], "{name}: {}", gdb.0);
    }
    // The guest went on.
    vmm.assert_rises("ap_counter");
}

#[test]
fn a_core_file_is_private_and_a_place_that_cannot_be_written_is_named() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    let vmm = Setup::new(&CLOCKS)
        .with(&["--memory", "64M"])
        .paused()
        .start();
    let mut client = vmm.client();
    let file = vmm.directory().join("core");
    let said = client.monitor(&format!("dump {}", file.display())).unwrap();
    assert!(said.contains("1 vCPUs, 64 MiB of RAM"), "{said}");
    let data = std::fs::metadata(&file).unwrap();
    assert_eq!(data.permissions().mode() & 0o777, 0o600);
    assert!(data.len() > 64 << 20);
    // Memory that was never touched is a hole.
    assert!(data.blocks() * 512 < 32 << 20, "{}", data.blocks());
    for (place, why) in [
        (
            "/nowhere/core",
            "/nowhere/core could not be created: No such file",
        ),
        ("/proc/core", "/proc/core could not be created"),
        (
            vmm.directory().to_str().unwrap(),
            "could not be created: File exists",
        ),
    ] {
        let said = client.monitor(&format!("dump {place}")).unwrap();
        assert!(
            said.starts_with("refused: ") && said.contains(why),
            "{said}"
        );
    }
    // What is behind a link is not touched.
    let (link, target) = (vmm.directory().join("link"), vmm.directory().join("target"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let said = client.monitor(&format!("dump {}", link.display())).unwrap();
    assert!(said.contains("File exists"), "{said}");
    assert!(!target.exists());
}

#[test]
fn statistics_are_logged_when_a_debugger_ends_the_guest_too() {
    let mut vmm = Setup::new(&CLOCKS).with(&["--stats"]).paused().start();
    let mut client = vmm.client();
    for _ in 0..3 {
        client.request("vCont;s:1").unwrap();
    }
    client.send("k").unwrap();
    assert_eq!(vmm.wait(), 0);
    let log = vmm.log();
    assert_eq!(log.matches("vcpu0: ").count(), 1, "{log}");
    assert!(
        !log.contains(", 0 of them to step one instruction"),
        "{log}"
    );
}

/// As LLDB asks.
#[test]
fn memory_regions_have_the_rights_of_the_guests_page_tables() {
    let vmm = clocks(common::KERNEL);
    let mut client = vmm.client();
    let at = vmm.symbol("iterations");
    let region = client
        .request(&format!("qMemoryRegionInfo:{at:x}"))
        .unwrap();
    assert!(region.starts_with("start:0;size:"), "{region}");
    assert!(region.ends_with(";permissions:rwx;"), "{region}");
    let hole = client.request("qMemoryRegionInfo:800000000000").unwrap();
    assert!(!hole.contains("permissions"), "{hole}");
}

/// Every user of the host can connect to a TCP port.
#[test]
fn over_tcp_no_core_file_is_written() {
    let vmm = Setup::new(&CLOCKS)
        .without_gdb()
        .with(&["--gdb", "tcp:127.0.0.1:0"])
        .start();
    eventually("the stub listens", || {
        vmm.log().contains("waiting for a debugger")
    });
    let log = vmm.log();
    let (_, rest) = log.split_once("address=tcp:").expect(&log);
    let address = rest.split_whitespace().next().unwrap();
    let file = vmm.directory().join("core");
    let gdb = vmm.gdb_at(address, &format!("monitor dump {}", file.display()));
    gdb.expect(&["refused: ", "use --gdb unix:PATH"]);
    assert!(!file.exists());
}

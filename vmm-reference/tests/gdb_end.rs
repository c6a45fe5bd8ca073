//! The end of a guest, as gdb and as a shell see it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use common::{Chips, Setup};
use vmm_reference::guests::FAULT;

with_all_chips! {
    gdb_sees_a_triple_fault_and_may_look_at_the_guest,
    a_triple_fault_is_reported_again_rather_than_run_past,
    gdb_sees_an_emulation_failure,
    a_debugger_may_move_a_guest_past_what_kvm_cannot_emulate,
    gdb_sees_the_guests_exit,
    a_power_off_in_a_step_is_reported_too,
    a_client_that_does_not_read_does_not_keep_an_ended_machine,
    a_client_that_goes_on_sending_does_not_keep_an_ended_machine,
}

fn fault(cmdline: &str) -> Setup {
    Setup::new(&FAULT).with(&["--testdev", "--cmdline", cmdline])
}

#[test]
fn without_a_debugger_a_failure_is_explained() {
    let mut vmm = fault("triple").without_gdb().start();
    assert_eq!(vmm.wait(), 4);
    let log = vmm.log();
    assert!(log.contains("the guest failed"), "{log}");
    assert!(log.contains("vcpu0: triple fault at 0x"), "{log}");

    let mut vmm = fault("emulation").without_gdb().start();
    assert_eq!(vmm.wait(), 4);
    let log = vmm.log();
    assert!(log.contains("the guest failed"), "{log}");
    assert!(log.contains("KVM_EXIT_INTERNAL_ERROR"), "{log}");
    assert!(log.contains("at 0xd0000000"), "{log}");
}

fn gdb_sees_a_triple_fault_and_may_look_at_the_guest(chips: Chips) {
    let mut vmm = fault("triple").with(chips).paused().start();
    let gdb = vmm.gdb("monitor caps\ncontinue\nx/2xb $pc\ninfo registers cr3\nbt");
    gdb.expect(&[
        "triple fault at 0x",
        "Program received signal SIGSEGV",
        "cr3",
    ]);
    if gdb.0.contains("host kvm_amd") {
        // AMD's processors leave the guest's state undefined at a shutdown (APM 2, 15.14.3), so
        // KVM resets the vCPU before it reports the shutdown (svm.c, shutdown_interception).
        gdb.expect(&["SIGSEGV", "0x00000000fffffff0 in ?? ()"]);
    } else {
        // UD2.
        gdb.expect(&["SIGSEGV", ":\t0x0f\t0x0b", "cr3", "in start64 ()"]);
    }
    // gdb has gone, and the guest has ended.
    assert_eq!(vmm.wait(), 4);
    assert!(vmm.log().contains("triple fault"), "{}", vmm.log());
}

fn a_triple_fault_is_reported_again_rather_than_run_past(chips: Chips) {
    let vmm = fault("triple").with(chips).paused().start();
    let mut client = vmm.client();
    for packet in ["vCont;c", "vCont;c", "vCont;s:1"] {
        let stop = client.request(packet).unwrap();
        assert!(stop.starts_with("T0b"), "{packet}: {stop}");
    }
}

fn gdb_sees_an_emulation_failure(chips: Chips) {
    let mut vmm = fault("emulation").with(chips).paused().start();
    let gdb = vmm.gdb("continue\nprintf \"pc=%#lx\\n\", $pc");
    gdb.expect(&["KVM_EXIT_INTERNAL_ERROR", "Program received signal SIGILL"]);
    assert_eq!(gdb.value("pc"), 0xd000_0000);
    assert_eq!(vmm.wait(), 4);
}

fn a_debugger_may_move_a_guest_past_what_kvm_cannot_emulate(chips: Chips) {
    let mut vmm = fault("emulation").with(chips).paused().start();
    vmm.gdb("continue\nset var $pc = do_poweroff\ncontinue")
        .expect(&["SIGILL", "exited normally"]);
    assert_eq!(vmm.wait(), 0);
}

fn gdb_sees_the_guests_exit(chips: Chips) {
    for (cmdline, said, status) in [
        ("poweroff", "exited normally", 0),
        ("reset", "exited normally", 0),
        ("exit=5", "exited with code 013", 11),
    ] {
        let mut vmm = fault(cmdline).with(chips).paused().start();
        vmm.gdb("continue").expect(&[said]);
        assert_eq!(vmm.wait(), status, "{cmdline}");
        assert!(!vmm.socket.exists());
    }
}

fn a_power_off_in_a_step_is_reported_too(chips: Chips) {
    let mut vmm = fault("poweroff").with(chips).paused().start();
    let gdb = vmm.gdb(
        r#"
thbreak do_poweroff
continue
stepi
stepi
stepi
"#,
    );
    gdb.expect(&["exited normally"]);
    assert_eq!(vmm.wait(), 0);
}

#[test]
fn a_guest_that_ends_before_anybody_attaches_ends_the_machine() {
    let mut vmm = fault("triple").start();
    assert_eq!(vmm.wait(), 4);
    assert!(!vmm.socket.exists());
}

fn a_client_that_does_not_read_does_not_keep_an_ended_machine(chips: Chips) {
    let mut vmm = fault("poweroff").with(chips).paused().start();
    let mut client = vmm.connect();
    client.send(common::raw::frame("vCont;c"));
    // It neither reads nor hangs up.
    assert_eq!(vmm.wait(), 0);
    drop(client);
}

fn a_client_that_goes_on_sending_does_not_keep_an_ended_machine(chips: Chips) {
    let mut vmm = fault("poweroff").with(chips).paused().start();
    let mut client = vmm.connect();
    client.send(common::raw::frame("qC"));
    client.until("$QC1#c5");
    let pid = libc::pid_t::try_from(vmm.pid()).unwrap();
    // SAFETY: `kill` touches no memory, and the child has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let begun = std::time::Instant::now();
    // More often than the VMM waits for a client that is silent.
    while vmm.is_alive() {
        assert!(
            begun.elapsed() < common::PATIENCE / 8,
            "the client keeps it alive"
        );
        client.try_send(common::raw::frame("qC"));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(vmm.wait(), 128 + libc::SIGTERM);
}

/// 112 KB of them: without a budget the loop works on them for minutes.
#[test]
fn checksums_that_a_client_sends_at_once_do_not_delay_a_signal_or_the_next_client() {
    let mut vmm = Setup::new(&vmm_reference::guests::TIMER).start();
    let request = common::raw::frame("qCRC:100000,7000000");
    let flood = request.repeat((112 << 10) / request.len());
    {
        let mut client = vmm.connect();
        client.try_send(&flood);
        // Then it goes, and what it has sent with it.
    }
    let begun = std::time::Instant::now();
    vmm.assert_rises("ticks");
    let mut client = vmm.connect();
    client.try_send(&flood);
    // One of them is being served.
    client.until("+");
    let pid = libc::pid_t::try_from(vmm.pid()).unwrap();
    // SAFETY: `kill` touches no memory, and the child has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let signalled = std::time::Instant::now();
    assert_eq!(vmm.wait(), 128 + libc::SIGTERM);
    assert!(
        signalled.elapsed().as_secs() < 2,
        "{:?}",
        signalled.elapsed()
    );
    assert!(
        begun.elapsed() < common::PATIENCE / 8,
        "{:?}",
        begun.elapsed()
    );
}

//! The address of the debugger's socket, and the addresses that are refused.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use common::{Setup, Vmm};
use vmm_reference::guests::TIMER;
use vmm_reference::remote::RemoteClient;

/// Starts a second machine with this address: it must refuse at once.
#[track_caller]
fn assert_refused(first: &Vmm, address: &str, message: &str) {
    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_vmm-reference"))
        .args(["run", "--serial", "none", "--gdb", address, "--kernel"])
        .arg(&first.elf)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(message), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// The port that the system chose for `tcp:…:0`.
fn port(vmm: &Vmm) -> u16 {
    let log = vmm.log();
    let address = log.split("address=tcp:").nth(1).expect(&log);
    let address = address.split_whitespace().next().unwrap();
    address.rsplit(':').next().unwrap().parse().expect(address)
}

#[test]
fn a_path_in_use_is_refused_and_its_owner_is_not_disturbed() {
    let first = Setup::new(&TIMER).start();
    let mut client = first.client();
    let address = format!("unix:{}", first.socket.display());
    assert_refused(&first, &address, "is in use");
    assert_eq!(client.request("qAttached").unwrap(), "1");
    drop(client);
    first.assert_rises("ticks");
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let first = Setup::new(&TIMER).start();
    let precious = first.directory().join("precious");
    fs::write(&precious, "data").unwrap();
    let address = format!("unix:{}", precious.display());
    assert_refused(&first, &address, "is no socket");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "data");
}

#[test]
fn a_socket_that_a_killed_machine_left_behind_is_replaced() {
    let first = Setup::new(&TIMER).start();
    let left = first.directory().join("left");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    assert!(left.exists());
    let second = Setup::new(&TIMER)
        .with(&["--gdb", &format!("unix:{}", left.display())])
        .without_gdb()
        .start();
    common::eventually("it listens", || {
        second.log().contains("waiting for a debugger")
    });
    assert!(RemoteClient::unix(&left).is_ok());
}

#[test]
fn the_socket_is_its_owners_alone() {
    let vmm = Setup::new(&TIMER).start();
    let mode = fs::metadata(&vmm.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn addresses_beyond_this_machine_are_refused_without_leave_and_warned_of_with_it() {
    let first = Setup::new(&TIMER).start();
    assert_refused(&first, "tcp:0.0.0.0:0", "is not a loopback address");
    assert_refused(&first, "tcp:[::]:0", "is not a loopback address");
    let second = Setup::new(&TIMER)
        .with(&["--gdb", "tcp:0.0.0.0:0", "--gdb-allow-remote"])
        .without_gdb()
        .start();
    common::eventually("it listens", || {
        second.log().contains("waiting for a debugger")
    });
    second.assert_logs("WARN");
    second.assert_logs("every client that can connect controls the guest");
}

#[test]
fn a_port_in_use_is_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = Setup::new(&TIMER).start();
    let address = format!("tcp:{}", taken.local_addr().unwrap());
    assert_refused(&first, &address, "is in use");
}

#[test]
fn gdb_debugs_over_loopback_tcp_too() {
    let vmm = Setup::new(&TIMER)
        .with(&["--gdb", "tcp:127.0.0.1:0"])
        .without_gdb()
        .start();
    common::eventually("it listens", || {
        vmm.log().contains("waiting for a debugger")
    });
    let port = port(&vmm);
    let mut client = RemoteClient::tcp(port).unwrap();
    assert!(client.request("vCont;s:1").unwrap().starts_with("T05"));
    assert_eq!(client.request("D").unwrap(), "OK");
    let gdb = vmm.gdb_at(
        &format!("127.0.0.1:{port}"),
        "hbreak *loop_start\ncontinue\nstepi\nprintf \"pc=%#lx\\n\", $pc\nkill",
    );
    assert_eq!(gdb.value("pc"), vmm.symbol("loop_start") + 7);
    let mut vmm = vmm;
    assert_eq!(vmm.wait(), 0);
}

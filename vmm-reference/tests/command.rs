//! The command as a shell sees it: output, messages and exit statuses.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use vmm_reference::guests::{FAULT, RESET, SMP, TIMER};

const PATIENCE: Duration = Duration::from_secs(30);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-reference"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn guest_file(directory: &tempfile::TempDir, guest: vmm_reference::guests::Guest) -> PathBuf {
    guest.write_to(directory.path()).unwrap()
}

/// Waits for some output, and panics after a time limit.
fn read_until(out: &mut impl Read, wanted: &str) -> String {
    let start = Instant::now();
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains(wanted) {
        assert!(start.elapsed() < PATIENCE, "{seen:?}");
        assert_eq!(out.read(&mut byte).unwrap(), 1, "ended after {seen:?}");
        seen.push(char::from(byte[0]));
    }
    seen
}

#[test]
fn a_guests_end_is_the_exit_status() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, FAULT);
    let kernel = kernel.to_str().unwrap();
    for (cmdline, status, message) in [
        ("poweroff", 0, ""),
        ("reset", 0, ""),
        ("exit=5", 11, ""),
        ("triple", 4, "triple fault"),
        ("emulation", 4, "0xd0000000"),
    ] {
        let output = output(&["run", "--kernel", kernel, "--cmdline", cmdline, "--testdev"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{cmdline}: {stderr}");
        assert_eq!(output.stdout, b"fault guest\n", "{cmdline}");
        assert_eq!(stderr.is_empty(), message.is_empty(), "{cmdline}: {stderr}");
        assert!(stderr.contains(message), "{cmdline}: {stderr}");
    }
}

#[test]
fn with_testdev_a_processor_comes_back_from_each_reset_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, RESET);
    let kernel = kernel.to_str().unwrap();
    for irqchip in ["kernel", "split", "user"] {
        for cpus in ["1", "2"] {
            let machine = ["--irqchip", irqchip, "--cpus", cpus, "--testdev"];
            let output = output(&[&["run", "--kernel", kernel][..], &machine].concat());
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(2 * 5 + 1),
                "{machine:?}: {stderr}"
            );
            assert_eq!(output.stdout, b"reset guest\n".repeat(6), "{machine:?}");
        }
    }
    // Without --testdev the first reset ends it.
    let output = output(&["run", "--kernel", kernel]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"reset guest\n");
}

#[test]
fn without_testdev_there_is_no_debug_exit() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, FAULT);
    // An unknown command tries the debug exit first, and then gives up by a triple fault.
    let output = output(&[
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--cmdline",
        "?",
    ]);
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn what_cannot_be_used_is_named_with_status_2() {
    let directory = tempfile::tempdir().unwrap();
    let timer = guest_file(&directory, TIMER);
    let timer = timer.to_str().unwrap();
    let empty = directory.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    let empty = empty.to_str().unwrap();
    let cut = directory.path().join("cut");
    std::fs::write(&cut, &TIMER.elf[..1000]).unwrap();
    let cut = cut.to_str().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, b"#!/bin/sh\nexit 0\n").unwrap();
    let script = script.to_str().unwrap();
    let occupied = format!("unix:{empty}");
    for (arguments, message) in [
        (&["run"][..], "--kernel"),
        (&["run", "--kernel", "/no/such/file"], "/no/such/file"),
        (&["run", "--kernel", empty], "the file is empty"),
        (&["run", "--kernel", cut], "truncated"),
        (&["run", "--kernel", script], "not a kernel"),
        (&["run", "--kernel", timer, "--initrd", empty], "initrd"),
        (&["run", "--kernel", timer, "--memory", "1K"], "2M to 1T"),
        (
            &["run", "--kernel", timer, "--memory", "4E"],
            "for instance 512M",
        ),
        (&["run", "--kernel", timer, "--cpus", "0"], "--cpus"),
        (
            &["run", "--kernel", timer, "--irqchip", "ours"],
            "[possible values: kernel, split, user]",
        ),
        (&["run", "--kernel", timer, "--no-host-mask"], "--gdb"),
        (
            &["run", "--kernel", timer, "--gdb", "tcp:0.0.0.0:1"],
            "loopback",
        ),
        (&["run", "--kernel", timer, "--gdb", &occupied], "no socket"),
        (&["run", "--kernel", timer, "--gdb-pause"], "--gdb"),
        (
            &["run", "--kernel", timer, "--serial", "file:/no/such/dir/x"],
            "/no/such/dir/x",
        ),
        (&["fly"], "fly"),
    ] {
        let output = output(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_guest_hears_standard_input_and_a_signal_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, FAULT);
    let mut child = command(&[
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--cmdline",
        "echo",
    ])
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    read_until(&mut stdout, "fault guest\n");
    let sent = "The quick brown fox jumps over the lazy dog. ".repeat(20);
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(sent.as_bytes())
        .unwrap();
    assert_eq!(read_until(&mut stdout, &sent), sent);
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the child has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

/// A pipe that holds one page, so it is full soon.
fn small_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: F_SETPIPE_SZ takes a number, and the descriptor is open.
    let size = unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert!(size >= 4096);
    (reader, writer)
}

fn signal(child: &std::process::Child, number: i32) {
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the child has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0);
}

#[test]
fn a_signal_ends_it_in_a_second_under_a_standard_output_that_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, FAULT);
    let (mut reader, writer) = small_pipe();
    let mut child = command(&[
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--cmdline",
        "echo",
    ])
    .stdin(Stdio::piped())
    .stdout(writer)
    // It says what is lost, in the middle of the test's own line.
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    read_until(&mut reader, "fault guest\n");
    // More than all buffers hold: the guest's transmitter gets busy, and input stops.
    let mut stdin = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || while stdin.write_all(&[b'x'; 4096]).is_ok() {});
    let mut before = 0;
    // The input stops as soon as nothing moves any more.
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let io = std::fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
        let read: u64 = io
            .lines()
            .find_map(|line| line.strip_prefix("rchar: "))
            .unwrap()
            .parse()
            .unwrap();
        if read == before {
            break;
        }
        before = read;
        // The buffers on the way hold less. Time says nothing: a byte takes an emulated processor a millisecond.
        assert!(read < 1 << 20, "it reads on and on");
    }
    let begun = Instant::now();
    signal(&child, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    feeder.join().unwrap();
    drop(reader);
}

#[test]
fn all_output_arrives_at_a_reader_that_begins_late() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, FAULT);
    let kernel = kernel.to_str().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut child = command(&["run", "--kernel", kernel, "--cmdline", "poweroff"])
        .stdout(writer)
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    assert_eq!(output, "fault guest\n");
}

#[test]
fn a_halted_guest_ends_by_a_signal_too() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, FAULT);
    let mut child = command(&[
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--cmdline",
        "halt",
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    read_until(child.stdout.as_mut().unwrap(), "fault guest\n");
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the child has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 2));
}

#[test]
fn a_second_processor_starts() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, SMP);
    let mut child = command(&["run", "--kernel", kernel.to_str().unwrap(), "--cpus", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    read_until(child.stdout.as_mut().unwrap(), "smp guest\nsecond cpu\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn caps_prints_every_ability_as_text_and_as_data() {
    let text = output(&["caps"]);
    assert!(text.status.success());
    let text = String::from_utf8(text.stdout).unwrap();
    let data = output(&["caps", "--json"]);
    assert!(data.status.success());
    let data: serde_json::Value = serde_json::from_slice(&data.stdout).unwrap();
    let entries = data["plan"]["entries"].as_array().unwrap();
    for capability in vcpu_caps::Capability::ALL {
        assert!(text.contains(capability.name()), "{capability}");
        assert!(
            entries
                .iter()
                .any(|entry| entry["capability"] == capability.name()),
            "{capability}"
        );
    }
}

#[test]
fn caps_without_verification_verifies_nothing() {
    let data = output(&["caps", "--json", "--no-verify"]);
    assert!(data.status.success());
    let text = String::from_utf8(data.stdout).unwrap();
    let data: serde_json::Value = serde_json::from_str(&text).unwrap();
    let entries = data["plan"]["entries"].as_array().unwrap();
    assert!(!entries.is_empty());
    for entry in entries {
        let evidence = entry["finding"]["evidence"].as_str().unwrap();
        assert!(["claimed", "absent"].contains(&evidence), "{entry}");
    }
}

/// The number before each thing that `--stats` counts, of one vCPU. The first is that of entries.
fn counts(stats: &str) -> Vec<(u64, &str)> {
    let counts = stats.lines().filter_map(|line| {
        let line = line.strip_prefix("vcpu0:").unwrap_or(line).trim_start();
        let (count, name) = line.split_once(' ')?;
        Some((count.parse().ok()?, name.trim_start()))
    });
    counts.collect()
}

#[test]
fn statistics_at_the_end_are_on_standard_error_and_count_every_exit() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, FAULT);
    let kernel = kernel.to_str().unwrap();
    for irqchip in ["kernel", "split", "user"] {
        for (cmdline, status) in [("poweroff", 0), ("triple", 4)] {
            let guest = ["--kernel", kernel, "--cmdline", cmdline];
            let options = ["--irqchip", irqchip, "--stats"];
            let output = output(&[&["run"][..], &guest, &options].concat());
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{stderr}");
            assert_eq!(output.stdout, b"fault guest\n");
            assert_eq!(stderr.matches(" entries (KVM_RUN)").count(), 1, "{stderr}");
            let counts = counts(&stderr);
            let count = |wanted: &str| {
                let found = counts.iter().find(|(_, name)| name.starts_with(wanted));
                found.map_or(0, |(count, _)| *count)
            };
            // A byte of its line is an access.
            assert!(count("KVM_EXIT_IO") >= 12, "{stderr}");
            assert_eq!(
                count("KVM_EXIT_SHUTDOWN"),
                u64::from(status == 4),
                "{stderr}"
            );
            let exits = counts[1..]
                .iter()
                .filter(|(_, name)| !name.starts_with("interrupts"));
            let exits: u64 = exits.map(|(count, _)| count).sum();
            assert_eq!(count("entries (KVM_RUN)"), exits, "{stderr}");
            let injected = "interrupts injected by the VMM";
            assert_eq!(stderr.contains(injected), irqchip == "user", "{stderr}");
        }
    }
}

#[test]
fn statistics_begin_again_with_each_reset() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = guest_file(&directory, FAULT);
    let kernel = kernel.to_str().unwrap();
    let guest = ["run", "--kernel", kernel, "--cmdline", "reset"];
    let mut child = command(&guest)
        .args(["--on-reset", "restart", "--stats"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let first = read_until(&mut stderr, "interrupts: ");
    let second = read_until(&mut stderr, "interrupts: ");
    signal(&child, libc::SIGKILL);
    child.wait().unwrap();
    let io = |text| {
        let counts = counts(text);
        let found = counts.iter().find(|(_, name)| *name == "KVM_EXIT_IO");
        found.map(|(count, _)| *count)
    };
    assert!(io(&first).is_some(), "{first}");
    assert_eq!(io(&first), io(&second), "{first}{second}");
}

#[test]
fn completions_and_the_manual_need_no_kvm_and_know_all_commands() {
    for (arguments, parts) in [
        (
            &["completions", "bash"][..],
            &["complete -F", "--gdb-pause", "demo"][..],
        ),
        (
            &["completions", "fish"],
            &["complete -c vmm-reference", "gdb-pause", "demo"],
        ),
        (
            &["completions", "zsh"],
            &["#compdef vmm-reference", "--gdb-pause", "demo"],
        ),
        (
            &["man"],
            &[
                ".TH vmm-reference 1",
                ".TH vmm-reference-run 1",
                "Examples:",
            ],
        ),
    ] {
        let output = output(arguments);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let text = String::from_utf8(output.stdout).unwrap();
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: {part}");
        }
    }
    assert_eq!(output(&["completions", "csh"]).status.code(), Some(2));
}

/// Whoever meets the command first reads this.
#[test]
fn the_help_of_run_has_examples_that_are_valid() {
    use clap::Parser;

    for long in ["--help", "-h"] {
        let help = String::from_utf8(output(&["run", long]).stdout).unwrap();
        let (_, examples) = help.split_once("Examples:").expect(&help);
        let commands: Vec<&str> = examples
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("vmm-reference "))
            .collect();
        assert!(commands.len() >= 4, "{help}");
        for command in commands {
            let parsed = vmm_reference::cli::Cli::try_parse_from(command.split_whitespace());
            assert!(parsed.is_ok(), "{command}: {parsed:?}");
        }
    }
}

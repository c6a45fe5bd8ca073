//! What is left of the process: nothing, or for its user alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Duration;

use vmm_reference::guests::{FAULT, TIMER};

use crate::common::{eventually, rounds};
use crate::process::Run;

#[test]
fn a_signal_during_the_start_leaves_no_socket_behind() {
    for round in 0..rounds(12) {
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
            let mut process = Run::new(TIMER, &[]).with_gdb().start();
            let socket = process.run.socket();
            eventually("the socket", || socket.exists());
            thread::sleep(Duration::from_millis(3) * u32::try_from(round).unwrap());
            process.signal(signal);
            let status = process.wait();
            assert!(
                status.signal() == Some(signal) || status.code() == Some(128 + signal),
                "{status}"
            );
            assert!(!socket.exists(), "round {round}, signal {signal}");
        }
    }
}

#[test]
fn a_signal_that_ends_it_at_once_leaves_no_socket_behind() {
    for signal in [
        libc::SIGQUIT,
        libc::SIGABRT,
        libc::SIGUSR2,
        libc::SIGXCPU,
        libc::SIGRTMIN() + 3,
    ] {
        let mut process = Run::new(TIMER, &[]).with_gdb().start();
        process.until_it_runs();
        assert!(process.run.socket().exists());
        process.signal(signal);
        assert_eq!(process.wait().signal(), Some(signal));
        assert!(!process.run.socket().exists(), "signal {signal}");
    }
}

#[test]
fn a_socket_of_another_process_is_left_alone() {
    let mut process = Run::new(TIMER, &[]).with_gdb().start();
    process.until_it_runs();
    let socket = process.run.socket();
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "another's").unwrap();
    process.signal(libc::SIGQUIT);
    process.wait();
    assert_eq!(fs::read_to_string(&socket).unwrap(), "another's");
}

#[test]
fn files_of_the_guests_output_are_for_this_user_alone() {
    let run = Run::new(FAULT, &["--cmdline", "poweroff"]);
    let serial = run.socket().with_file_name("serial");
    let console = run.socket().with_file_name("console");
    let mut run = run;
    run.command
        .arg(format!("--serial=file:{}", serial.display()))
        .arg(format!("--debugcon=file:{}", console.display()));
    let mut process = run.start();
    assert_eq!(process.wait().code(), Some(0));
    for file in [serial, console] {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
}

/// Looks at the mappings of the guest's memory, which nothing else is as large as. `dd`: not in core dumps
/// (proc(5), VmFlags).
#[test]
fn the_guests_memory_is_in_no_core_dump_unless_asked_for() {
    for (option, kept_out) in [(None, true), (Some("--dump-guest-memory"), false)] {
        let mut run = Run::new(TIMER, &["--memory", "4G"]);
        run.command.args(option);
        let mut process = run.start();
        process.until_it_runs();
        let maps = fs::read_to_string(format!("/proc/{}/smaps", process.pid())).unwrap();
        let mut sizes = Vec::new();
        let mut size = 0;
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("Size:") => size = words.next().unwrap().parse::<u64>().unwrap() << 10,
                Some("VmFlags:") if size >= 1 << 30 => {
                    sizes.push(size);
                    assert_eq!(words.any(|flag| flag == "dd"), kept_out, "{size}: {line}");
                }
                _ => {}
            }
        }
        // Below and above the hole. The kernel merges a mapping with its neighbours.
        assert!(sizes.iter().sum::<u64>() >= 4 << 30, "{sizes:?}");
    }
}

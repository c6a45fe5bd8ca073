//! Standard error and the serial output: nothing floods them, and nothing waits for them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;

use vmm_reference::guests::{FAULT, TIMER};

use crate::common::eventually;
use crate::common::raw::{Raw, frame};
use crate::process::{Run, full_pipe};

/// Sends a megabyte of packets whose checksums are wrong, and then one that is right.
fn flood(stream: UnixStream) {
    let mut replies = stream.try_clone().unwrap();
    let reads = thread::spawn(move || {
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !seen.ends_with(b"$QC1#c5") {
            let count = replies.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "it hung up");
            seen.extend_from_slice(&buffer[..count]);
        }
    });
    let mut client = Raw::new(stream);
    let packet = b"$m0,8#00";
    client.send(packet.repeat((1 << 20) / packet.len()));
    client.send(frame("qC"));
    reads.join().expect("the last packet has its reply");
}

fn connected(socket: &std::path::Path) -> UnixStream {
    let mut stream = None;
    eventually("it listens", || {
        stream = UnixStream::connect(socket).ok();
        stream.is_some()
    });
    stream.unwrap()
}

#[test]
fn a_megabyte_of_junk_is_a_few_lines_of_log_that_say_how_many_are_left_out() {
    let mut run = Run::new(TIMER, &[]).with_gdb();
    let log = run.socket().with_file_name("log");
    run.command.stderr(File::create(&log).unwrap());
    let mut process = run.start();
    process.until_it_runs();
    flood(connected(&process.run.socket()));
    process.signal(libc::SIGTERM);
    assert_eq!(process.wait().code(), Some(128 + libc::SIGTERM));
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.len() < 64 << 10, "{} bytes", log.len());
    assert!(log.contains("wrong checksum"), "{log}");
    assert!(log.contains("left out"), "{log}");
}

#[test]
fn a_standard_error_that_nobody_reads_holds_nothing_up() {
    let (reader, writer) = full_pipe();
    let mut run = Run::new(TIMER, &[]).with_gdb();
    run.command.env("RUST_LOG", "debug").stderr(writer);
    let mut process = run.start();
    process.until_it_runs();
    flood(connected(&process.run.socket()));
    process.signal(libc::SIGTERM);
    assert_eq!(process.wait().code(), Some(128 + libc::SIGTERM));
    drop(reader);
}

#[test]
fn a_full_disk_under_the_serial_output_is_said_once_and_what_is_lost_is_counted() {
    let mut run = Run::new(FAULT, &["--cmdline", "echo", "--serial", "stdio"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (reader, mut stdin) = std::io::pipe().unwrap();
    // SAFETY: F_SETPIPE_SZ takes a number, and the descriptor is open.
    let size = unsafe { libc::fcntl(stdin.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(size, 4096);
    run.command
        .stdout(full)
        .stdin(reader)
        .stderr(Stdio::piped());
    let mut process = run.start();
    process.until_it_runs();
    // The guest has taken all but the last that the pipe holds.
    stdin.write_all(&[b'x'; 3 * 4096]).unwrap();
    process.signal(libc::SIGTERM);
    assert_eq!(process.wait().code(), Some(128 + libc::SIGTERM));
    let mut log = String::new();
    let mut stderr = process.child.stderr.take().unwrap();
    stderr.read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("cannot be written").count(), 1, "{log}");
    assert!(log.contains("No space left on device"), "{log}");
    let refused = log.split("refused=").nth(1).expect(&log);
    let refused: u64 = refused.split_whitespace().next().unwrap().parse().unwrap();
    assert!(refused > 4096, "{log}");
}

//! The examples that are VMMs, each run as a process and debugged over its socket. Needs `/dev/kvm`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is the world around the core, and it stops where what must hold does not"
)]

use std::env;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
/// The guests' loop, of two instructions.
const LOOP: Range<u64> = 0x1000..0x1004;
/// RIP in a stop reply, in QEMU's order of the registers.
const RIP: &str = "10";

/// Builds an example and returns its path. `cargo test --all-targets` does not do that: it builds the
/// tests that are in an example.
fn build(example: &str) -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--all-features", "--example", example])
        .args(["--message-format", "json", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "cargo build: {errors}");
    let messages = String::from_utf8(built.stdout).unwrap();
    let mut executables = messages
        .lines()
        .filter_map(|line| line.split_once(r#""executable":""#));
    let (_, path) = executables
        .next_back()
        .expect("cargo names what it has built");
    PathBuf::from(path.split('"').next().unwrap())
}

/// A running example.
struct Vmm {
    child: Child,
    directory: tempfile::TempDir,
}

impl Vmm {
    fn start(example: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix:{}", directory.path().join("gdb").display());
        let child = Command::new(build(example)).arg(address).spawn().unwrap();
        Self { child, directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("gdb")
    }

    /// Waits for its end.
    fn exit(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "the VMM does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It has ended, unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the remote protocol.
struct Client {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Client {
    fn connect(socket: &Path) -> Self {
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            stream,
            received: Vec::new(),
        };
        assert_eq!(client.ask("QStartNoAckMode"), "OK");
        client.bytes(b"+");
        client
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn send(&mut self, body: &str) {
        let sum = body.bytes().fold(0_u8, u8::wrapping_add);
        self.bytes(format!("${body}#{sum:02x}").as_bytes());
    }

    /// The next packet that is no text for the user's console.
    fn receive(&mut self) -> String {
        loop {
            let packet = self.packet();
            if packet == "OK" || !packet.starts_with('O') {
                return packet;
            }
        }
    }

    fn packet(&mut self) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.received).into_owned();
            if let Some((packet, rest)) = text.split_once('#').filter(|(_, sum)| sum.len() >= 2) {
                self.received = rest.as_bytes().get(2..).unwrap().to_vec();
                return packet.trim_start_matches('+').replacen('$', "", 1);
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the VMM has hung up after {text:?}");
            self.received.extend(buffer.iter().take(count));
        }
    }

    fn ask(&mut self, body: &str) -> String {
        self.send(body);
        self.receive()
    }

    fn monitor(&mut self, command: &str) {
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        let reply = self.ask(&format!("qRcmd,{hex}"));
        assert_eq!(reply, "OK", "monitor {command}");
    }

    /// RIP of vCPU 0 after a step of it.
    #[track_caller]
    fn step(&mut self) -> u64 {
        let reply = self.ask("vCont;s:1");
        assert!(reply.starts_with("T05"), "{reply}");
        rip(&reply)
    }

    /// Lets the guest run, until a vCPU is at the start of its loop. Then steps vCPU 0 into the loop.
    #[track_caller]
    fn run_to_loop(&mut self) {
        let point = format!("0,{:x},1", LOOP.start);
        assert_eq!(self.ask(&format!("Z{point}")), "OK");
        let reply = self.ask("vCont;c");
        assert!(reply.starts_with("T05"), "{reply}");
        assert_eq!(rip(&reply), LOOP.start);
        assert_eq!(self.ask(&format!("z{point}")), "OK");
        // It may be in the timer's handler, or before the loop yet.
        assert!((0..60).any(|_| LOOP.contains(&self.step())));
    }

    /// The VMM has nothing more to say.
    fn assert_is_hung_up_on(mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            Ok(_) => assert_eq!(String::from_utf8_lossy(&rest), ""),
        }
    }
}

fn rip(reply: &str) -> u64 {
    let mut registers = reply.get(3..).unwrap().split(';');
    let value = registers.find_map(|pair| pair.strip_prefix(RIP)?.strip_prefix(':'));
    u64::from_str_radix(value.expect("RIP is in the stop reply"), 16)
        .unwrap()
        .swap_bytes()
}

fn assert_can_be_debugged(example: &str) {
    let mut vmm = Vmm::start(example);
    let mut client = Client::connect(&vmm.socket());
    assert!(client.ask("?").starts_with('T'));
    client.run_to_loop();

    // Ticks are due at each of these steps.
    let landings = |client: &mut Client| {
        let outside = |_: &u32| {
            thread::sleep(Duration::from_millis(2));
            !LOOP.contains(&client.step())
        };
        (0..50).filter(outside).count()
    };
    assert_eq!(landings(&mut client), 0, "masked");
    client.monitor("mask off");
    assert_ne!(landings(&mut client), 0, "not masked");
    client.monitor("mask on");
    client.run_to_loop();

    // No kick is lost, whatever the vCPU does at that time.
    for round in 0..50 {
        client.send("vCont;c");
        thread::sleep(Duration::from_micros(round * 100));
        client.bytes(&[3]);
        let reply = client.receive();
        assert!(reply.starts_with("T02"), "{reply}");
    }
    assert_eq!(client.ask("D"), "OK");
    client.assert_is_hung_up_on();

    let mut client = Client::connect(&vmm.socket());
    assert!(client.ask("?").starts_with('T'));
    client.run_to_loop();
    assert_eq!(client.ask("vKill;1"), "OK");
    client.assert_is_hung_up_on();
    assert!(vmm.exit().success());
    assert!(!vmm.socket().exists(), "the socket stays behind");
}

#[test]
fn own_loop_can_be_debugged() {
    assert_can_be_debugged("own_loop");
}

#[test]
fn own_chips_can_be_debugged() {
    assert_can_be_debugged("own_chips");
}

/// The first Rust code of the README is in the example, but for its indentation.
#[test]
fn the_readme_shows_what_the_example_does() {
    fn lines(text: &str) -> String {
        text.lines()
            .map(|line| line.trim().to_owned() + "\n")
            .collect()
    }
    let (_, code) = include_str!("../README.md").split_once("```rust").unwrap();
    let (_, code) = code.split_once('\n').unwrap();
    let (code, _) = code.split_once("```").unwrap();
    assert!(code.lines().count() > 10);
    assert!(lines(include_str!("../examples/own_loop.rs")).contains(&lines(code)));
}

//! The time from the start of the process to the guest's first byte on the serial port.
//!
//! `cargo bench -p vmm-reference --bench startup` starts the candidates alternately, so a machine whose
//! speed drifts slows all of them, and prints medians. QEMU's row needs qemu-system-x86.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench stops where something is missing"
)]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vmm_reference::guests::TIMER;

const ROUNDS: usize = 21;

/// Something that boots the guest with its serial port on standard output.
struct Candidate {
    name: &'static str,
    command: Box<dyn Fn() -> Command>,
    times: Vec<Duration>,
}

impl Candidate {
    fn new(name: &'static str, command: impl Fn() -> Command + 'static) -> Self {
        Self {
            name,
            command: Box::new(command),
            times: Vec::new(),
        }
    }

    /// One start. `None` if the program cannot be started, or says nothing.
    fn start(&self) -> Option<Duration> {
        let mut command = (self.command)();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let start = Instant::now();
        let mut child = command.spawn().ok()?;
        let mut first = [0];
        let read = child.stdout.take()?.read_exact(&mut first);
        let time = start.elapsed();
        child.kill().unwrap();
        child.wait().unwrap();
        read.ok()?;
        assert_eq!(first, *b"t", "of \"timer guest\"");
        Some(time)
    }

    fn report(&mut self) {
        self.times.sort_unstable();
        let ms = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
        println!(
            "{:<34} {:>8.2} {:>8.2} {:>8.2}",
            self.name,
            ms(self.times.get(self.times.len() / 2)),
            ms(self.times.first()),
            ms(self.times.last()),
        );
    }
}

fn ours(kernel: &Path, gdb: Option<&Path>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-reference"));
    command.args(["run", "--kernel"]).arg(kernel);
    if let Some(socket) = gdb {
        command
            .arg("--gdb")
            .arg(format!("unix:{}", socket.display()));
    }
    command
}

fn qemu(kernel: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-machine", "microvm", "-accel", "kvm"])
        .args(["-m", "128", "-nodefaults", "-no-user-config", "-nographic"])
        .args(["-serial", "stdio", "-kernel"])
        .arg(kernel);
    command
}

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = TIMER.write_to(directory.path()).unwrap();
    let socket = directory.path().join("gdb");
    let mut candidates = [
        Candidate::new("vmm-reference", {
            let kernel = kernel.clone();
            move || ours(&kernel, None)
        }),
        // A debugger's abilities are proven in a VM of their own first.
        Candidate::new("vmm-reference --gdb", {
            let kernel = kernel.clone();
            move || ours(&kernel, Some(&socket))
        }),
        Candidate::new("qemu-system-x86_64 -M microvm", move || qemu(&kernel)),
    ];
    for round in 0..=ROUNDS {
        for candidate in &mut candidates {
            let time = candidate.start();
            // The first round fills the page cache.
            if round > 0 {
                candidate.times.extend(time);
            }
        }
    }
    println!("process start to first serial byte, ms, {ROUNDS} rounds in turn");
    println!("{:<34} {:>8} {:>8} {:>8}", "", "median", "least", "most");
    for candidate in &mut candidates {
        if candidate.times.is_empty() {
            println!("{:<34} did not start", candidate.name);
        } else {
            candidate.report();
        }
    }
}

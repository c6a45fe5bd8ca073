//! Runs the real command with a real gdb. The harness ends its children, and shows their output when a test
//! fails.

#![allow(
    dead_code,
    unreachable_pub,
    unused_macros,
    reason = "each test file uses a part of it"
)]

pub mod gdb;
pub mod raw;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_reference::guests::Guest;
use vmm_reference::remote::RemoteClient;

/// Longer than anything here takes on a loaded machine: only a hang exceeds it.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Returns `full`, or TEST_PERCENT percent of it, but at least 1. The rigs set it for an emulated machine
/// that would need minutes for all rounds.
pub fn rounds(full: usize) -> usize {
    let percent = match std::env::var("TEST_PERCENT") {
        Ok(text) => text.parse().expect("TEST_PERCENT is a number"),
        Err(_) => 100,
    };
    assert!((1..=100).contains(&percent), "TEST_PERCENT is {percent}");
    (full * percent).div_ceil(100)
}

/// Waits for something that another process does.
#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Spawns a child that is killed when this thread ends, in any way.
pub fn spawn(command: &mut Command) -> std::io::Result<Child> {
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(die_with_parent) };
    command.spawn()
}

fn die_with_parent() -> std::io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal's number, and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Waits for a child's end; kills it after [`PATIENCE`], and returns `None`.
pub fn wait(child: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("a child can be killed");
    child.wait().expect("a killed child ends");
    None
}

/// The interrupt chips, for [`Setup::with`]: KVM's; emulated ones beside KVM's local APICs; all emulated,
/// on a host that cannot mask.
pub type Chips = &'static [&'static str];
pub const KERNEL: Chips = &["--irqchip", "kernel"];
pub const SPLIT: Chips = &["--irqchip", "split"];
pub const USER: Chips = &["--irqchip", "user", "--no-host-mask"];

/// Makes tests of functions of [`Chips`]: `kernel::…`, `split::…` and `user::…`.
macro_rules! with_all_chips {
    ($($test:ident),* $(,)?) => {
        with_all_chips!(mod kernel, KERNEL: $($test)*);
        with_all_chips!(mod split, SPLIT: $($test)*);
        with_all_chips!(mod user, USER: $($test)*);
    };
    (mod $module:ident, $chips:ident: $($test:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    super::$test(crate::common::$chips);
                }
            )*
        }
    };
}

/// How a machine is started.
pub struct Setup {
    guest: &'static Guest,
    arguments: Vec<String>,
    gdb: bool,
}

impl Setup {
    /// One vCPU, a socket for gdb, the serial port in a file.
    pub fn new(guest: &'static Guest) -> Self {
        Self {
            guest,
            arguments: Vec::new(),
            gdb: true,
        }
    }

    /// With the command line's further arguments.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Waits for the debugger before the first instruction.
    pub fn paused(self) -> Self {
        self.with(&["--gdb-pause"])
    }

    /// Without a socket for gdb.
    pub fn without_gdb(mut self) -> Self {
        self.gdb = false;
        self
    }

    /// Starts it, and waits until gdb may connect.
    pub fn start(self) -> Vmm {
        let directory = tempfile::tempdir().unwrap();
        let elf = self.guest.write_to(directory.path()).unwrap();
        let socket = directory.path().join("gdb");
        let log = directory.path().join("log");
        let serial = directory.path().join("serial");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-reference"));
        command
            .env("RUST_LOG", "info")
            .env("NO_COLOR", "1")
            .arg("run")
            .arg("--kernel")
            .arg(&elf)
            .arg("--serial")
            .arg(format!("file:{}", serial.display()));
        if self.gdb {
            command
                .arg("--gdb")
                .arg(format!("unix:{}", socket.display()));
        }
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let mut vmm = Vmm {
            child: spawn(&mut command).expect("the command starts"),
            status: None,
            guest: self.guest,
            directory,
            elf,
            socket,
            log,
            serial,
        };
        if self.gdb {
            // The path appears before the stub listens.
            eventually("the stub listens", || {
                vmm.log().contains("waiting for a debugger") || vmm.try_status().is_some()
            });
        }
        vmm
    }
}

/// A running machine. Dropping it ends it.
pub struct Vmm {
    child: Child,
    status: Option<ExitStatus>,
    pub guest: &'static Guest,
    directory: TempDir,
    pub elf: PathBuf,
    pub socket: PathBuf,
    log: PathBuf,
    serial: PathBuf,
}

impl Vmm {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A directory of this machine's own.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it wrote to its standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for this in what it writes to its standard error: a line may take a moment.
    #[track_caller]
    pub fn assert_logs(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            assert!(start.elapsed() < PATIENCE, "not logged: {text}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the guest wrote to its serial port so far.
    pub fn serial(&self) -> String {
        fs::read_to_string(&self.serial).unwrap_or_default()
    }

    /// A symbol of the guest.
    #[track_caller]
    pub fn symbol(&self, name: &str) -> u64 {
        self.guest.symbol(name).expect(name)
    }

    /// A client of the remote protocol, attached.
    ///
    /// It may have to connect again. While a concurrent test starts a process, that process has a copy of
    /// each descriptor until it executes, and an earlier client that was dropped here is still connected.
    #[track_caller]
    pub fn client(&self) -> RemoteClient<UnixStream> {
        let start = Instant::now();
        loop {
            match RemoteClient::unix(&self.socket) {
                Ok(client) => return client,
                Err(error) if start.elapsed() > PATIENCE => panic!("the stub replies: {error}"),
                // The client before may be there still: another test's fork has its descriptor until exec.
                Err(error) => match error.kind() {
                    ErrorKind::ResourceBusy
                    | ErrorKind::ConnectionReset
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof => thread::sleep(Duration::from_millis(1)),
                    _ => panic!("the stub replies: {error}"),
                },
            }
        }
    }

    /// A connection, with nothing sent.
    #[track_caller]
    pub fn connect(&self) -> raw::Raw {
        raw::Raw::new(UnixStream::connect(&self.socket).expect("the stub listens"))
    }

    /// Attaches, reads a 64-bit word, and detaches.
    #[track_caller]
    pub fn peek(&self, name: &str) -> u64 {
        let mut client = self.client();
        let value = client.read_u64(self.symbol(name)).expect(name);
        client.request("D").expect("detached");
        value
    }

    /// Asserts that the guest runs: one of its counters rises.
    #[track_caller]
    pub fn assert_rises(&self, name: &str) {
        let before = self.peek(name);
        eventually(name, || self.peek(name) > before);
    }

    fn try_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the VMM can be waited for");
        }
        self.status
    }

    /// Returns `true` if it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.try_status().is_none()
    }

    /// Waits for its end. Returns the exit status.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        if self.status.is_none() {
            self.status = wait(&mut self.child);
        }
        self.status
            .expect("the VMM ends")
            .code()
            .expect("the VMM ends by itself, not by a signal")
    }

    /// How many file descriptors and threads the process has when no client is there: a
    /// connection is closed shortly after its client has gone.
    pub fn resources(&self) -> Resources {
        let count = |what| {
            fs::read_dir(format!("/proc/{}/{what}", self.pid()))
                .expect("the VMM runs")
                .count()
        };
        let samples = (0..20).map(|_| {
            thread::sleep(Duration::from_millis(5));
            Resources {
                descriptors: count("fd"),
                threads: count("task"),
            }
        });
        samples.min().expect("there are samples")
    }

    /// Its resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.expect("VmRSS").parse::<u64>().unwrap() << 10
    }
}

/// What a process leaks if it leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resources {
    pub descriptors: usize,
    pub threads: usize,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It may have ended since then.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("--- the VMM's log ---\n{}", self.log());
            eprintln!("--- the guest's serial port ---\n{}", self.serial());
        }
    }
}

/// A sequence of numbers that looks random and is the same in each run (Marsaglia's xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

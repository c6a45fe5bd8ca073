//! The command, with descriptors and limits of a test's choice.

use std::fs;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use tempfile::TempDir;
use vmm_reference::guests::Guest;

use crate::common::{self, eventually, rounds};

/// Tests that measure run one after the other.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In how much time a signal ends the process: a second, and more where the processor is emulated.
pub(crate) fn soon() -> Duration {
    if rounds(100) == 100 {
        Duration::from_secs(1)
    } else {
        Duration::from_secs(20)
    }
}

/// `nohup` and a shell's `&` ignore them, also in what they start: such a process lets one that comes during its
/// start pass.
fn default_signals() -> std::io::Result<()> {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: it sets the default action, and touches no memory.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A command `run` for a guest.
pub(crate) struct Run {
    pub(crate) command: Command,
    directory: TempDir,
}

impl Run {
    /// With no standard input and output.
    pub(crate) fn new(guest: Guest, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = guest.write_to(directory.path()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-reference"));
        command
            .args(["run", "--kernel"])
            .arg(kernel)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: between fork and exec it makes system calls, and allocates nothing.
        unsafe { command.pre_exec(default_signals) };
        Self { command, directory }
    }

    /// Where [`Self::with_gdb`] listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("gdb")
    }

    pub(crate) fn with_gdb(mut self) -> Self {
        let address = format!("unix:{}", self.socket().display());
        self.command.arg("--gdb").arg(address);
        self
    }

    /// With this limit, soft and hard.
    pub(crate) fn with_limit(mut self, resource: Resource, soft: u64, hard: u64) -> Self {
        let set = move || Ok(setrlimit(resource, soft, hard)?);
        // SAFETY: between fork and exec it makes one system call, and allocates nothing.
        unsafe { self.command.pre_exec(set) };
        self
    }

    pub(crate) fn start(mut self) -> Process {
        let child = common::spawn(&mut self.command).expect("the command starts");
        // Its copies of pipes' ends would keep them open.
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Process { child, run: self }
    }
}

/// Killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) run: Run,
}

impl Process {
    pub(crate) fn pid(&self) -> libc::pid_t {
        libc::pid_t::try_from(self.child.id()).unwrap()
    }

    /// Waits until a vCPU's thread is there. The signals have been taken over then.
    pub(crate) fn until_it_runs(&mut self) {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.pid()));
        eventually("a vCPU's thread", || {
            assert_eq!(self.child.try_wait().unwrap(), None, "it has ended");
            threads(&tasks).iter().any(|name| name == "vcpu0")
        });
    }

    /// The user's queue of signals is full from now on, for this process: no more signals may wait in it.
    /// `RLIMIT_SIGPENDING` counts those of all the user's processes, so others may use it up.
    pub(crate) fn fill_the_queue_of_signals(&self) {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        let pid = self.pid();
        // SAFETY: the new limit lives through the call, and the old one is not asked for.
        let set = unsafe {
            libc::prlimit(
                pid,
                libc::RLIMIT_SIGPENDING,
                &raw const none,
                std::ptr::null_mut(),
            )
        };
        assert_eq!(set, 0);
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: `kill` touches no memory, and the child has not been waited for.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        // It is not killed if it does not end: see `drop`.
        eventually("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// What its threads do, for a test that has waited for it in vain.
    fn threads_text(&self) -> String {
        let directory = PathBuf::from(format!("/proc/{}", self.pid()));
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let mut text = String::new();
        for task in fs::read_dir(directory.join("task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let of = |name| read(task.path().join(name));
            let status = of("status");
            let wanted = [
                "Name:", "State:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigCgt:",
            ];
            let lines = status
                .lines()
                .filter(|line| wanted.iter().any(|name| line.starts_with(name)));
            text.extend(lines.map(|line| format!("{} ", line.replace('\t', " "))));
            text += &format!(
                "wchan {} syscall {}{}",
                of("wchan"),
                of("syscall"),
                of("stack")
            );
        }
        text
    }
}

fn threads(tasks: &Path) -> Vec<String> {
    let entries = fs::read_dir(tasks).into_iter().flatten().flatten();
    entries
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the process's threads:\n{}", self.threads_text());
        }
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pipe that is full.
pub(crate) fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = writer.as_raw_fd();
    let nonblocking = |on| {
        let flags = if on { libc::O_NONBLOCK } else { 0 };
        // SAFETY: F_SETFL takes a number, and the descriptor is open.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }, 0);
    };
    nonblocking(true);
    while writer.write(&[b'.'; 4096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    nonblocking(false);
    (reader, writer)
}

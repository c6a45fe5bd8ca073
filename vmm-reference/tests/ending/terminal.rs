//! The terminal's mode, after every signal that ends or stops the process.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use vmm_reference::guests::FAULT;

use crate::common::eventually;
use crate::process::{Process, Run};

/// A process whose standard input is a terminal, which is in raw mode.
struct OnTerminal {
    process: Process,
    /// Both sides have one mode.
    terminal: File,
    /// Keeps the terminal when the process has ended.
    _user: File,
}

impl OnTerminal {
    fn start() -> Self {
        let pair = openpty(None, None).unwrap();
        let (terminal, user) = (File::from(pair.master), File::from(pair.slave));
        let mut run = Run::new(FAULT, &["--cmdline", "spin"]).with_gdb();
        run.command.stdin(user.try_clone().unwrap());
        // A process group that is not orphaned, which the kernel would not stop.
        run.command.process_group(0);
        let started = Self {
            process: run.start(),
            terminal,
            _user: user,
        };
        eventually("raw mode", || started.is_raw());
        started
    }

    fn is_raw(&self) -> bool {
        let mode = tcgetattr(self.terminal.as_fd()).unwrap();
        !mode.local_flags.contains(LocalFlags::ICANON)
    }

    /// `T`: stopped (proc(5)).
    fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).unwrap();
        let state = stat.rsplit(") ").next().unwrap();
        state.chars().next().unwrap()
    }
}

#[test]
fn every_signal_that_ends_it_restores_the_terminal() {
    for signal in [
        libc::SIGQUIT,
        libc::SIGABRT,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGUSR2,
        libc::SIGVTALRM,
        libc::SIGXFSZ,
        libc::SIGRTMIN(),
        libc::SIGRTMAX(),
    ] {
        let mut vmm = OnTerminal::start();
        vmm.process.until_it_runs();
        vmm.process.signal(signal);
        assert_eq!(vmm.process.wait().signal(), Some(signal));
        assert!(!vmm.is_raw(), "signal {signal}");
    }
    let mut vmm = OnTerminal::start();
    vmm.process.until_it_runs();
    vmm.process.signal(libc::SIGTERM);
    assert_eq!(vmm.process.wait().code(), Some(128 + libc::SIGTERM));
    assert!(!vmm.is_raw());
}

/// Those of its own kicks and timers, which another process may send too.
#[test]
fn its_own_signals_from_elsewhere_change_nothing() {
    let mut vmm = OnTerminal::start();
    vmm.process.until_it_runs();
    vmm.process.signal(libc::SIGUSR1);
    vmm.process.signal(libc::SIGALRM);
    vmm.process.signal(libc::SIGTERM);
    assert_eq!(vmm.process.wait().code(), Some(128 + libc::SIGTERM));
    assert!(!vmm.is_raw());
}

#[test]
fn a_stop_restores_the_terminal_and_the_process_takes_it_again_when_it_goes_on() {
    let mut vmm = OnTerminal::start();
    vmm.process.until_it_runs();
    for _ in 0..3 {
        for signal in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
            vmm.process.signal(signal);
            eventually("it stops", || vmm.state() == 'T');
            assert!(!vmm.is_raw(), "signal {signal}");
            vmm.process.signal(libc::SIGCONT);
            eventually("raw mode again", || vmm.is_raw());
        }
    }
    vmm.process.signal(libc::SIGTERM);
    assert_eq!(vmm.process.wait().code(), Some(128 + libc::SIGTERM));
    assert!(!vmm.is_raw());
}

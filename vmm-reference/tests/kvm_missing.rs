//! What happens without KVM, or without permission for it. The tests run in their own root directory and
//! therefore do not depend on the machine's /dev/kvm.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_reference::guests::TIMER;

/// Held while a program is written and while one is started: a child that is forked in that time has
/// the file open for writing until it executes its own, and the kernel refuses to execute such a file.
static FORKS: Mutex<()> = Mutex::new(());

fn no_forks() -> MutexGuard<'static, ()> {
    FORKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory with the command, the libraries that it needs, and a kernel, as a root directory.
struct Root {
    directory: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let _lock = no_forks();
        let root = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let command = env!("CARGO_BIN_EXE_vmm-reference");
        fs::copy(command, root.path().join("vmm-reference")).unwrap();
        for library in libraries(command) {
            let relative = library.strip_prefix('/').unwrap();
            let copy = root.path().join(relative);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(&library, copy).unwrap();
        }
        fs::write(root.path().join("timer.elf"), TIMER.elf).unwrap();
        fs::create_dir(root.path().join("dev")).unwrap();
        root
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// /dev/kvm is this regular file.
    fn with_kvm(self, mode: u32) -> Self {
        let kvm = self.path().join("dev/kvm");
        fs::write(&kvm, b"").unwrap();
        fs::set_permissions(&kvm, Permissions::from_mode(mode)).unwrap();
        self
    }

    /// Runs the command in there, without the capabilities that let root ignore a file's mode.
    fn run(&self, arguments: &[&str]) -> Output {
        let _lock = no_forks();
        let root = CString::new(self.path().as_os_str().as_bytes()).unwrap();
        let mut command = Command::new("/vmm-reference");
        command.args(arguments).stdin(Stdio::null());
        // SAFETY: between fork and exec it makes system calls, and allocates nothing.
        unsafe { command.pre_exec(move || enter(&root)) };
        command
            .output()
            .expect("a root directory needs root, or user namespaces for all users")
    }
}

// Linux, include/uapi/linux/capability.h.
const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;

/// Makes this directory the root of the calling process, for good once it executes a program.
fn enter(root: &CString) -> io::Result<()> {
    // SAFETY: `geteuid` has no precondition.
    if unsafe { libc::geteuid() } != 0 {
        // A user other than root may do this in a new user namespace, in which no capability is left to
        // the program.
        // SAFETY: it takes a number, and touches no memory.
        succeed(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
    }
    for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
        // SAFETY: PR_CAPBSET_DROP takes a number, and touches no memory.
        succeed(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })?;
    }
    // SAFETY: the path ends with a zero byte and outlives the call.
    succeed(unsafe { libc::chroot(root.as_ptr()) })?;
    std::env::set_current_dir("/")
}

fn succeed(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The shared libraries of a program, with the loader.
fn libraries(program: &str) -> Vec<String> {
    // The program is linked as this test is.
    if cfg!(target_feature = "crt-static") {
        return Vec::new();
    }
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)".
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(str::to_owned)
        })
        .collect()
}

#[track_caller]
fn assert_refused(output: &Output, message: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("/dev/kvm"), "{stderr}");
    assert!(stderr.contains(message), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty());
}

const RUN: [&str; 5] = ["run", "--kernel", "/timer.elf", "--serial", "none"];

#[test]
fn without_the_device_the_status_is_3_and_the_message_says_what_to_do() {
    let root = Root::new();
    assert_refused(&root.run(&RUN), "modprobe");
    assert_refused(&root.run(&["caps"]), "modprobe");
    assert_refused(&root.run(&["demo"]), "modprobe");
    let gdb = [&RUN[..], &["--gdb", "unix:/gdb"]].concat();
    assert_refused(&root.run(&gdb), "modprobe");
    assert!(!root.path().join("gdb").exists(), "no socket stays behind");
}

#[test]
fn without_permission_the_status_is_3_and_the_message_says_what_to_do() {
    let root = Root::new().with_kvm(0o000);
    assert_refused(&root.run(&RUN), "no permission to open");
    assert_refused(&root.run(&["caps", "--json"]), "no permission to open");
}

#[test]
fn the_demo_names_the_command_that_runs_it_without_kvm() {
    let rigs_run = "`rigs/run --on svm vmm-reference demo`";
    assert_refused(&Root::new().run(&["demo"]), rigs_run);
    assert_refused(&Root::new().with_kvm(0o000).run(&["demo"]), rigs_run);
}

#[test]
fn a_file_that_is_no_kvm_device_is_not_used() {
    let root = Root::new().with_kvm(0o666);
    assert_refused(&root.run(&RUN), "not a KVM device");
}

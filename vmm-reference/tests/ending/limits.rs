//! Limits of the system that are too low.

use std::io::Read;
use std::process::Stdio;

use nix::sys::resource::Resource;
use vmm_reference::guests::TIMER;

use crate::process::Run;

/// Each vCPU needs two descriptors at least.
const CPUS: &str = "32";

#[test]
fn a_soft_limit_of_open_files_is_raised() {
    for chips in ["kernel", "split", "user"] {
        let run = Run::new(TIMER, &["--cpus", CPUS, "--irqchip", chips]);
        let mut process = run.with_limit(Resource::RLIMIT_NOFILE, 64, 1024).start();
        process.until_it_runs();
        process.signal(libc::SIGTERM);
        assert_eq!(process.wait().code(), Some(128 + libc::SIGTERM), "{chips}");
    }
}

#[test]
fn a_hard_limit_of_open_files_is_named() {
    for chips in ["kernel", "split", "user"] {
        let mut run = Run::new(TIMER, &["--cpus", CPUS, "--irqchip", chips]);
        run.command.stderr(Stdio::piped());
        let mut process = run.with_limit(Resource::RLIMIT_NOFILE, 64, 64).start();
        let mut said = String::new();
        let mut stderr = process.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert_eq!(process.wait().code(), Some(3), "{said}");
        assert!(said.contains("Too many open files"), "{said}");
        assert!(
            said.contains("64 files") && said.contains("ulimit -Hn"),
            "{said}"
        );
    }
}

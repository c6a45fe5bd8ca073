//! Boots the embedded guests on this host's KVM.
//!
//! One vCPU at a time and no threads: the smallest loop that runs a machine. These tests do not depend on
//! the vCPU threads of the command.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestAddress};
use vmm_reference::devices::{AccessSize, SerialOutput};
use vmm_reference::guests::{FAULT, Guest, TIMER};
use vmm_reference::{ExitReason, Machine, MachineConfig};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Long enough for any guest here on the slowest KVM we know.
const PATIENCE: Duration = Duration::from_secs(20);

fn machine(guest: Guest, cmdline: &str, serial: &Path) -> Machine {
    let mut config = MachineConfig::new(guest.image());
    config.cmdline = cmdline.to_owned();
    config.serial = SerialOutput::File(serial.to_owned());
    config.testdev = true;
    Machine::new(&config).unwrap_or_else(|error| panic!("{error:?}"))
}

/// Runs the first vCPU until the machine is to end, or `until` says so after an exit.
fn run(machine: &mut Machine, mut until: impl FnMut(&Machine) -> bool) -> Option<ExitReason> {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "the guest does not end");
        let mut vcpu = machine.vcpus.remove(0);
        // The next KVM_RUN completes a pending access with the data written here.
        let exit = vcpu.run().map(|exit| match exit {
            VcpuExit::IoIn(port, data) => {
                let data: *mut [u8] = data;
                Exit::In(port, data)
            }
            VcpuExit::IoOut(port, data) => Exit::Out(port, data.to_vec()),
            VcpuExit::MmioRead(address, data) => {
                machine.devices.mmio_read(address, data);
                Exit::Served
            }
            VcpuExit::MmioWrite(address, data) => {
                machine.devices.mmio_write(address, data);
                Exit::Served
            }
            VcpuExit::Shutdown => Exit::Failed("triple fault"),
            VcpuExit::InternalError => Exit::Failed("internal error"),
            other => panic!("unexpected exit {other:?}"),
        });
        match exit {
            Ok(Exit::In(port, data)) => {
                let size = access_size(&mut vcpu);
                // SAFETY: kvm-ioctls points into the mapped run structure, which lives as long as
                // `vcpu` and is not looked at by the kernel before the next KVM_RUN.
                let data = unsafe { &mut *data };
                machine.devices.io_in(port, size, data);
            }
            Ok(Exit::Out(port, data)) => {
                let size = access_size(&mut vcpu);
                machine.devices.io_out(port, size, &data);
            }
            Ok(Exit::Served) => {}
            Ok(Exit::Failed(failure)) => {
                machine
                    .exit
                    .request(ExitReason::GuestFailed(failure.to_owned()));
            }
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => panic!("KVM_RUN: {error}"),
        }
        machine.vcpus.insert(0, vcpu);
        if let Some(reason) = machine.exit.reason() {
            return Some(reason);
        }
        // A thread of its own writes the output.
        machine.devices.serial().finish(PATIENCE, false);
        if until(machine) {
            return None;
        }
    }
}

enum Exit {
    In(u16, *mut [u8]),
    Out(u16, Vec<u8>),
    Served,
    Failed(&'static str),
}

fn access_size(vcpu: &mut kvm_ioctls::VcpuFd) -> AccessSize {
    // SAFETY: called only after KVM_EXIT_IO, for which this is the active member of the union.
    let io = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.io };
    AccessSize::from_bytes(usize::from(io.size)).expect("1, 2 or 4")
}

#[test]
fn a_guest_ends_as_its_command_line_says() {
    let directory = tempfile::tempdir().unwrap();
    let serial = directory.path().join("serial");
    for (cmdline, expected) in [
        ("poweroff", ExitReason::PowerOff),
        ("reset", ExitReason::Reset),
        ("exit=5", ExitReason::DebugExit(5)),
        ("exit=255", ExitReason::DebugExit(255)),
        ("nonsense", ExitReason::DebugExit(0x7f)),
        ("triple", ExitReason::GuestFailed("triple fault".to_owned())),
    ] {
        let mut machine = machine(FAULT, cmdline, &serial);
        assert_eq!(run(&mut machine, |_| false), Some(expected), "{cmdline}");
        let loss = machine.devices.serial().finish(PATIENCE, false);
        assert_eq!(loss.total(), 0, "{cmdline}");
        let output = std::fs::read_to_string(&serial).unwrap();
        assert!(output.starts_with("fault guest\n"), "{cmdline}: {output}");
    }
}

#[test]
fn an_instruction_that_kvm_cannot_fetch_is_an_internal_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut machine = machine(FAULT, "emulation", &directory.path().join("serial"));
    let reason = run(&mut machine, |_| false);
    assert_eq!(
        reason,
        Some(ExitReason::GuestFailed("internal error".to_owned()))
    );
}

#[test]
fn the_echo_guest_answers_what_it_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let serial = directory.path().join("serial");
    let mut machine = machine(FAULT, "echo", &serial);
    assert_eq!(machine.devices.serial().input(b"hello"), 5);
    run(&mut machine, |_| {
        std::fs::read(&serial).unwrap() == b"fault guest\nhello"
    });
}

#[test]
fn the_timer_guest_prints_first_and_its_timer_ticks() {
    let directory = tempfile::tempdir().unwrap();
    let serial = directory.path().join("serial");
    let mut machine = machine(TIMER, "", &serial);
    run(&mut machine, |_| {
        std::fs::read(&serial).unwrap() == b"timer guest\n"
    });
    let memory = machine.memory.clone();
    let read = move |name| -> u64 {
        let address = GuestAddress(TIMER.symbol(name).unwrap());
        memory.read_obj(address).unwrap()
    };
    // The guest makes no more exits: only a signal gets its thread out of KVM_RUN.
    let stop = Arc::new(AtomicBool::new(false));
    register_signal_handler(SIGRTMIN(), on_signal).unwrap();
    let runner = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            run(&mut machine, |_| stop.load(Ordering::Acquire));
        }
    });
    let start = Instant::now();
    while read("ticks") < 10 {
        assert!(start.elapsed() < PATIENCE, "{} ticks", read("ticks"));
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, Ordering::Release);
    while !runner.is_finished() {
        runner.kill(SIGRTMIN()).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    runner.join().unwrap();
    assert!(read("iterations") > 0, "the loop runs beside its timer");
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

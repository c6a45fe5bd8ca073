//! The cost of one remote step: vmm-reference's with the default options and with `--gdb-busy-poll 0`,
//! QEMU's with the same guest and the same KVM, and that of `KVM_RUN` alone.
//!
//! `cargo bench -p vmm-reference --bench step` runs the candidates alternately, so the ratios hold on a
//! machine whose speed drifts, and prints medians. The QEMU column needs qemu-system-x86. Under
//! `taskset -c 0` no processor has to be woken, and the stubs themselves are compared.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a bench stops where something is missing"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use debug_stub::kvm::{KvmVcpu, VmMemory};
use debug_stub::x86_64::stepper::Vcpu as _;
use debug_stub::x86_64::{RegisterFile, RegisterGroups, StepPlan};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use kvm_ioctls::VcpuExit;
use vmm_reference::guests::TIMER;
use vmm_reference::remote::RemoteClient;
use vmm_reference::{Machine, MachineConfig};

const ROUNDS: usize = 7;
const STEPS: u32 = 1000;
/// Bytes in one memory read: what QEMU takes.
const READ: usize = 2048;
const READS: u32 = 200;
type Client = RemoteClient<std::os::unix::net::UnixStream>;

/// A stub in a process of its own; ended when dropped.
struct Stub {
    process: Child,
    client: Client,
}

impl Stub {
    fn start(mut command: Command, socket: &Path) -> Self {
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the program starts");
        let deadline = Instant::now() + Duration::from_secs(10);
        let client = loop {
            match RemoteClient::unix(socket) {
                Ok(client) => break client,
                Err(error) if Instant::now() > deadline => panic!("no stub: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut stub = Self { process, client };
        // The stub stops the guest when a client comes: let it get into its loop first.
        stub.client.send("vCont;c").unwrap();
        thread::sleep(Duration::from_millis(300));
        stub.client.interrupt().unwrap();
        stub.client.reply().unwrap();
        stub
    }

    /// Microseconds for a step, for a step with all registers read, and MB/s of memory.
    fn round(&mut self) -> [f64; 3] {
        let client = &mut self.client;
        let step = time(STEPS, || {
            client.request("vCont;s:1").unwrap();
        });
        let with_registers = time(STEPS, || {
            client.request("vCont;s:1").unwrap();
            client.request("g").unwrap();
        });
        let address = TIMER.symbol("_start").unwrap();
        let read = time(READS, || {
            client.read_memory(address, READ).unwrap();
        });
        [step, with_registers, READ as f64 / read]
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Microseconds for each of `count` calls.
fn time(count: u32, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        call();
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

/// KVM_RUN with the step armed, and nothing around it.
struct Floor(Machine);

impl Floor {
    fn new() -> Self {
        let mut machine = Machine::new(&MachineConfig::new(TIMER.image())).unwrap();
        let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        let debug = kvm_guest_debug {
            control,
            ..Default::default()
        };
        let vcpu = machine.vcpus.first_mut().unwrap();
        vcpu.set_guest_debug(&debug).unwrap();
        Self(machine)
    }

    fn round(&mut self) -> f64 {
        time(STEPS, || self.steps(1))
    }

    fn steps(&mut self, count: u32) {
        let vcpu = self.0.vcpus.first_mut().unwrap();
        for _ in 0..count {
            loop {
                match vcpu.run().unwrap() {
                    VcpuExit::Debug(_) => break,
                    VcpuExit::IoIn(_, data) => data.fill(0xff),
                    VcpuExit::IoOut(..) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// Nanoseconds for which this thread has had a processor: on a busy machine the time on the wall says little.
fn on_processor() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Microseconds of the processor for a step of KVM alone, and for the planner's part of it: to plan and to settle
/// the steps of the same guest.
fn planner() -> [f64; 2] {
    const KINDS: usize = 64;
    const TIMES: usize = 200;
    let mut floor = Floor::new();
    let memory = VmMemory(floor.0.memory.clone());
    let mut files = Vec::new();
    for _ in 0..=KINDS {
        let mut file = RegisterFile::default();
        let mut vcpu = KvmVcpu(floor.0.vcpus.first_mut().unwrap());
        vcpu.read_registers(RegisterGroups::EXPEDITED, &mut file)
            .unwrap();
        files.push(file);
        floor.steps(1);
    }
    let begun = on_processor();
    floor.steps(STEPS);
    let run = (on_processor() - begun) / 1000.0 / f64::from(STEPS);
    let begun = on_processor();
    let mut count = 0;
    for _ in 0..TIMES {
        for pair in files.windows(2) {
            let [before, after] = pair else { continue };
            let plan = StepPlan::new(std::hint::black_box(before), &memory);
            std::hint::black_box(plan.settle(after, &memory));
            count += 1;
        }
    }
    let plan = (on_processor() - begun) / 1000.0 / f64::from(count);
    [run, plan]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ours(kernel: &Path, socket: &Path, arguments: &[&str]) -> Stub {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-reference"));
    command
        .args(["run", "--serial", "none", "--kernel"])
        .arg(kernel)
        .arg("--gdb")
        .arg(format!("unix:{}", socket.display()))
        .args(arguments);
    Stub::start(command, socket)
}

fn qemu(kernel: &Path, socket: &Path) -> Option<Stub> {
    let found = Command::new("qemu-system-x86_64").arg("--version").output();
    if found.is_err() {
        return None;
    }
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm", "-accel", "kvm", "-m", "128"])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-kernel",
        ])
        .arg(kernel)
        .arg("-chardev")
        .arg(format!(
            "socket,id=gdb,server=on,wait=off,path={}",
            socket.display()
        ))
        .args(["-gdb", "chardev:gdb"]);
    Some(Stub::start(command, socket))
}

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = TIMER.write_to(directory.path()).unwrap();
    let socket = |name: &str| -> PathBuf { directory.path().join(name) };
    let mut ours = [
        ours(&kernel, &socket("ours"), &[]),
        ours(&kernel, &socket("sleeps"), &["--gdb-busy-poll", "0"]),
    ];
    let mut qemu = qemu(&kernel, &socket("qemu"));
    let mut floor = Floor::new();
    let mut of_ours = [Vec::new(), Vec::new()];
    let (mut of_qemu, mut of_floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (stub, rounds) in ours.iter_mut().zip(&mut of_ours) {
            rounds.push(stub.round());
        }
        of_qemu.extend(qemu.as_mut().map(Stub::round));
        of_floor.push(floor.round());
    }
    let column = |rounds: &[[f64; 3]], what: usize| {
        median(
            rounds
                .iter()
                .filter_map(|round| round.get(what).copied())
                .collect(),
        )
    };
    println!("medians of {ROUNDS} rounds of {STEPS} steps; sleeps: --gdb-busy-poll 0;");
    println!("the floor is KVM_RUN alone; ratios are to QEMU");
    println!(
        "{:<24}{:>10}{:>8}{:>10}{:>8}{:>10}{:>8}",
        "", "ours", "", "sleeps", "", "QEMU", "floor"
    );
    let [as_it_comes, sleeps] = &of_ours;
    let rows = [
        ("step, µs", 0, Some(median(of_floor))),
        ("step and registers, µs", 1, None),
        ("memory, MB/s", 2, None),
    ];
    for (label, what, floor) in rows {
        let theirs = column(&of_qemu, what);
        let [mine, asleep] = [column(as_it_comes, what), column(sleeps, what)];
        let ratio = |value: f64| match what {
            2 => value / theirs,
            _ => theirs / value,
        };
        let floor = floor.map(|us| format!("{us:.1}")).unwrap_or_default();
        println!(
            "{label:<24}{mine:>10.1}{:>7.1}x{asleep:>10.1}{:>7.1}x{theirs:>10.1}{floor:>8}",
            ratio(mine),
            ratio(asleep)
        );
    }
    let [run, plan] = planner();
    println!(
        "time on a processor: KVM_RUN {run:.1} µs, the planner's part of a step {plan:.2} µs, {:.1} %",
        100.0 * plan / run
    );
    if qemu.is_none() {
        println!("no column for QEMU: install qemu-system-x86");
    }
}

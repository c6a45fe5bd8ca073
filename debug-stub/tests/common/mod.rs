//! A client and a VMM around a session, in one thread.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file, the example and the bench use a part of it"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is the world around the core, and it stops where what must hold does not"
)]

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use debug_stub::x86_64::RegisterFile;
use debug_stub::x86_64::simulated::{SimulatedMachine as Machine, host_report};
use debug_stub::{
    Action, GuestState, Host, OnDisconnect, ResumePlan, Session, SessionConfig, Stop,
};
use vcpu_caps::{Capability, GuestDebug, Plan, Profile, negotiate};

/// How long a test waits for what must happen.
pub const LONG: Duration = Duration::from_secs(20);

/// Implements `Host` for a type that has the machine behind a lock: `|guest| lock` takes it.
macro_rules! host_with_locked_machine {
    ($host:ty, |$guest:ident| $lock:expr) => {
        impl debug_stub::GuestMemory for $host {
            fn read_memory(&self, at: debug_stub::GuestPhysAddr, data: &mut [u8]) -> usize {
                let $guest = self;
                $lock.read_memory(at, data)
            }

            fn write_memory(&self, at: debug_stub::GuestPhysAddr, data: &[u8]) -> usize {
                let $guest = self;
                $lock.write_memory(at, data)
            }
        }

        impl debug_stub::Host for $host {
            type Arch = debug_stub::x86_64::X86_64;
            type Error =
                <debug_stub::x86_64::simulated::SimulatedMachine as debug_stub::Host>::Error;

            fn vcpu_count(&self) -> u16 {
                let $guest = self;
                $lock.vcpu_count()
            }

            fn vcpu_name(&self, vcpu: debug_stub::VcpuId) -> String {
                let $guest = self;
                $lock.vcpu_name(vcpu)
            }

            fn is_started(&self, vcpu: debug_stub::VcpuId) -> bool {
                let $guest = self;
                $lock.is_started(vcpu)
            }

            fn read_registers(
                &mut self,
                vcpu: debug_stub::VcpuId,
                groups: debug_stub::x86_64::RegisterGroups,
                registers: &mut debug_stub::x86_64::RegisterFile,
            ) -> Result<(), Self::Error> {
                let $guest = self;
                $lock.read_registers(vcpu, groups, registers)
            }

            fn write_registers(
                &mut self,
                vcpu: debug_stub::VcpuId,
                groups: debug_stub::x86_64::RegisterGroups,
                registers: &debug_stub::x86_64::RegisterFile,
            ) -> Result<(), Self::Error> {
                let $guest = self;
                $lock.write_registers(vcpu, groups, registers)
            }

            fn disarm(&mut self, vcpu: debug_stub::VcpuId) -> Result<(), Self::Error> {
                let $guest = self;
                $lock.disarm(vcpu)
            }

            fn interrupts(&mut self, vcpu: debug_stub::VcpuId) -> debug_stub::Interrupts {
                let $guest = self;
                $lock.interrupts(vcpu)
            }
        }
    };
}
#[allow(unused_imports, reason = "each test file uses a part of this one")]
pub(crate) use host_with_locked_machine;

#[cfg(feature = "server")]
pub mod simulated;

/// The first packet of GDB: what it understands.
pub const FEATURES: &str = "qSupported:swbreak+;hwbreak+";

/// How many instructions a vCPU may execute before it counts as spinning.
const BUDGET: usize = 200;

/// A machine that runs in the test's thread.
pub trait Run: Host {
    /// Carries out a plan for at most `budget` instructions of each vCPU. Returns `None` if
    /// nothing has stopped it by then.
    fn run(&mut self, plan: &ResumePlan, budget: usize) -> Option<Vec<Stop>>;

    /// The debugger has gone.
    fn release(&mut self) {}
}

impl Run for Machine {
    fn run(&mut self, plan: &ResumePlan, budget: usize) -> Option<Vec<Stop>> {
        self.run(plan, budget)
    }

    fn release(&mut self) {
        self.release().unwrap();
        assert_disarmed(self);
    }
}

/// No vCPU is armed or masked.
pub fn assert_disarmed(machine: &Machine) {
    for index in 0..usize::from(machine.vcpu_count()) {
        let (stepper, vcpu) = machine.vcpu(index).unwrap();
        assert_eq!(*vcpu.debug(), GuestDebug::OFF, "vcpu{index} is armed");
        assert!(!stepper.is_masked(), "vcpu{index} is masked");
        assert_eq!(
            vcpu.registers().core.rflags & 0x100,
            0,
            "vcpu{index} has TF"
        );
    }
}

/// `vcpus` of them, all about to execute `program` at `ENTRY`. HLT powers off.
pub fn machine(vcpus: usize, program: &[&[u8]]) -> Machine {
    Machine::new(&plan(&[]), vcpus, program).hlt_exits_with(0)
}

/// What a simulated host is able to do; `absent` are the abilities that it lacks.
pub fn plan(absent: &[Capability]) -> Plan {
    negotiate(&host_report(absent), &Profile::debugger()).unwrap()
}

/// Clients that go leave a guest that runs, however they found it: the simulated guests begin stopped.
pub fn run_on(absent: &[Capability]) -> SessionConfig {
    let mut config = SessionConfig::new(plan(absent));
    config.on_disconnect = OnDisconnect::Run;
    config
}

pub fn registers(machine: &Machine, vcpu: usize) -> &RegisterFile {
    machine.vcpu(vcpu).unwrap().1.registers()
}

pub fn registers_mut(machine: &mut Machine, vcpu: usize) -> &mut RegisterFile {
    machine.vcpu_mut(vcpu).unwrap().1.registers_mut()
}

/// A session with its machine, and what has come out of it.
pub struct Rig<M: Run = Machine> {
    pub session: Session<M>,
    /// The plan that is being carried out.
    pub running: Option<ResumePlan>,
    /// Every plan handed out.
    pub plans: Vec<ResumePlan>,
    pub interrupts: usize,
    pub releases: usize,
    pub kills: usize,
}

impl<M: Run> Rig<M> {
    /// A session with all abilities, its client attached to the stopped machine.
    pub fn new(machine: M) -> Self {
        Self::with(machine, SessionConfig::new(plan(&[])))
    }

    pub fn with(machine: M, config: SessionConfig) -> Self {
        let mut rig = Self {
            session: Session::new(machine, config),
            running: None,
            plans: Vec::new(),
            interrupts: 0,
            releases: 0,
            kills: 0,
        };
        rig.session.attach(GuestState::Stopped);
        // As GDB does first.
        rig.ask(FEATURES);
        rig
    }

    pub fn machine(&mut self) -> &mut M {
        self.session.host_mut()
    }

    /// Sends a packet and runs the machine as far as it goes. Returns all replies.
    pub fn send(&mut self, body: impl AsRef<[u8]>) -> Vec<String> {
        let frame = frame(body.as_ref());
        self.bytes(&frame)
    }

    /// Sends a packet that has exactly one reply.
    pub fn ask(&mut self, body: impl AsRef<[u8]>) -> String {
        let replies = self.send(body.as_ref());
        let [reply] = replies.as_slice() else {
            panic!("{:?}: {replies:?}", String::from_utf8_lossy(body.as_ref()));
        };
        reply.clone()
    }

    /// Sends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Vec<String> {
        self.session.receive(bytes);
        self.act();
        self.work();
        self.replies()
    }

    /// Turns of the VMM's loop, until there is nothing to do.
    pub fn work(&mut self) {
        while self.session.has_work() {
            self.session.work();
            self.act();
        }
    }

    /// Replies that wait, checked and taken.
    pub fn replies(&mut self) -> Vec<String> {
        let output = self.session.output().to_vec();
        self.session.consume_output(output.len());
        unframe(&output)
    }

    /// Carries out actions as a VMM would.
    pub fn act(&mut self) {
        while let Some(action) = self.session.next_action() {
            match action {
                Action::Resume(plan) => {
                    assert!(self.running.is_none(), "resumed twice");
                    self.plans.push(plan.clone());
                    match self.machine().run(&plan, BUDGET) {
                        Some(stops) => self.session.stopped(stops),
                        None => self.running = Some(plan),
                    }
                }
                Action::Interrupt => {
                    self.interrupts += 1;
                    self.running = None;
                    self.session.stopped(Vec::new());
                }
                Action::Release => {
                    assert!(self.running.is_none(), "released while running");
                    self.releases += 1;
                    self.machine().release();
                }
                Action::Kill => self.kills += 1,
            }
        }
    }

    /// The machine stops by itself, for these reasons.
    pub fn stop(&mut self, stops: Vec<Stop>) -> Vec<String> {
        self.running = None;
        self.session.stopped(stops);
        self.act();
        self.replies()
    }

    pub fn last_plan(&self) -> &ResumePlan {
        self.plans.last().expect("nothing was resumed")
    }
}

/// `$body#sum`.
pub fn frame(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    [b"$", body, format!("#{sum:02x}").as_bytes()].concat()
}

/// The packets in a stub's output, acknowledgements left out.
pub fn unframe(mut output: &[u8]) -> Vec<String> {
    let mut bodies = Vec::new();
    while let Some((first, rest)) = output.split_first() {
        match first {
            b'+' | b'-' => output = rest,
            b'$' => {
                let end = rest.iter().position(|byte| *byte == b'#').unwrap();
                assert_eq!(frame(&rest[..end]), output[..end + 4], "a wrong sum");
                bodies.push(rest[..end].iter().map(|byte| char::from(*byte)).collect());
                output = &rest[end + 3..];
            }
            other => panic!("{other:#x} between packets"),
        }
    }
    bodies
}

/// The text of an `O` packet.
pub fn console(packet: &str) -> String {
    let digits = packet.strip_prefix('O').expect("no console packet");
    (0..digits.len())
        .step_by(2)
        .map(|at| char::from(u8::from_str_radix(&digits[at..at + 2], 16).unwrap()))
        .collect()
}

/// Text in hexadecimal.
pub fn hex(text: impl AsRef<[u8]>) -> String {
    text.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Runs GDB with these commands. Returns all that it printed.
pub fn gdb(address: &str, commands: &[&str]) -> String {
    let attach = format!("target remote {address}");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set confirm off"])
        .args(["-ex", "set architecture i386:x86-64"])
        .args(["-ex", &attach]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.output().expect("gdb does not start: install gdb");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Waits, for something that another thread does.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

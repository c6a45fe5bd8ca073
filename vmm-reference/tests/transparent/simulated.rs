//! The guests of `small.S` on debug-stub's simulated vCPU, with the habits of three KVMs. No KVM is needed.

use std::sync::Arc;

use debug_stub::x86_64::RegisterFile;
use debug_stub::x86_64::simulated::{Exit, Habits, Ram, SimulatedVcpu, host_report};
use debug_stub::x86_64::stepper::{Next, Outcome, Stepper};
use debug_stub::{Armed, StepOrder, StopReason, VcpuId, VcpuOrder};
use vcpu_caps::{Profile, negotiate};

use crate::image::{Guest, IMAGE, Mode, guests, stray};
use crate::layout;

const DONE: u8 = 0xe0;
const STRAY: u8 = 0xe1;
/// More than any of these guests needs.
const BUDGET: usize = 1000;

/// A simulated vCPU with a guest in its memory.
struct Simulation {
    vcpu: SimulatedVcpu,
    memory: Ram,
    printed: Vec<u8>,
    next: u8,
    done: bool,
    /// For messages.
    name: String,
}

/// What a run leaves.
#[derive(Debug, PartialEq)]
struct Left {
    registers: RegisterFile,
    memory: Vec<u8>,
    printed: Vec<u8>,
}

impl Simulation {
    fn new(guest: &Guest, habits: Habits) -> Self {
        let memory = Ram::new(usize::try_from(layout::MEMORY).unwrap());
        memory.put(layout::IMAGE, IMAGE);
        for (address, bytes) in layout::tables(guest, stray()) {
            memory.put(address, &bytes);
        }
        let regs = layout::registers(guest);
        let mut vcpu = match guest.mode {
            Mode::Real => SimulatedVcpu::real_mode(habits, 0, 0),
            Mode::Long => SimulatedVcpu::long_mode(habits, layout::PML4, layout::IDT64, 0, 0),
            other => panic!("{} begins in mode {other:?}", guest.name),
        };
        let file = vcpu.registers_mut();
        if guest.mode == Mode::Real {
            for (segment, base) in layout::real_segments(&mut file.special) {
                segment.base = base;
                segment.selector = u16::try_from(base >> 4).unwrap();
            }
        }
        let core = &mut file.core;
        (core.rip, core.rsp, core.rflags) = (regs.rip, regs.rsp, regs.rflags);
        (core.rax, core.rbx, core.rcx) = (regs.rax, regs.rbx, regs.rcx);
        (core.rsi, core.rdi) = (regs.rsi, regs.rdi);
        Self {
            vcpu,
            memory,
            printed: Vec::new(),
            next: 0,
            done: false,
            name: format!("{} on {}", guest.name, habits.name),
        }
    }

    /// One run of the vCPU, with its exit served.
    fn run(&mut self, immediate_exit: bool) -> Outcome {
        match self.vcpu.run(&self.memory, immediate_exit, BUDGET) {
            Exit::Debug(exit) => Outcome::Debug(exit),
            Exit::PortRead(_) => {
                self.next += 1;
                self.vcpu.answer(self.next);
                Outcome::Served
            }
            Exit::PortWrite(DONE, _) => {
                self.done = true;
                Outcome::Fatal(StopReason::Exited(0))
            }
            Exit::PortWrite(port, value) => {
                assert_ne!(port, STRAY, "{}: a vector without a handler", self.name);
                self.printed.push(value);
                Outcome::Served
            }
            Exit::Interrupted => Outcome::Nothing,
            other => panic!(
                "{}: {other:?} at {:#x}",
                self.name,
                self.vcpu.registers().core.rip
            ),
        }
    }

    fn free(mut self) -> Left {
        let runs = (0..BUDGET).take_while(|_| {
            let _ = self.run(false);
            !self.done
        });
        assert!(runs.count() < BUDGET, "it never ends");
        self.left()
    }

    /// Steps it to its end, or `steps` times, and lets it run then.
    fn stepped(mut self, steps: usize) -> Left {
        let plan = negotiate(&host_report(&[]), &Profile::debugger()).unwrap();
        let mut stepper = Stepper::new(VcpuId(0), &plan);
        for _ in 0..steps {
            let step = StepOrder {
                range: None,
                mask: true,
                ..StepOrder::default()
            };
            self.order(&mut stepper, &VcpuOrder::Step(step));
        }
        stepper.release(&mut self.vcpu, &self.memory).unwrap();
        while !self.done {
            self.order(&mut stepper, &VcpuOrder::Continue);
        }
        stepper.release(&mut self.vcpu, &self.memory).unwrap();
        self.left()
    }

    fn order(&mut self, stepper: &mut Stepper, order: &VcpuOrder) {
        let mut next = stepper.start(
            order,
            &Arc::new(Armed::default()),
            &mut self.vcpu,
            &self.memory,
        );
        loop {
            let outcome = match next {
                Next::Stopped(StopReason::Step | StopReason::Exited(0)) => return,
                Next::Stopped(reason) => panic!("{}: {reason:?}", self.name),
                Next::Enter => self.run(false),
                Next::Complete => self.run(true),
            };
            next = stepper.ran(outcome, &mut self.vcpu, &self.memory);
        }
    }

    fn left(self) -> Left {
        let mut memory = vec![0; usize::try_from(layout::MEMORY).unwrap()];
        debug_stub::GuestMemory::read_memory(
            &self.memory,
            debug_stub::GuestPhysAddr(0),
            &mut memory,
        );
        Left {
            registers: self.vcpu.registers().clone(),
            memory,
            printed: self.printed,
        }
    }
}

#[test]
fn small_guests_are_identical_on_a_simulated_vcpu() {
    let small: Vec<Guest> = guests()
        .into_iter()
        .filter(|guest| guest.name.starts_with("small/"))
        .collect();
    assert!(small.len() >= 12, "{} guests", small.len());
    for habits in Habits::ALL {
        for guest in &small {
            // It cannot emulate INT n and INT3.
            if habits.name == "kvm_pvm" && guest.name.contains("int") {
                continue;
            }
            let free = Simulation::new(guest, habits).free();
            for steps in [1, 2, 3, 5, BUDGET] {
                let stepped = Simulation::new(guest, habits).stepped(steps);
                let what = format!("{} on {} after {steps} steps", guest.name, habits.name);
                let place = free
                    .memory
                    .iter()
                    .zip(&stepped.memory)
                    .position(|(a, b)| a != b);
                assert_eq!(place, None, "{what}: memory differs");
                assert_eq!(free.printed, stepped.printed, "{what}");
                assert_eq!(free.registers.core, stepped.registers.core, "{what}");
            }
        }
    }
}

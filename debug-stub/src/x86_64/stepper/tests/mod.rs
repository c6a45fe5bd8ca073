//! The step protocol on a simulated vCPU, with the habits of three KVMs.

mod code_changes;
mod code_guards;
mod compared;
mod driver;
mod failures;
mod habits;
mod interleavings;
mod kvm_intel;
mod oracle;
mod outcomes;
mod user_code;

use std::collections::BTreeSet;
use std::sync::Arc;

use vcpu_caps::{Capability, GuestDebug, HwBreakpoint, Plan, Profile, VcpuId, negotiate};

use super::super::simulated::{Exit, Habits, Ram, SimulatedVcpu, host_report};
use super::*;
use crate::GuestPhysAddr;

const RAM: usize = 0x1_0000;
const CODE: u16 = 0x1000;
const STACK: u16 = 0x8000;
/// The interrupt, and where its handler is.
const VECTOR: u8 = 0x40;
const HANDLER: u16 = 0x3000;
/// The handler of INT 0x41, of the guest's own #DB and of #DE.
const SOFTWARE: u8 = 0x41;
const SOFTWARE_HANDLER: u16 = 0x3100;
const DEBUG_HANDLER: u16 = 0x3200;
const DIVIDE_HANDLER: u16 = 0x3300;
/// Where INIT and the start-up IPI lead.
const STARTUP_PAGE: u8 = 0x5;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;

fn plan(absent: &[Capability]) -> Plan {
    negotiate(&host_report(absent), &Profile::debugger()).unwrap()
}

/// A vCPU, its stepper, its memory, and the loop that a VMM writes.
struct Machine {
    stepper: Stepper,
    vcpu: SimulatedVcpu,
    memory: Ram,
    armed: Arc<Armed>,
    /// Accesses that were served.
    served: Vec<Exit>,
    /// Entries so far.
    entries: usize,
}

/// Entries after which an order counts as endless.
const PATIENCE: usize = 2000;

impl Machine {
    fn new(habits: Habits, code: &[u8]) -> Self {
        Self::with(habits, code, &plan(&[]))
    }

    fn with(habits: Habits, code: &[u8], plan: &Plan) -> Self {
        let memory = Ram::new(RAM);
        memory.put(CODE.into(), code);
        for (vector, handler, code) in [
            // inc cx; iret
            (VECTOR, HANDLER, &[0x41, 0xcf][..]),
            (2, HANDLER, &[0x41, 0xcf]),
            // inc bx; nop; iret
            (SOFTWARE, SOFTWARE_HANDLER, &[0x43, 0x90, 0xcf]),
            (3, SOFTWARE_HANDLER, &[0x43, 0x90, 0xcf]),
            // nop; iret
            (1, DEBUG_HANDLER, &[0x90, 0xcf]),
            // inc bx; iret: the division works then
            (0, DIVIDE_HANDLER, &[0x43, 0xcf]),
        ] {
            memory.put(u64::from(vector) * 4, &handler.to_le_bytes());
            memory.put(handler.into(), code);
        }
        // inc ax, four times; jmp $
        let startup = [0x40, 0x40, 0x40, 0x40, 0xeb, 0xfe];
        memory.put(u64::from(STARTUP_PAGE) << 12, &startup);
        Self {
            stepper: Stepper::new(VcpuId(0), plan),
            vcpu: SimulatedVcpu::real_mode(habits, CODE, STACK),
            memory,
            armed: Arc::default(),
            served: Vec::new(),
            entries: 0,
        }
    }

    fn arm(&mut self, hardware: Vec<HwBreakpoint>, software: &[u64]) {
        self.armed = Arc::new(Armed {
            hardware,
            software: software
                .iter()
                .map(|at| GuestPhysAddr(*at))
                .collect::<BTreeSet<_>>(),
            ..Armed::default()
        });
    }

    /// Runs an order; `must_stop` is asked before each entry, with the number of those before.
    fn run_until(
        &mut self,
        order: &VcpuOrder,
        mut must_stop: impl FnMut(usize, &mut SimulatedVcpu) -> bool,
    ) -> StopReason {
        let armed = Arc::clone(&self.armed);
        let mut next = self
            .stepper
            .start(order, &armed, &mut self.vcpu, &self.memory);
        let first = self.entries;
        loop {
            assert!(self.entries - first < PATIENCE, "{order:?} does not end");
            let complete = match next {
                Next::Stopped(reason) => return reason,
                Next::Enter => false,
                Next::Complete => true,
            };
            if !complete && must_stop(self.entries - first, &mut self.vcpu) {
                next = self.stepper.interrupt(&mut self.vcpu, &self.memory);
                continue;
            }
            self.entries += 1;
            let exit = self.vcpu.run(&self.memory, complete, 1000);
            if exit == Exit::Sleeps {
                // Nothing comes, but the signal of a kick.
                next = self
                    .stepper
                    .ran(Outcome::Nothing, &mut self.vcpu, &self.memory);
                if matches!(next, Next::Enter) {
                    next = self.stepper.interrupt(&mut self.vcpu, &self.memory);
                }
                continue;
            }
            let outcome = self.serve(exit);
            next = self.stepper.ran(outcome, &mut self.vcpu, &self.memory);
        }
    }

    fn serve(&mut self, exit: Exit) -> Outcome {
        let outcome = SimulatedVcpu::outcome(&exit);
        match exit {
            Exit::PortRead(_) | Exit::MemoryRead(_) => {
                self.vcpu.answer(0x5a);
                self.served.push(exit);
            }
            Exit::PortWrite(..) | Exit::MemoryWrite(..) => self.served.push(exit),
            _ => {}
        }
        outcome
    }

    fn run(&mut self, order: &VcpuOrder) -> StopReason {
        self.run_until(order, |_, _| false)
    }

    fn step(&mut self) -> StopReason {
        self.run(&step(true))
    }

    #[track_caller]
    fn step_to(&mut self, rip: u16) {
        assert_eq!(self.step(), StopReason::Step);
        assert_eq!(
            self.registers().core.rip,
            u64::from(rip),
            "RIP after the step"
        );
    }

    /// As the debugger sees them.
    fn registers(&mut self) -> RegisterFile {
        let mut file = RegisterFile::default();
        self.stepper
            .read_registers(RegisterGroups::EXPEDITED, &mut file, &mut self.vcpu)
            .unwrap();
        file
    }

    fn set(&mut self, change: impl FnOnce(&mut RegisterFile)) {
        let mut file = self.registers();
        change(&mut file);
        self.stepper
            .write_registers(RegisterGroups::CORE, &file, &mut self.vcpu)
            .unwrap();
    }

    fn word(&self, at: u16) -> u16 {
        let bytes = self.memory.get(at.into(), 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// The debugger goes; what it must not leave is gone.
    fn release(&mut self) {
        self.stepper.release(&mut self.vcpu, &self.memory).unwrap();
        self.assert_is_clean();
    }

    #[track_caller]
    fn assert_is_clean(&self) {
        assert_eq!(*self.vcpu.debug(), GuestDebug::OFF, "the debug state");
        assert!(!self.stepper.is_masked(), "masked");
        assert!(!self.stepper.is_stepping(), "stepping");
    }
}

fn step(mask: bool) -> VcpuOrder {
    VcpuOrder::Step(StepOrder {
        mask,
        ..StepOrder::default()
    })
}

fn range(range: std::ops::Range<u16>) -> VcpuOrder {
    VcpuOrder::Step(StepOrder {
        range: Some(range.start.into()..range.end.into()),
        mask: true,
        ..StepOrder::default()
    })
}

//! Any sequence of orders, kicks, interrupts, INIT, client losses and failing calls, with what must
//! hold after each.

use std::sync::Arc;

use vcpu_caps::{GuestDebug, HwBreakpoint, HwBreakpointKind, Plan, VcpuId};

use super::{Exit, Habits, Ram, SimulatedVcpu};
use crate::order::{Armed, StepOrder, StopReason, VcpuOrder};
use crate::x86_64::bits::{RFLAGS_IF, RFLAGS_TF};
use crate::x86_64::stepper::{Next, Outcome, Stepper};
use crate::x86_64::{RegisterFile, RegisterGroups};

const CODE: u16 = 0x1000;
const STACK: u16 = 0x8000;
const HANDLER: u16 = 0x3000;
const INTERRUPT: u8 = 0x40;
const NMI: u8 = 2;
const SOFTWARE: u8 = 0x41;
/// Where a start-up IPI leads: page 5.
const STARTUP: u8 = 5;
/// An order that takes more entries is endless.
const PATIENCE: usize = 3000;
/// Entries that an order may take after it is asked to stop.
const AFTER_A_KICK: usize = 8;

/// The guest: it runs in a circle, through everything that a step has to be careful with.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xfb,                   // sti
    0x40,                   // inc ax
    0x9c, 0x58,             // pushf; pop ax
    0xe6, 0x80,             // out 0x80, al
    0xe4, 0x81,             // in al, 0x81
    0x88, 0x07,             // mov [bx], al
    0x8a, 0x07,             // mov al, [bx]
    0xcd, SOFTWARE,         // int 0x41
    0x90,                   // nop
    0xf3, 0xa4,             // rep movsb
    0xf4,                   // hlt
    0xfa,                   // cli
    0x43,                   // inc bx
    0xeb, 0xea,             // jmp to the sti
];

/// Where the string instruction is in it.
const MOVE: u64 = 15;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An order of one step, masked or not; the vCPU is asked to stop before this many entries, if
    /// at all.
    Step {
        /// With `mask_hwintr`.
        mask: bool,
        /// See above.
        stop: Option<u8>,
    },
    /// A masked step of the only vCPU, beside watchpoints that leave no debug register.
    Watched {
        /// As for a step.
        stop: Option<u8>,
    },
    /// A range step over the whole program.
    Range {
        /// As for a step.
        stop: Option<u8>,
    },
    /// A free run to a breakpoint at this offset of the program, or until it is asked to stop.
    Continue {
        /// Where.
        breakpoint: u8,
        /// As for a step; at some time in any case.
        stop: u8,
    },
    /// An interrupt arrives.
    Interrupt,
    /// An interrupt arrives, and a kick between its injection and the entry.
    InFlight,
    /// An NMI arrives.
    Nmi,
    /// INIT and a start-up IPI arrive, before this many entries of the next order.
    Init {
        /// See above.
        after: u8,
        /// The start-up IPI comes as many entries later.
        startup: u8,
    },
    /// A call of the vCPU fails: the one after so many.
    Fail(u8),
    /// The debugger reads registers, and what the vCPU waits for.
    Look,
    /// The debugger's client is lost.
    Release,
    /// The VMM reports an exit that does not fit.
    WrongExit(u8),
    /// The debugger's client is lost, and the VMM runs the vCPU without the stepper: so many entries.
    RunAlone(u8),
}

impl Action {
    /// An action from two bytes of a test's input.
    #[must_use]
    pub fn decode(kind: u8, value: u8) -> Self {
        let stop = (value & 1 == 1).then_some(value >> 4);
        match kind % 17 {
            0..=3 => Self::Step {
                mask: kind & 1 == 0,
                stop,
            },
            4 => Self::Range { stop },
            5..=6 => Self::Continue {
                breakpoint: value,
                stop: value >> 3,
            },
            7 => Self::Interrupt,
            8 => Self::InFlight,
            9 => Self::Nmi,
            10 => Self::Init {
                after: value & 7,
                startup: value >> 4 & 3,
            },
            11 => Self::Fail(value & 15),
            12 => Self::Look,
            13 => Self::Release,
            14 => Self::WrongExit(value),
            15 => Self::RunAlone(value & 15),
            _ => Self::Watched { stop },
        }
    }
}

/// A vCPU under a stepper, in a scenario.
#[derive(Debug)]
pub struct Scenario {
    stepper: Stepper,
    vcpu: SimulatedVcpu,
    memory: Ram,
    /// INIT and the start-up IPI to come: entries until each.
    to_come: Option<(u8, Option<u8>)>,
    /// The program in memory.
    program: Vec<u8>,
    /// The next entry that takes an interrupt is kicked behind its injection.
    kick_behind_injection: bool,
    /// INIT was sent at some time.
    restarted: bool,
    /// Interrupts and NMIs that arrived and were not there before.
    arrived: [usize; 2],
}

fn check(holds: bool, what: &str) {
    assert!(holds, "{what}");
}

impl Scenario {
    /// A guest that is stopped at its first instruction. With a `device` the data that it reads and
    /// writes is outside memory.
    #[must_use]
    pub fn new(habits: Habits, plan: &Plan, device: bool) -> Self {
        let memory = Ram::new(0x1_0000);
        memory.put(CODE.into(), PROGRAM);
        // inc cx; iret
        memory.put(HANDLER.into(), &[0x41, 0xcf]);
        for vector in (0..32).chain([INTERRUPT, SOFTWARE]) {
            memory.put(u64::from(vector) * 4, &HANDLER.to_le_bytes());
        }
        // inc ax; jmp to it
        memory.put(u64::from(STARTUP) << 12, &[0x40, 0xeb, 0xfd]);
        let mut vcpu = SimulatedVcpu::real_mode(habits, CODE, STACK);
        let file = vcpu.registers_mut();
        (file.core.rsi, file.core.rdi) = (0x6000, 0x6100);
        file.core.rbx = 0x6200;
        // The program leaves it alone.
        file.core.rbp = 0xbad;
        if device {
            file.core.rbx = 0;
            file.special.ds.base = 0x1_0000;
            // Not of the string instruction.
            memory.put(u64::from(CODE) + MOVE, &[0x90, 0x90]);
        }
        Self {
            stepper: Stepper::new(VcpuId(0), plan),
            vcpu,
            program: memory.get(CODE.into(), PROGRAM.len()),
            memory,
            to_come: None,
            kick_behind_injection: false,
            restarted: false,
            arrived: [0; 2],
        }
    }

    /// Lets an action happen, and checks what must hold then.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn act(&mut self, action: Action) {
        match action {
            Action::Step { mask, stop } => {
                let order = VcpuOrder::Step(StepOrder {
                    mask,
                    ..StepOrder::default()
                });
                self.run(&order, &Arc::default(), stop.map(usize::from));
            }
            Action::Watched { stop } => {
                let order = VcpuOrder::Step(StepOrder {
                    mask: true,
                    // Where INT3 does not leave the guest the plan of its host lacks it.
                    alone: self.vcpu.habits().int3_exits,
                    ..StepOrder::default()
                });
                let watch = |at| HwBreakpoint::watch(at, 8, HwBreakpointKind::ReadWrite);
                let armed = Armed {
                    hardware: [0x9000, 0x9008, 0x9010, 0x9018].map(watch).to_vec(),
                    ..Armed::default()
                };
                self.run(&order, &Arc::new(armed), stop.map(usize::from));
            }
            Action::Range { stop } => {
                let end = u64::from(CODE) + 0x100;
                let order = VcpuOrder::Step(StepOrder {
                    range: Some(CODE.into()..end),
                    mask: true,
                    ..StepOrder::default()
                });
                // The program runs in a circle.
                self.run(&order, &Arc::default(), Some(stop.map_or(60, usize::from)));
            }
            Action::Continue { breakpoint, stop } => {
                let offset = usize::from(breakpoint) % PROGRAM.len();
                let at = u64::from(CODE) + u64::try_from(offset).unwrap_or_default();
                let armed = Armed {
                    hardware: vec![HwBreakpoint::execute(at)],
                    ..Armed::default()
                };
                self.run(&VcpuOrder::Continue, &Arc::new(armed), Some(stop.into()));
            }
            Action::Interrupt => self.arrive(0),
            Action::InFlight => {
                self.arrive(0);
                self.kick_behind_injection = true;
            }
            Action::Nmi => self.arrive(1),
            Action::Init { after, startup } => {
                if self.to_come.is_none() {
                    self.to_come = Some((after, Some(startup)));
                }
            }
            Action::Fail(after) => self.vcpu.fail_call(after.into()),
            Action::Look => self.look(),
            Action::Release => self.release(),
            Action::WrongExit(which) => self.report_wrong_exit(which),
            Action::RunAlone(entries) => self.run_alone(entries),
        }
    }

    fn arrive(&mut self, which: usize) {
        // A local APIC makes one of two that it has to take back.
        let waits = !self.vcpu.pending().is_empty()
            || self.vcpu.injected().is_some()
            || self.stepper.withheld_interrupt().is_some();
        let waits = (waits, self.vcpu.nmi_pending());
        let [interrupt, nmi] = &mut self.arrived;
        match which {
            0 if !waits.0 => {
                *interrupt += 1;
                self.vcpu.interrupt(INTERRUPT);
            }
            1 if !waits.1 => {
                *nmi += 1;
                self.vcpu.nmi();
            }
            _ => {}
        }
    }

    /// One entry goes by: what is to come comes.
    fn one_entry_later(&mut self) {
        let Some((entries, startup)) = &mut self.to_come else {
            return;
        };
        if let Some(left) = entries.checked_sub(1) {
            *entries = left;
            return;
        }
        match startup.take() {
            Some(later) => {
                self.vcpu.init();
                self.restarted = true;
                self.to_come = Some((later, None));
            }
            None => {
                self.vcpu.startup(STARTUP);
                self.to_come = None;
            }
        }
    }

    fn run(&mut self, order: &VcpuOrder, armed: &Arc<Armed>, stop_after: Option<usize>) {
        let delivered = self.vcpu.delivered().len();
        let failing = !self.vcpu.has_failed();
        let reason = self.run_order(order, armed, stop_after);
        let failed = failing && self.vcpu.has_failed();
        let masked = matches!(order, VcpuOrder::Step(StepOrder { mask: true, .. }));
        check(!self.stepper.is_incomplete(), "an access is half done");
        check(
            self.memory.get(HANDLER.into(), 1) == [0x41],
            "an INT3 stays at a handler",
        );
        check(
            self.vcpu.fmask() == 0,
            "IA32_FMASK is as the guest has set it",
        );
        if let StopReason::InternalError(text) = &reason {
            check(failed, text);
            check(text.contains("was made to fail"), text);
            self.assert_is_clean("after a call that failed");
            return;
        }
        if masked {
            let landed = self.vcpu.delivered().iter().skip(delivered);
            check(
                !landed
                    .into_iter()
                    .any(|vector| [INTERRUPT, NMI].contains(vector)),
                "a masked step landed",
            );
            if reason == StopReason::Step {
                check(self.stepper.is_masked(), "the mask is held between steps");
            }
        }
        match (order, &reason) {
            (VcpuOrder::Step(_), StopReason::Step | StopReason::Interrupted)
            | (VcpuOrder::Continue, StopReason::HardwareBreakpoint | StopReason::Interrupted) => {}
            (order, reason) => check(false, &format!("{order:?} ended with {reason:?}")),
        }
    }

    /// The loop of a VMM.
    fn run_order(
        &mut self,
        order: &VcpuOrder,
        armed: &Arc<Armed>,
        stop_after: Option<usize>,
    ) -> StopReason {
        let mut next = self
            .stepper
            .start(order, armed, &mut self.vcpu, &self.memory);
        let mut entries = 0;
        let mut sleeps = false;
        loop {
            let complete = match next {
                Next::Stopped(reason) => return reason,
                Next::Enter => false,
                Next::Complete => true,
            };
            let must_stop = sleeps || stop_after.is_some_and(|after| entries >= after);
            if must_stop && !complete {
                next = self.stepper.interrupt(&mut self.vcpu, &self.memory);
                entries += 1;
                check(
                    stop_after.is_none_or(|after| entries <= after + AFTER_A_KICK + PATIENCE / 2),
                    "a kick is not seen",
                );
                continue;
            }
            entries += 1;
            check(entries < PATIENCE, &format!("{order:?} does not end"));
            self.one_entry_later();
            let kicked =
                !complete && self.kick_behind_injection && self.vcpu.kick_behind_injection();
            self.kick_behind_injection &= !kicked;
            // Kicked: it does not get further.
            let exit = self.vcpu.run(&self.memory, complete || kicked, 50);
            // Something may be about to come.
            sleeps = exit == Exit::Sleeps && self.to_come.is_none();
            if matches!(exit, Exit::PortRead(_) | Exit::MemoryRead(_)) {
                self.vcpu.answer(0x5a);
            }
            let outcome = SimulatedVcpu::outcome(&exit);
            next = self.stepper.ran(outcome, &mut self.vcpu, &self.memory);
        }
    }

    /// What the debugger sees. A call that fails here is the debugger's to report.
    fn look(&mut self) {
        let mut file = RegisterFile::default();
        let groups = RegisterGroups::EXPEDITED;
        let read = self
            .stepper
            .read_registers(groups, &mut file, &mut self.vcpu);
        if read.is_ok() {
            check(
                file.core.rflags & RFLAGS_TF == 0,
                "the debugger's TF is shown",
            );
            let real = self.vcpu.registers();
            check(file.core.rip == real.core.rip, "a stale RIP is shown");
            check(file.special.cs == real.special.cs, "a stale CS is shown");
        }
        let _ = self.stepper.run_state(&mut self.vcpu);
    }

    fn release(&mut self) {
        if let Err(error) = self.stepper.release(&mut self.vcpu, &self.memory) {
            // Only once, and the second attempt is the stepper's own.
            check(false, &format!("released in spite of one failure: {error}"));
        }
        self.assert_is_clean("after a client was lost");
    }

    /// As [`Stepper::release`] says, before the VMM runs the vCPU without the stepper.
    fn let_go(&mut self) {
        self.release();
        // A call may fail, once.
        for _ in 0..2 {
            let reason = self.run_order(&VcpuOrder::Continue, &Arc::default(), Some(5));
            if !matches!(reason, StopReason::InternalError(_)) {
                break;
            }
        }
        self.release();
    }

    fn run_alone(&mut self, entries: u8) {
        self.let_go();
        for _ in 0..entries {
            self.one_entry_later();
            if self.enter_alone(false) {
                // The VMM completes an access before the debugger has the vCPU.
                self.enter_alone(true);
            }
        }
        self.stepper.forget_registers(&mut self.vcpu);
    }

    /// One entry without the stepper. Returns `true` if the guest has made an access.
    fn enter_alone(&mut self, complete: bool) -> bool {
        let exit = self.vcpu.run(&self.memory, complete, 100);
        let reads = matches!(exit, Exit::PortRead(_) | Exit::MemoryRead(_));
        if reads {
            self.vcpu.answer(0x5a);
        }
        check(
            !matches!(exit, Exit::Debug(_) | Exit::InternalError | Exit::Shutdown),
            "the guest runs as without a debugger",
        );
        reads || matches!(SimulatedVcpu::outcome(&exit), Outcome::Served)
    }

    fn assert_is_clean(&self, when: &str) {
        check(
            *self.vcpu.debug() == GuestDebug::OFF,
            &format!("{when}: armed"),
        );
        check(!self.stepper.is_masked(), &format!("{when}: masked"));
        check(!self.stepper.is_stepping(), &format!("{when}: stepping"));
        check(
            self.vcpu.registers().core.rflags & RFLAGS_TF == 0,
            &format!("{when}: TF"),
        );
    }

    /// No order is under way: whatever the VMM reports, the vCPU stays stopped.
    fn report_wrong_exit(&mut self, which: u8) {
        let outcome = match which % 5 {
            0 => Outcome::Served,
            1 => Outcome::Nothing,
            2 => Outcome::Halted,
            // It would drop an interrupt.
            3 if self.stepper.withheld_interrupt().is_none() => Outcome::Restarted,
            _ => Outcome::Debug(crate::x86_64::stepper::DebugExit {
                exception: which.into(),
                ..Default::default()
            }),
        };
        let next = self.stepper.ran(outcome, &mut self.vcpu, &self.memory);
        check(
            matches!(next, Next::Stopped(StopReason::InternalError(_))),
            "an exit without an order",
        );
        // The VMM completes what it has promised.
        if self.stepper.is_incomplete() {
            let exit = self.vcpu.run(&self.memory, true, 1);
            let outcome = SimulatedVcpu::outcome(&exit);
            let _ = self.stepper.ran(outcome, &mut self.vcpu, &self.memory);
        }
    }

    /// Ends the scenario: the debugger goes, the guest runs freely, and what arrived is delivered
    /// once.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn finish(mut self) {
        self.let_go();
        while self.to_come.is_some() {
            self.one_entry_later();
        }
        for _ in 0..1000 {
            if self.vcpu.is_quiet() {
                break;
            }
            let registers = self.vcpu.registers_mut();
            registers.core.rflags |= RFLAGS_IF;
            self.enter_alone(false);
        }
        self.vcpu.accept_init();
        check(
            (self.vcpu.registers().core.rbp == 0) == self.restarted,
            "registers from before INIT came back, or others were lost",
        );
        if !self.restarted {
            check(self.vcpu.is_quiet(), "an interrupt is lost");
            for (vector, arrived) in [INTERRUPT, NMI].into_iter().zip(self.arrived) {
                let taken = self.vcpu.delivered().iter();
                let taken = taken.filter(|delivered| **delivered == vector).count();
                check(
                    taken == arrived,
                    &format!("{taken} of {arrived} {vector:#x}"),
                );
            }
            check(
                !self.vcpu.delivered().contains(&1),
                "the guest got a #DB that is not its own",
            );
        }
        check(
            self.memory.get(CODE.into(), PROGRAM.len()) == self.program,
            "the guest's code has changed",
        );
    }
}

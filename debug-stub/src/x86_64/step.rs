//! What one instruction will do, and how a single step under a hypervisor changes it.
//!
//! A hypervisor steps by setting RFLAGS.TF in the guest, and the guest can see that. Instructions and
//! events that store RFLAGS store the debugger's TF too. Some steps cover two instructions. Some stop
//! before anything was executed. A [`StepPlan`] decodes the instruction before the step.
//! [`settle`](StepPlan::settle) then says what to mend. A stepped run leaves the guest's registers and
//! memory as a free run does.

mod clock;
mod decode;
mod delivery;
mod exceptions;
mod faultless;
mod footprint;
mod frame;
mod gate;
mod guards;
mod machine;
mod operand;
mod unit;
mod user_return;

use arrayvec::ArrayVec;

use iced_x86::Mnemonic;

pub(crate) use self::delivery::Delivery;
pub(crate) use self::footprint::Places;
pub(crate) use self::guards::{Guards, HANDLERS};
use self::machine::Machine;
use self::unit::{Outcome, Unit};
pub(crate) use self::user_return::UserReturn;
use super::RegisterFile;
use super::bits::RFLAGS_TF;
use crate::{GuestMemory, GuestPhysAddr};

/// The class of an instruction, as far as it matters to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StepClass {
    /// Nothing special.
    Plain,
    /// A jump, call or return that leaves RFLAGS alone.
    Branch,
    /// PUSHF: stores RFLAGS on the stack.
    PushFlags,
    /// POPF: takes TF from the stack.
    PopFlags,
    /// IRET: takes RIP and TF from the stack.
    InterruptReturn,
    /// INT n, INT3, INTO, INT1.
    SoftwareInterrupt,
    /// SYSCALL: stores RFLAGS in R11.
    SystemCall,
    /// SYSRET: takes TF from R11.
    SystemReturn,
    /// SYSENTER or SYSEXIT: TF is left as it is.
    FastSystemCall,
    /// HLT.
    Halt,
    /// STI: interrupts stay blocked for one more instruction.
    EnableInterrupts,
    /// MOV SS, POP SS: traps stay blocked for one more instruction; a step may cover two.
    LoadStackSegment,
    /// A string instruction with a REP prefix: one step may be one iteration, or all.
    RepeatString,
    /// IN, OUT, INS, OUTS without REP: may leave the hypervisor in the middle of the step.
    PortIo,
    /// Not decoded: unreadable, or no instruction.
    Unknown,
}

/// Whether the step is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    /// At least one instruction, or one iteration of it, was executed, or an event delivered.
    Done,
    /// Nothing was executed although RIP must move: arm the step again.
    NotStarted,
}

/// One byte of guest memory that holds bit 8 of a stored RFLAGS image, and what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mend {
    /// Where the byte is: the second of the image.
    pub address: GuestPhysAddr,
    /// Its correct value: differs from the present one in bit 0 (RFLAGS bit 8, TF) only.
    pub value: u8,
}

/// What a step has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Whether it is done.
    pub progress: Progress,
    /// The guest's own RFLAGS.TF now. A reader of its registers must see this value, and RFLAGS must
    /// have it when the guest runs on without a step.
    pub guest_tf: bool,
    /// The guest's own TF was set as the instruction began, and the instruction has completed: a
    /// free run would take a #DB with DR6.BS now.
    pub guest_trap: bool,
    /// R11 as SYSCALL would have stored it, if the present value differs.
    pub r11: Option<u64>,
    /// A handler was entered and has run inside the step: what it has read of its frame, and copied,
    /// shows the debugger's TF.
    pub ran_handler: bool,
    /// Stored RFLAGS images that show the debugger's TF.
    pub mends: ArrayVec<Mend, 4>,
}

impl Settlement {
    /// Writes the [`mends`](Self::mends). Returns `false` if one could not be written.
    pub fn mend(&self, memory: &impl GuestMemory) -> bool {
        self.mends
            .iter()
            .all(|mend| memory.write_memory(mend.address, &[mend.value]) == 1)
    }
}

/// Collects mends, each byte once.
#[derive(Debug, Default)]
struct Mends(ArrayVec<Mend, 4>);

impl Mends {
    fn add(&mut self, mend: Option<Mend>) {
        if let Some(mend) = mend {
            if self.0.iter().all(|known| known.address != mend.address) {
                // At most one frame or image is live, and at most two were returned from.
                let _ = self.0.try_push(mend);
            }
        }
    }
}

/// How many instructions one step may cover: each but the last loads SS, calls a handler or is STI.
const MOST_INSTRUCTIONS: usize = 4;

/// What the step is about to do. Create one before each step, from the stopped vCPU.
///
/// A handler that the instruction calls, by INT n or by a fault, runs free inside the step where the
/// hypervisor does not emulate: its entry clears TF. What it reads or copies of its frame shows the
/// debugger's TF, and no later mend finds the copies. The stepper stops at the handler's first
/// instruction instead; the plan says where that is.
#[derive(Clone, Debug)]
pub struct StepPlan {
    first: Unit,
    /// The instructions that some hypervisors execute in the same step.
    followers: ArrayVec<Unit, { MOST_INSTRUCTIONS - 1 }>,
    /// IA32_FMASK leaves TF as it is.
    system_call_keeps_tf: bool,
}

impl StepPlan {
    /// Decodes the instruction at the PC of `registers`: CORE and SPECIAL, with RFLAGS.TF the
    /// guest's own. Reads guest memory and changes nothing.
    #[must_use]
    pub fn new(registers: &RegisterFile, memory: &impl GuestMemory) -> Self {
        let machine = Machine::of(registers);
        let first = Unit::new(machine, memory, false);
        let mut followers = ArrayVec::new();
        let mut next = follower(&first, memory);
        while let Some(unit) = next.take() {
            next = follower(&unit, memory);
            if followers.try_push(unit).is_err() {
                break;
            }
        }
        Self {
            first,
            followers,
            system_call_keeps_tf: false,
        }
    }

    /// IA32_FMASK as the guest has set it. Without it SYSCALL counts as one that clears TF, as every
    /// operating system has it.
    pub fn set_system_call_mask(&mut self, fmask: u64) {
        self.system_call_keeps_tf = fmask & RFLAGS_TF == 0;
    }

    /// The class of the instruction.
    #[must_use]
    pub fn class(&self) -> StepClass {
        self.first.class()
    }

    /// HLT at a privilege level that may execute it.
    #[must_use]
    pub fn halts(&self) -> bool {
        self.class() == StepClass::Halt && self.first.machine.cpl() == 0
    }

    /// SYSCALL or SYSRET, if the step may execute one.
    #[must_use]
    pub fn system_call(&self) -> Option<StepClass> {
        let classes = self.units().map(Unit::class);
        classes
            .into_iter()
            .find(|class| matches!(class, StepClass::SystemCall | StepClass::SystemReturn))
    }

    /// Returns `true` if the step may change a debug register of the guest's own.
    #[must_use]
    pub fn touches_debug_registers(&self) -> bool {
        let mut instructions = self.units().map(|unit| &unit.decoded.instruction);
        instructions.any(exceptions::touches_debug_register)
    }

    /// Returns `true` if the instruction gets as far as the check of DR7.GD: MOV of a debug register that
    /// raises nothing before (SDM 2 "MOV--Move to/from Debug Registers").
    #[must_use]
    pub fn accesses_debug_register(&self) -> bool {
        self.first.machine.cpl() == 0
            && exceptions::accesses_debug_register(
                &self.first.machine,
                &self.first.decoded.instruction,
            )
    }

    fn units(&self) -> impl Iterator<Item = &Unit> {
        std::iter::once(&self.first).chain(&self.followers)
    }

    /// The instruction's bytes. If it was not decoded, all bytes that could be read.
    #[must_use]
    pub fn code(&self) -> &[u8] {
        let decoded = &self.first.decoded;
        decoded.code.get(..decoded.length).unwrap_or_default()
    }

    /// RIP right after the instruction, wrapped at the width of the code. The instruction's own RIP if it
    /// was not decoded.
    #[must_use]
    pub fn next_rip(&self) -> u64 {
        self.first.next()
    }

    /// Returns `true` if what the step executes may read a clock, set one, or wait for one. `false` if the
    /// guest cannot notice in this step that its clocks are wrong.
    #[must_use]
    pub fn may_read_clock(&self) -> bool {
        self.units().any(Unit::may_read_clock)
    }

    /// Returns `true` if RIP may be unchanged after a completed step: REP string instructions, jumps to
    /// themselves, and instructions whose effect is unknown.
    #[must_use]
    pub fn may_stay(&self) -> bool {
        self.first.may_stay()
    }

    /// Says what the step did and what to mend. `after` is CORE and SPECIAL as the hypervisor
    /// shows them now; its RFLAGS.TF is ignored. `memory` is the memory that
    /// [`new`](Self::new) had.
    ///
    /// For [`Progress::NotStarted`] there is nothing to mend, and `guest_tf` is as before.
    pub fn settle(&self, after: &RegisterFile, memory: &impl GuestMemory) -> Settlement {
        let after = Machine::of(after);
        let mut mends = Mends::default();
        if !self.may_stay() && self.first.is_untouched(&after) {
            return Settlement {
                progress: Progress::NotStarted,
                guest_tf: self.first.machine.tf(),
                guest_trap: false,
                r11: None,
                ran_handler: false,
                mends: mends.0,
            };
        }
        if let Some(outcome) = self.switched_task(&after, memory, &mut mends) {
            return outcome.settlement(mends);
        }
        let only = self.followers.is_empty();
        let mut outcome = None;
        for unit in self.units() {
            outcome = unit.outcome(&after, memory, only, &mut mends);
            let completed = outcome.is_some_and(|outcome| outcome.completed);
            unit.mend_passed_frames(&after, memory, completed, &mut mends);
            if let Some(outcome) = &mut outcome {
                if unit.class() == StepClass::SystemCall && self.system_call_keeps_tf {
                    outcome.guest_tf = unit.machine.tf();
                    outcome.guest_trap = unit.machine.tf();
                }
                break;
            }
        }
        // Not where an instruction leads: inside a handler.
        let settlement = outcome.unwrap_or(Outcome::HANDLER).settlement(mends);
        Settlement {
            ran_handler: outcome.is_none(),
            ..settlement
        }
    }

    /// A task switch has stored RFLAGS in the TSS that it left, and loaded those of the other (SDM
    /// 3A 8.3).
    fn switched_task(
        &self,
        after: &Machine,
        memory: &impl GuestMemory,
        mends: &mut Mends,
    ) -> Option<Outcome> {
        let before = &self.first.machine;
        let task = |machine: &Machine| (machine.special.tr.selector, machine.special.tr.base);
        let loads_tr = self.first.decoded.instruction.mnemonic() == Mnemonic::Ltr;
        if task(before) == task(after) || loads_tr || before.long_mode() {
            return None;
        }
        let left = gate::saved_flags(before)?.checked_add(1)?;
        mends.add(frame::mend(before, memory, left, before.tf()));
        let entered = gate::saved_flags(after)?.checked_add(1)?;
        let byte = after.read(memory, entered, 1)?;
        Some(Outcome {
            completed: true,
            guest_tf: byte & 1 != 0,
            guest_trap: false,
            r11: None,
        })
    }
}

/// The next instruction, if one step may cover both. That is so after MOV SS and POP SS, which
/// block the trap, and after INT n, whose handler returns with TF set and therefore traps one
/// instruction late.
fn follower(first: &Unit, memory: &impl GuestMemory) -> Option<Unit> {
    let mut machine = first.machine;
    machine.core.rip = first.next();
    match first.class() {
        StepClass::SoftwareInterrupt | StepClass::EnableInterrupts => {}
        StepClass::LoadStackSegment => {
            operand::load_stack_segment(&mut machine, memory, &first.decoded.instruction)?
        }
        _ => return None,
    }
    Some(Unit::new(machine, memory, true))
}

#[cfg(test)]
mod tests;

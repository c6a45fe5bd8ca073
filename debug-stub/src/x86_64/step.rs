//! What one instruction will do, and how a single step under a hypervisor changes it.
//!
//! A hypervisor steps by setting RFLAGS.TF in the guest, and the guest can see that. Instructions and
//! events that store RFLAGS store the debugger's TF too. Some steps cover two instructions. Some stop
//! before anything was executed. A [`StepPlan`] decodes the instruction before the step.
//! [`settle`](StepPlan::settle) then says what to mend. A stepped run leaves the guest's registers and
//! memory as a free run does.

mod decode;
mod frame;
mod machine;
mod operand;
mod unit;

use arrayvec::ArrayVec;

use self::machine::Machine;
use self::unit::{Outcome, Unit};
use super::RegisterFile;
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

/// What the step is about to do. Create one before each step, from the stopped vCPU.
///
/// Not covered, because the hypervisor leaves no trace of it:
/// - frames on stacks of the interrupt stack table, of privilege levels 1 and 2 and behind task gates,
///   unless the step ends at the handler's first instruction;
/// - a handler that runs inside a step and changes the TF that it returns to.
#[derive(Clone, Debug)]
pub struct StepPlan {
    first: Unit,
    /// The instruction that some hypervisors execute in the same step.
    second: Option<Unit>,
}

impl StepPlan {
    /// Decodes the instruction at the PC of `registers`: CORE and SPECIAL, with RFLAGS.TF the
    /// guest's own. Reads guest memory and changes nothing.
    #[must_use]
    pub fn new(registers: &RegisterFile, memory: &impl GuestMemory) -> Self {
        let machine = Machine::of(registers);
        let first = Unit::new(machine, memory, false);
        let second = follower(&first, memory);
        Self { first, second }
    }

    /// The class of the instruction.
    #[must_use]
    pub fn class(&self) -> StepClass {
        self.first.class()
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
                mends: mends.0,
            };
        }
        let only = self.second.is_none();
        let mut outcome = self.first.outcome(&after, memory, only, &mut mends);
        let completed = outcome.is_some_and(|outcome| outcome.completed);
        self.first
            .mend_passed_frames(&after, memory, completed, &mut mends);
        if let (None, Some(second)) = (outcome, &self.second) {
            outcome = second.outcome(&after, memory, false, &mut mends);
            let completed = outcome.is_some_and(|outcome| outcome.completed);
            second.mend_passed_frames(&after, memory, completed, &mut mends);
        }
        // Not where the instruction leads: inside a handler.
        let Outcome {
            guest_tf,
            guest_trap,
            r11,
            completed: _,
        } = outcome.unwrap_or(Outcome::HANDLER);
        Settlement {
            progress: Progress::Done,
            guest_tf,
            guest_trap,
            r11,
            mends: mends.0,
        }
    }
}

/// The next instruction, if one step may cover both: after MOV SS and POP SS, which block the trap, and
/// after INT n, whose handler returns with TF set and therefore traps one instruction late.
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

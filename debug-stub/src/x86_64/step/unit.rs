//! One instruction of a step: the state before it, and how to find out what it did.

use arrayvec::ArrayVec;
use iced_x86::{Instruction, Mnemonic};

use super::decode::{Decoded, Successor, decode};
use super::frame::{self, Expected, Place};
use super::machine::Machine;
use super::{Mends, Progress, Settlement, StepClass};
use crate::GuestMemory;
use crate::x86_64::Segment;
use crate::x86_64::bits::{RFLAGS_NT, RFLAGS_RF, RFLAGS_TF};

/// A place where the instruction may leave a frame.
#[derive(Clone, Copy, Debug)]
struct Watched {
    place: Place,
    /// What is there already looks like a frame with TF set: a dead frame of the guest's, from an earlier
    /// time. TF alone says nothing, because a stack keeps its old contents.
    stale: bool,
}

/// One instruction, before it is executed.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) machine: Machine,
    pub(super) decoded: Decoded,
    watched: ArrayVec<Watched, 2>,
    /// The state before it is a guess: the previous instruction may have changed the flags.
    guessed: bool,
}

/// What an instruction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The instruction has completed; otherwise the vCPU is in a handler.
    pub(super) completed: bool,
    /// The guest's own TF now.
    pub(super) guest_tf: bool,
    /// The guest had TF set itself, and the instruction has completed.
    pub(super) guest_trap: bool,
    /// The value that R11 must have.
    pub(super) r11: Option<u64>,
}

impl Outcome {
    /// An event was delivered: that clears TF (SDM 3A 6.12.1.3), and no trap follows.
    pub(super) const HANDLER: Self = Self {
        completed: false,
        guest_tf: false,
        guest_trap: false,
        r11: None,
    };

    pub(super) fn settlement(self, mends: Mends) -> Settlement {
        Settlement {
            progress: Progress::Done,
            guest_tf: self.guest_tf,
            guest_trap: self.guest_trap,
            r11: self.r11,
            ran_handler: false,
            mends: mends.0,
        }
    }
}

impl Unit {
    pub(super) fn new(machine: Machine, memory: &impl GuestMemory, guessed: bool) -> Self {
        let mut unit = Self {
            machine,
            decoded: decode(&machine, memory),
            watched: ArrayVec::new(),
            guessed,
        };
        let ips = [machine.core.rip, unit.next()];
        let expected = unit.expected(&ips);
        let watched = frame::candidates(&machine, memory)
            .filter_map(|place| {
                let tf = place.tf(&machine, memory)?;
                let stale = tf && place.matches(&machine, memory, &expected);
                Some(Watched { place, stale })
            })
            .take(2)
            .collect();
        unit.watched = watched;
        unit
    }

    pub(super) fn class(&self) -> StepClass {
        self.decoded.class
    }

    /// RIP after it.
    pub(super) fn next(&self) -> u64 {
        self.decoded.next
    }

    /// IRET to the task that the present one interrupted or was called by (SDM 3A 8.3).
    pub(super) fn returns_to_task(&self) -> bool {
        let machine = &self.machine;
        let nested = machine.core.rflags & RFLAGS_NT != 0;
        nested && !machine.real_segments() && !machine.long_mode()
    }

    /// Where the instruction leads, in linear terms, if some hypervisor runs past that: kvm_pvm does
    /// not trap IRET, SWAPGS and the like, and takes one more instruction along.
    pub(super) fn untrapped_successor(&self) -> Option<u64> {
        let machine = &self.machine;
        match (self.class(), self.decoded.successor) {
            (StepClass::InterruptReturn, Successor::Only(target, selector)) => {
                let wide = machine.long_mode() || machine.real_segments();
                let base = match selector {
                    Some(selector) if machine.real_segments() => u64::from(selector) << 4,
                    _ if wide || selector == Some(machine.special.cs.selector) => {
                        machine.special.cs.base
                    }
                    _ => return None,
                };
                Some(base.wrapping_add(target))
            }
            (_, Successor::Next) if moves_a_base(&self.decoded.instruction) => {
                Some(machine.linear(&machine.special.cs, self.next()).0)
            }
            _ => None,
        }
    }

    pub(super) fn may_stay(&self) -> bool {
        let rip = self.machine.core.rip;
        let selector = self.machine.special.cs.selector;
        match self.decoded.class {
            StepClass::RepeatString => return true,
            // They can be recognised: RCX is the next RIP, or CS has changed.
            StepClass::SystemCall => return false,
            _ => {}
        }
        match self.decoded.successor {
            Successor::Next => false,
            Successor::NextOr(target) => target == rip,
            Successor::Only(target, cs) => target == rip && cs.is_none_or(|cs| cs == selector),
            Successor::Anywhere => true,
        }
    }

    /// Returns `true` if the vCPU's registers are unchanged. KVM sets and clears RF and TF as it steps, and
    /// the first VMX entry may change the accessed bit and the type of a segment that userspace has set.
    pub(super) fn is_untouched(&self, after: &Machine) -> bool {
        let ignore = |core: &crate::x86_64::CoreRegisters| crate::x86_64::CoreRegisters {
            rflags: core.rflags & !(RFLAGS_TF | RFLAGS_RF),
            ..*core
        };
        ignore(&self.machine.core) == ignore(&after.core)
            && same_place(&self.machine.special.cs, &after.special.cs)
            && same_place(&self.machine.special.ss, &after.special.ss)
    }

    /// Returns `true` if RIP is where the completed instruction would leave it.
    fn explains(&self, after: &Machine) -> bool {
        let near = |target: u64| {
            (after.core.rip ^ target) & self.machine.ip_mask() == 0
                && after.special.cs.selector == self.machine.special.cs.selector
        };
        let next = near(self.decoded.next);
        if self.class() == StepClass::SystemCall {
            return self.has_called(after);
        }
        match self.decoded.successor {
            Successor::Next => {
                next || (self.class() == StepClass::RepeatString && near(self.machine.core.rip))
            }
            Successor::NextOr(target) => next || near(target),
            Successor::Only(target, cs) => {
                after.core.rip == target && cs.is_none_or(|cs| cs == after.special.cs.selector)
            }
            Successor::Anywhere => false,
        }
    }

    /// What it did, or `None` if it cannot lead to RIP. `only` says that it is the step's only instruction:
    /// then one whose target is unknown may have led anywhere.
    pub(super) fn outcome(
        &self,
        after: &Machine,
        memory: &impl GuestMemory,
        only: bool,
        mends: &mut Mends,
    ) -> Option<Outcome> {
        let own = self.machine.core.rip;
        // Events whose frame certainly has the next RIP: a trap of the instruction itself, and an event
        // that ends HLT.
        let traps = matches!(self.class(), StepClass::SoftwareInterrupt | StepClass::Halt);
        let likely: &[u64] = if traps { &[own, self.next()] } else { &[own] };
        if self.is_in_handler(after, memory, likely, mends) {
            return Some(Outcome::HANDLER);
        }
        if self.explains(after) {
            return Some(self.completed(after, memory, mends));
        }
        // An interrupt that entered right after it.
        if self.is_in_handler(after, memory, &[self.next()], mends) {
            return Some(Outcome::HANDLER);
        }
        if only && self.decoded.successor == Successor::Anywhere {
            return Some(self.completed(after, memory, mends));
        }
        None
    }

    /// Returns `true` if the vCPU is at the first instruction of the handler of an event that interrupted
    /// the stepped instruction. The saved TF is mended then.
    fn is_in_handler(
        &self,
        after: &Machine,
        memory: &impl GuestMemory,
        ips: &[u64],
        mends: &mut Mends,
    ) -> bool {
        // Delivery always moves the stack pointer, possibly to another stack.
        if after.core.rsp == self.machine.core.rsp
            && after.special.cs.selector == self.machine.special.cs.selector
        {
            return false;
        }
        let expected = self.expected(ips);
        let Some(place) = frame::at_top_of_stack(&self.machine, after)
            .find(|place| place.matches(after, memory, &expected))
        else {
            return false;
        };
        mends.add(place.mend(after, memory, self.machine.tf()));
        true
    }

    fn expected<'a>(&'a self, ips: &'a [u64]) -> Expected<'a> {
        Expected {
            machine: &self.machine,
            ips,
            class: self.class(),
            loose: self.guessed,
        }
    }

    /// Frames with TF set through which a handler was entered inside the step; the handler may have ended.
    /// They were not there before the step. `completed` says that the instruction itself has completed
    /// since then.
    pub(super) fn mend_passed_frames(
        &self,
        after: &Machine,
        memory: &impl GuestMemory,
        completed: bool,
        mends: &mut Mends,
    ) {
        if self.machine.tf() {
            return;
        }
        let ips = [self.machine.core.rip, self.next()];
        let expected = self.expected(&ips);
        for watched in &self.watched {
            if watched.stale || watched.place.tf(after, memory) != Some(true) {
                continue;
            }
            if completed && !watched.place.is_free(after) {
                continue;
            }
            if watched.place.matches(after, memory, &expected) {
                mends.add(watched.place.mend(after, memory, false));
            }
        }
    }

    /// The instruction has completed.
    fn completed(&self, after: &Machine, memory: &impl GuestMemory, mends: &mut Mends) -> Outcome {
        let own_tf = self.machine.tf();
        let mut outcome = Outcome {
            completed: true,
            guest_tf: own_tf,
            guest_trap: own_tf,
            r11: None,
        };
        match self.class() {
            StepClass::PushFlags => {
                // Only if it has pushed.
                let size = self.decoded.image_size;
                let moved = self.machine.core.rsp.wrapping_sub(after.core.rsp);
                if (moved ^ size) & self.machine.sp_mask() == 0 {
                    mends.add(frame::mend(after, memory, after.stack_address(1), own_tf));
                }
            }
            StepClass::PopFlags | StepClass::InterruptReturn | StepClass::SystemReturn => {
                outcome.guest_tf = self.decoded.loaded_tf.unwrap_or(own_tf);
                if self.class() == StepClass::SystemReturn {
                    // It traps by the TF that it has loaded (as after the system call's own end).
                    outcome.guest_trap = outcome.guest_tf;
                }
            }
            StepClass::SystemCall => {
                // The kernel's entry runs with the TF that IA32_FMASK leaves: every operating system masks
                // TF. At privilege level 3 SYSRET has restored it.
                let returned = after.cpl() == 3 && self.machine.cpl() == 3;
                outcome.guest_tf = own_tf && returned;
                outcome.guest_trap = outcome.guest_tf;
                outcome.r11 = self.system_call_r11(after);
            }
            // Its delivery has cleared TF, and there is no trap (SDM 3B 18.3.1.4).
            StepClass::SoftwareInterrupt => outcome.guest_trap = false,
            // Traps are blocked until after the next instruction (SDM 3A 7.8.3).
            StepClass::LoadStackSegment => outcome.guest_trap = false,
            _ => {}
        }
        outcome
    }

    /// SYSCALL has put the next RIP into RCX and RFLAGS, without RF, into R11 (SDM 2 "SYSCALL").
    fn has_called(&self, after: &Machine) -> bool {
        let ignored = RFLAGS_TF | RFLAGS_RF;
        after.core.rcx == self.next() && (after.core.r11 ^ self.machine.core.rflags) & !ignored == 0
    }

    fn system_call_r11(&self, after: &Machine) -> Option<u64> {
        if !self.has_called(after) {
            return None;
        }
        let right = (after.core.r11 & !RFLAGS_TF) | (self.machine.core.rflags & RFLAGS_TF);
        (right != after.core.r11).then_some(right)
    }
}

/// SWAPGS, RDFSBASE and the like.
fn moves_a_base(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Swapgs
            | Mnemonic::Rdfsbase
            | Mnemonic::Rdgsbase
            | Mnemonic::Wrfsbase
            | Mnemonic::Wrgsbase
    )
}

/// Returns `true` if addresses in the two segments mean the same.
fn same_place(before: &Segment, after: &Segment) -> bool {
    (before.selector, before.base) == (after.selector, after.base)
}

//! The #DB of a step that the hypervisor delivers to the guest itself, and how to take it back.
//!
//! A software KVM runs user code natively. The trap of a step then goes where the guest's gate of vector 1
//! leads. The stepper stops at the first instruction there, and the step is done when the delivery is undone.

use arrayvec::ArrayVec;
use iced_x86::Mnemonic;

use super::exceptions::{self, DEBUG};
use super::frame::{self, MOST_FRAME, Place};
use super::machine::{Machine, width_mask};
use super::{StepPlan, gate};
use crate::GuestMemory;
use crate::x86_64::bits::{RFLAGS_TF, RFLAGS_VM};
use crate::x86_64::descriptor::{self, SELECTOR_RPL};
use crate::x86_64::paging::{read_virtual, write_virtual};
use crate::x86_64::{RegisterFile, Segment};

/// Where the #DB of a step would go, and what its frame would overwrite.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    before: Machine,
    /// Linear address of the handler's first instruction.
    handler: u64,
    place: Place,
    overwritten: ArrayVec<u8, MOST_FRAME>,
}

impl StepPlan {
    /// Returns `true` if the instruction is user code. Virtual-8086 mode is not counted: the software KVM
    /// emulates it.
    pub(crate) fn is_user_code(&self) -> bool {
        let machine = &self.first.machine;
        machine.cpl() == 3 && !machine.virtual_8086()
    }

    /// Returns `true` if the instruction itself raises #DB: INT1, INT 1.
    pub(crate) fn calls_debug_handler(&self) -> bool {
        let instruction = &self.first.decoded.instruction;
        instruction.mnemonic() == Mnemonic::Int1
            || exceptions::software_vector(instruction) == Some(DEBUG)
    }

    /// Where the #DB after the instruction, which is user code, would go. Reads guest memory and changes
    /// nothing.
    ///
    /// # Errors
    /// Why its delivery could not be undone.
    pub(crate) fn trap_delivery(
        &self,
        memory: &impl GuestMemory,
    ) -> Result<Delivery, &'static str> {
        let before = self.first.machine;
        let target =
            gate::target(&before, memory, DEBUG).ok_or("the gate of vector 1 is not usable")?;
        let code = descriptor::read(&before.special, memory, target.selector)?;
        if code.dpl != 0 {
            return Err("the handler of vector 1 is not at CPL0");
        }
        let place = frame::of_user_event(&before, memory, target.stack)
            .ok_or("the stack for vector 1 is not known")?;
        let (at, length) = place.span(&before);
        let mut overwritten = ArrayVec::from([0; MOST_FRAME]);
        overwritten.truncate(length);
        if read_virtual(&before.special, memory, at, &mut overwritten) != length {
            return Err("the stack for vector 1 is not memory");
        }
        Ok(Delivery {
            before,
            handler: target.address,
            place,
            overwritten,
        })
    }
}

impl Delivery {
    /// Linear address of the handler's first instruction.
    pub(crate) fn handler(&self) -> u64 {
        self.handler
    }

    /// The registers without the delivery, if the vCPU is at the handler's first instruction with the frame
    /// of user code. `after` is CORE and SPECIAL. TF is what it was before the step.
    pub(crate) fn undone(
        &self,
        after: &RegisterFile,
        memory: &impl GuestMemory,
    ) -> Option<RegisterFile> {
        let now = Machine::of(after);
        let top = now.sp() ^ self.place.top();
        if now.cpl() == 3 || after.linear_pc() != self.handler || top & width_mask(32) != 0 {
            return None;
        }
        let saved = self.place.saved(&now, memory)?;
        if saved.cs & SELECTOR_RPL != 3 || saved.flags & RFLAGS_VM != 0 {
            return None;
        }
        let mut undone = after.clone();
        let core = &mut undone.core;
        (core.rip, core.rsp) = (saved.ip, saved.sp);
        core.rflags = saved.flags & !RFLAGS_TF | self.before.core.rflags & RFLAGS_TF;
        let segment = |old: &Segment, selector| {
            if old.selector == selector {
                return Some(*old);
            }
            descriptor::read(&now.special, memory, selector).ok()
        };
        undone.special.cs = segment(&self.before.special.cs, saved.cs)?;
        undone.special.ss = segment(&self.before.special.ss, saved.ss)?;
        Some(undone)
    }

    /// Restores what the frame has overwritten. Returns `false` if it cannot be written.
    pub(crate) fn restore_memory(&self, memory: &impl GuestMemory) -> bool {
        let (at, length) = self.place.span(&self.before);
        write_virtual(&self.before.special, memory, at, &self.overwritten) == length
    }
}

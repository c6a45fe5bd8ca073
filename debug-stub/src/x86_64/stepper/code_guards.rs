//! INT3s at handlers that no debug register is free for.
//!
//! Watchpoints of the debugger may take all debug registers. A step then stops at the handlers that it may enter
//! by INT3s in guest memory, if these cannot be noticed:
//!
//! - INT3 leaves the guest (`bpt_exit` is verified);
//! - no other vCPU runs code ([`StepOrder::alone`](crate::StepOrder::alone));
//! - the step is masked: no interrupt's handler runs in it;
//! - the instruction does not touch these bytes ([`StepPlan::room_for_int3`]).
//!
//! They are in memory from the call that asks for an entry until the next call of the stepper. A device that
//! reads or writes the same bytes by DMA in that time is not noticed.

use arrayvec::ArrayVec;

use crate::address::GuestPhysAddr;
use crate::host::GuestMemory;
use crate::x86_64::StepPlan;
use crate::x86_64::step::{HANDLERS, Places};

/// The instruction.
const INT3: u8 = 0xcc;

/// An INT3 in guest memory.
#[derive(Clone, Copy, Debug)]
struct Written {
    at: GuestPhysAddr,
    /// What it has replaced.
    original: u8,
}

/// The INT3s of a step.
#[derive(Debug, Default)]
pub(super) struct CodeGuards {
    /// Linear addresses of the handlers.
    wanted: ArrayVec<u64, HANDLERS>,
    /// In memory now.
    written: ArrayVec<Written, HANDLERS>,
    /// In memory during the last entry.
    last: Places,
}

impl CodeGuards {
    /// The handlers at which the step is to stop.
    pub(super) fn want(&mut self, handlers: ArrayVec<u64, HANDLERS>) {
        self.wanted = handlers;
    }

    /// The step that wanted some is over.
    pub(super) fn forget(&mut self) {
        self.wanted.clear();
    }

    /// Returns `true` if INT3 has to leave the guest for them.
    pub(super) fn are_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Writes what is wanted, all or nothing. Returns `false` if there is no room for one of them.
    pub(super) fn write(&mut self, plan: &StepPlan, memory: &impl GuestMemory) -> bool {
        self.last.clear();
        if self.wanted.is_empty() {
            return true;
        }
        let Some(places) = plan.room_for_int3(&self.wanted, memory) else {
            return false;
        };
        let all_written = places.iter().all(|place| self.write_one(*place, memory));
        // Page tables that have changed with them lead elsewhere.
        if all_written && plan.room_for_int3(&self.wanted, memory).as_ref() == Some(&places) {
            self.last = places;
            return true;
        }
        // What cannot be restored stays known: the next call tries again.
        let _ = self.restore(memory);
        false
    }

    fn write_one(&mut self, at: GuestPhysAddr, memory: &impl GuestMemory) -> bool {
        let mut original = [0];
        if memory.read_memory(at, &mut original) != 1 {
            return false;
        }
        let [original] = original;
        // The guest's own, or the debugger's, serves as well.
        original == INT3
            || (memory.write_memory(at, &[INT3]) == 1
                && self.written.try_push(Written { at, original }).is_ok())
    }

    /// Takes them out of memory. What the guest has overwritten stays as it is.
    ///
    /// # Errors
    /// The address of one that is still there. Another call tries again.
    pub(super) fn restore(&mut self, memory: &impl GuestMemory) -> Result<(), GuestPhysAddr> {
        self.written.retain(|written| {
            let mut now = [0];
            let is_there = memory.read_memory(written.at, &mut now) == 1 && now == [INT3];
            is_there && memory.write_memory(written.at, &[written.original]) != 1
        });
        self.written
            .first()
            .map_or(Ok(()), |written| Err(written.at))
    }

    /// Returns `true` if the step was to stop at this address.
    pub(super) fn stop_at(&self, address: GuestPhysAddr) -> bool {
        self.last.contains(&address)
    }
}

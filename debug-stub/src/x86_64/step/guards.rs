//! Where a step may lead without a trap: handlers, other tasks, and what some hypervisors run past.

use arrayvec::ArrayVec;

use super::exceptions::{self, Exceptions, Vectors};
use super::machine::Machine;
use super::unit::Unit;
use super::{StepClass, StepPlan, faultless, gate};
use crate::GuestMemory;

/// More than there are debug registers.
const MOST: usize = 12;

/// Handlers that a step may enter, at most.
pub(crate) const HANDLERS: usize = 2 * MOST;

/// Linear addresses to stop at besides the trap, each once, in the order of their importance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guards {
    /// The step may well lead there.
    pub(crate) needed: ArrayVec<u64, MOST>,
    /// It leads there where an operating system is broken, or looks for the debugger.
    pub(crate) spare: ArrayVec<u64, MOST>,
}

impl Guards {
    fn need(&mut self, address: u64) {
        if !self.needed.contains(&address) {
            let _ = self.needed.try_push(address);
        }
    }

    /// The step leads there: its guard comes before all others.
    pub(crate) fn need_first(&mut self, address: u64) {
        self.needed.retain(|other| *other != address);
        if self.needed.is_full() {
            self.needed.pop();
        }
        let _ = self.needed.try_insert(0, address);
    }

    fn spare(&mut self, address: u64) {
        if !self.needed.contains(&address) && !self.spare.contains(&address) {
            let _ = self.spare.try_push(address);
        }
    }
}

impl StepPlan {
    /// Where the step may enter a handler or another task. `event` is the vector of an event that is
    /// delivered before the instruction.
    pub(crate) fn guards(&self, event: Option<u8>, memory: &impl GuestMemory) -> Guards {
        let mut guards = Guards::default();
        let machine = &self.first.machine;
        if let Some(at) = event.and_then(|vector| entry(machine, memory, vector)) {
            guards.need(at);
        }
        let (mut likely, mut rare) = (Vectors::default(), Vectors::default());
        for unit in self.units() {
            let machine = &unit.machine;
            let instruction = &unit.decoded.instruction;
            if let Some(vector) = exceptions::software_vector(instruction) {
                if let Some(at) = software_entry(machine, memory, vector) {
                    guards.need(at);
                }
            }
            if let Some(task) = next_task(unit, memory) {
                guards.need(task.start);
            }
            if let Some(at) = unit.untrapped_successor() {
                guards.need(at);
            }
            if faultless::is_faultless(unit, memory) {
                continue;
            }
            let exceptions = Exceptions::of(machine, unit.class(), instruction);
            likely.add(exceptions.likely.iter());
            rare.add(exceptions.rare.iter());
        }
        for at in likely
            .iter()
            .filter_map(|vector| entry(machine, memory, vector))
        {
            guards.need(at);
        }
        for at in rare
            .iter()
            .filter_map(|vector| entry(machine, memory, vector))
        {
            guards.spare(at);
        }
        guards
    }
}

/// Where an event leads, also if its gate cannot be used.
fn entry(machine: &Machine, memory: &impl GuestMemory, vector: u8) -> Option<u64> {
    follow(machine, memory, gate::handler(machine, memory, vector))
}

fn software_entry(machine: &Machine, memory: &impl GuestMemory, vector: u8) -> Option<u64> {
    // INT3, INTO and INT1 are not redirected in virtual-8086 mode (SDM 3B 20.3.3).
    let is_int = !matches!(
        vector,
        exceptions::DEBUG | exceptions::BREAKPOINT | exceptions::OVERFLOW
    );
    let found = if is_int {
        gate::software_handler(machine, memory, vector)
    } else {
        gate::handler(machine, memory, vector)
    };
    follow(machine, memory, found)
}

fn follow(machine: &Machine, memory: &impl GuestMemory, found: Result<u64, u8>) -> Option<u64> {
    found
        .or_else(|raised| gate::handler(machine, memory, raised))
        .or_else(|_| gate::handler(machine, memory, exceptions::DOUBLE_FAULT))
        .ok()
}

/// The task that the instruction switches to.
fn next_task(unit: &Unit, memory: &impl GuestMemory) -> Option<gate::Task> {
    let machine = &unit.machine;
    if machine.real_segments() || machine.long_mode() {
        return None;
    }
    match unit.class() {
        StepClass::InterruptReturn => unit
            .returns_to_task()
            .then(|| gate::linked_task(machine, memory))?,
        StepClass::Branch => gate::task(machine, memory, unit.decoded.selector?),
        _ => None,
    }
}

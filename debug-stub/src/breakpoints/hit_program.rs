//! What the VMM does at a hit, before a client sees it.

use crate::agent::Program;

/// The conditions and commands of a breakpoint ("Breakpoint Packets").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HitProgram {
    /// The client sees the hit if one of them is true. GDB sends one for each of its breakpoints there. There is
    /// none for a breakpoint that stops always.
    pub(crate) conditions: Vec<Program>,
    /// If there are some, they run in place of a stop.
    pub(crate) commands: Vec<Program>,
}

impl HitProgram {
    /// Returns the length of all bytecode.
    pub(crate) fn size(&self) -> usize {
        let programs = self.conditions.iter().chain(&self.commands);
        programs.map(Program::size).sum()
    }
}

//! Software breakpoints whose code comes, or changes, while the guest runs freely.
//!
//! A kernel is unpacked, loads modules, and builds page tables. No hypervisor reports that without a cost at each
//! such write. But a guest that loads code leaves for the VMM often, for its devices, and that is the moment to look.

use std::ops::Bound::{Excluded, Unbounded};

use crate::GuestVirtAddr;
use crate::address::GuestPhysAddr;
use crate::host::GuestMemory;
use crate::order::Armed;
use crate::x86_64::SpecialRegisters;
use crate::x86_64::paging::translate;

/// INT3 (SDM 2A).
const INT3: u8 = 0xcc;

/// Breakpoints of each kind that are looked at, at each exit.
const AT_ONCE: usize = 8;

/// Which breakpoints were looked at last.
#[derive(Debug, Default)]
pub(super) struct CodeChanges {
    written: Option<GuestPhysAddr>,
    awaited: usize,
}

impl CodeChanges {
    /// Returns `true` if the guest has overwritten an INT3, of those that are looked at this time.
    pub(super) fn is_overwritten(&mut self, armed: &Armed, memory: &impl GuestMemory) -> bool {
        let behind = self.written.map_or(Unbounded, Excluded);
        let mut left = armed.software.range((behind, Unbounded));
        for at in left.by_ref().take(AT_ONCE) {
            self.written = Some(*at);
            let mut byte = [0];
            if memory.read_memory(*at, &mut byte) == 1 && byte != [INT3] {
                return true;
            }
        }
        if left.next().is_none() {
            self.written = None;
        }
        false
    }

    /// Returns `true` if there is memory where a breakpoint waits for it.
    pub(super) fn has_come(
        &mut self,
        armed: &Armed,
        special: &SpecialRegisters,
        memory: &impl GuestMemory,
    ) -> bool {
        let mut looked_at = armed.awaited.iter().skip(self.awaited).take(AT_ONCE);
        let there = |at: &u64| {
            translate(special, memory, GuestVirtAddr(*at))
                .is_ok_and(|found| memory.read_memory(found.gpa, &mut [0]) == 1)
        };
        if looked_at.any(there) {
            return true;
        }
        self.awaited += AT_ONCE;
        if self.awaited >= armed.awaited.len() {
            self.awaited = 0;
        }
        false
    }
}

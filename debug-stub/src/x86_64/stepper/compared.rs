//! Watchpoints without debug registers: bytes that are compared after each instruction.

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::GuestVirtAddr;
use crate::host::GuestMemory;
use crate::order::Armed;
use crate::x86_64::paging::translate;
use crate::x86_64::{SpecialRegisters, Translation};

/// Each of so many steps of a free run lets interrupts in: to find out which one comes costs as much as a step.
const LETS_IN: u32 = 64;

/// Instructions of a vCPU that has noticed another one's change, before it reports that: some milliseconds.
const LEFT_TO_WRITER: u32 = 1024;

/// Addresses of bytes that have changed. More are not looked at one by one.
pub(super) type Changed = ArrayVec<u64, 16>;

/// What the armed ranges held after the last instruction.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pieces: Vec<Piece>,
    /// What they hold now. Kept, so that a step allocates nothing.
    now: Vec<u8>,
    /// The first change that another vCPU has made, and how many instructions it is waited for.
    elsewhere: Option<(u64, u32)>,
    /// Instructions that are stepped until interrupts are let in.
    withheld: u32,
}

/// The part of a range that is in one page.
#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    /// `None` while nothing is mapped there.
    bytes: Option<Vec<u8>>,
}

impl Compared {
    /// Reads what is to be compared. What the debugger itself has written since the last order counts for nothing.
    pub(super) fn begin(
        &mut self,
        armed: &Armed,
        special: &SpecialRegisters,
        memory: &impl GuestMemory,
    ) {
        self.pieces.clear();
        self.withheld = 0;
        self.elsewhere = None;
        for range in &armed.compared {
            self.pieces.extend(pieces(range.clone()));
        }
        for piece in &mut self.pieces {
            let bytes = read(&piece.range, special, memory, &mut self.now);
            piece.bytes = bytes.map(<[u8]>::to_vec);
        }
    }

    /// Returns the addresses of bytes that have changed since the last call, or since [`begin`](Self::begin), and
    /// no more than fit. Where a page has come or gone in between nothing has.
    pub(super) fn changed(
        &mut self,
        special: &SpecialRegisters,
        memory: &impl GuestMemory,
    ) -> Changed {
        let mut changed = Changed::new();
        for piece in &mut self.pieces {
            let now = read(&piece.range, special, memory, &mut self.now);
            match (&mut piece.bytes, now) {
                (Some(before), Some(now)) => {
                    if before == now {
                        continue;
                    }
                    let bytes = (piece.range.start..).zip(before.iter().zip(now));
                    let differing = bytes.filter(|(_, (old, new))| old != new);
                    let room = changed.remaining_capacity();
                    changed.extend(differing.map(|(at, _)| at).take(room));
                    before.copy_from_slice(now);
                }
                (before, now) => *before = now.map(<[u8]>::to_vec),
            }
        }
        changed
    }

    /// The instruction has not made this change: the vCPU that has will report it.
    pub(super) fn leave_to_writer(&mut self, address: u64) {
        self.elsewhere.get_or_insert((address, LEFT_TO_WRITER));
    }

    /// Returns such a change if no vCPU has reported it for some instructions: a device has made it, or a vCPU that
    /// is late.
    pub(super) fn overdue(&mut self) -> Option<u64> {
        let (address, left) = self.elsewhere?;
        self.elsewhere = left.checked_sub(1).map(|left| (address, left));
        match self.elsewhere {
            Some(_) => None,
            None => Some(address),
        }
    }

    /// Returns `true` if the next instruction of a free run is stepped with interrupts withheld.
    pub(super) fn withholds(&mut self) -> bool {
        let withholds = self.withheld > 0;
        self.withheld = self.withheld.checked_sub(1).unwrap_or(LETS_IN - 1);
        withholds
    }

    /// An interrupt has woken the vCPU: the next step lets it in.
    pub(super) fn woken(&mut self) {
        self.withheld = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// A range, cut at the smallest pages there are.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Piece> {
    const PAGE: u64 = 4096;
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        let page_end = (start | (PAGE - 1)).saturating_add(1);
        at = page_end.min(range.end);
        (start < at).then_some(Piece {
            range: start..at,
            bytes: None,
        })
    })
}

/// Reads a range within a page; `None` if it is no memory.
fn read<'a>(
    range: &Range<u64>,
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    buffer: &'a mut Vec<u8>,
) -> Option<&'a [u8]> {
    let Translation { gpa, .. } = translate(special, memory, GuestVirtAddr(range.start)).ok()?;
    let length = usize::try_from(range.end.saturating_sub(range.start)).ok()?;
    buffer.resize(length, 0);
    (memory.read_memory(gpa, buffer) == length).then_some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::simulated::{Habits, Ram, SimulatedVcpu};

    #[test]
    fn ranges_are_cut_at_pages() {
        let cut = |range| {
            let ranges = pieces(range).map(|piece| (piece.range.start, piece.range.end));
            ranges.collect::<Vec<_>>()
        };
        assert_eq!(cut(0x1000..0x1004), [(0x1000, 0x1004)]);
        let cut_twice = [(0xffe, 0x1000), (0x1000, 0x2000), (0x2000, 0x2001)];
        assert_eq!(cut(0xffe..0x2001), cut_twice);
        assert_eq!(cut(8..8), []);
        let end = u64::MAX - 1;
        assert_eq!(cut(end..u64::MAX), [(end, u64::MAX)]);
    }

    #[test]
    fn only_bytes_that_change_count() {
        const TABLES: u64 = 0x1_0000;
        let memory = Ram::new(0x2_0000);
        let cr3 = memory.map_one_to_one(TABLES);
        let vcpu = SimulatedVcpu::long_mode(Habits::INTEL, cr3, 0x1_8000, 0x8000, 0x7000);
        let special = vcpu.registers().special;
        let armed = Armed {
            compared: vec![0x4ffc..0x5004, 0x20_0000..0x20_0002],
            ..Armed::default()
        };
        let mut compared = Compared::default();
        assert!(compared.is_empty());
        compared.begin(&armed, &special, &memory);
        assert!(!compared.is_empty());
        assert_eq!(compared.changed(&special, &memory).first().copied(), None);
        memory.put(0x4ffb, &[1]);
        memory.put(0x5004, &[1]);
        assert_eq!(
            compared.changed(&special, &memory).first().copied(),
            None,
            "beside it"
        );
        memory.put(0x5003, &[1]);
        assert_eq!(
            compared.changed(&special, &memory).first().copied(),
            Some(0x5003)
        );
        assert_eq!(
            compared.changed(&special, &memory).first().copied(),
            None,
            "once"
        );
        memory.put(0x5003, &[1]);
        assert_eq!(
            compared.changed(&special, &memory).first().copied(),
            None,
            "the same value"
        );
        // A page that comes is read first, and one that is replaced has changed.
        memory.put(0x9000, &[7]);
        memory.map_alias(TABLES, 0x9000);
        assert_eq!(compared.changed(&special, &memory).first().copied(), None);
        memory.put(0x9001, &[7]);
        assert_eq!(
            compared.changed(&special, &memory).first().copied(),
            Some(0x20_0001)
        );
        memory.map_alias(TABLES, 0xa000);
        assert_eq!(
            compared.changed(&special, &memory).first().copied(),
            Some(0x20_0000)
        );
        memory.put(0x5003, &[2]);
        compared.begin(&armed, &special, &memory);
        assert_eq!(
            compared.changed(&special, &memory).first().copied(),
            None,
            "the debugger's"
        );
    }
}

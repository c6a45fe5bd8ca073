//! One table of breakpoints and watchpoints, and where each of them is.
//!
//! A software breakpoint is an INT3 at a guest-*physical* address, so that it holds in every
//! address space and does not go stale with CR3. The INT3 is in memory only while a vCPU runs:
//! [`Breakpoints::arm`] writes it, [`Breakpoints::disarm`] puts the original back before anything
//! else happens. So whoever reads a stopped guest reads the guest.
//!
//! Everything else takes debug-address registers, shared by all that want the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrayvec::ArrayVec;
use thiserror::Error;
use vcpu_caps::{HwBreakpoint, HwBreakpointKind};

use crate::address::GuestPhysAddr;
use crate::host::GuestMemory;
use crate::order::{Armed, WatchAccess};
use crate::request::PointKind;

/// The one-byte breakpoint instruction (SDM 2A, INT3).
pub(crate) const INT3: u8 = 0xcc;

/// Debug-address registers of a vCPU (SDM 3B 19.2).
const SLOTS: usize = 4;

/// INT3s are written and taken back at each stop: there have to be few enough.
const MAX_SOFTWARE: usize = 4096;

/// What the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    pub(crate) kind: PointKind,
    /// Linear address.
    pub(crate) address: u64,
    /// Bytes watched; 1 for a breakpoint.
    pub(crate) length: u64,
}

impl Point {
    /// The length that comes with a breakpoint is that of the instruction, and says nothing.
    pub(crate) fn new(kind: PointKind, address: u64, length: u64) -> Self {
        let length = match kind {
            PointKind::Software | PointKind::Hardware => 1,
            PointKind::Write | PointKind::Read | PointKind::Access => length,
        };
        Self {
            kind,
            address,
            length,
        }
    }
}

/// Where a point is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Memory(GuestPhysAddr),
    Slots(ArrayVec<HwBreakpoint, SLOTS>),
}

/// How the table met a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// As asked, or it was there already.
    AsAsked,
    /// A software breakpoint took a debug-address register.
    InSlot,
}

/// Why a point cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum PointError {
    /// All debug-address registers are taken.
    #[error("needs {needed} of the {free} free debug registers: delete another breakpoint")]
    NoSlot { needed: usize, free: usize },
    /// More than the four registers can watch.
    #[error("{length} bytes at {address:#x} need more than the 4 debug registers there are")]
    TooLong { address: u64, length: u64 },
    /// There are [`MAX_SOFTWARE`] breakpoints.
    #[error("there are {MAX_SOFTWARE} software breakpoints already: delete some")]
    TooMany,
    /// Nothing is watched.
    #[error("a watchpoint of no bytes")]
    Empty,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    breakpoint: HwBreakpoint,
    users: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Breakpoints {
    points: BTreeMap<Point, Place>,
    slots: [Option<Slot>; SLOTS],
    /// How many points share each INT3: several linear addresses may be one physical one.
    software: BTreeMap<GuestPhysAddr, usize>,
    /// What is under the INT3s that are in guest memory now.
    written: Vec<(GuestPhysAddr, u8)>,
    /// What `armed` answers until the table changes.
    armed: Arc<Armed>,
}

impl Breakpoints {
    /// Adds a point; one that is there already stays as it is. `memory_at` says where a software
    /// breakpoint could be written; if nowhere, it takes a debug-address register.
    pub(crate) fn insert(
        &mut self,
        point: Point,
        memory_at: impl FnOnce(u64) -> Option<GuestPhysAddr>,
    ) -> Result<Placed, PointError> {
        if self.points.contains_key(&point) {
            return Ok(Placed::AsAsked);
        }
        let in_memory = match point.kind {
            PointKind::Software => memory_at(point.address),
            _ => None,
        };
        let (place, placed) = match in_memory {
            Some(gpa) => {
                if self.software.len() >= MAX_SOFTWARE {
                    return Err(PointError::TooMany);
                }
                *self.software.entry(gpa).or_default() += 1;
                (Place::Memory(gpa), Placed::AsAsked)
            }
            None => {
                let pieces = pieces(point)?;
                self.take_slots(&pieces)?;
                let placed = if point.kind == PointKind::Software {
                    Placed::InSlot
                } else {
                    Placed::AsAsked
                };
                (Place::Slots(pieces), placed)
            }
        };
        self.points.insert(point, place);
        self.refresh();
        Ok(placed)
    }

    /// Removes a point; answers whether it was there.
    pub(crate) fn remove(&mut self, point: Point) -> bool {
        let Some(place) = self.points.remove(&point) else {
            return false;
        };
        match place {
            Place::Memory(gpa) => {
                if let Some(users) = self.software.get_mut(&gpa) {
                    *users -= 1;
                    if *users == 0 {
                        self.software.remove(&gpa);
                    }
                }
            }
            Place::Slots(pieces) => {
                for slot in &mut self.slots {
                    if let Some(taken) = slot {
                        if pieces.contains(&taken.breakpoint) {
                            taken.users -= 1;
                            if taken.users == 0 {
                                *slot = None;
                            }
                        }
                    }
                }
            }
        }
        self.refresh();
        true
    }

    /// Removes all of them.
    pub(crate) fn clear(&mut self) {
        self.points.clear();
        self.software.clear();
        self.slots = [None; SLOTS];
        self.refresh();
    }

    /// What is in force while the guest runs.
    pub(crate) fn armed(&self) -> Arc<Armed> {
        Arc::clone(&self.armed)
    }

    /// Whether an INT3 of ours belongs at this address.
    pub(crate) fn has_software(&self, address: GuestPhysAddr) -> bool {
        self.software.contains_key(&address)
    }

    /// Whether there is any INT3 of ours.
    pub(crate) fn any_software(&self) -> bool {
        !self.software.is_empty()
    }

    /// Whether data at this linear address is still watched for such an access.
    pub(crate) fn watches(&self, address: u64, access: WatchAccess) -> bool {
        let kind = match access {
            WatchAccess::Write => HwBreakpointKind::Write,
            WatchAccess::ReadWrite => HwBreakpointKind::ReadWrite,
        };
        self.slots
            .iter()
            .flatten()
            .any(|slot| slot.breakpoint.kind() == kind && slot.breakpoint.overlaps(address, 1))
    }

    /// Writes the INT3s, all but those at `except`.
    ///
    /// # Errors
    /// With the address that could not be written; then none is.
    pub(crate) fn arm(
        &mut self,
        memory: &impl GuestMemory,
        except: &[GuestPhysAddr],
    ) -> Result<(), GuestPhysAddr> {
        for &address in self.software.keys() {
            if except.contains(&address) {
                continue;
            }
            let mut original = [0];
            let done = memory.read_memory(address, &mut original) == 1
                && memory.write_memory(address, &[INT3]) == 1;
            if !done {
                self.disarm(memory);
                return Err(address);
            }
            let [original] = original;
            self.written.push((address, original));
        }
        Ok(())
    }

    /// Puts back what the INT3s replaced, except where the guest has written something else
    /// meanwhile: that is the guest's now.
    pub(crate) fn disarm(&mut self, memory: &impl GuestMemory) {
        for (address, original) in self.written.drain(..) {
            let mut now = [0];
            if memory.read_memory(address, &mut now) != 1 || now != [INT3] {
                tracing::debug!(%address, "the guest overwrote a breakpoint: left as it is");
                continue;
            }
            if memory.write_memory(address, &[original]) != 1 {
                tracing::error!(%address, "a breakpoint's original byte cannot be put back");
            }
        }
    }

    /// Takes a slot, or a share in one, for each piece; all or none.
    fn take_slots(&mut self, pieces: &[HwBreakpoint]) -> Result<(), PointError> {
        let held = |piece: &HwBreakpoint| {
            self.slots
                .iter()
                .flatten()
                .any(|slot| slot.breakpoint == *piece)
        };
        let needed = pieces.iter().filter(|piece| !held(piece)).count();
        let free = self.slots.iter().filter(|slot| slot.is_none()).count();
        if needed > free {
            return Err(PointError::NoSlot { needed, free });
        }
        for piece in pieces {
            let same = self
                .slots
                .iter_mut()
                .flatten()
                .find(|slot| slot.breakpoint == *piece);
            if let Some(slot) = same {
                slot.users += 1;
            } else if let Some(slot) = self.slots.iter_mut().find(|slot| slot.is_none()) {
                *slot = Some(Slot {
                    breakpoint: *piece,
                    users: 1,
                });
            }
        }
        Ok(())
    }

    fn refresh(&mut self) {
        self.armed = Arc::new(Armed {
            hardware: self
                .slots
                .iter()
                .flatten()
                .map(|slot| slot.breakpoint)
                .collect(),
            software: self.software.keys().copied().collect(),
        });
    }
}

/// Splits a point into what debug-address registers can hold: aligned runs of 1, 2, 4 or 8 bytes
/// (SDM 3B 19.2.5), largest first where the alignment allows.
fn pieces(point: Point) -> Result<ArrayVec<HwBreakpoint, SLOTS>, PointError> {
    let Point {
        kind,
        address,
        length,
    } = point;
    let too_long = PointError::TooLong { address, length };
    let mut pieces = ArrayVec::new();
    let kind = match kind {
        PointKind::Software | PointKind::Hardware => {
            pieces.push(HwBreakpoint::execute(address));
            return Ok(pieces);
        }
        PointKind::Write => HwBreakpointKind::Write,
        PointKind::Read | PointKind::Access => HwBreakpointKind::ReadWrite,
    };
    if length == 0 {
        return Err(PointError::Empty);
    }
    let mut at = address;
    let mut left = length;
    while left != 0 {
        let run = [8u64, 4, 2]
            .into_iter()
            .find(|run| *run <= left && at % run == 0)
            .unwrap_or(1);
        pieces
            .try_push(HwBreakpoint::watch(at, run, kind))
            .map_err(|_| too_long)?;
        left -= run;
        at = at.wrapping_add(run);
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests;

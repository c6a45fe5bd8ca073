//! The table of breakpoints and watchpoints, and where each of them is.
//!
//! A software breakpoint is a breakpoint instruction at a guest-*physical* address. It therefore
//! holds in every address space, and does not go stale when the page-table root changes. The
//! instruction is in memory only while a vCPU runs: [`Breakpoints::arm`] writes it, and
//! [`Breakpoints::disarm`] puts the original back before anything else happens. A read of a
//! stopped guest's memory therefore shows the guest's own bytes.
//!
//! All other breakpoints take debug slots. Equal ones share a slot.

mod hit_program;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use vcpu_caps::{HwBreakpoint, HwBreakpointKind};

use crate::address::GuestPhysAddr;
use crate::arch::Arch;
use crate::host::GuestMemory;
use crate::order::{Armed, WatchAccess};

pub(crate) use hit_program::HitProgram;

/// How much bytecode all breakpoints may have, in bytes.
const MAX_CODE: usize = 1 << 20;

/// The session writes and restores software breakpoints at each stop. The limit keeps that short. It counts
/// what the client asks for, not addresses in memory: many virtual addresses may be one of those.
const MAX_POINTS: usize = 4096;

/// Bytes that are compared after each instruction, at most.
const MAX_COMPARED: u64 = 4096;

/// What a point stops at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PointKind {
    /// The instruction there, by a breakpoint instruction if possible.
    Software,
    /// The instruction there, by a debug slot.
    Hardware,
    /// An access of data.
    Watch(WatchAccess),
}

/// A breakpoint or watchpoint, as the client asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    pub(crate) kind: PointKind,
    /// Guest-virtual address.
    pub(crate) address: u64,
    /// Bytes watched; 1 for a breakpoint.
    pub(crate) length: u64,
}

impl Point {
    /// A breakpoint. The packet's length is that of the instruction, and decides nothing.
    pub(crate) fn breakpoint(kind: PointKind, address: u64) -> Self {
        Self {
            kind,
            address,
            length: 1,
        }
    }

    /// A watchpoint over `length` bytes.
    pub(crate) fn watch(access: WatchAccess, address: u64, length: u64) -> Self {
        Self {
            kind: PointKind::Watch(access),
            address,
            length,
        }
    }
}

/// Where a point is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Memory(GuestPhysAddr),
    Slots(Vec<HwBreakpoint>),
    /// A watchpoint for writes, compared after each instruction.
    Compared,
    /// In memory once there is some.
    Awaited,
    /// It stops nothing: the machine was reset, and no debug slot was free; or the memory that it waited for cannot
    /// be written.
    Nowhere,
}

/// Why a breakpoint instruction cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom {
    /// For the client's user.
    pub(crate) why: &'static str,
    /// It is for want of memory, which the guest may map.
    pub(crate) may_come: bool,
}

/// How the table placed a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// As asked, or it was there already.
    AsAsked,
    /// A software breakpoint took a debug slot, for this reason.
    InSlot(&'static str),
    /// A software breakpoint waits, for this reason.
    Awaited(&'static str),
    /// A watchpoint got no debug slots: the guest is stepped.
    Compared,
}

/// Why a point cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum PointError {
    /// Too few debug slots are free.
    #[error("needs {needed} of the {free} free {slots}: delete another breakpoint")]
    NoSlot {
        needed: usize,
        free: usize,
        slots: &'static str,
    },
    /// The slots of a vCPU cannot watch so much.
    #[error("{length} bytes at {address:#x} need more than the {count} {slots} there are")]
    TooLong {
        address: u64,
        length: u64,
        count: usize,
        slots: &'static str,
    },
    /// It cannot be in memory, and the host has no debug slots.
    #[error("{0}, and this host has no hardware breakpoints")]
    NotInMemory(&'static str),
    /// The host has no watchpoints.
    #[error("this host has no watchpoints; what is written can be watched, what is read cannot")]
    NoWatchpoint,
    /// Too much to compare after each instruction.
    #[error(
        "no {slots} are free for it, and no more than {MAX_COMPARED} bytes are watched without"
    )]
    TooMuchToCompare { slots: &'static str },
    /// There are [`MAX_POINTS`] breakpoints and watchpoints.
    #[error("there are {MAX_POINTS} breakpoints already: delete some")]
    TooMany,
    /// The breakpoints have [`MAX_CODE`] bytes of bytecode.
    #[error("the conditions and commands of all breakpoints have more than {MAX_CODE} bytes")]
    TooMuchCode,
    /// Nothing is watched.
    #[error("a watchpoint of no bytes")]
    Empty,
}

/// A point in the table.
#[derive(Clone, Debug)]
struct Entry {
    place: Place,
    /// What the VMM does at a hit before the client sees it.
    program: HitProgram,
}

/// A debug slot in use.
#[derive(Clone, Copy, Debug)]
struct Slot {
    breakpoint: HwBreakpoint,
    users: usize,
}

/// The breakpoints and watchpoints of one client.
pub(crate) struct Breakpoints<A> {
    points: BTreeMap<Point, Entry>,
    /// The bytecode of all points, in bytes.
    code: usize,
    slots: Vec<Slot>,
    /// How many points share each breakpoint instruction: several virtual addresses may be one
    /// physical address.
    software: BTreeMap<GuestPhysAddr, usize>,
    /// Where breakpoint instructions are in guest memory now, in the order of writing.
    written: Vec<GuestPhysAddr>,
    /// Where the guest has overwritten one, until that is looked at.
    overwritten: Vec<GuestPhysAddr>,
    /// What each of them replaced: [`Arch::BREAKPOINT`]'s length for each, one after the other.
    originals: Vec<u8>,
    /// The table as run control and the vCPUs get it. Rebuilt when the table changes.
    armed: Arc<Armed>,
    /// The table at the last resume.
    last_armed: Arc<Armed>,
    arch: PhantomData<A>,
}

impl<A: Arch> Default for Breakpoints<A> {
    fn default() -> Self {
        Self {
            points: BTreeMap::new(),
            code: 0,
            slots: Vec::new(),
            software: BTreeMap::new(),
            written: Vec::new(),
            overwritten: Vec::new(),
            originals: Vec::new(),
            armed: Arc::default(),
            last_armed: Arc::default(),
            arch: PhantomData,
        }
    }
}

impl<A: Arch> fmt::Debug for Breakpoints<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breakpoints")
            .field("points", &self.points)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

/// One point fewer is at this place.
fn leave(software: &mut BTreeMap<GuestPhysAddr, usize>, gpa: GuestPhysAddr) {
    if let Some(users) = software.get_mut(&gpa) {
        *users -= 1;
        if *users == 0 {
            software.remove(&gpa);
        }
    }
}

impl<A: Arch> Breakpoints<A> {
    /// Adds a point. One that is there already stays where it is, and gets the new program: a client that
    /// changes a condition sends the breakpoint again.
    ///
    /// `memory_at` returns where a software breakpoint can be written, or why it cannot. One that
    /// cannot, and one that would overlap another, takes a debug slot if `may_use_slot`. If there is none, the
    /// former waits for memory if some may come. A watchpoint for writes that finds no slot is compared.
    pub(crate) fn insert(
        &mut self,
        point: Point,
        program: HitProgram,
        may_use_slot: bool,
        memory_at: impl FnOnce(u64) -> Result<GuestPhysAddr, NoRoom>,
    ) -> Result<Placed, PointError> {
        if self
            .points
            .get(&point)
            .is_some_and(|entry| entry.place == Place::Nowhere)
        {
            self.remove(point);
        }
        let present = self.points.get_mut(&point);
        let old = present.as_ref().map_or(0, |entry| entry.program.size());
        let code = self.code - old + program.size();
        if code > MAX_CODE {
            return Err(PointError::TooMuchCode);
        }
        if let Some(entry) = present {
            entry.program = program;
            self.code = code;
            return Ok(Placed::AsAsked);
        }
        // Of any kind: equal slots are shared, so slots alone bound nothing.
        if self.points.len() >= MAX_POINTS {
            return Err(PointError::TooMany);
        }
        let (place, placed) = match point.kind {
            PointKind::Software => {
                let found = memory_at(point.address);
                let waits = A::AWAITS && found.is_err_and(|none| none.may_come);
                match found
                    .map_err(|none| none.why)
                    .and_then(|gpa| self.room(gpa))
                {
                    Ok(gpa) => (self.put_in_memory(gpa), Placed::AsAsked),
                    Err(why) => {
                        let slots = if may_use_slot {
                            self.take_slots(point)
                        } else {
                            Err(PointError::NotInMemory(why))
                        };
                        match slots {
                            Ok(slots) => (Place::Slots(slots), Placed::InSlot(why)),
                            Err(_) if waits => (Place::Awaited, Placed::Awaited(why)),
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            PointKind::Hardware => (Place::Slots(self.take_slots(point)?), Placed::AsAsked),
            PointKind::Watch(access) => {
                let slots = if may_use_slot {
                    self.take_slots(point)
                } else {
                    Err(PointError::NoWatchpoint)
                };
                match slots {
                    Ok(slots) => (Place::Slots(slots), Placed::AsAsked),
                    Err(PointError::Empty) => return Err(PointError::Empty),
                    Err(error) if access != WatchAccess::Write || !A::COMPARES => {
                        return Err(error);
                    }
                    Err(_) => {
                        self.check_compared(point.length)?;
                        (Place::Compared, Placed::Compared)
                    }
                }
            }
        };
        self.points.insert(point, Entry { place, program });
        self.code = code;
        self.refresh();
        Ok(placed)
    }

    fn put_in_memory(&mut self, gpa: GuestPhysAddr) -> Place {
        *self.software.entry(gpa).or_default() += 1;
        Place::Memory(gpa)
    }

    /// Puts breakpoints in memory that have waited for it. Returns the addresses of those that no longer wait, and
    /// stop nothing: what has come cannot be written.
    pub(crate) fn place_awaited(
        &mut self,
        memory_at: impl Fn(u64) -> Result<GuestPhysAddr, NoRoom>,
    ) -> Vec<u64> {
        self.leave_reused_memory(&memory_at);
        let mut lost = Vec::new();
        for address in self.awaited() {
            let place = match memory_at(address) {
                Err(NoRoom { may_come: true, .. }) => continue,
                Err(NoRoom {
                    may_come: false, ..
                }) => Place::Nowhere,
                Ok(gpa) => match self.room(gpa) {
                    Ok(gpa) => self.put_in_memory(gpa),
                    Err(_) => Place::Nowhere,
                },
            };
            if place == Place::Nowhere {
                lost.push(address);
            }
            let point = Point::breakpoint(PointKind::Software, address);
            if let Some(entry) = self.points.get_mut(&point) {
                entry.place = place;
            }
        }
        self.refresh();
        lost
    }

    /// Breakpoints that the guest has overwritten wait again if their address is elsewhere now: what was written may
    /// be another program's data, where a breakpoint instruction must not go back.
    fn leave_reused_memory(&mut self, memory_at: impl Fn(u64) -> Result<GuestPhysAddr, NoRoom>) {
        let overwritten = std::mem::take(&mut self.overwritten);
        if !A::AWAITS {
            return;
        }
        for (point, entry) in &mut self.points {
            let Place::Memory(gpa) = entry.place else {
                continue;
            };
            if overwritten.contains(&gpa) && memory_at(point.address) != Ok(gpa) {
                entry.place = Place::Awaited;
                leave(&mut self.software, gpa);
            }
        }
    }

    /// Where breakpoints wait for memory.
    fn awaited(&self) -> Vec<u64> {
        let points = self.points.iter();
        let awaited = points.filter(|(_, entry)| entry.place == Place::Awaited);
        awaited.map(|(point, _)| point.address).collect()
    }

    /// Returns `true` if [`place_awaited`](Self::place_awaited) may have something to do.
    pub(crate) fn any_to_place(&self) -> bool {
        !self.armed.awaited.is_empty() || !self.overwritten.is_empty()
    }

    /// Removes a point. Returns `true` if it was there.
    pub(crate) fn remove(&mut self, point: Point) -> bool {
        let Some(Entry { place, program }) = self.points.remove(&point) else {
            return false;
        };
        self.code -= program.size();
        match place {
            Place::Nowhere | Place::Compared | Place::Awaited => {}
            Place::Memory(gpa) => {
                leave(&mut self.software, gpa);
            }
            Place::Slots(pieces) => {
                for slot in &mut self.slots {
                    if pieces.contains(&slot.breakpoint) {
                        slot.users -= 1;
                    }
                }
                self.slots.retain(|slot| slot.users > 0);
            }
        }
        self.refresh();
        true
    }

    /// The machine was reset. Software breakpoints take debug slots as far as these go: their code may not be
    /// in memory yet, and what is in its place may be the data that it will be unpacked from. Returns how many
    /// stop nothing from now on.
    ///
    /// One that finds no slot waits for memory if `waits` says so of its address.
    pub(crate) fn machine_was_reset(
        &mut self,
        may_use_slot: bool,
        waits: impl Fn(u64) -> bool,
    ) -> usize {
        self.software.clear();
        let in_memory = |entry: &Entry| matches!(entry.place, Place::Memory(_));
        let moved: Vec<Point> = self
            .points
            .iter()
            .filter_map(|(point, entry)| in_memory(entry).then_some(*point))
            .collect();
        let mut lost = 0;
        for point in moved {
            let slots = if may_use_slot {
                self.take_slots(point).ok()
            } else {
                None
            };
            let place = match slots {
                Some(slots) => Place::Slots(slots),
                None if A::AWAITS && waits(point.address) => Place::Awaited,
                None => Place::Nowhere,
            };
            lost += usize::from(place == Place::Nowhere);
            if let Some(entry) = self.points.get_mut(&point) {
                entry.place = place;
            }
        }
        self.refresh();
        lost
    }

    /// Removes all points.
    pub(crate) fn clear(&mut self) {
        self.points.clear();
        self.code = 0;
        self.software.clear();
        self.slots.clear();
        self.refresh();
        self.last_armed = Arc::default();
    }

    /// Returns what is in force while the guest runs, which is about to.
    pub(crate) fn arm_for_resume(&mut self) -> Arc<Armed> {
        self.last_armed = Arc::clone(&self.armed);
        Arc::clone(&self.armed)
    }

    /// Returns what was in force while the guest ran last. GDB removes its breakpoints at each stop.
    pub(crate) fn last_armed(&self) -> &Armed {
        &self.last_armed
    }

    /// Returns `true` if the client has set a breakpoint at this address: of its own `kind`, or of a kind that
    /// may have been placed as that one.
    pub(crate) fn is_set(&self, kind: PointKind, address: u64) -> bool {
        let has = |kind| self.points.contains_key(&Point::breakpoint(kind, address));
        // `Z0` may take a debug slot.
        has(kind) || kind == PointKind::Hardware && has(PointKind::Software)
    }

    /// Returns `true` if a software breakpoint belongs at this address.
    pub(crate) fn has_software(&self, address: GuestPhysAddr) -> bool {
        self.software.contains_key(&address)
    }

    /// Returns `true` if any point has conditions or commands.
    pub(crate) fn any_program(&self) -> bool {
        self.code > 0
    }

    /// Returns the breakpoints that a vCPU is at whose program counter is `pc`, which is in memory at `gpa`, and
    /// their programs.
    pub(crate) fn programs_at(
        &self,
        pc: u64,
        gpa: Option<GuestPhysAddr>,
    ) -> impl Iterator<Item = (u64, &HitProgram)> {
        let slot = HwBreakpoint::execute(pc);
        self.points
            .iter()
            .filter(move |(_, entry)| match &entry.place {
                Place::Memory(at) => gpa == Some(*at),
                Place::Slots(slots) => slots.contains(&slot),
                Place::Nowhere | Place::Compared | Place::Awaited => false,
            })
            .map(|(point, entry)| (point.address, &entry.program))
    }

    /// Returns `true` if there is any software breakpoint in memory.
    pub(crate) fn any_software(&self) -> bool {
        !self.software.is_empty()
    }

    /// Returns `true` if data at this address is still watched for such an access.
    pub(crate) fn watches(&self, address: u64, access: WatchAccess) -> bool {
        self.slots.iter().any(|slot| {
            slot.breakpoint.kind() == access.kind() && slot.breakpoint.overlaps(address, 1)
        }) || access == WatchAccess::Write && self.compares(address)
    }

    /// Returns `true` if data at this address is compared after each instruction.
    pub(crate) fn compares(&self, address: u64) -> bool {
        self.compared().any(|range| range.contains(&address))
    }

    /// What is compared after each instruction.
    fn compared(&self) -> impl Iterator<Item = Range<u64>> {
        let compared = self
            .points
            .iter()
            .filter(|(_, entry)| entry.place == Place::Compared);
        compared.map(|(point, _)| point.address..point.address.saturating_add(point.length))
    }

    fn check_compared(&self, length: u64) -> Result<(), PointError> {
        let sum = |sum: u64, length: u64| sum.saturating_add(length);
        let all = self
            .compared()
            .map(|range| range.end.saturating_sub(range.start));
        if all.fold(length, sum) > MAX_COMPARED {
            let slots = A::SLOTS_NAME;
            return Err(PointError::TooMuchToCompare { slots });
        }
        Ok(())
    }

    /// Writes the breakpoint instructions, all but the one at `except`.
    ///
    /// # Errors
    /// The address that cannot be written. Memory is then as it was before the call.
    pub(crate) fn write_instructions(
        &mut self,
        memory: &impl GuestMemory,
        except: Option<GuestPhysAddr>,
    ) -> Result<(), GuestPhysAddr> {
        let length = A::BREAKPOINT.len();
        for &address in self.software.keys() {
            if except == Some(address) {
                continue;
            }
            let start = self.originals.len();
            self.originals.resize(start + length, 0);
            let original = self.originals.get_mut(start..).unwrap_or_default();
            let readable = memory.read_memory(address, original) == length;
            if !readable || memory.write_memory(address, A::BREAKPOINT) != length {
                if readable {
                    // A part of the instruction may have been written.
                    let _ = memory.write_memory(address, original);
                }
                self.originals.truncate(start);
                self.restore_memory(memory);
                return Err(address);
            }
            self.written.push(address);
        }
        Ok(())
    }

    /// Restores what the breakpoint instructions replaced.
    ///
    /// Where the guest has overwritten any byte of the instruction, all of it stays as it is:
    /// guests patch whole instructions, and a byte of the new one may equal a byte of the
    /// breakpoint instruction.
    pub(crate) fn restore_memory(&mut self, memory: &impl GuestMemory) {
        if self.written.is_empty() {
            return;
        }
        let mut now = vec![0; A::BREAKPOINT.len()];
        let originals = self.originals.chunks_exact(now.len().max(1));
        for (&address, original) in self.written.iter().zip(originals) {
            if memory.read_memory(address, &mut now) != now.len() || now != A::BREAKPOINT {
                tracing::debug!(%address, "the guest overwrote a breakpoint: left as it is");
                if !self.overwritten.contains(&address) {
                    self.overwritten.push(address);
                }
            } else if memory.write_memory(address, original) != original.len() {
                tracing::error!(%address, "the bytes under a breakpoint cannot be restored");
            }
        }
        self.written.clear();
        self.originals.clear();
    }

    /// Checks that a breakpoint instruction at `gpa` overlaps no other.
    fn room(&self, gpa: GuestPhysAddr) -> Result<GuestPhysAddr, &'static str> {
        let reach = u64::try_from(A::BREAKPOINT.len().saturating_sub(1)).unwrap_or(u64::MAX);
        let near =
            GuestPhysAddr(gpa.0.saturating_sub(reach))..=GuestPhysAddr(gpa.0.saturating_add(reach));
        if self.software.range(near).all(|(other, _)| *other == gpa) {
            Ok(gpa)
        } else {
            Err("it overlaps another breakpoint")
        }
    }

    /// Takes a slot, or a share in one, for each piece of a point; all or none.
    fn take_slots(&mut self, point: Point) -> Result<Vec<HwBreakpoint>, PointError> {
        let Point {
            kind,
            address,
            length,
        } = point;
        let pieces = match kind {
            PointKind::Software | PointKind::Hardware => vec![HwBreakpoint::execute(address)],
            PointKind::Watch(_) if length == 0 => return Err(PointError::Empty),
            PointKind::Watch(access) => {
                let count = A::SLOTS.count(access.kind());
                let pieces: Vec<HwBreakpoint> = A::watch(address, length, access.kind())
                    .take(count + 1)
                    .collect();
                if pieces.len() > count {
                    return Err(PointError::TooLong {
                        address,
                        length,
                        count,
                        slots: A::SLOTS_NAME,
                    });
                }
                pieces
            }
        };
        let held = |piece: &HwBreakpoint| self.slots.iter().any(|slot| slot.breakpoint == *piece);
        let needed = pieces.iter().filter(|piece| !held(piece)).count();
        if let Some(kind) = pieces.first().map(HwBreakpoint::kind) {
            let taken = self
                .slots
                .iter()
                .filter(|slot| A::SLOTS.competes(slot.breakpoint.kind(), kind))
                .count();
            let free = A::SLOTS.count(kind).saturating_sub(taken);
            if needed > free {
                return Err(PointError::NoSlot {
                    needed,
                    free,
                    slots: A::SLOTS_NAME,
                });
            }
        }
        for piece in &pieces {
            match self.slots.iter_mut().find(|s| s.breakpoint == *piece) {
                Some(slot) => slot.users += 1,
                None => self.slots.push(Slot {
                    breakpoint: *piece,
                    users: 1,
                }),
            }
        }
        Ok(pieces)
    }

    fn refresh(&mut self) {
        self.armed = Arc::new(Armed {
            hardware: self.slots.iter().map(|slot| slot.breakpoint).collect(),
            software: self.software.keys().copied().collect(),
            compared: self.compared().collect(),
            awaited: self.awaited(),
        });
    }
}

impl WatchAccess {
    /// What a slot watches for.
    fn kind(self) -> HwBreakpointKind {
        match self {
            Self::Write => HwBreakpointKind::Write,
            Self::ReadWrite => HwBreakpointKind::ReadWrite,
        }
    }
}

#[cfg(test)]
mod tests;

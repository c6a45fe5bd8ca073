//! Checks where things go in guest memory, and writes them.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use super::elf::Segment;
use super::error::{ImageError, LoadError};
use super::{Module, Request};
use crate::boot::BootData;
use crate::layout;
use crate::memory::{self, MemoryLayout};

/// What is decided before anything is written: what the kernel takes, and where the boot data is.
pub(super) struct Plan {
    occupied: Vec<Range<u64>>,
    kernel_end: u64,
    /// Where the boot data is.
    pub(super) data: BootData,
}

impl Plan {
    /// Checks that the kernel lies in memory that it may use, and that there is room for the boot data.
    pub(super) fn new(memory: MemoryLayout, kernel: &[Range<u64>]) -> Result<Self, ImageError> {
        for segment in kernel {
            if !memory.is_ram(segment) {
                return Err(ImageError::OutsideMemory {
                    segment: segment.clone(),
                });
            }
        }
        let data = BootData::place(memory, kernel).ok_or(ImageError::NoRoomForBootData)?;
        let mut occupied = kernel.to_vec();
        occupied.push(data.range());
        Ok(Self {
            occupied,
            kernel_end: end_of(kernel),
            data,
        })
    }

    /// Places the modules right above the kernel, in their order.
    pub(super) fn above(&self, request: &Request<'_>) -> Result<Vec<Range<u64>>, LoadError> {
        let free = self.kernel_end..request.layout.low_end();
        self.place(request, free, memory::lowest_gap, |free, place| {
            place.end..free.end
        })
    }

    /// Places the modules as high as `limit` allows, each below the one before it: a kernel that unpacks itself
    /// upwards does not reach them.
    pub(super) fn below(
        &self,
        request: &Request<'_>,
        limit: u64,
    ) -> Result<Vec<Range<u64>>, LoadError> {
        let free = self.kernel_end..limit.min(request.layout.low_end());
        self.place(request, free, memory::highest_gap, |free, place| {
            free.start..place.start
        })
    }

    /// Places each module where `gap` finds room for it; `rest` is what is free for the next one.
    fn place(
        &self,
        request: &Request<'_>,
        mut free: Range<u64>,
        gap: impl Fn(Range<u64>, &[Range<u64>], u64) -> Option<u64>,
        rest: impl Fn(&Range<u64>, &Range<u64>) -> Range<u64>,
    ) -> Result<Vec<Range<u64>>, LoadError> {
        let mut places = Vec::new();
        for Module { file, .. } in request.modules {
            let size = file.bytes.len() as u64;
            if size == 0 {
                return Err(LoadError::ModuleEmpty {
                    file: file.name.clone(),
                });
            }
            let Some(start) = gap(free.clone(), &self.occupied, size) else {
                return Err(LoadError::ModuleTooBig {
                    file: file.name.clone(),
                    size,
                    room: self.room(&free),
                });
            };
            let place = start..start.saturating_add(size);
            free = rest(&free, &place);
            places.push(place);
        }
        Ok(places)
    }

    /// How much of a range is not occupied.
    fn room(&self, within: &Range<u64>) -> u64 {
        let length = |range: &Range<u64>| range.end.saturating_sub(range.start);
        let taken = self
            .occupied
            .iter()
            .map(|range| length(&(range.start.max(within.start)..range.end.min(within.end))));
        length(within).saturating_sub(taken.fold(0, u64::saturating_add))
    }
}

/// One past the highest byte of the segments that are below 4 GiB, at least 1 MiB.
fn end_of(segments: &[Range<u64>]) -> u64 {
    segments
        .iter()
        .map(|segment| segment.end)
        .filter(|&end| end <= layout::MMIO_HOLE_START)
        .fold(layout::HIGH_MEMORY_START, u64::max)
}

/// The command line as bytes with its terminating zero.
pub(super) fn cmdline(text: &str, limit: u64) -> Result<Vec<u8>, LoadError> {
    let limit = limit.min(BootData::CMDLINE_ROOM - 1);
    if text.len() as u64 > limit {
        return Err(LoadError::CmdlineTooLong {
            length: text.len(),
            limit,
        });
    }
    if let Some(position) = text.bytes().position(|byte| byte == 0) {
        return Err(LoadError::CmdlineZero(position));
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    Ok(bytes)
}

/// Writes `bytes`; every address has been checked, or is in the boot data.
pub(super) fn write(
    request: &Request<'_>,
    what: &'static str,
    at: GuestAddress,
    bytes: &[u8],
) -> Result<(), LoadError> {
    request
        .memory
        .write_slice(bytes, at)
        .map_err(|source| LoadError::Memory { what, source })
}

/// Writes the segments. The rest is zero already: the memory is new.
pub(super) fn write_segments(
    request: &Request<'_>,
    segments: &[Segment<'_>],
) -> Result<(), LoadError> {
    for segment in segments {
        let at = GuestAddress(segment.physical);
        write(request, "the kernel", at, segment.data)?;
    }
    Ok(())
}

/// Writes the modules to their places.
pub(super) fn write_modules(request: &Request<'_>, places: &[Range<u64>]) -> Result<(), LoadError> {
    for (Module { file, .. }, place) in request.modules.iter().zip(places) {
        write(request, "a module", GuestAddress(place.start), &file.bytes)?;
    }
    Ok(())
}

/// Bytes for the guest that point to one another: they begin at an address, and there is room for so many.
pub(super) struct Area {
    start: u64,
    room: u64,
    bytes: Vec<u8>,
}

impl Area {
    pub(super) fn new(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            room: range.end.saturating_sub(range.start),
            bytes: Vec::new(),
        }
    }

    /// Adds bytes. Returns their address.
    ///
    /// # Errors
    /// [`LoadError::TooManyModules`] if there is no room: modules are all that can be so long.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<u64, LoadError> {
        let at = self.bytes.len() as u64;
        let needs = at.saturating_add(bytes.len() as u64);
        if needs > self.room {
            return Err(LoadError::TooManyModules { room: self.room });
        }
        self.bytes.extend_from_slice(bytes);
        Ok(self.start.saturating_add(at))
    }

    /// Adds zeroes up to an address on this boundary.
    pub(super) fn align(&mut self, boundary: u64) -> Result<(), LoadError> {
        let next = self.start.saturating_add(self.bytes.len() as u64);
        let count = next.next_multiple_of(boundary).saturating_sub(next);
        let zeroes = vec![0; usize::try_from(count).unwrap_or(0)];
        self.add(&zeroes).map(|_| ())
    }

    /// Adds a string and its terminating zero. Returns its address.
    pub(super) fn add_string(&mut self, text: &str) -> Result<u64, LoadError> {
        let at = self.add(text.as_bytes())?;
        self.add(&[0])?;
        Ok(at)
    }

    /// Replaces bytes that were added.
    pub(super) fn set(&mut self, address: u64, bytes: &[u8]) {
        let offset = usize::try_from(address.saturating_sub(self.start)).unwrap_or(usize::MAX);
        for (slot, &byte) in self.bytes.iter_mut().skip(offset).zip(bytes) {
            *slot = byte;
        }
    }

    /// The number of bytes so far.
    pub(super) fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Writes all of it.
    pub(super) fn write(&self, request: &Request<'_>, what: &'static str) -> Result<(), LoadError> {
        write(request, what, GuestAddress(self.start), &self.bytes)
    }
}

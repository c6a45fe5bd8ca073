//! Checks where things go in guest memory, and writes them.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use super::Request;
use super::elf::Segment;
use super::error::{ImageError, LoadError};
use crate::layout;
use crate::memory::{MemoryLayout, PAGE};

/// Checks that segments lie in memory that a kernel may use.
pub(super) fn check_segments(
    memory: MemoryLayout,
    segments: &[Range<u64>],
) -> Result<(), ImageError> {
    let reserved = layout::BOOT_DATA_START..layout::BOOT_DATA_END;
    for segment in segments {
        if segment.start < reserved.end && reserved.start < segment.end {
            return Err(ImageError::OverlapsBootData {
                segment: segment.clone(),
                reserved,
            });
        }
        if !memory.is_ram(segment) {
            return Err(ImageError::OutsideMemory {
                segment: segment.clone(),
            });
        }
    }
    Ok(())
}

/// One past the highest byte of the segments that are below 4 GiB, at least 1 MiB.
pub(super) fn end_of(segments: &[Range<u64>]) -> u64 {
    segments
        .iter()
        .map(|segment| segment.end)
        .filter(|&end| end <= layout::MMIO_HOLE_START)
        .fold(layout::HIGH_MEMORY_START, u64::max)
}

/// The command line as bytes with its terminating zero.
pub(super) fn cmdline(text: &str, limit: u64) -> Result<Vec<u8>, LoadError> {
    let limit = limit.min(layout::CMDLINE_ROOM - 1);
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

/// Places the initrd, if there is one, right above the kernel.
pub(super) fn above(
    request: &Request<'_>,
    kernel_end: u64,
) -> Result<Option<Range<u64>>, LoadError> {
    let start = kernel_end.next_multiple_of(PAGE);
    place(request, start, request.layout.low_end(), |size, _| {
        start.saturating_add(size)
    })
}

/// Places the initrd, if there is one, as high as `limit` allows: a kernel that unpacks itself upwards
/// does not reach it.
pub(super) fn below(
    request: &Request<'_>,
    kernel_end: u64,
    limit: u64,
) -> Result<Option<Range<u64>>, LoadError> {
    let limit = limit.min(request.layout.low_end());
    place(request, kernel_end, limit, |_, top| top)
}

/// The initrd ends at `end(size, limit)`, and starts on a page boundary.
fn place(
    request: &Request<'_>,
    floor: u64,
    limit: u64,
    end: impl Fn(u64, u64) -> u64,
) -> Result<Option<Range<u64>>, LoadError> {
    let Some(file) = request.initrd else {
        return Ok(None);
    };
    let size = file.bytes.len() as u64;
    if size == 0 {
        return Err(LoadError::InitrdEmpty {
            file: file.name.clone(),
        });
    }
    let start = end(size, limit)
        .checked_sub(size)
        .map(|start| start / PAGE * PAGE);
    match start {
        Some(start) if start >= floor && start.saturating_add(size) <= limit => {
            Ok(Some(start..start + size))
        }
        _ => Err(LoadError::InitrdTooBig {
            file: file.name.clone(),
            size,
            room: limit.saturating_sub(floor),
        }),
    }
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

/// Writes the command line to its place.
pub(super) fn write_cmdline(request: &Request<'_>, cmdline: &[u8]) -> Result<(), LoadError> {
    write(request, "the command line", layout::CMDLINE, cmdline)
}

/// Writes the initrd to `range`.
pub(super) fn write_initrd(
    request: &Request<'_>,
    range: Option<&Range<u64>>,
) -> Result<(), LoadError> {
    match (range, request.initrd) {
        (Some(range), Some(file)) => write(
            request,
            "the initrd",
            GuestAddress(range.start),
            &file.bytes,
        ),
        _ => Ok(()),
    }
}

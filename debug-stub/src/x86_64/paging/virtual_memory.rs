//! Memory by linear address, page by page.

use super::translate;
use crate::x86_64::SpecialRegisters;
use crate::{GuestMemory, GuestPhysAddr, GuestVirtAddr};

/// Reads guest memory by linear address.
///
/// Returns the number of bytes from the start that could be read: fewer than asked where a page is
/// not mapped, where RAM ends, or where the address space does (an access never wraps around).
/// The rest of `data` is unchanged.
pub fn read_virtual(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
    data: &mut [u8],
) -> usize {
    let mut done = 0;
    while let Some(rest) = data.get_mut(done..) {
        let Some((gpa, length)) = piece(special, memory, address, done, rest.len()) else {
            break;
        };
        let Some(chunk) = rest.get_mut(..length) else {
            break;
        };
        let read = memory.read_memory(gpa, chunk).min(length);
        done += read;
        if read < length {
            break;
        }
    }
    done
}

/// Writes guest memory by linear address. The page's permissions are ignored.
///
/// Returns the number of bytes from the start that were written, as [`read_virtual`] does.
pub fn write_virtual(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
    data: &[u8],
) -> usize {
    let mut done = 0;
    while let Some(rest) = data.get(done..) {
        let Some((gpa, length)) = piece(special, memory, address, done, rest.len()) else {
            break;
        };
        let Some(chunk) = rest.get(..length) else {
            break;
        };
        let written = memory.write_memory(gpa, chunk).min(length);
        done += written;
        if written < length {
            break;
        }
    }
    done
}

/// The physical piece at `address + done`: at most `remaining` bytes, within one page. `None` at
/// the end of the request, of the mapping, or of the address space.
fn piece(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
    done: usize,
    remaining: usize,
) -> Option<(GuestPhysAddr, usize)> {
    if remaining == 0 {
        return None;
    }
    let at = address.checked_add(u64::try_from(done).ok()?)?;
    let translation = translate(special, memory, at).ok()?;
    // A page that is larger than usize is larger than the request, too.
    let in_page = usize::try_from(translation.bytes_to_page_end()).unwrap_or(usize::MAX);
    Some((translation.gpa, remaining.min(in_page)))
}

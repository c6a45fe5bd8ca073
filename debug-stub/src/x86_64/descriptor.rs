//! Segment descriptors in guest memory (SDM 3A 3.4.5).

use super::paging::read_virtual;
use super::{Segment, SpecialRegisters};
use crate::{GuestMemory, GuestVirtAddr};

/// Selector bits 1:0: requested privilege level.
pub(crate) const SELECTOR_RPL: u16 = 3;
/// Selector bit 2: the LDT, not the GDT.
const SELECTOR_LDT: u16 = 1 << 2;

/// Returns `true` for a null selector (SDM 3A 3.4.2).
pub(crate) fn is_null(selector: u16) -> bool {
    selector & !SELECTOR_RPL == 0
}

/// Reads the descriptor of a selector that is not null, without a check of what it describes.
pub(crate) fn read(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    selector: u16,
) -> Result<Segment, &'static str> {
    let (base, limit) = if selector & SELECTOR_LDT == 0 {
        (special.gdtr.base, u32::from(special.gdtr.limit))
    } else if special.ldtr.unusable || is_null(special.ldtr.selector) {
        return Err("there is no LDT");
    } else {
        (special.ldtr.base, special.ldtr.limit)
    };
    let offset = selector & !(SELECTOR_RPL | SELECTOR_LDT);
    if u32::from(offset) + 7 > limit {
        return Err("it is beyond the limit of the descriptor table");
    }
    let mut bytes = [0; 8];
    let at = GuestVirtAddr(base.wrapping_add(u64::from(offset)));
    if read_virtual(special, memory, at, &mut bytes) != bytes.len() {
        return Err("the descriptor table cannot be read");
    }
    Ok(decode(selector, bytes))
}

/// Decodes a descriptor (SDM 3A figure 3-8).
fn decode(selector: u16, bytes: [u8; 8]) -> Segment {
    let [limit0, limit1, base0, base1, base2, access, flags, base3] = bytes;
    let limit = u32::from_le_bytes([limit0, limit1, flags & 0xf, 0]);
    let granularity = flags & 0x80 != 0;
    Segment {
        selector,
        base: u64::from(u32::from_le_bytes([base0, base1, base2, base3])),
        limit: if granularity {
            (limit << 12) | 0xfff
        } else {
            limit
        },
        kind: access & 0xf,
        code_or_data: access & 0x10 != 0,
        dpl: (access >> 5) & 3,
        present: access & 0x80 != 0,
        available: flags & 0x10 != 0,
        long: flags & 0x20 != 0,
        default_big: flags & 0x40 != 0,
        granularity,
        unusable: false,
    }
}

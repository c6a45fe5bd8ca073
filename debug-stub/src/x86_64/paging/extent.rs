//! How far a mapping extends, or a hole: LLDB's `qMemoryRegionInfo`.

use super::{Level, PagingMode, TranslateError, translate};
use crate::arch::{Region, RegionRights};
use crate::x86_64::SpecialRegisters;
use crate::{GuestMemory, GuestVirtAddr};

/// Pages and holes that are joined at most in each direction. It bounds the work for tables that map everything in
/// small pages: a longer region is reported in parts.
const MOST_PIECES: u32 = 2048;

/// The region around an address: its neighbours with equal rights belong to it.
pub(in crate::x86_64) fn region(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
) -> Region {
    let mut region = piece(special, memory, address);
    for _ in 0..MOST_PIECES {
        let Some(next) = region.last.checked_add(1) else {
            break;
        };
        let piece = piece(special, memory, GuestVirtAddr(next));
        if piece.rights != region.rights {
            break;
        }
        region.last = piece.last;
    }
    for _ in 0..MOST_PIECES {
        let Some(before) = region.start.checked_sub(1) else {
            break;
        };
        let piece = piece(special, memory, GuestVirtAddr(before));
        if piece.rights != region.rights {
            break;
        }
        region.start = piece.start;
    }
    region
}

/// The page that holds an address, or what the entry covers at which its translation ends.
fn piece(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    GuestVirtAddr(address): GuestVirtAddr,
) -> Region {
    let mode = PagingMode::of(special);
    let aligned = |shift: u32, rights| {
        let offset = (1u64 << shift) - 1;
        Region {
            start: address & !offset,
            last: address | offset,
            rights,
        }
    };
    let hole = |level: Level| aligned(level.shift(mode), None);
    match translate(special, memory, GuestVirtAddr(address)) {
        Ok(found) => {
            let rights = RegionRights {
                writable: found.writable,
                executable: found.executable,
            };
            let shift = match mode {
                PagingMode::None => mode.linear_width(),
                _ => found.page_size.shift(),
            };
            aligned(shift, Some(rights))
        }
        Err(TranslateError::NotCanonical { width, .. }) => {
            // The addresses between the two halves, or those that are too long.
            let half = match mode {
                PagingMode::FourLevel | PagingMode::FiveLevel => 1u64 << (width - 1),
                _ => 1u64 << width,
            };
            let last = match mode {
                PagingMode::FourLevel | PagingMode::FiveLevel => !half,
                _ => u64::MAX,
            };
            Region {
                start: half,
                last,
                rights: None,
            }
        }
        Err(
            TranslateError::TableUnreadable { level, .. }
            | TranslateError::NotPresent { level, .. }
            | TranslateError::Reserved { level, .. },
        ) => hole(level),
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_tables::{Tables, long};
    use super::*;
    use crate::x86_64::bits::{CR0_PE, CR0_PG, CR4_PSE};

    /// Start, last address, and rights as letters.
    fn at(special: &SpecialRegisters, memory: &Tables, address: u64) -> (u64, u64, &'static str) {
        let found = region(special, memory, GuestVirtAddr(address));
        let rights = found.rights.map_or("", |rights| match rights {
            RegionRights {
                writable: true,
                executable: true,
            } => "rwx",
            RegionRights {
                writable: true,
                executable: false,
            } => "rw",
            RegionRights {
                writable: false,
                executable: true,
            } => "rx",
            RegionRights {
                writable: false,
                executable: false,
            } => "r",
        });
        (found.start, found.last, rights)
    }

    const XD: u64 = 1 << 63;

    #[test]
    fn pages_with_equal_rights_and_holes_are_regions() {
        let memory = Tables::new(&[
            (0x1000, 0x2003),
            (0x2000, 0x3003),
            (0x3000, 0x4003),
            // Executable and read-only, then two writable ones, then a large page of the same rights.
            (0x4000 + 509 * 8, 0x7001),
            (0x4000 + 510 * 8, 0x7003 | XD),
            (0x4000 + 511 * 8, 0x9003 | XD),
            (0x3008, 0x83 | XD),
        ]);
        let regions = |address| at(&long(), &memory, address);
        assert_eq!(regions(0x10), (0, 0x1f_cfff, ""));
        assert_eq!(regions(0x1f_d123), (0x1f_d000, 0x1f_dfff, "rx"));
        for address in [0x1f_e000, 0x1f_f001, 0x20_0000, 0x3f_ffff] {
            assert_eq!(regions(address), (0x1f_e000, 0x3f_ffff, "rw"));
        }
        // Up to the end of the lower half, and over what lies between the halves, to the end.
        for address in [0x40_0000, 0x7fff_ffff_ffff, 0x8000_0000_0000, u64::MAX] {
            assert_eq!(regions(address), (0x40_0000, u64::MAX, ""));
        }
    }

    #[test]
    fn the_upper_half_is_mapped_at_its_sign_extended_addresses() {
        let memory = Tables::new(&[(0x1800, 0x2003), (0x2000, 0x83)]);
        assert_eq!(
            at(&long(), &memory, 0xffff_8000_0000_0000),
            (0xffff_8000_0000_0000, 0xffff_8000_3fff_ffff, "rwx")
        );
        assert_eq!(at(&long(), &memory, 0), (0, 0xffff_7fff_ffff_ffff, ""));
    }

    #[test]
    fn tables_that_loop_or_leave_ram_are_answered_in_bounded_time() {
        let all: Vec<_> = (0..512).map(|entry| (0x1000 + entry * 8, 0x1003)).collect();
        let memory = Tables::new(&all);
        let (start, last, rights) = at(&long(), &memory, 0x4000_0000);
        assert_eq!(rights, "rwx");
        assert_eq!(start, 0x4000_0000 - u64::from(MOST_PIECES) * 0x1000);
        assert_eq!(last, 0x4000_0fff + u64::from(MOST_PIECES) * 0x1000);
        assert!(memory.reads.get() <= (2 * MOST_PIECES + 1) * 4);

        let memory = Tables::new(&[(0x1000, 0x5555_5003), (0x1008, 0x2003), (0x2000, 0x83)]);
        assert_eq!(
            at(&long(), &memory, 0x1234),
            (0, (1 << 39) - 1, ""),
            "a table outside RAM maps nothing"
        );
        let nowhere = SpecialRegisters {
            cr3: 0x5555_5000,
            ..long()
        };
        assert_eq!(at(&nowhere, &memory, 0x1234), (0, u64::MAX, ""));
    }

    #[test]
    fn narrow_modes_end_at_4_gib() {
        let memory = Tables::new(&[(0x1000 + 4 * 1023, 0x83)]);
        let real_mode = SpecialRegisters::default();
        assert_eq!(at(&real_mode, &memory, 0x1234), (0, 0xffff_ffff, "rwx"));
        assert_eq!(at(&real_mode, &memory, 1 << 32), (1 << 32, u64::MAX, ""));
        let legacy = SpecialRegisters {
            cr0: CR0_PE | CR0_PG,
            cr3: 0x1000,
            cr4: CR4_PSE,
            ..SpecialRegisters::default()
        };
        assert_eq!(
            at(&legacy, &memory, 0xffff_ffff),
            (0xffc0_0000, 0xffff_ffff, "rwx")
        );
        assert_eq!(at(&legacy, &memory, 0), (0, 0xffbf_ffff, ""));
    }
}

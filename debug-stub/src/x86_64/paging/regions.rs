//! What is mapped, as ranges: the text of QEMU's `info mem`, and a list.

use std::fmt::{self, Write};
use std::ops::RangeInclusive;

use super::PagingMode;
use super::walk::{ADDRESS, EXECUTE_DISABLE, PAGE_SIZE, PRESENT, USER, WRITABLE};
use crate::x86_64::SpecialRegisters;
use crate::x86_64::bits::CR4_PSE;
use crate::{GuestMemory, GuestPhysAddr, GuestVirtAddr};

/// Tables that are read at most. Tables may point to themselves: without a limit, a guest could keep the
/// debugger's thread for hours.
const MAX_TABLES: u32 = 16 << 10;

/// One level of tables.
struct Level {
    /// The lowest bit of a linear address that selects an entry.
    shift: u32,
    entries: usize,
    /// PS maps a page here.
    has_pages: bool,
    /// R/W and U/S count here.
    has_rights: bool,
}

const fn level(shift: u32, entries: usize, has_pages: bool) -> Level {
    Level {
        shift,
        entries,
        has_pages,
        has_rights: true,
    }
}

/// 5-level paging. 4-level paging is all but the first (SDM 3A 4.5).
const LONG: [Level; 5] = [
    level(48, 512, false),
    level(39, 512, false),
    level(30, 512, true),
    level(21, 512, true),
    level(12, 512, false),
];
/// SDM 3A 4.4.
const PAE: [Level; 3] = [
    Level {
        has_rights: false,
        ..level(30, 4, false)
    },
    level(21, 512, true),
    level(12, 512, false),
];
/// SDM 3A 4.3.
const LEGACY: [Level; 2] = [level(22, 1024, true), level(12, 1024, false)];

/// Linear addresses that are mapped to physical addresses in the same order, with equal rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first linear address.
    pub start: GuestVirtAddr,
    /// Its physical address.
    pub gpa: GuestPhysAddr,
    /// How many bytes.
    pub size: u64,
    /// R/W is set at every level.
    pub writable: bool,
    /// XD is clear at every level.
    pub executable: bool,
    /// U/S is set at every level.
    pub user: bool,
}

/// Mappings, as far as they fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    /// By linear address, the lowest first.
    pub list: Vec<Mapping>,
    /// These are all.
    pub complete: bool,
}

/// Returns what is mapped `within` these linear addresses, at most `most` mappings. Pages that follow each other in
/// both address spaces are one mapping. Without paging there is none. The work is bounded for any tables.
#[must_use]
pub fn mappings(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    within: RangeInclusive<GuestVirtAddr>,
    most: usize,
) -> Mappings {
    let mut list: Vec<Mapping> = Vec::new();
    let walked = visit_pages(special, memory, within, |page| {
        if let Some(last) = list.last_mut() {
            let follows = Mapping {
                start: GuestVirtAddr(last.start.0.wrapping_add(last.size)),
                gpa: GuestPhysAddr(last.gpa.0.wrapping_add(last.size)),
                size: page.size,
                ..*last
            };
            if follows == page {
                last.size += page.size;
                return Ok(());
            }
        }
        if list.len() >= most {
            return Err(());
        }
        list.push(page);
        Ok(())
    });
    Mappings {
        list,
        complete: walked == Ok(true),
    }
}

/// Writes a line for each range of linear addresses with equal rights: `start-end size urw`, in hexadecimal.
/// Rights are those of all levels together.
///
/// # Errors
/// If `out` takes no more.
pub(in crate::x86_64) fn write_regions(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    out: &mut dyn Write,
) -> fmt::Result {
    let mode = PagingMode::of(special);
    if mode == PagingMode::None {
        return writeln!(out, "PG disabled");
    }
    // QEMU's form has no right to execute.
    let mut open: Option<Mapping> = None;
    let all = GuestVirtAddr(0)..=GuestVirtAddr(u64::MAX);
    let complete = visit_pages(special, memory, all, |page| {
        if let Some(open) = &mut open {
            let next = open.start.0.wrapping_add(open.size);
            if (next, open.writable, open.user) == (page.start.0, page.writable, page.user) {
                open.size += page.size;
                return Ok(());
            }
            write_region(mode, open, out)?;
        }
        open = Some(page);
        Ok(())
    })?;
    if let Some(open) = open {
        write_region(mode, &open, out)?;
    }
    if !complete {
        writeln!(out, "(not all: more than {MAX_TABLES} page tables)")?;
    }
    Ok(())
}

fn write_region(mode: PagingMode, region: &Mapping, out: &mut dyn Write) -> fmt::Result {
    let Mapping {
        start,
        size,
        writable,
        user,
        ..
    } = *region;
    // The end of the lower half is written as the beginning of the upper one, as QEMU does.
    let end = canonical(mode.linear_width(), start.0.wrapping_add(size));
    writeln!(
        out,
        "{:016x}-{end:016x} {size:016x} {}r{}",
        start.0,
        if user { 'u' } else { '-' },
        if writable { 'w' } else { '-' },
    )
}

/// Extends the sign of a linear address in long mode.
fn canonical(width: u32, address: u64) -> u64 {
    let sign = 1u64 << (width - 1);
    if width >= 48 && address & sign != 0 {
        address | !(sign - 1)
    } else {
        address
    }
}

/// Calls `visit` with each page that has an address `within` these, by linear address. Returns `false` if there are
/// more than [`MAX_TABLES`] tables.
fn visit_pages<E>(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    within: RangeInclusive<GuestVirtAddr>,
    visit: impl FnMut(Mapping) -> Result<(), E>,
) -> Result<bool, E> {
    let mode = PagingMode::of(special);
    let (levels, entry_bytes): (&[Level], usize) = match mode {
        PagingMode::None => return Ok(true),
        PagingMode::FiveLevel => (&LONG, 8),
        PagingMode::FourLevel => (LONG.get(1..).unwrap_or_default(), 8),
        PagingMode::Pae => (&PAE, 8),
        PagingMode::Legacy => (&LEGACY, 4),
    };
    let root = match mode {
        PagingMode::Pae => special.cr3 & 0xffff_ffe0,
        PagingMode::Legacy => special.cr3 & 0xffff_f000,
        _ => special.cr3 & ADDRESS,
    };
    let mut pages = Pages {
        memory,
        visit,
        within,
        entry_bytes,
        large_legacy: special.cr4 & CR4_PSE != 0,
        width: mode.linear_width(),
        tables_left: MAX_TABLES,
    };
    pages.table(levels, root, 0, USER | WRITABLE)?;
    Ok(pages.tables_left != 0)
}

struct Pages<'a, M, F> {
    memory: &'a M,
    visit: F,
    within: RangeInclusive<GuestVirtAddr>,
    entry_bytes: usize,
    large_legacy: bool,
    width: u32,
    tables_left: u32,
}

impl<M: GuestMemory, E, F: FnMut(Mapping) -> Result<(), E>> Pages<'_, M, F> {
    /// Visits what a table maps from the linear address `base` on. `rights` are those of the levels above, with XD if
    /// one of them has it. The number of levels bounds the recursion.
    fn table(&mut self, levels: &[Level], table: u64, base: u64, rights: u64) -> Result<(), E> {
        let Some((level, below)) = levels.split_first() else {
            return Ok(());
        };
        let Some(left) = self.tables_left.checked_sub(1) else {
            return Ok(());
        };
        self.tables_left = left;
        let mut bytes = vec![0; level.entries * self.entry_bytes];
        let read = self.memory.read_memory(GuestPhysAddr(table), &mut bytes);
        let entries = bytes.get(..read).unwrap_or_default();
        for (bytes, index) in entries.chunks_exact(self.entry_bytes).zip(0u64..) {
            let mut entry = [0; 8];
            for (to, from) in entry.iter_mut().zip(bytes) {
                *to = *from;
            }
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT == 0 {
                continue;
            }
            let address = base | (index << level.shift);
            let size = 1u64 << level.shift;
            let start = canonical(self.width, address);
            let last = GuestVirtAddr(start | (size - 1));
            if last < *self.within.start() || GuestVirtAddr(start) > *self.within.end() {
                continue;
            }
            let rights = if level.has_rights {
                (rights & entry & (USER | WRITABLE)) | ((rights | entry) & EXECUTE_DISABLE)
            } else {
                rights
            };
            let wide = self.entry_bytes == 8;
            let mask = if wide { ADDRESS } else { 0xffff_f000 };
            let is_large = level.has_pages && entry & PAGE_SIZE != 0 && (wide || self.large_legacy);
            if below.is_empty() || is_large {
                // PSE-36: bits 20:13 are address bits 39:32 (SDM 3A table 4-4).
                let high = if is_large && !wide {
                    (entry >> 13 & 0xff) << 32
                } else {
                    0
                };
                (self.visit)(Mapping {
                    start: GuestVirtAddr(start),
                    gpa: GuestPhysAddr((entry & mask & !(size - 1)) | high),
                    size,
                    writable: rights & WRITABLE != 0,
                    executable: rights & EXECUTE_DISABLE == 0,
                    user: rights & USER != 0,
                })?;
            } else {
                self.table(below, entry & mask, address, rights)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::bits::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME};
    use std::cell::RefCell;

    struct Tables(RefCell<Vec<u8>>);

    impl Tables {
        fn new() -> Self {
            Self(RefCell::new(vec![0; 0x10000]))
        }

        fn put8(&self, at: usize, entry: u64) {
            self.0.borrow_mut()[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }

        fn put4(&self, at: usize, entry: u32) {
            self.0.borrow_mut()[at..at + 4].copy_from_slice(&entry.to_le_bytes());
        }
    }

    impl GuestMemory for Tables {
        fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
            let ram = self.0.borrow();
            let at = usize::try_from(address.0).unwrap().min(ram.len());
            let length = data.len().min(ram.len() - at);
            data[..length].copy_from_slice(&ram[at..at + length]);
            length
        }

        fn write_memory(&self, _: GuestPhysAddr, _: &[u8]) -> usize {
            0
        }
    }

    fn text(special: &SpecialRegisters, memory: &Tables) -> String {
        let mut text = String::new();
        write_regions(special, memory, &mut text).unwrap();
        text
    }

    fn long() -> SpecialRegisters {
        SpecialRegisters {
            cr0: CR0_PE | CR0_PG,
            cr3: 0x1000,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..SpecialRegisters::default()
        }
    }

    #[test]
    fn ranges_are_joined_while_their_rights_are_equal() {
        let tables = Tables::new();
        tables.put8(0x1000, 0x2007);
        tables.put8(0x1ff8, 0x2003);
        tables.put8(0x2000, 0x3007);
        tables.put8(0x3000, 0x4007);
        // Two large pages behind the first 2 MiB.
        tables.put8(0x3008, 0x20_0083);
        tables.put8(0x3010, 0x40_0083);
        tables.put8(0x4000, 0x7007);
        tables.put8(0x4008, 0x7007);
        tables.put8(0x4010, 0x7005);
        tables.put8(0x4ff8, 0x7003);
        assert_eq!(
            text(&long(), &tables),
            "0000000000000000-0000000000002000 0000000000002000 urw\n\
             0000000000002000-0000000000003000 0000000000001000 ur-\n\
             00000000001ff000-0000000000600000 0000000000401000 -rw\n\
             ffffff8000000000-ffffff8000002000 0000000000002000 -rw\n\
             ffffff8000002000-ffffff8000003000 0000000000001000 -r-\n\
             ffffff80001ff000-ffffff8000600000 0000000000401000 -rw\n"
        );
    }

    #[test]
    fn tables_that_point_to_themselves_end() {
        let tables = Tables::new();
        for entry in 0..512 {
            tables.put8(0x1000 + entry * 8, 0x1007);
        }
        let said = text(&long(), &tables);
        assert!(said.ends_with("(not all: more than 16384 page tables)\n"));
    }

    #[test]
    fn mappings_are_joined_where_both_addresses_go_on() {
        let tables = Tables::new();
        tables.put8(0x1ff8, 0x2007);
        tables.put8(0x2000, 0x3007);
        tables.put8(0x3000, 0x4007);
        tables.put8(0x3008, 0x20_0083 | EXECUTE_DISABLE);
        tables.put8(0x4000, 0x7007);
        tables.put8(0x4008, 0x8007);
        tables.put8(0x4010, 0xb007);
        tables.put8(0x4018, 0xc005);
        let all = GuestVirtAddr(0)..=GuestVirtAddr(u64::MAX);
        let found = mappings(&long(), &tables, all.clone(), 10);
        let mapping = |start: u64, gpa, size| Mapping {
            start: GuestVirtAddr(0xffff_ff80_0000_0000 + start),
            gpa: GuestPhysAddr(gpa),
            size,
            writable: true,
            executable: true,
            user: true,
        };
        let list = [
            mapping(0, 0x7000, 0x2000),
            mapping(0x2000, 0xb000, 0x1000),
            Mapping {
                writable: false,
                ..mapping(0x3000, 0xc000, 0x1000)
            },
            Mapping {
                executable: false,
                user: false,
                ..mapping(0x20_0000, 0x20_0000, 0x20_0000)
            },
        ];
        assert_eq!(found.list, list);
        assert!(found.complete);
        let some = mappings(&long(), &tables, all, 2);
        assert_eq!(some.list, list[..2]);
        assert!(!some.complete);
        let lower = GuestVirtAddr(0)..=GuestVirtAddr(u64::MAX / 2);
        let none = mappings(&long(), &tables, lower, 10);
        assert_eq!((none.list.len(), none.complete), (0, true));
    }

    #[test]
    fn the_halves_of_the_addresses_are_not_joined() {
        let tables = Tables::new();
        tables.put8(0x1000 + 255 * 8, 0x2007);
        tables.put8(0x1000 + 256 * 8, 0x2007);
        for entry in 0..512 {
            tables.put8(0x2000 + entry * 8, 0x87);
        }
        assert_eq!(
            text(&long(), &tables),
            "00007f8000000000-ffff800000000000 0000008000000000 urw\n\
             ffff800000000000-ffff808000000000 0000008000000000 urw\n"
        );
    }

    #[test]
    fn legacy_pae_and_no_paging() {
        let tables = Tables::new();
        let mut special = SpecialRegisters::default();
        assert_eq!(text(&special, &tables), "PG disabled\n");
        special.cr0 = CR0_PE | CR0_PG;
        special.cr3 = 0x1000;
        special.cr4 = CR4_PSE;
        tables.put4(0x1000 + 768 * 4, 0x83);
        tables.put4(0x1000 + 1023 * 4, 0x2003);
        tables.put4(0x2000 + 1023 * 4, 0x1001);
        assert_eq!(
            text(&special, &tables),
            "00000000c0000000-00000000c0400000 0000000000400000 -rw\n\
             00000000fffff000-0000000100000000 0000000000001000 -r-\n"
        );
        let tables = Tables::new();
        special.cr4 = CR4_PAE;
        special.cr3 = 0x1020;
        // A PDPTE has no rights (SDM 3A table 4-8).
        tables.put8(0x1020 + 3 * 8, 0x3001);
        tables.put8(0x3000, 0x87);
        assert_eq!(
            text(&special, &tables),
            "00000000c0000000-00000000c0200000 0000000000200000 urw\n"
        );
    }
}

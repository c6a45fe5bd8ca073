//! What is mapped, as ranges: the text of QEMU's `info mem`.

use std::fmt::{self, Write};

use super::PagingMode;
use super::walk::{ADDRESS, PAGE_SIZE, PRESENT, USER, WRITABLE};
use crate::x86_64::SpecialRegisters;
use crate::x86_64::bits::CR4_PSE;
use crate::{GuestMemory, GuestPhysAddr};

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
    let (levels, entry_bytes): (&[Level], usize) = match mode {
        PagingMode::None => return writeln!(out, "PG disabled"),
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
    let mut regions = Regions {
        memory,
        out,
        entry_bytes,
        large_legacy: special.cr4 & CR4_PSE != 0,
        width: mode.linear_width(),
        open: None,
        tables_left: MAX_TABLES,
    };
    regions.table(levels, root, 0, USER | WRITABLE)?;
    regions.close()?;
    if regions.tables_left == 0 {
        writeln!(regions.out, "(not all: more than {MAX_TABLES} page tables)")?;
    }
    Ok(())
}

/// A range that may go on.
#[derive(Clone, Copy)]
struct Open {
    start: u64,
    end: u64,
    rights: u64,
}

struct Regions<'a, M> {
    memory: &'a M,
    out: &'a mut dyn Write,
    entry_bytes: usize,
    large_legacy: bool,
    width: u32,
    open: Option<Open>,
    tables_left: u32,
}

impl<M: GuestMemory> Regions<'_, M> {
    /// Adds what a table maps from the linear address `base` on. The number of levels bounds the recursion.
    fn table(&mut self, levels: &[Level], table: u64, base: u64, rights: u64) -> fmt::Result {
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
            let rights = if level.has_rights {
                rights & entry
            } else {
                rights
            };
            let wide = self.entry_bytes == 8;
            let is_page = below.is_empty()
                || (level.has_pages && entry & PAGE_SIZE != 0 && (wide || self.large_legacy));
            if is_page {
                self.add(address, 1 << level.shift, rights)?;
            } else {
                let mask = if wide { ADDRESS } else { 0xffff_f000 };
                self.table(below, entry & mask, address, rights)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, address: u64, size: u64, rights: u64) -> fmt::Result {
        let end = address + size;
        // The two halves of the canonical addresses do not follow each other.
        let half = self.width >= 48 && address == 1 << (self.width - 1);
        if let Some(open) = &mut self.open {
            if open.end == address && open.rights == rights && !half {
                open.end = end;
                return Ok(());
            }
        }
        self.close()?;
        self.open = Some(Open {
            start: address,
            end,
            rights,
        });
        Ok(())
    }

    fn close(&mut self) -> fmt::Result {
        let Some(Open { start, end, rights }) = self.open.take() else {
            return Ok(());
        };
        writeln!(
            self.out,
            "{:016x}-{:016x} {:016x} {}r{}",
            self.canonical(start),
            self.canonical(end),
            end - start,
            if rights & USER != 0 { 'u' } else { '-' },
            if rights & WRITABLE != 0 { 'w' } else { '-' },
        )
    }

    /// Extends the sign of a linear address.
    fn canonical(&self, address: u64) -> u64 {
        let sign = 1u64 << (self.width - 1);
        if self.width >= 48 && address & sign != 0 {
            address | !(sign - 1)
        } else {
            address
        }
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

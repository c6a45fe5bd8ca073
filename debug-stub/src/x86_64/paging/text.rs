//! Page walks as text: `monitor translate` and `monitor pagewalk`.

use std::cell::RefCell;
use std::fmt::{self, Write};

use super::walk::{EXECUTE_DISABLE, PAGE_SIZE, PRESENT, USER, WRITABLE};
use super::{Level, PagingMode, PhysicalAddressing, Translation, translate, translate_visiting};
use crate::x86_64::SpecialRegisters;
use crate::{GuestMemory, GuestPhysAddr, GuestVirtAddr};

/// The other bits of an entry that have a name (SDM 3A tables 4-4 to 4-20). PWT and PCD choose the memory type.
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const GLOBAL: u64 = 1 << 8;

/// Writes where a linear address is, as QEMU's `gva2gpa`, and its page.
pub(in crate::x86_64) fn write_translation(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
    out: &mut dyn Write,
) -> fmt::Result {
    match translate(special, memory, address) {
        Ok(found) => {
            writeln!(out, "gpa: {}", found.gpa)?;
            result(PagingMode::of(special), address, &found, memory, out)
        }
        Err(error) => writeln!(out, "Unmapped: {error}"),
    }
}

/// Writes a line for each level's entry, and the result.
pub(in crate::x86_64) fn write_walk(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
    out: &mut dyn Write,
) -> fmt::Result {
    let mode = PagingMode::of(special);
    writeln!(out, "{mode}, CR3 {:#x}", special.cr3)?;
    let entries = RefCell::new(Vec::new());
    let visit = |level, at, entry| entries.borrow_mut().push((level, at, entry));
    let physical = PhysicalAddressing::default();
    let found = translate_visiting(special, physical, memory, address, visit);
    for (level, at, value) in entries.into_inner() {
        write_entry(mode, level, at, value, out)?;
    }
    match found {
        Ok(found) => result(mode, address, &found, memory, out),
        Err(error) => writeln!(out, "{error}"),
    }
}

/// One entry: where it is, its value, its flags, and how much it covers.
fn write_entry(
    mode: PagingMode,
    level: Level,
    at: GuestPhysAddr,
    entry: u64,
    out: &mut dyn Write,
) -> fmt::Result {
    let digits = if mode == PagingMode::Legacy { 10 } else { 18 };
    write!(out, "{level:<5} at {at}: {entry:#0digits$x}")?;
    if entry & PRESENT == 0 {
        write!(out, " not present")?;
    } else {
        let is_page = level == Level::Pte
            || (entry & PAGE_SIZE != 0 && matches!(level, Level::Pde | Level::Pdpte));
        for (bit, name) in [
            (PRESENT, "P"),
            (WRITABLE, "RW"),
            (USER, "US"),
            (PWT, "PWT"),
            (PCD, "PCD"),
            (ACCESSED, "A"),
        ] {
            if entry & bit != 0 {
                write!(out, " {name}")?;
            }
        }
        for (bit, name) in [(DIRTY, "D"), (GLOBAL, "G")] {
            if is_page && entry & bit != 0 {
                write!(out, " {name}")?;
            }
        }
        // In a PTE bit 7 is PAT.
        if entry & PAGE_SIZE != 0 {
            let name = if level == Level::Pte { "PAT" } else { "PS" };
            write!(out, " {name}")?;
        }
        if entry & EXECUTE_DISABLE != 0 {
            write!(out, " XD")?;
        }
    }
    writeln!(out, ", covers {}", Size(1 << level.shift(mode)))
}

/// A power of two, in the largest unit.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.iter().find(|(shift, _)| self.0 >> shift != 0) {
            Some((shift, name)) => write!(f, "{} {name}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

fn result(
    mode: PagingMode,
    address: GuestVirtAddr,
    found: &Translation,
    memory: &impl GuestMemory,
    out: &mut dyn Write,
) -> fmt::Result {
    write!(out, "{address} is at physical {}", found.gpa)?;
    if mode != PagingMode::None {
        write!(
            out,
            ", in a page of {}: r{}{}, {}",
            found.page_size,
            if found.writable { 'w' } else { '-' },
            if found.executable { 'x' } else { '-' },
            if found.user { "user" } else { "supervisor" },
        )?;
    }
    if memory.read_memory(found.gpa, &mut [0]) == 0 {
        write!(out, "; there is no RAM")?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::super::test_tables::{Tables, long};
    use super::*;
    use crate::x86_64::bits::{CR0_PE, CR0_PG, CR4_PSE};

    fn walk(special: &SpecialRegisters, memory: &Tables, address: u64) -> String {
        let mut text = String::new();
        write_walk(special, memory, GuestVirtAddr(address), &mut text).unwrap();
        text
    }

    fn translation(special: &SpecialRegisters, memory: &Tables, address: u64) -> String {
        let mut text = String::new();
        write_translation(special, memory, GuestVirtAddr(address), &mut text).unwrap();
        text
    }

    #[test]
    fn each_level_is_a_line_and_the_last_line_is_the_physical_address() {
        let memory = Tables::new(&[
            (0x1ff8, 0x2067),
            (0x2ff0, 0x3063),
            (0x3008, 0x4063),
            (0x4018, 0x8000_0000_0000_71fd),
        ]);
        assert_eq!(
            walk(&long(), &memory, 0xffff_ffff_8020_3456),
            "4-level paging, CR3 0x1000\n\
             PML4E at 0x1ff8: 0x0000000000002067 P RW US A, covers 512 GiB\n\
             PDPTE at 0x2ff0: 0x0000000000003063 P RW A, covers 1 GiB\n\
             PDE   at 0x3008: 0x0000000000004063 P RW A, covers 2 MiB\n\
             PTE   at 0x4018: 0x80000000000071fd P US PWT PCD A D G PAT XD, covers 4 KiB\n\
             0xffffffff80203456 is at physical 0x7456, in a page of 4 KiB: r--, supervisor\n"
        );
        assert_eq!(
            translation(&long(), &memory, 0xffff_ffff_8020_3456),
            "gpa: 0x7456\n\
             0xffffffff80203456 is at physical 0x7456, in a page of 4 KiB: r--, supervisor\n"
        );
    }

    #[test]
    fn a_walk_that_ends_says_at_which_entry_and_why() {
        let memory = Tables::new(&[
            (0x1000, 0x2003),
            (0x2000, 0x1234_5000),
            (0x2008, 0x5555_5003),
        ]);
        assert_eq!(
            walk(&long(), &memory, 0),
            "4-level paging, CR3 0x1000\n\
             PML4E at 0x1000: 0x0000000000002003 P RW, covers 512 GiB\n\
             PDPTE at 0x2000: 0x0000000012345000 not present, covers 1 GiB\n\
             0x0 is not mapped: the PDPTE at 0x2000 is 0x12345000, not present\n"
        );
        let left = walk(&long(), &memory, 0x4000_0000);
        assert!(
            left.ends_with("the PDE at 0x55555000 for 0x40000000 lies outside RAM\n"),
            "{left}"
        );
        assert_eq!(
            translation(&long(), &memory, 0x8000_0000_0000),
            "Unmapped: 0x800000000000 is no linear address: 48 bits are in use\n"
        );
    }

    #[test]
    fn a_table_that_points_to_itself_is_read_once_for_each_level() {
        let memory = Tables::new(&[(0x1000, 0x1003)]);
        let text = walk(&long(), &memory, 0x10);
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(text.contains("0x10 is at physical 0x1010"), "{text}");
    }

    #[test]
    fn other_paging_modes_have_their_own_levels() {
        let mut special = SpecialRegisters {
            cr0: CR0_PE | CR0_PG,
            cr3: 0x1000,
            cr4: CR4_PSE,
            ..SpecialRegisters::default()
        };
        let memory = Tables::new(&[(0x1000 + 4 * 768, 0x83)]);
        assert_eq!(
            walk(&special, &memory, 0xc000_0010),
            "32-bit paging, CR3 0x1000\n\
             PDE   at 0x1c00: 0x00000083 P RW PS, covers 4 MiB\n\
             0xc0000010 is at physical 0x10, in a page of 4 MiB: rwx, supervisor\n"
        );
        special.cr0 = CR0_PE;
        assert_eq!(
            walk(&special, &memory, 0x2000_0000),
            "no paging, CR3 0x1000\n0x20000000 is at physical 0x20000000; there is no RAM\n"
        );
    }
}

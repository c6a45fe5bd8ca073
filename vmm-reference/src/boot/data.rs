//! The boot data: tables of the VMM that a kernel reads at its start, in one block of memory.
//!
//! | offset | what |
//! |---|---|
//! | `0x0` | GDT |
//! | `0x1000` | `hvm_start_info`, or the multiboot 1 information |
//! | `0x2000` | Linux's `boot_params`, the "zero page" |
//! | `0x3000` | the memory map that PVH and multiboot 1 point to |
//! | `0x4000` | page tables: PML4, PDPT and four page directories; or the multiboot 2 information, up to the end |
//! | `0xa000` | the modules' list and strings |
//! | `0x1_b000` | the command line |
//!
//! The block begins at 0x5000, unless the kernel is linked there: then where the kernel leaves room.

use std::ops::Range;

use vm_memory::GuestAddress;

use crate::layout;
use crate::memory::{self, MemoryLayout, PAGE};

/// Where the block begins if the kernel leaves its place free.
const USUAL: u64 = 0x5000;
/// Its size in bytes.
const SIZE: u64 = 0x2_b000;

const START_INFO: u64 = 0x1000;
const ZERO_PAGE: u64 = 0x2000;
const MEMORY_MAP: u64 = 0x3000;
const PAGE_TABLES: u64 = 0x4000;
const MODULES: u64 = 0xa000;
const CMDLINE: u64 = 0x1_b000;

/// Where the boot data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootData {
    start: u64,
}

impl BootData {
    /// Room for the command line, with its terminating zero.
    pub const CMDLINE_ROOM: u64 = SIZE - CMDLINE;

    /// Chooses a place that none of the ranges in `kernel` touches: the usual one, or as high as possible
    /// below 1 MiB, or as high as possible below 4 GiB. `None` if there is none.
    #[must_use]
    pub fn place(memory: MemoryLayout, kernel: &[Range<u64>]) -> Option<Self> {
        let below_1_mib = USUAL..layout::EBDA.0;
        let below_4_gib = layout::HIGH_MEMORY_START..memory.low_end();
        let highest = |within| memory::highest_gap(within, kernel, SIZE);
        memory::highest_gap(USUAL..USUAL + SIZE, kernel, SIZE)
            .or_else(|| highest(below_1_mib))
            .or_else(|| highest(below_4_gib))
            .map(|start| Self { start })
    }

    /// All of it.
    #[must_use]
    pub fn range(self) -> Range<u64> {
        self.start..self.start + SIZE
    }

    const fn at(self, offset: u64) -> GuestAddress {
        GuestAddress(self.start + offset)
    }

    /// The GDT that the Linux entries expect.
    #[must_use]
    pub const fn gdt(self) -> GuestAddress {
        self.at(0)
    }

    /// `hvm_start_info`, or the multiboot 1 information.
    #[must_use]
    pub const fn start_info(self) -> GuestAddress {
        self.at(START_INFO)
    }

    /// Linux's `boot_params`.
    #[must_use]
    pub const fn zero_page(self) -> GuestAddress {
        self.at(ZERO_PAGE)
    }

    /// The memory map that PVH and multiboot 1 point to: one page.
    #[must_use]
    pub const fn memory_map(self) -> GuestAddress {
        self.at(MEMORY_MAP)
    }

    /// The page tables of the 64-bit entry: 4 GiB, identity-mapped with 2 MiB pages.
    #[must_use]
    pub const fn page_tables(self) -> GuestAddress {
        self.at(PAGE_TABLES)
    }

    /// Room for the list of modules and their strings.
    #[must_use]
    pub fn modules(self) -> Range<u64> {
        self.start + MODULES..self.start + CMDLINE
    }

    /// The command line.
    #[must_use]
    pub const fn cmdline(self) -> GuestAddress {
        self.at(CMDLINE)
    }

    /// Room for the multiboot 2 information, which holds the command line and needs no page tables.
    #[must_use]
    pub fn multiboot2(self) -> Range<u64> {
        self.start + PAGE_TABLES..self.start + SIZE
    }
}

const _: () = assert!(USUAL.is_multiple_of(PAGE) && SIZE.is_multiple_of(PAGE));

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn start(memory: u64, kernel: Range<u64>) -> Option<u64> {
        let memory = MemoryLayout::new(memory).unwrap();
        BootData::place(memory, &[kernel]).map(|data| data.range().start)
    }

    #[test]
    fn it_is_at_0x5000_if_the_kernel_leaves_that_free() {
        for kernel in [MIB..2 * MIB, 0..0x5000, 0x3_0000..0x9_fc00] {
            assert_eq!(start(16 * MIB, kernel), Some(0x5000));
        }
    }

    #[test]
    fn it_gives_way_to_the_kernel() {
        // Below the EBDA, in whole pages.
        for kernel in [0x5000..0x5001, 0x4000..0x7_0000, 0x2_ffff..0x3_0000] {
            assert_eq!(start(16 * MIB, kernel), Some(0x9_f000 - 0x2_b000));
        }
        assert_eq!(
            start(16 * MIB, 0x7_0000..0x9_fc00),
            Some(0x5000),
            "below the kernel"
        );
        // No gap is left below 1 MiB.
        assert_eq!(start(16 * MIB, 0x1000..0x9_0000), Some(16 * MIB - 0x2_b000));
        assert_eq!(
            start(5 << 30, 0x1000..0x9_0000),
            Some((3 << 30) - 0x2_b000),
            "pointers have 32 bits"
        );
        let memory = MemoryLayout::new(2 * MIB).unwrap();
        let all = [0..0x9_fc00, MIB..2 * MIB];
        assert_eq!(BootData::place(memory, &all), None);
    }

    #[test]
    fn its_parts_do_not_overlap() {
        let data = BootData { start: 0 };
        let parts = [
            data.gdt().0..data.gdt().0 + 0x1000,
            data.start_info().0..data.start_info().0 + 0x1000,
            data.zero_page().0..data.zero_page().0 + 0x1000,
            data.memory_map().0..data.memory_map().0 + 0x1000,
            data.page_tables().0..data.page_tables().0 + 6 * 0x1000,
            data.modules(),
            data.cmdline().0..data.cmdline().0 + BootData::CMDLINE_ROOM,
        ];
        for pair in parts.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
        assert_eq!(parts[6].end, data.range().end);
        assert_eq!(data.multiboot2(), parts[4].start..parts[6].end);
    }
}

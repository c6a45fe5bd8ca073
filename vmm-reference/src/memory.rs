//! The guest's memory: where it is, and the memory map that the guest gets.

use std::io;
use std::ops::Range;

use thiserror::Error;
use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;

/// The guest's memory: anonymous, populated by the host as the guest touches it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// The least memory that a machine can have: the boot data, and a little for a kernel.
pub const MIN_MEMORY: u64 = 2 << 20;
/// The most memory that this VMM offers.
pub const MAX_MEMORY: u64 = 1 << 40;
/// Memory comes in pages of this size.
pub const PAGE: u64 = 4096;

/// The guest's memory could not be created.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// Less than [`MIN_MEMORY`], more than [`MAX_MEMORY`], or not whole pages.
    #[error("a guest cannot have {0} bytes of memory; choose 2M to 1T, a multiple of 4K")]
    Size(u64),
    /// The host refused to map it.
    #[error("the host could not map {size} bytes for the guest; choose a smaller --memory")]
    Map {
        /// The size requested.
        size: u64,
        /// The host's error.
        #[source]
        source: FromRangesError,
    },
}

/// What a range of the memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// For the guest to use.
    Ram,
    /// Memory that holds firmware tables.
    Reserved,
}

impl MapKind {
    /// The type number that e820, PVH and multiboot share (ACPI 6.5, table 15.3).
    #[must_use]
    pub fn e820_type(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// One entry of the memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What they are.
    pub kind: MapKind,
}

/// How memory is laid out in the physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    size: u64,
}

impl MemoryLayout {
    /// Lays out `size` bytes.
    ///
    /// # Errors
    /// [`MemoryError::Size`], whose message says which sizes are possible.
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        if (MIN_MEMORY..=MAX_MEMORY).contains(&size) && size.is_multiple_of(PAGE) {
            Ok(Self { size })
        } else {
            Err(MemoryError::Size(size))
        }
    }

    /// The amount of memory in bytes.
    #[must_use]
    pub fn size(self) -> u64 {
        self.size
    }

    /// One past the last byte below the hole that ends at 4 GiB.
    #[must_use]
    pub fn low_end(self) -> u64 {
        self.size.min(layout::MMIO_HOLE_START)
    }

    /// The ranges that are backed by memory.
    #[must_use]
    pub fn backed(self) -> Vec<Range<u64>> {
        let low = 0..self.low_end();
        let rest = self.size - self.low_end();
        if rest == 0 {
            vec![low]
        } else {
            vec![low, layout::MMIO_HOLE_END..layout::MMIO_HOLE_END + rest]
        }
    }

    /// The memory map that the guest gets: sorted, without overlaps.
    ///
    /// The legacy hole from 0xa0000 to 0xe0000 is not in the map, but is backed by memory: a kernel that
    /// writes to a VGA text screen does no harm.
    #[must_use]
    pub fn map(self) -> Vec<MapEntry> {
        let mut map = vec![
            MapEntry {
                range: 0..layout::EBDA.0,
                kind: MapKind::Ram,
            },
            MapEntry {
                range: layout::EBDA.0..layout::LEGACY_HOLE_START,
                kind: MapKind::Reserved,
            },
            MapEntry {
                range: layout::RSDP.0..layout::HIGH_MEMORY_START,
                kind: MapKind::Reserved,
            },
            MapEntry {
                range: layout::HIGH_MEMORY_START..self.low_end(),
                kind: MapKind::Ram,
            },
        ];
        map.extend(self.backed().into_iter().skip(1).map(|range| MapEntry {
            range,
            kind: MapKind::Ram,
        }));
        map
    }

    /// Returns `true` if the guest may use the whole range as memory.
    #[must_use]
    pub fn is_ram(self, range: &Range<u64>) -> bool {
        self.map().iter().any(|entry| {
            entry.kind == MapKind::Ram
                && entry.range.start <= range.start
                && range.end <= entry.range.end
        })
    }

    /// Maps the memory. It takes address space, and pages only when they are touched.
    ///
    /// # Errors
    /// [`MemoryError::Map`] if the host has no room.
    pub fn allocate(self) -> Result<GuestRam, MemoryError> {
        self.map_all(self.backed())
    }

    /// The same, and the page of firmware below 4 GiB.
    ///
    /// # Errors
    /// [`MemoryError::Map`] if the host has no room.
    pub fn allocate_with_firmware(self) -> Result<GuestRam, MemoryError> {
        let mut ranges = self.backed();
        ranges.insert(1, layout::FIRMWARE_PAGE.0..layout::MMIO_HOLE_END);
        self.map_all(ranges)
    }

    fn map_all(self, backed: Vec<Range<u64>>) -> Result<GuestRam, MemoryError> {
        let mut ranges = Vec::new();
        for range in backed {
            let length = usize::try_from(range.end - range.start)
                .map_err(|_| MemoryError::Size(self.size))?;
            ranges.push((GuestAddress(range.start), length));
        }
        GuestRam::from_ranges(&ranges).map_err(|source| MemoryError::Map {
            size: self.size,
            source,
        })
    }
}

/// Keeps the guest's memory out of core dumps: it may be secret, and it is large.
///
/// # Errors
/// The system's error.
pub fn keep_out_of_core_dumps(memory: &GuestRam) -> io::Result<()> {
    for region in memory.iter() {
        let length = usize::try_from(region.len()).map_err(io::Error::other)?;
        // SAFETY: the range is a mapping that `memory` keeps, and MADV_DONTDUMP changes nothing of what is in it.
        let result = unsafe { libc::madvise(region.as_ptr().cast(), length, libc::MADV_DONTDUMP) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Returns the highest address, on a page boundary, from which `size` bytes are `within` the range and touch
/// nothing that is occupied.
pub(crate) fn highest_gap(within: Range<u64>, occupied: &[Range<u64>], size: u64) -> Option<u64> {
    let mut top = within.end;
    loop {
        let start = top.checked_sub(size)? / PAGE * PAGE;
        if start < within.start {
            return None;
        }
        match occupied.iter().find(|range| touches(range, start, size)) {
            Some(range) => top = range.start,
            None => return Some(start),
        }
    }
}

/// As [`highest_gap`], but the lowest address.
pub(crate) fn lowest_gap(within: Range<u64>, occupied: &[Range<u64>], size: u64) -> Option<u64> {
    let mut start = within.start.checked_next_multiple_of(PAGE)?;
    loop {
        if start.checked_add(size)? > within.end {
            return None;
        }
        match occupied.iter().find(|range| touches(range, start, size)) {
            Some(range) => start = range.end.checked_next_multiple_of(PAGE)?,
            None => return Some(start),
        }
    }
}

fn touches(range: &Range<u64>, start: u64, size: u64) -> bool {
    !range.is_empty() && range.start < start.saturating_add(size) && start < range.end
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_beyond_3_gib_goes_on_above_4_gib() {
        let layout = MemoryLayout::new(5 * GIB).unwrap();
        assert_eq!(
            layout.backed(),
            [0..0xc000_0000, 0x1_0000_0000..0x1_8000_0000]
        );
        let ram: u64 = layout
            .map()
            .iter()
            .filter(|entry| entry.kind == MapKind::Ram)
            .map(|entry| entry.range.end - entry.range.start)
            .sum();
        assert_eq!(ram, 5 * GIB - (0x10_0000 - 0x9_fc00));
    }

    #[test]
    fn exactly_3_gib_needs_no_second_range() {
        let backed = MemoryLayout::new(3 * GIB).unwrap().backed();
        assert_eq!(backed.first(), Some(&(0..0xc000_0000)));
        assert_eq!(backed.len(), 1);
    }

    #[test]
    fn holes_and_tables_are_not_ram() {
        let layout = MemoryLayout::new(4 * GIB).unwrap();
        assert!(layout.is_ram(&(0x10_0000..0xc000_0000)));
        assert!(!layout.is_ram(&(0xbfff_f000..0xc000_0001)));
        assert!(layout.is_ram(&(0x9_0000..0x9_fc00)));
        assert!(!layout.is_ram(&(0x9_0000..0x9_fc01)));
        assert!(!layout.is_ram(&(0xe_0000..0x10_0000)));
        assert!(!layout.is_ram(&(0xb_8000..0xb_9000)));
        assert!(layout.is_ram(&(0x1_0000_0000..0x1_4000_0000)));
        assert!(!layout.is_ram(&(0x1_0000_0000..0x1_4000_1000)));
    }

    #[test]
    fn gaps_are_whole_pages_between_what_is_occupied() {
        let occupied = [0x3000..0x3001, 0x8800..0x9000, 0x5000..0x5000];
        let highest = |within, size| highest_gap(within, &occupied, size);
        let lowest = |within, size| lowest_gap(within, &occupied, size);
        assert_eq!(highest(0..0xa000, 0x1000), Some(0x9000));
        assert_eq!(highest(0..0xa000, 0x1001), Some(0x7000));
        assert_eq!(highest(0..0xa000, 0x4800), Some(0x4000));
        assert_eq!(highest(0..0xa000, 0x4801), None);
        assert_eq!(highest(0..0x100, 0x101), None);
        assert_eq!(lowest(0x2001..0xa000, 1), Some(0x4000));
        assert_eq!(lowest(0x2001..0xa000, 0x4801), None);
        assert_eq!(lowest(0x2001..0xffff, 0x4801), Some(0x9000));
        assert_eq!(lowest(u64::MAX - 5..u64::MAX, 1), None);
        assert_eq!(lowest(0..u64::MAX, u64::MAX), None);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for size in [0, 1, MIB, 2 * MIB + 1, (1 << 40) + 4096, u64::MAX] {
            assert!(
                matches!(MemoryLayout::new(size), Err(MemoryError::Size(s)) if s == size),
                "{size}"
            );
        }
        assert!(MemoryLayout::new(2 * MIB).is_ok());
    }
}

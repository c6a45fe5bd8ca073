//! A guest page walker without side effects.
//!
//! It reads the tables as the CPU does, and sets no Accessed or Dirty bit. A debugger must not let the
//! hypervisor translate, because KVM_TRANSLATE sets Accessed. Permissions do not restrict a debugger; a
//! [`Translation`] contains them.
//!
//! Covered (SDM 3A chapter 4): no paging, 32-bit paging with 4 MiB and PSE-36 pages, PAE, 4-level
//! and 5-level, all page sizes. Not covered: nested tables below the guest's own, the four PDPTE
//! registers that a CPU loads with CR3 under PAE (memory is read instead), protection keys,
//! shadow-stack pages, A20.

mod extent;
mod regions;
mod text;
mod virtual_memory;
mod walk;

use thiserror::Error;

use super::SpecialRegisters;
use super::bits::{
    CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE, is_canonical as canonical,
};
use crate::{GuestMemory, GuestPhysAddr, GuestVirtAddr};

pub(super) use extent::region;
pub(super) use regions::write_regions;
pub use regions::{Mapping, Mappings, mappings};
pub(super) use text::{write_translation, write_walk};
pub use virtual_memory::{read_virtual, write_virtual};

/// How a guest translates linear addresses (SDM 3A 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PagingMode {
    /// CR0.PG = 0: linear addresses are physical.
    None,
    /// 32-bit paging: two levels of 4-byte entries.
    Legacy,
    /// PAE: three levels, the first of four entries.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging.
    FiveLevel,
}

impl PagingMode {
    /// The mode that these registers select.
    #[must_use]
    pub fn of(special: &SpecialRegisters) -> Self {
        if special.cr0 & CR0_PG == 0 {
            Self::None
        } else if special.efer & EFER_LMA != 0 {
            if special.cr4 & CR4_LA57 != 0 {
                Self::FiveLevel
            } else {
                Self::FourLevel
            }
        } else if special.cr4 & CR4_PAE != 0 {
            Self::Pae
        } else {
            Self::Legacy
        }
    }

    /// Width of a linear address in bits.
    #[must_use]
    pub fn linear_width(self) -> u32 {
        match self {
            Self::None | Self::Legacy | Self::Pae => 32,
            Self::FourLevel => 48,
            Self::FiveLevel => 57,
        }
    }

    /// Returns `true` if `address` is a linear address: canonical in long mode, below 4 GiB
    /// elsewhere.
    #[must_use]
    pub fn is_valid(self, address: GuestVirtAddr) -> bool {
        match self {
            Self::None | Self::Legacy | Self::Pae => address.0 >> 32 == 0,
            Self::FourLevel | Self::FiveLevel => canonical(address.0, self.linear_width()),
        }
    }
}

impl core::fmt::Display for PagingMode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::None => "no paging",
            Self::Legacy => "32-bit paging",
            Self::Pae => "PAE paging",
            Self::FourLevel => "4-level paging",
            Self::FiveLevel => "5-level paging",
        })
    }
}

/// Which bits of a table entry are a physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalAddressing {
    width: u32,
    encryption_mask: u64,
}

impl PhysicalAddressing {
    /// `width` is the guest's MAXPHYADDR (CPUID 8000_0008H:EAX\[7:0\]), clamped to 32 to 52.
    /// `encryption_mask` has the C-bit of an encrypted guest (APM 2 15.34.6), or is 0. Those bits
    /// are no part of an address.
    #[must_use]
    pub fn new(width: u8, encryption_mask: u64) -> Self {
        Self {
            width: u32::from(width).clamp(32, 52),
            encryption_mask,
        }
    }

    /// MAXPHYADDR in bits.
    #[must_use]
    pub fn width(self) -> u32 {
        self.width
    }

    /// Bits from MAXPHYADDR up to 51: reserved in an entry.
    fn reserved(self) -> u64 {
        (0x000f_ffff_ffff_ffff & !self.mask()) & !self.encryption_mask
    }

    /// Bits below MAXPHYADDR.
    fn mask(self) -> u64 {
        u64::MAX.checked_shr(64 - self.width).unwrap_or(u64::MAX)
    }
}

impl Default for PhysicalAddressing {
    /// 52 bits, the architecture's limit, and no encryption: no valid table is refused.
    fn default() -> Self {
        Self::new(52, 0)
    }
}

/// The size of the page that holds an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB. Also the size reported without paging.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 4 MiB (32-bit paging).
    Size4M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1 << self.shift()
    }

    fn shift(self) -> u32 {
        match self {
            Self::Size4K => 12,
            Self::Size2M => 21,
            Self::Size4M => 22,
            Self::Size1G => 30,
        }
    }
}

impl core::fmt::Display for PageSize {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Size4K => "4 KiB",
            Self::Size2M => "2 MiB",
            Self::Size4M => "4 MiB",
            Self::Size1G => "1 GiB",
        })
    }
}

/// Where a linear address is, and the guest's own permissions there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address.
    pub gpa: GuestPhysAddr,
    /// The page that holds it.
    pub page_size: PageSize,
    /// R/W is set at every level.
    pub writable: bool,
    /// U/S is set at every level.
    pub user: bool,
    /// XD is clear at every level, or IA32_EFER.NXE is.
    pub executable: bool,
}

impl Translation {
    /// Bytes from the address to the end of its page: at least 1.
    #[must_use]
    pub fn bytes_to_page_end(&self) -> u64 {
        let size = self.page_size.bytes();
        size - (self.gpa.0 & (size - 1))
    }
}

/// A level of the page tables, by the name of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Page-table entry.
    Pte,
    /// Page-directory entry.
    Pde,
    /// Page-directory-pointer-table entry.
    Pdpte,
    /// PML4 entry.
    Pml4e,
    /// PML5 entry.
    Pml5e,
}

impl Level {
    /// The lowest bit of a linear address that selects an entry of this level: an entry covers so many bits.
    fn shift(self, mode: PagingMode) -> u32 {
        match self {
            Self::Pte => 12,
            Self::Pde if mode == PagingMode::Legacy => 22,
            Self::Pde => 21,
            Self::Pdpte => 30,
            Self::Pml4e => 39,
            Self::Pml5e => 48,
        }
    }
}

impl core::fmt::Display for Level {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            Self::Pte => "PTE",
            Self::Pde => "PDE",
            Self::Pdpte => "PDPTE",
            Self::Pml4e => "PML4E",
            Self::Pml5e => "PML5E",
        })
    }
}

/// Why a linear address has no physical address. The guest itself would fault there, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TranslateError {
    /// There is no such linear address in this mode.
    #[error("{address} is no linear address: {width} bits are in use")]
    NotCanonical {
        /// The address.
        address: GuestVirtAddr,
        /// Width of a linear address in bits.
        width: u32,
    },
    /// A table lies outside RAM.
    #[error("the {level} at {entry_address} for {address} lies outside RAM")]
    TableUnreadable {
        /// The address.
        address: GuestVirtAddr,
        /// Which entry.
        level: Level,
        /// Where it would be.
        entry_address: GuestPhysAddr,
    },
    /// An entry has P = 0.
    #[error("{address} is not mapped: the {level} at {entry_address} is {entry:#x}, not present")]
    NotPresent {
        /// The address.
        address: GuestVirtAddr,
        /// Which entry.
        level: Level,
        /// Where it is.
        entry_address: GuestPhysAddr,
        /// Its value.
        entry: u64,
    },
    /// An entry has reserved bits set: the guest's access would fault (page-fault error code
    /// RSVD).
    #[error(
        "{address} is not mapped: the {level} at {entry_address} is {entry:#x}, with reserved \
         bits {reserved:#x} set"
    )]
    Reserved {
        /// The address.
        address: GuestVirtAddr,
        /// Which entry.
        level: Level,
        /// Where it is.
        entry_address: GuestPhysAddr,
        /// Its value.
        entry: u64,
        /// Which bits.
        reserved: u64,
    },
}

/// Translates with the default [`PhysicalAddressing`].
///
/// # Errors
/// If the guest maps nothing there; the error says which entry is at fault.
pub fn translate(
    special: &SpecialRegisters,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
) -> Result<Translation, TranslateError> {
    translate_with(special, PhysicalAddressing::default(), memory, address)
}

/// Translates a linear address through the guest's own tables.
///
/// # Errors
/// If the guest maps nothing there; the error says which entry is at fault.
pub fn translate_with(
    special: &SpecialRegisters,
    physical: PhysicalAddressing,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
) -> Result<Translation, TranslateError> {
    translate_visiting(special, physical, memory, address, |_, _, _| {})
}

/// As [`translate_with`]. Calls `visit` with the level, the address and the value of each entry that is read.
fn translate_visiting(
    special: &SpecialRegisters,
    physical: PhysicalAddressing,
    memory: &impl GuestMemory,
    address: GuestVirtAddr,
    visit: impl Fn(Level, GuestPhysAddr, u64),
) -> Result<Translation, TranslateError> {
    let mode = PagingMode::of(special);
    if !mode.is_valid(address) {
        return Err(TranslateError::NotCanonical {
            address,
            width: mode.linear_width(),
        });
    }
    let walk = walk::Walk {
        memory,
        visit,
        physical,
        address,
        nxe: special.efer & EFER_NXE != 0,
        large_legacy: special.cr4 & CR4_PSE != 0,
    };
    match mode {
        PagingMode::None => Ok(Translation {
            gpa: GuestPhysAddr(address.0),
            page_size: PageSize::Size4K,
            writable: true,
            user: true,
            executable: true,
        }),
        PagingMode::Legacy => walk.legacy(special.cr3),
        PagingMode::Pae => walk.pae(special.cr3),
        PagingMode::FourLevel => walk.long(special.cr3, Level::Pml4e),
        PagingMode::FiveLevel => walk.long(special.cr3, Level::Pml5e),
    }
}

#[cfg(test)]
mod test_tables;
#[cfg(test)]
mod tests;

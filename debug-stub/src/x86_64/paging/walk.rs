//! The page walks, one for each kind of table.

use super::{Level, PageSize, PhysicalAddressing, TranslateError, Translation};
use crate::{GuestMemory, GuestPhysAddr, GuestVirtAddr};

/// Bit 0: present.
pub(super) const PRESENT: u64 = 1;
/// Bit 1: R/W.
pub(super) const WRITABLE: u64 = 1 << 1;
/// Bit 2: U/S.
pub(super) const USER: u64 = 1 << 2;
/// Bit 7: PS, maps a page at this level.
pub(super) const PAGE_SIZE: u64 = 1 << 7;
/// Bit 63: XD.
pub(super) const EXECUTE_DISABLE: u64 = 1 << 63;
/// Bits 51:12: the address field of an 8-byte entry, and of CR3 in long mode.
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits 62:52: reserved under PAE (SDM 3A table 4-8 and after), software's in long mode.
const PAE_HIGH: u64 = 0x7ff0_0000_0000_0000;

pub(super) struct Walk<'a, M: GuestMemory, V: Fn(Level, GuestPhysAddr, u64)> {
    pub(super) memory: &'a M,
    /// Is called with each entry that is read: its level, its address, its value.
    pub(super) visit: V,
    pub(super) physical: PhysicalAddressing,
    pub(super) address: GuestVirtAddr,
    /// IA32_EFER.NXE: bit 63 is XD, and reserved otherwise.
    pub(super) nxe: bool,
    /// CR4.PSE: a PDE of 32-bit paging may map 4 MiB.
    pub(super) large_legacy: bool,
}

/// Permissions gathered on the way down (SDM 3A 4.6).
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    user: bool,
    executable: bool,
}

impl Rights {
    const ALL: Self = Self {
        writable: true,
        user: true,
        executable: true,
    };

    fn and(self, entry: u64) -> Self {
        Self {
            writable: self.writable && entry & WRITABLE != 0,
            user: self.user && entry & USER != 0,
            // With NXE = 0 bit 63 is reserved: a walk over a set one has ended already. 4-byte
            // entries have no such bit.
            executable: self.executable && entry & EXECUTE_DISABLE == 0,
        }
    }
}

impl<M: GuestMemory, V: Fn(Level, GuestPhysAddr, u64)> Walk<'_, M, V> {
    /// 4-level and 5-level paging (SDM 3A 4.5). The number of levels bounds the walk.
    pub(super) fn long(&self, cr3: u64, top: Level) -> Result<Translation, TranslateError> {
        self.descend(cr3 & ADDRESS, top, Rights::ALL, 0)
    }

    /// PAE paging (SDM 3A 4.4).
    pub(super) fn pae(&self, cr3: u64) -> Result<Translation, TranslateError> {
        // CR3[31:5] points to the four PDPTEs (table 4-7).
        let table = cr3 & 0xffff_ffe0;
        let entry_address = GuestPhysAddr(table + self.index(30, 0x3) * 8);
        let entry = self.read8(Level::Pdpte, entry_address)?;
        // Bits 2:1 and 8:5 and everything above the address are reserved (table 4-8). QEMU's TCG sets
        // bit 5, Accessed, all the same.
        let reserved = 0x1c6 | PAE_HIGH | EXECUTE_DISABLE;
        self.check(Level::Pdpte, entry_address, entry, reserved)?;
        self.descend(self.address_in(entry), Level::Pde, Rights::ALL, PAE_HIGH)
    }

    /// From the table at `table` of 512 8-byte entries down to the page.
    fn descend(
        &self,
        mut table: u64,
        top: Level,
        mut rights: Rights,
        also_reserved: u64,
    ) -> Result<Translation, TranslateError> {
        table = self.address_in(table);
        let no_execute = if self.nxe { 0 } else { EXECUTE_DISABLE };
        for &(level, shift, page) in &[
            (Level::Pml5e, 48, None),
            (Level::Pml4e, 39, None),
            (Level::Pdpte, 30, Some(PageSize::Size1G)),
            (Level::Pde, 21, Some(PageSize::Size2M)),
        ] {
            if level > top {
                continue;
            }
            let entry_address = GuestPhysAddr(table + self.index(shift, 0x1ff) * 8);
            let entry = self.read8(level, entry_address)?;
            let mut reserved = also_reserved | no_execute;
            let large = match page {
                _ if entry & PAGE_SIZE == 0 => None,
                Some(size) => {
                    // Bits between PAT (12) and the address (SDM 3A tables 4-10, 4-16, 4-18).
                    reserved |= (size.bytes() - 1) & !0x1fff;
                    Some(size)
                }
                None => {
                    // PS is reserved in a PML4E and PML5E (tables 4-14, 4-15).
                    reserved |= PAGE_SIZE;
                    None
                }
            };
            self.check(level, entry_address, entry, reserved)?;
            rights = rights.and(entry);
            if let Some(size) = large {
                return Ok(self.page(self.address_in(entry), size, rights));
            }
            table = self.address_in(entry);
        }
        let entry_address = GuestPhysAddr(table + self.index(12, 0x1ff) * 8);
        let entry = self.read8(Level::Pte, entry_address)?;
        self.check(Level::Pte, entry_address, entry, also_reserved | no_execute)?;
        Ok(self.page(self.address_in(entry), PageSize::Size4K, rights.and(entry)))
    }

    /// 32-bit paging (SDM 3A 4.3).
    pub(super) fn legacy(&self, cr3: u64) -> Result<Translation, TranslateError> {
        let directory = cr3 & 0xffff_f000;
        let entry_address = GuestPhysAddr(directory + self.index(22, 0x3ff) * 4);
        let entry = self.read4(Level::Pde, entry_address)?;
        if self.large_legacy && entry & PAGE_SIZE != 0 {
            // PSE-36: bits 20:13 are address bits 39:32, as far as MAXPHYADDR goes; bit 21 and
            // those beyond are reserved (table 4-4).
            let high_bits = self.physical.width().min(40) - 32;
            let high_mask = ((1u64 << high_bits) - 1) << 13;
            let reserved = 0x003f_e000 & !high_mask;
            self.check(Level::Pde, entry_address, entry, reserved)?;
            let base = (entry & 0xffc0_0000) | ((entry & high_mask) << 19);
            return Ok(self.page(base, PageSize::Size4M, Rights::ALL.and(entry)));
        }
        self.check(Level::Pde, entry_address, entry, 0)?;
        let rights = Rights::ALL.and(entry);
        let table = entry & 0xffff_f000;
        let entry_address = GuestPhysAddr(table + self.index(12, 0x3ff) * 4);
        let entry = self.read4(Level::Pte, entry_address)?;
        self.check(Level::Pte, entry_address, entry, 0)?;
        let base = entry & 0xffff_f000;
        Ok(self.page(base, PageSize::Size4K, rights.and(entry)))
    }

    fn page(&self, base: u64, page_size: PageSize, rights: Rights) -> Translation {
        let offset = page_size.bytes() - 1;
        Translation {
            gpa: GuestPhysAddr((base & !offset) | (self.address.0 & offset)),
            page_size,
            writable: rights.writable,
            user: rights.user,
            executable: rights.executable,
        }
    }

    fn index(&self, shift: u32, mask: u64) -> u64 {
        (self.address.0 >> shift) & mask
    }

    /// The address field of an 8-byte entry, without the C-bit.
    fn address_in(&self, entry: u64) -> u64 {
        entry & ADDRESS & self.physical.mask() & !self.physical.encryption_mask
    }

    /// Present, and nothing in `reserved` or beyond MAXPHYADDR set.
    fn check(
        &self,
        level: Level,
        entry_address: GuestPhysAddr,
        entry: u64,
        reserved: u64,
    ) -> Result<(), TranslateError> {
        (self.visit)(level, entry_address, entry);
        let address = self.address;
        if entry & PRESENT == 0 {
            return Err(TranslateError::NotPresent {
                address,
                level,
                entry_address,
                entry,
            });
        }
        // The encryption bit may lie anywhere, also where bits are reserved.
        let reserved =
            entry & (reserved | self.physical.reserved()) & !self.physical.encryption_mask;
        if reserved != 0 {
            return Err(TranslateError::Reserved {
                address,
                level,
                entry_address,
                entry,
                reserved,
            });
        }
        Ok(())
    }

    fn read8(&self, level: Level, at: GuestPhysAddr) -> Result<u64, TranslateError> {
        let mut bytes = [0; 8];
        self.read(level, at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn read4(&self, level: Level, at: GuestPhysAddr) -> Result<u64, TranslateError> {
        let mut bytes = [0; 4];
        self.read(level, at, &mut bytes)?;
        Ok(u64::from(u32::from_le_bytes(bytes)))
    }

    fn read(
        &self,
        level: Level,
        entry_address: GuestPhysAddr,
        bytes: &mut [u8],
    ) -> Result<(), TranslateError> {
        if self.memory.read_memory(entry_address, bytes) == bytes.len() {
            return Ok(());
        }
        Err(TranslateError::TableUnreadable {
            address: self.address,
            level,
            entry_address,
        })
    }
}

//! The header of a bzImage (Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use std::ops::Range;

use super::error::ImageError;
use crate::layout;

/// The length of a sector.
const SECTOR: u64 = 512;
/// `HdrS` at 0x202.
const MAGIC: u32 = 0x5372_6448;
/// 0xaa55 at 0x1fe.
const BOOT_FLAG: u16 = 0xaa55;
/// `pref_address` and `init_size` came with 2.10.
const OLDEST: u16 = 0x020a;
/// `xloadflags`, and with it the 64-bit entry, came with 2.12.
const WITH_XLOADFLAGS: u16 = 0x020c;
/// `loadflags` bit 0: the protected-mode code loads at 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `xloadflags` bit 0: there is a 64-bit entry, 0x200 after the start.
const XLF_KERNEL_64: u16 = 1;
/// The header's last field that we read ends here; protocol 2.10 has it.
pub(super) const HEADER_END: u64 = 0x264;
/// The 64-bit entry, from the start of the protected-mode code ("64-bit Boot Protocol").
const ENTRY_64: u64 = 0x200;
/// `syssize` counts paragraphs of 16 bytes: the last one need not be whole.
const PARAGRAPH: u64 = 16;
/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// Where it is loaded.
    pub load_address: u64,
    /// The address at which it runs: another one if it moves itself.
    pub run_address: u64,
    /// Bytes of protected-mode code in the file.
    pub code_size: u64,
    /// Bytes of memory that it needs from `run_address` until it knows the memory map.
    pub init_size: u64,
    /// The longest command line, without its terminating zero.
    pub cmdline_size: u64,
    /// The highest address that the initrd's last byte may have.
    pub initrd_max: u64,
    /// `true` if it has a 64-bit entry.
    pub is_64_bit: bool,
}

impl BzImage {
    /// Whether the file claims to be a bzImage.
    #[must_use]
    pub fn matches(image: &[u8]) -> bool {
        field::<2>(image, 0x1fe).map(u16::from_le_bytes) == Some(BOOT_FLAG)
            && field::<4>(image, 0x202).map(u32::from_le_bytes) == Some(MAGIC)
    }

    /// Reads the header.
    ///
    /// # Errors
    /// Why the file cannot be used.
    pub fn parse(image: &[u8]) -> Result<Self, ImageError> {
        let has = image.len() as u64;
        let short = |what, needs| ImageError::Truncated { what, needs, has };
        let version = u16_at(image, 0x206).ok_or(short("the boot header", HEADER_END))?;
        if version < OLDEST {
            let [minor, major] = version.to_le_bytes();
            return Err(ImageError::OldProtocol { major, minor });
        }
        if has < HEADER_END {
            return Err(short("the boot header", HEADER_END));
        }
        let header = || short("the boot header", HEADER_END);
        let [load_flags] = field::<1>(image, 0x211).ok_or_else(header)?;
        if load_flags & LOADED_HIGH == 0 {
            return Err(ImageError::ZImage);
        }
        let xload_flags = u16_at(image, 0x236).ok_or_else(header)?;
        let is_64_bit = version >= WITH_XLOADFLAGS && xload_flags & XLF_KERNEL_64 != 0;
        // "If setup_sects is 0, the real value is 4"; the boot sector comes on top.
        let [setup_sectors] = field::<1>(image, 0x1f1).ok_or_else(header)?;
        let setup = (u64::from(if setup_sectors == 0 { 4 } else { setup_sectors }) + 1) * SECTOR;
        let claimed = u64::from(u32_at(image, 0x1f4).ok_or_else(header)?) * PARAGRAPH;
        // The entry must exist, whatever size the header claims.
        let entry = if is_64_bit { ENTRY_64 } else { 0 };
        let needs = setup + claimed.saturating_sub(PARAGRAPH - 1).max(entry + 1);
        if has < needs {
            return Err(short("the kernel", needs));
        }
        let run_address = field(image, 0x258)
            .map(u64::from_le_bytes)
            .ok_or_else(header)?;
        let [relocatable] = field::<1>(image, 0x234).ok_or_else(header)?;
        let code_size = has - setup;
        Ok(Self {
            // One that is not relocatable moves itself from 1 MiB ("code32_start").
            load_address: if is_64_bit || relocatable != 0 {
                run_address
            } else {
                layout::HIGH_MEMORY_START
            },
            run_address,
            code_size,
            init_size: u64::from(u32_at(image, 0x260).ok_or_else(header)?).max(code_size),
            cmdline_size: u64::from(u32_at(image, 0x238).ok_or_else(header)?),
            initrd_max: u64::from(u32_at(image, 0x22c).ok_or_else(header)?),
            is_64_bit,
        })
    }

    /// The entry.
    #[must_use]
    pub fn entry(&self) -> u64 {
        let offset = if self.is_64_bit { ENTRY_64 } else { 0 };
        self.load_address.saturating_add(offset)
    }

    /// The memory that it takes at its start: where it is loaded, and where it runs.
    ///
    /// # Errors
    /// [`ImageError::SegmentWraps`] if the addresses wrap.
    pub fn ranges(&self) -> Result<[Range<u64>; 2], ImageError> {
        let range = |start: u64, size: u64| match start.checked_add(size) {
            Some(end) => Ok(start..end),
            None => Err(ImageError::SegmentWraps { index: 0, start }),
        };
        Ok([
            range(self.load_address, self.code_size)?,
            range(self.run_address, self.init_size)?,
        ])
    }
}

fn field<const N: usize>(image: &[u8], offset: usize) -> Option<[u8; N]> {
    image.get(offset..)?.first_chunk().copied()
}

fn u16_at(image: &[u8], offset: usize) -> Option<u16> {
    field(image, offset).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], offset: usize) -> Option<u32> {
    field(image, offset).map(u32::from_le_bytes)
}

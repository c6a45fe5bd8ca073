//! Files that people give to a VMM in place of a kernel: firmware, and what needs a BIOS.

use super::error::ImageError;

/// The signature of a firmware volume, and its place (UEFI PI 1.8, volume 3, 3.2.1).
const VOLUME: (usize, &[u8]) = (0x28, b"_FVH");
/// A PC's boot sector, and an option ROM.
const BOOT_SECTOR: (usize, &[u8]) = (510, &[0x55, 0xaa]);
const OPTION_ROM: (usize, &[u8]) = (0, &[0x55, 0xaa]);
/// A CD image (ECMA-119, 8.1.2).
const CD: (usize, &[u8]) = (0x8001, b"CD001");
/// The bytes from the reset vector to the end of a ROM, and the sizes of ROMs.
const RESET_VECTOR: usize = 16;
const ROM_UNIT: usize = 0x1000;
const SMALLEST_ROM: usize = 0x8000;
/// How reset vectors begin: JMP far, JMP near, JMP short; CLI, CLD, WBINVD or NOPs before it.
const JUMPS: [&[u8]; 7] = [
    &[0xea],
    &[0xe9],
    &[0xeb],
    &[0xfa, 0xe9],
    &[0xfa, 0xfc, 0xe9],
    &[0x0f, 0x09, 0xe9],
    &[0x90, 0x90, 0xe9],
];

/// A ROM that a processor starts in.
pub(super) const ROM: ImageError = ImageError::Firmware("a ROM with a reset vector");

/// What is wrong with a file that is no kernel of a known kind.
pub(super) fn refusal(image: &[u8]) -> ImageError {
    let has =
        |(at, bytes): (usize, &[u8])| image.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    if has(VOLUME) {
        ImageError::Firmware("UEFI firmware")
    } else if has(CD) {
        ImageError::NeedsBios("a CD image")
    } else if has(BOOT_SECTOR) {
        ImageError::NeedsBios("a disk image or boot sector")
    } else if is_rom(image) {
        ROM
    } else if has(OPTION_ROM) {
        ImageError::NeedsBios("an option ROM")
    } else {
        ImageError::NotAKernel
    }
}

pub(super) fn is_rom(image: &[u8]) -> bool {
    let Some((_, vector)) = image.split_last_chunk::<RESET_VECTOR>() else {
        return false;
    };
    image.len() >= SMALLEST_ROM
        && image.len().is_multiple_of(ROM_UNIT)
        && JUMPS.iter().any(|jump| vector.starts_with(jump))
}

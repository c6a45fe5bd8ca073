//! Firmware, and what needs a BIOS.

use super::*;

fn with(length: usize, at: usize, put: &[u8]) -> Vec<u8> {
    let mut image = vec![0; length];
    image[at..at + put.len()].copy_from_slice(put);
    image
}

#[test]
fn firmware_is_called_firmware() {
    assert_eq!(
        refusal(&with(0x10_0000, 0x28, b"_FVH")),
        ImageError::Firmware("UEFI firmware")
    );
    for jump in [
        &[0xea, 0x5b, 0xe0, 0, 0xf0][..],
        &[0xe9, 0, 0xf0],
        &[0xeb, 0xc0],
    ] {
        let rom = with(0x2_0000, 0x2_0000 - 16, jump);
        assert_eq!(
            refusal(&rom),
            ImageError::Firmware("a ROM with a reset vector")
        );
        // By its size it is none.
        assert_eq!(refusal(&rom[1..]), ImageError::NotAKernel);
        assert_eq!(refusal(&rom[0x1_f000..]), ImageError::NotAKernel);
    }
}

#[test]
fn what_calls_the_bios_is_told_so() {
    for (image, what) in [
        (with(512, 510, &[0x55, 0xaa]), "a disk image or boot sector"),
        (with(0x1_0000, 0x8001, b"CD001"), "a CD image"),
        (with(0x200, 0, &[0x55, 0xaa, 1]), "an option ROM"),
    ] {
        assert_eq!(refusal(&image), ImageError::NeedsBios(what));
        assert!(refusal(&image).to_string().contains("BIOS"));
    }
}

#[test]
fn an_ipxe_image_is_no_linux_though_it_has_its_header() {
    let mut image = bzimage();
    image[0x206..0x208].copy_from_slice(&0x0207_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    image[0x300..0x30b].copy_from_slice(b"iPXE 1.0.0\0");
    assert_eq!(
        refusal(&image),
        ImageError::NeedsBios("an iPXE or gPXE image")
    );
}

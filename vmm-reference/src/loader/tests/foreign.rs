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
fn a_rom_that_has_a_multiboot_header_too_is_firmware() {
    // As U-Boot's: it loads up to 4 GiB, where no memory is.
    let mut rom = multiboot(1 << 16, &[0xfff0_0000, 0xfff0_0000, 0, 0, 0xfff0_0020]);
    rom.resize(0x10_0000, 0);
    rom[0xf_fff0..0xf_fff3].copy_from_slice(&[0xfa, 0xfc, 0xe9]);
    assert_eq!(
        refusal(&rom),
        ImageError::Firmware("a ROM with a reset vector")
    );
}

#[test]
fn an_ipxe_image_has_an_old_linux_header_and_is_told_that_it_needs_a_bios() {
    let mut image = bzimage();
    image[0x206..0x208].copy_from_slice(&0x0207_u16.to_le_bytes());
    let refusal = refusal(&image);
    assert_eq!(refusal, ImageError::OldProtocol { major: 2, minor: 7 });
    assert!(refusal.to_string().contains("need a BIOS"));
}

//! Compressed kernels. The samples were made by gzip 1.12, xz 5.4, lz4 1.9 and zstd 1.5.

use super::super::test_images::Elf;
use super::*;

/// "vmm-reference ", 20 times, by `gzip -9n`.
const GZIP: &[u8] = &[
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0x2b, 0xcb, 0xcd, 0xd5, 0x2d, 0x4a,
    0x4d, 0x4b, 0x2d, 0x4a, 0xcd, 0x4b, 0x4e, 0x55, 0x28, 0x1b, 0xe5, 0x41, 0x79, 0x00, 0x0b, 0x40,
    0xc1, 0xc8, 0x18, 0x01, 0x00, 0x00,
];
/// By `xz -9`.
const XZ: &[u8] = &[
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01,
    0x1c, 0x00, 0x00, 0x00, 0x10, 0xcf, 0x58, 0xcc, 0xe0, 0x01, 0x17, 0x00, 0x14, 0x5d, 0x00, 0x3b,
    0x1b, 0x6c, 0x5a, 0x72, 0x33, 0x4d, 0x0e, 0x3a, 0x22, 0x4f, 0x6b, 0x91, 0xcb, 0xbe, 0x93, 0xee,
    0x62, 0x00, 0x00, 0x00, 0x14, 0xd1, 0x0f, 0x61, 0x48, 0x0b, 0x37, 0x2f, 0x00, 0x01, 0x30, 0x98,
    0x02, 0x00, 0x00, 0x00, 0x2a, 0x77, 0x50, 0x8c, 0xb1, 0xc4, 0x67, 0xfb, 0x02, 0x00, 0x00, 0x00,
    0x00, 0x04, 0x59, 0x5a,
];
/// By `xz --check=crc32 --x86 --lzma2=dict=64KiB`, as Linux's own build has it.
const XZ_X86: &[u8] = &[
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x01, 0x04, 0x00,
    0x21, 0x01, 0x08, 0x00, 0xd2, 0xb9, 0x74, 0xcb, 0xe0, 0x01, 0x17, 0x00, 0x14, 0x5d, 0x00, 0x3b,
    0x1b, 0x6c, 0x5a, 0x72, 0x33, 0x4d, 0x0e, 0x3a, 0x22, 0x4f, 0x6b, 0x91, 0xcb, 0xbe, 0x93, 0xee,
    0x62, 0x00, 0x00, 0x00, 0x0b, 0x40, 0xc1, 0xc8, 0x00, 0x01, 0x2c, 0x98, 0x02, 0x00, 0x00, 0x00,
    0xca, 0xb5, 0x44, 0xf8, 0x3e, 0x30, 0x0d, 0x8b, 0x02, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
];
/// By `lz4`.
const LZ4: &[u8] = &[
    0x04, 0x22, 0x4d, 0x18, 0x64, 0x40, 0xa7, 0x18, 0x00, 0x00, 0x00, 0xef, 0x76, 0x6d, 0x6d, 0x2d,
    0x72, 0x65, 0x66, 0x65, 0x72, 0x65, 0x6e, 0x63, 0x65, 0x20, 0x0e, 0x00, 0xf2, 0x50, 0x65, 0x6e,
    0x63, 0x65, 0x20, 0x00, 0x00, 0x00, 0x00, 0x68, 0x37, 0x72, 0x51,
];
/// By `lz4 -l`, as Linux's own build has it.
const LZ4_LEGACY: &[u8] = &[
    0x02, 0x21, 0x4c, 0x18, 0x18, 0x00, 0x00, 0x00, 0xef, 0x76, 0x6d, 0x6d, 0x2d, 0x72, 0x65, 0x66,
    0x65, 0x72, 0x65, 0x6e, 0x63, 0x65, 0x20, 0x0e, 0x00, 0xf2, 0x50, 0x65, 0x6e, 0x63, 0x65, 0x20,
];
/// By `zstd -19`.
const ZSTD: &[u8] = &[
    0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x68, 0xad, 0x00, 0x00, 0x70, 0x76, 0x6d, 0x6d, 0x2d, 0x72, 0x65,
    0x66, 0x65, 0x72, 0x65, 0x6e, 0x63, 0x65, 0x20, 0x01, 0x00, 0x07, 0xa1, 0x4e, 0x25, 0x72, 0xda,
    0xc8, 0x39,
];

const SAMPLES: [(&[u8], Compression); 6] = [
    (GZIP, Compression::Gzip),
    (XZ, Compression::Xz),
    (XZ_X86, Compression::Xz),
    (LZ4, Compression::Lz4),
    (LZ4_LEGACY, Compression::Lz4),
    (ZSTD, Compression::Zstd),
];

fn gzip(content: &[u8]) -> Vec<u8> {
    use std::io::Write;

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_format_is_recognized_and_opened() {
    let content = b"vmm-reference ".repeat(20);
    for (sample, format) in SAMPLES {
        assert_eq!(Compression::of(sample), Some(format));
        assert_eq!(format.open(sample).as_ref(), Ok(&content), "{format}");
    }
    for file in [bzimage(), Elf::wide().build(), b"\x1f".to_vec(), Vec::new()] {
        assert_eq!(Compression::of(&file), None);
    }
}

#[test]
fn content_beyond_the_limit_is_refused() {
    for (sample, format) in SAMPLES {
        assert_eq!(format.open_within(sample, 280).map(|c| c.len()), Ok(280));
        for limit in [0, 1, 279] {
            assert_eq!(
                format.open_within(sample, limit),
                Err(ImageError::CompressedTooLong { format, limit })
            );
        }
    }
}

#[test]
fn a_bomb_is_refused_before_it_is_open() {
    let bomb = gzip(&vec![0; 16 << 20]);
    assert!(bomb.len() < 100 << 10);
    let (format, limit) = (Compression::Gzip, 1 << 20);
    assert_eq!(
        format.open_within(&bomb, limit),
        Err(ImageError::CompressedTooLong { format, limit })
    );
}

#[test]
fn a_decoder_that_wants_too_much_memory_is_refused() {
    // The dictionary of an xz block, 20 bytes into the file, can be up to 4 GiB.
    let mut sample = XZ.to_vec();
    sample[16] = 40;
    // The header's CRC32 is made right again.
    let mut crc = flate2::Crc::new();
    crc.update(&sample[12..20]);
    sample[20..24].copy_from_slice(&crc.sum().to_le_bytes());
    assert!(matches!(
        Compression::Xz.open(&sample),
        Err(ImageError::DamagedCompression { .. })
    ));
    // A zstd window of 2 GiB.
    let sample = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    assert!(matches!(
        Compression::Zstd.open(&sample),
        Err(ImageError::DamagedCompression { .. })
    ));
}

#[test]
fn a_compressed_kernel_boots_as_it_does_without() {
    for image in [bzimage(), pvh().build(), Elf::wide().build()] {
        let (plain, expected) = boot(&image, Some(b"initrd"), "quiet");
        let (opened, entry) = boot(&gzip(&image), Some(b"initrd"), "quiet");
        assert_eq!(entry.unwrap(), expected.unwrap());
        let all = usize::try_from(16 * MIB).unwrap();
        assert!(bytes(&plain, 0, all) == bytes(&opened, 0, all));
    }
}

#[test]
fn a_truncated_or_damaged_file_is_refused_by_its_compression() {
    for (sample, format) in SAMPLES {
        for length in 6..sample.len() {
            match format.open(&sample[..length]) {
                // LZ4's decoder does not miss the end mark, which the old format lacks.
                Ok(content) => {
                    assert_eq!(format, Compression::Lz4, "{length} bytes");
                    assert!(content.is_empty() || content.len() == 280);
                }
                Err(error) => assert!(error.to_string().contains(&format.to_string()), "{error}"),
            }
        }
        for at in 4..sample.len() {
            let mut damaged = sample.to_vec();
            damaged[at] ^= 0x10;
            // Any result will do.
            let _ = format.open_within(&damaged, 1 << 20);
        }
    }
}

#[test]
fn other_formats_are_named_with_what_opens_them() {
    for (file, format, command) in [
        (&b"BZh91AY&SY"[..], "bzip2", "bzip2 -d"),
        (&[0x5d, 0, 0, 0x80, 0], "lzma", "xz -d"),
        (&[0x89, b'L', b'Z', b'O', 0, 13], "lzop", "lzop -d"),
    ] {
        let text = refusal(file).to_string();
        assert!(text.contains(format) && text.contains(command), "{text}");
    }
    // What is in it is no kernel.
    assert_eq!(refusal(GZIP), ImageError::NotAKernel);
}

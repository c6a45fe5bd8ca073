//! 32-bit Linux, and what older headers leave out.

use super::*;

fn with(at: usize, value: &[u8]) -> Vec<u8> {
    let mut image = bzimage();
    image[at..at + value.len()].copy_from_slice(value);
    image
}

#[test]
fn a_kernel_without_a_64_bit_entry_starts_in_32_bit_mode() {
    let mut image = with(0x236, &[0, 0]);
    for relocatable in [0, 1] {
        image[0x234] = relocatable;
        let (memory, entry) = boot(&image, Some(&[9; 5000]), "quiet");
        // One that is not relocatable is at 1 MiB, and moves itself.
        let at = if relocatable == 0 { MIB } else { 2 * MIB };
        let expected = Entry::Linux32 {
            rip: u32::try_from(at).unwrap(),
            esi: 0x7000,
        };
        assert_eq!(entry.unwrap(), expected);
        assert_eq!(bytes(&memory, at, 0x400), image[1024..]);
        assert_eq!(u64::from(u32_at(&memory, 0x7214)), at, "code32_start");
        let cmdline = u64::from(u32_at(&memory, 0x7228));
        assert_eq!(bytes(&memory, cmdline, 6), b"quiet\0");
        // Above where it will run.
        assert!(u64::from(u32_at(&memory, 0x7218)) >= 3 * MIB);
    }
}

#[test]
fn protocols_2_10_and_2_11_have_a_32_bit_entry_only() {
    for minor in [10, 11] {
        let image = with(0x206, &[minor, 2]);
        assert!(matches!(
            boot(&image, None, "").1,
            Ok(Entry::Linux32 { .. })
        ));
    }
}

#[test]
fn both_places_of_a_kernel_that_moves_itself_must_be_memory() {
    let mut image = with(0x236, &[0, 0]);
    image[0x258..0x260].copy_from_slice(&(15 * MIB + 0x8_0000).to_le_bytes());
    assert!(matches!(refusal(&image), ImageError::OutsideMemory { .. }));
    image[0x258..0x260].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(refusal(&image), ImageError::SegmentWraps { .. }));
}

#[test]
fn a_32_bit_entry_above_4_gib_is_refused() {
    let mut image = with(0x236, &[0, 0]);
    image[0x234] = 1;
    image[0x258..0x260].copy_from_slice(&(1_u64 << 32).to_le_bytes());
    let layout = MemoryLayout::new(4 << 30).unwrap();
    let memory = layout.allocate().unwrap();
    let result = load(&memory, layout, &file("kernel", &image), &[], "");
    assert!(matches!(
        result,
        Err(LoadError::Kernel {
            source: ImageError::EntryOutside { .. },
            ..
        })
    ));
}

#[test]
fn the_last_paragraph_of_a_kernel_need_not_be_whole() {
    let image = bzimage();
    for missing in 1..=15 {
        let short = &image[..image.len() - missing];
        let (memory, entry) = boot(short, None, "");
        assert!(entry.is_ok(), "{missing} bytes short");
        let length = 0x400 - missing;
        assert_eq!(bytes(&memory, 2 * MIB, length), image[1024..1024 + length]);
    }
    assert!(matches!(
        refusal(&image[..image.len() - 16]),
        ImageError::Truncated {
            needs: 2033,
            has: 2032,
            ..
        }
    ));
}

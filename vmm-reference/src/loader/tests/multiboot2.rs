//! Multiboot 2.

use std::collections::BTreeMap;

use super::super::test_images::{multiboot2, multiboot2_raw, tag2};
use super::*;
use crate::boot::write_acpi;

const INFO: u64 = 0x9000;

/// The information's tags, by type; modules come several times.
fn tags(memory: &GuestRam) -> BTreeMap<u32, Vec<Vec<u8>>> {
    let total = u64::from(u32_at(memory, INFO));
    assert_eq!(u32_at(memory, INFO + 4), 0, "reserved");
    let mut tags: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    let mut at = INFO + 8;
    loop {
        assert_eq!(at % 8, 0);
        let (kind, size) = (u32_at(memory, at), u64::from(u32_at(memory, at + 4)));
        let length = usize::try_from(size - 8).unwrap();
        tags.entry(kind)
            .or_default()
            .push(bytes(memory, at + 8, length));
        if kind == 0 {
            assert_eq!((size, at + 8), (8, INFO + total), "the end tag is the last");
            return tags;
        }
        at = (at + size).next_multiple_of(8);
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn the_header_counts_within_the_first_32_kib_only_and_on_8_byte_boundaries() {
    let at = |offset: usize| {
        let mut image = vec![0; offset];
        image.extend(multiboot2(&[]));
        image.resize(50_000, 0);
        Multiboot2Header::find(&image).map(|found| found.map(|header| header.offset))
    };
    assert_eq!(at(0), Ok(Some(0)));
    assert_eq!(at(8), Ok(Some(8)));
    assert_eq!(at(32_768 - 24), Ok(Some(32_744)));
    assert_eq!(at(4), Ok(None));
    // Only its first words are within.
    assert!(matches!(
        at(32_768 - 16),
        Err(ImageError::Multiboot2Header(_))
    ));
    assert_eq!(at(32_768 - 8), Ok(None));
    let mut wrong_sum = multiboot2(&[]);
    wrong_sum[12] ^= 1;
    assert_eq!(Multiboot2Header::find(&wrong_sum), Ok(None));
}

#[test]
fn a_kernel_gets_the_information_that_kernels_read() {
    let modules = [
        module("dom0", &[1; 5000], Some("root=/dev/xvda")),
        module("initrd", &[2; 100], None),
    ];
    for (elf, entry) in [(Elf::narrow(), 0x10_001c), (Elf::wide(), 0x10_0018)] {
        let elf = multiboot2_in(elf, &[]);
        let layout = MemoryLayout::new(16 * MIB).unwrap();
        let memory = layout.allocate().unwrap();
        write_acpi(&memory, 1).unwrap();
        let kernel = file("kernel", &elf.build());
        let loaded = load(&memory, layout, &kernel, &modules, "a b").unwrap();
        assert_eq!(
            loaded.entry,
            Entry::Protected {
                rip: entry,
                eax: 0x36d7_6289,
                ebx: 0x9000
            }
        );
        let tags = tags(&memory);
        let one = |kind: u32| {
            assert_eq!(tags[&kind].len(), 1, "{kind}");
            &tags[&kind][0]
        };
        assert_eq!(one(1), b"kernel a b\0");
        assert_eq!(one(2), b"vmm-reference\0");
        assert_eq!((word(one(4), 0), word(one(4), 4)), (639, 15 * 1024));
        let map = one(6);
        assert_eq!((word(map, 0), word(map, 4)), (24, 0));
        assert_eq!(map.len(), 8 + 4 * 24);
        let last = &map[8 + 3 * 24..];
        assert_eq!(last[..8], 0x10_0000_u64.to_le_bytes());
        assert_eq!(last[8..16], (15 * MIB).to_le_bytes());
        assert_eq!(word(last, 16), 1);
        for (found, (name, value, length)) in tags[&3].iter().zip([
            (&b"dom0 root=/dev/xvda\0"[..], 1, 5000_u32),
            (b"initrd\0", 2, 100),
        ]) {
            let (start, end) = (word(found, 0), word(found, 4));
            assert_eq!((start % 4096, end - start), (0, length));
            let length = usize::try_from(length).unwrap();
            assert_eq!(bytes(&memory, start.into(), length), vec![value; length]);
            assert_eq!(&found[8..], name);
        }
        assert_eq!(tags[&3].len(), 2);
        // The RSDP of ACPI 1.0 and the newer one.
        assert_eq!(one(14).len(), 20);
        assert_eq!(one(15)[..], bytes(&memory, 0xe_0000, 36));
        assert!(one(14).starts_with(b"RSD PTR "));
        assert_ne!(word(one(14), 16), 0, "the RSDT");
        assert!(!tags.contains_key(&9) && !tags.contains_key(&21));
    }
}

#[test]
fn section_headers_are_passed_on_as_they_are_in_the_file() {
    let mut image = multiboot2_elf(&[]).build();
    let at = u32::try_from(image.len()).unwrap();
    let headers: Vec<u8> = (0..80).collect();
    image.extend(&headers);
    // ELF32: e_shoff; e_shentsize, e_shnum, e_shstrndx.
    image[32..36].copy_from_slice(&at.to_le_bytes());
    image[46..52].copy_from_slice(&[40, 0, 2, 0, 1, 0]);
    let (memory, entry) = boot(&image, None, "");
    assert!(entry.is_ok());
    let sections = &tags(&memory)[&9][0];
    assert_eq!([0, 4, 8].map(|at| word(sections, at)), [2, 40, 1]);
    assert_eq!(sections[12..], headers);
    // A table that reaches beyond the file is none.
    image[48] = 3;
    let (memory, entry) = boot(&image, None, "");
    assert!(entry.is_ok());
    assert!(!tags(&memory).contains_key(&9));
}

#[test]
fn a_file_loads_by_its_address_and_entry_tags() {
    let address = |words: [u32; 4]| tag2(2, 0, &words);
    let image = |address: Vec<u8>, entry: u32| {
        let header = multiboot2(&[address, tag2(3, 0, &[entry])]);
        [vec![0x90; 16], header, b"code".to_vec()].concat()
    };
    let load = |words| address(words);
    let good = image(load([0x10_0010, 0x10_0000, 0, 0x10_2000]), 0x10_0030);
    let (memory, entry) = boot(&good, None, "");
    assert!(matches!(entry, Ok(Entry::Protected { rip: 0x10_0030, .. })));
    assert_eq!(bytes(&memory, 0x10_0000, good.len()), good);
    // From the start of the file, wherever that is.
    let from_the_start = image(load([0x10_0010, u32::MAX, 0, 0]), 0x10_0030);
    assert_eq!(boot(&from_the_start, None, "").1.unwrap(), entry.unwrap());
    // Not all of the file.
    let part = image(
        load([0x10_0010, 0x10_0010, 0x10_0018, 0x10_1000]),
        0x10_0800,
    );
    let (memory, entry) = boot(&part, None, "");
    assert!(entry.is_ok());
    assert_eq!(bytes(&memory, 0x10_0010, 8), part[16..24]);
    assert_eq!(bytes(&memory, 0x10_0018, 8), [0; 8]);
    for (words, problem) in [
        (
            [0x10_0010, 0x10_0011, 0, 0],
            "load_addr is above header_addr",
        ),
        (
            [0x10_0010, 0x10_0000, 0xf_0000, 0],
            "load_end_addr is below load_addr",
        ),
        (
            [0x10_0010, 0x10_0000, 0, 0x10_0001],
            "bss_end_addr is below the end of what is loaded",
        ),
    ] {
        assert_eq!(
            refusal(&image(load(words), 0x10_0030)),
            ImageError::MultibootAddresses(problem)
        );
    }
    for image in [
        image(load([8, u32::MAX, 0, 0]), 0x10_0030),
        multiboot2(&[load([0x10_0000, 0x10_0000, 0, 0])]),
        multiboot2(&[]),
    ] {
        assert!(matches!(refusal(&image), ImageError::Multiboot2Header(_)));
    }
    assert_eq!(
        refusal(&image(load([0x10_0010, 0x10_0000, 0, 0]), 0x20_0000)),
        ImageError::EntryOutside { entry: 0x20_0000 }
    );
    assert!(matches!(
        refusal(&image(load([0x10_0010, 0x10_0000, u32::MAX, 0]), 0x10_0030)),
        ImageError::Truncated { .. }
    ));
}

#[test]
fn an_entry_tag_replaces_the_elf_entry() {
    let entry = |at| multiboot2_elf(&[tag2(3, 0, &[at])]).build();
    assert!(matches!(
        boot(&entry(0x10_0003), None, "").1,
        Ok(Entry::Protected { rip: 0x10_0003, .. })
    ));
    assert_eq!(
        refusal(&entry(0x90_0000)),
        ImageError::EntryOutside { entry: 0x90_0000 }
    );
}

#[test]
fn a_relocatable_kernel_is_told_where_it_is() {
    let image = multiboot2_elf(&[tag2(10, 0, &[0x10_0000, u32::MAX, 4096, 1])]).build();
    let (memory, entry) = boot(&image, None, "");
    assert!(entry.is_ok());
    assert_eq!(tags(&memory)[&21], [0x10_0000_u32.to_le_bytes()]);
}

#[test]
fn what_this_vmm_lacks_is_refused_unless_it_is_optional() {
    let cases = [
        (tag2(1, 0, &[4, 6, 8]), ImageError::Multiboot2Information(8)),
        (tag2(11, 0, &[]), ImageError::Multiboot2Tag(11)),
        (tag2(0xffff, 0, &[0; 4]), ImageError::Multiboot2Tag(0xffff)),
        (tag2(4, 0, &[3]), ImageError::Multiboot2Console),
    ];
    for (tag, error) in cases {
        let (memory, result) = boot(
            &multiboot2_elf(std::slice::from_ref(&tag)).build(),
            None,
            "",
        );
        assert!(matches!(result, Err(LoadError::Kernel { source, .. }) if source == error));
        assert_untouched(&memory);
        let mut optional = tag;
        optional[2] = 1;
        assert!(
            boot(&multiboot2_elf(&[optional]).build(), None, "")
                .1
                .is_ok()
        );
    }
    // Preferences, what is done in any case, and what is for EFI.
    for tag in [
        tag2(1, 0, &[0, 1, 2, 3, 4, 6, 9, 14, 15, 21]),
        tag2(4, 0, &[2]),
        tag2(5, 0, &[1024, 768, 32]),
        tag2(6, 0, &[]),
        tag2(7, 0, &[]),
        tag2(8, 0, &[0x10_0000]),
        tag2(9, 0, &[0x10_0000]),
    ] {
        assert!(boot(&multiboot2_elf(&[tag]).build(), None, "").1.is_ok());
    }
}

#[test]
fn absurd_lengths_are_refused() {
    let raw = |tags: &[u32]| {
        let tags: Vec<u8> = tags.iter().flat_map(|word| word.to_le_bytes()).collect();
        multiboot2_raw(0, &tags, None)
    };
    for tags in [
        &[][..],                      // no end tag
        &[5],                         // half a tag
        &[5, 0],                      // a size of nothing: no progress
        &[5, 7, 0, 8],                // shorter than itself
        &[5, 0xffff_ffff, 0, 8],      // 4 GiB
        &[5, 0xffff_fff9, 0, 8],      // whose next boundary is beyond all numbers
        &[5, 20, 1, 2, 3, 4],         // no end tag behind it
        &[2, 12, 0x10_0000, 0, 0, 8], // an address tag without addresses
        &[3, 8, 0, 8],                // an entry tag without an entry
        &[4, 8, 0, 8],                // a console tag without flags
    ] {
        assert!(
            matches!(refusal(&raw(tags)), ImageError::Multiboot2Header(_)),
            "{tags:x?}"
        );
    }
    for length in [0, 8, 15, 17, 1 << 15, u32::MAX] {
        let image = multiboot2_raw(0, &[], Some(length));
        assert!(
            matches!(refusal(&image), ImageError::Multiboot2Header(_)),
            "{length}"
        );
    }
    let mips = multiboot2_raw(4, &[0; 8], None);
    assert_eq!(refusal(&mips), ImageError::Multiboot2Architecture(4));
}

#[test]
fn no_damaged_byte_of_the_header_makes_loading_panic() {
    let tags = [
        tag2(1, 0, &[4, 6]),
        tag2(2, 0, &[0x10_0000, 0x10_0000, 0, 0]),
        tag2(3, 0, &[0x10_0008]),
    ];
    let image = multiboot2(&tags);
    for at in 0..image.len() {
        for value in [0x00, 0x01, 0x07, 0x7f, 0x80, 0xff] {
            let mut damaged = image.clone();
            damaged[at] = value;
            // The checksum covers the first three words.
            let sum = [0, 4, 8].map(|at| word(&damaged, at));
            let sum = sum.iter().fold(0_u32, |sum, word| sum.wrapping_sub(*word));
            damaged[12..16].copy_from_slice(&sum.to_le_bytes());
            // Any result will do.
            let _ = boot(&damaged, None, "");
        }
    }
}

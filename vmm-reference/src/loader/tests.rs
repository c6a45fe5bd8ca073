use vm_memory::{Bytes, GuestAddress};

use super::test_images::{
    Elf, Load, bzimage, load as load_segment, multiboot, multiboot2, note, pvh_note,
};
use super::*;

mod compressed;
mod foreign;
mod linux32;
mod modules;
mod multiboot2;

const MIB: u64 = 1 << 20;

fn file(name: &str, bytes: &[u8]) -> ImageFile {
    ImageFile {
        name: name.to_owned(),
        bytes: Cow::Owned(bytes.to_vec()),
    }
}

/// Loads into 16 MiB.
fn boot(
    image: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
) -> (GuestRam, Result<Entry, LoadError>) {
    let initrd = initrd.map(|bytes| file("initrd", bytes).into());
    boot_with(image, initrd.as_slice(), cmdline)
}

fn boot_with(
    image: &[u8],
    modules: &[Module],
    cmdline: &str,
) -> (GuestRam, Result<Entry, LoadError>) {
    let layout = MemoryLayout::new(16 * MIB).unwrap();
    let memory = layout.allocate().unwrap();
    let loaded = load(&memory, layout, &file("kernel", image), modules, cmdline);
    (memory, loaded.map(|loaded| loaded.entry))
}

fn module(name: &str, bytes: &[u8], arguments: Option<&str>) -> Module {
    Module {
        file: file(name, bytes),
        arguments: arguments.map(str::to_owned),
    }
}

/// No byte was written.
#[track_caller]
fn assert_untouched(memory: &GuestRam) {
    let all = bytes(memory, 0, usize::try_from(16 * MIB).unwrap());
    assert!(all.iter().all(|&byte| byte == 0));
}

fn refusal(image: &[u8]) -> ImageError {
    match boot(image, None, "").1 {
        Err(LoadError::Kernel { file, source }) => {
            assert_eq!(file, "kernel");
            source
        }
        other => panic!("{other:?}"),
    }
}

fn bytes(memory: &GuestRam, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn u32_at(memory: &GuestRam, at: u64) -> u32 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

fn u64_at(memory: &GuestRam, at: u64) -> u64 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

fn pvh() -> Elf {
    Elf {
        notes: vec![pvh_note(0x10_0000)],
        ..Elf::wide()
    }
}

/// A multiboot kernel in an ELF file: the header is the first thing in its segment.
fn multiboot_elf(elf: Elf, flags: u32) -> Elf {
    let data = [multiboot(flags, &[]), b"code".to_vec()].concat();
    Elf {
        loads: vec![load_segment(0x10_0000, &data)],
        entry: 0x10_000c,
        ..elf
    }
}

/// The same with a multiboot 2 header of these tags. It is entered behind an empty header.
fn multiboot2_elf(tags: &[Vec<u8>]) -> Elf {
    multiboot2_in(Elf::narrow(), tags)
}

fn multiboot2_in(elf: Elf, tags: &[Vec<u8>]) -> Elf {
    // The header is on an 8-byte boundary of the file, behind 84 or 120 bytes of ELF headers.
    let padding = vec![0x90; if elf.wide { 0 } else { 4 }];
    let entry = 0x10_0018 + padding.len() as u64;
    let data = [padding, multiboot2(tags), b"code".to_vec()].concat();
    Elf {
        loads: vec![load_segment(0x10_0000, &data)],
        entry,
        ..elf
    }
}

// What a file is.

#[test]
fn files_that_are_no_kernels_are_refused() {
    assert_eq!(refusal(b""), ImageError::Empty);
    assert_eq!(refusal(b"#!/bin/sh\n"), ImageError::NotAKernel);
    assert_eq!(refusal(&[0; 100_000]), ImageError::NotAKernel);
    assert_eq!(
        refusal(
            &Elf {
                machine: 183,
                ..Elf::wide()
            }
            .build()
        ),
        ImageError::WrongMachine { machine: 183 }
    );
    assert_eq!(
        refusal(
            &Elf {
                machine: 3,
                ..Elf::wide()
            }
            .build()
        ),
        ImageError::WrongMachine { machine: 3 }
    );
    assert_eq!(
        refusal(
            &Elf {
                kind: 3,
                ..Elf::wide()
            }
            .build()
        ),
        ImageError::NotExecutable { kind: 3 }
    );
    assert_eq!(
        refusal(
            &Elf {
                others: vec![3],
                ..Elf::wide()
            }
            .build()
        ),
        ImageError::Dynamic
    );
    assert_eq!(
        refusal(
            &Elf {
                loads: vec![],
                ..Elf::wide()
            }
            .build()
        ),
        ImageError::NoSegments
    );
    assert_eq!(refusal(&Elf::narrow().build()), ImageError::NoBootProtocol);
    let mut big_endian = Elf::wide().build();
    big_endian[5] = 2;
    assert_eq!(refusal(&big_endian), ImageError::BigEndian);
    let mut no_class = Elf::wide().build();
    no_class[4] = 7;
    assert!(matches!(refusal(&no_class), ImageError::BadElf(_)));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for image in [
        pvh().build(),
        Elf::wide().build(),
        multiboot_elf(Elf::narrow(), 0).build(),
        multiboot2_elf(&[]).build(),
        bzimage(),
    ] {
        assert!(Kernel::parse(&image).is_ok());
        // A bzImage's size is in paragraphs of 16 bytes, the last of which need not be whole.
        let spare = if BzImage::matches(&image) { 15 } else { 0 };
        for length in image.len() - spare..image.len() {
            assert!(Kernel::parse(&image[..length]).is_ok(), "{length} bytes");
        }
        for length in 0..image.len() - spare {
            assert!(Kernel::parse(&image[..length]).is_err(), "{length} bytes");
        }
    }
}

#[test]
fn no_damaged_byte_makes_loading_panic() {
    let layout = MemoryLayout::new(4 * MIB).unwrap();
    let memory = layout.allocate().unwrap();
    let raw = multiboot(1 << 16, &[0x10_0000, 0x10_0000, 0, 0x10_1000, 0x10_0020]);
    for image in [
        pvh().build(),
        multiboot_elf(Elf::narrow(), 3).build(),
        Elf::wide().build(),
        multiboot2_elf(&[]).build(),
        raw,
        bzimage(),
    ] {
        for at in 0..image.len().min(0x300) {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut damaged = image.clone();
                damaged[at] = value;
                let initrd = [module("initrd", &[7; 100], None)];
                // Any result will do.
                let _ = load(&memory, layout, &file("k", &damaged), &initrd, "x");
            }
        }
    }
}

#[test]
fn the_protocols_are_tried_in_the_documented_order() {
    let both = Elf {
        notes: vec![pvh_note(0x10_000c)],
        ..multiboot_elf(Elf::wide(), 0)
    };
    assert!(matches!(
        Kernel::parse(&both.build()),
        Ok(Kernel::Pvh {
            entry: 0x10_000c,
            ..
        })
    ));
    assert!(matches!(
        Kernel::parse(&multiboot_elf(Elf::wide(), 0).build()),
        Ok(Kernel::Multiboot(_))
    ));
    let mut both = multiboot2_elf(&[]);
    both.loads[0].data.extend([0; 4]);
    both.loads[0].data.extend(multiboot(0, &[]));
    both.loads[0].memory_size += 16;
    let both = both.build();
    assert!(MultibootHeader::find(&both).unwrap().is_some());
    assert!(matches!(Kernel::parse(&both), Ok(Kernel::Multiboot2(_))));
    assert!(matches!(
        Kernel::parse(&Elf::wide().build()),
        Ok(Kernel::LinuxElf(_))
    ));
    assert!(matches!(Kernel::parse(&bzimage()), Ok(Kernel::BzImage(_))));
}

// Segments.

#[test]
fn segments_that_lie_about_themselves_are_refused() {
    let with = |load: Load| {
        refusal(
            &Elf {
                loads: vec![load],
                ..Elf::wide()
            }
            .build(),
        )
    };
    assert_eq!(
        with(Load {
            memory_size: 3,
            ..load_segment(0x10_0000, b"four")
        }),
        ImageError::SegmentLarger {
            index: 0,
            file: 4,
            memory: 3
        }
    );
    assert_eq!(
        with(Load {
            memory_size: u64::MAX,
            ..load_segment(0x10_0000, b"four")
        }),
        ImageError::SegmentWraps {
            index: 0,
            start: 0x10_0000
        }
    );
}

#[test]
fn segments_that_overlap_each_other_are_refused_whatever_their_order() {
    let (low, high) = (
        load_segment(0x10_0000, &[0; 32]),
        load_segment(0x10_001f, &[0; 32]),
    );
    for loads in [vec![low.clone(), high.clone()], vec![high, low]] {
        assert_eq!(
            refusal(
                &Elf {
                    loads,
                    ..Elf::wide()
                }
                .build()
            ),
            ImageError::SegmentsOverlap {
                first: 0x10_0000..0x10_0020,
                second: 0x10_001f..0x10_003f,
            }
        );
    }
    let touching = Elf {
        loads: vec![
            load_segment(0x10_0000, &[0; 32]),
            load_segment(0x10_0020, &[0; 32]),
        ],
        ..Elf::wide()
    };
    assert!(boot(&touching.build(), None, "").1.is_ok());
}

#[test]
fn segments_outside_memory_are_refused() {
    let at = |physical, memory_size| {
        let load = Load {
            memory_size,
            ..load_segment(physical, b"x")
        };
        refusal(
            &Elf {
                loads: vec![load],
                entry: physical,
                ..Elf::wide()
            }
            .build(),
        )
    };
    for (start, size) in [
        (16 * MIB, 1),          // right behind the memory
        (16 * MIB - 1, 2),      // across its end
        (0xc000_0000, 1),       // in the hole below 4 GiB
        (0xa_0000, 1),          // in the legacy hole
        (0x9_fc00, 1),          // in the extended BIOS data area
        (0x9_fbff, 2),          // into it
        (0xe_0000, 0x2_0000),   // in the ACPI tables
        (u64::MAX - 0x1000, 1), // anywhere
    ] {
        assert_eq!(
            at(start, size),
            ImageError::OutsideMemory {
                segment: start..start + size
            }
        );
    }
}

#[test]
fn the_boot_data_gives_way_to_the_kernel() {
    // (the kernel, the zero page that Linux gets)
    for (start, size, zero_page) in [
        (0x4fff, 1, 0x7000),
        (0x3_0000, 0x100, 0x7000),
        (0x4fff, 2, 0x9_f000 - 0x2_b000 + 0x2000),
        (0x2_ffff, 1, 0x9_f000 - 0x2_b000 + 0x2000),
        (0x7_0000, 0x2_f000, 0x7000),
        (0x4000, 0x9_0000, 16 * MIB - 0x2_b000 + 0x2000),
    ] {
        let load = Load {
            memory_size: size,
            ..load_segment(start, b"\xf4")
        };
        let elf = Elf {
            loads: vec![load],
            entry: start,
            ..Elf::wide()
        };
        let (memory, entry) = boot(&elf.build(), Some(&[7; 5000]), "quiet");
        let Entry::Long { rip, rsi } = entry.unwrap() else {
            panic!("not Linux");
        };
        assert_eq!((rip, rsi), (start, zero_page), "{start:#x}");
        let field = |offset| u64::from(u32_at(&memory, rsi + offset));
        assert_eq!(bytes(&memory, field(0x228), 6), b"quiet\0");
        // The initrd is clear of both.
        let initrd = field(0x218);
        assert_eq!(bytes(&memory, initrd, 5000), [7; 5000]);
        let data = rsi - 0x2000..rsi - 0x2000 + 0x2_b000;
        assert!(initrd >= data.end || initrd + 5000 <= data.start);
        assert_eq!(bytes(&memory, start, 1), b"\xf4");
    }
}

#[test]
fn a_kernel_that_leaves_no_room_for_the_boot_data_is_refused() {
    let segment = |start, size| Load {
        memory_size: size,
        ..load_segment(start, b"x")
    };
    let elf = Elf {
        loads: vec![segment(0, 0x9_fc00), segment(MIB, 15 * MIB)],
        ..Elf::wide()
    };
    assert_eq!(refusal(&elf.build()), ImageError::NoRoomForBootData);
}

#[test]
fn an_entry_outside_the_segments_is_refused() {
    let outside = ImageError::EntryOutside { entry: 0x20_0000 };
    assert_eq!(
        refusal(
            &Elf {
                entry: 0x20_0000,
                ..Elf::wide()
            }
            .build()
        ),
        outside
    );
    let pvh = Elf {
        notes: vec![pvh_note(0x20_0000)],
        ..Elf::wide()
    };
    assert_eq!(refusal(&pvh.build()), outside);
    let multiboot = Elf {
        entry: 0x20_0000,
        ..multiboot_elf(Elf::narrow(), 0)
    };
    assert_eq!(refusal(&multiboot.build()), outside);
}

// PVH.

#[test]
fn a_note_segment_behind_the_pvh_note_does_not_hide_it() {
    let elf = Elf {
        notes: vec![pvh_note(0x10_0000), note(b"GNU\0", 5, &[0; 16])],
        ..Elf::wide()
    };
    assert!(matches!(
        boot(&elf.build(), None, "").1,
        Ok(Entry::Protected { .. })
    ));
}

#[test]
fn the_pvh_note_is_found_behind_others_in_one_segment() {
    let notes = [
        note(b"GNU\0", 18, &[0; 7]),
        note(b"Xen\0", 17, &[0; 4]),
        note(b"Xen\0", 18, &0x10_0001_u32.to_le_bytes()),
    ]
    .concat();
    let elf = Elf {
        notes: vec![notes],
        ..Elf::wide()
    };
    assert!(matches!(
        Kernel::parse(&elf.build()),
        Ok(Kernel::Pvh {
            entry: 0x10_0001,
            ..
        })
    ));
}

#[test]
fn a_pvh_note_too_short_for_an_address_is_refused() {
    let elf = Elf {
        notes: vec![note(b"Xen\0", 18, &[0; 3])],
        ..Elf::wide()
    };
    assert_eq!(refusal(&elf.build()), ImageError::BadPvhNote(3));
}

#[test]
fn a_pvh_kernel_gets_its_start_information() {
    for elf in [
        pvh(),
        Elf {
            wide: false,
            machine: 3,
            ..pvh()
        },
    ] {
        let (memory, entry) = boot(&elf.build(), Some(b"module"), "hello world");
        assert_eq!(
            entry.unwrap(),
            Entry::Protected {
                rip: 0x10_0000,
                eax: 0,
                ebx: 0x6000
            }
        );
        assert_eq!(bytes(&memory, 0x10_0000, 12), b"\xf4kernel code");
        assert_eq!(u32_at(&memory, 0x6000), 0x336e_c578);
        assert_eq!(u32_at(&memory, 0x6004), 1);
        assert_eq!(u32_at(&memory, 0x600c), 1, "one module");
        let modules = u64_at(&memory, 0x6010);
        let (start, size) = (u64_at(&memory, modules), u64_at(&memory, modules + 8));
        assert_eq!(
            bytes(&memory, start, usize::try_from(size).unwrap()),
            b"module"
        );
        let cmdline = u64_at(&memory, 0x6018);
        assert_eq!(u64_at(&memory, 0x6020), 0xe_0000, "rsdp_paddr");
        assert_eq!(bytes(&memory, cmdline, 12), b"hello world\0");
        let (map, count) = (u64_at(&memory, 0x6028), u32_at(&memory, 0x6030));
        let entries: Vec<_> = (0..u64::from(count))
            .map(|n| {
                let at = map + n * 24;
                (
                    u64_at(&memory, at),
                    u64_at(&memory, at + 8),
                    u32_at(&memory, at + 16),
                )
            })
            .collect();
        assert_eq!(
            entries,
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0x400, 2),
                (0xe_0000, 0x2_0000, 2),
                (0x10_0000, 15 * MIB, 1)
            ]
        );
    }
}

// Multiboot.

#[test]
fn the_multiboot_header_counts_within_the_first_8_kib_only() {
    let at = |offset: usize| {
        let mut image = vec![0; offset];
        image.extend(multiboot(0, &[]));
        image.resize(20_000, 0);
        MultibootHeader::find(&image)
            .unwrap()
            .map(|header| header.offset)
    };
    assert_eq!(at(0), Some(0));
    assert_eq!(at(4), Some(4));
    assert_eq!(at(8192 - 12), Some(8180));
    assert_eq!(at(8192 - 8), None);
    assert_eq!(at(8192), None);
    assert_eq!(at(2), None, "not on a 4-byte boundary");
}

#[test]
fn a_multiboot_header_with_a_wrong_checksum_is_none() {
    let mut image = multiboot(0, &[]);
    image[8] ^= 1;
    assert_eq!(MultibootHeader::find(&image), Ok(None));
}

#[test]
fn multiboot_features_that_are_not_offered_are_refused() {
    for bit in 2..16 {
        let elf = multiboot_elf(Elf::narrow(), 1 << bit | 1);
        assert_eq!(refusal(&elf.build()), ImageError::MultibootFlags(1 << bit));
    }
    // Bits from 16 are optional features, which a loader may ignore.
    let elf = multiboot_elf(Elf::narrow(), 1 << 17 | 0b11);
    assert!(boot(&elf.build(), None, "").1.is_ok());
}

#[test]
fn a_multiboot_kernel_gets_its_information() {
    for elf in [Elf::narrow(), Elf::wide()] {
        let image = multiboot_elf(elf, 0b11).build();
        let (memory, entry) = boot(&image, Some(b"module"), "a b");
        assert_eq!(
            entry.unwrap(),
            Entry::Protected {
                rip: 0x10_000c,
                eax: 0x2bad_b002,
                ebx: 0x6000
            }
        );
        let field = |offset: u64| u32_at(&memory, 0x6000 + offset);
        assert_eq!(field(0), 0b10_0100_1101);
        assert_eq!((field(4), field(8)), (639, 15 * 1024));
        assert_eq!(bytes(&memory, u64::from(field(16)), 11), b"kernel a b\0");
        assert_eq!(field(20), 1);
        let module = u64::from(field(24));
        let (start, end) = (u32_at(&memory, module), u32_at(&memory, module + 4));
        assert_eq!(start % 4096, 0, "bit 0 asks for pages");
        assert!(start >= 0x10_0010, "above the kernel");
        assert_eq!(
            bytes(
                &memory,
                u64::from(start),
                usize::try_from(end - start).unwrap()
            ),
            b"module"
        );
        let name = u64::from(u32_at(&memory, module + 8));
        assert_eq!(bytes(&memory, name, 7), b"initrd\0");
        let (length, map) = (field(44), u64::from(field(48)));
        assert_eq!(length, 4 * 24);
        assert_eq!(
            u32_at(&memory, map + 72),
            20,
            "the size field does not count itself"
        );
        assert_eq!(u64_at(&memory, map + 76), 0x10_0000);
        assert_eq!(u64_at(&memory, map + 84), 15 * MIB);
        assert_eq!(u32_at(&memory, map + 92), 1);
        assert_eq!(bytes(&memory, u64::from(field(64)), 14), b"vmm-reference\0");
    }
}

#[test]
fn a_kernel_linked_high_and_loaded_low_starts_where_it_was_loaded() {
    let mut elf = multiboot_elf(Elf::wide(), 0);
    elf.loads[0].linked = 0xffff_ffff_8010_0000;
    elf.entry = 0xffff_ffff_8010_000c;
    assert!(matches!(
        boot(&elf.build(), None, "").1,
        Ok(Entry::Protected { rip: 0x10_000c, .. })
    ));
}

#[test]
fn a_flat_image_loads_by_the_addresses_in_its_multiboot_header() {
    // The header is 16 bytes into the file, and 16 bytes into what is loaded.
    let image = |addresses: [u32; 5]| {
        let header = multiboot(1 << 16, &addresses);
        [vec![0x90; 16], header, b"code".to_vec()].concat()
    };
    let good = image([0x10_0010, 0x10_0000, 0, 0x10_2000, 0x10_0030]);
    let (memory, entry) = boot(&good, None, "");
    assert!(matches!(entry, Ok(Entry::Protected { rip: 0x10_0030, .. })));
    assert_eq!(bytes(&memory, 0x10_0000, good.len()), good);
    for (addresses, problem) in [
        (
            [0x10_0010, 0x10_0011, 0, 0, 0x10_0030],
            "load_addr is above header_addr",
        ),
        (
            [0x10_0020, 0x10_0000, 0, 0, 0x10_0030],
            "load_addr lies before the start of the file",
        ),
        (
            [0x10_0010, 0x10_0000, 0xf_0000, 0, 0x10_0030],
            "load_end_addr is below load_addr",
        ),
        (
            [0x10_0010, 0x10_0000, 0, 0x10_0001, 0x10_0030],
            "bss_end_addr is below the end of what is loaded",
        ),
    ] {
        assert_eq!(
            refusal(&image(addresses)),
            ImageError::MultibootAddresses(problem)
        );
    }
    assert_eq!(
        refusal(&image([0x10_0010, 0x10_0000, 0, 0, 0x20_0000])),
        ImageError::EntryOutside { entry: 0x20_0000 }
    );
    assert!(matches!(
        refusal(&image([0x10_0010, 0x10_0000, 0x11_0000, 0, 0x10_0030])),
        ImageError::Truncated { .. }
    ));
}

// Linux.

#[test]
fn a_bzimage_goes_where_it_wants_to_be_with_its_zero_page() {
    let image = bzimage();
    let (memory, entry) = boot(&image, Some(&[9; 5000]), "console=ttyS0");
    assert_eq!(
        entry.unwrap(),
        Entry::Long {
            rip: 0x20_0200,
            rsi: 0x7000
        }
    );
    assert_eq!(bytes(&memory, 0x20_0000, 0x400), image[1024..]);
    let zero_page = 0x7000;
    assert_eq!(bytes(&memory, zero_page + 0x202, 4), b"HdrS");
    assert_eq!(
        bytes(&memory, zero_page + 0x210, 1),
        [0xff],
        "type_of_loader"
    );
    let cmdline = u64::from(u32_at(&memory, zero_page + 0x228));
    assert_eq!(bytes(&memory, cmdline, 14), b"console=ttyS0\0");
    let initrd = u64::from(u32_at(&memory, zero_page + 0x218));
    assert_eq!(u32_at(&memory, zero_page + 0x21c), 5000);
    assert_eq!(bytes(&memory, initrd, 5000), [9; 5000]);
    assert!(
        initrd + 5000 <= 0x80_0000,
        "its header allows no more than 8 MiB"
    );
    assert!(initrd >= 0x30_0000, "above what the kernel needs");
    assert_eq!(
        u64_at(&memory, zero_page + 0x70),
        0xe_0000,
        "acpi_rsdp_addr"
    );
    assert_eq!(bytes(&memory, zero_page + 0x1e8, 1), [4], "e820 entries");
    // The fourth entry, of 20 bytes each.
    assert_eq!(u64_at(&memory, zero_page + 0x2d0 + 60), 0x10_0000);
    assert_eq!(u64_at(&memory, zero_page + 0x2d0 + 68), 15 * MIB);
    assert_eq!(u32_at(&memory, zero_page + 0x2d0 + 76), 1);
}

#[test]
fn a_header_that_lies_about_its_end_keeps_the_fields_of_protocol_2_12() {
    for jump in [0, 0x10, 0xff] {
        let mut image = bzimage();
        image[0x201] = jump;
        let (memory, entry) = boot(&image, None, "");
        assert!(entry.is_ok());
        assert_eq!(bytes(&memory, 0x7202, 4), b"HdrS");
        assert_eq!(u32_at(&memory, 0x7260), 0x10_0000, "init_size");
    }
}

#[test]
fn bzimages_that_cannot_be_entered_are_refused() {
    let with = |at: usize, value: &[u8]| {
        let mut image = bzimage();
        image[at..at + value.len()].copy_from_slice(value);
        refusal(&image)
    };
    assert_eq!(
        with(0x206, &0x0209_u16.to_le_bytes()),
        ImageError::OldProtocol { major: 2, minor: 9 }
    );
    assert_eq!(with(0x211, &[0]), ImageError::ZImage);
    // 0x41 paragraphs of which the last is not there at all: at least one byte of it must be.
    assert!(matches!(
        with(0x1f4, &0x41_u32.to_le_bytes()),
        ImageError::Truncated {
            needs: 2049,
            has: 2048,
            ..
        }
    ));
    // No setup sectors means four: then this file holds no kernel.
    assert!(matches!(with(0x1f1, &[0]), ImageError::Truncated { .. }));
    assert!(matches!(
        with(0x258, &(15 * MIB + 0x8_0000).to_le_bytes()),
        ImageError::OutsideMemory { .. }
    ));
    assert!(matches!(
        with(0x258, &u64::MAX.to_le_bytes()),
        ImageError::SegmentWraps { .. }
    ));
}

#[test]
fn a_vmlinux_starts_in_64_bit_mode() {
    let (memory, entry) = boot(&Elf::wide().build(), None, "quiet");
    assert_eq!(
        entry.unwrap(),
        Entry::Long {
            rip: 0x10_0000,
            rsi: 0x7000
        }
    );
    assert_eq!(bytes(&memory, 0x10_0000, 12), b"\xf4kernel code");
    assert_eq!(bytes(&memory, 0x7000 + 0x1fe, 2), [0x55, 0xaa]);
    assert_eq!(u32_at(&memory, 0x7000 + 0x238), 2047, "cmdline_size");
}

// Command lines and initrds.

#[test]
fn a_command_line_that_does_not_fit_is_refused() {
    let too_long = |image: &[u8], length: usize| boot(image, None, &"x".repeat(length)).1;
    for (image, limit) in [
        (bzimage(), 255),
        (Elf::wide().build(), 2047),
        (pvh().build(), 0xffff),
    ] {
        assert!(too_long(&image, limit).is_ok());
        assert!(matches!(
            too_long(&image, limit + 1),
            Err(LoadError::CmdlineTooLong { length, limit: l })
                if length == limit + 1 && l == limit as u64
        ));
    }
    assert!(matches!(
        boot(&pvh().build(), None, "a\0b").1,
        Err(LoadError::CmdlineZero(1))
    ));
}

#[test]
fn an_initrd_that_does_not_fit_is_refused_and_the_memory_untouched() {
    let multiboot = multiboot_elf(Elf::narrow(), 0).build();
    for image in [pvh().build(), multiboot, bzimage(), Elf::wide().build()] {
        let huge = vec![1; usize::try_from(16 * MIB).unwrap()];
        let (memory, result) = boot(&image, Some(&huge), "");
        assert!(matches!(
            result,
            Err(LoadError::ModuleTooBig { size, room, .. }) if size == 16 * MIB && room < size
        ));
        assert_untouched(&memory);
        assert!(matches!(
            boot(&image, Some(b""), "").1,
            Err(LoadError::ModuleEmpty { .. })
        ));
    }
}

#[test]
fn an_initrd_that_just_fits_is_taken() {
    // From the kernel's end, 1 MiB and 12 bytes, to the end of memory.
    let room = usize::try_from(15 * MIB - 4096).unwrap();
    for (size, fits) in [(room, true), (room + 1, false)] {
        let (_, result) = boot(&pvh().build(), Some(&vec![1; size]), "");
        assert_eq!(result.is_ok(), fits, "{size}");
    }
}

#[test]
fn every_message_names_the_file_and_says_why() {
    let error = boot(b"text", None, "").1.unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(error.to_string(), "cannot boot kernel");
    assert!(
        source
            .to_string()
            .starts_with("not a kernel: expected a bzImage")
    );
    let missing = ImageFile::read(Path::new("/no/such/kernel")).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read /no/such/kernel");
}

use proptest::prelude::*;

use super::*;
use crate::x86_64::simulated::Ram;

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const PS: u64 = 0x80;
const XD: u64 = 1 << 63;

fn legacy(cr3: u64) -> SpecialRegisters {
    SpecialRegisters {
        cr0: 0x8000_0011,
        cr3,
        cr4: 0x10,
        ..SpecialRegisters::default()
    }
}

fn pae(cr3: u64) -> SpecialRegisters {
    SpecialRegisters {
        cr4: 0x20,
        efer: 0x800,
        ..legacy(cr3)
    }
}

fn four_level(cr3: u64) -> SpecialRegisters {
    SpecialRegisters {
        cr4: 0x20,
        efer: 0xd00,
        ..legacy(cr3)
    }
}

fn five_level(cr3: u64) -> SpecialRegisters {
    SpecialRegisters {
        cr4: 0x1020,
        ..four_level(cr3)
    }
}

fn at(
    special: &SpecialRegisters,
    memory: &Ram,
    address: u64,
) -> Result<Translation, TranslateError> {
    translate(special, memory, GuestVirtAddr(address))
}

#[test]
fn without_paging_linear_is_physical_up_to_4_gib() {
    let memory = Ram::new(0);
    let real = SpecialRegisters::default();
    for address in [0, 0x10_ffef, 0xffff_ffff] {
        assert_eq!(at(&real, &memory, address).unwrap().gpa.0, address);
    }
    assert_eq!(
        at(&real, &memory, 0x1_0000_0000),
        Err(TranslateError::NotCanonical {
            address: GuestVirtAddr(0x1_0000_0000),
            width: 32
        })
    );
    assert_eq!(memory.reads(), 0);
}

#[test]
fn a_4_level_walk_reads_each_level_where_the_manual_says() {
    let memory = Ram::new(0x6000);
    // 0xffff_8123_4567_89ab: indices 0x102, 0x8d, 0x2b, 0x78; offset 0x9ab.
    memory.put_u64(0x1000 + 0x102 * 8, 0x2000 | P | RW | US);
    memory.put_u64(0x2000 + 0x08d * 8, 0x3000 | P | RW | US);
    memory.put_u64(0x3000 + 0x02b * 8, 0x4000 | P | RW);
    memory.put_u64(
        0x4000 + 0x078 * 8,
        0x000d_eadb_eef0_0000 & !0xfff | P | RW | US | XD,
    );
    let found = at(&four_level(0x1fff), &memory, 0xffff_8123_4567_89ab).unwrap();
    assert_eq!(
        found,
        Translation {
            gpa: GuestPhysAddr(0x000d_eadb_eef0_09ab),
            page_size: PageSize::Size4K,
            writable: true,
            user: false,
            executable: false,
        }
    );
    assert_eq!(memory.reads(), 4);
    assert_eq!(memory.writes(), 0);
}

#[test]
fn a_walk_changes_no_accessed_or_dirty_bit() {
    let memory = Ram::new(0x8000);
    for level in 1..4u64 {
        memory.put_u64(level * 0x1000, (level + 1) << 12 | P | RW);
    }
    memory.put_u64(0x4000, 0x5000 | P | RW);
    let before = memory.snapshot();
    at(&four_level(0x1000), &memory, 0x123).unwrap();
    let mut data = [0; 16];
    assert_eq!(
        read_virtual(
            &four_level(0x1000),
            &memory,
            GuestVirtAddr(0x123),
            &mut data
        ),
        16
    );
    assert_eq!(memory.snapshot(), before);
    // A write changes the data only: not the Dirty bit, although the entry lacks it.
    assert_eq!(
        write_virtual(&four_level(0x1000), &memory, GuestVirtAddr(0x123), &[9]),
        1
    );
    let mut expected = before;
    expected[0x5123] = 9;
    assert_eq!(memory.snapshot(), expected);
}

#[test]
fn addresses_that_are_not_canonical_are_refused_before_any_read() {
    let memory = Ram::new(0x1000);
    for (special, address, width) in [
        (four_level(0), 0x0000_8000_0000_0000, 48),
        (four_level(0), 0xffff_7fff_ffff_ffff, 48),
        (five_level(0), 0x0100_0000_0000_0000, 57),
        (five_level(0), 0xfeff_ffff_ffff_ffff, 57),
        (pae(0), 0x1_0000_0000, 32),
        (legacy(0), 0xffff_ffff_8000_0000, 32),
    ] {
        assert_eq!(
            at(&special, &memory, address),
            Err(TranslateError::NotCanonical {
                address: GuestVirtAddr(address),
                width
            })
        );
    }
    assert_eq!(memory.reads(), 0);
}

#[test]
fn an_error_names_the_entry_at_fault() {
    let memory = Ram::new(0x5000);
    let special = four_level(0x1000);
    let address = GuestVirtAddr(0x7123);
    assert_eq!(
        translate(&special, &memory, address),
        Err(TranslateError::NotPresent {
            address,
            level: Level::Pml4e,
            entry_address: GuestPhysAddr(0x1000),
            entry: 0
        })
    );
    memory.put_u64(0x1000, 0x2000 | P);
    memory.put_u64(0x2000, 0x3000 | P);
    memory.put_u64(0x3000, 0x4000 | P);
    memory.put_u64(0x4038, 0xabc0);
    let error = translate(&special, &memory, address).unwrap_err();
    assert_eq!(
        error,
        TranslateError::NotPresent {
            address,
            level: Level::Pte,
            entry_address: GuestPhysAddr(0x4038),
            entry: 0xabc0
        }
    );
    assert_eq!(
        error.to_string(),
        "0x7123 is not mapped: the PTE at 0x4038 is 0xabc0, not present"
    );
    memory.put_u64(0x2000, 0x70_0000 | P);
    assert_eq!(
        translate(&special, &memory, address),
        Err(TranslateError::TableUnreadable {
            address,
            level: Level::Pde,
            entry_address: GuestPhysAddr(0x70_0000)
        })
    );
    // A table whose last bytes are outside RAM.
    memory.put_u64(0x2000, 0x4000 | P);
    memory.put_u64(0x4000, 0x5000 | P);
    assert!(matches!(
        translate(&special, &memory, address),
        Err(TranslateError::TableUnreadable {
            level: Level::Pte,
            ..
        })
    ));
}

#[test]
fn reserved_bits_are_refused_as_the_cpu_does() {
    let check = |special: SpecialRegisters, entries: &[(u64, u64)], level, reserved| {
        let memory = Ram::new(0x5000);
        for (address, entry) in entries {
            memory.put_u64(*address, *entry);
        }
        match translate_with(
            &special,
            PhysicalAddressing::new(40, 0),
            &memory,
            GuestVirtAddr(0),
        ) {
            Err(TranslateError::Reserved {
                level: at,
                reserved: bits,
                ..
            }) => assert_eq!((at, bits), (level, reserved)),
            other => panic!("{other:?}"),
        }
    };
    // PS in a PML4E.
    check(
        four_level(0x1000),
        &[(0x1000, 0x2000 | P | PS)],
        Level::Pml4e,
        PS,
    );
    // XD without NXE.
    let no_nx = SpecialRegisters {
        efer: 0x500,
        ..four_level(0x1000)
    };
    check(no_nx, &[(0x1000, 0x2000 | P | XD)], Level::Pml4e, XD);
    // Beyond MAXPHYADDR = 40.
    check(
        four_level(0x1000),
        &[(0x1000, 1 << 40 | P)],
        Level::Pml4e,
        1 << 40,
    );
    // Bit 13 of a 1 GiB page.
    let to_1g = [(0x1000, 0x2000 | P), (0x2000, 0x2000 | P | PS)];
    check(four_level(0x1000), &to_1g, Level::Pdpte, 0x2000);
    // Bit 20 of a 2 MiB page; bit 12 is PAT.
    let to_2m = [
        (0x1000, 0x2000 | P),
        (0x2000, 0x3000 | P),
        (0x3000, 0x10_1000 | P | PS),
    ];
    check(four_level(0x1000), &to_2m, Level::Pde, 0x10_0000);
    // R/W in a PAE PDPTE.
    check(pae(0x1000), &[(0x1000, 0x2000 | P | RW)], Level::Pdpte, RW);
    // Bit 52 of a PAE PDE, which is software's in long mode.
    let software = [(0x1000, 0x2000 | P), (0x2000, 1 << 52 | P)];
    check(pae(0x1000), &software, Level::Pde, 1 << 52);
    // Bit 21 of a PSE-36 entry.
    check(
        legacy(0x1000),
        &[(0x1000, 0x20_0000 | P | PS)],
        Level::Pde,
        0x20_0000,
    );
}

#[test]
fn software_bits_of_long_mode_entries_are_ignored() {
    let memory = Ram::new(0x5000);
    let software = 0x7ff0_0000_0000_0e00;
    memory.put_u64(0x1000, 0x2000 | P | software);
    memory.put_u64(0x2000, 0x3000 | P | software);
    memory.put_u64(0x3000, 0x4000 | P | software);
    memory.put_u64(0x4000, 0x9000 | P | software);
    assert_eq!(at(&four_level(0x1000), &memory, 5).unwrap().gpa.0, 0x9005);
}

#[test]
fn the_encryption_bit_is_no_part_of_an_address() {
    let c_bit = 1 << 47;
    let physical = PhysicalAddressing::new(43, c_bit);
    let memory = Ram::new(0x5000);
    memory.put_u64(0x1000, 0x2000 | P | c_bit);
    memory.put_u64(0x2000, 0x3000 | P | c_bit);
    memory.put_u64(0x3000, 0x4000 | P | c_bit);
    memory.put_u64(0x4000, 0x9000 | P | c_bit);
    let special = four_level(0x1000 | c_bit);
    let found = translate_with(&special, physical, &memory, GuestVirtAddr(7)).unwrap();
    assert_eq!(found.gpa.0, 0x9007);
}

#[test]
fn pse_36_reaches_beyond_4_gib() {
    let memory = Ram::new(0x2000);
    // Bits 20:13 are address bits 39:32.
    memory.put_u32(0x1000 + 3 * 4, 0x0040_0000 | (0xab << 13) | 0x1 | 0x80);
    let found = at(&legacy(0x1000), &memory, 0x00c1_2345).unwrap();
    assert_eq!(found.gpa.0, 0xab_0041_2345);
    assert_eq!(found.page_size, PageSize::Size4M);
    // With MAXPHYADDR 36, bits 39:36 are reserved.
    let narrow = PhysicalAddressing::new(36, 0);
    let error = translate_with(&legacy(0x1000), narrow, &memory, GuestVirtAddr(0x00c1_2345));
    assert!(
        matches!(
            error,
            Err(TranslateError::Reserved {
                reserved: 0x0014_0000,
                ..
            })
        ),
        "{error:?}"
    );
    // Without CR4.PSE the PS bit means nothing: 0x55_6000 would be the table.
    let no_pse = SpecialRegisters {
        cr4: 0,
        ..legacy(0x1000)
    };
    assert!(matches!(
        at(&no_pse, &memory, 0x00c1_2345),
        Err(TranslateError::TableUnreadable {
            level: Level::Pte,
            entry_address: GuestPhysAddr(0x0055_6048),
            ..
        })
    ));
}

#[test]
fn pae_takes_the_table_from_cr3_bits_31_to_5() {
    let memory = Ram::new(0x4000);
    memory.put_u64(0x1020 + 3 * 8, 0x2000 | P);
    memory.put_u64(0x2000, 0x3000 | P);
    memory.put_u64(0x3000, 0x9000 | P);
    let found = at(&pae(0x103f), &memory, 0xc000_0001).unwrap();
    assert_eq!(found.gpa.0, 0x9001);
    assert!(!found.user && !found.writable && found.executable);
}

#[test]
fn tables_that_point_to_themselves_end_after_as_many_levels_as_there_are() {
    let memory = Ram::new(0x2000);
    for index in 0..512 {
        memory.put_u64(0x1000 + index * 8, 0x1000 | P | RW);
    }
    for (special, reads) in [(four_level(0x1000), 4), (five_level(0x1000), 5)] {
        memory.reset_counts();
        assert_eq!(at(&special, &memory, 0xabc).unwrap().gpa.0, 0x1abc);
        assert_eq!(memory.reads(), reads);
    }
}

#[test]
fn a_read_stops_at_the_first_page_that_is_missing() {
    let memory = Ram::new(0x8000);
    memory.put_u64(0x1000, 0x2000 | P);
    memory.put_u64(0x2000, 0x3000 | P);
    memory.put_u64(0x3000, 0x4000 | P);
    // Linear pages 0 and 1 are physical 7 and 5; page 2 is missing.
    memory.put_u64(0x4000, 0x7000 | P);
    memory.put_u64(0x4008, 0x5000 | P);
    memory.put(0x7ffe, &[1, 2]);
    memory.put(0x5000, &[3, 4]);
    memory.put(0x5ffe, &[5, 6]);
    let special = four_level(0x1000);
    let mut data = [0xee; 4];
    assert_eq!(
        read_virtual(&special, &memory, GuestVirtAddr(0xffe), &mut data),
        4
    );
    assert_eq!(data, [1, 2, 3, 4]);
    let mut data = [0xee; 4];
    assert_eq!(
        read_virtual(&special, &memory, GuestVirtAddr(0x1ffe), &mut data),
        2
    );
    assert_eq!(data, [5, 6, 0xee, 0xee]);
    assert_eq!(
        read_virtual(&special, &memory, GuestVirtAddr(0x2000), &mut data),
        0
    );
    assert_eq!(
        read_virtual(&special, &memory, GuestVirtAddr(0), &mut []),
        0
    );
    assert_eq!(
        write_virtual(&special, &memory, GuestVirtAddr(0x1ffd), &[7; 9]),
        3
    );
    assert_eq!(memory.get(0x5ffd, 3), [7; 3]);
}

#[test]
fn a_page_that_leaves_ram_is_read_as_far_as_it_goes() {
    let memory = Ram::new(0x4800);
    memory.put_u64(0x1000, 0x2000 | P);
    memory.put_u64(0x2000, 0x3000 | P);
    memory.put_u64(0x3000, 0x4000 | P);
    memory.put_u64(0x4000, 0x4000 | P);
    memory.put_u64(0x4008, 0x1000 | P);
    let mut data = [0; 0x1800];
    // Not more than RAM has, and nothing of the next page.
    assert_eq!(
        read_virtual(&four_level(0x1000), &memory, GuestVirtAddr(0), &mut data),
        0x800
    );
}

#[test]
fn an_access_never_wraps_around_the_address_space() {
    let memory = Ram::new(0x10_000);
    for index in [0u64, 511] {
        memory.put_u64(0x1000 + index * 8, 0x2000 | P);
        memory.put_u64(0x2000 + index * 8, 0x3000 | P);
        memory.put_u64(0x3000 + index * 8, 0x4000 | P);
        memory.put_u64(0x4000 + index * 8, 0x5000 | P);
    }
    let mut data = [0; 64];
    let top = GuestVirtAddr(u64::MAX - 15);
    assert_eq!(
        read_virtual(&four_level(0x1000), &memory, top, &mut data),
        16
    );
    // The end of the lower half.
    let half = GuestVirtAddr(0x0000_7fff_ffff_fff0);
    memory.put_u64(0x1000 + 255 * 8, 0x2000 | P);
    assert_eq!(
        read_virtual(&four_level(0x1000), &memory, half, &mut data),
        16
    );
    // 32 bits.
    let real = SpecialRegisters::default();
    assert_eq!(
        read_virtual(&real, &memory, GuestVirtAddr(0xffff_fff0), &mut data),
        0
    );
    assert_eq!(
        write_virtual(
            &four_level(0x1000),
            &memory,
            GuestVirtAddr(u64::MAX),
            &[1, 2]
        ),
        1
    );
}

/// A mapper that knows nothing of the walker: it builds tables level by level from a description
/// (shift, bits of index) of the mode.
struct Mapper {
    memory: Ram,
    next_table: u64,
    root: u64,
    /// Shift and number of index bits of each level, top first.
    levels: &'static [(u32, u32)],
    entry_size: u64,
}

const RAM: usize = 0x40_0000;

impl Mapper {
    fn new(levels: &'static [(u32, u32)], entry_size: u64) -> Self {
        Self {
            memory: Ram::new(RAM),
            next_table: 0x2000,
            root: 0x1000,
            levels,
            entry_size,
        }
    }

    fn get(&self, at: u64) -> u64 {
        if self.entry_size == 4 {
            u64::from(self.memory.get_u32(at))
        } else {
            self.memory.get_u64(at)
        }
    }

    fn put(&self, at: u64, entry: u64) {
        if self.entry_size == 4 {
            self.memory.put_u32(at, u32::try_from(entry).unwrap());
        } else {
            self.memory.put_u64(at, entry);
        }
    }

    /// Maps the page of size `1 << shift` at `linear`; false if another page is in the way.
    fn map(&mut self, linear: u64, shift: u32, entry: u64, table_rights: u64) -> bool {
        let mut table = self.root;
        for (depth, (level_shift, index_bits)) in self.levels.iter().enumerate() {
            let index = (linear >> level_shift) & ((1 << index_bits) - 1);
            let slot = table + index * self.entry_size;
            let old = self.get(slot);
            if *level_shift == shift {
                if old != 0 {
                    return false;
                }
                self.put(slot, entry);
                return true;
            }
            if old & P == 0 {
                let new = self.next_table;
                if new + 0x1000 > 0x20_0000 {
                    return false;
                }
                self.next_table += 0x1000;
                // PAE's PDPTEs have no rights.
                let rights = if self.levels.len() == 3 && depth == 0 {
                    0
                } else {
                    table_rights
                };
                self.put(slot, new | P | rights);
                table = new;
            } else if old & PS != 0 {
                return false;
            } else {
                table = old & 0xffff_f000;
            }
        }
        false
    }
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Legacy,
    Pae,
    Four,
    Five,
}

proptest! {
    #[test]
    fn what_was_mapped_is_found_in_every_mode(
        mode in prop_oneof![Just(Mode::Legacy), Just(Mode::Pae), Just(Mode::Four), Just(Mode::Five)],
        pages in proptest::collection::vec(
            (any::<u64>(), any::<u64>(), 0usize..3, any::<[bool; 3]>(), any::<[bool; 2]>()), 1..24),
        probe in any::<u64>(),
    ) {
        let (mut mapper, special, width, sizes): (_, _, u32, &[u32]) = match mode {
            Mode::Legacy => (Mapper::new(&[(22, 10), (12, 10)], 4), legacy(0x1000), 32, &[12, 22, 12]),
            Mode::Pae => (Mapper::new(&[(30, 2), (21, 9), (12, 9)], 8), pae(0x1000), 32, &[12, 21, 12]),
            Mode::Four => (
                Mapper::new(&[(39, 9), (30, 9), (21, 9), (12, 9)], 8), four_level(0x1000), 48, &[12, 21, 30]),
            Mode::Five => (
                Mapper::new(&[(48, 9), (39, 9), (30, 9), (21, 9), (12, 9)], 8), five_level(0x1000), 57,
                &[12, 21, 30]),
        };
        let long = matches!(mode, Mode::Four | Mode::Five);
        let wide = !matches!(mode, Mode::Legacy);
        let mut mapped = Vec::new();
        let mut table_rights = std::collections::BTreeMap::new();
        for (linear, physical, size, [writable, user, no_execute], tables) in pages {
            let shift = sizes[size];
            let mut linear = linear & ((1 << width) - 1) & !((1 << shift) - 1);
            if long && linear >> (width - 1) != 0 {
                linear |= !((1 << width) - 1);
            }
            let reach = if wide { 52 } else { 32 };
            let base = physical & ((1 << reach) - 1) & !((1 << shift) - 1);
            let no_execute = no_execute && wide;
            let entry = base | P
                | if writable { RW } else { 0 }
                | if user { US } else { 0 }
                | if no_execute { XD } else { 0 }
                | if shift > 12 { PS } else { 0 };
            // Each table maps one page: its rights are those of that page.
            let rights = if mapped.is_empty() {
                (if tables[0] { RW } else { 0 }) | (if tables[1] { US } else { 0 })
            } else {
                RW | US
            };
            if mapper.map(linear, shift, entry, rights) {
                table_rights.insert(linear, rights);
                mapped.push((linear, base, shift, writable, user, no_execute));
            }
        }
        let first = mapped[0];
        for (linear, base, shift, writable, user, no_execute) in &mapped {
            let offset = probe & ((1 << shift) - 1);
            let found = translate(&special, &mapper.memory, GuestVirtAddr(linear + offset)).unwrap();
            prop_assert_eq!(found.gpa.0, base + offset);
            prop_assert_eq!(found.page_size.bytes(), 1u64 << shift);
            prop_assert_eq!(found.executable, !no_execute);
            prop_assert_eq!(found.bytes_to_page_end(), (1 << shift) - offset);
            // Pages below the first page's tables lose what those deny; others do not.
            if (linear, base) == (&first.0, &first.1) && mapped.len() == 1 {
                let leaf_only = match mode {
                    Mode::Legacy => *shift == 22,
                    Mode::Pae => *shift == 21,
                    _ => false,
                };
                // PAE's top level has no rights to give, so only the PDE counts.
                let rights = if leaf_only { RW | US } else { table_rights[linear] };
                prop_assert_eq!(found.writable, *writable && rights & RW != 0);
                prop_assert_eq!(found.user, *user && rights & US != 0);
            }
        }
        prop_assert_eq!(mapper.memory.writes(), 0);
        // An address that no page covers is an error, or lies in a page that was mapped.
        let mut address = probe & ((1 << width) - 1);
        if long && address >> (width - 1) != 0 {
            address |= !((1 << width) - 1);
        }
        let covered = mapped.iter().any(|(linear, _, shift, ..)| address >> shift == linear >> shift);
        prop_assert_eq!(translate(&special, &mapper.memory, GuestVirtAddr(address)).is_ok(), covered);
    }

    #[test]
    fn garbage_tables_never_panic_nor_write(
        seed in proptest::collection::vec(any::<u64>(), 512),
        registers in any::<[u64; 4]>(),
        address in any::<u64>(),
        low in any::<bool>(),
        width in any::<u8>(),
        c_bit in any::<u64>(),
    ) {
        let memory = Ram::new(0x4000);
        for page in 0..4u64 {
            for (index, entry) in seed.iter().enumerate() {
                let entry = if low { entry & 0x3fff | P } else { *entry };
                memory.put_u64(page * 0x1000 + u64::try_from(index).unwrap() * 8, entry);
            }
        }
        let before = memory.snapshot();
        let special = SpecialRegisters {
            cr0: registers[0],
            cr3: if low { registers[1] & 0x3fff } else { registers[1] },
            cr4: registers[2],
            efer: registers[3],
            ..SpecialRegisters::default()
        };
        let physical = PhysicalAddressing::new(width, c_bit);
        let _ = translate_with(&special, physical, &memory, GuestVirtAddr(address));
        let found = region(&special, &memory, GuestVirtAddr(address));
        prop_assert!(found.start <= address && address <= found.last);
        let mapped = translate(&special, &memory, GuestVirtAddr(address)).is_ok();
        prop_assert_eq!(found.rights.is_some(), mapped);
        let mut text = String::new();
        prop_assert!(write_walk(&special, &memory, GuestVirtAddr(address), &mut text).is_ok());
        prop_assert!(text.lines().count() <= 7);
        let all = GuestVirtAddr(0)..=GuestVirtAddr(u64::MAX);
        prop_assert!(mappings(&special, &memory, all, 16).list.len() <= 16);
        memory.reset_counts();
        let mut data = [0; 64];
        let read = read_virtual(&special, &memory, GuestVirtAddr(address), &mut data);
        prop_assert!(read <= 64);
        // At most two pages of five levels, and the data itself.
        prop_assert!(memory.reads() <= 12);
        prop_assert_eq!(memory.snapshot(), before);
    }
}

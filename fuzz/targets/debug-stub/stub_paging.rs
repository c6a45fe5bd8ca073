//! Any page tables under any control registers: the walk ends, reads a bounded number of entries,
//! writes nothing, and returns an address that is possible with these registers.
//!
//! Input: a byte of modes (PG, PAE, PSE, LMA, LA57, NXE, C-bit), MAXPHYADDR, how many bytes to
//! read, CR3's page, the address; then entries: two bytes for the place, eight for the value.
#![no_main]

use debug_stub::x86_64::simulated::Ram;
use debug_stub::x86_64::{
    PagingMode, PhysicalAddressing, SpecialRegisters, TranslateError, read_virtual, translate,
    translate_with, write_virtual,
};
use debug_stub::{GuestMemory, GuestVirtAddr};
use fuzz::Choices;
use libfuzzer_sys::fuzz_target;

const RAM: usize = 16 << 10;

/// The initial content of memory: neighbouring bytes differ, and some entries are present.
const PATTERN: [u8; 16] = [
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcd, 0xdd, 0xee, 0xff,
];

fuzz_target!(|data: &[u8]| {
    let mut input = Choices::new(data);
    let modes = input.byte();
    let bit = |index: u32, value: u64| if modes >> index & 1 == 1 { value } else { 0 };
    let c_bit = bit(6, 1 << 47);
    let physical = PhysicalAddressing::new(input.byte(), c_bit);
    let length = usize::from(input.byte());
    let special = SpecialRegisters {
        // PE and ET, and PG.
        cr0: 0x11 | bit(0, 1 << 31),
        cr3: u64::from(input.byte()) << 5,
        cr4: bit(1, 1 << 5) | bit(2, 1 << 4) | bit(4, 1 << 12),
        efer: bit(3, 0x500) | bit(5, 1 << 11),
        ..SpecialRegisters::default()
    };
    let address = GuestVirtAddr(input.quad());
    let ram = Ram::new(RAM);
    ram.put(0, &PATTERN.repeat(RAM / PATTERN.len()));
    while !input.is_empty() {
        let at = usize::from(input.word()) * 4 % (RAM - 4);
        ram.put_u64(at as u64, input.quad());
    }

    let mode = PagingMode::of(&special);
    let walked = translate_with(&special, physical, &ram, address);
    assert!(ram.reads() <= 5, "{} reads for 5 levels", ram.reads());
    assert_eq!(ram.writes(), 0, "no Accessed or Dirty bit is set");
    assert_eq!(walked, translate_with(&special, physical, &ram, address));
    match walked {
        Ok(found) => {
            assert!(mode.is_valid(address));
            let size = found.page_size.bytes();
            assert_eq!(
                (found.gpa.0 ^ address.0) & (size - 1),
                0,
                "the offset in the page stays"
            );
            // The offset is the linear address's own, and may name any bit below its page's size.
            let frame = found.gpa.0 & !(size - 1);
            let width = if mode == PagingMode::Legacy {
                physical.width().min(40)
            } else {
                physical.width()
            };
            assert_eq!(frame >> width, 0, "{frame:#x} has more than {width} bits");
            if mode != PagingMode::None {
                assert_eq!(frame & c_bit, 0, "the C-bit is no part of an address");
            }
            assert!((1..=size).contains(&found.bytes_to_page_end()));
            // The whole page is mapped alike.
            let last = GuestVirtAddr(address.0 | (size - 1));
            let at_end = translate_with(&special, physical, &ram, last).expect("the same page");
            assert_eq!(
                (at_end.gpa.0, at_end.bytes_to_page_end()),
                (frame | (size - 1), 1)
            );
        }
        Err(TranslateError::NotCanonical { width, .. }) => {
            assert!(!mode.is_valid(address));
            assert_eq!(width, mode.linear_width());
        }
        Err(TranslateError::NotPresent { entry, .. }) => assert_eq!(entry & 1, 0),
        Err(TranslateError::Reserved {
            entry, reserved, ..
        }) => {
            assert!(entry & 1 == 1 && reserved != 0 && entry & reserved == reserved);
            assert_eq!(reserved & c_bit, 0);
        }
        Err(TranslateError::TableUnreadable { entry_address, .. }) => {
            assert!(entry_address.0 > (RAM - 8) as u64);
        }
    }

    // Reading byte by byte gives the same as one read.
    let mut data = vec![0xa5; length + 4];
    let before = ram.reads();
    let read = read_virtual(&special, &ram, address, &mut data[..length]);
    assert!(read <= length);
    assert!(
        ram.reads() - before <= 2 * 6,
        "a page's tables are read once for all its bytes"
    );
    assert!(
        data[read..].iter().all(|byte| *byte == 0xa5),
        "beyond what was read"
    );
    let single = |offset: usize| {
        let at = address.checked_add(offset as u64)?;
        let found = translate(&special, &ram, at).ok()?;
        let mut byte = [0];
        (ram.read_memory(found.gpa, &mut byte) == 1).then_some(byte[0])
    };
    for (offset, byte) in data[..read].iter().enumerate() {
        assert_eq!(single(offset), Some(*byte));
    }
    assert!(
        read == length || single(read).is_none(),
        "it could have read on"
    );

    // Writing what is there changes nothing.
    let memory = ram.snapshot();
    assert_eq!(write_virtual(&special, &ram, address, &data[..read]), read);
    assert_eq!(ram.snapshot(), memory);
});

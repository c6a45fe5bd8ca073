//! The BIOS data area at 0x400 and the extended one (EBDA): what a PC's firmware leaves for kernels that ask
//! no other table (IBM PC/AT Technical Reference, "BIOS Data Area"; names as in SeaBIOS's `std/bda.h`).
//!
//! Kernels derive places for their own data from it. Xen puts its trampoline below the base memory's end, and
//! xv6 looks for the MP table in the EBDA. The values agree with the memory map, the CMOS and the ACPI tables.
//!
//! The interrupt vectors below 0x400 stay zero: there is no BIOS to call. Fields that are not written are zero,
//! which says: no parallel port, no disk, no key in the buffer, a timer count that does not run.

use vm_memory::{Bytes, GuestAddress};

use super::SetupError;
use crate::devices::SERIAL_PORT;
use crate::layout;
use crate::memory::GuestRam;

/// The equipment word at 0x410: bit 1, a mathematics coprocessor; bits 4 and 5, the first screen: 10 is 80
/// columns in color; bits 9 to 11, the number of serial ports.
const EQUIPMENT: u16 = 1 << 1 | 0b10 << 4 | 1 << 9;
/// The same in the CMOS (byte 0x14): the low byte.
pub(crate) const EQUIPMENT_LOW: u8 = EQUIPMENT.to_le_bytes()[0];

/// KiB of memory below the EBDA.
pub(crate) const BASE_MEMORY_KIB: u16 = kib(layout::EBDA.0);
/// The size of the EBDA in KiB, which is its first byte.
const EBDA_KIB: u8 = kib(layout::LEGACY_HOLE_START - layout::EBDA.0).to_le_bytes()[0];
/// The EBDA's real-mode segment.
const EBDA_SEGMENT: u16 = paragraphs(layout::EBDA.0);

/// The keyboard's buffer, as offsets from 0x400. It is empty: head and tail are its beginning.
const KEYS_START: u16 = 0x1e;
const KEYS_END: u16 = 0x3e;

/// The text mode that a PC has at power-on: number, columns, bytes of a page, the display controller's port,
/// the last row, and lines of a character.
const VIDEO_MODE: u8 = 3;
const COLUMNS: u16 = 80;
const PAGE_BYTES: u16 = 0x1000;
const DISPLAY_CONTROLLER: u16 = 0x3d4;
const LAST_ROW: u8 = 24;
const CHARACTER_LINES: u16 = 16;

#[expect(
    clippy::cast_possible_truncation,
    reason = "evaluated by the compiler, for addresses below 1 MiB"
)]
const fn kib(bytes: u64) -> u16 {
    assert!(bytes <= 1 << 20);
    (bytes / 1024) as u16
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "evaluated by the compiler, for addresses below 1 MiB"
)]
const fn paragraphs(address: u64) -> u16 {
    assert!(address < 1 << 20 && address.is_multiple_of(16));
    (address / 16) as u16
}

/// Writes both areas.
///
/// # Errors
/// [`SetupError::Memory`] if the memory does not reach that far.
pub fn write_bios_data(memory: &GuestRam) -> Result<(), SetupError> {
    let word = |at: u64, value: u16| (at, value.to_le_bytes().to_vec());
    let byte = |at: u64, value: u8| (at, vec![value]);
    let ebda = layout::EBDA.0;
    for (at, bytes) in [
        word(0x400, SERIAL_PORT), // COM1; COM2 to COM4 and LPT1 to LPT3 do not exist
        word(0x40e, EBDA_SEGMENT),
        word(0x410, EQUIPMENT),
        word(0x413, BASE_MEMORY_KIB),
        word(0x41a, KEYS_START), // head
        word(0x41c, KEYS_START), // tail
        byte(0x449, VIDEO_MODE),
        word(0x44a, COLUMNS),
        word(0x44c, PAGE_BYTES),
        word(0x463, DISPLAY_CONTROLLER),
        word(0x480, KEYS_START),
        word(0x482, KEYS_END),
        byte(0x484, LAST_ROW),
        word(0x485, CHARACTER_LINES),
        byte(ebda, EBDA_KIB),
    ] {
        memory
            .write_slice(&bytes, GuestAddress(at))
            .map_err(|source| SetupError::Memory {
                what: "the BIOS data area",
                source,
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MapKind, MemoryLayout};

    fn written() -> (MemoryLayout, GuestRam) {
        let layout = MemoryLayout::new(4 << 20).unwrap();
        let memory = layout.allocate().unwrap();
        write_bios_data(&memory).unwrap();
        (layout, memory)
    }

    fn word(memory: &GuestRam, at: u64) -> u16 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn the_base_memory_ends_where_the_ebda_begins_and_the_memory_map_says_so() {
        let (layout, memory) = written();
        assert_eq!(word(&memory, 0x413), 639);
        let ebda = u64::from(word(&memory, 0x40e)) << 4;
        assert_eq!(ebda, 639 * 1024);
        let kib: u8 = memory.read_obj(GuestAddress(ebda)).unwrap();
        let map = layout.map();
        assert_eq!((map[0].range.clone(), map[0].kind), (0..ebda, MapKind::Ram));
        let reserved = ebda..ebda + u64::from(kib) * 1024;
        assert_eq!(
            (map[1].range.clone(), map[1].kind),
            (reserved, MapKind::Reserved)
        );
        assert_eq!(map[1].range.end, 0xa_0000);
    }

    #[test]
    fn kernels_find_com1_and_an_80_column_screen_and_no_other_port_or_disk() {
        let (_, memory) = written();
        let ports: Vec<u16> = (0..7).map(|n| word(&memory, 0x400 + 2 * n)).collect();
        assert_eq!(ports, [0x3f8, 0, 0, 0, 0, 0, 0]);
        assert_eq!(word(&memory, 0x410), 0x0222, "FPU, color, one serial port");
        assert_eq!(word(&memory, 0x44a), 80);
        assert_eq!(word(&memory, 0x463), 0x3d4);
        assert_eq!(word(&memory, 0x475) & 0xff, 0, "hard disks");
    }

    #[test]
    fn the_keyboards_buffer_is_empty_and_has_a_place() {
        let (_, memory) = written();
        assert_eq!(word(&memory, 0x41a), word(&memory, 0x41c));
        let bounds = word(&memory, 0x480)..word(&memory, 0x482);
        assert!(bounds.contains(&word(&memory, 0x41a)));
        assert_eq!(bounds.len(), 32);
    }

    #[test]
    fn the_interrupt_vectors_are_left_alone() {
        let memory = MemoryLayout::new(4 << 20).unwrap().allocate().unwrap();
        memory.write_slice(&[0x5a; 0x400], GuestAddress(0)).unwrap();
        write_bios_data(&memory).unwrap();
        let mut vectors = [0; 0x400];
        memory.read_slice(&mut vectors, GuestAddress(0)).unwrap();
        assert_eq!(vectors, [0x5a; 0x400]);
    }
}

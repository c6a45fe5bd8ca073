//! The Intel MP table (MultiProcessor Specification 1.4, chapter 4): how a kernel without ACPI
//! finds the other processors and the wiring of interrupts. Debian's generic kernel uses it with
//! `acpi=off`; Debian's cloud kernel has no code for it.

use intr_controller::routing::GsiRouter;
use thiserror::Error;
use vm_memory::Bytes;

use crate::layout;
use crate::memory::GuestRam;

/// The most processors that 8-bit APIC ids can name, with one id left for the IOAPIC and 0xff for
/// broadcasts.
pub const MAX_CPUS: u16 = 254;

/// The MP table could not be written.
#[derive(Debug, Error)]
pub enum MpTableError {
    /// More processors than APIC ids.
    #[error("an MP table has room for {MAX_CPUS} processors, not {0}; choose fewer --cpus")]
    TooManyCpus(u16),
    /// The memory could not be written.
    #[error("cannot write the MP table into the guest's memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

const SPEC_REVISION: u8 = 4;
/// APIC version of integrated APICs (SDM 3A 11.4.8).
const LOCAL_APIC_VERSION: u8 = 0x14;
/// 82093AA version register.
const IOAPIC_VERSION: u8 = 0x11;
/// IOAPIC pins, and as many ISA interrupts.
const ISA_IRQS: u8 = 16;
/// The PIT's ISA interrupt.
const TIMER_IRQ: u8 = 0;
/// The ISA interrupt at which the second 8259 is connected to the first.
const CASCADE: u8 = 2;

/// Entry types (table 4-3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Processor flags: usable; the bootstrap processor (4.3.1).
const ENABLED: u8 = 1;
const BOOTSTRAP: u8 = 2;

/// Interrupt types (4.3.4).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Local interrupt entries that concern every local APIC.
const ALL_APICS: u8 = 0xff;

/// The configuration table for `cpus` processors.
fn table(cpus: u8) -> Vec<u8> {
    let ioapic_id = cpus;
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in 0..cpus {
        let flags = if id == 0 {
            ENABLED | BOOTSTRAP
        } else {
            ENABLED
        };
        let mut entry = vec![PROCESSOR, id, LOCAL_APIC_VERSION, flags];
        // CPU signature (family 6), feature flags (FPU, CX8, APIC), 8 reserved bytes.
        entry.extend(0x600_u32.to_le_bytes());
        entry.extend(0x301_u32.to_le_bytes());
        entry.extend([0; 8]);
        entries.push(entry);
    }
    entries.push([&[BUS, 0][..], b"ISA   "].concat());
    let mut ioapic = vec![IOAPIC, ioapic_id, IOAPIC_VERSION, ENABLED];
    ioapic.extend(layout::IOAPIC.to_le_bytes());
    entries.push(ioapic);
    // ISA interrupt n arrives at pin n, but the PIT's 0 at pin 2, as in every PC
    // (`GsiRouter::pc_entries`). ISA interrupt 2 is the second 8259's.
    for irq in (0..ISA_IRQS).filter(|&irq| irq != CASCADE) {
        let pin = if irq == TIMER_IRQ {
            GsiRouter::PC_TIMER_PIN
        } else {
            irq
        };
        // Polarity and trigger "conform to the bus": high and edge for ISA.
        entries.push(vec![IO_INTERRUPT, INT, 0, 0, 0, irq, ioapic_id, pin]);
    }
    // LINT0 is the 8259's interrupt on the bootstrap processor, LINT1 the NMI on all (4.3.5).
    entries.push(vec![LOCAL_INTERRUPT, EXT_INT, 0, 0, 0, 0, 0, 0]);
    entries.push(vec![LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, ALL_APICS, 1]);

    let body = entries.concat();
    let length = u16::try_from(HEADER + body.len()).unwrap_or(u16::MAX);
    let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
    let mut table = Vec::with_capacity(HEADER + body.len());
    table.extend(b"PCMP");
    table.extend(length.to_le_bytes());
    table.extend([SPEC_REVISION, 0]);
    table.extend(b"RUSTVMM ");
    table.extend(b"VMMREFERENCE");
    table.extend([0; 6]); // no OEM table: pointer and size
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]); // no extended table
    table.extend(body);
    set_checksum(&mut table, 7);
    table
}

/// Bytes before the entries (4.2).
const HEADER: usize = 44;

/// The floating pointer (4.1).
fn pointer() -> Vec<u8> {
    let table = u32::try_from(layout::MP_TABLE.0).unwrap_or(0);
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(table.to_le_bytes());
    // Length in 16-byte units, revision, checksum; feature byte 0: there is a table; no IMCR.
    pointer.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut pointer, 10);
    pointer
}

/// Makes all bytes add up to zero.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    if let Some(slot) = bytes.get_mut(at) {
        *slot = slot.wrapping_sub(sum);
    }
}

/// Writes the table, and the pointer by which kernels find it.
///
/// # Errors
/// [`MpTableError::TooManyCpus`] beyond [`MAX_CPUS`]; [`MpTableError::Memory`] if the memory does
/// not reach that far.
pub fn write_mp_table(memory: &GuestRam, cpus: u16) -> Result<(), MpTableError> {
    let count = u8::try_from(cpus)
        .ok()
        .filter(|&count| u16::from(count) <= MAX_CPUS)
        .ok_or(MpTableError::TooManyCpus(cpus))?;
    memory
        .write_slice(&table(count), layout::MP_TABLE)
        .and_then(|()| memory.write_slice(&pointer(), layout::MP_POINTER))
        .map_err(MpTableError::Memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryLayout;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
    }

    #[test]
    fn a_kernel_that_scans_the_bios_area_finds_every_processor() {
        let memory = MemoryLayout::new(4 << 20).unwrap().allocate().unwrap();
        write_mp_table(&memory, 3).unwrap();
        // As Linux's `mpf_scan` does: the BIOS's 64 KiB, every 16 bytes.
        let mut bios = vec![0; 0x1_0000];
        memory
            .read_slice(&mut bios, vm_memory::GuestAddress(0xf_0000))
            .unwrap();
        let found = bios
            .chunks(16)
            .find(|chunk| chunk.starts_with(b"_MP_"))
            .expect("a floating pointer");
        assert_eq!(sum(found), 0);
        let address = u32::from_le_bytes(found[4..8].try_into().unwrap());
        let mut header = vec![0; 44];
        memory
            .read_slice(&mut header, vm_memory::GuestAddress(u64::from(address)))
            .unwrap();
        assert_eq!(&header[..4], b"PCMP");
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let count = u16::from_le_bytes([header[34], header[35]]);
        let mut table = vec![0; length];
        memory
            .read_slice(&mut table, vm_memory::GuestAddress(u64::from(address)))
            .unwrap();
        assert_eq!(sum(&table), 0);
        let mut at = 44;
        let mut apic_ids = Vec::new();
        for _ in 0..count {
            if table[at] == 0 {
                apic_ids.push(table[at + 1]);
                at += 20;
            } else {
                at += 8;
            }
        }
        assert_eq!(at, length, "the entries fill the table exactly");
        assert_eq!(apic_ids, [0, 1, 2]);
    }

    #[test]
    fn isa_interrupt_n_is_at_pin_n_but_the_pit_at_pin_2() {
        let table = table(1);
        // The header, a processor (20 bytes), a bus and an IOAPIC (8 each).
        let interrupts: Vec<(u8, u8)> = table[44 + 20 + 8 + 8..]
            .chunks(8)
            .filter(|entry| entry[0] == 3)
            .map(|entry| {
                assert_eq!(entry[1..5], [0, 0, 0, 0], "INT, of the bus, ISA");
                assert_eq!(entry[6], 1, "the IOAPIC's id");
                (entry[5], entry[7])
            })
            .collect();
        let expected: Vec<_> = [(0, 2), (1, 1)]
            .into_iter()
            .chain((3..16).map(|irq| (irq, irq)))
            .collect();
        assert_eq!(interrupts, expected);
    }

    #[test]
    fn the_largest_table_ends_below_its_pointer() {
        let room = layout::MP_POINTER.0 - layout::MP_TABLE.0;
        assert!(table(254).len() as u64 <= room);
    }

    #[test]
    fn more_processors_than_apic_ids_are_refused() {
        let memory = MemoryLayout::new(4 << 20).unwrap().allocate().unwrap();
        for cpus in [255, 256, u16::MAX] {
            assert!(matches!(
                write_mp_table(&memory, cpus),
                Err(MpTableError::TooManyCpus(n)) if n == cpus
            ));
        }
    }
}

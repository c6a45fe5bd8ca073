//! The IOAPIC's registers (82093AA, 3.1 and 3.2).

use crate::prelude::*;

use super::MODE;

/// What a register reads as after a write.
fn after_write(register: u8, value: u32) -> u64 {
    let mut p = Program::new(MODE);
    p.ioapic_write(register, value);
    let read = p.ioapic_read(register);
    let log = p.run();
    log[read]
}

#[test]
fn the_version_tells_24_pins() {
    let mut p = Program::new(MODE);
    let version = p.ioapic_read(IOAPIC_VERSION);
    let log = p.run();
    assert_eq!(log[version] >> 16 & 0xff, 23);
}

#[test]
fn the_version_tells_whether_there_is_an_eoi_register() {
    let mut p = Program::new(MODE);
    let version = p.ioapic_read(IOAPIC_VERSION);
    let log = p.run();
    let kvm = MODE.deviates(
        Chip::Ioapic,
        "it is a 82093AA, version 0x11, which has no EOI register (ioapic.h, IOAPIC_VERSION_ID)",
    );
    assert_eq!(log[version] & 0xff, if kvm { 0x11 } else { 0x20 });
}

#[test]
fn the_version_cannot_be_written() {
    let mut p = Program::new(MODE);
    let before = p.ioapic_read(IOAPIC_VERSION);
    p.ioapic_write(IOAPIC_VERSION, 0xffff_ffff);
    let after = p.ioapic_read(IOAPIC_VERSION);
    let log = p.run();
    assert_eq!(log[before], log[after]);
}

#[test]
fn the_id_keeps_bits_24_to_27() {
    assert_eq!(after_write(IOAPIC_ID, 0xffff_ffff), 0x0f00_0000);
    assert_eq!(after_write(IOAPIC_ID, 0x0500_0000), 0x0500_0000);
}

#[test]
fn the_arbitration_id_is_the_id() {
    let mut p = Program::new(MODE);
    p.ioapic_write(IOAPIC_ID, 0x0600_0000);
    let arb = p.ioapic_read(IOAPIC_ARB);
    p.ioapic_write(IOAPIC_ARB, 0x0300_0000);
    let written = p.ioapic_read(IOAPIC_ARB);
    let id = p.ioapic_read(IOAPIC_ID);
    let log = p.run();
    assert_eq!(log[arb], 0x0600_0000);
    assert_eq!((log[written], log[id]), (0x0600_0000, 0x0600_0000));
}

#[test]
fn the_index_reads_as_written() {
    let mut p = Program::new(MODE);
    p.write(Size::Dword, IOREGSEL, 0x23);
    let index = p.read(Size::Dword, IOREGSEL);
    p.write(Size::Dword, IOREGSEL, 0xffff_ff3f);
    let byte = p.read(Size::Dword, IOREGSEL);
    let log = p.run();
    assert_eq!((log[index], log[byte]), (0x23, 0x3f));
}

#[test]
fn an_index_beyond_the_last_register_reads_as_all_ones() {
    let mut p = Program::new(MODE);
    let reads = [0x03, 0x0f, 0x40, 0x7f, 0xff].map(|register| p.ioapic_read(register));
    let log = p.run();
    assert_eq!(reads.map(|read| log[read]), [0xffff_ffff; 5]);
}

#[test]
fn an_index_beyond_the_last_register_takes_writes_without_effect() {
    let mut p = Program::new(MODE);
    for register in [0x03, 0x0f, 0x40, 0xff] {
        p.ioapic_write(register, 0x41);
    }
    let first = p.ioapic_read(rte_low(0));
    let last = p.ioapic_read(rte_low(23));
    let log = p.run();
    assert_eq!((log[first], log[last]), (0x1_0000, 0x1_0000));
}

#[test]
fn all_pins_are_masked_at_reset() {
    let mut p = Program::new(MODE);
    let entries: Vec<_> = (0..PINS)
        .map(|pin| (p.ioapic_read(rte_low(pin)), p.ioapic_read(rte_high(pin))))
        .collect();
    let log = p.run();
    for (low, high) in entries {
        assert_eq!((log[low], log[high]), (0x1_0000, 0));
    }
}

/// Cloud Hypervisor's IOAPIC had an off-by-one error here.
#[test]
fn each_pin_has_its_own_entry() {
    let mut p = Program::new(MODE);
    for pin in 0..PINS {
        p.rte(
            pin,
            u64::from(0x30 + pin) | RTE_MASKED | u64::from(pin) << 56,
        );
    }
    let entries: Vec<_> = (0..PINS)
        .map(|pin| (p.ioapic_read(rte_low(pin)), p.ioapic_read(rte_high(pin))))
        .collect();
    let log = p.run();
    for (pin, (low, high)) in (0..).zip(entries) {
        assert_eq!(log[low], 0x1_0030 + pin);
        assert_eq!(log[high], pin << 24);
    }
}

#[test]
fn an_entry_keeps_what_can_be_written() {
    // All but delivery status and remote IRR.
    assert_eq!(after_write(rte_low(5), 0x0001_afff), 0x0001_afff);
}

#[test]
fn delivery_status_and_remote_irr_are_read_only() {
    let value = after_write(rte_low(5), 0x0001_ffff);
    assert_eq!(value & (RTE_BUSY | RTE_REMOTE_IRR), 0);
}

#[test]
fn reserved_bits_of_an_entry_read_as_0() {
    let low = after_write(rte_low(5), 0xffff_afff);
    let high = after_write(rte_high(5), 0xffff_ffff);
    if MODE.deviates(
        Chip::Ioapic,
        "reserved bits of an entry can be written (ioapic.c, ioapic_write_indirect)",
    ) {
        assert_eq!((low, high), (0xffff_afff, 0xffff_ffff));
    } else {
        assert_eq!(low, 0x0001_afff);
        // Bits 23:16 may be an extended destination id.
        assert_eq!(high & 0xff00_ffff, 0xff00_0000);
    }
}

#[test]
fn the_halves_of_an_entry_are_independent() {
    let mut p = Program::new(MODE);
    p.ioapic_write(rte_low(7), 0x1_0041);
    p.ioapic_write(rte_high(7), 0x0200_0000);
    let low = p.ioapic_read(rte_low(7));
    p.ioapic_write(rte_low(7), 0x1_0042);
    let high = p.ioapic_read(rte_high(7));
    let log = p.run();
    assert_eq!((log[low], log[high]), (0x1_0041, 0x0200_0000));
}

/// OpenVMM's IOAPIC panicked at reads of eight bytes.
#[test]
fn accesses_of_any_size_and_alignment_end() {
    let mut p = Program::new(MODE);
    for size in [Size::Byte, Size::Word, Size::Dword, Size::Qword] {
        for offset in [0x00, 0x10, 0x20, 0x40, 0x08, 0xf8] {
            p.read(size, IOREGSEL + offset);
            p.write(size, IOREGSEL + offset, 0x03);
        }
    }
    let version = p.ioapic_read(IOAPIC_VERSION);
    let log = p.run();
    assert_eq!(log[version] >> 16 & 0xff, 23);
}

#[test]
fn a_byte_selects_and_32_bits_are_read() {
    let mut p = Program::new(MODE);
    p.write(Size::Byte, IOREGSEL, u64::from(IOAPIC_VERSION));
    let version = p.read(Size::Dword, IOWIN);
    let log = p.run();
    assert_eq!(log[version] >> 16 & 0xff, 23);
}

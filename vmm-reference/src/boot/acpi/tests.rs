use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::memory::MemoryLayout;

// The tests keep their own copy of every address and offset.
const BASE: u64 = 0xe_0000;

/// A processor that a kernel finds: its APIC id, its UID, and whether it is an x2APIC.
type Cpu = (u32, u32, bool);

/// Reads tables as a kernel does: from addresses, checking each checksum.
struct Reader(Vec<u8>);

impl Reader {
    fn at(&self, address: u64, length: usize) -> &[u8] {
        let offset = usize::try_from(address.checked_sub(BASE).unwrap()).unwrap();
        &self.0[offset..offset + length]
    }

    fn u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.at(address, 2).try_into().unwrap())
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.at(address, 4).try_into().unwrap())
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.at(address, 8).try_into().unwrap())
    }

    fn checked(&self, address: u64, length: usize) -> &[u8] {
        let bytes = self.at(address, length);
        let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        assert_eq!(sum, 0, "checksum of what is at {address:#x}");
        bytes
    }

    /// A table with the common header.
    fn table(&self, address: u64, signature: &[u8; 4]) -> &[u8] {
        assert_eq!(self.at(address, 4), signature, "{address:#x}");
        let length = usize::try_from(self.u32(address + 4)).unwrap();
        assert_eq!(self.at(address + 10, 6), b"RUSTVM");
        self.checked(address, length)
    }

    /// From the RSDP to the two tables that the XSDT names.
    fn fadt_and_madt(&self) -> (u64, u64) {
        assert_eq!(self.at(BASE, 8), b"RSD PTR ");
        self.checked(BASE, 20);
        assert_eq!(self.at(BASE + 15, 1), [2], "revision");
        assert_eq!(self.u32(BASE + 20), 36, "length");
        self.checked(BASE, 36);
        let xsdt = self.u64(BASE + 24);
        assert_eq!(self.table(xsdt, b"XSDT").len(), 36 + 2 * 8);
        let (fadt, madt) = (self.u64(xsdt + 36), self.u64(xsdt + 44));
        // The same for kernels that know only ACPI 1.0.
        let rsdt = u64::from(self.u32(BASE + 16));
        assert_eq!(self.table(rsdt, b"RSDT").len(), 36 + 2 * 4);
        let old = (self.u32(rsdt + 36).into(), self.u32(rsdt + 40).into());
        assert_eq!(old, (fadt, madt));
        self.table(fadt, b"FACP");
        self.table(madt, b"APIC");
        (fadt, madt)
    }

    fn dsdt(&self) -> &[u8] {
        let (fadt, _) = self.fadt_and_madt();
        self.table(self.u64(fadt + 140), b"DSDT")
    }

    /// The entries of the MADT: type, and what follows the length.
    fn madt_entries(&self) -> Vec<(u8, &[u8])> {
        let (_, madt) = self.fadt_and_madt();
        let mut rest = &self.table(madt, b"APIC")[44..];
        let mut entries = Vec::new();
        while let [kind, length, ..] = *rest {
            let (entry, behind) = rest.split_at(usize::from(length));
            entries.push((kind, &entry[2..]));
            rest = behind;
        }
        assert!(rest.is_empty(), "the entries fill the table exactly");
        entries
    }

    fn cpus(&self) -> Vec<Cpu> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        self.madt_entries()
            .into_iter()
            .filter_map(|(kind, entry)| match kind {
                0 => {
                    assert_eq!(word(&entry[2..]), 1, "enabled");
                    Some((u32::from(entry[1]), u32::from(entry[0]), false))
                }
                9 => {
                    assert_eq!(word(&entry[6..]), 1, "enabled");
                    Some((word(&entry[2..]), word(&entry[10..]), true))
                }
                _ => None,
            })
            .collect()
    }
}

fn read(cpus: u16) -> Reader {
    Reader(tables(cpus).unwrap())
}

#[test]
fn a_kernel_that_scans_the_bios_area_finds_the_tables() {
    let memory = MemoryLayout::new(4 << 20).unwrap().allocate().unwrap();
    write_acpi(&memory, 2).unwrap();
    // As ACPICA's `acpi_find_root_pointer` does: 128 KiB, every 16 bytes.
    let mut bios = vec![0; 0x2_0000];
    memory
        .read_slice(&mut bios, GuestAddress(0xe_0000))
        .unwrap();
    let found = bios
        .chunks(16)
        .position(|chunk| chunk.starts_with(b"RSD PTR "));
    assert_eq!(found, Some(0));
    assert_eq!(Reader(bios).cpus().len(), 2);
}

#[test]
fn the_fixed_registers_are_where_the_devices_are() {
    let tables = read(1);
    let (fadt, _) = tables.fadt_and_madt();
    let byte = |offset| tables.at(fadt + offset, 1)[0];
    // System I/O, width in bits, offset, access size, address.
    let register = |offset| {
        let [space, width, bit, access] = *tables.at(fadt + offset, 4) else {
            panic!("4 bytes")
        };
        (space, width, bit, access, tables.u64(fadt + offset + 4))
    };
    assert_eq!(tables.u16(fadt + 46), 9, "SCI_INT");
    assert_eq!(tables.u32(fadt + 48), 0, "SMI_CMD: always in ACPI mode");
    assert_eq!((tables.u32(fadt + 56), byte(88)), (0x600, 4), "PM1a event");
    assert_eq!(register(148), (1, 32, 0, 2, 0x600), "X_PM1a_EVT_BLK");
    assert_eq!(
        (tables.u32(fadt + 64), byte(89)),
        (0x604, 2),
        "PM1a control"
    );
    assert_eq!(register(172), (1, 16, 0, 2, 0x604), "X_PM1a_CNT_BLK");
    assert_eq!((tables.u32(fadt + 76), byte(91)), (0, 0), "no PM timer");
    assert_eq!(
        (register(116), byte(128)),
        ((1, 8, 0, 1, 0xcf9), 6),
        "reset"
    );
    assert_eq!(tables.u16(fadt + 109), 0b101, "IAPC_BOOT_ARCH");
    assert_eq!(tables.at(fadt + 108, 1), [0x32], "CENTURY");
    let flags = tables.u32(fadt + 112);
    assert_eq!(
        flags,
        1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 12
    );
    assert_eq!(flags >> 20 & 1, 0, "not hardware-reduced");
}

#[test]
fn both_addresses_of_the_dsdt_agree_and_there_is_one_facs() {
    let tables = read(1);
    let (fadt, _) = tables.fadt_and_madt();
    assert_eq!(u64::from(tables.u32(fadt + 40)), tables.u64(fadt + 140));
    let facs = u64::from(tables.u32(fadt + 36));
    assert_eq!(tables.u64(fadt + 132), 0, "X_FIRMWARE_CTRL");
    assert_eq!(facs % 64, 0);
    assert_eq!(tables.at(facs, 4), b"FACS");
    assert_eq!(tables.u32(facs + 4), 64);
    assert_eq!(tables.u32(facs + 16), 0, "the global lock is free");
}

#[test]
fn the_dsdt_is_this_byte_code() {
    let tables = read(1);
    let dsdt = tables.dsdt();
    assert_eq!(dsdt[8], 2, "64-bit integers");
    // By hand from ACPI 6.5, 20.2: op code, package length, name or value.
    let s5 = [b"\x08_S5_\x12".as_slice(), &[8, 4, 0x0a, 5, 0x0a, 5, 0, 0]].concat();
    let crs = [
        &[0x47_u8, 1, 0xf8, 3, 0xf8, 3, 1, 8][..], // I/O ports, 16 bits decoded
        &[0x89, 6, 0, 0b0011, 1, 4, 0, 0, 0],      // interrupt: consumer, edge, high
        &[0x79, 0],                                // end
    ]
    .concat();
    let crs = [&[0x11, 22, 0x0a, 19][..], &crs].concat();
    let device = [
        b"COM1".as_slice(),
        b"\x08_HID\x0c\x41\xd0\x05\x01",
        b"\x08_UID\x01",
        b"\x08_STA\x0a\x0f",
        b"\x08_CRS",
        &crs,
    ]
    .concat();
    let clock = [
        b"RTC_".as_slice(),
        b"\x08_HID\x0c\x41\xd0\x0b\x00",
        b"\x08_STA\x0a\x0f",
        b"\x08_CRS\x11\x0d\x0a\x0a",
        &[0x47, 1, 0x70, 0, 0x70, 0, 1, 2], // I/O ports
        &[0x79, 0],                         // end
    ]
    .concat();
    // A length counts itself. It has one byte up to 63; then a second one follows the low four bits.
    let length = |bytes: &[u8]| u8::try_from(bytes.len() + 1).unwrap();
    let device = [&[0x5b, 0x82, length(&device)][..], &device].concat();
    let clock = [&[0x5b, 0x82, length(&clock)][..], &clock].concat();
    let scope = [b"_SB_".as_slice(), &device, &clock].concat();
    let total = u8::try_from(scope.len() + 2).unwrap();
    let scope = [&[0x10, 1 << 6 | total & 0xf, total >> 4][..], &scope].concat();
    assert_eq!(dsdt[36..], [s5, scope].concat());
}

#[test]
fn interrupts_are_wired_as_in_a_pc() {
    let tables = read(3);
    let (_, madt) = tables.fadt_and_madt();
    assert_eq!(tables.u32(madt + 36), 0xfee0_0000);
    assert_eq!(tables.u32(madt + 40), 1, "PCAT_COMPAT");
    let others: Vec<_> = tables
        .madt_entries()
        .into_iter()
        .filter(|(kind, _)| !matches!(kind, 0 | 9))
        .collect();
    let expected: [(u8, &[u8]); 4] = [
        // The IOAPIC: id, address, first GSI.
        (1, &[0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
        // ISA 0, the PIT, arrives at pin 2, with the polarity and trigger of the bus.
        (2, &[0, 0, 2, 0, 0, 0, 0, 0]),
        // ISA 9 arrives at pin 9, level and high. Each other pin is its ISA interrupt's.
        (2, &[0, 9, 9, 0, 0, 0, 0x0d, 0]),
        // The NMI at LINT1 of all.
        (4, &[0xff, 0, 0, 1]),
    ];
    assert_eq!(others, expected);
}

#[test]
fn processors_from_255_on_are_x2apics_with_an_nmi_of_their_own() {
    for (cpus, x2apics) in [(254, 0), (255, 0), (256, 1), (1000, 745)] {
        let tables = read(cpus);
        let found = tables.cpus();
        assert_eq!(found.iter().filter(|cpu| cpu.2).count(), x2apics, "{cpus}");
        let nmi = tables
            .madt_entries()
            .into_iter()
            .find(|entry| entry.0 == 10);
        let expected: &[u8] = &[0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];
        assert_eq!(nmi, (x2apics > 0).then_some((10, expected)), "{cpus}");
    }
}

#[test]
fn more_processors_than_there_is_room_for_are_refused() {
    let counts: Vec<u16> = (1..=u16::MAX).collect();
    let most = counts[counts.partition_point(|&cpus| tables(cpus).is_ok()) - 1];
    assert!(most >= 4096, "KVM's own limit");
    for cpus in [most + 1, u16::MAX] {
        assert!(matches!(
            tables(cpus),
            Err(AcpiError::TooManyCpus { cpus: asked, needs, room })
                if asked == cpus && needs > room && room == 0xf_e000 - BASE
        ));
    }
}

#[test]
fn memory_that_ends_below_the_tables_is_an_error() {
    let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0xe_0010)]).unwrap();
    assert!(matches!(write_acpi(&memory, 1), Err(AcpiError::Memory(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every table is found from the RSDP with its checksum right, none overlaps another, and each
    /// processor is listed once.
    #[test]
    fn every_number_of_processors_is_listed_whole(cpus in 1_u16..=4096) {
        let tables = read(cpus);
        let listed = tables.cpus();
        let expected: Vec<Cpu> = (0..u32::from(cpus)).map(|id| (id, id, id >= 255)).collect();
        prop_assert_eq!(listed, expected);

        let (fadt, madt) = tables.fadt_and_madt();
        let (xsdt, dsdt) = (tables.u64(BASE + 24), tables.u64(fadt + 140));
        let facs = u64::from(tables.u32(fadt + 36));
        let mut ranges: Vec<_> = [xsdt, dsdt, fadt, madt, facs]
            .map(|table| table..table + u64::from(tables.u32(table + 4)))
            .into_iter()
            .chain(std::iter::once(BASE..BASE + 36))
            .collect();
        ranges.sort_by_key(|range| range.start);
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].end <= pair[1].start, "{:x?}", pair);
        }
        prop_assert!(ranges.last().is_some_and(|last| last.end <= 0xf_e000));
    }
}

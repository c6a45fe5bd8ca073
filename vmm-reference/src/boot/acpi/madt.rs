//! The MADT: processors and the wiring of interrupts (ACPI 6.5, 5.2.12).

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use intr_controller::routing::GsiRouter;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::devices::SCI_IRQ;
use crate::layout;

/// The revision that came with ACPI 6.5.
const REVISION: u8 = 6;
/// The header, the local APICs' address and the flags: what precedes the entries.
const HEADER: u32 = 44;
const LOCAL_APIC_ADDRESS: usize = 36;
const FLAGS: usize = 40;
/// PCAT_COMPAT: there is a pair of 8259s too. A kernel that uses the APICs masks them.
const PCAT_COMPAT: u32 = 1;

/// Entries that the crate does not know (5.2.12.5, .7, .12, .13): type and length.
const SOURCE_OVERRIDE: [u8; 2] = [2, 10];
const LOCAL_APIC_NMI: [u8; 2] = [4, 6];
const LOCAL_X2APIC: [u8; 2] = [9, 16];
const LOCAL_X2APIC_NMI: [u8; 2] = [10, 12];
/// All processors, in an NMI entry.
const ALL: u8 = 0xff;
const ALL_X2: u32 = 0xffff_ffff;

/// MPS INTI flags (table 5.26): level-triggered, active high.
const LEVEL_HIGH: u16 = 0b11 << 2 | 0b01;
/// MPS INTI flags: as the bus has it.
const CONFORMS: u16 = 0;
/// The NMI arrives at LINT1 (MP specification 1.4, 3.6.2.2).
const NMI_LINT: u8 = 1;
const ISA: u8 = 0;
/// The PIT's ISA interrupt.
const TIMER_IRQ: u8 = 0;

/// KVM's IOAPIC has this id at reset. With APICs on a front-side bus it may be a processor's, too.
const IOAPIC_ID: u8 = 0;

/// The MADT of `cpus` processors, whose APIC ids and UIDs are their numbers.
pub(super) fn madt(cpus: u16) -> Sdt {
    let mut entries = Vec::new();
    for id in 0..cpus {
        match u8::try_from(id) {
            // 255 addresses all xAPICs, so from there on a processor has an x2APIC (5.2.12.12).
            Ok(id) if id != ALL => {
                ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut entries);
            }
            _ => entries.extend(local_x2apic(u32::from(id))),
        }
    }
    IoApic::new(IOAPIC_ID, layout::IOAPIC, 0).to_aml_bytes(&mut entries);
    // ISA interrupt n arrives at pin n, which needs no entry, but for two. The PIT's is at pin 2, as in
    // every PC (`GsiRouter::pc_entries`). The SCI is no ISA interrupt: it is level-triggered (4.8.1.2).
    source_override(&mut entries, TIMER_IRQ, GsiRouter::PC_TIMER_PIN, CONFORMS);
    source_override(&mut entries, SCI_IRQ, SCI_IRQ, LEVEL_HIGH);
    entries.extend(LOCAL_APIC_NMI);
    entries.push(ALL);
    entries.extend(CONFORMS.to_le_bytes());
    entries.push(NMI_LINT);
    if cpus > u16::from(ALL) {
        entries.extend(LOCAL_X2APIC_NMI);
        entries.extend(CONFORMS.to_le_bytes());
        entries.extend(ALL_X2.to_le_bytes());
        entries.extend([NMI_LINT, 0, 0, 0]);
    }

    let mut table = Sdt::new(
        *b"APIC",
        HEADER,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.write_u32(LOCAL_APIC_ADDRESS, layout::LOCAL_APIC);
    table.write_u32(FLAGS, PCAT_COMPAT);
    table.append_slice(&entries);
    table
}

/// An interrupt source override: an ISA interrupt, and the global system interrupt, here a pin of the
/// IOAPIC, at which it arrives.
fn source_override(entries: &mut Vec<u8>, irq: u8, pin: u8, flags: u16) {
    entries.extend(SOURCE_OVERRIDE);
    entries.extend([ISA, irq]);
    entries.extend(u32::from(pin).to_le_bytes());
    entries.extend(flags.to_le_bytes());
}

/// Reserved bytes, the APIC id, the flag "enabled", the UID.
fn local_x2apic(id: u32) -> [u8; 16] {
    let mut entry = [0; 16];
    let fields = [
        &LOCAL_X2APIC[..],
        &[0; 2],
        &id.to_le_bytes(),
        &1_u32.to_le_bytes(),
        &id.to_le_bytes(),
    ];
    for (slot, &byte) in entry.iter_mut().zip(fields.into_iter().flatten()) {
        *slot = byte;
    }
    entry
}

//! The DSDT: what ACPI describes in byte code (ACPI 6.5, chapter 20).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::devices::{RTC_PORT, SERIAL_IRQ, SERIAL_PORT};

/// 2 or more: integers have 64 bits (20.1).
const REVISION: u8 = 2;
/// A table of nothing but its header (5.2.6).
const HEADER: u32 = 36;
/// What the kernel writes to SLP_TYP to power off. Any value does: there is no other sleep.
const SLP_TYP_S5: u8 = 5;
/// Present, enabled, shown, working (6.3.7).
const STATUS_PRESENT: u8 = 0xf;

/// COM1, the clock chip, and power-off.
pub(super) fn dsdt() -> Sdt {
    let mut code = Vec::new();
    // SLP_TYP for PM1a and PM1b, and two reserved values (7.4.2).
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&SLP_TYP_S5, &SLP_TYP_S5, &0_u8, &0_u8]),
    )
    .to_aml_bytes(&mut code);
    // A 16550A-compatible serial port.
    let serial_id = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let serial_uid = Name::new(Path::new("_UID"), &1_u8);
    let present = Name::new(Path::new("_STA"), &STATUS_PRESENT);
    let serial_ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    // For this device, edge-triggered, active high, not shared: ISA's.
    let serial_interrupt = Interrupt::new(true, true, false, false, SERIAL_IRQ.0);
    let serial_resources = ResourceTemplate::new(vec![&serial_ports, &serial_interrupt]);
    let serial_resources = Name::new(Path::new("_CRS"), &serial_resources);
    let serial = Device::new(
        Path::new("COM1"),
        vec![&serial_id, &serial_uid, &present, &serial_resources],
    );
    // A PC/AT clock, which has no interrupt here.
    let clock_id = Name::new(Path::new("_HID"), &EISAName::new("PNP0B00"));
    let clock_ports = IO::new(RTC_PORT, RTC_PORT, 1, 2);
    let clock_resources = ResourceTemplate::new(vec![&clock_ports]);
    let clock_resources = Name::new(Path::new("_CRS"), &clock_resources);
    let clock = Device::new(
        Path::new("RTC_"),
        vec![&clock_id, &present, &clock_resources],
    );
    Scope::new(Path::new("_SB_"), vec![&serial, &clock]).to_aml_bytes(&mut code);

    let mut table = Sdt::new(
        *b"DSDT",
        HEADER,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&code);
    table
}

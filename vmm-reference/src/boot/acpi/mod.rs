//! The ACPI tables (ACPI 6.5, chapter 5): how a kernel finds the processors, the wiring of
//! interrupts, COM1, power-off and reset.
//!
//! # Fixed hardware, not hardware-reduced ACPI
//! The machine has the chips of a PC: with `--irqchip kernel` an 8259A pair, an IOAPIC and an 8254.
//! With hardware-reduced ACPI (FADT flag 20) a kernel assumes that they are absent. Linux then uses
//! neither the PIC nor the PIT and has no ISA interrupts (`acpi_generic_reduced_hw_init`), and it
//! depends on a timer whose frequency it knows. Fixed hardware costs two registers, PM1a event and
//! PM1a control, and an interrupt (the SCI) that never comes, because there are no events. There is
//! no PM timer, which is optional since ACPI 5.0: guests have kvmclock
//! or the TSC.
//!
//! # Where they are
//! In the BIOS area, where a kernel finds the RSDP by scanning (5.2.5.1); Linux and PVH kernels also
//! get its address. The memory map has the whole area as reserved.
//!
//! [`tables`] is a pure function of the number of processors.

mod aml;
mod fadt;
mod madt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use thiserror::Error;
use vm_memory::Bytes;

use crate::layout;
use crate::memory::GuestRam;

/// Who made the tables: OEM id, OEM table id and revision of every header (5.2.6).
const OEM_ID: [u8; 6] = *b"RUSTVM";
const OEM_TABLE_ID: [u8; 8] = *b"VMMREFER";
const OEM_REVISION: u32 = 1;

/// The FACS begins on a 64-byte boundary (5.2.10), the RSDP on a 16-byte one (5.2.5.1). The other
/// tables have no rule.
const ALIGNMENT: u64 = 64;

/// The tables could not be written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// More processors than the tables have room for.
    #[error(
        "the ACPI tables of {cpus} processors need {needs} bytes and have {room}; choose fewer --cpus"
    )]
    TooManyCpus {
        /// What was asked for.
        cpus: u16,
        /// What they need.
        needs: u64,
        /// What there is.
        room: u64,
    },
    /// The memory could not be written.
    #[error("cannot write the ACPI tables into the guest's memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// All tables as the bytes from [`layout::RSDP`] on.
///
/// # Errors
/// [`AcpiError::TooManyCpus`] if they do not fit in front of [`layout::ACPI_END`].
pub fn tables(cpus: u16) -> Result<Vec<u8>, AcpiError> {
    let mut area = Area::default();
    // Written last: its content depends on where the others are.
    let rsdp = area.reserve(Rsdp::len());
    let facs = area.append(&FACS::new());
    let dsdt = area.append(&aml::dsdt());
    let fadt = area.append(&fadt::fadt(dsdt, facs));
    let madt = area.append(&madt::madt(cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fadt, madt] {
        xsdt.add_entry(table);
    }
    let xsdt = area.append(&xsdt);
    let rsdt = area.append(&rsdt(&[fadt, madt]));
    area.put(rsdp, &Rsdp::new(OEM_ID, xsdt));
    area.put_rsdt(rsdp, rsdt);

    let needs = area.bytes.len() as u64;
    let room = layout::ACPI_END - layout::RSDP.0;
    if needs > room {
        return Err(AcpiError::TooManyCpus { cpus, needs, room });
    }
    Ok(area.bytes)
}

/// The RSDT (5.2.7), for kernels that know only ACPI 1.0: the XSDT with 32-bit addresses.
fn rsdt(tables: &[u64]) -> Sdt {
    const REVISION: u8 = 1;
    /// A table of nothing but its header (5.2.6).
    const HEADER: u32 = 36;
    let mut rsdt = Sdt::new(
        *b"RSDT",
        HEADER,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    for &table in tables {
        rsdt.append(low(table));
    }
    rsdt
}

/// The lower half of an address: all of it, because the tables are in the first MiB.
fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(0)
}

/// Writes the tables of `cpus` processors.
///
/// # Errors
/// [`AcpiError::TooManyCpus`], or [`AcpiError::Memory`] if the memory does not reach that far.
pub fn write_acpi(memory: &GuestRam, cpus: u16) -> Result<(), AcpiError> {
    memory
        .write_slice(&tables(cpus)?, layout::RSDP)
        .map_err(AcpiError::Memory)
}

/// Bytes that begin at [`layout::RSDP`], and addresses in them.
#[derive(Default)]
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Reserves room for what is written later. Returns its offset.
    fn reserve(&mut self, length: usize) -> usize {
        let offset = self.bytes.len();
        self.bytes.resize(offset + length, 0);
        offset
    }

    /// Adds a table. Returns its guest-physical address.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        while !(self.bytes.len() as u64).is_multiple_of(ALIGNMENT) {
            self.bytes.push(0);
        }
        let address = layout::RSDP.0 + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }

    /// Sets the RSDT's address in the RSDP, and the two checksums (5.2.5.3).
    fn put_rsdt(&mut self, rsdp: usize, rsdt: u64) {
        const CHECKSUM: usize = 8;
        const RSDT_ADDRESS: usize = 16;
        const EXTENDED_CHECKSUM: usize = 32;
        /// What the first checksum covers: ACPI 1.0's RSDP.
        const OLD_LENGTH: usize = 20;
        let Some(bytes) = self.bytes.get_mut(rsdp..) else {
            return;
        };
        for (slot, byte) in bytes
            .iter_mut()
            .skip(RSDT_ADDRESS)
            .zip(low(rsdt).to_le_bytes())
        {
            *slot = byte;
        }
        for (at, covers) in [(CHECKSUM, OLD_LENGTH), (EXTENDED_CHECKSUM, Rsdp::len())] {
            let sum = bytes
                .iter()
                .take(covers)
                .fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
            if let Some(slot) = bytes.get_mut(at) {
                *slot = slot.wrapping_sub(sum);
            }
        }
    }

    /// Writes a table into reserved room.
    fn put(&mut self, offset: usize, table: &dyn Aml) {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        for (slot, byte) in self.bytes.iter_mut().skip(offset).zip(bytes) {
            *slot = byte;
        }
    }
}

#[cfg(test)]
mod tests;

//! How a vCPU starts: the state that each boot protocol requires, the tables that it needs in
//! memory, its CPUID, and the ACPI tables that describe the other vCPUs and the devices, and
//! the BIOS data area.

mod acpi;
mod bios_data;
mod cpuid;
mod data;
mod firmware;
mod mp_table;
mod state;
mod vcpu;

pub use acpi::{AcpiError, tables as acpi_tables, write_acpi};
pub use bios_data::write_bios_data;
pub(crate) use bios_data::{BASE_MEMORY_KIB, EQUIPMENT_LOW};
pub use data::BootData;
pub(crate) use firmware::write_firmware;
pub use mp_table::{MAX_CPUS, MpTableError, write_mp_table};
pub use state::Entry;
pub use vcpu::{SetupError, prepare_memory};

pub(crate) use cpuid::CpuidTables;
pub(crate) use vcpu::setup_vcpu;

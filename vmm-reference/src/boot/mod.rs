//! How a vCPU starts: the state each boot protocol asks for, the tables that it needs in memory,
//! the CPUID it sees, and the ACPI tables that tell a kernel of the other vCPUs and the devices.

mod acpi;
mod cpuid;
mod firmware;
mod mp_table;
mod state;
mod vcpu;

pub use acpi::{AcpiError, tables as acpi_tables, write_acpi};
pub(crate) use firmware::write_firmware;
pub use mp_table::{MAX_CPUS, MpTableError, write_mp_table};
pub use state::Entry;
pub use vcpu::{SetupError, prepare_memory};

pub(crate) use cpuid::CpuidTables;
pub(crate) use vcpu::setup_vcpu;

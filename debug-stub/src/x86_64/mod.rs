//! The x86-64 architecture: registers, paging, what one instruction does.

pub(crate) mod bits;
mod descriptor;
mod layout;
mod paging;
mod place;
mod registers;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
mod step;
pub mod stepper;
mod target_xml;
#[cfg(test)]
mod test_memory;

pub use layout::{RegisterId, WriteError, read_all, write_all};
pub use paging::{
    Level, PageSize, PagingMode, PhysicalAddressing, TranslateError, Translation, read_virtual,
    translate, translate_with, write_virtual,
};
pub use registers::{
    CoreRegisters, DescriptorTable, FpuState, RegisterFile, RegisterGroups, Segment,
    SpecialRegisters,
};
pub use step::{Mend, Progress, Settlement, StepClass, StepPlan};
pub use target_xml::target_xml;

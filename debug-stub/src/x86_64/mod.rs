//! The x86-64 architecture: registers, paging, and what one instruction does.

mod arch;
pub(crate) mod bits;
mod descriptor;
mod layout;
mod linux;
mod mode;
mod msr;
mod paging;
mod place;
mod registers;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
mod step;
pub mod stepper;
mod target_xml;
mod text;

pub use arch::X86_64;
pub use layout::{RegisterId, WriteError, read_all, write_all};
pub use mode::{Mode, View};
pub use paging::{
    Level, Mapping, Mappings, PageSize, PagingMode, PhysicalAddressing, TranslateError,
    Translation, mappings, read_virtual, translate, translate_with, write_virtual,
};
pub use registers::{
    Avx512State, CoreRegisters, DebugRegisters, DescriptorTable, FpuState, RegisterFile,
    RegisterGroups, Segment, SpecialRegisters, StateComponents,
};
pub use step::{Mend, Progress, Settlement, StepClass, StepPlan};
pub use target_xml::target_xml;

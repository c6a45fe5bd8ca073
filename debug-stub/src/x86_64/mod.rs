//! The x86-64 architecture: registers, paging, what one instruction does.

mod registers;

pub use registers::{
    CoreRegisters, DescriptorTable, FpuState, RegisterFile, RegisterGroups, Segment,
    SpecialRegisters,
};

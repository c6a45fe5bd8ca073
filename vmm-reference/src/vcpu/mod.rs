//! One thread per vCPU, and the group of them that starts and stops as one.

mod exits;
mod group;

pub use exits::MachineExits;
pub use group::{GroupError, VcpuGroup};

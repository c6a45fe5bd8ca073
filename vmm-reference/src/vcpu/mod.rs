//! One thread per vCPU, and the group of them that starts and stops as one.

mod bell;
mod exits;
mod group;
mod kick;

pub use exits::MachineExits;
pub use group::{GroupError, VcpuGroup};

//! One thread per vCPU, and the group of them that starts and stops as one.

pub(crate) mod bell;
mod exits;
mod group;
pub(crate) mod kick;
mod waker;

pub use exits::MachineExits;
pub use group::{GroupError, VcpuGroup};
pub use waker::Waker;

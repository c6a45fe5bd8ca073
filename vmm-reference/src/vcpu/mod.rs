//! One thread per vCPU, and the group of them that starts and stops as one.

pub(crate) mod bell;
mod exits;
mod group;
pub(crate) mod kick;
mod run;
mod waker;

pub use exits::{Exits, MachineExits};
pub use group::{GroupError, VcpuGroup};
pub use run::Vcpu;
pub use waker::Waker;

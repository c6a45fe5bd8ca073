//! One thread per vCPU, and the group of them that starts and stops as one.

mod exits;
mod group;
mod run;
mod stats;
mod with_chips;

pub use exits::{Exits, MachineExits};
pub use group::{GroupError, VcpuGroup};
pub use run::Vcpu;

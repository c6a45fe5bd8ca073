//! One thread per vCPU, and the group of them that starts and stops as one.

mod exits;
mod group;
pub(crate) mod kick;
mod run;
mod waker;

pub use exits::{Exits, MachineExits};
pub use group::{GroupError, VcpuGroup};
pub(crate) use run::MustStop;
pub use run::Vcpu;
pub use waker::Waker;

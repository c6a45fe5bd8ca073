//! One thread per vCPU, and the group of them that starts and stops as one.

mod group;
mod kick;

pub use group::{GroupError, VcpuGroup};

//! The adapter over `kvm-ioctls`: a vCPU that a session can step, stop and inspect.
//!
//! [`DebugVcpu`] owns a `VcpuFd` and is the only one to call `KVM_RUN` and
//! `KVM_SET_GUEST_DEBUG` on it. It needs a thread to run on and a way to be kicked, both the
//! VMM's: see [`DebugVcpu::run`].

mod debug_exit;
mod exits;
mod fxsave;
mod memory;
mod registers;
mod run;
mod step;
mod system_call;
mod vcpu;

pub use exits::{Entering, ExitHandler, Permit, UserInterrupts};
pub use memory::VmMemory;
pub use registers::{RegistersError, read_registers, write_registers};
pub use run::{Environment, OnStop, RunEnd};
pub use vcpu::{DEBUGGER, DebugError, DebugVcpu};

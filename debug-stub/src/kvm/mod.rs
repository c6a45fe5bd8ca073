//! The adapter over `kvm-ioctls`: a vCPU that a [`Stepper`](crate::x86_64::stepper::Stepper) can
//! debug.
//!
//! [`KvmVcpu`] borrows a `VcpuFd` for one call of the stepper. The VMM keeps the descriptor, its
//! loop, its exits and its thread. While a stepper exists, nothing else may call
//! `KVM_SET_GUEST_DEBUG`. After the VMM has written registers or read the MP state by itself, it
//! calls [`Stepper::forget_registers`]. `examples/own_loop.rs` is a whole VMM.
//!
//! # System calls
//! For a seccomp filter, the ioctls that the adapter makes on the thread that calls the stepper.
//! `KVM_RUN` is the VMM's own. [`IOCTLS`] has their numbers.
//!
//! | ioctl | when |
//! |---|---|
//! | `KVM_SET_GUEST_DEBUG` | an order that changes the debug state, the first step of a series |
//! | `KVM_GET_MP_STATE` | before registers are read |
//! | `KVM_SET_MP_STATE`, `KVM_SET_VCPU_EVENTS` | steps of HLT, a halted vCPU whose RIP the debugger sets, an interrupt that is being delivered as a masked step begins |
//! | `KVM_GET_REGS`, `KVM_GET_SREGS` | registers that did not come with the exit |
//! | `KVM_SET_REGS` | steps of SYSRET, a single step that is armed or lifted, the debugger's writes |
//! | `KVM_GET_MSRS`, `KVM_SET_MSRS` | steps of SYSCALL, IA32_KERNEL_GS_BASE |
//! | `KVM_GET_DEBUGREGS` | the first step of a series, the guest's own #DB |
//! | `KVM_SET_DEBUGREGS` | the guest's own #DB |
//! | `KVM_SET_SREGS`, `KVM_GET_XSAVE`, `KVM_SET_XSAVE` | the debugger reads or writes such registers |
//! | `KVM_GET_VCPU_EVENTS` | the first step of a series, steps of an access or that do not mask, [`pending_interrupts`] |
//! | `KVM_SET_LAPIC` | such an interrupt, where the debugger leaves while RFLAGS.IF is clear |
//! | `KVM_GET_LAPIC` | steps that do not mask, [`pending_interrupts`] |
//!
//! [`Stepper::forget_registers`]: crate::x86_64::stepper::Stepper::forget_registers

mod exit;
mod fxsave;
#[cfg(feature = "session")]
mod guest;
mod interrupts;
mod ioctls;
mod memory;
mod registers;
#[cfg(feature = "threads")]
mod run_control;
#[cfg(all(feature = "server", feature = "threads"))]
mod threaded;
mod vcpu;

pub use exit::{failed_run, internal_error, outcome, take_outcome};
#[cfg(feature = "session")]
pub use guest::{KvmGuest, KvmGuestError};
pub use interrupts::pending_interrupts;
pub use ioctls::IOCTLS;
/// It is in this crate's interface: a VMM that has no other use for kvm-ioctls need not depend on it.
pub use kvm_ioctls::VcpuFd;
pub use memory::{VmAddressSpace, VmMemory};
pub use registers::RegistersError;
#[cfg(feature = "threads")]
pub use run_control::{EnterError, KvmRunControl, Task, Turn, VcpuThread};
#[cfg(all(feature = "server", feature = "threads"))]
pub use threaded::{Threaded, ThreadedGuest};
pub use vcpu::{KvmError, KvmVcpu};

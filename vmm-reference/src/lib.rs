//! The reference VMM of vcpu-caps, intr-controller and debug-stub: boots a guest and debugs it
//! with GDB.
//!
//! The `vmm-reference` command, tests, the demo and benches are made from this library.
//!
//! - [`loader`]: kernels (bzImage, vmlinux, PVH, multiboot) into memory.
//! - [`boot`]: the first state of a vCPU, CPUID, the ACPI and MP tables.
//! - [`devices`]: serial port, keyboard controller, power control, those of test images.
//! - [`machine`]: all of these together, ready to run.
//! - [`irqchip`]: the interrupt chips in their three modes; [`clock`]: guest time.
//! - [`vcpu`] and [`debug`]: the vCPUs' threads, and the machine as a debugger's host.
//! - [`event_loop`], [`console`], [`signals`]: what the main thread waits for.
//! - [`background`]: output to descriptors that may block; [`logging`]: log lines, which are limited.
//! - [`terminal`], [`left_behind`]: what must be undone however the process ends.
//! - [`run`] and [`caps`]: the commands.
//! - [`guests`]: small guest programs, in the executable.

pub mod background;
pub mod boot;
pub mod caps;
pub mod cli;
pub mod clock;
pub mod console;
mod core_file;
pub mod debug;
pub mod demo;
pub mod devices;
mod entry;
pub mod error;
pub mod event_loop;
pub mod exit;
pub mod exit_status;
pub mod guests;
pub mod irqchip;
pub mod layout;
pub mod left_behind;
pub mod loader;
pub mod logging;
pub mod machine;
pub mod memory;
mod monitor;
pub mod open_files;
pub mod packaging;
pub mod remote;
pub mod run;
pub mod signals;
pub mod terminal;
pub mod vcpu;
mod wake;

pub use entry::{Entering, Permit};
pub use error::Error;
pub use event_loop::{EventLoop, EventLoopError};
pub use exit::{ExitEvent, ExitReason};
pub use exit_status::ExitStatus;
pub use machine::{Machine, MachineConfig, MachineError};

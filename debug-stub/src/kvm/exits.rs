//! What a vCPU's exits need of the VMM, and how the fatal ones are told.

use core::fmt::Write as _;
use std::sync::atomic::AtomicBool;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;

use crate::address::GuestVirtAddr;
use crate::host::GuestMemory;
use crate::x86_64::{RegisterFile, read_virtual};

/// The guest's way to the VMM's devices. Called on the vCPU's thread.
///
/// Data is little-endian, as KVM has it. What nobody claims reads as all-ones.
pub trait ExitHandler {
    /// The guest reads `data.len()` (1, 2 or 4) bytes from an I/O port.
    fn io_in(&self, port: u16, data: &mut [u8]);
    /// The guest writes 1, 2 or 4 bytes to an I/O port.
    fn io_out(&self, port: u16, data: &[u8]);
    /// The guest reads up to 8 bytes at a guest-physical address without memory.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// The guest writes up to 8 bytes at a guest-physical address without memory.
    fn mmio_write(&self, address: u64, data: &[u8]);
    /// The guest has ended, through a device, with this exit status. Asked after each access.
    fn exited(&self) -> Option<u8>;
}

/// What a vCPU is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entering {
    /// `mask_hwintr` is on, by whichever way the plan has.
    pub masked: bool,
    /// One instruction is to be run, not the guest.
    pub stepping: bool,
    /// KVM has still to complete a device access: the registers must not be replaced.
    pub incomplete: bool,
}

/// Whether a vCPU may enter the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may.
    Enter,
    /// There is nothing to run: [`UserInterrupts::wait`], then ask again.
    Wait,
    /// What KVM has to complete is completed first, then ask again.
    Complete,
    /// The registers have been replaced (INIT, start-up IPI): ask again.
    Restarted,
    /// It cannot go on, and why.
    Failed(String),
}

/// The interrupt chips that are the VMM's and not KVM's, as a vCPU's thread meets them. Called on the
/// thread that runs the vCPU.
///
/// With all chips in the kernel there is nothing to do, and the methods as they are do nothing:
/// `impl UserInterrupts for MyExits {}`.
pub trait UserInterrupts {
    /// Before each entry. What may enter is handed to KVM (`KVM_INTERRUPT`), and the window opened
    /// for what may not (`kvm_run.request_interrupt_window`).
    fn before_entry(&self, vcpu: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        let _ = (vcpu, fd, entering);
        Permit::Enter
    }
    /// After each `KVM_RUN`, before what it asks for is served, with `kvm_run.cr8`: the guest may have
    /// written it.
    fn after_exit(&self, vcpu: VcpuId, cr8: u64) {
        let _ = (vcpu, cr8);
    }
    /// `KVM_EXIT_HLT`: from now on it waits, until an interrupt ends that.
    fn halted(&self, vcpu: VcpuId) {
        let _ = vcpu;
    }
    /// Sleeps until something has arrived for the vCPU, or `stop` is set. May return without.
    fn wait(&self, vcpu: VcpuId, stop: &AtomicBool) {
        let _ = (vcpu, stop);
    }
    /// As [`ExitHandler::mmio_read`], for memory that is each vCPU's own. Answers whether it is.
    fn local_read(&self, vcpu: VcpuId, address: u64, data: &mut [u8]) -> bool {
        let _ = (vcpu, address, data);
        false
    }
    /// As [`ExitHandler::mmio_write`], for memory that is each vCPU's own. Answers whether it is.
    fn local_write(&self, vcpu: VcpuId, address: u64, data: &[u8]) -> bool {
        let _ = (vcpu, address, data);
        false
    }
    /// `KVM_EXIT_X86_RDMSR`; `None` is #GP.
    fn read_msr(&self, vcpu: VcpuId, index: u32) -> Option<u64> {
        let _ = (vcpu, index);
        None
    }
    /// `KVM_EXIT_X86_WRMSR`. Answers whether it is taken; otherwise #GP.
    fn write_msr(&self, vcpu: VcpuId, fd: &VcpuFd, index: u32, value: u64) -> bool {
        let _ = (vcpu, fd, index, value);
        false
    }
    /// `KVM_EXIT_IOAPIC_EOI`: the vCPU wrote EOI for an interrupt of this vector.
    fn end_of_interrupt(&self, vcpu: VcpuId, fd: &VcpuFd, vector: u8) {
        let _ = (vcpu, fd, vector);
    }
}

/// The longest x86 instruction (SDM 2A 2.3.11).
const MAX_INSTRUCTION: usize = 15;

/// "at 0x1000 (64-bit mode), next bytes 0f 0b 90": where a vCPU is.
pub(super) fn place(registers: &RegisterFile, memory: &impl GuestMemory) -> String {
    let pc = registers.linear_pc();
    let mut code = [0; MAX_INSTRUCTION];
    let read = read_virtual(&registers.special, memory, GuestVirtAddr(pc), &mut code);
    let mut text = format!("at {pc:#x}, next bytes");
    for byte in code.iter().take(read) {
        // Writing to a String cannot fail.
        let _ = write!(text, " {byte:02x}");
    }
    if read == 0 {
        text.push_str(" unreadable (no such page, or not in memory)");
    }
    text
}

/// A name for `kvm_run.internal.suberror` (api.rst 5, `KVM_EXIT_INTERNAL_ERROR`).
pub(super) fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "KVM could not emulate the instruction",
        KVM_INTERNAL_ERROR_SIMUL_EX => "unexpected simultaneous exceptions",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "unexpected exit while an event was delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit reason",
        _ => "unknown cause",
    }
}

//! What a vCPU's exits need of the VMM, and how the fatal ones are told.

use core::fmt::Write as _;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};

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

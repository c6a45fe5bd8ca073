//! Where a vCPU is, for a message.

use std::fmt::Write as _;

use super::bits::MAX_INSTRUCTION;
use super::{RegisterFile, read_virtual};
use crate::address::GuestVirtAddr;
use crate::host::GuestMemory;

/// "at 0x1000, next bytes 0f 0b 90".
pub(crate) fn of(registers: &RegisterFile, memory: &impl GuestMemory) -> String {
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

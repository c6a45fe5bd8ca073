//! Compares two runs, and says which instruction made the first difference.

use std::fmt::Write as _;

use debug_stub::x86_64::RegisterFile;
use debug_stub::{GuestMemory, GuestPhysAddr};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};
use intr_controller::IrqchipMode;

use crate::image::Guest;
use crate::machine::Outcome;
use crate::ways::{self, Place, Way};

/// The first difference of a run with a debugger from the free one; `None` if there is none.
pub fn difference(free: &Outcome, debugged: &Outcome) -> Option<String> {
    if free.end != debugged.end {
        // A free run that is compared is at its end.
        return Some(format!("it ends: {}", debugged.end));
    }
    if let Some(place) = memory_difference(free, debugged) {
        let word = |memory: &[u8]| u64::from_le_bytes(memory[place..place + 8].try_into().unwrap());
        let (was, is) = (word(&free.memory), word(&debugged.memory));
        return Some(format!(
            "memory at {place:#x} is {is:#x} instead of {was:#x}"
        ));
    }
    if free.log != debugged.log {
        let same = free
            .log
            .iter()
            .zip(&debugged.log)
            .take_while(|(a, b)| a == b)
            .count();
        return Some(format!(
            "access {same} of the device is {:x?} instead of {:x?}",
            debugged.log.get(same),
            free.log.get(same)
        ));
    }
    // Another vCPU may be anywhere near its last instruction when the guest ends.
    let found = free.vcpus[0].first_difference(&debugged.vcpus[0]);
    found.map(|found| found.to_string())
}

/// The aligned 8 bytes of the first difference.
fn memory_difference(free: &Outcome, debugged: &Outcome) -> Option<usize> {
    if free.memory == debugged.memory {
        return None;
    }
    let mut bytes = free.memory.iter().zip(&debugged.memory);
    bytes.position(|(a, b)| a != b).map(|place| place & !7)
}

/// The instruction that was stepped when memory got its first different value, if the guest is stepped again.
pub fn culprit(
    guest: &Guest,
    chips: IrqchipMode,
    free: &Outcome,
    debugged: &Outcome,
) -> Option<String> {
    let place = memory_difference(free, debugged)?;
    let wrong: [u8; 8] = debugged.memory[place..place + 8].try_into().unwrap();
    let mut last: Option<Place> = None;
    let mut found = None;
    let mut before = [0; 8];
    ways::stepped(guest, chips, Way::Masked, |running, registers| {
        let mut now = [0; 8];
        let address = GuestPhysAddr(u64::try_from(place).unwrap());
        running.memory.read_memory(address, &mut now);
        if now == wrong && before != wrong {
            found = last.as_ref().map(describe);
        }
        before = now;
        last = Some(ways::place(&running.memory, registers));
    });
    Some(found.unwrap_or_else(|| "not by a step".to_owned()))
}

/// A place as `0x1042: 9c  pushfq`.
pub fn describe(place: &Place) -> String {
    let pc = place.registers.linear_pc();
    let mut text = format!("{pc:#x}: ");
    let Some(instruction) = decode(place) else {
        return text + "(no memory)";
    };
    for byte in &place.bytes[..instruction.len().min(place.bytes.len())] {
        let _ = write!(text, "{byte:02x} ");
    }
    text.push(' ');
    GasFormatter::new().format(&instruction, &mut text);
    text
}

/// The instruction at a place. `None` if it is not in memory.
pub fn decode(place: &Place) -> Option<iced_x86::Instruction> {
    let bitness = bitness(&place.registers);
    let ip = place.registers.core.rip;
    let mut decoder = Decoder::with_ip(bitness, &place.bytes, ip, DecoderOptions::NONE);
    (!place.bytes.is_empty()).then(|| decoder.decode())
}

/// 16, 32 or 64.
pub fn bitness(registers: &RegisterFile) -> u32 {
    let special = &registers.special;
    let long = special.efer & 1 << 10 != 0;
    match (long && special.cs.long, special.cs.default_big) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    }
}

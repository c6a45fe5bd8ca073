//! `monitor` commands: text in, text out.

mod places;
mod qemu_names;
mod system;

use std::fmt::{self, Write as _};
use std::ops::RangeInclusive;

use vcpu_caps::{Capability, VcpuId};

use crate::arch::Arch;
use crate::guest::{Guest, tid};
use crate::host::Host;
use crate::memory::Space;

const HELP: &str = "\
monitor help         this text
monitor help qemu    what QEMU's commands are called here
monitor caps         what the host can do for the debugger, how, and why not
monitor mask on      steps hold hardware interrupts back (mask_hwintr); the default if possible
monitor mask off     interrupts enter stepped vCPUs
monitor mask status  which is in force, and the pending interrupts
monitor mode         the mode of each vCPU, the target description that the client has, and how to get another
monitor threads      the vCPUs: what each waits for, its mode and its program counter (info cpus)
monitor regs         the selected vCPU's registers (-a: all vCPUs'), in QEMU's form (info registers)
monitor translate ADDRESS
                     where a virtual address of the selected vCPU is (gva2gpa)
monitor pagewalk ADDRESS
                     the same, with the entry of each level of the page tables
monitor mem          what the selected vCPU's page tables map, in QEMU's form (info mem)
monitor xp ADDRESS [LENGTH]
                     bytes of guest-physical memory: 64, or up to 4096
monitor mmio on|off  devices are read where there is no memory, though a read may change them; off: only those
                     registers that a read does not change
monitor kaslr        where a Linux kernel is, and GDB's command that loads its symbols there
monitor system_reset resets the machine in place, if the VMM can; breakpoints stay
monitor quit         ends the guest
";

/// How much text a command of the VMM's or a listing may print, in bytes.
const LIMIT: usize = 64 << 10;

/// Text, bounded.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > LIMIT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Runs a command and returns what it prints.
pub(crate) fn answer<H: Host>(guest: &mut Guest<H>, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let mut text = match words.as_slice() {
        [] | ["help"] => {
            let system = system::help::<H::Arch>();
            format!("{HELP}{system}{}", guest.host.monitor_help())
        }
        ["help", "qemu"] => qemu_names::all(),
        ["caps"] => guest.config.plan.to_string(),
        ["mask", "on"] => set_mask(guest, true),
        ["mask", "off"] => set_mask(guest, false),
        ["mask", "status"] | ["mask"] => mask_status(guest),
        ["mode"] => modes(guest),
        [command] if *command == H::Arch::SLOTS_COMMAND => system::slots(guest),
        [command, rest @ ..] if *command == H::Arch::SYSTEM_REGISTER => match rest {
            [] => system::all(guest),
            [register] => system::one(guest, register, None),
            [register, value] => system::one(guest, register, Some(value)),
            _ => system::help::<H::Arch>(),
        },
        ["mem"] | ["info", "mem"] => mappings(guest),
        ["threads"] | ["info", "cpus"] => threads(guest),
        ["translate" | "gva2gpa", address] => places::translation(guest, address),
        ["pagewalk", address] => places::walk(guest, address),
        ["translate" | "gva2gpa" | "pagewalk", ..] => places::USAGE.into(),
        ["kaslr"] => places::kernel(guest),
        ["mmio"] => device_reads(guest).into(),
        ["mmio", way @ ("on" | "off")] => {
            guest.device_reads = *way == "on";
            device_reads(guest).into()
        }
        ["mmio", ..] => "mmio on, or mmio off".into(),
        ["xp", address] => physical(guest, address, "64"),
        ["xp", address, length] => physical(guest, address, length),
        ["regs"] | ["info", "registers"] => {
            let vcpu = guest.current;
            registers(guest, vcpu..=vcpu)
        }
        ["regs", "-a"] | ["info", "registers", "-a"] => {
            let last = VcpuId(guest.host.vcpu_count().saturating_sub(1));
            registers(guest, VcpuId(0)..=last)
        }
        ["system_reset"] => match guest.reset_machine() {
            Ok(()) => "the machine was reset".into(),
            Err(error) => error.to_string(),
        },
        ["quit"] => {
            guest.ends = true;
            "the guest ends".into()
        }
        _ => vmm_command(guest, command),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    // Notices wait for the next console output.
    text + &guest.notices.take()
}

fn vmm_command<H: Host>(guest: &mut Guest<H>, command: &str) -> String {
    let command = command.trim();
    let mut out = Bounded(String::new());
    let vcpu = guest.current;
    let mut known = guest.host.monitor(vcpu, command, &mut out);
    // QEMU's users type `info irq` for `irq`.
    if let Some(name) = command.strip_prefix("info ").filter(|_| !known) {
        known = guest.host.monitor(vcpu, name.trim(), &mut out);
    }
    // The command may have reset the machine, or loaded a snapshot.
    guest.registers.forget();
    if known {
        return out.0;
    }
    let name: String = command.chars().take(80).collect();
    let name = name.escape_debug();
    match qemu_names::find(command) {
        Some(here) => format!("QEMU's \"{name}\" is not here: {here}"),
        None => format!(
            "unknown command \"{name}\"; monitor help lists the commands, monitor help qemu what QEMU's are called \
             here"
        ),
    }
}

/// The vCPUs; a star stands before the selected one.
fn threads<H: Host>(guest: &mut Guest<H>) -> String {
    let mut out = Bounded(String::new());
    for vcpu in (0..guest.host.vcpu_count()).map(VcpuId) {
        let star = if vcpu == guest.current { '*' } else { ' ' };
        let name = guest.host.vcpu_name(vcpu);
        let read = guest
            .registers
            .read(&mut guest.host, vcpu, H::Arch::STOP_GROUPS);
        let thread = tid(vcpu);
        let written = match read {
            Ok(registers) => writeln!(
                out,
                "{star} thread {thread}: {name}, {}, pc {}",
                H::Arch::mode(registers),
                H::Arch::pc(registers)
            ),
            Err(error) => writeln!(out, "{star} thread {thread}: {name}, {error}"),
        };
        if written.is_err() {
            out.0.push_str("(there is more)\n");
            break;
        }
    }
    if out.0.is_empty() {
        out.0.push_str("there is no vCPU yet\n");
    }
    out.0
}

/// The vCPUs' modes, and the client's target description.
fn modes<H: Host>(guest: &mut Guest<H>) -> String {
    let mut text = String::new();
    for vcpu in (0..guest.host.vcpu_count()).map(VcpuId) {
        let thread = tid(vcpu);
        let read = guest
            .registers
            .read(&mut guest.host, vcpu, H::Arch::STOP_GROUPS);
        // Writing to a String does not fail.
        let _ = match read {
            Ok(registers) => writeln!(text, "thread {thread}: {}", H::Arch::mode(registers)),
            Err(error) => writeln!(text, "thread {thread}: {error}"),
        };
    }
    let view = guest.view();
    let fitting = guest.view_of_vcpus(None);
    let name = H::Arch::view_name(view);
    let _ = write!(text, "this client has the target description {name}");
    if view == fitting {
        text.push_str(", which is that of the mode");
    } else if name == H::Arch::view_name(fitting) {
        let how = guest.how_to_change();
        let _ = write!(
            text,
            ", which is that of the mode; the vCPUs have other registers since. {how}"
        );
    } else {
        let wanted = H::Arch::view_name(fitting);
        let how = guest.how_to_change();
        let _ = write!(text, "; that of the mode is {wanted}. {how}");
    }
    text
}

/// QEMU's `info mem`. What does not fit is left out, and a line says so.
fn mappings<H: Host>(guest: &mut Guest<H>) -> String {
    let space = match guest.virtual_address_space() {
        Ok(space) => space,
        Err(_) => return "the registers cannot be read".into(),
    };
    let mut out = Bounded(String::new());
    if H::Arch::write_mappings(&space, &guest.host, &mut out).is_err() {
        out.0.push_str("(there is more)\n");
    }
    out.0
}

fn device_reads<H: Host>(guest: &Guest<H>) -> &'static str {
    if guest.device_reads {
        "where there is no memory devices are read, as the guest would: this may change them"
    } else {
        "of devices only those registers are read that a read does not change"
    }
}

/// The most that `xp` prints, in bytes.
const LONGEST_DUMP: usize = 4096;

/// Bytes at guest-physical addresses, 16 a line, in the form of QEMU's `xp /xb`.
fn physical<H: Host>(guest: &mut Guest<H>, address: &str, length: &str) -> String {
    let range = number(address).zip(number(length));
    let Some((address, length)) = range else {
        return "xp ADDRESS [LENGTH]: numbers as in C, 0x1000 or 4096".into();
    };
    let length = usize::try_from(length).map_or(LONGEST_DUMP, |length| length.min(LONGEST_DUMP));
    let mut data = vec![0; length];
    let read = guest.read_all(&Space::Physical, address, &mut data);
    let mut text = String::new();
    let read_bytes = data.get(..read).unwrap_or_default();
    for (line, offset) in read_bytes.chunks(16).zip((0u64..).step_by(16)) {
        // Writing to a String does not fail.
        let _ = write!(text, "{:016x}:", address.wrapping_add(offset));
        for byte in line {
            let _ = write!(text, " {byte:#04x}");
        }
        text.push('\n');
    }
    if read < length {
        let end = address.wrapping_add(u64::try_from(read).unwrap_or(u64::MAX));
        let _ = writeln!(
            text,
            "nothing can be read at physical {end:#x}: monitor mmio"
        );
    }
    text
}

/// A number of 64 bits as in C, without octal ones: `0x1000` or `4096`.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` takes a sign.
    if digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// QEMU's `info registers`.
fn registers<H: Host>(guest: &mut Guest<H>, vcpus: RangeInclusive<VcpuId>) -> String {
    let mut out = Bounded(String::new());
    for index in vcpus.start().0..=vcpus.end().0 {
        if !guest.exists(VcpuId(index)) {
            out.0.push_str(&format!("\nCPU#{index}: there is none\n"));
            break;
        }
        let read = guest
            .registers
            .read(&mut guest.host, VcpuId(index), H::Arch::ALL_GROUPS);
        let written = match read {
            Ok(registers) => writeln!(out, "\nCPU#{index}")
                .and_then(|()| H::Arch::write_registers_text(registers, &mut out)),
            Err(error) => writeln!(out, "\nCPU#{index}: {error}"),
        };
        if written.is_err() {
            out.0.push_str("(there is more)\n");
            break;
        }
    }
    out.0
}

fn set_mask<H: Host>(guest: &mut Guest<H>, mask: bool) -> String {
    if guest.step_bits.set_mask(mask) {
        policy(guest)
    } else {
        format!("refused: {}", why_not(guest))
    }
}

fn policy<H: Host>(guest: &Guest<H>) -> String {
    let provided = match guest.config.plan.mechanism(Capability::MaskHwintr) {
        Some(mechanism) => format!("provided by: {mechanism}"),
        None => why_not(guest),
    };
    if guest.step_bits.masks() {
        format!("steps hold mask_hwintr until the vCPU is continued ({provided})")
    } else {
        format!("steps do not mask: interrupts enter stepped vCPUs ({provided})")
    }
}

fn why_not<H: Host>(guest: &Guest<H>) -> String {
    let mut text = String::from("mask_hwintr is not available here");
    let entry = guest.config.plan.entry(Capability::MaskHwintr);
    for rejected in entry.iter().flat_map(|entry| &entry.rejected) {
        // Writing to a String does not fail.
        let _ = write!(text, "; not {}: {}", rejected.mechanism, rejected.reason);
    }
    text
}

fn mask_status<H: Host>(guest: &mut Guest<H>) -> String {
    let mut text = policy(guest);
    for index in 0..guest.host.vcpu_count() {
        let vcpu = VcpuId(index);
        let interrupts = guest.host.interrupts(vcpu);
        let state = if interrupts.masked {
            "masked"
        } else {
            "not masked"
        };
        let _ = write!(text, "\n{vcpu}: {state}, pending:");
        for vector in &interrupts.pending {
            let _ = write!(text, " {vector:#04x}");
        }
        if interrupts.nmi_pending {
            text.push_str(" NMI");
        }
        if interrupts.pending.is_empty() && !interrupts.nmi_pending {
            text.push_str(" none");
        }
        if !interrupts.blocked.is_empty() {
            let _ = write!(text, "; blocked: {}", interrupts.blocked);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_decimal_or_hexadecimal_and_have_64_bits() {
        for (text, wanted) in [
            ("10", Some(10)),
            ("0x10", Some(16)),
            ("0XfFffffffffffffff", Some(u64::MAX)),
            ("0x10000000000000000", None),
            ("-1", None),
            ("+1", None),
            ("0x+1", None),
            ("0x", None),
            ("", None),
            ("1 2", None),
        ] {
            assert_eq!(number(text), wanted, "{text}");
        }
    }
}

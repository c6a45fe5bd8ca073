//! `monitor` commands for registers that GDB does not name: debug slots and system registers.

use std::fmt::Write as _;

use vcpu_caps::HwBreakpointKind;

use super::{Bounded, number};
use crate::arch::Arch;
use crate::guest::Guest;
use crate::host::Host;

/// Returns the help of these commands.
pub(super) fn help<A: Arch>() -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "monitor {:<12} the {}: the guest's own of the selected vCPU, and the debugger's",
        A::SLOTS_COMMAND,
        A::SLOTS_NAME
    );
    let msr = A::SYSTEM_REGISTER;
    let usage = format!("{msr} NAME|NUMBER [VALUE]");
    let _ = writeln!(
        text,
        "monitor {usage}\n{:20} reads or writes one of the selected vCPU; {msr} alone shows those with names",
        ""
    );
    text
}

/// The guest's own debug slots, and the debugger's.
pub(super) fn slots<H: Host>(guest: &mut Guest<H>) -> String {
    let vcpu = match guest.selected() {
        Ok(vcpu) => vcpu,
        Err(_) => return "the selected vCPU does not exist".into(),
    };
    let read = guest
        .registers
        .read(&mut guest.host, vcpu, H::Arch::ALL_GROUPS);
    let registers = match read {
        Ok(registers) => registers,
        Err(error) => return error.to_string(),
    };
    let mut out = Bounded(format!("the guest's own, on {vcpu}:\n"));
    if H::Arch::write_slots_text(registers, &mut out).is_err() {
        out.0.push_str("(there is more)\n");
    }
    let armed = guest.breakpoints.last_armed();
    let count = H::Arch::SLOTS.count(HwBreakpointKind::Execute);
    let _ = writeln!(
        out.0,
        "the debugger's, on all vCPUs while they ran last: {} of {count}",
        armed.hardware.len()
    );
    for breakpoint in &armed.hardware {
        let _ = writeln!(out.0, "{breakpoint}");
    }
    out.0
}

/// All system registers with names that the hypervisor knows.
pub(super) fn all<H: Host>(guest: &mut Guest<H>) -> String {
    let vcpu = match guest.selected() {
        Ok(vcpu) => vcpu,
        Err(_) => return "the selected vCPU does not exist".into(),
    };
    let mut text = String::new();
    for (name, number) in H::Arch::system_registers() {
        match guest.host.read_system_register(vcpu, number) {
            None => return not_provided::<H>(),
            Some(Ok(value)) => {
                let _ = writeln!(text, "{name} ({number:#x}) = {value:#x}");
            }
            // This CPU lacks it.
            Some(Err(_)) => {}
        }
    }
    text
}

/// Reads one, or writes it.
pub(super) fn one<H: Host>(guest: &mut Guest<H>, register: &str, value: Option<&str>) -> String {
    let kind = H::Arch::SYSTEM_REGISTER.to_uppercase();
    let Some(number) = H::Arch::system_register(register)
        .or_else(|| number(register).and_then(|number| u32::try_from(number).ok()))
    else {
        let register: String = register.chars().take(40).collect();
        return format!("no {kind} is called \"{}\"", register.escape_debug());
    };
    let vcpu = match guest.selected() {
        Ok(vcpu) => vcpu,
        Err(_) => return "refused: the selected vCPU does not exist".into(),
    };
    if let Some(text) = value {
        let Some(value) = super::number(text) else {
            return "refused: the value is no number of 64 bits".into();
        };
        let read = guest
            .registers
            .read(&mut guest.host, vcpu, H::Arch::STOP_GROUPS);
        let checked = match read {
            Ok(registers) => H::Arch::check_system_register(number, value, registers),
            Err(error) => return format!("refused: {error}"),
        };
        if let Err(reason) = checked {
            return format!("refused: {reason}");
        }
        let written = guest.host.write_system_register(vcpu, number, value);
        // Also after an error: some are registers of the client's.
        guest.registers.forget();
        match written {
            None => return not_provided::<H>(),
            Some(Err(error)) => return refused(&error),
            Some(Ok(())) => {}
        }
    }
    let name = H::Arch::system_registers().find(|(_, known)| *known == number);
    let name = name.map_or_else(|| kind.clone(), |(name, _)| name.into());
    match guest.host.read_system_register(vcpu, number) {
        None => not_provided::<H>(),
        Some(Ok(value)) => format!("{name} ({number:#x}) = {value:#x}"),
        Some(Err(error)) => refused(&error),
    }
}

fn refused(error: &dyn std::error::Error) -> String {
    let mut text = format!("refused: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        // An error may show its cause by itself.
        if !text.contains(&why) {
            let _ = write!(text, ": {why}");
        }
        cause = error.source();
    }
    text
}

fn not_provided<H: Host>() -> String {
    let kind = H::Arch::SYSTEM_REGISTER.to_uppercase();
    format!("refused: this VMM does not let a debugger at {kind}s")
}

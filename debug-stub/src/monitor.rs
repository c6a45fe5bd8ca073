//! `monitor` commands: text in, text out.

use std::fmt::{self, Write as _};

use vcpu_caps::{Capability, VcpuId};

use crate::guest::Guest;
use crate::host::Host;

const HELP: &str = "\
monitor help         this text
monitor caps         what the host can do for the debugger, how, and why not
monitor mask on      steps hold hardware interrupts back (mask_hwintr); the default if possible
monitor mask off     interrupts enter stepped vCPUs
monitor mask status  which is in force, and the pending interrupts
";

/// How much text a command of the VMM's may print, in bytes.
const VMM_LIMIT: usize = 64 << 10;

/// Text of the VMM's, bounded.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > VMM_LIMIT {
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
        [] | ["help"] => format!("{HELP}{}", guest.host.monitor_help()),
        ["caps"] => guest.config.plan.to_string(),
        ["mask", "on"] => set_mask(guest, true),
        ["mask", "off"] => set_mask(guest, false),
        ["mask", "status"] | ["mask"] => mask_status(guest),
        _ => vmm_command(guest, command),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    // Notices wait for the next console output.
    text + &guest.notices.take()
}

fn vmm_command<H: Host>(guest: &mut Guest<H>, command: &str) -> String {
    let mut out = Bounded(String::new());
    let known = guest.host.monitor(command.trim(), &mut out);
    // The command may have reset the machine, or loaded a snapshot.
    guest.registers.forget();
    if known {
        return out.0;
    }
    let command: String = command.chars().take(80).collect();
    format!(
        "unknown command \"{}\"; monitor help lists the commands",
        command.escape_debug()
    )
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

//! `vmm-reference caps`: what this host's KVM can do, and how a debugger gets each ability.

use std::io::{self, Write};

use serde_json::json;
use vcpu_caps::kvm::{open, probe, verify};
use vcpu_caps::{Profile, negotiate};

use crate::cli::CapsArgs;
use crate::error::Error;
use crate::irqchip;

/// Writes the report and the debugger's plan to `out`.
///
/// A host that lacks an ability that a debugger requires is reported too, and is no failure of this
/// command.
///
/// # Errors
/// If there is no usable KVM.
pub fn caps(args: CapsArgs, out: &mut impl Write) -> Result<(), Error> {
    let kvm = open()?;
    let mut report = probe(&kvm);
    if !args.no_verify {
        verify(&kvm, &mut report)?;
    }
    let irqchip = irqchip::capability_mode(args.irqchip.into());
    let profile = Profile::debugger().with_irqchip(irqchip)?;
    let (plan, refusal) = match negotiate(&report, &profile) {
        Ok(plan) => (plan, None),
        Err(refusal) => (refusal.plan().clone(), Some(refusal)),
    };
    let written = if args.json {
        let missing: Vec<_> = refusal
            .iter()
            .flat_map(|refusal| refusal.missing())
            .map(|entry| entry.capability)
            .collect();
        let value = json!({
            "report": report,
            "plan": plan,
            "missing": missing,
        });
        writeln!(out, "{value:#}")
    } else {
        write_text(out, &report, &plan, refusal.as_deref())
    };
    Error::of_output("cannot write the report", written)
}

fn write_text(
    out: &mut impl Write,
    report: &vcpu_caps::HostReport,
    plan: &vcpu_caps::Plan,
    refusal: Option<&vcpu_caps::Refusal>,
) -> io::Result<()> {
    writeln!(out, "{report}\n")?;
    writeln!(out, "How a debugger gets each ability:\n{plan}")?;
    if let Some(refusal) = refusal {
        writeln!(out, "\n{refusal}")?;
    }
    Ok(())
}

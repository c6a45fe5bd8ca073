//! The VMM's own `monitor` commands: the interrupt chips, the vCPUs' statistics, CPUID, and time.

mod chips;
mod dump;

use std::fmt::{self, Write};

use intr_controller::kvm::TscControl;
use intr_controller::{Counters, DebugTime, IrqchipMode, StepTime};
use vcpu_caps::VcpuId;

use crate::debug::MachineHost;
use crate::irqchip::Irqchip;

/// For `monitor help`.
pub(crate) const HELP: &str = "\
monitor irq          what became of each interrupt that has arrived at a vCPU, and why a pending one waits
monitor stats        what each vCPU has done since the machine's last reset: entries, and exits by reason
monitor lapic        the registers of the selected vCPU's local APIC (info lapic)
monitor ioapic       the IOAPIC's pins and where their interrupts go
monitor pic          the 8259A pair (info pic: and the IOAPIC)
monitor pit          how the counters of the 8254 are programmed
monitor cpuid        what CPUID tells the selected vCPU
monitor dump FILE    writes an ELF core file of the stopped machine, for gdb and crash (dump-guest-memory)
monitor time         how guest time passes, and what became of timer ticks
monitor time step real|none|NS
                     how much guest time a step takes: what it took, none, or nanoseconds
";

/// Why interrupts are not counted.
const KERNEL_COUNTS_NONE: &str =
    "the local APICs are KVM's, which does not count (--irqchip user does)";

/// Runs a command; `vcpu` is the selected one. Returns `false` if there is no such command.
pub(crate) fn run(
    host: &mut MachineHost,
    vcpu: VcpuId,
    command: &str,
    out: &mut dyn Write,
) -> bool {
    let irqchip = host.irqchip().clone();
    let words: Vec<&str> = command.split_whitespace().collect();
    // The client's console shows no more than it has taken.
    let _ = match words.as_slice() {
        ["irq"] => irq(&irqchip, out).and_then(|()| chips::pending(host, out)),
        // QEMU's names a target.
        ["stats"] | ["stats", "vcpu"] => stats(host, out),
        ["lapic"] => chips::lapic(host, vcpu, out),
        ["ioapic"] => chips::ioapic(&irqchip, out),
        ["pic"] => chips::pic(&irqchip, out),
        // QEMU's shows both.
        ["info", "pic"] => chips::ioapic(&irqchip, out).and_then(|()| chips::pic(&irqchip, out)),
        ["pit"] => chips::pit(&irqchip, out),
        ["cpuid"] => chips::cpuid(host, vcpu, out),
        ["dump" | "dump-guest-memory", ..] => {
            // The rest of the line: a path may have spaces.
            let rest = command.trim_start().split_once(char::is_whitespace);
            dump::dump(host, rest.map_or("", |(_, file)| file.trim()), out)
        }
        ["time"] => time(&irqchip, out),
        ["time", "step", text] => step_time(&irqchip, text, out),
        ["time", "step"] => writeln!(out, "{}", step_line(irqchip.clock().report().step_time)),
        ["time", ..] => out.write_str(HELP),
        _ => return false,
    };
    true
}

fn step_time(irqchip: &Irqchip, text: &str, out: &mut dyn Write) -> fmt::Result {
    let clock = irqchip.clock();
    match text.parse::<StepTime>() {
        Ok(_) if clock.report().debug_time == DebugTime::Run => writeln!(
            out,
            "refused: with --debug-time run time always passes; start with --debug-time freeze"
        ),
        Ok(step_time) => {
            clock.set_step_time(step_time);
            writeln!(out, "{}", step_line(step_time))
        }
        Err(error) => writeln!(out, "refused: {error}"),
    }
}

fn step_line(step_time: StepTime) -> String {
    match step_time {
        StepTime::Real => "a step takes the time that it took".to_owned(),
        StepTime::Fixed(time) if time.is_zero() => {
            "a step takes no time, unless it may read a clock".to_owned()
        }
        StepTime::Fixed(_) => {
            format!("a step takes {step_time}, or longer if it may read a clock")
        }
    }
}

/// Reads registers of the interrupt chips at a guest-physical address, as this vCPU would. Returns the number of
/// bytes that are such registers, from the start.
pub(crate) fn read_chips(host: &MachineHost, vcpu: VcpuId, address: u64, data: &mut [u8]) -> usize {
    chips::read(host, vcpu, address, data)
}

/// What `monitor stats` prints.
pub(crate) fn stats_text(host: &MachineHost) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = stats(host, &mut text);
    text
}

fn stats(host: &MachineHost, out: &mut dyn Write) -> fmt::Result {
    let (irqchip, group) = (host.irqchip(), host.group());
    for vcpu in (0..).map(VcpuId).take(group.count()) {
        match group.stats(vcpu) {
            Some(stats) => write!(out, "{vcpu}: {stats}")?,
            None => writeln!(out, "{vcpu}: it still runs")?,
        }
        if let Some(Counters { delivered, .. }) = irqchip.counters(vcpu) {
            writeln!(out, "{delivered:>12}  interrupts injected by the VMM")?;
        }
    }
    if irqchip.mode() != IrqchipMode::User {
        writeln!(out, "interrupts: {KERNEL_COUNTS_NONE}")?;
    }
    Ok(())
}

fn irq(irqchip: &Irqchip, out: &mut dyn Write) -> fmt::Result {
    let counters = (0..).map_while(|id| irqchip.counters(VcpuId(id)).map(|all| (VcpuId(id), all)));
    let mut counted = false;
    for (vcpu, all) in counters {
        counted = true;
        let Counters {
            arrived,
            merged,
            delivered,
            withdrawn,
            dropped,
            spurious,
        } = all;
        writeln!(
            out,
            "{vcpu}: {arrived} arrived; {delivered} delivered, {merged} merged into a pending one, \
             {} pending, {withdrawn} withdrawn, {dropped} dropped by a reset; {spurious} spurious",
            all.pending()
        )?;
    }
    if !counted {
        writeln!(out, "{KERNEL_COUNTS_NONE}")?;
    }
    Ok(())
}

fn time(irqchip: &Irqchip, out: &mut dyn Write) -> fmt::Result {
    let report = irqchip.clock().report();
    let mode = irqchip.mode();
    writeln!(
        out,
        "guest time {}, {} while the guest is stopped (--debug-time {})",
        report.now,
        match report.debug_time {
            DebugTime::Freeze => "stands still",
            DebugTime::Run => "passes",
        },
        report.debug_time
    )?;
    if report.debug_time == DebugTime::Freeze {
        writeln!(
            out,
            "stood still for {:.3} s",
            report.stood_still.as_secs_f64()
        )?;
        writeln!(out, "{}", step_line(report.step_time))?;
        writeln!(
            out,
            "TSC: {}",
            match report.tsc {
                TscControl::Offset => "set back by its offset",
                TscControl::Msr => "set back by writing IA32_TSC",
                TscControl::None =>
                    "runs on: this KVM cannot set it back (monitor caps: tsc_offset)",
            }
        )?;
        let note = if report.page_is_stable {
            ""
        } else {
            "; this host's TSC is unstable, so KVM changes the guest's clock page at each entry, and a \
             guest that is stepped through a read of it reads for ever: step over it"
        };
        writeln!(out, "kvmclock: set back{note}")?;
        writeln!(
            out,
            "local APIC timers: {}",
            match mode {
                IrqchipMode::Kernel | IrqchipMode::Split => "KVM's, set back",
                IrqchipMode::User => "emulated, stand still",
            }
        )?;
        writeln!(
            out,
            "PIT: {}",
            match mode {
                IrqchipMode::Kernel => "KVM's, runs on; the ticks of a stop are dropped but one",
                IrqchipMode::Split | IrqchipMode::User => "emulated, stands still",
            }
        )?;
    }
    let totals = report.totals;
    writeln!(
        out,
        "{} stops; {} steps, {} of them may have read a clock; KVM's clocks set back {} times",
        totals.stops, totals.steps, totals.observed, report.set_back
    )?;
    match irqchip.ticks() {
        Some((policy, ticks)) => writeln!(
            out,
            "lost ticks of the PIT: {policy}; {} delivered, {} of them late, {} owed, {} discarded",
            ticks.delivered, ticks.reinjected, ticks.owed, ticks.discarded
        ),
        None => writeln!(
            out,
            "lost ticks of the PIT: {}, by KVM, which does not count them",
            irqchip.lost_ticks()
        ),
    }
}

//! `monitor lapic`, `ioapic`, `pic`, `pit`, `cpuid`: the chips' state, in each mode of `--irqchip`. Reading it has no
//! side effect.

use std::error::Error;
use std::fmt::{self, Write};

use debug_stub::{Host, Interrupts};
use intr_controller::ioapic::IoApic;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use vcpu_caps::VcpuId;

use crate::debug::MachineHost;
use crate::error::with_causes;
use crate::irqchip::{ChipsetView, Irqchip};
use crate::layout;

/// The registers of a vCPU's local APIC.
pub(super) fn lapic(host: &MachineHost, id: VcpuId, out: &mut dyn Write) -> fmt::Result {
    let Some(mut vcpu) = host.group().vcpu(id) else {
        return writeln!(out, "there is no {id}");
    };
    match host.irqchip().chips().lapic(id, vcpu.fd()) {
        Ok(Some(registers)) => write!(out, "local APIC of {id}\n{registers}"),
        Ok(None) => writeln!(out, "{id} has no local APIC"),
        Err(error) => unreadable(&error, out),
    }
}

/// See [`read_chips`](super::read_chips). The registers are 32 bits wide, and are read as such.
pub(super) fn read(host: &MachineHost, vcpu: VcpuId, address: u64, data: &mut [u8]) -> usize {
    let ioapic = u64::from(layout::IOAPIC)..u64::from(layout::IOAPIC) + IoApic::WINDOW;
    let load: Box<dyn Fn(u64) -> Option<u32>> = if ioapic.contains(&address) {
        let view = match host.irqchip().chips().chipset() {
            Ok(view) => view,
            Err(error) => return not_read(&error),
        };
        let state = view.ioapic;
        let mut chip = IoApic::new(state.model, state.destination_format);
        if let Err(error) = chip.restore(&state) {
            return not_read(&error);
        }
        Box::new(move |at| {
            let offset = at.checked_sub(ioapic.start)?;
            (offset < IoApic::WINDOW).then(|| chip.read_register(offset))
        })
    } else {
        let Some(mut vcpu_state) = host.group().vcpu(vcpu) else {
            return 0;
        };
        match host.irqchip().chips().lapic(vcpu, vcpu_state.fd()) {
            Ok(Some(registers)) => Box::new(move |at| registers.load(at)),
            Ok(None) => return 0,
            Err(error) => return not_read(&error),
        }
    };
    let bytes = (address..).zip(data.iter_mut());
    let mut read = 0;
    for (at, byte) in bytes {
        let Some(word) = load(at & !3) else {
            break;
        };
        let [value, ..] = (word >> (8 * (at & 3))).to_le_bytes();
        *byte = value;
        read += 1;
    }
    read
}

/// The client gets an error number, and the log the reason.
fn not_read(error: &dyn Error) -> usize {
    let error = with_causes(error);
    tracing::warn!(%error, "an interrupt chip cannot be read for a debugger");
    0
}

/// The IOAPIC.
pub(super) fn ioapic(irqchip: &Irqchip, out: &mut dyn Write) -> fmt::Result {
    chipset(irqchip, out, |chips, out| write!(out, "{}", chips.ioapic))
}

/// The 8259A pair.
pub(super) fn pic(irqchip: &Irqchip, out: &mut dyn Write) -> fmt::Result {
    chipset(irqchip, out, |chips, out| write!(out, "{}", chips.pic))
}

/// The 8254.
pub(super) fn pit(irqchip: &Irqchip, out: &mut dyn Write) -> fmt::Result {
    chipset(irqchip, out, |chips, out| write!(out, "{}", chips.pit))
}

fn chipset(
    irqchip: &Irqchip,
    out: &mut dyn Write,
    write: impl FnOnce(&ChipsetView, &mut dyn Write) -> fmt::Result,
) -> fmt::Result {
    match irqchip.chips().chipset() {
        Ok(chips) => write(&chips, out),
        Err(error) => unreadable(&error, out),
    }
}

fn unreadable(error: &dyn Error, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "not readable: {}", with_causes(error))
}

/// What is pending for each vCPU, and why it does not enter.
pub(super) fn pending(host: &mut MachineHost, out: &mut dyn Write) -> fmt::Result {
    for vcpu in (0..host.vcpu_count()).map(VcpuId) {
        let Interrupts {
            pending,
            nmi_pending,
            blocked,
            ..
        } = host.interrupts(vcpu);
        write!(out, "{vcpu}: pending:")?;
        for vector in &pending {
            write!(out, " {vector:#04x}")?;
        }
        if nmi_pending {
            write!(out, " NMI")?;
        }
        if pending.is_empty() && !nmi_pending {
            write!(out, " none")?;
        }
        if blocked.is_empty() {
            writeln!(out)?;
        } else {
            writeln!(out, "; blocked: {blocked}")?;
        }
    }
    Ok(())
}

/// The vCPU's table for CPUID, as KVM has it.
pub(super) fn cpuid(host: &MachineHost, id: VcpuId, out: &mut dyn Write) -> fmt::Result {
    let Some(mut vcpu) = host.group().vcpu(id) else {
        return writeln!(out, "there is no {id}");
    };
    let table = match vcpu.fd().get_cpuid2(KVM_MAX_CPUID_ENTRIES) {
        Ok(table) => table,
        Err(error) => return unreadable(&error, out),
    };
    writeln!(
        out,
        "leaf       subleaf    EAX        EBX        ECX        EDX"
    )?;
    for entry in table.as_slice() {
        writeln!(
            out,
            "{:#010x} {:#010x} {:#010x} {:#010x} {:#010x} {:#010x}",
            entry.function, entry.index, entry.eax, entry.ebx, entry.ecx, entry.edx
        )?;
    }
    Ok(())
}

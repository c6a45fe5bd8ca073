//! The cases that need a local APIC in the kernel.

use std::format;

use kvm_bindings::kvm_msi;

use super::machine::{CODE, Exit, Guest, Machine, Stop, refused};
use super::{Case, Seen};
use crate::capability::Capability;
use crate::debug_state::DebugIntent;

/// For a machine with the local APICs in the kernel.
pub(super) const MASK: Case = (Capability::MaskHwintr, mask_hwintr);
/// For a machine with a split irqchip.
pub(super) const SPLIT: Case = (Capability::SplitIrqchip, split_irqchip);

/// The vector of the interrupt.
const VECTOR: u8 = 0x40;
/// The vector of NMI.
const NMI: u8 = 2;

const HANDLER_NMI: u16 = 0x1900;

/// Port written after a while with whatever has been delivered until then.
const FIRST_REPORT: u16 = 0x85;
/// Port written a little later.
const SECOND_REPORT: u16 = 0x86;

/// The second part waits, up to a bound, for both to come: a KVM that emulates looks for a second
/// event only now and then (kvm_pvm: after some hundred instructions).
///
/// Counts in BL the interrupts and in BH the NMIs that are delivered.
const PROGRAM: &[u8] = &[
    0xb9, 0x40, 0x00, // 1000: mov cx, 64
    0xfb, //             1003: sti
    0x90, //             1004: nop
    0x40, //             1005: inc ax      <- the loop
    0xe2, 0xfd, //       1006: loop 0x1005
    0xe6, 0x85, //       1008: out 0x85, al
    0xb9, 0x00, 0x40, //       100a: mov cx, 0x4000
    0x81, 0xfb, 0x01, 0x01, // 100d: cmp bx, 0x0101  <- until both were delivered
    0xe0, 0xfa, //             1011: loopne 0x100d
    0xe6, 0x86, //             1013: out 0x86, al
    0xf4, //                   1015: hlt
];
const COUNT_INTERRUPT: &[u8] = &[
    0xfe, 0xc3, // 1800: inc bl
    0x90, //       1802: nop
    0xcf, //       1803: iret
];
const COUNT_NMI: &[u8] = &[
    0xfe, 0xc7, // 1900: inc bh
    0x90, //       1902: nop
    0xcf, //       1903: iret
];
/// Where the loop begins, and how many bytes it has.
const LOOP: u64 = CODE as u64 + 5;
const LOOP_LENGTH: u64 = 3;

/// Steps in the loop with an interrupt and an NMI pending: no step may land outside the loop. A
/// free run follows, still masked. Then the mask is lifted, and both must be delivered, once.
///
/// The control comes first: the same step without the mask. If the interrupt does not come there,
/// the rest shows nothing.
fn mask_hwintr(machine: &mut Machine<'_>) -> Seen {
    unmasked_interrupt_is_delivered_in_a_step(machine)?;
    nothing_comes_in(
        machine,
        &DebugIntent {
            mask_hwintr: true,
            ..DebugIntent::default()
        },
    )
}

/// A function of its own: a test leaves the mask out and expects it to fail.
pub(super) fn nothing_comes_in(machine: &mut Machine<'_>, masked: &DebugIntent<'_>) -> Seen {
    let mut guest = in_the_loop(machine)?;
    guest.debug(masked)?;
    send_interrupt(&guest)?;
    guest.vcpu.nmi().map_err(refused("KVM_NMI"))?;
    for _ in 0..STEPS {
        match guest.step(masked)? {
            Exit::Debug { pc, .. } if (LOOP..LOOP + LOOP_LENGTH).contains(&pc) => {}
            exit => {
                return Err(Stop::fails(format!("a masked step ended with {exit}")));
            }
        }
        if let Some(what) = delivered(&guest)?.describe() {
            return Err(Stop::fails(format!("a masked step let {what} in")));
        }
    }
    guest.debug(masked)?;
    guest.expect(&Exit::Out(FIRST_REPORT))?;
    if let Some(what) = delivered(&guest)?.describe() {
        return Err(Stop::fails(format!("a masked run let {what} in")));
    }

    guest.debug(&DebugIntent::default())?;
    guest.expect(&Exit::Out(SECOND_REPORT))?;
    let after = delivered(&guest)?;
    let what = format!(
        "after the mask was lifted {} of 1 interrupts and {} of 1 NMIs were delivered",
        after.interrupts, after.nmis
    );
    match (after.interrupts, after.nmis) {
        (1, 1) => {}
        // The guest waits for a number of instructions, and the host may be late.
        (0..=1, 0..=1) => return Err(Stop::Late(what.into())),
        _ => return Err(Stop::fails(what)),
    }
    Ok(format!(
        "{STEPS} steps beside a pending interrupt and NMI stayed in the loop; both came, once, when \
         the mask was lifted"
    )
    .into())
}

/// How many masked steps. More than one KVM_RUN's worth of luck, few enough to cost nothing.
const STEPS: u32 = 8;

/// The control: the very same step without the mask ends in the handler (kvm_pvm), or has run the
/// handler by its end (kvm_intel, kvm_amd: the frame holds RFLAGS.TF, the handler runs freely).
fn unmasked_interrupt_is_delivered_in_a_step(machine: &mut Machine<'_>) -> Result<(), Stop> {
    let mut guest = in_the_loop(machine)?;
    send_interrupt(&guest)?;
    let exit = guest.step(&DebugIntent::default())?;
    let in_handler = matches!(exit, Exit::Debug { pc, .. }
        if (u64::from(super::machine::HANDLER)..u64::from(HANDLER_NMI)).contains(&pc));
    if in_handler || delivered(&guest)?.interrupts == 1 {
        Ok(())
    } else {
        Err(Stop::Unclear(
            format!("a pending interrupt did not come even without the mask: {exit}").into(),
        ))
    }
}

/// A fixed interrupt reaches the local APIC in the kernel, although there is no IOAPIC nor PIC.
fn split_irqchip(machine: &mut Machine<'_>) -> Seen {
    let mut guest = in_the_loop(machine)?;
    send_interrupt(&guest)?;
    guest.debug(&DebugIntent::default())?;
    guest.expect(&Exit::Out(FIRST_REPORT))?;
    let seen = delivered(&guest)?;
    if seen
        == (Delivered {
            interrupts: 1,
            nmis: 0,
        })
    {
        Ok("an MSI was delivered by the local APIC in the kernel".into())
    } else {
        let what = format!("{} of 1 interrupts were delivered", seen.interrupts);
        Err(match seen.interrupts {
            0 => Stop::Late(what.into()),
            _ => Stop::fails(what),
        })
    }
}

/// A guest that has interrupts enabled and stands at the start of the loop.
fn in_the_loop<'a>(machine: &'a mut Machine<'_>) -> Result<Guest<'a>, Stop> {
    machine.handle(NMI, HANDLER_NMI, COUNT_NMI)?;
    let mut guest = machine.vcpu(PROGRAM, Some((VECTOR, COUNT_INTERRUPT)))?;
    enable_apic(&guest)?;
    // MOV, STI and NOP; some KVMs take the two behind STI's shadow at once.
    for _ in 0..3 {
        match guest.step(&DebugIntent::default())? {
            Exit::Debug { pc: LOOP, .. } => return Ok(guest),
            Exit::Debug { .. } => {}
            exit => return Err(Stop::Unclear(format!("{exit} on the way in").into())),
        }
    }
    Err(Stop::Unclear(
        "three steps did not reach the fourth instruction".into(),
    ))
}

/// Sets the software-enable bit of the spurious-vector register (SDM 3A 12.9): it is clear after a
/// reset, and nothing fixed is accepted then.
fn enable_apic(guest: &Guest<'_>) -> Result<(), Stop> {
    const SPURIOUS: usize = 0xf0;
    let mut lapic = guest.vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
    if let Some(high) = lapic.regs.get_mut(SPURIOUS + 1) {
        *high |= 1;
    }
    guest
        .vcpu
        .set_lapic(&lapic)
        .map_err(refused("KVM_SET_LAPIC"))
}

/// An edge-triggered fixed interrupt for this vCPU (SDM 3A 12.11).
fn send_interrupt(guest: &Guest<'_>) -> Result<(), Stop> {
    let accepted = guest
        .vm()
        .signal_msi(kvm_msi {
            address_lo: 0xfee0_0000 | (u32::from(guest.id) << 12),
            data: u32::from(VECTOR),
            ..Default::default()
        })
        .map_err(refused("KVM_SIGNAL_MSI"))?;
    if accepted > 0 {
        Ok(())
    } else {
        Err(Stop::Unclear("the local APIC did not take an MSI".into()))
    }
}

/// What the handlers have counted.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Delivered {
    interrupts: u8,
    nmis: u8,
}

impl Delivered {
    fn describe(self) -> Option<&'static str> {
        match (self.interrupts, self.nmis) {
            (0, 0) => None,
            (_, 0) => Some("an interrupt"),
            (0, _) => Some("an NMI"),
            _ => Some("an interrupt and an NMI"),
        }
    }
}

/// BL and BH.
fn delivered(guest: &Guest<'_>) -> Result<Delivered, Stop> {
    let [interrupts, nmis, ..] = guest.regs()?.rbx.to_le_bytes();
    Ok(Delivered { interrupts, nmis })
}

//! The cases that concern `KVM_SET_GUEST_DEBUG`, without interrupts.

use std::format;

use super::machine::{CODE, DATA, Exit, HANDLER, Machine, STACK, Stop};
use super::{Case, Seen};
use crate::capability::Capability;
use crate::debug_state::{DebugIntent, HwBreakpoint, HwBreakpointKind, Inject};

pub(super) const CASES: &[Case] = &[
    (Capability::SingleStep, single_step),
    (Capability::SingleStepUser, single_step_user),
    (Capability::BptExit, bpt_exit),
    (Capability::HwBreakpoint, hw_breakpoint),
    (Capability::Watchpoint, watchpoint),
    (Capability::InjectBp, inject_bp),
    (Capability::InjectDb, inject_db),
];

/// Vector of #DB, and the exception that `KVM_EXIT_DEBUG` reports for it.
const DB: u8 = 1;
/// Vector of #BP, and the exception that `KVM_EXIT_DEBUG` reports for it.
const BP: u8 = 3;
/// DR6.BS, bit 14: a single step (SDM 3B 19.2.3).
const DR6_BS: u64 = 1 << 14;
/// DR6.B0-B3: which breakpoint was hit.
const DR6_B: u64 = 0xf;

/// The port that a handler writes to, to show that it runs.
const SEEN_IN_GUEST: u16 = 0x83;
const REPORTING_HANDLER: &[u8] = &[
    0xe6, 0x83, // 1800: out 0x83, al
    0xcf, //       1802: iret
];

/// Three instructions, one at a time; then the flag is lifted and the rest runs freely.
fn single_step(machine: &mut Machine<'_>) -> Seen {
    let mut guest = machine.vcpu(
        &[
            0x90, // 1000: nop
            0x40, // 1001: inc ax
            0x40, // 1002: inc ax
            0x40, // 1003: inc ax
            0xf4, // 1004: hlt
        ],
        None,
    )?;
    for done in 1..=3 {
        let wanted = u64::from(CODE) + done;
        match guest.step(&DebugIntent::default())? {
            Exit::Debug { exception, pc, dr6 }
                if exception == u32::from(DB) && pc == wanted && dr6 & DR6_BS != 0 => {}
            exit => {
                return Err(Stop::fails(format!(
                    "{exit} in place of a step to {wanted:#x}"
                )));
            }
        }
        let ax = guest.regs()?.rax;
        if ax != done - 1 {
            return Err(Stop::fails(format!(
                "after {done} steps AX is {ax}, not {}",
                done - 1
            )));
        }
    }
    guest.debug(&DebugIntent::default())?;
    guest.expect(&Exit::Hlt)?;
    Ok("3 instructions stepped one at a time".into())
}

/// Two instructions at CPL3, one at a time, and none of the guest's handlers runs.
fn single_step_user(machine: &mut Machine<'_>) -> Seen {
    let mut guest = machine.user_vcpu(&[
        0x90, //             1000: nop
        0x48, 0xff, 0xc0, // 1001: inc rax
        0x48, 0xff, 0xc0, // 1004: inc rax
        0xeb, 0xfe, //       1007: jmp 0x1007
    ])?;
    for (length, rax) in [(1, 0), (4, 1)] {
        let wanted = u64::from(CODE) + length;
        match guest.step(&DebugIntent::default())? {
            Exit::Debug { exception, pc, dr6 }
                if exception == u32::from(DB) && pc == wanted && dr6 & DR6_BS != 0 => {}
            Exit::Out(SEEN_IN_GUEST) => {
                return Err(Stop::fails(
                    "the #DB of a step at CPL3 goes to the guest's own vector 1",
                ));
            }
            exit => {
                return Err(Stop::fails(format!(
                    "{exit} in place of a step at CPL3 to {wanted:#x}"
                )));
            }
        }
        if guest.regs()?.rax != rax {
            return Err(Stop::fails("a step at CPL3 is not one instruction"));
        }
    }
    Ok("2 instructions stepped one at a time at CPL3".into())
}

/// INT3 leaves the guest with RIP at it, and the guest's own handler does not run.
fn bpt_exit(machine: &mut Machine<'_>) -> Seen {
    let mut guest = machine.vcpu(
        &[
            0x90, // 1000: nop
            0xcc, // 1001: int3
            0xf4, // 1002: hlt
        ],
        Some((BP, REPORTING_HANDLER)),
    )?;
    guest.debug(&DebugIntent {
        software_breakpoints: true,
        ..DebugIntent::default()
    })?;
    let int3 = u64::from(CODE) + 1;
    match guest.run()? {
        Exit::Debug { exception, pc, .. } if exception == u32::from(BP) => {
            let rip = guest.regs()?.rip;
            if pc == int3 && rip == int3 {
                Ok("INT3 left the guest with RIP at it".into())
            } else {
                Err(Stop::fails(format!(
                    "INT3 at {int3:#x} reported pc {pc:#x} and RIP {rip:#x}"
                )))
            }
        }
        Exit::Out(SEEN_IN_GUEST) => Err(Stop::fails("INT3 went to the guest's own vector 3")),
        exit => Err(Stop::fails(format!("INT3 at CPL0 gave {exit}"))),
    }
}

/// An address that no program reaches.
const NEVER_EXECUTED: u64 = DATA as u64;

/// Each of the four slots in turn stops before its instruction executes.
fn hw_breakpoint(machine: &mut Machine<'_>) -> Seen {
    let mut guest = machine.vcpu(
        &[
            0x90, // 1000: nop
            0x40, // 1001: inc ax    slot 0
            0x40, // 1002: inc ax    slot 1
            0x40, // 1003: inc ax    slot 2
            0x40, // 1004: inc ax    slot 3
            0xf4, // 1005: hlt
        ],
        None,
    )?;
    let mut hardware = [1, 2, 3, 4].map(|n| HwBreakpoint::execute(u64::from(CODE) + n));
    for slot in 0..4_u64 {
        guest.debug(&DebugIntent {
            hardware: &hardware,
            ..DebugIntent::default()
        })?;
        let wanted = u64::from(CODE) + 1 + slot;
        match guest.run()? {
            Exit::Debug { exception, pc, dr6 }
                if exception == u32::from(DB) && pc == wanted && dr6 & DR6_B == 1 << slot => {}
            exit => {
                return Err(Stop::fails(format!(
                    "{exit} in place of a stop in slot {slot} at {wanted:#x}"
                )));
            }
        }
        // One INC before each but the first, and none at it.
        let ax = guest.regs()?.rax;
        if ax != slot {
            return Err(Stop::fails(format!(
                "stopped at slot {slot} with AX {ax}, not {slot}"
            )));
        }
        // An execute breakpoint is a fault: it would hit again. The others keep their slots.
        for passed in &mut hardware {
            if passed.address() == wanted {
                *passed = HwBreakpoint::execute(NEVER_EXECUTED);
            }
        }
    }
    guest.debug(&DebugIntent::default())?;
    guest.expect(&Exit::Hlt)?;
    Ok("an execute breakpoint hit in each of the 4 slots".into())
}

/// A write watchpoint lets a read pass and stops after the write; a read/write watchpoint stops
/// after the read.
fn watchpoint(machine: &mut Machine<'_>) -> Seen {
    let program = [
        0xa1, 0x00, 0x30, // 1000: mov ax, [0x3000]
        0xa3, 0x00, 0x30, // 1003: mov [0x3000], ax
        0xf4, //             1006: hlt
    ];
    let cases = [
        (HwBreakpointKind::Write, "write", 6),
        (HwBreakpointKind::ReadWrite, "read/write", 3),
    ];
    for (kind, name, next_instruction) in cases {
        let watch = HwBreakpoint::watch(u64::from(DATA), 2, kind);
        let mut guest = machine.vcpu(&program, None)?;
        guest.debug(&DebugIntent {
            hardware: &[watch],
            ..DebugIntent::default()
        })?;
        let wanted = u64::from(CODE) + next_instruction;
        match guest.run()? {
            Exit::Debug { exception, pc, dr6 }
                if exception == u32::from(DB) && pc == wanted && dr6 & DR6_B == 1 => {}
            Exit::Hlt => {
                return Err(Stop::fails(format!(
                    "a {name} watchpoint at CPL0 never fired"
                )));
            }
            exit => {
                return Err(Stop::fails(format!(
                    "{exit} in place of a {name} watchpoint at {wanted:#x}"
                )));
            }
        }
    }
    Ok("a write and a read/write watchpoint fired".into())
}

/// A #BP that has left the guest is given back, as a debugger does with an INT3 that is not its
/// own: the handler must return behind the INT3.
///
/// VMX takes the length of the instruction from the previous exit (vmx.c, `vmx_inject_exception`);
/// therefore the #BP follows an INT3 here. Where INT3 does not leave the guest, it follows another
/// instruction.
fn inject_bp(machine: &mut Machine<'_>) -> Seen {
    let mut guest = machine.vcpu(
        &[
            0x90, // 1000: nop
            0xcc, // 1001: int3
            0x40, // 1002: inc ax
            0xf4, // 1003: hlt
        ],
        Some((BP, REPORTING_HANDLER)),
    )?;
    guest.debug(&DebugIntent {
        software_breakpoints: true,
        ..DebugIntent::default()
    })?;
    match guest.run()? {
        Exit::Debug { exception, .. } if exception == u32::from(BP) => {}
        _ => {
            drop(guest);
            return inject(machine, Inject::Breakpoint, BP);
        }
    }
    guest.debug(&DebugIntent {
        inject: Some(Inject::Breakpoint),
        ..DebugIntent::default()
    })?;
    guest.expect(&Exit::Out(SEEN_IN_GUEST))?;
    let frame = guest.word(STACK - 6)?;
    guest.expect(&Exit::Hlt)?;
    let ax = guest.regs()?.rax;
    if frame == CODE + 2 && ax == 1 {
        Ok("the guest's own INT3 was given back, and its handler returned behind it".into())
    } else {
        Err(Stop::fails(format!(
            "the handler of an INT3 at {:#x} returned to {frame:#x}, and AX is {ax}",
            CODE + 1
        )))
    }
}

fn inject_db(machine: &mut Machine<'_>) -> Seen {
    inject(machine, Inject::Debug, DB)
}

/// The guest's own handler runs before the next instruction, and returns to it.
fn inject(machine: &mut Machine<'_>, inject: Inject, vector: u8) -> Seen {
    let mut guest = machine.vcpu(
        &[
            0x90, // 1000: nop
            0x40, // 1001: inc ax
            0xf4, // 1002: hlt
        ],
        Some((vector, REPORTING_HANDLER)),
    )?;
    // Not at the entry: there the return address would prove nothing.
    let mut regs = guest.regs()?;
    regs.rip = u64::from(CODE) + 1;
    guest
        .vcpu
        .set_regs(&regs)
        .map_err(super::machine::refused("KVM_SET_REGS"))?;
    guest.debug(&DebugIntent {
        inject: Some(inject),
        ..DebugIntent::default()
    })?;
    guest.expect(&Exit::Out(SEEN_IN_GUEST))?;
    let frame = guest.word(STACK - 6)?;
    guest.expect(&Exit::Hlt)?;
    let ax = guest.regs()?.rax;
    // #DB is a fault here. #BP is a trap: SVM takes it for that of the instruction at RIP, and
    // returns behind it (svm.c, `svm_update_soft_interrupt_rip`).
    match (frame.wrapping_sub(CODE), ax, inject) {
        (1, 1, _) | (2, 0, Inject::Breakpoint) => {
            Ok(format!("the guest's own handler of vector {vector} ran once and returned").into())
        }
        _ => Err(Stop::fails(format!(
            "injected at {:#x}, the handler at {HANDLER:#x} returned to {frame:#x}, and AX is {ax}",
            CODE + 1
        ))),
    }
}

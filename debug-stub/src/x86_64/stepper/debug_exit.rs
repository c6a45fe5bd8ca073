//! Debug exceptions: the debugger's, or the guest's own.

use vcpu_caps::{HwBreakpointKind, Inject};

use super::arming::Arming;
use super::registers::{Registers, has_tf};
use super::slots::Use;
use super::vcpu::{DebugExit, StepperError, Vcpu};
use crate::address::{GuestPhysAddr, GuestVirtAddr};
use crate::host::GuestMemory;
use crate::order::{Armed, StopReason, WatchAccess};
use crate::x86_64::bits::{DR6_ACTIVE_LOW, DR6_BD, DR6_BS, DR6_HITS};
use crate::x86_64::{RegisterFile, RegisterGroups, translate};

/// #DB's vector.
const DEBUG_VECTOR: u32 = 1;
/// The NMI's vector.
const NMI: u8 = 2;
/// #BP's vector.
const BREAKPOINT_VECTOR: u32 = 3;

/// Whose a debug exception is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The debugger's: a breakpoint or watchpoint.
    Hit(StopReason),
    /// The trap after a single step, and nothing else.
    Trap,
    /// The guest's own: it is given back with the next entry.
    Guest,
}

/// Sorts a debug exception. What is the guest's own is owed to it from here on.
pub(super) fn sort<V: Vcpu>(
    exit: &DebugExit,
    armed: &Armed,
    arming: &mut Arming,
    registers: &mut Registers,
    vcpu: &mut V,
    memory: &impl GuestMemory,
) -> Result<Cause, StepperError<V::Error>> {
    match exit.exception {
        BREAKPOINT_VECTOR => {
            if software_breakpoint_at(exit.pc, armed, registers, vcpu, memory)? {
                return Ok(Cause::Hit(StopReason::SoftwareBreakpoint));
            }
            if arming.code_guards.are_wanted() {
                let place = place_of(exit.pc, registers, vcpu, memory)?;
                if place.is_some_and(|place| arming.code_guards.stop_at(place)) {
                    return Ok(Cause::Trap);
                }
            }
            arming.give_back::<V>(Inject::Breakpoint)?;
            Ok(Cause::Guest)
        }
        DEBUG_VECTOR => {
            let stepping = arming.is_stepping();
            let mut owed = exit.dr6 & DR6_BD | guests_watchpoints(exit, arming);
            if arming.slots().is_empty() && exit.dr6 & DR6_HITS != 0 {
                // The guest's own DR0-DR3 were in force, if any. Only those that its DR7 enables
                // count: QEMU's TCG compares RIP with all four at each single step, and what is in
                // them may be another guest's, since KVM loads them only for a guest that uses
                // them.
                let own = arming.own_breakpoints(vcpu)?;
                // Beside BS an execute breakpoint is the next instruction's, and is looked at before
                // that is stepped.
                let counts = if stepping && exit.dr6 & DR6_BS != 0 {
                    own.watch_bits()
                } else {
                    own.enabled_bits()
                };
                owed |= exit.dr6 & counts;
            }
            if !stepping && exit.dr6 & DR6_BS != 0 && !is_nmi_window(registers, vcpu)? {
                // Only the guest has set TF.
                owed |= DR6_BS;
            }
            if owed != 0 {
                owe_debug_exception(owed, arming, vcpu)?;
            }
            Ok(match hit(exit, arming) {
                Some(reason) => Cause::Hit(reason),
                None if stepping => Cause::Trap,
                None => Cause::Guest,
            })
        }
        other => Ok(Cause::Hit(StopReason::InternalError(format!(
            "a debug exit for exception {other}, which is neither #DB nor #BP"
        )))),
    }
}

/// Returns `true` if the hypervisor itself has stepped the instruction, to find the end of an NMI's handler: kvm_amd
/// does, and reports the trap if breakpoints are armed (svm.c, `svm_enable_nmi_window`, `db_interception`). The
/// next NMI may enter now, and TF is clear. A guest that clears its own TF by the instruction at which an NMI
/// arrives looks the same, and loses that trap.
fn is_nmi_window<V: Vcpu>(
    registers: &mut Registers,
    vcpu: &mut V,
) -> Result<bool, StepperError<V::Error>> {
    let mut file = RegisterFile::default();
    registers.read(vcpu, RegisterGroups::CORE, &mut file)?;
    if has_tf(&file) {
        return Ok(false);
    }
    let next = vcpu
        .next_interrupt(false)
        .map_err(StepperError::of("reading pending interrupts"))?;
    Ok(next == Some(NMI))
}

/// The debugger's breakpoint or watchpoint that DR6 names.
fn hit(exit: &DebugExit, arming: &Arming) -> Option<StopReason> {
    arming.slots().hit(exit.dr6).find_map(|(breakpoint, of)| {
        if of != Use::Debugger {
            return None;
        }
        let watched = |access| StopReason::Watchpoint {
            address: breakpoint.address(),
            access,
        };
        match breakpoint.kind() {
            // B bits may be set for conditions that are not enabled (SDM 3B 19.2.3).
            HwBreakpointKind::Execute => {
                (breakpoint.address() == exit.pc).then_some(StopReason::HardwareBreakpoint)
            }
            HwBreakpointKind::Write => Some(watched(WatchAccess::Write)),
            HwBreakpointKind::ReadWrite => Some(watched(WatchAccess::ReadWrite)),
        }
    })
}

/// DR6.B0-B3 of the guest's own watchpoints that were hit in a register of the debugger's.
fn guests_watchpoints(exit: &DebugExit, arming: &Arming) -> u64 {
    let hits = arming.slots().hit(exit.dr6);
    hits.fold(0, |bits, (_, of)| match of {
        Use::Guest(slot) => bits | 1 << slot,
        Use::Debugger | Use::Guard => bits,
    })
}

/// Gives a #DB of the guest's own back to it, with these bits of DR6.
pub(super) fn owe_debug_exception<V: Vcpu>(
    dr6: u64,
    arming: &mut Arming,
    vcpu: &mut V,
) -> Result<(), StepperError<V::Error>> {
    // KVM queues the exception without a payload: DR6 has to be written.
    let status = vcpu
        .debug_status()
        .map_err(StepperError::of("reading DR6"))?;
    // The processor clears B0-B3 of an earlier exception, and sets RTM and what is reserved (SDM 3B
    // 19.2.3).
    vcpu.set_dr6(status.dr6 & !DR6_HITS | DR6_ACTIVE_LOW | dr6)
        .map_err(StepperError::of("writing DR6"))?;
    arming.give_back::<V>(Inject::Debug)
}

/// Returns `true` if the debugger's INT3 is at this linear address.
pub(super) fn software_breakpoint_at<V: Vcpu>(
    pc: u64,
    armed: &Armed,
    registers: &mut Registers,
    vcpu: &mut V,
    memory: &impl GuestMemory,
) -> Result<bool, StepperError<V::Error>> {
    if armed.software.is_empty() {
        return Ok(false);
    }
    let place = place_of(pc, registers, vcpu, memory)?;
    Ok(place.is_some_and(|gpa| armed.software.contains(&gpa)))
}

/// The physical address of the instruction at this linear address.
fn place_of<V: Vcpu>(
    pc: u64,
    registers: &mut Registers,
    vcpu: &mut V,
    memory: &impl GuestMemory,
) -> Result<Option<GuestPhysAddr>, StepperError<V::Error>> {
    let mut file = RegisterFile::default();
    registers.read(vcpu, RegisterGroups::SPECIAL, &mut file)?;
    let found = translate(&file.special, memory, GuestVirtAddr(pc));
    Ok(found.ok().map(|found| found.gpa))
}

//! `KVM_EXIT_DEBUG`: the debugger's, or the guest's own.

use kvm_bindings::kvm_debug_exit_arch;
use vcpu_caps::{HwBreakpointKind, Inject};

use super::vcpu::DebugVcpu;
use crate::address::GuestVirtAddr;
use crate::host::GuestMemory;
use crate::order::{Armed, StopReason, WatchAccess};
use crate::x86_64::{RegisterFile, RegisterGroups, translate};

/// DR6.B0-B3: which debug-address register hit (SDM 3B 19.2.3).
const DR6_HITS: u64 = 0xf;
/// DR6.BD: debug-register access under DR7.GD.
const DR6_BD: u64 = 1 << 13;
/// DR6.BS: single step.
pub(super) const DR6_BS: u64 = 1 << 14;
/// #DB's vector.
const DEBUG_VECTOR: u32 = 1;
/// #BP's vector.
const BREAKPOINT_VECTOR: u32 = 3;

/// The bits of DR6 for the breakpoints that L0-L3 or G0-G3 of DR7 enable (SDM 3B 19.2.4).
fn enabled(dr7: u64) -> u64 {
    (0..4).fold(0, |bits, slot| {
        bits | (u64::from(dr7 >> (2 * slot) & 3 != 0) << slot)
    })
}

/// Whose a `KVM_EXIT_DEBUG` is.
#[derive(Debug)]
pub(super) enum DebugExit {
    /// The debugger's: a breakpoint or watchpoint.
    Hit(StopReason),
    /// The trap after a single step, and nothing else.
    Trap,
    /// The guest's own: it is given back on the next entry.
    Guest,
}

impl DebugVcpu {
    /// Whose a `KVM_EXIT_DEBUG` is. What is the guest's own is owed to it from here on.
    pub(super) fn classify(
        &mut self,
        exit: &kvm_debug_exit_arch,
        stepping: bool,
        armed: &Armed,
        memory: &impl GuestMemory,
    ) -> DebugExit {
        match exit.exception {
            BREAKPOINT_VECTOR => {
                if self.software_breakpoint_at(exit.pc, armed, memory) {
                    return DebugExit::Hit(StopReason::SoftwareBreakpoint);
                }
                self.owe(Inject::Breakpoint);
                DebugExit::Guest
            }
            DEBUG_VECTOR => {
                let hits = exit.dr6 & DR6_HITS;
                let hardware = self.control.intent().hardware;
                for (slot, breakpoint) in hardware.iter().enumerate() {
                    if hits & (1 << slot) == 0 {
                        continue;
                    }
                    let reason = match breakpoint.kind() {
                        // B bits may be set for conditions that are not enabled (SDM 3B 19.2.3).
                        HwBreakpointKind::Execute if breakpoint.address() != exit.pc => continue,
                        HwBreakpointKind::Execute => StopReason::HardwareBreakpoint,
                        HwBreakpointKind::Write => StopReason::Watchpoint {
                            address: breakpoint.address(),
                            access: WatchAccess::Write,
                        },
                        HwBreakpointKind::ReadWrite => StopReason::Watchpoint {
                            address: breakpoint.address(),
                            access: WatchAccess::ReadWrite,
                        },
                    };
                    return DebugExit::Hit(reason);
                }
                let own_registers = hardware.is_empty();
                let mut owed = exit.dr6 & DR6_BD;
                if own_registers && hits != 0 {
                    // The guest's own DR0-DR3 were in force, if anybody's.
                    owed |= hits & self.enabled_by_guest();
                }
                if !stepping {
                    // Nobody but the guest has set TF.
                    owed |= exit.dr6 & DR6_BS;
                }
                if owed != 0 {
                    self.owe_debug_exception(owed);
                }
                if stepping {
                    DebugExit::Trap
                } else {
                    DebugExit::Guest
                }
            }
            other => DebugExit::Hit(StopReason::InternalError(format!(
                "{}: KVM_EXIT_DEBUG for exception {other}, which is neither #DB nor #BP",
                self.id
            ))),
        }
    }

    /// The bits of DR6 for the breakpoints that the guest's own DR7 enables.
    ///
    /// The others mean nothing, and are set all the same: QEMU's TCG compares RIP with all four
    /// registers at each single step, and what is in them may be of another guest, since KVM loads
    /// them only for a guest that uses them.
    fn enabled_by_guest(&self) -> u64 {
        match self.fd.get_debug_regs() {
            Ok(registers) => enabled(registers.dr7),
            Err(error) => {
                tracing::warn!(vcpu = %self.id, %error, "a breakpoint of the guest's own is lost");
                0
            }
        }
    }

    /// Puts a #DB of the guest's own on the way back to it.
    pub(super) fn owe_debug_exception(&mut self, dr6: u64) {
        // KVM queues the exception without a payload: DR6 is ours to set.
        let set = self.fd.get_debug_regs().and_then(|mut registers| {
            registers.dr6 |= dr6;
            self.fd.set_debug_regs(&registers)
        });
        if let Err(error) = set {
            tracing::warn!(vcpu = %self.id, %error, "the guest's DR6 lacks {dr6:#x}");
        }
        self.owe(Inject::Debug);
    }

    /// An exception of the guest's own goes back to it on the next entry.
    fn owe(&mut self, exception: Inject) {
        if let Err(error) = self.control.inject(exception) {
            tracing::warn!(vcpu = %self.id, %error, "the guest misses an exception of its own");
        }
    }

    /// Whether the debugger's INT3 is at this linear address.
    pub(super) fn software_breakpoint_at(
        &mut self,
        pc: u64,
        armed: &Armed,
        memory: &impl GuestMemory,
    ) -> bool {
        if armed.software.is_empty() {
            return false;
        }
        let mut file = RegisterFile::default();
        self.read_registers(RegisterGroups::SPECIAL, &mut file)
            .is_ok()
            && translate(&file.special, memory, GuestVirtAddr(pc))
                .is_ok_and(|at| armed.software.contains(&at.gpa))
    }
}

#[cfg(test)]
mod tests {
    use super::enabled;

    #[test]
    fn a_breakpoint_is_enabled_locally_or_globally() {
        for (dr7, bits) in [
            (0x400, 0),
            (0x401, 0b0001),
            (0x402, 0b0001),
            (0x404, 0b0010),
            (0x420, 0b0100),
            (0x440, 0b1000),
            // Types and lengths of others, LE, GE and GD enable nothing.
            (0xffff_2700, 0),
            (0xffff_27ff, 0b1111),
        ] {
            assert_eq!(enabled(dr7), bits, "DR7 {dr7:#x}");
        }
    }
}

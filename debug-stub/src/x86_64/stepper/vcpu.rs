//! What the stepper asks of a stopped vCPU.

use std::error::Error;
use std::fmt;

use vcpu_caps::{ControlError, GuestDebug};

use crate::order::StopReason;
use crate::x86_64::{
    CoreRegisters, DebugRegisters, RegisterFile, RegisterGroups, SpecialRegisters,
};

/// A stopped vCPU of a hypervisor, as the [`Stepper`](super::Stepper) reads and writes it.
///
/// The semantics are those of KVM's ioctls of the same names. No method is called while the vCPU
/// runs. A vCPU that is only lent to the debugger needs no type of its own: implement the trait
/// for a struct that borrows it.
pub trait Vcpu {
    /// A refused call.
    type Error: Error + 'static;

    /// `true` if the hypervisor itself sets RFLAGS.TF whenever RFLAGS are written while the linear
    /// RIP is the one of the last [`set_guest_debug`](Self::set_guest_debug) with
    /// `KVM_GUESTDBG_SINGLESTEP`. KVM does (x86.c, `__kvm_set_rflags`), also when it resets the
    /// vCPU for INIT; the stepper then arms steps that survive INIT.
    const TF_FOLLOWS_ARMED_RIP: bool = false;

    /// Fills the `groups` of `file`, and leaves the others alone. RFLAGS.TF may be shown as 0 while
    /// a single step is in force. When [`RegisterGroups::FPU`] is asked for, `file` has the special registers
    /// already, or they are asked for too: CR4 says whether XCR0 is in force.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn read_registers(
        &mut self,
        groups: RegisterGroups,
        file: &mut RegisterFile,
    ) -> Result<(), Self::Error>;

    /// Sets the `groups` from `file`. State that no register shows stays as it is.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn write_registers(
        &mut self,
        groups: RegisterGroups,
        file: &RegisterFile,
    ) -> Result<(), Self::Error>;

    /// Reads a model-specific register: IA32_FMASK, and IA32_STAR where user code has no single step.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn read_msr(&mut self, index: u32) -> Result<u64, Self::Error>;

    /// Writes a model-specific register.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Self::Error>;

    /// Reads the guest's own debug registers, whatever the debugger has armed.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn debug_status(&mut self) -> Result<DebugRegisters, Self::Error>;

    /// Sets the guest's own DR6.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn set_dr6(&mut self, dr6: u64) -> Result<(), Self::Error>;

    /// What is queued or half delivered (`KVM_GET_VCPU_EVENTS`).
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn pending_events(&mut self) -> Result<PendingEvents, Self::Error>;

    /// Sets [`PendingEvents::interrupt`] (`KVM_SET_VCPU_EVENTS`): it enters with the next entry, or does
    /// not enter. The interrupt controller is left as it is. Called only with `None` where there is
    /// one, and later, once, with that one.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn set_injected_interrupt(&mut self, vector: Option<u8>) -> Result<(), Self::Error> {
        let _ = vector;
        Ok(())
    }

    /// Returns `true` if NMIs are blocked until the next IRET (SDM 3A 6.7.1), or if the hypervisor does
    /// not say. Asked for where the stepper would carry out IRET itself.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn nmis_blocked(&mut self) -> Result<bool, Self::Error> {
        Ok(true)
    }

    /// The vector of the event that enters next, as far as that is known: an NMI, or the highest
    /// interrupt that is requested if `enabled` says that RFLAGS.IF is set. Asked for before a step that
    /// does not mask interrupts. Its handler is where such a step ends; without an answer the handler
    /// may run inside the step, and see the debugger's TF.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn next_interrupt(&mut self, enabled: bool) -> Result<Option<u8>, Self::Error> {
        let _ = enabled;
        Ok(None)
    }

    /// Puts an interrupt that was taken back by
    /// [`set_injected_interrupt`](Self::set_injected_interrupt) back into the interrupt controller, for
    /// a vCPU that must not take it now and that the debugger leaves.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn requeue_interrupt(&mut self, vector: u8) -> Result<(), Self::Error> {
        self.set_injected_interrupt(Some(vector))
    }

    /// What the vCPU waits for. May accept a pending INIT or start-up IPI, as
    /// `KVM_GET_MP_STATE` does, and so change registers.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn run_state(&mut self) -> Result<RunState, Self::Error>;

    /// Puts the vCPU into [`RunState::Halted`] or [`RunState::Runnable`], with no interrupt blocked by
    /// STI or MOV SS (`KVM_SET_MP_STATE`). Returns `false`, and does nothing, where the hypervisor does
    /// not know what a vCPU waits for, since the local APIC is the VMM's.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn set_run_state(&mut self, state: RunState) -> Result<bool, Self::Error> {
        let _ = state;
        Ok(false)
    }

    /// Blocks interrupts until the next instruction has ended, as STI did (`KVM_SET_VCPU_EVENTS`). A
    /// hypervisor that keeps that through a step (kvm_amd) needs nothing here. A VMM that injects interrupts
    /// itself injects none before the next exit.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn restore_sti_shadow(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Replaces the vCPU's debug state (`KVM_SET_GUEST_DEBUG`). A single step is armed for the
    /// instruction at the RIP that the vCPU has now.
    ///
    /// # Errors
    /// If the hypervisor refuses; the previous state then stays in force.
    fn set_guest_debug(&mut self, debug: &GuestDebug) -> Result<(), Self::Error>;

    /// Asks for registers with each exit from now on, or no longer (`KVM_CAP_SYNC_REGS`). Called
    /// only where the plan has `sync_regs`.
    fn sync_registers(&mut self, on: bool) {
        let _ = on;
    }

    /// The registers that came with the last exit, if that was asked for. No system call.
    fn synced_registers(&mut self) -> Option<(CoreRegisters, SpecialRegisters)> {
        None
    }

    /// Sets RFLAGS.TF in the registers that came with the last exit, to go in with the next entry.
    /// Returns `false` if the hypervisor has no such way. No system call.
    fn set_tf_at_entry(&mut self) -> bool {
        false
    }

    /// Nothing goes in with the next entry.
    fn discard_tf_at_entry(&mut self) {}
}

/// Events that enter with the next entry, whatever is masked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingEvents {
    /// An exception. A write of registers would lose it (KVM, `__set_regs`), and the stepper does
    /// without.
    pub exception: bool,
    /// The vector of an interrupt that the interrupt controller has handed out already.
    pub interrupt: Option<u8>,
}

/// What a vCPU waits for (`KVM_GET_MP_STATE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Nothing: it runs code. Also where the hypervisor does not know, since the local APIC is the
    /// VMM's.
    #[default]
    Runnable,
    /// HLT was executed: it waits for an interrupt.
    Halted,
    /// An application processor that waits for INIT.
    WaitForInit,
    /// It has taken INIT and waits for a start-up IPI (SDM 3A 9.4.4).
    WaitForSipi,
    /// It has taken a start-up IPI.
    Starting,
}

impl RunState {
    /// A few words for `info threads`; `None` if the vCPU runs code.
    #[must_use]
    pub fn waits(self) -> Option<&'static str> {
        match self {
            Self::Runnable => None,
            Self::Halted => Some("halted"),
            Self::WaitForInit => Some("waits for INIT"),
            Self::WaitForSipi => Some("waits for SIPI"),
            Self::Starting => Some("starts"),
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.waits().unwrap_or("runs"))
    }
}

/// A vCPU that could not be read, written or armed.
#[derive(Debug, thiserror::Error)]
pub enum StepperError<E: Error + 'static> {
    /// The plan lacks what the order needs.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The hypervisor delivers the trap of a step of user code to the guest's own vector 1, and the stepper
    /// could not take it back here.
    #[error(
        "this hypervisor cannot step user code here: its trap goes to the guest's vector 1, and {0}; \
         run to a breakpoint in the kernel instead"
    )]
    UserStep(&'static str),
    /// The hypervisor refused a call.
    #[error("{call}: {source}")]
    Vcpu {
        /// What was asked for.
        call: &'static str,
        /// Why not.
        source: E,
    },
}

impl<E: Error + 'static> StepperError<E> {
    /// Names the call that failed.
    pub(super) fn of(call: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Vcpu { call, source }
    }
}

/// What one run of the vCPU came back with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A debug exception left the guest (`KVM_EXIT_DEBUG`).
    Debug(DebugExit),
    /// An access was served, and the hypervisor completes its instruction with the next entry:
    /// port I/O, MMIO, an MSR, a write of CR8.
    Served,
    /// Nothing that concerns a debugger: a signal, an interrupt window, an end of interrupt.
    Nothing,
    /// HLT left the guest. Only where the local APIC is the VMM's.
    Halted,
    /// INIT or a start-up IPI has replaced the registers. Only where the VMM does this.
    Restarted,
    /// The hypervisor could not enter the guest again, and says why. What was executed before counts; one more
    /// entry is tried in a step, after a call that makes the hypervisor look at what is pending.
    ///
    /// kvm_intel without APICv, which `KVM_GUESTDBG_BLOCKIRQ` turns off, comes to that when a masked step lowers
    /// the TPR: it compares the priority with one that it has not updated while interrupts were withheld
    /// (`handle_tpr_below_threshold`), and keeps a TPR threshold above the TPR, with which no entry succeeds
    /// (SDM 3C 26.2.1.1).
    NotEntered(String),
    /// The guest cannot go on, or has ended. A text in it is completed with the vCPU's place.
    Fatal(StopReason),
}

/// A debug exception (`struct kvm_debug_exit_arch`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugExit {
    /// Its vector: 1 (#DB) or 3 (#BP).
    pub exception: u32,
    /// Linear address of the instruction that the vCPU is about to execute; for #BP, of the INT3.
    pub pc: u64,
    /// DR6 as the exception would have set it (SDM 3B 19.2.3).
    pub dr6: u64,
}

/// What the VMM's loop does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest, unless the vCPU is to stop: then call
    /// [`Stepper::interrupt`](super::Stepper::interrupt).
    Enter,
    /// Let the hypervisor complete the access that was served, and run no instruction:
    /// `KVM_RUN` with `immediate_exit` set. Report what it came back with.
    Complete,
    /// The order is over.
    Stopped(StopReason),
}

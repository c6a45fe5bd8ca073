//! Exits that concern a debugger, and the fatal ones.

use std::{io, mem};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_HYPERCALL, KVM_EXIT_HYPERV,
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IOAPIC_EOI,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_UNKNOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_EXIT_XEN,
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::order::StopReason;
use crate::x86_64::stepper::{DebugExit, Outcome};

/// The VM-instruction error "VM entry with invalid control field(s)" (SDM 3C 30.4). kvm_amd has no such
/// number.
const INVALID_CONTROL_FIELDS: u64 = 7;

/// Returns the stepper's outcome for an exit that the VMM does not serve.
///
/// The VMM serves its devices' exits itself and reports [`Outcome::Served`]; hand the others to
/// this function. An exit that needs service is fatal here, and the text names it.
#[must_use]
pub fn outcome(exit: &VcpuExit<'_>) -> Outcome {
    match exit {
        VcpuExit::Debug(exit) => Outcome::Debug(DebugExit {
            exception: exit.exception,
            pc: exit.pc,
            dr6: exit.dr6,
        }),
        VcpuExit::Hlt => Outcome::Halted,
        // It replaces the trap of a stepped MOV to CR8 (vmx.c, `handle_cr`). As after an access, RIP
        // shows that the instruction is done.
        VcpuExit::SetTpr => Outcome::Served,
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) => Outcome::Nothing,
        VcpuExit::Shutdown => Outcome::Fatal(StopReason::TripleFault(String::new())),
        VcpuExit::InternalError => internal("KVM_EXIT_INTERNAL_ERROR".to_owned()),
        VcpuExit::SystemEvent(event, _) => system_event(*event),
        VcpuExit::FailEntry(reason, cpu) => {
            let text = format!(
                "KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest (reason {reason:#x}, \
                 host CPU {cpu})"
            );
            if *reason == INVALID_CONTROL_FIELDS {
                return Outcome::NotEntered(text);
            }
            internal(text)
        }
        other => internal(format!(
            "KVM_RUN ended with an exit that the VMM does not serve: {other:?}"
        )),
    }
}

/// In a run structure whose exit was taken. KVM writes the exit's reason and never reads it (api.rst 5).
const TAKEN: u32 = u32::MAX;

/// Takes from the run structure what the last `KVM_RUN` was for the stepper, once. For a VMM that calls
/// `KVM_RUN` and serves the exit where it has no stepper at hand, behind a hypervisor trait for instance:
/// it calls this after each `KVM_RUN`, however that ended, and hands the result to
/// [`Driver::ran`](crate::x86_64::stepper::Driver::ran).
///
/// The VMM serves all accesses: of ports, memory, MSRs and hypercalls. An unknown exit is
/// [`Outcome::Nothing`], since KVM may leave that reason after a `KVM_RUN` that failed: the VMM ends the
/// guest for it by itself.
#[must_use]
#[expect(unsafe_code, reason = "the exit's members are in a union")]
pub fn take_outcome(fd: &mut VcpuFd) -> Outcome {
    let run = fd.get_kvm_run();
    let reason = mem::replace(&mut run.exit_reason, TAKEN);
    match reason {
        KVM_EXIT_DEBUG => {
            // SAFETY: as in `internal_error`.
            let exit = unsafe { run.__bindgen_anon_1.debug.arch };
            outcome(&VcpuExit::Debug(exit))
        }
        KVM_EXIT_IO | KVM_EXIT_MMIO | KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR | KVM_EXIT_HYPERV
        | KVM_EXIT_XEN | KVM_EXIT_HYPERCALL => Outcome::Served,
        KVM_EXIT_HLT => outcome(&VcpuExit::Hlt),
        KVM_EXIT_SET_TPR => outcome(&VcpuExit::SetTpr),
        KVM_EXIT_SHUTDOWN => outcome(&VcpuExit::Shutdown),
        KVM_EXIT_INTERNAL_ERROR => internal_error(fd),
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as in `internal_error`.
            let entry = unsafe { run.__bindgen_anon_1.fail_entry };
            outcome(&VcpuExit::FailEntry(
                entry.hardware_entry_failure_reason,
                entry.cpu,
            ))
        }
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: as in `internal_error`.
            system_event(unsafe { run.__bindgen_anon_1.system_event.type_ })
        }
        TAKEN
        | KVM_EXIT_UNKNOWN
        | KVM_EXIT_INTR
        | KVM_EXIT_IRQ_WINDOW_OPEN
        | KVM_EXIT_IOAPIC_EOI => Outcome::Nothing,
        other => internal(format!("KVM_RUN ended with exit {other}")),
    }
}

/// Returns the stepper's outcome for a failed `KVM_RUN`. For `KVM_EXIT_INTERNAL_ERROR` see
/// [`internal_error`].
///
/// EINTR means a kick. EAGAIN means that an application processor has just accepted INIT or a start-up
/// IPI (`kvm_arch_vcpu_ioctl_run`). Both are [`Outcome::Nothing`].
#[must_use]
pub fn failed_run(error: kvm_ioctls::Error) -> Outcome {
    match error.errno() {
        libc::EINTR | libc::EAGAIN => Outcome::Nothing,
        _ => internal(format!("KVM_RUN failed: {}", io::Error::from(error))),
    }
}

/// Returns the stepper's outcome for the `KVM_EXIT_INTERNAL_ERROR` that `KVM_RUN` has just returned, with
/// KVM's reason.
#[must_use]
pub fn internal_error(fd: &mut VcpuFd) -> Outcome {
    let run = fd.get_kvm_run();
    #[expect(unsafe_code, reason = "kvm-ioctls does not return the suberror")]
    // SAFETY: `run` is the mapped run structure of this vCPU, borrowed mutably, and every bit
    // pattern of the member's integers is valid, whichever member of the union is active.
    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
    internal(format!(
        "KVM_EXIT_INTERNAL_ERROR suberror {suberror} ({})",
        suberror_name(suberror)
    ))
}

fn internal(text: String) -> Outcome {
    Outcome::Fatal(StopReason::InternalError(text))
}

/// A name for `kvm_run.internal.suberror` (api.rst 5, `KVM_EXIT_INTERNAL_ERROR`).
fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "KVM could not emulate the instruction",
        KVM_INTERNAL_ERROR_SIMUL_EX => "unexpected simultaneous exceptions",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "unexpected exit while an event was delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit reason",
        _ => "unknown cause",
    }
}

/// `KVM_EXIT_SYSTEM_EVENT` (api.rst 5): x86 KVM itself sends only crashes of Hyper-V guests.
fn system_event(event: u32) -> Outcome {
    match event {
        KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET => Outcome::Fatal(StopReason::Exited(0)),
        KVM_SYSTEM_EVENT_CRASH => internal("the guest reported that it crashed".to_owned()),
        other => internal(format!("KVM_EXIT_SYSTEM_EVENT of type {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(number: i32) -> Outcome {
        failed_run(kvm_ioctls::Error::new(number))
    }

    fn is_fatal(outcome: &Outcome, part: &str) -> bool {
        matches!(outcome, Outcome::Fatal(StopReason::InternalError(text)) if text.contains(part))
    }

    #[test]
    fn accesses_are_served_by_the_vmm_before_the_stepper_is_told() {
        for exit in [
            VcpuExit::IoIn(0x60, &mut [0]),
            VcpuExit::IoOut(0x80, &[0]),
            VcpuExit::MmioRead(0xfee0_0000, &mut [0; 4]),
            VcpuExit::MmioWrite(0xfee0_0000, &[0; 4]),
        ] {
            // Where the VMM did not serve it, that is an error which names it.
            assert!(is_fatal(&outcome(&exit), "does not serve"));
        }
    }

    #[test]
    fn what_concerns_neither_the_guest_nor_the_debugger_is_nothing() {
        for exit in [
            VcpuExit::Intr,
            VcpuExit::IrqWindowOpen,
            VcpuExit::IoapicEoi(0x20),
        ] {
            assert_eq!(outcome(&exit), Outcome::Nothing);
        }
        assert_eq!(error(libc::EINTR), Outcome::Nothing);
        assert_eq!(error(libc::EAGAIN), Outcome::Nothing);
        assert!(is_fatal(&error(libc::EFAULT), "Bad address"));
    }

    #[test]
    fn a_guest_that_ends_says_how() {
        assert_eq!(outcome(&VcpuExit::Hlt), Outcome::Halted);
        assert!(matches!(
            outcome(&VcpuExit::Shutdown),
            Outcome::Fatal(StopReason::TripleFault(_))
        ));
        let event = |event| outcome(&VcpuExit::SystemEvent(event, &[]));
        for ends in [KVM_SYSTEM_EVENT_SHUTDOWN, KVM_SYSTEM_EVENT_RESET] {
            assert_eq!(event(ends), Outcome::Fatal(StopReason::Exited(0)));
        }
        assert!(is_fatal(&event(KVM_SYSTEM_EVENT_CRASH), "crashed"));
        assert!(is_fatal(&event(77), "77"));
        let refused = outcome(&VcpuExit::FailEntry(0x8000_0021, 3));
        assert!(is_fatal(&refused, "0x80000021"));
        let unknown = outcome(&VcpuExit::Unsupported(99));
        assert!(is_fatal(&unknown, "99"));
    }
}

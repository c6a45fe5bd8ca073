//! The pending events of a vCPU in KVM's chips, and why they do not enter.

use core::borrow::Borrow;
use core::fmt;

use kvm_bindings::{
    KVM_MP_STATE_AP_RESET_HOLD, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_vcpu_events,
};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;

use super::chip::KernelIrqchip;
use super::lapic::LapicPage;
use crate::lapic::kvm_parts;
use crate::{Activity, Decision, Pending, ProcessorPriority, Readiness, VectorSet, decide};

/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;

/// A vCPU's interrupt state could not be read; nothing was changed. `EINVAL` from
/// [`ObserveError::Lapic`] means that the VM's local APIC is not in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ObserveError {
    /// `KVM_GET_MP_STATE`.
    #[error("KVM_GET_MP_STATE")]
    MpState(#[source] kvm_ioctls::Error),
    /// A state that no x86 vCPU has.
    #[error("KVM_GET_MP_STATE: unknown state {0}")]
    UnknownMpState(u32),
    /// `KVM_GET_REGS`.
    #[error("KVM_GET_REGS")]
    Regs(#[source] kvm_ioctls::Error),
    /// `KVM_GET_SREGS`.
    #[error("KVM_GET_SREGS")]
    Sregs(#[source] kvm_ioctls::Error),
    /// `KVM_GET_VCPU_EVENTS`.
    #[error("KVM_GET_VCPU_EVENTS")]
    Events(#[source] kvm_ioctls::Error),
    /// `KVM_GET_LAPIC`.
    #[error("KVM_GET_LAPIC (is the local APIC in the kernel?)")]
    Lapic(#[source] kvm_ioctls::Error),
    /// `KVM_GET_IRQCHIP`.
    #[error("KVM_GET_IRQCHIP")]
    Pic(#[source] kvm_ioctls::Error),
}

/// One vCPU's interrupts at one time, as KVM keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The pending events. ExtINT only where this vCPU's LINT0 passes it.
    pub pending: Pending,
    /// What the vCPU allows.
    pub vcpu: Readiness,
    /// The processor priority.
    pub priority: ProcessorPriority,
    /// Vectors in service: delivered, and not ended by EOI yet.
    pub in_service: VectorSet,
    /// Of the pending vectors and those in service, the level-triggered ones.
    pub level_triggered: VectorSet,
    /// Whether IA32_APIC_BASE enables the local APIC. If not, it delivers nothing.
    pub apic_enabled: bool,
    /// Whether the spurious-vector register enables it. If not, it accepts nothing new.
    pub apic_software_enabled: bool,
    /// What happens at the next entry, under the mask that the caller named.
    pub decision: Decision,
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.decision.fmt(f)
    }
}

/// Reads what is pending for a vCPU whose chips are KVM's, and why it does not enter. Call it on the
/// vCPU's thread, while the vCPU does not run. `masked` is whether KVM_GUESTDBG_BLOCKIRQ is set.
///
/// Loses and reorders nothing. KVM only does what the next `KVM_RUN` would do first.
/// `KVM_GET_MP_STATE` accepts an INIT or SIPI that has arrived (x86.c, `kvm_apic_accept_events`); it
/// is therefore called before the registers are read. `KVM_GET_VCPU_EVENTS` collects queued NMIs and
/// SMIs (`process_nmi`).
///
/// # Errors
/// If an ioctl fails.
pub fn observe<V: Borrow<VmFd>>(
    vcpu: &VcpuFd,
    chip: &KernelIrqchip<V>,
    masked: bool,
) -> Result<Observation, ObserveError> {
    observe_with(vcpu, masked, || {
        chip.pic_asserts_intr().map_err(ObserveError::Pic)
    })
}

/// As [`observe`] for a split irqchip. `intr` is the level of INTR, the line of the VMM's 8259A pair.
///
/// # Errors
/// If an ioctl fails.
pub fn observe_split(vcpu: &VcpuFd, intr: bool, masked: bool) -> Result<Observation, ObserveError> {
    observe_with(vcpu, masked, || Ok(intr))
}

fn observe_with(
    vcpu: &VcpuFd,
    masked: bool,
    intr: impl FnOnce() -> Result<bool, ObserveError>,
) -> Result<Observation, ObserveError> {
    let mp_state = vcpu.get_mp_state().map_err(ObserveError::MpState)?;
    let activity = activity(mp_state.mp_state)?;
    let regs = vcpu.get_regs().map_err(ObserveError::Regs)?;
    let sregs = vcpu.get_sregs().map_err(ObserveError::Sregs)?;
    let events = vcpu.get_vcpu_events().map_err(ObserveError::Events)?;
    let page = vcpu.get_lapic().map_err(ObserveError::Lapic)?;
    let lapic = LapicPage(&page);

    let readiness = readiness(activity, regs.rflags, &events, masked);
    let apic_enabled = kvm_parts::is_enabled(sregs.apic_base);
    let ext_int = (!apic_enabled || lapic.lint0_passes_ext_int()) && intr()?;
    let pending = Pending::new(
        // A disabled APIC delivers nothing (lapic.c, `kvm_apic_has_interrupt`); one that is
        // disabled by software only still delivers what it accepted before (SDM 3A, "Local
        // APIC State After It Has Been Software Disabled").
        if apic_enabled {
            lapic.irr()
        } else {
            VectorSet::EMPTY
        },
        // A flag or, since Linux 6.3, a count.
        events.nmi.pending,
        events.smi.pending != 0,
        ext_int,
    );
    let priority = lapic.priority();
    Ok(Observation {
        pending,
        vcpu: readiness,
        priority,
        in_service: lapic.isr(),
        level_triggered: lapic.tmr(),
        apic_enabled,
        apic_software_enabled: lapic.software_enabled(),
        decision: decide(&pending, &readiness, priority),
    })
}

/// `kvm_mp_state` as what the vCPU is doing (api.rst, KVM_GET_MP_STATE).
fn activity(mp_state: u32) -> Result<Activity, ObserveError> {
    match mp_state {
        KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_SIPI_RECEIVED => Ok(Activity::Running),
        KVM_MP_STATE_HALTED => Ok(Activity::Halted),
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_AP_RESET_HOLD => {
            Ok(Activity::WaitForSipi)
        }
        other => Err(ObserveError::UnknownMpState(other)),
    }
}

pub(super) fn readiness(
    activity: Activity,
    rflags: u64,
    events: &kvm_vcpu_events,
    masked: bool,
) -> Readiness {
    let kvm_vcpu_events {
        exception,
        interrupt,
        nmi,
        smi,
        ..
    } = events;
    let shadow = u32::from(interrupt.shadow);
    let exception_pending = exception.pending != 0;
    Readiness {
        activity,
        interrupt_flag: rflags & RFLAGS_IF != 0,
        sti_shadow: shadow & KVM_X86_SHADOW_INT_STI != 0,
        mov_ss_shadow: shadow & KVM_X86_SHADOW_INT_MOV_SS != 0,
        nmi_blocked: nmi.masked != 0,
        in_smm: smi.smm != 0,
        // Without KVM_CAP_EXCEPTION_PAYLOAD a pending exception is reported as injected too.
        event_in_flight: interrupt.injected != 0
            || nmi.injected != 0
            || (exception.injected != 0 && !exception_pending),
        exception_pending,
        // KVM injects by itself.
        host_ready: true,
        masked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_of_the_host_is_read_into_its_own_field() {
        let base = Readiness {
            host_ready: true,
            ..Readiness::default()
        };
        let read = |set: fn(&mut kvm_vcpu_events)| {
            let mut events = kvm_vcpu_events::default();
            set(&mut events);
            readiness(Activity::Running, 0, &events, false)
        };
        let in_flight = Readiness {
            event_in_flight: true,
            ..base
        };
        assert_eq!(read(|_| ()), base);
        assert_eq!(read(|e| e.interrupt.injected = 1), in_flight);
        assert_eq!(read(|e| e.nmi.injected = 1), in_flight);
        assert_eq!(read(|e| e.exception.injected = 1), in_flight);
        assert_eq!(
            read(|e| {
                e.exception.injected = 1;
                e.exception.pending = 1;
            }),
            Readiness {
                exception_pending: true,
                ..base
            }
        );
        assert_eq!(
            read(|e| e.interrupt.shadow = 1),
            Readiness {
                mov_ss_shadow: true,
                ..base
            }
        );
        assert_eq!(
            read(|e| e.interrupt.shadow = 2),
            Readiness {
                sti_shadow: true,
                ..base
            }
        );
        assert_eq!(
            read(|e| e.nmi.masked = 1),
            Readiness {
                nmi_blocked: true,
                ..base
            }
        );
        assert_eq!(
            read(|e| e.smi.smm = 1),
            Readiness {
                in_smm: true,
                ..base
            }
        );
        let events = kvm_vcpu_events::default();
        let read = |rflags, masked| readiness(Activity::Halted, rflags, &events, masked);
        assert!(read(0x202, false).interrupt_flag && !read(0x202, false).masked);
        assert!(!read(!0x200, true).interrupt_flag && read(!0x200, true).masked);
    }

    #[test]
    fn mp_states_are_told_apart_and_foreign_ones_refused() {
        let known: [(u32, Activity); 6] = [
            (0, Activity::Running),
            (1, Activity::WaitForSipi),
            (2, Activity::WaitForSipi),
            (3, Activity::Halted),
            (4, Activity::Running),
            (9, Activity::WaitForSipi),
        ];
        for (state, expected) in known {
            assert_eq!(activity(state), Ok(expected));
        }
        // STOPPED is s390's and arm64's.
        assert_eq!(activity(5), Err(ObserveError::UnknownMpState(5)));
    }
}

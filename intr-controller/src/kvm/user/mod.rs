//! All chips in userspace ([`IrqchipMode::User`](crate::IrqchipMode::User)): one vCPU's local APIC,
//! and the work of its thread around each `KVM_RUN`.
//!
//! KVM has no interrupt controller then. Before each entry [`UserVcpu`] looks at the pending events of
//! its [`Lapic`]. It hands one to KVM if the vCPU can take it, and asks for an interrupt window if the
//! vCPU cannot. It also says when the vCPU has nothing to run, because KVM leaves HLT and the wait for a
//! start-up IPI to userspace. The mask is a parameter of [`UserVcpu::prepare`], so the host need not be able to mask.
//!
//! There is no lock in here. Keep each `UserVcpu` under one of its own, a [`Chipset`](crate::chipset) under
//! another and [`Destinations`](crate::Destinations) under a third, and take a vCPU's last.

mod counter;
mod lent;
mod state;

use core::time::Duration;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

use self::lent::{Lent, LentInterrupt};
pub use self::state::{UserVcpuRestoreError, UserVcpuState};
use super::calls::{self, CallError, failed};
use super::observe::{Observation, ObserveError, readiness};
use super::startup::apply_startup;
use crate::x86::{MSR_APIC_BASE, MSR_TSC_DEADLINE};
use crate::{
    Activity, DeadlineWatch, Decision, Effect, Event, GeneralProtection, GuestTime, Lapic,
    LapicConfig, Pending, Readiness, VectorSet, Windows, decide,
};

/// An ioctl that this kernel does not have.
const ENOTTY: i32 = 25;

/// What a vCPU's thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "KVM_RUN waits for nothing in this mode"]
pub enum UserEntry {
    /// Call `KVM_RUN`.
    Run,
    /// The vCPU is halted or waits for its start-up IPI. Sleep until something arrives for it or
    /// [`Lapic::next_deadline`] is reached, then ask again.
    Wait,
    /// An ExtINT may enter: [acknowledge](crate::chipset::Chipset::acknowledge) it and give the vector to
    /// [`UserVcpu::inject_ext_int`], then report INTR to LINT0 and ask again.
    Acknowledge,
    /// INIT or a start-up IPI has replaced the vCPU's registers: forget copies of them, give
    /// [`Lapic::destination`] to the table, and ask again.
    Restarted,
}

/// One vCPU of a VM without interrupt chips in the kernel.
#[derive(Clone, Debug)]
pub struct UserVcpu {
    lapic: Lapic,
    halted: bool,
    lent: Lent,
    /// An ExtINT that the 8259A has given up and the guest has not taken, because the mask went on in
    /// between. It is the next to enter.
    acknowledged: Option<u8>,
    /// The CR8 that the guest was entered with: an exit with another one means that it wrote it. It
    /// may write the same register in memory too, between two exits.
    entered_with: u8,
    watch: DeadlineWatch,
}

impl UserVcpu {
    /// At reset; all but the bootstrap processor wait for their start-up IPI.
    #[must_use]
    pub fn new(config: LapicConfig) -> Self {
        Self {
            lapic: Lapic::new(config),
            halted: false,
            lent: Lent::default(),
            acknowledged: None,
            entered_with: 0,
            watch: DeadlineWatch::new(),
        }
    }

    /// The local APIC.
    #[must_use]
    pub const fn lapic(&self) -> &Lapic {
        &self.lapic
    }

    /// The local APIC: for arrivals, the registers' page and the timer.
    pub const fn lapic_mut(&mut self) -> &mut Lapic {
        &mut self.lapic
    }

    /// Whether it waits in HLT.
    #[must_use]
    pub const fn is_halted(&self) -> bool {
        self.halted
    }

    /// An ExtINT that was taken back under the mask, after the 8259A had given it up: see [`UserVcpuState`].
    #[must_use]
    pub const fn acknowledged_ext_int(&self) -> Option<u8> {
        self.acknowledged
    }

    /// An interrupt that KVM was given was taken out of KVM by the caller, and may not enter now. It enters
    /// before all else that is maskable: its local APIC or its 8259A counts it as delivered.
    pub const fn requeue(&mut self, vector: u8) {
        self.acknowledged = Some(vector);
    }

    /// The event that enters next if RFLAGS.IF is `enabled` and no instruction blocks it, for a debugger that
    /// has to know the handler. An [acknowledged ExtINT](Self::acknowledged_ext_int) comes before those that are
    /// maskable. An SMI is left out: its handler is not the guest's. Changes nothing.
    #[must_use]
    pub fn next_event(&self, enabled: bool, nmi_blocked: bool) -> Option<Event> {
        let open = Readiness {
            activity: Activity::Running,
            interrupt_flag: enabled,
            host_ready: true,
            nmi_blocked,
            in_smm: true,
            ..Readiness::default()
        };
        match self.lapic.decide(&open) {
            Decision::Inject(event) => Some(event),
            _ => None,
        }
    }

    /// The event that [`Self::prepare`] would hand to KVM first, without the mask. Changes nothing but the
    /// timer, which is brought up to `now`. The parameters are those of [`Self::prepare`].
    ///
    /// # Errors
    /// If KVM refuses; the vCPU cannot go on.
    pub fn would_inject(
        &mut self,
        vcpu: &mut VcpuFd,
        now: GuestTime,
        stood_still: Duration,
    ) -> Result<Option<Event>, CallError> {
        self.look_at_nmi(vcpu)?;
        self.compare_counter(vcpu, now, stood_still)?;
        self.lapic.advance(now);
        Ok(
            match self
                .lapic
                .decide(&self.readiness(vcpu.get_kvm_run(), false))
            {
                Decision::Inject(event) => Some(event),
                _ => None,
            },
        )
    }

    /// Before each `KVM_RUN`, on the vCPU's thread: hands what may enter to KVM, and opens the
    /// window for what may not.
    ///
    /// `masked` is whether `mask_hwintr` is on. Then what KVM has been given and the guest has not
    /// taken is taken back. `stood_still` is for how long guest time has stood still, all in all: the TSC
    /// has not, and an armed deadline moves.
    ///
    /// # Errors
    /// If KVM refuses; the vCPU cannot go on.
    pub fn prepare(
        &mut self,
        vcpu: &mut VcpuFd,
        masked: bool,
        now: GuestTime,
        stood_still: Duration,
    ) -> Result<UserEntry, CallError> {
        if masked {
            // There is no host mask to set: what KVM has would be injected.
            self.recall(vcpu)?;
        }
        if let Some(startup) = self.lapic.take_startup() {
            apply_startup(vcpu, startup)?;
            self.halted = false;
            self.lent = Lent::default();
            self.acknowledged = None;
            let run = vcpu.get_kvm_run();
            forget_readiness(run);
            // RFLAGS is 2 now.
            run.if_flag = 0;
            return Ok(UserEntry::Restarted);
        }
        self.look_at_nmi(vcpu)?;
        self.compare_counter(vcpu, now, stood_still)?;
        self.lapic.advance(now);
        let owed = self.owed_ext_int(vcpu, masked)?;
        let window = loop {
            match self
                .lapic
                .decide(&self.readiness(vcpu.get_kvm_run(), masked))
            {
                Decision::Inject(Event::ExtInt) => {
                    self.halted = false;
                    return Ok(UserEntry::Acknowledge);
                }
                Decision::Inject(event) => self.inject(vcpu, event)?,
                Decision::OpenWindow(windows, _) => break windows.contains(Windows::INTERRUPT),
                // It goes on, and another window may open then.
                Decision::Wake(_) => self.halted = false,
                Decision::Blocked(_) | Decision::Idle => {
                    if self.halted || self.lapic.waiting_for_sipi() {
                        return Ok(UserEntry::Wait);
                    }
                    break false;
                }
            }
        } || owed;
        self.entered_with = self.lapic.cr8();
        let run = vcpu.get_kvm_run();
        run.request_interrupt_window = window.into();
        run.cr8 = self.entered_with.into();
        Ok(UserEntry::Run)
    }

    /// After each `KVM_RUN`, before what it asks for is served: takes `kvm_run.cr8` over.
    pub fn returned(&mut self, cr8: u64) {
        if cr8 != u64::from(self.entered_with) {
            // KVM has none with a bit above the fourth.
            let _ = self.lapic.set_cr8(cr8);
            self.entered_with = self.lapic.cr8();
        }
    }

    /// `KVM_EXIT_HLT`, or a debugger has carried HLT out.
    pub const fn halt(&mut self) {
        self.halted = true;
    }

    /// A debugger ends HLT: it lets the vCPU go on elsewhere.
    pub const fn wake(&mut self) {
        self.halted = false;
    }

    /// Hands the vector of an ExtINT over, after [`UserEntry::Acknowledge`].
    ///
    /// # Errors
    /// If KVM refuses; the interrupt is lost, and the vCPU cannot go on.
    pub fn inject_ext_int(&mut self, vcpu: &mut VcpuFd, vector: u8) -> Result<(), CallError> {
        self.give(vcpu, LentInterrupt::ExtInt(vector))?;
        // If the line has fallen in between, the vector is the 8259A's spurious one.
        let _ = self.lapic.injected(Event::ExtInt);
        Ok(())
    }

    /// A guest's RDMSR of one of the [APIC's MSRs](Lapic::owns_msr).
    ///
    /// # Errors
    /// #GP.
    pub fn read_msr(&mut self, index: u32, now: GuestTime) -> Result<u64, GeneralProtection> {
        self.lapic.read_msr(index, now)
    }

    /// A guest's WRMSR of one of the [APIC's MSRs](Lapic::owns_msr).
    ///
    /// # Errors
    /// #GP, also if KVM does not tell the time-stamp counter that a deadline is compared with, or
    /// refuses the base address. Nothing has changed then.
    pub fn write_msr(
        &mut self,
        vcpu: &VcpuFd,
        index: u32,
        value: u64,
        now: GuestTime,
    ) -> Result<Effect, GeneralProtection> {
        if index == MSR_TSC_DEADLINE {
            self.take_counter(vcpu, now)
                .map_err(|_| GeneralProtection)?;
        }
        if index != MSR_APIC_BASE {
            return self.lapic.write_msr(index, value, now);
        }
        // KVM has a copy, which CPUID and `kvm_sregs` show, and its own idea of what an address is.
        let mut changed = self.lapic.clone();
        let effect = changed.write_msr(index, value, now)?;
        calls::write_msr(vcpu, MSR_APIC_BASE, changed.apic_base())
            .map_err(|_| GeneralProtection)?;
        self.lapic = changed;
        Ok(effect)
    }

    /// What is pending and why it does not enter, for a person. Changes nothing. `masked` is whether
    /// `mask_hwintr` is on.
    ///
    /// # Errors
    /// If KVM does not tell the vCPU's state.
    pub fn observe(&self, vcpu: &VcpuFd, masked: bool) -> Result<Observation, ObserveError> {
        let regs = vcpu.get_regs().map_err(ObserveError::Regs)?;
        let events = vcpu.get_vcpu_events().map_err(ObserveError::Events)?;
        let activity = if self.lapic.waiting_for_sipi() {
            Activity::WaitForSipi
        } else if self.halted {
            Activity::Halted
        } else {
            Activity::Running
        };
        let readiness = readiness(activity, regs.rflags, &events, masked);
        let enabled = self.lapic.mode() != crate::ApicMode::Disabled;
        let pending = self.lapic.policy().pending();
        let fixed = if enabled {
            *pending.fixed()
        } else {
            VectorSet::EMPTY
        };
        let ext_int = pending.ext_int() || self.acknowledged.is_some();
        let pending = Pending::new(fixed, pending.nmis(), pending.smi(), ext_int);
        let priority = self.lapic.priority();
        Ok(Observation {
            pending,
            vcpu: readiness,
            priority,
            in_service: *self.lapic.in_service(),
            level_triggered: *self.lapic.level_triggered(),
            apic_enabled: enabled,
            apic_software_enabled: self.lapic.software_enabled(),
            decision: decide(&pending, &readiness, priority),
        })
    }

    fn readiness(&self, run: &kvm_run, masked: bool) -> Readiness {
        Readiness {
            activity: if self.halted {
                Activity::Halted
            } else {
                Activity::Running
            },
            interrupt_flag: run.if_flag != 0,
            // Shadows, an event in flight and a pending exception are in here.
            host_ready: run.ready_for_interrupt_injection != 0,
            masked,
            ..Readiness::default()
        }
    }

    /// An NMI that KVM has and that may enter comes before interrupts (SDM 3A table 6-2). KVM would let an
    /// interrupt that it is given now enter first (x86.c, `kvm_check_and_inject_events`), so it is given none.
    fn look_at_nmi(&mut self, vcpu: &mut VcpuFd) -> Result<(), CallError> {
        if !self.lent.nmi {
            return Ok(());
        }
        let nmi = vcpu
            .get_vcpu_events()
            .map_err(failed("KVM_GET_VCPU_EVENTS"))?
            .nmi;
        self.lent.nmi = nmi.pending != 0 || nmi.injected != 0;
        if nmi.injected != 0 || (nmi.pending != 0 && nmi.masked == 0) {
            forget_readiness(vcpu.get_kvm_run());
        }
        Ok(())
    }

    fn inject(&mut self, vcpu: &mut VcpuFd, event: Event) -> Result<(), CallError> {
        match event {
            Event::Fixed(vector) => {
                self.give(vcpu, LentInterrupt::Fixed(vector))?;
            }
            // KVM keeps it until it may enter (`process_nmi`, `enter_smm`).
            Event::Nmi => {
                vcpu.nmi().map_err(failed("KVM_NMI"))?;
                self.lent.nmi = true;
                self.look_at_nmi(vcpu)?;
            }
            Event::Smi => match vcpu.smi() {
                // Built without system management mode: it is lost, as with KVM's own local APIC
                // (lapic.c, `__apic_accept_irq`).
                Err(error) if error.errno() == ENOTTY => {}
                answer => {
                    answer.map_err(failed("KVM_SMI"))?;
                    self.lent.smi = true;
                }
            },
            // `prepare` has answered `Acknowledge`.
            Event::ExtInt => return Ok(()),
        }
        self.halted = false;
        // It was pending: `decide` has just said so.
        let _ = self.lapic.injected(event);
        Ok(())
    }

    /// `KVM_INTERRUPT`.
    fn give(&mut self, vcpu: &mut VcpuFd, interrupt: LentInterrupt) -> Result<(), CallError> {
        calls::interrupt(vcpu, interrupt.number())?;
        forget_readiness(vcpu.get_kvm_run());
        self.lent.interrupt = Some(interrupt);
        Ok(())
    }

    /// The ExtINT that was taken back enters before all else that is maskable, and ends HLT under the
    /// rules of [`Decision::Wake`]. Returns `true` if it waits for an interrupt window.
    fn owed_ext_int(&mut self, vcpu: &mut VcpuFd, masked: bool) -> Result<bool, CallError> {
        let Some(vector) = self.acknowledged else {
            return Ok(false);
        };
        let ready = self.readiness(vcpu.get_kvm_run(), masked);
        self.halted &= !ready.interrupt_flag;
        if masked {
            return Ok(false);
        }
        if ready.interrupt_flag && ready.host_ready {
            self.give(vcpu, LentInterrupt::ExtInt(vector))?;
            self.acknowledged = None;
        }
        Ok(self.acknowledged.is_some())
    }
}

/// KVM has an interrupt now, or other registers: its previous report of readiness is stale. It reports
/// again at the next exit.
const fn forget_readiness(run: &mut kvm_run) {
    run.ready_for_interrupt_injection = 0;
}

#[cfg(test)]
mod tests {
    use core::num::NonZeroU64;

    use super::*;
    use crate::{DestinationFormat, MsiMessage, Vector};

    fn arrives(vcpu: &mut UserVcpu, data: u32) {
        let message = MsiMessage {
            address: 0xfee0_0000,
            data,
        };
        let message = message.decode(DestinationFormat::default()).unwrap();
        let _ = vcpu.lapic_mut().accept(&message);
    }

    #[test]
    fn the_next_event_is_the_most_urgent_that_may_enter() {
        const NMI: u32 = 4 << 8;
        const EXT_INT: u32 = 7 << 8;
        let mut vcpu = UserVcpu::new(LapicConfig::new(0, true, NonZeroU64::MIN));
        // Bit 8 of the spurious-vector register enables the local APIC.
        let enabled = 0x1ff_u32.to_le_bytes();
        let _ = vcpu.lapic_mut().mmio_write(0xf0, &enabled, GuestTime::ZERO);
        assert_eq!(vcpu.next_event(true, false), None);
        arrives(&mut vcpu, 0x41);
        arrives(&mut vcpu, 0x52);
        let highest = Some(Event::Fixed(Vector::new(0x52).unwrap()));
        assert_eq!(vcpu.next_event(true, false), highest);
        assert_eq!(vcpu.next_event(false, false), None);
        // HLT ends with it.
        vcpu.halt();
        assert_eq!(vcpu.next_event(true, false), highest);
        arrives(&mut vcpu, EXT_INT);
        assert_eq!(vcpu.next_event(true, false), Some(Event::ExtInt));
        arrives(&mut vcpu, NMI);
        assert_eq!(vcpu.next_event(true, false), Some(Event::Nmi));
        assert_eq!(vcpu.next_event(false, false), Some(Event::Nmi));
        assert_eq!(vcpu.next_event(true, true), Some(Event::ExtInt));
        assert_eq!(vcpu.next_event(false, true), None);
        // Asking changes nothing.
        assert!(vcpu.is_halted());
        assert_eq!(vcpu.next_event(true, false), Some(Event::Nmi));
    }
}

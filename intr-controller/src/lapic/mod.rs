//! The local APIC of one vCPU.
//!
//! [`Lapic`] is what the guest sees at 0xfee00000 or as the MSRs 0x800 to 0x8ff, with the vCPU's
//! [`InjectionPolicy`] inside: **the policy's pending set is the IRR**, and the NMIs, SMIs and the
//! ExtINT line beside it. There is no second copy, so a save or a reset cannot see one of them
//! without the other.
//!
//! # One event's way
//!
//! 1. It arrives: [`accept`](Lapic::accept) for a message (the fabric, [`crate::Lapics`] or
//!    [`crate::Destinations`], says to whom), [`signal`](Lapic::signal) and
//!    [`set_lint`](Lapic::set_lint) for the vCPU's own sources, [`advance`](Lapic::advance) for
//!    the timer.
//! 2. [`decide`](Lapic::decide) says what to do at the next entry and changes nothing.
//! 3. The host takes it (`KVM_INTERRUPT`, `KVM_NMI`, a VMCS field), then
//!    [`injected`](Lapic::injected) moves it from IRR to ISR. Nothing has to be undone if the host
//!    refuses.
//! 4. The guest ends it with an EOI, an [`Effect`] of the register write.
//!
//! # Time
//!
//! Every access that can see the timer takes the time. [`next_deadline`](Lapic::next_deadline) is
//! the one question a timer thread asks. Nothing ticks: however long nobody asks, the answer costs
//! the same, and a guest is frozen by passing the same time again.
//!
//! # Accesses in memory
//!
//! The registers are the first four bytes of 16-byte slots, to be accessed with aligned 32-bit
//! loads and stores; what others do is undefined (SDM 3A, "The Local APIC Block Diagram"). Here a
//! write of another size or alignment is ignored, a read of any part of one register's four bytes
//! gives them, and any other read gives zeros.
//!
//! # What this APIC does not have
//!
//! Remote read and IPIs of delivery mode ExtINT (both are reserved encodings of ICR in processors
//! of the last two decades; such a write stores the register, sends nothing and says so,
//! [`Effect::NotSent`]), the arbitration-priority register (reads 0, as in processors since
//! Pentium 4), extended LVTs of AMD.

mod accept;
mod base;
mod config;
mod deadline;
mod inject;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod kvm_parts;
mod mmio;
mod msr;
mod read;
mod registers;
mod send;
mod state;
mod timer;
mod write;

pub use accept::{Acceptance, LocalSource, Refusal, Startup};
pub use base::ApicMode;
pub use config::LapicConfig;
pub use deadline::DeadlineWatch;
pub use inject::Acknowledge;
pub use registers::{LvtEntry, TimerMode};
pub use state::{LapicRestoreError, LapicState};

use base::ApicBase;
use registers::{Command, Errors, Lvt, Spurious};
use timer::Timer;

use crate::destinations::{Destination, LogicalModel};
use crate::{GuestTime, InjectionPolicy, Ipi, ProcessorPriority, TscClock, VectorSet};

/// The guest gets #GP(0): a WRMSR or RDMSR that the architecture refuses. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("#GP(0)")]
pub struct GeneralProtection;

/// What a register access asks of the world outside this APIC. Plain data: act on it when no lock
/// is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an EOI, an IPI or a change of identity would be lost"]
pub enum Effect {
    /// Nothing.
    None,
    /// A level-triggered interrupt of this vector ended: tell the IOAPICs (SDM 3A, "Signaling
    /// Interrupt Servicing Completion").
    EoiBroadcast(crate::Vector),
    /// Deliver this. Already done for the shorthand "self".
    Ipi(Ipi),
    /// Mode, ids, logical destination, base address or the software-enable bit changed: give
    /// [`Lapic::destination`] to the fabric before the vCPU runs on.
    IdentityChanged,
    /// An ICR write whose delivery mode does not exist; nothing was sent.
    NotSent {
        /// Bits 8 to 10 of ICR: 0b011 (remote read) or 0b111 (ExtINT).
        delivery_mode: u8,
    },
}

/// One vCPU's local APIC and injection policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapic {
    config: LapicConfig,
    tsc: TscClock,
    base: ApicBase,
    /// The id of xAPIC mode, which software may write.
    xapic_id: u8,
    tpr: u8,
    spurious: Spurious,
    /// The logical id of xAPIC mode. That of x2APIC mode follows from the id.
    ldr: u8,
    /// The model nibble of the destination format register.
    dfr: u8,
    command: Command,
    lvt: [Lvt; 7],
    /// What ESR reads.
    error_status: Errors,
    /// What the next write of ESR makes it read.
    errors: Errors,
    in_service: VectorSet,
    level_triggered: VectorSet,
    /// IRR, NMI, SMI, ExtINT.
    policy: InjectionPolicy,
    timer: Timer,
    /// The pins LINT0 and LINT1, true if asserted.
    lint: [bool; 2],
    /// An ExtINT came as a message, and waits whatever LINT0 says.
    ext_int_message: bool,
    init_pending: bool,
    sipi_pending: Option<u8>,
    waiting_for_sipi: bool,
}

/// DFR after reset: flat.
const DFR_FLAT: u8 = 0xf;

impl Lapic {
    /// As after power-up (SDM 3A, "Local APIC State After Power-Up or Reset").
    #[must_use]
    pub fn new(config: LapicConfig) -> Self {
        let mut lapic = Self {
            config,
            tsc: config.tsc,
            base: ApicBase::reset(config.bootstrap),
            xapic_id: config.xapic_id(),
            tpr: 0,
            spurious: Spurious::RESET,
            ldr: 0,
            dfr: DFR_FLAT,
            command: Command(0),
            lvt: [Lvt::RESET; 7],
            error_status: Errors::empty(),
            errors: Errors::empty(),
            in_service: VectorSet::EMPTY,
            level_triggered: VectorSet::EMPTY,
            policy: InjectionPolicy::new(),
            timer: Timer::default(),
            lint: [false; 2],
            ext_int_message: false,
            init_pending: false,
            sipi_pending: None,
            waiting_for_sipi: !config.bootstrap,
        };
        lapic.enable_virtual_wire();
        lapic
    }

    /// Power-up or RESET of the machine: everything, IA32_APIC_BASE included. The pins keep their
    /// level, which is their driver's; totals and the TSC stay too.
    pub fn reset(&mut self) {
        self.base = ApicBase::reset(self.config.bootstrap);
        self.xapic_id = self.config.xapic_id();
        self.init();
        self.init_pending = false;
        self.waiting_for_sipi = !self.config.bootstrap;
    }

    /// INIT: as reset, but IA32_APIC_BASE and the APIC id stay, also one that software wrote (SDM
    /// 3A, "Local APIC State After an INIT Reset"; KVM gives the initial id back).
    fn init(&mut self) {
        let Self {
            config: _,
            tsc: _,
            base: _,
            xapic_id: _,
            tpr,
            spurious,
            ldr,
            dfr,
            command,
            lvt,
            error_status,
            errors,
            in_service,
            level_triggered,
            policy,
            timer,
            lint: _,
            ext_int_message,
            init_pending: _,
            sipi_pending,
            waiting_for_sipi: _,
        } = self;
        *tpr = 0;
        *spurious = Spurious::RESET;
        *ldr = 0;
        *dfr = DFR_FLAT;
        *command = Command(0);
        *lvt = [Lvt::RESET; 7];
        *error_status = Errors::empty();
        *errors = Errors::empty();
        *in_service = VectorSet::EMPTY;
        *level_triggered = VectorSet::EMPTY;
        policy.reset();
        *timer = Timer::default();
        *ext_int_message = false;
        *sipi_pending = None;
        self.enable_virtual_wire();
        let _ = self.update_ext_int();
    }

    fn enable_virtual_wire(&mut self) {
        if self.config.virtual_wire && self.config.bootstrap {
            self.set_lvt(LvtEntry::Lint0, Lvt::VIRTUAL_WIRE);
        }
    }

    /// What it was made with.
    #[must_use]
    pub const fn config(&self) -> &LapicConfig {
        &self.config
    }

    /// The policy: the pending events (its fixed interrupts are the IRR) and totals.
    #[must_use]
    pub const fn policy(&self) -> &InjectionPolicy {
        &self.policy
    }

    /// The APIC id in the mode it is in.
    #[must_use]
    pub fn apic_id(&self) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => self.config.apic_id,
            // An id that does not fit is unreachable in xAPIC mode by its low byte, which is
            // another vCPU's; it is addressed in full, so that it can be started at all. So does
            // KVM (lapic.c, `kvm_apic_match_physical_addr`, "hotplug hack").
            _ if self.config.apic_id > 0xff && self.xapic_id == self.config.xapic_id() => {
                self.config.apic_id
            }
            _ => u32::from(self.xapic_id),
        }
    }

    /// Its row in the fabric's table. Give it there after [`Effect::IdentityChanged`], a reset and
    /// a restore.
    #[must_use]
    pub fn destination(&self) -> Destination {
        let (logical_id, model) = match self.mode() {
            ApicMode::X2Apic => (
                crate::destinations::x2apic_logical_id(self.config.apic_id),
                LogicalModel::X2Apic,
            ),
            _ => (u32::from(self.ldr), LogicalModel::from_dfr(self.dfr)),
        };
        Destination {
            mode: self.mode(),
            apic_id: self.apic_id(),
            logical_id,
            model,
            software_enabled: self.software_enabled(),
        }
    }

    /// The page that holds the registers in xAPIC mode.
    #[must_use]
    pub const fn base_address(&self) -> u64 {
        self.base.address()
    }

    /// Whether the spurious-interrupt vector register enables the APIC.
    #[must_use]
    pub const fn software_enabled(&self) -> bool {
        self.spurious.enabled()
    }

    /// PPR.
    #[must_use]
    pub fn priority(&self) -> ProcessorPriority {
        ProcessorPriority::new(self.tpr, self.in_service.highest())
    }

    /// ISR: the vectors between injection and EOI.
    #[must_use]
    pub const fn in_service(&self) -> &VectorSet {
        &self.in_service
    }

    /// TMR: of the vectors in IRR and ISR, the level-triggered ones.
    #[must_use]
    pub const fn level_triggered(&self) -> &VectorSet {
        &self.level_triggered
    }

    /// CR8: the upper half of the task-priority register, which is the same register (SDM 3A,
    /// "Task Priority in IA-32e Mode"). For `kvm_run.cr8` before each run. Works in every mode.
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// A new CR8, from `kvm_run.cr8` after a run. The lower half of the task priority becomes 0;
    /// if CR8 did not change, nothing does.
    ///
    /// # Errors
    /// #GP if a bit above the fourth is set.
    pub const fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value > 0xf {
            return Err(GeneralProtection);
        }
        let [value, ..] = value.to_le_bytes();
        if value != self.cr8() {
            self.tpr = value << 4;
        }
        Ok(())
    }

    /// The guest's TSC, as a function of time.
    #[must_use]
    pub const fn tsc(&self) -> TscClock {
        self.tsc
    }

    /// The guest's TSC is found to be another function of time than was thought: no event in between,
    /// so that nothing has become due by the old one. An armed deadline keeps its value.
    pub const fn correct_tsc(&mut self, tsc: TscClock) {
        self.tsc = tsc;
    }

    /// The guest's TSC is another function of time from `now` on (IA32_TSC, IA32_TSC_ADJUST). An
    /// armed deadline keeps its value and so moves in time.
    pub fn set_tsc(&mut self, tsc: TscClock, now: GuestTime) {
        self.advance(now);
        self.tsc = tsc;
    }

    fn lvt(&self, entry: LvtEntry) -> Lvt {
        let [timer, thermal, performance, lint0, lint1, error, cmci] = self.lvt;
        match entry {
            LvtEntry::Timer => timer,
            LvtEntry::Thermal => thermal,
            LvtEntry::Performance => performance,
            LvtEntry::Lint0 => lint0,
            LvtEntry::Lint1 => lint1,
            LvtEntry::Error => error,
            LvtEntry::Cmci => cmci,
        }
    }

    fn set_lvt(&mut self, entry: LvtEntry, value: Lvt) {
        let [timer, thermal, performance, lint0, lint1, error, cmci] = &mut self.lvt;
        let slot = match entry {
            LvtEntry::Timer => timer,
            LvtEntry::Thermal => thermal,
            LvtEntry::Performance => performance,
            LvtEntry::Lint0 => lint0,
            LvtEntry::Lint1 => lint1,
            LvtEntry::Error => error,
            LvtEntry::Cmci => cmci,
        };
        *slot = value;
    }
}

#[cfg(test)]
mod tests;

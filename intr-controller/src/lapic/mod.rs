//! The local APIC of one vCPU.
//!
//! [`Lapic`] is what the guest sees at 0xfee00000 or as the MSRs 0x800 to 0x8ff, with the vCPU's
//! [`InjectionPolicy`] inside: **the policy's pending set is the IRR**, and the NMIs, SMIs and the
//! ExtINT line beside it. There is no second copy, so a save or a reset cannot see one of them
//! without the other.
//!
//! # The way of one event
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
//! the one question of a timer thread. Nothing ticks: the cost of an answer does not depend on the time
//! since the last one, and a guest is frozen by passing the same time again.
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

mod access;
mod base;
mod config;
mod deadline;
mod error_status;
mod identity;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod kvm_parts;
mod local_vectors;
mod outcome;
mod pins;
mod priority;
mod registers;
mod startup;
mod state;
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod text;
mod timer;

pub use base::ApicMode;
pub use config::LapicConfig;
pub use deadline::DeadlineWatch;
pub use outcome::{Acceptance, Acknowledge, Effect, GeneralProtection, LocalSource, Refusal};
pub use registers::{LvtEntry, TimerMode};
pub use startup::Startup;
pub use state::{LapicRestoreError, LapicState};

use error_status::ErrorStatus;
use identity::Identity;
use local_vectors::{LocalVectors, has_level};
use pins::Pins;
use priority::Priority;
use registers::{Command, Errors, Spurious};
use startup::StartupState;
use timer::Timer;

use crate::destinations::Destination;
use crate::{
    Activity, Decision, Delivery, DeliveryMode, Event, GuestTime, InjectionPolicy,
    InterruptMessage, NotPending, Pending, ProcessorPriority, Readiness, TriggerMode, TscClock,
    Vector, VectorSet, decide,
};

/// One vCPU's local APIC and injection policy: the wiring of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapic {
    config: LapicConfig,
    /// IA32_APIC_BASE, the ids, LDR, DFR.
    identity: Identity,
    /// TPR, ISR, TMR.
    priority: Priority,
    /// The spurious-interrupt vector register.
    spurious: Spurious,
    /// The interrupt command register.
    command: Command,
    vectors: LocalVectors,
    errors: ErrorStatus,
    /// IRR, NMI, SMI, ExtINT.
    policy: InjectionPolicy,
    timer: Timer,
    pins: Pins,
    startup: StartupState,
}

/// Life of the APIC, and what it shows.
impl Lapic {
    /// As after power-up (SDM 3A, "Local APIC State After Power-Up or Reset").
    #[must_use]
    pub fn new(config: LapicConfig) -> Self {
        Self {
            config,
            identity: Identity::reset(&config),
            priority: Priority::default(),
            spurious: Spurious::RESET,
            command: Command(0),
            vectors: LocalVectors::reset(&config),
            errors: ErrorStatus::default(),
            policy: InjectionPolicy::new(),
            timer: Timer::new(&config),
            pins: Pins::default(),
            startup: StartupState::reset(config.bootstrap),
        }
    }

    /// Power-up or RESET of the machine: everything, IA32_APIC_BASE included. The pins keep their
    /// level, which is their driver's; totals and the TSC stay too.
    pub fn reset(&mut self) {
        self.identity = Identity::reset(&self.config);
        self.startup = StartupState::reset(self.config.bootstrap);
        self.init();
    }

    /// INIT: as reset, but IA32_APIC_BASE and the APIC id stay.
    fn init(&mut self) {
        let Self {
            config,
            identity,
            priority,
            spurious,
            command,
            vectors,
            errors,
            policy,
            timer,
            pins,
            startup: _,
        } = self;
        identity.init();
        *priority = Priority::default();
        *spurious = Spurious::RESET;
        *command = Command(0);
        *vectors = LocalVectors::reset(config);
        *errors = ErrorStatus::default();
        policy.reset();
        timer.init();
        pins.init();
        let _ = self.update_ext_int();
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

    /// IA32_APIC_BASE.
    #[must_use]
    pub const fn apic_base(&self) -> u64 {
        self.identity.base().get()
    }

    /// The mode that IA32_APIC_BASE selects. CPUID.1:EDX.APIC is 0 while it is
    /// [`ApicMode::Disabled`].
    #[must_use]
    pub const fn mode(&self) -> ApicMode {
        self.identity.mode()
    }

    /// The APIC id in the mode it is in.
    #[must_use]
    pub const fn apic_id(&self) -> u32 {
        self.identity.apic_id(&self.config)
    }

    /// Its row in the fabric's table. Give it there after [`Effect::IdentityChanged`], a reset and
    /// a restore.
    #[must_use]
    pub fn destination(&self) -> Destination {
        self.identity
            .destination(&self.config, self.software_enabled())
    }

    /// The page of the registers in xAPIC mode.
    #[must_use]
    pub const fn base_address(&self) -> u64 {
        self.identity.base().address()
    }

    /// Whether the spurious-interrupt vector register enables the APIC.
    #[must_use]
    pub const fn software_enabled(&self) -> bool {
        self.spurious.enabled()
    }

    /// PPR.
    #[must_use]
    pub fn priority(&self) -> ProcessorPriority {
        self.priority.processor()
    }

    /// ISR: the vectors between injection and EOI.
    #[must_use]
    pub const fn in_service(&self) -> &VectorSet {
        self.priority.in_service()
    }

    /// TMR: of the vectors in IRR and ISR, the level-triggered ones.
    #[must_use]
    pub const fn level_triggered(&self) -> &VectorSet {
        self.priority.level_triggered()
    }

    /// CR8: the upper half of the task-priority register, which is the same register (SDM 3A,
    /// "Task Priority in IA-32e Mode"). For `kvm_run.cr8` before each run. Works in every mode.
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.priority.cr8()
    }

    /// A new CR8, from `kvm_run.cr8` after a run. The lower half of the task priority becomes 0;
    /// if CR8 did not change, nothing does.
    ///
    /// # Errors
    /// #GP if a bit above the fourth is set.
    pub const fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        self.priority.set_cr8(value)
    }

    /// The guest's TSC, as a function of time.
    #[must_use]
    pub const fn tsc(&self) -> TscClock {
        self.timer.tsc()
    }

    /// Corrects what is known of the guest's TSC. It is no event: nothing has become due by the
    /// previous function of time. An armed deadline keeps its value.
    pub const fn correct_tsc(&mut self, tsc: TscClock) {
        self.timer.set_tsc(tsc);
    }

    /// The guest's TSC is another function of time from `now` on (IA32_TSC, IA32_TSC_ADJUST). An
    /// armed deadline keeps its value and so moves in time.
    pub fn set_tsc(&mut self, tsc: TscClock, now: GuestTime) {
        self.advance(now);
        self.timer.set_tsc(tsc);
    }
}

/// Arrivals.
impl Lapic {
    /// A message for this APIC. The fabric ([`crate::Destinations`]) has compared its destination.
    pub fn accept(&mut self, message: &InterruptMessage) -> Acceptance {
        if self.mode() == ApicMode::Disabled {
            return Acceptance::Refused(Refusal::Disabled);
        }
        // The common modes have a short way.
        match message.delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.accept_fixed(message),
            _ => self.accept_any(message),
        }
    }

    #[inline(never)]
    fn accept_any(&mut self, message: &InterruptMessage) -> Acceptance {
        match message.delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.accept_fixed(message),
            DeliveryMode::Smi => self.policy.arrive(Event::Smi).into(),
            DeliveryMode::Nmi => self.policy.arrive(Event::Nmi).into(),
            DeliveryMode::Init => {
                // SDM 3A, ICR, "INIT Level De-assert": sets arbitration ids, which this APIC lacks.
                if message.trigger_mode == TriggerMode::Level && !message.level {
                    return Acceptance::Refused(Refusal::Deasserted);
                }
                self.startup.accept_init()
            }
            DeliveryMode::StartUp => self
                .startup
                .accept_sipi(message.vector, self.identity.base().bootstrap()),
            DeliveryMode::ExtInt => {
                self.pins.ext_int();
                self.update_ext_int()
            }
        }
    }

    #[inline(always)]
    fn accept_fixed(&mut self, message: &InterruptMessage) -> Acceptance {
        // The end of a level, which the 82093AA's bus knew as a message.
        if message.trigger_mode == TriggerMode::Level && !message.level {
            return Acceptance::Refused(Refusal::Deasserted);
        }
        self.accept_vector(message.vector, message.trigger_mode)
    }

    /// SDM 3A, "Interrupt Acceptance for Fixed Interrupts".
    #[inline(always)]
    fn accept_vector(&mut self, vector: u8, trigger: TriggerMode) -> Acceptance {
        if !self.software_enabled() {
            return Acceptance::Refused(Refusal::SoftwareDisabled);
        }
        let Ok(vector) = Vector::new(vector) else {
            self.report(Errors::RECEIVE_ILLEGAL_VECTOR);
            return Acceptance::Refused(Refusal::IllegalVector);
        };
        self.priority.accept(vector, trigger);
        self.policy.arrive(Event::Fixed(vector)).into()
    }

    /// Whether INIT or a start-up IPI waits for the vCPU's thread.
    #[must_use]
    pub const fn startup_pending(&self) -> bool {
        self.startup.is_pending()
    }

    /// Whether the vCPU waits for its start-up IPI.
    #[must_use]
    pub const fn waiting_for_sipi(&self) -> bool {
        self.startup.waits()
    }

    /// Takes INIT or a start-up IPI, on the vCPU's thread. INIT resets this APIC here; ask again
    /// afterwards. INIT leaves IA32_APIC_BASE alone, but not logical ids and the software-enable
    /// bit: give [`Lapic::destination`] to the fabric.
    pub fn take_startup(&mut self) -> Option<Startup> {
        let startup = self.startup.take(self.identity.base().bootstrap())?;
        if matches!(startup, Startup::Init { .. }) {
            self.init();
        }
        Some(startup)
    }

    /// One of the vCPU's own sources asks.
    pub fn signal(&mut self, source: LocalSource) -> Acceptance {
        let entry = match source {
            LocalSource::Thermal => LvtEntry::Thermal,
            LocalSource::Performance => LvtEntry::Performance,
            LocalSource::Cmci if self.config.cmci => LvtEntry::Cmci,
            LocalSource::Cmci => return Acceptance::Refused(Refusal::Masked),
        };
        let acceptance = self.deliver_local(entry, TriggerMode::Edge);
        if source == LocalSource::Performance && !matches!(acceptance, Acceptance::Refused(_)) {
            self.vectors.mask(entry);
        }
        acceptance
    }

    /// Delivers what an entry of the local vector table says.
    fn deliver_local(&mut self, entry: LvtEntry, trigger: TriggerMode) -> Acceptance {
        if self.mode() == ApicMode::Disabled {
            return Acceptance::Refused(Refusal::Disabled);
        }
        let lvt = self.vectors.get(entry);
        if lvt.is_masked() {
            return Acceptance::Refused(Refusal::Masked);
        }
        // The timer's and the error entry's mode field reads 0, which is Fixed.
        match lvt.delivery_mode() {
            Some(DeliveryMode::Fixed) => self.accept_vector(lvt.vector(), trigger),
            Some(DeliveryMode::Smi) => self.policy.arrive(Event::Smi).into(),
            Some(DeliveryMode::Nmi) => self.policy.arrive(Event::Nmi).into(),
            Some(DeliveryMode::Init) => self.startup.accept_init(),
            _ => Acceptance::Refused(Refusal::DeliveryMode),
        }
    }

    /// Reports an error in ESR, and by the error interrupt if that is armed.
    #[cold]
    fn report(&mut self, error: Errors) {
        if self.errors.report(error) {
            // This cannot recurse without end: the error interrupt is not armed any more.
            let _ = self.deliver_local(LvtEntry::Error, TriggerMode::Edge);
        }
    }

    /// Brings the timer up to `now`. Returns the number of expiries since the last time. They become
    /// one pending interrupt, and the others are counted as merged into it.
    pub fn advance(&mut self, now: GuestTime) -> u64 {
        let lvt = self.vectors.get(LvtEntry::Timer);
        let expired = self.timer.advance(lvt.timer_mode(), now);
        if expired > 0 {
            let acceptance = self.deliver_local(LvtEntry::Timer, TriggerMode::Edge);
            if !matches!(acceptance, Acceptance::Refused(_)) {
                self.policy.merged(expired - 1);
            }
        }
        expired
    }

    /// When to call [`Self::advance`] next. `None` if the timer stands still or its entry is
    /// masked. A masked timer counts on, and a read of its count shows that.
    #[must_use]
    pub fn next_deadline(&self, now: GuestTime) -> Option<GuestTime> {
        let lvt = self.vectors.get(LvtEntry::Timer);
        if lvt.is_masked() || self.mode() == ApicMode::Disabled {
            return None;
        }
        self.timer.next(lvt.timer_mode(), now)
    }

    /// LINT0, to which the 8259A pair's INTR goes: asserted or not, whatever the polarity that the
    /// guest wrote. Report the level again after each acknowledge of an ExtINT
    /// ([`Self::injected`]).
    pub fn set_lint0(&mut self, asserted: bool) -> Acceptance {
        let rose = self.pins.set_lint0(asserted);
        let ext_int = self.update_ext_int();
        let lvt = self.vectors.get(LvtEntry::Lint0);
        if lvt.passes_ext_int() || self.mode() == ApicMode::Disabled {
            return ext_int;
        }
        if has_level(lvt) {
            self.service_level_lint0()
        } else if rose {
            self.deliver_local(LvtEntry::Lint0, TriggerMode::Edge)
        } else {
            Acceptance::Refused(Refusal::Deasserted)
        }
    }

    /// LINT1, to which NMI goes. Edge-triggered whatever its entry says ("Software should always
    /// set the trigger mode in the LVT LINT1 register to 0").
    pub fn set_lint1(&mut self, asserted: bool) -> Acceptance {
        if !self.pins.set_lint1(asserted) {
            return Acceptance::Refused(Refusal::Deasserted);
        }
        if self.mode() == ApicMode::Disabled {
            // The pin is NMI then (SDM 3A, "Enabling or Disabling the Local APIC").
            return self.policy.arrive(Event::Nmi).into();
        }
        let lvt = self.vectors.get(LvtEntry::Lint1);
        if lvt.passes_ext_int() {
            self.pins.ext_int();
            return self.update_ext_int();
        }
        self.deliver_local(LvtEntry::Lint1, TriggerMode::Edge)
    }

    /// A level-triggered LINT0: delivered while the pin is asserted, once per EOI (remote IRR).
    fn service_level_lint0(&mut self) -> Acceptance {
        let lvt = self.vectors.get(LvtEntry::Lint0);
        if !self.pins.lint0() || lvt.remote_irr() {
            return Acceptance::Refused(Refusal::Deasserted);
        }
        let acceptance = self.deliver_local(LvtEntry::Lint0, TriggerMode::Level);
        if !matches!(acceptance, Acceptance::Refused(_)) {
            self.vectors.set_lint0_remote_irr(true);
        }
        acceptance
    }

    /// Whether LINT0 reaches the vCPU as INTR.
    fn int_r(&self) -> bool {
        self.pins.lint0()
            && (self.mode() == ApicMode::Disabled
                || self.vectors.get(LvtEntry::Lint0).passes_ext_int())
    }

    /// What [`Self::update_ext_int`] keeps, for a state from outside.
    fn ext_int_is_consistent(&self) -> bool {
        self.policy.pending().ext_int() == (self.int_r() || self.pins.ext_int_message())
    }

    /// Makes the policy's ExtINT what the pin, its entry and messages say. Call it after a change of any
    /// of them; a second call changes nothing.
    fn update_ext_int(&mut self) -> Acceptance {
        let wanted = self.int_r() || self.pins.ext_int_message();
        if !wanted {
            self.policy.withdraw_ext_int();
            return Acceptance::Refused(Refusal::Deasserted);
        }
        if self.policy.pending().ext_int() {
            return Acceptance::Merged;
        }
        self.policy.arrive(Event::ExtInt).into()
    }
}

/// Delivery and EOI.
impl Lapic {
    /// What to do now. Changes nothing.
    ///
    /// [`Readiness::activity`] need not say [`Activity::WaitForSipi`]; this APIC knows.
    pub fn decide(&self, vcpu: &Readiness) -> Decision {
        if self.mode() == ApicMode::Disabled || !self.startup.is_running() {
            return self.decide_unusual(vcpu);
        }
        self.policy.decide(vcpu, self.priority())
    }

    #[cold]
    fn decide_unusual(&self, vcpu: &Readiness) -> Decision {
        let mut vcpu = *vcpu;
        if self.startup.waits() {
            vcpu.activity = Activity::WaitForSipi;
        }
        let mut pending = *self.policy.pending();
        if self.mode() == ApicMode::Disabled {
            // IRR delivers nothing, NMI, SMI and INTR are the processor's.
            pending = Pending::new(
                VectorSet::EMPTY,
                pending.nmis(),
                pending.smi(),
                pending.ext_int(),
            );
        }
        decide(&pending, &vcpu, self.priority())
    }

    /// The host took the event. A fixed interrupt moves from IRR to ISR (SDM 3A, "Interrupt
    /// Acceptance for Fixed Interrupts"): from here on it cannot be recalled, so call this when the
    /// host call has succeeded and not when it is planned.
    ///
    /// For [`Event::ExtInt`]: acknowledge the 8259A pair for the vector, hand it to the host, call
    /// this, then report the pair's INTR with [`Self::set_lint0`] again. Until then the pin counts
    /// as low, because the acknowledge answered the request that was there.
    ///
    /// # Errors
    /// If the event did not wait; nothing changed.
    #[inline]
    pub fn injected(&mut self, event: Event) -> Result<Delivery, NotPending> {
        let delivery = self.policy.injected(event)?;
        match event {
            Event::Fixed(vector) => {
                self.priority.begin(vector);
            }
            Event::ExtInt => self.pins.acknowledged(),
            Event::Smi | Event::Nmi => {}
        }
        Ok(delivery)
    }

    /// The host has given back an event that it had taken ([`Self::injected`]) and that had not
    /// reached the guest, because the mask went on in between. The event is pending again. An ExtINT
    /// cannot be recalled, since its acknowledge cannot: nothing changes.
    pub fn retract(&mut self, event: Event) {
        match event {
            Event::ExtInt => return,
            Event::Fixed(vector) => {
                self.priority.retract(vector);
            }
            Event::Smi | Event::Nmi => {}
        }
        self.policy.retract(event);
    }

    /// The interrupt-acknowledge cycle, for a host that signals first and asks for the vector
    /// later, when the task priority may have risen. Do not call it for a masked vCPU: only
    /// [`Self::decide`] takes the mask into account.
    pub fn acknowledge(&mut self) -> Acknowledge {
        let deliverable =
            self.policy.pending().fixed().highest().filter(|vector| {
                self.mode() != ApicMode::Disabled && self.priority().admits(*vector)
            });
        match deliverable.map(|vector| (vector, self.injected(Event::Fixed(vector)))) {
            Some((vector, Ok(_))) => Acknowledge::Vector(vector),
            _ => {
                self.policy.spurious();
                Acknowledge::Spurious(self.spurious.vector())
            }
        }
    }

    /// A write to the EOI register: ends the most urgent interrupt in service. If none is, nothing
    /// happens (SDM 3A, "Signaling Interrupt Servicing Completion").
    #[inline]
    pub fn end_of_interrupt(&mut self) -> Effect {
        match self.priority.end() {
            Some((vector, true)) if self.ends_level(vector) => Effect::EoiBroadcast(vector),
            _ => Effect::None,
        }
    }

    /// A level-triggered interrupt ended. Returns `true` if the IOAPICs are notified.
    fn ends_level(&mut self, vector: Vector) -> bool {
        let lint0 = self.vectors.get(LvtEntry::Lint0);
        if lint0.remote_irr() && lint0.vector() == vector.get() {
            self.end_lint0();
        }
        // SDM 3A, "EOI-broadcast suppression": software writes to the IOAPIC itself then.
        !self.spurious.suppresses_eoi()
    }

    #[cold]
    fn end_lint0(&mut self) {
        self.vectors.set_lint0_remote_irr(false);
        // Still asserted: again.
        let _ = self.service_level_lint0();
    }

    /// The vCPU runs an NMI handler: of the NMIs that wait, a processor keeps one (SDM 3A,
    /// "Handling Multiple NMIs"). Call it when the host reports that NMIs are blocked; KVM does the
    /// same (x86.c, `process_nmi`). What it drops counts as merged.
    pub fn merge_nmis(&mut self) {
        self.policy.merge_nmis();
    }
}

#[cfg(test)]
mod tests;

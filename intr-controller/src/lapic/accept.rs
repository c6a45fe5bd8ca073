//! What arrives: messages, the vCPU's own sources, the timer, INIT and SIPI.

use super::registers::{Errors, Lvt};
use super::{ApicMode, Lapic, LvtEntry};
use crate::{Arrival, DeliveryMode, Event, GuestTime, InterruptMessage, TriggerMode, Vector};

/// What became of an interrupt at a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "an accepted interrupt may have to wake the vCPU"]
pub enum Acceptance {
    /// It waits: ask [`Lapic::decide`] again, and wake the vCPU.
    Accepted,
    /// It waits already, and is delivered once.
    Merged,
    /// It is gone.
    Refused(Refusal),
}

/// Why an interrupt is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// IA32_APIC_BASE has the APIC off.
    Disabled,
    /// The spurious-interrupt vector register has it off: only NMI, SMI, INIT and SIPI are taken
    /// (SDM 3A, "Local APIC State After It Has Been Software Disabled").
    SoftwareDisabled,
    /// The entry of the local vector table is masked.
    Masked,
    /// The vector is below 16. ESR says so.
    IllegalVector,
    /// The delivery mode does not exist at this place.
    DeliveryMode,
    /// The end of a level, which asks for nothing.
    Deasserted,
    /// A start-up IPI for a vCPU that does not wait for one.
    NotWaitingForSipi,
}

impl From<Arrival> for Acceptance {
    fn from(arrival: Arrival) -> Self {
        match arrival {
            Arrival::Accepted => Self::Accepted,
            Arrival::Merged => Self::Merged,
        }
    }
}

/// The vCPU's own sources of interrupts that have no pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum LocalSource {
    /// The thermal sensor.
    Thermal,
    /// A performance counter overflowed. The entry masks itself with the delivery (SDM 3A, "Local
    /// Vector Table").
    Performance,
    /// A corrected machine check.
    Cmci,
}

/// What the vCPU's thread has to do to the vCPU: neither enters it, both replace its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Startup {
    /// Give the vCPU its state after INIT (SDM 3A, table "IA-32 and Intel 64 Processor States
    /// Following Power-up, Reset, or INIT"). Then it runs (bootstrap processor) or waits.
    Init {
        /// It waits for its start-up IPI.
        wait_for_sipi: bool,
    },
    /// Start it in real mode at this page: CS.selector is the vector << 8, CS.base the vector <<
    /// 12, RIP 0 (SDM 3A, "MP Initialization Protocol Algorithm").
    Sipi {
        /// The page.
        vector: u8,
    },
}

impl Lapic {
    /// A message that the fabric brought here. That it is for this APIC has been decided
    /// ([`crate::Destinations`]).
    pub fn accept(&mut self, message: &InterruptMessage) -> Acceptance {
        if self.mode() == ApicMode::Disabled {
            return Acceptance::Refused(Refusal::Disabled);
        }
        // Nearly all are of these modes, and do not go through what the others need.
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
                // SDM 3A, ICR, "INIT Level De-assert": sets arbitration ids that nobody has.
                if message.trigger_mode == TriggerMode::Level && !message.level {
                    return Acceptance::Refused(Refusal::Deasserted);
                }
                self.accept_init()
            }
            DeliveryMode::StartUp => self.accept_sipi(message.vector),
            DeliveryMode::ExtInt => {
                self.ext_int_message = true;
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
    pub(super) fn accept_vector(&mut self, vector: u8, trigger: TriggerMode) -> Acceptance {
        if !self.software_enabled() {
            return Acceptance::Refused(Refusal::SoftwareDisabled);
        }
        let Ok(vector) = Vector::new(vector) else {
            self.report(Errors::RECEIVE_ILLEGAL_VECTOR);
            return Acceptance::Refused(Refusal::IllegalVector);
        };
        // "Upon acceptance of an interrupt into the IRR, the corresponding TMR bit is cleared for
        // edge-triggered interrupts and set for level-triggered interrupts."
        if self.level_triggered.contains(vector) != trigger.bit() {
            self.level_triggered.toggle(vector);
        }
        self.policy.arrive(Event::Fixed(vector)).into()
    }

    /// INIT outranks a start-up IPI that came before it (KVM: lapic.c, `__apic_accept_irq`).
    fn accept_init(&mut self) -> Acceptance {
        self.sipi_pending = None;
        if core::mem::replace(&mut self.init_pending, true) {
            Acceptance::Merged
        } else {
            Acceptance::Accepted
        }
    }

    /// Only the wait-for-SIPI state listens, and the first start-up IPI ends it.
    fn accept_sipi(&mut self, vector: u8) -> Acceptance {
        let will_wait = self.init_pending && !self.base.bootstrap();
        if !self.waiting_for_sipi && !will_wait {
            return Acceptance::Refused(Refusal::NotWaitingForSipi);
        }
        if self.sipi_pending.is_some() {
            return Acceptance::Merged;
        }
        self.sipi_pending = Some(vector);
        Acceptance::Accepted
    }

    /// Whether INIT or a start-up IPI waits for the vCPU's thread.
    #[must_use]
    pub const fn startup_pending(&self) -> bool {
        self.init_pending || (self.waiting_for_sipi && self.sipi_pending.is_some())
    }

    /// Whether the vCPU waits for its start-up IPI.
    #[must_use]
    pub const fn waiting_for_sipi(&self) -> bool {
        self.waiting_for_sipi
    }

    /// Takes INIT or a start-up IPI, on the vCPU's thread. INIT resets this APIC here; ask again
    /// afterwards. INIT leaves IA32_APIC_BASE alone, but not logical ids and the software-enable
    /// bit: give [`Lapic::destination`] to the fabric.
    pub fn take_startup(&mut self) -> Option<Startup> {
        if self.init_pending {
            self.init_pending = false;
            // One that came after INIT.
            let sipi = self.sipi_pending;
            self.init();
            self.waiting_for_sipi = !self.base.bootstrap();
            self.sipi_pending = sipi.filter(|_| self.waiting_for_sipi);
            return Some(Startup::Init {
                wait_for_sipi: self.waiting_for_sipi,
            });
        }
        if !self.waiting_for_sipi {
            return None;
        }
        let vector = self.sipi_pending.take()?;
        self.waiting_for_sipi = false;
        Some(Startup::Sipi { vector })
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
            self.set_lvt(entry, self.lvt(entry).masked());
        }
        acceptance
    }

    /// Delivers what an entry of the local vector table says.
    fn deliver_local(&mut self, entry: LvtEntry, trigger: TriggerMode) -> Acceptance {
        if self.mode() == ApicMode::Disabled {
            return Acceptance::Refused(Refusal::Disabled);
        }
        let lvt = self.lvt(entry);
        if lvt.is_masked() {
            return Acceptance::Refused(Refusal::Masked);
        }
        // The timer's and the error entry's mode field reads 0, which is Fixed.
        match lvt.delivery_mode() {
            Some(DeliveryMode::Fixed) => self.accept_vector(lvt.vector(), trigger),
            Some(DeliveryMode::Smi) => self.policy.arrive(Event::Smi).into(),
            Some(DeliveryMode::Nmi) => self.policy.arrive(Event::Nmi).into(),
            Some(DeliveryMode::Init) => self.accept_init(),
            _ => Acceptance::Refused(Refusal::DeliveryMode),
        }
    }

    /// Counts errors. The first since ESR was last written also raises the error interrupt: the
    /// write "rearms the APIC error interrupt triggering mechanism" (SDM 3A, "Error Handling").
    #[cold]
    pub(super) fn report(&mut self, error: Errors) {
        let armed = self.errors.is_empty();
        self.errors |= error;
        if armed {
            // Not again through `report` without end: by now it is not armed.
            let _ = self.deliver_local(LvtEntry::Error, TriggerMode::Edge);
        }
    }

    /// Lets the timer come to `now`. How often it has expired since the last time: however often,
    /// one interrupt waits, and the rest is counted as merged into it.
    pub fn advance(&mut self, now: GuestTime) -> u64 {
        let lvt = self.lvt(LvtEntry::Timer);
        let expired = self.timer.advance(
            lvt.timer_mode(),
            self.config.bus_cycle_ns.get(),
            self.tsc,
            now,
        );
        if expired > 0 {
            let acceptance = self.deliver_local(LvtEntry::Timer, TriggerMode::Edge);
            if !matches!(acceptance, Acceptance::Refused(_)) {
                self.policy.merged(expired - 1);
            }
        }
        expired
    }

    /// When to call [`Self::advance`] next. `None` if the timer stands still or its entry is
    /// masked: it counts on then, and whoever reads it sees that it has.
    #[must_use]
    pub fn next_deadline(&self, now: GuestTime) -> Option<GuestTime> {
        let lvt = self.lvt(LvtEntry::Timer);
        if lvt.is_masked() || self.mode() == ApicMode::Disabled {
            return None;
        }
        self.timer.next(lvt.timer_mode(), self.tsc, now)
    }

    /// LINT0, to which the 8259A pair's INTR goes: asserted or not, whatever the polarity that the
    /// guest wrote. Report the level again after each acknowledge of an ExtINT
    /// ([`Self::injected`]).
    pub fn set_lint0(&mut self, asserted: bool) -> Acceptance {
        let [lint0, _] = &mut self.lint;
        let was = core::mem::replace(lint0, asserted);
        let rose = asserted && !was;
        let ext_int = self.update_ext_int();
        let lvt = self.lvt(LvtEntry::Lint0);
        if lvt.passes_ext_int() || self.mode() == ApicMode::Disabled {
            return ext_int;
        }
        match lvt.trigger_mode() {
            // SDM 3A, "Local Vector Table", trigger mode: only for Fixed.
            TriggerMode::Level if lvt.delivery_mode() == Some(DeliveryMode::Fixed) => {
                self.service_level_lint0()
            }
            _ if rose => self.deliver_local(LvtEntry::Lint0, TriggerMode::Edge),
            _ => Acceptance::Refused(Refusal::Deasserted),
        }
    }

    /// LINT1, to which NMI goes. Edge-triggered whatever its entry says ("Software should always
    /// set the trigger mode in the LVT LINT1 register to 0").
    pub fn set_lint1(&mut self, asserted: bool) -> Acceptance {
        let [_, lint1] = &mut self.lint;
        let was = core::mem::replace(lint1, asserted);
        if was || !asserted {
            return Acceptance::Refused(Refusal::Deasserted);
        }
        if self.mode() == ApicMode::Disabled {
            // The pin is NMI then (SDM 3A, "Enabling or Disabling the Local APIC").
            return self.policy.arrive(Event::Nmi).into();
        }
        let lvt = self.lvt(LvtEntry::Lint1);
        if lvt.passes_ext_int() {
            self.ext_int_message = true;
            return self.update_ext_int();
        }
        self.deliver_local(LvtEntry::Lint1, TriggerMode::Edge)
    }

    /// A level-triggered LINT0: delivered while the pin is asserted, once per EOI (remote IRR).
    pub(super) fn service_level_lint0(&mut self) -> Acceptance {
        let lvt = self.lvt(LvtEntry::Lint0);
        let [asserted, _] = self.lint;
        if !asserted || lvt.remote_irr() {
            return Acceptance::Refused(Refusal::Deasserted);
        }
        let acceptance = self.deliver_local(LvtEntry::Lint0, TriggerMode::Level);
        if !matches!(acceptance, Acceptance::Refused(_)) {
            self.set_lvt(LvtEntry::Lint0, lvt.with_remote_irr(true));
        }
        acceptance
    }

    /// Whether LINT0 reaches the vCPU as INTR.
    fn int_r(&self) -> bool {
        let [asserted, _] = self.lint;
        asserted
            && (self.mode() == ApicMode::Disabled || self.lvt(LvtEntry::Lint0).passes_ext_int())
    }

    /// What [`Self::update_ext_int`] keeps, for a state from outside.
    pub(super) fn ext_int_is_consistent(&self) -> bool {
        self.policy.pending().ext_int() == (self.int_r() || self.ext_int_message)
    }

    /// Makes the policy's ExtINT what the pin, its entry and messages say. To be called after a
    /// change of any of them; changes nothing if called twice.
    pub(super) fn update_ext_int(&mut self) -> Acceptance {
        let wanted = self.int_r() || self.ext_int_message;
        if !wanted {
            self.policy.withdraw_ext_int();
            return Acceptance::Refused(Refusal::Deasserted);
        }
        if self.policy.pending().ext_int() {
            return Acceptance::Merged;
        }
        self.policy.arrive(Event::ExtInt).into()
    }

    /// The pin's part of the above after an injection: the acknowledge answered the request.
    pub(super) fn ext_int_acknowledged(&mut self) {
        let [lint0, _] = &mut self.lint;
        *lint0 = false;
        self.ext_int_message = false;
    }

    /// Remote IRR of LINT0, after its entry was rewritten: an entry that is not level-triggered
    /// and Fixed has none.
    pub(super) fn normalise_lint(lvt: Lvt) -> Lvt {
        let level = lvt.trigger_mode() == TriggerMode::Level
            && lvt.delivery_mode() == Some(DeliveryMode::Fixed);
        if level {
            lvt
        } else {
            lvt.with_remote_irr(false)
        }
    }
}

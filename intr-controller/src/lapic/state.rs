//! The saved form of a local APIC.

use thiserror::Error;

use super::base::ApicBase;
use super::registers::{Command, DIVIDE_WRITABLE, Errors, Lvt, LvtEntry, Spurious, TimerMode};
use super::timer::Timer;
use super::{ApicMode, DFR_FLAT, Lapic};
use crate::{GuestTime, InjectionPolicy, PolicyState, RestoreError, VectorSet};

/// A local APIC's state as plain data: everything that the guest can see now or later, also in the
/// middle of a handler and with an armed timer.
///
/// It does not contain what the VMM gave at creation ([`super::LapicConfig`]), the TSC and the mask.
/// Times are guest time, so a guest that was stopped for a year is not late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct LapicState {
    /// The layout, [`LapicState::VERSION`].
    pub version: u16,
    /// The initial APIC id, which must be that of the APIC that takes the state.
    pub apic_id: u32,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// The id of xAPIC mode.
    pub xapic_id: u8,
    /// Task priority.
    pub tpr: u8,
    /// Spurious-interrupt vector register.
    pub spurious: u32,
    /// Logical id of xAPIC mode.
    pub ldr: u8,
    /// The upper four bits of the destination format register.
    pub dfr: u8,
    /// Interrupt command register, both halves.
    pub command: u64,
    /// The local vector table, in the order of [`LvtEntry::ALL`].
    pub lvt: [u32; 7],
    /// What the error status register reads.
    pub error_status: u32,
    /// Errors since it was written last.
    pub errors: u32,
    /// ISR: vector `n` is bit `n % 64` of word `n / 64`.
    pub in_service: [u64; 4],
    /// TMR, likewise.
    pub level_triggered: [u64; 4],
    /// IRR (`fixed`), NMI, SMI, ExtINT and totals.
    pub policy: PolicyState,
    /// Initial-count register.
    pub timer_initial: u32,
    /// Divide configuration register.
    pub timer_divide: u8,
    /// When the count reaches zero, in nanoseconds of guest time.
    pub timer_expires_ns: Option<u64>,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
    /// The levels of LINT0 and LINT1.
    pub lint: [bool; 2],
    /// An ExtINT that came as a message waits.
    pub ext_int_message: bool,
    /// INIT waits.
    pub init_pending: bool,
    /// A start-up IPI waits.
    pub sipi_pending: Option<u8>,
    /// The vCPU waits for a start-up IPI.
    pub waiting_for_sipi: bool,
}

/// A saved state was refused; the APIC is as it was. The state is damaged, of another vCPU or
/// another configuration, or from a version that this crate does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LapicRestoreError {
    /// `version`.
    #[error(
        "version: {found} is unknown, this build reads {}",
        LapicState::VERSION
    )]
    Version {
        /// What the state says.
        found: u16,
    },
    /// `apic_id`.
    #[error("apic_id: {found:#x} is another vCPU's, this is {expected:#x}")]
    ApicId {
        /// What the state says.
        found: u32,
        /// This APIC's.
        expected: u32,
    },
    /// A field has a value that no guest can have made with this configuration.
    #[error("{field}: {value:#x} is not possible")]
    Value {
        /// The field's name.
        field: &'static str,
        /// What the state says.
        value: u64,
    },
    /// Two fields contradict each other.
    #[error("{field}: contradicts {other}")]
    Contradiction {
        /// The field's name.
        field: &'static str,
        /// The field that says otherwise.
        other: &'static str,
    },
    /// `policy`.
    #[error("policy: {0}")]
    Policy(#[source] RestoreError),
}

/// The field must be `true`, or the state is refused.
const fn possible(
    possible: bool,
    field: &'static str,
    value: u64,
) -> Result<(), LapicRestoreError> {
    if possible {
        Ok(())
    } else {
        Err(LapicRestoreError::Value { field, value })
    }
}

const fn agrees(
    agrees: bool,
    field: &'static str,
    other: &'static str,
) -> Result<(), LapicRestoreError> {
    if agrees {
        Ok(())
    } else {
        Err(LapicRestoreError::Contradiction { field, other })
    }
}

impl LapicState {
    /// The layout that this build writes and reads.
    pub const VERSION: u16 = 2;
}

impl Lapic {
    /// Everything that belongs to the guest. Changes nothing; the timer need not be brought up to
    /// date before.
    #[must_use]
    pub fn save(&self) -> LapicState {
        let Self {
            config,
            tsc: _,
            base,
            xapic_id,
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
            lint,
            ext_int_message,
            init_pending,
            sipi_pending,
            waiting_for_sipi,
        } = self;
        let Timer {
            initial,
            divide,
            expires,
            deadline,
        } = *timer;
        LapicState {
            version: LapicState::VERSION,
            apic_id: config.apic_id,
            apic_base: base.get(),
            xapic_id: *xapic_id,
            tpr: *tpr,
            spurious: spurious.0,
            ldr: *ldr,
            dfr: *dfr,
            command: command.0,
            lvt: lvt.map(|lvt| lvt.0),
            error_status: error_status.bits(),
            errors: errors.bits(),
            in_service: in_service.words(),
            level_triggered: level_triggered.words(),
            policy: policy.save(),
            timer_initial: initial,
            timer_divide: divide,
            timer_expires_ns: expires.map(GuestTime::as_ns),
            tsc_deadline: deadline,
            lint: *lint,
            ext_int_message: *ext_int_message,
            init_pending: *init_pending,
            sipi_pending: *sipi_pending,
            waiting_for_sipi: *waiting_for_sipi,
        }
    }

    /// Takes a saved state over, whole or not at all. The configuration and the TSC stay. Give [`Lapic::destination`] to the fabric afterwards.
    ///
    /// # Errors
    /// If the state is not one that [`save`](Self::save) can have made with this configuration;
    /// nothing has changed then.
    pub fn restore(&mut self, state: &LapicState) -> Result<(), LapicRestoreError> {
        *self = self.restored(state)?;
        Ok(())
    }

    /// This APIC with that state.
    fn restored(&self, state: &LapicState) -> Result<Self, LapicRestoreError> {
        let config = self.config;
        if state.version != LapicState::VERSION {
            return Err(LapicRestoreError::Version {
                found: state.version,
            });
        }
        if state.apic_id != config.apic_id {
            return Err(LapicRestoreError::ApicId {
                found: state.apic_id,
                expected: config.apic_id,
            });
        }
        let base = ApicBase::new(state.apic_base, config.physical_address_bits, config.x2apic)
            .ok_or(LapicRestoreError::Value {
                field: "apic_base",
                value: state.apic_base,
            })?;
        let x2apic = base.mode() == ApicMode::X2Apic;
        agrees(
            base.mode() == ApicMode::XApic || state.xapic_id == config.xapic_id(),
            "xapic_id",
            "apic_base",
        )?;
        agrees(!x2apic || state.ldr == 0, "ldr", "apic_base")?;
        possible(state.dfr <= DFR_FLAT, "dfr", state.dfr.into())?;
        let spurious = Spurious(state.spurious);
        possible(
            state.spurious & !Spurious::writable(config.eoi_suppression) == 0,
            "spurious",
            state.spurious.into(),
        )?;
        possible(
            state.command & !Command::WRITABLE == 0,
            "command",
            state.command,
        )?;
        let lvt = state.lvt.map(Lvt);
        for (entry, value) in LvtEntry::ALL.into_iter().zip(lvt) {
            Self::check_lvt(entry, value, spurious, config.tsc_deadline)?;
        }
        let errors = |field, bits: u32| {
            Errors::from_bits(bits).ok_or(LapicRestoreError::Value {
                field,
                value: bits.into(),
            })
        };
        let error_status = errors("error_status", state.error_status)?;
        let errors = errors("errors", state.errors)?;
        let vectors = |field, words: [u64; 4]| {
            let [value, ..] = words;
            VectorSet::from_words(words).ok_or(LapicRestoreError::Value { field, value })
        };
        let in_service = vectors("in_service", state.in_service)?;
        let level_triggered = vectors("level_triggered", state.level_triggered)?;
        let mut policy: InjectionPolicy = self.policy.clone();
        policy
            .restore(&state.policy)
            .map_err(LapicRestoreError::Policy)?;
        let [timer_lvt, ..] = lvt;
        let timer = Self::check_timer(state, base.mode(), timer_lvt.timer_mode())?;
        let lapic = Self {
            config,
            tsc: self.tsc,
            base,
            xapic_id: state.xapic_id,
            tpr: state.tpr,
            spurious,
            ldr: state.ldr,
            dfr: state.dfr,
            command: Command(state.command),
            lvt,
            error_status,
            errors,
            in_service,
            level_triggered,
            policy,
            timer,
            lint: state.lint,
            ext_int_message: state.ext_int_message,
            init_pending: state.init_pending,
            sipi_pending: state.sipi_pending,
            waiting_for_sipi: state.waiting_for_sipi,
        };
        agrees(lapic.ext_int_is_consistent(), "policy.ext_int", "lint")?;
        // Behind an INIT it may wait on a bootstrap processor too: the guest can write that bit of
        // IA32_APIC_BASE after the start-up IPI has come. The INIT then drops it.
        agrees(
            state.sipi_pending.is_none() || state.waiting_for_sipi || state.init_pending,
            "sipi_pending",
            "waiting_for_sipi",
        )?;
        Ok(lapic)
    }

    fn check_lvt(
        entry: LvtEntry,
        value: Lvt,
        spurious: Spurious,
        tsc_deadline: bool,
    ) -> Result<(), LapicRestoreError> {
        let mut legal = Lvt::writable(entry, tsc_deadline);
        if entry == LvtEntry::Lint0 && Self::normalise_lint(value) == value {
            legal |= Lvt::read_only(entry);
        }
        // Delivery is at once, so the status is never anything but idle.
        legal &= !Lvt::read_only(LvtEntry::Timer);
        possible(value.0 & !legal == 0, "lvt", value.0.into())?;
        agrees(
            spurious.enabled() || value.is_masked() || Self::from_reset(entry, value),
            "lvt",
            "spurious",
        )
    }

    /// The one unmasked entry that a software-disabled APIC may have: virtual wire from reset on.
    fn from_reset(entry: LvtEntry, value: Lvt) -> bool {
        entry == LvtEntry::Lint0 && value == Lvt::VIRTUAL_WIRE
    }

    fn check_timer(
        state: &LapicState,
        apic: ApicMode,
        mode: TimerMode,
    ) -> Result<Timer, LapicRestoreError> {
        possible(
            u32::from(state.timer_divide) & !DIVIDE_WRITABLE == 0,
            "timer_divide",
            state.timer_divide.into(),
        )?;
        let counts = matches!(mode, TimerMode::OneShot | TimerMode::Periodic);
        let (on, armed) = (apic != ApicMode::Disabled, state.timer_expires_ns.is_some());
        agrees(
            !armed || counts && state.timer_initial != 0,
            "timer_expires_ns",
            "lvt or timer_initial",
        )?;
        agrees(
            state.tsc_deadline == 0 || mode == TimerMode::TscDeadline,
            "tsc_deadline",
            "lvt",
        )?;
        agrees(
            on || !armed && state.tsc_deadline == 0,
            "timer_expires_ns or tsc_deadline",
            "apic_base",
        )?;
        Ok(Timer {
            initial: state.timer_initial,
            divide: state.timer_divide,
            expires: state.timer_expires_ns.map(GuestTime::from_ns),
            deadline: state.tsc_deadline,
        })
    }
}

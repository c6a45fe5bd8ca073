//! The saved form of a local APIC.

use thiserror::Error;

use super::error_status::ErrorStatus;
use super::identity::Identity;
use super::local_vectors::LocalVectors;
use super::pins::Pins;
use super::priority::Priority;
use super::registers::{Command, LvtEntry, Spurious};
use super::startup::StartupState;
use super::{ApicMode, Lapic};
use crate::{PolicyState, RestoreError};

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

/// Refuses a state in which a field has this value, unless that is possible.
pub(super) const fn possible(
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

/// Refuses a state in which two fields contradict each other.
pub(super) const fn agrees(
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
            identity,
            priority,
            spurious,
            command,
            vectors,
            errors,
            policy,
            timer,
            pins,
            startup,
        } = self;
        let mut state = LapicState {
            version: LapicState::VERSION,
            apic_id: config.apic_id,
            tpr: priority.tpr(),
            spurious: spurious.0,
            command: command.0,
            lvt: vectors.bits(),
            error_status: errors.shown(),
            errors: errors.collected(),
            in_service: priority.in_service().words(),
            level_triggered: priority.level_triggered().words(),
            policy: policy.save(),
            lint: pins.lint(),
            ext_int_message: pins.ext_int_message(),
            init_pending: startup.init_pending(),
            sipi_pending: startup.sipi_pending(),
            waiting_for_sipi: startup.waits(),
            // Filled in below.
            apic_base: 0,
            xapic_id: 0,
            ldr: 0,
            dfr: 0,
            timer_initial: 0,
            timer_divide: 0,
            timer_expires_ns: None,
            tsc_deadline: 0,
        };
        identity.save(&mut state);
        timer.save(&mut state);
        state
    }

    /// Takes a saved state over, whole or not at all. The configuration and the TSC stay. Give
    /// [`Lapic::destination`] to the fabric afterwards.
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
        let identity = Identity::from_state(state, &config)?;
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
        let vectors = LocalVectors::from_bits(state.lvt, &config, spurious.enabled())?;
        let errors = ErrorStatus::from_parts(state.error_status, state.errors)?;
        let priority = Priority::from_parts(state.tpr, state.in_service, state.level_triggered)?;
        let mut policy = self.policy.clone();
        policy
            .restore(&state.policy)
            .map_err(LapicRestoreError::Policy)?;
        let on = identity.mode() != ApicMode::Disabled;
        let mode = vectors.get(LvtEntry::Timer).timer_mode();
        let lapic = Self {
            config,
            identity,
            priority,
            spurious,
            command: Command(state.command),
            vectors,
            errors,
            policy,
            timer: self.timer.restored(state, on, mode)?,
            pins: Pins::from_parts(state.lint, state.ext_int_message),
            startup: StartupState::from_parts(
                state.init_pending,
                state.sipi_pending,
                state.waiting_for_sipi,
            )?,
        };
        agrees(lapic.ext_int_is_consistent(), "policy.ext_int", "lint")?;
        Ok(lapic)
    }
}

//! The saved form of the pair.

use thiserror::Error;

use super::CASCADE;
use super::chip::{Chip, Role};

/// Which write an 8259A expects at A0 = 1 next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum InitStep {
    /// OCW1: it is initialised.
    #[default]
    Ready,
    /// The vectors' base.
    Icw2,
    /// The cascade.
    Icw3,
    /// The mode.
    Icw4,
}

/// One 8259A as plain data. In every set of inputs, input `n` is bit `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Pic8259State {
    /// The inputs as they are. The master's bit 2 is the slave's INT output.
    pub lines: u8,
    /// Edges that were latched and wait. Only of inputs that are edge-triggered.
    pub latched: u8,
    /// Requests that fell unacknowledged and keep INT up until the next acknowledge.
    pub fallen: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// In-service register.
    pub isr: u8,
    /// The chipset's edge/level control register.
    pub elcr: u8,
    /// ICW2: vector of level 0, a multiple of 8.
    pub vector_base: u8,
    /// The level with the lowest priority, 0 to 7.
    pub lowest: u8,
    /// How far the initialisation is.
    pub init: InitStep,
    /// ICW1's SNGL: no ICW3.
    pub single: bool,
    /// ICW1's IC4: there is an ICW4.
    pub needs_icw4: bool,
    /// ICW1's LTIM.
    pub level_triggered: bool,
    /// ICW4's AEOI.
    pub auto_eoi: bool,
    /// Rotation in automatic EOI mode.
    pub rotate_in_auto_eoi: bool,
    /// ICW4's SFNM.
    pub special_fully_nested: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Reads at A0 = 0 give ISR rather than IRR.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
}

impl Pic8259State {
    pub(super) const POWER_ON: Self = Self {
        lines: 0,
        latched: 0,
        fallen: 0,
        imr: 0,
        isr: 0,
        elcr: 0,
        vector_base: 0,
        lowest: 7,
        init: InitStep::Ready,
        single: false,
        needs_icw4: false,
        level_triggered: false,
        auto_eoi: false,
        rotate_in_auto_eoi: false,
        special_fully_nested: false,
        special_mask: false,
        read_isr: false,
        poll: false,
    };

    /// The INT output of a slave in this state.
    #[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
    pub(crate) fn slave_int(self) -> bool {
        Chip::from_state(Role::Slave, self).int()
    }

    fn validate(self, role: Role) -> Result<Chip, PicRestoreError> {
        let chip = Chip::from_state(role, self);
        let refuse = |field, value, rule| {
            Err(PicRestoreError::Field {
                chip: match role {
                    Role::Master => "master",
                    Role::Slave => "slave",
                },
                field,
                value,
                rule,
            })
        };
        let Self {
            lines,
            latched,
            fallen,
            elcr,
            vector_base,
            lowest,
            init,
            ..
        } = self;
        if lowest > 7 {
            return refuse("lowest", lowest, "a level is 0 to 7");
        }
        if vector_base & 7 != 0 {
            return refuse("vector_base", vector_base, "a multiple of 8");
        }
        if elcr & !role.elcr_mask() != 0 {
            return refuse("elcr", elcr, "this input cannot be level-triggered");
        }
        if latched & chip.level_inputs() != 0 {
            return refuse(
                "latched",
                latched,
                "a level-triggered input latches nothing",
            );
        }
        if fallen & (lines | latched) != 0 {
            return refuse("fallen", fallen, "an input that is up has not fallen");
        }
        if fallen != 0 && init != InitStep::Ready {
            return refuse("fallen", fallen, "no INT during the initialisation");
        }
        Ok(chip)
    }
}

/// The pair's state as plain data, for a snapshot or a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct PicState {
    /// The layout, [`PicState::VERSION`].
    pub version: u16,
    /// Inputs 0 to 7.
    pub master: Pic8259State,
    /// Inputs 8 to 15.
    pub slave: Pic8259State,
}

/// A saved state was refused; the pair is as it was. The state is damaged, or from a version that
/// this crate does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PicRestoreError {
    /// `version`.
    #[error("version: {found} is unknown, this build reads {}", PicState::VERSION)]
    Version {
        /// What the state says.
        found: u16,
    },
    /// A field that a chip cannot have.
    #[error("{chip}.{field}: {value:#04x}: {rule}")]
    Field {
        /// `master` or `slave`.
        chip: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u8,
        /// What holds for it.
        rule: &'static str,
    },
    /// `master.lines`: input 2 is not the slave's output.
    #[error("master.lines: bit 2 is {line}, but the slave's INT output is {int}")]
    Cascade {
        /// The input.
        line: bool,
        /// The output.
        int: bool,
    },
}

impl PicState {
    /// The layout that this build writes and reads.
    pub const VERSION: u16 = 1;

    pub(super) fn validate(&self) -> Result<(Chip, Chip), PicRestoreError> {
        let Self {
            version,
            master,
            slave,
        } = *self;
        if version != Self::VERSION {
            return Err(PicRestoreError::Version { found: version });
        }
        let slave = slave.validate(Role::Slave)?;
        let master = master.validate(Role::Master)?;
        let line = master.state.lines >> CASCADE & 1 != 0;
        let int = slave.int();
        if line != int {
            return Err(PicRestoreError::Cascade { line, int });
        }
        Ok((master, slave))
    }
}

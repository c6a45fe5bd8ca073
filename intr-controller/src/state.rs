//! The saved form of a policy.

use thiserror::Error;

use crate::{Counters, NMI_LIMIT, Pending, VectorSet};

/// A policy's state as plain data, for a snapshot or a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct PolicyState {
    /// The layout, [`PolicyState::VERSION`].
    pub version: u16,
    /// The pending vectors: vector `n` is bit `n % 64` of word `n / 64`.
    pub fixed: [u64; 4],
    /// Pending NMIs.
    pub nmis: u8,
    /// Whether an SMI is pending.
    pub smi: bool,
    /// Whether the ExtINT line is up.
    pub ext_int: bool,
    /// Totals.
    pub counters: Counters,
}

/// A saved state was refused; the policy is as it was. The state is damaged, or from a version
/// that this crate does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// `version`.
    #[error(
        "version: {found} is unknown, this build reads {}",
        PolicyState::VERSION
    )]
    Version {
        /// What the state says.
        found: u16,
    },
    /// `fixed`.
    #[error("fixed: vectors below 0x10 cannot be pending (first word {word:#x})")]
    Fixed {
        /// The word that holds them.
        word: u64,
    },
    /// `nmis`.
    #[error("nmis: {found} pending, at most {NMI_LIMIT} can be")]
    Nmis {
        /// What the state says.
        found: u8,
    },
    /// `counters`.
    #[error("counters: {arrived} arrived, but {accounted} are accounted for")]
    Counters {
        /// What the state says.
        arrived: u64,
        /// The sum of what became of them.
        accounted: u64,
    },
}

impl PolicyState {
    /// The layout that this build writes and reads. Version 1 also counted events that a mask met.
    pub const VERSION: u16 = 2;

    pub(crate) fn new(pending: &Pending, counters: &Counters) -> Self {
        Self {
            version: Self::VERSION,
            fixed: pending.fixed().words(),
            nmis: pending.nmis(),
            smi: pending.smi(),
            ext_int: pending.ext_int(),
            counters: *counters,
        }
    }

    pub(crate) fn validate(&self) -> Result<(Pending, Counters), RestoreError> {
        let Self {
            version,
            fixed,
            nmis,
            smi,
            ext_int,
            counters,
        } = *self;
        if version != Self::VERSION {
            return Err(RestoreError::Version { found: version });
        }
        let [word, ..] = fixed;
        let fixed = VectorSet::from_words(fixed).ok_or(RestoreError::Fixed { word })?;
        if nmis > NMI_LIMIT {
            return Err(RestoreError::Nmis { found: nmis });
        }
        let pending = Pending::new(fixed, nmis, smi, ext_int);
        let accounted = counters.accounted(pending.len());
        if accounted != counters.arrived {
            return Err(RestoreError::Counters {
                arrived: counters.arrived,
                accounted,
            });
        }
        Ok((pending, counters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, InjectionPolicy, Vector};

    fn busy() -> InjectionPolicy {
        let mut policy = InjectionPolicy::new();
        for event in [
            Event::Smi,
            Event::Nmi,
            Event::Nmi,
            Event::Nmi,
            Event::ExtInt,
        ] {
            let _ = policy.arrive(event);
        }
        for vector in [0x10, 0x3f, 0x40, 0xff] {
            let _ = policy.arrive(Event::Fixed(Vector::new(vector).unwrap()));
        }
        policy
    }

    #[test]
    fn a_state_comes_back_exactly() {
        let policy = busy();
        let mut restored = InjectionPolicy::new();
        restored.restore(&policy.save()).unwrap();
        assert_eq!(restored, policy);
    }

    #[test]
    fn a_hostile_state_is_refused_by_field_and_changes_nothing() {
        let good = busy().save();
        let refusals = [
            (
                PolicyState { version: 1, ..good },
                RestoreError::Version { found: 1 },
            ),
            (
                PolicyState { version: 3, ..good },
                RestoreError::Version { found: 3 },
            ),
            (
                PolicyState {
                    fixed: [0x8000, 0, 0, 0],
                    ..good
                },
                RestoreError::Fixed { word: 0x8000 },
            ),
            (
                PolicyState { nmis: 3, ..good },
                RestoreError::Nmis { found: 3 },
            ),
            (
                PolicyState { smi: false, ..good },
                RestoreError::Counters {
                    arrived: 9,
                    accounted: 8,
                },
            ),
            (
                PolicyState {
                    counters: Counters {
                        delivered: u64::MAX,
                        ..good.counters
                    },
                    ..good
                },
                RestoreError::Counters {
                    arrived: 9,
                    accounted: u64::MAX,
                },
            ),
        ];
        for (state, error) in refusals {
            let mut policy = busy();
            let before = policy.clone();
            assert_eq!(policy.restore(&state), Err(error));
            assert_eq!(policy, before);
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_comes_back_exactly_and_unknown_fields_are_refused() {
        let state = busy().save();
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<PolicyState>(&json).unwrap(), state);
        let odd = json.replacen('{', "{\"masked\":true,", 1);
        assert!(serde_json::from_str::<PolicyState>(&odd).is_err());
    }
}

//! Counted holds by named owners.

use alloc::collections::BTreeMap;
use core::fmt;
use core::num::NonZeroU16;

use thiserror::Error;

use crate::capability::Capability;

/// An owner of holds: a debugger, a snapshot, a test.
///
/// Two owners are the same if both name and instance are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    name: &'static str,
    instance: u32,
}

impl Owner {
    /// The only owner of that name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self::instance(name, 0)
    }

    /// One of several of that name, for instance the third connection.
    #[must_use]
    pub const fn instance(name: &'static str, instance: u32) -> Self {
        Self { name, instance }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if self.instance != 0 {
            write!(f, "#{}", self.instance)?;
        }
        Ok(())
    }
}

/// A hold that cannot be taken or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HoldError {
    /// The owner drops a hold that it does not have: its bookkeeping is wrong.
    #[error("{owner} does not hold {capability}")]
    NotHeld {
        /// The owner.
        owner: Owner,
        /// The ability.
        capability: Capability,
    },
    /// Too many owners hold the ability at once. Some of them have gone without
    /// [`Holds::drop_owner`].
    #[error("{limit} owners hold {capability} already: drop those that have gone")]
    TooManyOwners {
        /// The ability.
        capability: Capability,
        /// The largest number of owners.
        limit: usize,
    },
    /// One owner takes too many holds: its bookkeeping is wrong.
    #[error("{owner} holds {capability} {} times already", u16::MAX)]
    TooManyHolds {
        /// The owner.
        owner: Owner,
        /// The ability.
        capability: Capability,
    },
}

/// The holds on abilities, counted per owner. An ability is held while any hold on it is left.
///
/// This is the only place that counts owners. The number of owners is bounded: at most [`Holds::MAX_OWNERS`] owners of one ability.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    held: BTreeMap<Capability, BTreeMap<Owner, NonZeroU16>>,
}

impl Holds {
    /// The largest number of owners of one ability.
    pub const MAX_OWNERS: usize = 64;

    /// Takes one hold. Returns `true` if the ability was not held before.
    ///
    /// # Errors
    /// If a limit is reached; nothing has changed then.
    pub fn take(&mut self, owner: Owner, capability: Capability) -> Result<bool, HoldError> {
        let known = self.held.get(&capability);
        let count = match known.and_then(|owners| owners.get(&owner)) {
            Some(count) => count
                .checked_add(1)
                .ok_or(HoldError::TooManyHolds { owner, capability })?,
            None if known.map_or(0, BTreeMap::len) >= Self::MAX_OWNERS => {
                return Err(HoldError::TooManyOwners {
                    capability,
                    limit: Self::MAX_OWNERS,
                });
            }
            None => NonZeroU16::MIN,
        };
        let first = known.is_none();
        self.held
            .entry(capability)
            .or_default()
            .insert(owner, count);
        Ok(first)
    }

    /// Drops one hold. Returns `true` if it was the last on that ability.
    ///
    /// # Errors
    /// If `owner` does not hold it.
    pub fn release(&mut self, owner: Owner, capability: Capability) -> Result<bool, HoldError> {
        let not_held = HoldError::NotHeld { owner, capability };
        let owners = self.held.get_mut(&capability).ok_or(not_held)?;
        let count = owners.get_mut(&owner).ok_or(not_held)?;
        if let Some(left) = NonZeroU16::new(count.get() - 1) {
            *count = left;
        } else {
            owners.remove(&owner);
        }
        let last = owners.is_empty();
        if last {
            self.held.remove(&capability);
        }
        Ok(last)
    }

    /// Drops all holds of an owner that has gone. Returns the number of holds dropped.
    pub fn drop_owner(&mut self, owner: Owner) -> u32 {
        let mut dropped = 0;
        self.held.retain(|_, owners| {
            dropped += owners
                .remove(&owner)
                .map_or(0, |count| u32::from(count.get()));
            !owners.is_empty()
        });
        dropped
    }

    /// Returns `true` if any owner holds `capability`.
    #[must_use]
    pub fn is_held(&self, capability: Capability) -> bool {
        self.held.contains_key(&capability)
    }

    /// The owners of `capability`, each with its number of holds.
    pub fn owners(&self, capability: Capability) -> impl Iterator<Item = (Owner, u16)> {
        self.held
            .get(&capability)
            .into_iter()
            .flatten()
            .map(|(&owner, count)| (owner, count.get()))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const MASK: Capability = Capability::MaskHwintr;
    const DEBUGGER: Owner = Owner::new("debugger");
    const SNAPSHOT: Owner = Owner::new("snapshot");

    #[test]
    fn an_ability_is_released_when_the_last_hold_drops() {
        let mut holds = Holds::default();
        assert_eq!(holds.take(DEBUGGER, MASK), Ok(true));
        assert_eq!(holds.take(DEBUGGER, MASK), Ok(false));
        assert_eq!(holds.take(SNAPSHOT, MASK), Ok(false));
        assert_eq!(holds.release(DEBUGGER, MASK), Ok(false));
        assert_eq!(holds.release(SNAPSHOT, MASK), Ok(false));
        assert!(holds.is_held(MASK));
        assert_eq!(holds.release(DEBUGGER, MASK), Ok(true));
        assert!(!holds.is_held(MASK));
    }

    #[test]
    fn an_owner_cannot_drop_the_hold_of_another() {
        let mut holds = Holds::default();
        holds.take(DEBUGGER, MASK).unwrap();
        assert_eq!(
            holds.release(SNAPSHOT, MASK),
            Err(HoldError::NotHeld {
                owner: SNAPSHOT,
                capability: MASK
            })
        );
        assert!(holds.is_held(MASK));
        assert!(holds.release(DEBUGGER, Capability::SingleStep).is_err());
    }

    #[test]
    fn instances_of_one_name_are_different_owners() {
        let mut holds = Holds::default();
        let [first, second] = [1, 2].map(|n| Owner::instance("client", n));
        holds.take(first, MASK).unwrap();
        assert!(holds.release(second, MASK).is_err());
        assert_eq!(alloc::format!("{second}"), "client#2");
    }

    #[test]
    fn a_dead_owner_leaves_only_the_holds_of_others() {
        let mut holds = Holds::default();
        for _ in 0..3 {
            holds.take(DEBUGGER, MASK).unwrap();
        }
        holds.take(DEBUGGER, Capability::BptExit).unwrap();
        holds.take(SNAPSHOT, MASK).unwrap();
        assert_eq!(holds.drop_owner(DEBUGGER), 4);
        assert_eq!(holds.drop_owner(DEBUGGER), 0);
        assert!(!holds.is_held(Capability::BptExit));
        assert_eq!(holds.owners(MASK).collect::<Vec<_>>(), [(SNAPSHOT, 1)]);
    }

    #[test]
    fn owners_are_bounded_and_a_refused_one_changes_nothing() {
        let mut holds = Holds::default();
        for n in 0..64 {
            holds.take(Owner::instance("client", n), MASK).unwrap();
        }
        let before = holds.clone();
        assert_eq!(
            holds.take(DEBUGGER, MASK),
            Err(HoldError::TooManyOwners {
                capability: MASK,
                limit: 64
            })
        );
        assert_eq!(holds, before);
        assert_eq!(holds.take(Owner::instance("client", 0), MASK), Ok(false));
    }

    #[test]
    fn holds_are_bounded() {
        let mut holds = Holds::default();
        for _ in 0..u16::MAX {
            holds.take(DEBUGGER, MASK).unwrap();
        }
        assert_eq!(
            holds.take(DEBUGGER, MASK),
            Err(HoldError::TooManyHolds {
                owner: DEBUGGER,
                capability: MASK
            })
        );
    }

    proptest! {
        /// Against a model: a plain list of the holds that are out.
        #[test]
        fn an_ability_is_held_exactly_while_a_hold_is_out(
            actions in proptest::collection::vec((0u8..3, 0u32..3, 0usize..2), 0..200),
        ) {
            let mut holds = Holds::default();
            let mut out: Vec<(Owner, Capability)> = Vec::new();
            for (action, owner, capability) in actions {
                let owner = Owner::instance("o", owner);
                let capability = [MASK, Capability::BptExit][capability];
                match action {
                    0 => {
                        let first = !out.iter().any(|hold| hold.1 == capability);
                        prop_assert_eq!(holds.take(owner, capability), Ok(first));
                        out.push((owner, capability));
                    }
                    1 => {
                        let place = out.iter().position(|&hold| hold == (owner, capability));
                        let released = holds.release(owner, capability);
                        if let Some(place) = place {
                            out.swap_remove(place);
                            let last = !out.iter().any(|hold| hold.1 == capability);
                            prop_assert_eq!(released, Ok(last));
                        } else {
                            prop_assert!(released.is_err());
                        }
                    }
                    _ => {
                        let before = out.len();
                        out.retain(|hold| hold.0 != owner);
                        prop_assert_eq!(holds.drop_owner(owner) as usize, before - out.len());
                    }
                }
                for capability in [MASK, Capability::BptExit] {
                    prop_assert_eq!(
                        holds.is_held(capability),
                        out.iter().any(|hold| hold.1 == capability)
                    );
                }
            }
        }
    }
}

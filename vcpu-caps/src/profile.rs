//! What somebody needs of a host.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use crate::capability::Capability;
use crate::evidence::Minimum;
use crate::way::{IrqchipMode, Way};

/// What a profile says about one ability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Wish {
    /// Nothing: it will not be used.
    #[default]
    Unasked,
    /// Without it the job cannot be done.
    Required(Minimum),
    /// It is used if it is there.
    Preferred(Minimum),
    /// It must not be used, nor anything that rests on it.
    Forbidden,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unasked => "-",
            Self::Required(_) => "required",
            Self::Preferred(_) => "preferred",
            Self::Forbidden => "forbidden",
        })
    }
}

/// A profile that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// An ability is forbidden and also required or preferred: decide which.
    #[error("{0} is both wanted and forbidden")]
    WantedAndForbidden(Capability),
    /// The irqchip mode rests on an ability that is forbidden: allow it or choose another mode.
    #[error("{capability} is forbidden, and the {irqchip} irqchip rests on it")]
    IrqchipForbidden {
        /// The mode.
        irqchip: IrqchipMode,
        /// The ability it rests on.
        capability: Capability,
    },
    /// A ladder names a way that can never provide the ability.
    #[error("{way} is no way to have {capability}")]
    WayDoesNotFit {
        /// The ability.
        capability: Capability,
        /// The way.
        way: Way,
    },
}

/// What somebody needs of a host: required, preferred and forbidden abilities, how well each has
/// to be known, and for each the ways that will do, best first.
///
/// ```
/// use vcpu_caps::{Capability, Minimum, Profile, ProfileError};
///
/// let profile = Profile::builder()
///     .require(Capability::SingleStep, Minimum::Verified)
///     .prefer(Capability::MaskHwintr, Minimum::Verified)
///     .build()?;
/// assert!(profile.wish(Capability::Watchpoint) == vcpu_caps::Wish::Unasked);
/// # Ok::<(), ProfileError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    wishes: BTreeMap<Capability, Wish>,
    ladders: BTreeMap<Capability, Vec<Way>>,
    irqchip: IrqchipMode,
}

impl Profile {
    /// Starts a profile in which nothing is asked for.
    #[must_use]
    pub fn builder() -> ProfileBuilder {
        ProfileBuilder::default()
    }

    /// What a debugger stub needs that must never lie: stepping has to have been seen to work,
    /// and so has everything that changes what the person at the debugger sees.
    #[must_use]
    pub fn debugger() -> Self {
        const PROVEN: &[Capability] = &[
            Capability::MaskHwintr,
            Capability::BptExit,
            Capability::HwBreakpoint,
            Capability::Watchpoint,
            Capability::InjectBp,
            Capability::InjectDb,
            Capability::SyncRegs,
        ];
        // Comforts: these hide the length of a stop from the guest.
        const TAKEN_ON_TRUST: &[Capability] = &[Capability::TscOffset, Capability::ClockCtrl];
        let required = [Capability::SingleStep, Capability::ImmediateExit]
            .map(|c| (c, Wish::Required(Minimum::Verified)));
        let proven = PROVEN
            .iter()
            .map(|&c| (c, Wish::Preferred(Minimum::Verified)));
        let trusted = TAKEN_ON_TRUST
            .iter()
            .map(|&c| (c, Wish::Preferred(Minimum::Claimed)));
        Self {
            wishes: required.into_iter().chain(proven).chain(trusted).collect(),
            ..Self::default()
        }
    }

    /// What a VMM needs to run a guest that nobody debugs: a kick that cannot be lost. The host's
    /// word will do, so that nothing has to be verified first.
    #[must_use]
    pub fn run() -> Self {
        Self {
            wishes: BTreeMap::from([
                (Capability::ImmediateExit, Wish::Required(Minimum::Claimed)),
                (Capability::SyncRegs, Wish::Preferred(Minimum::Claimed)),
            ]),
            ..Self::default()
        }
    }

    /// The same profile for a VMM with this irqchip. The abilities that the mode rests on become
    /// required, and ways that it rules out are not taken.
    ///
    /// # Errors
    /// If the profile forbids what the mode rests on.
    pub fn with_irqchip(self, irqchip: IrqchipMode) -> Result<Self, ProfileError> {
        check_irqchip(irqchip, &self.wishes)?;
        Ok(Self { irqchip, ..self })
    }

    /// Where the interrupt controllers are.
    #[must_use]
    pub const fn irqchip(&self) -> IrqchipMode {
        self.irqchip
    }

    /// What the profile says about `capability`, with what its irqchip mode rests on.
    #[must_use]
    pub fn wish(&self, capability: Capability) -> Wish {
        let stated = self.wishes.get(&capability).copied().unwrap_or_default();
        match stated {
            Wish::Unasked | Wish::Preferred(_) if self.irqchip.needs() == Some(capability) => {
                let minimum = match stated {
                    Wish::Preferred(minimum) => minimum,
                    _ => Minimum::Claimed,
                };
                Wish::Required(minimum)
            }
            Wish::Unasked if self.irqchip.wants() == Some(capability) => {
                Wish::Preferred(Minimum::Verified)
            }
            _ => stated,
        }
    }

    /// The ways to have `capability` that will do, best first.
    #[must_use]
    pub fn ladder(&self, capability: Capability) -> &[Way] {
        self.ladders
            .get(&capability)
            .map_or_else(|| Way::ladder(capability), Vec::as_slice)
    }
}

fn check_irqchip(
    irqchip: IrqchipMode,
    wishes: &BTreeMap<Capability, Wish>,
) -> Result<(), ProfileError> {
    match irqchip.needs() {
        Some(capability) if wishes.get(&capability) == Some(&Wish::Forbidden) => {
            Err(ProfileError::IrqchipForbidden {
                irqchip,
                capability,
            })
        }
        _ => Ok(()),
    }
}

/// Builds a [`Profile`]. The order of the calls does not matter; what contradicts itself is
/// refused by [`build`](Self::build).
#[derive(Clone, Debug, Default)]
pub struct ProfileBuilder {
    required: BTreeMap<Capability, Minimum>,
    preferred: BTreeMap<Capability, Minimum>,
    forbidden: Vec<Capability>,
    ladders: BTreeMap<Capability, Vec<Way>>,
    irqchip: IrqchipMode,
}

impl ProfileBuilder {
    /// Without `capability`, known at least as well as `minimum`, the job cannot be done. Asked
    /// for twice, the stronger minimum counts.
    #[must_use]
    pub fn require(mut self, capability: Capability, minimum: Minimum) -> Self {
        strengthen(&mut self.required, capability, minimum);
        self
    }

    /// `capability` is used if it is known at least as well as `minimum`. If it is also required,
    /// it is required, with the stronger minimum.
    #[must_use]
    pub fn prefer(mut self, capability: Capability, minimum: Minimum) -> Self {
        strengthen(&mut self.preferred, capability, minimum);
        self
    }

    /// `capability` must not be used, nor any way that rests on it.
    #[must_use]
    pub fn forbid(mut self, capability: Capability) -> Self {
        self.forbidden.push(capability);
        self
    }

    /// Only these ways to have `capability` will do, best first. Said twice, the last counts.
    #[must_use]
    pub fn ladder(mut self, capability: Capability, ways: &[Way]) -> Self {
        self.ladders.insert(capability, ways.to_vec());
        self
    }

    /// Where the VMM has its interrupt controllers; KVM's own if not said.
    #[must_use]
    pub fn irqchip(mut self, irqchip: IrqchipMode) -> Self {
        self.irqchip = irqchip;
        self
    }

    /// The profile.
    ///
    /// # Errors
    /// If it contradicts itself. Of several contradictions the first, in the order of
    /// [`Capability::ALL`], is named.
    pub fn build(self) -> Result<Profile, ProfileError> {
        let mut wishes: BTreeMap<_, _> = self
            .preferred
            .iter()
            .map(|(&capability, &minimum)| (capability, Wish::Preferred(minimum)))
            .collect();
        for (&capability, &minimum) in &self.required {
            let minimum = self
                .preferred
                .get(&capability)
                .map_or(minimum, |&preferred| minimum.max(preferred));
            wishes.insert(capability, Wish::Required(minimum));
        }
        let mut forbidden = self.forbidden;
        forbidden.sort_unstable();
        for capability in forbidden {
            match wishes.insert(capability, Wish::Forbidden) {
                None | Some(Wish::Forbidden) => {}
                Some(_) => return Err(ProfileError::WantedAndForbidden(capability)),
            }
        }
        for (&capability, ways) in &self.ladders {
            let fitting = Way::ladder(capability);
            if let Some(&way) = ways.iter().find(|way| !fitting.contains(way)) {
                return Err(ProfileError::WayDoesNotFit { capability, way });
            }
        }
        check_irqchip(self.irqchip, &wishes)?;
        Ok(Profile {
            wishes,
            ladders: self.ladders,
            irqchip: self.irqchip,
        })
    }
}

fn strengthen(
    minima: &mut BTreeMap<Capability, Minimum>,
    capability: Capability,
    minimum: Minimum,
) {
    minima
        .entry(capability)
        .and_modify(|known| *known = (*known).max(minimum))
        .or_insert(minimum);
}

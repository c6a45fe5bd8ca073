//! Profiles: what a VMM or debugger needs of a host.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use crate::capability::Capability;
use crate::evidence::Minimum;
use crate::irqchip::IrqchipMode;
use crate::kvm;
use crate::mechanism::{Candidate, Mechanism, MechanismSet};

/// What a profile says about one ability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Requirement {
    /// Nothing: the ability is not used.
    #[default]
    Unasked,
    /// The negotiation fails without it.
    Required(Minimum),
    /// It is used if the host provides it.
    Preferred(Minimum),
    /// It must not be used, nor any mechanism that rests on it.
    Forbidden,
}

impl fmt::Display for Requirement {
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
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// An ability is forbidden and also required or preferred: decide which.
    #[error("{0} is forbidden, and also required or preferred: decide which")]
    WantedAndForbidden(Capability),
    /// The irqchip mode rests on an ability that is forbidden: allow it or choose another mode.
    #[error(
        "{capability} is forbidden, and the {irqchip} irqchip rests on it: allow it, or choose \
         another irqchip"
    )]
    IrqchipForbidden {
        /// The mode.
        irqchip: IrqchipMode,
        /// The ability it rests on.
        capability: Capability,
    },
    /// A ladder names a mechanism that the [`MechanismSet`] does not have for the ability: choose
    /// among those that it has, or offer the mechanism there.
    #[error("{mechanism} is not a mechanism for {capability} here")]
    UnknownMechanism {
        /// The ability.
        capability: Capability,
        /// The mechanism.
        mechanism: Mechanism,
    },
}

/// What a VMM or debugger needs of a host: the required, preferred and forbidden abilities, the
/// evidence that each must have, and the mechanisms for each, the best first.
///
/// ```
/// use vcpu_caps::{Capability, Minimum, Profile, ProfileError, Requirement};
///
/// let profile = Profile::builder()
///     .require(Capability::SingleStep, Minimum::Verified)
///     .prefer(Capability::MaskHwintr, Minimum::Verified)
///     .build()?;
/// assert_eq!(profile.requirement(Capability::Watchpoint), Requirement::Unasked);
/// # Ok::<(), ProfileError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    requirements: BTreeMap<Capability, Requirement>,
    mechanisms: MechanismSet,
    irqchip: IrqchipMode,
}

/// Nothing is asked for; KVM's mechanisms.
impl Default for Profile {
    fn default() -> Self {
        Self {
            requirements: BTreeMap::new(),
            mechanisms: kvm::mechanisms(),
            irqchip: IrqchipMode::default(),
        }
    }
}

impl Profile {
    /// Starts a profile in which nothing is asked for.
    #[must_use]
    pub fn builder() -> ProfileBuilder {
        ProfileBuilder::default()
    }

    /// The profile of a debugger stub. Stepping must be verified, and so must every ability that
    /// changes what the debugger shows.
    #[must_use]
    pub fn debugger() -> Self {
        const VERIFIED: &[Capability] = &[
            Capability::MaskHwintr,
            Capability::SingleStepUser,
            Capability::BptExit,
            Capability::HwBreakpoint,
            Capability::Watchpoint,
            Capability::InjectBp,
            Capability::InjectDb,
            Capability::SyncRegs,
            // They hide the length of a stop from the guest.
            Capability::TscOffset,
            Capability::ClockSet,
        ];
        // It tells the guest of a stop. A claim is enough.
        const CLAIMED: &[Capability] = &[Capability::ClockCtrl];
        let required = [Capability::SingleStep, Capability::ImmediateExit]
            .map(|c| (c, Requirement::Required(Minimum::Verified)));
        let verified = VERIFIED
            .iter()
            .map(|&c| (c, Requirement::Preferred(Minimum::Verified)));
        let claimed = CLAIMED
            .iter()
            .map(|&c| (c, Requirement::Preferred(Minimum::Claimed)));
        Self {
            requirements: required
                .into_iter()
                .chain(verified)
                .chain(claimed)
                .collect(),
            ..Self::default()
        }
    }

    /// The profile of a VMM that runs a guest without a debugger: a kick that cannot be lost. A
    /// claim is enough, so no verification is needed first.
    #[must_use]
    pub fn run() -> Self {
        Self {
            requirements: BTreeMap::from([
                (
                    Capability::ImmediateExit,
                    Requirement::Required(Minimum::Claimed),
                ),
                (
                    Capability::SyncRegs,
                    Requirement::Preferred(Minimum::Claimed),
                ),
            ]),
            ..Self::default()
        }
    }

    /// The same profile for a VMM with this irqchip. The ability that the mode rests on becomes
    /// required, and mechanisms with an obstacle under it are rejected.
    ///
    /// # Errors
    /// If the profile forbids what the mode rests on.
    pub fn with_irqchip(self, irqchip: IrqchipMode) -> Result<Self, ProfileError> {
        check_irqchip(irqchip, &self.requirements)?;
        Ok(Self { irqchip, ..self })
    }

    /// The same profile for another hypervisor or VMM. Ladders of the profile's own are lost.
    #[must_use]
    pub fn with_mechanisms(self, mechanisms: MechanismSet) -> Self {
        Self { mechanisms, ..self }
    }

    /// Where the interrupt controllers are.
    #[must_use]
    pub const fn irqchip(&self) -> IrqchipMode {
        self.irqchip
    }

    /// Returns what the profile says about `capability`. The irqchip mode counts too: it requires
    /// the ability that it rests on.
    #[must_use]
    pub fn requirement(&self, capability: Capability) -> Requirement {
        let stated = self
            .requirements
            .get(&capability)
            .copied()
            .unwrap_or_default();
        match stated {
            Requirement::Unasked | Requirement::Preferred(_)
                if self.irqchip.needs() == Some(capability) =>
            {
                let minimum = match stated {
                    Requirement::Preferred(minimum) => minimum,
                    _ => Minimum::Claimed,
                };
                Requirement::Required(minimum)
            }
            Requirement::Unasked if self.irqchip.wants() == Some(capability) => {
                Requirement::Preferred(Minimum::Verified)
            }
            _ => stated,
        }
    }

    /// The mechanisms that may provide `capability`, the best first.
    #[must_use]
    pub fn ladder(&self, capability: Capability) -> &[Candidate] {
        self.mechanisms.ladder(capability)
    }
}

fn check_irqchip(
    irqchip: IrqchipMode,
    requirements: &BTreeMap<Capability, Requirement>,
) -> Result<(), ProfileError> {
    match irqchip.needs() {
        Some(capability) if requirements.get(&capability) == Some(&Requirement::Forbidden) => {
            Err(ProfileError::IrqchipForbidden {
                irqchip,
                capability,
            })
        }
        _ => Ok(()),
    }
}

/// Builds a [`Profile`]. The order of the calls does not matter. [`build`](Self::build) refuses
/// contradictions.
#[derive(Clone, Debug, Default)]
pub struct ProfileBuilder {
    required: BTreeMap<Capability, Minimum>,
    preferred: BTreeMap<Capability, Minimum>,
    forbidden: Vec<Capability>,
    ladders: BTreeMap<Capability, Vec<Mechanism>>,
    /// `None`: KVM's.
    mechanisms: Option<MechanismSet>,
    irqchip: IrqchipMode,
}

impl ProfileBuilder {
    /// Requires `capability` with at least this evidence. Of two calls the stronger minimum
    /// counts.
    #[must_use]
    pub fn require(mut self, capability: Capability, minimum: Minimum) -> Self {
        strengthen(&mut self.required, capability, minimum);
        self
    }

    /// Uses `capability` if the host provides it with at least this evidence. An ability that is
    /// also required stays required, with the stronger minimum.
    #[must_use]
    pub fn prefer(mut self, capability: Capability, minimum: Minimum) -> Self {
        strengthen(&mut self.preferred, capability, minimum);
        self
    }

    /// Forbids `capability`, and every mechanism that rests on it.
    #[must_use]
    pub fn forbid(mut self, capability: Capability) -> Self {
        self.forbidden.push(capability);
        self
    }

    /// Allows only these mechanisms for `capability`, the best first. Of two calls the last
    /// counts.
    #[must_use]
    pub fn ladder(mut self, capability: Capability, mechanisms: &[Mechanism]) -> Self {
        self.ladders.insert(capability, mechanisms.to_vec());
        self
    }

    /// Sets the mechanisms that the hypervisor and the VMM have. The default is
    /// [`kvm::mechanisms`].
    #[must_use]
    pub fn mechanisms(mut self, mechanisms: MechanismSet) -> Self {
        self.mechanisms = Some(mechanisms);
        self
    }

    /// Sets where the VMM has its interrupt controllers. The default is [`IrqchipMode::Kernel`].
    #[must_use]
    pub fn irqchip(mut self, irqchip: IrqchipMode) -> Self {
        self.irqchip = irqchip;
        self
    }

    /// Builds the profile.
    ///
    /// # Errors
    /// If it contradicts itself. The error names the first contradiction, in the order of
    /// [`Capability::ALL`].
    pub fn build(self) -> Result<Profile, ProfileError> {
        let mut requirements: BTreeMap<_, _> = self
            .preferred
            .iter()
            .map(|(&capability, &minimum)| (capability, Requirement::Preferred(minimum)))
            .collect();
        for (&capability, &minimum) in &self.required {
            let minimum = self
                .preferred
                .get(&capability)
                .map_or(minimum, |&preferred| minimum.max(preferred));
            requirements.insert(capability, Requirement::Required(minimum));
        }
        let mut forbidden = self.forbidden;
        forbidden.sort_unstable();
        for capability in forbidden {
            match requirements.insert(capability, Requirement::Forbidden) {
                None | Some(Requirement::Forbidden) => {}
                Some(_) => return Err(ProfileError::WantedAndForbidden(capability)),
            }
        }
        let mut mechanisms = self.mechanisms.unwrap_or_else(kvm::mechanisms);
        for (capability, allowed) in self.ladders {
            let ladder = restrict(capability, mechanisms.ladder(capability), allowed)?;
            mechanisms = mechanisms.with_ladder(capability, ladder);
        }
        check_irqchip(self.irqchip, &requirements)?;
        Ok(Profile {
            requirements,
            mechanisms,
            irqchip: self.irqchip,
        })
    }
}

/// Finds each of the `allowed` mechanisms in a ladder.
fn restrict(
    capability: Capability,
    ladder: &[Candidate],
    allowed: Vec<Mechanism>,
) -> Result<Vec<Candidate>, ProfileError> {
    let find = |mechanism: Mechanism| {
        let found = ladder.iter().find(|c| *c.mechanism() == mechanism);
        found.cloned().ok_or(ProfileError::UnknownMechanism {
            capability,
            mechanism,
        })
    };
    allowed.into_iter().map(find).collect()
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

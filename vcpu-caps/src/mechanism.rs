//! Mechanisms: the means by which an ability is provided.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use crate::capability::Capability;
use crate::irqchip::IrqchipMode;

/// A means to provide an ability: a stable name, and what it rests on.
///
/// The type is open. An embedder with another hypervisor makes its own mechanisms with
/// [`Mechanism::new`] and offers them in a [`MechanismSet`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "saved::Saved", into = "saved::Saved"))]
pub struct Mechanism {
    name: Cow<'static, str>,
    rests_on: RestsOn,
}

/// What a [`Mechanism`] rests on. The evidence for that is the evidence for the mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum RestsOn {
    /// The host's own ability of the same name as the one that is provided.
    SameAbility,
    /// Another ability of the host.
    Ability(Capability),
    /// Nothing that has a [`Capability`]. The report holds a finding for the mechanism
    /// ([`HostReport::record_mechanism`](crate::HostReport::record_mechanism)).
    Itself,
}

/// What the evidence for a mechanism is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(untagged))]
pub enum Basis {
    /// An ability of the host.
    Ability(Capability),
    /// The mechanism of this name.
    Mechanism(Cow<'static, str>),
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ability(capability) => capability.fmt(f),
            Self::Mechanism(name) => f.pad(name),
        }
    }
}

impl Mechanism {
    /// The hypervisor itself provides the ability.
    pub const HOST: Self = Self::new("host", RestsOn::SameAbility);
    /// For `mask_hwintr`: the injection policy of a userspace interrupt controller withholds
    /// pending interrupts.
    pub const INJECTION_POLICY: Self = Self::new(
        "injection_policy",
        RestsOn::Ability(Capability::UserIrqchip),
    );
    /// For `bpt_exit`: the breakpoint takes a debug register, and no breakpoint instruction is
    /// written to guest memory.
    pub const HARDWARE_SLOT: Self =
        Self::new("hardware_slot", RestsOn::Ability(Capability::HwBreakpoint));

    /// For `tsc_offset`: the counter itself is written. It reaches all vCPUs as one value, and costs more
    /// calls.
    pub const TSC_WRITE: Self = Self::new("tsc_write", RestsOn::Ability(Capability::TscWrite));

    /// A mechanism of an embedder. `name` is stable and snake_case: tables and saved plans show
    /// it.
    #[must_use]
    pub const fn new(name: &'static str, rests_on: RestsOn) -> Self {
        Self {
            name: Cow::Borrowed(name),
            rests_on,
        }
    }

    /// The stable snake_case name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what the mechanism rests on when it provides `capability`.
    #[must_use]
    pub fn basis(&self, capability: Capability) -> Basis {
        match self.rests_on {
            RestsOn::SameAbility => Basis::Ability(capability),
            RestsOn::Ability(other) => Basis::Ability(other),
            RestsOn::Itself => Basis::Mechanism(self.name.clone()),
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

/// A mechanism in the ladder of an ability, with its obstacles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    mechanism: Mechanism,
    obstacles: Vec<Obstacle>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Obstacle {
    /// `None`: under every irqchip.
    irqchip: Option<IrqchipMode>,
    reason: Cow<'static, str>,
}

impl Candidate {
    /// A candidate without obstacles.
    #[must_use]
    pub const fn new(mechanism: Mechanism) -> Self {
        Self {
            mechanism,
            obstacles: Vec::new(),
        }
    }

    /// The mechanism cannot provide the ability under this irqchip, whatever the evidence. The
    /// plan shows `reason`.
    #[must_use]
    pub fn except(mut self, irqchip: IrqchipMode, reason: impl Into<Cow<'static, str>>) -> Self {
        self.obstacles.push(Obstacle {
            irqchip: Some(irqchip),
            reason: reason.into(),
        });
        self
    }

    /// The mechanism cannot provide the ability here at all. The embedder has found that out
    /// before the negotiation; the plan shows `reason`.
    #[must_use]
    pub fn obstructed(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.obstacles.push(Obstacle {
            irqchip: None,
            reason: reason.into(),
        });
        self
    }

    /// The mechanism.
    #[must_use]
    pub const fn mechanism(&self) -> &Mechanism {
        &self.mechanism
    }

    /// Returns why the mechanism cannot provide the ability under `irqchip`; `None` if it can.
    #[must_use]
    pub fn obstacle(&self, irqchip: IrqchipMode) -> Option<&Cow<'static, str>> {
        self.obstacles
            .iter()
            .find(|obstacle| obstacle.irqchip.is_none_or(|mode| mode == irqchip))
            .map(|obstacle| &obstacle.reason)
    }
}

impl From<Mechanism> for Candidate {
    fn from(mechanism: Mechanism) -> Self {
        Self::new(mechanism)
    }
}

/// The ladder of an ability for which a set names none.
static HOST_ALONE: [Candidate; 1] = [Candidate::new(Mechanism::HOST)];

/// The mechanisms of one hypervisor and its VMM: for each ability a ladder, the best mechanism
/// first.
///
/// [`kvm::mechanisms`](crate::kvm::mechanisms) is KVM's set, and the one that a
/// [`Profile`](crate::Profile) has unless it is given another.
///
/// ```
/// use vcpu_caps::{Candidate, Capability, IrqchipMode, Mechanism, MechanismSet, RestsOn};
///
/// // This hypervisor masks by an interrupt shadow that the VMM sets before each entry.
/// const SHADOW: Mechanism = Mechanism::new("interrupt_shadow", RestsOn::Itself);
/// let set = MechanismSet::host_only().with_ladder(
///     Capability::MaskHwintr,
///     [
///         Candidate::new(SHADOW).except(IrqchipMode::User, "the VMM injects by itself"),
///         Mechanism::INJECTION_POLICY.into(),
///     ],
/// );
/// assert_eq!(set.ladder(Capability::MaskHwintr)[0].mechanism(), &SHADOW);
/// assert_eq!(set.ladder(Capability::SingleStep)[0].mechanism(), &Mechanism::HOST);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MechanismSet {
    ladders: BTreeMap<Capability, Vec<Candidate>>,
}

impl MechanismSet {
    /// Every ability is provided by the hypervisor itself, or not at all.
    #[must_use]
    pub const fn host_only() -> Self {
        Self {
            ladders: BTreeMap::new(),
        }
    }

    /// Replaces the ladder of `capability`: these mechanisms, the best first.
    #[must_use]
    pub fn with_ladder(
        mut self,
        capability: Capability,
        ladder: impl IntoIterator<Item = Candidate>,
    ) -> Self {
        self.ladders
            .insert(capability, ladder.into_iter().collect());
        self
    }

    /// Appends a mechanism to the ladder of `capability`. It is tried last.
    #[must_use]
    pub fn offer(self, capability: Capability, candidate: impl Into<Candidate>) -> Self {
        let mut ladder = self.ladder(capability).to_vec();
        ladder.push(candidate.into());
        self.with_ladder(capability, ladder)
    }

    /// The mechanisms that can provide `capability`, the best first.
    #[must_use]
    pub fn ladder(&self, capability: Capability) -> &[Candidate] {
        self.ladders
            .get(&capability)
            .map_or(&HOST_ALONE, Vec::as_slice)
    }
}

/// How a mechanism is saved: one of this crate by its name, one of an embedder with what it rests
/// on.
#[cfg(feature = "serde")]
mod saved {
    use alloc::borrow::Cow;

    use super::{Mechanism, RestsOn};

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(untagged)]
    pub(super) enum Saved {
        Name(Known),
        Full {
            name: Cow<'static, str>,
            rests_on: RestsOn,
        },
    }

    #[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub(super) enum Known {
        Host,
        InjectionPolicy,
        HardwareSlot,
    }

    impl From<Saved> for Mechanism {
        fn from(saved: Saved) -> Self {
            match saved {
                Saved::Name(Known::Host) => Self::HOST,
                Saved::Name(Known::InjectionPolicy) => Self::INJECTION_POLICY,
                Saved::Name(Known::HardwareSlot) => Self::HARDWARE_SLOT,
                Saved::Full { name, rests_on } => Self { name, rests_on },
            }
        }
    }

    impl From<Mechanism> for Saved {
        fn from(mechanism: Mechanism) -> Self {
            if mechanism == Mechanism::HOST {
                Self::Name(Known::Host)
            } else if mechanism == Mechanism::INJECTION_POLICY {
                Self::Name(Known::InjectionPolicy)
            } else if mechanism == Mechanism::HARDWARE_SLOT {
                Self::Name(Known::HardwareSlot)
            } else {
                Self::Full {
                    name: mechanism.name,
                    rests_on: mechanism.rests_on,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHADOW: Mechanism = Mechanism::new("interrupt_shadow", RestsOn::Itself);

    fn names(set: &MechanismSet, capability: Capability) -> Vec<&str> {
        let ladder = set.ladder(capability).iter();
        ladder
            .map(|candidate| candidate.mechanism().name())
            .collect()
    }

    #[test]
    fn an_offered_mechanism_is_tried_last() {
        let set = MechanismSet::host_only().offer(Capability::MaskHwintr, SHADOW);
        assert_eq!(
            names(&set, Capability::MaskHwintr),
            ["host", "interrupt_shadow"]
        );
        assert_eq!(names(&set, Capability::SingleStep), ["host"]);
    }

    #[test]
    fn an_obstacle_counts_under_its_irqchip_only() {
        let candidate = Candidate::new(SHADOW).except(IrqchipMode::User, "why");
        assert!(candidate.obstacle(IrqchipMode::User).is_some());
        assert!(candidate.obstacle(IrqchipMode::Kernel).is_none());
        let candidate = candidate.obstructed("always");
        assert!(candidate.obstacle(IrqchipMode::Kernel).is_some());
    }

    #[test]
    fn the_basis_of_a_mechanism_depends_on_the_ability_only_if_the_host_provides_it() {
        let host = |capability| Mechanism::HOST.basis(capability);
        assert_eq!(
            host(Capability::SingleStep),
            Basis::Ability(Capability::SingleStep)
        );
        assert_eq!(
            Mechanism::HARDWARE_SLOT.basis(Capability::BptExit),
            Basis::Ability(Capability::HwBreakpoint)
        );
        assert_eq!(
            SHADOW.basis(Capability::MaskHwintr),
            Basis::Mechanism("interrupt_shadow".into())
        );
    }

    #[cfg(feature = "serde")]
    #[test]
    fn known_mechanisms_are_saved_by_name_and_others_in_full() {
        for (mechanism, json) in [
            (Mechanism::HOST, r#""host""#),
            (Mechanism::INJECTION_POLICY, r#""injection_policy""#),
            (Mechanism::HARDWARE_SLOT, r#""hardware_slot""#),
            (SHADOW, r#"{"name":"interrupt_shadow","rests_on":"itself"}"#),
        ] {
            assert_eq!(serde_json::to_string(&mechanism).unwrap(), json);
            assert_eq!(serde_json::from_str::<Mechanism>(json).unwrap(), mechanism);
        }
        assert!(serde_json::from_str::<Mechanism>(r#""no_such""#).is_err());
    }
}

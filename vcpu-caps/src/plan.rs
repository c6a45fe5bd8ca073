//! The outcome of a negotiation.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::capability::Capability;
use crate::evidence::{Evidence, Finding, Minimum};
use crate::irqchip::IrqchipMode;
use crate::mechanism::{Basis, Mechanism};
use crate::profile::Requirement;
use crate::table::write_table;

/// How an ability is provided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Provision {
    /// The mechanism chosen.
    pub mechanism: Mechanism,
    /// The evidence for what it rests on.
    pub evidence: Evidence,
}

/// Why a mechanism was rejected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Reason {
    /// The evidence for what it rests on is too weak.
    Evidence {
        /// What it rests on.
        rests_on: Basis,
        /// The finding for that.
        finding: Finding,
        /// The evidence that the profile asks for.
        minimum: Minimum,
    },
    /// The profile forbids the ability that it rests on.
    Forbidden(Capability),
    /// It cannot work here, or not where the interrupt controllers are.
    Irqchip(Cow<'static, str>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Evidence {
                rests_on,
                finding,
                minimum,
            } => {
                write!(f, "{rests_on} is {finding}")?;
                if finding.evidence == Evidence::Claimed && *minimum == Minimum::Verified {
                    write!(f, " (not verified)")?;
                }
                Ok(())
            }
            Self::Forbidden(rests_on) => write!(f, "the profile forbids {rests_on}"),
            Self::Irqchip(why) => f.write_str(why),
        }
    }
}

/// A mechanism that was rejected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Rejected {
    /// The mechanism.
    pub mechanism: Mechanism,
    /// Why it was rejected.
    pub reason: Reason,
}

/// The decision about one ability.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Entry {
    /// The ability.
    pub capability: Capability,
    /// What the profile says about it.
    pub requirement: Requirement,
    /// The finding for the host's own ability.
    pub finding: Finding,
    /// How it is provided; `None` if it is not.
    pub provision: Option<Provision>,
    /// The better mechanisms, in order, with the reason for each. All mechanisms of the ladder if
    /// the ability is not provided.
    pub rejected: Vec<Rejected>,
}

impl Entry {
    /// Returns `true` if the profile requires the ability and the plan does not provide it.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.requirement, Requirement::Required(_)) && self.provision.is_none()
    }

    /// "how", as tables show it.
    fn how(&self) -> String {
        match (&self.provision, self.requirement) {
            (Some(provision), _) => provision.mechanism.to_string(),
            (None, Requirement::Required(_) | Requirement::Preferred(_)) => {
                String::from("not available")
            }
            (None, Requirement::Unasked | Requirement::Forbidden) => String::from("not used"),
        }
    }

    /// "why", as tables show it.
    fn why(&self) -> String {
        // The row shows the evidence for the ability already.
        let own = Basis::Ability(self.capability);
        let mut why: Vec<String> = Vec::new();
        match &self.provision {
            Some(provision) => match provision.mechanism.basis(self.capability) {
                basis if basis == own => why.push(self.finding.detail.to_string()),
                basis => why.push(format!("{basis} is {}", provision.evidence)),
            },
            None if self.rejected.is_empty() => why.push(self.finding.detail.to_string()),
            None => {}
        }
        why.extend(self.rejected.iter().map(|rejected| {
            let mechanism = &rejected.mechanism;
            match &rejected.reason {
                Reason::Evidence {
                    rests_on, finding, ..
                } if *rests_on == own => format!("not {mechanism}: {}", finding.detail),
                reason => format!("not {mechanism}: {reason}"),
            }
        }));
        why.retain(|part| !part.is_empty());
        why.join("; ")
    }
}

/// How each ability is provided on one host.
///
/// A plan prints as a table. With the feature `serde` it can be saved. Per-vCPU control
/// ([`VcpuControl`](crate::VcpuControl)) is built from it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Plan {
    flavour: String,
    irqchip: IrqchipMode,
    entries: Vec<Entry>,
}

impl Plan {
    pub(crate) fn new(flavour: &str, irqchip: IrqchipMode, entries: Vec<Entry>) -> Self {
        Self {
            flavour: flavour.to_string(),
            irqchip,
            entries,
        }
    }

    /// Returns `true` if the plan provides `capability`.
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        self.mechanism(capability).is_some()
    }

    /// Returns the mechanism that provides `capability`; `None` if the plan does not provide it.
    #[must_use]
    pub fn mechanism(&self, capability: Capability) -> Option<&Mechanism> {
        let provision = self.entry(capability)?.provision.as_ref()?;
        Some(&provision.mechanism)
    }

    /// Returns `true` if `mechanism` provides `capability`.
    #[must_use]
    pub fn is_provided_by(&self, capability: Capability, mechanism: &Mechanism) -> bool {
        self.mechanism(capability) == Some(mechanism)
    }

    /// Returns the decision about `capability`.
    #[must_use]
    pub fn entry(&self, capability: Capability) -> Option<&Entry> {
        self.entries.iter().find(|e| e.capability == capability)
    }

    /// The decisions, in the order in which tables show them.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The name of the hypervisor that the plan was made for.
    #[must_use]
    pub fn flavour(&self) -> &str {
        &self.flavour
    }

    /// Where the interrupt controllers are.
    #[must_use]
    pub const fn irqchip(&self) -> IrqchipMode {
        self.irqchip
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "host {}, {} irqchip", self.flavour, self.irqchip)?;
        let rows: Vec<_> = self
            .entries()
            .map(|entry| {
                [
                    entry.capability.to_string(),
                    entry.requirement.to_string(),
                    entry.finding.evidence.to_string(),
                    entry.how(),
                    entry.why(),
                ]
            })
            .collect();
        write_table(f, ["ability", "requirement", "host", "how", "why"], &rows)
    }
}

/// The host cannot do what the profile requires.
///
/// Prints each missing ability with the reason and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    plan: Plan,
}

impl Refusal {
    pub(crate) const fn new(plan: Plan) -> Self {
        Self { plan }
    }

    /// The plan without what is missing.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes the plan without what is missing, for a caller that continues without it.
    #[must_use]
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// The required abilities that the host cannot provide.
    pub fn missing(&self) -> impl Iterator<Item = &Entry> {
        self.plan.entries().filter(|e| e.is_missing())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this host ({}) cannot do what is needed:",
            self.plan.flavour
        )?;
        for entry in self.missing() {
            write!(f, "\n  {}: ", entry.capability)?;
            for (index, rejected) in entry.rejected.iter().enumerate() {
                let separator = if index == 0 { "" } else { "; " };
                write!(f, "{separator}{}: {}", rejected.mechanism, rejected.reason)?;
            }
            write!(f, "; {}", advice(entry))?;
        }
        Ok(())
    }
}

impl core::error::Error for Refusal {}

/// What to do about a missing ability.
fn advice(entry: &Entry) -> &'static str {
    let reasons = || entry.rejected.iter().map(|rejected| &rejected.reason);
    let has = |evidence| {
        reasons().any(|reason| {
            matches!(reason, Reason::Evidence { finding, .. } if finding.evidence == evidence)
        })
    };
    if has(Evidence::Claimed) {
        "verify the host first, or accept a claim in the profile"
    } else if reasons().any(|reason| matches!(reason, Reason::Forbidden(_))) {
        "allow what the profile forbids"
    } else {
        match entry.finding.evidence {
            Evidence::Absent => "use a newer kernel on the host",
            Evidence::Refuted => {
                "use another host: this one claims the ability and does not have it"
            }
            Evidence::Claimed | Evidence::Verified => "choose another irqchip",
        }
    }
}

//! The outcome of a negotiation.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::capability::Capability;
use crate::evidence::{Evidence, Finding, Minimum};
use crate::profile::Wish;
use crate::table::write_table;
use crate::way::{IrqchipMode, Way};

/// How an ability will be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Met {
    /// The way taken.
    pub way: Way,
    /// How well it is known to work.
    pub evidence: Evidence,
}

/// Why a way was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Reason {
    /// What it rests on is not known well enough to be there.
    Evidence {
        /// The ability of the host on which it rests.
        rests_on: Capability,
        /// What is known of that.
        finding: Finding,
        /// What the profile asks for.
        minimum: Minimum,
    },
    /// The profile forbids what it rests on.
    Forbidden(Capability),
    /// It does not work where the interrupt controllers are.
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

/// A way that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct PassedOver {
    /// The way.
    pub way: Way,
    /// Why not.
    pub reason: Reason,
}

/// What was decided about one ability.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Entry {
    /// The ability.
    pub capability: Capability,
    /// What the profile said about it.
    pub wish: Wish,
    /// What is known of the host's own ability.
    pub finding: Finding,
    /// How it will be had; `None` if it will not.
    pub met: Option<Met>,
    /// The better ways, in order, and why they were not taken. If the ability is not met, all
    /// ways of the ladder.
    pub passed_over: Vec<PassedOver>,
}

impl Entry {
    /// Whether the profile requires the ability and the host cannot give it.
    #[must_use]
    pub fn is_unmet_requirement(&self) -> bool {
        matches!(self.wish, Wish::Required(_)) && self.met.is_none()
    }

    /// "how", as tables show it.
    fn how(&self) -> String {
        match (&self.met, self.wish) {
            (Some(met), _) => met.way.to_string(),
            (None, Wish::Required(_) | Wish::Preferred(_)) => String::from("not available"),
            (None, Wish::Unasked | Wish::Forbidden) => String::from("not used"),
        }
    }

    /// "why", as tables show it.
    fn why(&self) -> String {
        let mut why: Vec<String> = Vec::new();
        match self.met {
            Some(met) if met.way == Way::Host => why.push(self.finding.detail.to_string()),
            Some(met) => why.push(format!(
                "{} is {}",
                met.way.rests_on(self.capability),
                met.evidence
            )),
            None if self.passed_over.is_empty() => why.push(self.finding.detail.to_string()),
            None => {}
        }
        why.extend(self.passed_over.iter().map(|passed| match &passed.reason {
            // The row shows the evidence already.
            Reason::Evidence {
                rests_on, finding, ..
            } if *rests_on == self.capability => format!("not {}: {}", passed.way, finding.detail),
            reason => format!("not {}: {reason}", passed.way),
        }));
        why.retain(|part| !part.is_empty());
        why.join("; ")
    }
}

/// How each ability will be had on one host.
///
/// It prints as a table, with the features `serde` it can be saved, and per-vCPU control
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

    /// Whether `capability` will be had.
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        self.way(capability).is_some()
    }

    /// How `capability` will be had; `None` if it will not.
    #[must_use]
    pub fn way(&self, capability: Capability) -> Option<Way> {
        self.entry(capability)?.met.map(|met| met.way)
    }

    /// What was decided about `capability`.
    #[must_use]
    pub fn entry(&self, capability: Capability) -> Option<&Entry> {
        self.entries.iter().find(|e| e.capability == capability)
    }

    /// What was decided, in the order in which tables show it.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The hypervisor that the plan was made for.
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
                    entry.wish.to_string(),
                    entry.finding.evidence.to_string(),
                    entry.how(),
                    entry.why(),
                ]
            })
            .collect();
        write_table(f, ["ability", "wish", "host", "how", "why"], &rows)
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

    /// Takes the plan without what is missing, for somebody who goes on all the same.
    #[must_use]
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// The required abilities that cannot be had.
    pub fn missing(&self) -> impl Iterator<Item = &Entry> {
        self.plan.entries().filter(|e| e.is_unmet_requirement())
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
            for (index, passed) in entry.passed_over.iter().enumerate() {
                let separator = if index == 0 { "" } else { "; " };
                write!(f, "{separator}{}: {}", passed.way, passed.reason)?;
            }
            write!(f, "; {}", advice(entry))?;
        }
        Ok(())
    }
}

impl core::error::Error for Refusal {}

/// What to do about a missing ability.
fn advice(entry: &Entry) -> &'static str {
    let unverified = entry.passed_over.iter().any(|passed| {
        matches!(&passed.reason, Reason::Evidence { finding, .. }
            if finding.evidence == Evidence::Claimed)
    });
    let forbidden = entry
        .passed_over
        .iter()
        .any(|passed| matches!(passed.reason, Reason::Forbidden(_)));
    match (
        unverified,
        forbidden,
        entry.finding.evidence,
        entry.capability,
    ) {
        (true, ..) => "verify the host first, or accept a claim in the profile",
        (_, true, ..) => "allow what the profile forbids",
        (_, _, Evidence::Absent, Capability::MaskHwintr) => "use Linux 5.15 or later on the host",
        (_, _, Evidence::Absent, _) => "use a newer kernel on the host",
        (_, _, Evidence::Refuted, _) => {
            "use another host: this one claims the ability and does not have it"
        }
        (_, _, Evidence::Claimed | Evidence::Verified, _) => "choose another irqchip",
    }
}

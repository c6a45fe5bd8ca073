//! Reports: the findings about one host.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::capability::Capability;
use crate::evidence::{Evidence, Finding};
use crate::mechanism::{Basis, Mechanism};
use crate::table::write_table;

/// Numbers that a hypervisor reports about itself. They are shown and saved with a report, to
/// compare two reports. No decision rests on them.
///
/// The fields are KVM's. For another hypervisor they stay 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct HostFacts {
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// `KVM_GET_API_VERSION`; 12 on every kernel since 2007.
    pub api_version: u32,
    /// `KVM_CAP_SET_GUEST_DEBUG2`: the debug flags that the host claims to know.
    pub guest_debug_mask: u32,
    /// `KVM_CAP_SYNC_REGS`: which register groups travel in the run structure.
    pub sync_regs_mask: u32,
    /// `KVM_CAP_MAX_VCPUS`.
    pub max_vcpus: u32,
    /// `KVM_CAP_NR_VCPUS`, the number that KVM recommends not to exceed.
    pub recommended_vcpus: u32,
    /// `KVM_CAP_NR_MEMSLOTS`.
    pub memory_slots: u32,
}

/// The findings about one host's abilities.
///
/// An adapter fills the report: for KVM, `kvm::probe` records claims and `kvm::verify` settles
/// them. [`negotiate`](crate::negotiate) reads it. It prints as a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct HostReport {
    flavour: String,
    facts: HostFacts,
    findings: BTreeMap<Capability, Finding>,
    /// Findings for mechanisms that rest on no ability, by name.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "BTreeMap::is_empty")
    )]
    mechanisms: BTreeMap<Cow<'static, str>, Finding>,
}

/// The finding for an ability that was not probed.
static NOT_PROBED: Finding = Finding {
    evidence: Evidence::Absent,
    detail: Cow::Borrowed("not probed"),
};

impl HostReport {
    /// A report without findings. `flavour` names the hypervisor, for instance `kvm_intel`.
    #[must_use]
    pub fn new(flavour: impl Into<String>, facts: HostFacts) -> Self {
        Self {
            flavour: flavour.into(),
            facts,
            findings: BTreeMap::new(),
            mechanisms: BTreeMap::new(),
        }
    }

    /// The hypervisor's name, as the adapter found it.
    #[must_use]
    pub fn flavour(&self) -> &str {
        &self.flavour
    }

    /// Numbers that the hypervisor reports about itself.
    #[must_use]
    pub const fn facts(&self) -> &HostFacts {
        &self.facts
    }

    /// Returns the finding for `capability`.
    #[must_use]
    pub fn finding(&self, capability: Capability) -> &Finding {
        self.findings.get(&capability).unwrap_or(&NOT_PROBED)
    }

    /// Returns the evidence for `capability`.
    #[must_use]
    pub fn evidence(&self, capability: Capability) -> Evidence {
        self.finding(capability).evidence
    }

    /// Returns the finding for an ability, or for a mechanism that rests on none.
    #[must_use]
    pub fn finding_for(&self, basis: &Basis) -> &Finding {
        match basis {
            Basis::Ability(capability) => self.finding(*capability),
            Basis::Mechanism(name) => self.mechanisms.get(name).unwrap_or(&NOT_PROBED),
        }
    }

    /// Replaces the finding for `capability`.
    pub fn record(&mut self, capability: Capability, finding: Finding) {
        self.findings.insert(capability, finding);
    }

    /// Replaces the finding for a mechanism. It counts only for one that rests on no ability
    /// ([`RestsOn::Itself`](crate::RestsOn::Itself)).
    pub fn record_mechanism(&mut self, mechanism: &Mechanism, finding: Finding) {
        let name = Cow::Owned(String::from(mechanism.name()));
        self.mechanisms.insert(name, finding);
    }

    /// Every ability with its finding, in the order in which tables show them.
    pub fn iter(&self) -> impl Iterator<Item = (Capability, &Finding)> {
        Capability::ALL
            .iter()
            .map(|&capability| (capability, self.finding(capability)))
    }
}

impl fmt::Display for HostReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.facts;
        writeln!(
            f,
            "host {}, kernel {}, KVM API {}, debug flags {:#x}, sync_regs {:#x}, up to {} vCPUs",
            self.flavour,
            facts.kernel,
            facts.api_version,
            facts.guest_debug_mask,
            facts.sync_regs_mask,
            facts.max_vcpus,
        )?;
        let row = |name: String, finding: &Finding| {
            [
                name,
                finding.evidence.to_string(),
                finding.detail.to_string(),
            ]
        };
        let abilities = self.iter().map(|(c, finding)| row(c.to_string(), finding));
        let mechanisms = self.mechanisms.iter();
        let mechanisms = mechanisms.map(|(name, finding)| row(name.to_string(), finding));
        let rows: Vec<_> = abilities.chain(mechanisms).collect();
        write_table(f, ["ability", "evidence", "why"], &rows)
    }
}

//! What is known of one host.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::capability::Capability;
use crate::evidence::{Evidence, Finding};
use crate::table::write_table;

/// Numbers that a hypervisor reports about itself. They are shown and saved with a report so that
/// two reports can be compared; no decision rests on them.
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

/// What is known of one host's abilities.
///
/// An adapter fills it: for KVM, `kvm::probe` with claims and `kvm::verify` with knowledge.
/// [`negotiate`](crate::negotiate) reads it. It prints as a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct HostReport {
    flavour: String,
    facts: HostFacts,
    findings: BTreeMap<Capability, Finding>,
}

/// What is known of an ability that nobody has asked the host about.
static NOT_PROBED: Finding = Finding {
    evidence: Evidence::Absent,
    detail: alloc::borrow::Cow::Borrowed("not probed"),
};

impl HostReport {
    /// A report in which nothing is known yet. `flavour` names the hypervisor that was asked, for
    /// instance `kvm_intel`.
    #[must_use]
    pub fn new(flavour: impl Into<String>, facts: HostFacts) -> Self {
        Self {
            flavour: flavour.into(),
            facts,
            findings: BTreeMap::new(),
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

    /// What is known of `capability`.
    #[must_use]
    pub fn finding(&self, capability: Capability) -> &Finding {
        self.findings.get(&capability).unwrap_or(&NOT_PROBED)
    }

    /// How well `capability` is known.
    #[must_use]
    pub fn evidence(&self, capability: Capability) -> Evidence {
        self.finding(capability).evidence
    }

    /// Replaces what is known of `capability`.
    pub fn record(&mut self, capability: Capability, finding: Finding) {
        self.findings.insert(capability, finding);
    }

    /// Every ability with what is known of it, in the order in which tables show them.
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
        let rows: Vec<_> = self
            .iter()
            .map(|(capability, finding)| {
                [
                    capability.to_string(),
                    finding.evidence.to_string(),
                    finding.detail.to_string(),
                ]
            })
            .collect();
        write_table(f, ["ability", "evidence", "why"], &rows)
    }
}

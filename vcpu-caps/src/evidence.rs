//! Evidence: what is known of an ability on a host, and why.

use alloc::borrow::Cow;
use core::fmt;

/// What is known of one ability on one host.
///
/// The report of a hypervisor is a claim: KVM accepts debug flags that it does not know
/// (`kvm_arch_vcpu_ioctl_set_guest_debug` checks none), and some hosts report flags that do
/// nothing. Only a run of a small guest verifies or refutes a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Evidence {
    /// The host does not claim it.
    #[default]
    Absent,
    /// The host claims it. No guest was run.
    Claimed,
    /// A guest was run, and it worked.
    Verified,
    /// The host claims it, a guest was run, and it did not work.
    Refuted,
}

impl Evidence {
    /// The stable snake_case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Claimed => "claimed",
            Self::Verified => "verified",
            Self::Refuted => "refuted",
        }
    }

    /// Returns `true` if a profile that asks for `minimum` accepts this evidence. No profile
    /// accepts absent or refuted.
    #[must_use]
    pub const fn meets(self, minimum: Minimum) -> bool {
        match (self, minimum) {
            (Self::Verified, _) | (Self::Claimed, Minimum::Claimed) => true,
            (Self::Claimed, Minimum::Verified) | (Self::Absent | Self::Refuted, _) => false,
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The weakest evidence that a profile accepts for an ability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Minimum {
    /// A claim is enough.
    Claimed,
    /// A guest must have shown it.
    Verified,
}

impl fmt::Display for Minimum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Claimed => Evidence::Claimed.name(),
            Self::Verified => Evidence::Verified.name(),
        })
    }
}

/// The evidence for one ability, and in a few words why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Finding {
    /// The evidence.
    pub evidence: Evidence,
    /// Why; for instance what the guest did instead. May be empty.
    #[cfg_attr(feature = "serde", serde(default))]
    pub detail: Cow<'static, str>,
}

impl Finding {
    /// The host does not claim it.
    #[must_use]
    pub fn absent(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Evidence::Absent, detail)
    }

    /// The host claims it.
    #[must_use]
    pub fn claimed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Evidence::Claimed, detail)
    }

    /// A guest showed that it works.
    #[must_use]
    pub fn verified(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Evidence::Verified, detail)
    }

    /// A guest showed that it does not work.
    #[must_use]
    pub fn refuted(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Evidence::Refuted, detail)
    }

    fn new(evidence: Evidence, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            evidence,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            write!(f, "{}", self.evidence)
        } else {
            write!(f, "{}: {}", self.evidence, self.detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verified_meets_verified() {
        let meeting: alloc::vec::Vec<_> = [
            Evidence::Absent,
            Evidence::Claimed,
            Evidence::Verified,
            Evidence::Refuted,
        ]
        .into_iter()
        .map(|e| (e.meets(Minimum::Claimed), e.meets(Minimum::Verified)))
        .collect();
        assert_eq!(
            meeting,
            [(false, false), (true, false), (true, true), (false, false)]
        );
    }

    #[test]
    fn a_finding_without_detail_prints_no_colon() {
        assert_eq!(alloc::format!("{}", Finding::verified("")), "verified");
        assert_eq!(
            alloc::format!("{}", Finding::refuted("no exit")),
            "refuted: no exit"
        );
    }
}

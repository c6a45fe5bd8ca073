//! From what a host can do and what somebody needs to a plan.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::capability::Capability;
use crate::plan::{Entry, Met, PassedOver, Plan, Reason, Refusal};
use crate::profile::{Profile, Wish};
use crate::report::HostReport;

/// Decides, for each ability, how it will be had on this host.
///
/// A pure function: the same report and profile give the same plan. Abilities do not compete, so
/// each is decided on its own: the first way of its ladder that the irqchip allows, the profile
/// does not forbid and whose evidence is good enough.
///
/// # Errors
/// If an ability that the profile requires cannot be had. The [`Refusal`] names each of them,
/// says what to do, and carries the plan without them.
pub fn negotiate(report: &HostReport, profile: &Profile) -> Result<Plan, Box<Refusal>> {
    let entries: Vec<Entry> = Capability::ALL
        .iter()
        .map(|&capability| decide(capability, report, profile))
        .collect();
    let plan = Plan::new(report.flavour(), profile.irqchip(), entries);
    if plan.entries().any(Entry::is_unmet_requirement) {
        Err(Box::new(Refusal::new(plan)))
    } else {
        Ok(plan)
    }
}

fn decide(capability: Capability, report: &HostReport, profile: &Profile) -> Entry {
    let wish = profile.wish(capability);
    let finding = report.finding(capability).clone();
    let minimum = match wish {
        Wish::Required(minimum) | Wish::Preferred(minimum) => minimum,
        Wish::Unasked | Wish::Forbidden => {
            return Entry {
                capability,
                wish,
                finding,
                met: None,
                passed_over: Vec::new(),
            };
        }
    };
    let mut passed_over = Vec::new();
    let mut met = None;
    for &way in profile.ladder(capability) {
        let rests_on = way.rests_on(capability);
        let evidence = report.evidence(rests_on);
        let reason = if let Some(obstacle) = way.obstacle(capability, profile.irqchip()) {
            Reason::Irqchip(obstacle.into())
        } else if profile.wish(rests_on) == Wish::Forbidden {
            Reason::Forbidden(rests_on)
        } else if !evidence.meets(minimum) {
            Reason::Evidence {
                rests_on,
                finding: report.finding(rests_on).clone(),
                minimum,
            }
        } else {
            met = Some(Met { way, evidence });
            break;
        };
        passed_over.push(PassedOver { way, reason });
    }
    Entry {
        capability,
        wish,
        finding,
        met,
        passed_over,
    }
}

#[cfg(test)]
mod tests;

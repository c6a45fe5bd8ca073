//! Whose an APIC id is.

use alloc::vec::Vec;

use super::{Destination, LogicalModel, VcpuIndex, x2apic_logical_id};
use crate::ApicMode;

/// The rows of the table by their APIC ids, ascending. A guest may give two APICs one id: both
/// answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ids(Vec<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    id: u32,
    vcpu: VcpuIndex,
    /// The physical destination of this value reaches this APIC, and no other.
    sole_by_id: bool,
    /// So does the x2APIC logical destination that names it alone.
    sole_by_logical_id: bool,
}

impl Ids {
    pub(super) fn with_capacity(vcpus: usize) -> Self {
        Self(Vec::with_capacity(vcpus))
    }

    /// Within its capacity.
    pub(super) fn rebuild(&mut self, rows: &[Destination]) {
        let Self(entries) = self;
        let any_in_xapic_mode = rows.iter().any(|row| row.mode == ApicMode::XApic);
        entries.clear();
        entries.extend((0..).map(VcpuIndex).zip(rows).map(|(vcpu, row)| Entry {
            id: row.apic_id,
            vcpu,
            // 0xff is everybody's in xAPIC mode.
            sole_by_id: row.mode != ApicMode::Disabled && row.apic_id != 0xff,
            // One of eight bits may name others in xAPIC mode.
            sole_by_logical_id: row.mode == ApicMode::X2Apic
                && row.model == LogicalModel::X2Apic
                && row.logical_id == x2apic_logical_id(row.apic_id)
                && !(any_in_xapic_mode && row.logical_id <= 0xff),
        }));
        entries.sort_unstable();
        let mut previous: Option<&mut Entry> = None;
        for entry in entries {
            if let Some(previous) = previous.filter(|previous| previous.id == entry.id) {
                for entry in [previous, &mut *entry] {
                    entry.sole_by_id = false;
                    entry.sole_by_logical_id = false;
                }
            }
            previous = Some(entry);
        }
    }

    /// An id that two have, and the two.
    pub(super) fn duplicate(&self) -> Option<(u32, [VcpuIndex; 2])> {
        let Self(entries) = self;
        entries.windows(2).find_map(|pair| match pair {
            [one, other] if one.id == other.id => Some((one.id, [one.vcpu, other.vcpu])),
            _ => None,
        })
    }

    /// The one APIC that the physical destination `id` reaches, if a look shows it.
    #[inline]
    pub(super) fn sole(&self, id: u32) -> Option<VcpuIndex> {
        self.at(id)
            .filter(|entry| entry.sole_by_id)
            .map(|entry| entry.vcpu)
    }

    /// The one APIC that the x2APIC logical destination of `id` alone reaches, if a look shows it.
    #[inline]
    pub(super) fn sole_member(&self, id: u32) -> Option<VcpuIndex> {
        self.at(id)
            .filter(|entry| entry.sole_by_logical_id)
            .map(|entry| entry.vcpu)
    }

    /// In a machine whose ids count up from 0 the place of an id is the id.
    #[inline]
    fn at(&self, id: u32) -> Option<&Entry> {
        let Self(entries) = self;
        let entry = entries.get(usize::try_from(id).ok()?)?;
        (entry.id == id).then_some(entry)
    }

    /// All that have an id.
    pub(super) fn of(&self, id: u32) -> impl Iterator<Item = VcpuIndex> {
        let Self(entries) = self;
        let rest = entries.get(self.first(id)..).unwrap_or_default();
        rest.iter()
            .take_while(move |entry| entry.id == id)
            .map(|entry| entry.vcpu)
    }

    /// The place of the first that has an id.
    fn first(&self, id: u32) -> usize {
        let Self(entries) = self;
        let guess = usize::try_from(id).unwrap_or(usize::MAX);
        let before = guess.checked_sub(1).and_then(|place| entries.get(place));
        if self.at(id).is_some() && before.is_none_or(|entry| entry.id != id) {
            return guess;
        }
        entries.partition_point(|entry| entry.id < id)
    }
}

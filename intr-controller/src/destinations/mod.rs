//! The targets of an interrupt message: a table of the destinations of every local APIC.
//!
//! The table is small and changes only when a guest rewrites an id, a logical destination, a mode or a
//! software-enable bit, which guests do at boot. A VMM with threads therefore keeps one lock (or
//! an RCU pointer) for the table and **one lock for each vCPU's [`Lapic`](crate::Lapic)**:
//!
//! - to deliver, read the table, and for each target lock that vCPU's APIC alone and
//!   [`accept`](crate::Lapic::accept);
//! - on [`Effect::Ipi`](crate::Effect::Ipi) release the sender's lock first: the targets may
//!   include the sender, and two vCPUs may send to each other;
//! - on [`Effect::IdentityChanged`](crate::Effect::IdentityChanged) write the one row
//!   ([`Destinations::update`]) before the vCPU runs on.
//!
//! Lowest-priority arbitration needs no lock of another APIC either, because it looks at the table
//! only. A VMM with one owner of all APICs takes [`Lapics`](crate::Lapics) instead.
//!
//! Nothing here allocates after creation. A destination that names one APIC by its id, or by its
//! x2APIC logical id, costs one look-up if ids count up from 0, and a binary search otherwise. An x2APIC
//! logical one costs that for each of at most 16 members. An xAPIC logical one costs a scan of the rows in
//! xAPIC mode that have a logical id, and a broadcast a scan of all rows.

mod destination;
mod ids;
mod route;

use alloc::vec::Vec;

use thiserror::Error;

pub(crate) use destination::x2apic_logical_id;
pub use destination::{Destination, LogicalModel};
use ids::Ids;

use crate::{ApicMode, InterruptMessage};

/// A vCPU by its place in the table, which is not its APIC id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VcpuIndex(pub u16);

impl VcpuIndex {
    /// As an index.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// The table was not created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DestinationsError {
    /// Two vCPUs begin with one APIC id. Give each its own.
    #[error("apic_id: vCPUs {first} and {second} both have APIC id {apic_id:#x}")]
    DuplicateId {
        /// The id.
        apic_id: u32,
        /// One.
        first: usize,
        /// The other.
        second: usize,
    },
    /// 0xffffffff is the broadcast destination, and no APIC's own id.
    #[error("apic_id: vCPU {vcpu} has the broadcast id")]
    BroadcastId {
        /// The vCPU.
        vcpu: usize,
    },
    /// More than 65,535.
    #[error("vCPUs: {count} are too many, at most 65535 have an index")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// A row that does not exist was to be written. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("vcpu: there is no vCPU {}", .0.0)]
pub struct NoSuchVcpu(pub VcpuIndex);

/// The part of a row that a logical destination is compared with in xAPIC mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct XapicLogical {
    vcpu: VcpuIndex,
    logical_id: u32,
    model: LogicalModel,
}

impl XapicLogical {
    fn answers(&self, destination: u32) -> bool {
        self.model.matches(self.logical_id, destination)
    }
}

/// The destinations of every local APIC of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destinations {
    rows: Vec<Destination>,
    ids: Ids,
    /// Those in xAPIC mode that have a logical id, by vCPU.
    xapic_logical: Vec<XapicLogical>,
}

impl Destinations {
    /// From one row for each vCPU, all with different ids.
    ///
    /// # Errors
    /// If two have the same id, or there are too many.
    pub fn new(rows: Vec<Destination>) -> Result<Self, DestinationsError> {
        if rows.len() > usize::from(u16::MAX) {
            return Err(DestinationsError::TooMany { count: rows.len() });
        }
        let mut table = Self {
            ids: Ids::with_capacity(rows.len()),
            xapic_logical: Vec::with_capacity(rows.len()),
            rows,
        };
        table.index();
        if let Some((apic_id, [first, second])) = table.ids.duplicate() {
            return Err(DestinationsError::DuplicateId {
                apic_id,
                first: first.get(),
                second: second.get(),
            });
        }
        if let Some(vcpu) = table.ids.of(InterruptMessage::BROADCAST).next() {
            return Err(DestinationsError::BroadcastId { vcpu: vcpu.get() });
        }
        Ok(table)
    }

    /// Rebuilds the indexes, within their capacity.
    fn index(&mut self) {
        let Self {
            rows,
            ids,
            xapic_logical,
        } = self;
        ids.rebuild(rows);
        xapic_logical.clear();
        let numbered = (0..).map(VcpuIndex).zip(rows);
        xapic_logical.extend(numbered.filter_map(|(vcpu, row)| {
            let has_one = row.mode == ApicMode::XApic && row.logical_id != 0;
            has_one.then_some(XapicLogical {
                vcpu,
                logical_id: row.logical_id,
                model: row.model,
            })
        }));
    }

    /// An APIC has other destinations now. Allocates nothing; the time grows with the number of vCPUs, and
    /// a guest can cause it once per register write.
    ///
    /// # Errors
    /// If there is no such row.
    pub fn update(&mut self, vcpu: VcpuIndex, row: Destination) -> Result<(), NoSuchVcpu> {
        let old = self.rows.get_mut(vcpu.get()).ok_or(NoSuchVcpu(vcpu))?;
        // The indexes know everything but this.
        let moved = *old
            != Destination {
                software_enabled: old.software_enabled,
                ..row
            };
        *old = row;
        if moved {
            self.index();
        }
        Ok(())
    }

    /// The rows, by vCPU.
    #[must_use]
    pub fn rows(&self) -> &[Destination] {
        &self.rows
    }
}

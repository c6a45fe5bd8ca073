//! Whom an interrupt message reaches: a table of what every local APIC answers to.
//!
//! The table is small, plain and changes only when a guest rewrites an id, a logical destination,
//! a mode or a software-enable bit: practically at boot. So a VMM with threads keeps one lock (or
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
//! x2APIC logical id, costs a look if ids count up from 0, and a binary search otherwise; an x2APIC
//! logical one as much for each of at most 16 members; an xAPIC logical one a look at the rows in
//! xAPIC mode that have a logical id; a broadcast the rows themselves.

mod ids;

use alloc::vec::Vec;

use thiserror::Error;

use ids::Ids;

use crate::{ApicMode, DeliveryMode, DestinationMode, InterruptMessage, Ipi, IpiTargets};

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

/// How an APIC compares a logical destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogicalModel {
    /// xAPIC, DFR 0xf: eight bits, any overlap (SDM 3A, "Logical Destination Mode", flat model).
    Flat,
    /// xAPIC, DFR 0x0: four bits of cluster, which must be equal, and four that must overlap.
    Cluster,
    /// xAPIC, another DFR: reserved. Only broadcasts reach it.
    Reserved,
    /// x2APIC: sixteen bits of cluster and sixteen to overlap (SDM 3A, "Logical Destination Mode in
    /// x2APIC Mode").
    X2Apic,
}

impl LogicalModel {
    /// From the upper four bits of DFR.
    #[must_use]
    pub const fn from_dfr(model: u8) -> Self {
        match model {
            0xf => Self::Flat,
            0x0 => Self::Cluster,
            _ => Self::Reserved,
        }
    }

    fn matches(self, logical_id: u32, destination: u32) -> bool {
        let overlap = logical_id & destination;
        match self {
            Self::Flat => destination <= 0xff && overlap != 0,
            Self::Cluster => {
                destination <= 0xff && logical_id >> 4 == destination >> 4 && overlap & 0xf != 0
            }
            Self::Reserved => false,
            Self::X2Apic => logical_id >> 16 == destination >> 16 && overlap & 0xffff != 0,
        }
    }
}

/// The logical id that follows from an x2APIC id (SDM 3A, "Deriving Logical x2APIC ID from the
/// Local x2APIC ID").
#[must_use]
pub(crate) const fn x2apic_logical_id(apic_id: u32) -> u32 {
    (apic_id >> 4) << 16 | 1 << (apic_id & 0xf)
}

/// The ids of the members that an x2APIC logical destination names, ascending: the inverse of
/// [`x2apic_logical_id`].
fn x2apic_members(destination: u32) -> impl Iterator<Item = u32> {
    let cluster = destination >> 16 << 4;
    let mut members = destination & 0xffff;
    core::iter::from_fn(move || {
        let member = members.trailing_zeros();
        members &= members.checked_sub(1)?;
        Some(cluster | member)
    })
}

/// What one local APIC answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Off, it answers to nothing.
    pub mode: ApicMode,
    /// The id it compares with a physical destination.
    pub apic_id: u32,
    /// The id it compares with a logical one.
    pub logical_id: u32,
    /// How.
    pub model: LogicalModel,
    /// Whether it takes part in the arbitration of a lowest-priority interrupt.
    pub software_enabled: bool,
}

impl Destination {
    /// SDM 3A, "Determining IPI Destination".
    #[inline]
    fn matches(&self, message: &InterruptMessage) -> bool {
        match self.mode {
            ApicMode::Disabled => false,
            mode if is_broadcast(mode, message.destination) => true,
            _ => match message.destination_mode {
                DestinationMode::Physical => self.apic_id == message.destination,
                DestinationMode::Logical => {
                    self.model.matches(self.logical_id, message.destination)
                }
            },
        }
    }
}

/// The destination that everybody answers to, in either destination mode: 0xff where ids have eight
/// bits, 0xffffffff where they have 32 (SDM 3A, "Broadcast/Self Delivery Mode"). The latter, which
/// no eight-bit format can say by accident, holds in both.
fn is_broadcast(mode: ApicMode, destination: u32) -> bool {
    destination == InterruptMessage::BROADCAST || mode == ApicMode::XApic && destination == 0xff
}

/// The table was not made.
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
    /// 0xffffffff is everybody's, and nobody's own.
    #[error("apic_id: vCPU {vcpu} has the broadcast id")]
    BroadcastId {
        /// Whose.
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

/// What every local APIC of a machine answers to.
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

    /// An APIC answers to something else now. Allocates nothing; takes time in the number of
    /// vCPUs, which a guest can ask for once per register write.
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

    /// Calls `target` for every vCPU that a message from a device is for, each once. How many there
    /// were; 0 means that the message is lost, as on a real machine.
    #[inline]
    pub fn route(&self, message: &InterruptMessage, mut target: impl FnMut(VcpuIndex)) -> usize {
        match self.sole(message) {
            Some(vcpu) => {
                target(vcpu);
                1
            }
            None => self.route_to_any(message, target),
        }
    }

    /// Like [`Self::route`], for an IPI of `sender`. `target` hears what to
    /// [`accept`](crate::Lapic::accept), too.
    #[inline]
    pub fn route_ipi(
        &self,
        sender: VcpuIndex,
        ipi: Ipi,
        mut target: impl FnMut(VcpuIndex, &InterruptMessage),
    ) -> usize {
        let message = &ipi.message();
        let target = |vcpu| target(vcpu, message);
        match ipi.targets() {
            IpiTargets::Destination => self.route(message, target),
            IpiTargets::All => self.route_to_all(message, None, target),
            IpiTargets::Others => self.route_to_all(message, Some(sender), target),
        }
    }

    /// The one vCPU that a message is for, if that takes no more than a look.
    #[inline]
    fn sole(&self, message: &InterruptMessage) -> Option<VcpuIndex> {
        let destination = message.destination;
        match message.destination_mode {
            // It would have to be enabled by software, too.
            _ if message.delivery_mode == DeliveryMode::LowestPriority => None,
            DestinationMode::Physical => self.ids.sole(destination),
            DestinationMode::Logical if (destination & 0xffff).is_power_of_two() => {
                self.ids.sole_member(x2apic_members(destination).next()?)
            }
            DestinationMode::Logical => None,
        }
    }

    /// Not inlined, like the next: [`Self::sole`] is the usual way, and has the registers to itself.
    #[inline(never)]
    fn route_to_any(&self, message: &InterruptMessage, mut target: impl FnMut(VcpuIndex)) -> usize {
        if message.delivery_mode == DeliveryMode::LowestPriority {
            let winner = self.arbitrate(message.vector, |each| self.visit(message, each));
            return winner.into_iter().map(target).count();
        }
        let mut count = 0;
        self.visit(message, |vcpu| {
            count += 1;
            target(vcpu);
        });
        count
    }

    #[inline(never)]
    fn route_to_all(
        &self,
        message: &InterruptMessage,
        but: Option<VcpuIndex>,
        mut target: impl FnMut(VcpuIndex),
    ) -> usize {
        if message.delivery_mode == DeliveryMode::LowestPriority {
            let winner = self.arbitrate(message.vector, |each| self.visit_all(but, each));
            return winner.into_iter().map(target).count();
        }
        let mut count = 0;
        self.visit_all(but, |vcpu| {
            count += 1;
            target(vcpu);
        });
        count
    }

    /// The one of the candidates that takes a lowest-priority interrupt (SDM 3A, "Lowest Priority
    /// Delivery Mode", leaves the choice among equals open, and current processors do not look at
    /// the task priority at all): of those that are enabled by software, in the order in which they
    /// are visited (x2APIC logical ones by id, others by vCPU), the one with the number vector
    /// modulo their count. This is KVM's rule (vector hashing,
    /// lapic.c `kvm_vector_to_index`): it spreads vectors over vCPUs, keeps each at one place, and
    /// needs no look into any APIC. Unlike KVM, which does so for id 0xff, a broadcast is no
    /// exception: one is chosen.
    #[inline(never)]
    fn arbitrate(
        &self,
        vector: u8,
        candidates: impl Fn(&mut dyn FnMut(VcpuIndex)),
    ) -> Option<VcpuIndex> {
        let enabled = |vcpu: VcpuIndex| {
            let row = self.rows.get(vcpu.get());
            row.is_some_and(|row| row.software_enabled)
        };
        let mut count: u32 = 0;
        candidates(&mut |vcpu| count += u32::from(enabled(vcpu)));
        let mut left = u32::from(vector).checked_rem(count)?;
        let mut winner = None;
        candidates(&mut |vcpu| {
            if winner.is_none() && enabled(vcpu) {
                match left.checked_sub(1) {
                    Some(rest) => left = rest,
                    None => winner = Some(vcpu),
                }
            }
        });
        winner
    }

    fn visit_all(&self, but: Option<VcpuIndex>, mut each: impl FnMut(VcpuIndex)) {
        // No row has the number that stands for nobody.
        let but = but.unwrap_or(VcpuIndex(u16::MAX));
        for (vcpu, row) in (0..).map(VcpuIndex).zip(&self.rows) {
            if row.mode != ApicMode::Disabled && vcpu != but {
                each(vcpu);
            }
        }
    }

    /// Every row that the destination names.
    fn visit(&self, message: &InterruptMessage, mut each: impl FnMut(VcpuIndex)) {
        let destination = message.destination;
        if destination == InterruptMessage::BROADCAST {
            return self.visit_all(None, each);
        }
        let all = (0..).map(VcpuIndex).zip(&self.rows);
        let named = |vcpu: &VcpuIndex| {
            let row = self.rows.get(vcpu.get());
            row.is_some_and(|row| row.matches(message))
        };
        match message.destination_mode {
            // All in xAPIC mode, and the one with that id in x2APIC mode. Rare, so plainly.
            DestinationMode::Physical if destination == 0xff => {
                let named = all.filter(|(_, row)| row.matches(message));
                named.for_each(|(vcpu, _)| each(vcpu));
            }
            DestinationMode::Physical => self.ids.of(destination).filter(named).for_each(each),
            DestinationMode::Logical => {
                let in_x2apic_mode = |vcpu: &VcpuIndex| {
                    let row = self.rows.get(vcpu.get());
                    row.is_some_and(|row| row.mode == ApicMode::X2Apic)
                };
                for id in x2apic_members(destination) {
                    match self.ids.sole_member(id) {
                        Some(vcpu) => each(vcpu),
                        None => {
                            let those = self.ids.of(id).filter(in_x2apic_mode).filter(named);
                            those.for_each(&mut each);
                        }
                    }
                }
                match destination {
                    0xff => {
                        let xapic = all.filter(|(_, row)| row.mode == ApicMode::XApic);
                        xapic.for_each(|(vcpu, _)| each(vcpu));
                    }
                    0..0xff => {
                        let named = self
                            .xapic_logical
                            .iter()
                            .filter(|row| row.answers(destination));
                        named.for_each(|row| each(row.vcpu));
                    }
                    _ => {}
                }
            }
        }
    }
}

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
//! Nothing here allocates after creation. A physical destination costs a binary search, an x2APIC
//! logical one a binary search and at most 16 rows, an xAPIC logical one a look at the rows that
//! are in xAPIC mode, a broadcast the rows themselves.

use alloc::vec::Vec;

use thiserror::Error;

use crate::{ApicMode, DeliveryMode, DestinationMode, InterruptMessage};

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
    /// SDM 3A, "Determining IPI Destination". `broadcast` is [`is_broadcast`] of the destination.
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

/// Who of all APICs an IPI is for. The shorthand "self" never leaves its APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpiTargets {
    /// Those that the message's destination names.
    Destination,
    /// All, the sender too.
    All,
    /// All but the sender.
    Others,
}

/// An IPI that leaves its APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipi {
    /// What.
    pub message: InterruptMessage,
    /// To whom.
    pub targets: IpiTargets,
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
#[error("vcpu: there is no vCPU {0}")]
pub struct NoSuchVcpu(pub usize);

/// What every local APIC of a machine answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destinations {
    rows: Vec<Destination>,
    /// Physical ids with their rows, ascending. A guest may give two APICs one id: both answer.
    by_id: Vec<(u32, u16)>,
    /// The rows in xAPIC mode, ascending.
    xapic: Vec<u16>,
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
            by_id: Vec::with_capacity(rows.len()),
            xapic: Vec::with_capacity(rows.len()),
            rows,
        };
        table.index();
        for pair in table.by_id.windows(2) {
            if let [(apic_id, first), (other, second)] = *pair {
                if apic_id == other {
                    return Err(DestinationsError::DuplicateId {
                        apic_id,
                        first: first.into(),
                        second: second.into(),
                    });
                }
            }
        }
        match table.by_id.last() {
            Some((InterruptMessage::BROADCAST, vcpu)) => Err(DestinationsError::BroadcastId {
                vcpu: (*vcpu).into(),
            }),
            _ => Ok(table),
        }
    }

    /// Rebuilds the indexes, within their capacity.
    fn index(&mut self) {
        let Self { rows, by_id, xapic } = self;
        by_id.clear();
        xapic.clear();
        for (vcpu, row) in (0..).zip(rows.iter()) {
            by_id.push((row.apic_id, vcpu));
            if row.mode == ApicMode::XApic {
                xapic.push(vcpu);
            }
        }
        by_id.sort_unstable();
    }

    /// An APIC answers to something else now. Allocates nothing; takes time in the number of
    /// vCPUs, which a guest can ask for once per register write.
    ///
    /// # Errors
    /// If there is no such row.
    pub fn update(&mut self, vcpu: VcpuIndex, row: Destination) -> Result<(), NoSuchVcpu> {
        let old = self
            .rows
            .get_mut(vcpu.get())
            .ok_or(NoSuchVcpu(vcpu.get()))?;
        let moved = old.apic_id != row.apic_id || old.mode != row.mode;
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
    pub fn route(&self, message: &InterruptMessage, mut target: impl FnMut(VcpuIndex)) -> usize {
        if message.delivery_mode == DeliveryMode::LowestPriority {
            let winner = self.arbitrate(message, |each| self.visit(message, each));
            return winner.map_or(0, |vcpu| {
                target(vcpu);
                1
            });
        }
        let mut count = 0;
        self.visit(message, |vcpu, _| {
            count += 1;
            target(vcpu);
        });
        count
    }

    /// Like [`Self::route`], for an IPI of `sender`.
    pub fn route_ipi(
        &self,
        sender: VcpuIndex,
        ipi: &Ipi,
        mut target: impl FnMut(VcpuIndex),
    ) -> usize {
        let message = &ipi.message;
        let but = match ipi.targets {
            IpiTargets::Destination => return self.route(message, target),
            IpiTargets::All => None,
            IpiTargets::Others => Some(sender),
        };
        if message.delivery_mode == DeliveryMode::LowestPriority {
            let winner = self.arbitrate(message, |each| self.visit_all(but, each));
            return winner.map_or(0, |vcpu| {
                target(vcpu);
                1
            });
        }
        let mut count = 0;
        self.visit_all(but, |vcpu, _| {
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
    fn arbitrate(
        &self,
        message: &InterruptMessage,
        candidates: impl Fn(&mut dyn FnMut(VcpuIndex, &Destination)),
    ) -> Option<VcpuIndex> {
        let mut count: u32 = 0;
        candidates(&mut |_, row| count += u32::from(row.software_enabled));
        let mut left = u32::from(message.vector).checked_rem(count)?;
        let mut winner = None;
        candidates(&mut |vcpu, row| {
            if row.software_enabled && winner.is_none() {
                match left.checked_sub(1) {
                    Some(rest) => left = rest,
                    None => winner = Some(vcpu),
                }
            }
        });
        winner
    }

    fn visit_all(&self, but: Option<VcpuIndex>, mut each: impl FnMut(VcpuIndex, &Destination)) {
        // No row has the number that stands for nobody.
        let but = but.map_or(u16::MAX, |VcpuIndex(vcpu)| vcpu);
        for (vcpu, row) in (0..).zip(&self.rows) {
            if row.mode != ApicMode::Disabled && vcpu != but {
                each(VcpuIndex(vcpu), row);
            }
        }
    }

    /// Every row that the destination names.
    fn visit(&self, message: &InterruptMessage, mut each: impl FnMut(VcpuIndex, &Destination)) {
        let destination = message.destination;
        if destination == InterruptMessage::BROADCAST {
            return self.visit_all(None, each);
        }
        let mut visit_row = |vcpu: u16| {
            let row = self.rows.get(usize::from(vcpu));
            if let Some(row) = row.filter(|row| row.matches(message)) {
                each(VcpuIndex(vcpu), row);
            }
        };
        match message.destination_mode {
            // 0xff: all in xAPIC mode, and the one with that id in x2APIC mode. Rare, so plainly.
            DestinationMode::Physical if destination == 0xff => {
                (0..).zip(&self.rows).for_each(|(vcpu, _)| visit_row(vcpu));
            }
            DestinationMode::Physical => {
                for (_, vcpu) in self.with_ids(destination, destination) {
                    visit_row(*vcpu);
                }
            }
            DestinationMode::Logical => {
                // The ids of an x2APIC cluster follow one another.
                let first = destination >> 16 << 4;
                let in_x2apic = |vcpu: u16| {
                    let row = self.rows.get(usize::from(vcpu));
                    row.is_some_and(|row| row.mode == ApicMode::X2Apic)
                };
                for (_, vcpu) in self.with_ids(first, first | 0xf) {
                    if in_x2apic(*vcpu) {
                        visit_row(*vcpu);
                    }
                }
                if destination <= 0xff {
                    self.xapic.iter().copied().for_each(visit_row);
                }
            }
        }
    }

    /// Where the ids from `first` on begin in `by_id`. That is `first` itself in a machine whose
    /// ids count up from 0; otherwise it is searched for.
    fn first_not_below(&self, first: u32) -> usize {
        let id = |place: usize| self.by_id.get(place).map(|(id, _)| *id);
        let guess = usize::try_from(first).unwrap_or(usize::MAX);
        if id(guess) == Some(first) && id(guess.wrapping_sub(1)) != Some(first) {
            return guess;
        }
        self.by_id.partition_point(|(id, _)| *id < first)
    }

    /// The ids from `first` to `last`, with their rows.
    fn with_ids(&self, first: u32, last: u32) -> &[(u32, u16)] {
        let start = self.first_not_below(first);
        let rest = self.by_id.get(start..).unwrap_or_default();
        let count = rest.iter().take_while(|(id, _)| *id <= last).count();
        rest.get(..count).unwrap_or_default()
    }
}

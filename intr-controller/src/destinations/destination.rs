//! The destinations of one local APIC, and how it compares them.

use crate::{ApicMode, DestinationMode, InterruptMessage};

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

    pub(super) fn matches(self, logical_id: u32, destination: u32) -> bool {
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
pub(super) fn x2apic_members(destination: u32) -> impl Iterator<Item = u32> {
    let cluster = destination >> 16 << 4;
    let mut members = destination & 0xffff;
    core::iter::from_fn(move || {
        let member = members.trailing_zeros();
        members &= members.checked_sub(1)?;
        Some(cluster | member)
    })
}

/// The destinations of one local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// A disabled APIC has no destination.
    pub mode: ApicMode,
    /// The id it compares with a physical destination.
    pub apic_id: u32,
    /// The id it compares with a logical one. In x2APIC mode it follows from the other.
    pub logical_id: u32,
    /// How it compares a logical one.
    pub model: LogicalModel,
    /// Whether it takes part in the arbitration of a lowest-priority interrupt.
    pub software_enabled: bool,
}

impl Destination {
    /// SDM 3A, "Determining IPI Destination".
    #[inline]
    pub(super) fn matches(&self, message: &InterruptMessage) -> bool {
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

/// Whether a destination is every local APIC's, in either destination mode: 0xff where ids have eight
/// bits, 0xffffffff where they have 32 (SDM 3A, "Broadcast/Self Delivery Mode"). The latter is accepted in
/// both, because no eight-bit format can express it by accident.
fn is_broadcast(mode: ApicMode, destination: u32) -> bool {
    destination == InterruptMessage::BROADCAST || mode == ApicMode::XApic && destination == 0xff
}

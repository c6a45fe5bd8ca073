//! From a message or an IPI to its targets.

use super::destination::x2apic_members;
use super::{Destinations, VcpuIndex};
use crate::{ApicMode, DeliveryMode, DestinationMode, InterruptMessage, Ipi, IpiTargets};

impl Destinations {
    /// Calls `target` once for every vCPU that a message from a device is for. Returns their number; 0 means
    /// that the message is lost, as on a real machine.
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

    /// Like [`Self::route`], for an IPI of `sender`. `target` also gets the message to
    /// [`accept`](crate::Lapic::accept).
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
        // No row has this number.
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
                    // Everybody, with or without a logical id.
                    0xff => {
                        let xapic = all.filter(|(_, row)| row.mode == ApicMode::XApic);
                        xapic.for_each(|(vcpu, _)| each(vcpu));
                    }
                    0..0xff => {
                        let rows = self.xapic_logical.iter();
                        let named = rows.filter(|row| row.answers(destination));
                        named.for_each(|row| each(row.vcpu));
                    }
                    _ => {}
                }
            }
        }
    }
}

//! The orders of a resume packet, while it is parsed.

use vcpu_caps::VcpuId;

use crate::order::VcpuOrder;

/// One order for each vCPU, as far as the packet has named them.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    vcpus: Vec<Option<VcpuOrder>>,
    others_stay: bool,
}

impl Orders {
    /// Begins a packet for this number of vCPUs.
    pub(crate) fn begin(&mut self, vcpus: u16) {
        self.clear();
        self.vcpus.resize(usize::from(vcpus), None);
    }

    /// Forgets a packet.
    pub(crate) fn clear(&mut self) {
        self.vcpus.clear();
        self.others_stay = false;
    }

    /// Gives a vCPU an order. "For each inferior thread, the leftmost action with a matching
    /// thread-id is applied" ("vCont").
    pub(crate) fn give(&mut self, vcpu: VcpuId, order: VcpuOrder) {
        if let Some(slot) = self.vcpus.get_mut(vcpu.index()) {
            slot.get_or_insert(order);
        }
    }

    /// vCPUs without an order stay (scheduler locking). They run otherwise.
    pub(crate) fn others_stay(&mut self) {
        self.others_stay = true;
    }

    /// Returns the order for each vCPU, and the one for a vCPU that appears later.
    pub(crate) fn take(&mut self) -> (Vec<VcpuOrder>, VcpuOrder) {
        let others = if self.others_stay {
            VcpuOrder::Stay
        } else {
            VcpuOrder::Continue
        };
        let vcpus = self
            .vcpus
            .drain(..)
            .map(|order| order.unwrap_or_else(|| others.clone()))
            .collect();
        (vcpus, others)
    }
}

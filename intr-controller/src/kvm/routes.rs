//! KVM's routing table (`KVM_SET_GSI_ROUTING`), from this crate's types.

use alloc::vec::Vec;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;

use super::calls::{CallError, failed};
use super::chip::halves;
use crate::routing::{RouteEntry, RouteTarget};
use crate::{Gsi, MsiMessage};

/// Inputs of each 8259A.
const PIC_INPUTS: u8 = 8;
/// `E2BIG`: a table of more entries than can be counted.
const TOO_BIG: i32 = 7;

/// Replaces the whole table.
pub(super) fn set(vm: &VmFd, entries: &[kvm_irq_routing_entry]) -> Result<(), CallError> {
    let table = KvmIrqRouting::from_entries(entries)
        .map_err(|_| failed("a routing table")(errno::Error::new(TOO_BIG)))?;
    vm.set_gsi_routing(&table)
        .map_err(failed("KVM_SET_GSI_ROUTING"))
}

/// A table of lines and messages, for a VM whose chips are all KVM's.
pub(super) fn of_table(entries: &[RouteEntry]) -> Vec<kvm_irq_routing_entry> {
    let route = |RouteEntry { gsi, target }: &RouteEntry| match *target {
        RouteTarget::Pic(input) if input < PIC_INPUTS => pin(*gsi, KVM_IRQCHIP_PIC_MASTER, input),
        RouteTarget::Pic(input) => pin(*gsi, KVM_IRQCHIP_PIC_SLAVE, input - PIC_INPUTS),
        RouteTarget::IoApic(number) => pin(*gsi, KVM_IRQCHIP_IOAPIC, number),
        RouteTarget::Msi(message) => msi(*gsi, message),
    };
    entries.iter().map(route).collect()
}

fn pin(gsi: Gsi, irqchip: u32, pin: u8) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: gsi.0,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin.into();
    entry
}

/// A route to a message.
pub(super) fn msi(gsi: Gsi, message: MsiMessage) -> kvm_irq_routing_entry {
    let [address_lo, address_hi] = halves(message.address);
    let mut entry = kvm_irq_routing_entry {
        gsi: gsi.0,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = address_lo;
    entry.u.msi.address_hi = address_hi;
    entry.u.msi.data = message.data;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::GsiRouter;

    /// The chip and the pin of each entry, by GSI. KVM_IRQCHIP_* are 0, 1 and 2 (api.rst,
    /// KVM_GET_IRQCHIP).
    #[expect(unsafe_code, reason = "the binding is a union")]
    fn pins(entries: &[kvm_irq_routing_entry], gsi: u32) -> Vec<(u32, u32)> {
        entries
            .iter()
            .filter(|entry| entry.gsi == gsi)
            .map(|entry| {
                assert_eq!(entry.type_, 1, "KVM_IRQ_ROUTING_IRQCHIP");
                // SAFETY: the type says which member was written, and every bit pattern of it is
                // valid.
                let pin = unsafe { entry.u.irqchip };
                (pin.irqchip, pin.pin)
            })
            .collect()
    }

    #[test]
    fn kvms_table_is_that_of_a_pc() {
        let table = of_table(&GsiRouter::pc_entries());
        assert_eq!(pins(&table, 0), [(0, 0), (2, 2)], "the PIT");
        assert_eq!(pins(&table, 2), [], "the cascade of the 8259A pair");
        assert_eq!(pins(&table, 7), [(0, 7), (2, 7)]);
        assert_eq!(pins(&table, 8), [(1, 0), (2, 8)]);
        assert_eq!(pins(&table, 15), [(1, 7), (2, 15)]);
        assert_eq!(pins(&table, 16), [(2, 16)]);
        assert_eq!(pins(&table, 24), []);
    }

    #[test]
    fn a_message_keeps_its_address_and_data() {
        let message = MsiMessage {
            address: 0x1_fee0_1000,
            data: 0x4041,
        };
        let [entry] = of_table(&[RouteEntry {
            gsi: Gsi(30),
            target: RouteTarget::Msi(message),
        }])[..] else {
            panic!("one entry")
        };
        assert_eq!((entry.gsi, entry.type_), (30, 2), "KVM_IRQ_ROUTING_MSI");
        #[expect(unsafe_code, reason = "the binding is a union")]
        // SAFETY: the type says which member was written; every bit pattern of it is valid.
        let msi = unsafe { entry.u.msi };
        assert_eq!(
            (msi.address_lo, msi.address_hi, msi.data),
            (0xfee0_1000, 1, 0x4041)
        );
    }
}

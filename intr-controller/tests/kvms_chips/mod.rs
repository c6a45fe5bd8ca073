//! The states of KVM's own 8259A pair and IOAPIC, and the clock that its 8254 counts by.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state,
    kvm_irqchip, kvm_pic_state,
};
use kvm_ioctls::VmFd;

fn chip(vm: &VmFd, chip_id: u32) -> kvm_irqchip {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).unwrap();
    chip
}

pub(crate) fn pics(vm: &VmFd) -> [kvm_pic_state; 2] {
    [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE].map(|id| {
        let chip = chip(vm, id);
        // SAFETY: KVM filled `pic` for this chip id, and it is made of integers only.
        unsafe { chip.chip.pic }
    })
}

pub(crate) fn set_pics(vm: &VmFd, states: [kvm_pic_state; 2]) {
    for (chip_id, state) in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE]
        .into_iter()
        .zip(states)
    {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        chip.chip.pic = state;
        vm.set_irqchip(&chip).unwrap();
    }
}

pub(crate) fn ioapic_of(vm: &VmFd) -> kvm_ioapic_state {
    let chip = chip(vm, KVM_IRQCHIP_IOAPIC);
    // SAFETY: KVM filled `ioapic` for this chip id, and every bit pattern of it is valid.
    unsafe { chip.chip.ioapic }
}

pub(crate) fn set_ioapic(vm: &VmFd, state: kvm_ioapic_state) {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    chip.chip.ioapic = state;
    vm.set_irqchip(&chip).unwrap();
}

/// The host's CLOCK_MONOTONIC, which KVM's PIT counts by.
pub(crate) fn monotonic_ns() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec to write to.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(result, 0);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

//! The ioctls that the adapter makes, for seccomp filters.

use core::mem::size_of;

use kvm_bindings::{
    kvm_debugregs, kvm_guest_debug, kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

/// `KVMIO` (linux/kvm.h).
const KVMIO: u64 = 0xae;
/// `_IOC_WRITE` and `_IOC_READ` (asm-generic/ioctl.h): seen from userspace.
const WRITE: u64 = 1;
const READ: u64 = 2;

const fn number(direction: u64, nr: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | KVMIO << 8 | nr
}

/// Name and request number of every ioctl that this module makes on a vCPU, all on the thread that
/// calls the stepper. `KVM_RUN` is not among them: it is the VMM's.
///
/// A thread inherits the filters of the one that spawns it: that one's must allow them, too.
pub const IOCTLS: &[(&str, u64)] = &[
    ("KVM_GET_REGS", number(READ, 0x81, size_of::<kvm_regs>())),
    ("KVM_SET_REGS", number(WRITE, 0x82, size_of::<kvm_regs>())),
    ("KVM_GET_SREGS", number(READ, 0x83, size_of::<kvm_sregs>())),
    ("KVM_SET_SREGS", number(WRITE, 0x84, size_of::<kvm_sregs>())),
    (
        "KVM_GET_MSRS",
        number(READ | WRITE, 0x88, size_of::<kvm_msrs>()),
    ),
    ("KVM_SET_MSRS", number(WRITE, 0x89, size_of::<kvm_msrs>())),
    (
        "KVM_GET_LAPIC",
        number(READ, 0x8e, size_of::<kvm_lapic_state>()),
    ),
    (
        "KVM_SET_LAPIC",
        number(WRITE, 0x8f, size_of::<kvm_lapic_state>()),
    ),
    (
        "KVM_GET_MP_STATE",
        number(READ, 0x98, size_of::<kvm_mp_state>()),
    ),
    (
        "KVM_SET_MP_STATE",
        number(WRITE, 0x99, size_of::<kvm_mp_state>()),
    ),
    (
        "KVM_SET_GUEST_DEBUG",
        number(WRITE, 0x9b, size_of::<kvm_guest_debug>()),
    ),
    (
        "KVM_GET_VCPU_EVENTS",
        number(READ, 0x9f, size_of::<kvm_vcpu_events>()),
    ),
    (
        "KVM_SET_VCPU_EVENTS",
        number(WRITE, 0xa0, size_of::<kvm_vcpu_events>()),
    ),
    (
        "KVM_GET_DEBUGREGS",
        number(READ, 0xa1, size_of::<kvm_debugregs>()),
    ),
    (
        "KVM_SET_DEBUGREGS",
        number(WRITE, 0xa2, size_of::<kvm_debugregs>()),
    ),
    ("KVM_GET_XSAVE", number(READ, 0xa4, size_of::<kvm_xsave>())),
    ("KVM_SET_XSAVE", number(WRITE, 0xa5, size_of::<kvm_xsave>())),
    ("KVM_GET_XCRS", number(READ, 0xa6, size_of::<kvm_xcrs>())),
];

#[cfg(test)]
mod tests {
    use super::IOCTLS;

    /// As `strace -X verbose` shows them on x86-64.
    #[test]
    fn numbers_are_the_kernels() {
        let number = |name| IOCTLS.iter().find(|known| known.0 == name).unwrap().1;
        assert_eq!(number("KVM_GET_REGS"), 0x8090_ae81);
        assert_eq!(number("KVM_SET_REGS"), 0x4090_ae82);
        assert_eq!(number("KVM_GET_SREGS"), 0x8138_ae83);
        assert_eq!(number("KVM_GET_MSRS"), 0xc008_ae88);
        assert_eq!(number("KVM_SET_GUEST_DEBUG"), 0x4048_ae9b);
        assert_eq!(number("KVM_GET_MP_STATE"), 0x8004_ae98);
    }
}

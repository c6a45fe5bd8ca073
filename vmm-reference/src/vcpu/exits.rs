//! Passes a vCPU's exits to the devices and the interrupt chips.

use std::sync::Arc;

use debug_stub::StopReason;
use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;

use crate::devices::{AccessSize, Devices};
use crate::entry::{Entering, MustStop, Permit};
use crate::exit::ExitEvent;
use crate::irqchip::Irqchip;

/// What a vCPU's exits need from the machine. Called on the thread that runs the vCPU.
///
/// Data is little-endian, as in KVM. A port or address without a device reads as all-ones.
pub trait Exits {
    /// The guest reads `data.len()` (1, 2 or 4) bytes from an I/O port.
    fn io_in(&self, port: u16, data: &mut [u8]);
    /// The guest writes 1, 2 or 4 bytes to an I/O port.
    fn io_out(&self, port: u16, data: &[u8]);
    /// The guest reads up to 8 bytes at a guest-physical address without memory.
    fn mmio_read(&self, vcpu: VcpuId, address: u64, data: &mut [u8]);
    /// The guest writes up to 8 bytes at a guest-physical address without memory.
    fn mmio_write(&self, vcpu: VcpuId, address: u64, data: &[u8]);
    /// The stop, if the guest has ended through a device, or asked for a reset. Read after each access.
    fn ended(&self) -> Option<StopReason>;
    /// Called before each entry. An event that may enter is handed to KVM (`KVM_INTERRUPT`). For one
    /// that may not, an interrupt window is requested.
    fn before_entry(&self, vcpu: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit;
    /// Called after each `KVM_RUN`, before its exit is served: the guest may have written CR8.
    fn after_exit(&self, vcpu: VcpuId, cr8: u64);
    /// `KVM_EXIT_HLT`: the vCPU waits from now on, until an interrupt ends HLT.
    fn halted(&self, vcpu: VcpuId);
    /// Sleeps until something has arrived for the vCPU, or `must_stop` is true. May return early.
    fn wait(&self, vcpu: VcpuId, must_stop: &MustStop<'_>);
    /// `KVM_EXIT_X86_RDMSR`; `None` is #GP.
    fn read_msr(&self, vcpu: VcpuId, index: u32) -> Option<u64>;
    /// `KVM_EXIT_X86_WRMSR`. Returns `false` for #GP.
    fn write_msr(&self, vcpu: VcpuId, fd: &VcpuFd, index: u32, value: u64) -> bool;
    /// `KVM_EXIT_IOAPIC_EOI`: the vCPU wrote EOI for an interrupt of this vector.
    fn end_of_interrupt(&self, fd: &VcpuFd, vector: u8);
}

/// The devices, the interrupt chips and the machine's end.
#[derive(Clone, Debug)]
pub struct MachineExits {
    /// The devices.
    pub devices: Arc<Devices>,
    /// The interrupt chips.
    pub irqchip: Irqchip,
    /// The machine's end.
    pub exit: ExitEvent,
}

impl Exits for MachineExits {
    fn io_in(&self, port: u16, data: &mut [u8]) {
        match AccessSize::from_bytes(data.len()) {
            Some(size) => self.devices.io_in(port, size, data),
            // x86 has no other width.
            None => data.fill(0xff),
        }
    }

    fn io_out(&self, port: u16, data: &[u8]) {
        if let Some(size) = AccessSize::from_bytes(data.len()) {
            self.devices.io_out(port, size, data);
        }
    }

    fn mmio_read(&self, vcpu: VcpuId, address: u64, data: &mut [u8]) {
        if !self.irqchip.chips().local_read(vcpu, address, data) {
            self.devices.mmio_read(address, data);
        }
    }

    fn mmio_write(&self, vcpu: VcpuId, address: u64, data: &[u8]) {
        if !self.irqchip.chips().local_write(vcpu, address, data) {
            self.devices.mmio_write(address, data);
        }
    }

    fn ended(&self) -> Option<StopReason> {
        let exit = self.exit.reason();
        match exit.map(|reason| reason.status().code()) {
            Some(status) => Some(StopReason::Exited(status)),
            None => (self.devices.reset_requested()).then_some(StopReason::ResetRequest),
        }
    }

    fn before_entry(&self, vcpu: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        if entering.reads_clock && self.irqchip.clock().before_entry() {
            self.irqchip.chips().resumed();
        }
        self.irqchip.chips().before_entry(vcpu, fd, entering)
    }

    fn after_exit(&self, vcpu: VcpuId, cr8: u64) {
        self.irqchip.chips().after_exit(vcpu, cr8);
    }

    fn halted(&self, vcpu: VcpuId) {
        self.irqchip.chips().halted(vcpu);
    }

    fn wait(&self, vcpu: VcpuId, must_stop: &MustStop<'_>) {
        self.irqchip.chips().wait(vcpu, must_stop);
    }

    fn read_msr(&self, vcpu: VcpuId, index: u32) -> Option<u64> {
        self.irqchip.chips().read_msr(vcpu, index)
    }

    fn write_msr(&self, vcpu: VcpuId, fd: &VcpuFd, index: u32, value: u64) -> bool {
        self.irqchip.chips().write_msr(vcpu, fd, index, value)
    }

    fn end_of_interrupt(&self, fd: &VcpuFd, vector: u8) {
        self.irqchip.chips().end_of_interrupt(fd, vector);
    }
}

//! The guest's way from a vCPU's exits to the devices.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use debug_stub::kvm::{Entering, ExitHandler, Permit, UserInterrupts};
use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;

use crate::devices::{AccessSize, Devices};
use crate::exit::ExitEvent;
use crate::irqchip::Irqchip;

/// The devices, the interrupt chips and the machine's end, as a vCPU thread needs them.
#[derive(Clone, Debug)]
pub struct MachineExits {
    /// The devices.
    pub devices: Arc<Devices>,
    /// The interrupt chips.
    pub irqchip: Irqchip,
    /// The machine's end.
    pub exit: ExitEvent,
}

impl ExitHandler for MachineExits {
    fn io_in(&self, port: u16, data: &mut [u8]) {
        match AccessSize::from_bytes(data.len()) {
            Some(size) => self.devices.io_in(port, size, data),
            // x86 has no other, so no device has either.
            None => data.fill(0xff),
        }
    }

    fn io_out(&self, port: u16, data: &[u8]) {
        if let Some(size) = AccessSize::from_bytes(data.len()) {
            self.devices.io_out(port, size, data);
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.devices.mmio_read(address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.devices.mmio_write(address, data);
    }

    fn exited(&self) -> Option<u8> {
        self.exit.reason().map(|reason| reason.status().code())
    }
}

impl UserInterrupts for MachineExits {
    fn before_entry(&self, vcpu: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        self.irqchip.before_entry(vcpu, fd, entering)
    }

    fn after_exit(&self, vcpu: VcpuId, cr8: u64) {
        if let Some(chips) = self.irqchip.user() {
            chips.after_exit(vcpu, cr8);
        }
    }

    fn halted(&self, vcpu: VcpuId) {
        if let Some(chips) = self.irqchip.user() {
            chips.halted(vcpu);
        }
    }

    fn wait(&self, vcpu: VcpuId, stop: &AtomicBool) {
        self.irqchip.wait(vcpu, stop);
    }

    fn local_read(&self, vcpu: VcpuId, address: u64, data: &mut [u8]) -> bool {
        let chips = self.irqchip.user();
        chips.is_some_and(|chips| chips.local_read(vcpu, address, data))
    }

    fn local_write(&self, vcpu: VcpuId, address: u64, data: &[u8]) -> bool {
        let chips = self.irqchip.user();
        chips.is_some_and(|chips| chips.local_write(vcpu, address, data))
    }

    fn read_msr(&self, vcpu: VcpuId, index: u32) -> Option<u64> {
        self.irqchip.user()?.read_msr(vcpu, index)
    }

    fn write_msr(&self, vcpu: VcpuId, fd: &VcpuFd, index: u32, value: u64) -> bool {
        let chips = self.irqchip.user();
        chips.is_some_and(|chips| chips.write_msr(vcpu, fd, index, value))
    }

    fn end_of_interrupt(&self, _vcpu: VcpuId, fd: &VcpuFd, vector: u8) {
        self.irqchip.end_of_interrupt(fd, vector);
    }
}

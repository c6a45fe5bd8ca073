//! The debugger's host for a VMM that runs its vCPUs with [`KvmRunControl`].

use std::fmt;

use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;

use super::{KvmGuest, KvmRunControl};
use crate::address::GuestPhysAddr;
use crate::host::GuestMemory;
use crate::order::Stop;
use crate::run_control::AllStop;
use crate::server::AllStopGuest;
use crate::x86_64::stepper::Stepper;

/// A guest of KVM with a thread for each vCPU: all that a debugger needs of its VMM. In [`Threaded`] it is
/// a [`Host`](crate::Host) and a [`GuestControl`](crate::server::GuestControl).
///
/// It may outlive the machine, and begin before there is one.
pub trait ThreadedGuest {
    /// The guest's memory.
    type Memory: GuestMemory;

    /// The guest's run control.
    fn run_control(&self) -> &KvmRunControl;

    /// The memory; `None` while there is no machine.
    fn memory(&self) -> Option<Self::Memory>;

    /// Calls `act` with a vCPU that does not run, and returns `true`. Returns `false` if there is no
    /// such vCPU. `act` gets [`Driver::stepper_mut`](crate::x86_64::stepper::Driver::stepper_mut).
    fn with_vcpu(&self, vcpu: VcpuId, act: &mut dyn FnMut(&mut Stepper, &mut VcpuFd)) -> bool;

    /// Ends the guest: `kill`.
    fn kill(&mut self);

    /// The guest has stopped while no debugger is attached:
    /// [`GuestControl::unattended`](crate::server::GuestControl::unattended).
    fn unattended(&mut self, stops: Vec<Stop>);

    /// Reads devices where there is no memory: [`Host::read_device`](crate::Host::read_device).
    fn read_device(
        &mut self,
        vcpu: VcpuId,
        address: GuestPhysAddr,
        data: &mut [u8],
        side_effects: bool,
    ) -> usize {
        let _ = (vcpu, address, data, side_effects);
        0
    }

    /// The VMM's own `monitor` commands: [`Host::monitor`](crate::Host::monitor).
    fn monitor(&mut self, vcpu: VcpuId, command: &str, out: &mut dyn fmt::Write) -> bool {
        let _ = (vcpu, command, out);
        false
    }

    /// Their help: [`Host::monitor_help`](crate::Host::monitor_help).
    fn monitor_help(&self) -> &str {
        ""
    }
}

/// A [`ThreadedGuest`] as a session's host.
#[derive(Clone, Copy, Debug)]
pub struct Threaded<G>(pub G);

impl<G: ThreadedGuest> GuestMemory for Threaded<G> {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        let memory = self.0.memory();
        memory.map_or(0, |memory| memory.read_memory(address, data))
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        let memory = self.0.memory();
        memory.map_or(0, |memory| memory.write_memory(address, data))
    }
}

impl<G: ThreadedGuest> KvmGuest for Threaded<G> {
    fn vcpu_count(&self) -> u16 {
        // A `VcpuId` has 16 bits, and ids begin at 0.
        let last = self.all_stop().vcpus().last().map(|id| id.0);
        last.map_or(0, |id| id.saturating_add(1))
    }

    fn with_vcpu(&self, vcpu: VcpuId, act: &mut dyn FnMut(&mut Stepper, &mut VcpuFd)) -> bool {
        self.0.with_vcpu(vcpu, act)
    }

    fn read_device(
        &mut self,
        vcpu: VcpuId,
        address: GuestPhysAddr,
        data: &mut [u8],
        side_effects: bool,
    ) -> usize {
        self.0.read_device(vcpu, address, data, side_effects)
    }

    fn monitor(&mut self, vcpu: VcpuId, command: &str, out: &mut dyn fmt::Write) -> bool {
        self.0.monitor(vcpu, command, out)
    }

    fn monitor_help(&self) -> &str {
        self.0.monitor_help()
    }
}

impl<G: ThreadedGuest> AllStopGuest for Threaded<G> {
    fn all_stop(&self) -> &AllStop {
        self.0.run_control().all_stop()
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn unattended(&mut self, stops: Vec<Stop>) {
        self.0.unattended(stops);
    }
}

//! A machine of vmm-reference with a guest in its memory.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use debug_stub::kvm::VmMemory;
use debug_stub::server::GuestControl;
use debug_stub::x86_64::{RegisterFile, RegisterGroups};
use debug_stub::{Armed, ResumePlan, Stop, StopReason, VcpuOrder};
use intr_controller::IrqchipMode;
use kvm_ioctls::Kvm;
use vcpu_caps::{Plan, VcpuId};
use vm_memory::{Bytes, GuestAddress};
use vmm_reference::debug::MachineHost;
use vmm_reference::guests::FAULT;
use vmm_reference::memory::GuestRam;
use vmm_reference::run::{Wanted, plan};
use vmm_reference::vcpu::{MachineExits, Vcpu, VcpuGroup};
use vmm_reference::{Machine, MachineConfig};

use crate::device::{Access, End, TestDevice};
use crate::image::{self, Guest};
use crate::layout;
use crate::snapshot::Snapshot;

/// Longer than any guest or step takes on a loaded machine: only a hang exceeds it. In slices, because the
/// clock of a rig may jump ahead by many seconds when QEMU has lost a wake-up (rigs/README.md).
const SLICE: Duration = Duration::from_millis(500);
const SLICES: u32 = 20;

/// What the host can do for a debugger, with these chips.
pub fn plan_for(chips: IrqchipMode) -> &'static Plan {
    static PLANS: [OnceLock<Plan>; 3] = [const { OnceLock::new() }; 3];
    let place = IrqchipMode::ALL
        .iter()
        .position(|mode| *mode == chips)
        .unwrap();
    PLANS[place].get_or_init(|| {
        let wanted = Wanted {
            debugger: true,
            irqchip: Some(chips),
            no_host_mask: chips == IrqchipMode::User,
        };
        plan(&Kvm::new().expect("this test needs /dev/kvm"), wanted)
            .unwrap()
            .0
    })
}

/// The kind of KVM that this host has: `kvm_amd`, `kvm_intel`, `kvm_pvm`.
pub fn flavour() -> &'static str {
    plan_for(IrqchipMode::Kernel).flavour()
}

/// A machine whose vCPUs have not run.
pub fn machine(guest: &Guest, chips: IrqchipMode) -> Machine {
    // Any kernel that leaves the guest's memory alone until it runs: it never does.
    let mut config = MachineConfig::new(FAULT.image());
    config.cpus = guest.cpus;
    config.memory = layout::MEMORY;
    config.irqchip = chips;
    let machine = Machine::new(&config).unwrap_or_else(|error| panic!("{error:?}"));
    let memory = &machine.memory;
    let write = |address, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(address)).unwrap();
    write(0, &[0; 0xa_0000]);
    write(0x10_0000, &[0; 0x1_0000]);
    write(layout::IMAGE, image::IMAGE);
    for (address, bytes) in layout::tables(guest, image::stray()) {
        write(address, &bytes);
    }
    if let Some((address, code)) = &guest.code {
        write(*address, code);
    }
    let vcpu = &machine.vcpus[0];
    let reset = vcpu.get_sregs().unwrap();
    vcpu.set_sregs(&layout::special(guest, reset, flavour()))
        .unwrap();
    vcpu.set_regs(&layout::registers(guest)).unwrap();
    machine
}

/// A machine whose vCPUs have their threads.
pub struct Running {
    host: MachineHost,
    pub device: TestDevice,
    pub memory: VmMemory<GuestRam>,
    pub plan: &'static Plan,
}

/// A vCPU did not stop by itself.
#[derive(Debug)]
pub struct Stuck;

impl Running {
    pub fn new(guest: &Guest, chips: IrqchipMode) -> Self {
        let machine = machine(guest, chips);
        let plan = plan_for(chips);
        let exits = MachineExits {
            devices: machine.devices,
            irqchip: machine.irqchip.clone(),
            exit: machine.exit.clone(),
        };
        let device = TestDevice::new(exits);
        let vcpus = (0..)
            .map(VcpuId)
            .zip(machine.vcpus)
            .map(|(id, fd)| Vcpu::new(id, fd, plan, machine.irqchip.clone()))
            .collect();
        let memory = VmMemory(machine.memory.clone());
        let group = VcpuGroup::start(
            vcpus,
            machine.irqchip.clone(),
            device.clone(),
            memory.clone(),
        );
        let host = MachineHost::new(
            group.unwrap(),
            machine.memory,
            machine.irqchip,
            machine.exit,
        );
        Self {
            host,
            device,
            memory,
            plan,
        }
    }

    /// The host of a session with this machine.
    pub fn into_host(self) -> (MachineHost, TestDevice, VmMemory<GuestRam>) {
        (self.host, self.device, self.memory)
    }

    pub fn group(&self) -> &VcpuGroup {
        self.host.group()
    }

    /// Runs vCPU 0 by this order, and the others free, until all have stopped.
    ///
    /// # Errors
    /// If they do not stop in time. They are stopped then.
    pub fn run(&mut self, order: VcpuOrder, armed: Armed) -> Result<Vec<Stop>, Stuck> {
        let mut vcpus = vec![VcpuOrder::Continue; self.group().count()];
        vcpus[0] = order;
        let plan = ResumePlan {
            vcpus,
            others: VcpuOrder::Continue,
            armed: Arc::new(armed),
        };
        match self.host.resume(plan) {
            Some(stops) => Ok(stops),
            None => self.wait(),
        }
    }

    /// Waits until all vCPUs have stopped.
    pub fn wait(&mut self) -> Result<Vec<Stop>, Stuck> {
        if !stops(self.group()) {
            self.group().interrupt();
            assert!(stops(self.group()), "a vCPU cannot be stopped");
            let _ = self.group().take_stops();
            return Err(Stuck);
        }
        Ok(self.group().take_stops().unwrap_or_default())
    }

    /// As a debugger that detaches: nothing stays armed, and the guest runs.
    pub fn detach(&mut self) {
        self.host.release();
    }

    pub fn registers(&self) -> RegisterFile {
        let mut file = RegisterFile::default();
        let mut vcpu = self.group().vcpu(VcpuId(0)).unwrap();
        vcpu.read_registers(RegisterGroups::EXPEDITED, &mut file)
            .unwrap();
        file
    }

    pub fn finish(self, end: End) -> Outcome {
        finish(self.group(), &self.device, &self.memory, end)
    }
}

/// What all the vCPUs and the memory are at the end.
pub fn finish(
    group: &VcpuGroup,
    device: &TestDevice,
    memory: &VmMemory<GuestRam>,
    end: End,
) -> Outcome {
    let vcpus = (0..group.count()).map(|index| {
        let id = VcpuId(u16::try_from(index).unwrap());
        let mut vcpu = group.vcpu(id).unwrap();
        // KVM hides TF as long as a single step is armed.
        vcpu.release(memory).unwrap();
        Snapshot::of(vcpu.fd())
    });
    Outcome {
        end,
        log: device.log(),
        vcpus: vcpus.collect(),
        memory: read_all(&memory.0),
    }
}

/// How a run of a guest ended, and what it left.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub end: End,
    pub log: Vec<Access>,
    pub vcpus: Vec<Snapshot>,
    pub memory: Vec<u8>,
}

pub fn read_all(memory: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(layout::MEMORY).unwrap()];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

/// Waits for the end of a run cycle. Returns `false` if it does not come.
pub fn stops(group: &VcpuGroup) -> bool {
    // SAFETY: the group lives, and with it its descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(group.stopped_fd()) };
    let timeout = libc::c_int::try_from(SLICE.as_millis()).unwrap();
    (0..SLICES).any(|_| {
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, which lives through the call.
        unsafe { libc::poll(&raw mut poll, 1, timeout) == 1 }
    })
}

/// The end that a stop means; `None` if the guest goes on.
pub fn end_of(stops: &[Stop], device: &TestDevice) -> Option<End> {
    if let Some(end) = device.ended() {
        return Some(end);
    }
    stops.iter().find_map(|stop| match &stop.reason {
        StopReason::TripleFault(text) | StopReason::InternalError(text) => {
            Some(End::Failed(text.clone()))
        }
        _ => None,
    })
}

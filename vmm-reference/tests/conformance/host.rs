//! The host's side of a running script: a machine, its vCPUs, and the lines of its devices.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use debug_stub::kvm::VmMemory;
use debug_stub::{Stop, StopReason};
use intr_controller::routing::SourceId;
use intr_controller::{Gsi, IrqchipMode, MsiMessage};
use kvm_ioctls::{Kvm, VcpuFd};
use vcpu_caps::{Capability, Plan, VcpuId};
use vm_memory::{Bytes, GuestAddress};
use vmm_reference::devices::InterruptLines;
use vmm_reference::guests::SCRIPT;
use vmm_reference::irqchip::Irqchip;
use vmm_reference::memory::GuestRam;
use vmm_reference::run::{Wanted, plan};
use vmm_reference::vcpu::{Exits, MachineExits, Vcpu, VcpuGroup};
use vmm_reference::{Entering, Machine, MachineConfig, Permit};

use super::mode::Mode;
use super::wire::{self, HostCall};

/// The result of a host call that failed.
pub const REFUSED: u64 = u64::MAX;
/// Longer than any script takes: only a hang exceeds it.
const PATIENCE_MS: libc::c_int = 60_000;
/// What [`Exits::done`] is until the end.
const RUNNING: u16 = u16::MAX;

/// A machine that has not run yet.
pub fn machine(mode: Mode, cpus: u16) -> Machine {
    let mut config = MachineConfig::new(SCRIPT.image());
    config.cpus = cpus;
    config.memory = wire::MEMORY;
    config.irqchip = match mode {
        Mode::Kernel => IrqchipMode::Kernel,
        Mode::Split => IrqchipMode::Split,
        Mode::User => IrqchipMode::User,
    };
    config.tsc_deadline = plan_for(config.irqchip).has(Capability::UserTscDeadline);
    Machine::new(&config).unwrap_or_else(|error| panic!("{error:?}"))
}

/// What the host can do for a machine with these chips.
fn plan_for(irqchip: IrqchipMode) -> &'static Plan {
    static PLANS: [OnceLock<Plan>; 3] = [const { OnceLock::new() }; 3];
    let place = IrqchipMode::ALL.iter().position(|mode| *mode == irqchip);
    PLANS[place.unwrap()].get_or_init(|| {
        let wanted = Wanted {
            irqchip: Some(irqchip),
            ..Wanted::default()
        };
        plan(&Kvm::new().unwrap(), wanted).unwrap().0
    })
}

/// Cycles of a vCPU's TSC in a millisecond.
pub fn tsc_khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        let khz = vm.create_vcpu(0).unwrap().get_tsc_khz().unwrap();
        assert_ne!(khz, 0, "KVM_GET_TSC_KHZ");
        khz.into()
    })
}

/// Runs it until the guest reports its end, and returns its memory.
///
/// # Errors
/// If it ended in another way; the log may say more.
pub fn run(machine: Machine) -> (GuestRam, Result<(), String>) {
    let plan = plan_for(machine.irqchip.mode());
    let memory = machine.memory;
    let irqchip = machine.irqchip;
    let exits = ScriptExits {
        machine: MachineExits {
            devices: machine.devices,
            irqchip: irqchip.clone(),
            exit: machine.exit,
        },
        memory: memory.clone(),
        done: AtomicU16::new(RUNNING),
    };
    let vcpus = (0..)
        .map(VcpuId)
        .zip(machine.vcpus)
        .map(|(id, fd)| Vcpu::new(id, fd, plan, irqchip.clone()))
        .collect();
    let group = VcpuGroup::start(vcpus, irqchip, exits, VmMemory(memory.clone())).unwrap();
    group.resume_all();
    if !stops_in_time(&group) {
        group.interrupt();
        assert!(stops_in_time(&group), "a vCPU cannot be stopped");
        return (memory, Err("the script does not end".to_owned()));
    }
    let stops = group.take_stops().unwrap_or_default();
    let end = match stops.as_slice() {
        [
            Stop {
                reason: StopReason::Exited(0),
                ..
            },
        ] => Ok(()),
        stops => Err(format!("{stops:?}")),
    };
    (memory, end)
}

fn stops_in_time(group: &VcpuGroup) -> bool {
    // SAFETY: the group lives, and with it its descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(group.stopped_fd()) };
    let mut poll = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(&fd),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which lives through the call.
    unsafe { libc::poll(&raw mut poll, 1, PATIENCE_MS) == 1 }
}

/// The machine's devices, and the ports of the script guest.
///
/// The fields drop in this order: the VM before the memory.
struct ScriptExits {
    machine: MachineExits,
    memory: GuestRam,
    done: AtomicU16,
}

impl ScriptExits {
    fn irqchip(&self) -> &Irqchip {
        &self.machine.irqchip
    }

    fn call(&self, operation: u64) {
        let read = |offset| {
            let address = GuestAddress(operation + offset);
            self.memory.read_obj::<u64>(address).unwrap()
        };
        let answer = match HostCall::decode(read(8), read(16)) {
            HostCall::Line { gsi, level } => {
                let device = SourceId::new(0).unwrap();
                self.irqchip().set_line(Gsi(gsi), device, level);
                0
            }
            HostCall::Msi { address, data } => {
                match self.irqchip().signal_msi(MsiMessage { address, data }) {
                    Ok(taken) => taken.into(),
                    Err(_) => REFUSED,
                }
            }
        };
        let place = GuestAddress(operation + wire::ANSWER);
        self.memory.write_obj(answer, place).unwrap();
    }
}

impl Exits for ScriptExits {
    fn io_in(&self, port: u16, data: &mut [u8]) {
        self.machine.io_in(port, data);
    }

    fn io_out(&self, port: u16, data: &[u8]) {
        match (port, <[u8; 4]>::try_from(data)) {
            (wire::HOST_PORT, Ok(address)) => self.call(u32::from_le_bytes(address).into()),
            (wire::DONE_PORT, Ok([status, ..])) => {
                self.done.store(status.into(), Ordering::Release);
            }
            _ => self.machine.io_out(port, data),
        }
    }

    fn mmio_read(&self, vcpu: VcpuId, address: u64, data: &mut [u8]) {
        self.machine.mmio_read(vcpu, address, data);
    }

    fn mmio_write(&self, vcpu: VcpuId, address: u64, data: &[u8]) {
        self.machine.mmio_write(vcpu, address, data);
    }

    fn ended(&self) -> Option<StopReason> {
        match self.done.load(Ordering::Acquire) {
            RUNNING => self.machine.ended(),
            status => Some(StopReason::Exited(status.to_le_bytes()[0])),
        }
    }

    fn before_entry(&self, vcpu: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        self.machine.before_entry(vcpu, fd, entering)
    }

    fn after_exit(&self, vcpu: VcpuId, cr8: u64) {
        self.machine.after_exit(vcpu, cr8);
    }

    fn halted(&self, vcpu: VcpuId) {
        self.machine.halted(vcpu);
    }

    fn wait(&self, vcpu: VcpuId, must_stop: &dyn Fn() -> bool) {
        self.machine.wait(vcpu, must_stop);
    }

    fn read_msr(&self, vcpu: VcpuId, index: u32) -> Option<u64> {
        self.machine.read_msr(vcpu, index)
    }

    fn write_msr(&self, vcpu: VcpuId, fd: &VcpuFd, index: u32, value: u64) -> bool {
        self.machine.write_msr(vcpu, fd, index, value)
    }

    fn end_of_interrupt(&self, fd: &VcpuFd, vector: u8) {
        self.machine.end_of_interrupt(fd, vector);
    }
}

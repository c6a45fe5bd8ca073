//! A stepper without a plan: `KVM_GUESTDBG_SINGLESTEP`, and nothing else. It shows what each KVM does to a
//! guest that is stepped so.

use intr_controller::IrqchipMode;
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vcpu_caps::VcpuId;
use vmm_reference::vcpu::{Exits, MachineExits};

use crate::device::{End, TestDevice};
use crate::image::Guest;
use crate::machine::{Outcome, machine, read_all};
use crate::snapshot::Snapshot;

/// A guest that is single-stepped forever is at its end.
const MOST_RUNS: usize = 1500;

/// Steps a guest of one vCPU to its end.
pub fn stepped(guest: &Guest) -> Outcome {
    let machine = machine(guest, IrqchipMode::Kernel);
    let device = TestDevice::new(MachineExits {
        devices: machine.devices,
        irqchip: machine.irqchip.clone(),
        exit: machine.exit,
    });
    let mut vcpus = machine.vcpus;
    let vcpu = &mut vcpus[0];
    let end = run(vcpu, &device);
    debug(vcpu, 0);
    Outcome {
        end,
        log: device.log(),
        vcpus: vec![Snapshot::of(vcpu)],
        memory: read_all(&machine.memory),
    }
}

fn run(vcpu: &mut VcpuFd, device: &TestDevice) -> End {
    for _ in 0..MOST_RUNS {
        debug(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP);
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => device.io_in(port, data),
            Ok(VcpuExit::IoOut(port, data)) => device.io_out(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => device.mmio_read(VcpuId(0), address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => device.mmio_write(VcpuId(0), address, data),
            Ok(VcpuExit::Debug(_)) => {}
            other => return End::Failed(format!("{other:?}")),
        }
        if let Some(end) = device.ended() {
            return end;
        }
    }
    End::Failed(format!("it is not at its end after {MOST_RUNS} runs"))
}

fn debug(vcpu: &VcpuFd, control: u32) {
    let debug = kvm_guest_debug {
        control,
        ..kvm_guest_debug::default()
    };
    vcpu.set_guest_debug(&debug).unwrap();
}

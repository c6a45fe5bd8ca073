//! A complete VMM that owns its threads, its run loop and its exits, debuggable with GDB. The guest
//! counts in BX on two vCPUs. KVM's 8254 interrupts vCPU 0 1000 times a second.
//!
//! ```text
//! cargo run -p debug-stub --example own_loop -- unix:/tmp/gdb.sock
//! gdb -ex 'target remote /tmp/gdb.sock' -ex 'display/i $pc'
//! (gdb) stepi                 # inc, jmp, inc, jmp: never the timer's handler
//! (gdb) monitor mask off
//! (gdb) stepi                 # the timer's handler, at 0x1004
//! (gdb) detach                # the guest runs on; `kill` ends the VMM
//! ```
#![expect(clippy::disallowed_types, reason = "only the library has no locks")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{env, error::Error, io, thread};

use debug_stub::kvm::{self, KvmRunControl, KvmVcpu, Task, Threaded, ThreadedGuest, VmMemory};
use debug_stub::run_control::{KickSignal, VcpuHandle, Waiting, WakePipe};
use debug_stub::server::{Listener, serve_forever};
use debug_stub::x86_64::stepper::{Driver, Outcome, Stepper};
use debug_stub::{Session, SessionConfig, Stop};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vcpu_caps::{IrqchipMode, VcpuId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const MEMORY: usize = 0x1_0000;
const VCPUS: u16 = 2;
/// 16-bit code at 0x1000. vCPU 0 begins at 0x1012, and the other one in the loop.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0xff, 0xc3, 0xeb, 0xfc,                               // loop: inc bx; jmp loop
    0xfe, 0x06, 0x00, 0x90, 0x75, 0x03, 0xb0, b'.', 0xee, // tick: a dot for each 256th,
    0xb0, 0x20, 0xe6, 0x20, 0xcf,                         //   EOI; iret
    0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, // 8259A: vector 0x20
    0xb0, 0x01, 0xe6, 0x21, 0xb0, 0xfe, 0xe6, 0x21,
    0xb0, 0x34, 0xe6, 0x43, 0xb0, 0xa9, 0xe6, 0x40, 0xb0, 0x04, 0xe6, 0x40, // 8254: 1 kHz
    0xfb, 0xeb, 0xcb,                                     // sti; jmp loop
];

struct Machine {
    /// Locked by the vCPU's thread while it runs, and by the session's while it is stopped.
    vcpus: Vec<Mutex<(VcpuFd, Driver)>>,
    memory: VmMemory<GuestMemoryMmap>,
    run_control: KvmRunControl,
    quit: WakePipe,
}

impl Machine {
    fn vcpu(&self, id: VcpuId) -> io::Result<MutexGuard<'_, (VcpuFd, Driver)>> {
        let vcpu = self.vcpus.get(id.index()).ok_or(io::ErrorKind::NotFound)?;
        Ok(vcpu.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// On the vCPU's thread: takes orders, and enters the guest when the driver says so.
    fn run_vcpu(&self, handle: VcpuHandle) -> Result<(), Box<dyn Error>> {
        let id = handle.id();
        let mut thread = self.run_control.enter(handle, &self.vcpu(id)?.0)?;
        loop {
            let turn = {
                let (fd, driver) = &mut *self.vcpu(id)?;
                thread.turn(driver, &mut KvmVcpu(fd), &self.memory)
            };
            // Without the lock: it reports a stop, or waits for the debugger.
            match thread.take(turn) {
                Task::Enter => {
                    let (fd, driver) = &mut *self.vcpu(id)?;
                    let outcome = run(fd);
                    driver.ran(outcome, &mut KvmVcpu(fd), &self.memory);
                }
                Task::Again => {} // the place for the VMM's own requests
                Task::Leave => return Ok(()),
            }
        }
    }
}

/// One `KVM_RUN`. The VMM serves the exits of its devices; the others are for the stepper.
fn run(fd: &mut VcpuFd) -> Outcome {
    match fd.run() {
        Ok(VcpuExit::IoOut(0x3f8, data)) => eprint!("{}", String::from_utf8_lossy(data)),
        Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..)) => {}
        Ok(VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data)) => data.fill(0xff),
        Ok(VcpuExit::InternalError) => return kvm::internal_error(fd),
        Ok(exit) => return kvm::outcome(&exit),
        Err(error) => return kvm::failed_run(error),
    }
    Outcome::Served
}

impl<'a> ThreadedGuest for &'a Machine {
    type Memory = &'a VmMemory<GuestMemoryMmap>;

    fn run_control(&self) -> &KvmRunControl {
        &self.run_control
    }
    fn memory(&self) -> Option<Self::Memory> {
        Some(&self.memory)
    }
    fn with_vcpu(&self, id: VcpuId, act: &mut dyn FnMut(&mut Stepper, &mut VcpuFd)) -> bool {
        let Ok(mut vcpu) = self.vcpu(id) else {
            return false;
        };
        let (fd, driver) = &mut *vcpu;
        act(driver.stepper_mut(), fd);
        true
    }
    fn kill(&mut self) {
        self.quit.wake();
    }
    fn unattended(&mut self, stops: Vec<Stop>) {
        eprintln!("the guest cannot go on: {stops:?}");
        self.quit.wake();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).ok_or("usage: own_loop unix:PATH")?;
    let listener = Listener::bind(&address.parse()?, false)?;
    let kvm = vcpu_caps::kvm::open()?;
    let plan = vcpu_caps::kvm::debugger_plan(IrqchipMode::Kernel)?;

    let vm = kvm.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
    vm.create_irq_chip()?;
    vm.create_pit2(Default::default())?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?;
    memory.write_slice(GUEST, GuestAddress(0x1000))?;
    memory.write_obj(0x1004_u32, GuestAddress(4 * 0x20))?; // the gate of vector 0x20
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: `memory` is a mapping of `MEMORY` bytes, and `machine` keeps it while vCPUs run.
    unsafe { vm.set_user_memory_region(region) }?;

    let mut machine = Machine {
        vcpus: Vec::new(),
        memory: VmMemory(memory),
        run_control: KvmRunControl::new(plan.clone(), KickSignal::usual()?)?,
        quit: WakePipe::new(Waiting::InALoop)?,
    };
    for id in (0..VCPUS).map(VcpuId) {
        let fd = vm.create_vcpu(id.0.into())?;
        let (mut core, mut special) = (fd.get_regs()?, fd.get_sregs()?);
        (special.cs.base, special.cs.selector) = (0, 0);
        (core.rsp, core.rdx) = (0x8000, 0x3f8);
        core.rip = if id.0 == 0 { 0x1012 } else { 0x1000 };
        fd.set_sregs(&special)?;
        fd.set_regs(&core)?;
        let mp_state = KVM_MP_STATE_RUNNABLE;
        fd.set_mp_state(kvm_mp_state { mp_state })?;
        let vcpu = Mutex::new((fd, Driver::new(id, &plan)));
        machine.vcpus.push(vcpu);
    }

    let machine = &machine;
    let all_stop = machine.run_control.all_stop();
    let handles = (0..VCPUS).map(|id| all_stop.add(VcpuId(id)));
    let handles = handles.collect::<Result<Vec<_>, _>>()?;
    all_stop.start()?;
    let mut session = Session::new(Threaded(machine), SessionConfig::new(plan));
    thread::scope(|scope| {
        for handle in handles {
            scope.spawn(move || {
                if let Err(error) = machine.run_vcpu(handle) {
                    eprintln!("a vCPU cannot run: {error}");
                    machine.quit.wake();
                }
            });
        }
        let served = serve_forever(&mut session, listener, Some(&machine.quit));
        for id in all_stop.vcpus() {
            let _ = all_stop.remove(id); // or it has just left
        }
        Ok(served?)
    })
}

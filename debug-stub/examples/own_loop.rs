//! A complete VMM that owns its thread, its run loop and its exits, debuggable with GDB. The guest
//! counts in BX, and KVM's 8254 interrupts it 1000 times a second. More vCPUs: a thread for each.
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

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{env, error::Error, io, os::fd::AsFd, thread};

use debug_stub::kvm::{self, KvmError, KvmVcpu, VmMemory};
use debug_stub::run_control::{AllStop, Entered, KickSignal, Order, VcpuHandle};
use debug_stub::run_control::{VcpuThreads, Waiting, WakePipe};
use debug_stub::server::{AllStopGuest, Listener, serve_forever};
use debug_stub::x86_64::stepper::{Next, Outcome, Stepper, StepperError};
use debug_stub::x86_64::{RegisterFile, RegisterGroups, X86_64};
use debug_stub::{GuestMemory, GuestPhysAddr, Host, Interrupts, Session, SessionConfig, Stop};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vcpu_caps::{Profile, VcpuId, negotiate};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const MEMORY: usize = 0x1_0000;
const VCPU: VcpuId = VcpuId(0);
/// 16-bit code at 0x1000. The vCPU begins at 0x1012.
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
    vcpu: Mutex<(VcpuFd, Stepper)>,
    memory: VmMemory<GuestMemoryMmap>,
    all_stop: AllStop,
    quit: WakePipe,
}

impl Machine {
    /// Locked by the vCPU's thread while it runs, and by the session's while it is stopped.
    fn vcpu(&self) -> MutexGuard<'_, (VcpuFd, Stepper)> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On the vCPU's thread: takes orders, and enters the guest when the stepper says so.
    fn run_vcpu(&self, entered: &Entered<'_>, mut handle: VcpuHandle) {
        while let Order::Run(order, armed) = handle.wait_for_order() {
            let mut vcpu = self.vcpu();
            let (fd, stepper) = &mut *vcpu;
            let mut next = stepper.start(&order, &armed, &mut KvmVcpu(fd), &self.memory);
            let reason = loop {
                next = match next {
                    Next::Stopped(reason) => break reason,
                    // Clears the previous kick, then looks for a stop request: none is lost.
                    Next::Enter if !entered.may_run(|| handle.must_stop()) => {
                        stepper.interrupt(&mut KvmVcpu(fd), &self.memory)
                    }
                    Next::Enter => stepper.ran(run(fd), &mut KvmVcpu(fd), &self.memory),
                    Next::Complete => {
                        fd.set_kvm_immediate_exit(1);
                        stepper.ran(run(fd), &mut KvmVcpu(fd), &self.memory)
                    }
                };
            };
            drop(vcpu);
            handle.report(reason);
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

impl GuestMemory for &Machine {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        self.memory.read_memory(address, data)
    }
    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        self.memory.write_memory(address, data)
    }
}

impl Host for &Machine {
    type Arch = X86_64;
    type Error = StepperError<KvmError>;
    fn vcpu_count(&self) -> u16 {
        1
    }
    fn vcpu_name(&self, id: VcpuId) -> String {
        id.to_string()
    }
    fn read_registers(
        &mut self,
        _: VcpuId,
        groups: RegisterGroups,
        registers: &mut RegisterFile,
    ) -> Result<(), Self::Error> {
        let (fd, stepper) = &mut *self.vcpu();
        stepper.read_registers(groups, registers, &mut KvmVcpu(fd))
    }
    fn write_registers(
        &mut self,
        _: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), Self::Error> {
        let (fd, stepper) = &mut *self.vcpu();
        stepper.write_registers(groups, registers, &mut KvmVcpu(fd))
    }
    fn interrupts(&mut self, _: VcpuId) -> Interrupts {
        let (fd, stepper) = &*self.vcpu();
        kvm::pending_interrupts(fd, stepper.is_masked()).unwrap_or_default()
    }
}

impl AllStopGuest for &Machine {
    fn all_stop(&self) -> &AllStop {
        &self.all_stop
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
    let mut report = vcpu_caps::kvm::probe(&kvm);
    vcpu_caps::kvm::verify(&kvm, &mut report)?;
    let plan = negotiate(&report, &Profile::debugger())?;

    let vm = kvm.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
    vm.create_irq_chip()?;
    vm.create_pit2(Default::default())?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?;
    memory.write_slice(GUEST, GuestAddress(0x1000))?;
    memory.write_obj(0x1004_u32, GuestAddress(4 * 0x20))?; // the gate of vector 0x20
    let region = kvm_bindings::kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: `memory` is a mapping of `MEMORY` bytes, and `machine` keeps it while vCPUs run.
    unsafe { vm.set_user_memory_region(region) }?;

    let fd = vm.create_vcpu(VCPU.0.into())?;
    let (mut core, mut special) = (fd.get_regs()?, fd.get_sregs()?);
    (special.cs.base, special.cs.selector) = (0, 0);
    (core.rip, core.rsp, core.rdx) = (0x1012, 0x8000, 0x3f8);
    fd.set_sregs(&special)?;
    fd.set_regs(&core)?;

    // This thread runs the vCPU, and another one serves the debugger.
    let threads = Arc::new(VcpuThreads::new(KickSignal::usual()?));
    let entered = threads.enter(VCPU, &fd)?;
    let machine = &Machine {
        vcpu: Mutex::new((fd, Stepper::new(VCPU, &plan))),
        memory: VmMemory(memory),
        all_stop: AllStop::new(Arc::clone(&threads))?,
        quit: WakePipe::new(Waiting::InALoop)?,
    };
    let handle = machine.all_stop.add(VCPU)?;
    machine.all_stop.release()?;
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            let mut session = Session::new(machine, SessionConfig::new(plan));
            let served = serve_forever(&mut session, listener, machine.quit.as_fd());
            let removed = machine.all_stop.remove(VCPU).map_err(io::Error::other);
            removed.and(served)
        });
        machine.run_vcpu(&entered, handle);
        Ok(server.join().map_err(|_| "the server panicked")??)
    })
}

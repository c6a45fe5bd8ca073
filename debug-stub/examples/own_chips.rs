//! As `own_loop`, but KVM has no interrupt chips: the local APIC of intr-controller decides what enters
//! the vCPU. Masked steps need nothing of the host then: the injection policy withholds interrupts.
//!
//! ```text
//! cargo run -p debug-stub --example own_chips -- unix:/tmp/gdb.sock
//! gdb -ex 'target remote /tmp/gdb.sock' -ex 'display/i $pc'
//! (gdb) stepi                 # inc, jmp, inc, jmp: never the timer's handler
//! (gdb) monitor mask status   # vector 0x20 is pending, and why it does not enter
//! (gdb) monitor mask off
//! (gdb) stepi                 # the timer's handler, at 0x1004; `kill` ends the VMM
//! ```
#![expect(clippy::disallowed_types, reason = "only the library has no locks")]
#![expect(clippy::disallowed_methods, reason = "only the library has no clock")]

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, error::Error, io, num::NonZero, thread};

use debug_stub::StopReason::InternalError;
use debug_stub::kvm::{self, KvmError, KvmVcpu, VmMemory};
use debug_stub::run_control::{AllStop, Entered, Kick, KickSignal, Order, VcpuHandle};
use debug_stub::run_control::{VcpuThreads, Waiting, WakePipe};
use debug_stub::server::{AllStopGuest, Listener, serve_forever};
use debug_stub::x86_64::stepper::{Next, Outcome, Stepper, StepperError};
use debug_stub::x86_64::{RegisterFile, RegisterGroups, X86_64};
use debug_stub::{GuestMemory, GuestPhysAddr, Host, Interrupts, Session, SessionConfig, Stop};
use intr_controller::kvm::{UserEntry, UserVcpu};
use intr_controller::{GuestTime, LapicConfig};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vcpu_caps::{IrqchipMode, VcpuId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const MEMORY: usize = 0x1_0000;
const VCPU: VcpuId = VcpuId(0);
/// 16-bit code at 0x1000. ES is the local APIC. The vCPU begins at 0x1013.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0xff, 0xc3, 0xeb, 0xfc,                                     // loop: inc bx; jmp loop
    0xfe, 0x06, 0x00, 0x90, 0x75, 0x03, 0xb0, b'.', 0xee,       // tick: a dot for each 256th,
    0x26, 0x66, 0xa3, 0xb0, 0x00, 0xcf,                         //   EOI; iret
    0x26, 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0x00, 0x00, // APIC: enabled;
    0x26, 0x66, 0xc7, 0x06, 0xe0, 0x03, 0x0b, 0x00, 0x00, 0x00, // its timer: undivided,
    0x26, 0x66, 0xc7, 0x06, 0x20, 0x03, 0x20, 0x00, 0x02, 0x00, // vector 0x20, periodic,
    0x26, 0x66, 0xc7, 0x06, 0x80, 0x03, 0x40, 0x42, 0x0f, 0x00, // 1,000,000 ns
    0xfb, 0xf4, 0xeb, 0xc1,                                     // sti; hlt; jmp loop
];

struct Cpu {
    fd: VcpuFd,
    chips: UserVcpu,
    /// Guest time is the time since then. It goes on while the guest is stopped.
    started: Instant,
    /// Takes the time at which to kick the vCPU: KVM does not know of its timer.
    alarm: Sender<Instant>,
}

impl Cpu {
    /// Enters the guest, with the interrupt that may enter now. `None`: the vCPU is halted.
    fn enter(&mut self, masked: bool) -> Option<Outcome> {
        let now = GuestTime::ZERO.saturating_add(self.started.elapsed());
        let entry = (self.chips).prepare(&mut self.fd, masked, now, Duration::ZERO);
        if let (false, Some(due)) = (masked, self.chips.lapic().next_deadline(now)) {
            let at = self.started + due.saturating_since(GuestTime::ZERO);
            let _ = self.alarm.send(at); // the receiver lives as long as the sender
        }
        match entry {
            Ok(UserEntry::Run) => Some(self.run()),
            Ok(UserEntry::Wait) => None,
            // There is neither another vCPU that sends INIT, nor an 8259A for an ExtINT.
            other => Some(Outcome::Fatal(InternalError(format!("{other:?}")))),
        }
    }

    /// One `KVM_RUN`. The VMM serves the exits of its devices; the others are for the stepper.
    fn run(&mut self) -> Outcome {
        let (mut outcome, mut read, mut written) = (Outcome::Served, None, None);
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => read = Some((address, data.len())),
            Ok(VcpuExit::MmioWrite(address, data)) => written = Some((address, data.to_vec())),
            Ok(VcpuExit::IoOut(0x3f8, data)) => eprint!("{}", String::from_utf8_lossy(data)),
            Ok(VcpuExit::IoOut(..)) => {}
            Ok(VcpuExit::IoIn(_, data)) => data.fill(0xff),
            Ok(VcpuExit::InternalError) => outcome = kvm::internal_error(&mut self.fd),
            Ok(exit) => outcome = kvm::outcome(&exit),
            Err(error) => outcome = kvm::failed_run(error),
        }
        if outcome == Outcome::Halted {
            self.chips.halt();
        }
        // The guest wrote CR8 before it made the access.
        self.chips.returned(self.fd.get_kvm_run().cr8);
        let now = GuestTime::ZERO.saturating_add(self.started.elapsed());
        let lapic = self.chips.lapic_mut();
        if let Some((address, size)) = read {
            let mut value = [0xff; 8];
            if let (Some(at), Some(data)) = (lapic.mmio_offset(address), value.get_mut(..size)) {
                lapic.mmio_read(at, data, now);
            }
            self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = value;
        } else if let Some((address, data)) = written {
            if let Some(at) = lapic.mmio_offset(address) {
                let _ = lapic.mmio_write(at, &data, now); // no IOAPIC or other vCPU to notify
            }
        }
        outcome
    }
}

struct Machine {
    vcpu: Mutex<(Cpu, Stepper)>,
    memory: VmMemory<GuestMemoryMmap>,
    all_stop: AllStop,
    quit: WakePipe,
}

impl Machine {
    /// Locked by the vCPU's thread while it runs, and by the session's while it is stopped.
    fn vcpu(&self) -> MutexGuard<'_, (Cpu, Stepper)> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On the vCPU's thread: takes orders, and enters the guest when the stepper says so.
    fn run_vcpu(&self, entered: &Entered<'_>, mut handle: VcpuHandle) {
        while let Order::Run(order, armed) = handle.wait_for_order() {
            let mut vcpu = self.vcpu();
            let (cpu, stepper) = &mut *vcpu;
            let mut next = stepper.start(&order, &armed, &mut KvmVcpu(&mut cpu.fd), &self.memory);
            let reason = loop {
                next = match next {
                    Next::Stopped(reason) => break reason,
                    // Clears the previous kick, then looks for a stop request: none is lost.
                    Next::Enter if !entered.may_run(|| handle.must_stop()) => {
                        stepper.interrupt(&mut KvmVcpu(&mut cpu.fd), &self.memory)
                    }
                    Next::Enter => match cpu.enter(stepper.is_masked()) {
                        Some(out) => stepper.ran(out, &mut KvmVcpu(&mut cpu.fd), &self.memory),
                        None => {
                            thread::park(); // a kick that has come since `may_run` ends it
                            Next::Enter
                        }
                    },
                    Next::Complete => {
                        cpu.fd.set_kvm_immediate_exit(1);
                        stepper.ran(cpu.run(), &mut KvmVcpu(&mut cpu.fd), &self.memory)
                    }
                };
            };
            drop(vcpu);
            handle.report(reason);
        }
    }
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
        let (cpu, stepper) = &mut *self.vcpu();
        stepper.read_registers(groups, registers, &mut KvmVcpu(&mut cpu.fd))
    }
    fn write_registers(
        &mut self,
        _: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), Self::Error> {
        let (cpu, stepper) = &mut *self.vcpu();
        stepper.write_registers(groups, registers, &mut KvmVcpu(&mut cpu.fd))
    }
    fn disarm(&mut self, _: VcpuId) -> Result<(), Self::Error> {
        let (cpu, stepper) = &mut *self.vcpu();
        stepper.release(&mut KvmVcpu(&mut cpu.fd), &self.memory)
    }
    fn interrupts(&mut self, _: VcpuId) -> Interrupts {
        let (cpu, stepper) = &*self.vcpu();
        let masked = stepper.is_masked();
        let Ok(seen) = cpu.chips.observe(&cpu.fd, masked) else {
            return Interrupts::default();
        };
        let blocked = seen.decision.blocked();
        Interrupts {
            masked,
            pending: seen.pending.fixed().iter().map(|v| v.get()).collect(),
            nmi_pending: seen.pending.nmis() != 0,
            blocked: blocked.map_or_else(String::new, |blocked| blocked.why().to_string()),
        }
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

/// Kicks the vCPU when its timer is due, until there is no vCPU any more.
fn wait_for_alarms(alarms: &Receiver<Instant>, kick: impl Fn(VcpuId)) {
    let mut due: Option<Instant> = None;
    loop {
        let left = due.map_or(Duration::MAX, |due| due - Instant::now());
        let alarm = alarms.recv_timeout(left);
        match alarm {
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => kick(VCPU),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        due = alarm.ok();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).ok_or("usage: own_chips unix:PATH")?;
    let listener = Listener::bind(&address.parse()?, false)?;
    let kvm = vcpu_caps::kvm::open()?;
    let plan = vcpu_caps::kvm::debugger_plan(IrqchipMode::User)?;

    let vm = kvm.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
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
    (special.cs.base, special.cs.selector, special.es.base) = (0, 0, 0xfee0_0000);
    (core.rip, core.rsp, core.rdx) = (0x1013, 0x8000, 0x3f8);
    fd.set_sregs(&special)?;
    fd.set_regs(&core)?;
    let tsc_hz = NonZero::new(1000 * u64::from(fd.get_tsc_khz()?)).ok_or("no TSC")?;

    // This thread runs the vCPU. One serves the debugger, and one waits for the timer.
    let threads = Arc::new(VcpuThreads::new(KickSignal::usual()?));
    let entered = threads.enter(VCPU, &fd)?;
    let (alarm, alarms) = channel();
    let cpu = Cpu {
        fd,
        chips: UserVcpu::new(LapicConfig::new(0, true, tsc_hz)),
        started: Instant::now(),
        alarm,
    };
    let machine = &Machine {
        vcpu: Mutex::new((cpu, Stepper::new(VCPU, &plan))),
        memory: VmMemory(memory),
        all_stop: AllStop::new(Arc::clone(&threads))?,
        quit: WakePipe::new(Waiting::InALoop)?,
    };
    let kicked = Arc::clone(&threads);
    thread::spawn(move || wait_for_alarms(&alarms, |vcpu| kicked.kick(vcpu)));
    let handle = machine.all_stop.add(VCPU)?;
    machine.all_stop.start()?;
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            let mut session = Session::new(machine, SessionConfig::new(plan));
            let served = serve_forever(&mut session, listener, Some(&machine.quit));
            let removed = machine.all_stop.remove(VCPU).map_err(io::Error::other);
            removed.and(served)
        });
        machine.run_vcpu(&entered, handle);
        Ok(server.join().map_err(|_| "the server panicked")??)
    })
}

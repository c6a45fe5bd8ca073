//! The vCPU, its memory, and what watches it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use debug_stub::kvm::{KvmVcpu, VmMemory, failed_run, internal_error, outcome, take_outcome};
use debug_stub::x86_64::stepper::{Next, Outcome, Stepper};
use debug_stub::x86_64::{RegisterFile, RegisterGroups};
use debug_stub::{Armed, GuestMemory, GuestPhysAddr, StepOrder, StopReason, VcpuId, VcpuOrder};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vcpu_caps::{HostReport, Plan, Profile, negotiate};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

pub(crate) const MEMORY: usize = 0x1_0000;
pub(crate) const CODE: u64 = 0x1000;
pub(crate) const HANDLER: u64 = 0x3000;
pub(crate) const STACK: u64 = 0x8000;
/// Where interrupts count: the handler increments the word here.
pub(crate) const COUNTER: u64 = 0x4000;
pub(crate) const VECTOR: u8 = 0x40;
pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;

/// The software KVM whose CPL0 code is emulated.
pub(crate) fn is_pvm() -> bool {
    Path::new("/sys/module/kvm_pvm").exists()
}

/// What this host was seen to do, tried out once.
pub(crate) fn report() -> &'static HostReport {
    static REPORT: OnceLock<HostReport> = OnceLock::new();
    REPORT.get_or_init(|| {
        let kvm = Kvm::new().expect("this test needs /dev/kvm");
        let mut report = vcpu_caps::kvm::probe(&kvm);
        vcpu_caps::kvm::verify(&kvm, &mut report).unwrap();
        report
    })
}

pub(crate) fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| negotiate(report(), &Profile::debugger()).unwrap())
}

#[derive(Debug, PartialEq)]
pub(crate) enum Access {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

/// Records what the guest asks for, and answers each byte with 0x5a.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Vec<Access>>);

impl Recorder {
    pub(crate) fn push(&self, access: Access) {
        self.0.lock().unwrap().push(access);
    }

    pub(crate) fn take(&self) -> Vec<Access> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

pub(crate) struct Runner(libc::pthread_t);

// SAFETY: used only while the thread it names waits for the thread that uses it.
unsafe impl Killable for Runner {
    fn pthread_handle(&self) -> libc::pthread_t {
        self.0
    }
}

/// The vCPU with its stepper, and the loop that a VMM writes.
pub(crate) struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) stepper: Stepper,
    /// What an order that was interrupted to yield goes on with.
    next: Option<Next>,
}

/// What a set stop flag means.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum OnStop {
    Interrupt,
    /// The order is gone on with later.
    Yield,
}

impl Vcpu {
    pub(crate) fn run(
        &mut self,
        order: &VcpuOrder,
        armed: &Arc<Armed>,
        devices: &Recorder,
        memory: &VmMemory<GuestMemoryMmap<()>>,
        stop: &AtomicBool,
        on_stop: OnStop,
    ) -> Option<StopReason> {
        let Self { fd, stepper, next } = self;
        let mut now = match next.take() {
            Some(next) => next,
            None => stepper.start(order, armed, &mut KvmVcpu(fd), memory),
        };
        loop {
            let complete = match now {
                Next::Stopped(reason) => return Some(reason),
                Next::Enter => false,
                Next::Complete => true,
            };
            fd.set_kvm_immediate_exit(u8::from(complete));
            if !complete && stop.load(Ordering::Acquire) {
                if on_stop == OnStop::Yield {
                    *next = Some(now);
                    return None;
                }
                now = stepper.interrupt(&mut KvmVcpu(fd), memory);
                continue;
            }
            let came_back = run_once(fd, devices);
            now = stepper.ran(came_back, &mut KvmVcpu(fd), memory);
        }
    }

    pub(crate) fn waiting(&mut self) -> Option<&'static str> {
        let state = self.stepper.run_state(&mut KvmVcpu(&mut self.fd)).unwrap();
        state.waits()
    }

    /// The descriptor, for what the stepper does not do.
    pub(crate) fn fd(&mut self) -> &VcpuFd {
        self.stepper.forget_registers(&mut KvmVcpu(&mut self.fd));
        &self.fd
    }

    pub(crate) fn release(&mut self, memory: &VmMemory<GuestMemoryMmap<()>>) {
        self.next = None;
        let vcpu = &mut KvmVcpu(&mut self.fd);
        self.stepper.release(vcpu, memory).unwrap();
    }

    pub(crate) fn write_registers(&mut self, groups: RegisterGroups, file: &RegisterFile) {
        self.stepper
            .write_registers(groups, file, &mut KvmVcpu(&mut self.fd))
            .unwrap();
    }
}

/// `KVM_RUN`, with what it asks for served.
fn run_once(fd: &mut VcpuFd, devices: &Recorder) -> Outcome {
    let io_size = io_size(fd);
    let came_back = match fd.run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            devices.push(Access::In(port, data.len()));
            data.fill(0x5a);
            Outcome::Served
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            // SAFETY: as `io_size` says: `io` is the active member now.
            let size = usize::from(unsafe { (*io_size).size });
            for element in data.chunks(size) {
                devices.push(Access::Out(port, element.to_vec()));
            }
            Outcome::Served
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            devices.push(Access::Read(address, data.len()));
            data.fill(0x5a);
            Outcome::Served
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            devices.push(Access::Write(address, data.to_vec()));
            Outcome::Served
        }
        Ok(VcpuExit::InternalError) => internal_error(fd),
        Ok(exit) => outcome(&exit),
        Err(error) => failed_run(error),
    };
    // What a VMM finds that has no exit at hand; and not again.
    assert_eq!(take_outcome(fd), came_back);
    assert_eq!(take_outcome(fd), Outcome::Nothing);
    came_back
}

/// Where the run structure describes a port access.
fn io_size(fd: &mut VcpuFd) -> *const kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4 {
    &raw const fd.get_kvm_run().__bindgen_anon_1.io
}

pub(crate) struct Guest {
    pub(crate) vcpu: Vcpu,
    pub(crate) memory: VmMemory<GuestMemoryMmap<()>>,
    pub(crate) devices: Recorder,
    pub(crate) stop: AtomicBool,
    pub(crate) vm: Arc<VmFd>,
    /// How long a run may take.
    pub(crate) patience: Duration,
}

impl Guest {
    /// A guest with `code` at [`CODE`], a handler `inc word [COUNTER]; iret` for [`VECTOR`], and
    /// KVM's interrupt chips.
    pub(crate) fn new(code: &[u8]) -> Self {
        Self::with(code, plan())
    }

    pub(crate) fn with(code: &[u8], plan: &Plan) -> Self {
        Self::of(VcpuId(0), code, plan)
    }

    /// Whose only vCPU is this one.
    pub(crate) fn of(id: VcpuId, code: &[u8], plan: &Plan) -> Self {
        let kvm = Kvm::new().expect("this test needs /dev/kvm");
        let vm = kvm.create_vm().unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
        vm.create_irq_chip().unwrap();
        let mmap = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: mmap.get_host_address(GuestAddress(0)).unwrap() as u64,
        };
        // SAFETY: the mapping lives as long as the guest: both are fields of `Guest`.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        let memory = VmMemory(mmap);
        let put = |at: u64, bytes: &[u8]| {
            assert_eq!(memory.write_memory(GuestPhysAddr(at), bytes), bytes.len());
        };
        put(CODE, code);
        // inc word [0x4000]; push ax; ... ; iret: no EOI, each vector is delivered once.
        put(HANDLER, &[0xff, 0x06, 0x00, 0x40, 0xcf]);
        for vector in [1u64, 3, 6, u64::from(VECTOR)] {
            let handler = u16::try_from(HANDLER).unwrap().to_le_bytes();
            put(vector * 4, &[handler[0], handler[1], 0, 0]);
        }
        let fd = vm.create_vcpu(id.0.into()).unwrap();
        let running = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        fd.set_mp_state(running).unwrap();
        let mut sregs = fd.get_sregs().unwrap();
        for segment in [&mut sregs.cs, &mut sregs.ss, &mut sregs.ds, &mut sregs.es] {
            segment.base = 0;
            segment.selector = 0;
        }
        fd.set_sregs(&sregs).unwrap();
        let mut regs = fd.get_regs().unwrap();
        regs.rip = CODE;
        regs.rsp = STACK;
        regs.rflags = 2;
        fd.set_regs(&regs).unwrap();
        let mut lapic = fd.get_lapic().unwrap();
        // Spurious-interrupt vector register, offset 0xf0: software-enable the local APIC.
        for (offset, byte) in [(0xf0, 0xff), (0xf1, 0x01)] {
            lapic.regs[offset] = i8::from_ne_bytes([byte]);
        }
        fd.set_lapic(&lapic).unwrap();
        let vcpu = Vcpu {
            fd,
            stepper: Stepper::new(id, plan),
            next: None,
        };
        Self {
            vcpu,
            memory,
            devices: Recorder::default(),
            stop: AtomicBool::new(false),
            vm: Arc::new(vm),
            patience: Duration::from_secs(5),
        }
    }

    pub(crate) fn run(&mut self, order: &VcpuOrder, armed: &Armed) -> StopReason {
        self.run_until(OnStop::Interrupt, order, armed)
            .expect("nothing asked it to yield")
    }

    /// Runs, and stops a vCPU that does not come back. `None` if it yielded.
    pub(crate) fn run_until(
        &mut self,
        on_stop: OnStop,
        order: &VcpuOrder,
        armed: &Armed,
    ) -> Option<StopReason> {
        register_signal_handler(SIGRTMIN(), ignore).unwrap();
        let armed = Arc::new(armed.clone());
        let (stop, devices, memory, vcpu) =
            (&self.stop, &self.devices, &self.memory, &mut self.vcpu);
        // SAFETY: has no precondition.
        let runner = Runner(unsafe { libc::pthread_self() });
        let (done, watch) = mpsc::channel::<()>();
        let mut patience = self.patience;
        thread::scope(|scope| {
            scope.spawn(move || {
                while watch.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                    stop.store(true, Ordering::Release);
                    runner.kill(SIGRTMIN()).unwrap();
                    patience = Duration::from_millis(10);
                }
            });
            let end = vcpu.run(order, &armed, devices, memory, stop, on_stop);
            drop(done);
            end
        })
    }

    pub(crate) fn step_with(&mut self, mask: bool, armed: &Armed) -> StopReason {
        self.run(
            &VcpuOrder::Step(StepOrder {
                mask,
                ..StepOrder::default()
            }),
            armed,
        )
    }

    pub(crate) fn step(&mut self) -> StopReason {
        self.step_with(true, &Armed::default())
    }

    pub(crate) fn registers(&mut self) -> RegisterFile {
        let mut file = RegisterFile::default();
        let Vcpu { fd, stepper, .. } = &mut self.vcpu;
        stepper
            .read_registers(RegisterGroups::all(), &mut file, &mut KvmVcpu(fd))
            .unwrap();
        file
    }

    pub(crate) fn set(&mut self, change: impl FnOnce(&mut RegisterFile)) {
        let mut file = self.registers();
        change(&mut file);
        self.vcpu.write_registers(RegisterGroups::CORE, &file);
    }

    pub(crate) fn rip(&mut self) -> u64 {
        self.registers().core.rip
    }

    pub(crate) fn word(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        assert_eq!(self.memory.read_memory(GuestPhysAddr(at), &mut bytes), 2);
        u16::from_le_bytes(bytes)
    }

    pub(crate) fn raise(&self) {
        send(&self.vm, self.vcpu.stepper.id(), u32::from(VECTOR));
    }

    #[track_caller]
    pub(crate) fn step_to(&mut self, rip: u64) {
        assert_eq!(self.step(), StopReason::Step);
        assert_eq!(self.rip(), rip, "RIP after the step");
    }
}

/// Sends a message with this data (SDM 3A 10.11.2) to a vCPU's local APIC.
pub(crate) fn send(vm: &VmFd, id: VcpuId, data: u32) {
    let msi = kvm_msi {
        address_lo: 0xfee0_0000 | u32::from(id.0) << 12,
        data,
        ..Default::default()
    };
    let taken = vm.signal_msi(msi).unwrap();
    assert_eq!(taken, 1, "the local APIC took the message");
}

//! A throw-away VM, and vCPUs in real mode that run a few instructions.

use core::fmt;
use std::borrow::Cow;
use std::format;
use std::string::String;
use std::time::{Duration, Instant};
use std::vec::Vec;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, kvm_enable_cap,
    kvm_mp_state, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::VerifyError;
use super::deadline::Deadline;
use crate::debug_state::DebugIntent;
use crate::irqchip::IrqchipMode;
use crate::kvm::control::set_guest_debug;
use crate::kvm::x86::GuestDebug;

/// Where a program begins.
pub(super) const CODE: u16 = 0x1000;
/// Where a program's interrupt handler is.
pub(super) const HANDLER: u16 = 0x1800;
/// A word that programs read and write.
pub(super) const DATA: u16 = 0x3000;
/// The stack grows down from here.
pub(super) const STACK: u16 = 0x8000;
/// What user code in 64-bit mode needs, a page each: its GDT and TSS, the IDT, and the page tables.
const TABLES: u16 = 0x9000;
const USER_TSS: u16 = 0x9100;
const IDT: u16 = 0xa000;
const PAGING: u16 = 0xb000;
/// The top of its kernel's stack.
const KERNEL_STACK: u16 = 0x7000;
/// Where its handlers of all vectors but #DB are.
const OTHER_HANDLER: u16 = 0x1900;
/// How many steps may execute nothing before it is a failure.
const SPURIOUS_STEPS: u32 = 8;
/// All of a machine's memory: the interrupt vector table, code, data, stack and the tables of 64-bit mode.
const MEMORY: usize = 0x1_0000;
/// Where VMX keeps its task-state segment for real mode on CPUs that cannot run it themselves
/// (api.rst, `KVM_SET_TSS_ADDR`): three pages below 4 GiB that hold no memory.
const TSS: usize = 0xfffb_d000;

/// Selectors of the GDT in [`TABLES`].
const USER_DATA: u16 = 0x1b;
const USER_CODE: u16 = 0x23;
const TASK: u16 = 0x28;

/// What ends a case before it has shown that the ability works.
#[derive(Debug)]
pub(super) enum Stop {
    /// The ability does not work.
    Fails(Cow<'static, str>),
    /// What should have come did not, for as long as the guest waited. It counts as a failure, unless it comes when
    /// the case is tried again: a loaded host may be late.
    Late(Cow<'static, str>),
    /// The case showed nothing.
    Unclear(Cow<'static, str>),
}

impl Stop {
    /// The guest did something other than it should.
    pub(super) fn fails(what: impl Into<Cow<'static, str>>) -> Self {
        Self::Fails(what.into())
    }
}

/// Turns a refused call into a failure of the case.
pub(super) fn refused(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Stop {
    move |error| Stop::Fails(format!("{call}: {error}").into())
}

/// How a `KVM_RUN` ended, as owned data.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Debug {
        exception: u32,
        pc: u64,
        dr6: u64,
    },
    Out(u16),
    Hlt,
    IrqWindowOpen,
    Rdmsr(u32),
    Wrmsr(u32, u64),
    /// `EINTR`, and time had not run out.
    Interrupted,
    Other(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debug { exception, pc, dr6 } => write!(
                f,
                "KVM_EXIT_DEBUG exception {exception} at {pc:#x} with DR6 {dr6:#x}"
            ),
            Self::Out(port) => write!(f, "KVM_EXIT_IO at port {port:#x}"),
            Self::Hlt => f.write_str("KVM_EXIT_HLT"),
            Self::IrqWindowOpen => f.write_str("KVM_EXIT_IRQ_WINDOW_OPEN"),
            Self::Rdmsr(index) => write!(f, "KVM_EXIT_X86_RDMSR of {index:#x}"),
            Self::Wrmsr(index, value) => {
                write!(f, "KVM_EXIT_X86_WRMSR of {value:#x} to {index:#x}")
            }
            Self::Interrupted => f.write_str("EINTR"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// A throw-away VM. Dropping it frees the VM and its vCPUs.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    // Before the memory: the VM is dropped first, and the memory is mapped into it.
    pub(super) vm: VmFd,
    memory: GuestMemoryMmap,
    irqchip: IrqchipMode,
    next_vcpu: u8,
    kvm: &'a Kvm,
    clock: &'a Clock,
}

/// The bounds on the time of verification.
#[derive(Debug)]
pub(super) struct Clock {
    deadline: Deadline,
    one_run: Duration,
    end: Instant,
}

impl Clock {
    /// The bound on one `KVM_RUN`. A case that works takes 2 ms on the slowest KVM known.
    const ONE_RUN: Duration = Duration::from_millis(500);
    /// The bound on all of them.
    const ALL: Duration = Duration::from_secs(5);

    /// Starts the time that verification may take.
    pub(super) fn start() -> Result<Self, VerifyError> {
        Self::with_limits(Self::ONE_RUN, Self::ALL)
    }

    pub(super) fn with_limits(one_run: Duration, all: Duration) -> Result<Self, VerifyError> {
        Ok(Self {
            deadline: Deadline::new().map_err(failed("timer_create (ulimit -i limits it)"))?,
            one_run,
            end: now() + all,
        })
    }

    /// Doubles the bound on one run. Returns `false` if no time is left for all of them.
    pub(super) fn allow_more(&mut self) -> bool {
        self.one_run = self.one_run.saturating_mul(2);
        !self.left().is_zero()
    }

    /// Returns the bound on the next run.
    fn left(&self) -> Duration {
        self.end.saturating_duration_since(now()).min(self.one_run)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "verification bounds the time that it takes"
)]
fn now() -> Instant {
    Instant::now()
}

impl<'a> Machine<'a> {
    /// A VM with 64 KiB of memory, and with the local APICs in the kernel unless `irqchip` is
    /// [`IrqchipMode::User`].
    pub(super) fn new(
        kvm: &'a Kvm,
        irqchip: IrqchipMode,
        clock: &'a Clock,
    ) -> Result<Self, VerifyError> {
        let vm = loop {
            match kvm.create_vm() {
                // By a signal to this thread, while KVM registers the MMU notifier.
                Err(error) if error.errno() == libc::EINTR => {}
                result => break result.map_err(failed("KVM_CREATE_VM"))?,
            }
        };
        vm.set_tss_address(TSS)
            .map_err(failed("KVM_SET_TSS_ADDR"))?;
        match irqchip {
            IrqchipMode::Kernel => vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?,
            IrqchipMode::Split => {
                let mut capability = kvm_enable_cap {
                    cap: KVM_CAP_SPLIT_IRQCHIP,
                    ..Default::default()
                };
                // How many routes are kept for the IOAPIC.
                capability.args = [24, 0, 0, 0];
                vm.enable_cap(&capability)
                    .map_err(failed("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
            }
            IrqchipMode::User => {}
        }
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
            .map_err(|_| failed("mmap")(kvm_ioctls::Error::new(libc::ENOMEM)))?;
        let address = memory
            .get_host_address(GuestAddress(0))
            .map_err(|_| failed("mmap")(kvm_ioctls::Error::new(libc::EFAULT)))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: address as u64,
            flags: 0,
        };
        map(&vm, region).map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        Ok(Self {
            vm,
            memory,
            irqchip,
            next_vcpu: 0,
            kvm,
            clock,
        })
    }

    /// A fresh vCPU in real mode about to run `program`, with `handler` at interrupt `vector`.
    ///
    /// A vCPU for each case leaves nothing behind for the next: no pending exception, I/O or
    /// debug state.
    pub(super) fn vcpu(
        &mut self,
        program: &[u8],
        handler: Option<(u8, &[u8])>,
    ) -> Result<Guest<'_>, Stop> {
        let id = self.next_vcpu;
        self.next_vcpu = id.wrapping_add(1);
        self.write(CODE, program)?;
        if let Some((vector, code)) = handler {
            self.handle(vector, HANDLER, code)?;
        }
        self.write(DATA, &[0; 64])?;
        self.write(STACK - 64, &[0; 64])?;

        let vcpu = self
            .vm
            .create_vcpu(u64::from(id))
            .map_err(refused("KVM_CREATE_VCPU"))?;
        self.clock
            .deadline
            .guard(&vcpu)
            .map_err(refused("KVM_SET_SIGNAL_MASK"))?;
        let mut sregs = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        // All other segments are at 0 after a reset (SDM 3A table 11-1).
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpu.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))?;
        vcpu.set_regs(&kvm_regs {
            rip: u64::from(CODE),
            rsp: u64::from(STACK),
            // Bit 1 is always set.
            rflags: 2,
            ..Default::default()
        })
        .map_err(refused("KVM_SET_REGS"))?;
        if self.irqchip != IrqchipMode::User {
            // Without this all vCPUs but the first wait for INIT.
            vcpu.set_mp_state(kvm_mp_state {
                mp_state: KVM_MP_STATE_RUNNABLE,
            })
            .map_err(refused("KVM_SET_MP_STATE"))?;
        }
        Ok(Guest {
            vcpu,
            id,
            machine: self,
        })
    }

    /// A fresh vCPU about to run `program` at CPL3 in 64-bit mode. Its handler of #DB writes to port
    /// 0x83, all others write to port 0x84.
    pub(super) fn user_vcpu(&mut self, program: &[u8]) -> Result<Guest<'_>, Stop> {
        self.write_user_tables()?;
        let supported = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("KVM_GET_SUPPORTED_CPUID"))?;
        let guest = self.vcpu(program, None)?;
        let vcpu = &guest.vcpu;
        vcpu.set_cpuid2(&supported)
            .map_err(refused("KVM_SET_CPUID2"))?;
        let mut sregs = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        let flat = kvm_segment {
            limit: u32::MAX,
            selector: USER_DATA,
            type_: 3,
            present: 1,
            dpl: 3,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        for segment in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *segment = flat;
        }
        sregs.cs = kvm_segment {
            selector: USER_CODE,
            type_: 0xb,
            db: 0,
            l: 1,
            ..flat
        };
        sregs.tr = kvm_segment {
            base: u64::from(USER_TSS),
            limit: 0x67,
            selector: TASK,
            // Busy.
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        sregs.gdt.base = u64::from(TABLES);
        sregs.gdt.limit = 0x37;
        sregs.idt.base = u64::from(IDT);
        sregs.idt.limit = 0x1ff;
        // PG, WP, NE, ET and PE; PAE; LMA and LME (SDM 3A 10.8.5).
        sregs.cr0 = 0x8001_0031;
        sregs.cr3 = u64::from(PAGING);
        sregs.cr4 = 0x20;
        sregs.efer = 0x500;
        vcpu.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))?;
        Ok(guest)
    }

    /// GDT, TSS, IDT and page tables of 64-bit mode, and the handlers (SDM 3A 3.5, 5.5, 6.14, 8.7).
    fn write_user_tables(&self) -> Result<(), Stop> {
        let write = |address: u16, words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.write(address, &bytes)
        };
        let tss = u64::from(USER_TSS);
        write(
            TABLES,
            &[
                0,
                0x00af_9b00_0000_ffff, // 08: code of CPL0
                0x00cf_9300_0000_ffff, // 10: data of CPL0
                0x00cf_f300_0000_ffff, // 18: data of CPL3
                0x00af_fb00_0000_ffff, // 20: code of CPL3
                0x0000_8b00_0000_0067 | tss << 16,
                0,
            ],
        )?;
        self.write(USER_TSS, &[0; 0x68])?;
        // RSP0.
        write(USER_TSS + 4, &[u64::from(KERNEL_STACK)])?;
        for vector in 0..32 {
            let handler = if vector == 1 { HANDLER } else { OTHER_HANDLER };
            // An interrupt gate to selector 8.
            let gate = u64::from(handler) | 0x8e00_0008_0000;
            write(IDT + 16 * vector, &[gate, 0])?;
        }
        // out 0x83, al; hlt
        self.write(HANDLER, &[0xe6, 0x83, 0xf4])?;
        self.write(OTHER_HANDLER, &[0xe6, 0x84, 0xf4])?;
        // Present, writable, user, accessed, dirty.
        const ALL: u64 = 0x67;
        let paging = u64::from(PAGING);
        write(PAGING, &[(paging + 0x1000) | ALL])?;
        write(PAGING + 0x1000, &[(paging + 0x2000) | ALL])?;
        write(PAGING + 0x2000, &[(paging + 0x3000) | ALL])?;
        let pages: Vec<u64> = (0..16).map(|page| page << 12 | ALL).collect();
        write(PAGING + 0x3000, &pages)
    }

    /// Puts `code` at `address` and points interrupt `vector` at it (SDM 3A 21.1.4: four bytes
    /// each, offset then segment).
    pub(super) fn handle(&self, vector: u8, address: u16, code: &[u8]) -> Result<(), Stop> {
        self.write(address, code)?;
        let [low, high] = address.to_le_bytes();
        self.write(u16::from(vector) * 4, &[low, high, 0, 0])
    }

    fn write(&self, address: u16, bytes: &[u8]) -> Result<(), Stop> {
        self.memory
            .write_slice(bytes, GuestAddress(u64::from(address)))
            .map_err(|error| Stop::Unclear(format!("guest memory: {error}").into()))
    }
}

/// One vCPU of a throw-away VM.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) vcpu: VcpuFd,
    /// Also its APIC id.
    pub(super) id: u8,
    machine: &'a Machine<'a>,
}

impl Guest<'_> {
    /// The VM it is in.
    pub(super) fn vm(&self) -> &VmFd {
        &self.machine.vm
    }

    /// Sets the debug state, also if it is in force: that arms a step again.
    pub(super) fn debug(&mut self, intent: &DebugIntent<'_>) -> Result<(), Stop> {
        set_guest_debug(&self.vcpu, &GuestDebug::compose(intent))
            .map_err(|error| Stop::Fails(format!("{error}").into()))
    }

    /// Runs until the guest exits, or until the time is over.
    pub(super) fn run(&mut self) -> Result<Exit, Stop> {
        let clock = self.machine.clock;
        let left = clock.left();
        if left.is_zero() {
            return Err(Stop::Unclear("no time was left to verify it".into()));
        }
        clock
            .deadline
            .arm(left)
            .map_err(|error| Stop::Unclear(format!("timer_settime: {error}").into()))?;
        let exit = match self.vcpu.run() {
            Ok(exit) => owned(exit),
            Err(error) if error.errno() == libc::EINTR => Exit::Interrupted,
            Err(error) => Exit::Other(format!("KVM_RUN: {error}")),
        };
        let time_ran_out = clock.deadline.disarm();
        match exit {
            Exit::Interrupted if time_ran_out => Err(Stop::Unclear(
                format!("KVM_RUN did not return within {} ms", left.as_millis()).into(),
            )),
            Exit::Other(what) if what == INTERNAL_ERROR => Ok(Exit::Other(format!(
                "{INTERNAL_ERROR} suberror {}",
                suberror(&mut self.vcpu)
            ))),
            exit => Ok(exit),
        }
    }

    /// Runs, and fails unless the guest exits exactly so.
    pub(super) fn expect(&mut self, wanted: &Exit) -> Result<(), Stop> {
        let exit = self.run()?;
        if exit == *wanted {
            Ok(())
        } else {
            Err(Stop::fails(format!("{exit} in place of {wanted}")))
        }
    }

    /// Runs one instruction, with the rest of the debug state as `intent` says.
    ///
    /// An emulated CPU may report a step that has executed nothing (Bochs does when the step first
    /// touches a page): the step is armed again. No stepped program has a jump to itself.
    pub(super) fn step(&mut self, intent: &DebugIntent<'_>) -> Result<Exit, Stop> {
        let before = self.regs()?.rip;
        let intent = DebugIntent {
            single_step: true,
            ..*intent
        };
        for _ in 0..SPURIOUS_STEPS {
            self.debug(&intent)?;
            match self.run()? {
                Exit::Debug { pc, .. } if pc == before => {}
                exit => return Ok(exit),
            }
        }
        Err(Stop::fails(format!(
            "{SPURIOUS_STEPS} steps in a row executed nothing at {before:#x}"
        )))
    }

    /// The general registers.
    pub(super) fn regs(&self) -> Result<kvm_regs, Stop> {
        self.vcpu.get_regs().map_err(refused("KVM_GET_REGS"))
    }

    /// A byte of memory.
    pub(super) fn byte(&self, address: u16) -> Result<u8, Stop> {
        self.machine
            .memory
            .read_obj(GuestAddress(u64::from(address)))
            .map_err(|error| Stop::Unclear(format!("guest memory: {error}").into()))
    }

    /// A little-endian word of memory.
    pub(super) fn word(&self, address: u16) -> Result<u16, Stop> {
        Ok(u16::from_le_bytes([
            self.byte(address)?,
            self.byte(address.wrapping_add(1))?,
        ]))
    }
}

const INTERNAL_ERROR: &str = "KVM_EXIT_INTERNAL_ERROR";

fn owned(exit: VcpuExit<'_>) -> Exit {
    match exit {
        VcpuExit::Debug(debug) => Exit::Debug {
            exception: debug.exception,
            pc: debug.pc,
            dr6: debug.dr6,
        },
        VcpuExit::IoOut(port, _) => Exit::Out(port),
        VcpuExit::Hlt => Exit::Hlt,
        VcpuExit::IrqWindowOpen => Exit::IrqWindowOpen,
        VcpuExit::X86Rdmsr(exit) => {
            *exit.data = super::host::MSR_ANSWER;
            *exit.error = 0;
            Exit::Rdmsr(exit.index)
        }
        VcpuExit::X86Wrmsr(exit) => {
            *exit.error = 0;
            Exit::Wrmsr(exit.index, exit.data)
        }
        VcpuExit::Intr => Exit::Interrupted,
        VcpuExit::InternalError => Exit::Other(INTERNAL_ERROR.into()),
        VcpuExit::Shutdown => Exit::Other("KVM_EXIT_SHUTDOWN".into()),
        other => Exit::Other(format!("{other:?}")),
    }
}

/// Returns KVM's suberror. Call it only after `KVM_EXIT_INTERNAL_ERROR`.
fn suberror(vcpu: &mut VcpuFd) -> u32 {
    #[expect(unsafe_code, reason = "kvm_run holds its exits in a union")]
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so KVM wrote this member; any bits are
    // a valid u32.
    unsafe {
        vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror
    }
}

fn map(vm: &VmFd, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
    #[expect(unsafe_code, reason = "KVM cannot know that the mapping lives")]
    // SAFETY: the region is one whole mapping of the Machine's GuestMemoryMmap, which nothing
    // else refers to, and which the Machine drops after the VM.
    unsafe {
        vm.set_user_memory_region(region)
    }
}

pub(super) fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VerifyError {
    move |source| VerifyError { call, source }
}

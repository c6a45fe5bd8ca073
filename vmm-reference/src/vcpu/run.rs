//! One vCPU and its run loop: `KVM_RUN`, and its exits.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use debug_stub::kvm::{self, KvmError, KvmVcpu};
use debug_stub::x86_64::stepper::{Next, Outcome, Stepper, StepperError};
use debug_stub::x86_64::{RegisterFile, RegisterGroups};
use debug_stub::{Armed, GuestMemory, StopReason, VcpuId, VcpuOrder};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vcpu_caps::Plan;

use super::exits::Exits;
use super::stats::{Returned, VcpuStats};
use super::with_chips::WithChips;
use crate::entry::{Entering, MustStop, Permit};
use crate::irqchip::Irqchip;

/// What to do when a run must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnStop {
    /// The order is over: [`StopReason::Interrupted`].
    Interrupt,
    /// Only this thread's time with the vCPU is over: [`RunEnd::Yielded`].
    Yield,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// The vCPU has stopped.
    Stopped(StopReason),
    /// The order is not done. Call [`Vcpu::run`] again with the same order, on any thread, and do not
    /// touch the vCPU before that.
    Yielded,
}

/// One vCPU under a debugger.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    stepper: Stepper,
    irqchip: Irqchip,
    stats: VcpuStats,
    /// What the next run does first, after one that yielded.
    pending: Option<Next>,
}

impl Vcpu {
    /// A vCPU of a machine with these interrupt chips, which nothing else runs or debugs.
    #[must_use]
    pub fn new(id: VcpuId, fd: VcpuFd, plan: &Plan, irqchip: Irqchip) -> Self {
        Self {
            fd,
            stepper: Stepper::new(id, plan),
            irqchip,
            stats: VcpuStats::default(),
            pending: None,
        }
    }

    /// The stepper, and the vCPU as it reads and writes it.
    fn parts(&mut self) -> (&mut Stepper, WithChips<'_, KvmVcpu<'_>>) {
        let Self {
            fd,
            stepper,
            irqchip,
            ..
        } = self;
        let vcpu = WithChips::new(stepper.id(), KvmVcpu(fd), irqchip.chips());
        (stepper, vcpu)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.stepper.id()
    }

    /// The descriptor, for what this type does not do.
    #[must_use]
    pub fn fd(&mut self) -> &VcpuFd {
        self.stepper.forget_registers(&mut KvmVcpu(&mut self.fd));
        &self.fd
    }

    /// What it has done.
    pub(crate) fn stats(&self) -> VcpuStats {
        self.stats
    }

    /// Returns `true` if hardware interrupts are withheld.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.stepper.is_masked()
    }

    /// Returns `true` if its last step may have run a handler that it did not stop at.
    #[must_use]
    pub fn is_unguarded(&self) -> bool {
        self.stepper.is_unguarded()
    }

    /// What it waits for, in a few words; `None` if it runs code, or KVM does not say.
    #[must_use]
    pub fn waiting(&mut self) -> Option<&'static str> {
        let (stepper, mut vcpu) = self.parts();
        let state = stepper.run_state(&mut vcpu);
        state.ok().and_then(|state| state.waits())
    }

    /// Disarms everything and drops the debugger's holds. The guest's own TF is restored, and what a step has
    /// written into `memory` is taken out.
    ///
    /// # Errors
    /// If KVM refuses, twice.
    pub fn release(&mut self, memory: &impl GuestMemory) -> Result<(), StepperError<KvmError>> {
        self.pending = None;
        let (stepper, mut vcpu) = self.parts();
        stepper.release(&mut vcpu, memory)
    }

    /// Fills the `groups` of `file`.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn read_registers(
        &mut self,
        groups: RegisterGroups,
        file: &mut RegisterFile,
    ) -> Result<(), StepperError<KvmError>> {
        let (stepper, mut vcpu) = self.parts();
        stepper.read_registers(groups, file, &mut vcpu)
    }

    /// Sets the `groups` from `file`.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn write_registers(
        &mut self,
        groups: RegisterGroups,
        file: &RegisterFile,
    ) -> Result<(), StepperError<KvmError>> {
        let (stepper, mut vcpu) = self.parts();
        stepper.write_registers(groups, file, &mut vcpu)
    }

    /// Reads an MSR, for the debugger's user.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn read_msr(&mut self, number: u32) -> Result<u64, StepperError<KvmError>> {
        let (stepper, mut vcpu) = self.parts();
        stepper.read_msr(number, &mut vcpu)
    }

    /// Writes an MSR, for the debugger's user.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn write_msr(&mut self, number: u32, value: u64) -> Result<(), StepperError<KvmError>> {
        let (stepper, mut vcpu) = self.parts();
        stepper.write_msr(number, value, &mut vcpu)
    }

    /// Runs on the calling thread until the order is done, `must_stop` is true, or the guest cannot go
    /// on.
    ///
    /// The request to stop comes first, then the signal to this thread, whose handler sets
    /// `immediate_exit`: see [`kick`](super::kick). No kick is lost, because `immediate_exit` is cleared
    /// *before* `must_stop` is called.
    ///
    /// On return nothing is half done: an access is completed, and the registers are what the guest
    /// goes on with.
    pub(super) fn run(
        &mut self,
        order: &VcpuOrder,
        armed: &Arc<Armed>,
        machine: (&impl Exits, &impl GuestMemory),
        must_stop: &MustStop<'_>,
        on_stop: OnStop,
    ) -> RunEnd {
        let (exits, memory) = machine;
        let mut next = match self.pending.take() {
            Some(next) => next,
            None => {
                let (stepper, mut vcpu) = self.parts();
                stepper.start(order, armed, &mut vcpu, memory)
            }
        };
        loop {
            let entered = match next {
                Next::Stopped(reason) => return RunEnd::Stopped(reason),
                Next::Complete => Entered::Ran(self.complete(exits)),
                Next::Enter => self.enter(exits, must_stop),
            };
            let (stepper, mut vcpu) = self.parts();
            next = match entered {
                Entered::Ran(outcome) => stepper.ran(outcome, &mut vcpu, memory),
                Entered::MustStop if on_stop == OnStop::Interrupt => {
                    stepper.interrupt(&mut vcpu, memory)
                }
                Entered::NothingToRun if on_stop == OnStop::Interrupt => {
                    exits.wait(stepper.id(), must_stop);
                    Next::Enter
                }
                Entered::NotPrepared => stepper.start(order, armed, &mut vcpu, memory),
                // The vCPU's own thread waits, not the thread of an inline step.
                Entered::MustStop | Entered::NothingToRun => {
                    self.pending = Some(Next::Enter);
                    return RunEnd::Yielded;
                }
            };
        }
    }

    /// Enters the guest, if it is not to stop and the chips permit it.
    fn enter(&mut self, exits: &impl Exits, must_stop: &MustStop<'_>) -> Entered {
        self.fd.set_kvm_immediate_exit(0);
        fence(Ordering::SeqCst);
        if must_stop() {
            return Entered::MustStop;
        }
        let masked = self.stepper.is_masked();
        let entering = Entering {
            masked,
            stepping: self.stepper.is_stepping(),
            reads_clock: self.stepper.may_read_clock(),
            incomplete: self.stepper.is_incomplete(),
            prepared: self.stepper.prepared_event().filter(|_| !masked),
        };
        match exits.before_entry(self.stepper.id(), &mut self.fd, entering) {
            Permit::Enter => {
                self.stats.enters(&entering);
                Entered::Ran(self.run_once(exits, false))
            }
            Permit::Wait => Entered::NothingToRun,
            Permit::Complete => Entered::Ran(self.complete(exits)),
            Permit::Restarted => Entered::Ran(Outcome::Restarted),
            Permit::PrepareAgain => Entered::NotPrepared,
            Permit::Failed(text) => Entered::Ran(Outcome::Fatal(StopReason::InternalError(text))),
        }
    }

    /// Lets KVM complete an access, and run no instruction.
    fn complete(&mut self, exits: &impl Exits) -> Outcome {
        self.fd.set_kvm_immediate_exit(1);
        self.run_once(exits, true)
    }

    /// One `KVM_RUN`. Serves its exit. `completes`: it is only to complete an access.
    fn run_once(&mut self, exits: &impl Exits, completes: bool) -> Outcome {
        let id = self.stepper.id();
        let mut written = None;
        let cr8: *const u64 = &raw const self.fd.get_kvm_run().cr8;
        let exit = self.fd.run();
        self.stats.returns(Returned::of(&exit, completes));
        // SAFETY: it is in this vCPU's mapped run structure; KVM_RUN has returned, so nothing writes
        // it, and it is not what `exit` refers to.
        let cr8 = unsafe { cr8.read_volatile() };
        exits.after_exit(id, cr8);
        let outcome = match exit {
            Ok(VcpuExit::IoIn(..)) => self.serve_port(|port, data| exits.io_in(port, data)),
            Ok(VcpuExit::IoOut(..)) => self.serve_port(|port, data| exits.io_out(port, data)),
            Ok(VcpuExit::MmioRead(address, data)) => {
                exits.mmio_read(id, address, data);
                Outcome::Served
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                exits.mmio_write(id, address, data);
                Outcome::Served
            }
            Ok(VcpuExit::X86Rdmsr(read)) => {
                match exits.read_msr(id, read.index) {
                    Some(value) => *read.data = value,
                    None => *read.error = 1,
                }
                Outcome::Served
            }
            Ok(VcpuExit::X86Wrmsr(write)) => {
                written = Some((write.index, write.data));
                Outcome::Served
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                exits.end_of_interrupt(&self.fd, vector);
                Outcome::Nothing
            }
            Ok(VcpuExit::Hlt) => {
                exits.halted(id);
                Outcome::Halted
            }
            Ok(VcpuExit::InternalError) => kvm::internal_error(&mut self.fd),
            Ok(exit) => kvm::outcome(&exit),
            Err(error) => kvm::failed_run(error),
        };
        if let Some((index, value)) = written {
            let taken = exits.write_msr(id, &self.fd, index, value);
            self.answer_wrmsr(taken);
        }
        match outcome {
            Outcome::Served => exits.ended().map_or(Outcome::Served, Outcome::Fatal),
            outcome => outcome,
        }
    }

    /// Completes a `KVM_EXIT_X86_WRMSR`: with #GP if the write is refused.
    fn answer_wrmsr(&mut self, taken: bool) {
        let run = self.fd.get_kvm_run();
        // SAFETY: `run` is this vCPU's mapped run structure, borrowed mutably through `self`; `msr` is
        // the active member, since KVM_RUN has just returned KVM_EXIT_X86_WRMSR, and is made of integers.
        let msr = unsafe { &mut run.__bindgen_anon_1.msr };
        msr.error = u8::from(!taken);
    }

    /// Serves the port access that the run structure describes, one element at a time: a REP
    /// INS/OUTS brings several of them.
    fn serve_port(&mut self, serve: impl Fn(u16, &mut [u8])) -> Outcome {
        let run = self.fd.get_kvm_run();
        // SAFETY: `run` is this vCPU's mapped run structure, borrowed mutably through `self`, and
        // `io` is the active member: KVM_RUN has just returned KVM_EXIT_IO, the precondition of this
        // function.
        let io = unsafe { run.__bindgen_anon_1.io };
        let size = usize::from(io.size);
        let total = size.saturating_mul(io.count as usize);
        let Ok(offset) = usize::try_from(io.data_offset) else {
            return Outcome::Fatal(StopReason::InternalError(format!(
                "KVM_EXIT_IO with its data at {:#x}, outside the run structure",
                io.data_offset
            )));
        };
        // SAFETY: KVM places `size * count` bytes of data `data_offset` bytes into the mapping of
        // KVM_GET_VCPU_MMAP_SIZE bytes (api.rst 5), which lives as long as `self.fd`.
        let start = unsafe { core::ptr::from_mut(run).cast::<u8>().add(offset) };
        // SAFETY: as above; nothing else refers to these bytes while `self` is borrowed.
        let data = unsafe { core::slice::from_raw_parts_mut(start, total) };
        for element in data.chunks_exact_mut(size.max(1)) {
            serve(io.port, element);
        }
        Outcome::Served
    }
}

/// The result of an attempt to enter the guest.
enum Entered {
    Ran(Outcome),
    /// The vCPU is to stop.
    MustStop,
    /// It waits for an interrupt; the local APICs are emulated.
    NothingToRun,
    /// An event is to enter that the step is not prepared for.
    NotPrepared,
}

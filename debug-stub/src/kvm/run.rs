//! `KVM_RUN`: entering the guest, and serving what makes it come back.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_debug_exit_arch,
};
use kvm_ioctls::VcpuExit;

use super::debug_exit::DebugExit;
use super::exits::{Entering, ExitHandler, Permit, UserInterrupts, place, suberror_name};
use super::registers::{core_from_kvm, special_from_kvm};
use super::vcpu::{DebugVcpu, RFLAGS_TF};
use crate::host::GuestMemory;
use crate::order::{Armed, StopReason, VcpuOrder};
use crate::x86_64::{RegisterFile, RegisterGroups};

/// What a vCPU runs in.
#[derive(Debug)]
pub struct Environment<'a, E, M> {
    /// The VMM's devices.
    pub exits: &'a E,
    /// The guest's memory.
    pub memory: &'a M,
    /// Set (`Release`) by whoever wants the vCPU to stop, who then sends its thread a signal
    /// whose handler sets `kvm_run.immediate_exit` of that thread's vCPU. In this order no kick
    /// is lost: [`DebugVcpu::run`] clears `immediate_exit` *before* it looks here.
    pub stop: &'a AtomicBool,
    /// What `stop` means.
    pub on_stop: OnStop,
}

/// What a set [`Environment::stop`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// The order is over: [`StopReason::Interrupted`].
    Interrupt,
    /// Only this thread's turn is over: [`RunEnd::Yielded`].
    Yield,
}

/// What a run has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// The vCPU has stopped.
    Stopped(StopReason),
    /// The order is not done: call [`DebugVcpu::run`] again with the same one, on any thread, and
    /// do not touch the vCPU before.
    Yielded,
}

/// What one `KVM_RUN` came back with.
#[derive(Debug)]
pub(super) enum Entry {
    /// A stop was asked for, and the registers are consistent.
    Kicked,
    /// A device access was served: KVM completes it on the next entry.
    Served,
    /// Nothing happened: a signal, or an AP that waits.
    Nothing,
    /// HLT left the guest: only with a userspace local APIC.
    Halted,
    /// INIT or a start-up IPI has replaced the registers.
    Restarted,
    /// `KVM_EXIT_DEBUG`.
    Debug(kvm_debug_exit_arch),
    /// The run is over.
    Stop(StopReason),
}

impl DebugVcpu {
    /// Runs the vCPU on the calling thread until the order is done, `environment.stop` is set, or
    /// the guest cannot go on. Answers which.
    ///
    /// On return nothing is half done: a device access is completed, and the registers are what
    /// the guest will resume with.
    pub fn run<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        order: &VcpuOrder,
        armed: &Armed,
        environment: &Environment<'_, E, M>,
    ) -> RunEnd {
        if let Some(over) = &self.over {
            return RunEnd::Stopped(over.clone());
        }
        let end = match order {
            VcpuOrder::Stay => RunEnd::Stopped(StopReason::Interrupted),
            VcpuOrder::Continue => match self.run_free(armed, environment) {
                StopReason::Interrupted if environment.on_stop == OnStop::Yield => RunEnd::Yielded,
                reason => RunEnd::Stopped(reason),
            },
            VcpuOrder::Step(order) => self.run_steps(order, armed, environment),
        };
        // An internal error is not the end: a debugger may move RIP past what KVM cannot do. After
        // a triple fault kvm_amd has reset the vCPU, and there is nothing to go on with.
        if let RunEnd::Stopped(reason @ (StopReason::TripleFault(_) | StopReason::Exited(_))) = &end
        {
            self.over = Some(reason.clone());
        }
        end
    }

    /// Runs until something stops the vCPU.
    fn run_free<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        armed: &Armed,
        environment: &Environment<'_, E, M>,
    ) -> StopReason {
        if let Err(error) = self.intend_free(armed).and_then(|()| self.arm()) {
            return error.stop();
        }
        loop {
            match self.enter(environment) {
                Entry::Kicked => return StopReason::Interrupted,
                Entry::Served | Entry::Nothing | Entry::Halted | Entry::Restarted => {}
                Entry::Stop(reason) => return reason,
                Entry::Debug(exit) => {
                    match self.classify(&exit, false, armed, environment.memory) {
                        DebugExit::Hit(reason) => return reason,
                        // Not asked for: KVM reports a trap only while a step is armed, or for the
                        // guest's own TF, which `classify` tells apart.
                        DebugExit::Trap => {}
                        DebugExit::Guest => {
                            if let Err(error) = self.arm() {
                                return error.stop();
                            }
                        }
                    }
                }
            }
        }
    }

    /// One `KVM_RUN`, with what it asks for served.
    pub(super) fn enter<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        environment: &Environment<'_, E, M>,
    ) -> Entry {
        self.fd.set_kvm_immediate_exit(0);
        // The handler that sets immediate_exit runs on this thread: only the compiler could
        // reorder the clearing with the look at `stop`.
        compiler_fence(Ordering::SeqCst);
        if environment.stop.load(Ordering::Acquire) {
            return if self.incomplete {
                self.complete(environment)
            } else {
                Entry::Kicked
            };
        }
        let entering = Entering {
            masked: self.is_masked(),
            stepping: self.stepping,
            incomplete: self.incomplete,
        };
        let exits = environment.exits;
        match exits.before_entry(self.id, &mut self.fd, entering) {
            Permit::Enter => self.run_once(environment),
            // Its own thread waits, not the one whose turn it is.
            Permit::Wait if environment.on_stop == OnStop::Yield => Entry::Kicked,
            Permit::Wait => {
                exits.wait(self.id, environment.stop);
                Entry::Nothing
            }
            Permit::Complete => match self.complete(environment) {
                Entry::Kicked => Entry::Nothing,
                other => other,
            },
            Permit::Restarted => {
                self.forget_registers();
                Entry::Restarted
            }
            Permit::Failed(text) => {
                let reason = StopReason::InternalError(text);
                Entry::Stop(self.explain(reason, environment.memory))
            }
        }
    }

    /// Lets KVM complete a served device access without running the guest further.
    ///
    /// Answers [`Entry::Kicked`] once the registers are consistent, or [`Entry::Debug`] if the
    /// completion was the end of a step.
    pub(super) fn complete<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        environment: &Environment<'_, E, M>,
    ) -> Entry {
        loop {
            self.fd.set_kvm_immediate_exit(1);
            match self.run_once(environment) {
                // An emulated REP INS/OUTS asks again for each chunk before it is done.
                Entry::Served => {}
                Entry::Nothing | Entry::Kicked => return Entry::Kicked,
                other => return other,
            }
        }
    }

    fn run_once<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        environment: &Environment<'_, E, M>,
    ) -> Entry {
        self.cached = None;
        self.mp_state = KVM_MP_STATE_RUNNABLE;
        self.incomplete = false;
        let exits = environment.exits;
        let mut written = None;
        let cr8: *const u64 = &raw const self.fd.get_kvm_run().cr8;
        let exit = self.fd.run();
        #[expect(unsafe_code, reason = "the exit lends the vCPU")]
        // SAFETY: it is in this vCPU's mapped run structure; KVM_RUN has returned, so nobody writes it,
        // and it is not what `exit` refers to.
        let cr8 = unsafe { cr8.read_volatile() };
        exits.after_exit(self.id, cr8);
        let entry = match exit {
            Ok(VcpuExit::IoIn(..)) => self.serve_io(Direction::In, environment.exits),
            Ok(VcpuExit::IoOut(..)) => self.serve_io(Direction::Out, environment.exits),
            Ok(VcpuExit::MmioRead(address, data)) => {
                if !exits.local_read(self.id, address, data) {
                    exits.mmio_read(address, data);
                }
                Entry::Served
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if !exits.local_write(self.id, address, data) {
                    exits.mmio_write(address, data);
                }
                Entry::Served
            }
            Ok(VcpuExit::X86Rdmsr(read)) => {
                match exits.read_msr(self.id, read.index) {
                    Some(value) => *read.data = value,
                    None => *read.error = 1,
                }
                Entry::Served
            }
            Ok(VcpuExit::X86Wrmsr(write)) => {
                written = Some((write.index, write.data));
                Entry::Served
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                exits.end_of_interrupt(self.id, &self.fd, vector);
                Entry::Nothing
            }
            Ok(VcpuExit::Debug(exit)) => Entry::Debug(exit),
            Ok(VcpuExit::Hlt) => {
                exits.halted(self.id);
                Entry::Halted
            }
            // In place of the trap of a stepped MOV to CR8 (vmx.c, `handle_cr`): as after a device
            // access, RIP tells that it is done.
            Ok(VcpuExit::SetTpr) => Entry::Served,
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Entry::Nothing,
            Ok(VcpuExit::Shutdown) => Entry::Stop(StopReason::TripleFault(String::new())),
            Ok(VcpuExit::InternalError) => Entry::Stop(StopReason::InternalError(String::new())),
            Ok(VcpuExit::SystemEvent(event, _)) => Entry::Stop(system_event(event)),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                Entry::Stop(StopReason::InternalError(format!(
                    "KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest \
                     (reason {reason:#x}, host CPU {cpu})"
                )))
            }
            Ok(other) => Entry::Stop(StopReason::InternalError(format!(
                "KVM_RUN ended with an exit that this VMM does not serve: {other:?}"
            ))),
            // EAGAIN: an AP that has just accepted INIT or SIPI (`kvm_arch_vcpu_ioctl_run`).
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Entry::Nothing,
            Err(error) => Entry::Stop(StopReason::InternalError(format!(
                "KVM_RUN failed: {}",
                io::Error::from(error)
            ))),
        };
        if let Some((index, value)) = written {
            let taken = exits.write_msr(self.id, &self.fd, index, value);
            self.answer_wrmsr(taken);
        }
        if self.sync_regs && self.stepping {
            self.cache_synced();
        }
        match entry {
            Entry::Served => {
                self.incomplete = true;
                match environment.exits.exited() {
                    Some(status) => Entry::Stop(StopReason::Exited(status)),
                    None => Entry::Served,
                }
            }
            Entry::Stop(reason) => Entry::Stop(self.explain(reason, environment.memory)),
            other => other,
        }
    }

    /// Answers a `KVM_EXIT_X86_WRMSR`: with #GP if the write is not taken.
    fn answer_wrmsr(&mut self, taken: bool) {
        let run = self.fd.get_kvm_run();
        #[expect(unsafe_code, reason = "kvm-ioctls lends the vCPU to the exit")]
        // SAFETY: `run` is this vCPU's mapped run structure, borrowed mutably through `self`; `msr` is
        // the active member, since KVM_EXIT_X86_WRMSR was just answered, and is made of integers.
        let msr = unsafe { &mut run.__bindgen_anon_1.msr };
        msr.error = u8::from(!taken);
    }

    /// Takes the registers that came with the exit.
    fn cache_synced(&mut self) {
        let synced = self.fd.sync_regs();
        let mut file = Box::<RegisterFile>::default();
        file.core = core_from_kvm(&synced.regs);
        file.special = special_from_kvm(&synced.sregs);
        if self.guest_tf == Some(true) {
            file.core.rflags |= RFLAGS_TF;
        }
        self.cached = Some(file);
    }

    /// Serves the port access that the run structure describes, one element at a time: a REP
    /// INS/OUTS brings several of them.
    fn serve_io(&mut self, direction: Direction, exits: &impl ExitHandler) -> Entry {
        let run = self.fd.get_kvm_run();
        #[expect(
            unsafe_code,
            reason = "kvm-ioctls does not tell the size of one element"
        )]
        // SAFETY: `run` is this vCPU's mapped run structure, borrowed mutably through `self`, and
        // `io` is the active member: KVM_EXIT_IO was just answered, the precondition of this
        // function.
        let io = unsafe { run.__bindgen_anon_1.io };
        let size = usize::from(io.size);
        let total = size.saturating_mul(io.count as usize);
        let Ok(offset) = usize::try_from(io.data_offset) else {
            return Entry::Stop(StopReason::InternalError(format!(
                "KVM_EXIT_IO with its data at {:#x}, outside the run structure",
                io.data_offset
            )));
        };
        #[expect(unsafe_code, reason = "the data lies behind the run structure")]
        // SAFETY: KVM places `size * count` bytes of data `data_offset` bytes into the mapping of
        // KVM_GET_VCPU_MMAP_SIZE bytes (api.rst 5), which lives as long as `self.fd`.
        let start = unsafe { core::ptr::from_mut(run).cast::<u8>().add(offset) };
        #[expect(unsafe_code, reason = "as above")]
        // SAFETY: as above; nothing else refers to these bytes while `self` is borrowed.
        let data = unsafe { core::slice::from_raw_parts_mut(start, total) };
        for element in data.chunks_exact_mut(size.max(1)) {
            match direction {
                Direction::In => exits.io_in(io.port, element),
                Direction::Out => exits.io_out(io.port, element),
            }
        }
        Entry::Served
    }

    /// Adds to a fatal stop what is known of it, and of where the vCPU is.
    fn explain(&mut self, reason: StopReason, memory: &impl GuestMemory) -> StopReason {
        let mut file = RegisterFile::default();
        let place = match self.read_registers(RegisterGroups::EXPEDITED, &mut file) {
            Ok(()) => place(&file, memory),
            Err(error) => format!("at an unknown place: {error}"),
        };
        let id = self.id;
        match reason {
            StopReason::TripleFault(_) => {
                StopReason::TripleFault(format!("{id}: triple fault {place}"))
            }
            StopReason::InternalError(text) if text.is_empty() => {
                let suberror = self.suberror();
                StopReason::InternalError(format!(
                    "{id}: KVM_EXIT_INTERNAL_ERROR suberror {suberror} ({}) {place}",
                    suberror_name(suberror)
                ))
            }
            StopReason::InternalError(text) => {
                StopReason::InternalError(format!("{id}: {text} {place}"))
            }
            other => other,
        }
    }

    /// `kvm_run.internal.suberror`, after a `KVM_EXIT_INTERNAL_ERROR`.
    fn suberror(&mut self) -> u32 {
        let run = self.fd.get_kvm_run();
        #[expect(unsafe_code, reason = "kvm-ioctls does not tell the suberror")]
        // SAFETY: `run` is this vCPU's mapped run structure, and every bit pattern of the
        // member's integers is valid, whichever member of the union is active.
        unsafe {
            run.__bindgen_anon_1.internal.suberror
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    In,
    Out,
}

/// `KVM_EXIT_SYSTEM_EVENT` (api.rst 5): x86 KVM itself sends only crashes of Hyper-V guests.
fn system_event(event: u32) -> StopReason {
    match event {
        KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET => StopReason::Exited(0),
        KVM_SYSTEM_EVENT_CRASH => {
            StopReason::InternalError("the guest reported that it crashed".to_owned())
        }
        other => StopReason::InternalError(format!("KVM_EXIT_SYSTEM_EVENT of type {other}")),
    }
}

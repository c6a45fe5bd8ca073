//! One KVM vCPU under a debugger.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_debug_exit_arch,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use vcpu_caps::kvm::{SetGuestDebugError, apply_pending};
use vcpu_caps::{
    Capability, ControlError, HwBreakpoint, HwBreakpointKind, Inject, Owner, Plan, VcpuControl,
    VcpuId,
};

use super::exits::{ExitHandler, place, suberror_name};
use super::registers::{
    RegistersError, core_from_kvm, read_registers, special_from_kvm, write_registers,
};
use super::step::Begun;
use crate::address::GuestVirtAddr;
use crate::host::{Armed, GuestMemory, StopReason, VcpuOrder, WatchAccess};
use crate::x86_64::{RegisterFile, RegisterGroups, translate};

/// RFLAGS.TF (SDM 1 3.4.3.3).
pub(super) const RFLAGS_TF: u64 = 1 << 8;
/// DR6.B0-B3: which debug-address register hit (SDM 3B 19.2.3).
const DR6_HITS: u64 = 0xf;
/// DR6.BD: debug-register access under DR7.GD.
const DR6_BD: u64 = 1 << 13;
/// DR6.BS: single step.
pub(super) const DR6_BS: u64 = 1 << 14;
/// #DB's vector.
const DEBUG_VECTOR: u32 = 1;
/// #BP's vector.
const BREAKPOINT_VECTOR: u32 = 3;

/// The debugger, as an owner of holds on [`Capability::MaskHwintr`]. Others may hold it too: see
/// [`DebugVcpu::control`].
pub const DEBUGGER: Owner = Owner::new("debugger");

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

/// One KVM vCPU under a debugger.
#[derive(Debug)]
pub struct DebugVcpu {
    id: VcpuId,
    fd: VcpuFd,
    control: VcpuControl,
    /// Registers come through the run structure while stepping: a step costs two ioctls.
    sync_regs: bool,
    /// A step is under way, or was the last thing that was run.
    stepping: bool,
    /// The guest's own RFLAGS.TF, while KVM's single step hides it (`kvm_get_rflags` masks TF).
    guest_tf: Option<bool>,
    /// [`RegisterGroups::EXPEDITED`] as they are now, if known.
    cached: Option<Box<RegisterFile>>,
    /// A device access was served and KVM has not completed the instruction yet: registers are
    /// not consistent (api.rst 5, "For KVM_EXIT_IO...").
    incomplete: bool,
    /// The instruction under way, after a run that yielded.
    pub(super) begun: Option<Begun>,
    /// The guest is over: why. Running it again answers the same.
    over: Option<StopReason>,
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
    /// `KVM_EXIT_DEBUG`.
    Debug(kvm_debug_exit_arch),
    /// The run is over.
    Stop(StopReason),
}

/// Whose a `KVM_EXIT_DEBUG` is.
#[derive(Debug)]
pub(super) enum DebugExit {
    /// The debugger's: a breakpoint or watchpoint.
    Hit(StopReason),
    /// The trap after a single step, and nothing else.
    Trap,
    /// The guest's own: it is given back on the next entry.
    Guest,
}

impl DebugVcpu {
    /// Takes over a vCPU that nobody else runs or debugs. What the plan has not is not used.
    #[must_use]
    pub fn new(id: VcpuId, fd: VcpuFd, plan: &Plan) -> Self {
        Self {
            id,
            fd,
            control: VcpuControl::new(id, plan),
            sync_regs: plan.has(Capability::SyncRegs),
            stepping: false,
            guest_tf: None,
            cached: None,
            incomplete: false,
            begun: None,
            over: None,
        }
    }

    /// The vCPU's id.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// The vCPU, for what this type does not do. Do not run it, and do not set its registers or
    /// its debug state.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The run structure, for a signal handler that sets `immediate_exit`.
    pub fn kvm_run(&mut self) -> *mut kvm_bindings::kvm_run {
        self.fd.get_kvm_run()
    }

    /// The vCPU's switches, holds and debug state.
    #[must_use]
    pub fn control(&self) -> &VcpuControl {
        &self.control
    }

    /// For another owner than the debugger to take or drop a hold, while the vCPU does not run.
    /// Takes effect when it runs next.
    pub fn control_mut(&mut self) -> &mut VcpuControl {
        &mut self.control
    }

    /// Whether hardware interrupts are withheld, by whomever.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.control.get(Capability::MaskHwintr).unwrap_or(false)
    }

    /// What the vCPU waits for, in one word, as `info threads` shows it; `None` if it runs code.
    #[must_use]
    pub fn waiting(&self) -> Option<&'static str> {
        match self.fd.get_mp_state().ok()?.mp_state {
            KVM_MP_STATE_HALTED => Some("halted"),
            KVM_MP_STATE_UNINITIALIZED => Some("waits for INIT"),
            KVM_MP_STATE_INIT_RECEIVED => Some("waits for SIPI"),
            KVM_MP_STATE_SIPI_RECEIVED => Some("starts"),
            _ => None,
        }
    }

    /// Runs the vCPU on the calling thread until the order is done, `environment.stop` is set, or
    /// the guest cannot go on. Answers which.
    ///
    /// On return nothing is half done: a device access is completed, and the registers are what
    /// the guest will resume with.
    pub fn run<E: ExitHandler, M: GuestMemory>(
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

    /// Leaves no trace of a debugger: nothing armed, nothing held by it, the guest's own TF
    /// restored.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn release(&mut self) -> Result<(), DebugError> {
        self.intend_free(&Armed::default())?;
        self.arm()
    }

    /// Fills the `groups` of `file`.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn read_registers(
        &mut self,
        groups: RegisterGroups,
        file: &mut RegisterFile,
    ) -> Result<(), RegistersError> {
        let mut wanted = groups;
        if let Some(cached) = &self.cached {
            file.core = if groups.contains(RegisterGroups::CORE) {
                cached.core
            } else {
                file.core
            };
            file.special = if groups.contains(RegisterGroups::SPECIAL) {
                cached.special
            } else {
                file.special
            };
            wanted -= RegisterGroups::EXPEDITED;
        }
        if wanted.intersects(RegisterGroups::EXPEDITED) {
            // May change CS and RIP, by accepting a SIPI: before the registers, or not at all.
            let _ = self.fd.get_mp_state();
        }
        if wanted.is_empty() {
            return Ok(());
        }
        read_registers(&self.fd, wanted, file)?;
        if wanted.contains(RegisterGroups::CORE) && self.guest_tf == Some(true) {
            file.core.rflags |= RFLAGS_TF;
        }
        Ok(())
    }

    /// Sets the `groups` from `file`.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn write_registers(
        &mut self,
        groups: RegisterGroups,
        file: &RegisterFile,
    ) -> Result<(), RegistersError> {
        self.cached = None;
        self.forget_armed_step();
        if groups.contains(RegisterGroups::CORE) && self.guest_tf.is_some() {
            // TF in KVM's copy is the single step's. The guest's own is kept here.
            let mut hidden = file.clone();
            hidden.core.rflags &= !RFLAGS_TF;
            write_registers(&self.fd, groups, &hidden)?;
            self.guest_tf = Some(file.core.rflags & RFLAGS_TF != 0);
            return Ok(());
        }
        write_registers(&self.fd, groups, file)
    }

    /// [`RegisterGroups::EXPEDITED`], if they came with the last exit.
    #[must_use]
    pub fn expedited(&self) -> Option<Box<RegisterFile>> {
        self.cached.clone()
    }

    /// Runs until something stops the vCPU.
    fn run_free<E: ExitHandler, M: GuestMemory>(
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
                Entry::Served | Entry::Nothing | Entry::Halted => {}
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

    /// Puts in force what `self.control` has pending. What was written to registers must be
    /// written before: KVM captures the linear RIP here.
    pub(super) fn arm(&mut self) -> Result<(), DebugError> {
        if self.stepping && self.guest_tf.is_none() {
            // From here on KVM hides the guest's own TF.
            let mut file = RegisterFile::default();
            self.read_registers(RegisterGroups::CORE, &mut file)?;
            self.guest_tf = Some(file.core.rflags & RFLAGS_TF != 0);
        }
        if self.stepping && self.sync_regs {
            self.fd.set_sync_valid_reg(SyncReg::Register);
            self.fd.set_sync_valid_reg(SyncReg::SystemRegister);
        } else {
            self.fd.clear_sync_valid_reg(SyncReg::Register);
            self.fd.clear_sync_valid_reg(SyncReg::SystemRegister);
        }
        self.forget_armed_step();
        apply_pending(&mut self.control, &self.fd)?;
        if !self.stepping && self.guest_tf.take() == Some(true) {
            // KVM cleared it together with its own: `kvm_arch_vcpu_ioctl_set_guest_debug` reads
            // RFLAGS while the step still masks TF.
            self.cached = None;
            let mut file = RegisterFile::default();
            read_registers(&self.fd, RegisterGroups::CORE, &mut file)?;
            file.core.rflags |= RFLAGS_TF;
            write_registers(&self.fd, RegisterGroups::CORE, &file)?;
        }
        Ok(())
    }

    /// Sets what [`DebugVcpu::arm`] will put in force for a free run.
    fn intend_free(&mut self, armed: &Armed) -> Result<(), DebugError> {
        if self.stepping {
            self.control.end_step()?;
            self.stepping = false;
        }
        self.control.drop_owner(DEBUGGER);
        self.intend_breakpoints(armed, armed.hardware)
    }

    /// Sets what [`DebugVcpu::arm`] will put in force for a step.
    pub(super) fn intend_step(
        &mut self,
        mask: bool,
        armed: &Armed,
        hardware: [Option<HwBreakpoint>; 4],
    ) -> Result<(), DebugError> {
        self.stepping = true;
        let holds = self.control.holds();
        let held = holds
            .owners(Capability::MaskHwintr)
            .any(|(owner, _)| owner == DEBUGGER);
        if mask && !held {
            self.control.hold(DEBUGGER, Capability::MaskHwintr)?;
        } else if held && !mask {
            self.control.drop_owner(DEBUGGER);
        }
        self.intend_breakpoints(armed, hardware)
    }

    fn intend_breakpoints(
        &mut self,
        armed: &Armed,
        hardware: [Option<HwBreakpoint>; 4],
    ) -> Result<(), DebugError> {
        let software = !armed.software.is_empty();
        // Off already where the plan does not have them.
        if software || self.control.get(Capability::BptExit).unwrap_or(false) {
            self.control.set(Capability::BptExit, software)?;
        }
        Ok(self.control.set_hardware(hardware)?)
    }

    /// Registers that were to go in with the next `KVM_RUN` do not: somebody sets others.
    fn forget_armed_step(&mut self) {
        self.fd.clear_sync_dirty_reg(SyncReg::Register);
    }

    /// Arms one step more: an emulated instruction drops the TF of the one before.
    ///
    /// If the debug state is in force and the registers came with the last exit, they go back
    /// with TF set, and `KVM_RUN` is the step's only ioctl. Otherwise `KVM_SET_GUEST_DEBUG` sets
    /// TF where it finds RIP.
    pub(super) fn arm_step(&mut self) -> Result<(), DebugError> {
        if self.cached.is_some() && self.control.pending().is_none() {
            self.fd.sync_regs_mut().regs.rflags |= RFLAGS_TF;
            self.fd.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        self.control.step()?;
        self.arm()
    }

    /// The guest's own TF, as far as it is known.
    pub(super) fn set_guest_tf(&mut self, tf: bool) {
        self.guest_tf = Some(tf);
        if let Some(cached) = &mut self.cached {
            cached.core.rflags = (cached.core.rflags & !RFLAGS_TF) | if tf { RFLAGS_TF } else { 0 };
        }
    }

    /// One `KVM_RUN`, with what it asks for served.
    pub(super) fn enter<E: ExitHandler, M: GuestMemory>(
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
        self.run_once(environment)
    }

    /// Lets KVM complete a served device access without running the guest further.
    ///
    /// Answers [`Entry::Kicked`] once the registers are consistent, or [`Entry::Debug`] if the
    /// completion was the end of a step.
    pub(super) fn complete<E: ExitHandler, M: GuestMemory>(
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

    fn run_once<E: ExitHandler, M: GuestMemory>(
        &mut self,
        environment: &Environment<'_, E, M>,
    ) -> Entry {
        self.cached = None;
        self.incomplete = false;
        let entry = match self.fd.run() {
            Ok(VcpuExit::IoIn(..)) => self.serve_io(Direction::In, environment.exits),
            Ok(VcpuExit::IoOut(..)) => self.serve_io(Direction::Out, environment.exits),
            Ok(VcpuExit::MmioRead(address, data)) => {
                environment.exits.mmio_read(address, data);
                Entry::Served
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                environment.exits.mmio_write(address, data);
                Entry::Served
            }
            Ok(VcpuExit::Debug(exit)) => Entry::Debug(exit),
            Ok(VcpuExit::Hlt) => Entry::Halted,
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr) => Entry::Nothing,
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

    /// Whose a `KVM_EXIT_DEBUG` is. What is the guest's own is owed to it from here on.
    pub(super) fn classify(
        &mut self,
        exit: &kvm_debug_exit_arch,
        stepping: bool,
        armed: &Armed,
        memory: &impl GuestMemory,
    ) -> DebugExit {
        match exit.exception {
            BREAKPOINT_VECTOR => {
                if self.software_breakpoint_at(exit.pc, armed, memory) {
                    return DebugExit::Hit(StopReason::SoftwareBreakpoint);
                }
                self.owe(Inject::Breakpoint);
                DebugExit::Guest
            }
            DEBUG_VECTOR => {
                let hits = exit.dr6 & DR6_HITS;
                let hardware = self.control.intent().hardware;
                for (slot, breakpoint) in hardware.iter().enumerate() {
                    let Some(breakpoint) = breakpoint else {
                        continue;
                    };
                    if hits & (1 << slot) == 0 {
                        continue;
                    }
                    let reason = match breakpoint.kind() {
                        // B bits may be set for conditions that are not enabled (SDM 3B 19.2.3).
                        HwBreakpointKind::Execute if breakpoint.address() != exit.pc => continue,
                        HwBreakpointKind::Execute => StopReason::HardwareBreakpoint,
                        HwBreakpointKind::Write => StopReason::Watchpoint {
                            address: breakpoint.address(),
                            access: WatchAccess::Write,
                        },
                        HwBreakpointKind::ReadWrite => StopReason::Watchpoint {
                            address: breakpoint.address(),
                            access: WatchAccess::ReadWrite,
                        },
                    };
                    return DebugExit::Hit(reason);
                }
                let own_registers = hardware.iter().all(Option::is_none);
                let mut owed = exit.dr6 & DR6_BD;
                if own_registers {
                    // The guest's own DR0-DR3 were in force.
                    owed |= hits;
                }
                if !stepping {
                    // Nobody but the guest has set TF.
                    owed |= exit.dr6 & DR6_BS;
                }
                if owed != 0 {
                    self.owe_debug_exception(owed);
                }
                if stepping {
                    DebugExit::Trap
                } else {
                    DebugExit::Guest
                }
            }
            other => DebugExit::Hit(StopReason::InternalError(format!(
                "{}: KVM_EXIT_DEBUG for exception {other}, which is neither #DB nor #BP",
                self.id
            ))),
        }
    }

    /// Puts a #DB of the guest's own on the way back to it.
    pub(super) fn owe_debug_exception(&mut self, dr6: u64) {
        // KVM queues the exception without a payload: DR6 is ours to set.
        if let Ok(mut registers) = self.fd.get_debug_regs() {
            registers.dr6 |= dr6;
            if let Err(error) = self.fd.set_debug_regs(&registers) {
                tracing::warn!(vcpu = %self.id, %error, "KVM_SET_DEBUGREGS: the guest's DR6 lacks {dr6:#x}");
            }
        }
        self.owe(Inject::Debug);
    }

    /// An exception of the guest's own goes back to it on the next entry.
    fn owe(&mut self, exception: Inject) {
        if let Err(error) = self.control.inject(exception) {
            tracing::warn!(vcpu = %self.id, %error, "the guest misses an exception of its own");
        }
    }

    /// Whether the debugger's INT3 is at this linear address.
    pub(super) fn software_breakpoint_at(
        &mut self,
        pc: u64,
        armed: &Armed,
        memory: &impl GuestMemory,
    ) -> bool {
        if armed.software.is_empty() {
            return false;
        }
        let mut file = RegisterFile::default();
        self.read_registers(RegisterGroups::SPECIAL, &mut file)
            .is_ok()
            && translate(&file.special, memory, GuestVirtAddr(pc))
                .is_ok_and(|at| armed.software.contains(&at.gpa))
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

/// The debug state could not be put in force.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// The plan does not have what the order needs.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// KVM refused the debug state.
    #[error(transparent)]
    SetGuestDebug(#[from] SetGuestDebugError),
    /// A register that goes with it.
    #[error(transparent)]
    Registers(#[from] RegistersError),
}

impl DebugError {
    /// As the reason why a vCPU does not run.
    pub(super) fn stop(&self) -> StopReason {
        StopReason::InternalError(format!(
            "the debug state of the vCPU could not be set: {self}"
        ))
    }
}

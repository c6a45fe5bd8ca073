//! One KVM vCPU under a debugger.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
};
use kvm_ioctls::{SyncReg, VcpuFd};
use vcpu_caps::kvm::{SetGuestDebugError, apply_pending};
use vcpu_caps::{
    Capability, ControlError, GuestDebugFlags, HwBreakpoint, Owner, Plan, VcpuControl, VcpuId,
};

use super::registers::{RegistersError, read_registers, write_registers};
use super::step::Begun;
use crate::order::{Armed, StopReason};
use crate::x86_64::{RegisterFile, RegisterGroups};

/// RFLAGS.TF (SDM 1 3.4.3.3).
pub(super) const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;
/// Where KVM's `kvm_vcpu_reset` has the linear RIP when it sets RFLAGS: CS is that of INIT already
/// (SDM 3A, table 9-1), and RIP still 0.
const RESETS_LINEAR_RIP: u64 = 0xffff_0000;
/// The debugger, as an owner of holds on [`Capability::MaskHwintr`]. Others may hold it too: see
/// [`DebugVcpu::control`].
pub const DEBUGGER: Owner = Owner::new("debugger");

/// One KVM vCPU under a debugger.
#[derive(Debug)]
pub struct DebugVcpu {
    pub(super) id: VcpuId,
    pub(super) fd: VcpuFd,
    pub(super) control: VcpuControl,
    /// Registers come and go through the run structure while stepping: a step in a series costs
    /// one ioctl.
    pub(super) sync_regs: bool,
    /// A step is under way, or was the last thing that was run.
    pub(super) stepping: bool,
    /// The guest's own RFLAGS.TF, while KVM's single step hides it (`kvm_get_rflags` masks TF).
    pub(super) guest_tf: Option<bool>,
    /// [`RegisterGroups::EXPEDITED`] as they are now, if known.
    pub(super) cached: Option<Box<RegisterFile>>,
    /// A device access was served and KVM has not completed the instruction yet: registers are
    /// not consistent (api.rst 5, "For KVM_EXIT_IO...").
    pub(super) incomplete: bool,
    /// `KVM_MP_STATE_*`, as last read; `RUNNABLE` if the vCPU has run since.
    pub(super) mp_state: u32,
    /// The single step in force was armed by [`DebugVcpu::arm_as_reset`].
    outlives_init: bool,
    /// The instruction under way, after a run that yielded.
    pub(super) begun: Option<Begun>,
    /// The guest is over: why. Running it again answers the same.
    pub(super) over: Option<StopReason>,
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
            mp_state: KVM_MP_STATE_RUNNABLE,
            outlives_init: false,
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
    ///
    /// KVM is asked for registers anew afterwards: `KVM_GET_MP_STATE` takes INIT and startup IPIs.
    #[must_use]
    pub fn fd(&mut self) -> &VcpuFd {
        self.cached = None;
        self.forget_armed_step();
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
        if self.cached.is_some() {
            // It has just run an instruction. And KVM would take INIT if it were asked, so that what is cached
            // were of before.
            return None;
        }
        match self.fd.get_mp_state().ok()?.mp_state {
            KVM_MP_STATE_HALTED => Some("halted"),
            KVM_MP_STATE_UNINITIALIZED => Some("waits for INIT"),
            KVM_MP_STATE_INIT_RECEIVED => Some("waits for SIPI"),
            KVM_MP_STATE_SIPI_RECEIVED => Some("starts"),
            _ => None,
        }
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
            self.mp_state = self.mp_state_now();
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
        if groups.contains(RegisterGroups::CORE) {
            // What KVM said with the last exit. With the chips in userspace it decides what enters.
            let run = self.fd.get_kvm_run();
            run.if_flag = u8::from(file.core.rflags & RFLAGS_IF != 0);
            run.ready_for_interrupt_injection = 0;
        }
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

    /// `KVM_MP_STATE_*`, which is `RUNNABLE` where the local APIC is not KVM's.
    pub(super) fn mp_state_now(&self) -> u32 {
        let state = self.fd.get_mp_state();
        state.map_or(KVM_MP_STATE_RUNNABLE, |state| state.mp_state)
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
        if apply_pending(&mut self.control, &self.fd)? {
            self.outlives_init = false;
        }
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
    pub(super) fn intend_free(&mut self, armed: &Armed) -> Result<(), DebugError> {
        if self.stepping {
            self.control.end_step()?;
            self.stepping = false;
        }
        self.control.drop_owner(DEBUGGER);
        self.intend_breakpoints(armed, &armed.hardware)
    }

    /// Sets what [`DebugVcpu::arm`] will put in force for a step.
    pub(super) fn intend_step(
        &mut self,
        mask: bool,
        armed: &Armed,
        hardware: &[HwBreakpoint],
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
        hardware: &[HwBreakpoint],
    ) -> Result<(), DebugError> {
        let software = !armed.software.is_empty();
        // Off already where the plan does not have them.
        if software || self.control.get(Capability::BptExit).unwrap_or(false) {
            self.control.set(Capability::BptExit, software)?;
        }
        Ok(self.control.set_hardware(hardware)?)
    }

    /// Whether KVM has taken INIT for this vCPU, which waited for it. It comes back for that with EAGAIN or
    /// EINTR (`kvm_arch_vcpu_ioctl_run`), and without TF.
    pub(super) fn has_been_reset(&mut self) -> bool {
        let reset = self.mp_state_now() != KVM_MP_STATE_UNINITIALIZED;
        if reset {
            self.forget_registers();
        }
        reset
    }

    /// INIT or a start-up IPI has replaced them.
    pub(super) fn forget_registers(&mut self) {
        self.cached = None;
        self.forget_armed_step();
        // RFLAGS after it has no TF.
        self.guest_tf = self.guest_tf.map(|_| false);
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
        // Not in force: the vCPU was to run freely since, and was stopped before it had begun.
        let in_force = self.control.get(Capability::SingleStep).unwrap_or(false);
        let in_series = in_force && self.cached.is_some() && self.control.pending().is_none();
        if in_series && self.outlives_init {
            self.fd.sync_regs_mut().regs.rflags |= RFLAGS_TF;
            self.fd.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        self.control.step()?;
        if in_series || (self.mp_state == KVM_MP_STATE_HALTED && !self.injects()) {
            self.arm_as_reset()
        } else {
            self.arm()
        }
    }

    /// Whether an exception is on its way to the guest, which a write of registers would drop.
    fn injects(&self) -> bool {
        let pending = self.control.pending();
        pending.is_some_and(|wanted| wanted.control.intersects(GuestDebugFlags::INJECT))
    }

    /// Arms a step that outlives INIT.
    ///
    /// A `KVM_RUN` takes INIT and the startup IPI, if both are there or the vCPU is halted, and goes on in the
    /// guest; the reset has cleared TF, so that the vCPU would run on, masked. But KVM adds TF to RFLAGS
    /// that it sets while the linear RIP is the one of `KVM_SET_GUEST_DEBUG` (`__kvm_set_rflags`), and a
    /// startup IPI leaves RFLAGS as they are. So the call is made with RIP where the reset will have it,
    /// and what is to be stepped without INIT gets its TF by hand, as all that follow in a series do.
    ///
    /// Not for the first step after a free run: an exception that KVM has queued and not injected would be
    /// lost with the write of registers (`__set_regs`).
    fn arm_as_reset(&mut self) -> Result<(), DebugError> {
        let mut file = RegisterFile::default();
        let mp_state = self.mp_state;
        self.read_registers(RegisterGroups::EXPEDITED, &mut file)?;
        if self.mp_state != mp_state {
            // INIT has just come.
            return self.arm();
        }
        // From here on nothing may ask for the state: that takes INIT, and what is written would be of before.
        self.guest_tf
            .get_or_insert(file.core.rflags & RFLAGS_TF != 0);
        let mut elsewhere = file.clone();
        let distance = RESETS_LINEAR_RIP.wrapping_sub(file.linear_pc());
        elsewhere.core.rip = file.core.rip.wrapping_add(distance);
        let cached = self.cached.take();
        self.write_registers(RegisterGroups::CORE, &elsewhere)?;
        let armed = self.arm();
        if armed.is_ok() {
            file.core.rflags |= RFLAGS_TF;
            self.outlives_init = true;
        }
        write_registers(&self.fd, RegisterGroups::CORE, &file)?;
        self.cached = cached;
        armed
    }

    /// The guest's own TF, as far as it is known.
    pub(super) fn set_guest_tf(&mut self, tf: bool) {
        self.guest_tf = Some(tf);
        if let Some(cached) = &mut self.cached {
            cached.core.rflags = (cached.core.rflags & !RFLAGS_TF) | if tf { RFLAGS_TF } else { 0 };
        }
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

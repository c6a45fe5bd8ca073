//! Steps of a KVM vCPU that leave no trace in the guest.
//!
//! KVM steps with RFLAGS.TF. What that does to the guest differs between kvm_intel, kvm_amd and
//! software KVMs; [`StepPlan`] knows from the instruction what may go wrong and what to mend.
//! This module runs the protocol around it:
//!
//! 1. one `KVM_SET_GUEST_DEBUG`, always: KVM captures the linear RIP there, and an emulated
//!    instruction drops TF;
//! 2. `KVM_RUN`; a device access is served and then completed with `immediate_exit`, since an
//!    emulated OUT or MMIO write ends *without* a trap and would take one more instruction along;
//! 3. a trap that moved nothing though the instruction must move is spurious: step again.

use vcpu_caps::{HwBreakpoint, HwBreakpointKind};

use super::exits::ExitHandler;
use super::vcpu::{DR6_BS, DebugExit, DebugVcpu, Entry, Environment};
use crate::host::{Armed, GuestMemory, StepOrder, StopReason};
use crate::x86_64::{Progress, RegisterFile, RegisterGroups, StepPlan};

/// How often an instruction may be begun without getting anywhere. One spurious trap for each
/// page that it touches has been seen (an EPT violation in Bochs); an instruction touches fewer
/// than ten.
const MAX_ATTEMPTS: u32 = 64;

impl DebugVcpu {
    /// Runs one instruction, or a range of them.
    pub(super) fn run_steps<E: ExitHandler, M: GuestMemory>(
        &mut self,
        order: &StepOrder,
        armed: &Armed,
        environment: &Environment<'_, E, M>,
    ) -> StopReason {
        let mut file = RegisterFile::default();
        if let Err(error) = self.read_registers(RegisterGroups::EXPEDITED, &mut file) {
            return StopReason::InternalError(error.to_string());
        }
        // A step off a breakpoint is no hit of it.
        let mut hardware = armed
            .hardware
            .map(|slot| slot.filter(|b| !executes_at(b, &file)));
        loop {
            let reason = self.step(order.mask, armed, hardware, file, environment);
            if reason != StopReason::Step {
                return reason;
            }
            file = RegisterFile::default();
            if let Err(error) = self.read_registers(RegisterGroups::EXPEDITED, &mut file) {
                return StopReason::InternalError(error.to_string());
            }
            let pc = file.linear_pc();
            // KVM reports a step onto an armed breakpoint as a plain step.
            if armed
                .hardware
                .iter()
                .flatten()
                .any(|b| executes_at(b, &file))
            {
                return StopReason::HardwareBreakpoint;
            }
            if self.software_breakpoint_at(pc, armed, environment.memory) {
                return StopReason::SoftwareBreakpoint;
            }
            if !order
                .range
                .as_ref()
                .is_some_and(|range| range.contains(&pc))
            {
                return StopReason::Step;
            }
            hardware = armed.hardware;
        }
    }

    /// Runs one instruction. `before` is [`RegisterGroups::EXPEDITED`].
    fn step<E: ExitHandler, M: GuestMemory>(
        &mut self,
        mask: bool,
        armed: &Armed,
        hardware: [Option<HwBreakpoint>; 4],
        before: RegisterFile,
        environment: &Environment<'_, E, M>,
    ) -> StopReason {
        let plan = StepPlan::new(&before, environment.memory);
        if let Err(error) = self.intend_step(mask, armed, hardware) {
            return error.stop();
        }
        for _ in 0..MAX_ATTEMPTS {
            if let Err(error) = self.intend_rearm().and_then(|()| self.arm()) {
                return error.stop();
            }
            let mut entry = self.enter(environment);
            if let Entry::Served = entry {
                entry = self.complete(environment);
            } else if let Entry::Kicked = entry {
                return StopReason::Interrupted;
            }
            let trapped = match entry {
                Entry::Stop(reason) => return reason,
                Entry::Debug(exit) => {
                    match self.classify(&exit, true, armed, environment.memory) {
                        DebugExit::Hit(reason) => {
                            // A watchpoint traps after the access: what the step did is mended
                            // all the same.
                            if let Err(stop) = self.settle(&plan, &before, true, environment) {
                                return stop;
                            }
                            return reason;
                        }
                        DebugExit::Guest => continue,
                        DebugExit::Trap => true,
                    }
                }
                // A userspace local APIC: HLT is the instruction's end.
                Entry::Halted => true,
                // No trap. A completed device access has moved RIP; a signal has not.
                Entry::Served | Entry::Kicked | Entry::Nothing => false,
            };
            match self.settle(&plan, &before, trapped, environment) {
                Ok(Progress::Done) => return StopReason::Step,
                Ok(Progress::NotStarted) => {}
                Err(stop) => return stop,
            }
        }
        tracing::warn!(
            vcpu = %self.id(), pc = format_args!("{:#x}", before.linear_pc()),
            "the instruction did not move RIP in {MAX_ATTEMPTS} attempts; reported as a step"
        );
        StopReason::Step
    }

    /// Mends what the step left, and tells whether it got anywhere.
    fn settle<E: ExitHandler, M: GuestMemory>(
        &mut self,
        plan: &StepPlan,
        before: &RegisterFile,
        trapped: bool,
        environment: &Environment<'_, E, M>,
    ) -> Result<Progress, StopReason> {
        let mut after = RegisterFile::default();
        self.read_registers(RegisterGroups::EXPEDITED, &mut after)
            .map_err(|error| StopReason::InternalError(error.to_string()))?;
        if !trapped && after.core.rip == before.core.rip {
            return Ok(Progress::NotStarted);
        }
        let settlement = plan.settle(&after, environment.memory);
        if settlement.progress == Progress::NotStarted {
            return Ok(Progress::NotStarted);
        }
        if !settlement.mend(environment.memory) {
            tracing::warn!(
                vcpu = %self.id(), pc = format_args!("{:#x}", before.linear_pc()),
                "the RFLAGS that a stepped instruction stored keep TF: their page is not memory"
            );
        }
        if let Some(r11) = settlement.r11 {
            after.core.r11 = r11;
            self.write_registers(RegisterGroups::CORE, &after)
                .map_err(|error| StopReason::InternalError(error.to_string()))?;
        }
        self.set_guest_tf(settlement.guest_tf);
        if settlement.guest_trap {
            self.owe_debug_exception(DR6_BS);
        }
        Ok(Progress::Done)
    }
}

/// Whether the vCPU is about to execute the instruction that the breakpoint is for.
fn executes_at(breakpoint: &HwBreakpoint, file: &RegisterFile) -> bool {
    breakpoint.kind() == HwBreakpointKind::Execute && breakpoint.address() == file.linear_pc()
}

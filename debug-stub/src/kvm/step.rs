//! Steps of a KVM vCPU that leave no trace in the guest.
//!
//! KVM steps with RFLAGS.TF. What that does to the guest differs between kvm_intel, kvm_amd and
//! software KVMs; [`StepPlan`] knows from the instruction what may go wrong and what to mend.
//! This module runs the protocol around it:
//!
//! 1. TF is set before every instruction, since an emulated one drops it: through the run
//!    structure, or by `KVM_SET_GUEST_DEBUG` if something else changes, too;
//! 2. `KVM_RUN`; a device access is served and then completed with `immediate_exit`, since an
//!    emulated OUT or MMIO write ends *without* a trap and would take one more instruction along;
//! 3. SYSCALL and SYSRET are helped to a trap at all ([`system_call`](super::system_call));
//! 4. a trap that moved nothing though the instruction must move is spurious: step again;
//! 5. a vCPU that waits in KVM may be started anew in its step, which ends then with its first
//!    instruction there, or before it.

use kvm_bindings::KVM_MP_STATE_UNINITIALIZED;
use vcpu_caps::{HwBreakpoint, HwBreakpointKind};

use super::debug_exit::{DR6_BS, DebugExit};
use super::exits::{ExitHandler, UserInterrupts};
use super::run::{Entry, Environment, OnStop, RunEnd};
use super::system_call::Lent;
use super::vcpu::DebugVcpu;
use crate::host::GuestMemory;
use crate::order::{Armed, StepOrder, StopReason};
use crate::x86_64::{Progress, RegisterFile, RegisterGroups, StepClass, StepPlan};

/// How often an instruction may be begun without getting anywhere. One spurious trap for each
/// page that it touches has been seen (an EPT violation in Bochs); an instruction touches fewer
/// than ten.
const MAX_ATTEMPTS: u32 = 64;

/// CR0.PE (SDM 3A 2.5).
const CR0_PE: u64 = 1;
/// In bytes (SDM 2A 2.3.11).
const LONGEST_INSTRUCTION: u64 = 15;

/// An instruction whose step is armed, and not known to be done.
#[derive(Debug)]
pub(super) struct Begun {
    plan: StepPlan,
    /// [`RegisterGroups::EXPEDITED`] before it.
    before: RegisterFile,
    /// `KVM_MP_STATE_*` before it.
    mp_state: u32,
    /// To be taken back when it is done.
    lent: Lent,
}

/// What became of a [`Begun`] instruction.
enum End {
    Done,
    /// [`OnStop::Yield`]: it is to be gone on with.
    Yielded,
    Stopped(StopReason),
}

impl DebugVcpu {
    /// Runs one instruction, or a range of them; goes on with one that was begun before.
    pub(super) fn run_steps<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        order: &StepOrder,
        armed: &Armed,
        environment: &Environment<'_, E, M>,
    ) -> RunEnd {
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            None => match self.begin(order.mask, armed, true, environment) {
                Ok(begun) => begun,
                Err(reason) => return RunEnd::Stopped(reason),
            },
        };
        loop {
            let end = self.finish(&begun, armed, environment);
            if let End::Yielded = end {
                self.begun = Some(begun);
                return RunEnd::Yielded;
            }
            if let Err(error) = self.take_back(begun.lent) {
                return RunEnd::Stopped(StopReason::InternalError(error.to_string()));
            }
            if let End::Stopped(reason) = end {
                return RunEnd::Stopped(reason);
            }
            match self.after_step(order, armed, environment) {
                Ok(None) => {}
                Ok(Some(reason)) | Err(reason) => return RunEnd::Stopped(reason),
            }
            begun = match self.begin(order.mask, armed, false, environment) {
                Ok(begun) => begun,
                Err(reason) => return RunEnd::Stopped(reason),
            };
        }
    }

    /// Why a step that is done ends the order, if it does.
    fn after_step<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        order: &StepOrder,
        armed: &Armed,
        environment: &Environment<'_, E, M>,
    ) -> Result<Option<StopReason>, StopReason> {
        let file = self.expedited_now()?;
        let pc = file.linear_pc();
        // KVM reports a step onto an armed breakpoint as a plain step.
        if armed
            .hardware
            .iter()
            .any(|breakpoint| executes_at(breakpoint, pc))
        {
            return Ok(Some(StopReason::HardwareBreakpoint));
        }
        if self.software_breakpoint_at(pc, armed, environment.memory) {
            return Ok(Some(StopReason::SoftwareBreakpoint));
        }
        let goes_on = order
            .range
            .as_ref()
            .is_some_and(|range| range.contains(&pc));
        Ok((!goes_on).then_some(StopReason::Step))
    }

    fn expedited_now(&mut self) -> Result<RegisterFile, StopReason> {
        let mut file = RegisterFile::default();
        self.read_registers(RegisterGroups::EXPEDITED, &mut file)
            .map_err(|error| StopReason::InternalError(error.to_string()))?;
        Ok(file)
    }

    /// Plans and arms the step of the instruction at the PC. The `first` of an order is stepped
    /// off a breakpoint, which is no hit of it.
    fn begin<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        mask: bool,
        armed: &Armed,
        first: bool,
        environment: &Environment<'_, E, M>,
    ) -> Result<Begun, StopReason> {
        let before = self.expedited_now()?;
        let mp_state = self.mp_state;
        let pc = before.linear_pc();
        let stays = |breakpoint: &&HwBreakpoint| !(first && executes_at(breakpoint, pc));
        let hardware: Vec<_> = armed.hardware.iter().filter(stays).copied().collect();
        let plan = StepPlan::new(&before, environment.memory);
        let lent = self.lend(plan.class(), &before).unwrap_or_else(|error| {
            tracing::warn!(vcpu = %self.id(), %error, "a system call is stepped over, not into");
            Lent::Nothing
        });
        if let Err(error) = self
            .intend_step(mask, armed, &hardware)
            .and_then(|()| self.arm_step())
        {
            // What stops the vCPU is the first error.
            let _ = self.take_back(lent);
            return Err(error.stop());
        }
        Ok(Begun {
            plan,
            before,
            mp_state,
            lent,
        })
    }

    /// Runs the instruction to its end.
    fn finish<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        begun: &Begun,
        armed: &Armed,
        environment: &Environment<'_, E, M>,
    ) -> End {
        for _ in 0..MAX_ATTEMPTS {
            let mut entry = self.enter(environment);
            while let Entry::Nothing = entry {
                if begun.mp_state == KVM_MP_STATE_UNINITIALIZED && self.has_been_reset() {
                    entry = Entry::Restarted;
                    break;
                }
                // A signal for somebody else. TF is as it was, here or in a handler's frame.
                entry = self.enter(environment);
            }
            if let Entry::Served = entry {
                entry = self.complete(environment);
            } else if let Entry::Kicked = entry {
                if environment.on_stop == OnStop::Yield {
                    return End::Yielded;
                }
                // It may wait: the next step asks KVM, together with the registers.
                self.cached = None;
                // In the middle of it, in a handler that the instruction called: what KVM left
                // there of TF is mended now, since nobody will come back to this step.
                return match self.settle(begun, false, environment) {
                    Ok(_) => End::Stopped(StopReason::Interrupted),
                    Err(stop) => End::Stopped(stop),
                };
            }
            let trapped = match entry {
                Entry::Stop(reason) => return End::Stopped(reason),
                Entry::Debug(exit) => {
                    match self.classify(&exit, true, armed, environment.memory) {
                        DebugExit::Hit(reason) => {
                            // A watchpoint traps after the access: what the step did is mended
                            // all the same.
                            return match self.settle(begun, true, environment) {
                                Ok(_) => End::Stopped(reason),
                                Err(stop) => End::Stopped(stop),
                            };
                        }
                        DebugExit::Guest => {
                            if let Err(error) = self.arm_step() {
                                return End::Stopped(error.stop());
                            }
                            continue;
                        }
                        DebugExit::Trap => true,
                    }
                }
                // A userspace local APIC: HLT is the instruction's end.
                Entry::Halted => true,
                // The instruction is no more, and nothing of it is to be mended.
                Entry::Restarted => return End::Stopped(StopReason::Step),
                // No trap: a completed device access has moved RIP, or there is more to come.
                Entry::Served | Entry::Kicked | Entry::Nothing => false,
            };
            match self.settle(begun, trapped, environment) {
                Ok(Progress::Done) => return End::Done,
                Ok(Progress::NotStarted) => {
                    if let Err(error) = self.arm_step() {
                        return End::Stopped(error.stop());
                    }
                }
                Err(stop) => return End::Stopped(stop),
            }
        }
        tracing::warn!(
            vcpu = %self.id(), pc = format_args!("{:#x}", begun.before.linear_pc()),
            "the instruction did not move RIP in {MAX_ATTEMPTS} attempts; reported as a step"
        );
        End::Done
    }

    /// Mends what the step left, and tells whether it got anywhere.
    fn settle<E: ExitHandler + UserInterrupts, M: GuestMemory>(
        &mut self,
        begun: &Begun,
        trapped: bool,
        environment: &Environment<'_, E, M>,
    ) -> Result<Progress, StopReason> {
        let Begun {
            plan,
            before,
            mp_state: _,
            lent,
        } = begun;
        let mut after = self.expedited_now()?;
        lent.hide(&mut after);
        if is_started_anew(before, &after) {
            // The instruction is no more, and nothing of it is to be mended.
            self.set_guest_tf(false);
            return Ok(Progress::Done);
        }
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
        if plan.class() == StepClass::Halt {
            // It may be halted now: the next step asks KVM, together with the registers.
            self.cached = None;
        }
        self.set_guest_tf(settlement.guest_tf);
        if settlement.guest_trap {
            self.owe_debug_exception(DR6_BS);
        }
        Ok(Progress::Done)
    }
}

/// Whether the vCPU has taken INIT and a startup IPI since, and run one instruction there at most. Both leave
/// it in real-address mode, at IP 0 of another code segment, with neither stack nor data (SDM 3A, 9.4.4 and table
/// 9-1); one instruction changes little of that.
fn is_started_anew(before: &RegisterFile, after: &RegisterFile) -> bool {
    let special = &after.special;
    let moved = before.special.cs.base != special.cs.base && after.core.rip <= LONGEST_INSTRUCTION;
    let unset = [&special.ds, &special.es, &special.ss].map(|segment| segment.selector == 0);
    let nearly_unset = unset.into_iter().filter(|unset| !unset).count() <= 1;
    let real = special.cr0 & CR0_PE == 0;
    moved && real && nearly_unset && (after.core.rsp == 0 || before.special.cr0 & CR0_PE != 0)
}

/// Whether the breakpoint is for the instruction at `pc`.
fn executes_at(breakpoint: &HwBreakpoint, pc: u64) -> bool {
    breakpoint.kind() == HwBreakpointKind::Execute && breakpoint.address() == pc
}

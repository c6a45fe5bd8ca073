//! What passes between a session, run control and a vCPU: orders down, stops up.
//!
//! Nothing here names an architecture.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use vcpu_caps::{HwBreakpoint, VcpuId};

use crate::address::GuestPhysAddr;

/// How to run the vCPUs until the next stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResumePlan {
    /// One order for each vCPU that there is, by index. It is empty if there is none yet.
    pub vcpus: Vec<VcpuOrder>,
    /// The order for a vCPU that appears while the plan is in force: `Continue`, or `Stay` if the
    /// client named the vCPUs that are to run or one steps [alone](StepOrder::alone). Never a step.
    pub others: VcpuOrder,
    /// What is armed while the plan is in force, on every vCPU that runs.
    pub armed: Arc<Armed>,
}

impl ResumePlan {
    /// Returns the order for a vCPU.
    #[must_use]
    pub fn order(&self, vcpu: VcpuId) -> &VcpuOrder {
        self.vcpus.get(vcpu.index()).unwrap_or(&self.others)
    }
}

/// What one vCPU does until the next stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VcpuOrder {
    /// It stays stopped. A hold on `mask_hwintr` that an earlier step took stays, too.
    #[default]
    Stay,
    /// It runs until something stops it. A hold on `mask_hwintr` is dropped.
    Continue,
    /// It runs one instruction, or a range of them.
    Step(StepOrder),
}

/// One step, or a range step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepOrder {
    /// Keep stepping while the PC is in this range (`vCont;r`); `None` is one instruction. The
    /// addresses are those of [`Arch::pc`](crate::Arch::pc).
    pub range: Option<Range<u64>>,
    /// Hold `mask_hwintr` from before the first instruction until this vCPU is continued. If
    /// `false`, a hold that earlier steps took is dropped.
    pub mask: bool,
    /// No other vCPU runs code before the next stop. What the step writes into guest memory for its own
    /// duration, and takes out before it stops, is not seen by another one then.
    pub alone: bool,
}

/// The breakpoints and watchpoints in force while the guest runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Armed {
    /// One debug slot each, the same on all vCPUs. A step that begins on an armed execute
    /// breakpoint runs its first instruction with that breakpoint disarmed.
    pub hardware: Vec<HwBreakpoint>,
    /// Guest-physical addresses at which the session has written a breakpoint instruction. A step
    /// never begins on one: the session removes it from memory and steps that vCPU alone.
    pub software: BTreeSet<GuestPhysAddr>,
    /// Guest-virtual addresses, of data that no debug slot watches. Each vCPU that runs is stepped, and stops with
    /// [`StopReason::Watchpoint`] after an instruction that has left other bytes there. Interrupts are let in now
    /// and then; between these steps, and at the stop, there may be a hold on `mask_hwintr`, as after a step. Empty
    /// unless [`Arch::COMPARES`](crate::Arch::COMPARES).
    pub compared: Vec<Range<u64>>,
    /// Guest-virtual addresses of software breakpoints where no memory was when the guest was resumed. A vCPU that
    /// runs freely looks at exits whether that is still so, and stops with [`StopReason::CodeChanged`] if not. Empty
    /// unless [`Arch::AWAITS`](crate::Arch::AWAITS).
    pub awaited: Vec<u64>,
}

/// A vCPU that stopped.
///
/// Its registers are read through the host: an adapter that got them with the exit has them
/// already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The vCPU that stopped.
    pub vcpu: VcpuId,
    /// Why.
    pub reason: StopReason,
}

/// Why a vCPU stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The step, or the range, is done.
    Step,
    /// It is about to execute the breakpoint instruction that the session wrote at its PC.
    SoftwareBreakpoint,
    /// It is about to execute the instruction at an armed execute breakpoint.
    HardwareBreakpoint,
    /// It has accessed watched data.
    Watchpoint {
        /// Guest-virtual address watched.
        address: u64,
        /// What the watchpoint was armed for.
        access: WatchAccess,
    },
    /// There is memory now where a breakpoint [waits](Armed::awaited) for it, or the guest has overwritten a
    /// breakpoint instruction. The session writes the instruction, and the guest goes on.
    CodeChanged,
    /// [`Action::Interrupt`](crate::Action::Interrupt), on a vCPU that had no reason of its own.
    Interrupted,
    /// The machine was reset, and this vCPU is before its first instruction. Breakpoints hold: the
    /// session writes them again when the guest is resumed.
    Reset,
    /// The guest asks for a reset of the machine, by a device. The session calls
    /// [`Host::reset`](crate::Host::reset), since only it knows when no breakpoint instruction is in memory, and
    /// goes on as after [`Reset`](Self::Reset). With no session attached the VMM acts by itself.
    ResetRequest,
    /// Triple fault: the guest cannot go on. The text says what is known.
    TripleFault(String),
    /// The hypervisor cannot go on with this vCPU (for KVM: `KVM_EXIT_INTERNAL_ERROR`,
    /// `KVM_EXIT_FAIL_ENTRY`). The text says what, where and with which instruction bytes.
    InternalError(String),
    /// The guest has ended with this exit status: it powered off, was reset, or asked for it.
    Exited(u8),
}

/// What a watchpoint was armed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchAccess {
    /// Writes.
    Write,
    /// Reads and writes.
    ReadWrite,
}

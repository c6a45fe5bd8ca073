//! What a VMM gives a session, and what passes between the two.
//!
//! A session reads and writes the *stopped* guest through [`Host`], hands out [`Action`]s, and is
//! told of [`Stop`]s. It never runs a vCPU itself: one [`ResumePlan`] goes out, one list of stops
//! comes back.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use vcpu_caps::{HwBreakpoint, VcpuId};

use crate::address::GuestPhysAddr;
use crate::x86_64::{RegisterFile, RegisterGroups};

/// Guest-physical memory.
pub trait GuestMemory {
    /// Reads into `data`; answers how many bytes from the start could be read (fewer where the
    /// range leaves RAM). Never a device: a read has no side effect.
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize;

    /// Writes; answers how many bytes from the start were written.
    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize;
}

/// The stopped guest, as a session sees it.
///
/// No method is called while a vCPU runs, except those of [`GuestMemory`] and
/// [`Host::interrupts`].
pub trait Host: GuestMemory {
    /// What a failed host call is reported as.
    type Error: std::error::Error + Send + Sync + 'static;

    /// How many vCPUs there are: their ids are `0..count`. At least one, and constant.
    fn vcpu_count(&self) -> u16;

    /// A short name for a vCPU, as `info threads` shows it; for instance "CPU#1 \[halted\]".
    fn vcpu_name(&mut self, vcpu: VcpuId) -> String;

    /// Fills the `groups` of `registers`, and leaves the others alone.
    ///
    /// # Errors
    /// If the hypervisor refuses; the session answers the client with an error.
    fn read_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &mut RegisterFile,
    ) -> Result<(), Self::Error>;

    /// Sets the `groups` of a vCPU from `registers`, all or nothing for each group.
    ///
    /// # Errors
    /// If the hypervisor refuses; the session answers the client with an error.
    fn write_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), Self::Error>;

    /// What is known of the interrupts that wait for a vCPU, for `monitor mask status`.
    fn interrupts(&mut self, vcpu: VcpuId) -> Interrupts;
}

/// The interrupts that wait for a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// `mask_hwintr` is in force now.
    pub masked: bool,
    /// Vectors that wait (local APIC IRR), lowest first.
    pub pending: Vec<u8>,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// Why nothing enters the vCPU now, in a few words; empty if something may.
    pub blocked: String,
}

/// What the session wants done. Actions are taken with [`Session::next_action`] until it answers
/// `None`, in order.
///
/// [`Session::next_action`]: crate::Session::next_action
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// All vCPUs are stopped: run some of them as the plan says. Answer, once all of them are
    /// stopped again, with [`Session::stopped`].
    ///
    /// [`Session::stopped`]: crate::Session::stopped
    Resume(ResumePlan),
    /// Some vCPU runs: stop all. Answer, once all are stopped, with [`Session::stopped`], with an
    /// empty list if none had a reason of its own. Also sent for a guest that runs without a
    /// debugger, when a client attaches.
    ///
    /// [`Session::stopped`]: crate::Session::stopped
    Interrupt,
    /// The debugger has gone. All vCPUs are stopped, and memory holds no breakpoint: lift every
    /// hold, disarm everything, and let all of them run. No answer.
    Release,
    /// The client asked to kill the guest: end it. No answer.
    Kill,
}

/// How to run the vCPUs until the next stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResumePlan {
    /// One order for each vCPU, by index.
    pub vcpus: Vec<VcpuOrder>,
    /// What is armed meanwhile, on every vCPU that runs.
    pub armed: Arc<Armed>,
}

/// What one vCPU does until the next stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VcpuOrder {
    /// It stays as it is, frozen; so does a hold on `mask_hwintr` that a step of it took.
    #[default]
    Stay,
    /// It runs until something stops it; `mask_hwintr` is lifted.
    Continue,
    /// It runs one instruction, or a range of them.
    Step(StepOrder),
}

/// One step, or a range step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepOrder {
    /// Step on while the linear PC is in here (`vCont;r`); `None` is one instruction.
    pub range: Option<Range<u64>>,
    /// Hold `mask_hwintr` from before the first instruction until this vCPU is continued. If
    /// false, a hold that earlier steps took is dropped.
    pub mask: bool,
}

/// The breakpoints and watchpoints in force while the guest runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Armed {
    /// Debug-address registers, the same on all vCPUs. A step that begins on an armed execute
    /// breakpoint runs its first instruction with that slot disarmed.
    pub hardware: [Option<HwBreakpoint>; 4],
    /// Guest-physical addresses at which the session has written INT3. A step never begins on
    /// one: the session lifts it and steps that vCPU alone.
    pub software: BTreeSet<GuestPhysAddr>,
}

/// Why a vCPU stopped, and its registers then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The vCPU that stopped.
    pub vcpu: VcpuId,
    /// Why.
    pub reason: StopReason,
    /// [`RegisterGroups::EXPEDITED`] of it, if they came for free with the exit: the stop reply
    /// carries them, and the session reads them itself otherwise.
    pub registers: Option<Box<RegisterFile>>,
}

/// Why a vCPU stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The step, or the range, is done.
    Step,
    /// It is about to execute the INT3 that the session wrote at its PC.
    SoftwareBreakpoint,
    /// It is about to execute the instruction at an armed execute breakpoint.
    HardwareBreakpoint,
    /// It has touched watched data.
    Watchpoint {
        /// Linear address watched.
        address: u64,
        /// What the watchpoint was armed for.
        access: WatchAccess,
    },
    /// [`Action::Interrupt`], seen by a vCPU that had nothing else to say.
    Interrupted,
    /// Triple fault: the guest cannot go on. The text says what is known.
    TripleFault(String),
    /// The hypervisor cannot go on with this vCPU (for KVM: `KVM_EXIT_INTERNAL_ERROR`,
    /// `KVM_EXIT_FAIL_ENTRY`). The text says what, where and with which instruction bytes.
    InternalError(String),
    /// The guest has ended with this exit status: powered off, reset, or asked for it.
    Exited(u8),
}

/// What a watchpoint was armed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchAccess {
    /// Writes.
    Write,
    /// Reads and writes.
    ReadWrite,
}

//! What a VMM gives a session, and what passes between the two.
//!
//! A session reads and writes the *stopped* guest through [`Host`], hands out [`Action`]s, and is
//! told of [`Stop`]s. It never runs a vCPU itself: one [`ResumePlan`] goes out, one list of stops
//! comes back.

use vcpu_caps::VcpuId;

use crate::address::GuestPhysAddr;
use crate::order::ResumePlan;
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

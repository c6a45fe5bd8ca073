//! What a VMM gives a session, and what passes between the two.
//!
//! A session reads and writes the *stopped* guest through [`Host`], hands out [`Action`]s, and is
//! given [`Stop`](crate::Stop)s. It never runs a vCPU itself: one [`ResumePlan`] goes out, one
//! list of stops comes back.

use std::fmt;

use thiserror::Error;
use vcpu_caps::VcpuId;

use crate::address::GuestPhysAddr;
use crate::arch::Arch;
use crate::order::ResumePlan;

/// Guest-physical memory.
pub trait GuestMemory {
    /// Reads into `data`. Returns the number of bytes from the start that could be read: fewer
    /// than asked where the range leaves RAM. Never reads a device: a read has no side effect.
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize;

    /// Writes. Returns the number of bytes from the start that were written.
    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize;
}

impl<M: GuestMemory + ?Sized> GuestMemory for &M {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        M::read_memory(self, address, data)
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        M::write_memory(self, address, data)
    }
}

impl<M: GuestMemory + ?Sized> GuestMemory for std::sync::Arc<M> {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        M::read_memory(self, address, data)
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        M::write_memory(self, address, data)
    }
}

/// The stopped guest, as a session sees it.
///
/// While a vCPU runs, a session calls none of these methods, but may call those of
/// [`GuestMemory`].
pub trait Host: GuestMemory {
    /// The guest's architecture.
    type Arch: Arch;

    /// Why a host call failed. A session logs it, sends the client an error number, and keeps no
    /// copy.
    type Error: std::error::Error;

    /// Returns the number of vCPUs: their ids are `0..count`.
    ///
    /// The number may change between stops: vCPUs are plugged and unplugged, and a reboot may
    /// build them again. A request for a vCPU that has gone is answered with an error that names
    /// it.
    ///
    /// The number may be 0 while there is no machine yet. The client then sees one thread, "no
    /// vCPU yet", since GDB gives up a connection without one. It reads the default value of each
    /// register, and memory as with these registers (on x86, without paging). It can set
    /// breakpoints, and continue; it can neither write registers nor step.
    fn vcpu_count(&self) -> u16;

    /// Returns a short name for a vCPU, as `info threads` shows it: "CPU#1 \[halted\]".
    fn vcpu_name(&self, vcpu: VcpuId) -> String;

    /// Returns `false` for a vCPU that has not been started: on x86, one that waits for INIT or a
    /// start-up IPI. Ctrl-C is not reported from it while another vCPU runs code.
    fn is_started(&self, vcpu: VcpuId) -> bool {
        let _ = vcpu;
        true
    }

    /// Returns `true` if the vCPU's last step may have run a handler to its end, for want of a debug register to
    /// stop at it. The client is told so.
    fn is_unguarded(&mut self, vcpu: VcpuId) -> bool {
        let _ = vcpu;
        false
    }

    /// Fills the `groups` of `registers`, and leaves the others alone.
    ///
    /// # Errors
    /// If the hypervisor refuses. The session sends the client an error number.
    fn read_registers(
        &mut self,
        vcpu: VcpuId,
        groups: <Self::Arch as Arch>::Groups,
        registers: &mut <Self::Arch as Arch>::Registers,
    ) -> Result<(), Self::Error>;

    /// Sets the `groups` of a vCPU from `registers`, all or nothing for each group.
    ///
    /// # Errors
    /// If the hypervisor refuses. The session sends the client an error number.
    fn write_registers(
        &mut self,
        vcpu: VcpuId,
        groups: <Self::Arch as Arch>::Groups,
        registers: &<Self::Arch as Arch>::Registers,
    ) -> Result<(), Self::Error>;

    /// Reads a system register that is not among the architecture's [`Registers`](Arch::Registers), by its number:
    /// on x86 an MSR. `None` where the VMM does not provide that.
    fn read_system_register(
        &mut self,
        vcpu: VcpuId,
        number: u32,
    ) -> Option<Result<u64, Self::Error>> {
        let _ = (vcpu, number);
        None
    }

    /// Writes one. The session has checked what the architecture knows of it.
    fn write_system_register(
        &mut self,
        vcpu: VcpuId,
        number: u32,
        value: u64,
    ) -> Option<Result<(), Self::Error>> {
        let _ = (vcpu, number, value);
        None
    }

    /// Disarms a stopped vCPU and drops the debugger's holds on it. The vCPU stays stopped.
    ///
    /// Called for each vCPU when a client has gone and the guest stays stopped. The next order, if there is
    /// one, begins from nothing.
    ///
    /// # Errors
    /// If the hypervisor refuses. The session logs it.
    fn disarm(&mut self, vcpu: VcpuId) -> Result<(), Self::Error>;

    /// Resets the stopped machine in place, as its reset button does: memory, devices and vCPUs are as at the
    /// first start, and the vCPUs stay stopped. The client asks for it with `run` in GDB's extended mode, or
    /// `monitor system_reset`. Its breakpoints stay set.
    ///
    /// # Errors
    /// If the VMM cannot, or the guest has ended ([`StopReason::Exited`](crate::StopReason::Exited)). The client
    /// is told why.
    fn reset(&mut self) -> Result<(), ResetError> {
        Err(ResetError::NotSupported)
    }

    /// Reads devices at a guest-physical address where there is no memory, as this vCPU would. Returns the number
    /// of bytes that could be read, from the start.
    ///
    /// Registers whose reads change something are read only with `side_effects`: the client's user has asked for
    /// them (`monitor mmio on`).
    fn read_device(
        &mut self,
        vcpu: VcpuId,
        address: GuestPhysAddr,
        data: &mut [u8],
        side_effects: bool,
    ) -> usize {
        let _ = (vcpu, address, data, side_effects);
        0
    }

    /// Returns what is known of a vCPU's pending interrupts, for `monitor mask status`.
    fn interrupts(&mut self, vcpu: VcpuId) -> Interrupts;

    /// Runs one of the VMM's own `monitor` commands. Returns `false` if there is no such command;
    /// the session's own commands come first.
    ///
    /// `vcpu` is the selected one, which may not exist. `command` is what the client's user typed after
    /// `monitor`; of an unknown `info NAME` a second call has `NAME` alone. What is written to `out` is
    /// printed on the client's console; writing fails beyond 64 KiB.
    fn monitor(&mut self, vcpu: VcpuId, command: &str, out: &mut dyn fmt::Write) -> bool {
        let _ = (vcpu, command, out);
        false
    }

    /// Returns what `monitor help` prints about the VMM's own commands, a line for each.
    fn monitor_help(&self) -> &str {
        ""
    }
}

/// Why a machine was not reset. It is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResetError {
    /// The VMM has no reset in place.
    #[error("this VMM cannot reset the machine in place: start it again")]
    NotSupported,
    /// It could not be done, for this reason.
    #[error("the machine was not reset: {0}")]
    Failed(String),
}

/// The pending interrupts of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// `mask_hwintr` is in force now.
    pub masked: bool,
    /// Pending vectors (on x86, the local APIC's IRR), lowest first.
    pub pending: Vec<u8>,
    /// An NMI is pending.
    pub nmi_pending: bool,
    /// Why nothing enters the vCPU now, in a few words; empty if something may.
    pub blocked: String,
}

/// What the session wants done. The VMM takes actions with [`Session::next_action`] until it
/// returns `None`, and carries them out in order.
///
/// [`Session::next_action`]: crate::Session::next_action
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// All vCPUs are stopped: run some of them as the plan says. Call [`Session::stopped`] once
    /// all of them are stopped again.
    ///
    /// [`Session::stopped`]: crate::Session::stopped
    Resume(ResumePlan),
    /// Some vCPU runs: stop all. Call [`Session::stopped`] once all are stopped, with an empty
    /// list if none had a reason of its own. Also sent for a guest that runs without a debugger,
    /// when a client attaches.
    ///
    /// [`Session::stopped`]: crate::Session::stopped
    Interrupt,
    /// The debugger has gone, and the guest is to run. All vCPUs are stopped, and memory holds no
    /// breakpoint: drop every hold, disarm everything, and let all of them run. No answer.
    ///
    /// A guest that is to stay stopped has no action: [`Host::disarm`] leaves no trace in it.
    Release,
    /// The client asked to kill the guest: end it. No answer.
    Kill,
}

/// Whether the guest runs when a client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// Some vCPU runs, or may.
    Running,
    /// All vCPUs are stopped, for a reason that is no news.
    Stopped,
}

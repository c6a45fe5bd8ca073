//! What the three modes of `--irqchip` have in common.

use std::fmt;
use std::io;

use crate::entry::{Entering, MustStop, Permit};
use debug_stub::x86_64::stepper::RunState;
use intr_controller::ioapic::IoApicState;
use intr_controller::kvm::{CallError, ChipStateError, LapicRegisters, Observation, ObserveError};
use intr_controller::pic::PicState;
use intr_controller::pit::{LostTicks, PitState, TickCounters};
use intr_controller::{Counters, Gsi, IrqchipMode, MsiMessage};
use kvm_ioctls::VcpuFd;
use vcpu_caps::VcpuId;
use vmm_sys_util::eventfd::EventFd;

use super::chipset::ChipsetThread;
use super::{IrqchipError, SignalError};
use crate::devices::InterruptLines;
use crate::exit::ExitEvent;

/// The state of the chips beside the local APICs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChipsetView {
    pub(crate) pic: PicState,
    pub(crate) ioapic: IoApicState,
    pub(crate) pit: PitState,
}

/// The interrupt chips of one mode.
///
/// The default methods are those of a mode in which all chips are KVM's: KVM does their work itself.
pub(crate) trait Chips: InterruptLines + fmt::Debug {
    /// Which mode it is.
    fn mode(&self) -> IrqchipMode;

    /// See [`Irqchip::signal_msi`](super::Irqchip::signal_msi).
    fn signal_msi(&self, message: MsiMessage) -> Result<bool, SignalError>;

    /// See [`Irqchip::connect`](super::Irqchip::connect).
    fn connect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqchipError>;

    /// What is pending for a vCPU and why it does not enter.
    fn observe(
        &self,
        vcpu: VcpuId,
        fd: &VcpuFd,
        masked: bool,
    ) -> Result<Option<Observation>, ObserveError>;

    /// On the vCPU's thread, before each entry.
    fn before_entry(&self, _: VcpuId, _: &mut VcpuFd, _: Entering) -> Permit {
        Permit::Enter
    }

    /// KVM reports that a vCPU has written EOI for this vector.
    fn end_of_interrupt(&self, _: &VcpuFd, _: u8) {}

    /// Starts the thread that serves the emulated chips. If it panics, it requests the end.
    fn start(&self, _: &ExitEvent) -> io::Result<Option<ChipsetThread>> {
        Ok(None)
    }

    /// What became of the emulated 8254's ticks, and by which policy.
    fn ticks(&self) -> Option<(LostTicks, TickCounters)> {
        None
    }

    /// Guest time passes again, and the thread of the chips has to look at it.
    fn resumed(&self) {}

    /// Whether the local APICs are emulated: a vCPU's thread then has an alarm for their timers.
    fn has_local_timers(&self) -> bool {
        false
    }

    /// What the vCPU waits for, where KVM does not know.
    fn run_state(&self, _: VcpuId) -> Option<RunState> {
        None
    }

    /// What became of each interrupt that has arrived at the vCPU, where its local APIC is emulated.
    fn counters(&self, _: VcpuId) -> Option<Counters> {
        None
    }

    /// What the local APIC's registers read, for a debugger's user. Changes nothing.
    fn lapic(&self, vcpu: VcpuId, fd: &VcpuFd) -> Result<Option<LapicRegisters>, CallError>;

    /// The state of the other chips, for a debugger's user. Changes nothing.
    fn chipset(&self) -> Result<ChipsetView, ChipStateError>;

    /// A debugger has carried HLT out, or ends it.
    fn set_halted(&self, _: VcpuId, _: bool) {}

    /// The vector that enters next if no instruction blocks it, of those that KVM's local APIC does not have: an
    /// NMI, unless NMIs are blocked, or a maskable one, if RFLAGS.IF is `enabled`.
    fn next_interrupt(&self, _: VcpuId, _enabled: bool, _nmis_blocked: bool) -> Option<u8> {
        None
    }

    /// Takes an interrupt that was taken out of KVM and may not enter now. Returns `false` if there is no place
    /// for it here.
    fn requeue(&self, _: VcpuId, _: u8) -> bool {
        false
    }

    /// CR8, where KVM has only a copy.
    fn cr8(&self, _: VcpuId) -> Option<u8> {
        None
    }

    /// A debugger has written CR8.
    fn set_cr8(&self, _: VcpuId, _: u64) {}

    /// After each `KVM_RUN`: the guest may have written CR8.
    fn after_exit(&self, _: VcpuId, _: u64) {}

    /// `KVM_EXIT_HLT`.
    fn halted(&self, _: VcpuId) {}

    /// Sleeps until something has arrived for a halted vCPU, or `must_stop` is true. May return early.
    fn wait(&self, _: VcpuId, _: &MustStop<'_>) {}

    /// A read of the local APIC's page. Returns `false` if the address is not in it.
    fn local_read(&self, _: VcpuId, _: u64, _: &mut [u8]) -> bool {
        false
    }

    /// A write to the local APIC's page. Returns `false` if the address is not in it.
    fn local_write(&self, _: VcpuId, _: u64, _: &[u8]) -> bool {
        false
    }

    /// An RDMSR that KVM has left to the VMM; `None` is #GP.
    fn read_msr(&self, _: VcpuId, _: u32) -> Option<u64> {
        None
    }

    /// A WRMSR that KVM has left to the VMM. Returns `false` for #GP.
    fn write_msr(&self, _: VcpuId, _: &VcpuFd, _: u32, _: u64) -> bool {
        false
    }
}

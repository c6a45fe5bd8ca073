//! The interrupt chips of a machine, in the three modes of `--irqchip`.
//!
//! [`Irqchip`] is what the rest of the machine sees: lines, messages and descriptors of devices go
//! in, and the vCPUs' threads ask it before they enter the guest. Each mode implements one trait,
//! `Chips`. In `kernel` mode KVM does all the work; `split` and `user` emulate a
//! [chipset](intr_controller::chipset), and `user` the local APICs too.

mod chips;
mod chipset;
mod kernel;
mod split;
mod user;

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;

use intr_controller::ioapic::IoApic;
use intr_controller::kvm::{
    CallError, CreateError, KernelIrqchip, KvmClocks, Observation, ObserveError, SplitIrqchip,
    TscControl,
};
use intr_controller::pic::Pic;
use intr_controller::pit::{LostTicks, Pit, TickCounters};
use intr_controller::routing::SourceId;
use intr_controller::{
    ClockRun, Counters, DebugTime, DestinationsError, Gsi, IrqchipMode, LapicConfig, MsiMessage,
};
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    kvm_enable_cap,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use thiserror::Error;
use vcpu_caps::VcpuId;
use vcpu_caps::cpuid::{LocalApic, filtered_msrs};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use chipset::ChipsetThread;
pub use chipset::SharedChipsetError;

use crate::clock::GuestClock;
use crate::devices::{DeviceError, Devices, EdgeLine, InterruptLines, KernelLines};
use crate::exit::ExitEvent;
use crate::layout;
use crate::wake::Waker;
pub(crate) use chips::{Chips, ChipsetView};
use chipset::{Emulated, OnTheBus, Processors, SharedChipset};
use split::SplitProcessors;
use user::UserProcessors;

/// The chips could not be created.
#[derive(Debug, Error)]
pub enum IrqchipError {
    /// KVM's own.
    #[error("KVM's interrupt chips could not be created")]
    Kernel(#[from] CreateError),
    /// KVM's part of a split irqchip.
    #[error("the interrupt chips could not be split")]
    Split(#[from] CallError),
    /// KVM does not let the local APIC's MSRs leave the guest.
    #[error(
        "{call} failed: this KVM does not let a local APIC be in userspace; use --irqchip kernel"
    )]
    Msrs {
        /// Which call.
        call: &'static str,
        /// KVM's error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The emulated chipset.
    #[error(transparent)]
    Chipset(#[from] SharedChipsetError),
    /// The emulated local APICs.
    #[error(transparent)]
    LocalApics(#[from] DestinationsError),
    /// The bus.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// No descriptor for a vCPU.
    #[error("the vCPUs' socket pairs could not be created")]
    Wakers(#[source] io::Error),
    /// An eventfd.
    #[error("a device's interrupt could not be connected")]
    Eventfd(#[source] io::Error),
    /// `KVM_IRQFD`.
    #[error("KVM_IRQFD failed")]
    Irqfd(#[source] kvm_ioctls::Error),
}

/// A message for the local APICs was refused.
#[derive(Debug, Error)]
pub enum SignalError {
    /// By KVM, as malformed.
    #[error(transparent)]
    Kernel(#[from] intr_controller::kvm::MsiError),
    /// By KVM, as malformed.
    #[error(transparent)]
    Split(#[from] CallError),
    /// By the decoder of `user` mode.
    #[error(transparent)]
    User(#[from] intr_controller::MsiError),
}

/// What emulated local APICs have to know of the vCPUs.
#[derive(Clone, Copy, Debug)]
pub struct Processor {
    /// What CPUID says of the local APICs.
    pub apic: LocalApic,
    /// Ticks of the TSC in a second.
    pub tsc_hz: NonZeroU64,
    /// MAXPHYADDR.
    pub physical_address_bits: u8,
}

/// How time passes for the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeConfig {
    /// Whether it passes while a debugger has stopped the guest.
    pub debug_time: DebugTime,
    /// The means by which this host sets a guest's TSC, as verified
    /// ([`vcpu_caps::Capability::TscOffset`]).
    pub tsc: TscControl,
    /// What becomes of ticks of the 8254 that the guest could not be given in time.
    pub lost_ticks: LostTicks,
}

/// The chips of a machine. Clones are the same chips.
#[derive(Clone, Debug)]
pub struct Irqchip {
    chips: Arc<dyn Chips>,
    wakers: Arc<[Waker]>,
    clock: Arc<GuestClock>,
    lost_ticks: LostTicks,
    /// Requested if the emulated chips' thread fails: a guest without timers must not go on.
    exit: ExitEvent,
}

impl Irqchip {
    /// Creates the chips, before the first vCPU, and puts the emulated ones on the bus.
    ///
    /// # Errors
    /// If the host cannot.
    pub fn new(
        mode: IrqchipMode,
        vm: &Arc<VmFd>,
        cpus: u16,
        processor: Processor,
        time: TimeConfig,
        devices: &mut Devices,
        exit: &ExitEvent,
    ) -> Result<Self, IrqchipError> {
        let wakers: Arc<[Waker]> = (0..cpus)
            .map(|_| Waker::new())
            .collect::<io::Result<_>>()
            .map_err(IrqchipError::Wakers)?;
        let clock = Arc::new(GuestClock::new(time.debug_time));
        let chips: Arc<dyn Chips> = match mode {
            IrqchipMode::Kernel => {
                let irqchip = Arc::new(KernelIrqchip::new(Arc::clone(vm))?);
                Arc::new(KernelLines::new(irqchip))
            }
            IrqchipMode::Split => {
                let irqchip = SplitIrqchip::new(Arc::clone(vm))?;
                let processors = SplitProcessors::new(irqchip, Arc::clone(&wakers));
                let chipset = SharedChipset::new(processors, Arc::clone(&clock), time.lost_ticks)?;
                let chipset = Arc::new(chipset);
                add_to_bus(&chipset, devices)?;
                Arc::new(Emulated(chipset))
            }
            IrqchipMode::User => {
                leave_apic_msrs(vm)?;
                let configs = (0..cpus).map(|id| LapicConfig {
                    x2apic: processor.apic.x2apic,
                    tsc_deadline: processor.apic.tsc_deadline,
                    physical_address_bits: processor.physical_address_bits,
                    virtual_wire: true,
                    ..LapicConfig::new(id.into(), id == 0, processor.tsc_hz)
                });
                let processors = UserProcessors::new(configs, Arc::clone(&wakers))?;
                let chipset = SharedChipset::new(processors, Arc::clone(&clock), time.lost_ticks)?;
                let chipset = Arc::new(chipset);
                add_to_bus(&chipset, devices)?;
                Arc::new(Emulated(chipset))
            }
        };
        Ok(Self {
            chips,
            wakers,
            clock,
            lost_ticks: time.lost_ticks,
            exit: exit.clone(),
        })
    }

    /// Which mode it is.
    #[must_use]
    pub fn mode(&self) -> IrqchipMode {
        self.chips.mode()
    }

    /// Sends a message-signalled interrupt. Returns `true` if a local APIC took it; in `user` mode, if
    /// a local APIC has its destination.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn signal_msi(&self, message: MsiMessage) -> Result<bool, SignalError> {
        self.chips.signal_msi(message)
    }

    /// Lets an eventfd raise a GSI: each write is an edge.
    ///
    /// # Errors
    /// If KVM refuses, or there is no descriptor left.
    pub fn connect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqchipError> {
        self.chips.connect(event, gsi)
    }

    /// Guest time.
    #[must_use]
    pub fn clock(&self) -> &GuestClock {
        &self.clock
    }

    /// The policy for lost ticks of the 8254.
    #[must_use]
    pub fn lost_ticks(&self) -> LostTicks {
        self.lost_ticks
    }

    /// The policy for lost ticks of the emulated 8254, and the number of its ticks of each fate. `None` if
    /// the 8254 is KVM's, which does not count them.
    #[must_use]
    pub fn ticks(&self) -> Option<(LostTicks, TickCounters)> {
        self.chips.ticks()
    }

    /// What became of each interrupt that has arrived at a vCPU. `None` if its local APIC is KVM's, which does
    /// not count.
    #[must_use]
    pub fn counters(&self, vcpu: VcpuId) -> Option<Counters> {
        self.chips.counters(vcpu)
    }

    /// Takes the clocks over that KVM keeps. `line` is a device's that is connected.
    pub(crate) fn take_clocks(&self, clocks: KvmClocks<Arc<VmFd>>, line: Arc<EdgeLine>) {
        self.clock.take_over(clocks, vec![line]);
    }

    /// What is pending for a vCPU and why it does not enter; `masked` is whether `mask_hwintr` is on.
    ///
    /// # Errors
    /// If KVM does not report the vCPU's state.
    pub fn observe(
        &self,
        vcpu: VcpuId,
        fd: &VcpuFd,
        masked: bool,
    ) -> Result<Option<Observation>, ObserveError> {
        self.chips.observe(vcpu, fd, masked)
    }

    /// What the vCPUs' threads and the debugger ask the chips of this mode.
    pub(crate) fn chips(&self) -> &dyn Chips {
        &*self.chips
    }

    /// The wake-up of a vCPU.
    pub(crate) fn waker(&self, vcpu: VcpuId) -> Option<&Waker> {
        self.wakers.get(vcpu.index())
    }

    /// Starts the thread of the emulated chips, if there are any.
    pub(crate) fn start(&self) -> io::Result<Option<ChipsetThread>> {
        self.chips.start(&self.exit)
    }

    /// vCPUs are about to run until something stops them.
    pub(crate) fn guest_runs(&self) {
        self.clock.start(ClockRun::Free);
    }

    /// A step begins, on the vCPU's own thread.
    pub(crate) fn guest_steps(&self) {
        self.clock.start(ClockRun::Step);
        self.chips.resumed();
    }

    /// A step is not over soon: the vCPU's own thread goes on with it.
    pub(crate) fn step_goes_on(&self) {
        self.chips.resumed();
    }

    /// A step begins that is over soon: the thread that runs it serves the chips.
    pub(crate) fn step_begins(&self) {
        self.clock.start(ClockRun::Step);
    }

    /// All vCPUs have stopped.
    pub(crate) fn guest_stops(&self) {
        self.clock.stop();
    }
}

impl InterruptLines for Irqchip {
    fn set_line(&self, gsi: Gsi, source: SourceId, level: bool) {
        self.chips.set_line(gsi, source, level);
    }
}

/// The mode as vcpu-caps has it, which knows no interrupt controller.
#[must_use]
pub const fn capability_mode(mode: IrqchipMode) -> vcpu_caps::IrqchipMode {
    match mode {
        IrqchipMode::Kernel => vcpu_caps::IrqchipMode::Kernel,
        IrqchipMode::Split => vcpu_caps::IrqchipMode::Split,
        IrqchipMode::User => vcpu_caps::IrqchipMode::User,
    }
}

fn add_to_bus<P: Processors + 'static>(
    chipset: &Arc<SharedChipset<P>>,
    devices: &mut Devices,
) -> Result<(), DeviceError> {
    for (port, count) in Pic::PORTS.into_iter().chain(Pit::PORTS) {
        devices.add(port, count, Arc::new(OnTheBus(Arc::clone(chipset))))?;
    }
    devices.add_mmio(
        layout::IOAPIC.into(),
        IoApic::WINDOW,
        Arc::new(OnTheBus(Arc::clone(chipset))),
    )
}

/// The chips of `user` mode for one vCPU, with its local APIC enabled.
#[cfg(test)]
pub(crate) fn chips_for_tests() -> impl Chips {
    user::for_tests()
}

/// Lets accesses to the local APIC's MSRs leave the guest.
fn leave_apic_msrs(vm: &VmFd) -> Result<(), IrqchipError> {
    let failed = |call| move |source| IrqchipError::Msrs { call, source };
    let mut capability = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..Default::default()
    };
    // Those that KVM refuses, such as the x2APIC's without a local APIC, and those that are filtered.
    let reasons = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_FILTER;
    capability.args = [reasons.into(), 0, 0, 0];
    vm.enable_cap(&capability)
        .map_err(failed("KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)"))?;
    let ranges: Vec<_> = filtered_msrs(vcpu_caps::IrqchipMode::User)
        .iter()
        .map(|range| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: range.first,
            msr_count: range.count,
            // None is allowed. A range is shorter than this.
            bitmap: &[0; 32],
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
        .map_err(failed("KVM_X86_SET_MSR_FILTER"))
}

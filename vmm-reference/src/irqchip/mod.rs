//! The interrupt chips of a machine, in the three modes of `--irqchip`.
//!
//! [`Irqchip`] is what the rest of the machine sees: lines, messages and descriptors of devices go
//! in, and the vCPUs' threads ask it before they enter the guest. `kernel` has KVM do all that;
//! `user` and `split` have a [board](intr_controller::board) of ours.

mod clock;
mod shared;
mod split;
mod user;

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use debug_stub::kvm::{Entering, Permit};
use intr_controller::ioapic::IoApic;
use intr_controller::kvm::{
    CallError, CreateError, KernelIrqchip, Observation, ObserveError, SplitIrqchip, observe,
    observe_split,
};
use intr_controller::pic::Pic;
use intr_controller::pit::Pit;
use intr_controller::routing::SourceId;
use intr_controller::{
    DestinationFormat, DestinationsError, Gsi, IrqchipMode, LapicConfig, MsiMessage,
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

pub use clock::{GuestClock, Moment};
pub(crate) use shared::BoardThread;
pub use shared::SharedBoardError;
pub use split::SplitChips;
pub use user::UserChips;

use crate::devices::{DeviceError, Devices, InterruptLines, KernelLines};
use crate::layout;
use crate::vcpu::Waker;
use shared::{OnTheBus, Processors, SharedBoard};
use split::SplitProcessors;
use user::UserProcessors;

/// The chips could not be made.
#[derive(Debug, Error)]
pub enum IrqchipError {
    /// KVM's own.
    #[error("KVM's interrupt chips could not be made")]
    Kernel(#[from] CreateError),
    /// KVM's part of a split irqchip.
    #[error("the interrupt chips could not be split")]
    Split(#[from] CallError),
    /// KVM does not hand MSRs of the local APIC over.
    #[error(
        "{call} failed: this KVM does not let a local APIC be in userspace; use --irqchip kernel"
    )]
    Msrs {
        /// Which call.
        call: &'static str,
        /// What it answered.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Our board.
    #[error(transparent)]
    Board(#[from] SharedBoardError),
    /// Our local APICs.
    #[error(transparent)]
    LocalApics(#[from] DestinationsError),
    /// The bus.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// No descriptor for a vCPU.
    #[error("the vCPUs' socket pairs could not be made")]
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
    /// By our decoder.
    #[error(transparent)]
    User(#[from] intr_controller::MsiError),
}

/// What local APICs of ours have to know of the vCPUs.
#[derive(Clone, Copy, Debug)]
pub struct Processor {
    /// What CPUID says of the local APICs.
    pub apic: LocalApic,
    /// Ticks of the TSC in a second.
    pub tsc_hz: NonZeroU64,
    /// MAXPHYADDR.
    pub physical_address_bits: u8,
}

/// The chips of a machine. Clones are the same chips.
#[derive(Clone, Debug)]
pub struct Irqchip {
    chips: Chips,
    wakers: Arc<[Waker]>,
}

#[derive(Clone, Debug)]
enum Chips {
    Kernel(Arc<KernelLines>),
    Split(Arc<SplitChips>),
    User(Arc<UserChips>),
}

impl Irqchip {
    /// Makes the chips, before the first vCPU, and puts ours on the bus.
    ///
    /// # Errors
    /// If the host cannot.
    pub fn new(
        mode: IrqchipMode,
        vm: &Arc<VmFd>,
        cpus: u16,
        processor: Processor,
        devices: &mut Devices,
    ) -> Result<Self, IrqchipError> {
        let wakers: Arc<[Waker]> = (0..cpus)
            .map(|_| Waker::new())
            .collect::<io::Result<_>>()
            .map_err(IrqchipError::Wakers)?;
        let clock = Arc::new(GuestClock::default());
        let chips = match mode {
            IrqchipMode::Kernel => {
                let irqchip = Arc::new(KernelIrqchip::new(Arc::clone(vm))?);
                Chips::Kernel(Arc::new(KernelLines::new(irqchip)))
            }
            IrqchipMode::Split => {
                let irqchip = SplitIrqchip::new(Arc::clone(vm))?;
                let processors = SplitProcessors::new(irqchip, Arc::clone(&wakers));
                let board = Arc::new(SharedBoard::new(processors, Arc::clone(&clock))?);
                add_to_bus(&board, devices)?;
                Chips::Split(Arc::new(SplitChips { board, clock }))
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
                let board = Arc::new(SharedBoard::new(processors, Arc::clone(&clock))?);
                add_to_bus(&board, devices)?;
                Chips::User(Arc::new(UserChips { board, clock }))
            }
        };
        Ok(Self { chips, wakers })
    }

    /// Whose chips they are.
    #[must_use]
    pub fn mode(&self) -> IrqchipMode {
        match &self.chips {
            Chips::Kernel(_) => IrqchipMode::Kernel,
            Chips::Split(_) => IrqchipMode::Split,
            Chips::User(_) => IrqchipMode::User,
        }
    }

    /// Sends a message-signalled interrupt. Answers whether some local APIC took it; in `user` mode
    /// whether one answers to its destination.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn signal_msi(&self, message: MsiMessage) -> Result<bool, SignalError> {
        use intr_controller::kvm::MsiOutcome::Accepted;
        Ok(match &self.chips {
            Chips::Kernel(lines) => lines.irqchip().signal_msi(message)? == Accepted,
            Chips::Split(chips) => chips.board.processors.irqchip.signal_msi(message)? == Accepted,
            Chips::User(chips) => {
                let message = message.decode(DestinationFormat::default())?;
                chips.board.processors.send(&message) > 0
            }
        })
    }

    /// Lets an eventfd raise a GSI: each write is an edge.
    ///
    /// # Errors
    /// If KVM refuses, or there is no descriptor left.
    pub fn connect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqchipError> {
        let ours = || event.try_clone().map_err(IrqchipError::Eventfd);
        match &self.chips {
            Chips::Kernel(lines) => lines
                .irqchip()
                .vm()
                .register_irqfd(event, gsi.0)
                .map_err(IrqchipError::Irqfd)?,
            Chips::Split(chips) => chips.board.connect(ours()?, gsi),
            Chips::User(chips) => chips.board.connect(ours()?, gsi),
        }
        Ok(())
    }

    /// What waits for a vCPU and why; `masked` is whether `mask_hwintr` is on.
    ///
    /// # Errors
    /// If KVM does not tell.
    pub fn observe(
        &self,
        vcpu: VcpuId,
        fd: &VcpuFd,
        masked: bool,
    ) -> Result<Option<Observation>, ObserveError> {
        match &self.chips {
            Chips::Kernel(lines) => observe(fd, lines.irqchip(), masked).map(Some),
            Chips::Split(chips) => {
                chips.board.advance(chips.clock.read().now);
                observe_split(fd, chips.board.intr(), masked).map(Some)
            }
            Chips::User(chips) => chips.observe(vcpu, fd, masked).transpose(),
        }
    }

    /// What the vCPU waits for, in one word, where KVM does not know.
    pub(crate) fn waiting(&self, vcpu: VcpuId) -> Option<&'static str> {
        match &self.chips {
            Chips::User(chips) => chips.waiting(vcpu),
            Chips::Kernel(_) | Chips::Split(_) => None,
        }
    }

    /// CR8, where KVM has only a copy.
    pub(crate) fn cr8(&self, vcpu: VcpuId) -> Option<u8> {
        match &self.chips {
            Chips::User(chips) => chips.cr8(vcpu),
            Chips::Kernel(_) | Chips::Split(_) => None,
        }
    }

    /// A debugger has written CR8.
    pub(crate) fn set_cr8(&self, vcpu: VcpuId, value: u64) {
        if let Chips::User(chips) = &self.chips {
            chips.set_cr8(vcpu, value);
        }
    }

    /// A vCPU's, for its thread.
    pub(crate) fn waker(&self, vcpu: VcpuId) -> Option<&Waker> {
        self.wakers.get(vcpu.index())
    }

    /// The thread of our chips, if they are ours.
    pub(crate) fn start(&self) -> io::Result<Option<BoardThread>> {
        match &self.chips {
            Chips::Kernel(_) => Ok(None),
            Chips::Split(chips) => BoardThread::start(&chips.board).map(Some),
            Chips::User(chips) => BoardThread::start(&chips.board).map(Some),
        }
    }

    fn clock(&self) -> Option<&GuestClock> {
        match &self.chips {
            Chips::Kernel(_) => None,
            Chips::Split(chips) => Some(&chips.clock),
            Chips::User(chips) => Some(&chips.clock),
        }
    }

    /// vCPUs are about to run, until somebody stops them.
    pub(crate) fn guest_runs(&self) {
        self.step_begins();
        match &self.chips {
            Chips::Kernel(_) => {}
            Chips::Split(chips) => chips.board.resumed(),
            Chips::User(chips) => chips.board.resumed(),
        }
    }

    /// A step begins that is soon over: whoever runs it serves the chips.
    pub(crate) fn step_begins(&self) {
        if let Some(clock) = self.clock() {
            clock.start();
        }
    }

    /// All vCPUs have stopped.
    pub(crate) fn guest_stops(&self) {
        if let Some(clock) = self.clock() {
            clock.stop();
        }
    }

    pub(crate) fn before_entry(&self, vcpu: VcpuId, fd: &mut VcpuFd, entering: Entering) -> Permit {
        match &self.chips {
            Chips::Kernel(_) => Permit::Enter,
            Chips::Split(chips) => chips.before_entry(vcpu, fd, entering),
            Chips::User(chips) => chips.before_entry(vcpu, fd, entering),
        }
    }

    pub(crate) fn end_of_interrupt(&self, fd: &VcpuFd, vector: u8) {
        if let Chips::Split(chips) = &self.chips {
            chips.end_of_interrupt(fd, vector);
        }
    }

    /// The chips, if the local APICs are ours.
    pub(crate) fn user(&self) -> Option<&UserChips> {
        match &self.chips {
            Chips::User(chips) => Some(chips),
            Chips::Kernel(_) | Chips::Split(_) => None,
        }
    }

    pub(crate) fn wait(&self, vcpu: VcpuId, stop: &AtomicBool) {
        if let Some(chips) = self.user() {
            chips.wait(vcpu, stop);
        }
    }
}

impl InterruptLines for Irqchip {
    fn set_line(&self, gsi: Gsi, source: SourceId, level: bool) {
        match &self.chips {
            Chips::Kernel(lines) => lines.set_line(gsi, source, level),
            Chips::Split(chips) => chips.board.set_line(gsi, source, level),
            Chips::User(chips) => chips.board.set_line(gsi, source, level),
        }
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
    board: &Arc<SharedBoard<P>>,
    devices: &mut Devices,
) -> Result<(), DeviceError> {
    for (port, count) in Pic::PORTS.into_iter().chain(Pit::PORTS) {
        devices.add(port, count, Arc::new(OnTheBus(Arc::clone(board))))?;
    }
    devices.add_mmio(
        layout::IOAPIC.into(),
        IoApic::WINDOW,
        Arc::new(OnTheBus(Arc::clone(board))),
    )
}

/// Has the local APIC's MSRs leave the guest.
fn leave_apic_msrs(vm: &VmFd) -> Result<(), IrqchipError> {
    let failed = |call| move |source| IrqchipError::Msrs { call, source };
    let mut capability = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..Default::default()
    };
    // Those that KVM refuses, as the x2APIC's without a local APIC, and those that are filtered.
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

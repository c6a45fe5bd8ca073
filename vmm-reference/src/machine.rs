//! A machine: a VM with memory, devices, a loaded kernel, and vCPUs ready to run.

use std::num::NonZeroU64;
use std::sync::Arc;

use intr_controller::kvm::{CallError, KvmClocks, TscControl};
use intr_controller::pit::LostTicks;
use intr_controller::{IrqchipMode, MsiMessage};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vcpu_caps::VcpuId;
use vcpu_caps::kvm::OpenError;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::{self, AcpiError, Entry, MpTableError, SetupError};
use crate::devices::{
    DebugConsole, DeviceError, Devices, EdgeLine, Firmware, Rtc, SERIAL_IRQ, SerialDevice,
    SerialError, SerialOutput, TestMachine,
};
use crate::error::with_causes;
use crate::exit::{ExitEvent, OnReset};
use crate::exit_status::ExitStatus;
use crate::irqchip::{Irqchip, IrqchipError, Processor, TimeConfig};
use crate::layout;
use crate::loader::{self, ImageFile, LoadError, Loaded, Module};
use crate::memory::{self, GuestRam, MemoryError, MemoryLayout};

/// The configuration of a machine.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The kernel.
    pub kernel: ImageFile,
    /// The initrd, or the kernel's modules.
    pub modules: Vec<Module>,
    /// The command line.
    pub cmdline: String,
    /// Number of vCPUs; at least one.
    pub cpus: u16,
    /// Bytes of memory.
    pub memory: u64,
    /// Core dumps of this process hold the guest's memory.
    pub dump_guest_memory: bool,
    /// Where COM1's output goes.
    pub serial: SerialOutput,
    /// Where the debug console's output goes, if there is one.
    pub debugcon: Option<SerialOutput>,
    /// Which interrupt chips are KVM's and which are emulated.
    pub irqchip: IrqchipMode,
    /// `true` if the timers of emulated local APICs have TSC-deadline mode. Only if the host was verified
    /// to pass its MSR on ([`vcpu_caps::Capability::UserTscDeadline`]).
    pub tsc_deadline: bool,
    /// Whether there are the devices of test images.
    pub testdev: bool,
    /// Whether the vCPUs have x2APIC mode.
    pub x2apic: bool,
    /// How time passes for the guest.
    pub time: TimeConfig,
    /// What a reset by the guest leads to.
    pub on_reset: OnReset,
}

impl MachineConfig {
    /// One vCPU with x2APIC, 128 MiB, no serial output, KVM's interrupt chips.
    #[must_use]
    pub fn new(kernel: ImageFile) -> Self {
        Self {
            kernel,
            modules: Vec::new(),
            cmdline: String::new(),
            cpus: 1,
            memory: 128 << 20,
            dump_guest_memory: false,
            serial: SerialOutput::None,
            debugcon: None,
            irqchip: IrqchipMode::Kernel,
            tsc_deadline: false,
            testdev: false,
            x2apic: true,
            time: TimeConfig {
                lost_ticks: LostTicks::Reinject,
                ..TimeConfig::default()
            },
            on_reset: OnReset::default(),
        }
    }
}

/// What a machine is built from, at its start and at each reset: its configuration, and what outlives a reset.
#[derive(Clone, Debug)]
pub struct Blueprint {
    config: Arc<MachineConfig>,
    serial: Arc<SerialDevice>,
    debug_console: Option<Arc<DebugConsole>>,
    exit: ExitEvent,
}

impl Blueprint {
    fn new(config: &MachineConfig) -> Result<Self, MachineError> {
        let serial = SerialDevice::new(&config.serial).map_err(DeviceError::from)?;
        let exit = ExitEvent::new().map_err(|source| MachineError::Ioctl {
            call: "eventfd",
            source: kvm_ioctls::Error::from(source),
        })?;
        let debug_console = config.debugcon.as_ref().map(DebugConsole::new);
        let debug_console = debug_console.transpose().map_err(DeviceError::from)?;
        Ok(Self {
            config: Arc::new(config.clone()),
            serial: Arc::new(serial),
            debug_console: debug_console.map(Arc::new),
            exit,
        })
    }

    /// What a reset by the guest leads to.
    #[must_use]
    pub fn on_reset(&self) -> OnReset {
        self.config.on_reset
    }

    /// Builds the machine.
    ///
    /// # Errors
    /// As [`Machine::new`]. A machine that was built before is as it was.
    pub fn build(&self) -> Result<Machine, MachineError> {
        let machine = Machine::build(self)?;
        self.serial.reset(Arc::clone(&machine.serial_line));
        Ok(machine)
    }
}

/// A machine could not be created.
#[derive(Debug, Error)]
pub enum MachineError {
    /// `/dev/kvm` cannot be used.
    #[error(transparent)]
    OpenKvm(#[from] OpenError),
    /// An ioctl failed.
    #[error("{call} failed")]
    Ioctl {
        /// The ioctl.
        call: &'static str,
        /// The kernel's error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// More vCPUs than the host can give, or none.
    #[error("this host can give a VM 1 to {max} vCPUs, not {asked}; choose another --cpus")]
    Cpus {
        /// The number requested.
        asked: u16,
        /// The largest number possible.
        max: usize,
    },
    /// The memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel, the initrd or the command line.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The interrupt chips.
    #[error(transparent)]
    Irqchip(#[from] IrqchipError),
    /// KVM does not tell how fast the guest's TSC is, which a local APIC in userspace must know.
    #[error("KVM_GET_TSC_KHZ returned {0}; use --irqchip kernel")]
    TscFrequency(u32),
    /// The guest's clocks.
    #[error("the guest's clocks cannot be taken over")]
    Clocks(#[source] CallError),
    /// The devices.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The MP table.
    #[error(transparent)]
    MpTable(#[from] MpTableError),
    /// A vCPU's first state.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

impl MachineError {
    /// The exit status of a process that ends for this error.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::OpenKvm(_)
            | Self::Ioctl { .. }
            | Self::Irqchip(_)
            | Self::TscFrequency(_)
            | Self::Clocks(_)
            | Self::Setup(_)
            | Self::Memory(MemoryError::Map { .. }) => ExitStatus::HostCannot,
            Self::Cpus { .. }
            | Self::Memory(MemoryError::Size(_))
            | Self::Load(_)
            | Self::Devices(_)
            | Self::Acpi(_)
            | Self::MpTable(_) => ExitStatus::Usage,
        }
    }
}

/// INIT, edge, to every local APIC (SDM 3A 10.11).
const INIT_TO_ALL: MsiMessage = MsiMessage {
    address: 0xfeef_f000,
    data: 0x4500,
};

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Machine {
    /// The system handle.
    pub kvm: Kvm,
    /// Its interrupt chips, and the VM with them. It must outlive nothing: the vCPUs keep the VM alive
    /// in the kernel.
    pub irqchip: Irqchip,
    /// The guest's memory.
    pub memory: GuestRam,
    /// Its devices.
    pub devices: Arc<Devices>,
    /// Its vCPUs, by id; the first starts at the kernel's entry, the others wait for a SIPI.
    pub vcpus: Vec<VcpuFd>,
    /// Requests the end of the machine.
    pub exit: ExitEvent,
    /// How the kernel starts.
    pub entry: Entry,
    /// To build it again.
    pub blueprint: Blueprint,
    /// The serial port's interrupt, which is connected to the chips.
    serial_line: Arc<EdgeLine>,
}

impl Machine {
    /// Creates a machine.
    ///
    /// # Errors
    /// If the kernel, the host or the configuration cannot be used; [`MachineError::status`] says which.
    pub fn new(config: &MachineConfig) -> Result<Self, MachineError> {
        Blueprint::new(config)?.build()
    }

    fn build(blueprint: &Blueprint) -> Result<Self, MachineError> {
        let Blueprint {
            config,
            serial,
            debug_console,
            exit,
        } = blueprint;
        let kvm = vcpu_caps::kvm::open()?;
        let max = kvm.get_max_vcpus();
        if config.cpus == 0 || usize::from(config.cpus) > max {
            return Err(MachineError::Cpus {
                asked: config.cpus,
                max,
            });
        }
        let layout = MemoryLayout::new(config.memory)?;
        let memory = if config.testdev {
            layout.allocate_with_firmware()?
        } else {
            layout.allocate()?
        };
        if !config.dump_guest_memory {
            if let Err(error) = memory::keep_out_of_core_dumps(&memory) {
                tracing::warn!(%error, "a core dump of this process would hold the guest's memory");
            }
        }
        boot::write_bios_data(&memory)?;
        boot::write_acpi(&memory, config.cpus)?;
        boot::write_mp_table(&memory, config.cpus)?;
        let Loaded { entry, data } = load(&memory, layout, config)?;

        let mut devices = Devices::new(Arc::clone(serial), exit, config.on_reset)?;
        if let Some(console) = debug_console {
            devices.add_debug_console(Arc::clone(console))?;
        }
        let vm = create_vm(&kvm)?;
        register_memory(&vm, &memory)?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(layout::KVM_TSS)
            .map_err(ioctl("KVM_SET_TSS_ADDR"))?;
        let vm = Arc::new(vm);
        let mode = config.irqchip;
        let cpuid =
            boot::CpuidTables::new(&kvm, config.cpus, mode, config.tsc_deadline, config.x2apic)?;
        // A vCPU has KVM's local APIC if KVM has one when the vCPU is created. Emulated local APICs need the
        // frequency of its TSC.
        let ours = mode == IrqchipMode::User;
        let mut vcpus = Vec::new();
        let mut tsc_hz = None;
        if ours {
            vcpus = create_vcpus(&vm, config.cpus)?;
            tsc_hz = Some(tsc_frequency(&vcpus)?);
        }
        let processor = Processor {
            apic: cpuid.apic(),
            tsc_hz: tsc_hz.unwrap_or(NonZeroU64::MIN),
            physical_address_bits: cpuid.physical_address_bits(),
        };
        let irqchip = Irqchip::new(
            mode,
            &vm,
            config.cpus,
            processor,
            config.time,
            &mut devices,
            exit,
        )?;
        if !ours {
            vcpus = create_vcpus(&vm, config.cpus)?;
        }
        // A new one for each machine: KVM binds an eventfd to one VM, and the old one is there yet.
        let line = Arc::new(
            EdgeLine::new()
                .map_err(SerialError::EventFd)
                .map_err(DeviceError::from)?,
        );
        irqchip.connect(line.event(), SERIAL_IRQ)?;
        let clocks = kvm_clocks(&vm, &vcpus, config, tsc_hz)?;
        irqchip.take_clocks(clocks, Arc::clone(&line));
        let guest = irqchip.clone();
        let rtc = Rtc::new(layout, Box::new(move || guest.clock().wall()));
        devices.add_rtc(rtc.clone())?;
        if config.testdev {
            let machine = TestMachine {
                lines: Arc::new(irqchip.clone()),
                memory: memory.clone(),
                cpus: config.cpus,
                rtc,
                firmware: match entry {
                    Entry::Protected { .. } => {
                        boot::write_firmware(&memory)?;
                        Some(firmware(&memory, layout, config, &irqchip))
                    }
                    // The firmware sets what PVH and multiboot want.
                    Entry::Linux32 { .. } | Entry::Long { .. } => None,
                },
            };
            devices.add_test_devices(machine, exit)?;
        }
        for (index, vcpu) in (0..).zip(&vcpus) {
            boot::setup_vcpu(vcpu, VcpuId(index), &cpuid, entry, data)?;
        }
        Ok(Self {
            kvm,
            irqchip,
            memory,
            devices: Arc::new(devices),
            vcpus,
            exit: exit.clone(),
            entry,
            blueprint: blueprint.clone(),
            serial_line: line,
        })
    }
}

/// Places the kernel and all that it needs in memory.
fn load(
    memory: &GuestRam,
    layout: MemoryLayout,
    config: &MachineConfig,
) -> Result<Loaded, MachineError> {
    let (kernel, modules) = (&config.kernel, &config.modules);
    let loaded = loader::load(memory, layout, kernel, modules, &config.cmdline)?;
    boot::prepare_memory(memory, loaded.entry, loaded.data)?;
    Ok(loaded)
}

fn firmware(
    memory: &GuestRam,
    layout: MemoryLayout,
    config: &MachineConfig,
    irqchip: &Irqchip,
) -> Firmware {
    let (memory, config, irqchip) = (memory.clone(), config.clone(), irqchip.clone());
    Firmware {
        send_init: Box::new(move || {
            if let Err(error) = irqchip.signal_msi(INIT_TO_ALL) {
                tracing::error!(%error, "INIT could not be sent");
            }
        }),
        load: Box::new(move || {
            load(&memory, layout, &config)
                .map(|loaded| loaded.entry)
                .map_err(|error| with_causes(&error))
        }),
    }
}

/// Creates a VM. A signal to this thread, as a kick is, interrupts KVM_CREATE_VM ("Interrupted system call") while it
/// registers the MMU notifier.
fn create_vm(kvm: &Kvm) -> Result<VmFd, MachineError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(ioctl("KVM_CREATE_VM")),
        }
    }
}

fn create_vcpus(vm: &VmFd, count: u16) -> Result<Vec<VcpuFd>, MachineError> {
    (0..count)
        .map(|id| vm.create_vcpu(id.into()).map_err(ioctl("KVM_CREATE_VCPU")))
        .collect()
}

/// In Hz, the same for all.
fn tsc_frequency(vcpus: &[VcpuFd]) -> Result<NonZeroU64, MachineError> {
    let khz = match vcpus.first() {
        Some(vcpu) => vcpu.get_tsc_khz().map_err(ioctl("KVM_GET_TSC_KHZ"))?,
        None => 0,
    };
    NonZeroU64::new(1000 * u64::from(khz)).ok_or(MachineError::TscFrequency(khz))
}

fn kvm_clocks(
    vm: &Arc<VmFd>,
    vcpus: &[VcpuFd],
    config: &MachineConfig,
    tsc_hz: Option<NonZeroU64>,
) -> Result<KvmClocks<Arc<VmFd>>, MachineError> {
    let TimeConfig {
        debug_time: _,
        tsc,
        lost_ticks,
    } = config.time;
    let tsc_hz = match tsc_hz {
        Some(hz) => hz,
        None if tsc == TscControl::None => NonZeroU64::MIN,
        None => tsc_frequency(vcpus)?,
    };
    let vm = Arc::clone(vm);
    KvmClocks::new(vm, vcpus, tsc, tsc_hz, config.irqchip, lost_ticks).map_err(MachineError::Clocks)
}

fn ioctl(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Ioctl { call, source }
}

/// Gives KVM the guest's memory.
fn register_memory(vm: &VmFd, memory: &GuestRam) -> Result<(), MachineError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot,
            flags: if region.start_addr() == layout::FIRMWARE_PAGE {
                kvm_bindings::KVM_MEM_READONLY
            } else {
                0
            },
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a mapping of its own that nothing else in this process refers to
        // except through vm-memory's volatile accesses (MemoryLayout::allocate made it), slots do
        // not overlap (vm-memory refuses overlapping regions), and it stays mapped as long as the
        // VM exists: Machine holds both, and drops the vCPUs' owner before the memory.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

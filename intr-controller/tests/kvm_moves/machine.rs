//! One machine in one of the three modes, and what of it moves to another.

use std::time::Duration;

use intr_controller::chipset::{Chipset, ChipsetState};
use intr_controller::ioapic::{IoApicPins, IoApicState, IoApicVersion};
use intr_controller::kvm::{
    KernelIrqchip, KvmLapic, MsiOutcome, SplitEntry, SplitIrqchip, SplitVcpu, UserEntry, UserVcpu,
    X2ApicFormat,
};
use intr_controller::pic::PicState;
use intr_controller::pit::PitState;
use intr_controller::routing::{GsiRouter, SourceId};
use intr_controller::{
    Acceptance, DestinationFormat, Effect, Gsi, GuestTime, InterruptMessage, Lapic, LapicConfig,
    LapicState, MsiMessage,
};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::guest::{HANDLER_PORT, LOOP_PORT, Memory};
use crate::kvms_chips::{ioapic_of, monotonic_ns, pics, set_ioapic, set_pics};

/// The device, and its line.
pub(crate) const LINE: Gsi = Gsi(5);
const DEVICE: u8 = 0;
const LAPIC_PAGE: u64 = 0xfee0_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Kernel,
    Split,
    User,
}

/// One clock for all machines of a test: guest time goes on while the guest moves.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    start: i64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: monotonic_ns(),
        }
    }

    pub(crate) fn now(&self) -> GuestTime {
        GuestTime::from_ns(u64::try_from(monotonic_ns() - self.start).unwrap())
    }
}

/// What moves, beside memory.
#[derive(Clone, Debug)]
pub(crate) struct Moving {
    pub(crate) regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    pub(crate) lapic: LapicState,
    pub(crate) chipset: ChipsetState,
}

/// Where the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Loop,
    Handler,
}

enum Chips {
    Kernel(KernelIrqchip<VmFd>),
    Split {
        chip: SplitIrqchip<VmFd>,
        chipset: Box<Chipset>,
        vcpu: SplitVcpu,
    },
    User {
        _vm: VmFd,
        chipset: Box<Chipset>,
        vcpu: Box<UserVcpu>,
    },
}

pub(crate) struct Machine {
    pub(crate) vcpu: VcpuFd,
    chips: Chips,
    clock: Clock,
}

/// A chipset with the PC's routes, whose IOAPIC is as KVM's is.
pub(crate) fn chipset() -> Chipset {
    let format = DestinationFormat::Xapic;
    Chipset::new(&GsiRouter::pc_entries(), IoApicVersion::V11, format).unwrap()
}

fn device() -> SourceId {
    SourceId::new(DEVICE).unwrap()
}

pub(crate) fn config(vcpu: &VcpuFd) -> LapicConfig {
    let hz = 1000 * u64::from(vcpu.get_tsc_khz().unwrap());
    LapicConfig {
        // KVM's IOAPIC has no EOI register.
        eoi_suppression: false,
        ..LapicConfig::new(0, true, hz.try_into().unwrap())
    }
}

impl Machine {
    /// At power-on.
    pub(crate) fn new(mode: Mode, memory: &Memory, clock: Clock) -> Self {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        memory.give(&vm);
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let new_vcpu = |vm: &VmFd| {
            let vcpu = vm.create_vcpu(0).unwrap();
            vcpu.set_cpuid2(&cpuid).unwrap();
            vcpu
        };
        let (vcpu, chips) = match mode {
            Mode::Kernel => {
                let chip = KernelIrqchip::new(vm).unwrap();
                (new_vcpu(chip.vm()), Chips::Kernel(chip))
            }
            Mode::Split => {
                let chip = SplitIrqchip::new(vm).unwrap();
                let vcpu = new_vcpu(chip.vm());
                let chips = Chips::Split {
                    chip,
                    chipset: Box::new(chipset()),
                    vcpu: SplitVcpu::default(),
                };
                (vcpu, chips)
            }
            Mode::User => {
                let vcpu = new_vcpu(&vm);
                let chips = Chips::User {
                    _vm: vm,
                    chipset: Box::new(chipset()),
                    vcpu: Box::new(UserVcpu::new(config(&vcpu))),
                };
                (vcpu, chips)
            }
        };
        Self { vcpu, chips, clock }
    }

    /// KVM completes the guest's last access.
    fn complete(&mut self) {
        self.vcpu.set_kvm_immediate_exit(1);
        let error = self.vcpu.run().map(|exit| format!("{exit:?}")).unwrap_err();
        assert_eq!(error.errno(), libc::EINTR);
        self.vcpu.set_kvm_immediate_exit(0);
    }

    /// An entry that is kicked before it begins: KVM has then what it was given, and the guest has not.
    pub(crate) fn kicked(&mut self) {
        self.complete();
        self.prepare();
        self.complete();
    }

    /// Everything, after the guest's last access has been completed.
    pub(crate) fn save(mut self) -> Moving {
        self.complete();
        let now = self.clock.now();
        let (lapic, chipset) = match &mut self.chips {
            Chips::Kernel(chip) => {
                let mut chipset = chipset();
                let ioapic = ioapic_state(chip.vm());
                let raised = ioapic.lines.contains(pin(LINE));
                // What it sends is in KVM's local APIC.
                chipset.set_line(LINE, device(), raised, |_| ()).unwrap();
                let chipset = ChipsetState {
                    pic: pic_state(chip.vm()),
                    ioapic,
                    pit: pit_state(chip.vm(), now),
                    ..chipset.save()
                };
                (kvm_lapic(&self.vcpu, now), chipset)
            }
            Chips::Split { chipset, .. } => (kvm_lapic(&self.vcpu, now), chipset.save()),
            Chips::User { chipset, vcpu, .. } => {
                // Under the mask KVM has nothing that the guest has not.
                let entry = vcpu.prepare(&mut self.vcpu, true, now, Duration::ZERO);
                assert_eq!(entry.unwrap(), UserEntry::Run);
                (vcpu.lapic().save(), chipset.save())
            }
        };
        Moving {
            regs: self.vcpu.get_regs().unwrap(),
            sregs: self.vcpu.get_sregs().unwrap(),
            lapic,
            chipset,
        }
    }

    /// Goes on as another machine.
    pub(crate) fn restore(&mut self, moving: &Moving) {
        let now = self.clock.now();
        let sregs = kvm_sregs {
            apic_base: moving.lapic.apic_base,
            // An interrupt that KVM was given is one that the guest has taken, or is in `lapic`.
            interrupt_bitmap: [0; 4],
            ..moving.sregs
        };
        self.vcpu.set_sregs(&sregs).unwrap();
        self.vcpu.set_regs(&moving.regs).unwrap();
        let mut lapic = Lapic::new(config(&self.vcpu));
        lapic.restore(&moving.lapic).unwrap();
        let kvm = KvmLapic::new(&lapic, X2ApicFormat::Legacy, now);
        match &mut self.chips {
            Chips::Kernel(chip) => {
                let vm = chip.vm();
                self.vcpu.set_lapic(&kvm.page).unwrap();
                set_pics(vm, moving.chipset.pic.to_kvm().unwrap());
                set_ioapic(vm, moving.chipset.ioapic.to_kvm().unwrap());
                vm.set_pit2(&moving.chipset.pit.to_kvm(monotonic_ns()))
                    .unwrap();
                // KVM keeps who holds a line beside the chips.
                let raised = moving.chipset.ioapic.lines.contains(pin(LINE));
                chip.set_irq_line(LINE, raised).unwrap();
            }
            Chips::Split { chip, chipset, .. } => {
                chipset.restore(&moving.chipset).unwrap();
                chip.route(&chipset.ioapic().eoi_routes()).unwrap();
                self.vcpu.set_lapic(&kvm.page).unwrap();
            }
            Chips::User { chipset, vcpu, .. } => {
                chipset.restore(&moving.chipset).unwrap();
                *vcpu.lapic_mut() = lapic;
            }
        }
    }

    /// A device sends an edge.
    pub(crate) fn msi(&mut self, number: u8) {
        let msi = MsiMessage {
            address: LAPIC_PAGE,
            data: number.into(),
        };
        let message = msi.decode(DestinationFormat::Xapic).unwrap();
        self.deliver([message]);
    }

    fn deliver(&mut self, messages: impl IntoIterator<Item = InterruptMessage>) {
        for message in messages {
            match &mut self.chips {
                Chips::Kernel(chip) => {
                    let msi = MsiMessage::encode(&message).unwrap();
                    assert_eq!(chip.signal_msi(msi).unwrap(), MsiOutcome::Accepted);
                }
                Chips::Split { chip, .. } => {
                    assert_eq!(chip.deliver(&message).unwrap(), MsiOutcome::Accepted);
                }
                Chips::User { vcpu, .. } => {
                    assert_eq!(vcpu.lapic_mut().accept(&message), Acceptance::Accepted);
                }
            }
        }
    }

    /// A device drives its line.
    pub(crate) fn line(&mut self, up: bool) {
        let mut sent = Vec::new();
        match &mut self.chips {
            Chips::Kernel(chip) => chip.set_irq_line(LINE, up).unwrap(),
            Chips::Split { chipset, .. } | Chips::User { chipset, .. } => {
                let deliver = |message| sent.push(message);
                chipset.set_line(LINE, device(), up, deliver).unwrap();
            }
        }
        self.deliver(sent);
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        let mut sent = Vec::new();
        let chipset = match &mut self.chips {
            Chips::Kernel(_) => panic!("KVM's IOAPIC hears its own EOIs"),
            Chips::Split { chipset, .. } => {
                let awaited = !chipset.ioapic().awaiting_eoi(vector).is_empty();
                if !awaited || !SplitVcpu::broadcasts_eoi(&self.vcpu, vector).unwrap() {
                    return;
                }
                chipset
            }
            Chips::User { chipset, .. } => chipset,
        };
        let _ = chipset.eoi(vector, |message| sent.push(message));
        self.deliver(sent);
    }

    /// What goes before each entry.
    fn prepare(&mut self) -> GuestTime {
        let now = self.clock.now();
        match &mut self.chips {
            Chips::Kernel(_) => {}
            Chips::Split { chipset, vcpu, .. } => {
                let entry = vcpu.prepare(&mut self.vcpu, chipset.intr(), false);
                assert_eq!(entry.unwrap(), SplitEntry::Run);
            }
            Chips::User { vcpu, .. } => {
                let entry = vcpu.prepare(&mut self.vcpu, false, now, Duration::ZERO);
                assert_eq!(entry.unwrap(), UserEntry::Run);
            }
        }
        now
    }

    /// Runs until the guest says where it is.
    pub(crate) fn run(&mut self) -> Stop {
        loop {
            let now = self.prepare();
            let mut ended = None;
            let mut stop = None;
            let mut effect = Effect::None;
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(LOOP_PORT, _)) => stop = Some(Stop::Loop),
                Ok(VcpuExit::IoOut(HANDLER_PORT, _)) => stop = Some(Stop::Handler),
                Ok(VcpuExit::IrqWindowOpen | VcpuExit::Intr) => {}
                Ok(VcpuExit::IoapicEoi(vector)) => ended = Some(vector),
                Ok(VcpuExit::MmioWrite(address, data)) => match &mut self.chips {
                    Chips::User { vcpu, .. } => {
                        let offset = u16::try_from(address - LAPIC_PAGE).unwrap();
                        effect = vcpu.lapic_mut().mmio_write(offset, data, now);
                    }
                    _ => panic!("KVM's local APIC has no write of {address:#x}"),
                },
                Err(error) if error.errno() == libc::EINTR => {}
                other => panic!("KVM_RUN: {other:?}"),
            }
            if let Chips::User { vcpu, .. } = &mut self.chips {
                let cr8 = self.vcpu.get_kvm_run().cr8;
                vcpu.returned(cr8);
            }
            match effect {
                Effect::None => {}
                Effect::EoiBroadcast(vector) => ended = Some(vector.get()),
                other => panic!("the guest writes EOI only: {other:?}"),
            }
            if let Some(vector) = ended {
                self.end_of_interrupt(vector);
            }
            if let Some(stop) = stop {
                return stop;
            }
        }
    }
}

fn pin(gsi: Gsi) -> intr_controller::ioapic::IoApicPin {
    intr_controller::ioapic::IoApicPin::new(u8::try_from(gsi.0).unwrap()).unwrap()
}

fn kvm_lapic(vcpu: &VcpuFd, now: GuestTime) -> LapicState {
    let kvm = KvmLapic {
        apic_base: vcpu.get_sregs().unwrap().apic_base,
        page: vcpu.get_lapic().unwrap(),
        tsc_deadline: 0,
        nmis: 0,
        smi: false,
        waiting_for_sipi: false,
    };
    kvm.state(&config(vcpu), now).unwrap()
}

fn pic_state(vm: &VmFd) -> PicState {
    let [master, slave] = pics(vm);
    PicState::from_kvm(&master, &slave).unwrap()
}

fn ioapic_state(vm: &VmFd) -> IoApicState {
    let from = IoApicState::from_kvm(&ioapic_of(vm), IoApicVersion::V11).unwrap();
    assert_eq!(from.unsent, IoApicPins(0));
    from.state
}

fn pit_state(vm: &VmFd, now: GuestTime) -> PitState {
    PitState::from_kvm(&vm.get_pit2().unwrap(), now, monotonic_ns()).unwrap()
}

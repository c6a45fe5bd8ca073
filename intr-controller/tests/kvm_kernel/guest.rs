//! The [real-mode guest](crate::real_mode) with KVM's own interrupt chips.

use intr_controller::MsiMessage;
use intr_controller::kvm::{KernelIrqchip, MsiOutcome, Observation, observe};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_IRQCHIP_PIC_MASTER,
    kvm_guest_debug, kvm_irqchip, kvm_lapic_state,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::real_mode::{RealMode, in_loop};

/// Where the tests map the 8259A's eight inputs.
pub(crate) const PIC_BASE: u8 = 0x70;

/// PUSH AX; MOV AL, 20h; OUT 20h, AL; POP AX: non-specific EOI to the 8259A.
const PIC_EOI: [u8; 6] = [0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58];

/// The input that `enable_pic` makes level-triggered.
pub(crate) const PIC_LEVEL_INPUT: u8 = 5;

pub(crate) struct Guest {
    pub(crate) vcpu: VcpuFd,
    pub(crate) chip: KernelIrqchip<VmFd>,
    /// What the VMM's composer of `kvm_guest_debug` would keep.
    block_irq: bool,
    memory: RealMode,
}

impl Guest {
    /// A guest in its loop, with these RFLAGS.
    pub(crate) fn new(rflags: u64) -> Self {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        let memory = RealMode::new(&vm, |number| match number & 0xf8 {
            PIC_BASE => &PIC_EOI,
            _ => &[],
        });
        let chip = KernelIrqchip::new(vm).unwrap();
        let vcpu = chip.vm().create_vcpu(0).unwrap();
        memory.start(&vcpu, rflags);

        let guest = Self {
            vcpu,
            chip,
            block_irq: false,
            memory,
        };
        // As firmware leaves it: the APIC enabled by software.
        guest.edit_lapic(|page| put(page, 0x0f0, 0x1ff));
        guest
    }

    /// Has the steps from here on set KVM_GUESTDBG_BLOCKIRQ, or not.
    pub(crate) fn mask(&mut self, masked: bool) {
        self.block_irq = masked;
    }

    pub(crate) fn observe(&self) -> Observation {
        observe(&self.vcpu, &self.chip, self.block_irq).unwrap()
    }

    /// Steps. Returns how many of the steps ended outside the loop.
    pub(crate) fn step(&mut self, steps: usize) -> usize {
        let mut control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        if self.block_irq {
            control |= KVM_GUESTDBG_BLOCKIRQ;
        }
        let debug = kvm_guest_debug {
            control,
            ..Default::default()
        };
        let mut outside = 0;
        for _ in 0..steps {
            self.vcpu.set_guest_debug(&debug).unwrap();
            match self.vcpu.run().unwrap() {
                VcpuExit::Debug(debug) => {
                    outside += usize::from(!in_loop(debug.pc));
                }
                other => panic!("a step ended with {other:?}"),
            }
        }
        outside
    }

    /// The vectors whose handlers ran, in order.
    pub(crate) fn log(&self) -> Vec<u8> {
        self.memory.log(&self.vcpu)
    }

    /// An edge-triggered fixed interrupt to the vCPU with APIC id 0.
    pub(crate) fn msi(&self, number: u8) {
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: number.into(),
        };
        assert_eq!(self.chip.signal_msi(message).unwrap(), MsiOutcome::Accepted);
    }

    pub(crate) fn set_flags(&self, rflags: u64) {
        let mut regs = self.vcpu.get_regs().unwrap();
        regs.rflags = rflags;
        self.vcpu.set_regs(&regs).unwrap();
    }

    pub(crate) fn set_mp_state(&self, mp_state: u32) {
        self.vcpu
            .set_mp_state(kvm_bindings::kvm_mp_state { mp_state })
            .unwrap();
    }

    /// Writes registers of the local APIC. Keeps what is pending, since nothing arrives in that time.
    pub(crate) fn edit_lapic(&self, edit: impl FnOnce(&mut kvm_lapic_state)) {
        let mut page = self.vcpu.get_lapic().unwrap();
        edit(&mut page);
        self.vcpu.set_lapic(&page).unwrap();
    }

    /// Programs the 8259A's vector base, and LINT0 to pass its INTR on.
    pub(crate) fn enable_pic(&self) {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_PIC_MASTER,
            ..Default::default()
        };
        self.chip.vm().get_irqchip(&mut chip).unwrap();
        chip.chip.pic.irq_base = PIC_BASE;
        chip.chip.pic.elcr = 1 << PIC_LEVEL_INPUT;
        self.chip.vm().set_irqchip(&chip).unwrap();
        self.edit_lapic(|page| put(page, 0x350, 0x700));
    }
}

pub(crate) fn put(page: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in page.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
        *register = i8::from_ne_bytes([byte]);
    }
}

/// Sets the in-service register: what an EOI leaves, or a handler that runs.
pub(crate) fn set_in_service(page: &mut kvm_lapic_state, number: Option<u8>) {
    for register in 0..8 {
        let value = match number {
            Some(number) if number / 32 == register => 1 << (number % 32),
            _ => 0,
        };
        put(page, 0x100 + 0x10 * usize::from(register), value);
    }
}

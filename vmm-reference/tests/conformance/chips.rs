//! Accesses to the chips, as operations of a script.

use super::registers::*;
use super::script::{Handle, Script, Size};

/// The local APIC.
impl Script {
    pub fn lapic_write(&mut self, register: u64, value: u32) {
        self.write(Size::Dword, APIC_PAGE + register, value.into());
    }

    pub fn lapic_read(&mut self, register: u64) -> Handle {
        self.read(Size::Dword, APIC_PAGE + register)
    }

    /// The bit of a vector in ISR, TMR or IRR is bit [`bit`] of the result.
    pub fn lapic_read_set(&mut self, register: u64, vector: u8) -> Handle {
        self.lapic_read(register + u64::from(vector / 32) * 0x10)
    }

    /// Enabled by software, with the spurious vector 0xff.
    pub fn enable_lapic(&mut self) {
        self.lapic_write(SVR, SVR_ENABLE | u32::from(SPURIOUS));
    }

    /// Writes the low half of the ICR.
    pub fn ipi(&mut self, low: u32) {
        self.lapic_write(ICR, low);
    }

    /// To a destination, in xAPIC format.
    pub fn ipi_to(&mut self, destination: u8, low: u32) {
        self.lapic_write(ICR2, u32::from(destination) << 24);
        self.lapic_write(ICR, low);
    }

    pub fn self_ipi(&mut self, vector: u8) {
        self.ipi(ICR_SELF | ICR_ASSERT | u32::from(vector));
    }

    /// Writes EOI.
    pub fn eoi(&mut self) {
        self.lapic_write(EOI, 0);
    }

    /// From xAPIC to x2APIC mode; the local APIC is then enabled by software.
    pub fn enable_x2apic(&mut self) {
        self.switch_to_x2apic();
        self.wrmsr(x2(SVR), u64::from(SVR_ENABLE | u32::from(SPURIOUS)));
    }

    /// From xAPIC to x2APIC mode, on the first vCPU.
    pub fn switch_to_x2apic(&mut self) -> Handle {
        self.wrmsr(
            APIC_BASE,
            APIC_PAGE | APIC_BASE_BSP | APIC_BASE_EN | APIC_BASE_X2,
        )
    }

    pub fn x2_self_ipi(&mut self, vector: u8) -> Handle {
        self.wrmsr(X2_SELF_IPI, vector.into())
    }

    pub fn x2_ipi(&mut self, destination: u32, low: u32) -> Handle {
        self.wrmsr(X2_ICR, u64::from(destination) << 32 | u64::from(low))
    }
}

/// Returns `true` if a vector's bit is set in the result of [`Script::lapic_read_set`].
pub fn bit(word: u64, vector: u8) -> bool {
    word >> (vector % 32) & 1 == 1
}

/// The IOAPIC.
impl Script {
    pub fn ioapic_write(&mut self, register: u8, value: u32) {
        self.write(Size::Dword, IOREGSEL, register.into());
        self.write(Size::Dword, IOWIN, value.into());
    }

    pub fn ioapic_read(&mut self, register: u8) -> Handle {
        self.write(Size::Dword, IOREGSEL, register.into());
        self.read(Size::Dword, IOWIN)
    }

    /// Writes a pin's entry, the half with the mask last.
    pub fn rte(&mut self, pin: u8, entry: u64) {
        let half = |shift| u32::try_from(entry >> shift & u64::from(u32::MAX)).unwrap();
        self.ioapic_write(rte_high(pin), half(32));
        self.ioapic_write(rte_low(pin), half(0));
    }

    /// Sends the pin's interrupt as this vector to the first vCPU, by its edge.
    pub fn rte_edge(&mut self, pin: u8, vector: u8) {
        self.rte(pin, vector.into());
    }

    /// By its level.
    pub fn rte_level(&mut self, pin: u8, vector: u8) {
        self.rte(pin, u64::from(vector) | RTE_LEVEL);
    }

    /// The low half of a pin's entry.
    pub fn rte_read(&mut self, pin: u8) -> Handle {
        self.ioapic_read(rte_low(pin))
    }
}

pub fn rte_low(pin: u8) -> u8 {
    0x10 + 2 * pin
}

pub fn rte_high(pin: u8) -> u8 {
    rte_low(pin) + 1
}

/// The 8259As.
impl Script {
    /// Initialises both as usual: vectors from [`PIC1_BASE`] and [`PIC2_BASE`], the second at input 2, no
    /// automatic EOI, nothing masked. An enabled local APIC passes their interrupts on to the processor.
    pub fn init_pics(&mut self) {
        self.init_pic1(ICW4_8086);
        self.init_pic2(ICW4_8086);
        self.enable_lapic();
        self.lapic_write(LVT_LINT0, LVT_EXTINT);
    }

    pub fn init_pic1(&mut self, icw4: u8) {
        self.outb(PIC1, ICW1 | ICW1_ICW4);
        self.outb(PIC1_IMR, PIC1_BASE);
        self.outb(PIC1_IMR, 1 << 2);
        self.outb(PIC1_IMR, icw4);
        self.outb(PIC1_IMR, 0);
    }

    pub fn init_pic2(&mut self, icw4: u8) {
        self.outb(PIC2, ICW1 | ICW1_ICW4);
        self.outb(PIC2_IMR, PIC2_BASE);
        self.outb(PIC2_IMR, 2);
        self.outb(PIC2_IMR, icw4);
        self.outb(PIC2_IMR, 0);
    }

    /// IRR of the 8259A whose first port is `pic`.
    pub fn pic_irr(&mut self, pic: u16) -> Handle {
        self.outb(pic, OCW3_READ_IRR);
        self.inb(pic)
    }

    /// ISR.
    pub fn pic_isr(&mut self, pic: u16) -> Handle {
        self.outb(pic, OCW3_READ_ISR);
        self.inb(pic)
    }

    /// The poll command, and its result.
    pub fn pic_poll(&mut self, pic: u16) -> Handle {
        self.outb(pic, OCW3_POLL);
        self.inb(pic)
    }
}

/// The 8254.
impl Script {
    /// Channel, access low byte then high byte, mode; then the count.
    pub fn pit(&mut self, channel: u8, mode: u8, count: u16) {
        let [low, high] = count.to_le_bytes();
        self.outb(PIT_CONTROL, channel << 6 | 0x30 | mode << 1);
        self.outb(PIT0 + u16::from(channel), low);
        self.outb(PIT0 + u16::from(channel), high);
    }
}

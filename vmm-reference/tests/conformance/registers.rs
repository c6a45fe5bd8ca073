//! Addresses and bits, from the manuals and not from the code under test.

/// Local APIC registers: offsets in its page (SDM 3A, table 11-1).
pub const ID: u64 = 0x020;
pub const VERSION: u64 = 0x030;
pub const TPR: u64 = 0x080;
pub const APR: u64 = 0x090;
pub const PPR: u64 = 0x0a0;
pub const EOI: u64 = 0x0b0;
pub const RRD: u64 = 0x0c0;
pub const LDR: u64 = 0x0d0;
pub const DFR: u64 = 0x0e0;
pub const SVR: u64 = 0x0f0;
pub const ISR: u64 = 0x100;
pub const TMR: u64 = 0x180;
pub const IRR: u64 = 0x200;
pub const ESR: u64 = 0x280;
pub const LVT_CMCI: u64 = 0x2f0;
pub const ICR: u64 = 0x300;
pub const ICR2: u64 = 0x310;
pub const LVT_TIMER: u64 = 0x320;
pub const LVT_THERMAL: u64 = 0x330;
pub const LVT_PMC: u64 = 0x340;
pub const LVT_LINT0: u64 = 0x350;
pub const LVT_LINT1: u64 = 0x360;
pub const LVT_ERROR: u64 = 0x370;
pub const TMICT: u64 = 0x380;
pub const TMCCT: u64 = 0x390;
pub const TDCR: u64 = 0x3e0;

/// Where the local APIC is at reset.
pub const APIC_PAGE: u64 = 0xfee0_0000;

/// Spurious-interrupt vector register (SDM 3A, figure 11-23).
pub const SVR_ENABLE: u32 = 1 << 8;
pub const SVR_NO_EOI_BROADCAST: u32 = 1 << 12;
pub const SPURIOUS: u8 = 0xff;

/// Version register: directed EOI is supported (SDM 3A, figure 11-7).
pub const VERSION_DIRECTED_EOI: u64 = 1 << 24;

/// Interrupt command register (SDM 3A, figure 11-12).
pub const ICR_LOWEST: u32 = 1 << 8;
pub const ICR_SMI: u32 = 2 << 8;
pub const ICR_RESERVED_MODE: u32 = 3 << 8;
pub const ICR_NMI: u32 = 4 << 8;
pub const ICR_LOGICAL: u32 = 1 << 11;
pub const ICR_BUSY: u64 = 1 << 12;
pub const ICR_ASSERT: u32 = 1 << 14;
pub const ICR_LEVEL: u32 = 1 << 15;
pub const ICR_SELF: u32 = 1 << 18;
pub const ICR_ALL: u32 = 2 << 18;
pub const ICR_ALL_BUT_SELF: u32 = 3 << 18;
pub const INIT: u32 = 5 << 8 | ICR_ASSERT;
pub const INIT_DEASSERT: u32 = 5 << 8 | ICR_LEVEL;
pub const STARTUP: u32 = 6 << 8 | ICR_ASSERT;

/// Local vector table (SDM 3A, figure 11-8), and its delivery modes.
pub const LVT_MASKED: u32 = 1 << 16;
pub const LVT_LEVEL: u32 = 1 << 15;
pub const LVT_REMOTE_IRR: u32 = 1 << 14;
pub const LVT_ACTIVE_LOW: u32 = 1 << 13;
pub const LVT_PERIODIC: u32 = 1 << 17;
pub const LVT_DEADLINE: u32 = 2 << 17;
pub const LVT_NMI: u32 = 4 << 8;
pub const LVT_EXTINT: u32 = 7 << 8;

/// Divide configuration register (SDM 3A, figure 11-10).
pub const DIVIDE_BY_1: u32 = 0b1011;
pub const DIVIDE_BY_2: u32 = 0b0000;
pub const DIVIDE_BY_16: u32 = 0b0011;
pub const DIVIDE_BY_128: u32 = 0b1010;

/// Error status register (SDM 3A, figure 11-9).
pub const ESR_SEND_ILLEGAL: u64 = 1 << 5;
pub const ESR_RECEIVE_ILLEGAL: u64 = 1 << 6;
pub const ESR_ILLEGAL_REGISTER: u64 = 1 << 7;

/// Destination format register (SDM 3A, figure 11-14).
pub const DFR_FLAT: u32 = 0xffff_ffff;
pub const DFR_CLUSTER: u32 = 0x0fff_ffff;

/// IA32_APIC_BASE (SDM 3A, figure 11-5).
pub const APIC_BASE: u32 = 0x1b;
pub const APIC_BASE_BSP: u64 = 1 << 8;
pub const APIC_BASE_X2: u64 = 1 << 10;
pub const APIC_BASE_EN: u64 = 1 << 11;

/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;

/// IA32_TIME_STAMP_COUNTER.
pub const TSC: u32 = 0x10;

/// x2APIC registers (SDM 3A, table 11-6): the MSR of an xAPIC register.
pub const fn x2(register: u64) -> u32 {
    0x800 + register.to_le_bytes()[0] as u32 / 0x10 + (register.to_le_bytes()[1] as u32) * 0x10
}
pub const X2_EOI: u32 = 0x80b;
pub const X2_ICR: u32 = 0x830;
pub const X2_SELF_IPI: u32 = 0x83f;

/// IOAPIC registers (82093AA 3.1, and the EOI register of ICH).
pub const IOREGSEL: u64 = 0xfec0_0000;
pub const IOWIN: u64 = 0xfec0_0010;
pub const IOEOIR: u64 = 0xfec0_0040;
pub const IOAPIC_ID: u8 = 0x00;
pub const IOAPIC_VERSION: u8 = 0x01;
pub const IOAPIC_ARB: u8 = 0x02;
pub const PINS: u8 = 24;

/// Redirection table entry (82093AA 3.2.4).
pub const RTE_LOWEST: u64 = 1 << 8;
pub const RTE_SMI: u64 = 2 << 8;
pub const RTE_NMI: u64 = 4 << 8;
pub const RTE_INIT: u64 = 5 << 8;
pub const RTE_EXTINT: u64 = 7 << 8;
pub const RTE_LOGICAL: u64 = 1 << 11;
pub const RTE_BUSY: u64 = 1 << 12;
pub const RTE_ACTIVE_LOW: u64 = 1 << 13;
pub const RTE_REMOTE_IRR: u64 = 1 << 14;
pub const RTE_LEVEL: u64 = 1 << 15;
pub const RTE_MASKED: u64 = 1 << 16;

/// 8259A ports and words (8259A data sheet; ELCR: 82371SB).
pub const PIC1: u16 = 0x20;
pub const PIC1_IMR: u16 = 0x21;
pub const PIC2: u16 = 0xa0;
pub const PIC2_IMR: u16 = 0xa1;
pub const ELCR1: u16 = 0x4d0;
pub const ELCR2: u16 = 0x4d1;
pub const ICW1: u8 = 0x10;
pub const ICW1_SINGLE: u8 = 0x02;
pub const ICW1_ICW4: u8 = 0x01;
pub const ICW4_8086: u8 = 0x01;
pub const ICW4_AUTO_EOI: u8 = 0x02;
pub const ICW4_FULLY_NESTED: u8 = 0x10;
pub const OCW2_EOI: u8 = 0x20;
pub const OCW2_SPECIFIC: u8 = 0x60;
pub const OCW2_ROTATE_EOI: u8 = 0xa0;
pub const OCW2_ROTATE_SPECIFIC: u8 = 0xe0;
pub const OCW2_SET_PRIORITY: u8 = 0xc0;
pub const OCW2_ROTATE_IN_AEOI: u8 = 0x80;
pub const OCW2_STOP_ROTATE_IN_AEOI: u8 = 0x00;
pub const OCW3_READ_IRR: u8 = 0x0a;
pub const OCW3_READ_ISR: u8 = 0x0b;
pub const OCW3_POLL: u8 = 0x0c;
pub const OCW3_SPECIAL_MASK: u8 = 0x68;
pub const OCW3_NO_SPECIAL_MASK: u8 = 0x48;

/// 8254 ports, and port B of the system, with the speaker's gate.
pub const PIT0: u16 = 0x40;
pub const PIT2: u16 = 0x42;
pub const PIT_CONTROL: u16 = 0x43;
pub const PORT_B: u16 = 0x61;

/// The 8259As' vectors in the tests.
pub const PIC1_BASE: u8 = 0x30;
pub const PIC2_BASE: u8 = 0x38;

/// NMI.
pub const NMI: u8 = 2;

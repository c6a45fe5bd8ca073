//! The x2APIC's registers (SDM 3A, "Extended XAPIC (x2APIC)").

use crate::prelude::*;

use super::MODE;

/// One vCPU in x2APIC mode, enabled by software.
fn x2apic() -> Program {
    let mut p = Program::new(MODE);
    p.end_with_x2_eoi();
    p.enable_x2apic();
    p
}

/// Returns `true` if a write ends with #GP.
fn write_faults(register: u32, value: u64) -> bool {
    let mut p = x2apic();
    let write = p.wrmsr(register, value);
    let log = p.run();
    log.faults(write)
}

/// Returns `true` if a read ends with #GP.
fn read_faults(register: u32) -> bool {
    let mut p = x2apic();
    let read = p.rdmsr(register);
    let log = p.run();
    log.faults(read)
}

#[test]
fn cpuid_offers_x2apic() {
    let mut p = Program::new(MODE);
    let leaf = p.cpuid(1);
    let log = p.run();
    // ECX[21], in the low half of the second result.
    assert_eq!(log.second(leaf) >> 21 & 1, 1);
}

#[test]
fn the_mode_is_entered_and_shown() {
    let mut p = Program::new(MODE);
    let enter = p.switch_to_x2apic();
    let base = p.rdmsr(APIC_BASE);
    let log = p.run();
    assert!(!log.faults(enter));
    assert_eq!(
        log[base],
        APIC_PAGE | APIC_BASE_BSP | APIC_BASE_EN | APIC_BASE_X2
    );
}

#[test]
fn in_xapic_mode_the_registers_fault() {
    let mut p = Program::new(MODE);
    let read = p.rdmsr(x2(SVR));
    let write = p.wrmsr(x2(TPR), 0);
    let icr = p.wrmsr(X2_ICR, 0);
    let own = p.x2_self_ipi(0x41);
    let log = p.run();
    assert!(log.faults(read) && log.faults(write) && log.faults(icr) && log.faults(own));
}

#[test]
fn entering_keeps_what_was_programmed() {
    let mut p = Program::new(MODE);
    p.end_with_x2_eoi();
    p.enable_lapic();
    p.lapic_write(TPR, 0x30);
    p.lapic_write(LVT_ERROR, 0x45);
    p.lapic_write(TDCR, DIVIDE_BY_16);
    p.self_ipi(0x51);
    p.switch_to_x2apic();
    let values = [SVR, TPR, LVT_ERROR, TDCR].map(|register| p.rdmsr(x2(register)));
    p.window();
    let log = p.run();
    assert_eq!(values.map(|value| log[value]), [0x1ff, 0x30, 0x45, 3]);
    assert_eq!(log.vectors(), [0x51]);
}

#[test]
fn the_id_has_32_bits() {
    let mut p = Program::smp(MODE, 2);
    let base = APIC_PAGE | APIC_BASE_EN | APIC_BASE_X2;
    p.start_all();
    p.cpu(1).wrmsr(APIC_BASE, base);
    let id = p.cpu(1).rdmsr(x2(ID));
    p.meet();
    let log = p.run();
    assert_eq!(log[id], 1);
}

#[test]
fn the_logical_id_follows_from_the_id() {
    let mut p = Program::smp(MODE, 18);
    p.start_all();
    let mut ldrs = Vec::new();
    for cpu in 0..18 {
        let bsp = if cpu == 0 { APIC_BASE_BSP } else { 0 };
        let script = p.cpu(cpu);
        script.wrmsr(APIC_BASE, APIC_PAGE | APIC_BASE_EN | APIC_BASE_X2 | bsp);
        ldrs.push(script.rdmsr(x2(LDR)));
    }
    p.meet();
    let log = p.run();
    for (id, ldr) in (0..).zip(ldrs) {
        assert_eq!(log[ldr], (id >> 4) << 16 | 1 << (id & 15));
    }
}

#[test]
fn mmio_does_not_reach_the_apic() {
    let mut p = x2apic();
    p.lapic_write(TPR, 0x20);
    p.lapic_write(ICR, ICR_SELF | ICR_ASSERT | 0x41);
    let tpr = p.rdmsr(x2(TPR));
    let read = p.lapic_read(SVR);
    p.window();
    let log = p.run();
    assert_eq!(log[tpr], 0);
    assert_eq!(log[read], 0xffff_ffff);
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn tpr_and_cr8_are_one_register() {
    let mut p = x2apic();
    p.wrmsr(x2(TPR), 0x50);
    let cr8 = p.read_cr8();
    p.write_cr8(0x3);
    let tpr = p.rdmsr(x2(TPR));
    let ppr = p.rdmsr(x2(PPR));
    let log = p.run();
    assert_eq!(log[cr8], 5);
    assert_eq!((log[tpr], log[ppr]), (0x30, 0x30));
}

#[test]
fn tpr_holds_back() {
    let mut p = x2apic();
    p.wrmsr(x2(TPR), 0x40);
    p.x2_self_ipi(0x4f);
    p.window();
    p.mark(1);
    p.wrmsr(x2(TPR), 0x30);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Got(0x4f)]);
}

#[test]
fn self_ipi_sends_to_the_sender() {
    let mut p = x2apic();
    let sent = p.x2_self_ipi(0x41);
    let irr = p.rdmsr(x2(IRR + 0x20));
    p.window();
    let log = p.run();
    assert!(!log.faults(sent));
    assert!(bit(log[irr], 0x41));
    assert_eq!(log.vectors(), [0x41]);
}

#[test]
fn self_ipi_is_write_only_and_has_eight_bits() {
    assert!(read_faults(X2_SELF_IPI));
    assert!(write_faults(X2_SELF_IPI, 1 << 32 | 0x41));
}

#[test]
fn reserved_bits_of_self_ipi_fault() {
    assert!(write_faults(X2_SELF_IPI, 0x141));
    assert!(write_faults(X2_SELF_IPI, 1 << 31 | 0x41));
}

#[test]
fn icr_is_one_write_of_64_bits() {
    let mut p = x2apic();
    p.x2_ipi(0, ICR_ASSERT | 0x41);
    let icr = p.rdmsr(X2_ICR);
    p.window();
    let log = p.run();
    assert_eq!(log[icr], u64::from(ICR_ASSERT | 0x41));
    assert_eq!(log.vectors(), [0x41]);
}

#[test]
fn icr_reads_as_written_with_its_destination() {
    let mut p = x2apic();
    p.x2_ipi(0x1234_5678, ICR_ASSERT | 0x41);
    let icr = p.rdmsr(X2_ICR);
    let log = p.run();
    assert_eq!(log[icr], 0x1234_5678_0000_4041);
}

#[test]
fn the_high_half_of_icr_does_not_exist() {
    assert!(read_faults(x2(ICR2)));
    assert!(write_faults(x2(ICR2), 0));
}

#[test]
fn dfr_does_not_exist() {
    assert!(read_faults(x2(DFR)));
    assert!(write_faults(x2(DFR), 0xffff_ffff));
}

#[test]
fn arbitration_and_remote_read_do_not_exist() {
    for register in [APR, RRD] {
        assert!(read_faults(x2(register)), "{register:#x}");
        assert!(write_faults(x2(register), 0), "{register:#x}");
    }
}

#[test]
fn reserved_registers_fault() {
    let mut p = x2apic();
    let mut accesses = Vec::new();
    for register in [
        0x800, 0x801, 0x804, 0x807, 0x829, 0x82e, 0x83a, 0x83d, 0x840, 0x8ff,
    ] {
        accesses.push((register, p.rdmsr(register)));
        accesses.push((register, p.wrmsr(register, 0)));
    }
    let log = p.run();
    for (register, access) in accesses {
        assert!(log.faults(access), "{register:#x}");
    }
}

#[test]
fn read_only_registers_fault_on_writes() {
    let mut p = x2apic();
    let mut writes = Vec::new();
    for register in [
        ID,
        VERSION,
        PPR,
        LDR,
        ISR,
        ISR + 0x70,
        TMR,
        IRR,
        IRR + 0x70,
        TMCCT,
    ] {
        writes.push((register, p.wrmsr(x2(register), 0)));
    }
    let log = p.run();
    for (register, write) in writes {
        assert!(log.faults(write), "{register:#x}");
    }
}

#[test]
fn eoi_is_write_only_and_takes_only_0() {
    assert!(read_faults(X2_EOI));
    assert!(!write_faults(X2_EOI, 0));
    let kvm = MODE.deviates(
        Chip::LocalApic,
        "EOI takes any 32 bits (lapic.c, kvm_lapic_reg_write: APIC_EOI)",
    );
    assert_eq!(write_faults(X2_EOI, 1), !kvm);
}

#[test]
fn esr_takes_only_0() {
    assert!(!write_faults(x2(ESR), 0));
    assert!(write_faults(x2(ESR), 1));
}

#[test]
fn high_halves_fault() {
    let mut p = x2apic();
    let mut writes = Vec::new();
    for register in [TPR, EOI, SVR, ESR, LVT_TIMER, LVT_ERROR, TMICT, TDCR] {
        writes.push((register, p.wrmsr(x2(register), 1 << 32)));
    }
    let log = p.run();
    for (register, write) in writes {
        assert!(log.faults(write), "{register:#x}");
    }
}

/// Low halves with a reserved bit.
#[test]
fn reserved_bits_of_registers_fault() {
    let kvm = MODE.deviates(
        Chip::LocalApic,
        "reserved bits of TPR, SVR, the LVTs and the divide configuration are ignored (lapic.c, \
         kvm_lapic_reg_write)",
    );
    let mut p = x2apic();
    let mut writes = Vec::new();
    for (register, value) in [
        (TPR, 0x100),
        (SVR, 0x41ff),
        (LVT_TIMER, 0x8_0000 | LVT_MASKED),
        (LVT_ERROR, 0x100 | LVT_MASKED),
        (LVT_LINT0, 0x2_0000 | LVT_MASKED),
        (TDCR, 0x4),
    ] {
        writes.push((register, p.wrmsr(x2(register), value.into())));
    }
    let log = p.run();
    for (register, write) in writes {
        assert_eq!(log.faults(write), !kvm, "{register:#x}");
    }
}

#[test]
fn reserved_bits_of_icr_fault() {
    for reserved in [1 << 13, 1 << 16, 1 << 17, 1 << 20, 1 << 31] {
        let value = u64::from(ICR_ASSERT | 0x41) | reserved;
        assert!(write_faults(X2_ICR, value), "{reserved:#x}");
    }
}

#[test]
fn an_eoi_ends_what_is_in_service() {
    with_in_service(MODE, "assertion failed: bit(log[during], 0x51)", || {
        let mut p = Program::new(MODE);
        p.only_log([0x51]);
        p.enable_x2apic();
        p.x2_self_ipi(0x51);
        p.window();
        let during = p.rdmsr(x2(ISR + 0x20));
        p.wrmsr(X2_EOI, 0);
        let after = p.rdmsr(x2(ISR + 0x20));
        let log = p.run();
        assert!(bit(log[during], 0x51));
        assert_eq!(log[after], 0);
    });
}

#[test]
fn the_timer_is_programmed_by_its_registers() {
    let mut p = x2apic();
    p.wrmsr(x2(TDCR), DIVIDE_BY_1.into());
    p.wrmsr(x2(LVT_TIMER), 0x45);
    p.wrmsr(x2(TMICT), 1_000_000);
    let rung = p.wait(0x45, 1);
    let current = p.rdmsr(x2(TMCCT));
    let log = p.run();
    assert_eq!(log[rung], 1);
    assert_eq!(log[current], 0);
}

#[test]
fn an_error_is_reported_here_too() {
    let mut p = x2apic();
    p.x2_self_ipi(0x05);
    p.wrmsr(x2(ESR), 0);
    let esr = p.rdmsr(x2(ESR));
    p.window();
    let log = p.run();
    let kvm = MODE.deviates(
        Chip::LocalApic,
        "no error is ever reported in ESR (lapic.c, kvm_lapic_reg_write)",
    );
    assert_eq!(log[esr] & ESR_SEND_ILLEGAL == 0, kvm);
    assert_eq!(log.vectors(), NOTHING);
}

//! The local APIC's registers: what they are after reset, which bits they keep, and which accesses
//! reach them (SDM 3A, "Local APIC Block Diagram", "Local APIC State After Power-Up or Reset").

use crate::prelude::*;

use super::MODE;

/// What a register reads as when nothing has been written.
fn at_reset(register: u64) -> u64 {
    let mut p = Program::new(MODE);
    let value = p.lapic_read(register);
    let log = p.run();
    log[value]
}

/// What a register of an enabled local APIC reads as after a write.
fn after_write(register: u64, value: u32) -> u64 {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(register, 0);
    p.lapic_write(register, value);
    let value = p.lapic_read(register);
    let log = p.run();
    log[value]
}

#[test]
fn the_spurious_vector_is_ff_and_the_apic_disabled_at_reset() {
    assert_eq!(at_reset(SVR), 0xff);
}

#[test]
fn tpr_ppr_ldr_icr_esr_and_the_timer_are_0_at_reset() {
    for register in [TPR, PPR, LDR, ICR, ICR2, ESR, TMICT, TMCCT, TDCR] {
        assert_eq!(at_reset(register), 0, "{register:#x}");
    }
}

#[test]
fn dfr_is_flat_at_reset() {
    assert_eq!(at_reset(DFR), 0xffff_ffff);
}

#[test]
fn irr_isr_and_tmr_are_empty_at_reset() {
    let mut p = Program::new(MODE);
    let mut words = Vec::new();
    for register in [IRR, ISR, TMR] {
        for word in 0..8 {
            words.push(p.lapic_read(register + word * 0x10));
        }
    }
    let log = p.run();
    assert!(words.into_iter().all(|word| log[word] == 0));
}

#[test]
fn the_local_vectors_are_masked_at_reset() {
    for register in [LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT1, LVT_ERROR] {
        assert_eq!(at_reset(register), 0x1_0000, "{register:#x}");
    }
}

/// The state that firmware leaves (MP specification 1.4, 3.6.2.2); this machine has no firmware.
#[test]
fn lint0_of_the_first_processor_passes_the_8259as_interrupts() {
    assert_eq!(at_reset(LVT_LINT0), u64::from(LVT_EXTINT));
}

#[test]
fn lint0_of_the_other_processors_is_masked_at_reset() {
    let mut p = Program::smp(MODE, 2);
    let lint0 = p.cpu(1).lapic_read(LVT_LINT0);
    p.start_all();
    let log = p.run();
    assert_eq!(log[lint0], 0x1_0000);
}

#[test]
fn the_version_is_that_of_an_integrated_apic() {
    let version = at_reset(VERSION);
    assert!((0x10..=0x15).contains(&(version & 0xff)), "{version:#x}");
}

#[test]
fn the_version_counts_the_local_vectors() {
    let version = at_reset(VERSION);
    let highest = version >> 16 & 0xff;
    // Timer, thermal, performance counters, LINT0, LINT1, error; then CMCI.
    assert!((5..=6).contains(&highest), "{version:#x}");
}

#[test]
fn each_processor_has_its_id() {
    let mut p = Program::smp(MODE, 3);
    let ids: Vec<_> = (0..3).map(|cpu| p.cpu(cpu).lapic_read(ID)).collect();
    p.start_all();
    let log = p.run();
    for (id, handle) in (0..).zip(ids) {
        assert_eq!(log[handle], id << 24);
    }
}

#[test]
fn cpuid_has_the_id_of_the_local_apic() {
    let mut p = Program::smp(MODE, 2);
    let leaves: Vec<_> = (0..2).map(|cpu| p.cpu(cpu).cpuid(1)).collect();
    p.start_all();
    let log = p.run();
    for (id, leaf) in (0..).zip(leaves) {
        assert_eq!(log[leaf] >> 56, id);
    }
}

#[test]
fn ldr_keeps_its_top_byte() {
    assert_eq!(after_write(LDR, 0x12ff_ffff), 0x1200_0000);
}

#[test]
fn dfr_keeps_its_top_bits_and_the_others_are_1() {
    assert_eq!(after_write(DFR, 0x0000_0000), 0x0fff_ffff);
    assert_eq!(after_write(DFR, 0xf000_0000), 0xffff_ffff);
}

#[test]
fn svr_keeps_no_reserved_bits() {
    let mut p = Program::new(MODE);
    p.lapic_write(SVR, 0xffff_efff);
    let svr = p.lapic_read(SVR);
    let log = p.run();
    // Vector, enable, focus-processor checking.
    assert_eq!(log[svr] & !(1 << 9), 0x1ff);
}

#[test]
fn the_version_tells_whether_svr_can_suppress_the_broadcast_of_eoi() {
    let mut p = Program::new(MODE);
    let version = p.lapic_read(VERSION);
    p.lapic_write(SVR, SVR_ENABLE | SVR_NO_EOI_BROADCAST | 0xff);
    let svr = p.lapic_read(SVR);
    let log = p.run();
    let supported = log[version] & VERSION_DIRECTED_EOI != 0;
    let kept = log[svr] & u64::from(SVR_NO_EOI_BROADCAST) != 0;
    assert_eq!(supported, kept);
}

#[test]
fn icr2_keeps_its_destination() {
    assert_eq!(after_write(ICR2, 0x5a00_0000), 0x5a00_0000);
}

#[test]
fn icr_reads_as_written_and_never_busy() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.ipi(ICR_SELF | ICR_ASSERT | 0x45);
    let icr = p.lapic_read(ICR);
    let log = p.run();
    assert_eq!(log[icr], u64::from(ICR_SELF | ICR_ASSERT | 0x45));
}

#[test]
fn the_initial_count_reads_as_written() {
    assert_eq!(after_write(TMICT, 0xfedc_ba98), 0xfedc_ba98);
}

#[test]
fn the_divide_configuration_keeps_bits_0_1_and_3() {
    assert_eq!(after_write(TDCR, 0xffff_ffff), 0b1011);
}

#[test]
fn the_current_count_cannot_be_written() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TMCCT, 0x1234);
    let count = p.lapic_read(TMCCT);
    let initial = p.lapic_read(TMICT);
    let log = p.run();
    assert_eq!((log[count], log[initial]), (0, 0));
}

#[test]
fn the_version_cannot_be_written() {
    let mut p = Program::new(MODE);
    let before = p.lapic_read(VERSION);
    p.lapic_write(VERSION, 0);
    let after = p.lapic_read(VERSION);
    let log = p.run();
    assert_eq!(log[before], log[after]);
}

#[test]
fn the_timers_vector_keeps_vector_mask_and_mode() {
    let value = after_write(LVT_TIMER, 0xffff_e0ff & !LVT_DEADLINE);
    assert_eq!(value, u64::from(0xff | LVT_MASKED | LVT_PERIODIC));
}

#[test]
fn the_error_vector_keeps_vector_and_mask() {
    assert_eq!(after_write(LVT_ERROR, 0xffff_efff), 0x1_00ff);
}

#[test]
fn the_thermal_and_performance_vectors_keep_a_delivery_mode_too() {
    assert_eq!(after_write(LVT_THERMAL, 0xffff_efff), 0x1_07ff);
    assert_eq!(after_write(LVT_PMC, 0xffff_efff), 0x1_07ff);
}

#[test]
fn the_lint_vectors_keep_polarity_and_trigger_too() {
    for register in [LVT_LINT0, LVT_LINT1] {
        assert_eq!(after_write(register, 0xffff_afff), 0x1_a7ff);
    }
}

#[test]
fn delivery_status_of_a_local_vector_is_read_only() {
    let status = after_write(LVT_ERROR, LVT_MASKED | 1 << 12) & 1 << 12;
    let kvm = MODE.deviates(
        Chip::LocalApic,
        "the delivery status of LVTs can be written (lapic.c, apic_lvt_mask: LVT_MASK)",
    );
    assert_eq!(status != 0, kvm);
}

#[test]
fn remote_irr_of_lint0_is_read_only() {
    let remote = after_write(LVT_LINT0, LVT_MASKED | LVT_REMOTE_IRR);
    let kvm = MODE.deviates(
        Chip::LocalApic,
        "the remote IRR of LINT0 and LINT1 can be written (lapic.c, apic_lvt_mask: LINT_MASK)",
    );
    assert_eq!(remote & u64::from(LVT_REMOTE_IRR) != 0, kvm);
}

#[test]
fn software_disable_masks_all_local_vectors() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    let registers = [
        LVT_TIMER,
        LVT_THERMAL,
        LVT_PMC,
        LVT_LINT0,
        LVT_LINT1,
        LVT_ERROR,
    ];
    for register in registers {
        p.lapic_write(register, 0x45);
    }
    p.lapic_write(SVR, 0xff);
    let disabled: Vec<_> = registers.map(|register| p.lapic_read(register)).into();
    p.lapic_write(LVT_ERROR, 0x46);
    let written = p.lapic_read(LVT_ERROR);
    p.enable_lapic();
    let enabled = p.lapic_read(LVT_TIMER);
    p.lapic_write(LVT_ERROR, 0x47);
    let unmasked = p.lapic_read(LVT_ERROR);
    let log = p.run();
    for lvt in disabled {
        assert_eq!(log[lvt], 0x1_0045);
    }
    assert_eq!(log[written], 0x1_0046, "cannot be unmasked while disabled");
    assert_eq!(log[enabled], 0x1_0045, "stays masked");
    assert_eq!(log[unmasked], 0x47);
}

#[test]
fn a_disabled_apic_accepts_no_fixed_interrupt() {
    let mut p = Program::new(MODE);
    p.self_ipi(0x40);
    let irr = p.lapic_read_set(IRR, 0x40);
    p.enable_lapic();
    p.window();
    let log = p.run();
    assert!(!bit(log[irr], 0x40));
    assert_eq!(log.vectors(), NOTHING);
}

/// "The local APIC maintains any interrupts in IRR and ISR" (SDM 3A, "Local APIC State After It
/// Has Been Software Disabled").
#[test]
fn what_is_pending_survives_software_disable() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.self_ipi(0x40);
    p.lapic_write(SVR, 0xff);
    let irr = p.lapic_read_set(IRR, 0x40);
    p.enable_lapic();
    p.window();
    let log = p.run();
    assert!(bit(log[irr], 0x40));
    assert_eq!(log.vectors(), [0x40]);
}

#[test]
fn a_read_leaves_the_registers_beside_alone() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0x20);
    p.lapic_write(LDR, 0x0100_0000);
    p.lapic_write(LVT_ERROR, 0x33);
    let values = [TPR, LDR, LVT_ERROR].map(|register| p.lapic_read(register));
    let log = p.run();
    assert_eq!(values.map(|value| log[value]), [0x20, 0x0100_0000, 0x33]);
}

#[test]
fn only_aligned_accesses_of_32_bits_write() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0x20);
    p.write(Size::Byte, APIC_PAGE + TPR, 0x30);
    p.write(Size::Word, APIC_PAGE + TPR, 0x40);
    p.write(Size::Dword, APIC_PAGE + TPR + 4, 0x60);
    p.write(Size::Dword, APIC_PAGE + TPR + 2, 0x70);
    let tpr = p.lapic_read(TPR);
    let log = p.run();
    assert_eq!(log[tpr], 0x20);
}

#[test]
fn accesses_of_any_size_and_alignment_end() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    for size in [Size::Byte, Size::Word, Size::Dword, Size::Qword] {
        for offset in [0x00, 0x0b3, 0x1f1, 0x30d, 0x37f, 0x3e2, 0x3f8, 0x7fd, 0xff8] {
            p.read(size, APIC_PAGE + offset);
            p.write(size, APIC_PAGE + offset, 0);
        }
    }
    p.lapic_write(TPR, 0x20);
    let tpr = p.lapic_read(TPR);
    let log = p.run();
    assert_eq!(log[tpr], 0x20);
}

#[test]
fn a_read_of_eoi_ends_nothing() {
    with_in_service(MODE, "assertion failed: bit(log[isr], 0x51)", || {
        let mut p = Program::new(MODE);
        p.only_log([0x51]);
        p.enable_lapic();
        p.self_ipi(0x51);
        p.window();
        p.lapic_read(EOI);
        let isr = p.lapic_read_set(ISR, 0x51);
        let log = p.run();
        assert!(bit(log[isr], 0x51));
    });
}

#[test]
fn reserved_registers_take_writes_without_effect() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    for register in [
        0x000, 0x010, 0x040, 0x070, 0x290, 0x2e0, 0x3a0, 0x3d0, 0x3f0,
    ] {
        p.lapic_write(register, 0xffff_ffff);
    }
    let svr = p.lapic_read(SVR);
    p.self_ipi(0x40);
    p.window();
    let log = p.run();
    assert_eq!(log[svr], 0x1ff);
    assert_eq!(log.vectors(), [0x40]);
}

//! SDM 3A, "The Local APIC Block Diagram", "Local APIC State After Power-Up or Reset", "... After
//! It Has Been Software Disabled", "Spurious Interrupt"; accesses in memory.

use super::*;
use crate::LogicalModel;

const LVTS: [u16; 6] = [
    LVT_TIMER,
    LVT_THERMAL,
    LVT_PERF,
    LVT_LINT0,
    LVT_LINT1,
    LVT_ERROR,
];

#[test]
fn registers_after_power_up() {
    let mut lapic = Lapic::new(config());
    for (offset, value) in [
        (ID, 0x0300_0000),
        (VERSION, 0x0105_0014),
        (TPR, 0),
        (APR, 0),
        (PPR, 0),
        (RRD, 0),
        (LDR, 0),
        (DFR, u32::MAX),
        (SVR, 0xff),
        (ESR, 0),
        (ICR, 0),
        (ICR2, 0),
        (TMICT, 0),
        (TMCCT, 0),
        (TDCR, 0),
    ] {
        assert_eq!(read(&mut lapic, offset), value, "{offset:#x}");
    }
    for lvt in LVTS {
        assert_eq!(read(&mut lapic, lvt), MASKED, "{lvt:#x}");
    }
    for base in [ISR, TMR, IRR] {
        for index in 0..8 {
            assert_eq!(read(&mut lapic, base + 0x10 * index), 0);
        }
    }
}

#[test]
fn a_reset_gives_the_state_after_power_up_and_keeps_totals() {
    let mut lapic = x2apic();
    let _ = lapic.accept(&edge(0x55));
    let _ = wrmsr(&mut lapic, 0x808, 0x20).unwrap();
    lapic.reset();
    let counters = *lapic.policy().counters();
    assert_eq!((counters.arrived, counters.dropped), (1, 1));
    let fresh = Lapic::new(config());
    let mut state = lapic.save();
    state.policy = fresh.policy().save();
    assert_eq!(state, fresh.save());
}

#[test]
fn the_version_counts_the_cmci_entry() {
    let mut lapic = with(|config| config.cmci = true);
    assert_eq!(read(&mut lapic, VERSION), 0x0106_0014);
    let _ = write(&mut lapic, LVT_CMCI, 0xf3);
    assert_eq!(read(&mut lapic, LVT_CMCI), 0xf3);
}

#[test]
fn virtual_wire_is_the_bootstrap_processors_alone() {
    let mut config = config();
    config.virtual_wire = true;
    assert_eq!(read(&mut Lapic::new(config), LVT_LINT0), 0x700);
    config.bootstrap = false;
    assert_eq!(read(&mut Lapic::new(config), LVT_LINT0), MASKED);
}

#[test]
fn each_register_keeps_its_own_writable_bits() {
    for (offset, value) in [
        (ID, 0xff00_0000),
        (TPR, 0xff),
        (LDR, 0xff00_0000),
        (SVR, 0x13ff),
        (ICR2, 0xff00_0000),
        (LVT_TIMER, 0x7_00ff),
        (LVT_THERMAL, 0x1_07ff),
        (LVT_PERF, 0x1_07ff),
        (LVT_LINT0, 0x1_a7ff),
        (LVT_LINT1, 0x1_a7ff),
        (LVT_ERROR, 0x1_00ff),
        (TDCR, 0xb),
    ] {
        let mut lapic = xapic();
        let _ = write(&mut lapic, offset, u32::MAX);
        assert_eq!(read(&mut lapic, offset), value, "{offset:#x}");
        let zero = if offset == SVR { 0x100 } else { 0 };
        let _ = write(&mut lapic, offset, zero);
        assert_eq!(read(&mut lapic, offset), zero, "{offset:#x}");
    }
}

#[test]
fn without_tsc_deadline_mode_its_bit_cannot_be_set() {
    let mut lapic = with(|config| config.tsc_deadline = false);
    let _ = write(&mut lapic, LVT_TIMER, 0x4_0030);
    assert_eq!(read(&mut lapic, LVT_TIMER), 0x30);
    assert_eq!(rdmsr(&mut lapic, MSR_DEADLINE), Err(GeneralProtection));
    assert_eq!(wrmsr(&mut lapic, MSR_DEADLINE, 1), Err(GeneralProtection));
}

#[test]
fn dfr_reads_ones_below_its_model() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, DFR, 0x0fff_ffff);
    assert_eq!(read(&mut lapic, DFR), 0x0fff_ffff);
    let _ = write(&mut lapic, DFR, 0xf000_0000);
    assert_eq!(read(&mut lapic, DFR), u32::MAX);
}

#[test]
fn read_only_registers_ignore_writes() {
    let mut lapic = xapic();
    let _ = lapic.accept(&level(0x61));
    for offset in [VERSION, APR, PPR, RRD, ISR, TMR + 0x30, IRR + 0x30, TMCCT] {
        let before = lapic.clone();
        assert_eq!(write(&mut lapic, offset, u32::MAX), Effect::None);
        assert_eq!(lapic, before, "{offset:#x}");
    }
}

#[test]
fn every_vector_has_its_bit_in_irr_isr_and_tmr() {
    for number in 16..=255 {
        let mut lapic = xapic();
        let _ = lapic.accept(&level(number));
        for (base, set) in [(IRR, true), (TMR, true), (ISR, false)] {
            assert_eq!(bit(&mut lapic, base, number), set, "{base:#x} {number:#x}");
        }
        let ones = |lapic: &mut Lapic| -> u32 {
            (0..8)
                .map(|index| read(lapic, IRR + 0x10 * index).count_ones())
                .sum()
        };
        assert_eq!(ones(&mut lapic), 1);
        let _ = take(&mut lapic);
        assert!(bit(&mut lapic, ISR, number));
        assert_eq!(ones(&mut lapic), 0);
    }
}

#[test]
fn a_software_disabled_apic_masks_every_entry_and_keeps_it_masked() {
    let mut lapic = xapic();
    for lvt in LVTS {
        let _ = write(&mut lapic, lvt, 0x44);
    }
    let _ = write(&mut lapic, SVR, 0xff);
    for lvt in LVTS {
        assert_eq!(read(&mut lapic, lvt), MASKED | 0x44, "{lvt:#x}");
        let _ = write(&mut lapic, lvt, 0x45);
        assert_eq!(read(&mut lapic, lvt), MASKED | 0x45, "{lvt:#x}");
    }
    let _ = write(&mut lapic, SVR, 0x1ff);
    for lvt in LVTS {
        assert_eq!(read(&mut lapic, lvt), MASKED | 0x45, "{lvt:#x}");
    }
}

#[test]
fn a_software_disabled_apic_accepts_no_fixed_interrupt() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, SVR, 0xff);
    assert_eq!(
        lapic.accept(&edge(0x61)),
        Acceptance::Refused(Refusal::SoftwareDisabled)
    );
    assert_eq!(lapic.policy().counters().arrived, 0);
}

#[test]
fn a_software_disabled_apic_delivers_what_it_had_accepted() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0x61));
    let _ = write(&mut lapic, SVR, 0xff);
    assert_eq!(take_vector(&mut lapic), Some(0x61));
}

#[test]
fn a_software_disabled_apic_takes_nmi_smi_and_init() {
    for mode in [DeliveryMode::Nmi, DeliveryMode::Smi, DeliveryMode::Init] {
        let mut lapic = xapic();
        let _ = write(&mut lapic, SVR, 0xff);
        assert_eq!(lapic.accept(&message(mode, 0)), Acceptance::Accepted);
    }
}

#[test]
fn the_end_of_a_level_message_asks_for_nothing() {
    let mut lapic = xapic();
    let ended = InterruptMessage {
        level: false,
        ..level(0x61)
    };
    assert_eq!(
        lapic.accept(&ended),
        Acceptance::Refused(Refusal::Deasserted)
    );
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn parts_of_a_register_can_be_read() {
    let mut lapic = xapic();
    for (offset, expected) in [
        (VERSION, &[0x14u8, 0x00, 0x05, 0x01][..]),
        (VERSION, &[0x14, 0x00]),
        (VERSION + 2, &[0x05, 0x01]),
        (VERSION + 3, &[0x01]),
    ] {
        let mut data = [0xaa; 4];
        let data = &mut data[..expected.len()];
        lapic.mmio_read(offset, data, GuestTime::ZERO);
        assert_eq!(data, expected, "{offset:#x}");
    }
}

#[test]
fn openvmm_ioapic_defect_a_read_of_eight_bytes_is_zeros_and_no_panic() {
    let mut lapic = xapic();
    for (offset, len) in [
        (VERSION, 8),
        (VERSION + 2, 4),
        (VERSION + 4, 4),
        (ID, 16),
        (0xffd, 8),
    ] {
        let mut data = [0xaa; 16];
        lapic.mmio_read(offset, &mut data[..len], GuestTime::ZERO);
        assert_eq!(data[..len], [0; 16][..len], "{offset:#x} {len}");
    }
}

#[test]
fn writes_of_another_size_or_alignment_are_ignored() {
    let mut lapic = xapic();
    let before = lapic.clone();
    for len in [0, 1, 2, 3, 5, 8, 16] {
        let effect = lapic.mmio_write(TPR, &[0x55; 16][..len], GuestTime::ZERO);
        assert_eq!(effect, Effect::None);
    }
    for offset in [TPR + 1, TPR + 2, TPR + 4, TPR + 8, TPR + 12] {
        let _ = write(&mut lapic, offset, 0x55);
    }
    assert_eq!(lapic, before);
}

#[test]
fn the_page_is_where_apic_base_says() {
    let mut lapic = xapic();
    assert_eq!(lapic.mmio_offset(0xfee0_0000), Some(0));
    assert_eq!(lapic.mmio_offset(0xfee0_0fff), Some(0xfff));
    assert_eq!(lapic.mmio_offset(0xfedf_ffff), None);
    assert_eq!(lapic.mmio_offset(0xfee0_1000), None);
    let effect = wrmsr(&mut lapic, MSR_BASE, 0x1_2345_6900).unwrap();
    assert_eq!(effect, Effect::IdentityChanged);
    assert_eq!(lapic.mmio_offset(0x1_2345_6080), Some(0x80));
    assert_eq!(lapic.mmio_offset(0xfee0_0000), None);
}

#[test]
fn changes_of_identity_are_reported_and_repetitions_are_not() {
    let mut lapic = xapic();
    for (offset, value) in [
        (ID, 0x0900_0000),
        (LDR, 0x4000_0000),
        (DFR, 0x0fff_ffff),
        (SVR, 0xff),
    ] {
        assert_eq!(write(&mut lapic, offset, value), Effect::IdentityChanged);
        assert_eq!(write(&mut lapic, offset, value), Effect::None);
    }
    let row = lapic.destination();
    assert_eq!((row.apic_id, row.logical_id), (9, 0x40));
    assert_eq!(row.model, LogicalModel::Cluster);
    assert!(!row.software_enabled);
}

#[test]
fn openvmm_defect_any_dfr_is_taken() {
    let mut lapic = xapic();
    for model in 0..16u32 {
        let _ = write(&mut lapic, DFR, model << 28);
        let expected = match model {
            0xf => LogicalModel::Flat,
            0x0 => LogicalModel::Cluster,
            _ => LogicalModel::Reserved,
        };
        assert_eq!(lapic.destination().model, expected);
    }
}

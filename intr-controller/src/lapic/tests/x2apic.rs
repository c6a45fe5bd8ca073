//! SDM 3A, "x2APIC Mode": register address space, reserved-bit checking, ICR, self-IPI.

use super::*;
use crate::IpiTargets;

const ICR_MSR: u32 = 0x830;

/// Every MSR of the range that exists, and how it may be accessed.
fn exists(msr: u32) -> (bool, bool) {
    match msr {
        0x802 | 0x803 | 0x80a | 0x80d | 0x810..=0x827 | 0x839 => (true, false),
        0x808 | 0x80f | 0x828 | 0x830 | 0x832..=0x838 | 0x83e => (true, true),
        0x80b | 0x83f => (false, true),
        _ => (false, false),
    }
}

#[test]
fn exactly_the_msrs_of_the_table_exist() {
    for msr in 0x800..=0x8ff {
        let (readable, writable) = exists(msr);
        let mut lapic = x2apic();
        assert_eq!(rdmsr(&mut lapic, msr).is_ok(), readable, "read {msr:#x}");
        let value = if msr == 0x83f { 0x41 } else { 0 };
        assert_eq!(
            wrmsr(&mut lapic, msr, value).is_ok(),
            writable,
            "write {msr:#x}"
        );
    }
}

#[test]
fn the_cmci_entry_exists_where_it_is_configured() {
    let mut lapic = with(|config| config.cmci = true);
    let _ = wrmsr(&mut lapic, MSR_BASE, 0xfee0_0d00).unwrap();
    let _ = wrmsr(&mut lapic, 0x82f, 0xf3).unwrap();
    assert_eq!(rdmsr(&mut lapic, 0x82f), Ok(0xf3));
}

#[test]
fn a_refused_access_changes_nothing() {
    let mut lapic = x2apic();
    let _ = lapic.accept(&level(0x61));
    let before = lapic.clone();
    for msr in 0x800..=0x8ff {
        if !exists(msr).1 {
            assert_eq!(wrmsr(&mut lapic, msr, 0), Err(GeneralProtection));
        }
        let _ = wrmsr(&mut lapic, msr, u64::MAX).unwrap_err();
        assert_eq!(lapic, before, "{msr:#x}");
    }
}

#[test]
fn the_range_is_gp_outside_x2apic_mode() {
    for base in [0xfee0_0900, 0xfee0_0100] {
        let mut lapic = xapic();
        let _ = wrmsr(&mut lapic, MSR_BASE, base).unwrap();
        for msr in 0x800..=0x8ff {
            assert_eq!(rdmsr(&mut lapic, msr), Err(GeneralProtection));
            assert_eq!(wrmsr(&mut lapic, msr, 0), Err(GeneralProtection));
        }
    }
}

#[test]
fn reserved_bits_are_gp_one_by_one() {
    let legal: [(u32, u64); 14] = [
        (0x808, 0xff),
        (0x80b, 0),
        (0x80f, 0x13ff),
        (0x828, 0),
        // The delivery-status bit, 12, is ignored here and in the LVT.
        (ICR_MSR, 0xffff_ffff_000c_dfff),
        (0x832, 0x7_10ff),
        (0x833, 0x1_17ff),
        (0x834, 0x1_17ff),
        (0x835, 0x1_f7ff),
        (0x836, 0x1_f7ff),
        (0x837, 0x1_10ff),
        (0x838, 0xffff_ffff),
        (0x83e, 0xb),
        (0x83f, 0xff),
    ];
    for (msr, legal) in legal {
        for bit in 0..64 {
            let mut lapic = x2apic();
            let outcome = wrmsr(&mut lapic, msr, 1 << bit);
            assert_eq!(outcome.is_ok(), legal & 1 << bit != 0, "{msr:#x} bit {bit}");
        }
    }
}

#[test]
fn the_id_is_all_32_bits_and_the_logical_id_follows_from_it() {
    for (id, logical) in [
        (0x0, 0x1u64),
        (0x3, 0x8),
        (0x1f, 0x1_8000),
        (0x123, 0x12_0008),
        (0xfffff, 0xffff_8000),
    ] {
        let mut lapic = with(|config| config.apic_id = id);
        let _ = wrmsr(&mut lapic, MSR_BASE, 0xfee0_0d00).unwrap();
        assert_eq!(rdmsr(&mut lapic, 0x802), Ok(u64::from(id)));
        assert_eq!(rdmsr(&mut lapic, 0x80d), Ok(logical));
        assert_eq!(u64::from(lapic.destination().logical_id), logical);
    }
}

#[test]
fn icr_is_one_64_bit_register() {
    let mut lapic = x2apic();
    let effect = wrmsr(&mut lapic, ICR_MSR, 0x0001_0203_0000_4041).unwrap();
    let message = InterruptMessage {
        destination: 0x0001_0203,
        ..edge(0x41)
    };
    assert!(matches!(effect, Effect::Ipi(ipi)
            if ipi.message() == message && ipi.targets() == IpiTargets::Destination));
    assert_eq!(rdmsr(&mut lapic, ICR_MSR), Ok(0x0001_0203_0000_4041));
}

#[test]
fn the_delivery_status_bit_of_icr_is_ignored() {
    let mut lapic = x2apic();
    assert!(wrmsr(&mut lapic, ICR_MSR, 0x5041).is_ok());
    assert_eq!(rdmsr(&mut lapic, ICR_MSR), Ok(0x4041));
}

#[test]
fn a_self_ipi_arrives_as_an_edge() {
    let mut lapic = x2apic();
    let _ = lapic.accept(&level(0x41));
    assert_eq!(wrmsr(&mut lapic, 0x83f, 0x41), Ok(Effect::None));
    assert_eq!(take_vector(&mut lapic), Some(0x41));
    assert_eq!(wrmsr(&mut lapic, 0x80b, 0), Ok(Effect::None));
}

#[test]
fn a_self_ipi_of_an_illegal_vector_is_a_send_error() {
    let mut lapic = x2apic();
    assert_eq!(wrmsr(&mut lapic, 0x83f, 0x0f), Ok(Effect::None));
    let _ = wrmsr(&mut lapic, 0x828, 0).unwrap();
    assert_eq!(rdmsr(&mut lapic, 0x828), Ok(1 << 5));
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn eoi_broadcasts_in_x2apic_mode_too() {
    let mut lapic = x2apic();
    let _ = lapic.accept(&level(0x61));
    let _ = take(&mut lapic);
    assert_eq!(
        wrmsr(&mut lapic, 0x80b, 0),
        Ok(Effect::EoiBroadcast(vector(0x61)))
    );
}

#[test]
fn the_page_is_not_the_apics_in_x2apic_mode() {
    let mut lapic = x2apic();
    assert_eq!(lapic.mmio_offset(0xfee0_0030), None);
    assert_eq!(read(&mut lapic, VERSION), u32::MAX);
    let before = lapic.clone();
    assert_eq!(write(&mut lapic, TPR, 0x55), Effect::None);
    assert_eq!(lapic, before);
}

#[test]
fn the_timer_works_through_its_msrs() {
    let mut lapic = x2apic();
    let _ = wrmsr(&mut lapic, 0x832, 0xec).unwrap();
    let _ = wrmsr(&mut lapic, 0x83e, 0xb).unwrap();
    let _ = wrmsr(&mut lapic, 0x838, 1000).unwrap();
    assert_eq!(lapic.read_msr(0x839, at(400)), Ok(600));
    assert_eq!(lapic.advance(at(1000)), 1);
    assert_eq!(take_vector(&mut lapic), Some(0xec));
}

#[test]
fn it_owns_three_ranges_of_msrs() {
    for (msr, owned) in [
        (0x1a, false),
        (0x1b, true),
        (0x6df, false),
        (0x6e0, true),
        (0x6e1, false),
        (0x7ff, false),
        (0x800, true),
        (0x8ff, true),
        (0x900, false),
    ] {
        assert_eq!(Lapic::owns_msr(msr), owned, "{msr:#x}");
    }
    let mut lapic = x2apic();
    assert_eq!(rdmsr(&mut lapic, 0x10), Err(GeneralProtection));
    assert_eq!(rdmsr(&mut lapic, 0x900), Err(GeneralProtection));
}

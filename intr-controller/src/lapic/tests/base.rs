//! SDM 3A, "Local APIC Status and Location", "x2APIC State Transitions".

use super::*;

const DISABLED: u64 = 0xfee0_0100;
const XAPIC: u64 = 0xfee0_0900;
const X2APIC: u64 = 0xfee0_0d00;
const INVALID: u64 = 0xfee0_0500;

/// A fresh APIC brought to this state by legal steps.
fn in_state(base: u64) -> Lapic {
    let mut lapic = xapic();
    let _ = wrmsr(&mut lapic, MSR_BASE, base).unwrap();
    lapic
}

#[test]
fn after_reset_it_is_in_xapic_mode_at_the_default_address() {
    assert_eq!(Lapic::new(config()).apic_base(), 0xfee0_0900);
    let mut config = config();
    config.bootstrap = false;
    assert_eq!(Lapic::new(config).apic_base(), 0xfee0_0800);
}

#[test]
fn every_transition_is_taken_or_refused_as_in_the_figure() {
    for from in [DISABLED, XAPIC, X2APIC] {
        for to in [DISABLED, XAPIC, X2APIC, INVALID] {
            let legal = !matches!(
                (from, to),
                (_, INVALID) | (X2APIC, XAPIC) | (DISABLED, X2APIC)
            );
            let mut lapic = in_state(from);
            let before = lapic.clone();
            assert_eq!(
                wrmsr(&mut lapic, MSR_BASE, to).is_ok(),
                legal,
                "{from:#x} {to:#x}"
            );
            let expected = if legal { to } else { from };
            assert_eq!(rdmsr(&mut lapic, MSR_BASE), Ok(expected));
            if !legal {
                assert_eq!(lapic, before);
            }
        }
    }
}

#[test]
fn reserved_bits_are_gp() {
    for bit in (0..8).chain([9]).chain(46..64) {
        let mut lapic = xapic();
        assert_eq!(
            wrmsr(&mut lapic, MSR_BASE, XAPIC | 1 << bit),
            Err(GeneralProtection),
            "bit {bit}"
        );
    }
    for bit in 12..46 {
        assert!(wrmsr(&mut xapic(), MSR_BASE, XAPIC | 1 << bit).is_ok());
    }
}

#[test]
fn without_x2apic_its_bit_is_reserved() {
    let mut lapic = with(|config| config.x2apic = false);
    assert_eq!(wrmsr(&mut lapic, MSR_BASE, X2APIC), Err(GeneralProtection));
}

#[test]
fn entering_x2apic_mode_keeps_all_but_ldr_id_and_the_high_half_of_icr() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, ID, 0x0700_0000);
    let _ = write(&mut lapic, LDR, 0x0400_0000);
    let _ = write(&mut lapic, ICR2, 0x0500_0000);
    let _ = write(&mut lapic, ICR, 0x4041);
    let _ = write(&mut lapic, TPR, 0x25);
    let _ = write(&mut lapic, LVT_ERROR, 0xfe);
    let _ = lapic.accept(&level(0x61));
    let effect = wrmsr(&mut lapic, MSR_BASE, X2APIC).unwrap();
    assert_eq!(effect, Effect::IdentityChanged);
    assert_eq!(rdmsr(&mut lapic, 0x802), Ok(3));
    assert_eq!(rdmsr(&mut lapic, 0x80d), Ok(8));
    assert_eq!(rdmsr(&mut lapic, 0x830), Ok(0x4041));
    assert_eq!(rdmsr(&mut lapic, 0x808), Ok(0x25));
    assert_eq!(rdmsr(&mut lapic, 0x80f), Ok(0x1ff));
    assert_eq!(rdmsr(&mut lapic, 0x837), Ok(0xfe));
    assert_eq!(take_vector(&mut lapic), Some(0x61));
}

#[test]
fn the_timer_goes_on_through_the_change_to_x2apic_mode() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_TIMER, 0xec);
    let _ = write(&mut lapic, TMICT, 100);
    let _ = lapic.write_msr(MSR_BASE, X2APIC, at(50)).unwrap();
    assert_eq!(lapic.next_deadline(at(50)), Some(at(200)));
}

#[test]
fn disabling_gives_the_id_back() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, ID, 0x0700_0000);
    let _ = wrmsr(&mut lapic, MSR_BASE, DISABLED).unwrap();
    let _ = wrmsr(&mut lapic, MSR_BASE, XAPIC).unwrap();
    assert_eq!(read(&mut lapic, ID), 0x0300_0000);
}

#[test]
fn a_disabled_apic_accepts_and_delivers_nothing_fixed() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0x61));
    let _ = wrmsr(&mut lapic, MSR_BASE, DISABLED).unwrap();
    assert_eq!(take(&mut lapic), None);
    for mode in [DeliveryMode::Fixed, DeliveryMode::Nmi, DeliveryMode::Init] {
        assert_eq!(
            lapic.accept(&message(mode, 0x62)),
            Acceptance::Refused(Refusal::Disabled)
        );
    }
    assert_eq!(lapic.acknowledge(), Acknowledge::Spurious(0xff));
}

#[test]
fn cr8_works_while_the_apic_is_disabled() {
    let mut lapic = in_state(DISABLED);
    lapic.set_cr8(9).unwrap();
    assert_eq!(lapic.cr8(), 9);
    let _ = wrmsr(&mut lapic, MSR_BASE, XAPIC).unwrap();
    assert_eq!(read(&mut lapic, TPR), 0x90);
}

#[test]
fn a_disabled_apic_has_no_timer() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_TIMER, 0x4_00ec);
    let _ = wrmsr(&mut lapic, MSR_DEADLINE, 1000).unwrap();
    let _ = wrmsr(&mut lapic, MSR_BASE, DISABLED).unwrap();
    assert_eq!(lapic.next_deadline(at(0)), None);
    let _ = wrmsr(&mut lapic, MSR_DEADLINE, 2000).unwrap();
    assert_eq!(rdmsr(&mut lapic, MSR_DEADLINE), Ok(0));
    assert_eq!(lapic.advance(at(5000)), 0);
}

#[test]
fn a_timer_that_was_due_before_the_apic_went_off_has_fired() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_TIMER, 0xec);
    let _ = write(&mut lapic, TMICT, 100);
    let _ = lapic.write_msr(MSR_BASE, DISABLED, at(500)).unwrap();
    let _ = lapic.write_msr(MSR_BASE, XAPIC, at(500)).unwrap();
    assert_eq!(take_vector(&mut lapic), Some(0xec));
}

#[test]
fn a_disabled_apics_page_reads_as_an_empty_bus() {
    let mut lapic = in_state(DISABLED);
    assert_eq!(lapic.mmio_offset(0xfee0_0030), None);
    assert_eq!(read(&mut lapic, VERSION), u32::MAX);
}

#[test]
fn an_unchanged_base_is_no_change_of_identity() {
    let mut lapic = xapic();
    assert_eq!(wrmsr(&mut lapic, MSR_BASE, XAPIC), Ok(Effect::None));
}

#[test]
fn an_id_above_255_is_addressed_in_full_before_x2apic_mode() {
    // As in KVM: otherwise no vCPU could send it INIT, and vCPU 0x23 would get its interrupts.
    let mut lapic = with(|config| config.apic_id = 0x123);
    assert_eq!(read(&mut lapic, ID), 0x2300_0000);
    assert_eq!(lapic.destination().apic_id, 0x123);
    let _ = write(&mut lapic, ID, 0x4500_0000);
    assert_eq!(lapic.destination().apic_id, 0x45, "software chose this one");
}

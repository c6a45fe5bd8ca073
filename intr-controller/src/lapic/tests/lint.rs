//! SDM 3A, "Local Vector Table": the pins, ExtINT and virtual-wire mode, thermal, performance,
//! CMCI.

use super::*;

const EXT_INT: u32 = 0x700;
const LEVEL: u32 = 0x8000;
const REMOTE_IRR: u32 = 0x4000;

fn virtual_wire() -> Lapic {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_LINT0, EXT_INT);
    lapic
}

#[test]
fn virtual_wire_passes_the_pics_interrupt_whatever_the_task_priority() {
    let mut lapic = virtual_wire();
    let _ = write(&mut lapic, TPR, 0xff);
    assert_eq!(lapic.set_lint0(true), Acceptance::Accepted);
    assert_eq!(take(&mut lapic), Some(Event::ExtInt));
    assert!(lapic.in_service().is_empty(), "the PIC has the bit");
}

#[test]
fn virtual_wire_works_in_a_software_disabled_apic_from_reset_on() {
    let mut config = config();
    config.virtual_wire = true;
    let mut lapic = Lapic::new(config);
    assert!(!lapic.software_enabled());
    let _ = lapic.set_lint0(true);
    assert_eq!(take(&mut lapic), Some(Event::ExtInt));
}

#[test]
fn a_masked_lint0_keeps_the_pic_out_and_unmasking_lets_it_in() {
    let mut lapic = xapic();
    let _ = lapic.set_lint0(true);
    assert_eq!(take(&mut lapic), None);
    let _ = write(&mut lapic, LVT_LINT0, EXT_INT);
    assert_eq!(take(&mut lapic), Some(Event::ExtInt));
}

#[test]
fn masking_lint0_withdraws_what_waits() {
    let mut lapic = virtual_wire();
    let _ = lapic.set_lint0(true);
    let _ = write(&mut lapic, LVT_LINT0, MASKED | EXT_INT);
    assert_eq!(take(&mut lapic), None);
    assert_eq!(lapic.policy().counters().withdrawn, 1);
}

#[test]
fn a_line_that_falls_is_withdrawn() {
    let mut lapic = virtual_wire();
    let _ = lapic.set_lint0(true);
    let _ = lapic.set_lint0(false);
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn after_the_acknowledge_the_line_asks_again_only_when_reported() {
    let mut lapic = virtual_wire();
    let _ = lapic.set_lint0(true);
    assert_eq!(take(&mut lapic), Some(Event::ExtInt));
    assert_eq!(take(&mut lapic), None);
    assert_eq!(lapic.set_lint0(true), Acceptance::Accepted, "still high");
    assert_eq!(take(&mut lapic), Some(Event::ExtInt));
}

#[test]
fn a_line_reported_twice_is_one_request() {
    let mut lapic = virtual_wire();
    assert_eq!(lapic.set_lint0(true), Acceptance::Accepted);
    assert_eq!(lapic.set_lint0(true), Acceptance::Merged);
    assert_eq!(lapic.policy().counters().arrived, 1);
}

#[test]
fn software_disabling_masks_the_wire() {
    let mut lapic = virtual_wire();
    let _ = lapic.set_lint0(true);
    let _ = write(&mut lapic, SVR, 0xff);
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn with_the_apic_off_the_pins_are_intr_and_nmi() {
    let mut lapic = xapic();
    let _ = wrmsr(&mut lapic, MSR_BASE, 0xfee0_0100).unwrap();
    assert_eq!(lapic.set_lint0(true), Acceptance::Accepted);
    assert_eq!(lapic.set_lint1(true), Acceptance::Accepted);
    assert_eq!(take(&mut lapic), Some(Event::Nmi));
    assert_eq!(take(&mut lapic), Some(Event::ExtInt));
}

#[test]
fn turning_the_apic_on_puts_lint0s_mask_in_force() {
    let mut lapic = xapic();
    let _ = wrmsr(&mut lapic, MSR_BASE, 0xfee0_0100).unwrap();
    let _ = lapic.set_lint0(true);
    let _ = wrmsr(&mut lapic, MSR_BASE, 0xfee0_0900).unwrap();
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn an_extint_message_is_latched_until_it_is_taken() {
    let mut lapic = xapic();
    assert_eq!(
        lapic.accept(&message(DeliveryMode::ExtInt, 0)),
        Acceptance::Accepted
    );
    let _ = lapic.set_lint0(true);
    let _ = lapic.set_lint0(false);
    assert_eq!(take(&mut lapic), Some(Event::ExtInt));
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn lint1_is_the_nmi_button() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_LINT1, 0x400);
    assert_eq!(lapic.set_lint1(true), Acceptance::Accepted);
    assert_eq!(take(&mut lapic), Some(Event::Nmi));
    assert!(
        matches!(lapic.set_lint1(true), Acceptance::Refused(_)),
        "no edge"
    );
    let _ = lapic.set_lint1(false);
    assert_eq!(lapic.set_lint1(true), Acceptance::Accepted);
}

#[test]
fn a_masked_lint1_loses_the_edge() {
    let mut lapic = xapic();
    assert_eq!(lapic.set_lint1(true), Acceptance::Refused(Refusal::Masked));
    let _ = write(&mut lapic, LVT_LINT1, 0x400);
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn lint1_is_an_edge_even_if_its_entry_says_level() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_LINT1, LEVEL | 0x81);
    let _ = lapic.set_lint1(true);
    assert_eq!(take_vector(&mut lapic), Some(0x81));
    assert_eq!(write(&mut lapic, EOI, 0), Effect::None);
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn an_edge_on_lint0_delivers_its_entry() {
    for (mode, event) in [
        (0x000, Event::Fixed(vector(0x81))),
        (0x200, Event::Smi),
        (0x400, Event::Nmi),
    ] {
        let mut lapic = xapic();
        let _ = write(&mut lapic, LVT_LINT0, mode | 0x81);
        let _ = lapic.set_lint0(true);
        assert_eq!(take(&mut lapic), Some(event));
        let _ = lapic.set_lint0(true);
        assert_eq!(take(&mut lapic), None, "no edge");
    }
}

#[test]
fn init_through_lint0() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_LINT0, 0x500);
    assert_eq!(lapic.set_lint0(true), Acceptance::Accepted);
    assert!(lapic.startup_pending());
}

#[test]
fn a_level_on_lint0_sets_remote_irr_and_comes_again_after_eoi_while_it_stands() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_LINT0, LEVEL | 0x81);
    assert_eq!(lapic.set_lint0(true), Acceptance::Accepted);
    assert_eq!(read(&mut lapic, LVT_LINT0), LEVEL | REMOTE_IRR | 0x81);
    assert_eq!(take_vector(&mut lapic), Some(0x81));
    let _ = lapic.set_lint0(true);
    assert!(!bit(&mut lapic, IRR, 0x81), "once per EOI");
    assert_eq!(
        write(&mut lapic, EOI, 0),
        Effect::EoiBroadcast(vector(0x81))
    );
    assert_eq!(take_vector(&mut lapic), Some(0x81));
    let _ = lapic.set_lint0(false);
    let _ = write(&mut lapic, EOI, 0);
    assert_eq!(take(&mut lapic), None);
    assert_eq!(read(&mut lapic, LVT_LINT0), LEVEL | 0x81);
}

#[test]
fn remote_irr_is_read_only_and_leaves_with_level_mode() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_LINT0, LEVEL | REMOTE_IRR | 0x81);
    assert_eq!(read(&mut lapic, LVT_LINT0), LEVEL | 0x81);
    let _ = lapic.set_lint0(true);
    let _ = write(&mut lapic, LVT_LINT0, MASKED | LEVEL | 0x81);
    assert_eq!(
        read(&mut lapic, LVT_LINT0),
        MASKED | LEVEL | REMOTE_IRR | 0x81
    );
    let _ = write(&mut lapic, LVT_LINT0, MASKED | 0x81);
    assert_eq!(read(&mut lapic, LVT_LINT0), MASKED | 0x81);
}

#[test]
fn unmasking_a_level_that_stands_delivers_it() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_LINT0, MASKED | LEVEL | 0x81);
    let _ = lapic.set_lint0(true);
    assert_eq!(take(&mut lapic), None);
    let _ = write(&mut lapic, LVT_LINT0, LEVEL | 0x81);
    assert_eq!(take_vector(&mut lapic), Some(0x81));
}

#[test]
fn a_performance_interrupt_masks_its_entry() {
    for (entry, event) in [(0xfau32, Event::Fixed(vector(0xfa))), (0x400, Event::Nmi)] {
        let mut lapic = xapic();
        let _ = write(&mut lapic, LVT_PERF, entry);
        assert_eq!(lapic.signal(LocalSource::Performance), Acceptance::Accepted);
        assert_eq!(read(&mut lapic, LVT_PERF), MASKED | entry);
        assert_eq!(take(&mut lapic), Some(event));
        assert_eq!(
            lapic.signal(LocalSource::Performance),
            Acceptance::Refused(Refusal::Masked)
        );
    }
}

#[test]
fn a_thermal_interrupt_does_not_mask_its_entry() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_THERMAL, 0xf9);
    let _ = lapic.signal(LocalSource::Thermal);
    assert_eq!(read(&mut lapic, LVT_THERMAL), 0xf9);
    assert_eq!(take_vector(&mut lapic), Some(0xf9));
}

#[test]
fn cmci_without_its_entry_goes_nowhere() {
    let mut lapic = xapic();
    assert!(matches!(
        lapic.signal(LocalSource::Cmci),
        Acceptance::Refused(_)
    ));
    let mut lapic = with(|config| config.cmci = true);
    let _ = write(&mut lapic, LVT_CMCI, 0xf3);
    let _ = lapic.signal(LocalSource::Cmci);
    assert_eq!(take_vector(&mut lapic), Some(0xf3));
}

#[test]
fn reserved_delivery_modes_of_an_entry_deliver_nothing() {
    for mode in [1, 3, 6, 7] {
        let mut lapic = xapic();
        let _ = write(&mut lapic, LVT_THERMAL, mode << 8 | 0xf9);
        assert_eq!(
            lapic.signal(LocalSource::Thermal),
            Acceptance::Refused(Refusal::DeliveryMode)
        );
        assert_eq!(take(&mut lapic), None);
    }
}

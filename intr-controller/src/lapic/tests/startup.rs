//! SDM 3A, "Multiple-Processor (MP) Initialization", "Local APIC State After an INIT Reset".

use super::*;
use crate::{BlockReasons, Decision};

fn init() -> InterruptMessage {
    message(DeliveryMode::Init, 0)
}

fn sipi(vector: u8) -> InterruptMessage {
    message(DeliveryMode::StartUp, vector)
}

fn application_processor() -> Lapic {
    let mut config = config();
    config.bootstrap = false;
    Lapic::new(config)
}

#[test]
fn an_application_processor_waits_for_its_start_up_ipi_from_reset_on() {
    let mut lapic = application_processor();
    assert!(lapic.waiting_for_sipi() && !lapic.startup_pending());
    assert_eq!(lapic.take_startup(), None);
    assert!(!Lapic::new(config()).waiting_for_sipi());
}

#[test]
fn init_sipi_sipi_starts_a_processor_once() {
    let mut lapic = application_processor();
    assert_eq!(lapic.accept(&init()), Acceptance::Accepted);
    assert_eq!(
        lapic.take_startup(),
        Some(Startup::Init {
            wait_for_sipi: true
        })
    );
    assert_eq!(lapic.accept(&sipi(0x9a)), Acceptance::Accepted);
    assert_eq!(lapic.take_startup(), Some(Startup::Sipi { vector: 0x9a }));
    assert_eq!(
        lapic.accept(&sipi(0x9b)),
        Acceptance::Refused(Refusal::NotWaitingForSipi)
    );
    assert_eq!(lapic.take_startup(), None);
    assert!(!lapic.waiting_for_sipi());
}

#[test]
fn a_start_up_ipi_right_behind_init_is_not_lost() {
    // Both arrive before the vCPU's thread looks.
    let mut lapic = application_processor();
    let _ = lapic.accept(&init());
    assert_eq!(lapic.accept(&sipi(0x12)), Acceptance::Accepted);
    assert!(matches!(lapic.take_startup(), Some(Startup::Init { .. })));
    assert_eq!(lapic.take_startup(), Some(Startup::Sipi { vector: 0x12 }));
}

#[test]
fn the_first_of_two_start_up_ipis_counts() {
    let mut lapic = application_processor();
    let _ = lapic.accept(&sipi(0x12));
    assert_eq!(lapic.accept(&sipi(0x13)), Acceptance::Merged);
    assert_eq!(lapic.take_startup(), Some(Startup::Sipi { vector: 0x12 }));
    assert_eq!(lapic.take_startup(), None);
}

#[test]
fn a_start_up_ipi_to_a_running_processor_is_dropped() {
    let mut lapic = xapic();
    assert_eq!(
        lapic.accept(&sipi(0x12)),
        Acceptance::Refused(Refusal::NotWaitingForSipi)
    );
    let _ = lapic.accept(&init());
    assert_eq!(
        lapic.accept(&sipi(0x12)),
        Acceptance::Refused(Refusal::NotWaitingForSipi),
        "the bootstrap processor does not wait after INIT"
    );
}

#[test]
fn init_discards_a_start_up_ipi_that_came_before_it() {
    let mut lapic = application_processor();
    let _ = lapic.accept(&sipi(0x12));
    let _ = lapic.accept(&init());
    assert!(matches!(lapic.take_startup(), Some(Startup::Init { .. })));
    assert_eq!(lapic.take_startup(), None);
}

#[test]
fn the_bootstrap_processor_runs_after_init() {
    let mut lapic = xapic();
    let _ = lapic.accept(&init());
    assert_eq!(
        lapic.take_startup(),
        Some(Startup::Init {
            wait_for_sipi: false
        })
    );
    assert!(!lapic.waiting_for_sipi());
}

#[test]
fn init_keeps_the_id_and_apic_base_and_resets_the_rest() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, ID, 0x0700_0000);
    for (offset, value) in [
        (TPR, 0x33),
        (LDR, 0x0400_0000),
        (DFR, 0),
        (ICR, 0x4041),
        (LVT_TIMER, 0x2_00ec),
        (TMICT, 100),
        (TDCR, 3),
        (LVT_ERROR, 0xfe),
    ] {
        let _ = write(&mut lapic, offset, value);
    }
    let _ = wrmsr(&mut lapic, MSR_BASE, 0xfed4_0900).unwrap();
    let _ = lapic.accept(&level(0x61));
    let _ = take(&mut lapic);
    let _ = lapic.accept(&edge(0x62));
    let _ = lapic.accept(&message(DeliveryMode::Nmi, 0));
    let _ = lapic.accept(&init());
    let _ = lapic.take_startup();
    assert_eq!(lapic.apic_base(), 0xfed4_0900);
    let expected = LapicState {
        apic_base: 0xfed4_0900,
        xapic_id: 7,
        policy: lapic.policy().save(),
        ..Lapic::new(config()).save()
    };
    assert_eq!(lapic.save(), expected);
    assert!(lapic.policy().pending().is_empty());
    assert_eq!(lapic.advance(at(5000)), 0);
}

#[test]
fn init_in_x2apic_mode_stays_in_it() {
    let mut lapic = x2apic();
    let _ = lapic.accept(&init());
    let _ = lapic.take_startup();
    assert_eq!(lapic.mode(), ApicMode::X2Apic);
    assert_eq!(rdmsr(&mut lapic, 0x80d), Ok(8));
    assert_eq!(rdmsr(&mut lapic, 0x80f), Ok(0xff));
}

#[test]
fn no_event_enters_a_processor_that_waits() {
    let mut lapic = application_processor();
    let _ = lapic.accept(&message(DeliveryMode::Nmi, 0));
    let decision = lapic.decide(&Readiness::OPEN);
    let Decision::Blocked(blocked) = decision else {
        panic!("{decision}")
    };
    assert_eq!(blocked.reasons, BlockReasons::WAIT_FOR_SIPI);
    let _ = lapic.accept(&sipi(1));
    let _ = lapic.take_startup();
    assert_eq!(take(&mut lapic), Some(Event::Nmi));
}

#[test]
fn a_second_init_before_the_first_is_taken_is_one() {
    let mut lapic = application_processor();
    assert_eq!(lapic.accept(&init()), Acceptance::Accepted);
    assert_eq!(lapic.accept(&init()), Acceptance::Merged);
    let _ = lapic.take_startup();
    assert_eq!(lapic.take_startup(), None);
}

#[test]
fn a_reset_forgets_init_and_start_up_ipis() {
    let mut lapic = application_processor();
    let _ = lapic.accept(&init());
    let _ = lapic.accept(&sipi(0x44));
    lapic.reset();
    assert!(!lapic.startup_pending());
    assert!(lapic.waiting_for_sipi());
}

//! SDM 3A, "Handling Interrupts", "Interrupt, Task, and Processor Priority", "Signaling Interrupt
//! Servicing Completion".

use super::*;
use crate::{Arrival, BlockReasons, Decision, Delivery, NotPending};

#[test]
fn an_accepted_interrupt_is_in_irr_then_in_isr_then_gone() {
    let mut lapic = xapic();
    assert_eq!(lapic.accept(&edge(0x61)), Acceptance::Accepted);
    assert!(bit(&mut lapic, IRR, 0x61) && !bit(&mut lapic, ISR, 0x61));
    assert_eq!(take_vector(&mut lapic), Some(0x61));
    assert!(!bit(&mut lapic, IRR, 0x61) && bit(&mut lapic, ISR, 0x61));
    assert_eq!(write(&mut lapic, EOI, 0), Effect::None);
    assert!(lapic.in_service().is_empty());
}

#[test]
fn deciding_changes_nothing() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0x61));
    let before = lapic.clone();
    let first = lapic.decide(&Readiness::OPEN);
    assert_eq!(lapic.decide(&Readiness::OPEN), first);
    assert_eq!(lapic, before);
}

#[test]
fn the_policys_pending_set_is_the_irr() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0xc9));
    assert!(
        lapic
            .policy()
            .pending()
            .contains(Event::Fixed(vector(0xc9)))
    );
    assert!(bit(&mut lapic, IRR, 0xc9));
}

#[test]
fn a_second_of_a_vector_merges_into_the_one_in_irr() {
    let mut lapic = xapic();
    assert_eq!(lapic.accept(&edge(0x61)), Acceptance::Accepted);
    assert_eq!(lapic.accept(&edge(0x61)), Acceptance::Merged);
    assert_eq!(take_vector(&mut lapic), Some(0x61));
    assert_eq!(take_vector(&mut lapic), None);
}

#[test]
fn one_in_service_and_one_in_irr_are_two_deliveries() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0x61));
    let _ = take(&mut lapic);
    assert_eq!(lapic.accept(&edge(0x61)), Acceptance::Accepted);
    assert_eq!(take(&mut lapic), None);
    let _ = write(&mut lapic, EOI, 0);
    assert_eq!(take_vector(&mut lapic), Some(0x61));
}

#[test]
fn the_highest_vector_enters_first() {
    let mut lapic = xapic();
    for vector in [0x31, 0xe0, 0x72, 0xe1] {
        let _ = lapic.accept(&edge(vector));
    }
    let mut order = alloc::vec::Vec::new();
    while let Some(vector) = take_vector(&mut lapic) {
        order.push(vector);
        let _ = write(&mut lapic, EOI, 0);
    }
    assert_eq!(order, [0xe1, 0xe0, 0x72, 0x31]);
}

#[test]
fn a_higher_class_nests_and_an_equal_one_waits_for_eoi() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0x51));
    assert_eq!(take_vector(&mut lapic), Some(0x51));
    let _ = lapic.accept(&edge(0x5f));
    assert_eq!(take(&mut lapic), None, "the same class");
    let _ = lapic.accept(&edge(0x60));
    assert_eq!(take_vector(&mut lapic), Some(0x60));
    let _ = write(&mut lapic, EOI, 0);
    assert!(bit(&mut lapic, ISR, 0x51), "EOI ends the highest only");
    assert_eq!(take(&mut lapic), None);
    let _ = write(&mut lapic, EOI, 0);
    assert_eq!(take_vector(&mut lapic), Some(0x5f));
}

#[test]
fn ppr_is_the_higher_class_of_tpr_and_isr() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, TPR, 0x2b);
    assert_eq!(read(&mut lapic, PPR), 0x2b);
    let _ = lapic.accept(&edge(0x47));
    let _ = take(&mut lapic);
    assert_eq!(read(&mut lapic, PPR), 0x40);
    let _ = write(&mut lapic, TPR, 0x4c);
    assert_eq!(read(&mut lapic, PPR), 0x4c, "equal classes: TPR whole");
}

#[test]
fn a_vector_of_the_task_prioritys_class_waits_and_says_so() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, TPR, 0x60);
    let _ = lapic.accept(&edge(0x6f));
    let Decision::Blocked(blocked) = lapic.decide(&Readiness::OPEN) else {
        panic!("not blocked")
    };
    assert_eq!(blocked.reasons, BlockReasons::PRIORITY);
    let _ = write(&mut lapic, TPR, 0x5f);
    assert_eq!(take_vector(&mut lapic), Some(0x6f));
}

#[test]
fn task_priority_15_lets_no_fixed_interrupt_in() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, TPR, 0xf0);
    let _ = lapic.accept(&edge(0xff));
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn nmi_and_smi_ignore_the_task_priority() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, TPR, 0xff);
    let _ = lapic.accept(&message(DeliveryMode::Nmi, 0));
    let _ = lapic.accept(&message(DeliveryMode::Smi, 0));
    assert_eq!(take(&mut lapic), Some(Event::Smi));
    assert_eq!(take(&mut lapic), Some(Event::Nmi));
}

#[test]
fn cr8_and_tpr_are_one_register() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, TPR, 0x7c);
    assert_eq!(lapic.cr8(), 7);
    lapic.set_cr8(0xa).unwrap();
    assert_eq!(read(&mut lapic, TPR), 0xa0);
}

#[test]
fn an_unchanged_cr8_keeps_the_sub_class_of_tpr() {
    // The host reports CR8 after every exit, whether the guest wrote it or not.
    let mut lapic = xapic();
    let _ = write(&mut lapic, TPR, 0x7c);
    lapic.set_cr8(7).unwrap();
    assert_eq!(read(&mut lapic, TPR), 0x7c);
}

#[test]
fn cr8_above_15_is_gp() {
    let mut lapic = xapic();
    assert_eq!(lapic.set_cr8(0x10), Err(GeneralProtection));
    assert_eq!(lapic.set_cr8(u64::MAX), Err(GeneralProtection));
    assert_eq!(lapic.cr8(), 0);
}

#[test]
fn crosvm_defect_cr8_is_in_sync() {
    // A guest that raises CR8 and never touches the register page masks all the same.
    let mut lapic = xapic();
    lapic.set_cr8(6).unwrap();
    let _ = lapic.accept(&edge(0x6f));
    assert_eq!(take(&mut lapic), None);
    lapic.set_cr8(5).unwrap();
    assert_eq!(take_vector(&mut lapic), Some(0x6f));
}

#[test]
fn eoi_without_an_interrupt_in_service_does_nothing() {
    let mut lapic = xapic();
    let _ = lapic.accept(&level(0x61));
    let before = lapic.clone();
    assert_eq!(write(&mut lapic, EOI, 0), Effect::None);
    assert_eq!(lapic, before);
}

#[test]
fn the_value_written_to_eoi_does_not_matter_in_xapic_mode() {
    let mut lapic = xapic();
    let _ = lapic.accept(&level(0x61));
    let _ = take(&mut lapic);
    let effect = write(&mut lapic, EOI, 0xdead_beef);
    assert_eq!(effect, Effect::EoiBroadcast(vector(0x61)));
}

#[test]
fn eoi_of_a_level_interrupt_is_broadcast() {
    let mut lapic = xapic();
    let _ = lapic.accept(&level(0x61));
    assert!(bit(&mut lapic, TMR, 0x61));
    let _ = take(&mut lapic);
    assert_eq!(
        write(&mut lapic, EOI, 0),
        Effect::EoiBroadcast(vector(0x61))
    );
}

#[test]
fn crosvm_defect_eoi_of_an_edge_interrupt_is_not_broadcast() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0x61));
    let _ = take(&mut lapic);
    assert_eq!(write(&mut lapic, EOI, 0), Effect::None);
}

#[test]
fn tmr_follows_the_last_arrival() {
    let mut lapic = xapic();
    let _ = lapic.accept(&level(0x61));
    let _ = lapic.accept(&edge(0x61));
    assert!(!bit(&mut lapic, TMR, 0x61));
    let _ = lapic.accept(&level(0x61));
    assert!(bit(&mut lapic, TMR, 0x61));
}

#[test]
fn suppressed_broadcasts_leave_the_ioapic_to_software() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, SVR, 0x11ff);
    let _ = lapic.accept(&level(0x61));
    let _ = take(&mut lapic);
    assert_eq!(write(&mut lapic, EOI, 0), Effect::None);
    assert!(lapic.in_service().is_empty());
}

#[test]
fn without_the_feature_broadcasts_cannot_be_suppressed() {
    let mut lapic = with(|config| config.eoi_suppression = false);
    let _ = write(&mut lapic, SVR, 0x11ff);
    assert_eq!(read(&mut lapic, SVR), 0x1ff);
    assert_eq!(read(&mut lapic, VERSION) & 1 << 24, 0);
}

#[test]
fn an_acknowledge_takes_the_highest_that_is_deliverable() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0x41));
    let _ = lapic.accept(&edge(0x91));
    assert_eq!(lapic.acknowledge(), Acknowledge::Vector(vector(0x91)));
    assert!(bit(&mut lapic, ISR, 0x91));
}

#[test]
fn an_acknowledge_with_a_raised_task_priority_is_spurious_and_leaves_no_trace_in_isr() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, SVR, 0x1c5);
    let _ = lapic.accept(&edge(0x41));
    let _ = write(&mut lapic, TPR, 0x50);
    assert_eq!(lapic.acknowledge(), Acknowledge::Spurious(0xc5));
    assert!(lapic.in_service().is_empty());
    assert!(bit(&mut lapic, IRR, 0x41), "it still waits");
    assert_eq!(lapic.policy().counters().spurious, 1);
}

#[test]
fn a_report_of_what_did_not_wait_changes_nothing() {
    let mut lapic = xapic();
    let event = Event::Fixed(vector(0x41));
    let before = lapic.clone();
    assert_eq!(lapic.injected(event), Err(NotPending(event)));
    assert_eq!(lapic, before);
}

#[test]
fn an_interrupt_that_overtook_does_not_stop_the_one_the_host_took() {
    // Between the decision and the host's taking it another vCPU sent a more urgent one.
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0x41));
    let Decision::Inject(event) = lapic.decide(&Readiness::OPEN) else {
        panic!("nothing to inject")
    };
    let _ = lapic.accept(&edge(0x91));
    assert_eq!(lapic.injected(event), Ok(Delivery::Delivered));
    assert!(bit(&mut lapic, ISR, 0x41));
    assert_eq!(take_vector(&mut lapic), Some(0x91), "it nests");
}

#[test]
fn the_mask_delays_and_loses_nothing() {
    let mut lapic = xapic();
    for vector in [0x41, 0x42, 0x41] {
        let _ = lapic.accept(&edge(vector));
    }
    let _ = lapic.accept(&message(DeliveryMode::Nmi, 0));
    let decision = lapic.decide(&Readiness::MASKED);
    let blocked = decision.blocked().unwrap();
    assert_eq!(blocked.event, Event::Nmi);
    assert_eq!(blocked.reasons, BlockReasons::MASKED);
    assert_eq!(take(&mut lapic), Some(Event::Nmi));
    assert_eq!(take_vector(&mut lapic), Some(0x42));
    let _ = write(&mut lapic, EOI, 0);
    assert_eq!(take_vector(&mut lapic), Some(0x41));
    let counters = lapic.policy().counters();
    assert_eq!(
        (counters.arrived, counters.merged, counters.delivered),
        (4, 1, 3)
    );
}

#[test]
fn in_an_nmi_handler_one_nmi_is_kept() {
    let mut lapic = xapic();
    for _ in 0..10 {
        let _ = lapic.accept(&message(DeliveryMode::Nmi, 0));
    }
    assert_eq!(lapic.policy().pending().nmis(), 2);
    lapic.merge_nmis();
    assert_eq!(lapic.policy().pending().nmis(), 1);
    let counters = *lapic.policy().counters();
    assert_eq!((counters.arrived, counters.merged), (10, 9));
    lapic.merge_nmis();
    assert_eq!(*lapic.policy().counters(), counters);
}

#[test]
fn an_arrival_is_told_from_a_merge() {
    assert_eq!(Acceptance::from(Arrival::Accepted), Acceptance::Accepted);
    assert_eq!(Acceptance::from(Arrival::Merged), Acceptance::Merged);
}

//! Interprocessor interrupts in xAPIC mode: shorthands and physical destinations (SDM 3A, "Issuing
//! Interprocessor Interrupts").

use crate::prelude::*;

use super::MODE;

/// The first of this many vCPUs does something, and then each has a window. Returns the vectors of each.
fn vectors_after(cpus: u16, act: impl FnOnce(&mut Program)) -> Vec<Vec<u8>> {
    let mut p = Program::smp(MODE, cpus);
    p.start_all();
    act(&mut p);
    p.meet();
    for cpu in 0..cpus {
        p.cpu(cpu).window();
    }
    p.meet();
    let log = p.run();
    (0..cpus).map(|cpu| log.vectors_of(cpu)).collect()
}

#[test]
fn the_shorthand_self_is_the_sender() {
    let vectors = vectors_after(2, |p| p.ipi(ICR_SELF | ICR_ASSERT | 0x41));
    assert_eq!(vectors, [vec![0x41], vec![]]);
}

#[test]
fn the_shorthand_all_includes_the_sender() {
    let vectors = vectors_after(3, |p| p.ipi(ICR_ALL | ICR_ASSERT | 0x41));
    assert_eq!(vectors, [[0x41], [0x41], [0x41]]);
}

#[test]
fn the_shorthand_all_but_self_leaves_the_sender_out() {
    let vectors = vectors_after(3, |p| p.ipi(ICR_ALL_BUT_SELF | ICR_ASSERT | 0x41));
    assert_eq!(vectors, [vec![], vec![0x41], vec![0x41]]);
}

#[test]
fn a_shorthand_ignores_the_destination() {
    let vectors = vectors_after(2, |p| p.ipi_to(1, ICR_SELF | ICR_ASSERT | 0x41));
    assert_eq!(vectors, [vec![0x41], vec![]]);
}

#[test]
fn a_physical_destination_is_an_apic_id() {
    let vectors = vectors_after(3, |p| p.ipi_to(2, ICR_ASSERT | 0x41));
    assert_eq!(vectors, [vec![], vec![], vec![0x41]]);
}

#[test]
fn a_processor_can_send_to_its_own_id() {
    let vectors = vectors_after(2, |p| p.ipi_to(0, ICR_ASSERT | 0x41));
    assert_eq!(vectors, [vec![0x41], vec![]]);
}

#[test]
fn the_physical_destination_ff_is_everybody() {
    let vectors = vectors_after(3, |p| p.ipi_to(0xff, ICR_ASSERT | 0x41));
    assert_eq!(vectors, [[0x41], [0x41], [0x41]]);
}

/// crosvm's chip indexed out of bounds here.
#[test]
fn an_ipi_to_no_apic_is_dropped() {
    let vectors = vectors_after(2, |p| {
        p.ipi_to(2, ICR_ASSERT | 0x41);
        p.ipi_to(0xfe, ICR_ASSERT | 0x41);
        p.ipi_to(0x7f, ICR_NMI | ICR_ASSERT);
        p.ipi_to(0x10, INIT);
        p.ipi_to(0x10, STARTUP | 0x70);
    });
    assert_eq!(vectors, [NOTHING, NOTHING]);
}

#[test]
fn a_write_of_icr2_sends_nothing() {
    let vectors = vectors_after(2, |p| {
        p.ipi(ICR_SELF | ICR_ASSERT | 0x41);
        p.lapic_write(ICR2, 1 << 24);
        p.lapic_write(ICR2, 0);
    });
    assert_eq!(vectors, [vec![0x41], vec![]]);
}

#[test]
fn each_write_of_icr_sends() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.self_ipi(0x41);
    p.window();
    p.self_ipi(0x41);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x41, 0x41]);
}

#[test]
fn the_reserved_delivery_mode_sends_nothing() {
    let vectors = vectors_after(2, |p| {
        p.ipi_to(1, ICR_RESERVED_MODE | ICR_ASSERT | 0x41);
        p.ipi(ICR_ALL | ICR_RESERVED_MODE | ICR_ASSERT | 0x41);
    });
    assert_eq!(vectors, [NOTHING, NOTHING]);
}

#[test]
fn a_receiver_that_is_disabled_drops_a_fixed_interrupt() {
    let mut p = Program::smp(MODE, 2);
    p.start_all();
    p.cpu(1).lapic_write(SVR, 0xff);
    p.meet();
    p.ipi_to(1, ICR_ASSERT | 0x41);
    p.meet();
    p.cpu(1).enable_lapic();
    p.cpu(1).window();
    p.meet();
    let log = p.run();
    assert_eq!(log.vectors_of(1), NOTHING);
}

#[test]
fn a_disabled_sender_can_send() {
    let vectors = vectors_after(2, |p| {
        p.lapic_write(SVR, 0xff);
        p.ipi_to(1, ICR_ASSERT | 0x41);
        p.enable_lapic();
    });
    assert_eq!(vectors, [vec![], vec![0x41]]);
}

#[test]
fn the_receivers_priority_counts_and_not_the_senders() {
    let vectors = vectors_after(2, |p| {
        p.lapic_write(TPR, 0xf0);
        p.ipi_to(1, ICR_ASSERT | 0x41);
    });
    assert_eq!(vectors, [vec![], vec![0x41]]);
}

#[test]
fn an_ipi_is_edge_triggered() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.self_ipi(0x41);
    let tmr = p.lapic_read_set(TMR, 0x41);
    let log = p.run();
    assert!(!bit(log[tmr], 0x41));
}

/// "It is ignored for all other delivery modes" than INIT level de-assert (SDM 3A, ICR, "Trigger
/// Mode").
#[test]
fn the_trigger_mode_of_a_fixed_ipi_is_ignored() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.ipi(ICR_SELF | ICR_ASSERT | ICR_LEVEL | 0x41);
    let tmr = p.lapic_read_set(TMR, 0x41);
    p.window();
    let log = p.run();
    let kvm = MODE.deviates(
        Chip::LocalApic,
        "an IPI with the level bit is accepted as level-triggered, and its EOI would be broadcast \
         (lapic.c, kvm_apic_send_ipi: irq.trig_mode)",
    );
    assert_eq!(bit(log[tmr], 0x41), kvm);
    assert_eq!(log.vectors(), [0x41]);
}

#[test]
fn an_ipi_wakes_a_halted_processor() {
    let mut p = Program::smp(MODE, 2);
    p.start_all();
    p.cpu(1).sti_hlt();
    p.cpu(1).mark(1);
    p.ipi_to(1, ICR_ASSERT | 0x41);
    p.meet();
    let log = p.run();
    assert!(log.events_of(1).ends_with(&[Got(0x41), Mark(1)]));
}

/// This hangs if a wake-up is lost between the check for pending interrupts and the sleep.
#[test]
fn two_processors_wake_each_other_a_hundred_times() {
    let mut p = Program::smp(MODE, 2);
    p.start_all();
    for _ in 0..100 {
        p.ipi_to(1, ICR_ASSERT | 0x41);
        p.sti_hlt();
        p.cpu(1).sti_hlt();
        p.cpu(1).ipi_to(0, ICR_ASSERT | 0x42);
    }
    p.meet();
    let log = p.run();
    assert_eq!(log.vectors(), [0x42; 100]);
    assert_eq!(log.vectors_of(1), [0x41; 100]);
}

#[test]
fn interrupts_from_two_senders_are_merged_by_vector() {
    let mut p = Program::smp(MODE, 3);
    p.start_all();
    p.cpu(1).ipi_to(0, ICR_ASSERT | 0x41);
    p.cpu(2).ipi_to(0, ICR_ASSERT | 0x41);
    p.cpu(2).ipi_to(0, ICR_ASSERT | 0x51);
    p.meet();
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x51, 0x41]);
}

/// The SDM does not allow this combination. It must reach a local APIC and do no harm.
#[test]
fn a_lowest_priority_broadcast_reaches_an_apic() {
    let vectors = vectors_after(3, |p| p.ipi_to(0xff, ICR_LOWEST | ICR_ASSERT | 0x41));
    let count: usize = vectors.iter().map(Vec::len).sum();
    if MODE.deviates(
        Chip::LocalApic,
        "as fixed (irq_comm.c, kvm_irq_delivery_to_apic: \"phys broadcast and lowest prio\")",
    ) {
        assert_eq!(count, 3, "{vectors:?}");
    } else {
        assert!((1..=3).contains(&count), "{vectors:?}");
    }
}

#[test]
fn lowest_priority_never_goes_to_a_disabled_apic() {
    let mut p = Program::smp(MODE, 3);
    p.start_all();
    for cpu in 0..3 {
        p.cpu(cpu).lapic_write(LDR, 0x0100_0000 << cpu);
    }
    p.cpu(1).lapic_write(SVR, 0xff);
    p.lapic_write(SVR, 0xff);
    p.meet();
    for vector in 0x41..0x49 {
        let low = ICR_LOGICAL | ICR_LOWEST | ICR_ASSERT | vector;
        p.cpu(2).ipi_to(0b111, low);
    }
    p.meet();
    p.cpu(2).window();
    p.meet();
    let log = p.run();
    let came = log.vectors_of(2);
    if MODE.deviates(
        Chip::LocalApic,
        "a vector whose hash is that of a disabled APIC is lost (lapic.c, \
         kvm_apic_map_get_dest_lapic: kvm_vector_to_index)",
    ) {
        assert!(!came.is_empty() && came.len() < 8, "{came:x?}");
    } else {
        assert_eq!(came, (0x41..0x49).rev().collect::<Vec<u8>>());
    }
}

#[test]
fn lowest_priority_to_no_apic_is_dropped() {
    let vectors = vectors_after(2, |p| p.ipi_to(9, ICR_LOWEST | ICR_ASSERT | 0x41));
    assert_eq!(vectors, [NOTHING, NOTHING]);
}

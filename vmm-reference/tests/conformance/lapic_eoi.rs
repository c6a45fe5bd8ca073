//! The end of an interrupt (SDM 3A, "Signaling Interrupt Servicing Completion", "Spurious
//! Interrupt"). `ioapic_level` tests what it means to the IOAPIC.

use crate::prelude::*;

use super::MODE;

/// Handlers that leave what they handle in service.
fn without_eoi() -> Program {
    let mut p = Program::new(MODE);
    p.only_log(0x20..=0xff);
    p.enable_lapic();
    p
}

#[test]
fn an_eoi_with_nothing_in_service_is_ignored() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.self_ipi(0x41);
    p.eoi();
    let irr = p.lapic_read_set(IRR, 0x41);
    p.window();
    p.eoi();
    p.eoi();
    p.self_ipi(0x42);
    p.window();
    let log = p.run();
    assert!(bit(log[irr], 0x41));
    assert_eq!(log.vectors(), [0x41, 0x42]);
}

#[test]
fn an_eoi_ends_the_highest_in_service() {
    with_in_service(
        MODE,
        "assertion failed: bit(log[first], 0x41) && !bit(log[first], 0x51)",
        || {
            let mut p = without_eoi();
            p.self_ipi(0x41);
            p.window();
            p.self_ipi(0x51);
            p.window();
            p.eoi();
            let first = p.lapic_read_set(ISR, 0x41);
            p.eoi();
            let second = p.lapic_read_set(ISR, 0x41);
            let log = p.run();
            assert!(bit(log[first], 0x41) && !bit(log[first], 0x51));
            assert_eq!(log[second], 0);
        },
    );
}

#[test]
fn an_eoi_lowers_ppr() {
    with_in_service(MODE, "left: [32, 32, 32, 32]", || {
        let mut p = without_eoi();
        p.lapic_write(TPR, 0x20);
        for vector in [0x41, 0x51, 0x61] {
            p.self_ipi(vector);
            p.window();
        }
        let values = [(); 4].map(|()| {
            let ppr = p.lapic_read(PPR);
            p.eoi();
            ppr
        });
        let log = p.run();
        assert_eq!(values.map(|ppr| log[ppr]), [0x60, 0x50, 0x40, 0x20]);
    });
}

#[test]
fn an_eoi_with_interrupts_enabled_delivers_the_next() {
    with_in_service(MODE, "left: [Got(82), Got(81), Mark(1), Mark(2)]", || {
        let mut p = without_eoi();
        p.self_ipi(0x52);
        p.window();
        p.self_ipi(0x51);
        p.sti();
        p.sync();
        p.mark(1);
        p.eoi();
        p.sync();
        p.mark(2);
        p.cli();
        let log = p.run();
        assert_eq!(log.events(), [Got(0x52), Mark(1), Got(0x51), Mark(2)]);
    });
}

#[test]
fn the_value_written_to_eoi_does_not_matter() {
    with_in_service(MODE, "assertion failed: bit(log[before], 0x41)", || {
        let mut p = without_eoi();
        p.self_ipi(0x41);
        p.window();
        let before = p.lapic_read_set(ISR, 0x41);
        p.lapic_write(EOI, 0xffff_ffff);
        let after = p.lapic_read_set(ISR, 0x41);
        let log = p.run();
        assert!(bit(log[before], 0x41));
        assert_eq!(log[after], 0);
    });
}

#[test]
fn an_eoi_leaves_irr_alone() {
    let mut p = without_eoi();
    p.self_ipi(0x51);
    p.window();
    p.self_ipi(0x51);
    p.eoi();
    let irr = p.lapic_read_set(IRR, 0x51);
    let log = p.run();
    assert!(bit(log[irr], 0x51));
}

#[test]
fn a_disabled_apic_takes_eois() {
    with_in_service(MODE, "what is in service stays", || {
        let mut p = without_eoi();
        p.self_ipi(0x51);
        p.window();
        p.lapic_write(SVR, 0xff);
        let during = p.lapic_read_set(ISR, 0x51);
        p.eoi();
        let after = p.lapic_read_set(ISR, 0x51);
        let log = p.run();
        assert!(bit(log[during], 0x51), "what is in service stays");
        assert_eq!(log[after], 0);
    });
}

/// In a message the spurious vector is an ordinary vector.
#[test]
fn the_spurious_vector_can_be_sent_and_is_in_service() {
    with_in_service(MODE, "assertion failed: bit(log[isr], SPURIOUS)", || {
        let mut p = without_eoi();
        p.self_ipi(SPURIOUS);
        p.window();
        let isr = p.lapic_read_set(ISR, SPURIOUS);
        p.eoi();
        let after = p.lapic_read_set(ISR, SPURIOUS);
        let log = p.run();
        assert_eq!(log.vectors(), [SPURIOUS]);
        assert!(bit(log[isr], SPURIOUS));
        assert_eq!(log[after], 0);
    });
}

/// TPR is raised after the vector was accepted: it is neither lost nor spurious.
#[test]
fn what_tpr_holds_back_is_not_spurious() {
    let mut p = without_eoi();
    p.self_ipi(0x51);
    p.lapic_write(TPR, 0x60);
    p.window();
    p.mark(1);
    p.lapic_write(TPR, 0);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Got(0x51)]);
}

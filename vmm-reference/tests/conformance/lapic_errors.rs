//! The error status register, illegal vectors and the error interrupt (SDM 3A, "Error Handling").

use crate::prelude::*;

use super::MODE;

/// KVM has the register, and never writes it.
fn kvm_reports_no_errors() -> bool {
    MODE.deviates(
        Chip::LocalApic,
        "no error is ever reported in ESR (lapic.c, __apic_accept_irq and kvm_lapic_reg_write)",
    )
}

/// Returns ESR after an operation: a write makes the recorded errors readable.
fn esr_after(act: impl FnOnce(&mut Program)) -> u64 {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    act(&mut p);
    p.lapic_write(ESR, 0);
    let esr = p.lapic_read(ESR);
    let log = p.run();
    log[esr]
}

#[test]
fn esr_is_0_when_nothing_is_wrong() {
    let esr = esr_after(|p| {
        p.self_ipi(0x40);
        p.lapic_write(LVT_ERROR, 0x33);
    });
    assert_eq!(esr, 0);
}

#[test]
fn to_send_an_illegal_vector_is_an_error() {
    let esr = esr_after(|p| p.self_ipi(0x0f));
    let expected = if kvm_reports_no_errors() {
        0
    } else {
        ESR_SEND_ILLEGAL
    };
    assert_eq!(esr & ESR_SEND_ILLEGAL, expected);
}

#[test]
fn to_receive_an_illegal_vector_is_an_error() {
    let esr = esr_after(|p| {
        p.msi(APIC_PAGE, 0x05);
    });
    let expected = if kvm_reports_no_errors() {
        0
    } else {
        ESR_RECEIVE_ILLEGAL
    };
    assert_eq!(esr & ESR_RECEIVE_ILLEGAL, expected);
}

#[test]
fn an_illegal_vector_is_not_delivered() {
    let mut p = Program::new(MODE);
    p.only_log(0x00..=0x01);
    p.only_log(0x03..=0x0f);
    p.enable_lapic();
    for vector in [0x00, 0x03, 0x0f] {
        p.self_ipi(vector);
        p.msi(APIC_PAGE, vector.into());
    }
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn an_illegal_vector_is_not_pending() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.msi(APIC_PAGE, 0x0e);
    let irr = p.lapic_read_set(IRR, 0x0e);
    let log = p.run();
    let kvm = MODE.deviates(
        Chip::LocalApic,
        "vectors 0 to 15 stay in IRR, and are not delivered for their priority class alone \
         (lapic.c, __apic_accept_irq)",
    );
    assert_eq!(bit(log[irr], 0x0e), kvm);
}

#[test]
fn vector_16_is_the_lowest_that_is_delivered() {
    let mut p = Program::new(MODE);
    p.on(0x10).eoi();
    p.enable_lapic();
    p.self_ipi(0x10);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x10]);
}

#[test]
fn esr_shows_errors_only_after_a_write() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.self_ipi(0x03);
    let before = p.lapic_read(ESR);
    p.lapic_write(ESR, 0);
    let after = p.lapic_read(ESR);
    let log = p.run();
    assert_eq!(log[before], 0);
    assert_eq!(log[after] != 0, !kvm_reports_no_errors());
}

#[test]
fn a_second_write_of_esr_clears_it() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.self_ipi(0x03);
    p.lapic_write(ESR, 0);
    p.lapic_write(ESR, 0);
    let esr = p.lapic_read(ESR);
    let log = p.run();
    assert_eq!(log[esr], 0);
}

#[test]
fn esr_keeps_nothing_that_is_written() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(ESR, 0xffff_ffff);
    let esr = p.lapic_read(ESR);
    let log = p.run();
    assert_eq!(log[esr], 0);
}

#[test]
fn an_error_raises_the_error_interrupt() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(LVT_ERROR, 0x45);
    p.self_ipi(0x03);
    p.window();
    let log = p.run();
    let expected: &[u8] = if kvm_reports_no_errors() {
        &[]
    } else {
        &[0x45]
    };
    assert_eq!(log.vectors(), expected);
}

#[test]
fn a_masked_error_interrupt_is_not_raised() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(LVT_ERROR, LVT_MASKED | 0x45);
    p.self_ipi(0x03);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn an_access_to_a_reserved_register_is_an_error() {
    let esr = esr_after(|p| {
        p.lapic_read(0x040);
    });
    let expected = if kvm_reports_no_errors() {
        0
    } else {
        ESR_ILLEGAL_REGISTER
    };
    assert_eq!(esr & ESR_ILLEGAL_REGISTER, expected);
}

//! NMI (SDM 3A, "Nonmaskable Interrupt (NMI)", "Handling Multiple NMIs").

use crate::prelude::*;

use super::MODE;

const SELF_ID: u8 = 0;

fn enabled() -> Program {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p
}

/// An NMI to the sender: the shorthand self is not allowed with this delivery mode.
fn nmi(script: &mut Script) {
    script.ipi_to(SELF_ID, ICR_NMI | ICR_ASSERT);
    script.sync();
}

#[test]
fn an_nmi_is_delivered_with_if_0() {
    let mut p = enabled();
    nmi(&mut p);
    p.mark(1);
    let log = p.run();
    assert_eq!(log.events(), [Got(NMI), Mark(1)]);
}

#[test]
fn an_nmi_ignores_priorities() {
    let mut p = enabled();
    p.lapic_write(TPR, 0xff);
    nmi(&mut p);
    let log = p.run();
    assert_eq!(log.vectors(), [NMI]);
}

#[test]
fn an_nmi_ignores_the_vector_field() {
    let mut p = enabled();
    p.ipi_to(SELF_ID, ICR_NMI | ICR_ASSERT | 0x41);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [NMI]);
}

#[test]
fn an_nmi_is_neither_in_irr_nor_in_isr() {
    let mut p = enabled();
    let handler = p.on(NMI);
    let irr = handler.lapic_read(IRR);
    let isr = handler.lapic_read(ISR);
    nmi(&mut p);
    let log = p.run();
    assert_eq!(log.vectors(), [NMI]);
    assert_eq!((log[irr], log[isr]), (0, 0));
}

#[test]
fn a_software_disabled_apic_takes_nmis() {
    let mut p = enabled();
    p.lapic_write(SVR, 0xff);
    nmi(&mut p);
    let log = p.run();
    assert_eq!(log.vectors(), [NMI]);
}

#[test]
fn an_nmi_in_the_handler_waits_for_its_iret() {
    let mut p = Program::smp(MODE, 2);
    p.start_all();
    let handler = p.on(NMI);
    handler.mark(1);
    handler.barrier(100, 2);
    handler.barrier(101, 2);
    handler.sync();
    handler.mark(2);
    p.cpu(1).ipi_to(SELF_ID, ICR_NMI | ICR_ASSERT);
    p.cpu(1).barrier(100, 2);
    // Within the handler.
    p.cpu(1).ipi_to(SELF_ID, ICR_NMI | ICR_ASSERT);
    p.cpu(1).barrier(101, 2);
    p.cpu(1).barrier(100, 0);
    let first = p.wait(NMI, 2);
    let log = p.run();
    assert_eq!(log[first], 2);
    let events = log.events();
    assert_eq!(
        events,
        [Got(NMI), Mark(1), Mark(2), Got(NMI), Mark(1), Mark(2)]
    );
}

#[test]
fn a_handler_of_an_nmi_can_be_interrupted_by_others() {
    let mut p = enabled();
    let handler = p.on(NMI);
    handler.self_ipi(0x41);
    handler.mark(1);
    handler.window();
    handler.mark(2);
    nmi(&mut p);
    let log = p.run();
    assert_eq!(log.events(), [Got(NMI), Mark(1), Got(0x41), Mark(2)]);
}

#[test]
fn an_nmi_goes_before_an_interrupt() {
    let mut p = enabled();
    p.self_ipi(0xfe);
    p.ipi_to(SELF_ID, ICR_NMI | ICR_ASSERT);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [NMI, 0xfe]);
}

/// One NMI comes after HLT. Those before it are handled, and HLT sleeps.
fn wake_second_with_nmis(p: &mut Program) {
    const AWAKE: u64 = 100;
    p.cpu(1).hlt();
    p.cpu(1).mark(1);
    p.cpu(1).barrier(AWAKE, 1);
    p.lapic_write(ICR2, 1 << 24);
    p.write_until(APIC_PAGE + ICR, ICR_NMI | ICR_ASSERT, AWAKE);
    p.meet();
}

#[test]
fn an_nmi_wakes_a_processor_halted_with_if_0() {
    let mut p = Program::smp(MODE, 2);
    p.start_all();
    wake_second_with_nmis(&mut p);
    let log = p.run();
    let events = log.events_of(1);
    assert!(events.contains(&Got(NMI)) && events.contains(&Mark(1)));
}

#[test]
fn a_fixed_interrupt_does_not_wake_a_processor_halted_with_if_0() {
    let mut p = Program::smp(MODE, 2);
    p.start_all();
    p.ipi_to(1, ICR_ASSERT | 0x41);
    p.spin_ms(3);
    p.ipi_to(1, ICR_ASSERT | 0x42);
    wake_second_with_nmis(&mut p);
    p.cpu(1).window();
    p.meet();
    let log = p.run();
    let events = log.events_of(1);
    let woken = events.iter().position(|event| *event == Mark(1)).unwrap();
    assert!(
        events[..woken].contains(&Got(NMI)),
        "something else woke it"
    );
    assert!(!events[..woken].contains(&Got(0x41)));
    assert!(events[woken..].contains(&Got(0x41)));
}

#[test]
fn nmis_reach_everybody_else() {
    let mut p = Program::smp(MODE, 3);
    p.start_all();
    p.ipi(ICR_ALL_BUT_SELF | ICR_NMI | ICR_ASSERT);
    p.meet();
    for cpu in 0..3 {
        p.cpu(cpu).sync();
    }
    p.meet();
    let log = p.run();
    assert_eq!(log.vectors_of(0), NOTHING);
    assert_eq!(log.vectors_of(1), [NMI]);
    assert_eq!(log.vectors_of(2), [NMI]);
}

#[test]
fn a_message_can_be_an_nmi() {
    let mut p = enabled();
    p.msi(APIC_PAGE, ICR_NMI | 0x41);
    p.sync();
    let log = p.run();
    assert_eq!(log.vectors(), [NMI]);
}

#[test]
fn a_pin_of_the_ioapic_can_be_an_nmi() {
    let mut p = enabled();
    p.lapic_write(TPR, 0xff);
    p.rte(20, RTE_NMI | 0x41);
    p.pulse(20);
    p.sync();
    let log = p.run();
    assert_eq!(log.vectors(), [NMI]);
}

//! Virtual wire: the 8259As' interrupt through LINT0 (SDM 3A, "Local Vector Table": ExtINT; MP
//! specification 1.4, 3.6.2.2).

use crate::prelude::*;

use super::MODE;

const INPUT: u32 = 3;
const VECTOR: u8 = PIC1_BASE + 3;

fn pics() -> Program {
    let mut p = Program::new(MODE);
    p.only_log(0x20..=0xfe);
    p.init_pics();
    p
}

#[test]
fn it_works_with_the_local_apic_as_at_reset() {
    let mut p = Program::new(MODE);
    p.only_log([VECTOR]);
    p.init_pic1(ICW4_8086);
    p.pulse(INPUT);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR]);
}

#[test]
fn lint0_masked_withholds_it() {
    let mut p = pics();
    p.lapic_write(LVT_LINT0, LVT_EXTINT | LVT_MASKED);
    p.pulse(INPUT);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn unmasked_lint0_delivers_what_waits() {
    let mut p = pics();
    p.lapic_write(LVT_LINT0, LVT_EXTINT | LVT_MASKED);
    p.pulse(INPUT);
    p.lapic_write(LVT_LINT0, LVT_EXTINT);
    p.window();
    p.mark(1);
    // Another interrupt makes KVM check for it.
    p.self_ipi(0x51);
    p.window();
    let log = p.run();
    // A split irqchip requests a window, and finds it then.
    if MODE.deviates_if(
        !is_pvm() && MODE.is_kvms(Chip::Pic),
        Chip::LocalApic,
        "unmasked LINT0 delivers only when something else is delivered (lapic.c, \
         kvm_lapic_reg_write: no KVM_REQ_EVENT for APIC_LVT0)",
    ) {
        let mut events = log.events();
        assert_eq!(events.first(), Some(&Mark(1)));
        events.sort_unstable();
        assert_eq!(events, [Got(VECTOR), Got(0x51), Mark(1)]);
    } else {
        assert_eq!(log.events(), [Got(VECTOR), Mark(1), Got(0x51)]);
    }
}

#[test]
fn task_priority_does_not_withhold_it() {
    let mut p = pics();
    p.lapic_write(TPR, 0xf0);
    p.pulse(INPUT);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR]);
}

#[test]
fn if_0_withholds_it() {
    let mut p = pics();
    p.pulse(INPUT);
    p.sync();
    p.mark(1);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Got(VECTOR)]);
}

#[test]
fn what_is_in_service_in_the_local_apic_does_not_withhold_it() {
    let mut p = pics();
    p.self_ipi(0xf1);
    p.window();
    p.pulse(INPUT);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0xf1, VECTOR]);
}

#[test]
fn software_disable_masks_lint0_and_withholds_it() {
    let mut p = pics();
    p.lapic_write(SVR, 0xff);
    p.pulse(INPUT);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
}

/// INTR is the processor's pin again (SDM 3A, "Enabling or Disabling the Local APIC").
#[test]
fn a_hardware_disabled_apic_lets_it_through() {
    let mut p = pics();
    p.lapic_write(LVT_LINT0, LVT_EXTINT | LVT_MASKED);
    p.wrmsr(APIC_BASE, APIC_PAGE | APIC_BASE_BSP);
    p.pulse(INPUT);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR]);
}

#[test]
fn it_wakes_a_halted_processor() {
    let mut p = pics();
    p.pulse(INPUT);
    p.sti_hlt();
    p.mark(1);
    let log = p.run();
    assert_eq!(log.events(), [Got(VECTOR), Mark(1)]);
}

#[test]
fn it_goes_to_the_first_processor_alone() {
    let mut p = Program::smp(MODE, 2);
    p.only_log(0x20..=0xfe);
    p.start_all();
    p.init_pics();
    p.meet();
    p.pulse(INPUT);
    p.meet();
    p.cpu(1).window();
    p.meet();
    p.window();
    let log = p.run();
    assert_eq!(log.vectors_of(1), NOTHING);
    assert_eq!(log.vectors_of(0), [VECTOR]);
}

#[test]
fn it_works_in_x2apic_mode() {
    let mut p = pics();
    p.enable_x2apic();
    p.wrmsr(x2(LVT_LINT0), LVT_EXTINT.into());
    p.pulse(INPUT);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [VECTOR]);
}

#[test]
fn it_and_an_interrupt_of_the_local_apic_are_both_delivered() {
    let mut p = pics();
    p.self_ipi(0x51);
    p.pulse(INPUT);
    p.window();
    let log = p.run();
    let mut vectors = log.vectors();
    vectors.sort_unstable();
    assert_eq!(vectors, [VECTOR, 0x51]);
}

/// Inputs 0 to 15 are the 8259As' and the IOAPIC's at once.
#[test]
fn one_line_is_seen_by_both_chips() {
    let mut p = pics();
    p.rte_edge(3, 0x71);
    p.pulse(INPUT);
    p.window();
    let log = p.run();
    let mut vectors = log.vectors();
    vectors.sort_unstable();
    assert_eq!(vectors, [VECTOR, 0x71]);
}

#[test]
fn a_vector_below_16_is_delivered() {
    let mut p = pics();
    p.only_log([0x0b]);
    p.outb(PIC1, ICW1 | ICW1_ICW4);
    p.outb(PIC1_IMR, 0x08);
    p.outb(PIC1_IMR, 1 << 2);
    p.outb(PIC1_IMR, ICW4_8086);
    p.outb(PIC1_IMR, 0);
    // Input 1: vector 9, for which the processor pushes no error code.
    p.only_log([0x09]);
    p.pulse(1);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x09]);
}

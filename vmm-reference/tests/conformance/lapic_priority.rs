//! Priorities: TPR, PPR, CR8, IRR and ISR (SDM 3A, "Task and Processor Priorities", "Interrupt
//! Acceptance for Fixed Interrupts").

use crate::prelude::*;

use super::MODE;

/// Returns what TPR keeps of a written value.
fn tpr(value: u64) -> u64 {
    let kvm = MODE.deviates_if(
        is_amd(),
        Chip::LocalApic,
        "kvm_amd loses bits 3:0 of TPR at each exit (svm.c, sync_cr8_to_lapic)",
    );
    if kvm { value & 0xf0 } else { value }
}

/// Handlers that leave what they handle in service.
fn without_eoi() -> Program {
    let mut p = Program::new(MODE);
    p.only_log(0x20..=0xfe);
    p.enable_lapic();
    p
}

#[test]
fn an_interrupt_waits_in_irr_while_if_is_0() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.self_ipi(0x40);
    let irr = p.lapic_read_set(IRR, 0x40);
    let isr = p.lapic_read_set(ISR, 0x40);
    p.mark(1);
    p.window();
    let irr_after = p.lapic_read_set(IRR, 0x40);
    let log = p.run();
    assert!(bit(log[irr], 0x40));
    assert!(!bit(log[isr], 0x40));
    assert!(!bit(log[irr_after], 0x40));
    assert_eq!(log.events(), [Mark(1), Got(0x40)]);
}

#[test]
fn delivery_moves_the_vector_from_irr_to_isr() {
    with_in_service(MODE, "left: 0", || {
        let mut p = Program::new(MODE);
        p.enable_lapic();
        let handler = p.on(0x51);
        let irr = handler.lapic_read_set(IRR, 0x51);
        let isr = handler.lapic_read_set(ISR, 0x51);
        handler.eoi();
        let ended = handler.lapic_read_set(ISR, 0x51);
        p.self_ipi(0x51);
        p.window();
        let log = p.run();
        assert_eq!(log.vectors(), [0x51]);
        assert_eq!(log[irr], 0);
        assert_eq!(log[isr], 1 << (0x51 % 32));
        assert_eq!(log[ended], 0);
    });
}

#[test]
fn tpr_holds_back_its_own_class_and_those_below() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0x40);
    p.self_ipi(0x4f);
    p.self_ipi(0x31);
    p.window();
    p.mark(1);
    p.self_ipi(0x50);
    p.window();
    p.mark(2);
    p.lapic_write(TPR, 0x3f);
    p.window();
    p.mark(3);
    p.lapic_write(TPR, 0);
    p.window();
    let log = p.run();
    let expected = [Mark(1), Got(0x50), Mark(2), Got(0x4f), Mark(3), Got(0x31)];
    assert_eq!(log.events(), expected);
}

#[test]
fn the_subclass_of_tpr_holds_nothing_back() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0x4f);
    p.self_ipi(0x50);
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x50]);
}

#[test]
fn ppr_is_tpr_while_nothing_is_in_service() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0x37);
    let ppr = p.lapic_read(PPR);
    let log = p.run();
    assert_eq!(log[ppr], tpr(0x37));
}

#[test]
fn ppr_is_the_class_in_service_if_that_is_above_tprs() {
    with_in_service(MODE, "left: 55", || {
        let mut p = without_eoi();
        p.lapic_write(TPR, 0x37);
        p.self_ipi(0x52);
        p.window();
        let ppr = p.lapic_read(PPR);
        let log = p.run();
        assert_eq!(log[ppr], 0x50);
    });
}

#[test]
fn ppr_is_tpr_if_its_class_is_that_in_service() {
    let mut p = without_eoi();
    p.self_ipi(0x52);
    p.window();
    p.lapic_write(TPR, 0x57);
    let ppr = p.lapic_read(PPR);
    p.lapic_write(TPR, 0x63);
    let above = p.lapic_read(PPR);
    let log = p.run();
    assert_eq!(log[ppr], tpr(0x57));
    assert_eq!(log[above], tpr(0x63));
}

#[test]
fn ppr_cannot_be_written() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0x21);
    p.lapic_write(PPR, 0x80);
    let ppr = p.lapic_read(PPR);
    let tpr = p.lapic_read(TPR);
    let log = p.run();
    assert_eq!((log[ppr], log[tpr]), (self::tpr(0x21), self::tpr(0x21)));
}

#[test]
fn tpr_keeps_eight_bits() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0xffff_ff9a);
    let tpr = p.lapic_read(TPR);
    let log = p.run();
    assert_eq!(log[tpr], self::tpr(0x9a));
}

#[test]
fn what_is_in_service_holds_back_its_class() {
    with_in_service(
        MODE,
        "left: [Got(82), Got(95), Got(65), Mark(1), Mark(2)]",
        || {
            let mut p = without_eoi();
            p.self_ipi(0x52);
            p.window();
            p.self_ipi(0x5f);
            p.self_ipi(0x41);
            p.window();
            p.mark(1);
            p.eoi();
            p.window();
            p.mark(2);
            p.eoi();
            p.window();
            let log = p.run();
            let expected = [Got(0x52), Mark(1), Got(0x5f), Mark(2), Got(0x41)];
            assert_eq!(log.events(), expected);
        },
    );
}

#[test]
fn a_higher_class_interrupts_a_handler() {
    with_in_service(
        MODE,
        "left: [Got(82), Mark(1), Got(97), Got(95), Mark(2)]",
        || {
            let mut p = Program::new(MODE);
            p.enable_lapic();
            let handler = p.on(0x52);
            handler.self_ipi(0x61);
            handler.self_ipi(0x5f);
            handler.mark(1);
            handler.window();
            handler.mark(2);
            handler.eoi();
            p.self_ipi(0x52);
            p.window();
            let log = p.run();
            let expected = [Got(0x52), Mark(1), Got(0x61), Mark(2), Got(0x5f)];
            assert_eq!(log.events(), expected);
        },
    );
}

#[test]
fn the_highest_vector_is_delivered_first() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    for vector in [0x41, 0xe0, 0x22, 0x42, 0x9f] {
        p.self_ipi(vector);
    }
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0xe0, 0x9f, 0x42, 0x41, 0x22]);
}

#[test]
fn a_vector_that_is_pending_already_is_merged() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    for _ in 0..3 {
        p.self_ipi(0x41);
    }
    p.window();
    p.window();
    let log = p.run();
    assert_eq!(log.vectors(), [0x41]);
}

#[test]
fn a_vector_in_service_can_be_pending_once_more() {
    with_in_service(
        MODE,
        "assertion failed: bit(log[irr], 0x41) && bit(log[isr], 0x41)",
        || {
            let mut p = without_eoi();
            p.self_ipi(0x41);
            p.window();
            p.self_ipi(0x41);
            p.self_ipi(0x41);
            let irr = p.lapic_read_set(IRR, 0x41);
            let isr = p.lapic_read_set(ISR, 0x41);
            p.window();
            p.mark(1);
            p.eoi();
            p.window();
            p.eoi();
            p.window();
            let log = p.run();
            assert!(bit(log[irr], 0x41) && bit(log[isr], 0x41));
            assert_eq!(log.events(), [Got(0x41), Mark(1), Got(0x41)]);
        },
    );
}

#[test]
fn cr8_is_the_class_of_tpr() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0x5a);
    let cr8 = p.read_cr8();
    p.write_cr8(0xb);
    let tpr = p.lapic_read(TPR);
    let ppr = p.lapic_read(PPR);
    p.write_cr8(0);
    let zero = p.lapic_read(TPR);
    let log = p.run();
    assert_eq!(log[cr8], 5);
    assert_eq!((log[tpr], log[ppr]), (0xb0, 0xb0));
    assert_eq!(log[zero], 0);
}

#[test]
fn cr8_holds_interrupts_back_until_it_is_lowered() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.write_cr8(0x6);
    p.self_ipi(0x6e);
    p.self_ipi(0x55);
    p.window();
    p.mark(1);
    p.write_cr8(0x5);
    p.window();
    p.mark(2);
    p.write_cr8(0x4);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Got(0x6e), Mark(2), Got(0x55)]);
}

#[test]
fn lowering_cr8_with_interrupts_enabled_delivers() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.write_cr8(0xf);
    p.self_ipi(0x71);
    p.sti();
    p.sync();
    p.mark(1);
    p.write_cr8(0x7);
    p.sync();
    p.mark(2);
    p.write_cr8(0x6);
    p.sync();
    p.mark(3);
    p.cli();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Mark(2), Got(0x71), Mark(3)]);
}

#[test]
fn reserved_bits_of_cr8_fault() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.write_cr8(0x3);
    let reserved = p.write_cr8(0x10);
    let high = p.write_cr8(1 << 63);
    let cr8 = p.read_cr8();
    let log = p.run();
    if this_kvm(
        // With an emulated local APIC KVM intercepts the write.
        is_tcg() && MODE.is_kvms(Chip::LocalApic),
        "QEMU's TCG lets a guest write any bits to CR8, and keeps the low four",
    ) {
        assert!(!log.faults(reserved) && !log.faults(high));
    } else {
        assert!(log.faults(reserved) && log.faults(high));
        assert_eq!(log[cr8], 0x3);
    }
}

#[test]
fn tpr_in_class_15_holds_everything_back() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0xf0);
    p.self_ipi(0xfe);
    p.self_ipi(0x20);
    p.window();
    p.mark(1);
    p.lapic_write(TPR, 0xe0);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Got(0xfe)]);
}

#[test]
fn irr_isr_and_tmr_cannot_be_written() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    let mut after = Vec::new();
    for register in [IRR, ISR, TMR] {
        p.lapic_write(register + 0x20, 0xffff_ffff);
        after.push(p.lapic_read(register + 0x20));
    }
    p.window();
    let log = p.run();
    assert!(after.into_iter().all(|register| log[register] == 0));
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn each_vector_has_its_bit() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    let mut pending = Vec::new();
    for vector in [0x20, 0x3f, 0x5e, 0x7d, 0x9c, 0xbb, 0xda, 0xf9] {
        p.self_ipi(vector);
        pending.push((vector, p.lapic_read_set(IRR, vector)));
    }
    let log = p.run();
    for (vector, irr) in pending {
        assert!(bit(log[irr], vector), "{vector:#x}");
    }
}

#[test]
fn nothing_is_delivered_in_the_shadow_of_sti() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.self_ipi(0x40);
    p.sti_cli();
    p.mark(1);
    p.window();
    let log = p.run();
    assert_eq!(log.events(), [Mark(1), Got(0x40)]);
}

//! INIT and startup IPIs (SDM 3A, "Multiple-Processor (MP) Initialization"; "Processor State
//! Following INIT").

use crate::prelude::*;

use super::MODE;

const PAGE: u32 = 0x70;
const OTHER_PAGE: u32 = 0x71;

/// Two vCPUs, of which the second is not started.
fn two() -> Program {
    let mut p = Program::smp(MODE, 2);
    p.enable_lapic();
    p
}

/// The first starts the second, which joins it.
fn start_second(p: &mut Program) {
    p.ipi_to(1, INIT);
    p.ipi_to(1, STARTUP | PAGE);
    p.meet();
}

#[test]
fn a_processor_waits_for_its_startup_ipi() {
    let mut p = two();
    p.cpu(1).mark(1);
    p.ipi_to(1, ICR_ASSERT | 0x41);
    p.spin_ms(2);
    let log = p.run();
    assert_eq!(log.events_of(1), []);
}

#[test]
fn init_alone_starts_no_vcpu() {
    let mut p = two();
    p.ipi_to(1, INIT);
    p.spin_ms(5);
    let log = p.run();
    assert_eq!(log.events_of(1), []);
}

#[test]
fn a_startup_ipi_starts_in_its_page() {
    let mut p = two();
    start_second(&mut p);
    let log = p.run();
    assert_eq!(log.events_of(1), [Started(PAGE.into())]);
}

#[test]
fn the_vector_is_the_page() {
    let mut p = two();
    p.ipi_to(1, INIT);
    p.ipi_to(1, STARTUP | OTHER_PAGE);
    p.meet();
    let log = p.run();
    assert_eq!(log.events_of(1), [Started(OTHER_PAGE.into())]);
}

#[test]
fn init_level_deassert_does_nothing() {
    let mut p = two();
    p.ipi_to(1, INIT | ICR_LEVEL);
    p.ipi_to(1, INIT_DEASSERT);
    p.ipi_to(1, STARTUP | PAGE);
    p.meet();
    p.ipi(ICR_ALL | INIT_DEASSERT);
    p.meet();
    p.cpu(1).mark(1);
    p.meet();
    let log = p.run();
    assert_eq!(log.events_of(1), [Started(PAGE.into()), Mark(1)]);
}

#[test]
fn a_second_startup_ipi_is_ignored() {
    let mut p = two();
    start_second(&mut p);
    p.ipi_to(1, STARTUP | PAGE);
    p.ipi_to(1, STARTUP | OTHER_PAGE);
    p.meet();
    p.cpu(1).window();
    p.cpu(1).mark(1);
    p.meet();
    let log = p.run();
    assert_eq!(log.events_of(1), [Started(PAGE.into()), Mark(1)]);
}

#[test]
fn a_startup_ipi_to_the_sender_is_ignored() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.ipi_to(0, STARTUP | PAGE);
    p.window();
    p.mark(1);
    let log = p.run();
    assert_eq!(log.events(), [Mark(1)]);
}

#[test]
fn broadcasts_start_everybody_else() {
    let mut p = Program::smp(MODE, 4);
    p.start_all();
    let log = p.run();
    assert_eq!(log.events_of(0), []);
    for cpu in 1..4 {
        assert_eq!(log.events_of(cpu), [Started(PAGE.into())]);
    }
}

#[test]
fn a_disabled_apic_sends_and_takes_init_and_startup() {
    let mut p = Program::smp(MODE, 2);
    p.ipi_to(1, INIT);
    p.ipi_to(1, STARTUP | PAGE);
    if MODE.deviates(
        Chip::LocalApic,
        "the last vCPU is reached by no IPI until a local APIC has changed (lapic.c: it is reset, \
         which makes the map of APICs, before kvm_vm_ioctl_create_vcpu lists it)",
    ) {
        p.spin_ms(20);
        let log = p.run();
        assert_eq!(log.events_of(1), []);
    } else {
        p.meet();
        let log = p.run();
        assert_eq!(log.events_of(1), [Started(PAGE.into())]);
    }
}

/// Lets the second vCPU prepare, starts it again, and returns the whole log.
fn restarted(
    prepare: impl FnOnce(&mut Script),
    after: impl FnOnce(&mut Script),
) -> crate::log::Log {
    let mut p = two();
    start_second(&mut p);
    prepare(p.cpu(1));
    p.meet();
    p.cpu(1).mark(99);
    p.cpu(1).hlt();
    p.cpu(1).mark(100);
    p.ipi_to(1, INIT);
    p.ipi_to(1, STARTUP | OTHER_PAGE);
    after(p.restart(1));
    p.restart(1).barrier(100, 2);
    p.barrier(100, 2);
    p.run()
}

#[test]
fn init_stops_a_running_processor_which_can_be_started_again() {
    let log = restarted(|_| {}, |s| s.mark(1));
    let events = log.events_of(1);
    assert_eq!(events.first(), Some(&Started(PAGE.into())));
    assert!(events.ends_with(&[Started(OTHER_PAGE.into()), Mark(1)]));
    assert!(!events.contains(&Mark(100)), "it went on");
}

#[test]
fn init_resets_the_local_apic() {
    let mut registers = Vec::new();
    let log = restarted(
        |s| {
            s.enable_lapic();
            s.lapic_write(TPR, 0x30);
            s.lapic_write(LDR, 0x0200_0000);
            s.lapic_write(LVT_ERROR, 0x45);
            s.lapic_write(TDCR, DIVIDE_BY_1);
            s.lapic_write(LVT_TIMER, LVT_MASKED);
            s.lapic_write(TMICT, 0xffff_ffff);
        },
        |s| {
            for (register, value) in [
                (SVR, 0xff),
                (TPR, 0),
                (LDR, 0),
                (DFR, 0xffff_ffff),
                (LVT_ERROR, 0x1_0000),
                (LVT_TIMER, 0x1_0000),
                (LVT_LINT0, 0x1_0000),
                (TMICT, 0),
                (TMCCT, 0),
                (TDCR, 0),
            ] {
                registers.push((register, value, s.lapic_read(register)));
            }
        },
    );
    for (register, value, handle) in registers {
        assert_eq!(log[handle], value, "{register:#x}");
    }
}

#[test]
fn init_keeps_the_apic_id() {
    let mut id = None;
    let log = restarted(|_| {}, |s| id = Some(s.lapic_read(ID)));
    assert_eq!(log[id.unwrap()], 1 << 24);
}

#[test]
fn init_forgets_what_was_pending() {
    let mut irr = None;
    let log = restarted(
        |s| {
            s.enable_lapic();
            s.self_ipi(0x41);
        },
        |s| {
            irr = Some(s.lapic_read_set(IRR, 0x41));
            s.enable_lapic();
            s.window();
        },
    );
    assert_eq!(log[irr.unwrap()], 0);
    assert_eq!(log.vectors_of(1), NOTHING);
}

#[test]
fn init_keeps_ia32_apic_base() {
    let mut base = None;
    let log = restarted(|_| {}, |s| base = Some(s.rdmsr(APIC_BASE)));
    assert_eq!(log[base.unwrap()], APIC_PAGE | APIC_BASE_EN);
}

#[test]
fn init_resets_cr8() {
    let mut cr8 = None;
    let log = restarted(
        |s| {
            s.write_cr8(7);
        },
        |s| cr8 = Some(s.read_cr8()),
    );
    assert_eq!(log[cr8.unwrap()], 0);
}

#[test]
fn init_keeps_the_tsc() {
    let mut times = Vec::new();
    let log = restarted(|s| times.push(s.rdmsr(TSC)), |_| {});
    assert!(log[times[0]] > 0);
}

#[test]
fn a_halted_processor_can_be_started_again_many_times() {
    let mut p = two();
    for round in 0..4 {
        p.ipi_to(1, INIT);
        p.ipi_to(1, STARTUP | PAGE);
        p.barrier(0, 2 * (round + 1));
    }
    p.cpu(1).barrier(0, 0);
    p.cpu(1).hlt();
    p.restart(1).barrier(0, 0);
    p.restart_all(1);
    let log = p.run();
    assert_eq!(log.events_of(1), [Started(PAGE.into()); 4]);
}

#[test]
fn only_the_first_processor_is_the_bootstrap_processor() {
    let mut p = two();
    let first = p.rdmsr(APIC_BASE);
    let second = p.cpu(1).rdmsr(APIC_BASE);
    start_second(&mut p);
    p.meet();
    let log = p.run();
    assert_eq!(log[first], APIC_PAGE | APIC_BASE_EN | APIC_BASE_BSP);
    assert_eq!(log[second], APIC_PAGE | APIC_BASE_EN);
}

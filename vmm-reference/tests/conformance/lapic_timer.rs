//! The local APIC's timer (SDM 3A, "APIC Timer").
//!
//! The lower bound of each time is asserted exactly. The upper bound only ends a test whose timer never
//! expires.

use crate::prelude::*;

use super::MODE;

const TIMER: u8 = 0x45;
/// A count that does not end during any test, at any frequency.
const LONG: u32 = 0xffff_ffff;
/// At 1 GHz, a millisecond.
const SHORT: u32 = 1_000_000;
/// At 1 GHz, 300 milliseconds: the next operations come before its end.
const MEDIUM: u32 = 300 * SHORT;

/// With the divider at 1 and the timer's vector in this mode.
fn with_timer(lvt: u32) -> Program {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TDCR, DIVIDE_BY_1);
    p.lapic_write(LVT_TIMER, lvt | u32::from(TIMER));
    p
}

/// The timer's interrupt is not a line whose level could be seen later (SDM 3A, "Local Vector Table": a mask
/// "inhibits reception of the interrupt").
fn kvm_keeps_what_was_masked() -> bool {
    MODE.deviates(
        Chip::LocalApic,
        "a timer that has expired while masked interrupts when it is unmasked (lapic.c, \
         apic_has_pending_timer: `pending` is kept while the LVT is masked)",
    )
}

fn with_deadline() -> Program {
    with_timer(LVT_DEADLINE)
}

#[test]
fn one_shot_rings_once() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, SHORT);
    let rung = p.wait(TIMER, 1);
    p.wait_ms(TIMER, 2, 10);
    let log = p.run();
    assert_eq!(log[rung], 1);
    assert_eq!(log.vectors(), [TIMER]);
}

#[test]
fn after_one_shot_the_current_count_is_0_and_the_initial_as_it_was() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, SHORT);
    p.wait(TIMER, 1);
    let current = p.lapic_read(TMCCT);
    let initial = p.lapic_read(TMICT);
    let log = p.run();
    assert_eq!((log[current], log[initial]), (0, SHORT.into()));
}

#[test]
fn one_shot_can_be_armed_again() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, SHORT);
    p.wait(TIMER, 1);
    p.lapic_write(TMICT, SHORT);
    let rung = p.wait(TIMER, 2);
    let log = p.run();
    assert_eq!(log[rung], 2);
}

#[test]
fn periodic_rings_again_and_again() {
    let mut p = with_timer(LVT_PERIODIC);
    p.lapic_write(TMICT, SHORT);
    let rung = p.wait(TIMER, 5);
    let log = p.run();
    assert!(log[rung] >= 5);
}

#[test]
fn an_initial_count_of_0_stops_the_timer() {
    let mut p = with_timer(LVT_PERIODIC);
    p.lapic_write(TMICT, SHORT);
    p.wait(TIMER, 2);
    p.lapic_write(TMICT, 0);
    // The interrupt of an earlier expiry is still pending.
    p.window();
    let stopped = p.count(TIMER);
    p.wait_ms(TIMER, 1000, 20);
    let later = p.count(TIMER);
    let current = p.lapic_read(TMCCT);
    let log = p.run();
    assert_eq!(log[stopped], log[later]);
    assert_eq!(log[current], 0);
}

#[test]
fn the_current_count_goes_down() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, LONG);
    let first = p.lapic_read(TMCCT);
    p.spin_ms(1);
    let second = p.lapic_read(TMCCT);
    let log = p.run();
    assert!(log[first] <= LONG.into());
    assert!(log[second] < log[first]);
    assert!(log[second] > 0);
}

#[test]
fn a_new_initial_count_starts_over() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, LONG / 16);
    p.lapic_write(TMICT, LONG);
    let current = p.lapic_read(TMCCT);
    let log = p.run();
    assert!(log[current] > (LONG / 2).into());
}

#[test]
fn a_masked_timer_counts_and_does_not_ring() {
    let mut p = with_timer(LVT_MASKED);
    p.lapic_write(TMICT, MEDIUM);
    let first = p.lapic_read(TMCCT);
    let end = p.poll(APIC_PAGE + TMCCT, 0xffff_ffff, 0);
    // The interrupt may arrive a little later than the count can be read.
    p.spin_ms(50);
    p.window();
    p.mark(1);
    p.lapic_write(LVT_TIMER, TIMER.into());
    p.wait_ms(TIMER, 1, 350);
    let log = p.run();
    assert!(log[first] > 0, "it has begun");
    assert_eq!(log[end], 0);
    if kvm_keeps_what_was_masked() {
        assert_eq!(log.events(), [Mark(1), Got(TIMER)]);
    } else {
        assert_eq!(log.events(), [Mark(1)], "unmasked too late");
    }
}

#[test]
fn a_timer_that_is_unmasked_in_time_rings() {
    let mut p = with_timer(LVT_MASKED);
    p.lapic_write(TMICT, MEDIUM);
    p.lapic_write(LVT_TIMER, TIMER.into());
    let rung = p.wait(TIMER, 1);
    let log = p.run();
    assert_eq!(log[rung], 1);
}

#[test]
fn the_vector_is_that_at_the_time_it_rings() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, MEDIUM);
    p.lapic_write(LVT_TIMER, 0x46);
    let rung = p.wait(0x46, 1);
    let log = p.run();
    assert_eq!(log[rung], 1);
    assert_eq!(log.vectors(), [0x46]);
}

#[test]
fn to_become_periodic_does_not_disarm() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, MEDIUM);
    p.lapic_write(LVT_TIMER, LVT_PERIODIC | u32::from(TIMER));
    let rung = p.wait(TIMER, 2);
    let log = p.run();
    assert!(log[rung] >= 2);
}

#[test]
fn to_become_one_shot_does_not_disarm() {
    let mut p = with_timer(LVT_PERIODIC);
    p.lapic_write(TMICT, MEDIUM);
    p.lapic_write(LVT_TIMER, TIMER.into());
    p.wait(TIMER, 1);
    p.wait_ms(TIMER, 2, 350);
    let log = p.run();
    assert_eq!(log.vectors(), [TIMER]);
}

#[test]
fn software_disable_masks_the_timer() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, SHORT);
    p.lapic_write(SVR, 0xff);
    p.wait_ms(TIMER, 1, 10);
    let log = p.run();
    // The timer may have expired before that.
    assert!(log.vectors().len() <= 1);
}

/// The bounds of the counts per 2^32 cycles of the TSC. The duration of the reads does not matter.
fn rate(divide: u32) -> (u64, u64) {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TDCR, divide);
    p.lapic_write(LVT_TIMER, LVT_MASKED);
    p.lapic_write(TMICT, LONG);
    let mut reading = || [p.rdmsr(TSC), p.lapic_read(TMCCT), p.rdmsr(TSC)];
    let first = reading();
    p.spin_ms(5);
    let mut reading = || [p.rdmsr(TSC), p.lapic_read(TMCCT), p.rdmsr(TSC)];
    let last = reading();
    let log = p.run();
    let counts = (log[first[1]] - log[last[1]]) << 32;
    (
        counts / (log[last[2]] - log[first[0]]),
        counts / (log[last[0]] - log[first[2]]),
    )
}

#[test]
fn the_divider_divides() {
    let (least, most) = rate(DIVIDE_BY_1);
    // A tolerance of a third: neighbouring divisors differ by a factor of 2.
    let (more, less) = if clocks_agree() { (4, 3) } else { (16, 1) };
    for (divide, by) in [
        (DIVIDE_BY_2, 2),
        (0b0001, 4),
        (0b0010, 8),
        (DIVIDE_BY_16, 16),
        (0b1000, 32),
        (0b1001, 64),
        (DIVIDE_BY_128, 128),
    ] {
        let (divided_least, divided_most) = rate(divide);
        assert!(
            divided_least * by * less < most * more && least * less < divided_most * by * more,
            "{divide:#b}: {divided_least} to {divided_most}, not divided {least} to {most}"
        );
    }
}

#[test]
fn a_new_divider_keeps_the_current_count() {
    let mut p = with_timer(LVT_MASKED);
    p.lapic_write(TDCR, DIVIDE_BY_128);
    p.lapic_write(TMICT, LONG);
    let before = p.lapic_read(TMCCT);
    p.lapic_write(TDCR, DIVIDE_BY_16);
    let after = p.lapic_read(TMCCT);
    let log = p.run();
    assert!(log[after] <= log[before]);
    assert!(log[after] > (LONG / 2).into());
}

#[test]
fn the_timer_wakes_a_halted_processor() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, 5 * SHORT);
    p.sti_hlt();
    p.mark(1);
    let log = p.run();
    assert_eq!(log.events(), [Got(TIMER), Mark(1)]);
}

#[test]
fn a_deadline_rings_once_and_reads_0_afterwards() {
    let mut p = with_deadline();
    let written = p.deadline_in_ms(100_000);
    let armed = p.rdmsr(TSC_DEADLINE);
    p.deadline_in_ms(2);
    let rung = p.wait(TIMER, 1);
    let after = p.rdmsr(TSC_DEADLINE);
    p.wait_ms(TIMER, 2, 10);
    let log = p.run();
    assert_eq!(log[rung], 1);
    assert_eq!(log[armed], log[written]);
    assert_eq!(log[after], 0);
    assert_eq!(log.vectors(), [TIMER]);
}

#[test]
fn a_deadline_does_not_ring_early() {
    let mut p = with_deadline();
    let handler = p.on(TIMER);
    let rung_at = handler.rdmsr(TSC);
    handler.eoi();
    let deadline = p.deadline_in_ms(20);
    p.wait(TIMER, 1);
    let log = p.run();
    // KVM's timer expires a little early, and KVM then waits for the rest (lapic_timer_advance_ns).
    assert!(log[rung_at] >= log[deadline]);
}

#[test]
fn a_deadline_in_the_past_rings_at_once() {
    let mut p = with_deadline();
    p.wrmsr(TSC_DEADLINE, 1);
    let rung = p.wait(TIMER, 1);
    let after = p.rdmsr(TSC_DEADLINE);
    let log = p.run();
    assert_eq!(log[rung], 1);
    assert_eq!(log[after], 0);
}

#[test]
fn a_deadline_of_0_disarms() {
    let mut p = with_deadline();
    p.deadline_in_ms(300);
    p.wrmsr(TSC_DEADLINE, 0);
    let deadline = p.rdmsr(TSC_DEADLINE);
    p.wait_ms(TIMER, 1, 350);
    let log = p.run();
    assert_eq!(log[deadline], 0);
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn a_new_deadline_replaces_the_old() {
    let mut p = with_deadline();
    p.deadline_in_ms(10_000);
    p.deadline_in_ms(1);
    let rung = p.wait_ms(TIMER, 1, 5_000);
    let log = p.run();
    assert_eq!(log[rung], 1);
}

#[test]
fn in_other_modes_a_deadline_is_ignored() {
    let mut p = with_timer(0);
    p.deadline_in_ms(1);
    let deadline = p.rdmsr(TSC_DEADLINE);
    p.wait_ms(TIMER, 1, 10);
    let log = p.run();
    assert_eq!(log[deadline], 0);
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn in_deadline_mode_the_initial_count_is_ignored() {
    let mut p = with_deadline();
    p.lapic_write(TMICT, SHORT);
    let current = p.lapic_read(TMCCT);
    p.wait_ms(TIMER, 1, 10);
    let log = p.run();
    assert_eq!(log[current], 0);
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn to_enter_deadline_mode_disarms() {
    let mut p = with_timer(0);
    p.lapic_write(TMICT, MEDIUM);
    p.lapic_write(LVT_TIMER, LVT_DEADLINE | u32::from(TIMER));
    let current = p.lapic_read(TMCCT);
    p.wait_ms(TIMER, 1, 350);
    let log = p.run();
    assert_eq!(log[current], 0);
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn to_leave_deadline_mode_disarms() {
    let mut p = with_deadline();
    p.deadline_in_ms(300);
    p.lapic_write(LVT_TIMER, TIMER.into());
    p.lapic_write(LVT_TIMER, LVT_DEADLINE | u32::from(TIMER));
    let deadline = p.rdmsr(TSC_DEADLINE);
    p.wait_ms(TIMER, 1, 350);
    let log = p.run();
    assert_eq!(log[deadline], 0);
    assert_eq!(log.vectors(), NOTHING);
}

#[test]
fn a_masked_deadline_does_not_ring() {
    let mut p = with_timer(LVT_DEADLINE | LVT_MASKED);
    // Long enough to be armed before it is due: another path in KVM.
    p.deadline_in_ms(300);
    p.wait_ms(TIMER, 1, 350);
    p.mark(1);
    p.lapic_write(LVT_TIMER, LVT_DEADLINE | u32::from(TIMER));
    // KVM checks for it between two entries of one KVM_RUN. An interrupt window ends each entry here, so it comes
    // only when something else interrupts the guest.
    p.wait_ms(TIMER, 1, 350);
    let log = p.run();
    if kvm_keeps_what_was_masked() {
        assert_eq!(log.events(), [Mark(1), Got(TIMER)]);
    } else {
        assert_eq!(log.events(), [Mark(1)], "unmasked too late");
    }
}

#[test]
fn an_illegal_vector_of_the_timer_is_not_delivered() {
    let mut p = Program::new(MODE);
    p.only_log([0x09]);
    p.enable_lapic();
    p.lapic_write(TDCR, DIVIDE_BY_1);
    p.lapic_write(LVT_TIMER, 0x09);
    p.lapic_write(TMICT, SHORT);
    p.wait_ms(0x09, 1, 10);
    let log = p.run();
    assert_eq!(log.vectors(), NOTHING);
}

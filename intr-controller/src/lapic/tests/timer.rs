//! SDM 3A, "APIC Timer", "TSC-Deadline Mode".
//!
//! Divisor 2 after reset and a bus cycle of 1 ns: a count lasts 2 ns.

use super::*;

const PERIODIC: u32 = 0x2_0000;
const DEADLINE: u32 = 0x4_0000;

fn armed(mode: u32, count: u32) -> Lapic {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_TIMER, mode | 0xec);
    let _ = write(&mut lapic, TMICT, count);
    lapic
}

fn deadline(ticks: u64) -> Lapic {
    let mut lapic = armed(DEADLINE, 0);
    let _ = wrmsr(&mut lapic, MSR_DEADLINE, ticks).unwrap();
    lapic
}

#[test]
fn a_one_shot_counts_down_and_fires_once() {
    let mut lapic = armed(0, 100);
    assert_eq!(read_at(&mut lapic, TMCCT, 0), 100);
    assert_eq!(read_at(&mut lapic, TMCCT, 2), 99);
    assert_eq!(read_at(&mut lapic, TMCCT, 199), 1);
    assert_eq!(lapic.next_deadline(at(0)), Some(at(200)));
    assert_eq!(lapic.advance(at(199)), 0);
    assert_eq!(lapic.advance(at(200)), 1);
    assert_eq!(take_vector(&mut lapic), Some(0xec));
    assert_eq!(read_at(&mut lapic, TMCCT, 300), 0);
    assert_eq!(lapic.next_deadline(at(300)), None);
    assert_eq!(lapic.advance(at(u64::MAX)), 0);
    assert_eq!(read(&mut lapic, TMICT), 100);
}

#[test]
fn a_periodic_timer_fires_at_each_multiple() {
    let mut lapic = armed(PERIODIC, 100);
    for round in 1..=5 {
        assert_eq!(lapic.next_deadline(at(0)), Some(at(200 * round)));
        assert_eq!(lapic.advance(at(200 * round)), 1);
        assert_eq!(take_vector(&mut lapic), Some(0xec));
        let _ = write(&mut lapic, EOI, 0);
    }
}

#[test]
fn a_late_look_keeps_the_phase_of_a_periodic_timer() {
    let mut lapic = armed(PERIODIC, 100);
    assert_eq!(lapic.advance(at(950)), 4);
    assert_eq!(lapic.next_deadline(at(950)), Some(at(1000)));
    assert_eq!(read_at(&mut lapic, TMCCT, 950), 25);
}

#[test]
fn a_year_of_missed_periods_is_one_interrupt_and_no_loop() {
    let mut lapic = armed(PERIODIC, 1);
    let year = 365 * 86_400 * 1_000_000_000;
    let periods = lapic.advance(at(year));
    assert_eq!(periods, year / 2);
    assert_eq!(take_vector(&mut lapic), Some(0xec));
    let _ = write(&mut lapic, EOI, 0);
    assert_eq!(take(&mut lapic), None);
    let counters = lapic.policy().counters();
    assert_eq!((counters.arrived, counters.merged), (periods, periods - 1));
}

#[test]
fn time_that_stands_still_fires_nothing() {
    let mut lapic = armed(PERIODIC, 100);
    for _ in 0..10 {
        assert_eq!(lapic.advance(at(199)), 0);
    }
}

#[test]
fn time_that_goes_back_is_as_if_none_passed() {
    let mut lapic = xapic();
    let _ = write_at(&mut lapic, LVT_TIMER, 0xec, 1000);
    let _ = write_at(&mut lapic, TMICT, 100, 1000);
    assert_eq!(lapic.advance(at(10)), 0);
    assert_eq!(read_at(&mut lapic, TMCCT, 10), 100);
}

#[test]
fn the_divide_configuration_uses_bits_3_1_and_0() {
    for (register, divisor) in [
        (0x0, 2),
        (0x1, 4),
        (0x2, 8),
        (0x3, 16),
        (0x8, 32),
        (0x9, 64),
        (0xa, 128),
        (0xb, 1),
        (0x4, 2),
        (0xf, 1),
    ] {
        let mut lapic = xapic();
        let _ = write(&mut lapic, TDCR, register);
        let _ = write(&mut lapic, LVT_TIMER, 0xec);
        let _ = write(&mut lapic, TMICT, 1000);
        assert_eq!(
            lapic.next_deadline(at(0)),
            Some(at(1000 * divisor)),
            "{register:#x}"
        );
    }
}

#[test]
fn the_bus_cycle_scales_the_count() {
    let mut lapic = with(|config| config.bus_cycle_ns = 25.try_into().unwrap());
    let _ = write(&mut lapic, LVT_TIMER, 0xec);
    let _ = write(&mut lapic, TMICT, 1000);
    assert_eq!(lapic.next_deadline(at(0)), Some(at(50_000)));
}

#[test]
fn a_change_of_divisor_rescales_what_is_left() {
    let mut lapic = armed(0, 100);
    let _ = write_at(&mut lapic, TDCR, 0x2, 100);
    assert_eq!(read_at(&mut lapic, TMCCT, 100), 50);
    assert_eq!(lapic.next_deadline(at(100)), Some(at(100 + 50 * 8)));
    let _ = write_at(&mut lapic, TDCR, 0xb, 100 + 8 * 10);
    assert_eq!(lapic.next_deadline(at(180)), Some(at(180 + 40)));
}

#[test]
fn the_largest_count_does_not_overflow() {
    let mut lapic = with(|config| config.bus_cycle_ns = u16::MAX.try_into().unwrap());
    let _ = write(&mut lapic, TDCR, 0xa);
    let _ = write(&mut lapic, LVT_TIMER, PERIODIC | 0xec);
    let _ = write(&mut lapic, TMICT, u32::MAX);
    assert_eq!(read(&mut lapic, TMCCT), u32::MAX);
    let period = u64::from(u32::MAX) * 128 * 65535;
    assert_eq!(lapic.next_deadline(at(0)), Some(at(period)));
    lapic.advance(at(u64::MAX));
    let _ = write_at(&mut lapic, TDCR, 0xb, u64::MAX);
}

#[test]
fn a_masked_timer_counts_and_delivers_nothing() {
    let mut lapic = armed(MASKED, 100);
    assert_eq!(lapic.next_deadline(at(0)), None);
    assert_eq!(read_at(&mut lapic, TMCCT, 100), 50);
    lapic.advance(at(500));
    assert_eq!(read_at(&mut lapic, TMCCT, 500), 0);
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn what_expired_while_masked_is_not_delivered_by_unmasking() {
    let mut lapic = armed(MASKED, 100);
    let _ = write_at(&mut lapic, LVT_TIMER, 0xec, 500);
    assert_eq!(lapic.advance(at(500)), 0);
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn an_unmasked_timer_that_was_due_is_not_lost_by_masking_late() {
    // The expiry at 200 came before the write at 500, though no call had asked for it.
    let mut lapic = armed(0, 100);
    let _ = write_at(&mut lapic, LVT_TIMER, MASKED | 0xec, 500);
    assert_eq!(take_vector(&mut lapic), Some(0xec));
}

#[test]
fn initial_count_0_stops_the_timer() {
    let mut lapic = armed(PERIODIC, 100);
    let _ = write_at(&mut lapic, TMICT, 0, 10);
    assert_eq!(lapic.next_deadline(at(10)), None);
    assert_eq!(read_at(&mut lapic, TMCCT, 10), 0);
    assert_eq!(lapic.advance(at(10_000)), 0);
}

#[test]
fn a_new_initial_count_starts_again() {
    let mut lapic = armed(0, 100);
    let _ = write_at(&mut lapic, TMICT, 50, 150);
    assert_eq!(lapic.next_deadline(at(150)), Some(at(250)));
    assert_eq!(read_at(&mut lapic, TMCCT, 150), 50);
}

#[test]
fn one_shot_to_periodic_does_not_restart_the_count() {
    let mut lapic = armed(0, 100);
    let _ = write_at(&mut lapic, LVT_TIMER, PERIODIC | 0xec, 150);
    assert_eq!(read_at(&mut lapic, TMCCT, 150), 25);
    assert_eq!(lapic.advance(at(200)), 1);
    assert_eq!(lapic.next_deadline(at(200)), Some(at(400)));
}

#[test]
fn periodic_to_one_shot_finishes_the_count_and_stops() {
    let mut lapic = armed(PERIODIC, 100);
    let _ = write_at(&mut lapic, LVT_TIMER, 0xec, 250);
    assert_eq!(read(&mut lapic, TMICT), 100);
    assert_eq!(lapic.next_deadline(at(250)), Some(at(400)));
    assert_eq!(lapic.advance(at(1000)), 1);
    assert_eq!(lapic.next_deadline(at(1000)), None);
}

#[test]
fn changing_to_tsc_deadline_mode_disarms() {
    let mut lapic = armed(0, 100);
    let _ = write_at(&mut lapic, LVT_TIMER, DEADLINE | 0xec, 50);
    assert_eq!(lapic.next_deadline(at(50)), None);
    assert_eq!(read_at(&mut lapic, TMICT, 50), 0);
    assert_eq!(read_at(&mut lapic, TMCCT, 50), 0);
    let _ = write_at(&mut lapic, LVT_TIMER, 0xec, 60);
    assert_eq!(lapic.next_deadline(at(60)), None);
}

#[test]
fn changing_from_tsc_deadline_mode_disarms() {
    let mut lapic = deadline(1000);
    let _ = write(&mut lapic, LVT_TIMER, PERIODIC | 0xec);
    assert_eq!(rdmsr(&mut lapic, MSR_DEADLINE), Ok(0));
    assert_eq!(lapic.next_deadline(at(0)), None);
    let _ = write(&mut lapic, LVT_TIMER, DEADLINE | 0xec);
    assert_eq!(lapic.next_deadline(at(0)), None);
    assert_eq!(lapic.advance(at(5000)), 0);
}

#[test]
fn another_vector_or_mask_does_not_disarm() {
    let mut lapic = deadline(1000);
    let _ = write(&mut lapic, LVT_TIMER, DEADLINE | MASKED | 0x71);
    let _ = write(&mut lapic, LVT_TIMER, DEADLINE | 0x72);
    assert_eq!(lapic.advance(at(1000)), 1);
    assert_eq!(take_vector(&mut lapic), Some(0x72));
}

#[test]
fn the_initial_count_is_ignored_in_tsc_deadline_mode() {
    let mut lapic = armed(DEADLINE, 100);
    assert_eq!(read(&mut lapic, TMICT), 0);
    assert_eq!(lapic.next_deadline(at(0)), None);
}

#[test]
fn the_deadline_msr_is_ignored_in_the_counting_modes() {
    for mode in [0, PERIODIC] {
        let mut lapic = armed(mode, 0);
        let _ = wrmsr(&mut lapic, MSR_DEADLINE, 5000).unwrap();
        assert_eq!(rdmsr(&mut lapic, MSR_DEADLINE), Ok(0));
        assert_eq!(lapic.next_deadline(at(0)), None);
    }
}

#[test]
fn a_deadline_fires_when_the_tsc_reaches_it_and_reads_0_afterwards() {
    let mut lapic = deadline(1000);
    assert_eq!(rdmsr(&mut lapic, MSR_DEADLINE), Ok(1000));
    assert_eq!(lapic.next_deadline(at(0)), Some(at(1000)));
    assert_eq!(lapic.advance(at(999)), 0);
    assert_eq!(lapic.advance(at(1000)), 1);
    assert_eq!(rdmsr(&mut lapic, MSR_DEADLINE), Ok(0));
    assert_eq!(take_vector(&mut lapic), Some(0xec));
    assert_eq!(lapic.advance(at(u64::MAX)), 0);
}

#[test]
fn a_deadline_in_the_past_fires_with_the_write() {
    let mut lapic = deadline(0);
    let _ = lapic.write_msr(MSR_DEADLINE, 1, at(5000)).unwrap();
    assert_eq!(take_vector(&mut lapic), Some(0xec));
    assert_eq!(lapic.read_msr(MSR_DEADLINE, at(5000)), Ok(0));
}

#[test]
fn deadline_0_disarms() {
    let mut lapic = deadline(1000);
    let _ = wrmsr(&mut lapic, MSR_DEADLINE, 0).unwrap();
    assert_eq!(lapic.next_deadline(at(0)), None);
    assert_eq!(lapic.advance(at(5000)), 0);
}

#[test]
fn a_masked_deadline_passes_without_an_interrupt() {
    let mut lapic = deadline(1000);
    let _ = write(&mut lapic, LVT_TIMER, DEADLINE | MASKED | 0xec);
    assert_eq!(lapic.read_msr(MSR_DEADLINE, at(2000)), Ok(0));
    assert_eq!(take(&mut lapic), None);
}

#[test]
fn a_farther_deadline_replaces_a_nearer_one() {
    let mut lapic = deadline(1000);
    let _ = wrmsr(&mut lapic, MSR_DEADLINE, 9000).unwrap();
    assert_eq!(lapic.next_deadline(at(0)), Some(at(9000)));
    assert_eq!(lapic.advance(at(8999)), 0);
}

#[test]
fn a_deadline_at_the_end_of_the_tsc_neither_fires_nor_overflows() {
    let mut lapic = deadline(u64::MAX);
    assert_eq!(lapic.next_deadline(at(7)), Some(GuestTime::MAX));
    assert_eq!(lapic.advance(at(u64::MAX - 1)), 0);
}

#[test]
fn a_deadline_that_is_due_by_a_wrong_tsc_is_not_due_once_that_is_corrected() {
    let mut lapic = deadline(1000);
    let due = lapic.next_deadline(at(0)).unwrap();
    let tsc = lapic.config().tsc.with_ticks_at(due, 999);
    lapic.correct_tsc(tsc);
    assert_eq!(lapic.advance(due), 0);
    let later = lapic.next_deadline(due).unwrap();
    assert!(later > due);
    assert_eq!(lapic.advance(later), 1);
}

#[test]
fn a_written_tsc_moves_the_deadline_in_time() {
    let mut lapic = deadline(1000);
    let tsc = lapic.config().tsc.with_ticks_at(at(100), 900);
    lapic.set_tsc(tsc, at(100));
    assert_eq!(lapic.next_deadline(at(100)), Some(at(200)));
    assert_eq!(lapic.advance(at(200)), 1);
}

#[test]
fn the_reserved_timer_mode_stands_still() {
    let mut lapic = armed(PERIODIC, 100);
    let _ = write(&mut lapic, LVT_TIMER, PERIODIC | DEADLINE | 0xec);
    assert_eq!(lapic.timer_mode(), TimerMode::Reserved);
    let _ = write(&mut lapic, TMICT, 100);
    let _ = wrmsr(&mut lapic, MSR_DEADLINE, 5).unwrap();
    assert_eq!(lapic.next_deadline(at(0)), None);
    assert_eq!(lapic.advance(at(u64::MAX)), 0);
    let _ = write(&mut lapic, LVT_TIMER, 0xec);
    assert_eq!(lapic.next_deadline(at(0)), None, "and stays so");
}

#[test]
fn software_disabling_masks_the_timer_but_does_not_stop_it() {
    let mut lapic = armed(PERIODIC, 100);
    let _ = write(&mut lapic, SVR, 0xff);
    assert_eq!(lapic.next_deadline(at(0)), None);
    assert_eq!(read_at(&mut lapic, TMCCT, 100), 50);
}

#[test]
fn a_timer_that_expires_under_the_mask_is_delivered_later_and_once() {
    let mut lapic = armed(PERIODIC, 100);
    lapic.advance(at(200));
    lapic.advance(at(400));
    assert!(lapic.decide(&Readiness::MASKED).blocked().is_some());
    assert_eq!(take_vector(&mut lapic), Some(0xec));
    let _ = write(&mut lapic, EOI, 0);
    assert_eq!(take(&mut lapic), None);
}

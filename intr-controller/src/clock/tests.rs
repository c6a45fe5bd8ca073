use alloc::string::ToString;

use proptest::prelude::*;

use super::*;

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn now(clock: &GuestClock, host: u64) -> u64 {
    clock.read(us(host)).now.as_ns() / 1000
}

/// Started at 100 µs, stopped at 150.
fn stopped(debug_time: DebugTime) -> GuestClock {
    let mut clock = GuestClock::new(debug_time);
    clock.start(us(100), ClockRun::Free);
    clock.stop(us(150));
    clock
}

#[test]
fn time_begins_with_the_first_start() {
    let mut clock = GuestClock::new(DebugTime::Freeze);
    assert_eq!(now(&clock, 90), 0);
    clock.start(us(100), ClockRun::Free);
    assert_eq!(now(&clock, 130), 30);
    assert_eq!(clock.read(us(130)).stood_still, Duration::ZERO);
}

#[test]
fn a_frozen_clock_stands_still_while_the_guest_is_stopped() {
    let mut clock = stopped(DebugTime::Freeze);
    assert_eq!((now(&clock, 150), now(&clock, 60_000_150)), (50, 50));
    assert!(!clock.read(us(200)).running);
    clock.start(us(60_000_150), ClockRun::Free);
    assert_eq!(now(&clock, 60_000_151), 51);
    assert_eq!(clock.read(us(0)).stood_still, us(60_000_000));
}

#[test]
fn a_running_clock_passes_through_a_stop() {
    let mut clock = stopped(DebugTime::Run);
    assert_eq!(now(&clock, 1150), 1050);
    assert!(clock.read(us(1150)).running);
    clock.set_step_time(StepTime::Fixed(Duration::ZERO));
    clock.start(us(1150), ClockRun::Step);
    clock.stop(us(1160));
    assert_eq!(now(&clock, 2000), 1900);
    assert_eq!(clock.read(us(2000)).stood_still, Duration::ZERO);
}

#[test]
fn a_real_step_takes_what_it_took() {
    let mut clock = stopped(DebugTime::Freeze);
    clock.start(us(1000), ClockRun::Step);
    assert_eq!(now(&clock, 1004), 54);
    clock.stop(us(1007));
    assert_eq!(now(&clock, 9000), 57);
}

#[test]
fn a_step_of_a_fixed_length_takes_that() {
    for (took, fixed) in [(7, 3), (7, 0), (2, 9), (5, 5)] {
        let mut clock = stopped(DebugTime::Freeze);
        clock.set_step_time(StepTime::Fixed(us(fixed)));
        clock.start(us(1000), ClockRun::Step);
        assert_eq!(now(&clock, 1001), 50 + fixed.min(1));
        clock.stop(us(1000 + took));
        assert_eq!(now(&clock, 9000), 50 + fixed, "{took} {fixed}");
    }
}

#[test]
fn a_free_run_after_steps_of_a_fixed_length_is_real_again() {
    let mut clock = stopped(DebugTime::Freeze);
    clock.set_step_time(StepTime::Fixed(us(1)));
    for step in 0..10 {
        clock.start(us(1000 + 20 * step), ClockRun::Step);
        clock.stop(us(1005 + 20 * step));
    }
    clock.start(us(2000), ClockRun::Free);
    assert_eq!(now(&clock, 2100), 50 + 10 + 100);
    assert_eq!(clock.totals().steps, 10);
    assert_eq!(clock.totals().stops, 11);
}

#[test]
fn a_step_that_reads_a_clock_takes_its_real_time_and_the_fixed_one_at_least() {
    for (took, fixed, passes) in [(7, 0, 7), (7, 9, 9), (7, 3, 7)] {
        let mut clock = stopped(DebugTime::Freeze);
        clock.set_step_time(StepTime::Fixed(us(fixed)));
        clock.start(us(1000), ClockRun::Step);
        clock.observe(us(1000));
        assert_eq!(now(&clock, 1006), 56);
        clock.stop(us(1000 + took));
        assert_eq!(now(&clock, 9000), 50 + passes, "{took} {fixed}");
        assert_eq!(clock.totals().observed, 1);
    }
}

#[test]
fn what_the_hosts_clock_ran_ahead_is_what_it_ran_while_guest_time_stood_still() {
    let mut clock = stopped(DebugTime::Freeze);
    clock.set_step_time(StepTime::Fixed(us(2)));
    // Stood still for 850, then for 8 of the step's 10.
    clock.start(us(1000), ClockRun::Step);
    clock.stop(us(1010));
    clock.start(us(1010), ClockRun::Free);
    let reading = clock.read(us(1010));
    assert_eq!(reading.stood_still, us(858));
    assert_eq!(reading.now.as_ns(), 52_000);
}

#[test]
fn a_clock_that_was_read_ahead_is_caught_up_with() {
    let mut clock = stopped(DebugTime::Freeze);
    clock.start(us(1000), ClockRun::Step);
    clock.observe(us(1001));
    clock.catch_up(us(850));
    assert_eq!(now(&clock, 1003), 50 + 850 + 3);
    clock.stop(us(1004));
    assert_eq!(now(&clock, 2000), 904);
}

#[test]
fn the_names_are_parsed_and_shown() {
    for (text, time, shown) in [
        ("real", StepTime::Real, "real"),
        ("none", StepTime::Fixed(Duration::ZERO), "none"),
        ("0", StepTime::Fixed(Duration::ZERO), "none"),
        ("250", StepTime::Fixed(Duration::from_nanos(250)), "250 ns"),
    ] {
        assert_eq!(text.parse(), Ok(time));
        assert_eq!(time.to_string(), shown);
    }
    for wrong in [
        "",
        "-1",
        "+1",
        "1us",
        "1000000001",
        "Real",
        "99999999999999999999",
    ] {
        assert_eq!(wrong.parse::<StepTime>(), Err(UnknownStepTime), "{wrong}");
    }
    assert_eq!(DebugTime::Freeze.to_string(), "freeze");
    assert_eq!(DebugTime::Run.to_string(), "run");
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Start(ClockRun),
    Observe,
    Stop,
    CatchUp,
    StepTime(StepTime),
    Read,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Start(ClockRun::Free)),
        Just(Action::Start(ClockRun::Step)),
        Just(Action::Observe),
        Just(Action::Stop),
        Just(Action::CatchUp),
        Just(Action::Read),
        Just(Action::StepTime(StepTime::Real)),
        (0u64..2000).prop_map(|ns| Action::StepTime(StepTime::Fixed(Duration::from_nanos(ns)))),
    ]
}

proptest! {
    #[test]
    fn guest_time_never_goes_backwards(
        run in any::<bool>(),
        actions in prop::collection::vec((action(), 0u64..3000), 1..60),
    ) {
        let mut clock = GuestClock::new(if run { DebugTime::Run } else { DebugTime::Freeze });
        let mut host = 1_000_000u64;
        let mut seen = GuestTime::ZERO;
        let mut stood_still = Duration::ZERO;
        for (action, passes) in actions {
            host += passes;
            let at = Duration::from_nanos(host);
            match action {
                Action::Start(run) => clock.start(at, run),
                Action::Observe => clock.observe(at),
                Action::Stop => clock.stop(at),
                Action::CatchUp => clock.catch_up(Duration::from_nanos(passes)),
                Action::StepTime(time) => clock.set_step_time(time),
                Action::Read => {}
            }
            let reading = clock.read(Duration::from_nanos(host));
            prop_assert!(reading.now >= seen, "{} after {seen}", reading.now);
            prop_assert!(reading.stood_still >= stood_still);
            (seen, stood_still) = (reading.now, reading.stood_still);
        }
    }

    /// Whatever is not counted as standing still has passed, and nothing else.
    #[test]
    fn with_real_steps_guest_time_is_host_time_without_the_stops(
        pieces in prop::collection::vec((any::<bool>(), 0u64..5000, 0u64..5000), 1..40),
    ) {
        let mut clock = GuestClock::new(DebugTime::Freeze);
        let mut host = 7;
        let mut ran = 0;
        for (step, runs, stops) in pieces {
            let run = if step { ClockRun::Step } else { ClockRun::Free };
            clock.start(Duration::from_nanos(host), run);
            host += runs;
            ran += runs;
            clock.stop(Duration::from_nanos(host));
            host += stops;
        }
        prop_assert_eq!(clock.read(Duration::from_nanos(host)).now.as_ns(), ran);
    }
}

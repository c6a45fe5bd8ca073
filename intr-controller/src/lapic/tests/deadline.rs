//! [`DeadlineWatch`], look by look. The TSC has 1 GHz: a tick is a nanosecond.

use core::time::Duration;

use super::*;

const DEADLINE: u32 = 0x4_0000;
/// When a counter that is too early is looked at again.
const AGAIN: u64 = 50_000;

struct Vcpu {
    lapic: Lapic,
    watch: DeadlineWatch,
    stood_still: Duration,
}

impl Vcpu {
    /// At time 0, with its counter at 0.
    fn armed(deadline: u64) -> Self {
        let mut lapic = xapic();
        let _ = write(&mut lapic, LVT_TIMER, DEADLINE | 0xec);
        let mut vcpu = Self {
            lapic,
            watch: DeadlineWatch::new(),
            stood_still: Duration::ZERO,
        };
        vcpu.arm(deadline, 0, 0);
        vcpu
    }

    /// The guest writes the MSR while its counter is `shown`.
    fn arm(&mut self, deadline: u64, shown: u64, ns: u64) {
        self.watch.left_guest(&mut self.lapic, shown, at(ns));
        let _ = self
            .lapic
            .write_msr(MSR_DEADLINE, deadline, at(ns))
            .unwrap();
    }

    /// Guest time stands still.
    fn pause(&mut self, ns: u64) {
        self.stood_still += Duration::from_nanos(ns);
    }

    /// Whether the counter is asked for.
    fn asks(&mut self, ns: u64) -> bool {
        self.watch
            .before_entry(&mut self.lapic, at(ns), self.stood_still)
    }

    /// A look at a counter that is asked for. Whether the timer has fired.
    #[track_caller]
    fn look(&mut self, shown: u64, ns: u64) -> bool {
        assert!(self.asks(ns), "there is nothing to look for at {ns}");
        self.watch.compare(&mut self.lapic, shown, at(ns));
        self.lapic.advance(at(ns)) > 0
    }

    fn next(&self, ns: u64) -> Option<u64> {
        self.lapic.next_deadline(at(ns)).map(GuestTime::as_ns)
    }
}

#[test]
fn the_counter_is_asked_for_only_when_a_deadline_is_due() {
    let mut vcpu = Vcpu::armed(1000);
    assert!(!vcpu.asks(0));
    assert!(!vcpu.asks(999));
    assert!(vcpu.asks(1000));
    assert!(vcpu.look(1000, 1000));
    assert!(!vcpu.asks(5000), "it is over");
}

#[test]
fn nothing_is_asked_for_a_timer_that_does_not_look_at_the_counter() {
    for mode in [0, 0x2_0000, DEADLINE, DEADLINE | MASKED] {
        let mut vcpu = Vcpu::armed(1000);
        let _ = write(&mut vcpu.lapic, LVT_TIMER, 0xec);
        let _ = write(&mut vcpu.lapic, LVT_TIMER, mode | 0xec);
        let _ = write(&mut vcpu.lapic, TMICT, 10);
        assert!(!vcpu.asks(1_000_000), "{mode:#x}");
    }
}

#[test]
fn a_counter_that_is_late_and_moves_is_waited_for() {
    let mut vcpu = Vcpu::armed(1_000_000);
    assert!(!vcpu.look(800_000, 1_000_000));
    assert_eq!(vcpu.next(1_000_000), Some(1_000_000 + AGAIN));
    assert!(!vcpu.look(850_000, 1_050_000));
    // Sooner by the time between the two looks: it may have been shown as it was then.
    assert_eq!(vcpu.next(1_050_000), Some(1_150_000));
    assert!(!vcpu.look(950_000, 1_150_000));
    assert_eq!(vcpu.next(1_150_000), Some(1_200_000));
    assert!(!vcpu.asks(1_199_999));
    assert!(vcpu.look(1_000_000, 1_200_000));
}

#[test]
fn one_that_lacks_little_is_looked_at_when_that_has_passed() {
    let mut vcpu = Vcpu::armed(1_000_000);
    assert!(!vcpu.look(999_700, 1_000_000));
    assert_eq!(vcpu.next(1_000_000), Some(1_000_300));
    assert!(vcpu.look(1_000_000, 1_000_300));
}

#[test]
fn a_counter_that_stands_still_is_not_waited_for() {
    let mut vcpu = Vcpu::armed(1_000_000_000);
    assert!(!vcpu.look(700, 1_000_000_000));
    // It moves a little with each call of the host's.
    assert!(vcpu.look(2000, 1_000_000_000 + AGAIN));
}

/// A debugger stops a halted vCPU between the two looks, where the counter is shown as it was at the
/// last exit.
#[test]
fn a_pause_between_two_looks_does_not_make_it_believed() {
    let mut vcpu = Vcpu::armed(1_000_000_000);
    assert!(!vcpu.look(700, 1_000_000_000));
    vcpu.pause(AGAIN);
    assert!(vcpu.look(700, 1_000_000_000));
}

/// A halted vCPU was woken between the two looks, and then a debugger stopped it.
#[test]
fn a_pause_after_an_exit_does_not_make_the_deadline_later() {
    let mut vcpu = Vcpu::armed(1_000_000);
    assert!(!vcpu.look(300_000, 1_000_000));
    vcpu.pause(250_000);
    assert!(!vcpu.look(700_000, 1_010_000));
    // The counter has gone on in the pause: 50 us are left.
    assert_eq!(vcpu.next(1_010_000), Some(1_060_000));
}

#[test]
fn a_pause_brings_the_deadline_nearer_once() {
    let mut vcpu = Vcpu::armed(1_000_000);
    vcpu.pause(400_000);
    for _ in 0..3 {
        assert!(!vcpu.asks(0));
        assert_eq!(vcpu.next(0), Some(600_000));
    }
    vcpu.pause(600_000);
    assert!(vcpu.look(1_000_000, 0));
}

/// It was written back, and is honest while the vCPU runs. Then that halts, and the counter is shown as
/// it stood: it has moved since the looks that were believed, but does no more.
#[test]
fn a_counter_that_was_believed_is_not_believed_forever() {
    let mut vcpu = Vcpu::armed(1_000_000);
    vcpu.arm(30_000_000, 20_000_000, 1_000_000);
    // By 19 ms: it then reads as the time.
    assert!(!vcpu.look(11_000_000, 11_000_000));
    assert!(!vcpu.look(11_050_000, 11_050_000));
    assert_eq!(vcpu.next(11_050_000), Some(29_950_000));
    // The last exit was at 25 ms.
    assert!(!vcpu.look(25_000_000, 29_950_000));
    assert!(vcpu.look(25_000_000, 30_000_000));
}

#[test]
fn another_deadline_has_looks_of_its_own() {
    let mut vcpu = Vcpu::armed(1_000_000);
    assert!(!vcpu.look(700, 1_000_000));
    vcpu.arm(2_000_000, 1_010_000, 1_010_000);
    assert!(!vcpu.look(1_010_000, 2_000_000));
    assert!(vcpu.look(1_010_000, 2_000_000 + AGAIN));
}

/// The last tick of a counter is not over when that of the frequency is: that is no standing still.
#[test]
fn a_tick_is_too_short_to_tell() {
    let mut vcpu = Vcpu::armed(1_000_000);
    for late in 0..3 {
        assert!(!vcpu.look(999_999, 1_000_000 + late));
        assert_eq!(vcpu.next(1_000_000 + late), Some(1_000_001 + late));
    }
    assert!(vcpu.look(1_000_000, 1_000_003));
}

#[test]
fn a_counter_that_stands_still_a_tick_short_is_not_waited_for_either() {
    let mut vcpu = Vcpu::armed(1_000_000);
    let mut times = 1_000_000..1_000_010;
    let fired = times.find(|now| vcpu.look(999_999, *now));
    assert_eq!(fired, Some(1_000_004));
}

#[test]
fn a_new_deadline_is_compared_with_the_counter_that_the_guest_has_made_of_it() {
    let mut vcpu = Vcpu::armed(1_000_000);
    // It has written IA32_TSC: 700 ms.
    vcpu.arm(700_000_500, 700_000_000, 100);
    assert_eq!(vcpu.next(100), Some(600));
    assert!(vcpu.look(700_000_500, 600));
    vcpu.arm(5, 6, 700);
    assert_eq!(take_vector(&mut vcpu.lapic), Some(0xec), "in the past");
}

/// The host does not tell.
#[test]
fn a_counter_that_is_moved_forwards_does_not_bring_an_armed_deadline_nearer() {
    let mut vcpu = Vcpu::armed(1_000_000);
    assert!(!vcpu.asks(500_000), "the guest has written 2000000");
    assert_eq!(vcpu.next(500_000), Some(1_000_000));
    assert!(vcpu.look(2_500_000, 1_000_000));
}

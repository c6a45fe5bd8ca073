//! [`DeadlineWatch`] on a host that is simulated in real time: the counter is a function of that, the
//! host shows it as it is or as it was at the last exit, the guest writes it, guest time stands still.

use alloc::vec::Vec;
use core::time::Duration;

use proptest::prelude::*;

use super::*;

const DEADLINE: u32 = 0x4_0000;
const MS: u64 = 1_000_000;
const NS_PER_S: u128 = 1_000_000_000;
/// From an exit to the next entry.
const SERVING: u64 = 20_000;

/// What happens to a vCPU.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// It runs for so long, or until its alarm.
    Run(u64),
    /// The same; first the guest takes so many ns from its counter.
    RunBack(u64, u64),
    /// It sleeps for so long, or until its deadline.
    Sleep(u64),
    /// Guest time stands still for so long.
    Pause(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (1..40 * MS).prop_map(Move::Run),
        4 => (1..2 * SERVING).prop_map(Move::Run),
        4 => (1..40 * MS).prop_map(Move::Sleep),
        4 => (1..2 * SERVING).prop_map(Move::Sleep),
        2 => (1..10 * MS).prop_map(Move::Pause),
        // Farther than all pauses together.
        1 => (1..40 * MS, 400 * MS..2000 * MS).prop_map(|(ran, back)| Move::RunBack(ran, back)),
    ];
    proptest::collection::vec(one, 0..30)
}

#[derive(Clone, Copy, Debug)]
struct Host {
    /// By which the VMM computes.
    hz: u64,
    /// How much faster the counter is, in millionths.
    drift: i64,
    /// It shows a counter as it was at the last exit.
    stands_still: bool,
}

fn hosts(stands_still: impl Strategy<Value = bool>) -> impl Strategy<Value = Host> {
    let hz = prop_oneof![1_000_000u64..10_000_000_000, Just(1_000_000_000)];
    (hz, -300i64..=300, stands_still).prop_map(|(hz, drift, stands_still)| Host {
        hz,
        drift,
        stands_still,
    })
}

struct Vcpu {
    host: Host,
    lapic: Lapic,
    watch: DeadlineWatch,
    real: u64,
    paused: u64,
    pauses: Vec<(u64, u64)>,
    /// When the counter was written last, and what.
    written: (u64, u64),
    at_exit: u64,
    deadline: u64,
    looks: u32,
}

impl Vcpu {
    /// After an exit: a deadline so many ns ahead is armed.
    fn armed(host: Host, counter: u64, ahead: u64) -> Self {
        let mut lapic = with(|config| config.tsc = TscClock::new(host.hz.try_into().unwrap()));
        let _ = write(&mut lapic, LVT_TIMER, DEADLINE | 0xec);
        let ticks = u128::from(ahead) * u128::from(host.hz) / NS_PER_S;
        let mut vcpu = Self {
            host,
            lapic,
            watch: DeadlineWatch::new(),
            real: 12_345,
            paused: 0,
            pauses: Vec::new(),
            written: (0, counter),
            at_exit: 0,
            deadline: 0,
            looks: 0,
        };
        vcpu.at_exit = vcpu.counter();
        vcpu.deadline = vcpu.at_exit + u64::try_from(ticks).unwrap().max(1);
        let now = vcpu.now();
        vcpu.watch.left_guest(&mut vcpu.lapic, vcpu.at_exit, now);
        let _ = vcpu
            .lapic
            .write_msr(MSR_DEADLINE, vcpu.deadline, now)
            .unwrap();
        vcpu
    }

    /// When the timer has fired, after these moves or during them.
    fn fired(host: Host, counter: u64, ahead: u64, moves: &[Move], halted: bool) -> Self {
        let mut vcpu = Self::armed(host, counter | 1 << 62, ahead);
        if !vcpu.play(moves) {
            vcpu.finish(halted);
        }
        vcpu
    }

    fn now(&self) -> GuestTime {
        at(self.real - self.paused)
    }

    /// The guest's counter, in truth.
    fn counter(&self) -> u64 {
        let (since, counter) = self.written;
        let hz = u128::from(self.host.hz) * u128::try_from(1_000_000 + self.host.drift).unwrap();
        let ticks = u128::from(self.real - since) * hz / 1_000_000 / NS_PER_S;
        counter.wrapping_add(u64::try_from(ticks).unwrap())
    }

    /// How far the counter is beyond the deadline, in ticks.
    fn beyond(&self) -> i64 {
        self.counter().wrapping_sub(self.deadline).cast_signed()
    }

    /// Before an entry. Whether the timer has fired.
    fn prepare(&mut self) -> bool {
        let now = self.now();
        let stood_still = Duration::from_nanos(self.paused);
        if self.watch.before_entry(&mut self.lapic, now, stood_still) {
            self.looks += 1;
            let shown = if self.host.stands_still {
                self.at_exit
            } else {
                self.counter()
            };
            self.watch.compare(&mut self.lapic, shown, now);
        }
        self.lapic.advance(now) > 0
    }

    /// The time to the deadline, as it is thought, or so much.
    fn until(&self, ns: u64) -> u64 {
        let left = self.lapic.next_deadline(self.now()).unwrap();
        left.saturating_ns_since(self.now()).min(ns)
    }

    fn run(&mut self, ns: u64, back: u64) {
        let ran = self.until(ns);
        if back > 0 {
            let ticks = u128::from(back) * u128::from(self.host.hz) / NS_PER_S;
            let counter = self.counter().wrapping_sub(u64::try_from(ticks).unwrap());
            self.written = (self.real, counter);
        }
        self.real += ran;
        self.at_exit = self.counter();
        self.real += SERVING;
    }

    fn sleep(&mut self, ns: u64) {
        self.real += self.until(ns);
    }

    /// Whether the timer fired in that time.
    fn play(&mut self, moves: &[Move]) -> bool {
        for next in moves {
            if let Move::Pause(ns) = *next {
                self.pauses.push((self.real, self.real + ns));
                self.real += ns;
                self.paused += ns;
                continue;
            }
            if self.prepare() {
                return true;
            }
            match *next {
                Move::Run(ns) => self.run(ns, 0),
                Move::RunBack(ns, back) => self.run(ns, back),
                Move::Sleep(ns) => self.sleep(ns),
                Move::Pause(_) => {}
            }
        }
        false
    }

    /// Runs on, or sleeps, until the timer fires.
    fn finish(&mut self, halted: bool) {
        let mut entries = 0;
        while !self.prepare() {
            entries += 1;
            assert!(entries < 100, "it never fires");
            if halted {
                self.sleep(u64::MAX);
            } else {
                self.run(u64::MAX, 0);
            }
        }
    }

    /// For how long the counter has been beyond the deadline, without the pauses since.
    fn late(&self) -> u64 {
        let Ok(beyond) = u128::try_from(self.beyond()) else {
            return 0;
        };
        let late = u64::try_from(beyond * NS_PER_S / u128::from(self.host.hz)).unwrap();
        let since = self.real.saturating_sub(late).max(self.written.0);
        let paused = self.pauses.iter().map(|(from, to)| {
            let (from, to) = (*from.max(&since), *to);
            to.saturating_sub(from)
        });
        self.real - since - paused.sum::<u64>()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The counter is only ever written back here: forwards, the host does not tell.
    #[test]
    fn what_the_counter_has_reached_fires_soon_whatever_the_host_shows(
        host in hosts(any::<bool>()),
        counter in 0u64..1 << 60,
        ahead in 1..500 * MS,
        moves in moves(),
        halted in any::<bool>(),
    ) {
        let vcpu = Vcpu::fired(host, counter, ahead, &moves, halted);
        // Two looks and what it takes to come to them, and the drift in that time.
        let bound = 2 * (50_000 + SERVING) + vcpu.real / 2500;
        prop_assert!(vcpu.late() <= bound, "{} ns late", vcpu.late());
    }

    #[test]
    fn where_the_host_shows_the_counter_nothing_fires_before_it_has_reached_the_deadline(
        host in hosts(Just(false)),
        counter in 0u64..1 << 60,
        ahead in 1..500 * MS,
        moves in moves(),
        halted in any::<bool>(),
    ) {
        let vcpu = Vcpu::fired(host, counter, ahead, &moves, halted);
        prop_assert!(vcpu.beyond() >= 0, "{} ticks early", -vcpu.beyond());
    }

    #[test]
    fn the_looks_are_few(
        host in hosts(any::<bool>()),
        counter in 0u64..1 << 60,
        ahead in 1..500 * MS,
        moves in moves(),
        halted in any::<bool>(),
    ) {
        let vcpu = Vcpu::fired(host, counter, ahead, &moves, halted);
        let writes = moves.iter().filter(|next| matches!(next, Move::RunBack(..))).count();
        let bound = 8 * (1 + u32::try_from(writes).unwrap());
        prop_assert!(vcpu.looks <= bound, "{} looks", vcpu.looks);
    }

    /// Whatever the host shows and the clock says: after a look the deadline is due, or later.
    #[test]
    fn no_value_overflows(
        hz in prop_oneof![1u64..1000, any::<u64>()],
        calls in proptest::collection::vec(
            (0u8..3, edges(), edges(), prop_oneof![Just(Duration::MAX), any::<u64>().prop_map(Duration::from_nanos)]),
            1..40,
        ),
    ) {
        let mut lapic = with(|config| config.tsc = TscClock::new(hz.max(1).try_into().unwrap()));
        let _ = write(&mut lapic, LVT_TIMER, DEADLINE | 0xec);
        let mut watch = DeadlineWatch::new();
        for (call, value, ns, stood_still) in calls {
            match call {
                0 => {
                    watch.left_guest(&mut lapic, value, at(ns));
                    let _ = lapic.write_msr(MSR_DEADLINE, value.wrapping_add(ns), at(ns)).unwrap();
                }
                1 => {
                    if watch.before_entry(&mut lapic, at(ns), stood_still) {
                        watch.compare(&mut lapic, value, at(ns));
                    }
                    let due = lapic.next_deadline(at(ns)).is_some_and(|next| next <= at(ns));
                    let fired = lapic.advance(at(ns)) > 0;
                    // The end of time stands for never, too.
                    prop_assert!(fired == due || ns == u64::MAX);
                }
                // No call has asked.
                _ => watch.compare(&mut lapic, value, at(ns)),
            }
        }
    }

    /// As bad as it gets: nothing that the host shows ever reaches the deadline.
    #[test]
    fn a_counter_that_is_dead_is_not_waited_for(
        hz in prop_oneof![1u64..1000, 1000u64..10_000_000_000],
        missing in 1u64..1 << 32,
        short in 1u64..1 << 32,
    ) {
        let mut lapic = with(|config| config.tsc = TscClock::new(hz.try_into().unwrap()));
        let _ = write(&mut lapic, LVT_TIMER, DEADLINE | 0xec);
        let mut watch = DeadlineWatch::new();
        watch.left_guest(&mut lapic, 1 << 41, at(0));
        let deadline = (1 << 41) + missing;
        let _ = lapic.write_msr(MSR_DEADLINE, deadline, at(0)).unwrap();
        let mut looks = 0;
        loop {
            let now = lapic.next_deadline(at(0)).unwrap();
            prop_assert!(watch.before_entry(&mut lapic, now, Duration::ZERO));
            watch.compare(&mut lapic, deadline - short, now);
            if lapic.advance(now) > 0 {
                break;
            }
            looks += 1;
            prop_assert!(looks < 6);
        }
    }
}

/// Any value, and those at the edges more often.
fn edges() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..4,
        (0u64..4).prop_map(|below| u64::MAX - below),
        0u64..100_000_000,
    ]
}

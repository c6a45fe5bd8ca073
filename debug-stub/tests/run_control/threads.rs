//! The adapter with real threads: stops, interrupts, additions and removals at any moment.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use debug_stub::run_control::{AddError, AllStop, Order, ResumeError, VcpuError, VcpuHandle};
use debug_stub::{ResumePlan, StepOrder, Stop, StopReason, VcpuId, VcpuOrder};
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// What no wait takes in these tests.
const LONG: Duration = Duration::from_secs(60);

/// What the simulated vCPUs share.
#[derive(Default)]
struct Guest {
    /// vCPUs in the guest at this moment.
    inside: AtomicUsize,
    /// How many times each looks for a stop request until it stops for its own reason; 0 is never.
    spins: AtomicU64,
    kicks: AtomicUsize,
    /// Run cycles that some vCPU has run in.
    runs: AtomicUsize,
}

const CONTINUE: VcpuOrder = VcpuOrder::Continue;

fn spin(times: u64) {
    for _ in 0..times {
        std::hint::spin_loop();
    }
}

fn step() -> VcpuOrder {
    VcpuOrder::Step(StepOrder::default())
}

fn plan(orders: &[VcpuOrder]) -> ResumePlan {
    ResumePlan {
        vcpus: orders.to_vec(),
        others: if orders.contains(&VcpuOrder::Continue) {
            VcpuOrder::Continue
        } else {
            VcpuOrder::Stay
        },
        ..ResumePlan::default()
    }
}

/// A vCPU that steps at once, and runs until it was asked to stop or has spun enough.
fn run(vcpu: &mut VcpuHandle, guest: &Guest) {
    while let Order::Run(order, _) = vcpu.wait_for_order() {
        guest.inside.fetch_add(1, Ordering::SeqCst);
        guest.runs.fetch_add(1, Ordering::SeqCst);
        let spins = guest.spins.load(Ordering::SeqCst);
        let mut spun = 0;
        let reason = loop {
            if vcpu.must_stop() {
                break StopReason::Interrupted;
            }
            if matches!(order, VcpuOrder::Step(_)) {
                break StopReason::Step;
            }
            spun += 1;
            if spins != 0 && spun > spins {
                break StopReason::SoftwareBreakpoint;
            }
            if spun % 64 == 0 {
                thread::yield_now();
            }
        };
        guest.inside.fetch_sub(1, Ordering::SeqCst);
        vcpu.report(reason);
    }
}

struct Rig {
    all: AllStop,
    guest: Arc<Guest>,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    fn new(vcpus: u16) -> Self {
        let guest = Arc::new(Guest::default());
        let kicked = Arc::clone(&guest);
        let all = AllStop::new(move |_: VcpuId| {
            kicked.kicks.fetch_add(1, Ordering::SeqCst);
        });
        let mut rig = Self {
            all: all.unwrap(),
            guest,
            threads: Vec::new(),
        };
        for id in 0..vcpus {
            rig.add(id);
        }
        rig
    }

    fn add(&mut self, id: u16) {
        let mut vcpu = self.all.add(VcpuId(id)).unwrap();
        let guest = Arc::clone(&self.guest);
        self.threads
            .push(thread::spawn(move || run(&mut vcpu, &guest)));
    }

    fn stops(&self) -> Vec<Stop> {
        let stops = self.all.wait_for_stops(Some(LONG)).expect("no stops");
        assert_eq!(
            self.guest.inside.load(Ordering::SeqCst),
            0,
            "a vCPU runs on"
        );
        assert_eq!(self.all.take_stops(), None, "two lists");
        stops
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for vcpu in self.all.vcpus() {
            let _ = self.all.remove(vcpu);
        }
        for thread in self.threads.drain(..) {
            let result = thread.join();
            if !thread::panicking() {
                result.unwrap();
            }
        }
    }
}

fn is_readable(all: &AllStop) -> bool {
    let mut poll = [PollFd::new(all.stopped_fd(), PollFlags::POLLIN)];
    nix::poll::poll(&mut poll, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn ten_thousand_cycles_with_interrupts_at_any_moment_give_one_list_each() {
    let rig = Rig::new(3);
    let (mut own, mut empty) = (0, 0);
    for cycle in 0..10_000u64 {
        // From "before the order is taken" to "after the cycle has ended".
        rig.guest.spins.store(1 + cycle % 97, Ordering::SeqCst);
        rig.all.resume(&plan(&[CONTINUE; 3])).unwrap();
        spin(cycle * 7 % 331);
        // Up to two: they are one.
        for _ in 0..cycle % 3 {
            rig.all.interrupt();
        }
        let stops = rig.stops();
        let mut seen: Vec<_> = stops.iter().map(|stop| stop.vcpu).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), stops.len(), "a stop twice: {stops:?}");
        if stops.is_empty() {
            empty += 1;
        } else {
            own += 1;
        }
    }
    assert!(own > 0, "no vCPU has ever stopped for its own reason");
    assert!(empty > 0, "no interrupt has ever been first");
}

#[test]
fn a_second_thread_may_interrupt_at_any_moment() {
    let rig = Rig::new(2);
    let over = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                rig.all.interrupt();
                sent.fetch_add(1, Ordering::SeqCst);
                spin(200);
                thread::yield_now();
            }
        });
        for cycle in 0..2000u64 {
            // Stops only when interrupted: each list is the work of an interrupt, whose moment is
            // before, in or after the cycle.
            loop {
                match rig.all.resume(&plan(&[CONTINUE, step()])) {
                    Ok(()) => break,
                    Err(ResumeError::StopsWaiting) => {
                        let stops = rig.all.take_stops().expect("a list waits");
                        assert_eq!(stops, [], "of a guest that has not run");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            let stops = rig.all.wait_for_stops(Some(LONG)).expect("no stops");
            assert!(stops.len() <= 1, "cycle {cycle}: {stops:?}");
        }
        over.store(true, Ordering::SeqCst);
    });
    assert!(sent.load(Ordering::SeqCst) > 0);
}

#[test]
fn vcpus_come_and_go_at_any_moment() {
    let mut rig = Rig::new(1);
    // A reboot or a hotplug while the guest runs, while it is stopping and while it is stopped.
    for cycle in 0..1500u64 {
        rig.guest.spins.store(cycle % 5 * 200, Ordering::SeqCst);
        rig.all.resume(&plan(&[CONTINUE])).unwrap();
        spin(cycle * 13 % 500);
        match rig.all.add(VcpuId(1)) {
            Ok(mut vcpu) => {
                let guest = Arc::clone(&rig.guest);
                rig.threads
                    .push(thread::spawn(move || run(&mut vcpu, &guest)));
            }
            // Its thread has not left yet.
            Err(AddError::Vcpu(VcpuError::Leaving(VcpuId(1)))) => {}
            Err(error) => panic!("{error}"),
        }
        spin(cycle * 29 % 700);
        if cycle % 4 < 2 {
            rig.all.interrupt();
        }
        match rig.all.remove(VcpuId(1)) {
            Ok(()) => {}
            // The one of the last cycle is leaving, or has left just now.
            Err(VcpuError::Leaving(VcpuId(1)) | VcpuError::NoVcpu(VcpuId(1))) => {}
            Err(error) => panic!("{error}"),
        }
        if cycle % 4 >= 2 {
            rig.all.interrupt();
        }
        let stops = rig.stops();
        assert!(stops.len() <= 2, "cycle {cycle}: {stops:?}");
        if cycle % 16 == 0 {
            rig.threads.retain(|thread| !thread.is_finished());
        }
    }
}

#[test]
fn the_guest_starts_without_vcpus_and_outlives_them() {
    let mut rig = Rig::new(0);
    rig.all.release().unwrap();
    assert!(rig.all.is_running());
    for _ in 0..3 {
        rig.add(0);
        rig.add(1);
        while rig.guest.inside.load(Ordering::SeqCst) != 2 {
            thread::yield_now();
        }
        rig.all.remove(VcpuId(0)).unwrap();
        rig.all.remove(VcpuId(1)).unwrap();
        for thread in rig.threads.drain(..) {
            thread.join().unwrap();
        }
        assert!(rig.all.is_running(), "the guest reboots");
        assert!(!is_readable(&rig.all));
    }
    rig.all.interrupt();
    assert_eq!(rig.stops(), []);
    rig.add(0);
    assert_eq!(rig.guest.inside.load(Ordering::SeqCst), 0);
}

#[test]
fn the_descriptor_is_readable_while_there_is_a_list() {
    let rig = Rig::new(1);
    assert!(!is_readable(&rig.all));
    rig.all.interrupt();
    rig.all.interrupt();
    assert!(is_readable(&rig.all));
    assert_eq!(rig.all.take_stops(), Some(vec![]));
    assert!(!is_readable(&rig.all));
    assert_eq!(rig.all.take_stops(), None);

    rig.all.resume(&plan(&[step()])).unwrap();
    let mut poll = [PollFd::new(rig.all.stopped_fd(), PollFlags::POLLIN)];
    nix::poll::poll(&mut poll, PollTimeout::from(60_000u16)).unwrap();
    let stop = Stop {
        vcpu: VcpuId(0),
        reason: StopReason::Step,
    };
    assert_eq!(rig.all.take_stops(), Some(vec![stop]));
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut rig = Rig::new(1);
    assert_eq!(
        rig.all.resume(&plan(&[CONTINUE, CONTINUE])),
        Err(ResumeError::NoVcpu(VcpuId(1)))
    );
    assert!(rig.all.is_stopped());
    assert!(matches!(
        rig.all.add(VcpuId(0)),
        Err(AddError::Vcpu(VcpuError::Exists(VcpuId(0))))
    ));
    rig.all.release().unwrap();
    assert_eq!(rig.all.release(), Err(ResumeError::Running));
    assert_eq!(rig.all.resume(&plan(&[])), Err(ResumeError::Running));
    rig.all.interrupt();
    while rig.all.is_running() {
        thread::yield_now();
    }
    assert_eq!(rig.all.release(), Err(ResumeError::StopsWaiting));
    assert_eq!(rig.stops(), []);
    assert_eq!(rig.all.remove(VcpuId(7)), Err(VcpuError::NoVcpu(VcpuId(7))));
    rig.all.remove(VcpuId(0)).unwrap();
    for thread in rig.threads.drain(..) {
        thread.join().unwrap();
    }
    assert_eq!(rig.all.remove(VcpuId(0)), Err(VcpuError::NoVcpu(VcpuId(0))));
}

#[test]
fn a_report_without_an_order_is_no_stop() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    assert!(vcpu.must_stop(), "it has no order");
    vcpu.report(StopReason::Step);
    assert_eq!(all.take_stops(), None);
    all.resume(&plan(&[step()])).unwrap();
    assert!(matches!(vcpu.next_order(), Order::Run(..)));
    assert!(!vcpu.must_stop());
    vcpu.report(StopReason::Step);
    vcpu.report(StopReason::Step);
    assert!(vcpu.must_stop());
    assert_eq!(all.take_stops().map(|stops| stops.len()), Some(1));
    assert_eq!(all.take_stops(), None);
}

#[test]
fn an_order_that_was_not_reported_is_over_with_the_next_question() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    all.resume(&plan(&[step()])).unwrap();
    assert!(matches!(vcpu.next_order(), Order::Run(..)));
    assert_eq!(vcpu.next_order(), Order::Wait);
    assert_eq!(all.take_stops(), Some(vec![]));
}

#[test]
fn a_thread_that_panics_stops_the_guest_and_says_so() {
    let mut rig = Rig::new(1);
    let mut vcpu = rig.all.add(VcpuId(1)).unwrap();
    let thread = thread::spawn(move || {
        let Order::Run(..) = vcpu.wait_for_order() else {
            return;
        };
        std::panic::resume_unwind(Box::new(()));
    });
    rig.all.resume(&plan(&[CONTINUE, step()])).unwrap();
    let stops = rig.stops();
    assert!(
        matches!(
            &stops[..],
            [Stop {
                vcpu: VcpuId(1),
                reason: StopReason::InternalError(_)
            }]
        ),
        "{stops:?}"
    );
    assert!(thread.join().is_err());
    assert_eq!(rig.all.vcpus(), [VcpuId(0)]);
    // The next one may have its id.
    rig.add(1);
    rig.all.resume(&plan(&[VcpuOrder::Stay, step()])).unwrap();
    assert_eq!(rig.stops().len(), 1);
}

#[test]
fn a_vcpu_that_is_dropped_does_not_hold_the_guest_up() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    all.resume(&plan(&[step()])).unwrap();
    assert!(matches!(vcpu.next_order(), Order::Run(..)));
    drop(vcpu);
    assert_eq!(all.take_stops(), Some(vec![]));
    assert_eq!(all.vcpus(), []);
}

#[test]
fn the_controller_may_run_a_vcpu_itself() {
    let rig = Rig::new(2);
    let one = |reason| {
        Some(vec![Stop {
            vcpu: VcpuId(0),
            reason,
        }])
    };
    // Done: no thread has run, and nothing is left to take.
    let stops = rig.all.resume_here(
        &plan(&[step(), VcpuOrder::Stay]),
        VcpuId(0),
        |order, _, must_stop| {
            assert_eq!(*order, step());
            assert!(!must_stop());
            Some(StopReason::Step)
        },
    );
    assert_eq!(stops, Ok(one(StopReason::Step)));
    assert_eq!(rig.guest.runs.load(Ordering::SeqCst), 0);
    assert!(!is_readable(&rig.all));
    assert_eq!(rig.all.take_stops(), None);

    // Not done: its thread goes on.
    let stops = rig
        .all
        .resume_here(&plan(&[step(), VcpuOrder::Stay]), VcpuId(0), |_, _, _| None);
    assert_eq!(stops, Ok(None));
    assert_eq!(Some(rig.stops()), one(StopReason::Step));
    assert_eq!(rig.guest.runs.load(Ordering::SeqCst), 1);

    // The other vCPU runs on its thread and is stopped by the first.
    let stops = rig
        .all
        .resume_here(&plan(&[step(), CONTINUE]), VcpuId(0), |_, _, _| {
            while rig.guest.inside.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            Some(StopReason::Step)
        })
        .unwrap();
    let stops = stops.unwrap_or_else(|| rig.stops());
    assert_eq!(Some(stops), one(StopReason::Step));

    // No order for it: as a resume.
    let stops = rig
        .all
        .resume_here(&plan(&[VcpuOrder::Stay, step()]), VcpuId(0), |_, _, _| {
            panic!("it stays")
        });
    assert_eq!(stops, Ok(None));
    assert_eq!(rig.stops().len(), 1);

    // Interrupted while it runs here.
    let stops = rig.all.resume_here(
        &plan(&[CONTINUE, VcpuOrder::Stay]),
        VcpuId(0),
        |_, _, must_stop| {
            rig.all.interrupt();
            assert!(must_stop());
            Some(StopReason::Interrupted)
        },
    );
    assert_eq!(stops, Ok(Some(vec![])));

    // Interrupted, and not done.
    let runs = rig.guest.runs.load(Ordering::SeqCst);
    let stops = rig
        .all
        .resume_here(&plan(&[CONTINUE, VcpuOrder::Stay]), VcpuId(0), |_, _, _| {
            rig.all.interrupt();
            None
        });
    assert_eq!(stops, Ok(None), "its own thread ends what has begun");
    assert_eq!(rig.stops(), []);
    assert_eq!(rig.guest.runs.load(Ordering::SeqCst), runs + 1);
}

#[test]
fn a_vcpu_that_is_removed_while_the_controller_runs_it_lets_its_thread_go() {
    let mut rig = Rig::new(1);
    let plan = plan(&[CONTINUE]);
    // Its thread waits: it must be woken up to leave.
    thread::sleep(Duration::from_millis(50));
    let stops = rig.all.resume_here(&plan, VcpuId(0), |_, _, must_stop| {
        rig.all.remove(VcpuId(0)).unwrap();
        assert!(must_stop());
        Some(StopReason::Interrupted)
    });
    assert_eq!(stops, Ok(None), "the run cycle goes on without it");
    rig.threads.pop().unwrap().join().unwrap();
    rig.all.interrupt();
    assert_eq!(rig.stops(), []);
}

#[test]
fn a_panic_of_the_controller_that_runs_a_vcpu_is_that_vcpus_stop() {
    let rig = Rig::new(1);
    let plan = plan(&[CONTINUE]);
    let unwound = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let run = |_: &_, _: &_, _: &dyn Fn() -> bool| std::panic::resume_unwind(Box::new(()));
        rig.all.resume_here(&plan, VcpuId(0), run)
    }));
    assert!(unwound.is_err());
    let stops = rig.stops();
    assert!(
        matches!(
            &stops[..],
            [Stop {
                vcpu: VcpuId(0),
                reason: StopReason::InternalError(_)
            }]
        ),
        "{stops:?}"
    );
}

#[test]
fn an_event_of_a_device_stops_the_guest_once() {
    let rig = Rig::new(2);
    let end = Stop {
        vcpu: VcpuId(0),
        reason: StopReason::Exited(3),
    };
    rig.all.release().unwrap();
    rig.all.event(end.clone());
    assert_eq!(rig.stops(), std::slice::from_ref(&end));
    rig.all.event(end.clone());
    assert_eq!(rig.stops(), [end]);
}

#[test]
fn a_waiter_gives_up() {
    let rig = Rig::new(1);
    let start = Instant::now();
    let wait = Duration::from_millis(20);
    assert_eq!(rig.all.wait_for_stops(Some(wait)), None);
    assert!(start.elapsed() >= wait);
}

/// Waits with [`VcpuHandle::wait`], and serves a VMM's own requests between orders: it stores in `served` the
/// newest number in `requested`.
fn serve_requests(vcpu: &mut VcpuHandle, requested: &AtomicU64, served: &AtomicU64) {
    loop {
        let newest = requested.load(Ordering::SeqCst);
        served.store(newest, Ordering::SeqCst);
        match vcpu.next_order() {
            Order::Wait => {
                // The moment at which a request must not be lost.
                spin(newest * 5 % 403);
                vcpu.wait();
            }
            Order::Run(..) => {
                while !vcpu.must_stop() {
                    thread::yield_now();
                }
                vcpu.report(StopReason::Interrupted);
            }
            Order::Leave => return,
        }
    }
}

struct RemoveOnDrop<'a>(&'a AllStop);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        let _ = self.0.remove(VcpuId(0));
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "never: {what}");
        thread::yield_now();
    }
}

#[test]
fn a_nudge_at_any_moment_is_seen() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    let (requested, served) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| serve_requests(&mut vcpu, &requested, &served));
        // Also after a failure: the scope waits for the thread.
        let _removal = RemoveOnDrop(&all);
        for number in 1..=20_000u64 {
            // From "before the thread looks" to "deep in the wait".
            spin(number * 7 % if number % 2 == 0 { 61 } else { 997 });
            requested.store(number, Ordering::SeqCst);
            all.nudge(VcpuId(0));
            wait_until("the request is served", || {
                served.load(Ordering::SeqCst) == number
            });
        }
        // With run cycles in between: a nudge of a vCPU that runs is seen after its stop.
        for number in 20_001..=24_000u64 {
            if number % 2 == 0 {
                all.release().unwrap();
            }
            spin(number * 11 % 1999);
            requested.store(number, Ordering::SeqCst);
            all.nudge(VcpuId(0));
            spin(number * 13 % 1999);
            if number % 2 == 0 {
                assert!(all.is_running(), "a nudge has stopped the guest");
                all.interrupt();
                assert_eq!(all.wait_for_stops(Some(LONG)), Some(vec![]));
            }
            wait_until("the request is served", || {
                served.load(Ordering::SeqCst) == number
            });
        }
    });
}

/// A client may be there before the vCPUs' threads are.
#[test]
fn orders_that_come_before_the_thread_are_kept_for_it() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let (mut first, mut second) = (all.add(VcpuId(0)).unwrap(), all.add(VcpuId(1)).unwrap());
    all.start().unwrap();
    assert!(matches!(second.next_order(), Order::Run(..)));
    second.report(StopReason::HardwareBreakpoint);
    assert_eq!(
        all.wait_for_stops(Some(LONG)).map(|stops| stops.len()),
        Some(1)
    );
    all.resume(&plan(&[step()])).unwrap();
    assert!(matches!(
        first.next_order(),
        Order::Run(VcpuOrder::Step(_), _)
    ));
    first.report(StopReason::Step);
    let stop = Stop {
        vcpu: VcpuId(0),
        reason: StopReason::Step,
    };
    assert_eq!(all.wait_for_stops(Some(LONG)), Some(vec![stop]));
}

#[test]
fn nudges_stay_in_the_pipe_and_start_nothing() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    all.nudge(VcpuId(0));
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    assert_eq!(vcpu.next_order(), Order::Wait);
    all.nudge(VcpuId(0));
    vcpu.wait();
    // More than the pipe takes; none blocks.
    for _ in 0..10_000 {
        all.nudge(VcpuId(0));
    }
    vcpu.wait();
    assert_eq!(vcpu.next_order(), Order::Wait);
    assert!(all.is_stopped());
    // One that waits for orders alone is not disturbed.
    thread::scope(|scope| {
        let thread = scope.spawn(|| vcpu.wait_for_order());
        for _ in 0..100 {
            all.nudge(VcpuId(0));
            thread::yield_now();
        }
        assert!(!thread.is_finished());
        all.remove(VcpuId(0)).unwrap();
        assert_eq!(thread.join().unwrap(), Order::Leave);
    });
    // It has left: there is nothing to wait for.
    all.nudge(VcpuId(0));
    for _ in 0..1000 {
        vcpu.wait();
    }
}

/// A thread with a loop of its own polls the descriptor with others.
#[test]
fn the_vcpus_descriptor_is_readable_until_its_wake_up_is_cleared() {
    let readable = |vcpu: &VcpuHandle| {
        let mut poll = [PollFd::new(vcpu.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, PollTimeout::ZERO).unwrap() == 1
    };
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    assert!(!readable(&vcpu));
    for cycle in 0..3 {
        all.resume(&plan(&[step()])).unwrap();
        all.nudge(VcpuId(0));
        assert!(readable(&vcpu), "cycle {cycle}");
        vcpu.clear_wake_up();
        assert!(!readable(&vcpu), "one call takes all wake-ups");
        assert!(matches!(vcpu.next_order(), Order::Run(..)));
        vcpu.report(StopReason::Step);
        assert_eq!(all.take_stops().map(|stops| stops.len()), Some(1));
    }
    all.remove(VcpuId(0)).unwrap();
    assert!(readable(&vcpu));
    vcpu.clear_wake_up();
    assert_eq!(vcpu.next_order(), Order::Leave);
}

#[test]
fn an_order_and_a_removal_end_the_wait() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    all.resume(&plan(&[step()])).unwrap();
    vcpu.wait();
    assert!(matches!(vcpu.next_order(), Order::Run(..)));
    vcpu.report(StopReason::Step);
    all.remove(VcpuId(0)).unwrap();
    vcpu.wait();
    assert_eq!(vcpu.next_order(), Order::Leave);
}

#[cfg(all(target_os = "linux", feature = "kvm"))]
#[test]
fn a_signal_ends_the_wait_if_its_handler_does_not_restart_calls() {
    use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN() + 2, nothing).unwrap();
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let vcpu = all.add(VcpuId(0)).unwrap();
    let thread = thread::spawn(move || {
        vcpu.wait();
        vcpu
    });
    let start = Instant::now();
    // One that comes before the wait is lost: that is why there is a nudge.
    while !thread.is_finished() {
        assert!(start.elapsed() < LONG, "no signal ends the wait");
        thread.kill(SIGRTMIN() + 2).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(thread.join().unwrap().next_order(), Order::Wait);
}

/// A VMM catches the panics of its vCPU threads, with the handle and run control inside.
#[test]
fn run_control_may_cross_a_caught_panic() {
    fn check<T: UnwindSafe + RefUnwindSafe>() {}
    check::<AllStop>();
    check::<VcpuHandle>();

    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    all.release().unwrap();
    let caught = std::panic::catch_unwind(move || {
        assert!(matches!(vcpu.next_order(), Order::Run(..)));
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(caught.is_err());
    let stops = all.take_stops().unwrap();
    assert!(
        matches!(stops[0].reason, StopReason::InternalError(_)),
        "{stops:?}"
    );
    assert_eq!(all.vcpus(), []);
}

/// A byte that is left in a vCPU's pipe wakes its thread while the controller runs the vCPU.
#[test]
fn a_thread_that_wakes_up_while_the_controller_runs_its_vcpu_leaves_it_alone() {
    let rig = Rig::new(1);
    for cycle in 0..2000_u32 {
        // The order is given back: the thread may take it before it reads the byte that says so.
        let stops = rig
            .all
            .resume_here(&plan(&[step()]), VcpuId(0), |_, _, _| None);
        assert_eq!(stops, Ok(None));
        assert_eq!(rig.stops().len(), 1);
        let stops = rig
            .all
            .resume_here(&plan(&[step()]), VcpuId(0), |_, _, must_stop| {
                for _ in 0..cycle % 300 {
                    std::hint::spin_loop();
                }
                assert!(!must_stop());
                Some(StopReason::Step)
            });
        let step = Stop {
            vcpu: VcpuId(0),
            reason: StopReason::Step,
        };
        assert_eq!(stops, Ok(Some(vec![step])), "cycle {cycle}");
    }
}

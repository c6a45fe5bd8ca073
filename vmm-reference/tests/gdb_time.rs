//! What a guest sees of the time for which a debugger has stopped it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::{Chips, Setup, Vmm, eventually, rounds};
use vmm_reference::guests::{CLOCKS, TIMER};
use vmm_reference::remote::RemoteClient;

type Client = RemoteClient<UnixStream>;

with_all_chips! {
    a_stop_of_two_seconds_is_no_time_for_the_guest,
    a_stop_is_time_for_the_guest_if_time_runs,
    masked_steps_bring_no_burst_of_ticks,
    a_stepped_guest_comes_out_of_its_clocks,
    between_slow_steps_no_time_passes,
    a_step_takes_the_time_that_was_asked_for,
}

/// The longest time that the guest may see between two reads of a clock, in ns. It has a thousandth of
/// that to do between them.
const JUMP_NS: u64 = 50_000_000;
const STOP: Duration = Duration::from_secs(2);
/// A busy machine keeps a vCPU from running for longer than [`JUMP_NS`] now and then. A clock that is
/// not set back jumps at each stop.
const TRIES: usize = 8;

fn start(chips: Chips, arguments: &[&str]) -> (Vmm, Client) {
    let vmm = Setup::new(&CLOCKS).with(chips).with(arguments).start();
    eventually("it boots", || vmm.serial() == "clocks guest\n");
    vmm.assert_rises("pit_ticks");
    let client = vmm.client();
    (vmm, client)
}

fn resume(client: &mut Client) {
    client.send("vCont;c").unwrap();
}

fn stop(client: &mut Client) {
    client.interrupt().unwrap();
    client.reply().unwrap();
}

fn step(client: &mut Client) {
    let reply = client.request("vCont;s:1").unwrap();
    assert!(reply.starts_with("T05"), "{reply}");
}

fn run_for(client: &mut Client, time: Duration) {
    resume(client);
    thread::sleep(time);
    stop(client);
}

fn set_to_zero(client: &mut Client, vmm: &Vmm, name: &str) {
    let write = format!("M{:x},8:{:016x}", vmm.symbol(name), 0);
    assert_eq!(client.request(&write).unwrap(), "OK");
}

fn word(client: &mut Client, vmm: &Vmm, name: &str) -> u64 {
    client.read_u64(vmm.symbol(name)).unwrap()
}

/// What the guest has seen.
#[derive(Debug)]
struct Seen {
    /// The largest steps.
    max_tsc_ns: u64,
    max_clock_ns: u64,
    ticks: u64,
    pit_ticks: u64,
    /// How long it ran, by the host's clock, at most.
    ran_ms: u64,
}

/// Lets the guest run for 300 ms, with `pause` before. It must see no clock go backwards.
fn seen(client: &mut Client, vmm: &Vmm, pause: impl FnOnce(&mut Client)) -> Seen {
    let names = ["ticks", "pit_ticks"];
    let before = names.map(|name| word(client, vmm, name));
    set_to_zero(client, vmm, "max_tsc");
    set_to_zero(client, vmm, "max_clock");
    pause(client);
    let begun = Instant::now();
    run_for(client, Duration::from_millis(300));
    let ran = begun.elapsed();
    let after = names.map(|name| word(client, vmm, name));
    let [ticks, pit_ticks] = [0, 1].map(|index| after[index] - before[index]);
    assert_eq!(word(client, vmm, "backwards"), 0);
    Seen {
        max_tsc_ns: word(client, vmm, "max_tsc") * 1_000_000 / tsc_khz(),
        max_clock_ns: word(client, vmm, "max_clock"),
        ticks,
        pit_ticks,
        ran_ms: u64::try_from(ran.as_millis()).unwrap(),
    }
}

fn tsc_khz() -> u64 {
    let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    vm.create_vcpu(0).unwrap().get_tsc_khz().unwrap().into()
}

/// Why this KVM cannot set the TSC back, if it cannot.
fn tsc_runs_on(client: &mut Client) -> Option<String> {
    let time = client.monitor("time").unwrap();
    if !time.contains("TSC: runs on") {
        assert!(time.contains("TSC: set back"), "{time}");
        return None;
    }
    let caps = client.monitor("caps").unwrap();
    let line = caps.lines().find(|line| line.starts_with("tsc_offset"));
    let line = line.expect("caps has the ability");
    assert!(line.contains("not available"), "{line}");
    let (_, why) = line.split_once("not tsc_write: ").expect(line);
    Some(why.to_owned())
}

fn a_stop_of_two_seconds_is_no_time_for_the_guest(chips: Chips) {
    let (vmm, mut client) = start(chips, &[]);
    let runs_on = tsc_runs_on(&mut client);
    for attempt in 1.. {
        // What a busy machine does to a guest that is not stopped for long.
        let usual = seen(&mut client, &vmm, |_| ());
        let seen = seen(&mut client, &vmm, |_| thread::sleep(STOP));
        println!("{seen:?}");
        let tsc_is_right = match &runs_on {
            None => seen.max_tsc_ns < JUMP_NS + usual.max_tsc_ns,
            Some(why) => {
                println!("expected refusal: tsc_write: {why}");
                // If it stood still, the refusal would be wrong.
                assert!(seen.max_tsc_ns > 1_900_000_000, "{seen:?}");
                true
            }
        };
        // A busy machine merges ticks.
        assert!(seen.ticks <= seen.ran_ms + 20, "{seen:?}");
        assert!(seen.pit_ticks <= seen.ran_ms / 10 + 3, "{seen:?}");
        assert!(seen.ticks > 0 && seen.pit_ticks > 0, "{seen:?}");
        if tsc_is_right && seen.max_clock_ns < JUMP_NS + usual.max_clock_ns {
            break;
        }
        assert!(
            attempt < TRIES,
            "{seen:?}\n{}",
            client.monitor("time").unwrap()
        );
    }
}

fn a_stop_is_time_for_the_guest_if_time_runs(chips: Chips) {
    let (vmm, mut client) = start(chips, &["--debug-time", "run"]);
    let seen = seen(&mut client, &vmm, |_| thread::sleep(STOP));
    println!("{seen:?}");
    assert!(seen.max_tsc_ns > 1_900_000_000, "{seen:?}");
    assert!(seen.max_clock_ns > 1_900_000_000, "{seen:?}");
    let time = client.monitor("time").unwrap();
    assert!(time.contains("passes while the guest is stopped"), "{time}");
    let refused = client.monitor("time step none").unwrap();
    assert!(refused.starts_with("refused: "), "{refused}");
}

/// Ticks that became due in the steps come at twice their rate at most.
fn masked_steps_bring_no_burst_of_ticks(chips: Chips) {
    let (vmm, mut client) = start(chips, &[]);
    let seen = seen(&mut client, &vmm, |client| {
        for _ in 0..rounds(100) {
            step(client);
            thread::sleep(Duration::from_millis(10));
        }
    });
    println!("{seen:?}");
    assert!(seen.ticks <= seen.ran_ms + 20, "{seen:?}");
    assert!(seen.pit_ticks <= 2 * seen.ran_ms / 10 + 3, "{seen:?}");
}

/// Guest time in nanoseconds, as `monitor time` shows it.
fn guest_time(client: &mut Client) -> u64 {
    let text = client.monitor("time").unwrap();
    let time = text.strip_prefix("guest time ").expect(&text);
    let (seconds, rest) = time.split_once('.').expect(&text);
    let ns = rest.get(..9).expect(&text);
    seconds.parse::<u64>().unwrap() * 1_000_000_000 + ns.parse::<u64>().unwrap()
}

/// How much guest time a number of steps take with pauses between them, and how much real time without
/// the pauses.
fn steps_take(client: &mut Client, steps: usize) -> (u64, u64) {
    const PAUSE: Duration = Duration::from_millis(2);
    let begun = Instant::now();
    let before = guest_time(client);
    for _ in 0..steps {
        step(client);
        thread::sleep(PAUSE);
    }
    let took = guest_time(client) - before;
    let pauses = PAUSE * u32::try_from(steps).unwrap();
    let rest = begun.elapsed() - pauses;
    (took, u64::try_from(rest.as_nanos()).unwrap())
}

/// KVM rewrites the clock page whenever a clock is set, and the guest reads until the page stays the same.
fn a_stepped_guest_comes_out_of_its_clocks(chips: Chips) {
    let (vmm, mut client) = start(chips, &[]);
    let before = word(&mut client, &vmm, "iterations");
    let clock = word(&mut client, &vmm, "clock");
    let mut steps = 0;
    while word(&mut client, &vmm, "iterations") < before + 3 {
        step(&mut client);
        steps += 1;
        assert!(steps < 1000, "it never comes out");
    }
    println!("{steps} steps");
    assert!(word(&mut client, &vmm, "clock") > clock);
    run_for(&mut client, Duration::from_millis(50));
    assert_eq!(word(&mut client, &vmm, "backwards"), 0);
}

/// A guest that reads no clock.
fn start_timer(chips: Chips) -> (Vmm, Client) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    eventually("it boots", || vmm.serial() == "timer guest\n");
    vmm.assert_rises("ticks");
    let client = vmm.client();
    (vmm, client)
}

fn between_slow_steps_no_time_passes(chips: Chips) {
    let (_vmm, mut client) = start_timer(chips);
    let steps = rounds(400);
    let (took, without_pauses) = steps_take(&mut client, steps);
    println!("{steps} steps took {took} ns");
    assert!(took <= without_pauses, "{took} {without_pauses}");
    let time = client.monitor("time").unwrap();
    let none = " 0 of them may have read a clock";
    assert!(time.contains(none), "{time}");
}

fn a_step_takes_the_time_that_was_asked_for(chips: Chips) {
    let (_vmm, mut client) = start_timer(chips);
    let steps = rounds(200);
    let count = u64::try_from(steps).unwrap();
    assert_eq!(
        client.monitor("time step 1000000").unwrap(),
        "a step takes 1000000 ns, or longer if it may read a clock\n"
    );
    // A step that is handed to the vCPU's thread, as on a busy host, takes its own time beside. The pauses
    // between the steps, which are longer, take none.
    let (took, without_pauses) = steps_take(&mut client, steps);
    println!("{steps} steps of 1 ms took {took} ns");
    let asked = count * 1_000_000;
    assert!((asked..=asked + without_pauses).contains(&took), "{took}");
    client.monitor("time step none").unwrap();
    let (took, without_pauses) = steps_take(&mut client, steps);
    println!("{steps} steps of no time took {took} ns of {without_pauses}");
    assert!(took <= without_pauses, "{took} {without_pauses}");
    let refused = client.monitor("time step fast").unwrap();
    assert!(
        refused.starts_with("refused: expected real, none"),
        "{refused}"
    );
}

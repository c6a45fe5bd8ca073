//! Clients that disconnect at random times, many times: nothing is left.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::raw::frame;
use common::{Chips, Random, Setup, Vmm, rounds};
use vmm_reference::guests::{SMP, TIMER};

with_all_chips! {
    a_hundred_clients_that_vanish_leave_the_timer_guest_as_it_was,
    a_hundred_clients_that_vanish_leave_two_vcpus_as_they_were,
}

/// At full speed.
const ROUNDS: usize = 100;

/// What a client does.
type Client = fn(&Vmm, &mut Random);

/// When a client disconnects, and what it does before.
const ENDINGS: [(&str, Client); 8] = [
    ("in the middle of a packet", |vmm, random| {
        let mut client = vmm.connect();
        let packet = frame("vCont;s:1");
        client.send(&packet[..random.below(packet.len())]);
    }),
    ("right after a step", |vmm, _| {
        vmm.connect().send(frame("vCont;s:1"));
    }),
    ("right after many steps", |vmm, random| {
        let mut client = vmm.connect();
        for _ in 0..random.below(20) {
            client.send(frame("vCont;s:1"));
            client.until("thread:");
        }
        client.send(frame("vCont;s:1"));
    }),
    (
        "in the middle of a range step without end",
        |vmm, random| {
            let mut client = vmm.connect();
            client.send(frame("vCont;r0,ffffffffffffffff:1"));
            pause(random);
        },
    ),
    ("while the guest runs", |vmm, random| {
        let mut client = vmm.connect();
        client.send(frame("vCont;c"));
        pause(random);
    }),
    ("with breakpoints set", |vmm, random| {
        let mut client = vmm.connect();
        for symbol in ["main64", "_start"] {
            for kind in [0, 1] {
                client.send(frame(format!("Z{kind},{:x},1", vmm.symbol(symbol))));
                client.until("OK");
            }
        }
        client.send(frame("vCont;c"));
        pause(random);
    }),
    ("in the middle of a reply", |vmm, random| {
        let mut client = vmm.connect();
        client.send(frame("g"));
        client.bytes(random.below(600));
    }),
    ("after an interrupt", |vmm, random| {
        let mut client = vmm.connect();
        client.send(frame("vCont;c"));
        pause(random);
        client.send([3]);
    }),
];

fn pause(random: &mut Random) {
    let time = u64::try_from(random.below(2000)).unwrap();
    thread::sleep(Duration::from_micros(time));
}

/// Lets clients disconnect at random times, and checks that nothing is left.
fn soak(vmm: &mut Vmm, counters: &[&str]) {
    // The first client allocates what is allocated once.
    for counter in counters {
        vmm.assert_rises(counter);
    }
    let before = vmm.resources();
    let memory = vmm.resident();
    let mut random = Random::new(0xdead_c0de);
    let start = Instant::now();
    let rounds = rounds(ROUNDS);
    for round in 0..rounds {
        let (name, ending) = ENDINGS[(round + random.below(2)) % ENDINGS.len()];
        ending(vmm, &mut random);
        assert!(vmm.is_alive(), "round {round}, {name}");
        if round % 10 == 9 || round + 1 == rounds {
            let mut client = vmm.client();
            let status = client.monitor("mask status").unwrap();
            assert!(
                !status.contains(": masked"),
                "round {round}, {name}: {status}"
            );
            assert_eq!(client.request("D").unwrap(), "OK");
        }
    }
    println!("{rounds} clients vanished in {:?}", start.elapsed());
    for counter in counters {
        vmm.assert_rises(counter);
    }
    assert_eq!(vmm.resources(), before);
    let grown = vmm.resident().saturating_sub(memory);
    assert!(grown < 4 << 20, "{grown} bytes more than before");
}

fn a_hundred_clients_that_vanish_leave_the_timer_guest_as_it_was(chips: Chips) {
    let mut vmm = Setup::new(&TIMER).with(chips).start();
    soak(&mut vmm, &["ticks", "iterations"]);
    // Nothing steps: the flags that the guest stores have no TF, and the guest has not reported a #DB.
    let trap_flag = 1 << 8;
    assert_eq!(vmm.peek("flags_image") & trap_flag, 0);
    assert_eq!(vmm.serial(), "timer guest\n");
}

fn a_hundred_clients_that_vanish_leave_two_vcpus_as_they_were(chips: Chips) {
    let mut vmm = Setup::new(&SMP).with(chips).with(&["--cpus", "2"]).start();
    soak(&mut vmm, &["bsp_counter", "ap_counter"]);
    assert_eq!(vmm.serial(), "smp guest\nsecond cpu\n");
}

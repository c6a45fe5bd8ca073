//! Two vCPUs under one debugger.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use std::io;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::{Chips, KERNEL, Random, Setup, Vmm, eventually, rounds};
use vmm_reference::guests::SMP;
use vmm_reference::remote::{RemoteClient, expedited};

type Client = RemoteClient<UnixStream>;

with_all_chips! {
    a_processor_that_was_never_started_says_so,
    ctrl_c_is_reported_from_the_processor_that_runs_however_threads_were_listed,
    with_scheduler_locking_only_the_stepped_vcpu_moves,
    without_scheduler_locking_the_other_vcpu_runs_too,
    both_vcpus_hit_one_breakpoint_once_at_each_pass,
    a_breakpoint_is_hit_by_every_vcpu_that_passes_while_another_is_stepped,
    five_hundred_random_operations_never_lock_up,
}

/// The guest, once both of its processors spin.
fn booted() -> Vmm {
    booted_with(KERNEL)
}

fn booted_with(chips: Chips) -> Vmm {
    let vmm = Setup::new(&SMP).with(&["--cpus", "2"]).with(chips).start();
    eventually("the second processor starts", || {
        vmm.serial().contains("second cpu")
    });
    vmm.assert_rises("ap_counter");
    vmm.assert_rises("bsp_counter");
    vmm
}

/// The thread of a `T` stop reply.
#[track_caller]
fn stopped_thread(reply: &str) -> u64 {
    let id = reply
        .get(3..)
        .and_then(|pairs| {
            pairs
                .split(';')
                .find_map(|pair| pair.strip_prefix("thread:"))
        })
        .unwrap_or_else(|| panic!("no thread in {reply:?}"));
    u64::from_str_radix(id, 16).expect(id)
}

#[test]
fn both_threads_are_listed_where_they_are() {
    let vmm = booted();
    let gdb = vmm.gdb("info threads\nthread 1\nbt\nthread 2\nbt");
    gdb.expect(&["1    Thread 1 (CPU#0)", "2    Thread 2 (CPU#1)"]);
    gdb.expect(&["in start64 ()", "ap64 ()"]);
}

fn a_processor_that_was_never_started_says_so(chips: Chips) {
    let vmm = Setup::new(&vmm_reference::guests::TIMER)
        .with(&["--cpus", "2"])
        .with(chips)
        .start();
    vmm.gdb("hbreak *loop_start\ncontinue\ninfo threads")
        .expect(&["CPU#0", "CPU#1 [waits for"]);
    vmm.assert_rises("ticks");
}

fn ctrl_c_is_reported_from_the_processor_that_runs_however_threads_were_listed(chips: Chips) {
    let vmm = Setup::new(&vmm_reference::guests::TIMER)
        .with(&["--cpus", "4"])
        .with(chips)
        .start();
    vmm.assert_rises("ticks");
    let mut gdb = vmm.typing();
    for _ in 0..3 {
        gdb.command("info threads");
        // The last one listed, which waits for INIT.
        gdb.command("thread apply 4 print $pc");
        gdb.enter("continue");
        gdb.wait_for("Continuing.");
        gdb.ctrl_c();
        gdb.wait_for("Thread 1 received signal SIGINT");
        let threads = gdb.command("info threads");
        assert!(threads.contains("* 1    Thread 1 (CPU#0"), "{threads}");
    }
    gdb.command("detach");
    gdb.quit();
}

fn with_scheduler_locking_only_the_stepped_vcpu_moves(chips: Chips) {
    let vmm = booted_with(chips);
    let gdb = vmm.gdb(
        r#"
set scheduler-locking on
thread 1
printf "bsp=%ld\n", (long)bsp_counter
printf "ap=%ld\n", (long)ap_counter
set $i = 0
while $i < 60
  stepi
  set $i = $i + 1
end
printf "bsp=%ld\n", (long)bsp_counter
printf "ap=%ld\n", (long)ap_counter
thread 2
set $i = 0
while $i < 60
  stepi
  set $i = $i + 1
end
printf "bsp=%ld\n", (long)bsp_counter
printf "ap=%ld\n", (long)ap_counter
"#,
    );
    let (bsp, ap) = (gdb.values("bsp"), gdb.values("ap"));
    // 7 instructions in an iteration.
    assert!((8..=9).contains(&(bsp[1] - bsp[0])), "{bsp:?}");
    assert_eq!(ap[1], ap[0]);
    assert_eq!(bsp[2], bsp[1]);
    assert!((8..=9).contains(&(ap[2] - ap[1])), "{ap:?}");
}

fn without_scheduler_locking_the_other_vcpu_runs_too(chips: Chips) {
    let vmm = booted_with(chips);
    let gdb = vmm.gdb(
        r#"
set scheduler-locking off
thread 1
set $before = (long)ap_counter
printf "ap=%ld\n", $before
set $i = 0
while $i < 20000 && (long)ap_counter == $before
  stepi
  set $i = $i + 1
end
printf "ap=%ld\n", (long)ap_counter
"#,
    );
    // A step may be over before a busy host has let the other vCPU begin.
    let ap = gdb.values("ap");
    assert!(ap[1] > ap[0], "{ap:?}");
}

/// What each vCPU has counted at each of its hits.
#[derive(Default)]
struct Hits {
    counts: [Vec<u64>; 2],
}

impl Hits {
    fn add(&mut self, vmm: &Vmm, client: &mut Client, thread: u64) {
        let name = ["bsp_counter", "ap_counter"][usize::try_from(thread - 1).unwrap()];
        let count = client.read_u64(vmm.symbol(name)).unwrap();
        self.counts[usize::try_from(thread - 1).unwrap()].push(count);
    }

    /// Each pass through the breakpoint was seen, and none twice.
    #[track_caller]
    fn assert_each_pass_hit_once(&self) {
        for (index, counts) in self.counts.iter().enumerate() {
            for pair in counts.windows(2) {
                assert_eq!(pair[1], pair[0] + 1, "vCPU {index}: {counts:?}");
            }
        }
    }
}

fn both_vcpus_hit_one_breakpoint_once_at_each_pass(chips: Chips) {
    let vmm = booted_with(chips);
    let mut client = vmm.client();
    let at = vmm.symbol("shared_work");
    let (set, clear) = (format!("Z1,{at:x},1"), format!("z1,{at:x},1"));
    assert_eq!(client.request(&set).unwrap(), "OK");
    let mut hits = Hits::default();
    for round in 0..20 * rounds(300) {
        // On a busy host one vCPU may be at the breakpoint each time before the other one has begun.
        if round >= rounds(300) && hits.counts.iter().all(|counts| !counts.is_empty()) {
            break;
        }
        let stop = client.request("vCont;c").unwrap();
        assert!(stop.contains("hwbreak"), "{stop}");
        assert_eq!(expedited(&stop, 0x10), Some(at), "{stop}");
        let thread = stopped_thread(&stop);
        hits.add(&vmm, &mut client, thread);
        // Steps off the breakpoint as gdb does: this vCPU alone, with the breakpoint removed.
        assert_eq!(client.request(&clear).unwrap(), "OK");
        let step = client.request(&format!("vCont;s:{thread:x}")).unwrap();
        assert_eq!(stopped_thread(&step), thread);
        assert_eq!(client.request(&set).unwrap(), "OK");
    }
    hits.assert_each_pass_hit_once();
    let [bsp, ap] = hits.counts.map(|counts| counts.len());
    println!("{bsp} hits of the first vCPU, {ap} of the second");
    assert!(bsp > 0 && ap > 0, "{bsp} and {ap}");
}

#[test]
fn gdb_sees_hits_of_both_vcpus_and_loses_none() {
    let vmm = booted();
    let stops = rounds(60);
    let gdb = vmm.gdb(&format!(
        r#"
break shared_work
set $i = 0
set $seen = 0
# At least so many, and until each vCPU has been first.
while $i < {stops} || $seen != 3
  continue
  set $seen = $seen | $_thread
  printf "thread=%ld\n", $_thread
  printf "bsp=%ld\n", (long)bsp_counter
  printf "ap=%ld\n", (long)ap_counter
  set $i = $i + 1
end
info breakpoints
"#
    ));
    let threads = gdb.values("thread");
    assert!(threads.len() >= stops);
    let mut hits = Hits::default();
    for ((thread, bsp), ap) in threads.iter().zip(gdb.values("bsp")).zip(gdb.values("ap")) {
        match thread {
            1 => hits.counts[0].push(bsp),
            2 => hits.counts[1].push(ap),
            other => panic!("thread {other}"),
        }
    }
    hits.assert_each_pass_hit_once();
    gdb.expect(&[&format!("already hit {} times", threads.len())]);
}

fn a_breakpoint_is_hit_by_every_vcpu_that_passes_while_another_is_stepped(chips: Chips) {
    let vmm = booted_with(chips);
    let mut client = vmm.client();
    let at = vmm.symbol("shared_work");
    assert_eq!(client.request(&format!("Z1,{at:x},1")).unwrap(), "OK");
    // The other vCPU runs on while the first steps: it must stop at the breakpoint, and that must be reported.
    let mut seen = [false; 2];
    let begun = Instant::now();
    let mut left = rounds(200);
    // On a busy host the other vCPU may get no processor for many steps.
    while left > 0 || (seen != [true; 2] && begun.elapsed() < Duration::from_secs(30)) {
        left = left.saturating_sub(1);
        let stop = client.request("vCont;s:1;c").unwrap();
        let thread = stopped_thread(&stop);
        if stop.contains("hwbreak") {
            assert_eq!(expedited(&stop, 0x10), Some(at));
            seen[usize::try_from(thread - 1).unwrap()] = true;
        }
        if thread == 2 {
            // Steps off it, for the next pass.
            client.request("vCont;s:2").unwrap();
        }
    }
    assert_eq!(seen, [true, true]);
}

fn resume(client: &mut Client, packet: &str, wait: Option<Duration>) -> io::Result<String> {
    client.send(packet)?;
    if let Some(wait) = wait {
        thread::sleep(wait);
        client.interrupt()?;
    }
    client.reply()
}

fn five_hundred_random_operations_never_lock_up(chips: Chips) {
    let vmm = booted_with(chips);
    let mut client = vmm.client();
    let mut random = Random::new(0x5eed);
    let work = vmm.symbol("shared_work");
    let point = format!("1,{work:x},1");
    let start = Instant::now();
    let operations = rounds(500);
    for round in 0..operations {
        let thread = random.below(2) + 1;
        let wait = Duration::from_micros(u64::try_from(random.below(3000)).unwrap());
        let result = match random.below(10) {
            0 => resume(&mut client, &format!("vCont;s:{thread}"), None),
            1 => resume(&mut client, &format!("vCont;s:{thread};c"), None),
            2 => resume(&mut client, "vCont;c", Some(wait)),
            3 => resume(&mut client, &format!("vCont;c:{thread}"), Some(wait)),
            4 => {
                let range = format!("vCont;r{work:x},{:x}:{thread};c", work + 9);
                resume(&mut client, &range, None)
            }
            // The interrupt and the step's end race.
            5 => resume(
                &mut client,
                &format!("vCont;s:{thread};c"),
                Some(Duration::ZERO),
            ),
            6 => client.request(&format!("Z{point}")),
            7 => client.request(&format!("z{point}")),
            8 => client
                .request(&format!("Hg{thread}"))
                .and_then(|_| client.request("g")),
            _ => client
                .request(&format!("Hg{thread}"))
                .and_then(|_| client.request(&format!("m{work:x},10"))),
        };
        let reply = result.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(!reply.starts_with('E'), "round {round}: {reply}");
    }
    println!("{operations} operations in {:?}", start.elapsed());
    // The replies still belong to their requests.
    assert_eq!(client.request("qAttached").unwrap(), "1");
    assert_eq!(client.request("D").unwrap(), "OK");
    drop(client);
    vmm.assert_rises("bsp_counter");
    vmm.assert_rises("ap_counter");
}

/// The second processor begins in real mode at CS = 7000: the address of a breakpoint there is not its IP. GDB takes
/// a stop that is named a breakpoint's, with another program counter, for one that it has removed, and resumes.
#[test]
fn a_breakpoint_where_cs_has_a_base_stops_gdb() {
    let vmm = Setup::new(&SMP).with(&["--cpus", "2"]).paused().start();
    let gdb = vmm.gdb(
        r#"
hbreak *0x70001
continue
printf "thread=%ld\n", $_thread
printf "pc=%#lx\n", $pc
printf "cs=%#lx\n", $cs
delete
detach
"#,
    );
    gdb.expect(&["Breakpoint 1, "]);
    assert_eq!(gdb.value("thread"), 2);
    assert_eq!((gdb.value("cs"), gdb.value("pc")), (0x7000, 0x7_0001));
    eventually("it goes on", || vmm.serial().contains("second cpu"));
}

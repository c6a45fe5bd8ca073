//! What a user does in a session with gdb, from attaching to the end.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use common::{Chips, Setup, eventually};
use vmm_reference::guests::{FAULT, TIMER};
use vmm_reference::remote::expedited;

with_all_chips! {
    all_of_qemus_registers_are_there_and_true,
    breakpoints_finish_and_the_call_stack,
    source_lines_are_stepped_by_ranges_into_and_over_calls,
    a_range_step_is_one_exchange_however_many_instructions_it_takes,
    ctrl_c_stops_a_spinning_guest,
    ctrl_c_stops_a_halted_guest_that_nothing_wakes,
    ctrl_c_ends_a_step_that_does_not_end,
    a_signal_ends_the_machine_in_a_step_that_does_not_end,
    a_client_that_vanishes_in_a_step_that_does_not_end_leaves_a_guest_that_runs,
    ctrl_c_while_stopped_is_no_phantom_stop_later,
    detach_leaves_a_clean_guest_that_runs_on_and_can_be_attached_to_again,
    kill_ends_the_machine_with_success,
    a_signal_ends_the_machine_under_a_debugger_too,
    writes_are_watched_beyond_the_debug_registers,
    a_paused_machine_waits_at_its_entry_with_nothing_run,
    a_connection_that_ends_leaves_a_paused_machine_paused_and_unmarked,
    the_first_steps_of_a_paused_machine_are_the_guests_first_instructions,
}

/// The registers of QEMU's x86-64 description, in its order.
const QEMU_REGISTERS: [&str; 66] = [
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rbp",
    "rsp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "eflags",
    "cs",
    "ss",
    "ds",
    "es",
    "fs",
    "gs",
    "fs_base",
    "gs_base",
    "k_gs_base",
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "cr8",
    "efer",
    "st0",
    "st1",
    "st2",
    "st3",
    "st4",
    "st5",
    "st6",
    "st7",
    "fctrl",
    "fstat",
    "ftag",
    "fiseg",
    "fioff",
    "foseg",
    "fooff",
    "fop",
    "xmm0",
    "xmm1",
    "xmm2",
    "xmm3",
    "xmm4",
    "xmm5",
    "xmm6",
    "xmm7",
    "xmm8",
    "xmm9",
    "xmm10",
    "xmm11",
    "xmm12",
    "xmm13",
    "xmm14",
    "xmm15",
    "mxcsr",
];

fn all_of_qemus_registers_are_there_and_true(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let gdb = vmm.gdb("hbreak *loop_start\ncontinue\ninfo all-registers\nmaint print registers");
    for name in QEMU_REGISTERS {
        let line = gdb.0.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        let line = line.unwrap_or_else(|| panic!("no {name}:\n{}", gdb.0));
        assert!(!line.contains("<unavailable>"), "{line}");
    }
    let start = format!("{:#x} <main64+", vmm.symbol("loop_start"));
    for expected in [
        ("rip", start.as_str()),
        ("cs", "0x8 "),
        ("cr0", "[ PE ET PG ]"),
        ("cr4", "[ PAE ]"),
        ("efer", "[ LME LMA ]"),
        ("eflags", "IF"),
        ("fctrl", "0x37f"),
        // SDM 3A, table 9-1: after reset, and this guest has no SSE.
        ("mxcsr", "0x1f80"),
    ] {
        let (name, value) = expected;
        let line = gdb.0.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        assert!(line.unwrap().contains(value), "{expected:?}: {line:?}");
    }
}

#[test]
fn registers_and_memory_are_written_and_read_back() {
    let vmm = Setup::new(&TIMER).start();
    vmm.gdb(
        r#"
hbreak *loop_start
continue
set var $rax = 0x1122334455667788
set var $r15 = -2
set var $fs_base = 0x7fff00001000
set var $gs_base = 0x7fff00002000
set var $k_gs_base = 0xffff800000003000
set var $mxcsr = 0x1fa0
set var $st3 = 1.5
set var $xmm5.v2_int64[1] = 0x0102030405060708
set var *(long*)&scratch = 0x123456789abcdef0
set var *(char*)&work_sum = 0x5a
flushregs
printf "rax=%#lx\n", $rax
printf "r15=%#lx\n", $r15
printf "fs_base=%#lx\n", $fs_base
printf "gs_base=%#lx\n", $gs_base
printf "k_gs_base=%#lx\n", $k_gs_base
printf "mxcsr=%#x\n", $mxcsr
p $st3
p/x $xmm5.v2_int64
x/gx &scratch
x/2xb &work_sum
p/x (long)scratch
# The guest goes on with what was written, where it matters.
hbreak *loop_start
set var $rcx = 0
stepi
flushregs
printf "fs_base_later=%#lx\n", $fs_base
"#,
    )
    .expect(&[
        "rax=0x1122334455667788",
        "r15=0xfffffffffffffffe",
        "fs_base=0x7fff00001000",
        "gs_base=0x7fff00002000",
        "k_gs_base=0xffff800000003000",
        "mxcsr=0x1fa0",
        "= 1.5",
        "{0x0, 0x102030405060708}",
        "<scratch>:\t0x123456789abcdef0",
        "<work_sum>:\t0x5a",
        "= 0x123456789abcdef0",
        "fs_base_later=0x7fff00001000",
    ]);
}

#[test]
fn memory_that_is_not_there_is_an_error_and_no_zeroes() {
    let vmm = Setup::new(&TIMER).start();
    // Mapped without RAM, and not mapped at all.
    let mut gdb = vmm.typing();
    for address in ["0xd0000000", "0x8000000000"] {
        gdb.enter(&format!("x/gx {address}"));
        gdb.wait_for(&format!("Cannot access memory at address {address}"));
    }
    gdb.enter("set var *(char*)0xd0000000 = 1");
    gdb.wait_for("Cannot access memory at address 0xd0000000");
    assert!(gdb.command("print 20 + 3").contains("= 23"));
}

fn breakpoints_finish_and_the_call_stack(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let gdb = vmm.gdb(
        r#"
monitor caps
hbreak work
continue
bt
printf "inside=%#lx\n", $pc
finish
printf "returned=%#lx\n", $pc
bt
delete
break *loop_start
continue
printf "software=%#lx\n", $pc
x/xb loop_start
continue
printf "software=%#lx\n", $pc
info breakpoints
"#,
    );
    gdb.expect(&[
        "Breakpoint 1, work ()",
        "#0  work ()",
        "#1  0x",
        "in main64 ()",
        "#2  0x",
        "in start64 ()",
    ]);
    let (start, work) = (vmm.symbol("loop_start"), vmm.symbol("work"));
    assert_eq!(gdb.value("inside"), work);
    let returned = gdb.value("returned");
    assert!((start..work).contains(&returned), "{returned:#x}");
    assert_eq!(gdb.values("software"), [start, start]);
    // The guest's own byte, with either kind of breakpoint: `incq` begins with REX.W.
    gdb.expect(&["software=", "<main64+", ">:\t0x48"]);
    gdb.expect(&["breakpoint already hit 2 times"]);
    // If INT3 does not leave the guest, `break` takes a debug register, and says so.
    let caps = gdb.0.lines().find(|line| line.starts_with("bpt_exit"));
    let way = caps.and_then(|line| line.split_whitespace().nth(3));
    match way {
        Some("host") => gdb.expect_not("takes one of the four debug registers"),
        Some("hardware_slot") => gdb.expect(&["takes one of the four debug registers"]),
        other => panic!("bpt_exit by {other:?}:\n{}", gdb.0),
    };
}

fn source_lines_are_stepped_by_ranges_into_and_over_calls(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let gdb = vmm.gdb(
        r#"
break *loop_start
continue
delete
printf "ticks=%ld\n", (long)ticks
# `incq (iterations)`, a line of one instruction; then the next
next
info line *$pc
# up to the call
tbreak *(loop_start)
set $n = 0
while $n < 40 && *(unsigned char*)$pc != 0xe8
  next
  set $n = $n + 1
end
printf "call=%#lx\n", $pc
delete
set debug remote 1
next
set debug remote 0
printf "over=%#lx\n", $pc
printf "ticks=%ld\n", (long)ticks
thbreak work
continue
finish
# Into the call: to the line, and in.
set $n = 0
while $n < 80 && *(unsigned char*)$pc != 0xe8
  step
  set $n = $n + 1
end
printf "before=%#lx\n", $pc
step
printf "into=%#lx\n", $pc
"#,
    );
    assert_eq!(gdb.value("over"), gdb.value("call") + 5, "{}", gdb.0);
    assert_eq!(gdb.value("before"), gdb.value("call"));
    let ticks = gdb.values("ticks");
    assert_eq!(ticks.len(), 2);
    // One packet for the line, not one for each instruction.
    let call = gdb.value("call");
    gdb.expect(&[&format!("vCont;r{call:x},{:x}:1", call + 5)]);
    let into = gdb.value("into");
    assert!(
        (vmm.symbol("work")..vmm.symbol("loop_end")).contains(&into),
        "{into:#x}"
    );
}

fn a_range_step_is_one_exchange_however_many_instructions_it_takes(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let mut client = vmm.client();
    let (work, end) = (vmm.symbol("work"), vmm.symbol("loop_end"));
    assert_eq!(client.request(&format!("Z1,{work:x},1")).unwrap(), "OK");
    let stop = client.request("vCont;c").unwrap();
    assert_eq!(expedited(&stop, 0x10), Some(work), "{stop}");
    assert_eq!(client.request(&format!("z1,{work:x},1")).unwrap(), "OK");
    let before = client.read_u64(vmm.symbol("work_sum")).unwrap();
    let stop = client
        .request(&format!("vCont;r{work:x},{end:x}:1"))
        .unwrap();
    assert!(stop.starts_with("T05"), "{stop}");
    let pc = expedited(&stop, 0x10).unwrap();
    assert!((vmm.symbol("loop_start")..work).contains(&pc), "{pc:#x}");
    // 3 + 2 + 1: the whole function ran.
    assert_eq!(client.read_u64(vmm.symbol("work_sum")).unwrap(), before + 6);
}

#[test]
fn the_only_vcpu_is_listed_by_its_name() {
    let vmm = Setup::new(&TIMER).start();
    vmm.gdb("hbreak *loop_start\ncontinue\ninfo threads")
        .expect(&["* 1", "CPU#0", "main64 ()"]);
}

fn ctrl_c_stops_a_spinning_guest(chips: Chips) {
    let vmm = Setup::new(&FAULT)
        .with(chips)
        .with(&["--cmdline", "spin"])
        .start();
    let mut gdb = vmm.typing();
    // In the foreground, as in a terminal.
    gdb.enter("continue");
    gdb.wait_for("Continuing.");
    gdb.ctrl_c();
    gdb.wait_for("Program received signal SIGINT");
    let first = gdb.command("output (long)spins");
    // In the background.
    gdb.enter("continue &");
    gdb.wait_for("Continuing.");
    gdb.enter("interrupt");
    gdb.wait_for("Program received signal SIGINT");
    let second = gdb.command("output (long)spins");
    assert_ne!(first, second, "it ran in between");
    gdb.command("detach");
    gdb.quit();
    vmm.assert_rises("spins");
}

fn ctrl_c_stops_a_halted_guest_that_nothing_wakes(chips: Chips) {
    let vmm = Setup::new(&FAULT)
        .with(chips)
        .with(&["--cmdline", "halt"])
        .start();
    let mut client = vmm.client();
    for _ in 0..3 {
        client.send("vCont;c").unwrap();
        client.interrupt().unwrap();
        let stop = client.reply().unwrap();
        assert!(stop.starts_with("T02"), "{stop}");
    }
    assert_eq!(client.request("D").unwrap(), "OK");
    vmm.gdb("info threads").expect(&["CPU#0 [halted]"]);
}

/// A step that does not end by itself: a range without end, and one of a vCPU that is halted for
/// good.
const ENDLESS: [(&str, &str); 2] = [
    ("spin", "vCont;r0,ffffffffffffffff:1"),
    ("halt", "vCont;s:1"),
];

fn ctrl_c_ends_a_step_that_does_not_end(chips: Chips) {
    for (cmdline, step) in ENDLESS {
        let vmm = Setup::new(&FAULT)
            .with(chips)
            .with(&["--cmdline", cmdline])
            .start();
        eventually("the guest boots", || vmm.serial() == "fault guest\n");
        let mut client = vmm.client();
        // On some hosts a step gets out of HLT; then to where the next one is.
        for _ in 0..10 {
            client.send(step).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            client.interrupt().unwrap();
            let stop = client.reply().unwrap();
            assert!(
                stop.starts_with("T02") || (cmdline == "halt" && stop.starts_with("T05")),
                "{cmdline}: {stop}"
            );
        }
        assert_eq!(client.request("qAttached").unwrap(), "1", "{cmdline}");
    }
}

fn a_signal_ends_the_machine_in_a_step_that_does_not_end(chips: Chips) {
    for (cmdline, step) in ENDLESS {
        let mut vmm = Setup::new(&FAULT)
            .with(chips)
            .with(&["--cmdline", cmdline])
            .start();
        eventually("the guest boots", || vmm.serial() == "fault guest\n");
        let mut client = vmm.client();
        client.send(step).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let pid = libc::pid_t::try_from(vmm.pid()).unwrap();
        // SAFETY: `kill` touches no memory, and the child has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        assert_eq!(vmm.wait(), 128 + libc::SIGTERM, "{cmdline}");
    }
}

fn a_client_that_vanishes_in_a_step_that_does_not_end_leaves_a_guest_that_runs(chips: Chips) {
    let vmm = Setup::new(&FAULT)
        .with(chips)
        .with(&["--cmdline", "spin"])
        .start();
    eventually("the guest boots", || vmm.serial() == "fault guest\n");
    for _ in 0..20 {
        vmm.client().send("vCont;r0,ffffffffffffffff:1").unwrap();
    }
    vmm.assert_rises("spins");
}

fn ctrl_c_while_stopped_is_no_phantom_stop_later(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let mut client = vmm.client();
    client.interrupt().unwrap();
    client.interrupt().unwrap();
    // As gdb does before it shows a stop.
    client.read_rip().unwrap();
    let start = vmm.symbol("loop_start");
    assert_eq!(client.request(&format!("Z1,{start:x},1")).unwrap(), "OK");
    let stop = client.request("vCont;c").unwrap();
    assert_eq!(expedited(&stop, 0x10), Some(start), "{stop}");
    assert!(stop.starts_with("T05"), "{stop}");
}

fn detach_leaves_a_clean_guest_that_runs_on_and_can_be_attached_to_again(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let before = vmm
        .gdb(
            r#"
hbreak *loop_start
break *work
continue
stepi
stepi
monitor mask status
printf "iterations=%ld\n", (long)iterations
detach
"#,
        )
        .expect(&["vcpu0: masked", "detached"])
        .value("iterations");
    // Unmasked: its timer ticks. Nothing armed: it passes the breakpoints' places.
    vmm.assert_rises("ticks");
    vmm.assert_rises("iterations");
    let gdb = vmm.gdb(
        r#"
printf "iterations=%ld\n", (long)iterations
info breakpoints
monitor mask status
printf "trap=%ld\n", $eflags & 0x100
"#,
    );
    gdb.expect(&["No breakpoints", "vcpu0: not masked"]);
    assert!(gdb.value("iterations") > before);
    assert_eq!(gdb.value("trap"), 0);
}

fn kill_ends_the_machine_with_success(chips: Chips) {
    let mut vmm = Setup::new(&TIMER).with(chips).start();
    let resources = vmm.socket.clone();
    vmm.gdb("kill").expect(&["killed"]);
    assert_eq!(vmm.wait(), 0);
    assert!(!resources.exists(), "the socket goes with the machine");
}

fn a_signal_ends_the_machine_under_a_debugger_too(chips: Chips) {
    let mut vmm = Setup::new(&TIMER).with(chips).start();
    let mut client = vmm.client();
    client.send("vCont;c").unwrap();
    let pid = libc::pid_t::try_from(vmm.pid()).unwrap();
    // SAFETY: `kill` touches no memory, and the child has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert_eq!(vmm.wait(), 128 + libc::SIGTERM);
    assert!(!vmm.socket.exists());
}

fn a_paused_machine_waits_at_its_entry_with_nothing_run(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).paused().start();
    let gdb = vmm.gdb(
        r#"
printf "pc=%#lx\n", $pc
printf "ticks=%ld\n", (long)ticks
printf "iterations=%ld\n", (long)iterations
info registers cr0
thbreak *loop_start
continue
printf "pc=%#lx\n", $pc
"#,
    );
    assert_eq!(
        gdb.values("pc"),
        [vmm.symbol("_start"), vmm.symbol("loop_start")]
    );
    assert_eq!(gdb.value("ticks"), 0);
    assert_eq!(gdb.value("iterations"), 0);
    // PVH: protected mode without paging.
    gdb.expect(&["cr0", "[ PE ET ]"]);
    assert_eq!(vmm.serial(), "timer guest\n");
    vmm.assert_rises("ticks");
}

/// The guest is stepped then, also where the KVM has no watchpoints: breakpoints, interrupts and Ctrl-C go on.
fn writes_are_watched_beyond_the_debug_registers(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).start();
    let gdb = vmm.gdb(
        r#"
hbreak *loop_start
continue
delete
set $seen = (long)iterations
watch *(char(*)[256])&iterations
continue
printf "written=%d\n", (long)iterations == $seen + 1
printf "pc=%#lx\n", $pc
delete
# Nothing writes here.
watch *(char(*)[512])&_start
hbreak *timer_handler
continue
printf "handler=%#lx\n", $pc
delete 4
hbreak *loop_start
continue
printf "loop=%#lx\n", $pc
"#,
    );
    gdb.expect(&[
        "no debug registers for it; the guest is stepped",
        "Hardware watchpoint 2",
        "Old value",
    ]);
    assert_eq!(gdb.value("written"), 1);
    // incq has seven bytes.
    assert_eq!(gdb.value("pc"), vmm.symbol("loop_start") + 7);
    assert_eq!(gdb.value("handler"), vmm.symbol("timer_handler"));
    assert_eq!(gdb.value("loop"), vmm.symbol("loop_start"));
    // gdb is gone, and with it what it watched.
    let mut client = vmm.client();
    assert_eq!(client.request("Z2,100000,200").unwrap(), "OK");
    client.send("vCont;c").unwrap();
    client.interrupt().unwrap();
    assert!(client.reply().unwrap().starts_with("T02"));
    client.send("vCont;c").unwrap();
    drop(client);
    vmm.assert_rises("iterations");
    let mut client = vmm.client();
    let status = client.monitor("mask status").unwrap();
    assert!(status.contains("vcpu0: not masked"), "{status}");
    assert_eq!(client.request("D").unwrap(), "OK");
    vmm.assert_rises("ticks");
}

fn a_connection_that_ends_leaves_a_paused_machine_paused_and_unmarked(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).paused().start();
    let entry = vmm.symbol("_start");
    // A port scan, at several bytes of a packet.
    for bytes in ["", "$", "GET / HTTP/1.1\r\n\r\n", "$g#67"] {
        vmm.connect().send(bytes);
    }
    vmm.gdb("break *loop_start\nhbreak *work\nwatch *(long *)&iterations\ndisconnect");
    // A gdb that is killed.
    let mut gdb = vmm.typing();
    gdb.command("hbreak *loop_start");
    gdb.command("stepi");
    drop(gdb);
    let mut client = vmm.client();
    assert_eq!(client.read_rip().unwrap(), entry + 1, "one step, no more");
    let status = client.monitor("mask status").unwrap();
    assert!(status.contains("vcpu0: not masked"), "{status}");
    assert_eq!(vmm.serial(), "");
    drop(client);
    let gdb = vmm.gdb("printf \"pc=%#lx\\n\", $pc\ninfo breakpoints\ndetach");
    gdb.expect(&["No breakpoints"]);
    assert_eq!(gdb.value("pc"), entry + 1);
    eventually("detached: the guest boots", || {
        vmm.serial() == "timer guest\n"
    });
    vmm.assert_rises("ticks");
}

#[test]
fn what_becomes_of_the_guest_can_be_chosen() {
    let paused = |policy| {
        let setup = Setup::new(&TIMER).paused();
        setup.with(&["--gdb-on-disconnect", policy]).start()
    };
    let vmm = paused("run");
    drop(vmm.client());
    eventually("the guest boots", || vmm.serial() == "timer guest\n");

    let vmm = paused("stop");
    vmm.client().send("vCont;c").unwrap();
    let stays = || {
        let mut client = vmm.client();
        client.read_u64(vmm.symbol("iterations")).unwrap()
    };
    let before = stays();
    assert_eq!(stays(), before);
    assert_eq!(vmm.client().request("D").unwrap(), "OK");
    eventually("the guest boots", || vmm.serial() == "timer guest\n");
    // Not by a loop: each look stops the guest.
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(stays() > before);
}

#[test]
fn a_paused_machine_prints_nothing_until_it_is_continued() {
    let vmm = Setup::new(&TIMER).paused().start();
    let mut client = vmm.client();
    assert_eq!(client.read_rip().unwrap(), vmm.symbol("_start"));
    assert_eq!(vmm.serial(), "");
    client.send("vCont;c").unwrap();
    eventually("the guest boots", || vmm.serial() == "timer guest\n");
}

fn the_first_steps_of_a_paused_machine_are_the_guests_first_instructions(chips: Chips) {
    let vmm = Setup::new(&TIMER).with(chips).paused().start();
    let gdb = vmm.gdb(
        r#"
printf "pc=%#lx\n", $pc
stepi
printf "pc=%#lx\n", $pc
stepi
printf "pc=%#lx\n", $pc
stepi
printf "pc=%#lx\n", $pc
"#,
    );
    // cld (1 byte), mov (5), mov (5).
    let entry = vmm.symbol("_start");
    assert_eq!(
        gdb.values("pc"),
        [entry, entry + 1, entry + 6, entry + 11],
        "{}",
        gdb.0
    );
}

/// `call` saves all registers, and writes them back one by one.
#[test]
fn every_register_may_be_written_back_as_it_is() {
    let vmm = Setup::new(&TIMER).paused().start();
    let mut client = vmm.client();
    let work = vmm.symbol("work");
    for stage in ["at the entry", "in 64-bit code"] {
        for (number, name) in QEMU_REGISTERS.iter().enumerate() {
            let value = client.request(&format!("p{number:x}")).unwrap();
            let reply = client.request(&format!("P{number:x}={value}")).unwrap();
            assert_eq!(reply, "OK", "{name} = {value} {stage}");
        }
        let all = client.request("g").unwrap();
        assert_eq!(client.request(&format!("G{all}")).unwrap(), "OK", "{stage}");
        assert_eq!(client.request(&format!("Z1,{work:x},1")).unwrap(), "OK");
        client.request("vCont;c").unwrap();
    }
    drop(client);
    let gdb = vmm.gdb("print ((long (*)())work)()\nprintf \"pc=%#lx\\n\", $pc\ndetach");
    gdb.expect(&["$1 = "]);
    assert_eq!(gdb.value("pc"), work);
    vmm.assert_rises("ticks");
}

#[test]
fn detach_in_extended_remote_keeps_the_connection_and_attach_comes_back() {
    let vmm = Setup::new(&TIMER).start();
    let script = format!(
        r#"
disconnect
target extended-remote {}
detach
info threads
attach 1
printf "attached=%ld\n", $_thread
hbreak *loop_start
continue
printf "pc=%#lx\n", $pc
monitor system_reset
detach
info threads
"#,
        vmm.socket.display()
    );
    let gdb = vmm.gdb(&script);
    assert_eq!(gdb.value("attached"), 1);
    assert_eq!(gdb.value("pc"), vmm.symbol("loop_start"));
    gdb.expect(&["No threads.", "the machine was reset"]);
    gdb.expect_not("Broken pipe");
    vmm.assert_rises("ticks");
}

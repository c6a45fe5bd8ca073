//! What each thread of an adapter asks of the kernel is what its docs say, for seccomp filters: here
//! each runs under one.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is the world around the core, and it stops where what must hold does not"
)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::simulated::Simulated;
use common::{frame, machine, plan};
use debug_stub::run_control::{
    AllStop, CONTROLLER_SYSCALLS, KICK_SYSCALLS, Kick, KickSignal, Order, VCPU_SYSCALLS,
    VcpuThreads,
};
use debug_stub::server::serve;
use debug_stub::x86_64::simulated::code;
use debug_stub::{ResumePlan, Session, SessionConfig, StepOrder, StopReason, VcpuId, VcpuOrder};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// What every thread of the standard library does: memory, and its own end.
const RUNTIME: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_futex,
    libc::SYS_sched_yield,
];

/// From here on the calling thread may make these calls; any other one ends the process with SIGSYS.
fn allow_only(calls: &[&[libc::c_long]]) {
    let rules = calls.iter().copied().flatten();
    let filter = SeccompFilter::new(
        rules.map(|call| (*call, Vec::new())).collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    apply_filter(&program).unwrap();
}

fn one(order: VcpuOrder) -> ResumePlan {
    ResumePlan {
        vcpus: vec![order],
        ..ResumePlan::default()
    }
}

/// A list of system calls, and what a child process calls it.
struct List {
    name: &'static str,
    calls: &'static [(&'static str, i64)],
    /// The tests that see each of its calls, one or the other.
    tests: &'static [&'static str],
}

const KICK: List = List {
    name: "kick",
    calls: KICK_SYSCALLS,
    tests: &["the_kick_of_kvm"],
};
const CONTROLLER: List = List {
    name: "controller",
    calls: CONTROLLER_SYSCALLS,
    tests: &["run_control"],
};
const VCPU: List = List {
    name: "vcpu",
    calls: VCPU_SYSCALLS,
    tests: &["the_kick_of_kvm", "run_control"],
};

/// Made while a lock is contended: no test can be sure of that. The controller's thread may make it
/// anyway, as every thread in [`RUNTIME`].
const NOT_ALWAYS: &[&str] = &["futex"];

/// Set for a child process: the list and its call that [`listed`] leaves out, `vcpu:mmap`.
const WITHOUT: &str = "SYSTEM_CALLS_WITHOUT";

/// The numbers of a list.
fn listed(list: &List) -> Vec<libc::c_long> {
    let without = std::env::var(WITHOUT).unwrap_or_default();
    let left = |name: &str| without != format!("{}:{name}", list.name);
    let calls = list.calls.iter().filter(|(name, _)| left(name));
    calls.map(|(_, number)| *number).collect()
}

/// From here on the calling thread may make these calls and `sched_yield`, but none of [`RUNTIME`],
/// which would hide some of the list. The thread ends in [`stay`].
fn allow_listed(list: &List) {
    allow_only(&[&listed(list), &[libc::SYS_sched_yield]]);
}

/// Stays until the process ends: the end of a thread makes calls of the C library's.
fn stay(done: &AtomicUsize) -> ! {
    done.fetch_add(1, Ordering::SeqCst);
    loop {
        thread::yield_now();
    }
}

fn wait_for(count: &AtomicUsize, value: usize) {
    while count.load(Ordering::SeqCst) < value {
        thread::sleep(Duration::from_millis(1));
    }
}

/// All of run control with the kick of KVM, each thread under the list of its calls.
#[test]
fn run_control() {
    let threads = Arc::new(VcpuThreads::new(KickSignal::usual().unwrap()));
    let all = AllStop::new(Arc::clone(&threads)).unwrap();
    let over = Arc::new(AtomicUsize::new(0));
    let served = Arc::new(AtomicUsize::new(0));
    for id in 0..2 {
        let mut vcpu = all.add(VcpuId(id)).unwrap();
        let page: File = tempfile::tempfile().unwrap();
        page.set_len(4096).unwrap();
        let (threads, over, served) = (threads.clone(), over.clone(), served.clone());
        thread::spawn(move || {
            allow_listed(&VCPU);
            let entered = threads.enter(VcpuId(id), &page).unwrap();
            loop {
                let order = match vcpu.next_order() {
                    Order::Wait => {
                        vcpu.wait();
                        served.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    Order::Run(order, _) => order,
                    Order::Leave => break,
                };
                let reason = if order == VcpuOrder::Continue {
                    while entered.may_run(|| vcpu.must_stop()) {
                        thread::yield_now();
                    }
                    StopReason::Interrupted
                } else {
                    StopReason::Step
                };
                vcpu.report(reason);
            }
            drop((vcpu, entered, page));
            stay(&over);
        });
    }
    let controller_over = Arc::clone(&over);
    let step = one(VcpuOrder::Step(StepOrder::default()));
    let mut step_and_run = step.clone();
    step_and_run.vcpus.push(VcpuOrder::Continue);
    thread::spawn(move || {
        allow_only(&[RUNTIME, &listed(&CONTROLLER)]);
        for _ in 0..100 {
            let before = served.load(Ordering::SeqCst);
            all.nudge(VcpuId(0));
            while served.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
            // The vCPU that steps kicks the other one.
            for plan in [&step, &step_and_run] {
                all.resume(plan).unwrap();
                assert_eq!(all.wait_for_stops(None).unwrap().len(), 1);
            }
            all.release().unwrap();
            all.interrupt();
            assert_eq!(all.wait_for_stops(None), Some(vec![]));
            assert_eq!(all.take_stops(), None);
        }
        all.remove(VcpuId(0)).unwrap();
        all.remove(VcpuId(1)).unwrap();
        // The last one closes the descriptors.
        while controller_over.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        drop(all);
        controller_over.fetch_add(1, Ordering::SeqCst);
    });
    wait_for(&over, 3);
}

/// The kick alone, by another thread and by the thread itself.
#[test]
fn the_kick_of_kvm() {
    let threads = Arc::new(VcpuThreads::new(KickSignal::usual().unwrap()));
    let over = Arc::new(AtomicUsize::new(0));
    let ready = Arc::new(AtomicUsize::new(0));
    thread::spawn({
        let (threads, over, ready) = (threads.clone(), over.clone(), ready.clone());
        move || {
            let page: File = tempfile::tempfile().unwrap();
            page.set_len(4096).unwrap();
            allow_listed(&VCPU);
            let entered = threads.enter(VcpuId(0), &page).unwrap();
            threads.kick(VcpuId(0));
            ready.fetch_add(1, Ordering::SeqCst);
            wait_while_running(&over, || {
                let _ = entered.may_run(|| false);
            });
            drop((entered, page));
            stay(&over);
        }
    });
    wait_for(&ready, 1);
    thread::spawn({
        let over = Arc::clone(&over);
        move || {
            allow_listed(&KICK);
            for _ in 0..100 {
                threads.kick(VcpuId(0));
            }
            stay(&over);
        }
    });
    wait_for(&over, 2);
}

/// Runs until the kicker is done.
fn wait_while_running(over: &AtomicUsize, mut run: impl FnMut()) {
    while over.load(Ordering::SeqCst) == 0 {
        run();
        thread::yield_now();
    }
}

/// The tests above see each call: without it in the list, the filter ends the process.
#[test]
fn a_list_without_one_of_its_calls_is_not_enough() {
    let ends = |test: &str, without: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", test]).env(WITHOUT, without);
        let status = child.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.unwrap()
    };
    for test in ["the_kick_of_kvm", "run_control"] {
        assert!(ends(test, "none").success(), "{test}");
    }
    for list in [KICK, CONTROLLER, VCPU] {
        for (name, _) in list.calls {
            let without = format!("{}:{name}", list.name);
            let is_missed = |test: &&str| ends(test, &without).signal() == Some(libc::SIGSYS);
            let missed = list.tests.iter().any(is_missed);
            assert!(missed || NOT_ALWAYS.contains(name), "{without}");
        }
    }
}

/// A client that steps, sends a packet in pieces, lets the guest run and goes.
fn client(mut stream: impl Read + Write) {
    stream.write_all(&frame(b"vCont;s:1")).unwrap();
    expect(&mut stream, b"T05");
    for byte in frame(b"qC") {
        stream.write_all(&[byte]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    expect(&mut stream, b"QC1");
    stream.write_all(&frame(b"vCont;c")).unwrap();
}

fn expect(stream: &mut impl Read, what: &[u8]) {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.windows(what.len()).any(|window| window == what) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{seen:?}");
        seen.push(byte[0]);
    }
}

/// What the simulated machine's own run control needs.
const SIMULATED: &[libc::c_long] = &[libc::SYS_read, libc::SYS_write];
const SERVE: &[libc::c_long] = &[
    libc::SYS_fcntl,
    libc::SYS_getsockopt,
    libc::SYS_poll,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_close,
];

#[test]
fn the_server_on_a_plain_thread() {
    let session = || {
        let machine = machine(1, &[code::INC_RAX, &[0xeb, 0xfb]]);
        Session::new(Simulated::new(machine), SessionConfig::new(plan(&[])))
    };
    let (near, far) = UnixStream::pair().unwrap();
    let mut unix = session();
    let server = thread::spawn(move || {
        allow_only(&[RUNTIME, SIMULATED, SERVE]);
        serve(&mut unix, far).unwrap();
        // Its runner ends with it, on its own thread.
        std::mem::forget(unix);
    });
    client(near);
    server.join().unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nodelay(true).unwrap();
    let (far, _) = listener.accept().unwrap();
    let mut tcp = session();
    let server = thread::spawn(move || {
        allow_only(&[RUNTIME, SIMULATED, SERVE, &[libc::SYS_setsockopt]]);
        serve(&mut tcp, far).unwrap();
        std::mem::forget(tcp);
    });
    client(near);
    server.join().unwrap();
}

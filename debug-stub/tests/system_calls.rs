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
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use common::simulated::Simulated;
use common::{frame, machine, plan};
use debug_stub::run_control::{AllStop, Kick, KickSignal, Order, VcpuThreads};
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
/// The standard library asserts with it, in debug builds, that what it closes is open.
const DEBUG: &[libc::c_long] = &[libc::SYS_fcntl];

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

#[test]
fn run_control() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    let runner = thread::spawn(move || {
        allow_only(&[
            RUNTIME,
            DEBUG,
            &[libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_close],
        ]);
        while let Order::Run(order, _) = vcpu.wait_for_order() {
            let reason = if order == VcpuOrder::Continue {
                while !vcpu.must_stop() {
                    thread::yield_now();
                }
                StopReason::Interrupted
            } else {
                StopReason::Step
            };
            vcpu.report(reason);
        }
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            allow_only(&[RUNTIME, &[libc::SYS_recvfrom, libc::SYS_sendto]]);
            for _ in 0..100 {
                all.resume(&one(VcpuOrder::Step(StepOrder::default())))
                    .unwrap();
                assert_eq!(all.wait_for_stops(None).unwrap().len(), 1);
                all.release().unwrap();
                all.interrupt();
                assert_eq!(all.wait_for_stops(None), Some(vec![]));
                assert_eq!(all.take_stops(), None);
            }
            all.remove(VcpuId(0)).unwrap();
        });
    });
    runner.join().unwrap();
}

#[test]
fn the_kick_of_kvm() {
    let threads = Arc::new(VcpuThreads::new(KickSignal::usual().unwrap()));
    let page: File = tempfile::tempfile().unwrap();
    page.set_len(4096).unwrap();
    let (entered, ready) = channel();
    let (done, over) = channel::<()>();
    let runner = thread::spawn({
        let threads = Arc::clone(&threads);
        move || {
            allow_only(&[RUNTIME, &[libc::SYS_rt_sigreturn, libc::SYS_close], DEBUG]);
            let guard = threads.enter(VcpuId(0), &page).unwrap();
            entered.send(()).unwrap();
            while over.try_recv().is_err() {
                let _ = guard.may_run(|| false);
                thread::yield_now();
            }
        }
    });
    ready.recv().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            allow_only(&[RUNTIME, &[libc::SYS_getpid, libc::SYS_tgkill]]);
            for _ in 0..100 {
                threads.kick(VcpuId(0));
            }
        });
    });
    done.send(()).unwrap();
    runner.join().unwrap();
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

//! What the session itself costs: one `stepi` exchange, without a socket and without a vCPU.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(
    clippy::indexing_slicing,
    reason = "a bench stops where what must hold does not"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use common::{frame, machine, plan};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use debug_stub::x86_64::simulated::{SimulatedMachine as Machine, code};
use debug_stub::{Action, GuestState, Session, SessionConfig, Stop, StopReason, VcpuId};

fn session() -> Session<Machine> {
    let machine = machine(1, &[code::SPIN]);
    let mut session = Session::new(machine, SessionConfig::new(plan(&[])));
    session.attach(GuestState::Stopped);
    session.receive(&frame(b"QStartNoAckMode"));
    session.consume_output(usize::MAX);
    session
}

fn benches(criterion: &mut Criterion) {
    let mut stepping = session();
    let packet = frame(b"vCont;s:1");
    criterion.bench_function("stepi: bytes, action, stop, bytes", |bencher| {
        bencher.iter(|| {
            stepping.receive(&packet);
            let action = stepping.next_action();
            assert!(matches!(action, Some(Action::Resume(_))));
            stepping.stopped(vec![Stop {
                vcpu: VcpuId(0),
                reason: StopReason::Step,
            }]);
            black_box(stepping.output());
            stepping.consume_output(usize::MAX);
        });
    });

    // `*(char*)0x9000 == 1`, which is false. The client has no part in it: hit, evaluated, stepped off, continued.
    let mut passing = session();
    passing.receive(&frame(b"Z0,8000,1;X8,2390001722011327"));
    passing.receive(&frame(b"vCont;c"));
    passing.consume_output(usize::MAX);
    let resumed = |session: &mut Session<Machine>| {
        let action = session.next_action();
        assert!(matches!(action, Some(Action::Resume(_))));
    };
    resumed(&mut passing);
    criterion.bench_function("a false hit: stop, action, stop, action", |bencher| {
        bencher.iter(|| {
            passing.stopped(vec![Stop {
                vcpu: VcpuId(0),
                reason: StopReason::SoftwareBreakpoint,
            }]);
            resumed(&mut passing);
            passing.stopped(vec![Stop {
                vcpu: VcpuId(0),
                reason: StopReason::Step,
            }]);
            // The simulated vCPU has not moved: it is before the instruction again.
            resumed(&mut passing);
        });
    });
    assert!(passing.output().is_empty());

    let mut reading = session();
    for (name, packet) in [("m", "m0,3fff"), ("x", "x0,3fff")] {
        let packet = frame(packet.as_bytes());
        let mut group = criterion.benchmark_group("memory read");
        group.throughput(Throughput::Bytes(0x3fff));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                reading.receive(&packet);
                black_box(reading.output());
                reading.consume_output(usize::MAX);
            });
        });
        group.finish();
    }
}

criterion_group!(session_benches, benches);
criterion_main!(session_benches);

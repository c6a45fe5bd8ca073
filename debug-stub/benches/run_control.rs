//! What run control costs a step: over the vCPU's thread and back, and on the controller's own thread.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench stops where something is missing"
)]

use std::thread;

use criterion::{Criterion, criterion_group, criterion_main};
use debug_stub::run_control::{AllStop, Order};
use debug_stub::{ResumePlan, StepOrder, StopReason, VcpuId, VcpuOrder};
use nix::poll::{self, PollFd, PollFlags, PollTimeout};

fn step() -> ResumePlan {
    ResumePlan {
        vcpus: vec![VcpuOrder::Step(StepOrder::default())],
        ..ResumePlan::default()
    }
}

fn run_control(criterion: &mut Criterion) {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut vcpu = all.add(VcpuId(0)).unwrap();
    let runner = thread::spawn(move || {
        while let Order::Run(..) = vcpu.wait_for_order() {
            vcpu.report(StopReason::Step);
        }
    });
    let plan = step();
    criterion.bench_function("step on the vCPU's thread, and back", |bencher| {
        bencher.iter(|| {
            all.resume(&plan).unwrap();
            // As an event loop does.
            let mut poll = [PollFd::new(all.stopped_fd(), PollFlags::POLLIN)];
            poll::poll(&mut poll, PollTimeout::NONE).unwrap();
            all.take_stops().unwrap()
        });
    });
    criterion.bench_function("step on the controller's thread", |bencher| {
        bencher.iter(|| {
            let run = |_: &_, _: &_, _: &dyn Fn() -> bool| Some(StopReason::Step);
            all.resume_here(&plan, VcpuId(0), run).unwrap().unwrap()
        });
    });
    all.remove(VcpuId(0)).unwrap();
    runner.join().unwrap();
}

criterion_group!(benches, run_control);
criterion_main!(benches);

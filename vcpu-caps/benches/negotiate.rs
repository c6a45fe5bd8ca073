//! What the pure parts cost: they are on the path of a start and of each debugger stop.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use vcpu_caps::{
    Capability, DebugIntent, Finding, GuestDebug, HostFacts, HostReport, HwBreakpoint, Owner,
    Profile, VcpuControl, VcpuId, negotiate,
};

fn report() -> HostReport {
    let mut report = HostReport::new("bench", HostFacts::default());
    for &capability in Capability::ALL {
        report.record(capability, Finding::verified("seen"));
    }
    report.record(Capability::BptExit, Finding::refuted("not seen"));
    report
}

fn pure(c: &mut Criterion) {
    let report = report();
    let profile = Profile::debugger();
    c.bench_function("negotiate", |b| {
        b.iter(|| negotiate(black_box(&report), black_box(&profile)));
    });

    let intent = DebugIntent {
        single_step: true,
        mask_hwintr: true,
        hardware: &[HwBreakpoint::execute(0x1000); 4],
        ..DebugIntent::default()
    };
    c.bench_function("compose", |b| {
        b.iter(|| GuestDebug::compose(black_box(&intent)));
    });

    let plan = negotiate(&report, &profile).unwrap_or_else(|refusal| refusal.into_plan());
    let mut vcpu = VcpuControl::new(VcpuId(0), &plan);
    let debugger = Owner::new("debugger");
    c.bench_function("hold, step, compose, release", |b| {
        b.iter(|| -> Result<(), vcpu_caps::ControlError> {
            vcpu.hold(debugger, Capability::MaskHwintr)?;
            vcpu.step()?;
            if let Some(debug) = vcpu.pending() {
                vcpu.applied(black_box(&debug));
            }
            vcpu.release(debugger, Capability::MaskHwintr)?;
            Ok(())
        });
    });
}

criterion_group!(benches, pure);
criterion_main!(benches);

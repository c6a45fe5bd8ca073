//! What probing and verifying this host costs, and the one ioctl of the step path.

use criterion::{Criterion, criterion_group, criterion_main};
use vcpu_caps::kvm::{self, GuestDebugControl};
use vcpu_caps::{DebugIntent, GuestDebug, Rearm};

fn host(c: &mut Criterion) {
    let kvm = match kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("{error}");
            return;
        }
    };
    c.bench_function("probe", |b| b.iter(|| kvm::probe(&kvm)));

    let mut group = c.benchmark_group("verify");
    group.sample_size(20);
    let mut report = kvm::probe(&kvm);
    group.bench_function("all", |b| b.iter(|| kvm::verify(&kvm, &mut report)));
    group.finish();

    let vm = kvm.create_vm().and_then(|vm| Ok((vm.create_vcpu(0)?, vm)));
    let Ok((vcpu, _vm)) = vm else {
        eprintln!("no VM can be made");
        return;
    };
    let step = GuestDebug::compose(&DebugIntent {
        single_step: true,
        mask_hwintr: true,
        ..DebugIntent::default()
    });
    let mut control = GuestDebugControl::new();
    c.bench_function("apply, armed again", |b| {
        b.iter(|| control.apply(&vcpu, &step, Rearm::Always));
    });
    c.bench_function("apply, unchanged", |b| {
        b.iter(|| control.apply(&vcpu, &step, Rearm::IfChanged));
    });
}

criterion_group!(benches, host);
criterion_main!(benches);

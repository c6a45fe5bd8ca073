//! What probing and verifying this host costs, and the one ioctl of the step path.

use criterion::{Criterion, criterion_group, criterion_main};
use vcpu_caps::{Capability, Profile, VcpuControl, VcpuId, kvm, negotiate};

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
    let Ok((fd, _vm)) = vm else {
        eprintln!("no VM can be made");
        return;
    };
    let plan = negotiate(&report, &Profile::debugger()).unwrap_or_else(|r| r.into_plan());
    let mut vcpu = VcpuControl::new(VcpuId(0), &plan);
    if let Err(error) = vcpu.set(Capability::MaskHwintr, true) {
        eprintln!("without the mask: {error}");
    }
    c.bench_function("apply, armed again", |b| {
        b.iter(|| {
            let armed = vcpu.step();
            (armed, kvm::apply_pending(&mut vcpu, &fd))
        });
    });
    c.bench_function("apply, unchanged", |b| {
        b.iter(|| kvm::apply_pending(&mut vcpu, &fd));
    });
}

criterion_group!(benches, host);
criterion_main!(benches);

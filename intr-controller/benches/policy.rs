//! The cost of one event through the policy: arrive, decide, injected.
//!
//! There is no allocation on this path.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use intr_controller::{Decision, Event, InjectionPolicy, ProcessorPriority, Readiness, Vector};

/// One event's way in.
fn cycle(policy: &mut InjectionPolicy, event: Event) {
    let _ = policy.arrive(event);
    let decision = policy.decide(black_box(&Readiness::OPEN), ProcessorPriority::ZERO);
    if let Decision::Inject(event) = decision {
        let _ = black_box(policy.injected(event));
    }
}

fn benches(criterion: &mut Criterion) {
    let [low, high] = [Vector::new(0x31), Vector::new(0xec)];
    let (Ok(low), Ok(high)) = (low, high) else {
        return;
    };
    let (low, high) = (Event::Fixed(low), Event::Fixed(high));

    let mut group = criterion.benchmark_group("arrive_decide_injected");
    group.bench_function("fixed", |bencher| {
        let mut policy = InjectionPolicy::new();
        bencher.iter(|| cycle(&mut policy, black_box(high)));
    });
    group.bench_function("fixed_above_a_pending_one", |bencher| {
        let mut policy = InjectionPolicy::new();
        let _ = policy.arrive(low);
        bencher.iter(|| cycle(&mut policy, black_box(high)));
    });
    group.bench_function("nmi", |bencher| {
        let mut policy = InjectionPolicy::new();
        bencher.iter(|| cycle(&mut policy, black_box(Event::Nmi)));
    });
    group.finish();

    criterion.bench_function("decide/masked", |bencher| {
        let mut policy = InjectionPolicy::new();
        let _ = policy.arrive(high);
        bencher.iter(|| black_box(&policy).decide(&Readiness::MASKED, ProcessorPriority::ZERO));
    });
}

criterion_group!(policy, benches);
criterion_main!(policy);

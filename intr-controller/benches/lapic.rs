//! The cost of the local APIC's paths. None of them allocates: the two broadcasts deliver to APICs
//! that exist, and the table was made before.

use std::hint::black_box;
use std::num::NonZeroU64;

use criterion::{Criterion, criterion_group, criterion_main};
use intr_controller::{
    Decision, DeliveryMode, Effect, GuestTime, InterruptMessage, Lapic, LapicConfig, Lapics,
    Readiness, TriggerMode, VcpuIndex,
};

const NOW: GuestTime = GuestTime::from_ns(1_000_000);
const X2APIC_MODE: u64 = 0xfee0_0c00;

fn config(apic_id: u32) -> LapicConfig {
    LapicConfig::new(
        apic_id,
        apic_id == 0,
        NonZeroU64::MIN.saturating_add(2_399_999_999),
    )
}

fn lapic(x2apic: bool) -> Lapic {
    let mut lapic = Lapic::new(config(0));
    let _ = lapic.mmio_write(0xf0, &0x1ff_u32.to_le_bytes(), GuestTime::ZERO);
    if x2apic {
        let base = lapic.apic_base();
        let _ = lapic.write_msr(0x1b, base | X2APIC_MODE, GuestTime::ZERO);
    }
    lapic
}

fn message(vector: u8, trigger_mode: TriggerMode) -> InterruptMessage {
    InterruptMessage {
        delivery_mode: DeliveryMode::Fixed,
        trigger_mode,
        level: true,
        vector,
        ..InterruptMessage::default()
    }
}

/// One interrupt's whole life: accept, decide, injected, EOI through the register.
fn cycle(lapic: &mut Lapic, message: &InterruptMessage, x2apic: bool) -> Effect {
    let _ = black_box(lapic.accept(message));
    if let Decision::Inject(event) = lapic.decide(black_box(&Readiness::OPEN)) {
        let _ = black_box(lapic.injected(event));
    }
    if x2apic {
        lapic.write_msr(0x80b, 0, NOW).unwrap_or(Effect::None)
    } else {
        lapic.mmio_write(0xb0, &[0; 4], NOW)
    }
}

fn cycles(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("accept_decide_inject_eoi");
    for (name, x2apic, trigger) in [
        ("xapic_edge", false, TriggerMode::Edge),
        ("x2apic_edge", true, TriggerMode::Edge),
        ("x2apic_level", true, TriggerMode::Level),
    ] {
        group.bench_function(name, |bencher| {
            let mut lapic = lapic(x2apic);
            let message = message(0xec, trigger);
            bencher.iter(|| cycle(&mut lapic, black_box(&message), x2apic));
        });
    }
    group.bench_function("x2apic_edge_nested", |bencher| {
        let mut lapic = lapic(true);
        let _ = lapic.accept(&message(0x31, TriggerMode::Edge));
        if let Decision::Inject(event) = lapic.decide(&Readiness::OPEN) {
            let _ = lapic.injected(event);
        }
        let message = message(0xec, TriggerMode::Edge);
        bencher.iter(|| cycle(&mut lapic, black_box(&message), true));
    });
    group.finish();

    criterion.bench_function("decide/masked", |bencher| {
        let mut lapic = lapic(true);
        let _ = lapic.accept(&message(0xec, TriggerMode::Edge));
        bencher.iter(|| black_box(&lapic).decide(&Readiness::MASKED));
    });
}

fn accesses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("access");
    group.bench_function("mmio_read_tpr", |bencher| {
        let mut lapic = lapic(false);
        bencher.iter(|| {
            let mut data = [0; 4];
            lapic.mmio_read(black_box(0x80), &mut data, NOW);
            data
        });
    });
    group.bench_function("mmio_write_tpr", |bencher| {
        let mut lapic = lapic(false);
        bencher.iter(|| lapic.mmio_write(black_box(0x80), &[0x20, 0, 0, 0], NOW));
    });
    group.bench_function("mmio_write_icr", |bencher| {
        let mut lapic = lapic(false);
        bencher.iter(|| lapic.mmio_write(black_box(0x300), &[0x41, 0x40, 0, 0], NOW));
    });
    group.bench_function("rdmsr_ppr", |bencher| {
        let mut lapic = lapic(true);
        bencher.iter(|| lapic.read_msr(black_box(0x80a), NOW));
    });
    group.bench_function("wrmsr_tpr", |bencher| {
        let mut lapic = lapic(true);
        bencher.iter(|| lapic.write_msr(black_box(0x808), 0x20, NOW));
    });
    group.bench_function("wrmsr_icr", |bencher| {
        let mut lapic = lapic(true);
        bencher.iter(|| lapic.write_msr(black_box(0x830), 0x5_0000_4041, NOW));
    });
    group.bench_function("wrmsr_deadline_and_next", |bencher| {
        let mut lapic = lapic(true);
        let _ = lapic.write_msr(0x832, 0x4_00ec, NOW);
        bencher.iter(|| {
            let _ = lapic.write_msr(0x6e0, black_box(5_000_000_000), NOW);
            lapic.next_deadline(NOW)
        });
    });
    group.bench_function("current_count", |bencher| {
        let mut lapic = lapic(true);
        let _ = lapic.write_msr(0x832, 0x2_00ec, GuestTime::ZERO);
        let _ = lapic.write_msr(0x838, 0x1000_0000, GuestTime::ZERO);
        bencher.iter(|| lapic.read_msr(black_box(0x839), NOW));
    });
    group.finish();
}

fn machine(count: u32) -> Option<Lapics> {
    let mut lapics = Lapics::new((0..count).map(config)).ok()?;
    for vcpu in (0..).take(usize::try_from(count).ok()?).map(VcpuIndex) {
        let lapic = lapics.get_mut(vcpu)?;
        let _ = lapic.mmio_write(0xf0, &0x1ff_u32.to_le_bytes(), NOW);
        let base = lapic.apic_base();
        let _ = lapic.write_msr(0x1b, base | X2APIC_MODE, NOW);
        // Runs, rather than wait for it.
        let _ = lapic.accept(&InterruptMessage {
            delivery_mode: DeliveryMode::StartUp,
            ..InterruptMessage::default()
        });
        let _ = lapic.take_startup();
        lapics.refresh(vcpu).ok()?;
    }
    Some(lapics)
}

fn fabric(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fabric");
    for (name, count, destination) in [
        ("unicast_of_64", 64, 40),
        ("broadcast_to_64", 64, InterruptMessage::BROADCAST),
        ("unicast_of_1024", 1024, 1000),
    ] {
        let Some(mut lapics) = machine(count) else {
            return;
        };
        let message = InterruptMessage {
            destination,
            ..message(0xec, TriggerMode::Edge)
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                lapics.deliver(black_box(&message), |vcpu, acceptance| {
                    let _ = black_box((vcpu, acceptance)).1;
                })
            });
        });
    }
    for (name, command) in [
        ("ipi_to_1_of_64", 40 << 32 | 0x4041),
        ("logical_ipi_to_1_of_64", 0x0002_0100 << 32 | 0x4841),
        ("logical_ipi_to_2_of_64", 0x0002_8100 << 32 | 0x4841),
        ("ipi_to_64", 0x8_4041),
    ] {
        let Some(mut lapics) = machine(64) else {
            return;
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let lapic = lapics.get_mut(VcpuIndex(0))?;
                let effect = lapic.write_msr(black_box(0x830), command, NOW).ok()?;
                lapics.apply(VcpuIndex(0), effect, |_, _| ()).ok()
            });
        });
    }
    if let Some(mut lapics) = machine(64) {
        let all: Vec<_> = (0..64).map(VcpuIndex).collect();
        group.bench_function("ipi_to_64_each_takes_and_ends_it", |bencher| {
            bencher.iter(|| {
                let lapic = lapics.get_mut(VcpuIndex(0))?;
                let effect = lapic.write_msr(black_box(0x830), 0x8_4041, NOW).ok()?;
                lapics.apply(VcpuIndex(0), effect, |_, _| ()).ok()?;
                for vcpu in &all {
                    let lapic = lapics.get_mut(*vcpu)?;
                    if let Decision::Inject(event) = lapic.decide(black_box(&Readiness::OPEN)) {
                        let _ = black_box(lapic.injected(event));
                    }
                    let _ = black_box(lapic.write_msr(0x80b, 0, NOW));
                }
                Some(())
            });
        });
    }
    if let Some(lapics) = machine(64) {
        let message = InterruptMessage {
            destination: InterruptMessage::BROADCAST,
            delivery_mode: DeliveryMode::LowestPriority,
            ..message(0xec, TriggerMode::Edge)
        };
        group.bench_function("lowest_priority_of_64", |bencher| {
            bencher.iter(|| {
                lapics.destinations().route(black_box(&message), |vcpu| {
                    black_box(vcpu);
                })
            });
        });
    }
    group.finish();
}

fn state(criterion: &mut Criterion) {
    let mut lapic = lapic(true);
    let _ = lapic.accept(&message(0xec, TriggerMode::Level));
    criterion.bench_function("save", |bencher| bencher.iter(|| black_box(&lapic).save()));
    let state = lapic.save();
    criterion.bench_function("restore", |bencher| {
        bencher.iter(|| lapic.restore(black_box(&state)));
    });
}

criterion_group!(lapic_benches, cycles, accesses, fabric, state);
criterion_main!(lapic_benches);

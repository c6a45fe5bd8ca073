//! What a transparent step costs on top of the hypervisor's own: plan and settle, no KVM.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use debug_stub::GuestVirtAddr;
use debug_stub::x86_64::simulated::{ALIAS, ALIASED, Habits, Ram, SimulatedVcpu, TABLES};
use debug_stub::x86_64::{RegisterFile, StepPlan, translate};

const CODE: u64 = 0x8000;
const STACK: u64 = 0x7000;

/// 64-bit mode at privilege level 0 with four levels of tables.
fn guest(code: &[u8]) -> (RegisterFile, Ram) {
    let memory = Ram::new(0x2_0000);
    memory.put(CODE, code);
    let cr3 = memory.map_one_to_one(TABLES);
    memory.map_alias(TABLES, ALIASED);
    let vcpu = SimulatedVcpu::long_mode(Habits::AMD, cr3, 0, CODE, STACK);
    (vcpu.registers().clone(), memory)
}

fn benches(c: &mut Criterion) {
    for (name, code, pushed) in [
        ("add", &[0x48, 0x01, 0xd8][..], 0),
        ("pushfq", &[0x9c], 8),
        ("mov_ss", &[0x8e, 0xd0, 0x90], 0),
    ] {
        let (before, memory) = guest(code);
        let mut after = before.clone();
        after.core.rip = StepPlan::new(&before, &memory).next_rip();
        after.core.rsp -= pushed;
        c.bench_function(&format!("step_plan/{name}"), |b| {
            b.iter(|| {
                let plan = StepPlan::new(black_box(&before), &memory);
                plan.settle(black_box(&after), &memory)
            });
        });
    }
    let (file, memory) = guest(&[]);
    c.bench_function("translate/4_level", |b| {
        b.iter(|| {
            translate(
                &file.special,
                &memory,
                black_box(GuestVirtAddr(ALIAS + 0x123)),
            )
        });
    });
}

criterion_group!(step_plan, benches);
criterion_main!(step_plan);

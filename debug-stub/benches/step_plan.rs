//! What a transparent step costs on top of the hypervisor's own: plan and settle, no KVM.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a bench stops where its own guest is wrong"
)]

use std::cell::RefCell;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use debug_stub::x86_64::{RegisterFile, Segment, StepPlan, translate};
use debug_stub::{GuestMemory, GuestPhysAddr, GuestVirtAddr};

struct Ram(RefCell<Vec<u8>>);

impl Ram {
    fn put(&self, at: usize, data: &[u8]) {
        self.0.borrow_mut()[at..at + data.len()].copy_from_slice(data);
    }
}

impl GuestMemory for Ram {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        let bytes = self.0.borrow();
        let from = usize::try_from(address.0).map_or(&[][..], |at| bytes.get(at..).unwrap_or(&[]));
        let length = from.len().min(data.len());
        data[..length].copy_from_slice(&from[..length]);
        length
    }

    fn write_memory(&self, _: GuestPhysAddr, _: &[u8]) -> usize {
        0
    }
}

/// 64-bit mode at privilege level 0 with four levels of tables; code at 0x1000, stack at 0x8000.
fn guest(code: &[u8]) -> (RegisterFile, Ram) {
    let memory = Ram(RefCell::new(vec![0; 0x2_0000]));
    memory.put(0x1000, code);
    for (at, entry) in [
        (0x1_0000, 0x1_1007u64),
        (0x1_1000, 0x1_2007),
        (0x1_2000, 0x1_3007),
    ] {
        memory.put(at, &entry.to_le_bytes());
    }
    for page in 0..32u64 {
        let at = 0x1_3000 + usize::try_from(page).unwrap() * 8;
        memory.put(at, &(page << 12 | 7).to_le_bytes());
    }
    let flat = |selector, kind| Segment {
        selector,
        kind,
        limit: 0xffff_ffff,
        present: true,
        code_or_data: true,
        granularity: true,
        ..Segment::default()
    };
    let mut file = RegisterFile::default();
    file.special.cr0 = 0x8000_0011;
    file.special.cr3 = 0x1_0000;
    file.special.cr4 = 0x20;
    file.special.efer = 0x500;
    file.special.cs = Segment {
        long: true,
        ..flat(8, 0xb)
    };
    file.special.ss = flat(0x10, 3);
    file.core.rip = 0x1000;
    file.core.rsp = 0x8000;
    file.core.rflags = 0x202;
    (file, memory)
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
        b.iter(|| translate(&file.special, &memory, black_box(GuestVirtAddr(0x8123))));
    });
}

criterion_group!(step_plan, benches);
criterion_main!(step_plan);

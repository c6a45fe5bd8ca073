//! The cost of an interrupt's way through the chips in front of the local APICs: a pin of the
//! IOAPIC to a message and through a local APIC to its EOI, a redirection-table access, the 8259A
//! pair's rise, acknowledge and EOI, a GSI's shared line, a decoded MSI, and the 8254 asked what it did.
//!
//! Nothing here allocates: messages are values, and the chips are arrays.

use std::hint::black_box;
use std::num::NonZeroU64;

use criterion::{Criterion, criterion_group, criterion_main};
use intr_controller::ioapic::{IoApic, IoApicPin, IoApicVersion};
use intr_controller::pic::{Pic, PicPin};
use intr_controller::pit::Pit;
use intr_controller::routing::{GsiRouter, SourceId};
use intr_controller::{
    Decision, DestinationFormat, Gsi, GuestTime, LapicConfig, Lapics, MsiMessage, Readiness,
    VcpuIndex,
};

/// Writes an entry of the redirection table.
fn set_entry(ioapic: &mut IoApic, pin: u8, low: u32) {
    let index = 0x10 + 2 * pin;
    let _ = ioapic.write_register(0x00, index.into(), |_| {});
    let _ = ioapic.write_register(0x10, low, |_| {});
}

/// The local APICs behind it, of which the first is enabled.
fn lapics() -> Option<Lapics> {
    let tsc_hz = NonZeroU64::new(2_400_000_000)?;
    let configs = (0..64).map(|id| LapicConfig::new(id, id == 0, tsc_hz));
    let mut lapics = Lapics::new(configs).ok()?;
    let lapic = lapics.get_mut(VcpuIndex(0))?;
    let _ = lapic.mmio_write(0xf0, &0x1ff_u32.to_le_bytes(), GuestTime::ZERO);
    lapics.refresh(VcpuIndex(0)).ok()?;
    Some(lapics)
}

fn ioapic(criterion: &mut Criterion) {
    let Ok(pin) = IoApicPin::new(10) else { return };
    let mut group = criterion.benchmark_group("ioapic");
    group.bench_function("edge_up_down", |bencher| {
        let mut ioapic = IoApic::new(IoApicVersion::V20, DestinationFormat::Extended);
        set_entry(&mut ioapic, 10, 0x31);
        bencher.iter(|| {
            let message = ioapic.set_line(black_box(pin), true);
            let _ = ioapic.set_line(black_box(pin), false);
            message
        });
    });
    group.bench_function("edge_to_eoi_at_1_of_64", |bencher| {
        let mut ioapic = IoApic::new(IoApicVersion::V20, DestinationFormat::Extended);
        set_entry(&mut ioapic, 10, 0x31);
        let Some(mut lapics) = lapics() else { return };
        bencher.iter(|| {
            if let Some(message) = &ioapic.set_line(black_box(pin), true) {
                lapics.deliver(message, |_, _| ());
            }
            let _ = ioapic.set_line(black_box(pin), false);
            let lapic = lapics.get_mut(VcpuIndex(0))?;
            if let Decision::Inject(event) = lapic.decide(black_box(&Readiness::OPEN)) {
                let _ = black_box(lapic.injected(event));
            }
            Some(lapic.mmio_write(black_box(0xb0), &[0; 4], GuestTime::ZERO))
        });
    });
    group.bench_function("level_up_down_eoi", |bencher| {
        let mut ioapic = IoApic::new(IoApicVersion::V20, DestinationFormat::Extended);
        set_entry(&mut ioapic, 10, 0x8031);
        bencher.iter(|| {
            let message = ioapic.set_line(black_box(pin), true);
            let _ = ioapic.set_line(black_box(pin), false);
            let _ = ioapic.eoi(black_box(0x31), |_| {});
            message
        });
    });
    group.bench_function("entry_read", |bencher| {
        let mut ioapic = IoApic::default();
        let mut data = [0; 4];
        bencher.iter(|| {
            let _ = ioapic.write(black_box(0x00), &[0x24, 0, 0, 0], |_| {});
            ioapic.read(black_box(0x10), &mut data);
            data
        });
    });
    group.bench_function("save_restore", |bencher| {
        let mut ioapic = IoApic::default();
        bencher.iter(|| {
            let state = black_box(ioapic.save());
            ioapic.restore(&state)
        });
    });
    group.finish();
}

fn pic(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pic");
    for (name, number) in [("master", 4), ("slave", 12)] {
        let Ok(pin) = PicPin::new(number) else { return };
        group.bench_function(format!("{name}_rise_ack_eoi"), |bencher| {
            let mut pic = Pic::new();
            bencher.iter(|| {
                pic.set_line(black_box(pin), true);
                let acknowledge = pic.acknowledge();
                pic.set_line(black_box(pin), false);
                if number >= 8 {
                    let _ = pic.write(black_box(0xa0), &[0x20]);
                }
                let _ = pic.write(black_box(0x20), &[0x20]);
                acknowledge
            });
        });
    }
    group.finish();
}

fn routing(criterion: &mut Criterion) {
    let format = DestinationFormat::Extended;
    let Ok(mut router) = GsiRouter::new(&GsiRouter::pc_entries(), format) else {
        return;
    };
    let Ok(source) = SourceId::new(3) else { return };
    criterion.bench_function("gsi/up_down", |bencher| {
        bencher.iter(|| {
            let rose = router.set_line(black_box(Gsi(10)), source, true);
            let fell = router.set_line(black_box(Gsi(10)), source, false);
            (rose, fell)
        });
    });
    let msi = MsiMessage {
        address: 0xfee0_3000,
        data: 0x41,
    };
    criterion.bench_function("msi/decode", |bencher| {
        bencher.iter(|| black_box(msi).decode(format));
    });
}

fn pit(criterion: &mut Criterion) {
    let programmed = || {
        let mut pit = Pit::new();
        pit.write(GuestTime::ZERO, 0x43, &[0x34]);
        pit.write(GuestTime::ZERO, 0x40, &[0xa9]);
        pit.write(GuestTime::ZERO, 0x40, &[0x04]);
        pit
    };
    let mut group = criterion.benchmark_group("pit");
    for (name, step) in [("a_millisecond", 1_000_000), ("an_hour", 3_600_000_000_000)] {
        group.bench_function(format!("irq0_and_deadline_after_{name}"), |bencher| {
            let mut pit = programmed();
            let mut now = GuestTime::ZERO;
            bencher.iter(|| {
                now = now.saturating_add_ns(black_box(step));
                if now == GuestTime::MAX {
                    pit = programmed();
                    now = GuestTime::ZERO;
                }
                (pit.irq0(now), pit.next_deadline())
            });
        });
    }
    group.finish();
}

criterion_group!(chips, ioapic, pic, routing, pit);
criterion_main!(chips);

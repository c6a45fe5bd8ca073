//! Any access of a guest to its local APIC, and any saved state: no panic, no unbounded work, and
//! what is saved is taken back as it is.
//!
//! Input, byte by byte: configuration flags; then operations, each a byte that selects and its
//! operands.
#![no_main]

use std::num::NonZeroU64;

use fuzz::Choices;
use intr_controller::{
    Decision, DeliveryMode, GuestTime, InterruptMessage, Lapic, LapicConfig, Readiness, TriggerMode,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Choices::new(data);
    let flags = input.byte();
    let mut config = LapicConfig::new(u32::from(flags) << 4, flags & 1 != 0, NonZeroU64::MIN);
    config.virtual_wire = flags & 2 != 0;
    config.tsc_deadline = flags & 4 == 0;
    config.cmci = flags & 8 != 0;
    config.eoi_suppression = flags & 16 == 0;
    let mut lapic = Lapic::new(config);
    let mut now = 0u64;
    while !input.is_empty() {
        let time = GuestTime::from_ns(now);
        match input.byte() % 12 {
            0 => {
                let offset = u16::from(input.byte()) << 4 | u16::from(input.byte());
                let mut data = [0; 16];
                lapic.mmio_read(offset, &mut data[..usize::from(input.byte() % 17)], time);
            }
            1 | 2 => {
                let offset = u16::from(input.byte()) << 4;
                let value = input.quad().to_le_bytes();
                let _ = lapic.mmio_write(offset, &value[..4], time);
            }
            3 => {
                let _ = lapic.read_msr(0x800 | u32::from(input.byte()), time);
            }
            4 | 5 => {
                let msr = 0x800 | u32::from(input.byte());
                let _ = lapic.write_msr(msr, input.quad(), time);
            }
            6 => {
                let base = 0xfee0_0000 | u64::from(input.byte()) << 4;
                let _ = lapic.write_msr(0x1b, base, time);
                let _ = lapic.write_msr(0x6e0, input.quad(), time);
            }
            7 => {
                let mode = input.byte();
                let _ = lapic.accept(&InterruptMessage {
                    delivery_mode: DeliveryMode::from_bits(mode).unwrap_or_default(),
                    trigger_mode: TriggerMode::from_bit(mode & 0x10 != 0),
                    level: mode & 0x20 != 0,
                    vector: input.byte(),
                    ..InterruptMessage::default()
                });
            }
            8 => {
                if let Decision::Inject(event) = lapic.decide(&Readiness::OPEN) {
                    lapic.injected(event).expect("what was decided");
                }
            }
            9 => {
                let levels = input.byte();
                let _ = lapic.set_lint0(levels & 1 != 0);
                let _ = lapic.set_lint1(levels & 2 != 0);
                let _ = lapic.take_startup();
            }
            10 => {
                now = now.saturating_add(input.quad());
                lapic.advance(GuestTime::from_ns(now));
                let _ = lapic.next_deadline(GuestTime::from_ns(now));
            }
            _ => {
                let mut other = Lapic::new(config);
                let state = lapic.save();
                other.restore(&state).expect("what was saved");
                assert_eq!(other, lapic);
                // And damaged somewhere: refused whole, or as good as any.
                let mut damaged = state;
                let value = input.quad();
                match input.byte() % 8 {
                    0 => damaged.apic_base = value,
                    1 => damaged.lvt[(value >> 32) as usize % 7] = value as u32,
                    2 => damaged.command = value,
                    3 => damaged.timer_expires_ns = Some(value),
                    4 => damaged.spurious = value as u32,
                    5 => damaged.in_service[(value >> 62) as usize] = value,
                    6 => damaged.tsc_deadline = value,
                    _ => damaged.lint = [value & 1 != 0, value & 2 != 0],
                }
                match other.restore(&damaged) {
                    Ok(()) => assert_eq!(other.save(), damaged),
                    Err(_) => assert_eq!(other, lapic),
                }
            }
        }
    }
});

//! One rule, one test. Offsets, MSRs and bits are written out here and not taken from the code
//! under test.

mod base;
mod command;
mod deadline;
mod deadline_model;
mod errors;
mod lint;
mod priority;
mod registers;
mod sequences;
mod startup;
mod state;
mod timer;
mod x2apic;

use core::num::NonZeroU64;

use super::*;
use crate::{
    DeliveryMode, DestinationMode, Event, InterruptMessage, Readiness, TriggerMode, Vector,
};

/// The register offsets (SDM 3A, "Local APIC Register Address Map").
const ID: u16 = 0x20;
const VERSION: u16 = 0x30;
const TPR: u16 = 0x80;
const APR: u16 = 0x90;
const PPR: u16 = 0xa0;
const EOI: u16 = 0xb0;
const RRD: u16 = 0xc0;
const LDR: u16 = 0xd0;
const DFR: u16 = 0xe0;
const SVR: u16 = 0xf0;
const ISR: u16 = 0x100;
const TMR: u16 = 0x180;
const IRR: u16 = 0x200;
const ESR: u16 = 0x280;
const LVT_CMCI: u16 = 0x2f0;
const ICR: u16 = 0x300;
const ICR2: u16 = 0x310;
const LVT_TIMER: u16 = 0x320;
const LVT_THERMAL: u16 = 0x330;
const LVT_PERF: u16 = 0x340;
const LVT_LINT0: u16 = 0x350;
const LVT_LINT1: u16 = 0x360;
const LVT_ERROR: u16 = 0x370;
const TMICT: u16 = 0x380;
const TMCCT: u16 = 0x390;
const TDCR: u16 = 0x3e0;

const MSR_BASE: u32 = 0x1b;
const MSR_DEADLINE: u32 = 0x6e0;

const MASKED: u32 = 0x1_0000;

fn at(ns: u64) -> GuestTime {
    GuestTime::from_ns(ns)
}

fn config() -> LapicConfig {
    LapicConfig::new(3, true, NonZeroU64::new(1_000_000_000).unwrap())
}

fn with(change: impl FnOnce(&mut LapicConfig)) -> Lapic {
    let mut config = config();
    change(&mut config);
    let mut lapic = Lapic::new(config);
    let _ = write(&mut lapic, SVR, 0x1ff);
    lapic
}

/// APIC id 3, bootstrap processor, enabled, xAPIC mode, TSC and timer at 1 GHz.
fn xapic() -> Lapic {
    with(|_| ())
}

/// The same in x2APIC mode.
fn x2apic() -> Lapic {
    let mut lapic = xapic();
    let _ = lapic
        .write_msr(MSR_BASE, 0xfee0_0d00, GuestTime::ZERO)
        .unwrap();
    lapic
}

fn read_at(lapic: &mut Lapic, offset: u16, ns: u64) -> u32 {
    let mut data = [0; 4];
    lapic.mmio_read(offset, &mut data, at(ns));
    u32::from_le_bytes(data)
}

fn read(lapic: &mut Lapic, offset: u16) -> u32 {
    read_at(lapic, offset, 0)
}

fn write_at(lapic: &mut Lapic, offset: u16, value: u32, ns: u64) -> Effect {
    lapic.mmio_write(offset, &value.to_le_bytes(), at(ns))
}

fn write(lapic: &mut Lapic, offset: u16, value: u32) -> Effect {
    write_at(lapic, offset, value, 0)
}

fn rdmsr(lapic: &mut Lapic, msr: u32) -> Result<u64, GeneralProtection> {
    lapic.read_msr(msr, GuestTime::ZERO)
}

fn wrmsr(lapic: &mut Lapic, msr: u32, value: u64) -> Result<Effect, GeneralProtection> {
    lapic.write_msr(msr, value, GuestTime::ZERO)
}

fn vector(number: u8) -> Vector {
    Vector::new(number).unwrap()
}

fn message(delivery_mode: DeliveryMode, vector: u8) -> InterruptMessage {
    InterruptMessage {
        destination: 3,
        destination_mode: DestinationMode::Physical,
        delivery_mode,
        trigger_mode: TriggerMode::Edge,
        level: true,
        vector,
    }
}

fn edge(vector: u8) -> InterruptMessage {
    message(DeliveryMode::Fixed, vector)
}

fn level(vector: u8) -> InterruptMessage {
    InterruptMessage {
        trigger_mode: TriggerMode::Level,
        ..edge(vector)
    }
}

/// What an open vCPU takes next, and it takes it.
fn take(lapic: &mut Lapic) -> Option<Event> {
    match lapic.decide(&Readiness::OPEN) {
        Decision::Inject(event) => {
            lapic.injected(event).unwrap();
            Some(event)
        }
        _ => None,
    }
}

fn take_vector(lapic: &mut Lapic) -> Option<u8> {
    match take(lapic)? {
        Event::Fixed(vector) => Some(vector.get()),
        other => panic!("{other}"),
    }
}

/// The bit of a vector in a 256-bit register.
fn bit(lapic: &mut Lapic, register: u16, vector: u8) -> bool {
    let word = read(lapic, register + 0x10 * u16::from(vector / 32));
    word & 1 << (vector % 32) != 0
}

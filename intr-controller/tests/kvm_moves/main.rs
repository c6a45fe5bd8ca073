//! A guest moves from the chips of one mode to those of another: in the middle of a handler, with one more
//! interrupt waiting, a level in flight and a timer armed; and before it has taken an interrupt that KVM may
//! have been given. Nothing is lost or delivered twice.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop at the first thing that does not hold"
)]

mod guest;
#[path = "../kvms_chips/mod.rs"]
mod kvms_chips;
mod machine;

use intr_controller::ioapic::IoApicPin;
use intr_controller::{GuestTime, Lapic, VectorSet};

use guest::Memory;
use machine::{Clock, LINE, Machine, Mode, Moving, Stop};

/// What the handlers are for. The timer's class is above the others, and `HIGH`'s above `LEVEL`'s.
const TIMER: u8 = 0x71;
const HIGH: u8 = 0x61;
const LEVEL: u8 = 0x51;
const LOW: u8 = 0x31;
/// When the timer expires, in nanoseconds: some time after the move, on a host that is quick.
const EXPIRES: u32 = 300_000_000;
/// The 8259A pair's vectors, and its masks: the same interrupts come by the IOAPIC.
const PIC_BASE: u8 = 0x20;
/// Stops that the rest of the story must not need. A timer that is due is awaited by time instead.
const STOPS: usize = 1000;

/// Whether this is the build machines' software KVM.
fn is_pvm() -> bool {
    std::path::Path::new("/sys/module/kvm_pvm").exists()
}

/// The chips as a guest's kernel has programmed them, and its processor at the start of its loop.
fn programmed(memory: &Memory, clock: Clock, expires: u32) -> Moving {
    let machine = Machine::new(Mode::User, memory, clock);
    guest::start(&machine.vcpu);
    let now = clock.now();
    let mut lapic = Lapic::new(machine::config(&machine.vcpu));
    for (register, value) in [
        (0x0f0, 0x1ff),
        // One-shot, of nanoseconds: divide by one.
        (0x320, u32::from(TIMER)),
        (0x3e0, 0xb),
        (0x380, expires),
    ] {
        let _ = lapic.mmio_write(register, &u32::to_le_bytes(value), now);
    }
    let mut chipset = machine::chipset();
    for (register, value) in [(0x1b, 0), (0x1a, 0x8000 | u32::from(LEVEL))] {
        let _ = chipset.write_memory(0xfec0_0000, &[register], |_| ());
        let _ = chipset.write_memory(0xfec0_0010, &u32::to_le_bytes(value), |_| ());
    }
    for (port, value) in [
        (0x20, 0x11),
        (0x21, PIC_BASE),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, PIC_BASE + 8),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0x21, 0xfb),
        (0xa1, 0xff),
        // Channel 2 of the 8254 counts in mode 3.
        (0x43, 0xb6),
        (0x42, 0x34),
        (0x42, 0x12),
    ] {
        chipset.write_port(port, &[value], now, |_| ());
    }
    Moving {
        lapic: lapic.save(),
        chipset: chipset.save(),
        ..machine.save()
    }
}

/// A machine that goes on with this.
fn machine(mode: Mode, memory: &Memory, clock: Clock, moving: &Moving) -> Machine {
    let mut machine = Machine::new(mode, memory, clock);
    machine.restore(moving);
    machine
}

/// Until the handler of this vector has begun. The device lets go of its line when its own has.
fn until_handler(machine: &mut Machine, memory: &Memory, number: u8) {
    for _ in 0..STOPS {
        if machine.run() == Stop::Handler {
            let last = memory.log(&machine.vcpu).last().copied();
            if last == Some(LEVEL) {
                machine.line(false);
            }
            if last == Some(number) {
                return;
            }
        }
    }
    panic!(
        "{number:#x} does not come: {:x?}",
        memory.log(&machine.vcpu)
    );
}

/// These vectors, as a saved register has them.
fn set(numbers: &[u8]) -> [u64; 4] {
    let vectors = numbers.iter().map(|number| (*number).try_into().unwrap());
    VectorSet::from_iter(vectors).words()
}

/// Saves it for the move, unless its timer has expired before.
fn save(before: Machine, memory: &Memory) -> Option<Moving> {
    let handled = memory.log(&before.vcpu).contains(&TIMER);
    let moving = before.save();
    let mut pending = moving.lapic.policy.fixed.iter().zip(set(&[TIMER]));
    let late = handled || pending.any(|(irr, timer)| irr & timer != 0);
    (!late).then_some(moving)
}

/// Moves, with a timer that expires after the move: on a slow host it is set to a later time, and all is done
/// again.
fn in_time(moves: impl Fn(u32) -> Option<()>) {
    let mut expires = EXPIRES;
    while moves(expires).is_none() {
        expires *= 2;
        assert!(expires < 10 * EXPIRES, "the move takes more than 2 s");
    }
}

fn in_a_handler(from: Mode, to: Mode, expires: u32) -> Option<()> {
    let memory = Memory::new();
    let clock = Clock::start();
    let moving = programmed(&memory, clock, expires);

    let mut before = machine(from, &memory, clock, &moving);
    while before.run() != Stop::Loop {}
    before.msi(HIGH);
    until_handler(&mut before, &memory, HIGH);
    before.line(true);
    before.msi(LOW);
    let moving = save(before, &memory)?;

    assert_eq!(moving.lapic.policy.fixed, set(&[LEVEL, LOW]), "IRR");
    let kvms = |mode| mode != Mode::User;
    // kvm_pvm's local APIC ends an interrupt when it delivers it.
    let in_service: &[u8] = if is_pvm() && kvms(from) { &[] } else { &[HIGH] };
    assert_eq!(moving.lapic.in_service, set(in_service), "ISR");
    assert_eq!(moving.lapic.level_triggered, set(&[LEVEL]), "TMR");
    let pin = IoApicPin::new(u8::try_from(LINE.0).unwrap()).unwrap();
    let entry = moving.chipset.ioapic.entries[usize::from(pin.get())];
    assert!(entry.remote_irr() && moving.chipset.ioapic.lines.contains(pin));

    let mut after = machine(to, &memory, clock, &moving);
    until_handler(&mut after, &memory, LOW);
    while !memory.log(&after.vcpu).contains(&TIMER) {
        after.run();
        assert!(clock.now() < GuestTime::from_ns(20 * u64::from(expires)));
    }
    let mut log = memory.log(&after.vcpu);
    log.retain(|number| *number != TIMER);
    // And its IOAPIC sends a level once more then, before the device has heard of the first.
    let twice = is_pvm() && to == Mode::Kernel;
    let level: &[u8] = if twice { &[LEVEL, LEVEL] } else { &[LEVEL] };
    let each_once = [&[HIGH], level, &[LOW]].concat();
    assert_eq!(log, each_once, "each once, by priority");

    // The level that was sent there has ended here.
    after.line(true);
    for _ in level {
        until_handler(&mut after, &memory, LEVEL);
    }
    while after.run() != Stop::Loop {}
    let log = memory.log(&after.vcpu);
    let count = each_once.len() + [TIMER].len() + level.len();
    assert_eq!(log.len(), count, "nothing twice: {log:x?}");
    let ended = after.save();
    assert_eq!(ended.lapic.in_service, [0; 4]);
    assert_eq!(ended.lapic.policy.fixed, [0; 4]);
    assert!(!ended.chipset.ioapic.entries[usize::from(pin.get())].remote_irr());
    let (pic, was) = (ended.chipset.pic, moving.chipset.pic);
    for (now, was) in [(pic.master, was.master), (pic.slave, was.slave)] {
        assert_eq!(
            (now.vector_base, now.imr, now.init),
            (was.vector_base, was.imr, was.init)
        );
    }
    let (pit, was) = (
        ended.chipset.pit.channels[2],
        moving.chipset.pit.channels[2],
    );
    assert_eq!((pit.control, pit.reload), (was.control, was.reload));
    Some(())
}

fn before_it_is_taken(from: Mode, to: Mode, expires: u32) -> Option<()> {
    let memory = Memory::new();
    let clock = Clock::start();
    let moving = programmed(&memory, clock, expires);

    let mut before = machine(from, &memory, clock, &moving);
    while before.run() != Stop::Loop {}
    before.msi(HIGH);
    before.kicked();
    let moving = save(before, &memory)?;
    assert_eq!(moving.lapic.policy.fixed, set(&[HIGH]), "IRR");
    assert_eq!(moving.lapic.in_service, [0; 4], "ISR");

    let mut after = machine(to, &memory, clock, &moving);
    until_handler(&mut after, &memory, HIGH);
    while after.run() != Stop::Loop {}
    let mut log = memory.log(&after.vcpu);
    log.retain(|number| *number != TIMER);
    assert_eq!(log, [HIGH]);
    Some(())
}

macro_rules! moves {
    ($($name:ident: $from:ident to $to:ident,)*) => {$(
        mod $name {
            use super::Mode;

            #[test]
            fn in_a_handler() {
                super::in_time(|expires| super::in_a_handler(Mode::$from, Mode::$to, expires));
            }

            #[test]
            fn before_it_is_taken() {
                super::in_time(|expires| super::before_it_is_taken(Mode::$from, Mode::$to, expires));
            }
        }
    )*};
}

moves! {
    kernel_to_kernel: Kernel to Kernel,
    kernel_to_split: Kernel to Split,
    kernel_to_user: Kernel to User,
    split_to_kernel: Split to Kernel,
    split_to_split: Split to Split,
    split_to_user: Split to User,
    user_to_kernel: User to Kernel,
    user_to_split: User to Split,
    user_to_user: User to User,
}

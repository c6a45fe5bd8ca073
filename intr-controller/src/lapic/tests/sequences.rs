//! Any sequence: the model, save and restore, a mask, and accesses of every kind.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::Decision;
use crate::models::lapic::{LapicAction, LapicPair};

fn number() -> impl Strategy<Value = u8> {
    prop_oneof![
        Just(0x0f),
        Just(0x10),
        Just(0x41),
        Just(0x4f),
        Just(0x50),
        Just(0xec),
        Just(0xff),
        any::<u8>()
    ]
}

fn action() -> impl Strategy<Value = LapicAction> {
    prop_oneof![
        6 => (number(), any::<bool>()).prop_map(|(v, l)| LapicAction::Fixed(v, l)),
        1 => Just(LapicAction::Nmi),
        2 => prop_oneof![Just(0), Just(0x40), any::<u8>()].prop_map(LapicAction::TaskPriority),
        1 => prop_oneof![4 => Just(true), 1 => Just(false)].prop_map(LapicAction::Enable),
        6 => prop_oneof![3 => Just(false), 1 => Just(true)].prop_map(LapicAction::Enter),
        5 => Just(LapicAction::EndOfInterrupt),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(p, m)| LapicAction::Timer(p, m)),
        2 => any::<u8>().prop_map(LapicAction::Count),
        1 => any::<u8>().prop_map(LapicAction::Divide),
        5 => (any::<u8>(), any::<bool>()).prop_map(|(ns, look)| LapicAction::Pass(ns, look)),
        2 => Just(LapicAction::SaveRestore),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(o, s)| LapicAction::Load(o, s)),
    ]
}

/// Anything that a guest or a device can do, in any mode.
#[derive(Clone, Debug)]
enum Any {
    Load(u16, usize),
    Store(u16, Vec<u8>),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Accept(InterruptMessage),
    Lint(bool, bool),
    Signal(LocalSource),
    Startup,
    Take,
    Cr8(u64),
    Pass(u64),
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(MSR_BASE),
        Just(MSR_DEADLINE),
        0x800u32..0x840,
        0x7f0u32..0x910
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        any::<u8>().prop_map(u64::from),
        (0..64u32).prop_map(|bit| 1 << bit),
        Just(0xfee0_0d00),
        Just(0xfee0_0900),
        Just(0xfee0_0100),
        Just(0x1ff),
        Just(0x4_00ec),
        Just(0x2_00ec),
    ]
}

fn any_message() -> impl Strategy<Value = InterruptMessage> {
    (0u8..8, any::<bool>(), any::<bool>(), number()).prop_map(|(mode, trigger, level, vector)| {
        InterruptMessage {
            trigger_mode: TriggerMode::from_bit(trigger),
            level,
            ..message(DeliveryMode::from_bits(mode).unwrap_or_default(), vector)
        }
    })
}

fn anything() -> impl Strategy<Value = Any> {
    prop_oneof![
        (0u16..0x1000, 0usize..17).prop_map(|(o, s)| Any::Load(o, s)),
        (0u16..0x1000, proptest::collection::vec(any::<u8>(), 0..17))
            .prop_map(|(o, d)| Any::Store(o, d)),
        ((0u16..0x40), value())
            .prop_map(|(slot, v)| { Any::Store(slot << 4, v.to_le_bytes()[..4].to_vec()) }),
        msr().prop_map(Any::Rdmsr),
        (msr(), value()).prop_map(|(m, v)| Any::Wrmsr(m, v)),
        any_message().prop_map(Any::Accept),
        (any::<bool>(), any::<bool>()).prop_map(|(pin, level)| Any::Lint(pin, level)),
        prop_oneof![
            Just(LocalSource::Thermal),
            Just(LocalSource::Performance),
            Just(LocalSource::Cmci)
        ]
        .prop_map(Any::Signal),
        Just(Any::Startup),
        Just(Any::Take),
        any::<u64>().prop_map(Any::Cr8),
        prop_oneof![any::<u64>(), 0u64..10_000].prop_map(Any::Pass),
    ]
}

/// Everything that can be observed of one operation.
fn perform(lapic: &mut Lapic, now: &mut u64, any: &Any) -> alloc::string::String {
    use alloc::format;
    let time = at(*now);
    match any {
        Any::Load(offset, size) => {
            let mut data = [0x5a; 16];
            lapic.mmio_read(*offset, &mut data[..*size], time);
            format!("{data:?}")
        }
        Any::Store(offset, data) => format!("{:?}", lapic.mmio_write(*offset, data, time)),
        Any::Rdmsr(msr) => format!("{:?}", lapic.read_msr(*msr, time)),
        Any::Wrmsr(msr, value) => format!("{:?}", lapic.write_msr(*msr, *value, time)),
        Any::Accept(message) => format!("{:?}", lapic.accept(message)),
        Any::Lint(pin, level) => {
            let acceptance = if *pin {
                lapic.set_lint1(*level)
            } else {
                lapic.set_lint0(*level)
            };
            format!("{acceptance:?}")
        }
        Any::Signal(source) => format!("{:?}", lapic.signal(*source)),
        Any::Startup => format!("{:?}", lapic.take_startup()),
        Any::Take => format!("{:?}", take(lapic)),
        Any::Cr8(value) => format!("{:?}", lapic.set_cr8(*value)),
        Any::Pass(ns) => {
            *now = now.saturating_add(*ns);
            let expired = lapic.advance(at(*now));
            format!("{expired} {:?}", lapic.next_deadline(at(*now)))
        }
    }
}

proptest! {
    #[test]
    fn the_lapic_does_what_its_model_does(actions in proptest::collection::vec(action(), 0..150)) {
        let mut pair = LapicPair::default();
        for (step, action) in actions.into_iter().enumerate() {
            if let Err(what) = pair.apply(action) {
                prop_assert!(false, "{what} differs after step {step}, {action:?}");
            }
        }
    }

    #[test]
    fn saved_and_restored_at_any_point_nothing_changes(
        before in proptest::collection::vec(anything(), 0..60),
        after in proptest::collection::vec(anything(), 0..60),
        bootstrap in any::<bool>(),
    ) {
        let mut lapic = with(|config| config.bootstrap = bootstrap);
        let mut now = 0;
        for any in &before {
            perform(&mut lapic, &mut now, any);
        }
        let state = lapic.save();
        let mut other = Lapic::new(*lapic.config());
        let restored = other.restore(&state);
        prop_assert_eq!(restored, Ok(()), "{:?}", state);
        prop_assert_eq!(&other, &lapic);
        prop_assert_eq!(other.save(), state);
        let mut other_now = now;
        for any in &after {
            prop_assert_eq!(
                perform(&mut lapic, &mut now, any),
                perform(&mut other, &mut other_now, any)
            );
        }
        prop_assert_eq!(other, lapic);
    }

    #[test]
    fn masked_for_a_window_is_delivered_later(
        arrivals in proptest::collection::vec(number(), 1..40),
    ) {
        // The twin is not asked under the mask: what is pending at the end is the same.
        let mut masked = xapic();
        let mut free = xapic();
        for number in &arrivals {
            prop_assert_eq!(masked.accept(&edge(*number)), free.accept(&edge(*number)));
            prop_assert!(!matches!(masked.decide(&Readiness::MASKED), Decision::Inject(_)));
        }
        loop {
            let (one, other) = (take(&mut masked), take(&mut free));
            prop_assert_eq!(one, other);
            if one.is_none() {
                break;
            }
            prop_assert_eq!(write(&mut masked, EOI, 0), write(&mut free, EOI, 0));
        }
        prop_assert!(masked.policy().pending().is_empty());
    }
}

#[test]
fn no_access_of_any_offset_and_size_panics() {
    for make in [xapic, x2apic] {
        for offset in 0..0x1000 {
            let mut lapic = make();
            for size in 0..=16 {
                let mut data = [0xff; 16];
                lapic.mmio_read(offset, &mut data[..size], at(1));
                let _ = lapic.mmio_write(offset, &[0xff; 16][..size], at(1));
            }
        }
        // An offset outside the page is a caller's mistake, and no panic either.
        let _ = make().mmio_write(u16::MAX, &[0; 4], at(1));
        make().mmio_read(u16::MAX, &mut [0; 4], at(1));
    }
}

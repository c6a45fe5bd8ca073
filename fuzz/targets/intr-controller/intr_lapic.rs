//! Any sequence of arrivals, register writes, entries (masked or not), EOIs, migrations and passing
//! time, beside the crate's model of the local APIC.
//!
//! Then: every pending event is delivered once to an open vCPU that ends each interrupt, most
//! urgent first.
#![no_main]

use intr_controller::Event;
use intr_controller::models::lapic::{LapicAction, LapicPair};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|actions: Vec<LapicAction>| {
    let mut pair = LapicPair::default();
    let apply = |pair: &mut LapicPair, action| {
        if let Err(what) = pair.apply(action) {
            panic!("{what} differs after {action:?}");
        }
    };
    for action in actions.into_iter().take(4096) {
        apply(&mut pair, action);
    }

    apply(&mut pair, LapicAction::Timer(false, true));
    apply(&mut pair, LapicAction::TaskPriority(0));
    while !pair.lapic().in_service().is_empty() {
        apply(&mut pair, LapicAction::EndOfInterrupt);
    }
    let waiting = *pair.lapic().policy().pending();
    for _ in 0..waiting.nmis() {
        apply(&mut pair, LapicAction::Enter(false));
    }
    assert_eq!(pair.lapic().policy().pending().nmis(), 0);
    for vector in waiting.fixed().iter() {
        let event = Event::Fixed(vector);
        assert!(pair.lapic().policy().pending().contains(event));
        apply(&mut pair, LapicAction::Enter(false));
        assert_eq!(pair.lapic().in_service().highest(), Some(vector));
        apply(&mut pair, LapicAction::EndOfInterrupt);
    }
    assert!(pair.lapic().policy().pending().is_empty());
});

//! Any sequence of arrivals, entries (masked or not), resets and migrations, beside the crate's
//! model: the policy decides what the model says, loses nothing and counts everything.
//!
//! Then: a vCPU that opens up gets every pending event, each once, in the order of priority.
#![no_main]

use intr_controller::models::policy::{Action, Pair};
use intr_controller::{Activity, Event, ProcessorPriority, Readiness};
use libfuzzer_sys::fuzz_target;

/// Most urgent first: SMI, NMI, ExtINT, then by vector (SDM 3A table 6-2; 10.8.3).
fn urgency(event: Event) -> (u8, u8) {
    match event {
        Event::Smi => (0, 0),
        Event::Nmi => (1, 0),
        Event::ExtInt => (2, 0),
        Event::Fixed(vector) => (3, u8::MAX - vector.get()),
        other => panic!("{other} has no place in the order"),
    }
}

fuzz_target!(|actions: Vec<Action>| {
    let mut pair = Pair::default();
    pair.run(actions).expect("the policy and its model");

    let open = Readiness {
        activity: Activity::Running,
        ..Readiness::OPEN
    };
    let waiting = pair.policy().pending().len();
    let before = pair.delivered().len();
    for _ in 0..waiting {
        pair.apply(Action::Enter(open, ProcessorPriority::ZERO))
            .expect("the policy and its model");
    }
    assert!(
        pair.policy().pending().is_empty(),
        "an open vCPU takes everything"
    );
    let delivered = &pair.delivered()[before..];
    assert_eq!(
        delivered.len() as u64,
        waiting,
        "one delivery for each that waited"
    );
    assert!(
        delivered.is_sorted_by_key(|event| urgency(*event)),
        "{delivered:?}"
    );
});

//! A saved state from an untrusted source: taken over exactly, or refused and nothing has changed.
//!
//! Input, a byte each: the version, NMIs, a byte of flags (SMI, ExtINT, whether the total is made
//! to add up), and an event that arrives afterwards; then words of eight bytes: four of vectors, and
//! six counters.
#![no_main]

use fuzz::Choices;
use intr_controller::{Counters, Event, InjectionPolicy, PolicyState, Vector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Choices::new(data);
    let version = u16::from(input.byte());
    let nmis = input.byte();
    let flags = input.byte();
    let arrival = match input.byte() {
        0 => Event::Smi,
        1 => Event::Nmi,
        2 => Event::ExtInt,
        vector => Vector::new(vector).map_or(Event::Nmi, Event::Fixed),
    };
    let mut state = PolicyState {
        version,
        fixed: std::array::from_fn(|_| input.quad()),
        nmis,
        smi: flags & 1 != 0,
        ext_int: flags & 2 != 0,
        counters: Counters {
            arrived: input.quad(),
            merged: input.quad(),
            delivered: input.quad(),
            withdrawn: input.quad(),
            dropped: input.quad(),
            spurious: input.quad(),
        },
    };
    let waiting = state
        .fixed
        .iter()
        .map(|word| u64::from(word.count_ones()))
        .sum::<u64>()
        + u64::from(state.nmis)
        + u64::from(state.smi)
        + u64::from(state.ext_int);
    let terms = |counters: &Counters| {
        [
            counters.merged,
            counters.delivered,
            counters.withdrawn,
            counters.dropped,
        ]
        .iter()
        .fold(waiting, |sum, term| sum.saturating_add(*term))
    };
    if flags & 4 != 0 {
        state.counters.arrived = terms(&state.counters);
    }

    let mut policy = InjectionPolicy::new();
    let _ = policy.arrive(Event::ExtInt);
    let before = policy.clone();

    let legal = state.version == PolicyState::VERSION
        && state.fixed[0] & 0xffff == 0
        && state.nmis <= 2
        && state.counters.arrived == terms(&state.counters);
    match policy.restore(&state) {
        Err(error) => {
            assert!(!legal, "refused: {error}");
            assert_eq!(policy, before, "a refused state changes nothing");
            assert!(!error.to_string().is_empty());
        }
        Ok(()) => {
            assert!(legal, "accepted: {state:?}");
            assert_eq!(policy.save(), state, "restored exactly");
            assert_eq!(policy.pending().len(), waiting);
            // It lives on, and what it saves then is as good.
            let _ = policy.arrive(arrival);
            policy.reset();
            assert!(policy.pending().is_empty());
            let later = policy.save();
            assert_eq!(InjectionPolicy::new().restore(&later), Ok(()));
        }
    }
});

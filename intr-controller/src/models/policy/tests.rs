use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::Vector;

/// Every event there is, most urgent first.
fn all_events() -> impl Iterator<Item = Event> {
    let vectors = (16..=u8::MAX).rev().map(|n| Vector::new(n).unwrap());
    [Event::Smi, Event::Nmi, Event::ExtInt]
        .into_iter()
        .chain(vectors.map(Event::Fixed))
}

#[test]
fn the_ranks_of_the_model_are_the_order_of_delivery() {
    let ranks: Vec<_> = all_events().map(rank).collect();
    let expected: Vec<u8> = (0..=242).collect();
    assert_eq!(ranks, expected);
}

/// Few vectors: merging and priority ties are common.
fn vector() -> impl Strategy<Value = Vector> {
    prop_oneof![
        Just(0x10),
        Just(0x1f),
        Just(0x20),
        Just(0x3f),
        Just(0x40),
        Just(0xc1),
        Just(0xff),
        16u8..
    ]
    .prop_map(|n| Vector::new(n).unwrap())
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::Smi),
        2 => Just(Event::Nmi),
        2 => Just(Event::ExtInt),
        6 => vector().prop_map(Event::Fixed),
    ]
}

fn priority() -> impl Strategy<Value = ProcessorPriority> {
    (
        prop_oneof![3 => Just(0), 1 => any::<u8>()],
        prop_oneof![3 => Just(None), 1 => vector().prop_map(Some)],
    )
        .prop_map(|(tpr, in_service)| ProcessorPriority::new(tpr, in_service))
}

/// Mostly open: each obstacle alone and in combination with others.
fn readiness() -> impl Strategy<Value = Readiness> {
    let rare = || prop_oneof![4 => Just(false), 1 => Just(true)];
    (
        prop_oneof![
            4 => Just(Activity::Running),
            2 => Just(Activity::Halted),
            1 => Just(Activity::WaitForSipi)
        ],
        (rare(), rare(), rare(), rare(), rare()),
        (rare(), rare(), rare(), rare()),
    )
        .prop_map(|(activity, (a, b, c, d, masked), (e, f, g, h))| Readiness {
            activity,
            interrupt_flag: !a,
            sti_shadow: b,
            mov_ss_shadow: c,
            nmi_blocked: d,
            in_smm: e,
            event_in_flight: f,
            exception_pending: g,
            host_ready: !h,
            masked,
        })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => event().prop_map(Action::Arrive),
        1 => Just(Action::WithdrawExtInt),
        8 => (readiness(), priority()).prop_map(|(r, p)| Action::Enter(r, p)),
        1 => event().prop_map(Action::ReportInjected),
        1 => Just(Action::Reset),
        1 => Just(Action::SaveRestore),
    ]
}

/// Enters until nothing may.
fn drain(pair: &mut Pair) -> Vec<Event> {
    let start = pair.delivered().len();
    while !pair.policy().pending().is_empty() {
        let waiting = pair.policy().pending().len();
        pair.apply(Action::Enter(Readiness::OPEN, ProcessorPriority::ZERO))
            .unwrap();
        assert!(
            pair.policy().pending().len() < waiting,
            "an open vCPU takes everything"
        );
    }
    pair.delivered()[start..].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_policy_is_the_model(actions in proptest::collection::vec(action(), 0..120)) {
        prop_assert_eq!(Pair::default().run(actions), Ok(()));
    }

    /// Masked for a random window ≡ delivered later: events that arrived under the mask are delivered
    /// as if the vCPU itself had been closed for as long (IF=0, NMIs blocked, in SMM).
    #[test]
    fn a_masked_window_only_delays(
        before in proptest::collection::vec(event(), 0..8),
        during in proptest::collection::vec((event(), readiness(), priority()), 0..60),
    ) {
        let mut masked = Pair::default();
        let mut closed = Pair::default();
        for pair in [&mut masked, &mut closed] {
            prop_assert_eq!(pair.run(before.iter().copied().map(Action::Arrive)), Ok(()));
        }
        let shut = Readiness {
            interrupt_flag: false,
            nmi_blocked: true,
            in_smm: true,
            ..Readiness::OPEN
        };
        for (event, vcpu, priority) in &during {
            let vcpu = Readiness { masked: true, ..*vcpu };
            for action in [Action::Arrive(*event), Action::Enter(vcpu, *priority)] {
                masked.apply(action).unwrap();
            }
            for action in [Action::Arrive(*event), Action::Enter(shut, *priority)] {
                closed.apply(action).unwrap();
            }
        }
        prop_assert!(masked.delivered().is_empty());
        prop_assert!(closed.delivered().is_empty());
        let delivered = drain(&mut masked);
        prop_assert_eq!(&delivered, &drain(&mut closed));

        // In the order of the table, and each as often as the architecture keeps it.
        let arrived: Vec<Event> = before.iter().copied().chain(during.iter().map(|d| d.0)).collect();
        let mut expected = vec![];
        for event in all_events() {
            let limit = if event == Event::Nmi { 2 } else { 1 };
            let times = arrived.iter().filter(|e| **e == event).count().min(limit);
            expected.extend(core::iter::repeat_n(event, times));
        }
        prop_assert_eq!(delivered, expected);
    }

    /// The counters add up when they have saturated, too.
    #[test]
    fn saturated_counters_stay_consistent(
        distance in 0u64..20,
        arrivals in proptest::collection::vec(event(), 0..40),
    ) {
        let mut state = InjectionPolicy::new().save();
        state.counters.arrived = u64::MAX - distance;
        state.counters.delivered = u64::MAX - distance;
        let mut policy = InjectionPolicy::new();
        policy.restore(&state).unwrap();
        for event in arrivals {
            let _ = policy.arrive(event);
            if let Decision::Inject(event) = policy.decide(&Readiness::OPEN, ProcessorPriority::ZERO) {
                policy.injected(event).unwrap();
            }
            let saved = policy.save();
            prop_assert_eq!(InjectionPolicy::new().restore(&saved), Ok(()));
        }
    }
}

#[test]
fn the_model_notices_a_policy_that_loses_an_event() {
    let mut pair = Pair::default();
    pair.apply(Action::Arrive(Event::Nmi)).unwrap();
    pair.policy.reset();
    assert_eq!(
        pair.apply(Action::SaveRestore),
        Err("the pending set"),
        "a lost event must show"
    );
}

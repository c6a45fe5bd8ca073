use alloc::string::ToString;

use super::*;
use crate::{InjectionPolicy, Vector};

fn fixed(vector: u8) -> Event {
    Event::Fixed(Vector::new(vector).unwrap())
}

fn policy(events: &[Event]) -> InjectionPolicy {
    let mut policy = InjectionPolicy::new();
    for event in events {
        let _ = policy.arrive(*event);
    }
    policy
}

fn ask(events: &[Event], vcpu: Readiness) -> Decision {
    policy(events).decide(&vcpu, ProcessorPriority::ZERO)
}

fn reasons(decision: &Decision) -> BlockReasons {
    decision.blocked().unwrap().reasons
}

const OPEN: Readiness = Readiness::OPEN;
const HALTED: Readiness = Readiness {
    activity: Activity::Halted,
    ..OPEN
};
const MASKED: Readiness = Readiness {
    masked: true,
    ..OPEN
};

#[test]
fn each_obstacle_stops_exactly_the_events_it_should() {
    use BlockReasons as R;
    let waiting_for_sipi = Activity::WaitForSipi;
    #[rustfmt::skip]
    let rows = [
        // obstacle, reason, stops SMI, NMI, ExtINT, fixed
        (Readiness { interrupt_flag: false, ..OPEN }, R::INTERRUPT_FLAG, [false, false, true, true]),
        (Readiness { sti_shadow: true, ..OPEN }, R::STI_SHADOW, [false, true, true, true]),
        (Readiness { mov_ss_shadow: true, ..OPEN }, R::MOV_SS_SHADOW, [false, true, true, true]),
        (Readiness { nmi_blocked: true, ..OPEN }, R::NMI_BLOCKED, [false, true, false, false]),
        (Readiness { in_smm: true, ..OPEN }, R::IN_SMM, [true, false, false, false]),
        (Readiness { host_ready: false, ..OPEN }, R::HOST_NOT_READY, [false, false, true, true]),
        (Readiness { event_in_flight: true, ..OPEN }, R::EVENT_IN_FLIGHT, [true; 4]),
        (Readiness { exception_pending: true, ..OPEN }, R::EXCEPTION_PENDING, [true; 4]),
        (MASKED, R::MASKED, [true; 4]),
        (Readiness { activity: waiting_for_sipi, ..OPEN }, R::WAIT_FOR_SIPI, [true; 4]),
    ];
    for (vcpu, reason, stops) in rows {
        for (event, stopped) in [Event::Smi, Event::Nmi, Event::ExtInt, fixed(0x31)]
            .into_iter()
            .zip(stops)
        {
            let decision = ask(&[event], vcpu);
            if stopped {
                assert_eq!(reasons(&decision), reason, "{event}");
            } else {
                assert_eq!(decision, Decision::Inject(event), "{reason:?}");
            }
        }
    }
}

#[test]
fn priority_stops_fixed_interrupts_only() {
    let ppr = ProcessorPriority::new(0x50, None);
    let all = policy(&[fixed(0x5f)]);
    let blocked = all.decide(&OPEN, ppr);
    // No window: the guest's TPR write is an exit of its own.
    assert!(matches!(blocked, Decision::Blocked(_)));
    assert_eq!(reasons(&blocked), BlockReasons::PRIORITY);
    assert_eq!(
        policy(&[fixed(0x5f), Event::ExtInt]).decide(&OPEN, ppr),
        Decision::Inject(Event::ExtInt)
    );
    assert_eq!(
        policy(&[fixed(0x60)]).decide(&OPEN, ppr),
        Decision::Inject(fixed(0x60))
    );
}

#[test]
fn events_enter_in_the_order_of_the_table() {
    let order = [
        Event::Smi,
        Event::Nmi,
        Event::Nmi,
        Event::ExtInt,
        fixed(0xf1),
        fixed(0x80),
        fixed(0x10),
    ];
    let mut arrivals = order;
    arrivals.reverse();
    let mut policy = policy(&arrivals);
    for expected in order {
        assert_eq!(
            policy.decide(&OPEN, ProcessorPriority::ZERO),
            Decision::Inject(expected)
        );
        policy.injected(expected).unwrap();
    }
    assert_eq!(
        policy.decide(&OPEN, ProcessorPriority::ZERO),
        Decision::Idle
    );
}

#[test]
fn a_blocked_nmi_does_not_delay_an_interrupt() {
    let in_nmi_handler = Readiness {
        nmi_blocked: true,
        ..OPEN
    };
    assert_eq!(
        ask(&[Event::Nmi, fixed(0x20)], in_nmi_handler),
        Decision::Inject(fixed(0x20))
    );
}

#[test]
fn every_window_that_may_open_is_asked_for() {
    let vcpu = Readiness {
        nmi_blocked: true,
        interrupt_flag: false,
        in_smm: true,
        ..OPEN
    };
    let Decision::OpenWindow(windows, blocked) = ask(&[Event::Smi, Event::Nmi, fixed(0x20)], vcpu)
    else {
        panic!("no window");
    };
    assert_eq!(windows, Windows::all());
    assert_eq!(blocked.event, Event::Smi);
    let Decision::OpenWindow(windows, _) = ask(&[Event::Nmi, Event::ExtInt], vcpu) else {
        panic!("no window");
    };
    assert_eq!(windows, Windows::NMI | Windows::INTERRUPT);
}

#[test]
fn after_an_injection_the_rest_asks_for_a_window() {
    let mut policy = policy(&[fixed(0x30), fixed(0x40)]);
    policy.injected(fixed(0x40)).unwrap();
    let vcpu = Readiness {
        event_in_flight: true,
        ..OPEN
    };
    assert!(matches!(
        policy.decide(&vcpu, ProcessorPriority::ZERO),
        Decision::OpenWindow(Windows::INTERRUPT, Blocked { event, .. }) if event == fixed(0x30)
    ));
}

#[test]
fn the_mask_blocks_every_event_and_opens_no_window() {
    let policy = policy(&[Event::Smi, Event::Nmi, Event::ExtInt, fixed(0x20)]);
    let decision = policy.decide(&MASKED, ProcessorPriority::ZERO);
    assert_eq!(
        decision,
        Decision::Blocked(Blocked {
            event: Event::Smi,
            reasons: BlockReasons::MASKED,
            priority: ProcessorPriority::ZERO,
        })
    );
    assert_eq!(
        policy.decide(&OPEN, ProcessorPriority::ZERO),
        Decision::Inject(Event::Smi)
    );
}

#[test]
fn halted_and_masked_the_interrupt_ends_hlt_and_stays_pending() {
    let policy = policy(&[fixed(0x20)]);
    let vcpu = Readiness {
        masked: true,
        ..HALTED
    };
    let decision = policy.decide(&vcpu, ProcessorPriority::ZERO);
    assert!(matches!(decision, Decision::Wake(_)));
    assert_eq!(
        decision.to_string(),
        "vector 0x20 pending; blocked: masked; ends HLT"
    );
    assert!(policy.pending().contains(fixed(0x20)));
    assert_eq!(
        policy.decide(&HALTED, ProcessorPriority::ZERO),
        Decision::Inject(fixed(0x20))
    );
}

#[test]
fn of_several_events_that_end_hlt_the_most_urgent_is_named() {
    let vcpu = Readiness {
        masked: true,
        ..HALTED
    };
    let decision = ask(&[fixed(0x20), Event::ExtInt, Event::Nmi], vcpu);
    assert!(matches!(decision, Decision::Wake(_)));
    assert_eq!(decision.blocked().unwrap().event, Event::Nmi);
}

#[test]
fn halted_with_if_clear_only_what_ignores_if_wakes() {
    let vcpu = Readiness {
        interrupt_flag: false,
        ..HALTED
    };
    assert!(matches!(
        ask(&[fixed(0x20), Event::ExtInt], vcpu),
        Decision::Blocked(_)
    ));
    assert_eq!(ask(&[Event::Nmi], vcpu), Decision::Inject(Event::Nmi));

    let masked = Readiness {
        masked: true,
        ..vcpu
    };
    assert!(matches!(ask(&[fixed(0x20)], masked), Decision::Blocked(_)));
    assert!(matches!(
        ask(&[fixed(0x20), Event::Nmi], masked),
        Decision::Wake(Blocked {
            event: Event::Nmi,
            ..
        })
    ));
}

#[test]
fn halted_below_the_processor_priority_stays_halted() {
    let ppr = ProcessorPriority::new(0x20, None);
    assert!(matches!(
        policy(&[fixed(0x2f)]).decide(&HALTED, ppr),
        Decision::Blocked(_)
    ));
}

#[test]
fn a_halted_vcpu_whose_host_is_not_ready_is_woken_rather_than_lost() {
    let vcpu = Readiness {
        host_ready: false,
        ..HALTED
    };
    let decision = ask(&[fixed(0x20)], vcpu);
    assert!(matches!(decision, Decision::Wake(_)));
    assert_eq!(reasons(&decision), BlockReasons::HOST_NOT_READY);
}

#[test]
fn all_reasons_are_named_at_once() {
    let vcpu = Readiness {
        interrupt_flag: false,
        ..MASKED
    };
    let decision = policy(&[fixed(0x2f)]).decide(&vcpu, ProcessorPriority::new(0x41, None));
    assert_eq!(
        decision.to_string(),
        "vector 0x2f pending; blocked: masked, IF=0, priority (PPR 0x41)"
    );
    assert_eq!(
        decision.blocked().unwrap().why().to_string(),
        "masked, IF=0, priority (PPR 0x41)"
    );
}

#[test]
fn the_default_readiness_lets_no_interrupt_in() {
    assert!(matches!(
        ask(&[fixed(0x20)], Readiness::default()),
        Decision::OpenWindow(Windows::INTERRUPT, _)
    ));
}

#[test]
fn the_short_way_says_the_same() {
    let activities = [Activity::Running, Activity::Halted, Activity::WaitForSipi];
    let mut injected = 0;
    for flags in 0..=u8::MAX {
        let flag = |bit: u8| flags >> bit & 1 != 0;
        for activity in activities {
            let vcpu = Readiness {
                activity,
                interrupt_flag: flag(0),
                sti_shadow: flag(1),
                mov_ss_shadow: flag(2),
                nmi_blocked: flag(3),
                in_smm: flag(4),
                event_in_flight: flag(5),
                exception_pending: flag(6),
                host_ready: flag(7),
                masked: false,
            };
            for events in [&[][..], &[fixed(0x31)], &[fixed(0x31), fixed(0x51)]] {
                for (tpr, masked) in [(0, false), (0, true), (0x2f, false), (0x50, false)] {
                    let pending = *policy(events).pending();
                    let priority = ProcessorPriority::new(tpr, None);
                    let vcpu = Readiness { masked, ..vcpu };
                    let short = decide(&pending, &vcpu, priority);
                    assert_eq!(short, decide_in_full(&pending, &vcpu, priority));
                    injected += u32::from(matches!(short, Decision::Inject(_)));
                }
            }
        }
    }
    // IF and the host's readiness set, no shadow, nothing in flight, and NMI blocking, SMM or HLT
    // or not: four sets of flags, two activities, and of the twelve others two each let it in.
    assert_eq!(injected, 4 * 2 * 4);
}

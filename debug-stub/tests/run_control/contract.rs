//! What a kick and a wake-up promise, call by call on one thread.

use std::sync::{Arc, Mutex};

use debug_stub::run_control::{AllStop, Effect, Order, ResumeError, RunControl, VcpuHandle};
use debug_stub::{ResumePlan, StopReason, VcpuId, VcpuOrder};

const VCPU: VcpuId = VcpuId(0);

fn one_runs() -> ResumePlan {
    ResumePlan {
        vcpus: vec![VcpuOrder::Continue],
        ..ResumePlan::default()
    }
}

#[test]
fn a_vcpu_that_was_removed_while_it_ran_is_woken_to_leave() {
    let mut control = RunControl::new();
    control.add(VCPU).unwrap();
    control.resume(&one_runs()).unwrap();
    assert!(matches!(control.order(VCPU), Ok(Order::Run(..))));
    assert_eq!(control.remove(VCPU), Ok(vec![Effect::Kick(VCPU)]));
    let effects = control.stopped(VCPU, StopReason::Interrupted).unwrap();
    assert!(effects.contains(&Effect::Wake(VCPU)), "{effects:?}");
    assert_eq!(control.order(VCPU), Ok(Order::Leave));
}

#[test]
fn the_stop_request_is_seen_by_the_time_of_the_kick_which_comes_once() {
    let slot: Arc<Mutex<Option<VcpuHandle>>> = Arc::default();
    let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
    let (looks, sees) = (Arc::clone(&slot), Arc::clone(&seen));
    let all = AllStop::new(move |vcpu: VcpuId| {
        assert_eq!(vcpu, VCPU);
        let handle = looks.lock().unwrap();
        let must_stop = handle.as_ref().is_some_and(VcpuHandle::must_stop);
        sees.lock().unwrap().push(must_stop);
    })
    .unwrap();
    let mut handle = all.add(VCPU).unwrap();
    all.resume(&one_runs()).unwrap();
    assert!(matches!(handle.next_order(), Order::Run(..)));
    assert!(!handle.must_stop());
    *slot.lock().unwrap() = Some(handle);
    all.interrupt();
    all.interrupt();
    assert_eq!(*seen.lock().unwrap(), [true]);
    let mut handle = slot.lock().unwrap().take().unwrap();
    handle.report(StopReason::Interrupted);
    assert_eq!(all.take_stops(), Some(Vec::new()));
}

#[test]
fn a_vcpu_whose_order_was_given_back_must_stop_until_it_takes_it_again() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut handle = all.add(VCPU).unwrap();
    let stops = all.resume_here(&one_runs(), VCPU, |_, _, must_stop| {
        assert!(!must_stop());
        None
    });
    assert_eq!(stops, Ok(None));
    assert!(handle.must_stop(), "it has not taken the order yet");
    assert!(matches!(handle.next_order(), Order::Run(..)));
    assert!(!handle.must_stop());
    handle.report(StopReason::Step);
    assert!(handle.must_stop());
}

#[test]
fn the_controller_does_not_run_a_vcpu_that_leaves() {
    let all = AllStop::new(|_: VcpuId| {}).unwrap();
    let mut leaving = all.add(VCPU).unwrap();
    let mut other = all.add(VcpuId(1)).unwrap();
    all.remove(VCPU).unwrap();
    let stops = all.resume_here(&one_runs(), VCPU, |_, _, _| panic!("it leaves"));
    assert_eq!(stops, Err(ResumeError::Leaving(VCPU)));
    assert!(all.is_stopped());

    let others_run = ResumePlan {
        others: VcpuOrder::Continue,
        ..ResumePlan::default()
    };
    let stops = all.resume_here(&others_run, VCPU, |_, _, _| panic!("it leaves"));
    assert_eq!(stops, Ok(None));
    assert!(matches!(other.next_order(), Order::Run(..)));
    // Its thread has not left: the order was not taken from it.
    assert!(all.add(VCPU).is_err());
    assert_eq!(leaving.next_order(), Order::Leave);
    all.interrupt();
    other.report(StopReason::Interrupted);
    assert_eq!(all.take_stops(), Some(Vec::new()));
}

//! Ctrl-C: from which vCPU it is reported.

use debug_stub::x86_64::stepper::RunState;

use super::*;

/// Interrupts the running guest. Returns the thread of the stop.
fn interrupt(rig: &mut Rig) -> String {
    let replies = rig.bytes(b"\x03");
    let [reply] = replies.as_slice() else {
        panic!("{replies:?}");
    };
    assert!(reply.starts_with("T02thread:"), "{reply}");
    reply[10..12].to_owned()
}

/// What GDB does for `info threads`, and MI's `-thread-info` at each stop.
fn list_threads(rig: &mut Rig, vcpus: usize) {
    for thread in 1..=vcpus {
        assert_eq!(rig.ask(format!("Hg{thread:x}")), "OK");
        rig.ask("g");
    }
}

#[test]
fn a_listing_of_the_threads_is_no_choice_of_one() {
    let mut rig = spinning(4);
    list_threads(&mut rig, 4);
    rig.send("vCont;c");
    assert_eq!(interrupt(&mut rig), "01");
    assert!(rig.ask("vCont;s:2").starts_with("T05thread:02;"));
    list_threads(&mut rig, 4);
    rig.send("vCont;c");
    assert_eq!(interrupt(&mut rig), "02", "the vCPU of the last stop");
}

#[test]
fn a_vcpu_that_the_client_selects_to_run_is_a_choice() {
    let mut rig = spinning(4);
    assert_eq!(rig.ask("Hc3"), "OK");
    assert_eq!(rig.ask("Hg1"), "OK");
    rig.send("vCont;c");
    assert_eq!(interrupt(&mut rig), "03");
    assert_eq!(rig.ask("Hc0"), "OK");
    assert_eq!(rig.ask("Hc-1"), "OK");
    rig.send("vCont;c");
    assert_eq!(interrupt(&mut rig), "03", "all or any is no choice");
}

#[test]
fn a_vcpu_that_does_not_run_is_not_reported() {
    let mut rig = spinning(3);
    rig.send("vCont;c:2");
    assert_eq!(interrupt(&mut rig), "02");
    // A step that does not end, while the others run.
    rig.send("vCont;r8000,9000:3;c");
    assert_eq!(interrupt(&mut rig), "03");
}

#[test]
fn a_vcpu_that_waits_to_be_started_is_reported_only_if_no_other_runs() {
    let mut rig = spinning(3);
    let waits = |rig: &mut Rig, vcpu: usize| {
        let (_, vcpu) = rig.machine().vcpu_mut(vcpu).unwrap();
        vcpu.set_run_state(RunState::WaitForInit);
    };
    waits(&mut rig, 2);
    assert_eq!(rig.ask("Hc3"), "OK");
    rig.send("vCont;c");
    assert_eq!(interrupt(&mut rig), "01");
    rig.send("vCont;c:3");
    assert_eq!(interrupt(&mut rig), "03", "it alone was to run");
    waits(&mut rig, 0);
    rig.send("vCont;c");
    assert_eq!(interrupt(&mut rig), "02");
}

#[test]
fn an_interrupted_vcpu_in_the_list_of_stops_changes_nothing() {
    let mut rig = spinning(3);
    rig.send("vCont;c");
    let replies = rig.stop(vec![
        stop(2, StopReason::Interrupted),
        stop(1, StopReason::Interrupted),
    ]);
    assert!(replies[0].starts_with("T02thread:01;"), "{replies:?}");
}

//! Detach, kill, the end of the guest.

use super::*;

#[test]
fn a_triple_fault_is_explained_and_can_be_inspected() {
    let mut rig = Rig::new(machine(1, &[code::NOP, code::UD2]));
    let replies = rig.send("vCont;c");
    assert!(console(&replies[0]).contains("vcpu0: triple fault at 0x8001, next bytes 0f 0b"));
    assert!(replies[1].starts_with("T0bthread:01;"), "{replies:?}");
    assert_eq!(rig.ask("p10"), hex((ENTRY + 1).to_le_bytes()));
}

#[test]
fn an_internal_error_is_explained_and_reported_first() {
    let mut rig = spinning(2);
    rig.send("vCont;c");
    let replies = rig.stop(vec![
        stop(0, StopReason::HardwareBreakpoint),
        stop(1, StopReason::InternalError("emulation failed".into())),
    ]);
    assert!(console(&replies[0]).contains("thread 2"), "{replies:?}");
    assert!(replies[1].starts_with("T04thread:02;"), "{replies:?}");
}

#[test]
fn an_exit_is_reported_with_its_status_and_closes() {
    let mut rig = Rig::new(machine(1, &[code::HLT]));
    assert_eq!(rig.send("vCont;c"), ["W00"]);
    assert!(rig.session.is_closing());
    rig.session.disconnected();
    rig.act();
    assert_eq!(rig.releases, 0, "there is nothing to release");
    assert!(!rig.session.is_attached());
}

#[test]
fn a_stop_of_a_vcpu_that_does_not_exist_is_no_stop_of_another() {
    let mut rig = spinning(2);
    rig.send("vCont;c");
    let replies = rig.stop(vec![stop(7, StopReason::HardwareBreakpoint)]);
    assert!(replies[0].starts_with("T02thread:01;"), "{replies:?}");
}

/// Found by the fuzz target: the guest's end was dropped with its vCPU, and the client could resume it.
#[test]
fn the_guests_end_and_its_reset_count_also_from_a_vcpu_that_has_gone() {
    let mut rig = spinning(1);
    rig.send("vCont;c");
    let replies = rig.stop(vec![stop(7, StopReason::Reset)]);
    assert!(console(&replies[0]).contains("thread 1: the machine was reset"));
    assert!(replies[1].starts_with("T05thread:01;"), "{replies:?}");
    rig.send("vCont;c");
    let replies = rig.stop(vec![
        stop(0, StopReason::Step),
        stop(7, StopReason::Exited(7)),
    ]);
    assert_eq!(replies, ["W07"]);
    assert!(rig.session.is_closing());
}

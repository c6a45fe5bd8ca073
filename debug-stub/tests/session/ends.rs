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

#[test]
fn a_guest_that_ends_while_it_is_stopped_for_the_client_is_not_resumed_or_released() {
    let mut rig = spinning(2);
    assert!(rig.stop(vec![stop(1, StopReason::Exited(7))]).is_empty());
    assert_eq!(rig.ask("?"), "W07");
    assert_eq!(rig.send("vCont;c"), ["W07"]);
    assert_eq!(rig.plans.len(), 0);
    assert!(rig.session.is_closing());

    for leave in [b"D".as_slice(), b"", b"attach"] {
        let mut rig = spinning(2);
        rig.stop(vec![stop(1, StopReason::Exited(7))]);
        match leave {
            b"" => rig.session.disconnected(),
            b"attach" => {
                // The next client is told what the first one was not.
                rig.session.attach(GuestState::Stopped);
                rig.act();
                assert_eq!(rig.ask("?"), "W07");
                rig.session.disconnected();
            }
            packet => assert_eq!(rig.ask(packet), "OK"),
        }
        rig.act();
        assert_eq!((rig.releases, rig.interrupts), (0, 0));
        assert!(!rig.session.is_attached());

        // The VMM starts another guest: it is stopped and released as any other.
        rig.session.attach(GuestState::Running);
        rig.session.disconnected();
        rig.act();
        rig.stop(Vec::new());
        assert_eq!(rig.releases, 1);
    }
}

#[test]
fn a_reset_while_the_guest_is_stopped_for_the_client_is_explained_and_shown() {
    let mut rig = spinning(2);
    assert_eq!(rig.ask("p0"), hex(0u64.to_le_bytes()));
    registers_mut(rig.machine(), 0).core.rax = 0x17;
    assert_eq!(rig.ask("p0"), hex(0u64.to_le_bytes()), "cached");
    rig.stop(vec![
        stop(1, StopReason::Reset),
        stop(0, StopReason::InternalError("before the reset".into())),
    ]);
    assert_eq!(rig.ask("p0"), hex(0x17u64.to_le_bytes()), "stale registers");
    assert!(rig.ask("?").starts_with("T05thread:02;"));
    let replies = rig.send("vCont;c");
    assert_eq!(
        replies
            .iter()
            .map(|reply| console(reply))
            .collect::<Vec<_>>(),
        ["thread 2: the machine was reset\n"]
    );
    assert_eq!(rig.plans.len(), 1);
}

#[test]
fn a_stop_that_comes_while_the_guest_is_stopped_is_reported_at_the_next_resume() {
    let mut rig = spinning(2);
    let fault = StopReason::TripleFault("no IDT".into());
    assert!(
        rig.stop(vec![
            stop(0, StopReason::InternalError("emulation failed".into())),
            stop(1, fault),
            stop(1, StopReason::Step),
        ])
        .is_empty()
    );
    for signal in ["T04thread:01;", "T0bthread:02;"] {
        let replies = rig.send("vCont;c");
        assert!(replies.last().unwrap().starts_with(signal), "{replies:?}");
    }
    assert_eq!(rig.plans.len(), 0);
    rig.send("vCont;c");
    assert_eq!(rig.plans.len(), 1);
}

#[test]
fn a_guest_that_ends_after_its_client_has_gone_is_not_released() {
    for next in [false, true] {
        let mut rig = spinning(2);
        rig.send("vCont;c");
        rig.session.disconnected();
        assert_eq!(
            rig.session.next_action(),
            Some(debug_stub::Action::Interrupt)
        );
        if next {
            rig.session.attach(GuestState::Running);
            rig.session.receive(&frame(b"?"));
        }
        let replies = rig.stop(vec![stop(1, StopReason::Exited(7))]);
        assert_eq!((rig.releases, rig.interrupts), (0, 0));
        assert_eq!(rig.session.is_attached(), next);
        assert_eq!(replies, if next { vec!["W07"] } else { vec![] });
    }
}

#[test]
fn a_reset_after_its_client_has_gone_is_explained_to_the_next_one() {
    let mut rig = spinning(2);
    rig.send("vCont;c");
    rig.session.disconnected();
    rig.session.attach(GuestState::Running);
    rig.stop(vec![stop(0, StopReason::Reset)]);
    assert_eq!(rig.releases, 1);
    let replies = rig.send("vCont;c");
    assert!(console(&replies[0]).contains("the machine was reset"));
}

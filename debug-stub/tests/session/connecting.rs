//! The first packets, and what a client finds when it comes.

use super::*;

/// A session without a client.
fn unattached(vcpus: usize) -> Session<Machine> {
    let machine = machine(vcpus, &[code::SPIN]);
    Session::new(machine, SessionConfig::new(plan(&[])))
}

#[test]
fn the_features_are_those_of_filter_and_gdbstub() {
    let mut rig = spinning(1);
    let reply = rig.ask("qSupported:multiprocess+;swbreak+;;x");
    let features: Vec<&str> = reply.split(';').collect();
    for feature in [
        "PacketSize=20000",
        "QStartNoAckMode+",
        "binary-upload+",
        "vContSupported+",
        "swbreak+",
        "hwbreak+",
        "qXfer:features:read+",
    ] {
        assert!(features.contains(&feature), "{feature}: {reply}");
    }
    assert!(!reply.contains("multiprocess"));
    assert!(!reply.contains("fork"));
}

#[test]
fn a_client_in_the_place_of_another_waits_for_the_guest_to_be_let_go_and_stopped() {
    let mut rig = Rig::with(machine(1, &[code::SPIN]), common::run_on(&[]));
    rig.session.attach(GuestState::Stopped);
    rig.act();
    assert_eq!((rig.releases, rig.interrupts), (1, 1));
    assert!(rig.ask("?").starts_with("T05"));
}

#[test]
fn the_last_stop_is_shown_with_the_registers_of_now() {
    let mut rig = nops(2);
    rig.ask("vCont;s:2");
    rig.ask("P0=4200000000000000");
    rig.ask("Hg1");
    let reply = rig.ask("?");
    assert!(
        reply.starts_with("T05thread:02;00:4200000000000000;"),
        "{reply}"
    );
}

#[test]
fn a_running_guest_is_stopped_before_the_first_reply() {
    let mut session = unattached(1);
    session.attach(GuestState::Running);
    session.receive(&frame(b"?"));
    assert_eq!(session.output(), b"");
    assert_eq!(session.next_action(), Some(debug_stub::Action::Interrupt));
    session.stopped(Vec::new());
    let replies = unframe(session.output());
    assert!(replies[0].starts_with("T05thread:01;"), "{replies:?}");
}

#[test]
fn input_before_the_guest_has_stopped_is_not_lost_however_much_it_is() {
    let mut session = unattached(1);
    session.attach(GuestState::Running);
    // Too long for one packet, and asks behind it.
    let long = frame(&vec![b'a'; 2 * SessionConfig::DEFAULT_MAX_PACKET]);
    let input = [long, frame(b"qAttached").repeat(3)].concat();
    let mut rest = input.as_slice();
    let mut give = |session: &mut Session<Machine>| {
        // As a server reads: a buffer at most, and what there is room for.
        while !rest.is_empty() && session.input_room() > 0 {
            let count = rest.len().min(session.input_room()).min(1000);
            session.receive(&rest[..count]);
            rest = &rest[count..];
        }
        rest.len()
    };
    assert_ne!(give(&mut session), 0, "it is held back");
    session.stopped(Vec::new());
    assert_eq!(give(&mut session), 0);
    assert_eq!(unframe(session.output()), ["E5a", "1", "1", "1"]);
}

#[test]
fn a_crash_before_the_client_came_is_reported() {
    let mut session = unattached(2);
    session.attach(GuestState::Running);
    session.stopped(vec![stop(1, StopReason::TripleFault("no IDT".into()))]);
    session.receive(&frame(b"?"));
    session.receive(&frame(b"qC"));
    let replies = unframe(session.output());
    assert!(replies[0].starts_with("T0bthread:02;"), "{replies:?}");
    assert_eq!(replies[1], "QC02".replace('0', ""), "it is selected, too");
}

#[test]
fn a_guest_that_ended_as_the_client_came_is_not_run_again() {
    let mut session = unattached(2);
    session.attach(GuestState::Running);
    assert_eq!(session.next_action(), Some(debug_stub::Action::Interrupt));
    session.stopped(vec![stop(1, StopReason::Exited(7))]);
    session.receive(&frame(b"?"));
    session.receive(&frame(b"p10"));
    session.receive(&frame(b"vCont;c"));
    let replies = unframe(session.output());
    assert_eq!(replies, ["W07", "0080000000000000", "W07"]);
    assert_eq!(session.next_action(), None);
    assert!(session.is_closing());
    session.disconnected();
    assert!(!session.is_attached());
}

#[test]
fn threads_are_listed_in_order_named_and_alive() {
    let mut rig = spinning(3);
    assert_eq!(rig.ask("qfThreadInfo"), "m01,02,03");
    assert_eq!(rig.ask("qsThreadInfo"), "l");
    assert_eq!(rig.ask("qThreadExtraInfo,3"), hex("CPU#2"));
    let all = "<threads><thread id=\"1\">CPU}\u{3}0</thread>";
    assert_eq!(rig.ask("qXfer:threads:read::0,26"), format!("m{all}"));
    let rest = rig.ask("qXfer:threads:read::26,1000");
    assert!(rest.starts_with("l<thread id=\"2\">"), "{rest}");
    assert_eq!(rig.ask("qXfer:threads:read::fff,1000"), "l");
    assert_eq!(rig.ask("T3"), "OK");
    assert_eq!(rig.ask("T4"), "E01");
    assert_eq!(rig.ask("Hg4"), "E16");
    assert_eq!(rig.ask("Hg-1"), "OK");
    assert_eq!(rig.ask("Hgp1.2"), "OK");
    assert_eq!(rig.ask("qC"), "QC2");
}

#[test]
fn detach_releases_once_and_closes_and_the_next_client_finds_nothing_of_the_first() {
    let mut rig = nops(1);
    assert_eq!(rig.ask(format!("Z0,{:x},1", ENTRY + 2)), "OK");
    assert_eq!(rig.ask("Qqemu.sstep=0x1"), "OK");
    assert_eq!(rig.ask("Qqemu.PhyMemMode:1"), "OK");
    assert_eq!(rig.ask("QStartNoAckMode"), "OK");
    assert_eq!(rig.ask("D"), "OK");
    assert!(rig.session.is_closing());
    assert_eq!(rig.releases, 1);
    rig.session.disconnected();
    rig.act();
    assert_eq!(rig.releases, 1);

    rig.session.attach(GuestState::Stopped);
    assert_eq!(rig.ask("qqemu.sstep"), "0x3");
    assert_eq!(rig.ask("qqemu.PhyMemMode"), "0");
    rig.send("vCont;c");
    assert_eq!(rig.last_plan().armed.software.len(), 0);
    rig.session.receive(b"\x03");
    assert!(rig.session.next_action().is_some());
}

#[test]
fn a_client_that_vanishes_while_the_guest_runs_is_cleaned_up_after() {
    let mut rig = spinning(1);
    rig.send(format!("Z0,{:x},1", ENTRY + 8));
    rig.send("vCont;c");
    assert_eq!(rig.machine().memory().get(ENTRY + 8, 1), [0xcc]);
    rig.session.disconnected();
    rig.act();
    assert_eq!((rig.interrupts, rig.releases), (1, 1));
    assert_eq!(rig.machine().memory().get(ENTRY + 8, 1), [0]);
}

#[test]
fn a_client_that_comes_before_the_last_one_is_cleaned_up_waits_for_that() {
    let mut rig = spinning(1);
    rig.send("vCont;c");
    rig.session.disconnected();
    rig.session.attach(GuestState::Running);
    rig.session.receive(&frame(b"?"));
    assert_eq!(rig.session.output(), b"");
    rig.act();
    assert_eq!((rig.interrupts, rig.releases), (2, 1));
    assert!(rig.replies()[0].starts_with("T05"));
}

#[test]
fn kill_ends_the_guest_and_releases_nothing() {
    for (packet, reply) in [("k", vec![]), ("vKill;1", vec!["OK"])] {
        let mut rig = spinning(1);
        assert_eq!(rig.send(packet), reply);
        assert!(rig.session.is_closing());
        rig.session.disconnected();
        rig.act();
        assert_eq!((rig.kills, rig.releases), (1, 0));
    }
}

#[test]
fn packets_that_end_a_gdbstub_session_are_answered_and_the_session_lives() {
    let mut rig = spinning(2);
    for packet in [
        "vCont;t",
        "vCont;t:1",
        "vCont;s:9",
        "vCont",
        "G00",
        "G",
        "mzz,1",
        "P10=00",
        "P1=",
        "Pffff=00",
        "pffff",
        "Z9,0,1",
        "qRcmd,5",
        "Hgzz",
        "T0",
        "T-1",
        "D1",
        "X0,2:a",
        "qXfer:features:read:none.xml:0,10",
        "M0,1:zz",
        "qThreadExtraInfo,9",
    ] {
        let reply = rig.ask(packet);
        assert!(reply.starts_with('E'), "{packet}: {reply}");
    }
    for packet in [
        "",
        "vMustReplyEmpty",
        "vCtrlC",
        "QNonStop:1",
        "bs",
        "Z3,0,1",
    ] {
        assert_eq!(rig.ask(packet), "", "{packet}");
    }
    assert_eq!(rig.ask("qAttached"), "1");
    assert_eq!(rig.plans.len(), 0);
}

//! Acknowledgements, checksums, packet sizes.

use super::*;

#[test]
fn a_damaged_packet_is_asked_for_again_and_the_session_lives() {
    let mut rig = spinning(1);
    rig.session.receive(b"$g#00");
    assert_eq!(rig.session.output(), b"-");
    rig.session.consume_output(1);
    assert_eq!(rig.ask("g").len(), 608 * 2);
}

#[test]
fn a_nack_sends_the_reply_again_without_doing_the_request_again() {
    let mut rig = nops(1);
    let first = rig.ask("vCont;s:1");
    assert_eq!(rig.bytes(b"-"), [first]);
    assert_eq!(rig.plans.len(), 1);
}

#[test]
fn no_ack_mode_acknowledges_its_own_packet_and_nothing_after() {
    let mut rig = spinning(1);
    rig.session.receive(&frame(b"QStartNoAckMode"));
    assert_eq!(rig.session.output(), b"+$OK#9a");
    rig.session.consume_output(7);
    rig.session.receive(b"+");
    rig.session.receive(&frame(b"qAttached"));
    assert_eq!(rig.session.output(), b"$1#31");
    rig.session.consume_output(5);
    assert_eq!(rig.bytes(b"-"), [""; 0], "nothing is sent again");
    assert_eq!(rig.bytes(b"$g#00"), ["E4a"], "a bad sum is an error reply");
}

#[test]
fn a_packet_over_the_advertised_size_is_refused_and_the_next_one_served() {
    let mut rig = spinning(1);
    let limit = SessionConfig::DEFAULT_MAX_PACKET;
    assert_eq!(rig.ask(vec![b'a'; limit + 1]), "E5a");
    assert_eq!(rig.ask("qAttached"), "1");
}

#[test]
fn ctrl_c_that_crosses_with_a_stop_leaves_no_phantom_stop() {
    for looks in [
        "g",
        "m4000,4",
        "p10",
        "qThreadExtraInfo,1",
        "?",
        "qRcmd,68656c70",
    ] {
        let mut rig = spinning(1);
        rig.bytes(b"\x03");
        rig.ask("z1,4000,1");
        rig.send(looks);
        assert_eq!(rig.send("vCont;c"), [""; 0], "it runs: {looks}");
        assert!(rig.running.is_some());
        assert_eq!(rig.interrupts, 0);
    }
}

#[test]
fn ctrl_c_that_overtakes_a_resume_interrupts_it_once() {
    for resume in ["vCont;c", "vCont;c:1", "c", "C05"] {
        let mut rig = spinning(1);
        rig.ask("g");
        assert_eq!(rig.bytes(b"\x03"), [""; 0]);
        rig.ask("Z1,5000,1");
        rig.ask("Hc0");
        rig.ask("vCont?");
        let replies = rig.send(resume);
        assert!(replies[0].starts_with("T02thread:01;"), "{replies:?}");
        assert_eq!(rig.interrupts, 1);
        assert_eq!(rig.send("vCont;c"), [""; 0], "it runs");
        assert_eq!(rig.interrupts, 1);
    }
}

#[test]
fn ctrl_c_at_a_resume_that_has_stopped_at_once_stops_no_later_one() {
    for together in [b"\x03$vCont;s:1#23", b"$vCont;s:1#23\x03"] {
        let mut rig = nops(1);
        let replies = rig.bytes(together);
        assert_eq!(replies.len(), 1, "{replies:?}");
        assert!(replies[0].starts_with("T05"), "{replies:?}");
        assert_eq!(rig.interrupts, 0);
    }
}

#[test]
fn ctrl_c_is_not_left_to_the_next_client() {
    let mut rig = spinning(1);
    assert_eq!(rig.bytes(b"\x03"), [""; 0]);
    rig.session.disconnected();
    rig.act();
    rig.session.attach(GuestState::Stopped);
    rig.act();
    assert_eq!(rig.send("vCont;c"), [""; 0], "it runs");
    assert_eq!(rig.interrupts, 0);
}

#[test]
fn ctrl_c_stops_a_spinning_guest_once() {
    let mut rig = spinning(2);
    rig.send("vCont;c");
    let replies = rig.bytes(b"\x03\x03\x03");
    assert_eq!(replies.len(), 1);
    assert!(replies[0].starts_with("T02thread:01;"), "{}", replies[0]);
    assert_eq!(rig.interrupts, 1);
}

#[test]
fn packets_while_the_guest_runs_are_dropped_and_ctrl_c_behind_them_works() {
    let mut rig = spinning(1);
    rig.send("vCont;c");
    let reads = rig.machine().register_reads();
    assert_eq!(rig.send("g"), [""; 0]);
    assert_eq!(rig.machine().register_reads(), reads);
    assert!(rig.bytes(b"\x03")[0].starts_with("T02"));
}

#[test]
fn a_client_that_does_not_read_is_not_served_and_costs_no_memory() {
    let mut rig = spinning(1);
    let request = frame(b"m0,4000");
    for _ in 0..10_000 {
        rig.session.receive(&request);
    }
    assert_eq!(rig.session.input_room(), 0);
    assert!(rig.session.output().len() <= 4 * SessionConfig::DEFAULT_MAX_PACKET);
    while !rig.session.output().is_empty() {
        rig.session.consume_output(1000);
    }
    assert_ne!(rig.session.input_room(), 0);
}

//! Errors: their text, for clients that take one, and notices for the others.

use super::*;

fn with_texts(machine: Machine) -> Rig {
    let mut rig = Rig::new(machine);
    rig.ask("qSupported:error-message+;swbreak+;hwbreak+");
    rig
}

/// Packets that take all slots, without an error.
const FILL: [&str; 4] = ["Z1,9100,1", "Z1,9101,1", "Z1,9102,1", "Z1,9103,1"];

/// A packet that fails then, its error number, and a part of the reason.
const FAILURES: [(&str, &str, &str); 5] = [
    (
        "Z1,9004,1",
        "E1c",
        "breakpoint at 0x9004: needs 1 of the 0 free debug registers",
    ),
    (
        "Z4,9100,100",
        "E1c",
        "256 bytes at 0x9100 need more than the 4 debug registers",
    ),
    (
        "P10=0000000000000080",
        "E16",
        "rip cannot hold 0x8000000000000000",
    ),
    ("P0=00", "E16", "rax has 8 bytes, not 1"),
    ("vCont;s:9", "E16", "cannot resume: there is no thread 9"),
];

#[test]
fn a_client_that_takes_texts_gets_them_and_no_notice() {
    let mut rig = with_texts(machine(1, &[code::SPIN]));
    for packet in FILL {
        assert_eq!(rig.ask(packet), "OK");
    }
    for (packet, _, text) in FAILURES {
        let reply = rig.ask(packet);
        assert!(reply.starts_with("E."), "{packet}: {reply}");
        assert!(reply.contains(text), "{packet}: {reply}");
    }
    assert_eq!(rig.ask("mzz"), "E.a packet that makes no sense");
    assert_eq!(
        rig.ask("mffffffff00000000,1"),
        "E0e",
        "GDB has its own words"
    );
    assert_eq!(rig.send("vCont;c"), [""; 0], "nothing is said twice");
}

#[test]
fn other_clients_get_numbers_and_a_notice_with_the_packet_once() {
    let mut rig = spinning(1);
    for packet in FILL {
        assert_eq!(rig.ask(packet), "OK");
    }
    for (packet, number, _) in FAILURES {
        assert_eq!(rig.ask(packet), number, "{packet}");
        // GDB tries again.
        assert_eq!(rig.ask(packet), number, "{packet}");
    }
    let said = maintenance::monitor(&mut rig, "mask");
    for (packet, _, text) in FAILURES {
        let head = format!("{packet}: ");
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with(&head))
            .collect();
        assert_eq!(lines.len(), 1, "{packet}: {said}");
        assert!(lines[0].contains(text), "{said}");
    }
    assert_eq!(rig.send("vCont;c"), [""; 0], "nothing is said twice");
}

#[test]
fn a_refused_breakpoint_is_not_news_at_a_later_stop() {
    let mut rig = spinning(1);
    for at in 0..5 {
        rig.ask(format!("Z1,{:x},1", 0x9000 + at));
    }
    rig.ask("z1,9000,1");
    assert_eq!(rig.send("vCont;c"), [""; 0]);
    let replies = rig.bytes(b"\x03");
    assert!(replies[0].starts_with("T02"), "{replies:?}");
}

#[test]
fn a_breakpoint_in_a_debug_register_is_told_of_once_not_at_each_next() {
    let program = [code::NOP; 8];
    let mut rig = without(&[Capability::BptExit], machine(1, &program));
    let mut said = String::new();
    for at in 1..5 {
        // A temporary breakpoint behind each call.
        assert_eq!(rig.ask(format!("Z0,{:x},1", ENTRY + at)), "OK");
        for reply in rig.send("vCont;c") {
            if reply.starts_with('O') {
                said.push_str(&console(&reply));
            }
        }
        assert_eq!(rig.ask(format!("z0,{:x},1", ENTRY + at)), "OK");
    }
    assert_eq!(said.matches("takes one of").count(), 1, "{said}");
    assert!(said.contains("breakpoint at 0x8001"), "{said}");
}

#[test]
fn a_text_is_one_packet_whatever_is_in_it() {
    let mut rig = with_texts(machine(1, &[code::SPIN]));
    let (_, vcpu) = rig.machine().vcpu_mut(0).unwrap();
    vcpu.fail_call(0);
    let reply = rig.ask("P0=0100000000000000");
    assert!(reply.starts_with("E.thread 1: "), "{reply}");
    assert!(!reply.contains(['#', '$', '}', '*', '\n']), "{reply}");
}

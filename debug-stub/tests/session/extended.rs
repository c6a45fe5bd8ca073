//! Extended mode: a connection that outlives the debugging of the guest, and resets.

use super::*;

fn extended() -> Rig {
    let mut rig = nops(2);
    assert_eq!(rig.ask("!"), "OK");
    rig
}

#[test]
fn detach_keeps_the_connection_and_attach_comes_back() {
    let mut rig = extended();
    assert_eq!(rig.ask(format!("Z0,{:x},1", ENTRY + 3)), "OK");
    assert_eq!(rig.ask("D"), "OK");
    assert_eq!(rig.releases, 1);
    assert!(!rig.session.is_closing());
    assert!(!rig.session.is_attached(), "stops are the VMM's");
    // What GDB asks for `info threads`, and for any command that needs a process.
    assert_eq!(rig.ask("qfThreadInfo"), "l");
    assert_eq!(
        rig.ask("qXfer:threads:read::0,1000"),
        "l<threads></threads>"
    );
    assert_eq!(rig.ask("?"), "W00");
    for packet in [
        "g",
        "m8000,1",
        "Z0,8000,1",
        "vCont;c",
        "c",
        "Hg1",
        "vKill;1",
    ] {
        assert_eq!(rig.ask(packet), "E03", "{packet}");
    }
    for packet in ["k", "R00"] {
        assert_eq!(rig.send(packet), [""; 0], "{packet} has no reply");
    }
    assert_eq!(rig.kills, 0);
    assert_eq!(rig.bytes(b"\x03"), [""; 0]);
    assert_eq!(rig.interrupts, 0);
    assert!(rig.ask("vAttach;1").starts_with("T05thread:01;00:"));
    assert_eq!(rig.interrupts, 1);
    rig.send("vCont;s:1");
    assert!(rig.last_plan().armed.software.is_empty(), "nothing is left");
    assert_eq!(rig.ask("D"), "OK");
    rig.session.disconnected();
    rig.act();
    assert_eq!(rig.releases, 2, "not a third time");
}

#[test]
fn without_extended_mode_detach_closes() {
    let mut rig = nops(1);
    assert_eq!(rig.ask("D"), "OK");
    assert!(rig.session.is_closing());
    // Nor is the next client in that mode.
    let mut rig = extended();
    rig.session.disconnected();
    rig.session.attach(GuestState::Stopped);
    assert_eq!(rig.ask("D"), "OK");
    assert!(rig.session.is_closing());
}

#[test]
fn a_client_that_goes_after_it_detached_or_before_it_is_attached_again_leaves_the_guest_running() {
    let mut rig = extended();
    rig.ask("D");
    rig.session.receive(&frame(b"vAttach;1"));
    rig.session.disconnected();
    rig.act();
    assert_eq!((rig.interrupts, rig.releases), (1, 2));
    assert!(!rig.session.is_attached());
}

#[test]
fn a_vmm_that_cannot_reset_in_place_says_so() {
    let mut rig = extended();
    assert_eq!(rig.ask("vRun;6b;"), "E05");
    assert_eq!(rig.send("R00"), [""; 0], "it has no reply");
    let said = maintenance::monitor(&mut rig, "system_reset");
    assert!(said.contains("cannot reset the machine in place"), "{said}");
    assert_eq!(rig.kills, 0, "and the guest lives");
    rig.ask("qSupported:error-message+");
    assert!(rig.ask("vRun;").starts_with("E.this VMM cannot reset"));
}

#[test]
fn monitor_quit_ends_the_guest() {
    let mut rig = nops(1);
    assert_eq!(maintenance::monitor(&mut rig, "quit"), "the guest ends\n");
    assert!(rig.session.is_closing());
    rig.session.disconnected();
    rig.act();
    assert_eq!((rig.kills, rig.releases), (1, 0));
}

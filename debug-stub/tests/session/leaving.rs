//! Clients that go without a word, and what becomes of the guest.

use debug_stub::OnDisconnect;

use super::*;

fn rig(policy: OnDisconnect, found: GuestState) -> Rig {
    let mut config = SessionConfig::new(plan(&[]));
    config.on_disconnect = policy;
    let mut program = vec![code::NOP; 8];
    program.push(code::SPIN);
    let mut rig = Rig::with(machine(2, &program), config);
    if found == GuestState::Running {
        rig.session.disconnected();
        rig.act();
        rig.session.attach(found);
        rig.act();
        (rig.interrupts, rig.releases) = (0, 0);
    }
    rig
}

/// The client goes. Returns `true` if the guest runs then.
fn hang_up(rig: &mut Rig) -> bool {
    rig.session.disconnected();
    rig.act();
    assert!(!rig.session.is_attached());
    assert_eq!(rig.machine().memory().get(ENTRY, 8), [0x90; 8]);
    assert!(rig.releases <= 1);
    common::assert_disarmed(rig.machine());
    rig.releases == 1
}

/// What a client does before it goes, and whether a guest that it found stopped runs then.
const DEEDS: [(&[&str], bool); 9] = [
    (&[], false),
    (&["?", "g", "m8000,8"], false),
    (
        &["Z0,8002,1", "Z1,8003,1", "Z2,9000,8", "Qqemu.PhyMemMode:1"],
        false,
    ),
    // Masked, and with TF lent.
    (&["vCont;s:1"], false),
    (&["Z0,8002,1", "vCont;s:1;c"], false),
    // A step that does not end.
    (&["vCont;r8000,9000:2"], false),
    // It stops at a breakpoint, and the client knows.
    (&["Z0,8002,1", "vCont;c"], false),
    (&["vCont;c"], true),
    (&["Hc1", "c"], true),
];

#[test]
fn a_guest_that_was_stopped_stays_stopped_unless_it_was_continued() {
    for (packets, runs) in DEEDS {
        let mut rig = rig(OnDisconnect::AsBefore, GuestState::Stopped);
        for packet in packets {
            rig.send(packet);
        }
        assert_eq!(hang_up(&mut rig), runs, "{packets:?}");
    }
}

#[test]
fn a_guest_that_ran_runs_on_whatever_was_done() {
    for (packets, _) in DEEDS {
        let mut rig = rig(OnDisconnect::AsBefore, GuestState::Running);
        for packet in packets {
            rig.send(packet);
        }
        assert!(hang_up(&mut rig), "{packets:?}");
    }
    // Gone before the guest has stopped for it.
    let mut session = Session::new(machine(1, &[code::SPIN]), SessionConfig::new(plan(&[])));
    session.attach(GuestState::Running);
    session.disconnected();
    assert_eq!(session.next_action(), Some(debug_stub::Action::Interrupt));
    session.stopped(Vec::new());
    assert_eq!(session.next_action(), Some(debug_stub::Action::Release));
}

#[test]
fn the_policy_decides_where_there_is_one() {
    for found in [GuestState::Stopped, GuestState::Running] {
        for (packets, _) in DEEDS {
            for (policy, runs) in [(OnDisconnect::Run, true), (OnDisconnect::Stop, false)] {
                let mut rig = rig(policy, found);
                for packet in packets {
                    rig.send(packet);
                }
                assert_eq!(hang_up(&mut rig), runs, "{policy:?} {found:?} {packets:?}");
            }
        }
    }
}

#[test]
fn detach_lets_the_guest_run_under_any_policy() {
    for policy in [
        OnDisconnect::AsBefore,
        OnDisconnect::Run,
        OnDisconnect::Stop,
    ] {
        let mut rig = rig(policy, GuestState::Stopped);
        assert_eq!(rig.ask("D"), "OK");
        assert!(hang_up(&mut rig), "{policy:?}");
    }
}

#[test]
fn the_next_client_finds_a_guest_that_stayed_stopped_with_nothing_of_the_first() {
    let mut rig = rig(OnDisconnect::AsBefore, GuestState::Stopped);
    assert_eq!(rig.ask("Z0,8002,1"), "OK");
    rig.ask("vCont;s:1");
    assert!(!hang_up(&mut rig));
    rig.session.attach(GuestState::Stopped);
    rig.act();
    assert_eq!(rig.interrupts, 0, "it is stopped");
    assert!(
        rig.ask("?").contains("10:0180000000000000;"),
        "where it was"
    );
    rig.ask("vCont;s:1");
    assert!(rig.last_plan().armed.software.is_empty());
    assert!(!hang_up(&mut rig), "found stopped again");
}

#[test]
fn a_client_that_comes_while_the_last_one_is_cleaned_up_after_finds_a_stopped_guest() {
    let mut rig = rig(OnDisconnect::AsBefore, GuestState::Stopped);
    rig.send("vCont;r8000,9000:2");
    rig.session.disconnected();
    rig.session.attach(GuestState::Running);
    rig.session.receive(&frame(b"?"));
    rig.act();
    assert!(rig.replies()[0].starts_with("T05"));
    assert_eq!((rig.interrupts, rig.releases), (1, 0));
    assert!(!hang_up(&mut rig));
}

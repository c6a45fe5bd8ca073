//! A guest that asks for a reset of the machine.

use debug_stub::OnReset;
use debug_stub::x86_64::simulated::{ALIAS, TABLES};

use super::*;

const REQUEST: StopReason = StopReason::ResetRequest;

fn resetting(on_reset: OnReset) -> Rig {
    let mut config = SessionConfig::new(plan(&[]));
    config.on_reset = on_reset;
    let program: Vec<&[u8]> = vec![code::NOP, code::INC_RAX, code::NOP, code::SPIN];
    Rig::with(machine(2, &program).with_reset(), config)
}

/// Where the second instruction is.
const POINT: u64 = ENTRY + 1;

fn byte(rig: &mut Rig, at: u64) -> u8 {
    rig.machine().memory().get(at, 1)[0]
}

#[test]
fn by_default_the_guest_stops_before_its_first_instruction() {
    let mut rig = resetting(OnReset::Stop);
    assert_eq!(rig.ask(format!("Z0,{:x},1", ENTRY + 0x50)), "OK");
    rig.send("vCont;c");
    let replies = rig.stop(vec![stop(1, REQUEST)]);
    assert!(console(&replies[0]).contains("the machine was reset"));
    assert!(replies[1].starts_with("T05thread:02;"), "{replies:?}");
    assert_eq!(rig.machine().resets(), 1);
    assert_eq!(rig.ask("p10"), hex(ENTRY.to_le_bytes()));
}

#[test]
fn a_guest_that_may_go_on_starts_again_and_stops_at_its_breakpoints() {
    let mut rig = resetting(OnReset::Continue);
    rig.send("vCont;c");
    let plans = rig.plans.len();
    let replies = rig.stop(vec![stop(0, REQUEST)]);
    // It runs as far as it did before.
    assert_eq!(console(&replies[0]), "the machine was reset\n");
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!(rig.plans.len(), plans + 1);
    assert_eq!(rig.machine().resets(), 1);
    // Ctrl-C finds it.
    let replies = rig.bytes(&[3]);
    assert!(replies[0].starts_with("T02"), "{replies:?}");
}

/// What is in memory after a reset is not what the breakpoint was set in.
#[test]
fn software_breakpoints_move_into_debug_slots_and_those_without_one_are_named() {
    let mut rig = resetting(OnReset::Continue);
    for at in 0..6 {
        assert_eq!(rig.ask(format!("Z0,{:x},1", ENTRY + 0x100 + at)), "OK");
    }
    rig.send("vCont;c");
    let replies = rig.stop(vec![stop(0, REQUEST)]);
    let text: String = replies.iter().map(|reply| console(reply)).collect();
    assert!(text.contains("2 breakpoints stop nothing"), "{text}");
    let armed = &rig.plans.last().unwrap().armed;
    assert_eq!((armed.hardware.len(), armed.software.len()), (4, 0));
    for at in 0..6 {
        assert_eq!(byte(&mut rig, ENTRY + 0x100 + at), 0, "an INT3 was left");
    }
    rig.bytes(&[3]);
    // One is deleted, and a lost one is set again.
    assert_eq!(rig.ask(format!("z0,{:x},1", ENTRY + 0x100)), "OK");
    assert_eq!(rig.ask(format!("Z0,{:x},1", ENTRY + 0x105)), "OK");
    rig.send("vCont;c");
    let armed = &rig.plans.last().unwrap().armed;
    assert_eq!((armed.hardware.len(), armed.software.len()), (3, 1));
}

/// A kernel's breakpoints, in the upper half: its page tables are gone.
#[test]
fn breakpoints_where_nothing_is_mapped_after_the_reset_wait_for_memory() {
    let mut rig = resetting(OnReset::Continue);
    for at in 0..6 {
        assert_eq!(rig.ask(format!("Z0,{:x},1", ALIAS + at)), "OK");
    }
    rig.send("vCont;c");
    assert_eq!(rig.last_plan().armed.software.len(), 6);
    let entry_of_page = TABLES + 3 * 0x1000;
    let mapped = rig.machine().memory().get(entry_of_page, 8);
    rig.machine().memory().put(entry_of_page, &[0; 8]);
    let replies = rig.stop(vec![stop(0, REQUEST)]);
    assert_eq!(console(&replies[0]), "the machine was reset\n");
    assert_eq!(replies.len(), 1, "none is lost: {replies:?}");
    let armed = &rig.last_plan().armed;
    assert_eq!((armed.hardware.len(), armed.awaited.len()), (4, 2));
    assert_eq!(armed.software.len(), 0);
    // The kernel maps itself again.
    rig.machine().memory().put(entry_of_page, &mapped);
    rig.stop(vec![stop(0, StopReason::CodeChanged)]);
    let armed = &rig.last_plan().armed;
    assert_eq!((armed.hardware.len(), armed.awaited.len()), (4, 0));
    assert_eq!(armed.software.len(), 2);
}

#[test]
fn a_breakpoint_stops_the_guest_after_its_reset_too() {
    let mut rig = resetting(OnReset::Continue);
    rig.send("vCont;c");
    rig.bytes(&[3]);
    assert_eq!(rig.ask(format!("Z0,{POINT:x},1")), "OK");
    rig.send("vCont;c");
    let replies = rig.stop(vec![stop(0, REQUEST)]);
    assert!(
        replies.last().unwrap().starts_with("T05thread:01;"),
        "{replies:?}"
    );
    assert_eq!(rig.ask("p10"), hex(POINT.to_le_bytes()));
    assert_eq!(byte(&mut rig, POINT), 0x48, "an INT3 is in memory");
}

#[test]
fn a_step_ends_with_the_reset_and_a_ctrl_c_is_reported() {
    let mut rig = resetting(OnReset::Continue);
    rig.session.receive(&frame(b"vCont;s:1"));
    assert!(rig.session.next_action().is_some());
    let replies = rig.stop(vec![stop(0, REQUEST)]);
    assert!(
        replies.last().unwrap().starts_with("T05thread:01;"),
        "{replies:?}"
    );
    assert_eq!(rig.ask("p10"), hex(ENTRY.to_le_bytes()));
}

#[test]
fn a_machine_that_cannot_be_reset_says_so_and_keeps_the_guest() {
    let mut rig = spinning(1);
    rig.send("vCont;c");
    let replies = rig.stop(vec![stop(0, REQUEST)]);
    assert!(console(&replies[0]).contains("this VMM cannot reset the machine in place"));
    assert!(replies[1].starts_with("T04thread:01;"), "{replies:?}");
}

#[test]
fn a_guest_whose_client_has_gone_is_reset_and_released() {
    let mut rig = resetting(OnReset::Stop);
    rig.send("vCont;c");
    rig.session.disconnected();
    rig.stop(vec![stop(0, REQUEST)]);
    assert_eq!(rig.machine().resets(), 1);
    assert_eq!(rig.releases, 1);
}

#[test]
fn a_ctrl_c_that_meets_a_reset_is_reported_as_such() {
    let mut rig = resetting(OnReset::Continue);
    rig.send("vCont;c");
    rig.session.receive(&[3]);
    let replies = rig.stop(vec![stop(0, REQUEST)]);
    assert_eq!(console(&replies[0]), "the machine was reset\n");
    assert!(replies[1].starts_with("T02thread:01;"), "{replies:?}");
}

/// GDB's `run` is `vKill`, then `vRun`.
#[test]
fn in_extended_mode_a_guest_that_was_killed_runs_again() {
    let mut rig = resetting(OnReset::Stop);
    rig.ask("!");
    rig.ask("vCont;s:1");
    assert_eq!(rig.ask(format!("Z0,{POINT:x},1")), "OK");
    assert_eq!(rig.ask("vKill;1"), "OK");
    assert!(rig.session.is_attached(), "the VMM does not start it");
    assert_eq!(rig.kills, 0);
    assert_eq!(rig.ask("?"), "W00");
    assert_eq!(rig.ask("g"), "E03");
    assert_eq!(rig.ask("vAttach;1"), "E03");
    assert_eq!(rig.bytes(&[3]), [""; 0]);
    assert!(rig.ask("vRun;66").starts_with("T05thread:01;"));
    assert_eq!(rig.machine().resets(), 1);
    assert_eq!(rig.ask("p10"), hex(ENTRY.to_le_bytes()));
    rig.send("vCont;c");
    assert!(rig.last_plan().armed.software.is_empty(), "of the old one");
    // What the client has announced holds.
    rig.bytes(&[3]);
    assert_eq!(rig.ask(format!("Z1,{:x},1", ENTRY + 5)), "OK");
    let replies = rig.send("vCont;c");
    assert!(replies[0].contains("hwbreak:;"), "{replies:?}");
}

#[test]
fn a_guest_that_was_killed_ends_with_its_client() {
    let mut rig = resetting(OnReset::Stop);
    rig.ask("!");
    assert_eq!(rig.send("k"), [""; 0]);
    rig.session.disconnected();
    rig.act();
    assert_eq!((rig.kills, rig.releases), (1, 0));
    // If the VMM attaches the next client at once, that one has it.
    let mut rig = resetting(OnReset::Stop);
    rig.ask("!");
    assert_eq!(rig.ask("vKill;1"), "OK");
    rig.session.attach(GuestState::Stopped);
    rig.act();
    assert_eq!((rig.kills, rig.releases), (0, 0));
    assert_eq!(rig.ask("p10"), hex(ENTRY.to_le_bytes()));
    // Without extended mode it ends at once.
    let mut rig = resetting(OnReset::Stop);
    assert_eq!(rig.ask("vKill;1"), "OK");
    assert_eq!((rig.kills, rig.machine().resets()), (1, 0));
}

/// Found by the fuzz target: the plan had orders for vCPUs that had gone.
#[test]
fn a_machine_that_has_other_vcpus_after_its_reset_runs_them() {
    let mut rig = resetting(OnReset::Continue);
    rig.send("vCont;c");
    rig.machine().set_vcpus(1);
    rig.stop(vec![stop(1, REQUEST)]);
    assert_eq!(rig.last_plan().vcpus, [VcpuOrder::Continue]);
    rig.machine().set_vcpus(3);
    rig.stop(vec![stop(0, REQUEST)]);
    assert_eq!(rig.last_plan().vcpus.len(), 3);
}

//! Data breakpoints.

use super::*;

#[test]
fn a_range_is_split_over_aligned_registers() {
    let mut rig = nops(1);
    assert_eq!(rig.ask("Z2,9001,7"), "OK");
    rig.ask("vCont;s:1");
    let pieces: Vec<_> = rig
        .last_plan()
        .armed
        .hardware
        .iter()
        .map(|b| (b.address(), b.length()))
        .collect();
    assert_eq!(pieces, [(0x9001, 1), (0x9002, 2), (0x9004, 4)]);
    assert_eq!(rig.ask("Z2,a001,20"), "E1c", "more than there is");
    assert_eq!(rig.ask("Z2,a000,0"), "E16");
    assert_eq!(rig.ask("z2,9001,7"), "OK");
    assert!(maintenance::monitor(&mut rig, "mask").contains("more than the 4"));
    rig.ask("vCont;s:1");
    assert_eq!(rig.last_plan().armed.hardware.len(), 0);
}

#[test]
fn a_hit_names_the_address_and_the_kind() {
    let mut rig = Rig::new(storing(1, &[code::SPIN]));
    rig.ask("Z4,9000,1");
    let reply = rig.ask("vCont;c");
    assert!(reply.starts_with("T05thread:01;awatch:9000;"), "{reply}");
}

#[test]
fn two_vcpus_hits_at_once_are_reported_one_after_the_other() {
    let mut rig = Rig::new(storing(2, &[code::SPIN]));
    rig.ask("Z2,9000,1");
    assert!(rig.ask("vCont;c").starts_with("T05thread:01;watch:9000;"));
    let second = rig.ask("vCont;c");
    assert!(second.starts_with("T05thread:02;watch:9000;"), "{second}");
    assert_eq!(rig.plans.len(), 1, "the second was reported without a run");
    assert_eq!(rig.send("vCont;c"), [""; 0]);
}

#[test]
fn a_queued_hit_of_a_deleted_watchpoint_is_not_reported() {
    let mut rig = Rig::new(storing(2, &[code::SPIN]));
    rig.ask("Z2,9000,1");
    rig.ask("vCont;c");
    rig.ask("z2,9000,1");
    assert_eq!(rig.send("vCont;c"), [""; 0]);
    assert_eq!(rig.plans.len(), 2);
}

#[test]
fn a_queued_hit_waits_for_its_vcpu_to_be_resumed() {
    let mut rig = Rig::new(storing(2, &[code::NOP, code::NOP, code::SPIN]));
    rig.ask("Z2,9000,1");
    rig.ask("vCont;c");
    assert!(rig.ask("vCont;s:1").starts_with("T05thread:01;"));
    assert!(rig.ask("vCont;s:2").starts_with("T05thread:02;watch"));
}

#[test]
fn two_breakpoint_hits_at_once_name_one_thread_and_the_other_hits_again() {
    let mut rig = nops(2);
    rig.ask(format!("Z0,{:x},1", ENTRY + 1));
    assert!(rig.ask("vCont;c").starts_with("T05thread:01;swbreak"));
    rig.ask("vCont;s:1");
    assert!(rig.ask("vCont;c").starts_with("T05thread:02;swbreak"));
}

#[test]
fn a_watch_hit_is_reported_before_a_breakpoint_that_hits_again() {
    let mut rig = spinning(2);
    rig.ask("Z2,9000,1");
    rig.send("vCont;c");
    let hit = StopReason::Watchpoint {
        address: 0x9000,
        access: WatchAccess::Write,
    };
    let replies = rig.stop(vec![stop(0, StopReason::HardwareBreakpoint), stop(1, hit)]);
    assert!(replies[0].starts_with("T05thread:02;watch:9000"));
}

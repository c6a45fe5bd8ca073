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
    assert_eq!(rig.ask("Z4,a001,20"), "E1c", "more than there is");
    assert_eq!(rig.ask("Z2,a000,0"), "E16");
    assert_eq!(rig.ask("z2,9001,7"), "OK");
    assert!(maintenance::monitor(&mut rig, "mask").contains("more than the 4"));
    rig.ask("vCont;s:1");
    assert_eq!(rig.last_plan().armed.hardware.len(), 0);
}

/// `STORE` changes what it writes to.
fn changing(program: &[&[u8]]) -> Machine {
    storing(1, program).with_registers(|file| file.core.rax = 0x55)
}

/// Writes that no debug register is free for: the guest is stepped, and the memory is compared.
#[test]
fn a_range_beyond_the_registers_is_compared() {
    let mut rig = Rig::new(changing(&[code::NOP, code::SPIN]));
    assert_eq!(rig.ask("Z2,8f00,200"), "OK");
    let notice = maintenance::monitor(&mut rig, "mask");
    assert!(
        notice.contains("watchpoint at 0x8f00: no debug registers for it"),
        "{notice}"
    );
    // GDB sends it at each resume.
    assert_eq!(rig.ask("z2,8f00,200"), "OK");
    assert_eq!(rig.ask("Z2,8f00,200"), "OK");
    assert!(!maintenance::monitor(&mut rig, "mask").contains("0x8f00"));
    let reply = rig.ask("vCont;c");
    assert!(reply.starts_with("T05thread:01;watch:9000;"), "{reply}");
    assert_eq!(
        rig.last_plan().armed.compared.first(),
        Some(&(0x8f00..0x9100))
    );
    assert_eq!(rig.last_plan().armed.hardware, []);
    assert_eq!(rig.ask("z2,8f00,200"), "OK");
    rig.ask("vCont;s:1");
    assert_eq!(rig.last_plan().armed.compared, []);
}

/// Each vCPU notices it. The client is told once.
#[test]
fn a_change_is_reported_once_however_many_vcpus_notice_it() {
    let mut rig = spinning(2);
    assert_eq!(rig.ask("Z2,8f00,200"), "OK");
    rig.send("vCont;c");
    let hit = |address| StopReason::Watchpoint {
        address,
        access: WatchAccess::Write,
    };
    let replies = rig.stop(vec![stop(0, hit(0x9000)), stop(1, hit(0x9000))]);
    assert!(replies[0].contains("watch:9000;"), "{replies:?}");
    assert_eq!(rig.send("vCont;c"), [""; 0], "the guest runs");
    rig.stop(vec![stop(0, hit(0x9000)), stop(1, hit(0x9004))]);
    let second = rig.ask("vCont;c");
    assert!(second.contains("thread:02;watch:9004;"), "{second}");
}

#[test]
fn what_is_compared_is_bounded_and_reads_are_not_compared() {
    let mut rig = nops(1);
    for at in [0x9000, 0x9001, 0x9002, 0x9003] {
        assert_eq!(rig.ask(format!("Z1,{at:x},1")), "OK");
    }
    assert_eq!(rig.ask("Z2,a000,fff"), "OK");
    assert_eq!(rig.ask("Z2,b000,2"), "E1c", "more than 4096 bytes");
    assert_eq!(rig.ask("Z2,b000,1"), "OK");
    assert_eq!(rig.ask("Z2,ffffffffffffffff,ffffffffffffffff"), "E1c");
    assert_eq!(rig.ask("Z4,b000,1"), "E1c");
    assert_eq!(rig.ask("Z3,b000,1"), "");
    assert_eq!(rig.ask("z2,a000,fff"), "OK");
    assert_eq!(rig.ask("Z2,b000,2"), "OK");
    let replies = rig.send("vCont;s:1");
    assert!(replies[0].starts_with('O'), "{replies:?}");
    assert!(replies[1].starts_with("T05"), "{replies:?}");
}

#[test]
fn a_host_without_watchpoints_compares() {
    let mut rig = without(&[Capability::Watchpoint], changing(&[code::SPIN]));
    assert_eq!(rig.ask("Z4,9000,1"), "");
    assert_eq!(rig.ask("Z2,9000,1"), "OK");
    let replies = rig.send("vCont;c");
    assert!(
        replies[1].starts_with("T05thread:01;watch:9000;"),
        "{replies:?}"
    );
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

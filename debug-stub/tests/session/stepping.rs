//! `s`, `vCont`, ranges, the mask.

use super::*;

#[test]
fn a_step_reports_its_thread_and_the_registers_without_a_further_read() {
    let mut rig = nops(2);
    let reads = rig.machine().register_reads();
    let reply = rig.ask("vCont;s:2");
    assert!(reply.starts_with("T05thread:02;"), "{reply}");
    let rip = format!("10:{};", hex((ENTRY + 1).to_le_bytes()));
    assert!(reply.contains(&rip), "{reply}");
    assert_eq!(
        rig.machine().register_reads(),
        reads + 1,
        "once for the stop"
    );
    assert_eq!(rig.ask("?"), reply);
    let plan = rig.last_plan();
    assert_eq!(plan.vcpus, [VcpuOrder::Stay, step(true)]);
}

#[test]
fn the_leftmost_action_counts_and_who_is_not_mentioned_stays() {
    let mut rig = nops(3);
    rig.ask("vCont;s:1;c:2;s:2");
    assert_eq!(
        rig.last_plan().vcpus,
        [step(true), VcpuOrder::Continue, VcpuOrder::Stay]
    );
    rig.ask("vCont;s:3;c;s:1");
    assert_eq!(
        rig.last_plan().vcpus,
        [VcpuOrder::Continue, VcpuOrder::Continue, step(true)]
    );
}

#[test]
fn a_step_for_all_is_a_step_of_the_selected_one() {
    for packet in [
        "vCont;s",
        "vCont;s:-1",
        "vCont;S05",
        "vCont;s:0",
        "s",
        "S05",
    ] {
        let mut rig = nops(2);
        rig.ask("Hg2");
        rig.ask(packet);
        assert_eq!(
            rig.last_plan().vcpus,
            [VcpuOrder::Stay, step(true)],
            "{packet}"
        );
    }
}

#[test]
fn legacy_packets_follow_hc_and_go_on_at_an_address() {
    let mut rig = nops(2);
    assert_eq!(rig.ask("Hc1"), "OK");
    rig.ask(format!("s{:x}", ENTRY + 5));
    assert_eq!(rig.last_plan().vcpus, [step(true), VcpuOrder::Stay]);
    assert_eq!(registers(rig.machine(), 0).core.rip, ENTRY + 6);
    rig.send("c");
    assert_eq!(
        rig.last_plan().vcpus,
        [VcpuOrder::Continue, VcpuOrder::Stay]
    );
    rig.bytes(b"\x03");
    rig.ask("Hc-1");
    rig.send("C05");
    assert_eq!(
        rig.last_plan().vcpus,
        [VcpuOrder::Continue, VcpuOrder::Continue]
    );
}

#[test]
fn a_range_is_handed_on_and_an_empty_one_is_one_step() {
    let mut rig = nops(1);
    rig.ask(format!("vCont;r{:x},{:x}:1", ENTRY, ENTRY + 4));
    assert_eq!(
        rig.last_plan().vcpus,
        [VcpuOrder::Step(StepOrder {
            range: Some(ENTRY..ENTRY + 4),
            mask: true,
            ..StepOrder::default()
        })]
    );
    assert_eq!(registers(rig.machine(), 0).core.rip, ENTRY + 4);
    rig.ask("vCont;r0,0:1");
    assert_eq!(rig.last_plan().vcpus, [step(true)]);
}

#[test]
fn a_range_is_linear_in_real_mode() {
    let mut rig = nops(1);
    let vcpu = registers_mut(rig.machine(), 0);
    vcpu.special.cr0 = 0x10;
    vcpu.special.efer = 0;
    vcpu.special.cs.long = false;
    vcpu.special.cs.base = ENTRY;
    vcpu.core.rip = 0;
    rig.ask(format!("vCont;r{ENTRY:x},{:x}:1", ENTRY + 4));
    let VcpuOrder::Step(order) = &rig.last_plan().vcpus[0] else {
        panic!("no step");
    };
    assert_eq!(order.range, Some(ENTRY..ENTRY + 4));
    assert_eq!(registers(rig.machine(), 0).core.rip, 4);
}

#[test]
fn a_step_then_a_continue_carries_no_step_over() {
    let mut rig = nops(1);
    rig.ask("vCont;s:1");
    rig.send("vCont;c");
    assert_eq!(rig.last_plan().vcpus, [VcpuOrder::Continue]);
}

#[test]
fn a_vcpu_that_steps_beside_watchpoints_while_no_other_runs_is_told_so() {
    let alone = |rig: &mut Rig, packet| {
        rig.ask(packet);
        let plan = rig.last_plan();
        let VcpuOrder::Step(order) = &plan.vcpus[0] else {
            panic!("no step");
        };
        (order.alone, plan.others.clone())
    };
    let mut rig = nops(1);
    // All four debug registers may be free.
    assert_eq!(alone(&mut rig, "vCont;s:1;c"), (false, VcpuOrder::Continue));
    assert_eq!(rig.ask("Z1,9000,1"), "OK");
    assert_eq!(alone(&mut rig, "vCont;s:1;c"), (false, VcpuOrder::Continue));
    assert_eq!(rig.ask("Z2,9000,8"), "OK");
    // A vCPU that appears waits.
    assert_eq!(alone(&mut rig, "vCont;s:1;c"), (true, VcpuOrder::Stay));

    let mut rig = nops(2);
    assert_eq!(rig.ask("Z2,9000,8"), "OK");
    assert_eq!(alone(&mut rig, "vCont;s:1;c"), (false, VcpuOrder::Continue));
    assert_eq!(alone(&mut rig, "vCont;s:1"), (true, VcpuOrder::Stay));
}

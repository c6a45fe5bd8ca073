//! Machines that change under a session: vCPUs that come and go, resets, messages of the VMM's.

use super::*;

/// Other vCPUs are plugged in, in place of those that were there.
fn plug(rig: &mut Rig, vcpus: usize) {
    rig.machine().set_vcpus(0);
    rig.machine().set_vcpus(vcpus);
}

#[test]
fn without_a_vcpu_there_is_one_thread_that_cannot_run() {
    let mut rig = Rig::new(machine(0, &[code::SPIN]));
    assert_eq!(rig.ask("?"), "T05thread:01;");
    assert_eq!(rig.ask("qC"), "QC1");
    assert_eq!(rig.ask("qfThreadInfo"), "m01");
    assert_eq!(rig.ask("T1"), "OK");
    assert_eq!(rig.ask("T2"), "E01");
    assert_eq!(rig.ask("Hg1"), "OK");
    assert_eq!(rig.ask("Hg2"), "E16");
    assert_eq!(rig.ask("qThreadExtraInfo,1"), hex("no vCPU yet"));
    assert!(
        rig.ask("qXfer:threads:read::0,100")
            .contains(">no vCPU yet<")
    );
    assert_eq!(rig.ask("p10"), "0000000000000000");
    assert_eq!(rig.ask("g").len(), 608 * 2);
    assert_eq!(rig.ask("P0=0000000000000000"), "E03");
    assert_eq!(rig.ask(format!("G{}", "0".repeat(608 * 2))), "E03");
    assert_eq!(rig.ask("s"), "E16");
    assert_eq!(rig.ask("c8000"), "E03");
    assert_eq!(rig.ask("vCont;s:1"), "E16");
    assert_eq!(rig.ask("vCont;c:1"), "E16");
    assert_eq!(rig.ask("m8000,2"), hex(code::SPIN), "without paging");
    assert_eq!(rig.ask("Z0,9000,1"), "OK");
    assert!(rig.plans.is_empty());
    rig.send("vCont;c");
    assert_eq!(rig.machine().memory().get(0x9000, 1), [0xcc]);
}

#[test]
fn a_machine_that_is_built_while_its_client_waits_is_debugged() {
    let mut rig = Rig::new(machine(0, &[code::SPIN]));
    assert_eq!(rig.ask("?"), "T05thread:01;");
    assert_eq!(rig.send("vCont;c"), [""; 0]);
    assert_eq!(rig.last_plan().vcpus, []);
    assert_eq!(*rig.last_plan().order(VcpuId(3)), VcpuOrder::Continue);
    plug(&mut rig, 2);
    let reply = rig.bytes(b"\x03").remove(0);
    assert!(reply.starts_with("T02thread:01;00:"), "{reply}");
    assert_eq!(rig.ask("qfThreadInfo"), "m01,02");
    assert_eq!(rig.ask(format!("Z0,{:x},1", ENTRY + 4)), "OK");
    assert!(rig.ask("vCont;s:2").starts_with("T05thread:02;"));
}

#[test]
fn a_selected_vcpu_that_has_gone_is_named_and_the_session_lives() {
    let mut rig = spinning(3);
    rig.ask("Hg3");
    rig.send("vCont;c");
    plug(&mut rig, 2);
    let reply = rig.bytes(b"\x03").remove(0);
    assert!(reply.starts_with("T02thread:01;"), "{reply}");
    // It goes while the guest is stopped.
    rig.ask("Hg2");
    rig.ask("Hc2");
    plug(&mut rig, 1);
    for packet in ["g", "p0", "m8000,1", "Z0,8000,1", "P0=0000000000000000"] {
        assert_eq!(rig.ask(packet), "E03", "{packet}");
    }
    assert_eq!(rig.ask("s"), "E16");
    assert_eq!(rig.ask("vCont;s:2;c"), "E16");
    let text = maintenance::monitor(&mut rig, "mask");
    for part in [
        "thread 2: there is no vcpu1",
        "cannot resume: there is no thread 2",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(rig.ask("vCont;s:1").starts_with("T05thread:01;"));
}

#[test]
fn orders_and_stops_of_vcpus_that_have_gone_are_none() {
    let mut rig = Rig::new(storing(3, &[code::SPIN]));
    rig.ask("Z2,9000,1");
    assert!(rig.ask("vCont;c").starts_with("T05thread:01;watch"));
    // The hits of the second and third are not reported yet.
    rig.machine().set_vcpus(2);
    assert!(rig.ask("vCont;c").starts_with("T05thread:02;watch"));
    assert_eq!(rig.send("vCont;c"), [""; 0], "it runs");
    assert_eq!(rig.last_plan().vcpus.len(), 2);
    let replies = rig.stop(vec![stop(2, StopReason::HardwareBreakpoint)]);
    assert!(replies[0].starts_with("T02thread:02;"), "{replies:?}");
}

#[test]
fn a_vcpu_that_is_plugged_in_follows_the_clients_locking() {
    let mut rig = spinning(1);
    rig.send("vCont;c");
    assert_eq!(rig.last_plan().others, VcpuOrder::Continue);
    rig.bytes(b"\x03");
    rig.send("vCont;c:1");
    assert_eq!(rig.last_plan().others, VcpuOrder::Stay);
    rig.bytes(b"\x03");
    rig.ask(format!("Z0,{ENTRY:x},1"));
    rig.ask("vCont;s:1;c");
    assert_eq!(rig.last_plan().others, VcpuOrder::Stay, "it steps alone");
}

#[test]
fn a_list_of_actions_that_gdbstub_has_no_room_for_is_carried_out() {
    let mut rig = spinning(400);
    let mut packet = String::from("vCont");
    for tid in 1..=400 {
        packet.push_str(&format!(";c:{tid:x}"));
    }
    assert!(packet.len() > 2048);
    rig.send(packet);
    assert_eq!(rig.last_plan().vcpus, vec![VcpuOrder::Continue; 400]);
    assert_eq!(rig.last_plan().others, VcpuOrder::Stay);
}

#[test]
fn a_reset_is_explained_and_breakpoints_outlive_it() {
    let mut rig = spinning(2);
    rig.ask("Z0,9100,1");
    rig.ask("Z2,9000,1");
    rig.ask("P0=4200000000000000");
    rig.send("vCont;c:2");
    let hit = StopReason::Watchpoint {
        address: 0x9000,
        access: WatchAccess::Write,
    };
    registers_mut(rig.machine(), 0).core.rax = 0;
    let replies = rig.stop(vec![stop(1, hit), stop(0, StopReason::Reset)]);
    assert_eq!(
        console(&replies[0]),
        "thread 1: the machine was reset\n",
        "{replies:?}"
    );
    assert!(
        replies[1].starts_with("T05thread:01;00:0000000000000000;"),
        "{replies:?}"
    );
    // What the other vCPU had to say is of the machine before.
    assert_eq!(rig.send("vCont;c"), [""; 0], "it runs");
    assert_eq!(rig.machine().memory().get(0x9100, 1), [0xcc]);
}

#[test]
fn a_message_of_the_vmm_is_printed_when_that_is_legal() {
    let mut rig = spinning(1);
    rig.session.console_message("while it is stopped");
    assert_eq!(rig.replies(), [""; 0]);
    let replies = rig.send("vCont;c");
    assert_eq!(console(&replies[0]), "while it is stopped\n");
    rig.session.console_message("while it runs\n");
    assert_eq!(console(&rig.replies()[0]), "while it runs\n");
    rig.session.disconnected();
    rig.act();
    rig.session.console_message("there is no client");
    rig.session.attach(GuestState::Stopped);
    assert_eq!(rig.send("vCont;c"), [""; 0], "it was dropped");
}

#[test]
fn messages_for_a_client_that_does_not_read_or_acknowledge_are_bounded() {
    for reads in [false, true] {
        let mut rig = spinning(1);
        rig.send("vCont;c");
        let mut most = 0;
        for count in 0..20_000 {
            rig.session.console_message(&format!("message {count}"));
            most = most.max(rig.session.output().len());
            if reads {
                rig.session.consume_output(usize::MAX);
            }
        }
        assert!(most < 4 * SessionConfig::DEFAULT_MAX_PACKET, "{most}");
        rig.session.consume_output(usize::MAX);
        let replies = rig.bytes(b"\x03");
        assert!(console(&replies[0]).contains("more messages were dropped"));
        assert!(replies[1].starts_with("T02"), "{replies:?}");
    }
}

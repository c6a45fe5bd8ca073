//! A session as a client and a VMM see it, on a simulated machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop where what must hold does not"
)]

mod common;

use common::machine::{ALIAS, ALIASED, ENTRY, Machine, RAM, code, plan};
use common::{Rig, console, frame, hex, unframe};
use debug_stub::{
    GuestState, Session, SessionConfig, StepOrder, Stop, StopReason, VcpuId, VcpuOrder, WatchAccess,
};
use vcpu_caps::Capability;

fn spinning(vcpus: usize) -> Rig {
    Rig::new(Machine::new(vcpus, &[code::SPIN]))
}

fn nops(vcpus: usize) -> Rig {
    let mut program = vec![code::NOP; 64];
    program.push(code::SPIN);
    Rig::new(Machine::new(vcpus, &program))
}

/// Without INT3 exits, as on a host that does not intercept them.
fn without(absent: &[Capability], machine: Machine) -> Rig {
    Rig::with(machine, SessionConfig::new(plan(absent)))
}

fn step(mask: bool) -> VcpuOrder {
    VcpuOrder::Step(StepOrder { range: None, mask })
}

fn stop(vcpu: u16, reason: StopReason) -> Stop {
    Stop {
        vcpu: VcpuId(vcpu),
        reason,
        registers: None,
    }
}

mod framing {
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
    fn ctrl_c_while_stopped_leaves_no_phantom_stop() {
        let mut rig = spinning(1);
        assert_eq!(rig.bytes(b"\x03"), [""; 0]);
        assert_eq!(rig.send("vCont;c"), [""; 0], "it runs");
        assert!(rig.running.is_some());
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
        let reads = rig.machine().register_reads;
        assert_eq!(rig.send("g"), [""; 0]);
        assert_eq!(rig.machine().register_reads, reads);
        assert!(rig.bytes(b"\x03")[0].starts_with("T02"));
    }

    #[test]
    fn a_client_that_does_not_read_is_not_served_and_costs_no_memory() {
        let mut rig = spinning(1);
        let request = frame(b"m0,4000");
        for _ in 0..10_000 {
            rig.session.receive(&request);
        }
        assert!(!rig.session.wants_input());
        assert!(rig.session.output().len() <= 4 * SessionConfig::DEFAULT_MAX_PACKET);
        while !rig.session.output().is_empty() {
            rig.session.consume_output(1000);
        }
        assert!(rig.session.wants_input());
    }
}

mod connecting {
    use super::*;

    #[test]
    fn the_features_are_those_of_filter_and_gdbstub() {
        let mut rig = spinning(1);
        let reply = rig.ask("qSupported:multiprocess+;swbreak+;;x");
        let features: Vec<&str> = reply.split(';').collect();
        for feature in [
            "PacketSize=8000",
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
        let mut rig = spinning(1);
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
    fn a_running_guest_is_stopped_and_what_came_meanwhile_is_answered_then() {
        let mut session = Session::new(
            Machine::new(1, &[code::SPIN]),
            SessionConfig::new(plan(&[])),
        );
        session.attach(GuestState::Running);
        session.receive(&frame(b"?"));
        assert_eq!(session.output(), b"");
        assert_eq!(session.next_action(), Some(debug_stub::Action::Interrupt));
        session.stopped(Vec::new());
        let replies = unframe(session.output());
        assert!(replies[0].starts_with("T05thread:01;"), "{replies:?}");
    }

    #[test]
    fn a_crash_before_the_client_came_is_what_it_is_told() {
        let mut session = Session::new(
            Machine::new(2, &[code::SPIN]),
            SessionConfig::new(plan(&[])),
        );
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
        let mut session = Session::new(
            Machine::new(2, &[code::SPIN]),
            SessionConfig::new(plan(&[])),
        );
        session.attach(GuestState::Running);
        assert_eq!(session.next_action(), Some(debug_stub::Action::Interrupt));
        session.stopped(vec![stop(1, StopReason::Exited(7))]);
        session.receive(&frame(b"vCont;c"));
        assert_eq!(unframe(session.output()), ["W07"]);
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
        assert_eq!(rig.ask("T4"), "E16");
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
        assert_eq!(rig.machine().peek(ENTRY + 8, 1), [0xcc]);
        rig.session.disconnected();
        rig.act();
        assert_eq!((rig.interrupts, rig.releases), (1, 1));
        assert_eq!(rig.machine().peek(ENTRY + 8, 1), [0]);
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
            "!",
            "vMustReplyEmpty",
            "vCtrlC",
            "QNonStop:1",
            "bs",
            "R00",
            "Z3,0,1",
        ] {
            assert_eq!(rig.ask(packet), "", "{packet}");
        }
        assert_eq!(rig.ask("qAttached"), "1");
        assert_eq!(rig.plans.len(), 0);
    }
}

mod registers {
    use super::*;

    #[test]
    fn rbx_is_not_rbp_and_gs_base_is_not_fs() {
        let mut rig = spinning(2);
        let vcpu = &mut rig.machine().vcpus[1];
        (vcpu.core.rbx, vcpu.core.rbp) = (0xb0b0, 0xb1b1);
        (vcpu.special.fs.base, vcpu.special.gs.base) = (0xf000, 0x6000);
        rig.ask("Hg2");
        assert_eq!(rig.ask("p1"), "b0b0000000000000");
        assert_eq!(rig.ask("p6"), "b1b1000000000000");
        assert_eq!(rig.ask("p18"), "00f0000000000000");
        assert_eq!(rig.ask("p19"), "0060000000000000");
    }

    #[test]
    fn writes_are_in_gdbs_order_and_reach_the_selected_vcpu_only() {
        let mut rig = spinning(2);
        rig.ask("Hg2");
        assert_eq!(rig.ask("P2=efbeadde00000000"), "OK");
        assert_eq!(rig.machine().vcpus[1].core.rcx, 0xdead_beef);
        assert_eq!(rig.machine().vcpus[0].core.rcx, 0);
        assert_eq!(rig.ask("p2"), "efbeadde00000000", "no stale copy is shown");
    }

    #[test]
    fn a_g_written_back_changes_nothing_and_a_changed_one_does() {
        let mut rig = spinning(1);
        rig.machine().vcpus[0].core.rsi = 0x55;
        let before = rig.machine().vcpus[0].clone();
        let all = rig.ask("g");
        assert_eq!(rig.ask(format!("G{all}")), "OK");
        assert_eq!(rig.machine().vcpus[0], before);
        let changed = format!("{}{}", hex(7u64.to_le_bytes()), &all[16..]);
        assert_eq!(rig.ask(format!("G{changed}")), "OK");
        assert_eq!(rig.machine().vcpus[0].core.rax, 7);
        assert_eq!(rig.ask(format!("G{}", &all[2..])), "E16", "too short");
    }

    #[test]
    fn the_target_description_is_read_in_pieces() {
        let mut rig = spinning(1);
        let mut document = String::new();
        loop {
            let piece = rig.ask(format!(
                "qXfer:features:read:target.xml:{:x},100",
                document.len()
            ));
            let (more, text) = piece.split_at(1);
            document.push_str(text);
            if more == "l" {
                break;
            }
            assert!(text.len() <= 0x100);
        }
        assert_eq!(document, debug_stub::x86_64::target_xml());
    }
}

mod memory {
    use super::*;

    #[test]
    fn a_read_across_the_end_of_a_mapping_answers_what_there_is() {
        let mut rig = spinning(1);
        rig.machine().poke(ALIASED + 0xffe, &[0xab, 0xcd]);
        assert_eq!(rig.ask(format!("m{:x},10", ALIAS + 0xffe)), "abcd");
        assert_eq!(rig.ask(format!("x{:x},10", ALIAS + 0xffe)), "b\u{ab}\u{cd}");
        assert_eq!(
            rig.ask(format!("m{:x},10", ALIAS + 0x1000)),
            "E0e",
            "a failed read is no success"
        );
        assert_eq!(rig.ask("m0,0"), "");
        assert_eq!(rig.ask("mffffffffffffffff,10"), "E0e");
    }

    #[test]
    fn a_write_that_does_not_fit_changes_nothing() {
        let mut rig = spinning(1);
        assert_eq!(rig.ask(format!("M{:x},4:01020304", ALIAS + 0xffe)), "E0e");
        assert_eq!(rig.machine().peek(ALIASED + 0xffe, 2), [0, 0]);
        assert_eq!(rig.ask(format!("M{:x},2:0102", ALIAS + 0xffe)), "OK");
        assert_eq!(rig.machine().peek(ALIASED + 0xffe, 2), [1, 2]);
    }

    #[test]
    fn binary_writes_and_reads_carry_every_byte() {
        let mut rig = spinning(1);
        let data: Vec<u8> = (0..=255).collect();
        let mut packet = b"X9000,100:".to_vec();
        for &byte in &data {
            if matches!(byte, b'#' | b'$' | b'}') {
                packet.extend([b'}', byte ^ 0x20]);
            } else {
                packet.push(byte);
            }
        }
        assert_eq!(rig.ask(packet), "OK");
        assert_eq!(rig.machine().peek(0x9000, 256), data);
        let reply = rig.ask("x9000,100");
        let mut read = Vec::new();
        let mut bytes = reply
            .chars()
            .map(|c| u8::try_from(u32::from(c)).unwrap())
            .skip(1);
        while let Some(byte) = bytes.next() {
            read.push(if byte == b'}' {
                bytes.next().unwrap() ^ 0x20
            } else {
                byte
            });
        }
        assert_eq!(read, data);
    }

    #[test]
    fn a_reply_fits_in_a_packet_whatever_is_asked_for() {
        let mut rig = spinning(1);
        let limit = SessionConfig::DEFAULT_MAX_PACKET;
        for packet in ["m0,ffffffffffffffff", "x0,ffffffffffffffff"] {
            let reply = rig.ask(packet);
            assert!(
                reply.len() <= limit && reply.len() > limit / 3,
                "{}",
                reply.len()
            );
        }
    }

    #[test]
    fn physical_mode_reads_and_writes_physical_addresses() {
        let mut rig = spinning(1);
        rig.machine().poke(ALIASED, &[0x77]);
        assert_eq!(rig.ask("qqemu.PhyMemMode"), "0");
        assert_eq!(rig.ask(format!("m{ALIAS:x},1")), "77");
        assert_eq!(rig.ask("Qqemu.PhyMemMode:1"), "OK");
        assert_eq!(rig.ask("qqemu.PhyMemMode"), "1");
        assert_eq!(rig.ask(format!("m{ALIAS:x},1")), "E0e", "RAM ends there");
        assert_eq!(rig.ask(format!("M{ALIASED:x},1:78")), "OK");
        assert_eq!(rig.machine().peek(ALIASED, 1), [0x78]);
    }

    #[test]
    fn a_search_finds_what_lies_across_chunks_and_stops_where_memory_does() {
        let mut rig = spinning(1);
        rig.machine().poke(0x1_fffe, b"needle");
        assert_eq!(rig.ask("qSearch:memory:10000;60000;needle"), "1,1fffe");
        assert_eq!(rig.ask("qSearch:memory:20000;1000;needle"), "0");
        assert_eq!(
            rig.ask(format!("qSearch:memory:{ALIAS:x};2000;needle")),
            "E0e"
        );
        assert_eq!(rig.ask("qSearch:memory:0;ffffffffffff;needle"), "E1b");
    }

    #[test]
    fn the_checksum_is_gdbs() {
        let mut rig = spinning(1);
        rig.machine().poke(0x9000, b"123456789");
        // CRC-32/MPEG-2's check value: GDB's algorithm has its parameters.
        assert_eq!(rig.ask("qCRC:9000,9"), "C376e6e7");
        assert_eq!(rig.ask(format!("qCRC:{ALIAS:x},2000")), "E0e");
    }
}

mod stepping {
    use super::*;

    #[test]
    fn a_step_reports_its_thread_and_the_registers_without_a_further_read() {
        let mut rig = nops(2);
        let reads = rig.machine().register_reads;
        let reply = rig.ask("vCont;s:2");
        assert!(reply.starts_with("T05thread:02;"), "{reply}");
        let rip = format!("10:{};", hex((ENTRY + 1).to_le_bytes()));
        assert!(reply.contains(&rip), "{reply}");
        assert_eq!(
            rig.machine().register_reads,
            reads,
            "they came with the stop"
        );
        assert_eq!(rig.ask("?"), reply);
        let plan = rig.last_plan();
        assert_eq!(plan.vcpus, [VcpuOrder::Stay, step(true)]);
    }

    #[test]
    fn registers_that_did_not_come_with_the_stop_are_read_for_the_reply() {
        let mut rig = nops(1);
        rig.machine().expedite = false;
        assert!(
            rig.ask("vCont;s:1")
                .contains(&hex((ENTRY + 1).to_le_bytes()))
        );
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
        assert_eq!(rig.machine().vcpus[0].core.rip, ENTRY + 6);
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
            })]
        );
        assert_eq!(rig.machine().vcpus[0].core.rip, ENTRY + 4);
        rig.ask("vCont;r0,0:1");
        assert_eq!(rig.last_plan().vcpus, [step(true)]);
    }

    #[test]
    fn a_real_mode_range_becomes_linear() {
        let mut machine = Machine::new(1, &[code::NOP, code::NOP, code::NOP, code::NOP]);
        let vcpu = &mut machine.vcpus[0];
        vcpu.special.cr0 = 0x10;
        vcpu.special.efer = 0;
        vcpu.special.cs.long = false;
        vcpu.special.cs.base = ENTRY;
        vcpu.core.rip = 0;
        let mut rig = Rig::new(machine);
        rig.ask("vCont;r0,4:1");
        let VcpuOrder::Step(order) = &rig.last_plan().vcpus[0] else {
            panic!("no step");
        };
        assert_eq!(order.range, Some(ENTRY..ENTRY + 4));
    }

    #[test]
    fn a_step_then_a_continue_carries_no_step_over() {
        let mut rig = nops(1);
        rig.ask("vCont;s:1");
        rig.send("vCont;c");
        assert_eq!(rig.last_plan().vcpus, [VcpuOrder::Continue]);
    }
}

mod breakpoints {
    use super::*;

    #[test]
    fn the_guest_is_shown_as_it_is_while_stopped_and_patched_only_while_it_runs() {
        let mut rig = nops(1);
        let at = ENTRY + 3;
        assert_eq!(rig.ask(format!("Z0,{at:x},1")), "OK");
        assert_eq!(rig.ask(format!("m{at:x},1")), "90");
        let reply = rig.ask("vCont;c");
        assert!(reply.starts_with("T05thread:01;swbreak:;"), "{reply}");
        assert!(reply.contains(&format!("10:{};", hex(at.to_le_bytes()))));
        assert_eq!(rig.machine().peek(at, 1), [0x90]);
        assert_eq!(rig.last_plan().armed.software.len(), 1);
    }

    #[test]
    fn a_step_from_a_breakpoint_lifts_it_and_runs_alone() {
        let mut rig = nops(2);
        rig.ask(format!("Z0,{ENTRY:x},1"));
        rig.ask("vCont;s:1;c");
        let plan = rig.last_plan();
        assert_eq!(plan.vcpus, [step(true), VcpuOrder::Stay]);
        assert!(plan.armed.software.is_empty());
        assert_eq!(rig.machine().vcpus[0].core.rip, ENTRY + 1);
        rig.ask("vCont;s:1");
        assert_eq!(rig.last_plan().armed.software.len(), 1, "it is back");
    }

    #[test]
    fn a_range_from_a_breakpoint_stops_after_one_instruction() {
        let mut rig = nops(1);
        rig.ask(format!("Z0,{ENTRY:x},1"));
        rig.ask(format!("vCont;r{:x},{:x}:1", ENTRY, ENTRY + 9));
        assert_eq!(rig.last_plan().vcpus, [step(true)]);
    }

    #[test]
    fn one_physical_page_at_two_addresses_is_one_breakpoint() {
        let mut rig = nops(1);
        rig.ask(format!("Z0,{ALIASED:x},1"));
        rig.ask(format!("Z0,{ALIAS:x},1"));
        rig.send("vCont;c");
        assert_eq!(rig.last_plan().armed.software.len(), 1);
        rig.bytes(b"\x03");
        rig.ask(format!("z0,{ALIASED:x},1"));
        rig.send("vCont;c");
        assert_eq!(
            rig.last_plan().armed.software.len(),
            1,
            "the other needs it"
        );
        rig.bytes(b"\x03");
        rig.ask(format!("z0,{ALIAS:x},1"));
        rig.send("vCont;c");
        assert!(rig.last_plan().armed.software.is_empty());
    }

    #[test]
    fn a_breakpoint_that_the_guest_overwrote_stays_overwritten() {
        let mut rig = spinning(1);
        let at = ENTRY + 8;
        rig.ask(format!("Z0,{at:x},1"));
        rig.send("vCont;c");
        rig.machine().poke(at, &[0x55]);
        rig.bytes(b"\x03");
        assert_eq!(rig.machine().peek(at, 1), [0x55]);
    }

    #[test]
    fn the_guests_own_int3_is_the_guests() {
        let mut rig = Rig::new(Machine::new(1, &[code::INT3, code::SPIN]));
        rig.ask("Z0,9000,1");
        assert_eq!(rig.send("vCont;c"), [""; 0]);
        assert_eq!(rig.machine().own_breakpoints, 1);
    }

    #[test]
    fn a_breakpoint_that_cannot_be_written_at_resume_is_reported_and_nothing_runs() {
        let mut rig = nops(1);
        rig.ask("Z0,9000,1");
        rig.ask("Z0,9001,1");
        rig.machine().read_only.push(0x9001..0x9002);
        let replies = rig.send("vCont;c");
        assert!(console(&replies[0]).contains("0x9001"), "{replies:?}");
        assert!(replies[1].starts_with("T05thread:01;"));
        assert!(rig.plans.is_empty());
        assert_eq!(rig.machine().peek(0x9000, 1), [0], "none is left");
    }

    #[test]
    fn rom_and_unmapped_addresses_take_a_debug_register_and_the_client_is_told() {
        let mut rig = nops(1);
        rig.machine().read_only.push(0x9000..0xa000);
        rig.ask("Z0,9000,1");
        rig.ask("Z0,ffff800000000000,1");
        let replies = rig.send("vCont;c");
        let text = console(&replies[0]);
        assert!(
            text.contains("0x9000 takes one of the four debug registers"),
            "{text}"
        );
        let armed = &rig.last_plan().armed;
        assert!(armed.software.is_empty());
        assert_eq!(armed.hardware.iter().flatten().count(), 2);
    }

    #[test]
    fn without_int3_exits_breakpoints_take_debug_registers_shared_with_hardware_ones() {
        let mut rig = without(
            &[Capability::BptExit],
            Machine::new(1, &[code::NOP, code::NOP, code::SPIN]),
        );
        let at = ENTRY + 1;
        assert_eq!(rig.ask(format!("Z0,{at:x},1")), "OK");
        assert_eq!(rig.ask(format!("Z1,{at:x},1")), "OK");
        assert_eq!(
            rig.ask(format!("Z0,{at:x},1")),
            "OK",
            "again is no second one"
        );
        let replies = rig.send("vCont;c");
        assert!(console(&replies[0]).contains("monitor caps"));
        assert!(replies[1].contains("hwbreak:;"), "{replies:?}");
        assert_eq!(rig.last_plan().armed.hardware.iter().flatten().count(), 1);
        assert_eq!(rig.ask(format!("z0,{at:x},1")), "OK");
        assert_eq!(rig.ask(format!("Z0,{at:x},1")), "OK");
        rig.ask("vCont;s:1"); // The client is told once.
        assert_eq!(rig.ask(format!("z0,{at:x},1")), "OK");
        rig.ask("vCont;s:1");
        assert_eq!(rig.last_plan().armed.hardware.iter().flatten().count(), 1);
        assert_eq!(rig.ask(format!("z1,{at:x},1")), "OK");
        assert_eq!(
            rig.ask(format!("z1,{at:x},1")),
            "OK",
            "of what is not there"
        );
        rig.ask("vCont;s:1");
        assert_eq!(rig.last_plan().armed.hardware.iter().flatten().count(), 0);
    }

    #[test]
    fn hardware_breakpoints_stay_armed_while_stepping() {
        let mut rig = nops(2);
        rig.ask(format!("Z1,{:x},1", ENTRY + 1));
        rig.ask("vCont;s:1");
        assert_eq!(rig.last_plan().armed.hardware.iter().flatten().count(), 1);
    }

    #[test]
    fn the_fifth_hardware_breakpoint_is_refused_with_a_reason() {
        let mut rig = nops(1);
        for at in 0..4 {
            assert_eq!(rig.ask(format!("Z1,{:x},1", 0x9000 + at)), "OK");
        }
        assert_eq!(rig.ask("Z1,9004,1"), "E1c");
        let replies = rig.send(format!("qRcmd,{}", hex("caps")));
        assert!(
            console(&replies[0]).contains("0 free debug registers"),
            "{replies:?}"
        );
        assert_eq!(rig.ask("z1,9000,1"), "OK");
        assert_eq!(rig.ask("Z1,9004,1"), "OK");
    }

    #[test]
    fn a_refused_ability_is_not_supported_rather_than_failed() {
        let mut rig = without(&[Capability::Watchpoint], Machine::new(1, &[code::SPIN]));
        assert_eq!(rig.ask("Z2,9000,4"), "");
        assert_eq!(rig.ask("Z4,9000,4"), "");
    }
}

mod watchpoints {
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
            .flatten()
            .map(|b| (b.address(), b.length()))
            .collect();
        assert_eq!(pieces, [(0x9001, 1), (0x9002, 2), (0x9004, 4)]);
        assert_eq!(rig.ask("Z2,a001,20"), "E1c", "more than there is");
        assert_eq!(rig.ask("Z2,a000,0"), "E16");
        assert_eq!(rig.ask("z2,9001,7"), "OK");
        assert!(console(&rig.send("vCont;s:1")[0]).contains("more than the 4"));
        assert_eq!(rig.last_plan().armed.hardware.iter().flatten().count(), 0);
    }

    #[test]
    fn a_hit_names_the_address_and_the_kind() {
        let mut rig = Rig::new(Machine::new(1, &[code::STORE, code::SPIN]));
        rig.machine().vcpus[0].core.rdi = 0x9000;
        rig.ask("Z4,9000,1");
        let reply = rig.ask("vCont;c");
        assert!(reply.starts_with("T05thread:01;awatch:9000;"), "{reply}");
    }

    #[test]
    fn two_vcpus_hits_at_once_are_told_one_after_the_other() {
        let mut rig = Rig::new(Machine::new(2, &[code::STORE, code::SPIN]));
        for vcpu in &mut rig.machine().vcpus {
            vcpu.core.rdi = 0x9000;
        }
        rig.ask("Z2,9000,1");
        assert!(rig.ask("vCont;c").starts_with("T05thread:01;watch:9000;"));
        let second = rig.ask("vCont;c");
        assert!(second.starts_with("T05thread:02;watch:9000;"), "{second}");
        assert_eq!(rig.plans.len(), 1, "the second was told without running");
        assert_eq!(rig.send("vCont;c"), [""; 0]);
    }

    #[test]
    fn a_queued_hit_of_a_deleted_watchpoint_is_not_told() {
        let mut rig = Rig::new(Machine::new(2, &[code::STORE, code::SPIN]));
        for vcpu in &mut rig.machine().vcpus {
            vcpu.core.rdi = 0x9000;
        }
        rig.ask("Z2,9000,1");
        rig.ask("vCont;c");
        rig.ask("z2,9000,1");
        assert_eq!(rig.send("vCont;c"), [""; 0]);
        assert_eq!(rig.plans.len(), 2);
    }

    #[test]
    fn a_queued_hit_waits_for_its_vcpu_to_be_resumed() {
        let mut rig = Rig::new(Machine::new(
            2,
            &[code::STORE, code::NOP, code::NOP, code::SPIN],
        ));
        for vcpu in &mut rig.machine().vcpus {
            vcpu.core.rdi = 0x9000;
        }
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
    fn a_watch_hit_is_told_before_a_breakpoint_that_hits_again_anyway() {
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
}

mod ends {
    use super::*;

    #[test]
    fn a_triple_fault_is_explained_and_can_be_inspected() {
        let mut rig = Rig::new(Machine::new(1, &[code::NOP, code::UD2]));
        let replies = rig.send("vCont;c");
        assert!(console(&replies[0]).contains("triple fault: bytes [0f, 0b"));
        assert!(replies[1].starts_with("T0bthread:01;"), "{replies:?}");
        assert_eq!(rig.ask("p10"), hex((ENTRY + 1).to_le_bytes()));
    }

    #[test]
    fn an_internal_error_is_explained_and_told_before_anything_else() {
        let mut rig = spinning(2);
        rig.send("vCont;c");
        let replies = rig.stop(vec![
            stop(0, StopReason::HardwareBreakpoint),
            stop(1, StopReason::InternalError("emulation failed".into())),
        ]);
        assert!(console(&replies[0]).contains("thread 2"), "{replies:?}");
        assert!(replies[1].starts_with("T04thread:02;"), "{replies:?}");
    }

    #[test]
    fn an_exit_is_told_with_its_status_and_closes() {
        let mut rig = Rig::new(Machine::new(1, &[code::HLT]));
        assert_eq!(rig.send("vCont;c"), ["W00"]);
        assert!(rig.session.is_closing());
        rig.session.disconnected();
        rig.act();
        assert_eq!(rig.releases, 0, "there is nothing left to let go");
        assert!(!rig.session.is_attached());
    }

    #[test]
    fn a_stop_of_a_vcpu_that_does_not_exist_is_no_stop_of_another() {
        let mut rig = spinning(2);
        rig.send("vCont;c");
        let replies = rig.stop(vec![stop(7, StopReason::HardwareBreakpoint)]);
        assert!(replies[0].starts_with("T02thread:01;"), "{replies:?}");
    }
}

mod maintenance {
    use super::*;

    #[test]
    fn the_step_bits_are_qemus() {
        let mut rig = nops(1);
        assert_eq!(rig.ask("qqemu.Supported"), "sstepbits;sstep;PhyMemMode");
        assert_eq!(rig.ask("qqemu.sstepbits"), "ENABLE=1,NOIRQ=2");
        assert_eq!(rig.ask("qqemu.sstep"), "0x3");
        assert_eq!(
            rig.ask("Qqemu.sstep=0x7"),
            "E22",
            "NOTIMER is not supported"
        );
        assert_eq!(rig.ask("qqemu.sstep"), "0x3");
        assert_eq!(rig.ask("Qqemu.sstep=0x1"), "OK");
        rig.ask("vCont;s:1");
        assert_eq!(rig.last_plan().vcpus, [step(false)]);
        assert_eq!(rig.ask("Qqemu.sstep=0"), "OK");
        rig.send("vCont;s:1");
        assert_eq!(rig.last_plan().vcpus, [VcpuOrder::Continue]);
    }

    #[test]
    fn without_the_mask_its_bit_is_not_offered_and_the_monitor_says_why() {
        let mut rig = without(
            &[Capability::MaskHwintr],
            Machine::new(1, &[code::NOP, code::SPIN]),
        );
        assert_eq!(rig.ask("qqemu.sstepbits"), "ENABLE=1");
        assert_eq!(rig.ask("Qqemu.sstep=0x3"), "E22");
        rig.ask("vCont;s:1");
        assert_eq!(rig.last_plan().vcpus, [step(false)]);
        let text = monitor(&mut rig, "mask on");
        assert!(
            text.contains("refused") && text.contains("left out by the test"),
            "{text}"
        );
    }

    fn monitor(rig: &mut Rig, command: &str) -> String {
        let mut replies = rig.send(format!("qRcmd,{}", hex(command)));
        assert_eq!(replies.pop().as_deref(), Some("OK"));
        replies.iter().map(|packet| console(packet)).collect()
    }

    #[test]
    fn the_monitor_answers_and_explains() {
        let mut rig = nops(1);
        rig.machine().interrupts.pending = vec![0x20, 0xec];
        rig.machine().interrupts.blocked = "mask_hwintr".into();
        rig.machine().interrupts.masked = true;
        assert!(monitor(&mut rig, "help").contains("monitor mask status"));
        assert!(monitor(&mut rig, "caps").contains("mask_hwintr"));
        let status = monitor(&mut rig, "mask status");
        assert!(
            status.contains("vcpu0: masked, pending: 0x20 0xec; blocked: mask_hwintr"),
            "{status}"
        );
        assert!(monitor(&mut rig, "mask off").contains("do not mask"));
        rig.ask("vCont;s:1");
        assert_eq!(rig.last_plan().vcpus, [step(false)]);
        assert!(monitor(&mut rig, "mask on").contains("hold mask_hwintr"));
        rig.ask("vCont;s:1");
        assert_eq!(rig.last_plan().vcpus, [step(true)]);
        let unknown = monitor(&mut rig, "frobnicate \x1b[31m");
        assert!(
            unknown.contains("unknown command") && !unknown.contains('\x1b'),
            "{unknown}"
        );
    }
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    /// A stream of good packets, bad ones and junk.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let packet = prop_oneof![
            4 => prop_oneof![
                Just("g"), Just("?"), Just("m8000,10"), Just("x8000,10"), Just("qC"), Just("Hg1"),
                Just("Hg2"), Just("Hg0"), Just("Z0,8001,1"), Just("z0,8001,1"), Just("Z1,8002,1"),
                Just("Z2,9000,4"), Just("vCont;s:1"), Just("vCont;s:2"), Just("vCont;c"),
                Just("vCont;r8000,8004:1"), Just("qSupported:a"), Just("qRcmd,63617073"),
                Just("M9000,1:cc"), Just("P0=0100000000000000"), Just("QStartNoAckMode"),
                Just("qfThreadInfo"), Just("s"), Just("c"), Just("Qqemu.sstep=0"),
            ].prop_map(|text| frame(text.as_bytes())),
            1 => Just(frame(b"D")),
            1 => Just(b"\x03".to_vec()),
            1 => Just(b"+".to_vec()),
            1 => Just(b"-".to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..12),
            1 => proptest::collection::vec(any::<u8>(), 0..12).prop_map(|body| frame(&body)),
        ];
        proptest::collection::vec(packet, 0..40).prop_map(|parts| parts.concat())
    }

    fn machine() -> Machine {
        let mut program = vec![code::NOP; 8];
        program.extend([code::INC_RAX, code::STORE, code::SPIN]);
        let mut machine = Machine::new(2, &program);
        for vcpu in &mut machine.vcpus {
            vcpu.core.rdi = 0x9000;
        }
        machine
    }

    /// What the guest looks like, but for what packets of the stream may write.
    fn breakpoints_left(rig: &mut Rig) -> usize {
        let code = rig.machine().peek(ENTRY, 16);
        code.iter().filter(|byte| **byte == 0xcc).count()
    }

    proptest! {
        // Each case is a session of hundreds of packets.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_split_of_any_stream_gives_the_same_output_and_plans(
            stream in stream(),
            cuts in proptest::collection::vec(1usize..30, 1..30),
        ) {
            let mut whole = Rig::new(machine());
            // Actions are taken between bytes in both cases: what a guest has done when the next
            // packet comes is not the splitting's business.
            let mut expected = Vec::new();
            for byte in &stream {
                expected.extend(whole.bytes(std::slice::from_ref(byte)));
            }
            let mut parts = Rig::new(machine());
            let mut seen = Vec::new();
            // A resume or an interrupt ends a part: what is sent behind it meets a guest that has
            // done it, or one that has not.
            let ends: std::collections::BTreeSet<usize> = (0..)
                .zip(&stream)
                .filter_map(|(at, byte)| match byte {
                    b'#' => Some(at + 3),
                    3 => Some(at + 1),
                    _ => None,
                })
                .collect();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                if at >= stream.len() {
                    break;
                }
                let end = ends.range(at + 1..).next().map_or(stream.len(), |end| *end);
                let end = end.min(at + cut).min(stream.len());
                seen.extend(parts.bytes(&stream[at..end]));
                at = end;
            }
            prop_assert_eq!(expected, seen);
            prop_assert_eq!(whole.plans, parts.plans);
        }

        #[test]
        fn whatever_comes_a_stopped_guest_is_whole_and_a_gone_client_is_released_once(
            streams in proptest::collection::vec((stream(), any::<bool>()), 1..4),
        ) {
            let mut rig = Rig::new(machine());
            for (index, (stream, running)) in streams.iter().enumerate() {
                if index > 0 {
                    rig.session.attach(if *running { GuestState::Running } else { GuestState::Stopped });
                    rig.act();
                }
                for part in stream.chunks(7) {
                    rig.bytes(part);
                    if rig.running.is_none() {
                        prop_assert_eq!(breakpoints_left(&mut rig), 0);
                    }
                }
                rig.session.disconnected();
                rig.act();
                prop_assert_eq!(rig.releases + rig.kills, index + 1);
                prop_assert!(rig.running.is_none());
                prop_assert_eq!(breakpoints_left(&mut rig), 0);
                prop_assert!(!rig.session.is_attached());
            }
        }

        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut rig = Rig::new(machine());
            rig.bytes(&garbage);
            rig.session.disconnected();
            rig.act();
            prop_assert_eq!(rig.releases, 1);
        }

        #[test]
        fn framed_garbage_never_panics(
            bodies in proptest::collection::vec("[?gGmMxXpPZzHTvDqQcs][ -~]{0,24}", 0..40),
        ) {
            let mut rig = Rig::new(machine());
            for body in bodies {
                rig.bytes(&frame(body.as_bytes()));
            }
            rig.session.disconnected();
            rig.act();
            prop_assert_eq!(breakpoints_left(&mut rig), 0);
            prop_assert_eq!(rig.machine().peek(0, RAM).len(), RAM);
        }
    }
}

//! Software and hardware breakpoints, and what a client sees of memory under them.

use debug_stub::GuestPhysAddr;
use debug_stub::x86_64::simulated::TABLES;

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
    assert_eq!(rig.machine().memory().get(at, 1), [0x90]);
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
    assert_eq!(registers(rig.machine(), 0).core.rip, ENTRY + 1);
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
    rig.machine().memory().put(at, &[0x55]);
    rig.bytes(b"\x03");
    assert_eq!(rig.machine().memory().get(at, 1), [0x55]);
}

#[test]
fn the_guests_own_int3_is_the_guests() {
    let mut rig = Rig::new(machine(1, &[code::INT3, code::SPIN]));
    rig.ask("Z0,9000,1");
    assert_eq!(rig.send("vCont;c"), [""; 0]);
    let (_, vcpu) = rig.machine().vcpu(0).unwrap();
    assert_eq!(vcpu.delivered(), [3], "#BP, once");
}

#[test]
fn a_breakpoint_that_cannot_be_written_at_resume_is_reported_and_nothing_runs() {
    let mut rig = nops(1);
    rig.ask("Z0,9000,1");
    rig.ask("Z0,9001,1");
    rig.machine().memory_mut().protect(0x9001..0x9002);
    let replies = rig.send("vCont;c");
    assert!(console(&replies[0]).contains("0x9001"), "{replies:?}");
    assert!(replies[1].starts_with("T05thread:01;"));
    assert!(rig.plans.is_empty());
    assert_eq!(rig.machine().memory().get(0x9000, 1), [0], "none is left");
}

#[test]
fn rom_and_unmapped_addresses_take_a_debug_register_with_a_notice() {
    let mut rig = nops(1);
    rig.machine().memory_mut().protect(0x9000..0xa000);
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
    assert_eq!(armed.hardware.len(), 2);
}

#[test]
fn without_int3_exits_breakpoints_take_debug_registers_shared_with_hardware_ones() {
    let mut rig = without(
        &[Capability::BptExit],
        machine(1, &[code::NOP, code::NOP, code::SPIN]),
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
    assert_eq!(rig.last_plan().armed.hardware.len(), 1);
    assert_eq!(rig.ask(format!("z0,{at:x},1")), "OK");
    assert_eq!(rig.ask(format!("Z0,{at:x},1")), "OK");
    rig.ask("vCont;s:1"); // There is one notice.
    assert_eq!(rig.ask(format!("z0,{at:x},1")), "OK");
    rig.ask("vCont;s:1");
    assert_eq!(rig.last_plan().armed.hardware.len(), 1);
    assert_eq!(rig.ask(format!("z1,{at:x},1")), "OK");
    assert_eq!(
        rig.ask(format!("z1,{at:x},1")),
        "OK",
        "of what is not there"
    );
    rig.ask("vCont;s:1");
    assert_eq!(rig.last_plan().armed.hardware.len(), 0);
}

#[test]
fn hardware_breakpoints_stay_armed_while_stepping() {
    let mut rig = nops(2);
    rig.ask(format!("Z1,{:x},1", ENTRY + 1));
    rig.ask("vCont;s:1");
    assert_eq!(rig.last_plan().armed.hardware.len(), 1);
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
    let mut rig = without(
        &[Capability::Watchpoint, Capability::HwBreakpoint],
        machine(1, &[code::SPIN]),
    );
    assert_eq!(rig.ask("Z1,9000,1"), "");
    assert_eq!(rig.ask("Z4,9000,4"), "");
    assert_eq!(rig.ask("z4,9000,4"), "");
}

/// Code at `ENTRY` in real mode, at CS:IP.
fn real_mode(rig: &mut Rig) {
    let vcpu = registers_mut(rig.machine(), 0);
    vcpu.special.cr0 = 0x10;
    vcpu.special.efer = 0;
    vcpu.special.cs.long = false;
    vcpu.special.cs.base = ENTRY;
    vcpu.special.cs.limit = 0xffff;
    vcpu.core.rip = 0;
}

#[test]
fn where_cs_has_a_base_the_reply_has_the_linear_pc_at_which_the_breakpoint_is() {
    for (kind, name) in [(0, "swbreak"), (1, "hwbreak")] {
        let mut rig = nops(1);
        real_mode(&mut rig);
        assert_eq!(rig.ask(format!("Z{kind},{:x},1", ENTRY + 0x14)), "OK");
        let reply = rig.ask("vCont;c");
        assert!(
            reply.starts_with(&format!("T05thread:01;{name}:;00:")),
            "{reply}"
        );
        let pc = ENTRY + 0x14;
        assert!(
            reply.contains(&format!("10:{};", hex(pc.to_le_bytes()))),
            "{reply}"
        );
        let file = registers(rig.machine(), 0);
        assert_eq!(file.core.rip, 0x14);
    }
}

#[test]
fn the_reason_is_named_only_to_clients_that_announce_it() {
    for (features, software, hardware) in [
        ("qSupported", false, false),
        ("qSupported:vContSupported+;swbreak-;hwbreak?", false, false),
        ("qSupported:swbreak+", true, false),
        ("qSupported:hwbreak+;swbreak-", false, true),
        ("qSupported:swbreak+;multiprocess+;hwbreak+", true, true),
    ] {
        for (kind, name, named) in [(0, "swbreak:;", software), (1, "hwbreak:;", hardware)] {
            let mut rig = nops(1);
            rig.ask(features);
            assert_eq!(rig.ask(format!("Z{kind},{:x},1", ENTRY + 2)), "OK");
            let reply = rig.ask("vCont;c");
            assert_eq!(reply.contains(name), named, "{features}: {reply}");
            assert!(reply.starts_with("T05thread:01;"), "{reply}");
        }
    }
    // What one client has announced is nothing to the next.
    let mut rig = nops(1);
    rig.session.disconnected();
    rig.session.attach(GuestState::Stopped);
    rig.ask(format!("Z1,{:x},1", ENTRY + 2));
    assert!(rig.ask("vCont;c").starts_with("T05thread:01;00:"));
}

#[test]
fn a_stop_where_the_client_has_no_breakpoint_is_a_plain_trap() {
    let mut rig = nops(1);
    rig.ask(format!("Z1,{:x},1", ENTRY + 9));
    rig.send("vCont;r8000,9000:1");
    let replies = rig.stop(vec![stop(0, StopReason::HardwareBreakpoint)]);
    assert!(
        replies.iter().all(|reply| !reply.contains("hwbreak")),
        "{replies:?}"
    );
}

#[test]
fn watchpoints_that_leave_no_debug_register_for_a_handler_are_told_once() {
    // int 3 by number
    let program: &[&[u8]] = &[&[0xcd, 3], &[0x90], code::SPIN];
    let mut rig = Rig::new(machine(2, program));
    // It spins. No INT3 serves while it runs.
    registers_mut(rig.machine(), 1).core.rip += 3;
    for address in [0x9000, 0x9100, 0x9200] {
        assert_eq!(rig.ask(format!("Z2,{address:x},1")), "OK");
    }
    let step = |rig: &mut Rig, rip: u64| {
        let file = registers_mut(rig.machine(), 0);
        file.core.rip = rip;
        let replies = rig.send("vCont;s:1;c");
        assert!(replies.last().unwrap().starts_with("T05"), "{replies:?}");
        replies.len()
    };
    let start = registers(rig.machine(), 0).core.rip;
    assert_eq!(step(&mut rig, start), 1, "one register is left");
    assert_eq!(rig.ask("Z2,9300,1"), "OK");
    assert_eq!(step(&mut rig, start + 2), 1, "NOP enters no handler");
    assert_eq!(step(&mut rig, start), 2, "it is told");
    assert_eq!(step(&mut rig, start), 1, "it is told again");
}

#[test]
fn beside_four_watchpoints_an_int3_stops_at_a_handler_of_the_only_vcpu_that_runs() {
    // int 3 by number
    let program: &[&[u8]] = &[&[0xcd, 3], &[0x90]];
    let mut rig = Rig::new(machine(2, program));
    for address in [0x9000, 0x9100, 0x9200, 0x9300] {
        assert_eq!(rig.ask(format!("Z2,{address:x},1")), "OK");
    }
    let before = rig.machine().memory().snapshot();
    let replies = rig.send("vCont;s:1");
    assert_eq!(replies.len(), 1, "it is told: {replies:?}");
    // The frame is all that is new.
    let stack = usize::try_from(registers(rig.machine(), 0).core.rsp).unwrap();
    let after = rig.machine().memory().snapshot();
    let changed = |at: &usize| before[*at] != after[*at] && !(stack..stack + 40).contains(at);
    assert_eq!((0..before.len()).find(changed), None);
    assert_eq!(after[stack + 17] & 1, 0, "the saved TF");
}

/// A breakpoint that finds neither memory nor a debug register waits, without the client's part in it.
#[test]
fn a_breakpoint_waits_for_the_page_that_its_code_is_in() {
    const PAGE: u64 = 0x20_1000;
    let entry_of_page = TABLES + 3 * 0x1000 + 8;
    let mut rig = Rig::new(
        machine(1, &[code::NOP, code::STORE, code::SPIN]).with_registers(|file| {
            file.core.rdi = entry_of_page;
            // Present, writable, for user code: page 0.
            file.core.rax = 0x67;
        }),
    );
    for at in [0x9000, 0x9001, 0x9002, 0x9003] {
        assert_eq!(rig.ask(format!("Z1,{at:x},1")), "OK");
    }
    assert_eq!(rig.ask(format!("Z0,{PAGE:x},1")), "OK");
    let notice = maintenance::monitor(&mut rig, "mask");
    assert!(notice.contains("it is set once there is"), "{notice}");
    assert_eq!(rig.send("vCont;c"), [""; 0], "the client sees nothing");
    let [first, second] = rig.plans.as_slice() else {
        panic!("{:?}", rig.plans);
    };
    assert_eq!(first.armed.awaited, [PAGE]);
    assert_eq!(second.armed.awaited, [0; 0]);
    assert!(second.armed.software.contains(&GuestPhysAddr(0)));
    assert!(rig.bytes(&[3])[0].starts_with("T02"));
    assert_eq!(rig.machine().memory().get(0, 1), [0], "out of memory");
    // The last byte of the page before.
    rig.machine().memory().put(ALIASED + 0xfff, code::NOP);
    let rip = (PAGE - 1).to_le_bytes();
    let rip: String = rip.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(rig.ask(format!("P10={rip}")), "OK");
    let reply = rig.ask("vCont;c");
    assert!(reply.starts_with("T05thread:01;swbreak"), "{reply}");
    assert_eq!(rig.ask(format!("z0,{PAGE:x},1")), "OK");
    assert_eq!(rig.ask("D"), "OK");
    assert_eq!(rig.machine().memory().get(0, 1), [0]);
}

/// The page is another one's when the guest overwrites the INT3: it must not go back there.
#[test]
fn a_breakpoint_that_is_overwritten_in_a_page_that_has_gone_waits() {
    let entry_of_page = TABLES + 3 * 0x1000 + 8 * ((ALIAS >> 12) & 511);
    let mut rig = Rig::new(
        machine(1, &[code::STORE, code::SPIN]).with_registers(|file| {
            file.core.rdi = ALIASED;
            file.core.rax = 0x90;
        }),
    );
    assert_eq!(rig.ask(format!("Z0,{ALIAS:x},1")), "OK");
    rig.machine().memory().put(entry_of_page, &[0; 8]);
    assert_eq!(rig.send("vCont;c"), [""; 0], "the client sees nothing");
    let [first, second] = rig.plans.as_slice() else {
        panic!("{:?}", rig.plans);
    };
    assert!(first.armed.software.contains(&GuestPhysAddr(ALIASED)));
    assert!(second.armed.software.is_empty());
    assert_eq!(second.armed.awaited, [ALIAS]);
    assert!(rig.bytes(&[3])[0].starts_with("T02"));
    assert_eq!(rig.machine().memory().get(ALIASED, 1), [0x90]);
    assert_eq!(rig.ask("D"), "OK");
}

/// Without that the guest would be stopped at each of its exits.
#[test]
fn a_breakpoint_that_waits_gives_up_where_read_only_memory_comes() {
    const PAGE: u64 = 0x20_1000;
    let entry_of_page = TABLES + 3 * 0x1000 + 8;
    let mut machine = machine(1, &[code::NOP, code::STORE, code::SPIN]).with_registers(|file| {
        file.core.rdi = entry_of_page;
        file.core.rax = 0x67;
    });
    machine.memory_mut().protect(0..0x1000);
    let mut rig = Rig::new(machine);
    for at in [0x9000, 0x9001, 0x9002, 0x9003] {
        assert_eq!(rig.ask(format!("Z1,{at:x},1")), "OK");
    }
    assert_eq!(rig.ask(format!("Z0,{PAGE:x},1")), "OK");
    maintenance::monitor(&mut rig, "mask");
    assert_eq!(rig.send("vCont;c"), [""; 0]);
    let plans: Vec<_> = (rig.plans.iter().map(|plan| &plan.armed.awaited)).collect();
    assert_eq!(plans, [&vec![PAGE], &vec![]]);
    let replies = rig.bytes(&[3]);
    let notice = console(&replies[0]);
    assert!(notice.contains("cannot be written"), "{notice}");
    assert!(replies[1].starts_with("T02"), "{replies:?}");
    // Set again it finds no place either, and the client is told.
    assert!(rig.ask(format!("Z0,{PAGE:x},1")).starts_with('E'));
    assert_eq!(rig.ask("D"), "OK");
}

/// What waits is removed as any breakpoint.
#[test]
fn a_breakpoint_that_waits_can_be_removed_and_a_reset_keeps_it() {
    let mut rig = spinning(1);
    for at in [0x9000, 0x9001, 0x9002, 0x9003] {
        assert_eq!(rig.ask(format!("Z1,{at:x},1")), "OK");
    }
    assert_eq!(rig.ask("Z0,ffffffff81000000,1"), "OK");
    assert_eq!(rig.ask("z0,ffffffff81000000,1"), "OK");
    rig.send("vCont;c");
    assert_eq!(rig.last_plan().armed.awaited, [0; 0]);
    rig.bytes(&[3]);
    assert_eq!(rig.ask("Z0,ffffffff81000000,1"), "OK");
    rig.send("vCont;c");
    assert_eq!(rig.last_plan().armed.awaited, [0xffff_ffff_8100_0000]);
}

/// A boot loader writes the kernel over a breakpoint that was set early.
#[test]
fn a_breakpoint_that_the_guest_overwrites_is_written_again() {
    let program = [code::STORE, code::NOP, code::NOP, code::NOP, code::SPIN];
    let mut rig = Rig::new(machine(1, &program).with_registers(|file| {
        file.core.rdi = ENTRY + 4;
        file.core.rax = 0x90;
    }));
    assert_eq!(rig.ask(format!("Z0,{:x},1", ENTRY + 4)), "OK");
    let reply = rig.ask("vCont;c");
    assert!(reply.starts_with("T05thread:01;swbreak"), "{reply}");
    assert_eq!(rig.plans.len(), 2);
    assert_eq!(rig.machine().memory().get(ENTRY + 4, 1), [0x90]);
}

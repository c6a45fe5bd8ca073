//! Conditions and commands of breakpoints, which the VMM evaluates. The client sees no false hit.

use debug_stub::Action;

use super::*;

/// Where most breakpoints are.
const AT: u64 = ENTRY + 3;
/// `const8 0; end`.
const FALSE: &str = "X3,220027";
/// `const8 1; end`.
const TRUE: &str = "X3,220127";
/// `ref8` of 0x9000.
const BYTE: &str = "X5,2390001727";

/// `printf("hit\n")`, as gdb compiles it: channel, function, `printf 0 "hit\\n"`.
fn hit_printer() -> String {
    let mut code = vec![0x22, 0, 0x22, 0, 0x34, 0, 0, 6];
    code.extend(b"hit\\n\0");
    code.push(0x27);
    format!("X{:x},{}", code.len(), hex(code))
}

fn one_hit() -> Stop {
    stop(0, StopReason::SoftwareBreakpoint)
}

/// A vCPU at a breakpoint with these options. The test is the VMM: nothing runs by itself.
fn at_breakpoint(vcpus: usize, options: &str) -> Rig {
    let mut rig = nops(vcpus);
    assert_eq!(rig.ask(format!("Z0,{AT:x},1;{options}")), "OK");
    rig.session.receive(&frame(b"vCont;c"));
    assert_eq!(resumed(&mut rig), vec![VcpuOrder::Continue; vcpus]);
    for vcpu in 0..vcpus {
        registers_mut(rig.machine(), vcpu).core.rip = AT;
    }
    rig
}

/// The orders of the only action, which is a resume.
fn resumed(rig: &mut Rig) -> Vec<VcpuOrder> {
    let Some(Action::Resume(plan)) = rig.session.next_action() else {
        panic!("nothing is resumed");
    };
    assert_eq!(rig.session.next_action(), None);
    plan.vcpus
}

#[test]
fn conditions_and_commands_are_announced() {
    let mut rig = nops(1);
    let features = rig.ask("qSupported");
    for feature in ["ConditionalBreakpoints+", "BreakpointCommands+"] {
        assert!(features.split(';').any(|one| one == feature), "{features}");
    }
}

#[test]
fn a_false_hit_is_stepped_off_and_the_guest_goes_on_without_the_client() {
    for kind in [0, 1] {
        let mut rig = nops(2);
        assert_eq!(rig.ask(format!("Z{kind},{AT:x},1;{FALSE}")), "OK");
        assert_eq!(rig.send("vCont;c"), [""; 0]);
        let orders: Vec<_> = rig.plans.iter().map(|plan| plan.vcpus.clone()).collect();
        let runs = vec![VcpuOrder::Continue; 2];
        let first = vec![step(true), VcpuOrder::Stay];
        let second = vec![VcpuOrder::Stay, step(true)];
        assert_eq!(orders, [runs.clone(), first, second, runs]);
        for plan in &rig.plans {
            let steps = plan.vcpus.contains(&step(true));
            let written = plan.armed.software.len();
            assert_eq!(written, usize::from(kind == 0 && !steps), "{plan:?}");
        }
        assert!(rig.bytes(b"\x03")[0].starts_with("T02"));
        assert_eq!(rig.machine().memory().get(AT, 1), [0x90]);
        assert_eq!(registers(rig.machine(), 0).core.rip, ENTRY + 64);
    }
}

#[test]
fn conditions_read_registers_and_memory_at_each_hit() {
    // rip == AT
    let mut rig = nops(1);
    let code = format!("260010{:06x}1327", 0x23_0000 | AT);
    let options = format!("X{:x},{code}", code.len() / 2);
    assert_eq!(rig.ask(format!("Z0,{AT:x},1;{options}")), "OK");
    assert!(rig.ask("vCont;c").contains("swbreak:;"));

    let mut rig = at_breakpoint(1, BYTE);
    rig.session.stopped(vec![one_hit()]);
    assert_eq!(resumed(&mut rig), [step(true)]);
    rig.session.stopped(vec![stop(0, StopReason::Step)]);
    assert_eq!(resumed(&mut rig), [VcpuOrder::Continue]);
    rig.machine().memory().put(0x9000, &[7]);
    assert!(rig.stop(vec![one_hit()])[0].contains("swbreak:;"));
    assert!(rig.plans.is_empty(), "{:?}", rig.plans);
}

#[test]
fn one_true_condition_is_enough_and_a_breakpoint_without_one_always_stops() {
    let mut rig = nops(1);
    rig.ask(format!("Z0,{AT:x},1;{FALSE}{TRUE}"));
    assert!(rig.ask("vCont;c").contains("swbreak:;"));
    // Sent again, the breakpoint has the new condition, or none.
    let mut rig = nops(1);
    rig.ask(format!("Z0,{AT:x},1;{TRUE}"));
    rig.ask(format!("Z0,{AT:x},1;{FALSE}"));
    assert_eq!(rig.send("vCont;c"), [""; 0]);
    let mut rig = nops(1);
    rig.ask(format!("Z0,{AT:x},1;{FALSE}"));
    rig.ask(format!("Z0,{AT:x},1"));
    assert!(rig.ask("vCont;c").contains("swbreak:;"));
    // A second breakpoint at the same instruction.
    let mut rig = nops(1);
    rig.ask(format!("Z0,{AT:x},1;{FALSE}"));
    rig.ask(format!("Z1,{AT:x},1"));
    assert!(rig.ask("vCont;c").starts_with("T05"));
}

#[test]
fn a_condition_that_cannot_be_evaluated_stops_and_says_why() {
    for (code, why) in [
        ("25ffff8000000000001727", "memory at 0xffff800000000000"),
        ("220122000527", "a division by zero"),
        ("210000", "it takes too long"),
        ("2201210000", "more than 100 values"),
        ("26ffff27", "register 65535"),
        ("2702", "it has no value"),
        ("2201", "it has no end"),
        ("02", "the stack is empty"),
    ] {
        let mut rig = nops(1);
        let options = format!("X{:x},{code}", code.len() / 2);
        assert_eq!(rig.ask(format!("Z0,{AT:x},1;{options}")), "OK");
        let replies = rig.send("vCont;c");
        let [text, reply] = replies.as_slice() else {
            panic!("{code}: {replies:?}");
        };
        let text = console(text);
        assert!(text.contains(why), "{text}");
        assert!(text.contains("0x8003"), "{text}");
        assert!(reply.contains("swbreak:;"), "{reply}");
        assert_eq!(rig.plans.len(), 1);
    }
}

#[test]
fn bytecode_that_is_refused_sets_no_breakpoint() {
    let mut rig = nops(1);
    assert_eq!(rig.ask(format!("Z0,{AT:x},1;X1,0c")), "E16");
    assert_eq!(rig.ask(format!("Z0,{AT:x},1;X2,27")), "E16");
    assert_eq!(rig.ask(format!("Z2,{AT:x},1;{FALSE}")), "E16");
    assert_eq!(
        rig.ask("qSupported:error-message+").get(..10),
        Some("PacketSize")
    );
    let text = rig.ask(format!("Z0,{AT:x},1;X3,0d0127"));
    assert!(text.starts_with("E.breakpoint at 0x8003: "), "{text}");
    assert!(text.contains("trace_quick"), "{text}");
    assert_eq!(rig.send("vCont;c"), [""; 0]);
    assert!(rig.last_plan().armed.software.is_empty());
}

#[test]
fn all_bytecode_together_is_bounded() {
    let mut rig = nops(1);
    let code = format!("X1000,{}", "27".repeat(4096));
    let many = code.repeat(15);
    let set = |rig: &mut Rig, at: u64| rig.ask(format!("Z0,{:x},1;{many}", 0x9000 + at));
    for at in 0..17 {
        assert_eq!(set(&mut rig, at), "OK");
    }
    assert_eq!(set(&mut rig, 17), "E1c");
    assert_eq!(rig.ask("z0,9000,1"), "OK");
    assert_eq!(set(&mut rig, 17), "OK");
    assert_eq!(set(&mut rig, 17), "OK", "in place of itself");
}

#[test]
fn commands_print_and_do_not_stop() {
    let mut rig = nops(1);
    let commands = hit_printer();
    assert_eq!(rig.ask(format!("Z0,{AT:x},1;cmds:1,{commands}")), "OK");
    let replies = rig.send("vCont;c");
    let texts: Vec<_> = replies.iter().map(|reply| console(reply)).collect();
    assert_eq!(texts, ["hit\n"]);
    // With a condition that is false, and one that is true.
    for (condition, count) in [(FALSE, 0), (TRUE, 1)] {
        let mut rig = nops(1);
        rig.ask(format!("Z0,{AT:x},1;{condition};cmds:1,{commands}"));
        assert_eq!(rig.send("vCont;c").len(), count);
    }
    // A breakpoint that stops at the same instruction.
    let mut rig = nops(1);
    rig.ask(format!("Z0,{AT:x},1;cmds:1,{commands}"));
    rig.ask(format!("Z1,{AT:x},1"));
    assert!(rig.ask("vCont;c").starts_with("T05"));
}

#[test]
fn a_command_that_fails_says_so_and_the_guest_goes_on() {
    let mut rig = nops(1);
    rig.ask(format!("Z0,{AT:x},1;cmds:0,X1,17"));
    let replies = rig.send("vCont;c");
    let text = console(&replies[0]);
    assert!(text.contains("0x8003: the stack is empty"), "{text}");
    assert_eq!(replies.len(), 1);
}

#[test]
fn an_interrupt_request_is_never_lost() {
    let ended = |rig: &mut Rig| {
        let replies = rig.replies();
        assert!(replies.last().unwrap().starts_with("T02"), "{replies:?}");
        assert_eq!(rig.session.next_action(), None);
        assert_eq!(rig.machine().memory().get(AT, 1), [0x90]);
    };
    // Before the hit.
    let mut rig = at_breakpoint(1, FALSE);
    rig.session.receive(b"\x03");
    rig.session.stopped(vec![one_hit()]);
    ended(&mut rig);
    // As the vCPU steps off its breakpoint: the step is done, or not.
    for stops in [vec![stop(0, StopReason::Step)], vec![]] {
        let mut rig = at_breakpoint(1, FALSE);
        rig.session.stopped(vec![one_hit()]);
        assert_eq!(resumed(&mut rig), [step(true)]);
        rig.session.receive(b"\x03");
        rig.session.stopped(stops);
        ended(&mut rig);
    }
    // With a hit that the client sees.
    let mut rig = at_breakpoint(1, TRUE);
    rig.session.receive(b"\x03");
    rig.session.stopped(vec![one_hit()]);
    assert!(rig.replies().last().unwrap().contains("swbreak"));
}

#[test]
fn a_command_that_has_run_does_not_run_again_where_its_step_was_interrupted() {
    let mut rig = at_breakpoint(1, &format!("cmds:1,{}", hit_printer()));
    let hit = |rig: &mut Rig| {
        rig.session.stopped(vec![one_hit()]);
        assert_eq!(resumed(rig), [step(true)]);
        rig.replies().len()
    };
    assert_eq!(hit(&mut rig), 1);
    rig.session.receive(b"\x03");
    assert!(rig.stop(vec![])[0].starts_with("T02"));
    let go_on = frame(b"vCont;c");
    rig.session.receive(&go_on);
    resumed(&mut rig);
    assert_eq!(hit(&mut rig), 0, "it has not moved");
    rig.session.stopped(vec![stop(0, StopReason::Step)]);
    resumed(&mut rig);
    assert_eq!(hit(&mut rig), 1, "it has come again");
    // The client's own step leaves the breakpoint, too.
    rig.session.receive(b"\x03");
    rig.stop(vec![]);
    rig.session.receive(&frame(b"vCont;s:1"));
    resumed(&mut rig);
    rig.stop(vec![stop(0, StopReason::Step)]);
    rig.session.receive(&go_on);
    resumed(&mut rig);
    registers_mut(rig.machine(), 0).core.rip = AT;
    assert_eq!(hit(&mut rig), 1);
}

#[test]
fn several_vcpus_step_off_one_after_the_other_while_the_others_stay() {
    let mut rig = at_breakpoint(3, FALSE);
    rig.session
        .stopped(vec![one_hit(), stop(2, StopReason::SoftwareBreakpoint)]);
    let stay = VcpuOrder::Stay;
    let orders = resumed(&mut rig);
    assert_eq!(orders, [step(true), stay.clone(), stay.clone()]);
    rig.session.stopped(vec![stop(0, StopReason::Step)]);
    assert_eq!(resumed(&mut rig), [stay.clone(), stay, step(true)]);
    rig.session.stopped(vec![stop(2, StopReason::Step)]);
    assert_eq!(resumed(&mut rig), vec![VcpuOrder::Continue; 3]);
}

#[test]
fn a_stop_of_another_vcpu_is_reported_and_the_false_hit_happens_again() {
    let watch = StopReason::Watchpoint {
        address: 0x9000,
        access: WatchAccess::Write,
    };
    let mut rig = at_breakpoint(2, &format!("cmds:1,{}", hit_printer()));
    let replies = rig.stop(vec![one_hit(), stop(1, watch.clone())]);
    let [reply] = replies.as_slice() else {
        panic!("the command ran: {replies:?}");
    };
    assert!(reply.starts_with("T05thread:02;watch:"), "{reply}");
    // Also as the other one steps off its breakpoint.
    let mut rig = at_breakpoint(2, FALSE);
    rig.session.stopped(vec![one_hit()]);
    resumed(&mut rig);
    let replies = rig.stop(vec![stop(0, watch)]);
    assert!(replies[0].starts_with("T05thread:01;watch:"), "{replies:?}");
}

#[test]
fn a_reset_and_the_guests_end_are_reported_at_any_time() {
    for reason in [StopReason::Reset, StopReason::Exited(3)] {
        let mut rig = at_breakpoint(1, FALSE);
        rig.session.stopped(vec![one_hit()]);
        resumed(&mut rig);
        let replies = rig.stop(vec![stop(0, reason)]);
        let last = replies.last().unwrap();
        assert!(last.starts_with("T05") || last == "W03", "{replies:?}");
    }
}

#[test]
fn a_range_step_that_comes_to_a_false_hit_ends_behind_it() {
    let mut rig = nops(2);
    rig.ask(format!("Z0,{AT:x},1;{FALSE}"));
    let reply = rig.ask(format!("vCont;r{ENTRY:x},{:x}:1", ENTRY + 9));
    assert!(reply.starts_with("T05thread:01;0"), "{reply}");
    assert_eq!(registers(rig.machine(), 0).core.rip, AT + 1);
    // The step of one vCPU goes on when another has come to a false hit.
    let mut rig = nops(2);
    rig.ask(format!("Z0,{AT:x},1;{FALSE}"));
    rig.session.receive(&frame(b"vCont;r9000,9100:1;c"));
    let orders = resumed(&mut rig);
    registers_mut(rig.machine(), 1).core.rip = AT;
    rig.session
        .stopped(vec![stop(1, StopReason::SoftwareBreakpoint)]);
    assert_eq!(resumed(&mut rig), [VcpuOrder::Stay, step(true)]);
    rig.session.stopped(vec![stop(1, StopReason::Step)]);
    assert_eq!(resumed(&mut rig), orders);
}

#[test]
fn a_step_that_stands_on_a_breakpoint_it_has_not_hit_does_not_pass_it() {
    let mut rig = nops(2);
    rig.ask(format!("Z0,{AT:x},1;{FALSE}"));
    rig.ask(format!("Z0,{:x},1", AT + 1));
    rig.session.receive(&frame(b"vCont;r8000,9000:1;c"));
    resumed(&mut rig);
    registers_mut(rig.machine(), 0).core.rip = AT + 1;
    registers_mut(rig.machine(), 1).core.rip = AT;
    rig.session
        .stopped(vec![stop(1, StopReason::SoftwareBreakpoint)]);
    resumed(&mut rig);
    let replies = rig.stop(vec![stop(1, StopReason::Step)]);
    assert!(
        replies[0].starts_with("T05thread:01;swbreak:;"),
        "{replies:?}"
    );
}

#[test]
fn a_client_that_goes_as_a_vcpu_steps_off_leaves_a_clean_guest() {
    let mut rig = at_breakpoint(1, FALSE);
    rig.session.stopped(vec![one_hit()]);
    resumed(&mut rig);
    rig.session.disconnected();
    assert_eq!(rig.session.next_action(), Some(Action::Interrupt));
    rig.session.stopped(vec![stop(0, StopReason::Step)]);
    assert_eq!(rig.session.next_action(), Some(Action::Release));
    assert_eq!(rig.machine().memory().get(AT, 1), [0x90]);
    // The next client has none of it.
    rig.session.attach(GuestState::Stopped);
    rig.send("?");
    registers_mut(rig.machine(), 0).core.rip = ENTRY;
    rig.send("vCont;c");
    assert!(rig.last_plan().armed.software.is_empty());
}

#[test]
fn without_software_breakpoints_conditions_are_evaluated_at_hardware_ones() {
    let machine = machine(1, &[code::NOP, code::NOP, code::SPIN]);
    let mut rig = without(&[Capability::BptExit], machine);
    let at = ENTRY + 1;
    assert_eq!(rig.ask(format!("Z0,{at:x},1;{FALSE}")), "OK");
    let replies = rig.send("vCont;c");
    assert_eq!(replies.len(), 1, "the notice: {replies:?}");
    assert_eq!(rig.plans.len(), 3);
}

#[test]
fn a_client_that_does_not_read_gets_no_more_text_than_fits() {
    let mut config = SessionConfig::new(plan(&[]));
    config.max_packet = 2048;
    let mut rig = Rig::with(machine(1, &[code::NOP, code::SPIN]), config);
    rig.ask(format!("Z0,{ENTRY:x},1;cmds:1,{}", hit_printer()));
    rig.session.receive(&frame(b"vCont;s:1"));
    resumed(&mut rig);
    rig.stop(vec![stop(0, StopReason::Step)]);
    rig.session.receive(&frame(b"vCont;c"));
    resumed(&mut rig);
    for _ in 0..1000 {
        registers_mut(rig.machine(), 0).core.rip = ENTRY;
        rig.session.stopped(vec![one_hit()]);
        resumed(&mut rig);
        rig.session.stopped(vec![stop(0, StopReason::Step)]);
        resumed(&mut rig);
    }
    assert!(rig.session.output().len() < 2 * 2048 + 100);
    let replies = rig.stop(vec![stop(0, StopReason::TripleFault("end".into()))]);
    let text = console(&replies[replies.len() - 2]);
    assert!(text.contains("more messages were dropped"), "{text}");
}

#[test]
fn a_vcpu_that_goes_before_it_has_stepped_off_its_breakpoint_is_not_waited_for() {
    let mut rig = at_breakpoint(2, FALSE);
    let hit = |vcpu| stop(vcpu, StopReason::SoftwareBreakpoint);
    rig.session.stopped(vec![hit(0), hit(1)]);
    let orders = resumed(&mut rig);
    assert!(matches!(orders[..], [VcpuOrder::Step(_), VcpuOrder::Stay]));
    rig.machine().set_vcpus(1);
    rig.session.stopped(vec![stop(0, StopReason::Step)]);
    assert_eq!(resumed(&mut rig), [VcpuOrder::Continue]);
}

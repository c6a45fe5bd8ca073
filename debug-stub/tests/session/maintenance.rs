//! `monitor`, and QEMU's maintenance packets.

use std::cell::RefCell;
use std::fmt::Write;

use debug_stub::Host;
use debug_stub::x86_64::simulated::MonitorHook;
use vcpu_caps::Owner;

use super::*;

thread_local! {
    /// What the VMM's own `monitor` commands were.
    static COMMANDS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn say_or_flood(_: &mut Machine, command: &str, out: &mut dyn Write) -> bool {
    COMMANDS.with_borrow_mut(|commands| commands.push(command.into()));
    match command.split_once(' ') {
        Some(("say", text)) => write!(out, "the machine says {text}").is_ok(),
        _ if command == "flood" => {
            while out.write_str("0123456789abcde\n").is_ok() {}
            true
        }
        _ => false,
    }
}

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
        machine(1, &[code::NOP, code::SPIN]),
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

pub(crate) fn monitor(rig: &mut Rig, command: &str) -> String {
    let mut replies = rig.send(format!("qRcmd,{}", hex(command)));
    assert_eq!(replies.pop().as_deref(), Some("OK"));
    replies.iter().map(|packet| console(packet)).collect()
}

#[test]
fn the_monitor_commands_print_the_plan_and_the_mask() {
    let mut rig = nops(1);
    let (stepper, vcpu) = rig.machine().vcpu_mut(0).unwrap();
    vcpu.interrupt(0x20);
    vcpu.interrupt(0xec);
    let control = stepper.control_mut();
    control
        .hold(Owner::new("test"), Capability::MaskHwintr)
        .unwrap();
    assert!(monitor(&mut rig, "help").contains("monitor mask status"));
    assert!(monitor(&mut rig, "caps").contains("mask_hwintr"));
    let status = monitor(&mut rig, "mask status");
    assert!(
        status.contains("vcpu0: masked, pending: 0x20 0xec; blocked: masked, IF=0"),
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

#[test]
fn the_vmms_own_commands_are_asked_for_last_and_bounded() {
    let hook = MonitorHook {
        run: say_or_flood,
        help: "monitor say TEXT     the machine says it\n",
    };
    let mut rig = Rig::new(machine(1, &[code::SPIN]).with_monitor(hook));
    assert!(monitor(&mut rig, "help").contains("monitor say TEXT"));
    assert_eq!(
        monitor(&mut rig, " say  a b "),
        "the machine says  a b\n",
        "as it was typed"
    );
    assert!(monitor(&mut rig, "mask").contains("mask_hwintr"));
    assert!(monitor(&mut rig, "sing").contains("unknown command \"sing\""));
    let commands = COMMANDS.with_borrow(Clone::clone);
    assert_eq!(commands, ["say  a b", "sing"]);
    assert_eq!(monitor(&mut rig, "flood").len(), 64 << 10);
}

/// A VMM's `system_reset` or `loadvm`.
#[test]
fn registers_are_read_again_after_a_command_of_the_vmms_own() {
    fn reset(machine: &mut Machine, command: &str, _: &mut dyn Write) -> bool {
        for vcpu in 0..usize::from(machine.vcpu_count()) {
            registers_mut(machine, vcpu).core.rip = ENTRY;
        }
        command == "reset"
    }
    let hook = MonitorHook {
        run: reset,
        help: "",
    };
    // Also if the command says that it is not one.
    for command in ["reset", "rest"] {
        let mut rig = Rig::new(machine(1, &[code::NOP, code::SPIN]).with_monitor(hook));
        rig.ask("vCont;s:1");
        assert_eq!(rig.ask("p10"), hex((ENTRY + 1).to_le_bytes()));
        monitor(&mut rig, command);
        assert_eq!(rig.ask("p10"), hex(ENTRY.to_le_bytes()), "stale: {command}");
    }
}

#[test]
fn the_vmms_own_commands_are_found_behind_info_too() {
    let hook = MonitorHook {
        run: say_or_flood,
        help: "",
    };
    let mut rig = Rig::new(machine(1, &[code::SPIN]).with_monitor(hook));
    assert_eq!(
        monitor(&mut rig, "info say hello"),
        "the machine says hello\n"
    );
}

#[test]
fn what_a_command_of_qemus_is_called_here_is_said() {
    let mut rig = nops(1);
    let said = monitor(&mut rig, "info tlb");
    assert!(
        said.starts_with("QEMU's \"info tlb\" is not here: monitor pagewalk"),
        "{said}"
    );
    let said = monitor(&mut rig, "info frobnicate \x1b[31m");
    assert!(
        said.starts_with("unknown command \"info frobnicate") && said.contains("monitor help qemu"),
        "{said}"
    );
    assert!(!said.contains('\x1b'), "{said}");
    let all = monitor(&mut rig, "help qemu");
    assert!(all.contains("\ngva2gpa "), "{all}");
    assert!(monitor(&mut rig, "help").contains("monitor help qemu"));
}

#[test]
fn threads_are_listed_with_mode_and_program_counter() {
    let mut rig = nops(3);
    rig.ask("Hg2");
    let said = monitor(&mut rig, "threads");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].starts_with("  thread 1: "), "{said}");
    assert!(lines[1].starts_with("* thread 2: "), "{said}");
    assert!(
        lines[1].ends_with(&format!("long mode, 64-bit code, pc {ENTRY:#x}")),
        "{said}"
    );
    assert_eq!(monitor(&mut rig, "info cpus"), said);
    rig.machine().set_vcpus(0);
    assert_eq!(monitor(&mut rig, "threads"), "there is no vCPU yet\n");
}

#[test]
fn an_address_is_translated_and_its_walk_is_shown() {
    let mut rig = nops(1);
    let translated = monitor(&mut rig, &format!("translate {ENTRY:#x}"));
    let result = format!("{ENTRY:#x} is at physical {ENTRY:#x}, in a page of 2 MiB: rwx, user\n");
    assert_eq!(translated, format!("gpa: {ENTRY:#x}\n{result}"));
    assert_eq!(monitor(&mut rig, &format!("gva2gpa {ENTRY}")), translated);
    let walk = monitor(&mut rig, &format!("pagewalk {ENTRY:#x}"));
    assert!(
        walk.starts_with("4-level paging, CR3 0x1000\nPML4E at 0x1000: "),
        "{walk}"
    );
    assert!(walk.ends_with(&result), "{walk}");
    let none = monitor(&mut rig, "translate 0x800000000000");
    assert!(none.starts_with("Unmapped: "), "{none}");
    for wrong in [
        "translate",
        "translate rip",
        "pagewalk 1 2",
        "pagewalk 0x10000000000000000",
    ] {
        let said = monitor(&mut rig, wrong);
        assert!(said.contains("a number as in C"), "{wrong}: {said}");
    }
    let before = rig.ask("g");
    assert!(monitor(&mut rig, "kaslr").starts_with("no Linux kernel"));
    assert_eq!(rig.ask("g"), before);
}

/// What hugsy/gef, bata24/gef and pwndbg send when they look for QEMU.
#[test]
fn plug_ins_of_gdb_recognise_the_stub() {
    let mut rig = nops(1);
    for letter in ['q', 'Q'] {
        let mut ask = |text: &str| rig.ask(format!("{letter}qemu.{text}"));
        assert_eq!(ask("sstepbits"), "ENABLE=1,NOIRQ=2");
        assert_eq!(ask("sstep"), "0x3");
        assert_eq!(ask("sstep=0x1"), "OK");
        assert_eq!(ask("sstep"), "0x1");
        assert_eq!(ask("sstep=0x3"), "OK");
        assert_eq!(ask("PhyMemMode"), "0");
        assert_eq!(ask("PhyMemMode:1"), "OK");
        assert_eq!(ask("PhyMemMode:0"), "OK");
        assert_eq!(ask("nothing"), "");
    }
    // The first 2 MiB, and one page behind them.
    assert_eq!(
        monitor(&mut rig, "info mem"),
        "0000000000000000-0000000000201000 0000000000201000 urw\n"
    );
    let registers = monitor(&mut rig, "info registers");
    assert!(
        registers.starts_with("\nCPU#0\nRAX=0000000000000000 RBX="),
        "{registers}"
    );
    assert!(
        registers.contains("\nRIP=0000000000008000 RFL="),
        "{registers}"
    );
    assert!(
        registers.contains(" CR3=0000000000001000 CR4="),
        "{registers}"
    );
}

#[test]
fn all_vcpus_registers_are_listed_and_those_of_the_selected_one() {
    let mut rig = nops(3);
    let all = monitor(&mut rig, "info registers -a");
    assert_eq!(all.matches("\nRIP=").count(), 3);
    rig.ask("Hg2");
    assert!(monitor(&mut rig, "info registers").starts_with("\nCPU#1\n"));
    rig.machine().set_vcpus(0);
    assert!(monitor(&mut rig, "info registers").contains("CPU#1: "));
    assert!(!monitor(&mut rig, "info mem").is_empty());
}

#[test]
fn xp_prints_physical_memory_and_says_where_it_ends() {
    let mut rig = nops(1);
    rig.machine().memory().put(0x9000, &[0x12, 0, 0xff]);
    let text = monitor(&mut rig, "xp 0x9000 17");
    let mut lines = text.lines();
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with("0000000000009000: 0x12 0x00 0xff 0x00")
    );
    assert_eq!(lines.next(), Some("0000000000009010: 0x00"));
    assert_eq!(lines.next(), None);
    assert_eq!(monitor(&mut rig, "xp 36864").lines().count(), 4);
    let most = monitor(&mut rig, "xp 0 0xffffffffffffffff");
    assert_eq!(most.lines().count(), 256);
    let end = monitor(&mut rig, &format!("xp {} 16", RAM - 1));
    assert!(
        end.contains(&format!("nothing can be read at physical {RAM:#x}")),
        "{end}"
    );
    let none = monitor(&mut rig, "xp 0xffffffffffffffff 16");
    assert!(
        none.contains("nothing can be read at physical 0xffffffffffffffff"),
        "{none}"
    );
    assert!(monitor(&mut rig, "xp here").contains("numbers as in C"));
}

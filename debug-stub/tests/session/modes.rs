//! Target descriptions: which one a client has, and what it shows in each mode.

use super::*;
use debug_stub::Description;
use debug_stub::x86_64::{Avx512State, StateComponents, View, target_xml};

/// What the client is sent as target.xml.
fn description(rig: &mut Rig) -> String {
    let reply = rig.ask("qXfer:features:read:target.xml:0,fff0");
    reply.strip_prefix('l').expect("all of it").to_owned()
}

/// Protected mode, 32-bit code, flat.
fn protected(rig: &mut Rig, vcpu: usize) {
    let file = registers_mut(rig.machine(), vcpu);
    file.special.cr0 = 0x11;
    file.special.efer = 0;
    for segment in [&mut file.special.cs, &mut file.special.ss] {
        segment.long = false;
        segment.default_big = true;
        segment.limit = 0xffff_ffff;
    }
    rig.session.stopped(Vec::new());
}

/// Real mode at CS:IP, and SS:SP.
fn real(rig: &mut Rig, vcpu: usize, (cs, ip): (u16, u64), (ss, sp): (u16, u64)) {
    let file = registers_mut(rig.machine(), vcpu);
    file.special.cr0 = 0x10;
    file.special.efer = 0;
    for (segment, selector) in [(&mut file.special.cs, cs), (&mut file.special.ss, ss)] {
        segment.long = false;
        segment.default_big = false;
        segment.limit = 0xffff;
        segment.selector = selector;
        segment.base = u64::from(selector) << 4;
    }
    (file.core.rip, file.core.rsp) = (ip, sp);
    rig.session.stopped(Vec::new());
}

/// 64-bit mode again.
fn long(rig: &mut Rig, vcpu: usize) {
    let file = registers_mut(rig.machine(), vcpu);
    file.special.cr0 = 0x8000_0011;
    file.special.efer = 0x500;
    file.special.cs.long = true;
    rig.session.stopped(Vec::new());
}

fn monitor(rig: &mut Rig, command: &str) -> String {
    let replies = rig.send(format!("qRcmd,{}", hex(command)));
    let (last, output) = replies.split_last().unwrap();
    assert_eq!(last, "OK");
    output.iter().map(|packet| console(packet)).collect()
}

#[test]
fn a_client_gets_the_description_for_the_mode() {
    let mut rig = spinning(1);
    assert_eq!(description(&mut rig), target_xml(View::X86_64));
    assert_eq!(rig.ask("g").len(), 2 * 608);
    protected(&mut rig, 0);
    assert_eq!(rig.ask("g").len(), 2 * 608, "until it reads it again");
    assert_eq!(description(&mut rig), target_xml(View::I386));
    assert_eq!(rig.ask("g").len(), 2 * View::I386.total_bytes());
    real(&mut rig, 0, (0x800, 0), (0, 0x7c00));
    assert_eq!(description(&mut rig), target_xml(View::I8086));
    // Another annex, and the rest of this one, change nothing.
    long(&mut rig, 0);
    assert_eq!(rig.ask("qXfer:features:read:other.xml:0,10"), "E00");
    assert!(
        rig.ask("qXfer:features:read:target.xml:20,10")
            .starts_with('m')
    );
    assert_eq!(rig.ask("g").len(), 2 * View::I8086.total_bytes());
    assert_eq!(description(&mut rig), target_xml(View::X86_64));
}

#[test]
fn a_client_that_reads_no_description_has_all_registers() {
    let mut rig = nops(1);
    real(&mut rig, 0, (0x700, 0x1000), (0x900, 0xfff0));
    assert_eq!(rig.ask("g").len(), 2 * 608);
    assert!(rig.ask("vCont;s:1").contains("10:0180000000000000;"));
    // Its first one is read when it asks.
    assert_eq!(description(&mut rig), target_xml(View::I8086));
}

#[test]
fn the_description_is_the_widest_that_a_vcpu_needs() {
    let mut rig = spinning(2);
    real(&mut rig, 0, (0, 0x8000), (0, 0x7c00));
    assert_eq!(description(&mut rig), target_xml(View::X86_64));
    real(&mut rig, 1, (0, 0x8000), (0, 0x7c00));
    assert_eq!(description(&mut rig), target_xml(View::I8086));
    protected(&mut rig, 1);
    assert_eq!(description(&mut rig), target_xml(View::I386));
}

#[test]
fn the_vmm_may_choose_the_description() {
    for (name, view) in [
        ("i386:x86-64", View::X86_64),
        ("i386", View::I386),
        ("i8086", View::I8086),
        // The mode decides.
        ("pdp11", View::I8086),
    ] {
        let mut config = SessionConfig::new(plan(&[]));
        config.description = Description::Always(name);
        let mut rig = Rig::with(machine(1, &[code::SPIN]), config);
        real(&mut rig, 0, (0, 0x8000), (0, 0x7c00));
        assert_eq!(description(&mut rig), target_xml(view), "{name}");
    }
}

#[test]
fn a_64_bit_kernels_client_has_its_description_from_the_start_and_the_modes_when_it_asks_again() {
    let mut config = SessionConfig::new(plan(&[]));
    config.description = Description::FirstThis("i386:x86-64");
    let mut rig = Rig::with(machine(1, &[code::SPIN]), config);
    protected(&mut rig, 0);
    assert_eq!(
        rig.ask("g").len(),
        2 * 608,
        "also one that does not read it"
    );
    assert_eq!(description(&mut rig), target_xml(View::X86_64));
    assert_eq!(description(&mut rig), target_xml(View::I386));
    long(&mut rig, 0);
    assert_eq!(description(&mut rig), target_xml(View::X86_64));
    rig.session.disconnected();
    protected(&mut rig, 0);
    rig.session.attach(GuestState::Stopped);
    assert_eq!(
        description(&mut rig),
        target_xml(View::X86_64),
        "the next one"
    );
}

#[test]
fn the_next_client_chooses_again() {
    let mut rig = spinning(1);
    protected(&mut rig, 0);
    assert_eq!(description(&mut rig), target_xml(View::I386));
    rig.session.disconnected();
    long(&mut rig, 0);
    rig.session.attach(GuestState::Stopped);
    assert_eq!(rig.ask("g").len(), 2 * 608);
}

#[test]
fn a_stop_reply_has_the_registers_of_the_description() {
    let mut rig = nops(1);
    real(&mut rig, 0, (0x700, 0x1000), (0x900, 0xfff0));
    description(&mut rig);
    let reply = rig.ask("vCont;s:1");
    // ESP is 4 and EIP 8; CS is 10 (0a), and the last.
    assert!(reply.starts_with("T05thread:01;00:00000000;"), "{reply}");
    assert!(reply.contains("04:f08f0100;"), "{reply}");
    assert!(reply.contains("08:01800000;"), "{reply}");
    assert!(reply.ends_with("0a:00070000;"), "{reply}");
    assert_eq!(rig.ask("p8"), "01800000");
    assert_eq!(rig.ask("p4"), hex(0x1_8ff0u32.to_le_bytes()));
    // Range steps are in linear addresses, too.
    rig.ask("vCont;r8001,8004:1");
    let VcpuOrder::Step(order) = &rig.last_plan().vcpus[0] else {
        panic!("no step");
    };
    assert_eq!(order.range, Some(0x8001..0x8004));
    assert_eq!(registers(rig.machine(), 0).core.rip, 0x1004);
    // And `c` with an address.
    assert_eq!(rig.ask("s8010"), rig.ask("?"));
    assert_eq!(registers(rig.machine(), 0).core.rip, 0x1011);
    assert_eq!(rig.ask("s17000"), "E16", "outside the code segment");
}

#[test]
fn wrong_sizes_and_unknown_registers_are_refused_by_the_description_that_the_client_has() {
    let mut rig = spinning(1);
    protected(&mut rig, 0);
    description(&mut rig);
    let before = registers(rig.machine(), 0).clone();
    assert_eq!(rig.ask("P0=0100000000000000"), "E16", "8 bytes");
    assert_eq!(rig.ask("P0=010000"), "E16");
    assert_eq!(rig.ask("P54=00000000"), "E0e", "register 84");
    assert_eq!(rig.ask("p54"), "E0e");
    assert_eq!(rig.ask("pffffffffffffffff"), "E0e");
    assert_eq!(rig.ask("p10000000000000000"), "E16", "no number");
    assert_eq!(rig.ask("p"), "E16");
    let all = rig.ask("g");
    assert_eq!(rig.ask(format!("G{}", &all[2..])), "E16");
    assert_eq!(rig.ask(format!("G{all}00")), "E16");
    assert_eq!(rig.ask(format!("G{}", "00".repeat(608))), "E16");
    assert_eq!(*registers(rig.machine(), 0), before);
    assert_eq!(rig.ask(format!("G{all}")), "OK");
    assert_eq!(rig.ask("P0=01000080"), "OK");
    assert_eq!(registers(rig.machine(), 0).core.rax, 0x8000_0001);
}

#[test]
fn a_client_whose_description_is_too_narrow_is_told_once_and_writes_nothing_by_halves() {
    let mut rig = nops(1);
    protected(&mut rig, 0);
    description(&mut rig);
    assert_eq!(rig.send("vCont;s:1").len(), 1, "nothing to tell");
    long(&mut rig, 0);
    let file = registers_mut(rig.machine(), 0);
    file.core.rax = 0xffff_8000_0000_0001;
    let replies = rig.send("vCont;s:1");
    let [note, stop] = replies.as_slice() else {
        panic!("{replies:?}");
    };
    let note = console(note);
    assert!(note.contains("thread 1: long mode, 64-bit code"), "{note}");
    assert!(note.contains("i386, are too narrow"), "{note}");
    assert!(note.contains("unset tdesc filename"), "{note}");
    // EAX is left out, the program counter is not.
    assert!(stop.starts_with("T05thread:01;01:"), "{stop}");
    assert!(stop.contains("08:02800000;"), "{stop}");
    assert_eq!(rig.ask("p0"), "xx");
    let all = rig.ask("g");
    assert!(all.starts_with("xxxxxxxx00000000"), "{all}");
    assert_eq!(all.len(), 2 * View::I386.total_bytes());
    assert_eq!(rig.ask("P0=01000000"), "E16");
    assert_eq!(rig.ask(format!("G{}", all.replace('x', "0"))), "E16");
    assert_eq!(registers(rig.machine(), 0).core.rax, 0xffff_8000_0000_0001);
    let text = monitor(&mut rig, "mode");
    assert!(text.contains("that of the mode is i386:x86-64."), "{text}");
    assert!(
        text.contains("eax has 32 bits in this target description"),
        "{text}"
    );
    assert_eq!(rig.send("vCont;s:1").len(), 1, "told once");
    // With the right description everything is there.
    assert_eq!(description(&mut rig), target_xml(View::X86_64));
    assert_eq!(rig.ask("p0"), hex(0xffff_8000_0000_0001u64.to_le_bytes()));
    assert_eq!(rig.ask("P0=0200000000000000"), "OK");
}

#[test]
fn a_guest_that_has_enabled_avx_has_its_registers_for_clients_that_ask() {
    let mut config = SessionConfig::new(plan(&[]));
    config.description = Description::FirstThis("i386:x86-64");
    let mut rig = Rig::with(machine(2, &[code::SPIN]), config);
    assert_eq!(description(&mut rig), target_xml(View::X86_64));
    assert_eq!(rig.ask("p64"), "E0e", "register 100");
    for vcpu in 0..2 {
        registers_mut(rig.machine(), vcpu).fpu.ymm_high = Some([[0x5a; 16]; 16]);
    }
    rig.session.stopped(Vec::new());
    let text = monitor(&mut rig, "mode");
    assert!(
        text.contains("other registers since. In GDB type"),
        "{text}"
    );
    let avx = View::X86_64.with(StateComponents::AVX);
    assert_eq!(description(&mut rig), target_xml(avx));
    assert_eq!(rig.ask("p64"), "5a".repeat(16));
    assert_eq!(rig.ask("g").len(), 2 * 608);
    assert_eq!(rig.ask(format!("P64={}", "77".repeat(16))), "OK");
    assert_eq!(rig.ask(format!("P64={}", "77".repeat(15))), "E16");
    let high = registers(rig.machine(), 0).fpu.ymm_high.unwrap();
    assert_eq!((high[0], high[1]), ([0x77; 16], [0x5a; 16]));
    // A vCPU without it.
    registers_mut(rig.machine(), 0).fpu.ymm_high = None;
    rig.session.stopped(Vec::new());
    assert_eq!(rig.ask("p64"), "xx");
    assert_eq!(rig.ask(format!("P64={}", "77".repeat(16))), "E16");
}

#[test]
fn a_guest_that_has_enabled_avx512_and_pkru_has_them_behind_a_g_packet_of_the_same_length() {
    let mut rig = spinning(2);
    for vcpu in 0..2 {
        let fpu = &mut registers_mut(rig.machine(), vcpu).fpu;
        let mut state = Avx512State::default();
        state.opmask[1] = 0x1122_3344_5566_7788;
        state.zmm_high[31] = [0x5a; 32];
        state.xmm[0] = [0x16; 16];
        fpu.ymm_high = Some([[0; 16]; 16]);
        fpu.avx512 = Some(Box::new(state));
        fpu.pkru = Some(0x5555_5554);
    }
    rig.session.stopped(Vec::new());
    let all = View::X86_64.with(StateComponents::all());
    assert_eq!(description(&mut rig), target_xml(all));
    let g = rig.ask("g");
    assert_eq!(g.len(), 2 * 608);
    // k1, zmm31h, xmm16, pkru: 117, 155, 156 and 188.
    assert_eq!(rig.ask("p75"), "8877665544332211");
    assert_eq!(rig.ask("p9b"), "5a".repeat(32));
    assert_eq!(rig.ask("p9c"), "16".repeat(16));
    assert_eq!(rig.ask("pbc"), "54555555");
    assert_eq!(rig.ask("pbd"), "E0e");
    for (number, digits, size) in [("75", "21", 8), ("9b", "77", 32), ("bc", "0c", 4)] {
        let written = digits.repeat(size);
        assert_eq!(rig.ask(format!("P{number}={written}")), "OK");
        assert_eq!(rig.ask(format!("p{number}")), written);
        let short = digits.repeat(size - 1);
        assert_eq!(rig.ask(format!("P{number}={short}")), "E16");
    }
    // A `G` of the same length changes none of them.
    assert_eq!(rig.ask(format!("G{g}")), "OK");
    let fpu = &registers(rig.machine(), 0).fpu;
    let state = fpu.avx512.as_ref().unwrap();
    assert_eq!(
        (state.opmask[1], fpu.pkru),
        (0x2121_2121_2121_2121, Some(0x0c0c_0c0c))
    );
    assert_eq!((state.zmm_high[31], state.xmm[0]), ([0x77; 32], [0x16; 16]));
    // A vCPU without them.
    let fpu = &mut registers_mut(rig.machine(), 0).fpu;
    (fpu.avx512, fpu.pkru) = (None, None);
    rig.session.stopped(Vec::new());
    for number in ["75", "9b", "9c", "bc"] {
        assert_eq!(rig.ask(format!("p{number}")), "xx");
    }
    assert_eq!(rig.ask("Pbc=00000000"), "E16");
}

#[test]
fn monitor_mode_says_the_mode_the_description_and_how_to_change_it() {
    let mut rig = spinning(2);
    real(&mut rig, 1, (0, 0x8000), (0, 0x7c00));
    let text = monitor(&mut rig, "mode");
    assert!(
        text.contains("thread 1: long mode, 64-bit code\n"),
        "{text}"
    );
    assert!(
        text.contains("thread 2: real mode (16-bit code)\n"),
        "{text}"
    );
    assert!(
        text.contains("i386:x86-64, which is that of the mode"),
        "{text}"
    );
    assert!(monitor(&mut rig, "help").contains("monitor mode "));
    protected(&mut rig, 0);
    let text = monitor(&mut rig, "mode");
    assert!(
        text.contains("i386:x86-64; that of the mode is i386."),
        "{text}"
    );
    assert!(text.contains("unset tdesc filename"), "{text}");
}

#[test]
fn a_failing_host_leaves_the_widest_description() {
    let mut rig = Rig::new(machine(0, &[code::SPIN]));
    let all = target_xml(View::X86_64.with(StateComponents::all()));
    assert!(description(&mut rig) == all, "no vCPU yet");
    assert_eq!(rig.ask("g").len(), 2 * 608);
    assert!(monitor(&mut rig, "mode").contains("i386:x86-64"));
}

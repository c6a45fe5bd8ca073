//! `g`, `G`, `p`, `P`.

use super::*;
use debug_stub::x86_64::View;

#[test]
fn rbx_is_not_rbp_and_gs_base_is_not_fs() {
    let mut rig = spinning(2);
    let vcpu = registers_mut(rig.machine(), 1);
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
    assert_eq!(registers(rig.machine(), 1).core.rcx, 0xdead_beef);
    assert_eq!(registers(rig.machine(), 0).core.rcx, 0);
    assert_eq!(rig.ask("p2"), "efbeadde00000000", "no stale copy is shown");
}

#[test]
fn a_g_written_back_changes_nothing_and_a_changed_one_does() {
    let mut rig = spinning(1);
    registers_mut(rig.machine(), 0).core.rsi = 0x55;
    let before = registers(rig.machine(), 0).clone();
    let all = rig.ask("g");
    assert_eq!(rig.ask(format!("G{all}")), "OK");
    assert_eq!(*registers(rig.machine(), 0), before);
    let changed = format!("{}{}", hex(7u64.to_le_bytes()), &all[16..]);
    assert_eq!(rig.ask(format!("G{changed}")), "OK");
    assert_eq!(registers(rig.machine(), 0).core.rax, 7);
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
    assert_eq!(document, debug_stub::x86_64::target_xml(View::X86_64));
}

/// After a call of a function GDB writes registers back, one by one.
#[test]
fn a_selector_that_is_there_may_be_written_again_also_beyond_the_gdt() {
    let mut rig = spinning(1);
    let special = &mut registers_mut(rig.machine(), 0).special;
    special.gdtr.limit = 0x17;
    for (segment, selector) in [(&mut special.fs, 0x53), (&mut special.gs, 0x2b)] {
        segment.selector = selector;
        segment.base = 0x7000;
    }
    let before = registers(rig.machine(), 0).clone();
    assert_eq!(rig.ask("P16=53000000"), "OK");
    assert_eq!(rig.ask("P17=2b000000"), "OK");
    assert_eq!(*registers(rig.machine(), 0), before, "the base stays");
    // Another one is loaded, and cannot be; nothing is left of it.
    assert_eq!(rig.ask("P16=5b000000"), "E16");
    assert_eq!(*registers(rig.machine(), 0), before);
}

//! What LLDB asks beyond GDB's packets. The requests are those that lldb 14 sends.

use super::*;

/// In the order of LLDB 14.
fn lldb(mut rig: Rig) -> Rig {
    assert_eq!(rig.ask("QStartNoAckMode"), "OK");
    assert_eq!(rig.ask("QThreadSuffixSupported"), "");
    assert_eq!(rig.ask("QListThreadsInStopReply"), "OK");
    rig.ask("qSupported:xmlRegisters=i386,arm,mips,arc;multiprocess+;fork-events+;vfork-events+");
    assert_eq!(rig.ask("QEnableErrorStrings"), "OK");
    rig
}

#[test]
fn the_machine_is_named() {
    let mut rig = lldb(nops(1));
    let triple = hex(b"x86_64-unknown-unknown");
    assert_eq!(
        rig.ask("qHostInfo"),
        format!("triple:{triple};endian:little;")
    );
    assert_eq!(
        rig.ask("qProcessInfo"),
        format!("pid:1;triple:{triple};endian:little;")
    );
}

#[test]
fn stop_replies_list_all_threads() {
    let mut rig = lldb(nops(3));
    let reply = rig.ask("?");
    assert!(reply.starts_with("T05thread:01;"), "{reply}");
    assert!(reply.ends_with(";threads:1,2,3;"), "{reply}");
    let replies = rig.send("vCont;s:2");
    let reply = replies.last().unwrap();
    assert!(reply.ends_with(";threads:1,2,3;"), "{reply}");
    // GDB does not know the field.
    assert!(!nops(3).ask("?").contains("threads"));
}

#[test]
fn errors_have_a_number_and_a_text() {
    let mut rig = lldb(nops(1));
    let reply = rig.ask("Hg7");
    assert!(reply.starts_with('E') && !reply.contains(';'), "{reply}");
    for address in 0..4 {
        assert_eq!(rig.ask(format!("Z1,{:x},1", 0x9000 + 8 * address)), "OK");
    }
    let reply = rig.ask("Z1,9100,1");
    let (number, text) = reply.split_once(';').unwrap();
    assert_eq!(number, "E1c");
    let text = hex_decode(text);
    assert!(
        text.contains("0x9100") && text.contains("debug registers"),
        "{text}"
    );
}

/// LLDB sends `k` when its user quits, whatever the guest was before.
#[test]
fn quit_leaves_the_guest_as_a_closed_connection_does() {
    for (found, releases) in [(GuestState::Stopped, 0), (GuestState::Running, 1)] {
        let mut rig = nops(2);
        rig.session.disconnected();
        rig.act();
        rig.session.attach(found);
        rig.act();
        let mut rig = lldb(rig);
        (rig.releases, rig.kills) = (0, 0);
        assert_eq!(rig.ask(format!("Z0,{:x},1", ENTRY + 3)), "OK");
        assert_eq!(rig.ask("k"), "X09");
        assert!(rig.session.is_closing());
        rig.session.disconnected();
        rig.act();
        assert_eq!((rig.kills, rig.releases), (0, releases), "{found:?}");
        common::assert_disarmed(rig.machine());
        assert_eq!(rig.machine().memory().get(ENTRY, 8), [0x90; 8]);
        // The next client is none.
        rig.session.attach(GuestState::Stopped);
        rig.act();
        rig.send("k");
        assert_eq!(rig.kills, 1, "GDB's k ends the guest");
    }
}

#[test]
fn its_user_may_end_the_guest() {
    let mut rig = lldb(nops(1));
    rig.send(format!("qRcmd,{}", hex(b"quit")));
    assert_eq!(rig.kills, 1);
}

fn hex_decode(text: &str) -> String {
    let digits: Vec<char> = text.chars().collect();
    let bytes = digits.chunks(2).map(|pair| {
        let pair: String = pair.iter().collect();
        u8::from_str_radix(&pair, 16).unwrap()
    });
    String::from_utf8(bytes.collect()).unwrap()
}

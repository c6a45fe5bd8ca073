//! `m`, `M`, `x`, `X`.

use super::*;

#[test]
fn a_read_across_the_end_of_a_mapping_returns_the_mapped_bytes() {
    let mut rig = spinning(1);
    rig.machine().memory().put(ALIASED + 0xffe, &[0xab, 0xcd]);
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
    assert_eq!(rig.machine().memory().get(ALIASED + 0xffe, 2), [0, 0]);
    assert_eq!(rig.ask(format!("M{:x},2:0102", ALIAS + 0xffe)), "OK");
    assert_eq!(rig.machine().memory().get(ALIASED + 0xffe, 2), [1, 2]);
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
    assert_eq!(rig.machine().memory().get(0x9000, 256), data);
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
    rig.machine().memory().put(ALIASED, &[0x77]);
    assert_eq!(rig.ask("qqemu.PhyMemMode"), "0");
    assert_eq!(rig.ask(format!("m{ALIAS:x},1")), "77");
    assert_eq!(rig.ask("Qqemu.PhyMemMode:1"), "OK");
    assert_eq!(rig.ask("qqemu.PhyMemMode"), "1");
    assert_eq!(rig.ask(format!("m{ALIAS:x},1")), "E0e", "RAM ends there");
    assert_eq!(rig.ask(format!("M{ALIASED:x},1:78")), "OK");
    assert_eq!(rig.machine().memory().get(ALIASED, 1), [0x78]);
}

#[test]
fn a_search_finds_what_lies_across_chunks_and_stops_where_memory_does() {
    let mut rig = spinning(1);
    rig.machine().memory().put(0x1_fffe, b"needle");
    assert_eq!(rig.ask("qSearch:memory:10000;60000;needle"), "1,1fffe");
    assert_eq!(rig.ask("qSearch:memory:20000;1000;needle"), "0");
    assert_eq!(
        rig.ask(format!("qSearch:memory:{ALIAS:x};2000;needle")),
        "E0e"
    );
    // As long as it likes: the first hit ends it, or the end of memory.
    let needle = rig.ask("qSearch:memory:10000;ffffffffffff;needle");
    assert_eq!(needle, "1,1fffe");
    assert_eq!(rig.ask("qSearch:memory:20000;ffffffffffff;needle"), "E0e");
}

#[test]
fn many_requests_at_once_take_many_turns_and_what_a_gone_client_sent_is_dropped() {
    let mut rig = spinning(1);
    rig.session.receive(&frame(b"qCRC:0,10000").repeat(100));
    let (mut turns, mut replies) = (1, rig.replies().len());
    while rig.session.has_work() {
        rig.session.work();
        turns += 1;
        replies += rig.replies().len();
    }
    assert!(turns >= 100, "{turns}: a checksum is a turn's work");
    assert_eq!(replies, 100, "nothing is lost");
    // Cheap ones: not all in one turn either.
    rig.session.receive(&frame(b"qAttached").repeat(1000));
    let served = unframe(rig.session.output()).len();
    assert!((1..=100).contains(&served), "{served}");
    assert!(rig.session.has_work());
    rig.session.disconnected();
    assert!(!rig.session.has_work());
    assert!(rig.session.output().is_empty());
}

#[test]
fn the_checksum_is_gdbs() {
    let mut rig = spinning(1);
    rig.machine().memory().put(0x9000, b"123456789");
    // CRC-32/MPEG-2's check value: GDB's algorithm has its parameters.
    assert_eq!(rig.ask("qCRC:9000,9"), "C376e6e7");
    assert_eq!(rig.ask(format!("qCRC:{ALIAS:x},2000")), "E0e");
}

#[test]
fn replies_are_as_long_as_asked_for_up_to_sixteen_pages() {
    let mut rig = spinning(1);
    for pages in [1usize, 4, 16] {
        let length = pages * 0x1000;
        assert_eq!(rig.ask(format!("m0,{length:x}")).len(), 2 * length);
        assert!(rig.ask(format!("x0,{length:x}")).len() > length);
    }
    let most = rig.ask("m0,ffffffff").len() / 2;
    assert!(most.is_multiple_of(0x10000), "{most:#x}");
}

#[test]
fn a_search_that_meets_unreadable_memory_says_where() {
    let mut rig = spinning(1);
    assert_eq!(
        rig.ask(format!("qSearch:memory:{:x};2000;zzz", ALIAS + 0xff0)),
        "E0e"
    );
    let said = maintenance::monitor(&mut rig, "mask");
    let text = format!(
        "memory at {:#x} cannot be read: the scan ended there",
        ALIAS + 0x1000
    );
    assert!(said.contains(&text), "{said}");
    rig.ask("qSupported:error-message+");
    let reply = rig.ask(format!("qCRC:{:x},2000", ALIAS));
    assert_eq!(reply, format!("E.{text}"));
}

/// LLDB's.
#[test]
fn a_region_has_the_rights_of_its_pages_and_a_hole_has_none() {
    let mut rig = spinning(1);
    assert_eq!(
        rig.ask("qMemoryRegionInfo:8123"),
        "start:0;size:201000;permissions:rwx;"
    );
    let hole = rig.ask("qMemoryRegionInfo:201000");
    assert_eq!(
        hole,
        format!("start:201000;size:{:x};", u64::MAX - 0x20_1000 + 1)
    );
    assert_eq!(rig.ask("qMemoryRegionInfo:ffffffffffffffff"), hole);
    for wrong in [
        "qMemoryRegionInfo:",
        "qMemoryRegionInfo:x",
        "qMemoryRegionInfo:1,2",
    ] {
        assert_eq!(rig.ask(wrong), "E16", "{wrong}");
    }
    // What physical memory permits is not known.
    assert_eq!(rig.ask("Qqemu.PhyMemMode:1"), "OK");
    assert_eq!(rig.ask("qMemoryRegionInfo:8123"), "");
}

#[test]
fn regions_are_those_of_the_selected_vcpu() {
    let mut rig = spinning(2);
    registers_mut(rig.machine(), 1).special.cr3 = 0x7f_ffff_f000;
    assert_eq!(rig.ask("Hg2"), "OK");
    assert_eq!(
        rig.ask("qMemoryRegionInfo:8123"),
        "start:0;size:ffffffffffffffff;"
    );
    assert_eq!(rig.ask("Hg1"), "OK");
    assert!(
        rig.ask("qMemoryRegionInfo:8123")
            .ends_with("permissions:rwx;")
    );
    rig.machine().set_vcpus(0);
    assert!(
        rig.ask("qMemoryRegionInfo:8123")
            .starts_with("start:0;size:100000000;")
    );
}

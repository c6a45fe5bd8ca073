//! Input that no debugger sends: the guest must not be affected.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

#[macro_use]
mod common;

use common::raw::frame;
use common::{Chips, Random, Setup, Vmm, rounds};
use vmm_reference::guests::TIMER;

with_all_chips! {
    a_connection_may_end_at_any_byte,
    what_comes_while_the_guest_runs_is_not_served,
}

/// The guest runs and the stub replies.
#[track_caller]
fn assert_unharmed(vmm: &mut Vmm) {
    assert!(vmm.is_alive());
    vmm.assert_rises("ticks");
    vmm.assert_rises("iterations");
    let log = vmm.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn garbage_is_logged_and_skipped() {
    let mut vmm = Setup::new(&TIMER).start();
    {
        let mut client = vmm.connect();
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.send(frame("qAttached"));
        client.until("$1#31");
    }
    vmm.assert_logs("bytes that are not a packet");
    let mut random = Random::new(7);
    for _ in 0..20 {
        let bytes: Vec<u8> = (0..5000)
            .map(|_| u8::try_from(random.below(256)).unwrap())
            // These bytes could start a valid packet.
            .filter(|byte| *byte != b'#')
            .collect();
        let mut client = vmm.connect();
        client.try_send(&bytes);
    }
    assert_unharmed(&mut vmm);
}

#[test]
fn a_web_page_cannot_drive_the_tcp_port() {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    let mut vmm = Setup::new(&TIMER)
        .without_gdb()
        .with(&["--gdb", "tcp:127.0.0.1:0"])
        .start();
    let mut address = String::new();
    common::eventually("it listens", || {
        let log = vmm.log();
        let found = log.split("address=tcp:").nth(1);
        address = found
            .and_then(|rest| rest.split_whitespace().next())
            .unwrap_or_default()
            .to_owned();
        !address.is_empty()
    });
    let kill = String::from_utf8(frame("k")).unwrap();
    let mut browser = TcpStream::connect(&address).unwrap();
    let request = format!("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n{kill}");
    browser.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    let _ = browser.read_to_end(&mut reply);
    assert_eq!(reply, b"", "nothing of it is answered");
    common::eventually("it is logged", || {
        let log = vmm.log();
        log.contains("the client is no debugger") && log.contains("HTTP")
    });
    assert!(vmm.is_alive());
    let mut debugger = TcpStream::connect(&address).unwrap();
    debugger.write_all(&frame("qC")).unwrap();
    let mut first = [0; 8];
    debugger.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"+$QC1#c5");
}

#[test]
fn a_wrong_checksum_is_refused_and_the_packet_asked_for_again() {
    let mut vmm = Setup::new(&TIMER).start();
    {
        let mut client = vmm.connect();
        for wrong in ["$qAttached#00", "$qAttached#zz", "$k#00", "$D#ff"] {
            client.send(wrong);
            assert_eq!(client.until("-"), "-", "{wrong}");
        }
        client.send(frame("qAttached"));
        assert_eq!(client.until("#31"), "+$1#31");
        // A damaged reply is sent again.
        client.send("-");
        assert_eq!(client.until("#31"), "$1#31");
        client.send("+");
    }
    vmm.assert_logs("wrong checksum");
    assert_unharmed(&mut vmm);
}

#[test]
fn a_packet_of_a_hundred_megabytes_costs_no_memory() {
    let mut vmm = Setup::new(&TIMER).start();
    assert_unharmed(&mut vmm);
    let before = vmm.resident();
    let mut most = 0;
    {
        let mut client = vmm.connect();
        let megabyte = vec![b'a'; 1 << 20];
        client.send("$");
        for _ in 0..rounds(100) {
            client.send(&megabyte);
            most = most.max(vmm.resident());
        }
        // 2^20 times any byte is 0 modulo 256.
        client.send("#00");
        // EMSGSIZE.
        client.until("$E5a#");
        client.send(frame("qAttached"));
        client.until("$1#31");
    }
    let grown = most.saturating_sub(before);
    println!("{grown} bytes more at the most");
    assert!(grown < 4 << 20, "{grown} bytes");
    vmm.assert_logs("over the limit");
    assert_unharmed(&mut vmm);
}

#[test]
fn a_client_that_asks_and_does_not_read_costs_no_memory() {
    let mut vmm = Setup::new(&TIMER).start();
    assert_unharmed(&mut vmm);
    let before = vmm.resident();
    {
        let client = std::os::unix::net::UnixStream::connect(&vmm.socket).unwrap();
        client.set_nonblocking(true).unwrap();
        let asks = frame(format!("m{:x},3000", vmm.symbol("_start"))).repeat(1000);
        // Until neither side accepts more.
        let mut full = 0;
        while full < 20 {
            match std::io::Write::write(&mut &client, &asks) {
                Ok(_) => full = 0,
                Err(_) => {
                    full += 1;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
        let grown = vmm.resident().saturating_sub(before);
        println!("{grown} bytes more");
        assert!(grown < 4 << 20, "{grown} bytes");
    }
    assert_unharmed(&mut vmm);
}

fn a_connection_may_end_at_any_byte(chips: Chips) {
    let mut vmm = Setup::new(&TIMER).with(chips).start();
    let session: Vec<u8> = [
        "qSupported:swbreak+",
        "?",
        "g",
        "p10",
        "vCont?",
        "vCont;s:1",
        "Z1,1000,1",
    ]
    .iter()
    .flat_map(|body| [frame(body), b"+".to_vec()].concat())
    .chain(frame("vCont;c"))
    .chain([3])
    .collect();
    for end in 0..=session.len() {
        let mut client = vmm.connect();
        client.try_send(&session[..end]);
    }
    println!("{} places", session.len() + 1);
    assert_unharmed(&mut vmm);
}

#[test]
fn packets_that_make_no_sense_are_answered_with_errors() {
    let mut vmm = Setup::new(&TIMER).start();
    {
        let mut client = vmm.client();
        for (packet, why) in [
            ("m", "no address"),
            ("mzz,4", "no number"),
            ("m0", "no length"),
            ("M0,4:11", "less data than said"),
            ("X0,ffffffffffffffff:", "more than there is"),
            ("p10000", "no such register"),
            ("P10=00", "too short"),
            ("P10=000000000000000000", "too long"),
            ("G00", "too short"),
            ("Hgffff", "no such thread"),
            ("T9", "no such thread"),
            ("vCont;s:9", "no such thread"),
            ("vCont;x", "no such action"),
            ("vCont;r10", "half a range"),
            ("Z1,zz,1", "no number"),
            ("Qqemu.sstep=0xffff", "no such bits"),
            ("qXfer:features:read:none.xml:0,100", "no such annex"),
        ] {
            let reply = client.request(packet).unwrap();
            assert!(
                reply.starts_with('E') || reply.is_empty(),
                "{packet} ({why}): {reply}"
            );
        }
        assert_eq!(client.request("qAttached").unwrap(), "1");
    }
    assert_unharmed(&mut vmm);
}

fn what_comes_while_the_guest_runs_is_not_served(chips: Chips) {
    let mut vmm = Setup::new(&TIMER).with(chips).start();
    {
        let mut client = vmm.client();
        client.send("vCont;c").unwrap();
        for packet in ["g", "m0,4", "D", "k", "vCont;s:1"] {
            client.send(packet).unwrap();
        }
        client.interrupt().unwrap();
        let stop = client.reply().unwrap();
        assert!(stop.starts_with("T02"), "{stop}");
        assert_eq!(client.request("qAttached").unwrap(), "1");
    }
    assert_unharmed(&mut vmm);
}

#[test]
fn a_second_client_is_turned_away_and_the_first_one_does_not_feel_it() {
    let mut vmm = Setup::new(&TIMER).start();
    {
        let mut first = vmm.client();
        for _ in 0..20 {
            let mut second = vmm.connect();
            let why = second.until("#");
            assert!(why.starts_with("$E.another debugger is attached"), "{why}");
        }
        assert_eq!(first.request("qAttached").unwrap(), "1");
    }
    assert_unharmed(&mut vmm);
}

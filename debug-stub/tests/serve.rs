//! The server on a plain thread, over run control with real threads: any client, any end.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is the world around the core, and it stops where what must hold does not"
)]

mod common;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{LONG, eventually, frame, gdb, host_with_locked_machine, machine, plan};
use debug_stub::run_control::{AllStop, Order, ResumeError, Waiting, WakePipe};
use debug_stub::server::{AllStopGuest, Listener, serve, serve_forever, serve_in_background};
use debug_stub::x86_64::simulated::{ENTRY, SimulatedMachine as Machine, code};
use debug_stub::{Host, ResumePlan, Session, SessionConfig, Stop, StopReason, VcpuId, VcpuOrder};

struct Shared {
    machine: Mutex<Machine>,
    kills: AtomicUsize,
    unattended: Mutex<Vec<Stop>>,
}

/// The simulated machine with a thread for each vCPU.
struct Guest {
    all: AllStop,
    shared: Arc<Shared>,
    threads: BTreeMap<u16, JoinHandle<()>>,
}

impl Guest {
    fn new(vcpus: u16, program: &[&[u8]]) -> Self {
        let shared = Arc::new(Shared {
            machine: Mutex::new(machine(usize::from(vcpus), program)),
            kills: AtomicUsize::new(0),
            unattended: Mutex::default(),
        });
        // A simulated vCPU looks for a stop request after each instruction: that is its kick.
        let all = AllStop::new(|_: VcpuId| {}).unwrap();
        let mut guest = Self {
            all,
            shared,
            threads: BTreeMap::new(),
        };
        for id in 0..vcpus {
            guest.add(id);
        }
        guest
    }

    fn add(&mut self, id: u16) {
        let mut vcpu = self.all.add(VcpuId(id)).unwrap();
        let shared = Arc::clone(&self.shared);
        let thread = thread::spawn(move || {
            while let Order::Run(order, armed) = vcpu.wait_for_order() {
                let reason = loop {
                    if vcpu.must_stop() {
                        break StopReason::Interrupted;
                    }
                    let mut machine = shared.machine.lock().unwrap();
                    let mut vcpus = vec![VcpuOrder::Stay; usize::from(machine.vcpu_count())];
                    vcpus[usize::from(id)] = order.clone();
                    let plan = ResumePlan {
                        vcpus,
                        armed: Arc::clone(&armed),
                        ..ResumePlan::default()
                    };
                    if let Some(stops) = machine.run(&plan, 1) {
                        break stops[0].reason.clone();
                    }
                    drop(machine);
                    thread::yield_now();
                };
                vcpu.report(reason);
            }
        });
        self.threads.insert(id, thread);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for vcpu in self.all.vcpus() {
            let _ = self.all.remove(vcpu);
        }
        for thread in std::mem::take(&mut self.threads).into_values() {
            let _ = thread.join();
        }
    }
}

impl AllStopGuest for Guest {
    fn all_stop(&self) -> &AllStop {
        &self.all
    }

    fn kill(&mut self) {
        self.shared.kills.fetch_add(1, Ordering::SeqCst);
    }

    fn unattended(&mut self, stops: Vec<Stop>) {
        *self.shared.unattended.lock().unwrap() = stops;
    }
}

host_with_locked_machine!(Guest, |guest| guest.shared.machine.lock().unwrap());

fn session(guest: Guest) -> Session<Guest> {
    Session::new(guest, common::run_on(&[]))
}

/// Two vCPUs, which count forever.
fn counting() -> Guest {
    Guest::new(2, &[code::INC_RAX, &[0xeb, 0xfb]])
}

fn send(stream: &mut impl Write, body: &str) {
    stream.write_all(&frame(body.as_bytes())).unwrap();
}

/// The next packet's body; acknowledgements are skipped.
fn reply(stream: &mut impl Read) -> String {
    let mut byte = [0];
    let mut body = None::<String>;
    loop {
        stream.read_exact(&mut byte).expect("no reply");
        match (byte[0], &mut body) {
            (b'$', _) => body = Some(String::new()),
            (b'#', Some(_)) => {
                stream.read_exact(&mut [0; 2]).unwrap();
                return body.unwrap();
            }
            (other, Some(body)) => body.push(char::from(other)),
            _ => {}
        }
    }
}

fn pair() -> (UnixStream, UnixStream) {
    let (client, server) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    (client, server)
}

/// Serves one client on a thread of its own, and gives the session back.
fn serving<S: Read + Write + AsFd + Send + 'static>(
    mut session: Session<Guest>,
    stream: S,
) -> JoinHandle<Session<Guest>> {
    thread::spawn(move || {
        serve(&mut session, stream).unwrap();
        session
    })
}

fn count_of(session: &Session<Guest>) -> u64 {
    let machine = session.host().shared.machine.lock().unwrap();
    common::registers(&machine, 0).core.rax
}

#[test]
fn a_client_steps_and_detaches_and_the_guest_runs_on() {
    let (mut client, stream) = pair();
    let server = serving(session(counting()), stream);
    for expected in [ENTRY + 3, ENTRY, ENTRY + 3] {
        send(&mut client, "vCont;s:1");
        let stop = reply(&mut client);
        assert!(stop.starts_with("T05"), "{stop}");
        send(&mut client, "p10");
        assert_eq!(
            reply(&mut client),
            common::hex(expected.to_le_bytes()),
            "RIP"
        );
    }
    send(&mut client, "D");
    assert_eq!(reply(&mut client), "OK");
    let session = server.join().unwrap();
    assert!(session.host().all.is_running());
    let before = count_of(&session);
    eventually("the guest runs", || count_of(&session) > before);
}

#[test]
fn a_client_that_vanishes_leaves_a_guest_that_runs() {
    let mut session = session(counting());
    // Gone at once; while the guest is stopped; in a packet; while the guest runs, with an INT3 in
    // memory; with an interrupt on its way.
    let texts: [&[&[u8]]; 5] = [
        &[],
        &[&frame(b"g")],
        &[b"$vCont;"],
        &[
            &frame(b"Z0,8000,1"),
            &frame(b"vCont;s:1"),
            &frame(b"vCont;c"),
        ],
        &[&frame(b"vCont;c"), b"\x03"],
    ];
    for (case, text) in texts.iter().enumerate() {
        let (mut client, stream) = pair();
        let server = serving(session, stream);
        client.write_all(&text.concat()).unwrap();
        if case % 2 == 1 {
            thread::sleep(Duration::from_millis(5));
        }
        drop(client);
        session = server.join().unwrap();
        assert!(session.host().all.is_running(), "case {case}");
        assert!(!session.is_attached());
        let machine = session.host().shared.machine.lock().unwrap();
        assert_eq!(
            machine.memory().get(ENTRY, 1),
            [0x48],
            "case {case}: an INT3 is left"
        );
    }
}

#[test]
fn a_client_that_vanishes_leaves_a_stopped_guest_stopped_and_unarmed() {
    let mut session = Session::new(counting(), SessionConfig::new(plan(&[])));
    let texts: [&[&[u8]]; 4] = [
        &[],
        &[b"GET / HTTP/1.1"],
        &[&frame(b"Z0,8000,1"), &frame(b"vCont;s:1")],
        &[
            &frame(b"Z1,8000,1"),
            &frame(b"vCont;r0,ffffffff:1"),
            b"\x03",
        ],
    ];
    for (case, text) in texts.iter().enumerate() {
        let (mut client, stream) = pair();
        let server = serving(session, stream);
        client.write_all(&text.concat()).unwrap();
        drop(client);
        session = server.join().unwrap();
        assert!(session.host().all.is_stopped(), "case {case}");
        assert!(!session.is_attached());
        let machine = session.host().shared.machine.lock().unwrap();
        assert_eq!(machine.memory().get(ENTRY, 1), [0x48], "case {case}");
        common::assert_disarmed(&machine);
    }
    let (mut client, stream) = pair();
    let server = serving(session, stream);
    send(&mut client, "vCont;c");
    client.write_all(b"$").unwrap();
    thread::sleep(Duration::from_millis(5));
    drop(client);
    let session = server.join().unwrap();
    assert!(session.host().all.is_running(), "the client continued it");
}

#[test]
fn a_client_kills_the_guest_once_and_it_is_not_released() {
    let (mut client, stream) = pair();
    let server = serving(session(counting()), stream);
    send(&mut client, "vKill;1");
    assert_eq!(reply(&mut client), "OK");
    let session = server.join().unwrap();
    assert_eq!(session.host().shared.kills.load(Ordering::SeqCst), 1);
    assert!(!session.host().all.is_running());
}

#[test]
fn another_thread_ends_the_conversation_by_shutting_the_stream_down() {
    let (mut client, stream) = pair();
    let handle = stream.try_clone().unwrap();
    let server = serving(session(counting()), stream);
    send(&mut client, "vCont;c");
    handle.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(server.join().unwrap().host().all.is_running());
}

#[test]
fn a_blocking_tcp_stream_is_served_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    client.set_nodelay(true).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let server = serving(session(counting()), stream);
    send(&mut client, "qC");
    assert_eq!(reply(&mut client), "QC1");
    // In pieces: each is acknowledged at once.
    for byte in frame(b"qC") {
        client.write_all(&[byte]).unwrap();
    }
    assert_eq!(reply(&mut client), "QC1");
    drop(client);
    server.join().unwrap();
}

/// A browser that a web page has send packets, and a TLS client.
#[test]
fn a_tcp_client_that_sends_no_packet_is_cut_off_and_nothing_of_it_is_served() {
    let kill = String::from_utf8(frame(b"k")).unwrap();
    let post = format!("POST / HTTP/1.1\r\nHost: localhost\r\n\r\n{kill}");
    for junk in [
        post.clone().into_bytes(),
        [&[22, 3, 1, 2, 0][..], &frame(b"k")].concat(),
        [&frame(b"qC")[..], b"\n", &frame(b"k")].concat(),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let server = serving(session(counting()), stream);
        client.write_all(&junk).unwrap();
        // The connection ends without the client's help.
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        let session = server.join().unwrap();
        let kills = session.host().shared.kills.load(Ordering::SeqCst);
        assert_eq!(kills, 0, "{}", junk.escape_ascii());
    }
    // A Unix socket has a mode: what comes there is skipped as before.
    let (mut client, stream) = pair();
    let server = serving(session(counting()), stream);
    client.write_all(b"noise").unwrap();
    send(&mut client, "qC");
    assert_eq!(reply(&mut client), "QC1");
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_is_not_waited_for_when_it_goes() {
    let (mut client, stream) = pair();
    let server = serving(session(counting()), stream);
    client.set_nonblocking(true).unwrap();
    let request = frame(b"m0,4000");
    loop {
        match client.write(&request) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    drop(client);
    server.join().unwrap();
}

struct Forever {
    address: String,
    path: std::path::PathBuf,
    quit: Arc<WakePipe>,
    server: Option<JoinHandle<Session<Guest>>>,
    all: AllStop,
    shared: Arc<Shared>,
    _directory: tempfile::TempDir,
}

impl Forever {
    fn new(guest: Guest) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gdb");
        let listener =
            Listener::bind(&format!("unix:{}", path.display()).parse().unwrap(), false).unwrap();
        let quit = Arc::new(WakePipe::new(Waiting::InALoop).unwrap());
        let all = guest.all.clone();
        let shared = Arc::clone(&guest.shared);
        let mut session = session(guest);
        let server = thread::spawn({
            let quit = Arc::clone(&quit);
            move || {
                serve_forever(&mut session, listener, Some(&*quit)).unwrap();
                session
            }
        });
        Self {
            address: path.display().to_string(),
            path,
            quit,
            server: Some(server),
            all,
            shared,
            _directory: directory,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    fn end(&mut self) -> Session<Guest> {
        self.quit.wake();
        self.server.take().unwrap().join().unwrap()
    }
}

#[test]
fn one_client_after_the_other_and_a_real_gdb() {
    let mut server = Forever::new(counting());
    for _ in 0..3 {
        let mut first = server.connect();
        send(&mut first, "?");
        let stop = reply(&mut first);
        assert!(stop.starts_with('T'), "{stop}");
        let mut second = server.connect();
        let why = reply(&mut second);
        assert_eq!(why, "E.another debugger is attached to this guest");
        assert_eq!(second.read(&mut [0; 16]).unwrap(), 0, "two clients");
        drop(first);
        eventually("the guest is released", || server.all.is_running());
    }
    let text = gdb(
        &server.address,
        &["stepi", "stepi", "info registers rip", "detach"],
    );
    assert!(text.contains("rip"), "{text}");
    eventually("the guest is released", || server.all.is_running());
    let session = server.end();
    assert!(session.host().all.is_running());
}

#[test]
fn the_server_ends_while_a_client_is_attached() {
    let mut server = Forever::new(counting());
    let mut client = server.connect();
    send(&mut client, "?");
    reply(&mut client);
    let session = server.end();
    assert!(session.host().all.is_running(), "the guest is released");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
}

/// vmm-sys-util's `EventFd` has no `AsFd`, and a VMM may have no descriptor to quit by.
#[test]
fn an_event_fd_ends_the_server_and_without_one_it_serves_on() {
    let quit = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let bind = |name: &str| {
        let path = directory.path().join(name);
        let address = format!("unix:{}", path.display()).parse().unwrap();
        (Listener::bind(&address, false).unwrap(), path)
    };
    let (listener, path) = bind("quit");
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut session = session(counting());
            serve_forever(&mut session, listener, Some(&quit)).unwrap();
        });
        let mut client = UnixStream::connect(&path).unwrap();
        send(&mut client, "qC");
        assert_eq!(reply(&mut client), "QC1");
        assert!(!server.is_finished());
        quit.write(1).unwrap();
        server.join().unwrap();
    });
    // It was polled, and not read.
    assert_eq!(quit.read().unwrap(), 1);

    let (listener, path) = bind("on");
    // It ends with the process.
    thread::spawn(move || serve_forever(&mut session(counting()), listener, None));
    for _ in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        send(&mut client, "qC");
        assert_eq!(reply(&mut client), "QC1");
        send(&mut client, "D");
        assert_eq!(reply(&mut client), "OK");
    }
}

#[test]
fn the_vmm_takes_a_stop_while_no_debugger_is_attached_and_the_next_one_sees_it() {
    let mut server = Forever::new(Guest::new(1, &[code::INC_RAX, code::UD2]));
    server.all.release().unwrap();
    eventually("the VMM is told", || {
        !server.shared.unattended.lock().unwrap().is_empty()
    });
    let stops = server.shared.unattended.lock().unwrap().clone();
    assert!(
        matches!(
            &stops[..],
            [Stop {
                reason: StopReason::TripleFault(_),
                ..
            }]
        ),
        "{stops:?}"
    );
    assert!(server.all.is_stopped());
    let mut client = server.connect();
    send(&mut client, "?");
    assert!(reply(&mut client).starts_with('T'));
    drop(client);
    server.end();
}

#[test]
fn the_vmm_does_not_start_a_guest_that_a_debugger_holds() {
    let (mut client, stream) = pair();
    let guest = counting();
    let all = guest.all.clone();
    all.start().unwrap();
    let server = serving(session(guest), stream);
    send(&mut client, "?");
    assert!(reply(&mut client).starts_with('T'));
    assert_eq!(all.start(), Err(ResumeError::Held));
    assert!(all.is_stopped());
    send(&mut client, "vCont;c");
    eventually("it runs", || all.is_running());
    // It is the debugger's run.
    all.start().unwrap();
    client.write_all(&[3]).unwrap();
    assert!(reply(&mut client).starts_with("T02"));
    assert_eq!(all.start(), Err(ResumeError::Held));
    send(&mut client, "D");
    assert_eq!(reply(&mut client), "OK");
    server.join().unwrap();
    eventually("it runs", || all.is_running());
    all.interrupt();
    all.wait_for_stops(Some(LONG)).unwrap();
    all.start().unwrap();
    assert!(all.is_running());
}

#[test]
fn a_guest_that_a_client_found_stopped_is_the_vmms_to_start_once_the_client_has_gone() {
    let mut server = Forever::new(counting());
    let mut client = server.connect();
    send(&mut client, "?");
    assert!(reply(&mut client).starts_with('T'));
    assert_eq!(server.all.start(), Err(ResumeError::Held));
    drop(client);
    eventually("the client has gone", || server.all.start().is_ok());
    assert!(server.all.is_running());
    server.end();
}

#[test]
fn a_server_in_the_background_ends_when_it_is_told_to_and_not_when_its_handle_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let start = |name: &str| {
        let path = directory.path().join(name);
        let address = format!("unix:{}", path.display()).parse().unwrap();
        let listener = Listener::bind(&address, false).unwrap();
        let server = serve_in_background(session(counting()), listener).unwrap();
        (server, path)
    };
    let ask = |path: &std::path::Path| {
        let mut client = UnixStream::connect(path).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        send(&mut client, "qC");
        assert_eq!(reply(&mut client), "QC1");
        client
    };
    let (server, path) = start("ends");
    let client = ask(&path);
    server.finish().unwrap();
    drop(client);
    assert!(!path.exists());

    let (server, path) = start("goes-on");
    drop(server);
    drop(ask(&path));
    drop(ask(&path));
}

#[test]
fn a_vcpu_that_goes_while_a_client_is_attached_does_not_end_the_session() {
    let (mut client, stream) = pair();
    let guest = counting();
    let all = guest.all.clone();
    let server = serving(session(guest), stream);
    send(&mut client, "vCont;s:1");
    assert!(reply(&mut client).starts_with("T05"));
    all.remove(VcpuId(1)).unwrap();
    // The session's plan names it: the others run.
    send(&mut client, "vCont;c");
    eventually("vCPU 0 runs", || all.is_running());
    client.write_all(b"\x03").unwrap();
    let stop = reply(&mut client);
    assert!(stop.starts_with("T02"), "{stop}");
    // It cannot be stepped any more: a stop says so, and the session lives.
    send(&mut client, "vCont;s:2");
    let stop = reply(&mut client);
    assert!(stop.starts_with('T'), "{stop}");
    send(&mut client, "qC");
    assert!(reply(&mut client).starts_with("QC"));
    drop(client);
    server.join().unwrap();
}

/// `set scheduler-locking`: the client names the vCPUs that run.
#[test]
fn of_the_vcpus_that_a_client_names_those_run_that_are_left_and_no_others() {
    let (mut client, stream) = pair();
    let guest = Guest::new(3, &[code::INC_RAX, &[0xeb, 0xfb]]);
    let all = guest.all.clone();
    let shared = Arc::clone(&guest.shared);
    let count = |vcpu| {
        common::registers(&shared.machine.lock().unwrap(), vcpu)
            .core
            .rax
    };
    let server = serving(session(guest), stream);
    send(&mut client, "vCont;s:1");
    assert!(reply(&mut client).starts_with("T05"));
    all.remove(VcpuId(1)).unwrap();
    let before = [0, 1, 2].map(count);
    send(&mut client, "vCont;c:1;c:2");
    eventually("vCPU 0 runs", || count(0) > before[0] + 10);
    assert_eq!([1, 2].map(count), before[1..], "no others");
    client.write_all(b"\x03").unwrap();
    let stop = reply(&mut client);
    assert!(stop.starts_with("T02"), "{stop}");
    drop(client);
    server.join().unwrap();
}

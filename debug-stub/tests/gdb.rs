//! The server, driven by a real GDB and by raw sockets.
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

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::simulated::{Shared, Simulated};
use common::{LONG, eventually, frame, machine};
use debug_stub::SessionConfig;
use debug_stub::server::{GdbServer, Listener};
use debug_stub::x86_64::Avx512State;
use debug_stub::x86_64::simulated::{ENTRY, SimulatedMachine as Machine, code};
use event_manager::{EventManager, SubscriberOps};
use vcpu_caps::Capability;

/// A server on a loop of its own.
struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    /// Ends with [`GdbServer::finish`] when `stop` is set.
    thread: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Server {
    fn new(machine: Machine) -> Self {
        Self::without(&[], machine)
    }

    fn without(absent: &[Capability], machine: Machine) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gdb");
        let address = format!("unix:{}", path.display()).parse().unwrap();
        let listener = Listener::bind(&address, false).unwrap();
        let host = Simulated::new(machine);
        let shared = Arc::clone(&host.shared);
        let server = GdbServer::new(listener, host, common::run_on(absent));
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut events = EventManager::new().unwrap();
            let id = events.add_subscriber(server);
            while !stopping.load(Ordering::SeqCst) {
                events.run_with_timeout(10).unwrap();
            }
            events.remove_subscriber(id).unwrap().finish().unwrap();
        });
        Self {
            path,
            shared,
            stop,
            thread: Some(thread),
            _directory: directory,
        }
    }

    /// Runs GDB with these commands. Returns all that it printed.
    fn gdb(&self, commands: &[&str]) -> String {
        common::gdb(&self.path.display().to_string(), commands)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    fn releases(&self) -> usize {
        self.shared.releases.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let result = self.thread.take().unwrap().join();
        if !thread::panicking() {
            result.unwrap();
        }
    }
}

fn nops() -> Machine {
    let mut program = vec![code::NOP; 16];
    program.extend([code::INC_RAX, code::SPIN]);
    machine(2, &program)
}

/// Reads until the output ends like this.
fn expect(stream: &mut UnixStream, end: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.ends_with(end.as_bytes()) {
        let count = stream.read(&mut buffer).expect(end);
        assert_ne!(count, 0, "closed after {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn gdb_sees_registers_threads_and_memory_and_steps() {
    let server = Server::new(nops());
    let text = server.gdb(&[
        "info registers rip rsp cr3 efer",
        "info threads",
        "p/x $rip",
        "set var $rcx = 0x1234",
        "p/x $rcx",
        "x/2xb 0x8000",
        "set var *(char*)0x9000 = 0x5a",
        "x/xb 0x9000",
        "stepi",
        "stepi",
        "p/x $rip",
        "monitor mask status",
        "detach",
    ]);
    for part in [
        "rip            0x8000",
        "cr3            0x1000",
        "[ SCE LME LMA ]",
        "Thread 1 \"\"",
        "(CPU#1)",
        "$1 = 0x8000",
        "$2 = 0x1234",
        "0x8000:\t0x90\t0x90",
        "0x9000:\t0x5a",
        "$3 = 0x8002",
        "steps hold mask_hwintr",
        "detached",
    ] {
        assert!(
            text.contains(part) || (part == "Thread 1 \"\"" && text.contains("Thread 1 (CPU#0)")),
            "{part}\n---\n{text}"
        );
    }
    eventually("released", || server.releases() == 1);
}

/// A `g` of QEMU's length is shorter than GDB's registers: it asks for the others with `p`, and its `G` is as short.
#[test]
fn gdb_reads_and_writes_avx512_and_pkru_behind_a_short_g() {
    let server = Server::new(nops().with_registers(|file| {
        let mut state = Avx512State::default();
        state.opmask[3] = 0x123;
        state.zmm_high[1] = [0x44; 32];
        (state.xmm[4], state.ymm_high[4]) = ([0x20; 16], [0x21; 16]);
        state.zmm_high[20] = [0x22; 32];
        file.fpu.xmm[1] = [0x11; 16];
        file.fpu.ymm_high = Some([[0x22; 16]; 16]);
        file.fpu.avx512 = Some(Box::new(state));
        file.fpu.pkru = Some(0x5555_5554);
    }));
    let text = server.gdb(&[
        "p/x $pkru",
        "p/x $k3",
        "p/x $zmm1.v8_int64",
        "p/x $zmm20.v8_int64",
        "set var $k3 = 0x456",
        "set var $zmm1.v8_int64[7] = 7",
        "set var $pkru = 8",
        "set remote P-packet off",
        "set var $rcx = 0x99",
        "stepi",
        "maint flush register-cache",
        "p/x $rcx",
        "p/x $k3",
        "p/x $zmm1.v8_int64",
        "p/x $pkru",
        "detach",
    ]);
    for part in [
        "$1 = 0x55555554\n",
        "$2 = 0x123\n",
        "$3 = {0x1111111111111111, 0x1111111111111111, 0x2222222222222222, 0x2222222222222222, \
         0x4444444444444444, 0x4444444444444444, 0x4444444444444444, 0x4444444444444444}",
        "$4 = {0x2020202020202020, 0x2020202020202020, 0x2121212121212121, 0x2121212121212121, \
         0x2222222222222222, 0x2222222222222222, 0x2222222222222222, 0x2222222222222222}",
        "$5 = 0x99\n",
        "$6 = 0x456\n",
        "0x4444444444444444, 0x4444444444444444, 0x4444444444444444, 0x7}",
        "$8 = 0x8\n",
    ] {
        assert!(text.contains(part), "{part}\n---\n{text}");
    }
}

#[test]
fn gdb_breaks_finishes_watches_and_comes_again() {
    let mut program = vec![code::NOP; 4];
    program.extend([code::STORE, code::NOP, code::SPIN]);
    let machine = machine(1, &program);
    let server = Server::new(machine.with_registers(|file| {
        file.core.rdi = 0x9000;
        file.core.rax = 7;
    }));
    let text = server.gdb(&[
        "break *0x8002",
        "continue",
        "p/x $rip",
        "x/xb 0x8002",
        "hbreak *0x8003",
        "continue",
        "p/x $rip",
        "delete",
        "watch *(char*)0x9000",
        "continue",
        "p/x $rip",
    ]);
    for part in [
        "Breakpoint 1, 0x0000000000008002",
        "$1 = 0x8002",
        "0x8002:\t0x90",
        "Breakpoint 2, 0x0000000000008003",
        "$2 = 0x8003",
        "New value = 7",
        "$3 = 0x8006",
    ] {
        assert!(text.contains(part), "{part}\n---\n{text}");
    }
    // GDB closed the connection without a detach. The machine runs without breakpoints, and the
    // next client can attach.
    eventually("released", || server.releases() == 1);
    let again = server.gdb(&["info breakpoints", "p/x $rip", "detach"]);
    assert!(again.contains("$1 = 0x8007"), "{again}");
    eventually("released", || server.releases() == 2);
}

#[test]
fn gdbs_breakpoints_work_in_debug_registers_where_int3_does_not() {
    let server = Server::without(&[Capability::BptExit], nops());
    let text = server.gdb(&["break *0x8002", "continue", "p/x $rip", "stepi", "p/x $rip"]);
    for part in ["Breakpoint 1, ", "$1 = 0x8002", "$2 = 0x8003"] {
        assert!(text.contains(part), "{part}\n---\n{text}");
    }
    assert!(
        text.contains("takes one of the four debug registers"),
        "{text}"
    );
}

#[test]
fn gdb_reports_a_crash_and_an_exit() {
    let crash = Server::new(machine(1, &[code::NOP, code::UD2]));
    let text = crash.gdb(&["continue", "p/x $rip"]);
    assert!(text.contains("triple fault"), "{text}");
    assert!(text.contains("SIGSEGV"), "{text}");
    assert!(text.contains("$1 = 0x8001"), "{text}");

    let exit = Server::new(machine(1, &[code::NOP, code::HLT]));
    let text = exit.gdb(&["continue"]);
    assert!(text.contains("exited normally"), "{text}");
}

#[test]
fn a_stepi_of_gdb_asks_for_no_register() {
    let server = Server::new(nops());
    let text = server.gdb(&["stepi", "set debug remote 1", "stepi", "set debug remote 0"]);
    let sent: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split("Sending packet: $").nth(1))
        .collect();
    let kinds: Vec<&str> = sent
        .iter()
        .map(|packet| packet.split([';', '#']).next().unwrap())
        .filter(|packet| !packet.starts_with('m'))
        .collect();
    // The registers came with the stop; what GDB asks for at each is the list of threads.
    assert_eq!(kinds, ["vCont", "qXfer:threads:read::0,1000"], "{sent:?}");
}

#[test]
fn maintenance_packets_switch_the_mask() {
    let server = Server::new(nops());
    let text = server.gdb(&[
        "maintenance packet qqemu.sstepbits",
        "maintenance packet Qqemu.sstep=0x1",
        "monitor mask status",
    ]);
    assert!(text.contains("received: \"ENABLE=1,NOIRQ=2\""), "{text}");
    assert!(text.contains("received: \"OK\""), "{text}");
    assert!(text.contains("steps do not mask"), "{text}");
}

#[test]
fn gdb_attaches_before_there_is_a_vcpu_and_sees_it_come() {
    let server = Server::new(machine(0, &[code::NOP, code::NOP, code::SPIN]));
    let shared = Arc::clone(&server.shared);
    let builder = thread::spawn(move || {
        eventually("gdb waits", || shared.resumes.load(Ordering::SeqCst) == 1);
        shared.machine.lock().unwrap().set_vcpus(1);
    });
    let text = server.gdb(&[
        "info threads",
        "break *0x8001",
        "continue",
        "info threads",
        "p/x $rip",
        "stepi",
        "p/x $rip",
        "detach",
    ]);
    builder.join().unwrap();
    for part in [
        "(no vCPU yet)",
        "Breakpoint 1, 0x0000000000008001",
        "(CPU#0)",
        "$1 = 0x8001",
        "$2 = 0x8002",
        "detached",
    ] {
        assert!(text.contains(part), "{part}\n---\n{text}");
    }
    assert!(!text.contains("warning: Remote"), "{text}");
}

#[test]
fn gdb_kills_the_guest() {
    let server = Server::new(nops());
    server.gdb(&["kill"]);
    eventually("killed", || server.shared.kills.load(Ordering::SeqCst) == 1);
    assert_eq!(server.releases(), 0);
}

#[test]
fn a_client_is_served_byte_by_byte_and_interrupts_a_spinning_guest() {
    let server = Server::new(machine(1, &[code::SPIN]));
    let mut stream = server.connect();
    for byte in frame(b"qAttached") {
        stream.write_all(&[byte]).unwrap();
    }
    expect(&mut stream, "$1#31");
    stream.write_all(&frame(b"vCont;c")).unwrap();
    thread::sleep(Duration::from_millis(20));
    stream.write_all(b"\x03").unwrap();
    let reply = {
        let mut seen = String::new();
        while !seen.contains("T02thread:01;") || !seen.contains('#') {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen
    };
    assert!(reply.contains("10:0080000000000000;"), "{reply}");
}

#[test]
fn what_a_client_sends_while_the_guest_is_being_stopped_is_not_lost_however_much_it_is() {
    let server = Server::new(machine(1, &[code::SPIN]));
    drop(server.connect());
    eventually("it runs", || server.releases() == 1);
    let brake = server.shared.brake.lock().unwrap();
    let mut stream = server.connect();
    let mut writes = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        let long = frame(&vec![b'a'; 3 * SessionConfig::DEFAULT_MAX_PACKET]);
        // The next read then does not fill the buffer exactly.
        writes.write_all(&long[..1]).unwrap();
        thread::sleep(Duration::from_millis(50));
        writes.write_all(&long[1..]).unwrap();
        writes.write_all(&frame(b"qAttached")).unwrap();
    });
    thread::sleep(Duration::from_millis(200));
    drop(brake);
    let seen = expect(&mut stream, "$1#31");
    assert_eq!(seen, "+$E5a#db+$1#31");
    writer.join().unwrap();
}

#[test]
fn a_second_client_is_turned_away_and_may_come_later() {
    let server = Server::new(nops());
    let mut first = server.connect();
    first.write_all(&frame(b"qAttached")).unwrap();
    expect(&mut first, "$1#31");
    let mut second = server.connect();
    let mut said = Vec::new();
    second.read_to_end(&mut said).unwrap();
    let text = b"E.another debugger is attached to this guest";
    assert_eq!(said, frame(text), "it is told why");
    first.write_all(&frame(b"qC")).unwrap();
    expect(&mut first, "$QC1#c5");
    drop(first);
    let mut third = server.connect();
    third.write_all(&frame(b"qAttached")).unwrap();
    expect(&mut third, "$1#31");
}

#[test]
fn a_client_that_comes_right_after_another_has_gone_is_served() {
    let server = Server::new(nops());
    for round in 0..200 {
        let mut gone = server.connect();
        // The server sees its input, its end and the next client at once.
        gone.write_all(&frame(b"qAttached")).unwrap();
        // Before the drop: a process that another test starts may have a copy of the descriptor.
        gone.shutdown(Shutdown::Both).unwrap();
        drop(gone);
        let mut next = server.connect();
        next.write_all(&frame(b"qC")).unwrap();
        assert!(expect(&mut next, "$QC1#c5").starts_with('+'), "{round}");
        next.shutdown(Shutdown::Both).unwrap();
    }
}

#[test]
fn a_hundred_clients_that_vanish_mid_step_leave_nothing_behind() {
    let server = Server::new(machine(1, &[code::SPIN]));
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    {
        let mut stream = server.connect();
        stream.write_all(&frame(b"?")).unwrap();
        expect_stop(&mut stream);
    }
    eventually("released", || server.releases() == 1);
    let before = descriptors();
    for round in 0..100usize {
        let mut stream = server.connect();
        stream.write_all(&frame(b"?")).unwrap();
        expect_stop(&mut stream);
        let parts: [&[u8]; 4] = [
            &frame(b"Z0,9000,1"),
            b"+",
            &frame(b"vCont;s:1"),
            &frame(b"vCont;c"),
        ];
        let bytes = parts.concat();
        // Cut off at another byte each time.
        stream
            .write_all(&bytes[..round % (bytes.len() + 1)])
            .unwrap();
        drop(stream);
        eventually("released", || server.releases() == round + 2);
    }
    // Other tests of this process open descriptors, too: wait for them to be done.
    eventually("no descriptor is left", || descriptors() <= before);
    let machine = server.shared.machine.lock().unwrap();
    assert_eq!(machine.memory().get(0x9000, 1), [0]);
    assert_eq!(machine.memory().get(ENTRY, 2), code::SPIN);
}

fn expect_stop(stream: &mut UnixStream) {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.windows(3).any(|window| window == b"T05") {
        let count = stream.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "turned away");
        seen.extend_from_slice(&buffer[..count]);
    }
}

#[test]
fn the_socket_goes_with_the_server() {
    let server = Server::new(nops());
    let path = server.path.clone();
    assert!(Path::new(&path).exists());
    server.stop.store(true, Ordering::SeqCst);
    eventually("the file is gone", || !path.exists());
}

#[test]
fn a_server_that_ends_lets_its_client_and_the_guest_go() {
    for runs in [false, true] {
        let server = Server::new(machine(1, &[code::SPIN]));
        let memory = |server: &Server| {
            server
                .shared
                .machine
                .lock()
                .unwrap()
                .memory()
                .get(0x9000, 1)
        };
        let mut stream = server.connect();
        stream.write_all(&frame(b"Z0,9000,1")).unwrap();
        expect(&mut stream, "$OK#9a");
        if runs {
            stream.write_all(&frame(b"vCont;c")).unwrap();
            eventually("it runs", || memory(&server) == [0xcc]);
        }
        assert_eq!(server.releases(), 0);
        let shared = Arc::clone(&server.shared);
        drop(server);
        assert_eq!(shared.releases.load(Ordering::SeqCst), 1, "runs: {runs}");
        assert_eq!(shared.machine.lock().unwrap().memory().get(0x9000, 1), [0]);
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
}

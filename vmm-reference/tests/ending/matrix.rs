//! SIGTERM ends the process in a second, whatever its descriptors, its debugger's client, its guest and the user's
//! queue of signals do.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use vmm_reference::guests::{FAULT, Guest, TIMER};

use crate::common::raw::frame;
use crate::common::{Chips, KERNEL, Random, SPLIT, USER, eventually, rounds};
use crate::process::{Run, alone, full_pipe, soon};

/// Standard output or standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Discarded,
    /// A pipe that is full, and that nobody reads.
    NotRead,
    /// A pipe whose reader has gone.
    Closed,
    FullDisk,
}

impl Output {
    const ALL: [Self; 4] = [Self::Discarded, Self::NotRead, Self::Closed, Self::FullDisk];

    fn open(self) -> (Option<PipeReader>, Stdio) {
        match self {
            Self::Discarded => (None, Stdio::null()),
            Self::NotRead => {
                let (reader, writer) = full_pipe();
                (Some(reader), writer.into())
            }
            Self::Closed => (None, std::io::pipe().unwrap().1.into()),
            Self::FullDisk => {
                let full = File::options().write(true).open("/dev/full").unwrap();
                (None, full.into())
            }
        }
    }
}

/// Standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    AtItsEnd,
    Silent,
    /// More than the guest takes.
    Endless,
}

impl Input {
    const ALL: [Self; 3] = [Self::AtItsEnd, Self::Silent, Self::Endless];
}

/// The debugger's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    None,
    /// The guest is stopped for it.
    Attached,
    /// It sends, and reads no reply.
    ReadsNothing,
    /// Each packet has a wrong checksum, and is logged.
    SendsJunk,
    /// It has the guest run, and waits.
    Waits,
}

impl Client {
    const ALL: [Self; 5] = [
        Self::None,
        Self::Attached,
        Self::ReadsNothing,
        Self::SendsJunk,
        Self::Waits,
    ];

    fn connect(self, mut stream: UnixStream) -> UnixStream {
        stream
            .set_write_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        match self {
            Self::None => {}
            Self::Attached => {
                stream.write_all(&frame("qC")).unwrap();
                until(&stream, b"$QC1#c5");
            }
            Self::Waits => {
                stream.write_all(&frame("vCont;c")).unwrap();
                until(&stream, b"+");
            }
            Self::ReadsNothing => while stream.write_all(&frame("qSupported")).is_ok() {},
            Self::SendsJunk => {
                let junk = b"$qC#00".repeat(1 << 10);
                for _ in 0..20 {
                    // The replies fill the socket, sooner or later.
                    if stream.write_all(&junk).is_err() {
                        break;
                    }
                }
            }
        }
        stream
    }
}

fn until(mut stream: &UnixStream, end: &[u8]) {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(end) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "it hangs up");
        seen.push(byte[0]);
    }
}

/// What the guest does: its image and command line.
const GUESTS: [(Guest, &str); 4] = [
    (FAULT, "halt"),
    (FAULT, "spin"),
    (FAULT, "echo"),
    (TIMER, ""),
];
const CHIPS: [Chips; 3] = [KERNEL, SPLIT, USER];

#[derive(Clone, Copy, Debug)]
struct Case {
    stdout: Output,
    stderr: Output,
    stdin: Input,
    client: Client,
    guest: usize,
    chips: Chips,
    queue_is_full: bool,
}

impl Case {
    /// Returns how long the end took.
    fn end(self) -> Duration {
        let (guest, cmdline) = GUESTS[self.guest];
        let mut run = Run::new(guest, &["--cmdline", cmdline]);
        run.command.args(["--irqchip", self.chips[1]]);
        run.command.env("RUST_LOG", "info");
        if self.client != Client::None {
            run = run.with_gdb();
        }
        let (_stdout, writer) = self.stdout.open();
        run.command.stdout(writer);
        let (_stderr, writer) = self.stderr.open();
        run.command.stderr(writer);
        let mut silent = None;
        run.command.stdin(match self.stdin {
            Input::AtItsEnd => Stdio::null(),
            Input::Endless => File::open("/dev/zero").unwrap().into(),
            Input::Silent => {
                let (reader, writer) = std::io::pipe().unwrap();
                silent = Some(writer);
                reader.into()
            }
        });
        let mut process = run.start();
        process.until_it_runs();
        if self.queue_is_full {
            process.fill_the_queue_of_signals();
        }
        let mut client = None;
        if self.client != Client::None {
            let socket = process.run.socket();
            eventually("it listens", || {
                client = UnixStream::connect(&socket).ok();
                client.is_some()
            });
            client = client.map(|stream| self.client.connect(stream));
        }
        // It is in the middle of all this.
        thread::sleep(Duration::from_millis(20));
        let begun = Instant::now();
        process.signal(libc::SIGTERM);
        let status = process.wait();
        let taken = begun.elapsed();
        assert_eq!(
            status.code(),
            Some(128 + libc::SIGTERM),
            "{self:?}: {status}"
        );
        assert!(!process.run.socket().exists(), "{self:?}");
        println!("{taken:?}: {self:?}");
        drop((silent, client));
        taken
    }

    #[track_caller]
    fn check(self) {
        // A loaded machine may be slow once. What hangs does so each time.
        let taken: Vec<_> = (0..3)
            .map(|_| self.end())
            .take_while(|taken| *taken >= soon())
            .collect();
        assert!(taken.len() < 3, "{self:?}: {taken:?}");
    }
}

#[test]
fn a_signal_ends_it_in_a_second_under_the_worst_of_each() {
    let _alone = alone();
    for chips in CHIPS {
        for client in [Client::ReadsNothing, Client::SendsJunk] {
            Case {
                stdout: Output::NotRead,
                stderr: Output::NotRead,
                stdin: Input::Endless,
                client,
                guest: 2,
                chips,
                queue_is_full: true,
            }
            .check();
        }
    }
}

#[test]
fn a_signal_ends_it_in_a_second_under_any_neighbour() {
    let _alone = alone();
    let mut random = Random::new(13);
    let cases = rounds(60);
    for _ in 0..cases {
        Case {
            stdout: Output::ALL[random.below(4)],
            stderr: Output::ALL[random.below(4)],
            stdin: Input::ALL[random.below(3)],
            client: Client::ALL[random.below(5)],
            guest: random.below(GUESTS.len()),
            chips: CHIPS[random.below(3)],
            queue_is_full: random.below(2) == 0,
        }
        .check();
    }
}

with_all_chips! { ctrl_c_and_steps_work_while_the_queue_of_signals_is_full }

fn ctrl_c_and_steps_work_while_the_queue_of_signals_is_full(chips: Chips) {
    let mut run = Run::new(FAULT, &["--cmdline", "spin"]).with_gdb();
    run.command.args(chips);
    let mut process = run.start();
    process.until_it_runs();
    process.fill_the_queue_of_signals();
    let mut client = None;
    eventually("it listens", || {
        client = UnixStream::connect(process.run.socket()).ok();
        client.is_some()
    });
    let mut client = crate::common::raw::Raw::new(client.unwrap());
    client.send(frame("?"));
    client.until("#");
    for _ in 0..10 {
        client.send(frame("vCont;c"));
        client.until("+");
        client.send("\x03");
        client.until("$T02");
        client.send("+");
        client.send(frame("vCont;s:1"));
        client.until("$T05");
        client.send("+");
    }
    process.signal(libc::SIGTERM);
    assert_eq!(process.wait().code(), Some(128 + libc::SIGTERM));
}

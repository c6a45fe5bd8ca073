//! The session: bytes and stops in, bytes and actions out.

mod answer;
mod lldb;
mod passing;
mod resume;
mod stops;

use std::collections::VecDeque;
use std::fmt;

use vcpu_caps::VcpuId;

use crate::config::{OnDisconnect, SessionConfig};
use crate::filter::{Event, Receiver, Sender, push_hex_bytes};
use crate::guest::{Guest, errno};
use crate::host::{Action, GuestState, Host};
use crate::memory::Scan;
use crate::order::{ResumePlan, Stop, StopReason, VcpuOrder};
use crate::request::{ThreadId, classify};
use crate::stub::Stub;

use passing::Passing;
use stops::{Expedited, happens_once, is_of_the_guest};

/// Packets that one call serves. It bounds how long a client that sends many at once keeps the caller.
const BUDGET: u32 = 64;

/// How much of a packet a message shows.
const NAMED: usize = 40;

/// Where the session is. The guest runs, as far as the session knows, in `Attaching`, `Running`
/// and `Leaving`, and when there is no client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No client.
    Detached,
    /// A client in extended mode has detached from the guest, which is not its any more, and has not closed
    /// its connection.
    Idle,
    /// A client in extended mode has killed the guest. The machine was reset, and is stopped until `run`; the
    /// client's end is the machine's.
    Killed,
    /// A client has come, and the guest has been asked to stop. In extended mode it may wait for a stop reply
    /// (`vAttach`).
    Attaching,
    /// The guest is stopped, and the client may ask anything.
    Stopped,
    /// The client waits for a stop reply.
    Running { interrupted: bool },
    /// The client has gone. The guest has been asked to stop; its breakpoints are removed then, and
    /// it is released if it `runs_on`. Another client may be there already.
    Leaving { runs_on: bool, next_client: bool },
    /// The guest was killed or has ended: only output is left.
    Ended,
}

/// One debugger's connection to one guest, without I/O of its own.
///
/// Call [`attach`](Self::attach), [`receive`](Self::receive), [`stopped`](Self::stopped) and
/// [`disconnected`](Self::disconnected) for what happens. After each call carry out
/// [`next_action`](Self::next_action) until there is none, and send [`output`](Self::output). While
/// [`has_work`](Self::has_work), call [`work`](Self::work) in the loop's next turn. A
/// session outlives its connections: after a client has gone, the next one may
/// [`attach`](Self::attach), and finds everything as if it were the first. It outlives the machine,
/// too: vCPUs may come and go between stops ([`Host::vcpu_count`]).
///
/// # Memory
/// A session holds at most one packet ([`SessionConfig::max_packet`]), as much input again while
/// the guest is being stopped or the client does not read, a few replies, and 4 KiB of console
/// messages.
pub struct Session<H: Host> {
    receiver: Receiver,
    sender: Sender,
    stub: Stub<H>,
    guest: Guest<H>,
    state: State,
    /// Input that waits: for the guest to stop, or for the client to read.
    held: VecDeque<u8>,
    actions: VecDeque<Action>,
    /// The stop that was last reported, for `?`.
    last_stop: Stop,
    /// Stops that are not reported yet, since one reply carries one. They do not happen again.
    queued: VecDeque<Stop>,
    /// The beginning of the packet that is being served, to name it.
    packet: Vec<u8>,
    /// `Hc`.
    run_thread: ThreadId,
    /// The guest as the client found it.
    found: GuestState,
    /// What the client's last resume ordered.
    resumed: ResumePlan,
    passing: Passing,
    /// An interrupt request has come while the guest is stopped, and no packet since shows that
    /// the client knew of the stop.
    early_interrupt: bool,
    expedited: Expedited,
    closing: bool,
    /// Extended mode (`!`): a connection outlives the debugging of the guest.
    extended: bool,
    /// The client waits for the reply to `vAttach`.
    awaits_attach: bool,
    /// Bytes that are no packet end the connection.
    closes_on_junk: bool,
    packet_limit: usize,
    /// A search or a checksum that is not finished. Later packets wait.
    scan: Option<Scan<H::Arch>>,
    /// Packets that this call may still serve.
    budget: u32,
}

impl<H: Host> fmt::Debug for Session<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("state", &self.state)
            .field("closing", &self.closing)
            .field("output", &self.sender.output().len())
            .field("held", &self.held.len())
            .field("actions", &self.actions)
            .finish_non_exhaustive()
    }
}

impl<H: Host> Session<H> {
    /// A session without a client.
    pub fn new(host: H, config: SessionConfig) -> Self {
        let packet_limit = config.packet_limit();
        Self {
            receiver: Receiver::new(packet_limit),
            sender: Sender::default(),
            stub: Stub::new(),
            guest: Guest::new(host, config),
            state: State::Detached,
            held: VecDeque::new(),
            actions: VecDeque::new(),
            last_stop: quiet_stop(),
            queued: VecDeque::new(),
            packet: Vec::new(),
            run_thread: ThreadId::Any,
            found: GuestState::Running,
            resumed: ResumePlan::default(),
            passing: Passing::default(),
            early_interrupt: false,
            expedited: Expedited::default(),
            closing: false,
            packet_limit,
            extended: false,
            awaits_attach: false,
            closes_on_junk: false,
            scan: None,
            budget: BUDGET,
        }
    }

    /// A client has connected. A guest that runs is stopped first ([`Action::Interrupt`]); what
    /// the client sends until then waits.
    ///
    /// A previous client is taken as gone.
    pub fn attach(&mut self, guest: GuestState) {
        // The guest's end, of which the previous client has not been told.
        let ended =
            (self.state == State::Stopped && self.has_ended()).then(|| self.last_stop.clone());
        // The previous client is taken as gone, which may release the guest.
        let guest = match self.state {
            State::Stopped if ended.is_some() => guest,
            State::Stopped if self.runs_on() => GuestState::Running,
            State::Stopped => GuestState::Stopped,
            State::Killed => {
                // The next client has come for what it left.
                self.state = State::Detached;
                GuestState::Stopped
            }
            _ => guest,
        };
        self.disconnected();
        self.fresh_connection();
        match (self.state, guest) {
            (State::Leaving { runs_on, .. }, _) => {
                self.state = State::Leaving {
                    runs_on,
                    next_client: true,
                };
            }
            (_, GuestState::Running) => self.interrupt_for_client(),
            (_, GuestState::Stopped) => {
                self.found = GuestState::Stopped;
                self.guest.reset();
                self.begin(ended.into_iter().collect());
            }
        }
    }

    /// Sets whether a byte that begins no packet ends the connection. The default is to skip it, as on a serial
    /// line with noise.
    ///
    /// Set it where any program of the host can connect, as to a TCP port: a web page can have a browser send
    /// an HTTP request there whose body holds packets.
    pub fn close_on_junk(&mut self, close: bool) {
        self.closes_on_junk = close;
    }

    /// Takes bytes from the client, however they are cut: at most
    /// [`input_room`](Self::input_room). What exceeds that may be dropped.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.closing || matches!(self.state, State::Detached | State::Ended) {
            return;
        }
        self.budget = BUDGET;
        let rest = if self.held.is_empty() {
            self.process(bytes)
        } else {
            bytes
        };
        let room = self.packet_limit.saturating_sub(self.held.len());
        if rest.len() > room {
            tracing::warn!(
                dropped = rest.len() - room,
                "input beyond what was asked for: dropped"
            );
        }
        self.held.extend(rest.iter().take(room));
    }

    /// Returns `true` if there is more to do for the client, as far as this is known: call
    /// [`work`](Self::work) when other events have been served. A search over much memory, and many packets
    /// at once, take several calls.
    pub fn has_work(&self) -> bool {
        (self.scan.is_some() || !self.held.is_empty() && self.budget == 0) && self.is_serving()
    }

    /// Goes on with what [`has_work`](Self::has_work) is about, for a limited time.
    pub fn work(&mut self) {
        if !self.has_work() {
            return;
        }
        self.budget = BUDGET;
        self.go_on_scanning();
        self.process_held();
    }

    /// Returns how many bytes [`receive`](Self::receive) takes at once: 0 while too much waits, in
    /// either direction.
    pub fn input_room(&self) -> usize {
        if self.closing || self.sender.output().len() >= self.output_limit() {
            return 0;
        }
        self.packet_limit.saturating_sub(self.held.len())
    }

    /// All vCPUs are stopped: the answer to [`Action::Resume`] and [`Action::Interrupt`]. The list
    /// has the vCPUs that stopped for a reason of their own. Stops of vCPUs that do not exist are
    /// ignored.
    ///
    /// May also be called while the guest is stopped for the client, for an event that no vCPU's order
    /// has led to: a reset or the guest's end, for instance. `?` and the next resume report it.
    pub fn stopped(&mut self, stops: Vec<Stop>) {
        // Before anything else: no reader may see a breakpoint instruction.
        self.guest.breakpoints.restore_memory(&self.guest.host);
        let stops = self.reset_on_request(stops);
        // An interrupt that is not carried out yet is no longer needed: it would stop a later
        // resume.
        self.actions
            .retain(|action| !matches!(action, Action::Interrupt));
        match self.state {
            State::Detached | State::Idle | State::Killed | State::Ended => {
                tracing::warn!(?stops, state = ?self.state, "a stop that was not asked for");
            }
            State::Stopped => self.take_event(stops),
            State::Leaving {
                runs_on,
                next_client,
            } => self.stopped_to_leave(stops, runs_on, next_client),
            State::Attaching => {
                self.begin(stops);
                if std::mem::take(&mut self.awaits_attach) {
                    self.report(&self.last_stop.clone());
                }
            }
            State::Running { interrupted } => {
                if let Some(stops) = self.go_on_after_reset(stops) {
                    self.stopped_running(stops, interrupted);
                }
            }
        }
        self.process_held();
    }

    /// The connection is gone, at whichever byte. The guest is as [`OnDisconnect`] says: at once if it is
    /// stopped, and once it has stopped otherwise. A guest that has ended is not released.
    pub fn disconnected(&mut self) {
        let runs_on = self.runs_on();
        match self.state {
            State::Detached => {}
            State::Idle | State::Ended => self.state = State::Detached,
            State::Killed => {
                self.actions.push_back(Action::Kill);
                self.state = State::Detached;
            }
            State::Stopped => self.leave(runs_on),
            State::Attaching | State::Running { .. } | State::Leaving { .. } => {
                if self.state == (State::Running { interrupted: false }) {
                    self.actions.push_back(Action::Interrupt);
                }
                self.state = State::Leaving {
                    runs_on,
                    next_client: false,
                };
            }
        }
        self.held.clear();
        self.scan = None;
        self.sender = Sender::default();
        self.closing = false;
    }

    /// Bytes for the client.
    pub fn output(&self) -> &[u8] {
        self.sender.output()
    }

    /// The first `count` bytes of [`output`](Self::output) are on their way.
    pub fn consume_output(&mut self, count: usize) {
        self.sender.consume(count);
        self.process_held();
    }

    /// Returns what to do next.
    #[must_use]
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Prints text on the client's console, for what the VMM wants its user to know.
    ///
    /// While the guest runs for a client, the text is sent at once. Otherwise it waits until the
    /// protocol allows it: the next resume, stop or `monitor` command. At most 4 KiB wait. What
    /// exceeds that is dropped and counted, and a waiting line that repeats the one before is
    /// dropped. Without a client the text is dropped.
    pub fn console_message(&mut self, text: &str) {
        let text = text.trim_end_matches('\n');
        match self.state {
            State::Running { .. } if self.sender.backlog() < self.output_limit() => {
                self.flush_notices();
                self.console(&format!("{text}\n"));
            }
            State::Running { .. } | State::Stopped | State::Attaching => {
                self.guest.notices.push(text);
            }
            State::Detached
            | State::Idle
            | State::Killed
            | State::Leaving { .. }
            | State::Ended => {
                tracing::debug!(text, "no client to print this");
            }
        }
    }

    /// Returns `true` if the connection is to be closed once [`output`](Self::output) is sent: the
    /// client has detached or killed the guest, or the guest has ended.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Returns `true` if a client is attached, or its release is not finished. A client in GDB's extended mode
    /// may have detached, and still be connected.
    pub fn is_attached(&self) -> bool {
        !matches!(self.state, State::Detached | State::Idle)
    }

    /// The host.
    pub fn host(&self) -> &H {
        &self.guest.host
    }

    /// The host, to act on what the session asks for.
    pub fn host_mut(&mut self) -> &mut H {
        &mut self.guest.host
    }

    /// Replies that may wait for the client to read, in bytes. Beyond, no request is served.
    fn output_limit(&self) -> usize {
        self.packet_limit.saturating_mul(2)
    }

    /// Returns `true` if the guest is to run when the client goes now.
    fn runs_on(&self) -> bool {
        let steps = |order: &VcpuOrder| matches!(order, VcpuOrder::Step(_));
        match (self.guest.config.on_disconnect, self.state) {
            (OnDisconnect::Run, _) => true,
            (OnDisconnect::Stop, _) => false,
            // A guest that this client's predecessor leaves, and that this client has never found.
            (OnDisconnect::AsBefore, State::Leaving { runs_on, .. }) => runs_on,
            // A step in progress is no continue: the user steps a stopped guest.
            (OnDisconnect::AsBefore, State::Running { .. }) => {
                self.found == GuestState::Running || !self.resumed.vcpus.iter().any(steps)
            }
            (OnDisconnect::AsBefore, _) => self.found == GuestState::Running,
        }
    }

    fn fresh_connection(&mut self) {
        self.scan = None;
        self.budget = BUDGET;
        self.receiver = Receiver::new(self.packet_limit);
        self.sender = Sender::default();
        self.stub.reset();
        self.passing = Passing::default();
        self.held.clear();
        self.closing = false;
        self.run_thread = ThreadId::Any;
        self.early_interrupt = false;
        self.extended = false;
        self.awaits_attach = false;
    }

    fn interrupt_for_client(&mut self) {
        self.found = GuestState::Running;
        self.guest.reset();
        self.queued.clear();
        self.last_stop = quiet_stop();
        self.actions.push_back(Action::Interrupt);
        self.state = State::Attaching;
    }

    /// The guest is stopped, for a client that has just come: prepares the answer to `?`.
    fn begin(&mut self, stops: Vec<Stop>) {
        self.queued.clear();
        self.state = State::Stopped;
        let stop = self.choose(stops).unwrap_or_else(quiet_stop);
        let reason = match stop.reason {
            StopReason::Reset
            | StopReason::TripleFault(_)
            | StopReason::InternalError(_)
            | StopReason::Exited(_) => stop.reason,
            _ => quiet_stop().reason,
        };
        self.last_stop = Stop {
            vcpu: stop.vcpu,
            reason,
        };
        self.note_reason(&self.last_stop.clone());
        // `?` comes later, but the client may ask something else first.
        self.guest.current = stop.vcpu;
        self.guest.in_focus = stop.vcpu;
    }

    /// Takes stops of a guest that is stopped for the client already: they are reported later.
    fn take_event(&mut self, stops: Vec<Stop>) {
        // The event may have changed the registers: a reset does.
        self.guest.registers.forget();
        for stop in self.by_urgency(stops) {
            if is_of_the_guest(&stop.reason) {
                // What stopped before belongs to a machine that is no more.
                self.queued.clear();
                self.note_reason(&stop);
                self.last_stop = stop;
                return;
            }
            if happens_once(&stop.reason) {
                self.queue(stop);
            }
        }
    }

    /// The guest is stopped, and its client has gone.
    fn stopped_to_leave(&mut self, stops: Vec<Stop>, runs_on: bool, next_client: bool) {
        let of_the_guest = self
            .choose(stops)
            .filter(|stop| is_of_the_guest(&stop.reason));
        match of_the_guest {
            Some(end) if matches!(end.reason, StopReason::Exited(_)) => {
                // There is no guest to release or to interrupt.
                self.guest.reset();
                self.queued.clear();
                self.state = State::Detached;
                if next_client {
                    self.begin(vec![end]);
                }
            }
            reset => {
                self.leave(runs_on);
                match (next_client, runs_on) {
                    (false, _) => {}
                    (true, true) => {
                        self.interrupt_for_client();
                        if let Some(reset) = reset {
                            self.note_reason(&reset);
                        }
                    }
                    (true, false) => {
                        self.found = GuestState::Stopped;
                        self.begin(reset.into_iter().collect());
                    }
                }
            }
        }
    }

    /// Returns `true` if the guest has ended, and the client has not been told yet.
    fn has_ended(&self) -> bool {
        matches!(self.last_stop.reason, StopReason::Exited(_))
    }

    /// The client has gone: releases the guest, or leaves it stopped, without a trace of the client. A guest
    /// that has ended is not released.
    fn leave(&mut self, runs_on: bool) {
        self.guest.reset();
        self.queued.clear();
        self.passing = Passing::default();
        if self.has_ended() {
            // There is nothing to release or to disarm.
        } else if runs_on {
            self.actions.push_back(Action::Release);
        } else {
            self.guest.disarm();
        }
        self.state = State::Detached;
    }

    /// Serves what can be served now. Returns what has to wait.
    fn process<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut rest = bytes;
        while !rest.is_empty() && self.may_serve() {
            match self.receiver.next(&mut rest) {
                Some(Event::Junk(byte)) => self.junk(byte, rest),
                Some(event) => self.serve(event),
                None => break,
            }
        }
        rest
    }

    fn process_held(&mut self) {
        if self.held.is_empty() || !self.may_serve() {
            return;
        }
        let mut held: Vec<u8> = std::mem::take(&mut self.held).into();
        let used = held.len() - self.process(&held).len();
        held.drain(..used);
        // `process` may have ended the session, and with it what was held.
        if self.closing || matches!(self.state, State::Detached | State::Ended) {
            held.clear();
        }
        self.held = held.into();
    }

    fn may_serve(&self) -> bool {
        self.budget > 0 && self.scan.is_none() && self.is_serving()
    }

    fn is_serving(&self) -> bool {
        matches!(
            self.state,
            State::Stopped | State::Idle | State::Killed | State::Running { .. }
        ) && !self.closing
            && self.sender.output().len() < self.output_limit()
    }

    /// The client has sent a byte that begins no packet, and then `rest`.
    fn junk(&mut self, byte: u8, rest: &[u8]) {
        let looks_like = protocol_of(byte, rest);
        if self.closes_on_junk {
            tracing::warn!(
                byte,
                looks_like,
                "the client is no debugger: its connection is closed"
            );
            self.closing = true;
        } else {
            tracing::warn!(
                byte,
                looks_like,
                "the client sent bytes that are not a packet: skipped"
            );
        }
    }

    fn serve(&mut self, event: Event) {
        match event {
            // `process` has what follows it.
            Event::Junk(byte) => self.junk(byte, &[]),
            Event::Ack => self.sender.acknowledged(),
            Event::Nack => self.sender.resend(),
            Event::Interrupt => match self.state {
                State::Running { interrupted: false } => self.interrupt(),
                State::Stopped => self.early_interrupt = true,
                State::Idle | State::Killed => {
                    tracing::debug!("an interrupt request of a client that has no process")
                }
                _ => tracing::debug!("the guest is asked to stop already"),
            },
            Event::BadChecksum => {
                tracing::warn!("a packet with a wrong checksum");
                if self.sender.acknowledges() {
                    self.sender.refuse();
                } else if matches!(self.state, State::Stopped | State::Idle | State::Killed) {
                    self.reply_error(errno::EBADMSG);
                }
            }
            Event::TooLong => {
                tracing::warn!(
                    limit = self.packet_limit,
                    "a packet over the limit: refused"
                );
                if self.state == State::Stopped {
                    self.sender.acknowledge();
                    self.reply_error(errno::EMSGSIZE);
                }
            }
            Event::Packet => {
                self.budget = self.budget.saturating_sub(1);
                let body = self.receiver.take_body();
                if matches!(self.state, State::Idle | State::Killed) {
                    self.sender.acknowledge();
                    self.answer_idle(classify(&body, Stub::<H>::LONGEST), &body);
                } else if self.state == State::Stopped {
                    self.sender.acknowledge();
                    self.early_interrupt &= leads_to_resume(&body);
                    self.packet.clear();
                    self.packet.extend(body.iter().take(NAMED));
                    self.answer(classify(&body, Stub::<H>::LONGEST), &body);
                } else {
                    // All-stop: until the stop reply nothing but an interrupt is legal.
                    tracing::warn!("a packet while the guest runs: dropped");
                }
                self.receiver.reuse(body);
            }
        }
    }

    /// The client wants the guest to stop.
    fn interrupt(&mut self) {
        self.actions.push_back(Action::Interrupt);
        self.state = State::Running { interrupted: true };
    }

    fn reply(&mut self, body: &[u8]) {
        self.sender.send(body);
    }

    fn reply_error(&mut self, errno: u8) {
        self.send_error(format!("E{errno:02x}").as_bytes());
    }

    /// Sends an error: its text if there is one and the client takes it, and the number otherwise.
    fn send_error(&mut self, number: &[u8]) {
        match self.guest.error_text(&self.packet) {
            Some(text) => {
                // "E.errtext" ("Standard Replies"), without the characters that mean something in a packet.
                let plain = |c: char| match c {
                    '#' | '$' | '}' | '*' => '?',
                    ' '..='~' => c,
                    _ => '?',
                };
                let text: String = text.chars().map(plain).collect();
                let mut reply = b"E.".to_vec();
                if self.guest.client.error_message {
                    reply.extend(text.bytes());
                } else {
                    // "QEnableErrorStrings"
                    reply = number.to_vec();
                    reply.push(b';');
                    push_hex_bytes(&mut reply, text.as_bytes());
                }
                self.reply(&reply);
            }
            None => self.reply(number),
        }
    }

    /// Sends text to the client's console. Legal while the guest runs.
    fn console(&mut self, text: &str) {
        self.print(text.as_bytes());
    }

    /// Sends bytes to the client's console, as they are.
    fn print(&mut self, text: &[u8]) {
        // Each byte takes two digits, and the packet has to fit.
        let longest = (self.packet_limit / 2).saturating_sub(1).max(1);
        for chunk in text.chunks(longest) {
            let mut body = Vec::with_capacity(1 + chunk.len() * 2);
            body.push(b'O');
            push_hex_bytes(&mut body, chunk);
            self.reply(&body);
        }
    }

    /// Sends the notices that wait.
    fn flush_notices(&mut self) {
        let text = self.guest.notices.take();
        if !text.is_empty() {
            self.console(&text);
        }
    }

    /// Returns the vCPU that a thread id names; 0 and -1 name the selected one.
    fn vcpu_of(&self, thread: ThreadId) -> Option<VcpuId> {
        match thread {
            ThreadId::All | ThreadId::Any => Some(self.guest.current),
            ThreadId::One(id) => self
                .guest
                .threads()
                .find(|vcpu| crate::guest::tid(*vcpu).get() == id),
        }
    }
}

/// Returns the name of the protocol that these bytes are of, if it is a common one.
fn protocol_of(first: u8, rest: &[u8]) -> &'static str {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"PUT ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"CONNECT ",
        b"PRI ",
    ];
    let is = |method: &&[u8]| {
        method
            .split_first()
            .is_some_and(|(&letter, tail)| letter == first && rest.starts_with(tail))
    };
    // A handshake record of any version (RFC 8446, 5.1).
    if first == 22 && rest.first() == Some(&3) {
        "TLS"
    } else if METHODS.iter().any(is) {
        "HTTP"
    } else {
        "nothing known"
    }
}

/// The guest was stopped for the client, which did not ask for an interrupt: a trap. GDB would
/// announce a SIGINT.
fn quiet_stop() -> Stop {
    Stop {
        vcpu: VcpuId(0),
        reason: StopReason::Step,
    }
}

/// Returns `true` if this packet may be one of those with which the client resumes the guest. Its
/// user may be waiting for a stop already.
///
/// gdb hands Ctrl-C on from when it has given the guest its terminal. That is before `vCont?` and
/// the resume itself, and between the resumes of one command before it inserts breakpoints, too.
/// If an interrupt request that came then were dropped, the user's Ctrl-C would be lost. One that
/// crossed with a stop would be a phantom after the next resume; but a client that shows a stop to
/// its user reads something first.
fn leads_to_resume(body: &[u8]) -> bool {
    matches!(
        body,
        [b'c' | b'C' | b's' | b'S' | b'Z' | b'z', ..] | [b'H', b'c', ..]
    ) || body.starts_with(b"vCont")
}

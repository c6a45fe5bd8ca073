//! The session: bytes and stops in, bytes and actions out.

mod answer;
mod resume;
mod stops;

use std::collections::VecDeque;
use std::fmt;

use vcpu_caps::VcpuId;

use crate::config::SessionConfig;
use crate::filter::{Event, Receiver, Sender, push_hex_bytes};
use crate::guest::{Guest, errno};
use crate::host::{Action, Host};
use crate::order::{Stop, StopReason};
use crate::request::{Request, ThreadId, parse};
use crate::stub::Stub;

/// Whether the guest runs when a client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// Some vCPU runs, or may.
    Running,
    /// All vCPUs are stopped, and nothing is to be said about why.
    Stopped,
}

/// Where the session is. The guest runs, as far as the session knows, in `Attaching`, `Running`
/// and `Leaving`, and when there is no client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No client.
    Detached,
    /// A client has come, and the guest has been asked to stop.
    Attaching,
    /// The client has the word.
    Stopped,
    /// The client waits for a stop reply.
    Running { interrupted: bool },
    /// The client has gone, and the guest has been asked to stop so that it can be let go clean.
    /// Another client may be there already.
    Leaving { next_client: bool },
    /// The guest was killed or has ended: only output is left.
    Ended,
}

/// One debugger's connection to one guest, without I/O of its own.
///
/// Feed it with [`attach`](Self::attach), [`receive`](Self::receive),
/// [`stopped`](Self::stopped) and [`disconnected`](Self::disconnected); after each call act on
/// [`next_action`](Self::next_action) until there is none, and send
/// [`output`](Self::output). A session outlives its connections: after a client has gone, the
/// next one may [`attach`](Self::attach), and finds everything as if it were the first.
///
/// # Memory
/// A session holds at most one packet ([`SessionConfig::max_packet`]), as much input again while
/// the guest is being stopped or the client does not read, and a few replies.
pub struct Session<H: Host> {
    receiver: Receiver,
    sender: Sender,
    stub: Stub<H>,
    guest: Guest<H>,
    state: State,
    /// Input that waits: for the guest to stop, or for the client to read.
    held: VecDeque<u8>,
    actions: VecDeque<Action>,
    /// The stop that the client was last told of, for `?`.
    last_stop: Stop,
    /// Stops that the client has not been told of, since it hears of one at a time. All would
    /// be lost otherwise: they do not happen again.
    queued: VecDeque<Stop>,
    /// `Hc`.
    run_thread: ThreadId,
    /// An interrupt request has come while the guest is stopped, and nothing since that tells that the
    /// client knew of the stop.
    early_interrupt: bool,
    closing: bool,
    packet_limit: usize,
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
            stub: Stub::new(host.vcpu_count()),
            guest: Guest::new(host, config),
            state: State::Detached,
            held: VecDeque::new(),
            actions: VecDeque::new(),
            last_stop: quiet_stop(),
            queued: VecDeque::new(),
            run_thread: ThreadId::Any,
            early_interrupt: false,
            closing: false,
            packet_limit,
        }
    }

    /// A client has connected. A guest that runs is stopped first ([`Action::Interrupt`]); what
    /// the client sends meanwhile waits.
    ///
    /// A client that was there before is taken as gone.
    pub fn attach(&mut self, guest: GuestState) {
        let guest = if self.state == State::Stopped {
            // The client before is taken as gone, and the guest let go for it.
            GuestState::Running
        } else {
            guest
        };
        self.disconnected();
        self.fresh_connection();
        match (self.state, guest) {
            (State::Leaving { .. }, _) => self.state = State::Leaving { next_client: true },
            (_, GuestState::Running) => self.interrupt_for_client(),
            (_, GuestState::Stopped) => {
                self.guest.reset();
                self.begin(Vec::new());
            }
        }
    }

    /// Bytes from the client, however they are cut: at most [`input_room`](Self::input_room). What exceeds
    /// that may be dropped.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.closing || matches!(self.state, State::Detached | State::Ended) {
            return;
        }
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

    /// How many bytes [`receive`](Self::receive) takes at once: 0 while too much waits, in either direction.
    pub fn input_room(&self) -> usize {
        if self.closing || self.sender.output().len() >= self.output_limit() {
            return 0;
        }
        self.packet_limit.saturating_sub(self.held.len())
    }

    /// All vCPUs are stopped: the answer to [`Action::Resume`] and [`Action::Interrupt`]. Stops
    /// are what each vCPU has to say; those that were merely made to stop say nothing.
    pub fn stopped(&mut self, stops: Vec<Stop>) {
        // Before anything else: nobody may see an INT3 of ours.
        self.guest.breakpoints.disarm(&self.guest.host);
        // What has not been carried out is no longer needed: its own stop would be a later resume's.
        self.actions
            .retain(|action| !matches!(action, Action::Interrupt));
        match self.state {
            State::Detached | State::Stopped | State::Ended => {
                tracing::warn!(?stops, state = ?self.state, "a stop that nobody waits for");
            }
            State::Leaving { next_client } => {
                self.release();
                if next_client {
                    self.interrupt_for_client();
                }
            }
            State::Attaching => self.begin(stops),
            State::Running { .. } => self.report_stops(stops),
        }
        self.process_held();
    }

    /// The connection is gone, at whichever byte. The guest is let go: at once if it is stopped,
    /// and as soon as it is otherwise.
    pub fn disconnected(&mut self) {
        match self.state {
            State::Detached => {}
            State::Ended => self.state = State::Detached,
            State::Stopped => self.release(),
            State::Running { interrupted: false } => {
                self.actions.push_back(Action::Interrupt);
                self.state = State::Leaving { next_client: false };
            }
            State::Attaching | State::Running { interrupted: true } | State::Leaving { .. } => {
                self.state = State::Leaving { next_client: false };
            }
        }
        self.held.clear();
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

    /// What is to be done next.
    #[must_use]
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether the connection is to be closed once [`output`](Self::output) is sent: the client
    /// has detached or killed the guest, or the guest has ended.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether a client is attached, or its leaving not finished.
    pub fn is_attached(&self) -> bool {
        self.state != State::Detached
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

    fn fresh_connection(&mut self) {
        self.receiver = Receiver::new(self.packet_limit);
        self.sender = Sender::default();
        self.stub.reset();
        self.held.clear();
        self.closing = false;
        self.run_thread = ThreadId::Any;
        self.early_interrupt = false;
    }

    fn interrupt_for_client(&mut self) {
        self.guest.reset();
        self.queued.clear();
        self.actions.push_back(Action::Interrupt);
        self.state = State::Attaching;
    }

    /// The guest is stopped, for a client that has just come: prepares the answer to `?`.
    fn begin(&mut self, stops: Vec<Stop>) {
        self.queued.clear();
        self.state = State::Stopped;
        let stop = self.choose(stops).unwrap_or_else(quiet_stop);
        let reason = match stop.reason {
            StopReason::TripleFault(_) | StopReason::InternalError(_) | StopReason::Exited(_) => {
                stop.reason
            }
            _ => quiet_stop().reason,
        };
        self.last_stop = Stop {
            vcpu: stop.vcpu,
            reason,
        };
        self.note_reason(&self.last_stop.clone());
        // `?` comes later, but the client may ask something else first.
        self.guest.current = stop.vcpu;
        self.select_for_access();
    }

    /// The client has gone: lets the guest run without a trace of it.
    fn release(&mut self) {
        self.guest.reset();
        self.queued.clear();
        self.actions.push_back(Action::Release);
        self.state = State::Detached;
    }

    /// Serves what can be served now; answers what has to wait.
    fn process<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut rest = bytes;
        while !rest.is_empty() && self.may_serve() {
            match self.receiver.next(&mut rest) {
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
        matches!(self.state, State::Stopped | State::Running { .. })
            && !self.closing
            && self.sender.output().len() < self.output_limit()
    }

    fn serve(&mut self, event: Event) {
        match event {
            Event::Ack => self.sender.acknowledged(),
            Event::Nack => self.sender.resend(),
            Event::Interrupt => match self.state {
                State::Running { interrupted: false } => self.interrupt(),
                State::Stopped => self.early_interrupt = true,
                _ => tracing::debug!("the guest is asked to stop already"),
            },
            Event::BadChecksum => {
                tracing::warn!("a packet with a wrong checksum");
                if self.sender.acknowledges() {
                    self.sender.refuse();
                } else if self.state == State::Stopped {
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
                let body = self.receiver.take_body();
                if self.state == State::Stopped {
                    self.sender.acknowledge();
                    let request = parse(&body);
                    self.early_interrupt &= leads_to_resume(&request, &body);
                    self.answer(request, &body);
                } else {
                    // All-stop: until the stop reply nothing but an interrupt is legal, and the
                    // registers and memory of a guest that runs are nothing to answer with.
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
        self.reply(format!("E{errno:02x}").as_bytes());
    }

    /// Sends text to the client's console. Legal while the guest runs and in reply to `qRcmd`.
    fn console(&mut self, text: &str) {
        // Each byte takes two digits, and the packet has to fit.
        let longest = (self.packet_limit / 2).saturating_sub(1).max(1);
        for chunk in text.as_bytes().chunks(longest) {
            let mut body = Vec::with_capacity(1 + chunk.len() * 2);
            body.push(b'O');
            push_hex_bytes(&mut body, chunk);
            self.reply(&body);
        }
    }

    /// Sends what could not be said when it happened.
    fn flush_notices(&mut self) {
        let text = self.guest.notices.take();
        if !text.is_empty() {
            self.console(&text);
        }
    }

    /// Whether a thread id names a vCPU, and which; 0 and -1 name the selected one.
    fn vcpu_of(&self, thread: ThreadId) -> Option<VcpuId> {
        match thread {
            ThreadId::All | ThreadId::Any => Some(self.guest.current),
            ThreadId::One(id) => self.guest.vcpu(usize::try_from(id).ok()?),
        }
    }

    /// Hands gdbstub a packet in our spelling and sends its reply.
    fn relay(&mut self, body: &[u8]) {
        if let Some(reply) = self.exchange(body) {
            self.reply(&reply);
        }
    }

    /// Hands gdbstub a packet in our spelling. `None` if it failed; then the client has been
    /// told, and gdbstub is as new.
    fn exchange(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        match self.stub.exchange(&mut self.guest, body) {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::error!(%error, packet = %body.escape_ascii(), "request failed");
                self.select_for_access();
                self.reply_error(errno::EINVAL);
                None
            }
        }
    }

    /// Tells gdbstub which thread is selected.
    fn select_for_access(&mut self) {
        let packet = format!("Hg{:x}", crate::guest::tid(self.guest.current));
        if let Err(error) = self.stub.exchange(&mut self.guest, packet.as_bytes()) {
            tracing::error!(%error, "a thread cannot be selected");
        }
    }

    /// A request that cannot be served as it is.
    fn refuse(&mut self, request: &Request, body: &[u8]) {
        tracing::warn!(?request, packet = %body.escape_ascii(), "a request that makes no sense");
        self.reply_error(errno::EINVAL);
    }
}

/// The guest was stopped for the client, which did not ask for an interrupt: a trap, where GDB
/// would announce a SIGINT.
fn quiet_stop() -> Stop {
    Stop {
        vcpu: VcpuId(0),
        reason: StopReason::Step,
    }
}

/// Whether the client may be resuming the guest with this, and its user be waiting for a stop already.
///
/// gdb hands Ctrl-C on from when it has given the guest its terminal: before `vCont?` and the resume itself,
/// and between the resumes of one command before it inserts breakpoints, too. An interrupt request that
/// came then and was dropped would be the user's, lost. One that crossed with a stop would be a phantom
/// after the next resume; but a client that shows a stop to its user reads something first.
fn leads_to_resume(request: &Request, body: &[u8]) -> bool {
    match request {
        Request::Resume(_)
        | Request::ResumeLegacy { .. }
        | Request::SelectForRun(_)
        | Request::Point { .. } => true,
        Request::Plain => body == b"vCont?",
        _ => false,
    }
}

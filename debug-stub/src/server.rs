//! A session on an event-manager loop, over a Unix socket or loopback TCP.
//!
//! One thread, one epoll loop, no polling: the loop wakes up for a client, for bytes, and for the
//! descriptor that says that all vCPUs have stopped. A reply is one `write`.

mod address;
mod listener;
mod stream;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::config::SessionConfig;
use crate::host::{Action, GuestState, Host};
use crate::order::{ResumePlan, Stop};
use crate::session::Session;

pub use address::{AddressError, ListenAddress};
pub use listener::{ListenError, Listener};
use stream::Stream;

/// What the VMM does on the session's behalf. The calls return soon: vCPUs run on threads of
/// their own, but for short steps.
pub trait RunControl {
    /// Runs vCPUs until one of them stops for a reason of its own, or until
    /// [`interrupt`](Self::interrupt); then all are stopped, and
    /// [`take_stops`](Self::take_stops) answers. If the plan cannot be carried out, that is a
    /// stop, too.
    ///
    /// Answers the stops if it is all over already, as it may be for a step that the VMM runs on
    /// the calling thread; [`take_stops`](Self::take_stops) then has nothing to answer.
    fn resume(&mut self, plan: ResumePlan) -> Option<Vec<Stop>>;

    /// Stops all vCPUs, then lets [`take_stops`](Self::take_stops) answer: exactly once, even if
    /// they are stopping on their own at the time, or are stopped already.
    fn interrupt(&mut self);

    /// Lets all vCPUs go: nothing armed, nothing masked, nothing held.
    fn release(&mut self);

    /// Ends the guest.
    fn kill(&mut self);

    /// A descriptor that is readable while [`take_stops`](Self::take_stops) has an answer. Always
    /// the same one.
    fn stopped_fd(&self) -> RawFd;

    /// The stops, once all vCPUs are stopped after a resume or an interrupt; each list once. It
    /// also makes the descriptor unreadable.
    fn take_stops(&mut self) -> Option<Vec<Stop>>;

    /// Whether the guest runs, asked when a client connects.
    fn guest_state(&self) -> GuestState;
}

/// Bytes read at a time.
const READ_SIZE: usize = 64 << 10;

struct Connection {
    stream: Stream,
    /// What epoll watches it for.
    interest: EventSet,
}

/// A GDB server: a listener, at most one client, and the session.
///
/// Add it to an `EventManager`. A client that connects while another is attached is turned away;
/// after a client has gone, by whatever way, the next one may come.
pub struct GdbServer<H: Host + RunControl> {
    listener: Listener,
    session: Session<H>,
    connection: Option<Connection>,
    buffer: Vec<u8>,
    /// A descriptor to give up when there is none left: a client that cannot be accepted would
    /// keep the listener readable, and the loop busy.
    spare: Option<File>,
}

impl<H: Host + RunControl> std::fmt::Debug for GdbServer<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GdbServer")
            .field("listener", &self.listener)
            .field("session", &self.session)
            .field("client", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

impl<H: Host + RunControl> GdbServer<H> {
    /// A server that waits for its first client.
    pub fn new(listener: Listener, host: H, config: SessionConfig) -> Self {
        Self {
            listener,
            session: Session::new(host, config),
            connection: None,
            buffer: vec![0; READ_SIZE],
            spare: spare(),
        }
    }

    /// Where it listens; for TCP port 0, the port that was chosen.
    pub fn address(&self) -> &ListenAddress {
        self.listener.address()
    }

    /// Whether a client is connected.
    pub fn has_client(&self) -> bool {
        self.connection.is_some()
    }

    /// The host.
    pub fn host(&self) -> &H {
        self.session.host()
    }

    /// The host.
    pub fn host_mut(&mut self) -> &mut H {
        self.session.host_mut()
    }

    fn accept(&mut self, ops: &mut EventOps) {
        loop {
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "a debugger could not connect");
                    if self.spare.take().is_some() {
                        // Turns one client away, if descriptors were what was missing.
                        let _ = self.listener.accept();
                        self.spare = spare();
                    }
                    return;
                }
            };
            self.let_go_if_gone(ops);
            if self.connection.is_some() {
                tracing::warn!("a second debugger was turned away: one is attached");
                continue;
            }
            let interest = EventSet::IN | EventSet::READ_HANG_UP;
            if let Err(error) = ops.add(Events::new(&stream, interest)) {
                tracing::error!(?error, "a debugger's connection cannot be watched");
                continue;
            }
            tracing::info!("a debugger has connected");
            self.connection = Some(Connection { stream, interest });
            let state = self.session.host().guest_state();
            self.session.attach(state);
            self.settle(ops);
        }
    }

    /// Reads once, so that one client cannot keep the loop for itself; epoll says when there is
    /// more. Answers whether that got anywhere: input was served, or the end met.
    fn read(&mut self, ops: &mut EventOps) -> bool {
        let Some(connection) = &mut self.connection else {
            return false;
        };
        let room = self.session.input_room().min(self.buffer.len());
        let Some(buffer) = self.buffer.get_mut(..room).filter(|room| !room.is_empty()) else {
            return false;
        };
        match io::Read::read(&mut connection.stream, buffer) {
            Ok(0) => self.hang_up(ops),
            Ok(count) => {
                let bytes = self.buffer.get(..count).unwrap_or_default();
                self.session.receive(bytes);
                self.settle(ops);
            }
            Err(error) if is_transient(&error) => return false,
            Err(error) => {
                tracing::info!(%error, "the debugger's connection broke");
                self.hang_up(ops);
            }
        }
        true
    }

    /// Acts on all that the session wants, and sends what it has to say.
    fn settle(&mut self, ops: &mut EventOps) {
        loop {
            self.act();
            match self.write() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::info!(%error, "the debugger's connection broke");
                    return self.hang_up(ops);
                }
            }
        }
        if self.session.is_closing() && self.session.output().is_empty() {
            return self.hang_up(ops);
        }
        self.watch(ops);
    }

    fn act(&mut self) {
        while let Some(action) = self.session.next_action() {
            tracing::debug!(?action, "the session asks for");
            let host = self.session.host_mut();
            match action {
                Action::Resume(plan) => {
                    if let Some(stops) = host.resume(plan) {
                        self.session.stopped(stops);
                    }
                }
                Action::Interrupt => host.interrupt(),
                Action::Release => host.release(),
                Action::Kill => host.kill(),
            }
        }
    }

    /// Sends what the socket takes at once; answers how much that was.
    fn write(&mut self) -> io::Result<usize> {
        let Some(connection) = &mut self.connection else {
            return Ok(0);
        };
        let output = self.session.output();
        if output.is_empty() {
            return Ok(0);
        }
        match io::Write::write(&mut connection.stream, output) {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                self.session.consume_output(count);
                Ok(count)
            }
            Err(error) if is_transient(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Watches the connection for what can be used now: input only while the session wants some,
    /// room only while output waits.
    fn watch(&mut self, ops: &mut EventOps) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let mut interest = EventSet::READ_HANG_UP;
        interest.set(EventSet::IN, self.session.input_room() > 0);
        interest.set(EventSet::OUT, !self.session.output().is_empty());
        if interest == connection.interest {
            return;
        }
        match ops.modify(Events::new(&connection.stream, interest)) {
            Ok(()) => connection.interest = interest,
            Err(error) => {
                tracing::error!(?error, "a debugger's connection cannot be watched");
                self.hang_up(ops);
            }
        }
    }

    fn hang_up(&mut self, ops: &mut EventOps) {
        if let Some(connection) = self.connection.take() {
            tracing::info!("the debugger has gone");
            if let Err(error) = ops.remove(Events::empty(&connection.stream)) {
                tracing::warn!(?error, "a debugger's connection was not watched");
            }
        }
        self.session.disconnected();
        self.act();
    }

    /// If the client has gone, serves what it sent before, as far as that is wanted, and lets it
    /// go.
    ///
    /// The socket is asked, not the event: epoll may tell of the next client first, and an event
    /// may be an earlier connection's whose descriptor number this one has got.
    fn let_go_if_gone(&mut self, ops: &mut EventOps) {
        while self
            .connection
            .as_ref()
            .is_some_and(|connection| connection.stream.has_hung_up())
        {
            if !self.read(ops) {
                self.hang_up(ops);
            }
        }
    }

    fn on_connection(&mut self, events: EventSet, ops: &mut EventOps) {
        if events.contains(EventSet::IN) {
            self.read(ops);
        }
        if self.connection.is_some() && events.contains(EventSet::OUT) {
            self.settle(ops);
        }
        if events.intersects(EventSet::HANG_UP | EventSet::READ_HANG_UP | EventSet::ERROR) {
            self.let_go_if_gone(ops);
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl<H: Host + RunControl> MutEventSubscriber for GdbServer<H> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        let set = events.event_set();
        let connected = self
            .connection
            .as_ref()
            .map(|connection| connection.stream.as_raw_fd());
        if connected == Some(fd) {
            self.on_connection(set, ops);
        } else if fd == self.listener.as_raw_fd() {
            self.accept(ops);
        } else if fd == self.session.host().stopped_fd() {
            if let Some(stops) = self.session.host_mut().take_stops() {
                self.session.stopped(stops);
                self.settle(ops);
            }
        } else {
            tracing::debug!(fd, "an event for nobody");
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let listener = Events::new(&self.listener, EventSet::IN);
        let stops = Events::new_raw(self.session.host().stopped_fd(), EventSet::IN);
        for events in [listener, stops] {
            if let Err(error) = ops.add(events) {
                tracing::error!(
                    ?error,
                    "the GDB server cannot be watched: no debugger will be served"
                );
            }
        }
    }
}

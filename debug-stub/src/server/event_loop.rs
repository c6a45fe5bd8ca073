//! A session on an event-manager loop.

use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::address::ListenAddress;
use super::conversation::{self, READ_SIZE, Received};
use super::guest_control::GuestControl;
use super::listener::{Acceptor, Listener};
use super::stream::{Stream, has_hung_up};
use crate::config::SessionConfig;
use crate::host::Host;
use crate::session::Session;

struct Connection {
    stream: Stream,
    /// What epoll watches it for.
    interest: EventSet,
}

/// A GDB server: a listener, at most one client, and the session.
///
/// Add it to an `EventManager`. A client that connects while another is attached is turned away. After a
/// client has gone, however it went, the next one may come.
pub struct GdbServer<H: Host + GuestControl> {
    acceptor: Acceptor,
    session: Session<H>,
    connection: Option<Connection>,
    buffer: Vec<u8>,
}

impl<H: Host + GuestControl> std::fmt::Debug for GdbServer<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GdbServer")
            .field("listener", self.acceptor.listener())
            .field("session", &self.session)
            .field("client", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

impl<H: Host + GuestControl> GdbServer<H> {
    /// A server that waits for its first client.
    pub fn new(listener: Listener, host: H, config: SessionConfig) -> Self {
        Self {
            acceptor: Acceptor::new(listener),
            session: Session::new(host, config),
            connection: None,
            buffer: vec![0; READ_SIZE],
        }
    }

    /// Where it listens; for TCP port 0, the port that was chosen.
    pub fn address(&self) -> &ListenAddress {
        self.acceptor.listener().address()
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

    /// Prints text on the client's console: [`Session::console_message`], sent at once if that is
    /// legal. What the socket does not take now goes out with the connection's next event.
    pub fn console_message(&mut self, text: &str) {
        self.session.console_message(text);
        if let Some(connection) = &mut self.connection {
            // A broken connection is seen by the loop.
            let _ = conversation::send(&mut self.session, &mut connection.stream);
        }
    }

    fn accept(&mut self, ops: &mut EventOps) {
        while let Some(stream) = self.acceptor.accept() {
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

    /// Reads once. Returns whether that had an effect: input was served, or the client has gone.
    fn read(&mut self, ops: &mut EventOps) -> bool {
        let Some(connection) = &mut self.connection else {
            return false;
        };
        let stream = &mut connection.stream;
        match conversation::receive(&mut self.session, stream, &mut self.buffer) {
            Received::Nothing => return false,
            Received::Input => self.settle(ops),
            Received::End => self.hang_up(ops),
        }
        true
    }

    /// Acts on all that the session wants, and sends what it has to say.
    fn settle(&mut self, ops: &mut EventOps) {
        match &mut self.connection {
            None => conversation::act(&mut self.session),
            Some(connection) => {
                match conversation::settle(&mut self.session, &mut connection.stream) {
                    conversation::Connection::Open => self.watch(ops),
                    conversation::Connection::Over => self.hang_up(ops),
                }
            }
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
        conversation::act(&mut self.session);
    }

    /// If the client has gone, serves what it sent before, as far as the session takes it, and ends the
    /// connection.
    ///
    /// The socket is asked, not the event: epoll may report the next client first, and an event may
    /// belong to an earlier connection whose descriptor number this one has got.
    fn let_go_if_gone(&mut self, ops: &mut EventOps) {
        while self
            .connection
            .as_ref()
            .is_some_and(|connection| has_hung_up(&connection.stream))
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

impl<H: Host + GuestControl> MutEventSubscriber for GdbServer<H> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        let set = events.event_set();
        let connected = self
            .connection
            .as_ref()
            .map(|connection| connection.stream.as_raw_fd());
        if connected == Some(fd) {
            self.on_connection(set, ops);
        } else if fd == self.acceptor.listener().as_raw_fd() {
            self.accept(ops);
        } else if fd == self.session.host().stopped_fd() {
            if conversation::take_stops(&mut self.session) {
                self.settle(ops);
            }
        } else {
            tracing::debug!(fd, "an event of a descriptor that is not watched any more");
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let listener = Events::new(self.acceptor.listener(), EventSet::IN);
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

//! A session on an event-manager loop.

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::address::ListenAddress;
use super::conversation::Conversation;
use super::guest_control::GuestControl;
use super::listener::{Acceptor, Listener};
use super::stream::{Readiness, Stream};
use crate::config::SessionConfig;
use crate::host::Host;
use crate::session::Session;

/// A GDB server: a listener, at most one client, and the session.
///
/// Add it to an `EventManager`. A client that connects while another is attached is turned away. After a
/// client has gone, however it went, the next one may come.
pub struct GdbServer<H: Host + GuestControl> {
    acceptor: Acceptor,
    session: Session<H>,
    conversation: Conversation<Stream>,
    /// What epoll watches the client's connection for.
    interest: EventSet,
}

impl<H: Host + GuestControl> std::fmt::Debug for GdbServer<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GdbServer")
            .field("listener", self.acceptor.listener())
            .field("session", &self.session)
            .field("client", &self.has_client())
            .finish_non_exhaustive()
    }
}

impl<H: Host + GuestControl> GdbServer<H> {
    /// A server that waits for its first client.
    ///
    /// On a TCP port a client that sends what is no packet is [cut off](Session::close_on_junk).
    pub fn new(listener: Listener, host: H, config: SessionConfig) -> Self {
        let mut session = Session::new(host, config);
        session.close_on_junk(listener.address().is_tcp());
        Self {
            acceptor: Acceptor::new(listener),
            session,
            conversation: Conversation::new(),
            interest: EventSet::empty(),
        }
    }

    /// Where it listens; for TCP port 0, the port that was chosen.
    pub fn address(&self) -> &ListenAddress {
        self.acceptor.listener().address()
    }

    /// Whether a client is connected.
    pub fn has_client(&self) -> bool {
        self.conversation.client().is_some()
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
        self.conversation.send(&mut self.session);
    }

    /// Ends the server: the client is gone, and the guest without a trace of it. Waits until then, without the event
    /// loop: a guest that runs for the client has to stop first.
    ///
    /// Without this call a dropped server leaves the guest as it is: stopped, or with breakpoints in its
    /// memory. To get the server back from an `EventManager`, call its `remove_subscriber`.
    ///
    /// # Errors
    /// If waiting fails.
    pub fn finish(mut self) -> io::Result<()> {
        self.conversation.hang_up(&mut self.session);
        self.conversation.run_until_released(&mut self.session)
    }

    fn accept(&mut self, ops: &mut EventOps) {
        while let Some(mut stream) = self.acceptor.accept() {
            let gone = self.conversation.let_go_if_gone(&mut self.session);
            self.watch(gone, ops);
            if self.conversation.turns_away(&mut stream) {
                continue;
            }
            self.interest = EventSet::IN | EventSet::READ_HANG_UP;
            if let Err(error) = ops.add(Events::new(&stream, self.interest)) {
                tracing::error!(?error, "a debugger's connection cannot be watched");
                continue;
            }
            let gone = self.conversation.attach(&mut self.session, stream);
            self.watch(gone, ops);
        }
    }

    /// Watches the connection for what can be used now, and the one that has `gone` no longer.
    fn watch(&mut self, gone: Option<Stream>, ops: &mut EventOps) {
        if let Some(gone) = gone {
            Self::unwatch(&gone, ops);
        }
        let wanted = self.conversation.readiness(&self.session);
        let (Some(wanted), Some(client)) = (wanted, self.conversation.client()) else {
            return;
        };
        let interest = wanted.interest();
        if interest == self.interest {
            return;
        }
        match ops.modify(Events::new(client, interest)) {
            Ok(()) => self.interest = interest,
            Err(error) => {
                tracing::error!(?error, "a debugger's connection cannot be watched");
                if let Some(gone) = self.conversation.hang_up(&mut self.session) {
                    Self::unwatch(&gone, ops);
                }
            }
        }
    }

    fn unwatch(client: &Stream, ops: &mut EventOps) {
        if let Err(error) = ops.remove(Events::empty(client)) {
            tracing::warn!(?error, "a debugger's connection was not watched");
        }
    }
}

impl<H: Host + GuestControl> MutEventSubscriber for GdbServer<H> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        let set = events.event_set();
        let connected = self.conversation.client().map(AsRawFd::as_raw_fd);
        if connected == Some(fd) {
            let ready = Readiness::of_event(fd, set);
            let gone = self.conversation.serve(&mut self.session, ready);
            self.watch(gone, ops);
        } else if fd == self.acceptor.listener().as_raw_fd() {
            self.accept(ops);
        } else if fd == self.session.host().stopped_fd() {
            let gone = self.conversation.take_stops(&mut self.session);
            self.watch(gone, ops);
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

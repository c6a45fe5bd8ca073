//! A session and its client, whatever loop waits for both.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use super::guest_control::GuestControl;
use super::stream::{Readiness, has_hung_up, wait};
use crate::host::{Action, Host};
use crate::session::Session;

/// Bytes read at a time.
const READ_SIZE: usize = 64 << 10;

/// An error packet with a text, for a client that comes while another is attached.
const TURNED_AWAY: &[u8] = b"$E.another debugger is attached to this guest#46";

/// What a read from the client came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// Input was served.
    Input,
    /// There was nothing to read, or no room for it.
    Nothing,
    /// The client has gone.
    End,
}

/// Whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Open,
    /// The client has gone, or the session has no more to say to it.
    Over,
}

/// The client of a session, if there is one.
///
/// A call after which the client has gone returns the client's connection, for a loop that watches it.
#[derive(Debug)]
pub(super) struct Conversation<S> {
    client: Option<S>,
    buffer: Vec<u8>,
}

impl<S> Conversation<S> {
    /// Without a client.
    pub(super) fn new() -> Self {
        Self {
            client: None,
            buffer: vec![0; READ_SIZE],
        }
    }

    #[cfg(feature = "event-manager")]
    pub(super) fn client(&self) -> Option<&S> {
        self.client.as_ref()
    }

    /// Whether another client has to be turned away. It is told why: GDB shows this in place of the reply to its
    /// first packet, unless it drops what comes before it has sent that.
    pub(super) fn turns_away(&self, second: &mut impl Write) -> bool {
        if self.client.is_some() {
            tracing::warn!("a second debugger was turned away: one is attached");
            // It may have gone already.
            let _ = second.write(TURNED_AWAY);
        }
        self.client.is_some()
    }

    /// Ends the connection. The session releases the guest, at once or when it has stopped.
    pub(super) fn hang_up<H: Host + GuestControl>(
        &mut self,
        session: &mut Session<H>,
    ) -> Option<S> {
        let gone = self.client.take();
        if gone.is_some() {
            tracing::info!("the debugger has gone");
        }
        session.disconnected();
        act(session);
        gone
    }
}

impl<S: Read + Write + AsFd> Conversation<S> {
    /// A client has connected.
    pub(super) fn attach<H: Host + GuestControl>(
        &mut self,
        session: &mut Session<H>,
        client: S,
    ) -> Option<S> {
        tracing::info!("a debugger has connected");
        self.client = Some(client);
        // Before the state is read: the VMM does not start a guest that is taken for stopped.
        session.host_mut().hold(true);
        let state = session.host().guest_state();
        session.attach(state);
        self.settle(session)
    }

    /// What to wait for at the connection, beside its end: input only while the session wants some, room
    /// only while output waits.
    pub(super) fn readiness<H: Host>(&self, session: &Session<H>) -> Option<Readiness> {
        let fd = self.client.as_ref()?.as_fd().as_raw_fd();
        Some(Readiness::of_client(
            fd,
            session.input_room() > 0,
            // With work to do, a socket that has room is the loop's reason to come back at once.
            !session.output().is_empty() || session.has_work(),
        ))
    }

    /// The guest may have stopped: the session, or the VMM if no debugger is attached, takes the stops.
    pub(super) fn take_stops<H: Host + GuestControl>(
        &mut self,
        session: &mut Session<H>,
    ) -> Option<S> {
        let stops = session.host_mut().take_stops()?;
        if session.is_attached() {
            session.stopped(stops);
            self.settle(session)
        } else {
            session.host_mut().unattended(stops);
            None
        }
    }

    /// Serves the client after a wait.
    pub(super) fn serve<H: Host + GuestControl>(
        &mut self,
        session: &mut Session<H>,
        ready: Readiness,
    ) -> Option<S> {
        if ready.has_input() {
            if let (_, Some(gone)) = self.read(session) {
                return Some(gone);
            }
        }
        if ready.has_room() {
            session.work();
            if let Some(gone) = self.settle(session) {
                return Some(gone);
            }
        }
        if ready.has_hung_up() {
            return self.let_go_if_gone(session);
        }
        None
    }

    /// If the client has gone, serves what it sent before, as far as the session takes it at once, and ends
    /// the connection. What needs more than that is dropped.
    ///
    /// The socket is asked, not what a wait has returned: a loop may see the next client first, and what
    /// epoll reports may belong to an earlier connection whose descriptor number this one has got.
    pub(super) fn let_go_if_gone<H: Host + GuestControl>(
        &mut self,
        session: &mut Session<H>,
    ) -> Option<S> {
        while self.client.as_ref().is_some_and(has_hung_up) {
            match self.read(session) {
                (_, Some(gone)) => return Some(gone),
                (Received::Nothing, None) => return self.hang_up(session),
                _ if session.has_work() => {
                    tracing::info!("what the debugger has sent before it went is dropped");
                    return self.hang_up(session);
                }
                _ => {}
            }
        }
        None
    }

    /// Sends what the socket takes now. The loop notices a connection that is broken.
    #[cfg(feature = "event-manager")]
    pub(super) fn send<H: Host>(&mut self, session: &mut Session<H>) {
        if let Some(client) = &mut self.client {
            let _ = send(session, client);
        }
    }

    /// Waits once, for the guest, the client and `others`, and serves the first two.
    pub(super) fn wait<H: Host + GuestControl>(
        &mut self,
        session: &mut Session<H>,
        others: &mut [Readiness],
    ) -> io::Result<()> {
        let mut all = Vec::with_capacity(others.len() + 2);
        all.extend_from_slice(others);
        all.push(Readiness::of_input(session.host().stopped_fd()));
        all.extend(self.readiness(session));
        match wait(&mut all) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let mut ready = all.into_iter();
        for (other, ready) in others.iter_mut().zip(&mut ready) {
            *other = ready;
        }
        if ready.next().is_some_and(|guest| guest.is_ready()) {
            self.take_stops(session);
        }
        if let Some(client) = ready.next() {
            self.serve(session, client);
        }
        Ok(())
    }

    /// Serves the client until it has gone and the guest is without a trace of it.
    pub(super) fn run_until_released<H: Host + GuestControl>(
        &mut self,
        session: &mut Session<H>,
    ) -> io::Result<()> {
        while self.client.is_some() || session.is_attached() {
            self.wait(session, &mut [])?;
        }
        Ok(())
    }

    /// Reads once.
    fn read<H: Host + GuestControl>(&mut self, session: &mut Session<H>) -> (Received, Option<S>) {
        let Some(client) = &mut self.client else {
            return (Received::Nothing, None);
        };
        let received = receive(session, client, &mut self.buffer);
        let gone = match received {
            Received::Nothing => None,
            Received::Input => self.settle(session),
            Received::End => self.hang_up(session),
        };
        (received, gone)
    }

    /// Acts on all that the session wants, and sends what it has to say.
    fn settle<H: Host + GuestControl>(&mut self, session: &mut Session<H>) -> Option<S> {
        let Some(client) = &mut self.client else {
            act(session);
            return None;
        };
        match settle(session, client) {
            Connection::Open => None,
            Connection::Over => self.hang_up(session),
        }
    }
}

/// Reads once, so one client cannot keep the loop for itself: the loop says when there is more.
fn receive<H: Host + GuestControl>(
    session: &mut Session<H>,
    stream: &mut impl Read,
    buffer: &mut [u8],
) -> Received {
    let room = session.input_room().min(buffer.len());
    let Some(buffer) = buffer.get_mut(..room).filter(|room| !room.is_empty()) else {
        return Received::Nothing;
    };
    match stream.read(buffer) {
        Ok(0) => Received::End,
        Ok(count) => {
            session.receive(buffer.get(..count).unwrap_or_default());
            Received::Input
        }
        Err(error) if is_transient(&error) => Received::Nothing,
        Err(error) => {
            tracing::info!(%error, "the debugger's connection broke");
            Received::End
        }
    }
}

/// Acts on all that the session wants, and sends what it has to say as far as the socket takes it.
fn settle<H: Host + GuestControl>(session: &mut Session<H>, stream: &mut impl Write) -> Connection {
    loop {
        act(session);
        match send(session, stream) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                tracing::info!(%error, "the debugger's connection broke");
                return Connection::Over;
            }
        }
    }
    if session.is_closing() && session.output().is_empty() {
        return Connection::Over;
    }
    Connection::Open
}

/// Acts on all that the session wants.
fn act<H: Host + GuestControl>(session: &mut Session<H>) {
    while let Some(action) = session.next_action() {
        tracing::debug!(?action, "the session asks for");
        let host = session.host_mut();
        match action {
            Action::Resume(plan) => {
                if let Some(stops) = host.resume(plan) {
                    session.stopped(stops);
                }
            }
            Action::Interrupt => host.interrupt(),
            Action::Release => host.release(),
            Action::Kill => host.kill(),
        }
    }
    if !session.is_attached() {
        session.host_mut().hold(false);
    }
}

/// Sends what the socket takes at once; returns how much that was.
fn send<H: Host>(session: &mut Session<H>, stream: &mut impl Write) -> io::Result<usize> {
    let output = session.output();
    if output.is_empty() {
        return Ok(0);
    }
    match stream.write(output) {
        Ok(0) => Err(ErrorKind::WriteZero.into()),
        Ok(count) => {
            session.consume_output(count);
            Ok(count)
        }
        Err(error) if is_transient(&error) => Ok(0),
        Err(error) => Err(error),
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

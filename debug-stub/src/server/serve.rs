//! A session on a plain thread.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use super::conversation::{self, Connection, READ_SIZE, Received};
use super::guest_control::GuestControl;
use super::listener::{Acceptor, Listener};
use super::stream::{Lent, Readiness, has_hung_up, wait};
use crate::host::Host;
use crate::session::Session;

/// Serves one client, and returns when it has gone and the guest is released. Blocks the calling thread,
/// which needs nothing else: it waits for the client and for the guest at once, and does not poll.
///
/// The connection is a Unix or TCP stream, however it came to be; it is made non-blocking. To end
/// the conversation from another thread, shut the stream down there. The session may serve the next client
/// afterwards. In between the guest's [stops](GuestControl::stopped_fd) are for the VMM to watch;
/// [`serve_forever`] does.
///
/// ```
/// # use std::os::unix::net::UnixStream;
/// # use debug_stub::{Host, Session};
/// # use debug_stub::server::{GuestControl, serve};
/// fn debug<H: Host + GuestControl>(session: &mut Session<H>, stream: UnixStream) {
///     if let Err(error) = serve(session, stream) {
///         eprintln!("the debugger could not be served: {error}");
///     }
/// }
/// ```
///
/// # Errors
/// If the stream cannot be made non-blocking, or waiting fails. A connection that breaks is no error.
pub fn serve<H, S>(session: &mut Session<H>, stream: S) -> io::Result<()>
where
    H: Host + GuestControl,
    S: Read + Write + AsFd,
{
    let client = Lent::new(stream)?;
    let mut server = Server {
        session,
        client: None,
        buffer: vec![0; READ_SIZE],
    };
    server.attach(client);
    let served = server.run_until_released();
    server.hang_up();
    served
}

/// Serves one client after the other, until `quit` is readable. Then the client, if there is one, is gone
/// and the guest released. A client that connects while another is attached is turned away.
///
/// `quit` is an eventfd or a pipe, for instance: `Some(&event_fd)`. It is only polled, never read or closed.
/// A descriptor that is closed counts as readable. With `None` only an error ends the call.
///
/// While no client is attached, the guest's stops go to [`GuestControl::unattended`].
///
/// # Errors
/// If waiting fails.
pub fn serve_forever<H>(
    session: &mut Session<H>,
    listener: Listener,
    quit: Option<&dyn AsRawFd>,
) -> io::Result<()>
where
    H: Host + GuestControl,
{
    let mut acceptor = Acceptor::new(listener);
    let mut server = Server {
        session,
        client: None,
        buffer: vec![0; READ_SIZE],
    };
    let served = loop {
        let listener = acceptor.listener().as_raw_fd();
        let mut others = [
            Readiness::of_input(listener),
            // The kernel ignores a negative descriptor.
            Readiness::of_input(quit.map_or(-1, AsRawFd::as_raw_fd)),
        ];
        if let Err(error) = server.turn(&mut others) {
            break Err(error);
        }
        let [listener, over] = others;
        if over.is_ready() {
            break Ok(());
        }
        if listener.is_ready() {
            while let Some(stream) = acceptor.accept() {
                server.let_go_if_gone();
                if server.client.is_some() {
                    tracing::warn!("a second debugger was turned away: one is attached");
                } else {
                    server.attach(stream);
                }
            }
        }
    };
    server.hang_up();
    served.and_then(|()| server.run_until_released())
}

struct Server<'a, H: Host, S> {
    session: &'a mut Session<H>,
    client: Option<S>,
    buffer: Vec<u8>,
}

impl<H: Host + GuestControl, S: Read + Write + AsFd> Server<'_, H, S> {
    fn attach(&mut self, client: S) {
        tracing::info!("a debugger has connected");
        self.client = Some(client);
        let state = self.session.host().guest_state();
        self.session.attach(state);
        self.settle();
    }

    /// Serves the client until it has gone and the guest is released.
    fn run_until_released(&mut self) -> io::Result<()> {
        while self.client.is_some() || self.session.is_attached() {
            self.turn(&mut [])?;
        }
        Ok(())
    }

    /// Waits once, for the guest, the client and `others`, and serves the first two.
    fn turn(&mut self, others: &mut [Readiness]) -> io::Result<()> {
        let mut all = Vec::with_capacity(others.len() + 2);
        all.extend_from_slice(others);
        all.push(Readiness::of_input(self.session.host().stopped_fd()));
        if let Some(client) = &self.client {
            all.push(Readiness::of_client(
                client.as_fd().as_raw_fd(),
                self.session.input_room() > 0,
                !self.session.output().is_empty(),
            ));
        }
        match wait(&mut all) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let mut ready = all.into_iter();
        for (other, ready) in others.iter_mut().zip(&mut ready) {
            *other = ready;
        }
        let stopped = ready.next().is_some_and(|guest| guest.is_ready());
        if stopped && conversation::take_stops(self.session) {
            self.settle();
        }
        if let Some(client) = ready.next() {
            self.on_client(client);
        }
        Ok(())
    }

    fn on_client(&mut self, client: Readiness) {
        if client.has_input() {
            self.read();
        }
        if client.has_room() {
            self.settle();
        }
        if client.has_hung_up() {
            self.let_go_if_gone();
        }
    }

    /// Reads once. Returns whether that had an effect: input was served, or the client has gone.
    fn read(&mut self) -> bool {
        let Some(client) = &mut self.client else {
            return false;
        };
        match conversation::receive(self.session, client, &mut self.buffer) {
            Received::Nothing => return false,
            Received::Input => self.settle(),
            Received::End => self.hang_up(),
        }
        true
    }

    fn settle(&mut self) {
        match &mut self.client {
            None => conversation::act(self.session),
            Some(client) => {
                if conversation::settle(self.session, client) == Connection::Over {
                    self.hang_up();
                }
            }
        }
    }

    /// If the client has gone, serves what it sent before, as far as the session takes it, and ends the
    /// connection.
    fn let_go_if_gone(&mut self) {
        while self.client.as_ref().is_some_and(has_hung_up) {
            if !self.read() {
                self.hang_up();
            }
        }
    }

    fn hang_up(&mut self) {
        if self.client.take().is_some() {
            tracing::info!("the debugger has gone");
        }
        self.session.disconnected();
        conversation::act(self.session);
    }
}

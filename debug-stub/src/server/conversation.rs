//! Between a session and its connection, whatever loop waits for both.

use std::io::{self, ErrorKind, Read, Write};

use super::guest_control::GuestControl;
use crate::host::{Action, Host};
use crate::session::Session;

/// Bytes read at a time.
pub(super) const READ_SIZE: usize = 64 << 10;

/// What a read from the client came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Input was served.
    Input,
    /// There was nothing to read, or no room for it.
    Nothing,
    /// The client has gone.
    End,
}

/// Whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    Open,
    /// The client has gone, or the session has no more to say to it.
    Over,
}

/// Reads once, so one client cannot keep the loop for itself: the loop says when there is more.
pub(super) fn receive<H: Host + GuestControl>(
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
pub(super) fn settle<H: Host + GuestControl>(
    session: &mut Session<H>,
    stream: &mut impl Write,
) -> Connection {
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
pub(super) fn act<H: Host + GuestControl>(session: &mut Session<H>) {
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
}

/// The guest may have stopped: tells the session, or the VMM if no debugger is attached. Returns whether
/// the session may have something to say or to do.
pub(super) fn take_stops<H: Host + GuestControl>(session: &mut Session<H>) -> bool {
    let Some(stops) = session.host_mut().take_stops() else {
        return false;
    };
    if session.is_attached() {
        session.stopped(stops);
        true
    } else {
        session.host_mut().unattended(stops);
        false
    }
}

/// Sends what the socket takes at once; returns how much that was.
pub(super) fn send<H: Host>(
    session: &mut Session<H>,
    stream: &mut impl Write,
) -> io::Result<usize> {
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

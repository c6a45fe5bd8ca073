//! A session on a plain thread.

use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::thread::{Builder, JoinHandle};

use super::conversation::Conversation;
use super::guest_control::GuestControl;
use super::listener::{Acceptor, Listener};
use super::stream::{Lent, Readiness};
use crate::host::Host;
use crate::session::Session;

/// Serves one client, and returns when it has gone and the guest is without a trace of it: it runs, or stays
/// stopped, as [`OnDisconnect`](crate::OnDisconnect) says. Blocks the calling thread,
/// which needs nothing else: it waits for the client and for the guest at once, and does not poll.
///
/// The connection is a Unix or TCP stream, however it came to be; it is made non-blocking. A TCP client that
/// sends what is no packet is [cut off](Session::close_on_junk). To end
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
    session.close_on_junk(client.is_tcp());
    let mut conversation = Conversation::new();
    conversation.attach(session, client);
    let served = conversation.run_until_released(session);
    conversation.hang_up(session);
    served
}

/// Serves one client after the other, until `quit` is readable. Then the client, if there is one, is gone
/// and the guest without a trace of it. A client that connects while another is attached is turned away.
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
    session.close_on_junk(listener.address().is_tcp());
    let mut acceptor = Acceptor::new(listener);
    let mut conversation = Conversation::new();
    let served = loop {
        let listener = acceptor.listener().as_raw_fd();
        let mut others = [
            Readiness::of_input(listener),
            // The kernel ignores a negative descriptor.
            Readiness::of_input(quit.map_or(-1, AsRawFd::as_raw_fd)),
        ];
        if let Err(error) = conversation.wait(session, &mut others) {
            break Err(error);
        }
        let [listener, over] = others;
        if over.is_ready() {
            break Ok(());
        }
        if listener.is_ready() {
            while let Some(mut stream) = acceptor.accept() {
                conversation.let_go_if_gone(session);
                if !conversation.turns_away(&mut stream) {
                    conversation.attach(session, stream);
                }
            }
        }
    };
    conversation.hang_up(session);
    served.and_then(|()| conversation.run_until_released(session))
}

/// [`serve_forever`] on a thread of its own, named "gdb". The thread inherits the seccomp filters of the one
/// that calls this.
///
/// # Errors
/// If the process has no thread or descriptor left.
pub fn serve_in_background<H>(mut session: Session<H>, listener: Listener) -> io::Result<Background>
where
    H: Host + GuestControl + Send + 'static,
{
    let (watched, quit) = io::pipe()?;
    let kept = quit.try_clone()?;
    let thread = Builder::new().name("gdb".to_owned()).spawn(move || {
        let served = serve_forever(&mut session, listener, Some(&watched));
        // Until here: a server whose handle was dropped goes on.
        drop(kept);
        if let Err(error) = &served {
            tracing::error!(%error, "the GDB server has ended");
        }
        served
    })?;
    Ok(Background { quit, thread })
}

/// A GDB server on a thread of its own. Dropping it lets the server go on, as dropping a [`JoinHandle`] does.
#[derive(Debug)]
pub struct Background {
    quit: PipeWriter,
    thread: JoinHandle<io::Result<()>>,
}

impl Background {
    /// Ends the server and waits for that: the client is gone, and the guest without a trace of it. A guest
    /// that runs for the client has to stop first.
    ///
    /// # Errors
    /// If the server has ended before, and why.
    pub fn finish(mut self) -> io::Result<()> {
        // Refused if the server has ended: then its result says why.
        let _ = self.quit.write(&[0]);
        let joined = self.thread.join();
        joined.unwrap_or_else(|_| Err(io::Error::other("the GDB server panicked")))
    }
}

//! Raw mode, and how it is left on every path.
//!
//! A terminal that stays in raw mode after its program is useless, so the old mode is restored
//! by [`RawTerminal`]'s drop, by the panic hook (a panic in another thread drops nothing here),
//! and by a handler of the signals that end a process at once. SIGKILL cannot be caught: `reset`
//! helps then. SIGINT, SIGTERM and SIGHUP end the event loop, and the value is dropped as usual.

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The mode to restore; set once, by the first [`RawTerminal::enter`].
static SAVED: OnceLock<libc::termios> = OnceLock::new();
/// Whether the terminal is in raw mode now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end the process at once and can be caught.
const FATAL: [libc::c_int; 7] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGQUIT,
    libc::SIGSEGV,
    libc::SIGSYS,
];

/// Standard input is in raw mode while this lives.
#[derive(Debug)]
pub struct RawTerminal {
    _private: (),
}

impl RawTerminal {
    /// Enters raw mode: every key goes to the guest, Ctrl-C too, and nothing is echoed. Output is
    /// left alone: a newline still starts a line.
    ///
    /// `None` if standard input is not a terminal.
    ///
    /// # Errors
    /// The terminal's error.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let mut mode = MaybeUninit::uninit();
        // SAFETY: `mode` has room for a termios, and standard input's number is valid.
        check(unsafe { libc::tcgetattr(libc::STDIN_FILENO, mode.as_mut_ptr()) })?;
        // SAFETY: tcgetattr succeeded, so it has filled `mode`.
        let saved: libc::termios = unsafe { mode.assume_init() };
        if SAVED.set(saved).is_ok() {
            restore_on_panic();
            restore_on_fatal_signals()?;
        }
        let mut raw = saved;
        // SAFETY: `raw` is a termios that the terminal itself gave.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        raw.c_oflag = saved.c_oflag;
        // Before the change: a signal in between restores the mode that is still in force.
        RAW.store(true, Ordering::Release);
        // SAFETY: `raw` lives until the call returns.
        let set = unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const raw) };
        if let Err(error) = check(set) {
            RAW.store(false, Ordering::Release);
            return Err(error);
        }
        Ok(Some(Self { _private: () }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal if it is in raw mode. May be called from a signal handler: atomics and
/// tcsetattr only (signal-safety(7)).
pub fn restore() {
    if !RAW.swap(false, Ordering::AcqRel) {
        return;
    }
    if let Some(saved) = SAVED.get() {
        // SAFETY: `saved` is a termios that this terminal gave, and is static. Nothing can be
        // done about a failure.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, saved) };
    }
}

fn restore_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        before(info);
    }));
}

fn restore_on_fatal_signals() -> io::Result<()> {
    for signal in FATAL {
        // RESETHAND: the second time the signal has its default effect.
        handle(signal, on_fatal_signal, libc::SA_RESETHAND)?;
    }
    Ok(())
}

/// Sets the handler of a signal. It must be async-signal-safe.
pub(crate) fn handle(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int),
    flags: libc::c_int,
) -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all-zero is a valid sigaction (no flags, an empty mask, SIG_DFL).
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // ONSTACK: after a stack overflow the thread's own stack has no room.
    action.sa_flags = flags | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised, and the caller's handler is async-signal-safe.
    check(unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) })
}

extern "C" fn on_fatal_signal(signal: libc::c_int) {
    restore();
    // SAFETY: raise is async-signal-safe; the handler has been reset to the default.
    unsafe { libc::raise(signal) };
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

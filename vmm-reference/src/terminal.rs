//! Raw mode, and how it is left on every path.
//!
//! A terminal that stays in raw mode after its program is useless, so the old mode is restored
//! by [`RawTerminal`]'s drop, by the panic hook (a panic in another thread drops nothing here),
//! and by handlers of the signals that end a process at once ([`left_behind`](crate::left_behind)) or stop it.
//! When a stopped process goes on in the foreground, raw mode is back. SIGKILL and SIGSTOP cannot be caught: `reset`
//! helps then. SIGINT, SIGTERM and SIGHUP end the event loop, and the value is dropped as usual.

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

/// The mode to restore; set once, by the first [`RawTerminal::enter`].
static SAVED: OnceLock<libc::termios> = OnceLock::new();
/// The raw mode; set after [`SAVED`].
static RAW_MODE: OnceLock<libc::termios> = OnceLock::new();
/// Whether the terminal is in raw mode now.
static RAW: AtomicBool = AtomicBool::new(false);
/// Whether it is to be: a [`RawTerminal`] lives.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Signals of a fault that [`left_behind`](crate::left_behind) leaves to the standard library.
const FAULTS: [libc::c_int; 2] = [libc::SIGBUS, libc::SIGSEGV];
/// Signals that stop the process and can be caught.
const STOPS: [libc::c_int; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
/// While the handler runs, the signal has its default effect and is not blocked; the others of these, and SIGCONT's
/// handler, wait for its end. SIGCONT has its effect all the same.
const STOP_FLAGS: libc::c_int = libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_RESTART;

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
        let first = SAVED.set(saved).is_ok();
        let mut raw = saved;
        // SAFETY: `raw` is a termios that the terminal itself gave.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        raw.c_oflag = saved.c_oflag;
        let raw = RAW_MODE.get_or_init(|| raw);
        if first {
            restore_on_panic();
            restore_on_signals()?;
        }
        WANTED.store(true, Ordering::Release);
        if let Err(error) = set_raw(raw) {
            WANTED.store(false, Ordering::Release);
            return Err(error);
        }
        Ok(Some(Self { _private: () }))
    }
}

/// Async-signal-safe, as [`restore`].
fn set_raw(raw: &libc::termios) -> io::Result<()> {
    // Before the change: a signal in between restores the mode that is still in force.
    RAW.store(true, Ordering::Release);
    // SAFETY: `raw` lives until the call returns.
    let set = unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, raw) };
    check(set).inspect_err(|_| RAW.store(false, Ordering::Release))
}

/// Raw mode again, after a stop. In the background the terminal is the shell's.
fn set_raw_again() {
    if !WANTED.load(Ordering::Acquire) || !in_foreground() {
        return;
    }
    if let Some(raw) = RAW_MODE.get() {
        // Nothing can be done about a failure.
        let _ = set_raw(raw);
    }
}

/// Returns `true` unless the terminal is another process group's. To set its mode then would stop this one
/// (SIGTTOU), and a process that is to end would not.
fn in_foreground() -> bool {
    // SAFETY: it takes a number, and is async-signal-safe.
    let foreground = unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) };
    // SAFETY: it has no precondition, and is async-signal-safe.
    let ours = unsafe { libc::getpgrp() };
    // -1: it is not the process's controlling terminal, and has no foreground.
    foreground == -1 || foreground == ours
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::Release);
        restore();
    }
}

/// Restores the terminal if it is in raw mode. May be called from a signal handler: atomics,
/// tcgetpgrp, getpgrp and tcsetattr only (signal-safety(7)).
pub fn restore() {
    if !RAW.swap(false, Ordering::AcqRel) || !in_foreground() {
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

fn restore_on_signals() -> io::Result<()> {
    for signal in FAULTS {
        // RESETHAND: the second time the signal has its default effect.
        handle(signal, on_fault, libc::SA_RESETHAND)?;
    }
    for signal in STOPS {
        if handler(signal)? == libc::SIG_DFL {
            handle_stop(signal)?;
        }
    }
    handle(libc::SIGCONT, on_continue, libc::SA_RESTART)
}

/// Returns the address of a signal's handler, `SIG_DFL` or `SIG_IGN`.
pub(crate) fn handler(signal: libc::c_int) -> io::Result<libc::sighandler_t> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null pointer changes nothing, and `action` has room for a sigaction.
    check(unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) })?;
    // SAFETY: sigaction succeeded, so it has filled `action`.
    Ok(unsafe { action.assume_init() }.sa_sigaction)
}

/// Runs `start`. A thread that it starts does not take the signals that stop the process and let it go on: their
/// handlers set the terminal's mode one after the other, on the main thread.
///
/// # Errors
/// The system's error.
pub(crate) fn stops_stay_here<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    let mut signals = SigSet::empty();
    for signal in STOPS {
        signals.add(Signal::try_from(signal)?);
    }
    signals.add(Signal::SIGCONT);
    let before = SigSet::thread_get_mask()?;
    signals.thread_block()?;
    let started = start();
    before.thread_set_mask()?;
    Ok(started)
}

/// Handles a signal that stops the process.
fn handle_stop(signal: libc::c_int) -> io::Result<()> {
    let mut others = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `others` has room for a set.
    check(unsafe { libc::sigemptyset(others.as_mut_ptr()) })?;
    for other in STOPS.into_iter().chain([libc::SIGCONT]) {
        if other != signal {
            // SAFETY: sigemptyset has initialised the set.
            check(unsafe { libc::sigaddset(others.as_mut_ptr(), other) })?;
        }
    }
    // SAFETY: as above.
    let others = unsafe { others.assume_init() };
    handle_with_mask(signal, on_stop, STOP_FLAGS, others)
}

/// Sets the handler of a signal. It must be async-signal-safe.
pub(crate) fn handle(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int),
    flags: libc::c_int,
) -> io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `none` has room for a set.
    check(unsafe { libc::sigemptyset(none.as_mut_ptr()) })?;
    // SAFETY: sigemptyset has initialised it.
    handle_with_mask(signal, handler, flags, unsafe { none.assume_init() })
}

/// Async-signal-safe, as sigaction, sigemptyset and sigaddset are.
fn handle_with_mask(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int),
    flags: libc::c_int,
    mask: libc::sigset_t,
) -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all-zero is a valid sigaction (no flags, an empty mask, SIG_DFL).
    let action = unsafe { action.assume_init_mut() };
    action.sa_mask = mask;
    action.sa_sigaction = handler as libc::sighandler_t;
    // ONSTACK: after a stack overflow the thread's own stack has no room.
    action.sa_flags = flags | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised, and the caller's handler is async-signal-safe.
    check(unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) })
}

extern "C" fn on_fault(signal: libc::c_int) {
    restore();
    // SAFETY: raise is async-signal-safe; the handler has been reset to the default.
    unsafe { libc::raise(signal) };
}

extern "C" fn on_stop(signal: libc::c_int) {
    let errno = Errno::last_raw();
    restore();
    // Stops the process here (STOP_FLAGS), until SIGCONT. The kernel does not stop an orphaned process group, for
    // which SIGCONT would not come either.
    // SAFETY: raise is async-signal-safe.
    unsafe { libc::raise(signal) };
    // It was this handler's signal before, so this does not fail.
    let _ = handle_stop(signal);
    set_raw_again();
    Errno::set_raw(errno);
}

extern "C" fn on_continue(_: libc::c_int) {
    let errno = Errno::last_raw();
    set_raw_again();
    Errno::set_raw(errno);
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

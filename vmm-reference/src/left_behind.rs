//! What a process would leave behind when a signal ends it at once: a terminal in raw mode, and the file of the
//! debugger's socket.
//!
//! [`on_every_signal`] cleans up before the signals that end a process and can be caught. SIGINT, SIGTERM and SIGHUP
//! are among them until [`Signals`](crate::signals::Signals) takes them over: a start takes time, too. SIGSEGV and
//! SIGBUS are not: the standard library reports a stack overflow by them.
//! [`terminal`] handles both while there is a terminal in raw mode. A socket that is left
//! behind is replaced at the next start.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use crate::terminal;

/// The signals whose default is the end of the process (signal(7)), without SIGKILL, SIGPIPE, which the standard
/// library ignores, SIGSEGV and SIGBUS. Real-time signals come on top.
const DEADLY: [libc::c_int; 19] = [
    libc::SIGABRT,
    libc::SIGALRM,
    libc::SIGFPE,
    libc::SIGHUP,
    libc::SIGILL,
    libc::SIGINT,
    libc::SIGIO,
    libc::SIGPROF,
    libc::SIGPWR,
    libc::SIGQUIT,
    libc::SIGSTKFLT,
    libc::SIGSYS,
    libc::SIGTERM,
    libc::SIGTRAP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGVTALRM,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// The socket's file. Set once: a process has one.
static SOCKET: OnceLock<SocketFile> = OnceLock::new();

#[derive(Debug)]
struct SocketFile {
    path: CString,
    device: u64,
    inode: u64,
}

/// Cleans up before the process ends by a signal. A signal that is ignored or handled already stays so.
///
/// # Errors
/// The system's error.
pub fn on_every_signal() -> io::Result<()> {
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    for signal in DEADLY.into_iter().chain(real_time) {
        if terminal::handler(signal)? == libc::SIG_DFL {
            // RESETHAND: the second time the signal has its default effect.
            terminal::handle(signal, end, libc::SA_RESETHAND)?;
        }
    }
    Ok(())
}

/// Names the file of a socket that this process has bound, for [`clean_up`]. Only the first call counts.
///
/// # Errors
/// If the file cannot be found.
pub fn socket(path: &Path) -> io::Result<()> {
    let file = fs::symlink_metadata(path)?;
    let _ = SOCKET.set(SocketFile {
        path: CString::new(path.as_os_str().as_bytes())?,
        device: file.dev(),
        inode: file.ino(),
    });
    Ok(())
}

/// Restores the terminal and removes the socket's file, unless another process has replaced it. May be called from a
/// signal handler: lstat, unlink and what [`terminal::restore`] needs (signal-safety(7)).
pub fn clean_up() {
    terminal::restore();
    let Some(socket) = SOCKET.get() else {
        return;
    };
    let mut now = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `path` ends with a zero byte and is static; `now` has room for a stat.
    if unsafe { libc::lstat(socket.path.as_ptr(), now.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: lstat succeeded, so it has filled `now`.
    let now = unsafe { now.assume_init() };
    if (now.st_dev, now.st_ino) == (socket.device, socket.inode) {
        // SAFETY: `path` ends with a zero byte and is static.
        unsafe { libc::unlink(socket.path.as_ptr()) };
    }
}

extern "C" fn end(signal: libc::c_int) {
    clean_up();
    // SAFETY: raise is async-signal-safe; the handler has been reset to the default.
    unsafe { libc::raise(signal) };
}

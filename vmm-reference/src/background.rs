//! Output to a descriptor that may block, from threads that must not.
//!
//! A pipe that is not read, a stopped terminal and a slow disk block `write`. Making the descriptor
//! non-blocking is no way out for standard output and standard error: the flag belongs to the open file,
//! which other processes share, and a regular file ignores it. So a thread of its own writes, from a buffer
//! of limited size. No other thread waits for the descriptor, and the lock is held only to copy bytes.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

/// How long the drop of a writer waits for what is still in its buffer.
const AT_DROP: Duration = Duration::from_millis(300);

/// What happens on the writer's thread. No lock is held.
pub trait Events: Send + Sync {
    /// Half of the buffer is free again, after [`BackgroundWriter::has_room`] returned `false`.
    fn room(&self) {}
    /// The descriptor refuses what is written. Called once until a write succeeds again.
    fn failed(&self, error: &io::Error);
}

/// What did not reach the descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Bytes that found the buffer full.
    pub dropped: u64,
    /// Bytes that the descriptor refused.
    pub refused: u64,
    /// Bytes that are still in the buffer.
    pub unwritten: u64,
}

impl Loss {
    /// All of it.
    #[must_use]
    pub fn total(self) -> u64 {
        self.dropped + self.refused + self.unwritten
    }
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    /// Bytes that the thread has taken from the buffer and not written yet.
    taken: usize,
    /// The producer waits for [`Events::room`].
    room_wanted: bool,
    closed: bool,
    /// [`BackgroundWriter::finish`] has waited in vain: the drop does not wait again.
    given_up: bool,
    dropped: u64,
    refused: u64,
    /// Bytes that have left the buffer, in any way.
    passed: u64,
}

impl State {
    fn waiting(&self) -> usize {
        self.buffer.len() + self.taken
    }
}

struct Shared {
    state: Mutex<State>,
    /// The thread has something to do.
    work: Condvar,
    /// The thread has done something.
    progress: Condvar,
    capacity: usize,
    events: OnceLock<Box<dyn Events>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `count` bytes of what was taken are written, or `refused`.
    fn passed(&self, count: usize, refused: bool) {
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        let mut state = self.lock();
        state.taken = state.taken.saturating_sub(count);
        state.passed += bytes;
        if refused {
            state.refused += bytes;
        }
        let room = state.room_wanted && state.waiting() <= self.capacity / 2;
        state.room_wanted &= !room;
        drop(state);
        self.progress.notify_all();
        if room {
            if let Some(events) = self.events.get() {
                events.room();
            }
        }
    }

    /// Writes until the writer is dropped.
    fn write_all(&self, mut sink: impl Write + AsFd) {
        let mut failing = false;
        let mut bytes = Vec::new();
        loop {
            let mut state = self.lock();
            while state.buffer.is_empty() {
                if state.closed {
                    return;
                }
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            bytes.clear();
            std::mem::swap(&mut bytes, &mut state.buffer);
            state.taken = bytes.len();
            drop(state);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let error = match sink.write(rest) {
                    Ok(count) if count > 0 => {
                        failing = false;
                        rest = rest.get(count..).unwrap_or_default();
                        self.passed(count, false);
                        continue;
                    }
                    Ok(_) => ErrorKind::WriteZero.into(),
                    Err(error) => error,
                };
                match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => {
                        // Another process has made the shared file non-blocking.
                        let mut polls = [PollFd::new(sink.as_fd(), PollFlags::POLLOUT)];
                        let _ = poll(&mut polls, PollTimeout::NONE);
                    }
                    _ => {
                        if !std::mem::replace(&mut failing, true) {
                            if let Some(events) = self.events.get() {
                                events.failed(&error);
                            }
                        }
                        self.passed(rest.len(), true);
                        break;
                    }
                }
            }
        }
    }
}

/// Writes to a descriptor on a thread of its own. Dropping it waits a little for what is in the buffer.
pub struct BackgroundWriter {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for BackgroundWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackgroundWriter")
            .field("loss", &self.loss())
            .finish_non_exhaustive()
    }
}

impl BackgroundWriter {
    /// Starts the thread, with a buffer of `capacity` bytes. The thread takes no signal that is sent to the
    /// process, so it may be started before the signals are taken over.
    ///
    /// # Errors
    /// If there is no thread left.
    pub fn start(
        name: &str,
        sink: impl Write + AsFd + Send + 'static,
        capacity: usize,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
            capacity,
            events: OnceLock::new(),
        });
        let thread = Arc::clone(&shared);
        without_signals(|| {
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || thread.write_all(sink))
        })??;
        Ok(Self { shared })
    }

    /// Sets who is told. Only the first call counts.
    pub fn set_events(&self, events: Box<dyn Events>) {
        let _ = self.shared.events.set(events);
    }

    /// Takes all of `bytes`, or nothing of it if the buffer has no room; then they count as dropped. Returns
    /// `true` if they were taken.
    pub fn push(&self, bytes: &[u8]) -> bool {
        let mut state = self.shared.lock();
        if state.waiting() + bytes.len() > self.shared.capacity {
            state.dropped += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            return false;
        }
        let asleep = state.buffer.is_empty();
        state.buffer.extend_from_slice(bytes);
        drop(state);
        if asleep {
            self.shared.work.notify_one();
        }
        true
    }

    /// Returns `true` if the buffer has room for a byte. If not, [`Events::room`] is called once there is.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let mut state = self.shared.lock();
        let room = state.waiting() < self.shared.capacity;
        state.room_wanted |= !room;
        room
    }

    /// Waits until the buffer is empty, for at most `limit`. With `while_it_moves` the limit begins again
    /// with each write that succeeds. Returns what was lost so far.
    pub fn finish(&self, limit: Duration, while_it_moves: bool) -> Loss {
        let mut begun = Instant::now();
        let mut state = self.shared.lock();
        while state.waiting() > 0 {
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                state.given_up = true;
                break;
            }
            let before = state.passed;
            let waited = self.shared.progress.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if while_it_moves && state.passed != before {
                begun = Instant::now();
            }
        }
        drop(state);
        self.loss()
    }

    /// Returns what was lost so far.
    #[must_use]
    pub fn loss(&self) -> Loss {
        let state = self.shared.lock();
        Loss {
            dropped: state.dropped,
            refused: state.refused,
            unwritten: u64::try_from(state.waiting()).unwrap_or(u64::MAX),
        }
    }
}

impl Drop for BackgroundWriter {
    fn drop(&mut self) {
        if !self.shared.lock().given_up {
            self.finish(AT_DROP, false);
        }
        self.shared.lock().closed = true;
        // Not joined: it may be blocked in a write, which ends with the process.
        self.shared.work.notify_one();
    }
}

/// Runs `start` with all signals blocked that are sent to a process, so a thread that it starts takes none of
/// them. Those that a thread's own fault raises stay as they are.
pub(crate) fn without_signals<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    let mut signals = SigSet::all();
    for fault in [
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGSEGV,
        Signal::SIGSYS,
        Signal::SIGTRAP,
    ] {
        signals.remove(fault);
    }
    let before = SigSet::thread_get_mask()?;
    signals.thread_block()?;
    let started = start();
    before.thread_set_mask()?;
    Ok(started)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn pipe() -> (io::PipeReader, File) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, File::from(OwnedFd::from(writer)))
    }

    struct Told(mpsc::Sender<Option<ErrorKind>>);

    impl Events for Told {
        fn room(&self) {
            self.0.send(None).unwrap();
        }

        fn failed(&self, error: &io::Error) {
            self.0.send(Some(error.kind())).unwrap();
        }
    }

    #[test]
    fn what_is_pushed_arrives_whole_and_in_order() {
        let (mut reader, sink) = pipe();
        let writer = BackgroundWriter::start("test", sink, 1 << 20).unwrap();
        let mut wanted = Vec::new();
        for n in 0..1000u32 {
            assert!(writer.push(&n.to_le_bytes()));
            wanted.extend(n.to_le_bytes());
        }
        assert_eq!(writer.finish(PATIENCE, false), Loss::default());
        let mut seen = vec![0; wanted.len()];
        reader.read_exact(&mut seen).unwrap();
        assert_eq!(seen, wanted);
    }

    #[test]
    fn a_pipe_that_is_not_read_blocks_no_producer_and_what_is_lost_is_counted() {
        let (mut reader, sink) = pipe();
        let writer = BackgroundWriter::start("test", sink, 1 << 20).unwrap();
        let (sender, told) = mpsc::channel();
        writer.set_events(Box::new(Told(sender)));
        // Fills the pipe, and then the buffer.
        let block = [7; 1 << 16];
        let mut taken = 0;
        while writer.has_room() && writer.push(&block) {
            taken += block.len();
        }
        while writer.push(&[7]) {
            taken += 1;
        }
        assert!(!writer.has_room());
        let loss = writer.finish(Duration::from_millis(20), false);
        assert!(loss.dropped >= 1 && loss.unwritten > 0 && loss.refused == 0);
        let begun = Instant::now();
        let mut seen = vec![0; taken];
        reader.read_exact(&mut seen).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), None, "room again");
        assert!(writer.has_room());
        assert_eq!(writer.finish(PATIENCE, false).unwritten, 0);
        assert!(begun.elapsed() < PATIENCE);
    }

    #[test]
    fn the_end_of_a_writer_does_not_wait_for_a_blocked_write() {
        let (_reader, sink) = pipe();
        let writer = BackgroundWriter::start("test", sink, 1 << 20).unwrap();
        while writer.push(&[7; 1 << 10]) {}
        let begun = Instant::now();
        drop(writer);
        assert!(begun.elapsed() < 10 * AT_DROP, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_writer_that_was_waited_for_in_vain_is_not_waited_for_again() {
        let (_reader, sink) = pipe();
        let writer = BackgroundWriter::start("test", sink, 1 << 20).unwrap();
        while writer.push(&[7; 1 << 10]) {}
        assert!(writer.finish(Duration::ZERO, false).unwritten > 0);
        assert!(writer.shared.lock().given_up);
        drop(writer);
    }

    #[test]
    fn a_full_disk_is_told_once_and_what_it_refuses_is_counted() {
        let sink = File::options().write(true).open("/dev/full").unwrap();
        let writer = BackgroundWriter::start("test", sink, 64).unwrap();
        let (sender, told) = mpsc::channel();
        writer.set_events(Box::new(Told(sender)));
        for _ in 0..3 {
            assert!(writer.push(b"abc"));
            assert_eq!(writer.finish(PATIENCE, false).unwritten, 0);
        }
        assert_eq!(writer.loss().refused, 9);
        let kind = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(kind, Some(ErrorKind::StorageFull));
        assert!(told.try_recv().is_err(), "once");
    }
}

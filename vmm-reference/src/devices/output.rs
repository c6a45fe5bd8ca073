//! Where the output of a device goes: through a writer in the background, so no vCPU waits for it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::background::{BackgroundWriter, Events, Loss};

/// Where the guest's output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialOutput {
    /// Standard output; standard input is the guest's input.
    Stdio,
    /// Nowhere.
    None,
    /// A file. It is created, or truncated.
    File(PathBuf),
}

/// The place of an output that cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputError {
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// An output. Clones are the same output.
#[derive(Clone, Debug)]
pub(super) enum Output {
    Discard,
    Background {
        writer: Arc<BackgroundWriter>,
        /// What it is, for messages.
        name: &'static str,
        /// Bytes are being dropped, which was logged.
        dropping: Arc<AtomicBool>,
    },
}

impl Output {
    /// Opens it. `room` bytes may wait for the descriptor.
    ///
    /// # Errors
    /// If the file cannot be opened, or there is no descriptor or thread left.
    pub(super) fn open(
        place: &SerialOutput,
        name: &'static str,
        room: usize,
    ) -> Result<Self, (OutputError, io::Error)> {
        match place {
            SerialOutput::None => Ok(Self::Discard),
            SerialOutput::Stdio => io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .and_then(|stdout| Self::start(name, "stdout", room, File::from(stdout)))
                .map_err(|error| (OutputError::Stdout, error)),
            SerialOutput::File(path) => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                // A guest's output may be secret. A file that is there keeps its mode.
                .mode(0o600)
                .open(path)
                .and_then(|file| Self::start(name, "output", room, file))
                .map_err(|error| (OutputError::File(path.clone()), error)),
        }
    }

    fn start(name: &'static str, thread: &str, room: usize, file: File) -> io::Result<Self> {
        Ok(Self::Background {
            writer: Arc::new(BackgroundWriter::start(thread, file, room)?),
            name,
            dropping: Arc::default(),
        })
    }

    /// Sets what is told of the writer's room and errors.
    pub(super) fn set_events(&self, events: Box<dyn Events>) {
        if let Self::Background { writer, .. } = self {
            writer.set_events(events);
        }
    }

    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Discard => true,
            Self::Background { writer, .. } => writer.has_room(),
        }
    }

    /// Waits until all is written, for at most `limit`. Returns what was lost so far.
    pub(super) fn finish(&self, limit: Duration, while_it_moves: bool) -> Loss {
        match self {
            Self::Discard => Loss::default(),
            Self::Background { writer, .. } => writer.finish(limit, while_it_moves),
        }
    }
}

impl io::Write for Output {
    /// Takes all of it, or drops it if the buffer is full.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Self::Background {
            writer,
            name,
            dropping,
        } = self
        {
            if writer.push(bytes) {
                dropping.store(false, Ordering::Relaxed);
            } else if !dropping.swap(true, Ordering::Relaxed) {
                tracing::warn!("{name} is not read, and the guest does not wait: dropped");
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! Log lines, on standard error.
//!
//! - No thread waits for the reader of standard error: a [`BackgroundWriter`] has a bounded buffer. What finds it
//!   full is dropped, and the next line that fits says how much.
//! - No guest and no client fills a disk with one kind of message, however often it repeats what is logged:
//!   `limits.rs`. A line has a largest length, because a message may show a packet.

mod limits;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::background::{BackgroundWriter, Loss};
use limits::{Limits, Verdict};

/// Bytes of log lines that may wait for standard error.
const BUFFER: usize = 256 << 10;
/// The longest line. A packet of a debugger may have 16 KiB, and four characters for each byte.
const LONGEST_LINE: usize = 2 << 10;
/// How long a panic waits until its message is written: the process may end by it.
const AT_PANIC: Duration = Duration::from_millis(100);

/// The process's log. Clones are the same log.
#[derive(Clone, Debug)]
pub struct Log {
    lines: Arc<Lines>,
    limits: Arc<Limits>,
}

impl Log {
    /// Takes over the events of `tracing` and the messages of panics, for the whole process: to be called once.
    /// `RUST_LOG` chooses what is logged; without it, warnings and errors.
    ///
    /// # Panics
    /// If `tracing` has a subscriber already.
    ///
    /// # Errors
    /// If there is no descriptor or thread left.
    pub fn start() -> io::Result<Self> {
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let log = Self::to(File::from(stderr), BUFFER)?;
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
        tracing_subscriber::fmt()
            .event_format(log.format())
            .with_env_filter(filter)
            .with_writer(log.writer())
            .init();
        let lines = Arc::clone(&log.lines);
        panic::set_hook(Box::new(move |info| {
            let thread = thread::current();
            let name = thread.name().unwrap_or("unnamed").to_owned();
            let trace = Backtrace::capture();
            let trace = match trace.status() {
                BacktraceStatus::Captured => format!("\n{trace}"),
                _ => String::new(),
            };
            lines.push(&format!("\nthread '{name}' {info}{trace}\n"));
            lines.writer.finish(AT_PANIC, false);
        }));
        Ok(log)
    }

    fn to(sink: File, buffer: usize) -> io::Result<Self> {
        Ok(Self {
            lines: Arc::new(Lines {
                writer: BackgroundWriter::start("log", sink, buffer)?,
                said: Mutex::default(),
            }),
            limits: Arc::default(),
        })
    }

    fn writer(&self) -> ToLines {
        ToLines(Arc::clone(&self.lines))
    }

    fn format(&self) -> Limited {
        Limited {
            format: Format::default(),
            limits: Arc::clone(&self.limits),
        }
    }

    /// Logs a line that is neither an event nor limited.
    pub fn line(&self, text: &str) {
        self.lines.push(&format!("{text}\n"));
    }

    /// Says what was left out, and waits until all is written, as [`BackgroundWriter::finish`] does.
    pub fn finish(&self, limit: Duration, while_it_moves: bool) -> Loss {
        for left_out in self.limits.left_out() {
            self.line(&left_out.to_string());
        }
        self.lines.writer.finish(limit, while_it_moves)
    }
}

/// Whole lines, or nothing of them.
#[derive(Debug)]
struct Lines {
    writer: BackgroundWriter,
    /// The lost bytes that a note has named.
    said: Mutex<u64>,
}

impl Lines {
    fn push(&self, line: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let loss = self.writer.loss();
        let lost = loss.dropped + loss.refused;
        if lost == *said {
            self.writer.push(line.as_bytes());
            return;
        }
        let note = format!(
            "vmm-reference: {} bytes of log are lost: standard error was not read, or is full\n",
            lost - *said
        );
        if self.writer.push(format!("{note}{line}").as_bytes()) {
            *said = lost;
        } else {
            // The note counts as dropped now, too. It is no line of the log.
            *said += u64::try_from(note.len()).unwrap_or(0);
        }
    }
}

/// What `tracing-subscriber` writes a line to.
impl Write for &Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            self.push(&String::from_utf8_lossy(bytes));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ToLines(Arc<Lines>);

impl<'a> MakeWriter<'a> for ToLines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> Self::Writer {
        &self.0
    }
}

/// The usual format, of the events that their kind's limit admits.
struct Limited {
    format: Format,
    limits: Arc<Limits>,
}

impl<S, N> FormatEvent<S, N> for Limited
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let verdict = self.limits.admit(event.metadata(), Instant::now());
        if verdict == Verdict::LeaveOut {
            return Ok(());
        }
        let mut line = String::new();
        self.format
            .format_event(context, Writer::new(&mut line), event)?;
        let mut text = shortened(line.trim_end_matches('\n'));
        match verdict {
            Verdict::Admit | Verdict::LeaveOut => {}
            Verdict::AdmitAfter(count) => {
                text.push_str(&format!(" ({count} of this kind were left out before it)"));
            }
            Verdict::AdmitLast => {
                text.push_str(" (more of this kind are left out, all but one a second)");
            }
        }
        writeln!(writer, "{text}")
    }
}

/// The line, or its beginning if it is too long.
fn shortened(line: &str) -> String {
    if line.len() <= LONGEST_LINE {
        return line.to_owned();
    }
    let end = (0..=LONGEST_LINE)
        .rev()
        .find(|end| line.is_char_boundary(*end))
        .unwrap_or(0);
    let (shown, rest) = line.split_at(end);
    format!("{shown}... ({} bytes more)", rest.len())
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};
    use std::os::fd::OwnedFd;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn log(buffer: usize) -> (PipeReader, Log) {
        let (reader, writer) = io::pipe().unwrap();
        let log = Log::to(File::from(OwnedFd::from(writer)), buffer).unwrap();
        (reader, log)
    }

    /// What `act` logs.
    fn logged(act: impl FnOnce()) -> String {
        let (mut reader, log) = log(1 << 20);
        let subscriber = tracing_subscriber::fmt()
            .event_format(log.format())
            .with_writer(log.writer())
            .finish();
        tracing::subscriber::with_default(subscriber, act);
        assert_eq!(log.finish(PATIENCE, true), Loss::default());
        drop(log);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other_kind_and_is_counted() {
        let text = logged(|| {
            for n in 0..1000 {
                tracing::warn!(n, "the flood");
            }
            tracing::warn!("something else");
        });
        let lines = text
            .lines()
            .filter(|line| line.contains("the flood"))
            .count();
        assert!((20..100).contains(&lines), "{text}");
        assert!(text.contains("more of this kind are left out"), "{text}");
        assert!(text.contains("something else"), "{text}");
        let end = text.lines().last().unwrap();
        assert!(end.contains("lines were left out"), "{text}");
        assert!(end.contains("logging.rs:"), "{text}");
    }

    #[test]
    fn a_long_line_is_cut() {
        let text = logged(|| tracing::warn!(packet = "é".repeat(100_000), "a packet"));
        assert!(text.len() < 2 * LONGEST_LINE, "{}", text.len());
        assert!(text.ends_with("bytes more)\n"), "{text}");
    }

    #[test]
    fn what_is_asked_for_in_detail_has_no_limit() {
        let (_reader, log) = log(1 << 20);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .event_format(log.format())
            .with_writer(log.writer())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..100 {
                tracing::debug!("detail");
            }
        });
        assert_eq!(log.limits.left_out().len(), 0);
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_their_bytes_are_said_to_the_next_reader() {
        let (mut reader, log) = log(4 << 10);
        let line = "x".repeat(1000);
        // Fills the pipe, and then the buffer.
        while log.finish(Duration::from_millis(10), false).unwritten == 0 {
            log.line(&line);
        }
        for _ in 0..20 {
            log.line(&line);
        }
        let loss = log.finish(Duration::from_millis(10), false);
        assert!(loss.dropped > 0 && loss.unwritten > 0, "{loss:?}");
        let reads = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(log.finish(PATIENCE, true).unwritten, 0);
        log.line("read again");
        assert_eq!(log.finish(PATIENCE, true).unwritten, 0);
        drop(log);
        let text = reads.join().unwrap();
        let end = text.lines().rev().take(2).collect::<Vec<_>>();
        assert_eq!(end[0], "read again");
        assert!(end[1].contains("bytes of log are lost"), "{}", end[1]);
        assert!(
            text.lines().all(|l| l == line || end.contains(&l)),
            "whole lines"
        );
    }
}

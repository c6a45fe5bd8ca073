//! How often a kind of message may be logged.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::Level;
use tracing::Metadata;
use tracing::callsite::Identifier;

/// So many lines of a kind may come at once.
const BURST: u32 = 20;
/// After that, one in this time.
const PERIOD: Duration = Duration::from_secs(1);

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Admit,
    /// It is the last of a burst.
    AdmitLast,
    /// The first after so many that were left out.
    AdmitAfter(u64),
    LeaveOut,
}

/// The lines of one kind.
#[derive(Debug)]
struct Kind {
    /// So many may come now.
    left: u32,
    /// When `left` was last raised.
    raised: Instant,
    left_out: u64,
}

impl Kind {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            raised: now,
            left_out: 0,
        }
    }

    fn admit(&mut self, now: Instant) -> Verdict {
        let periods = now.saturating_duration_since(self.raised).as_nanos() / PERIOD.as_nanos();
        if periods > 0 {
            let periods = u32::try_from(periods).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(periods).min(BURST);
            self.raised = now;
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.left_out += 1;
            return Verdict::LeaveOut;
        };
        self.left = left;
        match std::mem::take(&mut self.left_out) {
            0 if left == 0 => Verdict::AdmitLast,
            0 => Verdict::Admit,
            count => Verdict::AdmitAfter(count),
        }
    }
}

/// Lines of one kind that were left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    file: &'static str,
    line: u32,
    count: u64,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, count } = self;
        write!(
            f,
            "vmm-reference: {count} lines were left out of {file}:{line}"
        )
    }
}

/// The kinds of messages. A kind is a place in the source: what a guest or a client chooses makes no new one.
#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<HashMap<Identifier, (&'static Metadata<'static>, Kind)>>);

impl Limits {
    fn lock(&self) -> MutexGuard<'_, HashMap<Identifier, (&'static Metadata<'static>, Kind)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Debug and trace messages have no limit: they come only if `RUST_LOG` asks for them.
    pub(super) fn admit(&self, metadata: &'static Metadata<'static>, now: Instant) -> Verdict {
        if *metadata.level() > Level::INFO {
            return Verdict::Admit;
        }
        let mut kinds = self.lock();
        let new = || (metadata, Kind::new(now));
        let (_, kind) = kinds.entry(metadata.callsite()).or_insert_with(new);
        kind.admit(now)
    }

    /// What was left out, and no line has said so yet. It counts as said now.
    pub(super) fn left_out(&self) -> Vec<LeftOut> {
        let mut kinds = self.lock();
        let mut all: Vec<_> = kinds
            .values_mut()
            .filter(|(_, kind)| kind.left_out > 0)
            .map(|(metadata, kind)| LeftOut {
                file: metadata.file().unwrap_or("an unknown file"),
                line: metadata.line().unwrap_or(0),
                count: std::mem::take(&mut kind.left_out),
            })
            .collect();
        all.sort_by_key(|left_out| (left_out.file, left_out.line));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_line_each_period_with_the_number_of_the_others() {
        let start = Instant::now();
        let mut kind = Kind::new(start);
        for _ in 1..BURST {
            assert_eq!(kind.admit(start), Verdict::Admit);
        }
        assert_eq!(kind.admit(start), Verdict::AdmitLast);
        for _ in 0..7 {
            assert_eq!(kind.admit(start + PERIOD / 2), Verdict::LeaveOut);
        }
        assert_eq!(kind.admit(start + PERIOD), Verdict::AdmitAfter(7));
        assert_eq!(kind.admit(start + PERIOD), Verdict::LeaveOut);
        assert_eq!(kind.admit(start + PERIOD * 2), Verdict::AdmitAfter(1));
    }

    #[test]
    fn a_kind_that_was_quiet_has_its_burst_again_and_no_more() {
        let start = Instant::now();
        let mut kind = Kind::new(start);
        while kind.admit(start) != Verdict::LeaveOut {}
        let later = start + PERIOD * 1000;
        let admitted = (0..100).filter(|_| kind.admit(later) != Verdict::LeaveOut);
        assert_eq!(admitted.count(), 20);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_admits_nothing_more() {
        let start = Instant::now() + PERIOD * 5;
        let mut kind = Kind::new(start);
        while kind.admit(start) != Verdict::LeaveOut {}
        assert_eq!(kind.admit(start - PERIOD * 3), Verdict::LeaveOut);
    }
}

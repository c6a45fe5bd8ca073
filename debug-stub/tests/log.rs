//! A VMM that uses `log` and not `tracing` sees the session's events.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop where what must hold does not"
)]

mod common;

use std::sync::Mutex;

use common::{Rig, machine};
use debug_stub::x86_64::simulated::code;
use log::{LevelFilter, Log, Metadata, Record};

struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format!("{} {}", record.target(), record.args());
        self.0.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

#[test]
fn without_a_tracing_subscriber_events_go_to_the_logger() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(LevelFilter::Warn);
    let mut rig = Rig::new(machine(1, &[code::SPIN]));
    assert_eq!(rig.ask("mzz"), "E16");
    let lines = LINES.0.lock().unwrap();
    assert!(
        lines.iter().any(|line| line.starts_with("debug_stub::")
            && line.contains("a packet that makes no sense")
            && line.contains("mzz")),
        "{lines:?}"
    );
}

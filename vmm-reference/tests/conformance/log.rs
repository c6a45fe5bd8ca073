//! The results of the scripts' operations, and the vectors that were taken.

use std::fmt;
use std::ops::Index;

use vm_memory::{Bytes, GuestAddress};
use vmm_reference::memory::GuestRam;

use super::script::Handle;
use super::wire;

/// #GP.
pub const GENERAL_PROTECTION: u64 = 13;

/// Something that happened to a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// This vector was delivered.
    Got(u8),
    /// [`super::Script::mark`].
    Mark(u64),
    /// It began to run in this page.
    Started(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Value,
    Fault,
    Event(Event),
    Fatal,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    cpu: u16,
    kind: Kind,
    operation: usize,
    a: u64,
    b: u64,
}

/// The log of a program that has run. It is printed when the test fails.
pub struct Log {
    entries: Vec<Entry>,
    /// Where each script's operations begin.
    scripts: Vec<usize>,
}

impl Log {
    /// `marks`: the operations that are marks.
    pub(super) fn read(memory: &GuestRam, scripts: Vec<usize>, marks: &[usize]) -> Self {
        let count: u64 = memory.read_obj(wire::LOG_HEAD).unwrap();
        let entries = (0..count)
            .map(|index| {
                let mut bytes = [0; 32];
                let address = GuestAddress(wire::LOG.0 + index * 32);
                memory.read_slice(&mut bytes, address).unwrap();
                let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
                let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                let operation = usize::try_from(number(0) >> 32).unwrap();
                let a = number(8);
                let kind = match half(0) {
                    1 if marks.contains(&operation) => Kind::Event(Event::Mark(a)),
                    1 => Kind::Value,
                    2 => Kind::Fault,
                    3 => Kind::Event(Event::Got(u8::try_from(a).unwrap())),
                    4 => Kind::Event(Event::Started(a >> 8)),
                    _ => Kind::Fatal,
                };
                Entry {
                    cpu: half(2),
                    kind,
                    operation,
                    a,
                    b: number(16),
                }
            })
            .collect();
        Self { entries, scripts }
    }

    fn of(&self, handle: Handle) -> impl Iterator<Item = &Entry> {
        let operation = self.scripts[handle.script] + handle.operation;
        self.entries.iter().filter(move |entry| {
            entry.operation == operation && matches!(entry.kind, Kind::Value | Kind::Fault)
        })
    }

    fn only(&self, handle: Handle) -> &Entry {
        let mut entries = self.of(handle);
        let (Some(entry), None) = (entries.next(), entries.next()) else {
            panic!("{handle:?} was not run once");
        };
        entry
    }

    /// Every result of an operation that ran several times.
    pub fn all(&self, handle: Handle) -> Vec<u64> {
        self.of(handle)
            .map(|entry| {
                assert_eq!(entry.kind, Kind::Value);
                entry.a
            })
            .collect()
    }

    /// Returns `true` if the operation ended with #GP.
    pub fn faults(&self, handle: Handle) -> bool {
        let entry = self.only(handle);
        match entry.kind {
            Kind::Fault => {
                assert_eq!(entry.a, GENERAL_PROTECTION, "another fault");
                true
            }
            _ => false,
        }
    }

    /// An operation's second result: for those that wait, cycles of the TSC.
    pub fn second(&self, handle: Handle) -> u64 {
        self.only(handle).b
    }

    /// What happened to a vCPU.
    pub fn events_of(&self, cpu: u16) -> Vec<Event> {
        self.entries
            .iter()
            .filter(|entry| entry.cpu == cpu)
            .filter_map(|entry| match entry.kind {
                Kind::Event(event) => Some(event),
                _ => None,
            })
            .collect()
    }

    /// What happened to the first vCPU.
    pub fn events(&self) -> Vec<Event> {
        self.events_of(0)
    }

    /// The vectors that a vCPU has taken.
    pub fn vectors_of(&self, cpu: u16) -> Vec<u8> {
        self.events_of(cpu)
            .into_iter()
            .filter_map(|event| match event {
                Event::Got(vector) => Some(vector),
                _ => None,
            })
            .collect()
    }

    /// The vectors that the first vCPU has taken.
    pub fn vectors(&self) -> Vec<u8> {
        self.vectors_of(0)
    }

    /// Returns `true` if an exception ended it.
    pub(super) fn is_fatal(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == Kind::Fatal)
    }
}

impl Index<Handle> for Log {
    type Output = u64;

    fn index(&self, handle: Handle) -> &u64 {
        let entry = self.only(handle);
        assert_eq!(entry.kind, Kind::Value, "vector {}", entry.a);
        &entry.a
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            let script = self
                .scripts
                .partition_point(|base| *base <= entry.operation)
                - 1;
            writeln!(
                f,
                "vCPU {} {:?} script {script} operation {}: {:#x} {:#x}",
                entry.cpu,
                entry.kind,
                entry.operation - self.scripts[script],
                entry.a,
                entry.b
            )?;
        }
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{self}");
        }
    }
}

//! Scripts for all vCPUs and all handlers, and how they are run.

use std::ops::{Deref, DerefMut};

use vm_memory::{Bytes, GuestAddress};

use super::host;
use super::log::Log;
use super::mode::Mode;
use super::registers::{EOI, ICR_ALL_BUT_SELF, INIT, STARTUP, X2_EOI};
use super::script::Script;
use super::wire::{self, Opcode, Operation};

/// What a machine is to do. Dereferences to the first vCPU's script.
#[derive(Debug)]
pub struct Program {
    mode: Mode,
    cpus: u16,
    scripts: Vec<Script>,
    /// Per vCPU, its scripts by the times it was started: indices into `scripts`.
    starts: Vec<Vec<usize>>,
    /// Per vector, its handler's script.
    handlers: Vec<Option<usize>>,
    barriers: u64,
}

impl Program {
    /// For one vCPU.
    pub fn new(mode: Mode) -> Self {
        Self::smp(mode, 1)
    }

    /// For several, of which all but the first wait to be started: [`Self::start_all`].
    ///
    /// Handlers end vectors 0x20 to 0xfe with a write to EOI. They do not end 0xff, the spurious vector of
    /// [`Script::enable_lapic`].
    pub fn smp(mode: Mode, cpus: u16) -> Self {
        assert!((1..=wire::CPUS).contains(&cpus));
        let mut program = Self {
            mode,
            cpus,
            scripts: Vec::new(),
            starts: Vec::new(),
            handlers: vec![None; 256],
            barriers: 0,
        };
        for _ in 0..cpus {
            let script = program.add();
            program.starts.push(vec![script]);
        }
        program.end_with(|handler| handler.lapic_write(EOI, 0));
        program
    }

    fn add(&mut self) -> usize {
        let id = self.scripts.len();
        self.scripts.push(Script::new(id, host::tsc_khz()));
        id
    }

    /// A vCPU's script.
    pub fn cpu(&mut self, cpu: u16) -> &mut Script {
        let script = self.starts[usize::from(cpu)][0];
        &mut self.scripts[script]
    }

    /// What a vCPU does when it is started for the second time.
    pub fn restart(&mut self, cpu: u16) -> &mut Script {
        let starts = usize::from(cpu);
        if self.starts[starts].len() == 1 {
            let script = self.add();
            self.starts[starts].push(script);
        }
        let script = self.starts[starts][1];
        &mut self.scripts[script]
    }

    /// It does the same at each further start.
    pub fn restart_all(&mut self, cpu: u16) {
        let starts = &mut self.starts[usize::from(cpu)];
        if let Some(last) = starts.last().copied() {
            starts.resize(wire::STARTS, last);
        }
    }

    /// What a vector's handler does, with interrupts disabled; nothing so far.
    pub fn on(&mut self, vector: u8) -> &mut Script {
        let script = self.add();
        self.handlers[usize::from(vector)] = Some(script);
        &mut self.scripts[script]
    }

    /// The vector is only logged.
    pub fn only_log(&mut self, vectors: impl IntoIterator<Item = u8>) {
        for vector in vectors {
            self.on(vector);
        }
    }

    /// How the handlers of all vectors from 0x20 to 0xfe end.
    pub fn end_with(&mut self, write: impl FnOnce(&mut Script)) {
        let script = self.add();
        write(&mut self.scripts[script]);
        self.handlers[0x20..0xff].fill(Some(script));
    }

    /// They end with a write to the x2APIC's EOI register.
    pub fn end_with_x2_eoi(&mut self) {
        self.end_with(|handler| {
            handler.wrmsr(X2_EOI, 0);
        });
    }

    /// All vCPUs meet at a barrier.
    pub fn meet(&mut self) {
        let id = self.barriers;
        self.barriers += 1;
        for cpu in 0..self.cpus {
            let count = self.cpus.into();
            self.cpu(cpu).barrier(id, count);
        }
    }

    /// Some vCPUs meet at a barrier.
    pub fn meet_of(&mut self, cpus: &[u16]) {
        let id = self.barriers;
        self.barriers += 1;
        let count = u64::try_from(cpus.len()).unwrap();
        for cpu in cpus {
            self.cpu(*cpu).barrier(id, count);
        }
    }

    /// The first vCPU starts the others with INIT and a startup IPI in xAPIC mode, and each enables
    /// its local APIC.
    pub fn start_all(&mut self) {
        self.enable_lapic();
        self.ipi(ICR_ALL_BUT_SELF | INIT);
        self.ipi(ICR_ALL_BUT_SELF | STARTUP | wire::TRAMPOLINE_PAGE);
        for cpu in 1..self.cpus {
            self.cpu(cpu).enable_lapic();
        }
        self.meet();
    }

    /// Runs it, and returns the log.
    pub fn run(self) -> Log {
        let log = self.run_for_better_or_worse();
        match log {
            (log, Ok(())) => log,
            (log, Err(error)) => panic!("{error}\n{log}"),
        }
    }

    fn run_for_better_or_worse(mut self) -> (Log, Result<(), String>) {
        let machine = host::machine(self.mode, self.cpus);
        let mut bases = Vec::new();
        let mut marks = Vec::new();
        let mut bytes: Vec<u8> = Vec::new();
        for script in &mut self.scripts {
            bases.push(bytes.len() / Operation::SIZE);
            for operation in &script.operations {
                if operation.opcode == Opcode::Mark {
                    marks.push(bytes.len() / Operation::SIZE);
                }
                bytes.extend(operation.to_bytes());
            }
            let end = Operation {
                opcode: Opcode::End,
                size: 0,
                a: 0,
                b: 0,
                c: 0,
            };
            bytes.extend(end.to_bytes());
        }
        let memory = &machine.memory;
        memory.write_slice(&bytes, wire::OPERATIONS).unwrap();
        let address = |script: usize| {
            wire::OPERATIONS.0 + u64::try_from(bases[script] * Operation::SIZE).unwrap()
        };
        for (cpu, starts) in self.starts.iter().enumerate() {
            for (start, script) in starts.iter().enumerate() {
                let index = u64::try_from(cpu * wire::STARTS + start).unwrap();
                let place = GuestAddress(wire::SCRIPTS.0 + 8 * index);
                memory.write_obj(address(*script), place).unwrap();
            }
        }
        for (vector, script) in (0..).zip(&self.handlers) {
            let place = GuestAddress(wire::HANDLERS.0 + 8 * vector);
            memory.write_obj(script.map_or(0, address), place).unwrap();
        }
        let (memory, end) = host::run(machine);
        (Log::read(&memory, bases, &marks), end)
    }
}

impl Deref for Program {
    type Target = Script;

    fn deref(&self) -> &Script {
        &self.scripts[self.starts[0][0]]
    }
}

impl DerefMut for Program {
    fn deref_mut(&mut self) -> &mut Script {
        self.cpu(0)
    }
}

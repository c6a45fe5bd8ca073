//! What one vCPU does.

use super::wire::{HostCall, Opcode, Operation};

/// An operation of a script, whose result is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    pub(super) script: usize,
    pub(super) operation: usize,
}

/// The width of an access in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Size {
    Byte = 1,
    Word = 2,
    Dword = 4,
    Qword = 8,
}

/// Operations of one vCPU, or of a handler, in their order. Interrupts are disabled (RFLAGS.IF = 0), except
/// during the operations that say otherwise.
#[derive(Debug)]
pub struct Script {
    id: usize,
    pub(super) operations: Vec<Operation>,
    /// Cycles of the TSC in a millisecond.
    cycles: u64,
}

impl Script {
    pub(super) fn new(id: usize, cycles: u64) -> Self {
        Self {
            id,
            operations: Vec::new(),
            cycles,
        }
    }

    fn push(&mut self, opcode: Opcode, size: Size, a: u64, b: u64, c: u64) -> Handle {
        self.operations.push(Operation {
            opcode,
            size: size as u8,
            a,
            b,
            c,
        });
        Handle {
            script: self.id,
            operation: self.operations.len() - 1,
        }
    }

    fn simple(&mut self, opcode: Opcode, a: u64, b: u64) -> Handle {
        self.push(opcode, Size::Dword, a, b, 0)
    }

    /// Cycles of the TSC.
    fn ms(&self, ms: u64) -> u64 {
        ms * self.cycles
    }

    pub fn outb(&mut self, port: u16, value: u8) {
        self.push(Opcode::Out, Size::Byte, port.into(), value.into(), 0);
    }

    pub fn out(&mut self, size: Size, port: u16, value: u32) {
        self.push(Opcode::Out, size, port.into(), value.into(), 0);
    }

    pub fn inb(&mut self, port: u16) -> Handle {
        self.input(Size::Byte, port)
    }

    pub fn input(&mut self, size: Size, port: u16) -> Handle {
        self.push(Opcode::In, size, port.into(), 0, 0)
    }

    pub fn write(&mut self, size: Size, address: u64, value: u64) {
        self.push(Opcode::Write, size, address, value, 0);
    }

    /// Writes 32 bits repeatedly until a vCPU has reached the barrier.
    pub fn write_until(&mut self, address: u64, value: u32, barrier: u64) {
        self.push(
            Opcode::WriteUntil,
            Size::Dword,
            address,
            value.into(),
            barrier,
        );
    }

    pub fn read(&mut self, size: Size, address: u64) -> Handle {
        self.push(Opcode::Read, size, address, 0, 0)
    }

    /// 0, or the fault.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> Handle {
        self.simple(Opcode::Wrmsr, msr.into(), value)
    }

    /// Its value, or the fault.
    pub fn rdmsr(&mut self, msr: u32) -> Handle {
        self.simple(Opcode::Rdmsr, msr.into(), 0)
    }

    /// 0, or the fault.
    pub fn write_cr8(&mut self, value: u64) -> Handle {
        self.simple(Opcode::WriteCr8, 0, value)
    }

    pub fn read_cr8(&mut self) -> Handle {
        self.simple(Opcode::ReadCr8, 0, 0)
    }

    pub fn sti(&mut self) {
        self.simple(Opcode::Sti, 0, 0);
    }

    pub fn cli(&mut self) {
        self.simple(Opcode::Cli, 0, 0);
    }

    /// STI directly before CLI.
    pub fn sti_cli(&mut self) {
        self.simple(Opcode::StiCli, 0, 0);
    }

    /// STI, HLT, CLI: goes on after an interrupt.
    pub fn sti_hlt(&mut self) {
        self.simple(Opcode::StiHlt, 0, 0);
    }

    /// HLT, with interrupts disabled.
    pub fn hlt(&mut self) {
        self.simple(Opcode::Hlt, 0, 0);
    }

    /// An exit to the host. An interrupt that can be delivered is delivered before it ends.
    pub fn sync(&mut self) {
        self.simple(Opcode::Sync, 0, 0);
    }

    /// Enables interrupts for some instructions: all that can be delivered are delivered.
    pub fn window(&mut self) {
        self.simple(Opcode::Window, 0, 0);
    }

    /// Waits until `count` vCPUs have come here. [`super::Program::meet`] is for all of them.
    pub fn barrier(&mut self, id: u64, count: u64) {
        self.simple(Opcode::Barrier, id, count);
    }

    /// Waits with interrupts enabled until this vCPU has taken the vector `times` times in all, or for `ms`
    /// milliseconds. The result is the number of times; [`super::log::Log::cycles`] has the time.
    pub fn wait_ms(&mut self, vector: u8, times: u64, ms: u64) -> Handle {
        let cycles = self.ms(ms);
        self.push(Opcode::Wait, Size::Dword, vector.into(), times, cycles)
    }

    /// As long as only a failure is waited for.
    pub fn wait(&mut self, vector: u8, times: u64) -> Handle {
        self.wait_ms(vector, times, 20_000)
    }

    /// IA32_TSC_DEADLINE = TSC + `ms` milliseconds. Returns what was written.
    pub fn deadline_in_ms(&mut self, ms: u64) -> Handle {
        let cycles = self.ms(ms);
        self.simple(Opcode::Deadline, cycles, 0)
    }

    /// Lets some time pass.
    pub fn spin_ms(&mut self, ms: u64) {
        let cycles = self.ms(ms);
        self.simple(Opcode::Spin, cycles, 0);
    }

    /// Reads 32 bits until those of `mask` are `value`. Returns the last value.
    pub fn poll(&mut self, address: u64, mask: u32, value: u32) -> Handle {
        let cycles = self.ms(20_000);
        let wanted = u64::from(value) << 32 | u64::from(mask);
        self.push(Opcode::Poll, Size::Dword, address, wanted, cycles)
    }

    /// A mark in the log: [`super::log::Event::Mark`].
    pub fn mark(&mut self, number: u64) {
        self.simple(Opcode::Mark, number, 0);
    }

    /// EBX:EAX; [`super::log::Log::cycles`] has EDX:ECX.
    pub fn cpuid(&mut self, leaf: u32) -> Handle {
        self.simple(Opcode::Cpuid, leaf.into(), 0)
    }

    /// The number of times that this vCPU has taken the vector.
    pub fn count(&mut self, vector: u8) -> Handle {
        self.simple(Opcode::Count, vector.into(), 0)
    }

    fn host(&mut self, call: HostCall) -> Handle {
        let (a, b) = call.encode();
        self.simple(Opcode::Host, a, b)
    }

    /// A device raises its line, or lowers it.
    pub fn line(&mut self, gsi: u32, level: bool) {
        self.host(HostCall::Line { gsi, level });
    }

    /// A rise. The line stays up until the next one, as a device's does until it is served: one that
    /// fell before the acknowledge would be a glitch to an 8259A.
    pub fn pulse(&mut self, gsi: u32) {
        self.line(gsi, false);
        self.line(gsi, true);
    }

    /// A device sends a message. Returns 1 if a local APIC took it, 0 if none did, and
    /// [`super::host::REFUSED`] for an error.
    pub fn msi(&mut self, address: u64, data: u32) -> Handle {
        self.host(HostCall::Msi { address, data })
    }
}

//! The simulated machine with a notion of which bytes of memory are the debugger's.

use std::cell::RefCell;

use debug_stub::x86_64::simulated::{self, Habits, Ram, SimulatedMachine, code};
use debug_stub::x86_64::{RegisterFile, RegisterGroups, X86_64, translate};
use debug_stub::{
    GuestMemory, GuestPhysAddr, GuestVirtAddr, Host, Interrupts, ResetError, ResumePlan, Stop,
    VcpuId,
};
use vcpu_caps::{GuestDebug, Plan};

pub const INT3: u8 = 0xcc;
/// Enough for everything that the machine keeps in memory, and a page of code and data.
const RAM: usize = 40 << 10;
/// Where every vCPU starts. Linear 2 MiB shows the same page, in 64-bit mode.
const ENTRY: u64 = simulated::ENTRY;

pub struct Machine {
    inner: SimulatedMachine,
    /// What is the guest's, or was written for good: memory without the session's INT3s.
    own: RefCell<Vec<u8>>,
    /// Some vCPU may run: only memory may be looked at.
    pub running: bool,
    /// The client may reset it.
    pub can_reset: bool,
}

impl Machine {
    /// `program` is one letter for each instruction; see [`assemble`].
    pub fn new(vcpus: usize, long: bool, plan: &Plan, program: &[u8]) -> Self {
        let memory = Ram::new(RAM);
        memory.put(ENTRY, &assemble(long, program));
        let inner = if long {
            let machine = SimulatedMachine::long_mode(Habits::AMD, plan, vcpus, memory);
            machine.memory().map_alias(simulated::TABLES, ENTRY);
            machine.with_registers(|file| file.core.rdi = ENTRY + 1)
        } else {
            let machine = SimulatedMachine::real_mode(Habits::AMD, plan, vcpus, memory);
            machine.with_registers(|file| file.core.rbx = ENTRY + 1)
        };
        Self {
            own: RefCell::new(inner.memory().snapshot()),
            inner: inner.hlt_exits_with(3),
            running: false,
            can_reset: false,
        }
    }

    /// Adds vCPUs, or removes the last ones.
    pub fn set_vcpus(&mut self, count: usize) {
        self.inner.set_vcpus(count);
    }

    /// The machine starts again; memory stays.
    pub fn reset(&mut self) {
        self.inner.reset();
    }

    /// The debugger has gone: it leaves nothing armed and nothing masked.
    pub fn release(&mut self) {
        self.inner.release().expect("no call is made to fail");
        for index in 0..usize::from(self.inner.vcpu_count()) {
            let (stepper, vcpu) = self.inner.vcpu(index).expect("it is there");
            assert_eq!(*vcpu.debug(), GuestDebug::OFF, "vcpu{index} is armed");
            assert!(!stepper.is_masked(), "vcpu{index} is masked");
        }
    }

    /// Where memory differs from what the guest would find without a debugger.
    pub fn foreign_bytes(&self) -> Vec<GuestPhysAddr> {
        fuzz::differences(&self.inner.memory().snapshot(), &self.own.borrow())
            .into_iter()
            .map(|at| GuestPhysAddr(at as u64))
            .collect()
    }

    /// The physical address of a vCPU's next instruction.
    pub fn physical_pc(&self, vcpu: usize) -> Option<GuestPhysAddr> {
        let (_, vcpu) = self.inner.vcpu(vcpu)?;
        let registers = vcpu.registers();
        let pc = GuestVirtAddr(registers.linear_pc());
        translate(&registers.special, &self.inner, pc)
            .ok()
            .map(|found| found.gpa)
    }

    /// Carries out a plan for some instructions of each vCPU; empty if nothing has stopped it.
    pub fn run(&mut self, plan: &ResumePlan, instructions: usize) -> Vec<Stop> {
        let stops = self.inner.run(plan, instructions).unwrap_or_default();
        // What the guest has written is its own, but for an INT3 that is still where the session has
        // put it.
        let memory = self.inner.memory().snapshot();
        let mut own = self.own.borrow_mut();
        for at in fuzz::differences(&memory, &own) {
            let armed = plan.armed.software.contains(&GuestPhysAddr(at as u64));
            if !(armed && memory[at] == INT3) {
                own[at] = memory[at];
            }
        }
        stops
    }
}

/// n: NOP, s: JMP to itself, i: INC RAX or AX, w: a store of AL behind the first instruction, h: HLT
/// (exits), l: JMP to the start; others are no instruction.
fn assemble(long: bool, program: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for letter in program.iter().take(40) {
        match letter {
            b'n' => bytes.extend(code::NOP),
            b's' => bytes.extend(code::SPIN),
            b'i' if long => bytes.extend(code::INC_RAX),
            b'i' => bytes.push(0x40),
            // MOV [BX],AL in 16-bit code.
            b'w' => bytes.extend(code::STORE),
            b'h' => bytes.extend(code::HLT),
            b'l' => {
                let back = u8::try_from(bytes.len() + 2).expect("at most 122");
                bytes.extend([0xeb, back.wrapping_neg()]);
            }
            _ => bytes.extend(code::UD2),
        }
    }
    bytes
}

impl GuestMemory for Machine {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        self.inner.read_memory(address, data)
    }

    /// Of the session: the guest's own go to the machine.
    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        let written = self.inner.write_memory(address, data);
        if data != [INT3] {
            let start = usize::try_from(address.0).unwrap_or(RAM).min(RAM);
            self.own.borrow_mut()[start..start + written].copy_from_slice(&data[..written]);
        }
        written
    }
}

impl Host for Machine {
    type Arch = X86_64;
    type Error = <SimulatedMachine as Host>::Error;

    fn vcpu_count(&self) -> u16 {
        self.inner.vcpu_count()
    }

    fn vcpu_name(&self, vcpu: VcpuId) -> String {
        assert!(!self.running, "a name while vCPUs run");
        // To be escaped in a packet and in XML.
        format!("<CPU#{}>}}$*", vcpu.0)
    }

    fn read_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &mut RegisterFile,
    ) -> Result<(), Self::Error> {
        assert!(!self.running, "registers while vCPUs run");
        self.inner.read_registers(vcpu, groups, registers)
    }

    fn write_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), Self::Error> {
        assert!(!self.running, "registers while vCPUs run");
        self.inner.write_registers(vcpu, groups, registers)
    }

    fn disarm(&mut self, vcpu: VcpuId) -> Result<(), Self::Error> {
        self.inner.disarm(vcpu)
    }

    fn reset(&mut self) -> Result<(), ResetError> {
        assert!(!self.running, "reset while vCPUs run");
        assert_eq!(self.foreign_bytes(), [], "reset with an INT3 in memory");
        if !self.can_reset {
            return Err(ResetError::NotSupported);
        }
        Self::reset(self);
        Ok(())
    }

    fn interrupts(&mut self, vcpu: VcpuId) -> Interrupts {
        self.inner.interrupts(vcpu)
    }
}

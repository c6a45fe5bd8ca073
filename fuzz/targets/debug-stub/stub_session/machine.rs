//! A small machine that knows which bytes of memory are the debugger's.
//!
//! 32 KiB of RAM, in 64-bit mode with page tables or in flat 32-bit mode. It knows six
//! instructions, and its guest never stores 0xcc: a byte that has become 0xcc since the machine
//! was created was written by the session or the client.

use std::cell::RefCell;
use std::convert::Infallible;

use debug_stub::x86_64::{RegisterFile, RegisterGroups, Segment, X86_64, translate};
use debug_stub::{
    Armed, GuestMemory, GuestPhysAddr, GuestVirtAddr, Host, Interrupts, ResumePlan, Stop,
    StopReason, VcpuId, VcpuOrder, WatchAccess,
};
use vcpu_caps::HwBreakpointKind;

pub const INT3: u8 = 0xcc;
const RAM: usize = 32 << 10;
/// Where every vCPU starts. Linear 2 MiB shows the same page, in 64-bit mode.
const ENTRY: u64 = 0x4000;

pub struct Machine {
    ram: RefCell<Vec<u8>>,
    /// `ram` without the session's INT3s: written by the guest or by the client.
    own: RefCell<Vec<u8>>,
    vcpus: Vec<RegisterFile>,
    /// vCPUs start in 64-bit mode.
    long: bool,
    /// Some vCPU may run: only memory may be looked at.
    pub running: bool,
}

impl Machine {
    /// `program` is one letter for each instruction; see [`assemble`].
    pub fn new(vcpus: usize, long: bool, program: &[u8]) -> Self {
        let mut ram = vec![0; RAM];
        for (at, entry) in [
            (0x1000, 0x2003u64),
            (0x2000, 0x3003),
            (0x3000, 0x83),
            (0x3008, 0x5003),
            (0x5000, ENTRY | 3),
        ] {
            ram[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }
        let code = assemble(program);
        let at = usize::try_from(ENTRY).expect("it is small");
        ram[at..at + code.len()].copy_from_slice(&code);
        Self {
            own: RefCell::new(ram.clone()),
            ram: RefCell::new(ram),
            vcpus: vec![registers(long); vcpus],
            long,
            running: false,
        }
    }

    /// Adds vCPUs, or removes the last ones.
    pub fn set_vcpus(&mut self, count: usize) {
        self.vcpus.resize(count, registers(self.long));
    }

    /// The machine starts again; memory stays.
    pub fn reset(&mut self) {
        let count = self.vcpus.len();
        self.vcpus = vec![registers(self.long); count];
    }

    /// Where memory differs from what the guest would find without a debugger.
    pub fn foreign_bytes(&self) -> Vec<GuestPhysAddr> {
        fuzz::differences(&self.ram.borrow(), &self.own.borrow())
            .into_iter()
            .map(|at| GuestPhysAddr(at as u64))
            .collect()
    }

    /// The physical address of a vCPU's next instruction.
    pub fn physical_pc(&self, vcpu: usize) -> Option<GuestPhysAddr> {
        let registers = &self.vcpus[vcpu];
        let pc = GuestVirtAddr(registers.linear_pc());
        translate(&registers.special, self, pc)
            .ok()
            .map(|found| found.gpa)
    }

    pub fn stop(&self, vcpu: u16, reason: StopReason) -> Stop {
        Stop {
            vcpu: VcpuId(vcpu),
            reason,
        }
    }

    /// Carries out a plan for some instructions of each vCPU; empty if nothing has stopped it.
    pub fn run(&mut self, plan: &ResumePlan, instructions: usize) -> Vec<Stop> {
        let mut stops = Vec::new();
        for round in 0..instructions {
            for index in 0..self.vcpus.len() {
                let vcpu = u16::try_from(index).expect("few vCPUs");
                let reason = match plan.order(VcpuId(vcpu)) {
                    VcpuOrder::Stay => None,
                    VcpuOrder::Continue => self.execute(index, &plan.armed, false),
                    VcpuOrder::Step(step) => {
                        self.execute(index, &plan.armed, round == 0).or_else(|| {
                            let pc = self.vcpus[index].linear_pc();
                            let on = step.range.as_ref().is_some_and(|r| r.contains(&pc));
                            (!on).then_some(StopReason::Step)
                        })
                    }
                };
                stops.extend(reason.map(|reason| self.stop(vcpu, reason)));
            }
            if !stops.is_empty() {
                break;
            }
        }
        stops
    }

    fn execute(&mut self, index: usize, armed: &Armed, disarmed: bool) -> Option<StopReason> {
        let pc = self.vcpus[index].linear_pc();
        let mut slots = armed.hardware.iter();
        let at_pc = slots.any(|b| b.kind() == HwBreakpointKind::Execute && b.address() == pc);
        if at_pc && !disarmed {
            return Some(StopReason::HardwareBreakpoint);
        }
        let Some(gpa) = self.physical_pc(index) else {
            return Some(StopReason::TripleFault(format!("nothing at {pc:#x}")));
        };
        let mut bytes = [0; 2];
        self.read_memory(gpa, &mut bytes);
        let core = &mut self.vcpus[index].core;
        match bytes {
            [0x90, _] => core.rip = core.rip.wrapping_add(1),
            [0xeb, distance] => {
                let distance = i64::from(i8::from_ne_bytes([distance]));
                core.rip = core.rip.wrapping_add(2).wrapping_add_signed(distance);
            }
            // INC AL
            [0xfe, 0xc0] => {
                core.rax =
                    (core.rax & !0xff) | u64::from(core.rax.to_le_bytes()[0].wrapping_add(1));
                core.rip = core.rip.wrapping_add(2);
            }
            // MOV [RDI],AL, which sets bit 0 here.
            [0x88, 0x07] => return self.store(index, armed),
            [INT3, _] if armed.software.contains(&gpa) => {
                return Some(StopReason::SoftwareBreakpoint);
            }
            [INT3, _] => core.rip = core.rip.wrapping_add(1),
            [0xf4, _] => return Some(StopReason::Exited(3)),
            _ => {
                return Some(StopReason::TripleFault(format!(
                    "bytes {bytes:02x?} at {pc:#x}"
                )));
            }
        }
        None
    }

    fn store(&mut self, index: usize, armed: &Armed) -> Option<StopReason> {
        let registers = &mut self.vcpus[index];
        let (at, value) = (registers.core.rdi, registers.core.rax.to_le_bytes()[0] | 1);
        registers.core.rip = registers.core.rip.wrapping_add(2);
        let special = registers.special;
        let Ok(to) = translate(&special, self, GuestVirtAddr(at)) else {
            return Some(StopReason::TripleFault(format!("store to {at:#x}")));
        };
        self.write_memory(to.gpa, &[value]);
        let watched = armed.hardware.iter().find(|b| {
            b.kind() != HwBreakpointKind::Execute && at.wrapping_sub(b.address()) < b.length()
        })?;
        Some(StopReason::Watchpoint {
            address: watched.address(),
            access: match watched.kind() {
                HwBreakpointKind::Write => WatchAccess::Write,
                _ => WatchAccess::ReadWrite,
            },
        })
    }
}

/// n: NOP, s: JMP to itself, i: INC AL, w: MOV \[RDI\],AL, h: HLT (exits), l: JMP to the start;
/// others are no instruction.
fn assemble(program: &[u8]) -> Vec<u8> {
    let mut code: Vec<u8> = Vec::new();
    for letter in program.iter().take(60) {
        match letter {
            b'n' => code.push(0x90),
            b's' => code.extend([0xeb, 0xfe]),
            b'i' => code.extend([0xfe, 0xc0]),
            b'w' => code.extend([0x88, 0x07]),
            b'h' => code.push(0xf4),
            b'l' => {
                let back = u8::try_from(code.len() + 2).expect("at most 122");
                code.extend([0xeb, back.wrapping_neg()]);
            }
            _ => code.extend([0x0f, 0x0b]),
        }
    }
    code
}

fn registers(long: bool) -> RegisterFile {
    let mut registers = RegisterFile::default();
    registers.core.rip = ENTRY;
    registers.core.rsp = 0x4000;
    registers.core.rdi = ENTRY + 1;
    registers.core.rflags = 2;
    let flat = Segment {
        selector: 0x10,
        limit: u32::MAX,
        kind: 3,
        present: true,
        code_or_data: true,
        granularity: true,
        default_big: true,
        ..Segment::default()
    };
    let special = &mut registers.special;
    (special.ds, special.es, special.ss) = (flat, flat, flat);
    special.cs = Segment {
        selector: 8,
        kind: 11,
        long,
        default_big: !long,
        ..flat
    };
    special.cr0 = 0x11;
    if long {
        special.cr0 |= 1 << 31;
        special.cr3 = 0x1000;
        special.cr4 = 0x20;
        special.efer = 0x500;
    }
    registers
}

fn range(address: GuestPhysAddr, length: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(address.0).map_or(RAM, |at| at.min(RAM));
    start..start.saturating_add(length).min(RAM)
}

impl GuestMemory for Machine {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        let range = range(address, data.len());
        let length = range.len();
        data[..length].copy_from_slice(&self.ram.borrow()[range]);
        length
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        let range = range(address, data.len());
        let data = &data[..range.len()];
        self.ram.borrow_mut()[range.clone()].copy_from_slice(data);
        if data != [INT3] {
            self.own.borrow_mut()[range].copy_from_slice(data);
        }
        data.len()
    }
}

impl Host for Machine {
    type Arch = X86_64;
    type Error = Infallible;

    fn vcpu_count(&self) -> u16 {
        u16::try_from(self.vcpus.len()).expect("few vCPUs")
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
    ) -> Result<(), Infallible> {
        assert!(!self.running, "registers while vCPUs run");
        copy(groups, &self.vcpus[vcpu.index()], registers);
        Ok(())
    }

    fn write_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), Infallible> {
        assert!(!self.running, "registers while vCPUs run");
        copy(groups, registers, &mut self.vcpus[vcpu.index()]);
        Ok(())
    }

    fn interrupts(&mut self, _: VcpuId) -> Interrupts {
        Interrupts::default()
    }
}

fn copy(groups: RegisterGroups, from: &RegisterFile, to: &mut RegisterFile) {
    if groups.contains(RegisterGroups::CORE) {
        to.core = from.core;
    }
    if groups.contains(RegisterGroups::SPECIAL) {
        to.special = from.special;
    }
    if groups.contains(RegisterGroups::FPU) {
        to.fpu = from.fpu.clone();
    }
    if groups.contains(RegisterGroups::MSRS) {
        to.kernel_gs_base = from.kernel_gs_base;
    }
}

//! A simulated machine: enough of an x86 to be debugged. Shared by the tests, the example and
//! the bench.
//!
//! 512 KiB of RAM in long mode, mapped one to one; from linear 2 MiB on, one 4 KiB page that is
//! physical 0x10000 once more, and then nothing. It knows NOP, JMP rel8, INC RAX,
//! MOV \[RDI\],AL, INT3, HLT (powers off) and UD2 (triple fault).

use std::convert::Infallible;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Run;
use debug_stub::x86_64::{RegisterFile, RegisterGroups, Segment, X86_64, translate};
use debug_stub::{
    Armed, GuestMemory, GuestPhysAddr, GuestVirtAddr, Host, Interrupts, ResumePlan, Stop,
    StopReason, VcpuId, VcpuOrder, WatchAccess,
};
use vcpu_caps::{Capability, Finding, HostFacts, HostReport, HwBreakpointKind, Plan, Profile};

/// Bytes of RAM.
pub const RAM: usize = 512 << 10;
/// Where vCPUs start.
pub const ENTRY: u64 = 0x8000;
/// A linear address that is `ALIASED` physically.
pub const ALIAS: u64 = 0x20_0000;
/// What `ALIAS` shows.
pub const ALIASED: u64 = 0x1_0000;

/// Instructions.
pub mod code {
    pub const NOP: &[u8] = &[0x90];
    /// `jmp .`
    pub const SPIN: &[u8] = &[0xeb, 0xfe];
    pub const INC_RAX: &[u8] = &[0x48, 0xff, 0xc0];
    /// `mov %al,(%rdi)`
    pub const STORE: &[u8] = &[0x88, 0x07];
    pub const INT3: &[u8] = &[0xcc];
    pub const HLT: &[u8] = &[0xf4];
    pub const UD2: &[u8] = &[0x0f, 0x0b];
}

pub struct Machine {
    memory: Mutex<Vec<u8>>,
    /// Pages that take no writes.
    pub read_only: Vec<std::ops::Range<u64>>,
    pub vcpus: Vec<RegisterFile>,
    /// How often registers were read.
    pub register_reads: usize,
    /// How often the guest took a breakpoint instruction of its own.
    pub own_breakpoints: usize,
    pub interrupts: Interrupts,
    /// What the VMM's own `monitor` commands were.
    pub commands: Vec<String>,
}

impl Machine {
    /// `vcpus` of them, all about to execute `program` at `ENTRY`.
    pub fn new(vcpus: usize, program: &[&[u8]]) -> Self {
        let mut registers = RegisterFile::default();
        registers.core.rip = ENTRY;
        registers.core.rsp = 0x7000;
        registers.core.rflags = 2;
        let special = &mut registers.special;
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
        (special.ds, special.es, special.ss) = (flat, flat, flat);
        (special.fs, special.gs) = (flat, flat);
        special.cs = Segment {
            selector: 8,
            kind: 11,
            long: true,
            default_big: false,
            ..flat
        };
        special.cr0 = 0x8000_0011;
        special.cr3 = 0x1000;
        special.cr4 = 0x20;
        special.efer = 0x500;
        let machine = Self {
            memory: Mutex::new(vec![0; RAM]),
            read_only: Vec::new(),
            vcpus: vec![registers; vcpus],
            register_reads: 0,
            own_breakpoints: 0,
            interrupts: Interrupts::default(),
            commands: Vec::new(),
        };
        for (at, entry) in [
            (0x1000, 0x2003),
            (0x2000, 0x3003),
            // 2 MiB, mapped one to one; then a table of 4 KiB pages.
            (0x3000, 0x83),
            (0x3008, 0x4003),
            (0x4000, ALIASED | 3),
        ] {
            machine.poke(at, &u64::to_le_bytes(entry));
        }
        machine.poke(ENTRY, &program.concat());
        machine
    }

    fn ram(&self) -> MutexGuard<'_, Vec<u8>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Physical memory, whatever the guest may do there.
    pub fn peek(&self, at: u64, length: usize) -> Vec<u8> {
        let at = usize::try_from(at).unwrap();
        self.ram()[at..at + length].to_vec()
    }

    pub fn poke(&self, at: u64, data: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.ram()[at..at + data.len()].copy_from_slice(data);
    }

    pub fn stop(&self, index: usize, reason: StopReason) -> Stop {
        Stop {
            vcpu: VcpuId(u16::try_from(index).unwrap()),
            reason,
        }
    }

    fn execute(&mut self, index: usize, armed: &Armed, disarmed: bool) -> Option<StopReason> {
        let pc = self.vcpus[index].linear_pc();
        let slots = || armed.hardware.iter();
        let hit = slots().any(|b| b.kind() == HwBreakpointKind::Execute && b.address() == pc);
        if hit && !disarmed {
            return Some(StopReason::HardwareBreakpoint);
        }
        let special = self.vcpus[index].special;
        let Ok(found) = translate(&special, self, GuestVirtAddr(pc)) else {
            return Some(StopReason::TripleFault(format!("nothing at {pc:#x}")));
        };
        let mut bytes = [0; 4];
        self.read_memory(found.gpa, &mut bytes);
        let core = &mut self.vcpus[index].core;
        match bytes {
            [0x90, ..] => core.rip += 1,
            [0xeb, distance, ..] => {
                let distance = i64::from(i8::from_ne_bytes([distance]));
                core.rip = core.rip.wrapping_add(2).wrapping_add_signed(distance);
            }
            [0x48, 0xff, 0xc0, _] => {
                core.rax = core.rax.wrapping_add(1);
                core.rip += 3;
            }
            [0x88, 0x07, ..] => {
                let (at, [value, ..]) = (core.rdi, core.rax.to_le_bytes());
                core.rip += 2;
                let Ok(to) = translate(&special, self, GuestVirtAddr(at)) else {
                    return Some(StopReason::TripleFault(format!("store to {at:#x}")));
                };
                self.write_memory(to.gpa, &[value]);
                let watch = slots().find(|b| {
                    b.kind() != HwBreakpointKind::Execute
                        && at.wrapping_sub(b.address()) < b.length()
                });
                return watch.map(|b| StopReason::Watchpoint {
                    address: b.address(),
                    access: match b.kind() {
                        HwBreakpointKind::Write => WatchAccess::Write,
                        _ => WatchAccess::ReadWrite,
                    },
                });
            }
            [0xcc, ..] if armed.software.contains(&found.gpa) => {
                return Some(StopReason::SoftwareBreakpoint);
            }
            [0xcc, ..] => {
                self.own_breakpoints += 1;
                core.rip += 1;
            }
            [0xf4, ..] => return Some(StopReason::Exited(0)),
            _ => {
                return Some(StopReason::TripleFault(format!(
                    "bytes {bytes:02x?} at {pc:#x}"
                )));
            }
        }
        None
    }
}

impl Run for Machine {
    fn run(&mut self, plan: &ResumePlan, budget: usize) -> Option<Vec<Stop>> {
        for round in 0..budget {
            let mut stops = Vec::new();
            for index in 0..self.vcpus.len() {
                let order = plan.order(VcpuId(u16::try_from(index).unwrap()));
                let reason = match order {
                    VcpuOrder::Stay => continue,
                    VcpuOrder::Continue => self.execute(index, &plan.armed, false),
                    VcpuOrder::Step(step) => {
                        self.execute(index, &plan.armed, round == 0).or_else(|| {
                            let pc = self.vcpus[index].linear_pc();
                            let goes_on = step.range.as_ref().is_some_and(|r| r.contains(&pc));
                            (!goes_on).then_some(StopReason::Step)
                        })
                    }
                };
                if let Some(reason) = reason {
                    stops.push(self.stop(index, reason));
                }
            }
            if !stops.is_empty() {
                return Some(stops);
            }
        }
        None
    }
}

impl GuestMemory for Machine {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        let ram = self.ram();
        let from = usize::try_from(address.0)
            .ok()
            .and_then(|at| ram.get(at..))
            .unwrap_or_default();
        let length = from.len().min(data.len());
        data[..length].copy_from_slice(&from[..length]);
        length
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        if self
            .read_only
            .iter()
            .any(|range| range.contains(&address.0))
        {
            return 0;
        }
        let mut ram = self.ram();
        let to = usize::try_from(address.0)
            .ok()
            .and_then(|at| ram.get_mut(at..))
            .unwrap_or_default();
        let length = to.len().min(data.len());
        to[..length].copy_from_slice(&data[..length]);
        length
    }
}

impl Host for Machine {
    type Arch = X86_64;
    type Error = Infallible;

    fn vcpu_count(&self) -> u16 {
        u16::try_from(self.vcpus.len()).unwrap()
    }

    fn vcpu_name(&self, vcpu: VcpuId) -> String {
        format!("CPU#{}", vcpu.0)
    }

    fn read_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &mut RegisterFile,
    ) -> Result<(), Infallible> {
        self.register_reads += 1;
        copy(groups, &self.vcpus[vcpu.index()], registers);
        Ok(())
    }

    fn write_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), Infallible> {
        copy(groups, registers, &mut self.vcpus[vcpu.index()]);
        Ok(())
    }

    fn interrupts(&mut self, _: VcpuId) -> Interrupts {
        self.interrupts.clone()
    }

    fn monitor(&mut self, command: &str, out: &mut dyn fmt::Write) -> bool {
        self.commands.push(command.into());
        match command.split_once(' ') {
            Some(("say", text)) => write!(out, "the machine says {text}").is_ok(),
            _ if command == "flood" => {
                while out.write_str("0123456789abcde\n").is_ok() {}
                true
            }
            _ => false,
        }
    }

    fn monitor_help(&self) -> &str {
        "monitor say TEXT     the machine says it\n"
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

/// What the simulated host is able to do; `absent` are the abilities that it lacks.
pub fn plan(absent: &[Capability]) -> Plan {
    let facts = HostFacts {
        kernel: "simulated".into(),
        api_version: 12,
        guest_debug_mask: 0,
        sync_regs_mask: 0,
        max_vcpus: 16,
        recommended_vcpus: 16,
        memory_slots: 8,
    };
    let mut report = HostReport::new("simulated", facts);
    for &capability in Capability::ALL {
        report.record(
            capability,
            if absent.contains(&capability) {
                Finding::refuted("left out by the test")
            } else {
                Finding::verified("simulated")
            },
        );
    }
    vcpu_caps::negotiate(&report, &Profile::debugger()).unwrap()
}

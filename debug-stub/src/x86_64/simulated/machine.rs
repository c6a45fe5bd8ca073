//! A machine of simulated vCPUs, each under a stepper, which run in turn in one thread.

use std::fmt;

use vcpu_caps::{Plan, VcpuId};

use super::{Habits, Ram, Refused, SimulatedVcpu};
use crate::address::GuestPhysAddr;
use crate::host::{GuestMemory, Host, Interrupts, ResetError};
use crate::order::{ResumePlan, Stop, StopReason, VcpuOrder};
use crate::x86_64::bits::RFLAGS_IF;
use crate::x86_64::stepper::{Next, Outcome, Stepper, StepperError};
use crate::x86_64::{RegisterFile, RegisterGroups, X86_64};

/// Bytes of RAM of [`SimulatedMachine::new`].
pub const RAM: usize = 512 << 10;
/// Where vCPUs start.
pub const ENTRY: u64 = 0x8000;
/// A linear address that is [`ALIASED`] physically, in 64-bit mode.
pub const ALIAS: u64 = 0x20_0000;
/// The page that [`ALIAS`] shows.
pub const ALIASED: u64 = 0x1_0000;
/// The page tables of 64-bit mode: four pages. The last maps what is at [`ALIAS`].
pub const TABLES: u64 = 0x1000;

const IDT: u64 = 0x5000;
/// Where the guest's handler of #BP is, an IRET. There is no other handler: any other exception is
/// a triple fault.
const HANDLER: u16 = 0x6000;
const STACK: u16 = 0x7000;
const BREAKPOINT_VECTOR: u64 = 3;

/// Instructions of 64-bit mode.
pub mod code {
    /// `nop`
    pub const NOP: &[u8] = &[0x90];
    /// `jmp .`
    pub const SPIN: &[u8] = &[0xeb, 0xfe];
    /// `inc %rax`
    pub const INC_RAX: &[u8] = &[0x48, 0xff, 0xc0];
    /// `mov %al,(%rdi)`
    pub const STORE: &[u8] = &[0x88, 0x07];
    /// `int3`
    pub const INT3: &[u8] = &[0xcc];
    /// `hlt`: see [`SimulatedMachine::hlt_exits_with`](super::SimulatedMachine::hlt_exits_with).
    pub const HLT: &[u8] = &[0xf4];
    /// `ud2`
    pub const UD2: &[u8] = &[0x0f, 0x0b];
}

/// The VMM's own `monitor` commands: see [`Host::monitor`] and [`Host::monitor_help`].
#[derive(Clone, Copy, Debug)]
pub struct MonitorHook {
    /// Runs a command. It may change the machine.
    pub run: fn(&mut SimulatedMachine, &str, &mut dyn fmt::Write) -> bool,
    /// What `monitor help` prints.
    pub help: &'static str,
}

/// A machine of some vCPUs and RAM, without devices.
#[derive(Debug)]
pub struct SimulatedMachine {
    memory: Ram,
    vcpus: Vec<(Stepper, SimulatedVcpu)>,
    /// Of a vCPU that is plugged in.
    plan: Plan,
    fresh: SimulatedVcpu,
    hlt_exit: Option<u8>,
    monitor: Option<MonitorHook>,
    resets: Option<usize>,
    register_reads: usize,
}

impl SimulatedMachine {
    /// `vcpus` of them in 64-bit mode, on kvm_amd, about to execute `program` at [`ENTRY`]. 2 MiB are
    /// mapped one to one, and one page more at [`ALIAS`].
    #[must_use]
    pub fn new(plan: &Plan, vcpus: usize, program: &[&[u8]]) -> Self {
        let memory = Ram::new(RAM);
        memory.put(ENTRY, &program.concat());
        Self::long_mode(Habits::AMD, plan, vcpus, memory)
    }

    /// As [`new`](Self::new), with the program in `memory` already.
    #[must_use]
    pub fn long_mode(habits: Habits, plan: &Plan, vcpus: usize, memory: Ram) -> Self {
        let cr3 = memory.map_one_to_one(TABLES);
        memory.map_alias(TABLES, ALIASED);
        // An interrupt gate (SDM 3A figure 7-8).
        let gate = u64::from(HANDLER) | 0x10 << 16 | 0x8e00 << 32;
        memory.put_u64(IDT + 16 * BREAKPOINT_VECTOR, gate);
        memory.put(HANDLER.into(), &[0x48, 0xcf]);
        let mut fresh = SimulatedVcpu::long_mode(habits, cr3, IDT, ENTRY, STACK.into());
        fresh.registers_mut().special.idtr.limit = 0x3f;
        Self::of(plan, vcpus, memory, fresh)
    }

    /// vCPUs in real-address mode, about to execute at [`ENTRY`] in `memory`.
    #[must_use]
    pub fn real_mode(habits: Habits, plan: &Plan, vcpus: usize, memory: Ram) -> Self {
        memory.put(4 * BREAKPOINT_VECTOR, &u32::from(HANDLER).to_le_bytes());
        memory.put(HANDLER.into(), &[0xcf]);
        let mut fresh = SimulatedVcpu::real_mode(habits, 0, STACK);
        let file = fresh.registers_mut();
        (file.core.rip, file.special.idtr.limit) = (ENTRY, 0xf);
        Self::of(plan, vcpus, memory, fresh)
    }

    fn of(plan: &Plan, vcpus: usize, memory: Ram, fresh: SimulatedVcpu) -> Self {
        let mut machine = Self {
            memory,
            vcpus: Vec::new(),
            plan: plan.clone(),
            fresh,
            hlt_exit: None,
            monitor: None,
            resets: None,
            register_reads: 0,
        };
        machine.set_vcpus(vcpus);
        machine
    }

    /// HLT ends the guest with this status. Otherwise the vCPU sleeps.
    #[must_use]
    pub fn hlt_exits_with(mut self, status: u8) -> Self {
        self.hlt_exit = Some(status);
        self
    }

    /// The registers that each vCPU has at its start: those that are there now, and those to come.
    #[must_use]
    pub fn with_registers(mut self, change: impl FnOnce(&mut RegisterFile)) -> Self {
        change(self.fresh.registers_mut());
        let vcpus = self.vcpus.len();
        self.set_vcpus(0);
        self.set_vcpus(vcpus);
        self
    }

    /// With `monitor` commands of the VMM.
    #[must_use]
    pub fn with_monitor(mut self, hook: MonitorHook) -> Self {
        self.monitor = Some(hook);
        self
    }

    /// The client may reset it ([`Host::reset`]); memory stays.
    #[must_use]
    pub fn with_reset(mut self) -> Self {
        self.resets = Some(0);
        self
    }

    /// Returns how often a session has reset it.
    #[must_use]
    pub fn resets(&self) -> usize {
        self.resets.unwrap_or_default()
    }

    /// Physical memory.
    #[must_use]
    pub fn memory(&self) -> &Ram {
        &self.memory
    }

    /// Physical memory, to protect pages.
    pub fn memory_mut(&mut self) -> &mut Ram {
        &mut self.memory
    }

    /// A vCPU and its stepper; `None` if there is no such vCPU.
    #[must_use]
    pub fn vcpu(&self, index: usize) -> Option<&(Stepper, SimulatedVcpu)> {
        self.vcpus.get(index)
    }

    /// As [`vcpu`](Self::vcpu), to change it as the VMM may while it is stopped. What the stepper
    /// knows of its registers is dropped.
    pub fn vcpu_mut(&mut self, index: usize) -> Option<&mut (Stepper, SimulatedVcpu)> {
        let pair = self.vcpus.get_mut(index)?;
        pair.0.forget_registers(&mut pair.1);
        Some(pair)
    }

    /// Returns how often [`Host::read_registers`] was called.
    #[must_use]
    pub fn register_reads(&self) -> usize {
        self.register_reads
    }

    /// Plugs vCPUs in, or takes the last ones away.
    pub fn set_vcpus(&mut self, count: usize) {
        self.vcpus.truncate(count);
        for index in self.vcpus.len()..count {
            let id = VcpuId(u16::try_from(index).unwrap_or(u16::MAX));
            let stepper = Stepper::new(id, &self.plan);
            self.vcpus.push((stepper, self.fresh.clone()));
        }
    }

    /// Starts the machine again; memory stays.
    pub fn reset(&mut self) {
        for (stepper, vcpu) in &mut self.vcpus {
            vcpu.reset(self.fresh.registers());
            stepper.reset();
        }
    }

    /// The debugger has gone: nothing stays armed or masked by it.
    ///
    /// # Errors
    /// If a vCPU refuses twice. The others are released.
    pub fn release(&mut self) -> Result<(), StepperError<Refused>> {
        let mut released = Ok(());
        for (stepper, vcpu) in &mut self.vcpus {
            released = released.and(stepper.release(vcpu, &self.memory));
        }
        released
    }

    /// Carries out a plan: each vCPU that is to run is entered `budget` times at most, for one
    /// instruction, in turn. The first stop ends the run for all. Returns `None` if nothing has
    /// stopped it by then; all vCPUs are stopped in any case, and the plan may be run again.
    pub fn run(&mut self, plan: &ResumePlan, budget: usize) -> Option<Vec<Stop>> {
        let memory = &self.memory;
        let hlt_exit = self.hlt_exit;
        let mut running = Vec::new();
        for (stepper, vcpu) in &mut self.vcpus {
            let order = plan.order(stepper.id());
            if budget > 0 && *order != VcpuOrder::Stay {
                let next = stepper.start(order, &plan.armed, vcpu, memory);
                running.push((stepper, vcpu, next));
            }
        }
        for _ in 0..budget {
            for (stepper, vcpu, next) in &mut running {
                enter(stepper, vcpu, next, memory, hlt_exit);
            }
            let mut stopped = running.iter();
            if stopped.any(|(_, _, next)| matches!(next, Next::Stopped(_))) {
                break;
            }
        }
        let stops: Vec<Stop> = running
            .into_iter()
            .filter_map(|(stepper, vcpu, mut next)| {
                loop {
                    match next {
                        // No reason of its own.
                        Next::Stopped(StopReason::Interrupted) => break None,
                        Next::Stopped(reason) => {
                            let vcpu = stepper.id();
                            break Some(Stop { vcpu, reason });
                        }
                        Next::Enter => next = stepper.interrupt(vcpu, memory),
                        Next::Complete => enter(stepper, vcpu, &mut next, memory, hlt_exit),
                    }
                }
            })
            .collect();
        (!stops.is_empty()).then_some(stops)
    }
}

/// Runs a vCPU for one instruction, or to complete an access.
fn enter(
    stepper: &mut Stepper,
    vcpu: &mut SimulatedVcpu,
    next: &mut Next,
    memory: &Ram,
    hlt_exit: Option<u8>,
) {
    let complete = match next {
        Next::Stopped(_) => return,
        Next::Enter => false,
        Next::Complete => true,
    };
    // There is no device: a read outside RAM gets ones.
    let exit = vcpu.run(memory, complete, 1);
    let outcome = match hlt_exit {
        Some(status) if vcpu.is_halted() => Outcome::Fatal(StopReason::Exited(status)),
        _ => SimulatedVcpu::outcome(&exit),
    };
    *next = stepper.ran(outcome, vcpu, memory);
}

impl GuestMemory for SimulatedMachine {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        self.memory.read_memory(address, data)
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        self.memory.write_memory(address, data)
    }
}

/// A vCPU that does not exist has neither registers nor interrupts.
impl Host for SimulatedMachine {
    type Arch = X86_64;
    type Error = StepperError<Refused>;

    fn vcpu_count(&self) -> u16 {
        u16::try_from(self.vcpus.len()).unwrap_or(u16::MAX)
    }

    fn vcpu_name(&self, vcpu: VcpuId) -> String {
        format!("CPU#{}", vcpu.0)
    }

    fn is_started(&self, vcpu: VcpuId) -> bool {
        self.vcpu(vcpu.index())
            .is_some_and(|(_, vcpu)| vcpu.is_started())
    }

    fn read_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &mut RegisterFile,
    ) -> Result<(), Self::Error> {
        self.register_reads += 1;
        match self.vcpus.get_mut(vcpu.index()) {
            Some((stepper, vcpu)) => stepper.read_registers(groups, registers, vcpu),
            None => Err(no_such_vcpu()),
        }
    }

    fn write_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), Self::Error> {
        match self.vcpus.get_mut(vcpu.index()) {
            Some((stepper, vcpu)) => stepper.write_registers(groups, registers, vcpu),
            None => Err(no_such_vcpu()),
        }
    }

    fn read_system_register(
        &mut self,
        vcpu: VcpuId,
        number: u32,
    ) -> Option<Result<u64, Self::Error>> {
        let (stepper, vcpu) = self.vcpus.get_mut(vcpu.index())?;
        Some(stepper.read_msr(number, vcpu))
    }

    fn write_system_register(
        &mut self,
        vcpu: VcpuId,
        number: u32,
        value: u64,
    ) -> Option<Result<(), Self::Error>> {
        let (stepper, vcpu) = self.vcpus.get_mut(vcpu.index())?;
        Some(stepper.write_msr(number, value, vcpu))
    }

    fn disarm(&mut self, vcpu: VcpuId) -> Result<(), Self::Error> {
        match self.vcpus.get_mut(vcpu.index()) {
            Some((stepper, vcpu)) => stepper.release(vcpu, &self.memory),
            None => Err(no_such_vcpu()),
        }
    }

    fn reset(&mut self) -> Result<(), ResetError> {
        let resets = self.resets.as_mut().ok_or(ResetError::NotSupported)?;
        *resets += 1;
        Self::reset(self);
        Ok(())
    }

    fn is_unguarded(&mut self, vcpu: VcpuId) -> bool {
        let vcpu = self.vcpu(vcpu.index());
        vcpu.is_some_and(|(stepper, _)| stepper.is_unguarded())
    }

    fn interrupts(&mut self, vcpu: VcpuId) -> Interrupts {
        let Some((stepper, vcpu)) = self.vcpus.get(vcpu.index()) else {
            return Interrupts::default();
        };
        let masked = stepper.is_masked();
        let open = vcpu.registers().core.rflags & RFLAGS_IF != 0;
        let why = [(masked, "masked"), (!open, "IF=0")];
        let why = why.iter().filter(|(holds, _)| *holds);
        Interrupts {
            masked,
            pending: vcpu.pending(),
            nmi_pending: vcpu.nmi_pending(),
            blocked: why.map(|(_, text)| *text).collect::<Vec<_>>().join(", "),
        }
    }

    fn monitor(&mut self, _: VcpuId, command: &str, out: &mut dyn fmt::Write) -> bool {
        self.monitor
            .is_some_and(|hook| (hook.run)(self, command, out))
    }

    fn monitor_help(&self) -> &str {
        self.monitor.map_or("", |hook| hook.help)
    }
}

fn no_such_vcpu() -> StepperError<Refused> {
    StepperError::Vcpu {
        call: "looking for the vCPU",
        source: Refused("a vCPU that does not exist"),
    }
}

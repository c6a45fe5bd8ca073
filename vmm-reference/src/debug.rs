//! The machine as a debugger's session sees it.

use std::fmt;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;

use debug_stub::kvm::{KvmError, VmMemory};
use debug_stub::server::GuestControl;
use debug_stub::x86_64::stepper::{RunState, StepperError};
use debug_stub::x86_64::{RegisterFile, RegisterGroups, X86_64};
use debug_stub::{
    GuestMemory, GuestPhysAddr, GuestState, Host, Interrupts, ResetError, ResumePlan, Stop,
    StopReason, VcpuId,
};
use thiserror::Error;
use vcpu_caps::Plan;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::devices::Devices;
use crate::error::with_causes;
use crate::exit::{ExitEvent, ExitReason, OnReset};
use crate::irqchip::Irqchip;
use crate::logging::Log;
use crate::machine::{Blueprint, Machine};
use crate::memory::GuestRam;
use crate::monitor;
use crate::vcpu::{GroupError, MachineExits, Vcpu, VcpuGroup};

/// The machine's vCPUs and memory, with or without a debugger's session.
#[derive(Debug)]
pub struct MachineHost {
    group: VcpuGroup,
    memory: VmMemory<GuestRam>,
    irqchip: Irqchip,
    /// `None` where only vCPUs were given.
    devices: Option<Arc<Devices>>,
    exit: ExitEvent,
    /// To build the machine again.
    origin: Option<(Blueprint, Plan)>,
    /// The last triple fault that led to a reset.
    last_fault: Option<String>,
    /// The debugger may have files of the host written.
    may_write_files: bool,
    /// Where the statistics go at each reset and at the end.
    stats_to: Option<Log>,
}

/// What of a machine its vCPUs' threads take.
type Parts = (Vec<Vcpu>, Irqchip, MachineExits, VmMemory<GuestRam>);

fn parts(machine: Machine, plan: &Plan) -> Parts {
    let Machine {
        irqchip,
        memory,
        devices,
        vcpus,
        exit,
        ..
    } = machine;
    let vcpus = (0..).map(VcpuId).zip(vcpus);
    let vcpus = vcpus.map(|(id, fd)| Vcpu::new(id, fd, plan, irqchip.clone()));
    let vcpus = vcpus.collect();
    let exits = MachineExits {
        devices,
        irqchip: irqchip.clone(),
        exit,
    };
    (vcpus, irqchip, exits, VmMemory(memory))
}

/// A vCPU could not be inspected.
#[derive(Debug, Error)]
pub enum HostError {
    /// The session named a vCPU that does not exist.
    #[error("there is no {0}")]
    NoVcpu(VcpuId),
    /// KVM refused.
    #[error(transparent)]
    Vcpu(#[from] StepperError<KvmError>),
}

impl MachineHost {
    /// Starts the threads of a machine; its vCPUs stay stopped. It can be reset in place.
    ///
    /// # Errors
    /// If the host lacks a descriptor, a signal or a thread.
    pub fn start(machine: Machine, plan: Plan) -> Result<Self, GroupError> {
        let (exit, blueprint) = (machine.exit.clone(), machine.blueprint.clone());
        let devices = Some(Arc::clone(&machine.devices));
        let (vcpus, irqchip, exits, memory) = parts(machine, &plan);
        let group = VcpuGroup::start(vcpus, irqchip.clone(), exits, memory.clone())?;
        Ok(Self {
            origin: Some((blueprint, plan)),
            devices,
            ..Self::new(group, memory.0, irqchip, exit)
        })
    }

    /// The group's vCPUs with the machine's memory and chips. `exit` is asked for the end when the
    /// guest ends and no session is attached. It cannot be reset in place.
    #[must_use]
    pub fn new(group: VcpuGroup, memory: GuestRam, irqchip: Irqchip, exit: ExitEvent) -> Self {
        Self {
            group,
            memory: VmMemory(memory),
            irqchip,
            devices: None,
            exit,
            origin: None,
            last_fault: None,
            may_write_files: false,
            stats_to: None,
        }
    }

    /// What a reset by the guest leads to.
    fn on_reset(&self) -> OnReset {
        let origin = self.origin.as_ref();
        origin.map_or(OnReset::Exit, |(blueprint, _)| blueprint.on_reset())
    }

    /// The guest has reset the machine, and no debugger is attached.
    fn reset_for_guest(&mut self) {
        match self.reset() {
            Err(error) => {
                let text = format!("the guest asked for a reset: {error}");
                self.exit.request(ExitReason::GuestFailed(text));
            }
            Ok(()) if self.on_reset() == OnReset::Stop => {
                tracing::warn!("the machine was reset, and waits for a debugger");
            }
            Ok(()) => self.group.resume_all(),
        }
    }

    /// The vCPUs.
    #[must_use]
    pub fn group(&self) -> &VcpuGroup {
        &self.group
    }

    /// The interrupt chips.
    pub(crate) fn irqchip(&self) -> &Irqchip {
        &self.irqchip
    }

    /// Sets whether `monitor dump` may write a file of the host: not where clients may have fewer rights than this
    /// process. By default it may not.
    pub fn allow_files(&mut self, allowed: bool) {
        self.may_write_files = allowed;
    }

    /// Returns `true` if `monitor dump` may write a file of the host.
    pub(crate) fn may_write_files(&self) -> bool {
        self.may_write_files
    }

    /// Has the statistics of the vCPUs written to the log at each reset and at the machine's end.
    pub fn log_stats(&mut self, log: Log) {
        self.stats_to = Some(log);
    }

    /// Ends the vCPUs' threads, and writes the statistics if `log_stats` was called.
    pub(crate) fn end(&mut self) {
        if let Some(log) = self.stats_to.take() {
            self.group.end();
            log.line(monitor::stats_text(self).trim_end());
        }
    }

    /// The guest-physical ranges that are memory.
    pub(crate) fn memory_ranges(&self) -> Vec<Range<u64>> {
        let regions = self.memory.0.iter();
        let range = |region: &GuestRegionMmap| {
            let start = region.start_addr().0;
            start..start + region.len()
        };
        regions.map(range).collect()
    }

    /// What a vCPU waits for, in a few words; `None` if it runs code.
    fn waiting(&self, vcpu: VcpuId) -> Option<&'static str> {
        match self.irqchip.chips().run_state(vcpu) {
            Some(state) => state.waits(),
            None => self.group.vcpu(vcpu).and_then(|mut vcpu| vcpu.waiting()),
        }
    }

    fn with_vcpu<T>(
        &self,
        id: VcpuId,
        act: impl FnOnce(&mut Vcpu) -> Result<T, StepperError<KvmError>>,
    ) -> Result<T, HostError> {
        let mut vcpu = self.group.vcpu(id).ok_or(HostError::NoVcpu(id))?;
        Ok(act(&mut vcpu)?)
    }
}

impl GuestMemory for MachineHost {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        self.memory.read_memory(address, data)
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        self.memory.write_memory(address, data)
    }
}

impl Host for MachineHost {
    type Arch = X86_64;
    type Error = HostError;

    fn vcpu_count(&self) -> u16 {
        u16::try_from(self.group.count()).unwrap_or(u16::MAX)
    }

    fn vcpu_name(&self, vcpu: VcpuId) -> String {
        match self.waiting(vcpu) {
            Some(waiting) => format!("CPU#{} [{waiting}]", vcpu.0),
            None => format!("CPU#{}", vcpu.0),
        }
    }

    fn is_started(&self, vcpu: VcpuId) -> bool {
        let waiting = self.waiting(vcpu);
        let not_started = [RunState::WaitForInit, RunState::WaitForSipi];
        waiting.is_none() || not_started.iter().all(|state| state.waits() != waiting)
    }

    fn is_unguarded(&mut self, vcpu: VcpuId) -> bool {
        let vcpu = self.group.vcpu(vcpu);
        vcpu.is_some_and(|vcpu| vcpu.is_unguarded())
    }

    fn read_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &mut RegisterFile,
    ) -> Result<(), HostError> {
        self.with_vcpu(vcpu, |vcpu| vcpu.read_registers(groups, registers))?;
        if groups.contains(RegisterGroups::SPECIAL) {
            if let Some(cr8) = self.irqchip.chips().cr8(vcpu) {
                registers.special.cr8 = cr8.into();
            }
        }
        Ok(())
    }

    fn write_registers(
        &mut self,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), HostError> {
        self.with_vcpu(vcpu, |vcpu| vcpu.write_registers(groups, registers))?;
        if groups.contains(RegisterGroups::SPECIAL) {
            self.irqchip.chips().set_cr8(vcpu, registers.special.cr8);
        }
        Ok(())
    }

    fn read_system_register(
        &mut self,
        vcpu: VcpuId,
        number: u32,
    ) -> Option<Result<u64, HostError>> {
        Some(self.with_vcpu(vcpu, |vcpu| vcpu.read_msr(number)))
    }

    fn write_system_register(
        &mut self,
        vcpu: VcpuId,
        number: u32,
        value: u64,
    ) -> Option<Result<(), HostError>> {
        Some(self.with_vcpu(vcpu, |vcpu| vcpu.write_msr(number, value)))
    }

    fn disarm(&mut self, vcpu: VcpuId) -> Result<(), HostError> {
        self.with_vcpu(vcpu, |vcpu| vcpu.release(&self.memory))
    }

    /// Builds the machine again: nothing of the old one is left but the descriptors of its serial port. The
    /// vCPUs are stopped, before and after.
    fn reset(&mut self) -> Result<(), ResetError> {
        if let Some(reason) = self.exit.reason() {
            return Err(ResetError::Failed(format!("it ends: {reason}")));
        }
        let (blueprint, plan) = self.origin.as_ref().ok_or(ResetError::NotSupported)?;
        let machine = blueprint.build();
        let machine = machine.map_err(|error| ResetError::Failed(with_causes(&error)))?;
        if let Some(log) = &self.stats_to {
            log.line(monitor::stats_text(self).trim_end());
        }
        let devices = Some(Arc::clone(&machine.devices));
        let (vcpus, irqchip, exits, memory) = parts(machine, plan);
        let replaced = (self.group).replace(vcpus, irqchip.clone(), exits, memory.clone());
        if let Err(error) = replaced {
            let text = with_causes(&error);
            if self.group.is_empty() {
                let text = format!("after a reset there are no vCPUs: {text}");
                self.exit.request(ExitReason::GuestFailed(text));
            }
            return Err(ResetError::Failed(text));
        }
        // The debugger's setting, as its breakpoints.
        let step_time = self.irqchip.clock().report().step_time;
        irqchip.clock().set_step_time(step_time);
        (self.irqchip, self.memory, self.devices) = (irqchip, memory, devices);
        tracing::info!("the machine was reset");
        Ok(())
    }

    /// The interrupt chips' registers, which reads do not change, come from their state in all modes of
    /// `--irqchip`. Other devices are read at the width that the client asks for.
    fn read_device(
        &mut self,
        vcpu: VcpuId,
        address: GuestPhysAddr,
        data: &mut [u8],
        side_effects: bool,
    ) -> usize {
        let read = monitor::read_chips(self, vcpu, address.0, data);
        match &self.devices {
            Some(devices) if read == 0 && side_effects => {
                if devices.read_device(address.0, data) {
                    data.len()
                } else {
                    0
                }
            }
            _ => read,
        }
    }

    fn interrupts(&mut self, id: VcpuId) -> Interrupts {
        let Some(mut vcpu) = self.group.vcpu(id) else {
            return Interrupts::default();
        };
        let masked = vcpu.is_masked();
        match self.irqchip.observe(id, vcpu.fd(), masked) {
            Ok(None) => Interrupts::default(),
            Ok(Some(seen)) => Interrupts {
                masked,
                pending: seen
                    .pending
                    .fixed()
                    .iter()
                    .map(|vector| vector.get())
                    .collect(),
                nmi_pending: seen.pending.nmis() != 0,
                blocked: seen
                    .decision
                    .blocked()
                    .map(|blocked| blocked.why().to_string())
                    .unwrap_or_default(),
            },
            Err(error) => {
                tracing::warn!(vcpu = %id, %error, "the pending interrupts cannot be read");
                Interrupts {
                    masked,
                    blocked: format!("unknown: {error}"),
                    ..Interrupts::default()
                }
            }
        }
    }

    fn monitor(&mut self, vcpu: VcpuId, command: &str, out: &mut dyn fmt::Write) -> bool {
        monitor::run(self, vcpu, command, out)
    }

    fn monitor_help(&self) -> &str {
        monitor::HELP
    }
}

impl GuestControl for MachineHost {
    fn resume(&mut self, plan: ResumePlan) -> Option<Vec<Stop>> {
        self.group.resume(&plan)
    }

    fn interrupt(&mut self) {
        self.group.interrupt();
    }

    fn release(&mut self) {
        for index in 0..self.vcpu_count() {
            if let Err(error) = self.disarm(VcpuId(index)) {
                tracing::error!(vcpu = index, %error, "the vCPU may still be armed or masked for the debugger");
            }
        }
        self.group.resume_all();
    }

    fn hold(&mut self, attached: bool) {
        self.group.hold(attached);
    }

    fn kill(&mut self) {
        self.exit.request(ExitReason::DebuggerKill);
    }

    /// Ends the machine at the first fatal stop, or resets it.
    fn unattended(&mut self, stops: Vec<Stop>) {
        for stop in stops {
            match stop.reason {
                // As a PC does.
                StopReason::TripleFault(text) if self.on_reset() != OnReset::Exit => {
                    // A kernel that always fails comes back to the same place.
                    if self.last_fault.as_ref() != Some(&text) {
                        tracing::warn!("{text}: the machine is reset");
                        self.last_fault = Some(text);
                    }
                    self.reset_for_guest();
                }
                StopReason::TripleFault(text) | StopReason::InternalError(text) => {
                    self.exit.request(ExitReason::GuestFailed(text));
                }
                StopReason::ResetRequest => self.reset_for_guest(),
                // The exit was requested when the guest ended.
                _ => continue,
            }
            return;
        }
    }

    fn stopped_fd(&self) -> RawFd {
        self.group.stopped_fd()
    }

    fn take_stops(&mut self) -> Option<Vec<Stop>> {
        self.group.take_stops()
    }

    fn guest_state(&self) -> GuestState {
        if self.group.is_stopped() {
            GuestState::Stopped
        } else {
            GuestState::Running
        }
    }
}

//! A simulated vCPU: a small x86 under a hypervisor with the habits of kvm_amd, kvm_intel or
//! kvm_pvm.
//!
//! It is what a stepper is tested on without KVM: here, and in a VMM that wants to test its own run
//! loop. It runs real-address mode and 64-bit mode, takes interrupts, exceptions, NMI, INIT and
//! start-up IPIs, leaves the guest for port and memory accesses, and keeps its debug state as KVM
//! does: `kvm_get_rflags` hides TF while a single step is in force, `__kvm_set_rflags` adds it at
//! the RIP of the last `KVM_SET_GUEST_DEBUG`.
//!
//! A [`SimulatedVcpu`] runs alone. A [`SimulatedMachine`] runs some of them, each under a stepper, and
//! is the host of a session. Both have the same [`Ram`].
//!
//! # Instructions
//! NOP, JMP rel8, INC AX/BX/CX (16-bit) or INC RAX (64-bit), MOV \[BX or RDI\],AL and back, PUSHF,
//! POPF, PUSH AX, POP AX, INT1, INT3, INT n, MOV RAX,DRn and back, MOV CR8,RAX (64-bit), IRET, STI, CLI, HLT, MOV SS,AX, IN AL,n, OUT n,AL,
//! REP MOVSB (16-bit), DIV BL, MOVSB, SYSCALL, SYSRET (64-bit). Anything else is #UD.
//!
//! # Unsupported
//! Segment limits, privilege checks, interrupt stacks without a TSS, breakpoints of the guest's own except in
//! DR6, more than one pending exception.

mod execute;
mod habits;
mod interrupts;
mod machine;
mod memory;
mod scenario;

use std::collections::BTreeSet;
use std::fmt;

use vcpu_caps::{
    Capability, Finding, GuestDebug, GuestDebugFlags, HostFacts, HostReport, HwBreakpoint,
    HwBreakpointKind,
};

pub use habits::Habits;
pub use machine::{ALIAS, ALIASED, ENTRY, MonitorHook, RAM, SimulatedMachine, TABLES, code};
pub use memory::Ram;
pub use scenario::{Action, Scenario};

use super::bits::{CR0_PE, DR6_BS, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_TF};
use super::stepper::{DebugExit, Outcome, PendingEvents, RunState, Vcpu};
use super::{
    CoreRegisters, DebugRegisters, RegisterFile, RegisterGroups, Segment, SpecialRegisters,
};
use crate::host::GuestMemory;
use crate::order::StopReason;
use interrupts::{Access, Event, Shadow};

/// IA32_STAR, and its value: SYSRET loads the selectors 0x33 and 0x2b.
const IA32_STAR: u32 = 0xc000_0081;
const STAR: u64 = 0x0023_0010 << 32;

/// What a simulated host is able to do: everything but `absent`.
#[must_use]
pub fn host_report(absent: &[Capability]) -> HostReport {
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
        let finding = if absent.contains(&capability) {
            Finding::refuted("left out by the test")
        } else {
            Finding::verified("simulated")
        };
        report.record(capability, finding);
    }
    report
}

/// What `run` came back with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A debug exception.
    Debug(DebugExit),
    /// `IN`: answer with [`SimulatedVcpu::answer`].
    PortRead(u8),
    /// `OUT`.
    PortWrite(u8, u8),
    /// A read outside RAM: answer with [`SimulatedVcpu::answer`].
    MemoryRead(u64),
    /// A write outside RAM.
    MemoryWrite(u64, u8),
    /// `immediate_exit` was set, the budget is used up, or INIT was taken by a vCPU that waited for
    /// it (EINTR, EAGAIN).
    Interrupted,
    /// The vCPU sleeps: KVM would not come back before something arrives.
    Sleeps,
    /// The processor refuses to enter.
    NotEntered,
    /// Triple fault.
    Shutdown,
    /// The hypervisor cannot go on.
    InternalError,
}

/// A call that was made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub &'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was made to fail", self.0)
    }
}

impl std::error::Error for Refused {}

/// A simulated vCPU.
#[derive(Clone, Debug)]
pub struct SimulatedVcpu {
    habits: Habits,
    /// As the processor has it, TF of a step among it.
    file: RegisterFile,
    /// IA32_LSTAR, IA32_FMASK; the selectors of IA32_STAR are fixed.
    lstar: u64,
    fmask: u64,
    /// The guest's own debug registers.
    status: DebugRegisters,
    /// `KVM_SET_GUEST_DEBUG`, and the linear RIP that it captured.
    debug: GuestDebug,
    singlestep_rip: u64,
    shadow: Shadow,
    /// An exception that is queued and not injected.
    queued: Option<Event>,
    /// An interrupt that was handed out, and enters with the next entry.
    injected: Option<u8>,
    pending: BTreeSet<u8>,
    nmi: bool,
    /// An NMI's handler runs: another one waits for its IRET (SDM 3A 6.7.1).
    nmis_blocked: bool,
    init: bool,
    startup: Option<u8>,
    run_state: RunState,
    /// An access that was handed out, and is completed with the next entry.
    access: Option<Access>,
    /// A trap that an exit has saved.
    held_trap: bool,
    /// The processor refuses to enter, until the hypervisor looks at what is pending.
    tpr_threshold_is_stale: bool,
    /// Pages of code that were touched.
    touched: BTreeSet<u64>,
    /// DR6.B0-B3 of the watchpoints that the instruction under way has hit.
    watch_hits: u64,
    /// Registers come with each exit: those of the last one.
    sync_on: bool,
    synced: Option<CoreRegisters>,
    /// They go back in with the next entry, with TF set.
    tf_at_entry: bool,
    /// Calls of the [`Vcpu`] so far, and the one that fails.
    calls: usize,
    fails: Option<usize>,
    /// Events that entered a handler.
    delivered: Vec<u8>,
}

impl SimulatedVcpu {
    /// A vCPU in real-address mode, all segments at 0, about to execute at `ip` with its stack
    /// pointer at `sp`.
    #[must_use]
    pub fn real_mode(habits: Habits, ip: u16, sp: u16) -> Self {
        let mut file = RegisterFile::default();
        let segment = |kind| Segment {
            limit: 0xffff,
            kind,
            present: true,
            code_or_data: true,
            ..Segment::default()
        };
        let special = &mut file.special;
        special.cs = segment(11);
        for data in [
            &mut special.ds,
            &mut special.es,
            &mut special.ss,
            &mut special.fs,
            &mut special.gs,
        ] {
            *data = segment(3);
        }
        special.idtr.limit = 0x3ff;
        special.cr0 = 0x10;
        file.core.rip = ip.into();
        file.core.rsp = sp.into();
        file.core.rflags = RFLAGS_FIXED;
        Self::of(habits, file)
    }

    /// A vCPU in 64-bit mode at privilege level 0, with the page tables at `cr3` and the IDT at
    /// `idt`.
    #[must_use]
    pub fn long_mode(habits: Habits, cr3: u64, idt: u64, rip: u64, rsp: u64) -> Self {
        let mut file = RegisterFile::default();
        let flat = Segment {
            selector: 0x18,
            limit: u32::MAX,
            kind: 3,
            present: true,
            code_or_data: true,
            granularity: true,
            default_big: true,
            ..Segment::default()
        };
        let special = &mut file.special;
        (special.ds, special.es, special.ss) = (flat, flat, flat);
        (special.fs, special.gs) = (flat, flat);
        special.cs = Segment {
            selector: 0x10,
            kind: 11,
            long: true,
            default_big: false,
            ..flat
        };
        special.cr0 = 0x8000_0011;
        special.cr3 = cr3;
        special.cr4 = 0x20;
        special.efer = 0x501;
        special.idtr.base = idt;
        special.idtr.limit = 0xfff;
        file.core.rip = rip;
        file.core.rsp = rsp;
        file.core.rflags = RFLAGS_FIXED;
        Self::of(habits, file)
    }

    /// A vCPU with these registers.
    #[must_use]
    pub fn of(habits: Habits, file: RegisterFile) -> Self {
        Self {
            habits,
            file,
            lstar: 0,
            fmask: 0,
            status: DebugRegisters {
                dr: [0; 4],
                dr6: 0xffff_0ff0,
                dr7: 0x400,
            },
            debug: GuestDebug::OFF,
            singlestep_rip: 0,
            shadow: Shadow::None,
            queued: None,
            injected: None,
            pending: BTreeSet::new(),
            nmi: false,
            nmis_blocked: false,
            init: false,
            startup: None,
            run_state: RunState::Runnable,
            access: None,
            held_trap: false,
            tpr_threshold_is_stale: false,
            touched: BTreeSet::new(),
            watch_hits: 0,
            sync_on: false,
            synced: None,
            tf_at_entry: false,
            calls: 0,
            fails: None,
            delivered: Vec::new(),
        }
    }

    /// The habits of its hypervisor.
    #[must_use]
    pub fn habits(&self) -> &Habits {
        &self.habits
    }

    /// The registers as the processor has them, with the debugger's TF. For a test to look at and
    /// to set up.
    #[must_use]
    pub fn registers(&self) -> &RegisterFile {
        &self.file
    }

    /// As [`registers`](Self::registers), to change them before the guest runs.
    pub fn registers_mut(&mut self) -> &mut RegisterFile {
        &mut self.file
    }

    /// IA32_LSTAR and IA32_FMASK.
    pub fn set_system_call(&mut self, lstar: u64, fmask: u64) {
        (self.lstar, self.fmask) = (lstar, fmask);
    }

    /// IA32_FMASK.
    #[must_use]
    pub fn fmask(&self) -> u64 {
        self.fmask
    }

    /// Sets a debug-address register of the guest's own, and its DR7.
    pub fn set_own_breakpoint(&mut self, slot: usize, address: u64, dr7: u64) {
        if let Some(register) = self.status.dr.get_mut(slot) {
            *register = address;
        }
        self.status.dr7 = dr7;
    }

    /// The debug state in force.
    #[must_use]
    pub fn debug(&self) -> &GuestDebug {
        &self.debug
    }

    /// The vectors that were delivered so far, exceptions among them.
    #[must_use]
    pub fn delivered(&self) -> &[u8] {
        &self.delivered
    }

    /// Returns `true` if nothing waits to be delivered.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let interrupts = self.pending.is_empty() && self.injected.is_none();
        interrupts && !self.nmi && self.queued.is_none()
    }

    /// The vectors of interrupts that wait, lowest first.
    #[must_use]
    pub fn pending(&self) -> Vec<u8> {
        self.pending.iter().copied().collect()
    }

    /// The vector of an interrupt that was handed out, and enters with the next entry.
    #[must_use]
    pub fn injected(&self) -> Option<u8> {
        self.injected
    }

    /// Returns `true` if an NMI waits.
    #[must_use]
    pub fn nmi_pending(&self) -> bool {
        self.nmi
    }

    /// The VMM resets the vCPU to these registers: nothing waits for it any more. The debug state
    /// stays in force, and SYSCALL's registers stay.
    pub fn reset(&mut self, file: &RegisterFile) {
        (self.queued, self.injected) = (None, None);
        self.pending.clear();
        (self.nmi, self.nmis_blocked) = (false, false);
        (self.init, self.startup) = (false, None);
        self.shadow = Shadow::None;
        self.access = None;
        (self.held_trap, self.tpr_threshold_is_stale) = (false, false);
        // What is to go in with the next entry does: the stepper has to discard it.
        self.run_state = RunState::Runnable;
        self.file = file.clone();
        self.set_rflags(file.core.rflags);
    }

    /// Returns `true` if the vCPU has executed HLT, and nothing has ended it yet.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.run_state == RunState::Halted
    }

    /// Returns `false` if it waits for INIT or a start-up IPI.
    #[must_use]
    pub fn is_started(&self) -> bool {
        !matches!(
            self.run_state,
            RunState::WaitForInit | RunState::WaitForSipi
        )
    }

    /// Puts the vCPU in a state of waiting.
    pub fn set_run_state(&mut self, state: RunState) {
        self.run_state = state;
    }

    /// An interrupt of this vector arrives. Arriving twice before it is delivered is once.
    pub fn interrupt(&mut self, vector: u8) {
        self.pending.insert(vector);
    }

    /// A kick arrives between the injection of the highest interrupt that waits and the entry: the
    /// interrupt is handed out, and enters with the next entry. Returns `false` if the vCPU takes none.
    pub fn kick_behind_injection(&mut self) -> bool {
        let blocked = self.has(GuestDebugFlags::BLOCKIRQ);
        let runs = matches!(self.run_state, RunState::Runnable | RunState::Halted);
        let open = enabled(self.file.core.rflags, self.shadow) && runs;
        let highest = self.deliverable();
        if blocked || self.injected.is_some() || highest.is_none() || !open {
            return false;
        }
        // HLT has ended with it.
        self.run_state = RunState::Runnable;
        self.injected = highest;
        self.injected
            .is_some_and(|vector| self.pending.remove(&vector))
    }

    /// The highest interrupt that waits, if the TPR lets it in.
    fn deliverable(&self) -> Option<u8> {
        let highest = self.pending.last().copied()?;
        (u64::from(highest >> 4) > self.file.special.cr8).then_some(highest)
    }

    /// An NMI arrives.
    pub fn nmi(&mut self) {
        self.nmi = true;
    }

    /// An exception waits to be delivered with the next entry, as after a run that ended before
    /// that.
    pub fn queue_exception(&mut self, vector: u8) {
        self.queued = Some(Event::exception(vector));
    }

    /// INIT arrives.
    pub fn init(&mut self) {
        self.init = true;
        self.startup = None;
    }

    /// A start-up IPI with this vector arrives.
    pub fn startup(&mut self, vector: u8) {
        // Dropped unless the vCPU waits for it, or is about to (SDM 3A 9.4.4).
        if self.init || self.run_state == RunState::WaitForSipi {
            self.startup = Some(vector);
        }
    }

    /// The next call of the [`Vcpu`] but `after` fails, once.
    pub fn fail_call(&mut self, after: usize) {
        self.fails = Some(self.calls + after);
    }

    /// Returns `true` if the call that was to fail has failed, or none was.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.fails.is_none()
    }

    /// Calls of the [`Vcpu`] so far.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// The value that the device gives for the read that was handed out.
    pub fn answer(&mut self, value: u8) {
        if let Some(access) = &mut self.access {
            access.value = value;
        }
    }

    /// `KVM_RUN`, for at most `budget` instructions.
    pub fn run(&mut self, memory: &impl GuestMemory, immediate_exit: bool, budget: usize) -> Exit {
        if let (true, Some(core)) = (std::mem::take(&mut self.tf_at_entry), self.synced) {
            // A write of registers: drops what is queued and not injected.
            self.queued = None;
            self.tpr_threshold_is_stale = false;
            self.file.core = core;
            self.file.core.rflags |= RFLAGS_TF;
        }
        let exit = self.enter(memory, immediate_exit, budget);
        let mut core = self.file.core;
        core.rflags = self.shown_rflags();
        self.synced = self.sync_on.then_some(core);
        exit
    }

    fn enter(&mut self, memory: &impl GuestMemory, immediate_exit: bool, budget: usize) -> Exit {
        let access = self.access.take();
        if let Some(exit) = access.and_then(|access| self.complete(access, memory)) {
            return exit;
        }
        if immediate_exit {
            return Exit::Interrupted;
        }
        if self.run_state == RunState::WaitForInit {
            return if self.accept_init() {
                Exit::Interrupted
            } else {
                Exit::Sleeps
            };
        }
        if self.tpr_threshold_is_stale {
            return Exit::NotEntered;
        }
        if self.habits.step_ends_shadow && self.has(GuestDebugFlags::SINGLESTEP) {
            self.shadow = Shadow::None;
        }
        let mut halted_in_guest = false;
        for _ in 0..budget {
            self.accept_init();
            if !self.wakes() {
                return Exit::Sleeps;
            }
            if halted_in_guest && self.habits.breakpoint_before_wake_up {
                if let Some(exit) = self.execute_breakpoint() {
                    return exit;
                }
            }
            halted_in_guest = false;
            if let Some(exit) = self.enter_event(memory) {
                return exit;
            }
            if std::mem::take(&mut self.held_trap) {
                match self.debug_exception(DR6_BS, memory) {
                    Some(exit) => return exit,
                    None => continue,
                }
            }
            if let Some(exit) = self.step(memory) {
                return exit;
            }
            halted_in_guest |= self.run_state == RunState::Halted;
        }
        Exit::Interrupted
    }

    /// The outcome for a stepper, of an exit that has been served.
    #[must_use]
    pub fn outcome(exit: &Exit) -> Outcome {
        match exit {
            Exit::Debug(exit) => Outcome::Debug(*exit),
            Exit::PortRead(_)
            | Exit::PortWrite(..)
            | Exit::MemoryRead(_)
            | Exit::MemoryWrite(..) => Outcome::Served,
            Exit::Interrupted | Exit::Sleeps => Outcome::Nothing,
            Exit::NotEntered => Outcome::NotEntered("a stale TPR threshold".to_owned()),
            Exit::Shutdown => Outcome::Fatal(StopReason::TripleFault(String::new())),
            Exit::InternalError => Outcome::Fatal(StopReason::InternalError(String::new())),
        }
    }

    /// User code that the hypervisor runs natively.
    fn runs_natively(&self) -> bool {
        let user = !self.is_real() && self.file.special.cs.selector & 3 == 3;
        user && self.habits.user_traps_reach_the_guest
    }

    fn has(&self, flag: GuestDebugFlags) -> bool {
        self.debug.control.contains(flag)
    }

    fn linear_pc(&self) -> u64 {
        self.file.linear_pc()
    }

    fn is_real(&self) -> bool {
        self.file.special.cr0 & CR0_PE == 0
    }

    /// `kvm_get_rflags`.
    fn shown_rflags(&self) -> u64 {
        if self.has(GuestDebugFlags::SINGLESTEP) {
            self.file.core.rflags & !RFLAGS_TF
        } else {
            self.file.core.rflags
        }
    }

    /// `__kvm_set_rflags`.
    fn set_rflags(&mut self, rflags: u64) {
        self.file.core.rflags = rflags | RFLAGS_FIXED;
        if self.has(GuestDebugFlags::SINGLESTEP) && self.linear_pc() == self.singlestep_rip {
            self.file.core.rflags |= RFLAGS_TF;
        }
    }

    /// A debug exception after an instruction, or before one for an execute breakpoint.
    fn debug_exception(&mut self, dr6: u64, memory: &impl GuestMemory) -> Option<Exit> {
        if self.runs_natively() {
            self.status.dr6 |= dr6;
            return self.deliver(Event::exception(1), memory);
        }
        if self.has(GuestDebugFlags::SINGLESTEP) || self.has(GuestDebugFlags::USE_HW_BP) {
            let pc = self.linear_pc();
            let mut dr6 = dr6;
            if self.habits.reports_disabled_breakpoints && dr6 & DR6_BS != 0 {
                let registers = if self.has(GuestDebugFlags::USE_HW_BP) {
                    let [a, b, c, d, ..] = self.debug.debugreg;
                    [a, b, c, d]
                } else {
                    self.status.dr
                };
                for (slot, address) in registers.into_iter().enumerate() {
                    dr6 |= u64::from(address == pc) << slot;
                }
            }
            return Some(Exit::Debug(DebugExit {
                exception: 1,
                pc,
                dr6: dr6 | 0xffff_0ff0,
            }));
        }
        self.status.dr6 |= dr6;
        self.deliver(Event::exception(1), memory)
    }

    /// The debugger's breakpoints and watchpoints that are in force.
    fn slots(&self) -> impl Iterator<Item = (usize, HwBreakpoint)> {
        let on = self.has(GuestDebugFlags::USE_HW_BP);
        let registers = self.debug.debugreg;
        let [_, _, _, _, _, _, _, dr7] = registers;
        (0..4_usize)
            .zip(registers)
            .filter_map(move |(slot, address)| {
                if !on || dr7 >> (2 * slot) & 3 == 0 {
                    return None;
                }
                let length = match dr7 >> (18 + 4 * slot) & 3 {
                    0 => 1,
                    1 => 2,
                    2 => 8,
                    _ => 4,
                };
                let kind = match dr7 >> (16 + 4 * slot) & 3 {
                    0 => HwBreakpointKind::Execute,
                    1 => HwBreakpointKind::Write,
                    _ => HwBreakpointKind::ReadWrite,
                };
                Some((slot, HwBreakpoint::watch(address, length, kind)))
            })
    }

    /// Counts a call of the [`Vcpu`]; fails if it is the one that is to.
    fn call(&mut self, name: &'static str) -> Result<(), Refused> {
        let this = self.calls;
        self.calls += 1;
        if self.fails == Some(this) {
            self.fails = None;
            return Err(Refused(name));
        }
        Ok(())
    }
}

impl Vcpu for SimulatedVcpu {
    type Error = Refused;

    const TF_FOLLOWS_ARMED_RIP: bool = true;

    fn read_registers(
        &mut self,
        groups: RegisterGroups,
        file: &mut RegisterFile,
    ) -> Result<(), Refused> {
        self.call("read_registers")?;
        if groups.contains(RegisterGroups::CORE) {
            file.core = self.file.core;
            file.core.rflags = self.shown_rflags();
        }
        if groups.contains(RegisterGroups::SPECIAL) {
            file.special = self.file.special;
        }
        if groups.contains(RegisterGroups::FPU) {
            file.fpu = self.file.fpu.clone();
        }
        if groups.contains(RegisterGroups::MSRS) {
            file.kernel_gs_base = self.file.kernel_gs_base;
        }
        if groups.contains(RegisterGroups::DEBUG) {
            file.debug = self.status;
        }
        Ok(())
    }

    fn write_registers(
        &mut self,
        groups: RegisterGroups,
        file: &RegisterFile,
    ) -> Result<(), Refused> {
        self.call("write_registers")?;
        if groups.contains(RegisterGroups::SPECIAL) {
            self.file.special = file.special;
        }
        if groups.contains(RegisterGroups::CORE) {
            // `__set_regs`.
            self.queued = None;
            self.tpr_threshold_is_stale = false;
            self.file.core = file.core;
            self.set_rflags(file.core.rflags);
        }
        if groups.contains(RegisterGroups::FPU) {
            self.file.fpu = file.fpu.clone();
        }
        if groups.contains(RegisterGroups::MSRS) {
            self.file.kernel_gs_base = file.kernel_gs_base;
        }
        if groups.contains(RegisterGroups::DEBUG) {
            self.status = file.debug;
        }
        Ok(())
    }

    fn read_msr(&mut self, index: u32) -> Result<u64, Refused> {
        self.call("read_msr")?;
        Ok(if index == IA32_STAR { STAR } else { self.fmask })
    }

    fn nmis_blocked(&mut self) -> Result<bool, Refused> {
        self.call("nmis_blocked")?;
        Ok(self.nmis_blocked)
    }

    fn write_msr(&mut self, _: u32, value: u64) -> Result<(), Refused> {
        self.call("write_msr")?;
        self.fmask = value;
        Ok(())
    }

    fn debug_status(&mut self) -> Result<DebugRegisters, Refused> {
        self.call("debug_status")?;
        Ok(self.status)
    }

    fn set_dr6(&mut self, dr6: u64) -> Result<(), Refused> {
        self.call("set_dr6")?;
        self.status.dr6 = dr6;
        Ok(())
    }

    fn pending_events(&mut self) -> Result<PendingEvents, Refused> {
        self.call("pending_events")?;
        Ok(PendingEvents {
            exception: self.queued.is_some(),
            interrupt: self.injected,
        })
    }

    fn set_injected_interrupt(&mut self, vector: Option<u8>) -> Result<(), Refused> {
        self.call("set_injected_interrupt")?;
        self.injected = vector;
        Ok(())
    }

    fn next_interrupt(&mut self, enabled: bool) -> Result<Option<u8>, Refused> {
        self.call("next_interrupt")?;
        let nmi = (self.nmi && !self.nmis_blocked).then_some(2);
        let pending = || self.deliverable().filter(|_| enabled);
        Ok(self.injected.or(nmi).or_else(pending))
    }

    fn requeue_interrupt(&mut self, vector: u8) -> Result<(), Refused> {
        self.call("requeue_interrupt")?;
        self.pending.insert(vector);
        Ok(())
    }

    fn run_state(&mut self) -> Result<RunState, Refused> {
        self.call("run_state")?;
        self.accept_init();
        Ok(self.run_state)
    }

    fn set_run_state(&mut self, state: RunState) -> Result<bool, Refused> {
        self.call("set_run_state")?;
        self.run_state = state;
        self.shadow = Shadow::None;
        Ok(true)
    }

    fn restore_sti_shadow(&mut self) -> Result<(), Refused> {
        self.call("restore_sti_shadow")?;
        self.shadow = Shadow::Sti;
        Ok(())
    }

    fn set_guest_debug(&mut self, debug: &GuestDebug) -> Result<(), Refused> {
        self.call("set_guest_debug")?;
        // `kvm_arch_vcpu_ioctl_set_guest_debug`.
        if debug.control.contains(GuestDebugFlags::INJECT_DB) {
            self.queued = Some(Event::exception(1));
        }
        if debug.control.contains(GuestDebugFlags::INJECT_BP) {
            self.queued = Some(Event::exception(3));
        }
        self.tpr_threshold_is_stale = false;
        let rflags = self.shown_rflags();
        self.debug = debug.lasting();
        self.singlestep_rip = self.linear_pc();
        self.set_rflags(rflags);
        Ok(())
    }

    fn sync_registers(&mut self, on: bool) {
        self.sync_on = on && self.habits.sync_regs;
    }

    fn synced_registers(&mut self) -> Option<(CoreRegisters, SpecialRegisters)> {
        self.synced.map(|core| (core, self.file.special))
    }

    fn set_tf_at_entry(&mut self) -> bool {
        self.tf_at_entry = self.synced.is_some();
        self.tf_at_entry
    }

    fn discard_tf_at_entry(&mut self) {
        self.tf_at_entry = false;
    }
}

/// RFLAGS.IF is set, and no instruction blocks interrupts.
fn enabled(rflags: u64, shadow: Shadow) -> bool {
    rflags & RFLAGS_IF != 0 && shadow == Shadow::None
}

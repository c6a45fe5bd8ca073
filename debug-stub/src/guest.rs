//! The stopped guest behind gdbstub's `Target` traits.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::num::NonZeroUsize;

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
    MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints as BreakpointsExt, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint,
    HwWatchpointOps, SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use vcpu_caps::VcpuId;

use crate::arch::{GdbRegister, GdbRegisters, X86_64};
use crate::breakpoints::{Breakpoints, Placed, Point, PointError};
use crate::config::SessionConfig;
use crate::host::Host;
use crate::memory::Space;
use crate::qemu::StepBits;
use crate::request::{PointKind, Run};
use crate::state::RegisterCache;
use crate::x86_64::{RegisterGroups, target_xml, write_all};

/// Addresses remembered in [`Guest::told`].
const MAX_TOLD: usize = 256;

/// Linux error numbers, as the client shows them. gdbstub sends them in hexadecimal.
pub(crate) mod errno {
    /// EIO: the hypervisor refused.
    pub(crate) const EIO: u8 = 5;
    /// EFAULT: no such memory, no such register.
    pub(crate) const EFAULT: u8 = 14;
    /// EINVAL: a packet that makes no sense.
    pub(crate) const EINVAL: u8 = 22;
    /// EFBIG: too much asked for at once.
    pub(crate) const EFBIG: u8 = 27;
    /// ENOSPC: no debug-address register is free.
    pub(crate) const ENOSPC: u8 = 28;
    /// EBADMSG: a wrong checksum where no acknowledgement could say so.
    pub(crate) const EBADMSG: u8 = 74;
    /// EMSGSIZE: a packet longer than advertised.
    pub(crate) const EMSGSIZE: u8 = 90;
}

/// What a resume packet asked for, before it is a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Named vCPUs.
    pub(crate) named: BTreeMap<VcpuId, Run>,
    /// The others stay (scheduler locking); they run on otherwise.
    pub(crate) others_stay: bool,
}

/// The guest, and what the session has set in it.
#[derive(Debug)]
pub(crate) struct Guest<H: Host> {
    pub(crate) host: H,
    pub(crate) config: SessionConfig,
    pub(crate) registers: RegisterCache,
    pub(crate) breakpoints: Breakpoints,
    /// What memory packets read: the selected vCPU's address space, and `Hg`'s vCPU.
    pub(crate) current: VcpuId,
    pub(crate) physical_memory: bool,
    pub(crate) step_bits: StepBits,
    pub(crate) orders: Orders,
    /// Text for the client's console that could not be sent when it arose: an `O` packet is
    /// legal only while the guest runs, and in reply to `qRcmd`.
    pub(crate) notices: Notices,
    /// Where the client has been told that its breakpoint took a debug register. GDB removes and
    /// inserts its breakpoints at each stop; once is enough.
    told: BTreeSet<u64>,
    target_xml: String,
}

/// Text for the client's console, bounded.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    text: String,
}

impl Notices {
    const LIMIT: usize = 4096;

    /// Adds a line, unless too much waits already.
    pub(crate) fn push(&mut self, line: &str) {
        if self.text.len() + line.len() < Self::LIMIT {
            self.text.push_str(line);
            self.text.push('\n');
        }
    }

    pub(crate) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }
}

/// Threads are numbered from 1: thread ids 0 and -1 mean something else.
pub(crate) fn tid(vcpu: VcpuId) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu.index())
}

impl<H: Host> Guest<H> {
    pub(crate) fn new(host: H, config: SessionConfig) -> Self {
        Self {
            step_bits: StepBits::new(config.mask()),
            host,
            config,
            registers: RegisterCache::default(),
            breakpoints: Breakpoints::default(),
            current: VcpuId(0),
            physical_memory: false,
            orders: Orders::default(),
            notices: Notices::default(),
            told: BTreeSet::new(),
            target_xml: target_xml(),
        }
    }

    /// As for a client that has just come: no breakpoint, no policy of an earlier one.
    pub(crate) fn reset(&mut self) {
        self.registers.forget();
        self.breakpoints.clear();
        self.current = VcpuId(0);
        self.physical_memory = false;
        self.step_bits = StepBits::new(self.config.mask());
        self.orders = Orders::default();
        self.notices.take();
        self.told.clear();
    }

    /// The vCPU that a thread id names.
    pub(crate) fn vcpu(&self, tid: usize) -> Option<VcpuId> {
        let index = u16::try_from(tid.checked_sub(1)?).ok()?;
        (index < self.host.vcpu_count()).then_some(VcpuId(index))
    }

    /// The address space of memory packets.
    pub(crate) fn space(&mut self) -> Result<Space, u8> {
        if self.physical_memory {
            return Ok(Space::Physical);
        }
        self.linear(self.current)
    }

    /// The linear address space of a vCPU.
    pub(crate) fn linear(&mut self, vcpu: VcpuId) -> Result<Space, u8> {
        self.registers
            .read(&mut self.host, vcpu, RegisterGroups::SPECIAL)
            .map(|registers| Space::Linear(registers.special))
            .map_err(|error| refused(vcpu, &error))
    }

    /// Sets all registers of the selected vCPU from the data of a `G` packet. Only groups that
    /// change are written: the others may hold what no register shows.
    pub(crate) fn write_all_registers(&mut self, data: &[u8]) -> Result<(), u8> {
        let vcpu = self.current;
        let all = RegisterGroups::all();
        let before = self
            .registers
            .read(&mut self.host, vcpu, all)
            .map_err(|error| refused(vcpu, &error))?
            .clone();
        let mut after = before.clone();
        if let Err(error) = write_all(&mut after, &self.host, data) {
            tracing::warn!(%vcpu, %error, "registers not written");
            self.notices.push(&error.to_string());
            return Err(errno::EINVAL);
        }
        let mut changed = RegisterGroups::empty();
        changed.set(RegisterGroups::CORE, before.core != after.core);
        changed.set(RegisterGroups::SPECIAL, before.special != after.special);
        changed.set(RegisterGroups::FPU, before.fpu != after.fpu);
        changed.set(
            RegisterGroups::MSRS,
            before.kernel_gs_base != after.kernel_gs_base,
        );
        if changed.is_empty() {
            return Ok(());
        }
        self.registers
            .write(&mut self.host, vcpu, changed, &after)
            .map_err(|error| refused(vcpu, &error))
    }

    /// Adds or removes a breakpoint or watchpoint.
    fn set_point(&mut self, insert: bool, point: Point) -> TargetResult<bool, Self> {
        if !insert {
            // To remove what is not there is no error: GDB removes after a failed insertion.
            self.breakpoints.remove(point);
            return Ok(true);
        }
        let space = self.linear(self.current).map_err(TargetError::Errno)?;
        let Self {
            breakpoints,
            host,
            config,
            ..
        } = self;
        let in_memory = config.software_breakpoints();
        let placed = breakpoints.insert(point, |address| {
            if in_memory {
                space.writable(host, address)
            } else {
                None
            }
        });
        match placed {
            Ok(Placed::AsAsked) => Ok(true),
            Ok(Placed::InSlot) => {
                if self.told.len() >= MAX_TOLD || !self.told.insert(point.address) {
                    return Ok(true);
                }
                let why = if in_memory {
                    "nothing is mapped there yet, or no RAM"
                } else {
                    "the host does not hand breakpoint instructions to the debugger: monitor caps"
                };
                self.notices.push(&format!(
                    "breakpoint at {:#x} takes one of the four debug registers: {why}",
                    point.address
                ));
                tracing::info!(
                    address = point.address,
                    why,
                    "software breakpoint in a slot"
                );
                Ok(true)
            }
            Err(error) => {
                tracing::warn!(address = point.address, %error, "breakpoint refused");
                self.notices
                    .push(&format!("breakpoint at {:#x}: {error}", point.address));
                Err(TargetError::Errno(match error {
                    PointError::NoSlot { .. }
                    | PointError::TooLong { .. }
                    | PointError::TooMany => errno::ENOSPC,
                    PointError::Empty => errno::EINVAL,
                }))
            }
        }
    }
}

/// Logs what the hypervisor refused, for the reply's error number.
pub(crate) fn refused(vcpu: VcpuId, error: &impl std::error::Error) -> u8 {
    tracing::warn!(%vcpu, %error, "the hypervisor refused access to registers");
    errno::EIO
}

impl<H: Host> Target for Guest<H> {
    type Arch = X86_64;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64, Infallible> {
        BaseOps::MultiThread(self)
    }

    // The filter owns both: see `session`.
    fn use_no_ack_mode(&self) -> bool {
        false
    }

    fn use_x_upcase_packet(&self) -> bool {
        false
    }

    /// Connections are local: the bytes saved are not worth the time.
    fn use_rle(&self) -> bool {
        false
    }

    // A guest forks nothing that a debugger of the machine could see.
    fn use_fork_stop_reason(&self) -> bool {
        false
    }

    fn use_vfork_stop_reason(&self) -> bool {
        false
    }

    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl<H: Host> MultiThreadBase for Guest<H> {
    fn read_registers(&mut self, regs: &mut GdbRegisters, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid.get()).ok_or(TargetError::NonFatal)?;
        let all = RegisterGroups::all();
        match self.registers.read(&mut self.host, vcpu, all) {
            Ok(registers) => {
                regs.0.clone_from(registers);
                Ok(())
            }
            Err(error) => Err(TargetError::Errno(refused(vcpu, &error))),
        }
    }

    /// Never called: the session answers `G`, which gdbstub reads without regard to what the
    /// registers were.
    fn write_registers(&mut self, _: &GdbRegisters, _: Tid) -> TargetResult<(), Self> {
        Err(TargetError::Errno(errno::EINVAL))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8], _: Tid) -> TargetResult<usize, Self> {
        let space = self.space().map_err(TargetError::Errno)?;
        match space.read(&self.host, address, data) {
            0 if !data.is_empty() => Err(TargetError::Errno(errno::EFAULT)),
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, address: u64, data: &[u8], _: Tid) -> TargetResult<(), Self> {
        let space = self.space().map_err(TargetError::Errno)?;
        if space.write(&self.host, address, data) {
            Ok(())
        } else {
            Err(TargetError::Errno(errno::EFAULT))
        }
    }

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        (0..self.host.vcpu_count()).for_each(|index| each(tid(VcpuId(index))));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl<H: Host> SingleRegisterAccess<Tid> for Guest<H> {
    fn read_register(
        &mut self,
        tid: Tid,
        GdbRegister(id): GdbRegister,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let vcpu = self.vcpu(tid.get()).ok_or(TargetError::NonFatal)?;
        let registers = self
            .registers
            .read(&mut self.host, vcpu, id.groups())
            .map_err(|error| TargetError::Errno(refused(vcpu, &error)))?;
        let mut value = [0; 16];
        let length = id.read(registers, &mut value);
        buffer
            .iter_mut()
            .zip(value.iter().take(length))
            .for_each(|(to, from)| *to = *from);
        Ok(length)
    }

    fn write_register(
        &mut self,
        tid: Tid,
        GdbRegister(id): GdbRegister,
        value: &[u8],
    ) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid.get()).ok_or(TargetError::NonFatal)?;
        let mut registers = self
            .registers
            .read(&mut self.host, vcpu, id.groups_for_write())
            .map_err(|error| TargetError::Errno(refused(vcpu, &error)))?
            .clone();
        if let Err(error) = id.write(&mut registers, &self.host, value) {
            tracing::warn!(%vcpu, %error, "register not written");
            self.notices.push(&error.to_string());
            return Err(TargetError::Errno(errno::EINVAL));
        }
        self.registers
            .write(&mut self.host, vcpu, id.groups(), &registers)
            .map_err(|error| TargetError::Errno(refused(vcpu, &error)))
    }
}

impl<H: Host> MultiThreadResume for Guest<H> {
    /// Nothing runs yet: the session makes a plan of the orders.
    fn resume(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        self.orders = Orders::default();
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _: Option<Signal>,
    ) -> Result<(), Infallible> {
        self.order(tid, Run::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl<H: Host> Guest<H> {
    fn order(&mut self, tid: Tid, run: Run) {
        if let Some(vcpu) = self.vcpu(tid.get()) {
            self.orders.named.insert(vcpu, run);
        }
    }
}

impl<H: Host> MultiThreadSingleStep for Guest<H> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.order(tid, Run::Step);
        Ok(())
    }
}

impl<H: Host> MultiThreadRangeStepping for Guest<H> {
    fn set_resume_action_range_step(
        &mut self,
        tid: Tid,
        start: u64,
        end: u64,
    ) -> Result<(), Infallible> {
        self.order(tid, Run::Range(start..end));
        Ok(())
    }
}

impl<H: Host> MultiThreadSchedulerLocking for Guest<H> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        self.orders.others_stay = true;
        Ok(())
    }
}

impl<H: Host> BreakpointsExt for Guest<H> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    // Stop replies name it even where the client can set none: it is where a software
    // breakpoint may be.
    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl<H: Host> SwBreakpoint for Guest<H> {
    fn add_sw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.set_point(true, point(PointKind::Software, address, kind))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.set_point(false, point(PointKind::Software, address, kind))
    }
}

impl<H: Host> HwBreakpoint for Guest<H> {
    fn add_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.set_point(true, point(PointKind::Hardware, address, kind))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.set_point(false, point(PointKind::Hardware, address, kind))
    }
}

fn point(kind: PointKind, address: u64, length: usize) -> Point {
    Point::new(kind, address, u64::try_from(length).unwrap_or(u64::MAX))
}

impl<H: Host> HwWatchpoint for Guest<H> {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.set_point(true, Point::new(watched(kind), address, length))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.set_point(false, Point::new(watched(kind), address, length))
    }
}

fn watched(kind: WatchKind) -> PointKind {
    match kind {
        WatchKind::Write => PointKind::Write,
        WatchKind::Read => PointKind::Read,
        WatchKind::ReadWrite => PointKind::Access,
    }
}

impl<H: Host> TargetDescriptionXmlOverride for Guest<H> {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            // "E00: the request was malformed, or annex was invalid" ("qXfer").
            return Err(TargetError::Errno(0));
        }
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.target_xml.as_bytes().get(offset..))
            .unwrap_or_default();
        let length = rest.len().min(length).min(buffer.len());
        buffer
            .iter_mut()
            .zip(rest.iter().take(length))
            .for_each(|(to, from)| *to = *from);
        Ok(length)
    }
}

//! gdbstub's `Target` traits: what each request does to the guest.
//!
//! Both parsers end here: gdbstub's for the packets that it survives, and the session's own
//! (`request`) for the others.
//!
//! gdbstub hands over the thread that `Hg` selected. These methods ignore it: the session parses
//! `Hg`, since gdbstub takes any number there and does not report it, and keeps the selection in
//! [`Guest::current`].

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
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use vcpu_caps::VcpuId;

use super::wire::{AnyArch, RegisterBytes, RegisterNumber};
use super::{Guest, OrderError, errno, log_refused, tid};
use crate::arch::Arch;
use crate::breakpoints::{Point, PointKind};
use crate::host::Host;
use crate::memory::Space;
use crate::monitor;
use crate::order::{StepOrder, VcpuOrder, WatchAccess};

impl<H: Host> Target for Guest<H> {
    type Arch = AnyArch;
    type Error = OrderError;

    fn base_ops(&mut self) -> BaseOps<'_, AnyArch, OrderError> {
        BaseOps::MultiThread(self)
    }

    /// The filter owns acknowledgement.
    fn use_no_ack_mode(&self) -> bool {
        false
    }

    /// The session parses `X`: gdbstub does not compare its length with its data.
    fn use_x_upcase_packet(&self) -> bool {
        false
    }

    /// Connections are local: the bytes saved are not worth the time.
    fn use_rle(&self) -> bool {
        false
    }

    // A debugger of the machine sees no fork of the guest's.
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

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl<H: Host> MultiThreadBase for Guest<H> {
    fn read_registers(&mut self, regs: &mut RegisterBytes, _: Tid) -> TargetResult<(), Self> {
        let view = self.view();
        let groups = H::Arch::registers(view).fold(Default::default(), |groups, register| {
            groups | H::Arch::groups(register)
        });
        let registers = self
            .selected_registers(groups)
            .map_err(TargetError::Errno)?;
        regs.0.clear();
        regs.0.reserve(H::Arch::REGISTER_BYTES);
        let mut value = Vec::new();
        for register in H::Arch::registers(view) {
            value.clear();
            if H::Arch::read_register(register, registers, &mut value) {
                regs.0.extend(value.iter().copied().map(Some));
            } else {
                let size = H::Arch::size(register);
                regs.0.extend(std::iter::repeat_n(None, size));
            }
        }
        Ok(())
    }

    /// Writes only the groups that change: the others may hold what no register shows.
    fn write_registers(&mut self, regs: &RegisterBytes, _: Tid) -> TargetResult<(), Self> {
        let vcpu = self.selected().map_err(TargetError::Errno)?;
        let view = self.view();
        // What a client sends is there.
        let data: Vec<u8> = regs.0.iter().copied().flatten().collect();
        self.change_registers(vcpu, H::Arch::ALL_GROUPS, |registers, host| {
            let before = registers.clone();
            H::Arch::write_all(view, registers, host, &data)?;
            Ok(H::Arch::changed_groups(&before, registers))
        })
        .map_err(TargetError::Errno)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8], _: Tid) -> TargetResult<usize, Self> {
        let space = self.space().map_err(TargetError::Errno)?;
        match self.read_all(&space, address, data) {
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

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<(), OrderError> {
        self.threads().for_each(|vcpu| each(tid(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl<H: Host> Guest<H> {
    /// Reads memory, and devices where there is none. Returns the number of bytes from the start that could be
    /// read.
    pub(crate) fn read_all(
        &mut self,
        space: &Space<H::Arch>,
        address: u64,
        data: &mut [u8],
    ) -> usize {
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = address.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            let read = space.read(&self.host, at, rest);
            done += read;
            if read > 0 {
                continue;
            }
            let Some((gpa, length)) = space.piece(&self.host, at, 0, rest.len()) else {
                break;
            };
            let rest = rest.get_mut(..length).unwrap_or_default();
            let vcpu = self.current;
            let read = (self.host).read_device(vcpu, gpa, rest, self.device_reads);
            if read == 0 {
                break;
            }
            done += read.min(length);
        }
        done
    }

    /// Returns the value of a register; `None` if it is unavailable.
    pub(crate) fn register_value(&mut self, number: u64) -> Result<Option<Vec<u8>>, u8> {
        let register = self.register(usize::try_from(number).unwrap_or(usize::MAX))?;
        let registers = self.selected_registers(H::Arch::groups(register))?;
        let mut value = Vec::new();
        let available = H::Arch::read_register(register, registers, &mut value);
        Ok(available.then_some(value))
    }

    fn register(&mut self, number: usize) -> Result<<H::Arch as Arch>::RegisterId, u8> {
        let view = self.view();
        H::Arch::register(view, number).ok_or(errno::EFAULT)
    }
}

impl<H: Host> SingleRegisterAccess<Tid> for Guest<H> {
    /// The session parses `p`.
    fn read_register(
        &mut self,
        _: Tid,
        _: RegisterNumber,
        _: &mut [u8],
    ) -> TargetResult<usize, Self> {
        Err(TargetError::NonFatal)
    }

    fn write_register(
        &mut self,
        _: Tid,
        RegisterNumber(number): RegisterNumber,
        value: &[u8],
    ) -> TargetResult<(), Self> {
        let register = self.register(number).map_err(TargetError::Errno)?;
        let vcpu = self.selected().map_err(TargetError::Errno)?;
        let filled = H::Arch::groups_for_write(register);
        self.change_registers(vcpu, filled, |registers, host| {
            let before = registers.clone();
            H::Arch::write_register(register, registers, host, value)?;
            Ok(H::Arch::changed_groups(&before, registers))
        })
        .map_err(TargetError::Errno)
    }
}

impl<H: Host> ThreadExtraInfo for Guest<H> {
    fn thread_extra_info(&self, id: Tid, buffer: &mut [u8]) -> Result<usize, OrderError> {
        let vcpu = self.threads().find(|vcpu| tid(*vcpu) == id);
        let vcpu = vcpu.ok_or(OrderError::NoThread(id.get()))?;
        let name = self.thread_name(vcpu);
        let length = name.len().min(buffer.len());
        buffer
            .iter_mut()
            .zip(name.bytes())
            .for_each(|(to, from)| *to = from);
        Ok(length)
    }
}

impl<H: Host> Guest<H> {
    /// Returns the vCPU that an order names. If there is none, a notice names it.
    fn ordered(&mut self, tid: Tid) -> Result<VcpuId, OrderError> {
        self.vcpu(tid.get())
            .ok_or_else(|| self.refuse(OrderError::NoThread(tid.get())))
    }

    /// The client gets an error number; the notice says why.
    fn refuse(&mut self, error: OrderError) -> OrderError {
        self.explain(format!("cannot resume: {error}"));
        error
    }

    fn order_step(&mut self, tid: Tid, range: Option<(u64, u64)>) -> Result<(), OrderError> {
        let vcpu = self.ordered(tid)?;
        let bits = self.step_bits;
        if !bits.steps() {
            self.orders.give(vcpu, VcpuOrder::Continue);
            return Ok(());
        }
        let range = match range {
            None => None,
            Some((start, end)) => {
                let read = self
                    .registers
                    .read(&mut self.host, vcpu, H::Arch::STOP_GROUPS);
                let range = match read {
                    Ok(registers) => {
                        H::Arch::code_address(registers, start)
                            ..H::Arch::code_address(registers, end)
                    }
                    Err(error) => {
                        log_refused(vcpu, &error);
                        return Err(self.refuse(OrderError::Registers(vcpu)));
                    }
                };
                // "An empty range means a single step" ("vCont", action r); so does one that
                // wraps around.
                (start < end && !range.is_empty()).then_some(range)
            }
        };
        let mask = bits.masks();
        self.orders.give(
            vcpu,
            VcpuOrder::Step(StepOrder {
                range,
                mask,
                ..StepOrder::default()
            }),
        );
        Ok(())
    }
}

impl<H: Host> MultiThreadResume for Guest<H> {
    /// Nothing runs yet: the session makes a plan of the orders.
    fn resume(&mut self) -> Result<(), OrderError> {
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), OrderError> {
        self.orders.begin(self.host.vcpu_count());
        Ok(())
    }

    /// A virtual machine takes no signal: it is ignored.
    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _: Option<Signal>,
    ) -> Result<(), OrderError> {
        let vcpu = self.ordered(tid)?;
        self.orders.give(vcpu, VcpuOrder::Continue);
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

impl<H: Host> MultiThreadSingleStep for Guest<H> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), OrderError> {
        self.order_step(tid, None)
    }
}

impl<H: Host> MultiThreadRangeStepping for Guest<H> {
    fn set_resume_action_range_step(
        &mut self,
        tid: Tid,
        start: u64,
        end: u64,
    ) -> Result<(), OrderError> {
        self.order_step(tid, Some((start, end)))
    }
}

impl<H: Host> MultiThreadSchedulerLocking for Guest<H> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), OrderError> {
        self.orders.others_stay();
        Ok(())
    }
}

// What the plan does not provide is not supported here. gdbstub then sends an empty reply.
impl<H: Host> BreakpointsExt for Guest<H> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        let config = &self.config;
        if config.software_breakpoints() || config.hardware_breakpoints() {
            Some(self)
        } else {
            None
        }
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        if self.config.hardware_breakpoints() {
            Some(self)
        } else {
            None
        }
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        if self.config.watchpoints() || H::Arch::COMPARES {
            Some(self)
        } else {
            None
        }
    }
}

impl<H: Host> SwBreakpoint for Guest<H> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.set_point(true, Point::breakpoint(PointKind::Software, address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.set_point(false, Point::breakpoint(PointKind::Software, address))
    }
}

impl<H: Host> HwBreakpoint for Guest<H> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.set_point(true, Point::breakpoint(PointKind::Hardware, address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.set_point(false, Point::breakpoint(PointKind::Hardware, address))
    }
}

impl<H: Host> HwWatchpoint for Guest<H> {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.set_point(true, Point::watch(access(kind), address, length))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.set_point(false, Point::watch(access(kind), address, length))
    }
}

/// Read watchpoints do not get here: `request` refuses them, since no capability provides them. A
/// slot that watches reads and writes would serve them.
fn access(kind: WatchKind) -> WatchAccess {
    match kind {
        WatchKind::Write => WatchAccess::Write,
        WatchKind::Read | WatchKind::ReadWrite => WatchAccess::ReadWrite,
    }
}

impl<H: Host> MonitorCmd for Guest<H> {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), OrderError> {
        let text = monitor::answer(self, &String::from_utf8_lossy(command));
        // One `O` packet each, two digits for a byte.
        let longest = (self.config.packet_limit() / 2).saturating_sub(1).max(1);
        for chunk in text.as_bytes().chunks(longest) {
            out.write_raw(chunk);
            out.flush();
        }
        Ok(())
    }
}

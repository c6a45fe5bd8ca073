//! gdbstub's `Target` traits. Each of them asks for little: the session has checked the packet,
//! and makes a plan of what is ordered here.

use std::convert::Infallible;

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

use super::{Guest, Orders, errno, refused, tid};
use crate::arch::{GdbRegister, GdbRegisters, X86_64};
use crate::breakpoints::Point;
use crate::host::Host;
use crate::request::{PointKind, Run};
use crate::x86_64::RegisterGroups;

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

//! The stopped guest, and what the session has set in it.

mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use gdbstub::common::Tid;
use gdbstub::target::{TargetError, TargetResult};
use vcpu_caps::VcpuId;

use crate::breakpoints::{Breakpoints, Placed, Point, PointError};
use crate::config::SessionConfig;
use crate::host::Host;
use crate::memory::Space;
use crate::qemu::StepBits;
use crate::request::Run;
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

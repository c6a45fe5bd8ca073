//! The stopped guest, and what the session has set in it.

mod hits;
mod orders;
mod target;
mod view;
mod wire;

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroUsize;

use gdbstub::common::Tid;
use gdbstub::target::{TargetError, TargetResult};
use thiserror::Error;
use vcpu_caps::VcpuId;

use crate::address::GuestPhysAddr;
use crate::arch::Arch;
use crate::breakpoints::{Breakpoints, HitProgram, NoRoom, Placed, Point, PointError, PointKind};
use crate::config::SessionConfig;
use crate::host::{GuestMemory, Host, ResetError};
use crate::memory::Space;
use crate::qemu::StepBits;
use crate::request::ClientFeatures;
use crate::state::RegisterCache;

pub(crate) use hits::Hit;
pub(crate) use orders::Orders;
use view::ClientView;
pub(crate) use wire::RegisterNumber;

/// Linux error numbers, as the client shows them. The packets carry them in hexadecimal.
pub(crate) mod errno {
    /// ESRCH: the selected vCPU has gone.
    pub(crate) const ESRCH: u8 = 3;
    /// EIO: the hypervisor refused.
    pub(crate) const EIO: u8 = 5;
    /// EFAULT: no such memory, no such register.
    pub(crate) const EFAULT: u8 = 14;
    /// EINVAL: a packet that makes no sense.
    pub(crate) const EINVAL: u8 = 22;
    /// ENOSPC: no debug slot is free.
    pub(crate) const ENOSPC: u8 = 28;
    /// EBADMSG: a wrong checksum, in a session without acknowledgements.
    pub(crate) const EBADMSG: u8 = 74;
    /// EMSGSIZE: a packet longer than advertised.
    pub(crate) const EMSGSIZE: u8 = 90;
}

/// A resume packet that cannot be carried out. It ends gdbstub's state machine and not the
/// session.
#[derive(Debug, Error)]
pub(crate) enum OrderError {
    #[error("an action that makes no sense")]
    Malformed,
    #[error("there is no thread {0}")]
    NoThread(usize),
    #[error("the registers of {0} cannot be read")]
    Registers(VcpuId),
}

/// The guest, and what the session has set in it.
pub(crate) struct Guest<H: Host> {
    pub(crate) host: H,
    pub(crate) config: SessionConfig,
    pub(crate) registers: RegisterCache<H::Arch>,
    pub(crate) breakpoints: Breakpoints<H::Arch>,
    /// The vCPU that the client has selected (`Hg`), for registers and memory. It is no choice of the
    /// client's user: GDB selects each thread in turn to list them.
    pub(crate) current: VcpuId,
    /// The vCPU of the last stop, or the one that the client has selected to run since (`Hc`).
    pub(crate) in_focus: VcpuId,
    /// What the client has announced.
    pub(crate) client: ClientFeatures,
    /// The target description that the client has read.
    client_view: ClientView<<H::Arch as Arch>::View>,
    pub(crate) physical_memory: bool,
    pub(crate) step_bits: StepBits,
    /// `monitor mmio`: reads of devices may have side effects.
    pub(crate) device_reads: bool,
    /// `monitor quit`: the guest is to end.
    pub(crate) ends: bool,
    /// The orders of the resume packet that is being parsed.
    pub(crate) orders: Orders,
    pub(crate) notices: Notices,
    /// What the client sees of the first vCPU while there is none.
    no_registers: <H::Arch as Arch>::Registers,
    /// Why the request that is being served fails. The reply carries it, or a notice.
    why: Option<Why>,
    /// Why breakpoints took a debug slot, as far as the client has been told. GDB inserts its breakpoints at
    /// each resume, and others for each `next`: one notice is enough.
    noticed: BTreeSet<&'static str>,
}

impl<H: Host> fmt::Debug for Guest<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("registers", &self.registers)
            .field("breakpoints", &self.breakpoints)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

/// Text for the client's console, bounded. It waits until it may be sent: an `O` packet is legal
/// only while the guest runs, and in reply to `qRcmd`.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    text: String,
    /// Refused breakpoints. GDB says by itself that it cannot insert one, so this is told only to a user who
    /// asks (`monitor`) before the next resume. Later it would appear at an unrelated stop.
    refused: String,
    /// The last reason of an error.
    last: String,
    lost: usize,
}

/// Why a request fails.
#[derive(Debug)]
pub(crate) struct Why {
    text: String,
    /// It is a breakpoint that cannot be inserted.
    is_insertion: bool,
}

impl Notices {
    const LIMIT: usize = 4096;

    /// Adds a line. Beyond the limit, and if it repeats the line before, it is dropped.
    pub(crate) fn push(&mut self, line: &str) {
        if self.text.lines().next_back() == Some(line) {
            return;
        }
        if self.text.len() + line.len() < Self::LIMIT {
            self.text.push_str(line);
            self.text.push('\n');
        } else {
            self.lost += 1;
        }
    }

    /// Adds why a packet has failed, for a client whose error replies have no text. A reason that is that of the
    /// packet before, too, is dropped.
    fn push_error(&mut self, packet: &[u8], why: Why) {
        let Why { text, is_insertion } = why;
        if text == self.last {
            return;
        }
        let line = format!("{}: {text}", packet.escape_ascii());
        if !is_insertion {
            self.push(&line);
        } else if self.refused.len() + line.len() < Self::LIMIT {
            self.refused.push_str(&line);
            self.refused.push('\n');
        }
        self.last = text;
    }

    /// A message is dropped.
    pub(crate) fn lose(&mut self) {
        self.lost += 1;
    }

    /// The client resumes the guest: it has dealt with refused breakpoints.
    pub(crate) fn resumed(&mut self) {
        self.refused.clear();
        self.last.clear();
    }

    pub(crate) fn take(&mut self) -> String {
        let mut text = std::mem::take(&mut self.text);
        text.push_str(&std::mem::take(&mut self.refused));
        self.last.clear();
        match std::mem::take(&mut self.lost) {
            0 => {}
            lost => text.push_str(&format!("({lost} more messages were dropped)\n")),
        }
        text
    }
}

/// Returns a vCPU's thread id. Threads are numbered from 1: ids 0 and -1 mean something else.
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
            in_focus: VcpuId(0),
            client: ClientFeatures::default(),
            client_view: ClientView::default(),
            physical_memory: false,
            device_reads: false,
            ends: false,
            orders: Orders::default(),
            notices: Notices::default(),
            no_registers: <H::Arch as Arch>::Registers::default(),
            why: None,
            noticed: BTreeSet::new(),
        }
    }

    /// Resets the machine in place. The client's breakpoints stay set, in debug slots.
    pub(crate) fn reset_machine(&mut self) -> Result<(), ResetError> {
        self.host.reset()?;
        self.registers.forget();
        let may_use_slot = self.config.hardware_breakpoints();
        let space = self.virtual_space().ok();
        let host = &self.host;
        // A kernel's address, in the upper half for instance. What is mapped one to one now may be data.
        let waits = |address| {
            let space = space.as_ref();
            space.is_some_and(|space| space.translate(host, address).is_none())
        };
        let lost = self.breakpoints.machine_was_reset(may_use_slot, waits);
        if lost > 0 {
            self.notices.push(&format!(
                "{lost} breakpoints stop nothing until they are set again: after a reset code is not in memory, \
                 and no debug register was free"
            ));
        }
        Ok(())
    }

    /// Forgets the client: no breakpoint and no policy of it is left.
    pub(crate) fn reset(&mut self) {
        self.registers.forget();
        self.breakpoints.clear();
        self.current = VcpuId(0);
        self.in_focus = VcpuId(0);
        self.client = ClientFeatures::default();
        self.client_view = ClientView::default();
        self.physical_memory = false;
        self.device_reads = false;
        self.step_bits = StepBits::new(self.config.mask());
        self.ends = false;
        self.orders.clear();
        self.notices.take();
        self.why = None;
        self.noticed.clear();
    }

    /// Drops the debugger's holds on all vCPUs, which stay stopped.
    pub(crate) fn disarm(&mut self) {
        for vcpu in (0..self.host.vcpu_count()).map(VcpuId) {
            if let Err(error) = self.host.disarm(vcpu) {
                tracing::error!(%vcpu, %error, "the vCPU may still be armed or masked for the debugger");
            }
        }
    }

    /// The request that is being served fails for this reason.
    pub(crate) fn explain(&mut self, text: String) {
        self.why = Some(Why {
            text,
            is_insertion: false,
        });
    }

    /// Returns the text of an error reply, if there is one and the client takes it. If it does not, the text
    /// becomes a notice that names the packet.
    pub(crate) fn error_text(&mut self, packet: &[u8]) -> Option<String> {
        let why = self.why.take()?;
        if self.client.error_message || self.client.error_strings {
            return Some(why.text);
        }
        self.notices.push_error(packet, why);
        None
    }

    /// Returns the vCPU that a thread id names.
    pub(crate) fn vcpu(&self, tid: usize) -> Option<VcpuId> {
        let index = u16::try_from(tid.checked_sub(1)?).ok()?;
        let vcpu = VcpuId(index);
        self.exists(vcpu).then_some(vcpu)
    }

    /// Returns `true` if there is such a vCPU now.
    pub(crate) fn exists(&self, vcpu: VcpuId) -> bool {
        vcpu.0 < self.host.vcpu_count()
    }

    /// Returns the vCPUs that the client sees as threads. There is always one: GDB takes a target
    /// without threads for a program that has ended.
    pub(crate) fn threads(&self) -> impl Iterator<Item = VcpuId> {
        (0..self.host.vcpu_count().max(1)).map(VcpuId)
    }

    /// Returns what a thread is called.
    pub(crate) fn thread_name(&self, vcpu: VcpuId) -> String {
        if self.exists(vcpu) {
            self.host.vcpu_name(vcpu)
        } else {
            "no vCPU yet".into()
        }
    }

    /// Says once to a client that its steps may leave a trace.
    pub(crate) fn note_unguarded(&mut self, vcpu: VcpuId) {
        const WHY: &str = "watchpoints have taken the debug registers by which a step stops at an exception's \
                           handler: one that runs within a step may see TF in its frame; delete a watchpoint";
        if self.host.is_unguarded(vcpu) && self.noticed.insert(WHY) {
            tracing::warn!(%vcpu, WHY);
            self.notices.push(WHY);
        }
    }

    /// Returns the selected vCPU, if it exists. If it does not, a notice names it.
    pub(crate) fn selected(&mut self) -> Result<VcpuId, u8> {
        let vcpu = self.current;
        if self.exists(vcpu) {
            return Ok(vcpu);
        }
        tracing::warn!(%vcpu, "the selected vCPU does not exist");
        let text = format!("thread {}: there is no {vcpu}", tid(vcpu));
        self.explain(text);
        Err(errno::ESRCH)
    }

    /// Returns the registers of the selected vCPU, of which at least `groups` are filled.
    ///
    /// While there is no vCPU, the registers of the first have their default values: GDB gives up a
    /// connection without a program counter.
    fn selected_registers(
        &mut self,
        groups: <H::Arch as Arch>::Groups,
    ) -> Result<&<H::Arch as Arch>::Registers, u8> {
        if self.current == VcpuId(0) && self.host.vcpu_count() == 0 {
            return Ok(&self.no_registers);
        }
        let vcpu = self.selected()?;
        self.registers
            .read(&mut self.host, vcpu, groups)
            .map_err(|error| refused(vcpu, &error, &mut self.why))
    }

    /// Returns what the addresses of memory packets mean.
    pub(crate) fn space(&mut self) -> Result<Space<H::Arch>, u8> {
        if self.physical_memory {
            return Ok(Space::Physical);
        }
        self.virtual_space()
    }

    /// Returns the address space of the selected vCPU.
    fn virtual_space(&mut self) -> Result<Space<H::Arch>, u8> {
        Ok(Space::Virtual(self.virtual_address_space()?))
    }

    pub(crate) fn virtual_address_space(&mut self) -> Result<<H::Arch as Arch>::AddressSpace, u8> {
        let registers = self.selected_registers(H::Arch::SPACE_GROUPS)?;
        Ok(H::Arch::address_space(registers))
    }

    /// Changes registers of a vCPU and writes `groups` of them to the host.
    pub(crate) fn change_registers(
        &mut self,
        vcpu: VcpuId,
        filled: <H::Arch as Arch>::Groups,
        change: impl FnOnce(
            &mut <H::Arch as Arch>::Registers,
            &H,
        ) -> Result<<H::Arch as Arch>::Groups, <H::Arch as Arch>::WriteError>,
    ) -> Result<(), u8> {
        let mut registers = self
            .registers
            .read(&mut self.host, vcpu, filled)
            .map_err(|error| refused(vcpu, &error, &mut self.why))?
            .clone();
        match change(&mut registers, &self.host) {
            Ok(groups) if groups == <H::Arch as Arch>::Groups::default() => Ok(()),
            Ok(groups) => self
                .registers
                .write(&mut self.host, vcpu, groups, &registers)
                .map_err(|error| refused(vcpu, &error, &mut self.why)),
            Err(error) => {
                tracing::warn!(%vcpu, %error, "registers not written");
                self.explain(error.to_string());
                Err(errno::EINVAL)
            }
        }
    }

    /// Adds or removes a breakpoint or watchpoint.
    fn set_point(&mut self, insert: bool, point: Point) -> TargetResult<bool, Self> {
        if insert {
            self.insert_point(point, HitProgram::default())
                .map_err(TargetError::Errno)?;
        } else {
            // Removing what is not there is no error: GDB removes after a failed insertion.
            self.breakpoints.remove(point);
        }
        Ok(true)
    }

    /// Adds a breakpoint or watchpoint. One that is there gets the new program.
    pub(crate) fn insert_point(&mut self, point: Point, program: HitProgram) -> Result<(), u8> {
        let in_memory = point.kind == PointKind::Software && self.config.software_breakpoints();
        let space = if in_memory {
            Some(self.virtual_space()?)
        } else {
            None
        };
        let host = &self.host;
        let may_use_slot = match point.kind {
            PointKind::Watch(_) => self.config.watchpoints(),
            PointKind::Software | PointKind::Hardware => self.config.hardware_breakpoints(),
        };
        let placed = self
            .breakpoints
            .insert(point, program, may_use_slot, |address| match &space {
                None => Err(NoRoom {
                    why: "the host does not hand breakpoint instructions to the debugger: monitor caps",
                    may_come: false,
                }),
                Some(space) => room_for_instruction(space, host, address),
            });
        let address = point.address;
        match placed {
            Ok(Placed::AsAsked) => Ok(()),
            Ok(Placed::InSlot(why)) => {
                if self.noticed.insert(why) {
                    let slots = slots_in_words::<H::Arch>();
                    self.notices.push(&format!(
                        "breakpoint at {address:#x} takes one of the {slots}: {why}"
                    ));
                    tracing::info!(
                        address = format_args!("{address:#x}"),
                        why,
                        "software breakpoint in a debug slot"
                    );
                }
                Ok(())
            }
            Ok(Placed::Awaited(why)) => {
                // GDB sends it again at each resume.
                if self.noticed.insert("awaited") {
                    self.notices.push(&format!(
                        "breakpoint at {address:#x}: {why}, and no {} for it; it is set once there is, as far as exits to the VMM show it",
                        H::Arch::SLOTS_NAME
                    ));
                }
                Ok(())
            }
            Ok(Placed::Compared) => {
                // GDB sends it again at each resume.
                if self.noticed.insert("compared") {
                    self.notices.push(&format!(
                        "watchpoint at {address:#x}: no {} for it; the guest is stepped and the memory compared, which is slow",
                        H::Arch::SLOTS_NAME
                    ));
                }
                Ok(())
            }
            Err(error) => {
                self.explain_insertion(address, &error);
                Err(match error {
                    PointError::NoSlot { .. }
                    | PointError::TooLong { .. }
                    | PointError::NotInMemory(_)
                    | PointError::NoWatchpoint
                    | PointError::TooMuchToCompare { .. }
                    | PointError::TooMuchCode
                    | PointError::TooMany => errno::ENOSPC,
                    PointError::Empty => errno::EINVAL,
                })
            }
        }
    }

    /// Puts breakpoints in memory that have waited for it, where this vCPU finds some now.
    pub(crate) fn place_awaited(&mut self, vcpu: VcpuId) {
        if !self.breakpoints.any_to_place() {
            return;
        }
        let groups = H::Arch::SPACE_GROUPS;
        match self.registers.read(&mut self.host, vcpu, groups) {
            Ok(registers) => {
                let space = Space::<H::Arch>::Virtual(H::Arch::address_space(registers));
                let host = &self.host;
                let memory_at = |address| room_for_instruction(&space, host, address);
                for address in self.breakpoints.place_awaited(memory_at) {
                    self.notices.push(&format!(
                        "breakpoint at {address:#x}: the memory that is there now cannot be written; it stops nothing"
                    ));
                }
            }
            Err(error) => {
                log_refused(vcpu, &error);
            }
        }
    }

    /// The breakpoint cannot be inserted for this reason.
    pub(crate) fn explain_insertion(&mut self, address: u64, error: &impl std::error::Error) {
        tracing::warn!(address = format_args!("{address:#x}"), %error, "breakpoint refused");
        self.why = Some(Why {
            text: format!("breakpoint at {address:#x}: {error}"),
            is_insertion: true,
        });
    }
}

/// Where a breakpoint instruction can be written.
fn room_for_instruction<A: Arch>(
    space: &Space<A>,
    memory: &impl GuestMemory,
    address: u64,
) -> Result<GuestPhysAddr, NoRoom> {
    let length = A::BREAKPOINT.len();
    if let Some(gpa) = space.writable(memory, address, length) {
        return Ok(gpa);
    }
    let is_memory = space.read(memory, address, &mut vec![0; length]) == length;
    Err(if is_memory {
        NoRoom {
            why: "the memory there cannot be written",
            may_come: false,
        }
    } else {
        NoRoom {
            why: "nothing is mapped there yet, or no RAM",
            may_come: true,
        }
    })
}

/// "four debug registers".
fn slots_in_words<A: Arch>() -> String {
    const WORDS: [&str; 9] = [
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
    ];
    let count = A::SLOTS.count(vcpu_caps::HwBreakpointKind::Execute);
    match WORDS.get(count) {
        Some(word) => format!("{word} {}", A::SLOTS_NAME),
        None => format!("{count} {}", A::SLOTS_NAME),
    }
}

/// Logs what the hypervisor refused, and keeps it for the reply. Returns the reply's error number.
pub(crate) fn refused(vcpu: VcpuId, error: &impl std::error::Error, why: &mut Option<Why>) -> u8 {
    *why = Some(Why {
        text: format!("thread {}: {error}", tid(vcpu)),
        is_insertion: false,
    });
    log_refused(vcpu, error)
}

/// Logs what the hypervisor refused. Returns the reply's error number.
pub(crate) fn log_refused(vcpu: VcpuId, error: &impl std::error::Error) -> u8 {
    tracing::warn!(%vcpu, %error, "the hypervisor refused access to registers");
    errno::EIO
}

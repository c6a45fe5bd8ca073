//! Events that enter the guest, INIT and start-up IPIs, and accesses that are completed.

use vcpu_caps::GuestDebugFlags;

use super::{Exit, SimulatedVcpu, enabled};
use crate::address::{GuestPhysAddr, GuestVirtAddr};
use crate::host::GuestMemory;
use crate::x86_64::bits::{DR6_BS, DR7_GD, RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM};
use crate::x86_64::stepper::RunState;
use crate::x86_64::{CoreRegisters, Segment, SpecialRegisters, translate};

/// What blocks interrupts for one instruction (SDM 3A 7.8.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shadow {
    #[default]
    None,
    Sti,
    /// Blocks the single-step trap, too.
    MovSs,
}

/// An interrupt or exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) vector: u8,
    pub(super) error: Option<u64>,
    /// INT n.
    pub(super) software: bool,
}

impl Event {
    pub(super) fn exception(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            software: false,
        }
    }
}

pub(super) fn page_fault() -> Event {
    Event {
        vector: PAGE_FAULT,
        error: Some(0),
        software: false,
    }
}

const PAGE_FAULT: u8 = 14;

/// Where the value of a read goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Nowhere,
    Al,
    /// Of a string instruction, at this linear address.
    Memory(u64),
}

/// An access that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// RIP behind the instruction; `None` if RIP has moved already.
    pub(super) next: Option<u64>,
    /// What takes the value that is read.
    pub(super) to: Destination,
    pub(super) value: u8,
    /// TF was set as the instruction began.
    pub(super) traps: bool,
    /// It is emulated: TF is dropped.
    pub(super) emulated: bool,
}

impl SimulatedVcpu {
    /// Completes an access. It traps like the instruction that it is part of.
    pub(super) fn complete(&mut self, access: Access, memory: &impl GuestMemory) -> Option<Exit> {
        match access.to {
            Destination::Nowhere => {}
            Destination::Al => {
                let core = &mut self.file.core;
                core.rax = core.rax & !0xff | u64::from(access.value);
            }
            Destination::Memory(address) => {
                let written = self.write_linear(address, access.value.into(), 1, memory);
                if written.is_none() {
                    // KVM queues the fault, and comes back without having delivered it.
                    self.file.special.cr2 = address;
                    self.queued = Some(page_fault());
                    return None;
                }
                self.file.core.rsi = self.file.core.rsi.wrapping_add(1);
                self.file.core.rdi = self.file.core.rdi.wrapping_add(1);
            }
        }
        let next = access.next?;
        self.file.core.rip = next;
        if access.emulated {
            self.drop_tf();
        }
        if access.traps && self.has(GuestDebugFlags::SINGLESTEP) {
            return Some(self.trap_exit(DR6_BS));
        }
        None
    }

    /// An emulated instruction writes RFLAGS back without the TF of the single step.
    pub(super) fn drop_tf(&mut self) {
        if self.has(GuestDebugFlags::SINGLESTEP) {
            let rflags = self.file.core.rflags & !RFLAGS_TF;
            self.set_rflags(rflags);
        }
    }

    /// `kvm_apic_accept_events`. Returns `true` if INIT or a start-up IPI was taken.
    pub(super) fn accept_init(&mut self) -> bool {
        let init = std::mem::take(&mut self.init);
        if init {
            self.reset_for_init();
        }
        if self.run_state != RunState::WaitForSipi {
            return init;
        }
        let Some(vector) = self.startup.take() else {
            return init;
        };
        let cs = &mut self.file.special.cs;
        cs.selector = u16::from(vector) << 8;
        cs.base = u64::from(vector) << 12;
        self.file.core.rip = 0;
        self.run_state = RunState::Runnable;
        true
    }

    /// `kvm_vcpu_reset` for INIT (SDM 3A table 9-1).
    fn reset_for_init(&mut self) {
        let segment = |kind| Segment {
            limit: 0xffff,
            kind,
            present: true,
            code_or_data: true,
            ..Segment::default()
        };
        let mut special = SpecialRegisters {
            cs: segment(11),
            ds: segment(3),
            es: segment(3),
            ss: segment(3),
            fs: segment(3),
            gs: segment(3),
            cr0: 0x10,
            apic_base: self.file.special.apic_base,
            ..SpecialRegisters::default()
        };
        special.cs.selector = 0xf000;
        special.cs.base = 0xffff_0000;
        special.idtr.limit = 0xffff;
        special.gdtr.limit = 0xffff;
        self.file.special = special;
        self.file.core = CoreRegisters::default();
        // RIP is still 0 as RFLAGS are written.
        self.set_rflags(0);
        self.file.core.rip = 0xfff0;
        self.shadow = Shadow::None;
        (self.queued, self.injected) = (None, None);
        self.nmis_blocked = false;
        self.access = None;
        (self.held_trap, self.tpr_threshold_is_stale) = (false, false);
        self.run_state = RunState::WaitForSipi;
    }

    /// Returns `true` if the vCPU runs, or what has arrived ends its HLT. The mask does not hold
    /// that back.
    pub(super) fn wakes(&mut self) -> bool {
        match self.run_state {
            RunState::Runnable | RunState::Starting => true,
            RunState::Halted => {
                let open = enabled(self.file.core.rflags, self.shadow);
                let nmi = self.nmi && !self.nmis_blocked;
                let wakes = nmi || self.queued.is_some() || (open && self.deliverable().is_some());
                if wakes {
                    self.run_state = RunState::Runnable;
                }
                wakes
            }
            RunState::WaitForInit | RunState::WaitForSipi => false,
        }
    }

    /// Delivers what is queued or pending, if the vCPU may take it.
    pub(super) fn enter_event(&mut self, memory: &impl GuestMemory) -> Option<Exit> {
        let blocked = self.has(GuestDebugFlags::BLOCKIRQ);
        let event = if let Some(event) = self.queued.take() {
            if event.vector == 3 {
                // A software exception: its frame has the RIP behind the INT3.
                self.advance(1);
            }
            event
        } else if let Some(vector) = self.injected.take() {
            Event::exception(vector)
        } else if self.nmi && !self.nmis_blocked && !blocked && self.shadow == Shadow::None {
            (self.nmi, self.nmis_blocked) = (false, true);
            Event::exception(2)
        } else if !blocked && enabled(self.file.core.rflags, self.shadow) {
            let vector = self.deliverable()?;
            self.pending.remove(&vector);
            Event::exception(vector)
        } else {
            return None;
        };
        self.deliver_and_stop(event, memory)
    }

    /// Delivers an event; where code is emulated, a step ends with that.
    pub(super) fn deliver_and_stop(
        &mut self,
        event: Event,
        memory: &impl GuestMemory,
    ) -> Option<Exit> {
        let emulates = self.habits.emulates && !self.runs_natively();
        let exit = self.deliver(event, memory);
        let stops = emulates && self.has(GuestDebugFlags::SINGLESTEP);
        exit.or_else(|| stops.then(|| self.trap_exit(DR6_BS)))
    }

    /// Enters a handler. The frame holds RFLAGS as the processor has them.
    pub(super) fn deliver(&mut self, event: Event, memory: &impl GuestMemory) -> Option<Exit> {
        self.delivered.push(event.vector);
        let image = if event.software && self.habits.emulates && !self.runs_natively() {
            self.shown_rflags()
        } else {
            self.file.core.rflags
        };
        let entered = if self.is_real() {
            self.enter_real_mode_handler(event.vector, image, memory)
        } else {
            self.enter_long_mode_handler(event, image, memory)
        };
        self.shadow = Shadow::None;
        self.held_trap = false;
        if event.vector == 1 {
            self.status.dr7 &= !DR7_GD;
        }
        if entered.is_none() {
            return Some(Exit::Shutdown);
        }
        None
    }

    fn enter_real_mode_handler(
        &mut self,
        vector: u8,
        image: u64,
        memory: &impl GuestMemory,
    ) -> Option<()> {
        let special = &self.file.special;
        let at = u64::from(vector) * 4;
        if at + 3 > special.idtr.limit.into() {
            return None;
        }
        let entry = self.read_linear(special.idtr.base + at, 4, memory)?;
        for value in [image, special.cs.selector.into(), self.file.core.rip] {
            self.push(value, 2, memory)?;
        }
        let cs = &mut self.file.special.cs;
        cs.selector = u16::try_from(entry >> 16 & 0xffff).ok()?;
        cs.base = u64::from(cs.selector) << 4;
        let core = &mut self.file.core;
        core.rip = entry & 0xffff;
        core.rflags &= !(RFLAGS_IF | RFLAGS_TF | RFLAGS_RF);
        Some(())
    }

    fn enter_long_mode_handler(
        &mut self,
        event: Event,
        image: u64,
        memory: &impl GuestMemory,
    ) -> Option<()> {
        let special = &self.file.special;
        let at = u64::from(event.vector) * 16;
        if at + 15 > special.idtr.limit.into() {
            return None;
        }
        let low = self.read_linear(special.idtr.base.wrapping_add(at), 8, memory)?;
        let high = self.read_linear(special.idtr.base.wrapping_add(at + 8), 8, memory)?;
        if low >> 47 & 1 == 0 {
            return None;
        }
        let core = self.file.core;
        let (ss, cs) = (special.ss.selector, special.cs.selector);
        if cs & 3 == 3 && special.tr.present {
            // IST1 to IST7, or RSP0 (SDM 3A 6.14.4, 6.14.5).
            let index = (low >> 32 & 7).checked_sub(1);
            let offset = index.map_or(4, |index| 0x24 + 8 * index);
            self.file.core.rsp = self.read_linear(special.tr.base + offset, 8, memory)?;
            (self.file.special.ss.selector, self.file.special.ss.dpl) = (0, 0);
        }
        self.file.core.rsp &= !0xf;
        let frame = [ss.into(), core.rsp, image, cs.into(), core.rip];
        for value in frame.into_iter().chain(event.error) {
            self.push(value, 8, memory)?;
        }
        let cs = &mut self.file.special.cs;
        cs.selector = u16::try_from(low >> 16 & 0xffff).ok()?;
        cs.dpl = 0;
        let core = &mut self.file.core;
        core.rip = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        core.rflags &= !(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM);
        // An interrupt gate; a trap gate leaves IF alone.
        if low >> 40 & 0xf == 0xe {
            core.rflags &= !RFLAGS_IF;
        }
        Some(())
    }

    /// Reads little-endian memory at a linear address.
    pub(super) fn read_linear(
        &self,
        address: u64,
        length: usize,
        memory: &impl GuestMemory,
    ) -> Option<u64> {
        let mut bytes = [0; 8];
        for (byte, offset) in bytes.iter_mut().take(length).zip(0..) {
            let at = self.physical(address.wrapping_add(offset), memory)?;
            let mut one = [0];
            if memory.read_memory(at, &mut one) != 1 {
                return None;
            }
            [*byte] = one;
        }
        Some(u64::from_le_bytes(bytes))
    }

    pub(super) fn write_linear(
        &self,
        address: u64,
        value: u64,
        length: usize,
        memory: &impl GuestMemory,
    ) -> Option<()> {
        for (byte, offset) in value.to_le_bytes().into_iter().take(length).zip(0..) {
            let at = self.physical(address.wrapping_add(offset), memory)?;
            if memory.write_memory(at, &[byte]) != 1 {
                return None;
            }
        }
        Some(())
    }

    /// Where a linear address is; `None` if nothing is mapped there.
    pub(super) fn physical(
        &self,
        address: u64,
        memory: &impl GuestMemory,
    ) -> Option<GuestPhysAddr> {
        translate(&self.file.special, memory, GuestVirtAddr(address))
            .ok()
            .map(|found| found.gpa)
    }

    /// Linear address on the stack, `offset` bytes above its top.
    pub(super) fn stack(&self, offset: i64) -> u64 {
        let rsp = self.file.core.rsp.wrapping_add_signed(offset);
        if self.is_real() {
            self.file.special.ss.base + (rsp & 0xffff)
        } else {
            rsp
        }
    }

    pub(super) fn push(&mut self, value: u64, size: u8, memory: &impl GuestMemory) -> Option<()> {
        let at = self.stack(-i64::from(size));
        self.write_linear(at, value, size.into(), memory)?;
        self.note_access(at, size.into(), true);
        self.move_stack(-i64::from(size));
        Some(())
    }

    pub(super) fn pop(&mut self, size: u8, memory: &impl GuestMemory) -> Option<u64> {
        let value = self.read_linear(self.stack(0), size.into(), memory)?;
        self.move_stack(size.into());
        Some(value)
    }

    pub(super) fn move_stack(&mut self, distance: i64) {
        let rsp = self.file.core.rsp;
        let moved = rsp.wrapping_add_signed(distance);
        self.file.core.rsp = if self.is_real() {
            rsp & !0xffff | moved & 0xffff
        } else {
            moved
        };
    }
}

//! The instructions.

use vcpu_caps::{GuestDebugFlags, HwBreakpointKind};

use super::interrupts::{Access, Destination, Event, Shadow, page_fault};
use super::{Exit, SimulatedVcpu};
use crate::address::GuestVirtAddr;
use crate::host::GuestMemory;
use crate::x86_64::DebugRegisters;
use crate::x86_64::bits::{
    DR6_BD, DR6_BS, DR7_GD, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_RESERVED, RFLAGS_RF, RFLAGS_TF,
    RFLAGS_VM,
};
use crate::x86_64::read_virtual;
use crate::x86_64::stepper::{DebugExit, RunState};

/// How an instruction ended.
enum End {
    /// RIP moves on by this.
    Next(u64),
    /// RIP, and all else, is set.
    Set,
    /// As `Set`, and whether it traps is decided by TF as it is now.
    SetTf,
    /// As `Next`, and the trap is blocked where code is not emulated.
    Blocks(u64),
    /// Nothing has changed but by the event.
    Event(Event),
    /// It leaves the guest.
    Exit(Exit),
}

const PAGE: u64 = 0x1000;
const DIVIDE_ERROR: u8 = 0;
const DEBUG: u8 = 1;
const INVALID_OPCODE: u8 = 6;

impl SimulatedVcpu {
    /// `KVM_EXIT_DEBUG` at the instruction that comes next.
    pub(super) fn trap_exit(&mut self, dr6: u64) -> Exit {
        Exit::Debug(DebugExit {
            exception: 1,
            pc: self.linear_pc(),
            dr6: dr6 | 0xffff_0ff0,
        })
    }

    /// The exit for an execute breakpoint of the debugger's at the instruction that comes next.
    pub(super) fn execute_breakpoint(&mut self) -> Option<Exit> {
        let pc = self.linear_pc();
        if self.file.core.rflags & RFLAGS_RF != 0 {
            return None;
        }
        let mut slots = self.slots();
        let (slot, _) = slots
            .find(|(_, at)| at.kind() == HwBreakpointKind::Execute && at.address() == pc)
            .filter(|_| !self.runs_natively())?;
        drop(slots);
        Some(self.trap_exit(1 << slot))
    }

    /// Executes one instruction.
    pub(super) fn step(&mut self, memory: &impl GuestMemory) -> Option<Exit> {
        let pc = self.linear_pc();
        let native = self.runs_natively();
        if let Some(exit) = self.execute_breakpoint() {
            return Some(exit);
        }
        let stepping = self.has(GuestDebugFlags::SINGLESTEP);
        if stepping && self.habits.spurious_trap && self.touched.insert(pc / PAGE) {
            return Some(self.trap_exit(DR6_BS));
        }
        let tf = self.file.core.rflags & RFLAGS_TF != 0;
        self.file.core.rflags &= !RFLAGS_RF;
        let emulated = self.habits.emulates && !native;
        let before = std::mem::take(&mut self.shadow);
        let Some(code) = self.fetch(pc, memory) else {
            return if self.is_real() {
                Some(Exit::InternalError)
            } else {
                self.file.special.cr2 = pc;
                self.deliver_and_stop(page_fault(), memory)
            };
        };
        self.watch_hits = 0;
        let end = if self.is_real() {
            self.execute_16(code, tf, memory)
        } else {
            self.execute_64(code, tf, memory)
        };
        let traps = match end {
            End::Next(length) => {
                self.advance(length);
                tf
            }
            End::Blocks(length) => {
                self.advance(length);
                tf && emulated
            }
            End::Set => tf,
            End::SetTf => self.file.core.rflags & RFLAGS_TF != 0,
            End::Event(event) => {
                self.shadow = Shadow::None;
                return self.deliver_and_stop(event, memory);
            }
            End::Exit(exit) => {
                // The instruction has not completed.
                if matches!(exit, Exit::Debug(_)) {
                    self.shadow = before;
                } else {
                    self.hold_trap(tf);
                }
                return Some(exit);
            }
        };
        if emulated && stepping && self.linear_pc() != pc {
            self.drop_tf();
        }
        let returned = matches!(code, [0xcf, ..] | [0x48, 0xcf, ..]);
        if returned && std::mem::take(&mut self.nmis_blocked) && self.nmi {
            let breakpoints = self.has(GuestDebugFlags::USE_HW_BP);
            if self.habits.steps_to_nmi_window && breakpoints && !stepping {
                return Some(self.trap_exit(DR6_BS));
            }
        }
        // It runs on in user code.
        let traps = traps && (native || !self.runs_natively());
        let mut dr6 = if traps { DR6_BS } else { 0 };
        dr6 |= std::mem::take(&mut self.watch_hits);
        if dr6 == 0 {
            return None;
        }
        self.debug_exception(dr6, memory)
    }

    /// An exit comes as TF is set, or not.
    fn hold_trap(&mut self, tf: bool) {
        self.held_trap = tf && self.habits.holds_traps;
    }

    /// Four bytes of code; zeros for those that are not there.
    fn fetch(&self, pc: u64, memory: &impl GuestMemory) -> Option<[u8; 4]> {
        let mut code = [0; 4];
        if read_virtual(&self.file.special, memory, GuestVirtAddr(pc), &mut code) == 0 {
            return None;
        }
        Some(code)
    }

    pub(super) fn advance(&mut self, length: u64) {
        let rip = self.file.core.rip.wrapping_add(length);
        self.file.core.rip = if self.is_real() { rip & 0xffff } else { rip };
    }

    fn next(&self, length: u64) -> u64 {
        let rip = self.file.core.rip.wrapping_add(length);
        if self.is_real() { rip & 0xffff } else { rip }
    }

    fn execute_16(&mut self, code: [u8; 4], tf: bool, memory: &impl GuestMemory) -> End {
        let low_word = |value: u64, word: u64| value & !0xffff | word & 0xffff;
        let core = &mut self.file.core;
        match code {
            [0x40, ..] => {
                core.rax = low_word(core.rax, core.rax.wrapping_add(1));
                End::Next(1)
            }
            [0x41, ..] => {
                core.rcx = low_word(core.rcx, core.rcx.wrapping_add(1));
                End::Next(1)
            }
            [0x43, ..] => {
                core.rbx = low_word(core.rbx, core.rbx.wrapping_add(1));
                End::Next(1)
            }
            [0x50, ..] => {
                let value = core.rax;
                self.done(|vcpu| vcpu.push(value, 2, memory), 1)
            }
            [0x58, ..] => match self.pop(2, memory) {
                Some(value) => {
                    let core = &mut self.file.core;
                    core.rax = low_word(core.rax, value);
                    End::Next(1)
                }
                None => End::Exit(Exit::InternalError),
            },
            [0x9c, ..] => self.push_flags(2, memory),
            [0x9d, ..] => self.pop_flags(2, memory),
            [0xcf, ..] => self.interrupt_return_16(memory),
            [0x8e, 0xd0, ..] => {
                let selector = u16::try_from(core.rax & 0xffff).unwrap_or_default();
                let ss = &mut self.file.special.ss;
                ss.selector = selector;
                ss.base = u64::from(selector) << 4;
                self.shadow = Shadow::MovSs;
                End::Blocks(2)
            }
            [0xf3, 0xa4, ..] => self.repeat_move(tf, memory),
            [0x88, 0x07, ..] => {
                let at = self.file.special.ds.base + (core.rbx & 0xffff);
                self.store(at, tf, memory)
            }
            [0x8a, 0x07, ..] => {
                let at = self.file.special.ds.base + (core.rbx & 0xffff);
                self.load(at, tf, memory)
            }
            _ => self.execute_any(code, tf, memory),
        }
    }

    fn execute_64(&mut self, code: [u8; 4], tf: bool, memory: &impl GuestMemory) -> End {
        let core = &mut self.file.core;
        match code {
            [0x48, 0xff, 0xc0, ..] => {
                core.rax = core.rax.wrapping_add(1);
                End::Next(3)
            }
            [0x50, ..] => {
                let value = core.rax;
                self.done(|vcpu| vcpu.push(value, 8, memory), 1)
            }
            [0x58, ..] => match self.pop(8, memory) {
                Some(value) => {
                    self.file.core.rax = value;
                    End::Next(1)
                }
                None => self.stack_fault(),
            },
            [0x9c, ..] => self.push_flags(8, memory),
            [0x9d, ..] => self.pop_flags(8, memory),
            [0x48, 0xcf, ..] => self.interrupt_return_64(memory),
            [0x8e, 0xd0, ..] => {
                self.shadow = Shadow::MovSs;
                End::Blocks(2)
            }
            [0x88, 0x07, ..] => {
                let at = core.rdi;
                self.store(at, tf, memory)
            }
            [0x8a, 0x07, ..] => {
                let at = core.rdi;
                self.load(at, tf, memory)
            }
            // MOVSB, of which only the source may be a device.
            [0xa4, ..] => {
                let (from, to) = (core.rsi, core.rdi);
                let end = self.load(from, tf, memory);
                match (&mut self.access, end) {
                    (Some(access), end) => {
                        access.to = Destination::Memory(to);
                        access.next = Some(self.file.core.rip.wrapping_add(1));
                        end
                    }
                    (None, _) => End::Event(Event::exception(INVALID_OPCODE)),
                }
            }
            [0x44, 0x0f, 0x22, 0xc0] => self.set_priority(),
            [0x0f, 0x05, ..] => {
                core.rcx = core.rip.wrapping_add(2);
                core.r11 = core.rflags & !(RFLAGS_RF | RFLAGS_VM);
                core.rip = self.lstar;
                core.rflags = core.rflags & !self.fmask & !RFLAGS_RF | RFLAGS_FIXED;
                let special = &mut self.file.special;
                (special.cs.selector, special.cs.dpl) = (0x10, 0);
                (special.ss.selector, special.ss.dpl) = (0x18, 0);
                End::SetTf
            }
            [0x48, 0x0f, 0x07, ..] => {
                core.rip = core.rcx;
                core.rflags = core.r11 & 0x003c_7fd7 | RFLAGS_FIXED;
                let special = &mut self.file.special;
                (special.cs.selector, special.cs.dpl) = (0x33, 3);
                (special.ss.selector, special.ss.dpl) = (0x2b, 3);
                End::SetTf
            }
            _ => self.execute_any(code, tf, memory),
        }
    }

    /// Instructions that are the same in both modes.
    fn execute_any(&mut self, code: [u8; 4], tf: bool, memory: &impl GuestMemory) -> End {
        let int1_exits = self.habits.int1_exits && self.is_debugged();
        let core = &mut self.file.core;
        match code {
            [0x90, ..] => End::Next(1),
            [0xeb, distance, ..] => {
                let distance = i64::from(i8::from_ne_bytes([distance]));
                let rip = self.next(2).wrapping_add_signed(distance);
                self.file.core.rip = if self.is_real() { rip & 0xffff } else { rip };
                End::Set
            }
            [0xcc, ..] => {
                if self.has(GuestDebugFlags::USE_SW_BP) {
                    if self.habits.int3_exits {
                        return End::Exit(Exit::Debug(DebugExit {
                            exception: 3,
                            pc: self.linear_pc(),
                            dr6: 0,
                        }));
                    }
                    if self.habits.emulates {
                        return End::Exit(Exit::InternalError);
                    }
                }
                self.software_interrupt(3, 1)
            }
            [0xcd, vector, ..] => self.software_interrupt(vector, 2),
            [0xf1, ..] if int1_exits => End::Exit(self.trap_exit(if tf { DR6_BS } else { 0 })),
            [0xf1, ..] if self.habits.emulates => End::Exit(Exit::InternalError),
            [0xf1, ..] => self.software_interrupt(1, 1),
            [0x0f, 0x21, register, ..] => self.move_debug_register(register, false),
            [0x0f, 0x23, register, ..] => self.move_debug_register(register, true),
            [0xfa, ..] => {
                core.rflags &= !RFLAGS_IF;
                End::Next(1)
            }
            [0xfb, ..] => {
                if core.rflags & RFLAGS_IF == 0 {
                    self.shadow = Shadow::Sti;
                }
                core.rflags |= RFLAGS_IF;
                End::Next(1)
            }
            [0xf4, ..] => {
                if !(self.habits.emulates && tf) {
                    self.run_state = RunState::Halted;
                    self.hold_trap(tf);
                }
                End::Next(1)
            }
            [0xe6, port, ..] => {
                let value = u8::try_from(core.rax & 0xff).unwrap_or_default();
                let next = self.next(2);
                if self.habits.out_moves_rip {
                    self.file.core.rip = next;
                    self.drop_tf();
                }
                self.access = Some(Access {
                    next: (!self.habits.out_moves_rip).then_some(next),
                    to: Destination::Nowhere,
                    value: 0,
                    traps: tf,
                    emulated: false,
                });
                End::Exit(Exit::PortWrite(port, value))
            }
            [0xe4, port, ..] => {
                self.access = Some(Access {
                    next: Some(self.next(2)),
                    to: Destination::Al,
                    value: 0xff,
                    traps: tf,
                    emulated: self.habits.emulates,
                });
                End::Exit(Exit::PortRead(port))
            }
            [0xf6, 0xf3, ..] => self.divide(),
            _ => {
                let _ = memory;
                End::Event(Event::exception(INVALID_OPCODE))
            }
        }
    }

    /// MOV between RAX and a debug register; DR4 and DR5 are not there.
    fn move_debug_register(&mut self, register: u8, write: bool) -> End {
        let hidden = self.habits.debugger_hides_dr7 && self.has(GuestDebugFlags::USE_HW_BP);
        if self.status.dr7 & DR7_GD != 0 && !hidden {
            if self.is_debugged() && !self.habits.debugger_hides_dr7 {
                return End::Exit(self.trap_exit(DR6_BD));
            }
            self.status.dr6 |= DR6_BD;
            return End::Event(Event::exception(DEBUG));
        }
        let DebugRegisters { dr, dr6, dr7 } = &mut self.status;
        let [dr0, dr1, dr2, dr3] = dr;
        let register = match register {
            0xc0 => dr0,
            0xc8 => dr1,
            0xd0 => dr2,
            0xd8 => dr3,
            0xf0 => dr6,
            0xf8 => dr7,
            _ => return End::Event(Event::exception(INVALID_OPCODE)),
        };
        let rax = &mut self.file.core.rax;
        if write {
            *register = *rax;
        } else {
            *rax = *register;
        }
        End::Next(3)
    }

    /// Debug exceptions leave the guest.
    fn is_debugged(&self) -> bool {
        self.has(GuestDebugFlags::SINGLESTEP) || self.has(GuestDebugFlags::USE_HW_BP)
    }

    /// MOV CR8,RAX: the TPR.
    fn set_priority(&mut self) -> End {
        let before = std::mem::replace(&mut self.file.special.cr8, self.file.core.rax & 0xf);
        let highest = self
            .pending
            .last()
            .map_or(0, |vector| u64::from(vector >> 4));
        let lets_in = self.file.special.cr8 < highest && highest <= before;
        let masked = self.has(GuestDebugFlags::BLOCKIRQ);
        if !(lets_in && masked && self.habits.keeps_tpr_threshold) {
            return End::Next(4);
        }
        self.advance(4);
        self.tpr_threshold_is_stale = true;
        End::Exit(Exit::NotEntered)
    }

    fn done(&mut self, act: impl FnOnce(&mut Self) -> Option<()>, length: u64) -> End {
        match act(self) {
            Some(()) => End::Next(length),
            None if self.is_real() => End::Exit(Exit::InternalError),
            None => self.stack_fault(),
        }
    }

    fn stack_fault(&mut self) -> End {
        self.file.special.cr2 = self.file.core.rsp;
        End::Event(page_fault())
    }

    fn push_flags(&mut self, size: u8, memory: &impl GuestMemory) -> End {
        let image = if self.habits.emulates && !self.runs_natively() {
            self.shown_rflags()
        } else {
            self.file.core.rflags
        } & !(RFLAGS_RF | RFLAGS_VM);
        self.done(|vcpu| vcpu.push(image, size, memory), 1)
    }

    fn pop_flags(&mut self, size: u8, memory: &impl GuestMemory) -> End {
        match self.pop(size, memory) {
            Some(image) => {
                self.load_flags(image, size);
                End::Next(1)
            }
            None if self.is_real() => End::Exit(Exit::InternalError),
            None => self.stack_fault(),
        }
    }

    /// TF is what is loaded; a trap follows if it was set before.
    fn load_flags(&mut self, image: u64, size: u8) {
        let core = &mut self.file.core;
        let loaded = image & !(RFLAGS_RESERVED | RFLAGS_VM | RFLAGS_RF);
        core.rflags = match size {
            2 => core.rflags & !0xffff | loaded & 0xffff,
            _ => loaded,
        } | RFLAGS_FIXED;
    }

    fn interrupt_return_16(&mut self, memory: &impl GuestMemory) -> End {
        let frame = [0, 2, 4].map(|offset| self.read_linear(self.stack(offset), 2, memory));
        let [Some(ip), Some(cs), Some(flags)] = frame else {
            return End::Exit(Exit::InternalError);
        };
        self.move_stack(6);
        let segment = &mut self.file.special.cs;
        segment.selector = u16::try_from(cs).unwrap_or_default();
        segment.base = cs << 4;
        self.file.core.rip = ip;
        self.load_flags(flags, 2);
        End::Set
    }

    fn interrupt_return_64(&mut self, memory: &impl GuestMemory) -> End {
        let frame =
            [0, 8, 16, 24, 32].map(|offset| self.read_linear(self.stack(offset), 8, memory));
        let [Some(rip), Some(cs), Some(flags), Some(rsp), Some(ss)] = frame else {
            return self.stack_fault();
        };
        let special = &mut self.file.special;
        let dpl = u8::try_from(cs & 3).unwrap_or_default();
        special.cs.selector = u16::try_from(cs & 0xffff).unwrap_or_default();
        special.ss.selector = u16::try_from(ss & 0xffff).unwrap_or_default();
        (special.cs.dpl, special.ss.dpl) = (dpl, dpl);
        (self.file.core.rip, self.file.core.rsp) = (rip, rsp);
        self.load_flags(flags, 8);
        End::Set
    }

    fn software_interrupt(&mut self, vector: u8, length: u64) -> End {
        self.advance(length);
        End::Event(Event {
            vector,
            error: None,
            software: true,
        })
    }

    fn divide(&mut self) -> End {
        let core = &mut self.file.core;
        let (dividend, divisor) = (core.rax & 0xffff, core.rbx & 0xff);
        match dividend.checked_div(divisor) {
            Some(quotient) if quotient <= 0xff => {
                core.rax = core.rax & !0xffff | (dividend % divisor) << 8 | quotient;
                End::Next(2)
            }
            _ => End::Event(Event::exception(DIVIDE_ERROR)),
        }
    }

    /// REP MOVSB from DS:SI to ES:DI, upwards.
    fn repeat_move(&mut self, tf: bool, memory: &impl GuestMemory) -> End {
        let word = |value: u64| value & 0xffff;
        let mut left = word(self.file.core.rcx);
        if left == 0 {
            return End::Next(2);
        }
        loop {
            let core = self.file.core;
            let from = self.file.special.ds.base + word(core.rsi);
            let to = self.file.special.es.base + word(core.rdi);
            let moved = self
                .read_linear(from, 1, memory)
                .and_then(|byte| self.write_linear(to, byte, 1, memory));
            if moved.is_none() {
                return End::Exit(Exit::InternalError);
            }
            left -= 1;
            let core = &mut self.file.core;
            let set = |register: &mut u64, value: u64| {
                *register = *register & !0xffff | word(value);
            };
            set(&mut core.rcx, left);
            let (rsi, rdi) = (core.rsi, core.rdi);
            set(&mut core.rsi, rsi.wrapping_add(1));
            set(&mut core.rdi, rdi.wrapping_add(1));
            if left == 0 {
                break;
            }
            if tf && self.habits.rep_traps_each {
                return End::Set;
            }
        }
        if tf && !self.habits.rep_traps_each {
            self.file.core.rflags |= RFLAGS_RF;
            return End::Set;
        }
        End::Next(2)
    }

    fn store(&mut self, at: u64, tf: bool, memory: &impl GuestMemory) -> End {
        let value = self.file.core.rax & 0xff;
        let Some(physical) = self.physical(at, memory) else {
            self.file.special.cr2 = at;
            return End::Event(page_fault());
        };
        self.note_access(at, 1, true);
        if memory.read_memory(physical, &mut [0]) == 1 {
            // What is protected ignores the write.
            memory.write_memory(physical, &value.to_le_bytes()[..1]);
            return End::Next(2);
        }
        let _ = tf;
        self.advance(2);
        self.drop_tf();
        self.access = Some(Access {
            next: None,
            to: Destination::Nowhere,
            value: 0,
            traps: false,
            emulated: true,
        });
        let value = u8::try_from(value).unwrap_or_default();
        End::Exit(Exit::MemoryWrite(physical.0, value))
    }

    fn load(&mut self, at: u64, tf: bool, memory: &impl GuestMemory) -> End {
        let Some(physical) = self.physical(at, memory) else {
            self.file.special.cr2 = at;
            return End::Event(page_fault());
        };
        self.note_access(at, 1, false);
        let mut byte = [0];
        if memory.read_memory(physical, &mut byte) == 1 {
            let core = &mut self.file.core;
            core.rax = core.rax & !0xff | u64::from(byte[0]);
            return End::Next(2);
        }
        self.access = Some(Access {
            next: Some(self.next(2)),
            to: Destination::Al,
            value: 0xff,
            traps: tf,
            emulated: true,
        });
        End::Exit(Exit::MemoryRead(physical.0))
    }

    /// Data was accessed: watchpoints that it hits trap after the instruction.
    pub(super) fn note_access(&mut self, at: u64, length: u64, write: bool) {
        if !self.habits.watchpoints {
            return;
        }
        let hits = self.slots().fold(0, |hits, (slot, watch)| {
            let kind = match watch.kind() {
                HwBreakpointKind::Execute => false,
                HwBreakpointKind::Write => write,
                HwBreakpointKind::ReadWrite => true,
            };
            hits | u64::from(kind && watch.overlaps(at, length)) << slot
        });
        self.watch_hits |= hits;
    }
}

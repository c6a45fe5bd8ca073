//! Where in physical memory an INT3 may stand while a step runs: at a handler, if the step itself neither
//! executes, reads nor writes that byte.
//!
//! An INT3 is memory that differs. So an instruction is looked at closely, as in [`faultless`](super::faultless):
//! what is not known to leave the byte alone does not. Frames that an event stores are not looked at: the
//! stepper leaves a byte alone that is no INT3 any more.

use std::ops::Range;

use arrayvec::ArrayVec;
use iced_x86::{
    CpuidFeature, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess,
    UsedMemory,
};

use super::guards::HANDLERS;
use super::machine::Machine;
use super::operand;
use super::unit::Unit;
use super::{StepClass, StepPlan};
use crate::x86_64::paging::{PagingMode, translate};
use crate::{GuestMemory, GuestPhysAddr, GuestVirtAddr};

/// What a string instruction may touch, at most, to be looked at.
const MOST_BYTES: u64 = 1 << 20;

/// A far return or IRET pops as much at most, and a call gate copies as much.
const POPPED: u64 = 256;

/// Places for INT3s, each once.
pub(crate) type Places = ArrayVec<GuestPhysAddr, HANDLERS>;

impl StepPlan {
    /// Returns `true` if the instruction certainly neither executes, reads nor writes the byte at this linear
    /// address. The frame of an exception that it raises may be there.
    pub(crate) fn leaves_alone(&self, address: u64, memory: &impl GuestMemory) -> bool {
        self.room_for_int3(&[address], memory).is_some()
    }

    /// The physical addresses of the handlers at these linear addresses, if an INT3 may stand at each of them
    /// while the step runs. `None` if that is not certain.
    pub(crate) fn room_for_int3(
        &self,
        handlers: &[u64],
        memory: &impl GuestMemory,
    ) -> Option<Places> {
        let machine = &self.first.machine;
        let special = &machine.special;
        if PagingMode::of(special) != PagingMode::None && !machine.long_mode() {
            // A task gate may lead to other page tables.
            return None;
        }
        let mut places = Places::new();
        for handler in handlers {
            let place = translate(special, memory, GuestVirtAddr(*handler))
                .ok()?
                .gpa;
            if !places.contains(&place) {
                places.try_push(place).ok()?;
            }
        }
        let free = Free {
            machine,
            memory,
            places: &places,
        };
        let tables = [
            (special.gdtr.base, special.gdtr.limit.into()),
            (special.idtr.base, special.idtr.limit.into()),
            (special.tr.base, special.tr.limit),
            (special.ldtr.base, special.ldtr.limit),
        ];
        let is_free = tables
            .into_iter()
            .all(|(base, limit)| free.holds(base, u64::from(limit) + 1))
            && free.holds(machine.stack_address(0).0, POPPED)
            && self.units().all(|unit| free.leaves_alone(unit));
        is_free.then_some(places)
    }
}

/// Memory that a step touches, compared with the places.
struct Free<'a, M> {
    machine: &'a Machine,
    memory: &'a M,
    places: &'a Places,
}

impl<M: GuestMemory> Free<'_, M> {
    /// None of the places is in these bytes. Pages that are not mapped have none.
    fn holds(&self, start: u64, length: u64) -> bool {
        self.pages(start, length, |bytes| !self.has_place(&bytes))
    }

    /// As [`holds`](Self::holds), and all of the bytes that are mapped are memory: what a device does with
    /// the guest's memory meanwhile is unknown.
    fn holds_as_memory(&self, start: u64, length: u64) -> bool {
        self.pages(start, length, |bytes| {
            let mut byte = [0];
            let is_memory = self
                .memory
                .read_memory(GuestPhysAddr(bytes.start), &mut byte)
                == 1;
            is_memory && !self.has_place(&bytes)
        })
    }

    fn has_place(&self, bytes: &Range<u64>) -> bool {
        self.places.iter().any(|place| bytes.contains(&place.0))
    }

    /// `holds` is true for each mapped page's part of the bytes, by their physical addresses.
    fn pages(&self, start: u64, length: u64, holds: impl Fn(Range<u64>) -> bool) -> bool {
        const PAGE: u64 = 0x1000;
        let mut done = 0;
        while done < length {
            let at = start.wrapping_add(done);
            let left = (PAGE - at % PAGE).min(length - done);
            let found = translate(&self.machine.special, self.memory, GuestVirtAddr(at));
            let is_free = found.map_or(true, |page| {
                holds(page.gpa.0..page.gpa.0.saturating_add(left))
            });
            if !is_free {
                return false;
            }
            done += left;
        }
        true
    }

    fn leaves_alone(&self, unit: &Unit) -> bool {
        let machine = &unit.machine;
        let instruction = &unit.decoded.instruction;
        let code = machine.linear(&machine.special.cs, machine.core.rip).0;
        let length = u64::try_from(unit.decoded.length).unwrap_or(u64::MAX);
        if !is_known(unit.class(), instruction) || !self.holds(code, length) {
            return false;
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info_options(instruction, InstructionInfoOptions::NO_REGISTER_USAGE);
        info.used_memory()
            .iter()
            .all(|used| self.leaves_operand_alone(unit, used))
    }

    fn leaves_operand_alone(&self, unit: &Unit, used: &UsedMemory) -> bool {
        // LEA and NOP name memory that they leave alone.
        if matches!(used.access(), OpAccess::None | OpAccess::NoMemAccess) {
            return true;
        }
        let extent = operand::extent(unit, used);
        let extent = extent.filter(|extent| extent.length <= MOST_BYTES);
        extent.is_some_and(|extent| self.holds_as_memory(extent.start, extent.length))
    }
}

/// The operands are all that it touches, beside descriptors and what it pops.
fn is_known(class: StepClass, instruction: &Instruction) -> bool {
    // A device may read and write any memory.
    let plain = !matches!(class, StepClass::Unknown | StepClass::PortIo);
    // Leaves system-management mode.
    let stays = instruction.mnemonic() != Mnemonic::Rsm;
    let known = instruction.cpuid_features().iter().all(|feature| {
        use CpuidFeature as Is;
        matches!(
            feature,
            Is::INTEL8086
                | Is::INTEL8086_ONLY
                | Is::INTEL186
                | Is::INTEL286
                | Is::INTEL386
                | Is::INTEL386_ONLY
                | Is::INTEL486
                | Is::X64
                | Is::CMOV
                | Is::CMPXCHG16B
                | Is::CPUID
                | Is::CX8
                | Is::FPU
                | Is::FPU287
                | Is::FPU387
                | Is::FXSR
                | Is::FSGSBASE
                | Is::MMX
                | Is::MSR
                | Is::MULTIBYTENOP
                | Is::PAUSE
                | Is::POPCNT
                | Is::SEP
                | Is::SMAP
                | Is::SSE
                | Is::SSE2
                | Is::SSE3
                | Is::SSE4_1
                | Is::SSE4_2
                | Is::SSSE3
                | Is::SYSCALL
                | Is::TSC
                | Is::AVX
                | Is::AVX2
                | Is::BMI1
                | Is::BMI2
        )
    });
    plain && stays && known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::RegisterFile;
    use crate::x86_64::bits::RFLAGS_DF;
    use crate::x86_64::simulated::{Habits, Ram, SimulatedVcpu};

    const CODE: u64 = 0x8000;
    const STACK: u64 = 0x7000;
    const TABLES: u64 = 0x1_0000;
    const IDT: u64 = 0x1_8000;
    const HANDLER: u64 = 0x9000;

    fn room(code: &[u8], handler: u64, change: impl FnOnce(&mut RegisterFile)) -> Option<Places> {
        let memory = Ram::new(0x2_0000);
        memory.put(CODE, code);
        let cr3 = memory.map_one_to_one(TABLES);
        memory.map_alias(TABLES, HANDLER);
        let vcpu = SimulatedVcpu::long_mode(Habits::INTEL, cr3, IDT, CODE, STACK);
        let mut file = vcpu.registers().clone();
        change(&mut file);
        StepPlan::new(&file, &memory).room_for_int3(&[handler], &memory)
    }

    /// mov (%rbx), %al
    const LOAD: &[u8] = &[0x8a, 0x03];
    /// mov %al, (%rbx)
    const STORE: &[u8] = &[0x88, 0x03];
    /// rep movsb
    const MOVE: &[u8] = &[0xf3, 0xa4];

    #[test]
    fn an_int3_may_stand_where_the_instruction_does_not_look() {
        let at = |place| Some(Places::from_iter([GuestPhysAddr(place)]));
        assert_eq!(room(&[0x90], HANDLER, |_| {}), at(HANDLER));
        for access in [LOAD, STORE] {
            assert_eq!(
                room(access, HANDLER, |file| file.core.rbx = HANDLER + 1),
                at(HANDLER)
            );
            assert_eq!(room(access, HANDLER, |file| file.core.rbx = HANDLER), None);
            // The same byte by another address.
            assert_eq!(
                room(access, HANDLER, |file| file.core.rbx = 0x20_0000),
                None
            );
            // What is missing is not touched, and a device may look at any memory.
            assert_eq!(
                room(access, HANDLER, |file| file.core.rbx = 0x30_0000),
                at(HANDLER)
            );
            assert_eq!(
                room(access, HANDLER, |file| file.core.rbx = 0x10_0000),
                None
            );
        }
    }

    #[test]
    fn no_int3_stands_in_the_instruction_the_stack_or_a_table() {
        for handler in [CODE, CODE + 1, STACK, STACK + 8, IDT + 3] {
            assert_eq!(room(LOAD, handler, |_| {}), None, "{handler:#x}");
        }
        assert_eq!(
            room(&[0x90], HANDLER, |file| file.special.gdtr.base = HANDLER),
            None
        );
        assert_eq!(
            room(&[0x90], HANDLER, |file| file.special.tr.base = HANDLER),
            None
        );
        // Not mapped.
        assert_eq!(room(&[0x90], 0x30_0000, |_| {}), None);
        // MOV SS, and the instruction that the same step executes.
        assert!(room(&[0x8e, 0xd0, 0x90], HANDLER, |_| {}).is_some());
        assert_eq!(room(&[0x8e, 0xd0, 0x90], CODE + 2, |_| {}), None);
    }

    #[test]
    fn a_string_instruction_touches_all_that_it_counts() {
        let moves = |count: u64, from: u64, to: u64, backwards: bool| {
            room(MOVE, HANDLER, |file| {
                (file.core.rcx, file.core.rsi, file.core.rdi) = (count, from, to);
                file.core.rflags |= if backwards { RFLAGS_DF } else { 0 };
            })
            .is_some()
        };
        let below = HANDLER - 0x100;
        assert!(moves(0x100, 0x4000, below, false));
        assert!(!moves(0x101, 0x4000, below, false));
        assert!(!moves(0x101, below, 0x4000, false));
        assert!(moves(0x1000, 0x6000, below, true));
        let above = HANDLER + 0x100;
        assert!(moves(0x100, 0x6000, above, true));
        assert!(!moves(0x101, 0x6000, above, true));
        // Too much to look at.
        assert!(!moves(MOST_BYTES + 1, 0x4000, 0x4000, false));
    }

    #[test]
    fn what_may_touch_anything_leaves_no_room() {
        for (code, name) in [
            (&[0xe6, 0x80][..], "out"),
            (&[0x0f, 0x01, 0xd8], "vmrun"),
            (&[0x0f, 0x01, 0xc2], "vmlaunch"),
            (&[0x0f, 0xaa], "rsm"),
            (&[0x0f, 0xae, 0x23], "xsave"),
            (&[0x06], "no instruction"),
        ] {
            assert_eq!(
                room(code, HANDLER, |file| file.core.rbx = 0x4000),
                None,
                "{name}"
            );
        }
        // 32-bit paging: a task gate may lead to other tables.
        let legacy = |file: &mut RegisterFile| file.special.efer = 0;
        assert_eq!(room(&[0x90], HANDLER, legacy), None);
    }
}

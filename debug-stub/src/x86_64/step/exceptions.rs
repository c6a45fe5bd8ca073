//! The exceptions that an instruction can raise (SDM 3A 6.15), most likely first.

use arrayvec::ArrayVec;
use iced_x86::{CpuidFeature, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::StepClass;
use super::machine::Machine;
use crate::x86_64::bits::{
    CR0_AM, CR0_EM, CR0_PG, CR0_TS, CR4_CET, CR4_DE, CR4_OSFXSR, RFLAGS_AC, is_canonical,
};

pub(super) const DIVIDE: u8 = 0;
pub(super) const DEBUG: u8 = 1;
pub(super) const NMI: u8 = 2;
pub(super) const BREAKPOINT: u8 = 3;
pub(super) const OVERFLOW: u8 = 4;
pub(super) const BOUND: u8 = 5;
pub(super) const INVALID_OPCODE: u8 = 6;
pub(super) const DEVICE_NOT_AVAILABLE: u8 = 7;
pub(super) const DOUBLE_FAULT: u8 = 8;
pub(super) const INVALID_TSS: u8 = 10;
pub(super) const SEGMENT_NOT_PRESENT: u8 = 11;
pub(super) const STACK_FAULT: u8 = 12;
pub(super) const GENERAL_PROTECTION: u8 = 13;
pub(super) const PAGE_FAULT: u8 = 14;
pub(super) const FLOATING_POINT: u8 = 16;
pub(super) const ALIGNMENT_CHECK: u8 = 17;
pub(super) const SIMD: u8 = 19;
pub(super) const CONTROL_PROTECTION: u8 = 21;

/// Vectors, without a duplicate.
#[derive(Clone, Debug, Default)]
pub(super) struct Vectors(ArrayVec<u8, 12>);

impl Vectors {
    pub(super) fn add(&mut self, vectors: impl IntoIterator<Item = u8>) {
        for vector in vectors {
            if !self.0.contains(&vector) {
                // More than fit are more than there are debug registers.
                let _ = self.0.try_push(vector);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u8> {
        self.0.iter().copied()
    }
}

/// The vector of INT n, INT3, INTO or INT1.
pub(super) fn software_vector(instruction: &Instruction) -> Option<u8> {
    match instruction.mnemonic() {
        Mnemonic::Int => Some(instruction.immediate8()),
        Mnemonic::Int3 => Some(BREAKPOINT),
        Mnemonic::Into => Some(OVERFLOW),
        Mnemonic::Int1 => Some(DEBUG),
        _ => None,
    }
}

/// What an instruction may raise.
#[derive(Clone, Debug, Default)]
pub(super) struct Exceptions {
    /// What it may well raise.
    pub(super) likely: Vectors,
    /// What it raises where an operating system is broken, or looks for the debugger.
    pub(super) rare: Vectors,
}

impl Exceptions {
    pub(super) fn of(machine: &Machine, class: StepClass, instruction: &Instruction) -> Self {
        let mut all = Self::default();
        if class == StepClass::Unknown {
            let usual = [INVALID_OPCODE, PAGE_FAULT, GENERAL_PROTECTION];
            all.likely.add(usual);
            return all;
        }
        match instruction.mnemonic() {
            Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Aam => all.likely.add([DIVIDE]),
            Mnemonic::Bound => all.likely.add([BOUND, INVALID_OPCODE]),
            Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => all.likely.add([INVALID_OPCODE]),
            // DR7.GD, and DR4 and DR5 under CR4.DE.
            Mnemonic::Mov if touches_debug_register(instruction) => {
                all.likely.add([DEBUG, INVALID_OPCODE]);
            }
            // An NMI ends it.
            Mnemonic::Hlt | Mnemonic::Mwait => all.likely.add([NMI]),
            _ => {}
        }
        if loads_segments(machine, class, instruction) {
            all.likely.add([SEGMENT_NOT_PRESENT]);
            all.rare.add([STACK_FAULT, INVALID_TSS]);
        }
        if uses_stack(instruction) {
            if stack_may_fault(machine) {
                all.likely.add([STACK_FAULT]);
            } else {
                all.rare.add([STACK_FAULT]);
            }
        }
        let checks_alignment = machine.special.cr0 & CR0_AM != 0;
        if checks_alignment && machine.cpl() == 3 && machine.core.rflags & RFLAGS_AC != 0 {
            all.likely.add([ALIGNMENT_CHECK]);
        }
        all.extensions(machine, instruction);
        if machine.special.cr4 & CR4_CET != 0 && instruction.flow_control() != FlowControl::Next {
            all.rare.add([CONTROL_PROTECTION]);
        }
        all.likely.add([GENERAL_PROTECTION]);
        if machine.special.cr0 & CR0_PG != 0 {
            all.likely.add([PAGE_FAULT]);
        }
        all.rare.add([NMI, INVALID_OPCODE, DOUBLE_FAULT]);
        all
    }

    /// What an instruction belongs to: x87, the vector extensions, or what only some processors have.
    fn extensions(&mut self, machine: &Machine, instruction: &Instruction) {
        let special = &machine.special;
        let (mut x87, mut simd, mut optional) = (false, false, instruction.has_lock_prefix());
        for feature in instruction.cpuid_features() {
            match feature {
                CpuidFeature::INTEL8086
                | CpuidFeature::INTEL8086_ONLY
                | CpuidFeature::INTEL186
                | CpuidFeature::INTEL386
                | CpuidFeature::INTEL386_ONLY
                | CpuidFeature::INTEL486
                | CpuidFeature::X64
                | CpuidFeature::CMOV
                | CpuidFeature::CPUID
                | CpuidFeature::TSC
                | CpuidFeature::MSR
                | CpuidFeature::MULTIBYTENOP
                | CpuidFeature::PAUSE => {}
                CpuidFeature::FPU
                | CpuidFeature::FPU287
                | CpuidFeature::FPU287XL_ONLY
                | CpuidFeature::FPU387
                | CpuidFeature::FPU387SL_ONLY => x87 = true,
                CpuidFeature::MMX
                | CpuidFeature::SSE
                | CpuidFeature::SSE2
                | CpuidFeature::SSE3
                | CpuidFeature::SSSE3
                | CpuidFeature::SSE4_1
                | CpuidFeature::SSE4_2
                | CpuidFeature::AVX
                | CpuidFeature::AVX2
                | CpuidFeature::FMA
                | CpuidFeature::AVX512F => simd = true,
                _ => optional = true,
            }
        }
        if optional {
            self.likely.add([INVALID_OPCODE]);
        }
        if x87 || simd {
            if special.cr0 & (CR0_TS | CR0_EM) != 0 {
                self.likely.add([DEVICE_NOT_AVAILABLE]);
            }
            if simd && (special.cr0 & CR0_EM != 0 || special.cr4 & CR4_OSFXSR == 0) {
                self.likely.add([INVALID_OPCODE]);
            }
            if x87 {
                self.likely.add([FLOATING_POINT]);
            } else {
                self.rare.add([SIMD]);
            }
        }
    }
}

pub(super) fn touches_debug_register(instruction: &Instruction) -> bool {
    instruction.op0_register().is_dr() || instruction.op1_register().is_dr()
}

/// An access to a debug register that CR4.DE leaves defined.
pub(super) fn accesses_debug_register(machine: &Machine, instruction: &Instruction) -> bool {
    let undefined = machine.special.cr4 & CR4_DE != 0;
    [instruction.op0_register(), instruction.op1_register()]
        .into_iter()
        .any(|register| {
            register.is_dr() && !(undefined && matches!(register, Register::DR4 | Register::DR5))
        })
}

/// Segment registers are loaded through descriptors.
fn loads_segments(machine: &Machine, class: StepClass, instruction: &Instruction) -> bool {
    if machine.real_segments() {
        return false;
    }
    let to_segment = instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register()
        && matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop);
    to_segment
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Lds
                | Mnemonic::Les
                | Mnemonic::Lfs
                | Mnemonic::Lgs
                | Mnemonic::Lss
                | Mnemonic::Lldt
                | Mnemonic::Ltr
                | Mnemonic::Retf
        )
        || class == StepClass::InterruptReturn
        || instruction.is_jmp_far()
        || instruction.is_call_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far_indirect()
}

/// Returns `true` unless the stack is flat, and its top far from what no address can be.
fn stack_may_fault(machine: &Machine) -> bool {
    const ROOM: u64 = 0x1000;
    if machine.is_64_bit() {
        let sp = machine.core.rsp;
        let canonical = |address| is_canonical(address, 48);
        return !canonical(sp.wrapping_sub(ROOM)) || !canonical(sp.wrapping_add(ROOM));
    }
    let ss = &machine.special.ss;
    !machine.real_segments() && (ss.limit != u32::MAX || ss.kind & 4 != 0)
}

fn uses_stack(instruction: &Instruction) -> bool {
    instruction.is_stack_instruction()
        || matches!(instruction.memory_base(), Register::RSP | Register::ESP)
        || matches!(
            instruction.memory_base(),
            Register::RBP | Register::EBP | Register::BP
        )
        || instruction.memory_segment() == Register::SS
}

//! The instruction: its class, and where it may lead.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use super::StepClass;
use super::machine::{Machine, width_mask};
use super::operand::{self, Popped};
use crate::GuestMemory;
use crate::x86_64::bits::{MAX_INSTRUCTION, RFLAGS_NT, RFLAGS_TF};
use crate::x86_64::paging::read_virtual;

/// Where RIP may be after the instruction has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Successor {
    /// After it.
    Next,
    /// After it, or at the target.
    NextOr(u64),
    /// At the target, in this code segment if one is given.
    Only(u64, Option<u16>),
    /// Unknown.
    Anywhere,
}

/// A decoded instruction, with what it is about to read.
#[derive(Clone, Debug)]
pub(super) struct Decoded {
    pub(super) class: StepClass,
    /// RIP after it.
    pub(super) next: u64,
    pub(super) successor: Successor,
    /// What a far transfer names: a code segment, a gate or a task.
    pub(super) selector: Option<u16>,
    /// Bytes of the RFLAGS image that PUSHF or POPF moves; 0 otherwise.
    pub(super) image_size: u64,
    /// TF in the image that POPF, IRET or SYSRET is about to load, if it can be read.
    pub(super) loaded_tf: Option<bool>,
    pub(super) instruction: Instruction,
    pub(super) code: [u8; MAX_INSTRUCTION],
    pub(super) length: usize,
}

/// Decodes the instruction at CS:RIP.
pub(super) fn decode(machine: &Machine, memory: &impl GuestMemory) -> Decoded {
    let mut code = [0; MAX_INSTRUCTION];
    let at = machine.linear(&machine.special.cs, machine.core.rip);
    let read = read_virtual(&machine.special, memory, at, &mut code);
    let readable = code.get(..read).unwrap_or_default();
    let instruction = Decoder::try_with_ip(
        machine.bitness(),
        readable,
        machine.core.rip,
        DecoderOptions::NONE,
    )
    .map(|mut decoder| decoder.decode())
    .unwrap_or_default();
    if instruction.is_invalid() {
        return Decoded {
            class: StepClass::Unknown,
            next: machine.core.rip,
            successor: Successor::Anywhere,
            selector: None,
            image_size: 0,
            loaded_tf: None,
            instruction,
            code,
            length: read,
        };
    }
    let class = classify(&instruction);
    let next = machine
        .core
        .rip
        .wrapping_add(instruction_length(&instruction))
        & machine.ip_mask();
    let (successor, loaded_tf) = match class {
        StepClass::PopFlags => {
            let size = image_size(&instruction);
            let image = machine.stack_value(memory, 0, size);
            (Successor::Next, image.map(|image| image & RFLAGS_TF != 0))
        }
        StepClass::InterruptReturn => interrupt_return(machine, memory, &instruction),
        StepClass::SystemReturn => {
            let bits = if instruction.mnemonic() == Mnemonic::Sysretq {
                64
            } else {
                32
            };
            let target = machine.core.rcx & width_mask(bits);
            let tf = machine.core.r11 & RFLAGS_TF != 0;
            (Successor::Only(target, None), Some(tf))
        }
        _ => (successor(machine, memory, &instruction), None),
    };
    Decoded {
        class,
        next,
        successor,
        selector: far_target(machine, memory, &instruction).map(|target| target.selector),
        image_size: image_size(&instruction),
        loaded_tf,
        instruction,
        code,
        length: instruction.len(),
    }
}

fn instruction_length(instruction: &Instruction) -> u64 {
    // At most 15.
    u64::try_from(instruction.len()).unwrap_or_default()
}

fn classify(instruction: &Instruction) -> StepClass {
    let loads_ss =
        instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::SS;
    match instruction.mnemonic() {
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => StepClass::PushFlags,
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => StepClass::PopFlags,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq | Mnemonic::Uiret => {
            StepClass::InterruptReturn
        }
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into => {
            StepClass::SoftwareInterrupt
        }
        Mnemonic::Syscall => StepClass::SystemCall,
        Mnemonic::Sysret | Mnemonic::Sysretq => StepClass::SystemReturn,
        Mnemonic::Sysenter | Mnemonic::Sysexit | Mnemonic::Sysexitq => StepClass::FastSystemCall,
        Mnemonic::Hlt => StepClass::Halt,
        Mnemonic::Sti => StepClass::EnableInterrupts,
        // LSS loads SS as well, but blocks nothing (SDM 3A 7.8.3).
        Mnemonic::Mov | Mnemonic::Pop if loads_ss => StepClass::LoadStackSegment,
        _ if instruction.is_string_instruction()
            && (instruction.has_rep_prefix() || instruction.has_repne_prefix()) =>
        {
            StepClass::RepeatString
        }
        Mnemonic::In
        | Mnemonic::Out
        | Mnemonic::Insb
        | Mnemonic::Insw
        | Mnemonic::Insd
        | Mnemonic::Outsb
        | Mnemonic::Outsw
        | Mnemonic::Outsd => StepClass::PortIo,
        _ if instruction.flow_control() == FlowControl::Next => StepClass::Plain,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => StepClass::Plain,
        _ => StepClass::Branch,
    }
}

/// Bytes of the image that PUSHF, POPF or IRET moves.
fn image_size(instruction: &Instruction) -> u64 {
    match instruction.mnemonic() {
        Mnemonic::Pushf | Mnemonic::Popf | Mnemonic::Iret => 2,
        Mnemonic::Pushfd | Mnemonic::Popfd | Mnemonic::Iretd => 4,
        Mnemonic::Pushfq | Mnemonic::Popfq | Mnemonic::Iretq | Mnemonic::Uiret => 8,
        _ => 0,
    }
}

/// RIP and TF from the stack (SDM 2 "IRET/IRETD/IRETQ", "UIRET").
fn interrupt_return(
    machine: &Machine,
    memory: &impl GuestMemory,
    instruction: &Instruction,
) -> (Successor, Option<bool>) {
    let size = image_size(instruction);
    let user = instruction.mnemonic() == Mnemonic::Uiret;
    if !machine.real_segments() && !machine.long_mode() && machine.core.rflags & RFLAGS_NT != 0 {
        // A return to another task: its RFLAGS are in its TSS.
        return (Successor::Anywhere, None);
    }
    let flags_offset = if user { size } else { 2 * size };
    let flags = machine.stack_value(memory, flags_offset, size);
    let ip = machine.stack_value(memory, 0, size);
    let selector = if user {
        None
    } else {
        machine.stack_value(memory, size, 2)
    };
    let successor = ip.map_or(Successor::Anywhere, |ip| {
        Successor::Only(
            ip,
            selector.and_then(|selector| u16::try_from(selector).ok()),
        )
    });
    (successor, flags.map(|flags| flags & RFLAGS_TF != 0))
}

fn successor(machine: &Machine, memory: &impl GuestMemory, instruction: &Instruction) -> Successor {
    let near = |target: Option<u64>| {
        target.map_or(Successor::Anywhere, |target| {
            Successor::Only(
                target & machine.ip_mask(),
                Some(machine.special.cs.selector),
            )
        })
    };
    let far = |popped: Option<Popped>| match popped {
        Some(Popped { ip, selector }) if !operand::is_gate(machine, memory, selector) => {
            Successor::Only(ip, Some(selector))
        }
        _ => Successor::Anywhere,
    };
    match instruction.flow_control() {
        FlowControl::Next | FlowControl::Exception => Successor::Next,
        FlowControl::Interrupt => Successor::Next,
        FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
            match instruction.op0_kind() {
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                    Successor::NextOr(instruction.near_branch_target() & machine.ip_mask())
                }
                // XEND goes on. XABORT goes on, or to the address that XBEGIN named.
                _ if instruction.mnemonic() == Mnemonic::Xend => Successor::Next,
                _ => Successor::Anywhere,
            }
        }
        FlowControl::UnconditionalBranch | FlowControl::Call => match instruction.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                near(Some(instruction.near_branch_target()))
            }
            OpKind::FarBranch16 | OpKind::FarBranch32 => {
                far(far_target(machine, memory, instruction))
            }
            _ => other_branch(instruction),
        },
        FlowControl::IndirectBranch | FlowControl::IndirectCall => {
            if instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect() {
                far(far_target(machine, memory, instruction))
            } else {
                near(operand::value(machine, memory, instruction, 0))
            }
        }
        FlowControl::Return => match instruction.code() {
            Code::Retnw | Code::Retnw_imm16 => near(machine.stack_value(memory, 0, 2)),
            Code::Retnd | Code::Retnd_imm16 => near(machine.stack_value(memory, 0, 4)),
            Code::Retnq | Code::Retnq_imm16 => near(machine.stack_value(memory, 0, 8)),
            Code::Retfw
            | Code::Retfw_imm16
            | Code::Retfd
            | Code::Retfd_imm16
            | Code::Retfq
            | Code::Retfq_imm16 => far(far_target(machine, memory, instruction)),
            Code::Sysexitd => Successor::Only(machine.core.rdx & width_mask(32), None),
            Code::Sysexitq => Successor::Only(machine.core.rdx, None),
            _ => Successor::Anywhere,
        },
    }
}

/// What a far JMP, CALL or RET names.
fn far_target(
    machine: &Machine,
    memory: &impl GuestMemory,
    instruction: &Instruction,
) -> Option<Popped> {
    let direct = |ip: u64| {
        Some(Popped {
            ip,
            selector: instruction.far_branch_selector(),
        })
    };
    match instruction.code() {
        Code::Retfw | Code::Retfw_imm16 => operand::popped_far(machine, memory, 2),
        Code::Retfd | Code::Retfd_imm16 => operand::popped_far(machine, memory, 4),
        Code::Retfq | Code::Retfq_imm16 => operand::popped_far(machine, memory, 8),
        _ if instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect() => {
            operand::far_pointer(machine, memory, instruction)
        }
        _ if instruction.op_count() == 0 => None,
        _ => match instruction.op0_kind() {
            OpKind::FarBranch16 => direct(instruction.far_branch16().into()),
            OpKind::FarBranch32 => direct(instruction.far_branch32().into()),
            _ => None,
        },
    }
}

/// The successor of an instruction that counts as a branch or call and has no operand. A hypercall goes
/// on after itself, SYSCALL and SYSENTER go where an MSR says, and a VM entry goes anywhere.
fn other_branch(instruction: &Instruction) -> Successor {
    match instruction.mnemonic() {
        Mnemonic::Vmcall | Mnemonic::Vmmcall | Mnemonic::Vmgexit => Successor::Next,
        _ => Successor::Anywhere,
    }
}

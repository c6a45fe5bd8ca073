//! Checks that each masked step is one instruction.

use debug_stub::x86_64::RegisterFile;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, Register};

use crate::image::{self, Guest};
use crate::report::{bitness, decode, describe};
use crate::ways::Place;

/// The bytes of the handlers for vectors without a gate.
const STRAY_BYTES: u64 = 5 * 256;

/// Watches a guest's steps.
#[derive(Debug, Default)]
pub struct Walk {
    last: Option<Place>,
    wrong: Option<String>,
}

impl Walk {
    /// Called before each step.
    pub fn at(&mut self, guest: &Guest, place: Place) {
        if let Some(last) = self.last.replace(place.clone()) {
            if self.wrong.is_none() && !is_one_step(guest, &last, &place.registers) {
                let next = describe(&place);
                self.wrong = Some(format!("the step of {} ends at {next}", describe(&last)));
            }
        }
    }

    /// The guest ran free for a while.
    pub fn skip(&mut self) {
        self.last = None;
    }

    /// The first step that was not one instruction.
    pub fn wrong(self) -> Option<String> {
        self.wrong
    }
}

fn is_one_step(guest: &Guest, from: &Place, to: &RegisterFile) -> bool {
    let pc = to.linear_pc();
    let is_handler = guest.gates.iter().any(|gate| gate.handler == pc)
        || (image::stray()..image::stray() + STRAY_BYTES).contains(&pc);
    if is_handler {
        return true;
    }
    let Some(instruction) = decode(from) else {
        // It can only fault.
        return false;
    };
    let rip = to.core.rip;
    let next = instruction.next_ip();
    match instruction.flow_control() {
        FlowControl::Next if blocks_traps(&instruction) => (next..next + 30).contains(&rip),
        FlowControl::Next => {
            let again = instruction.has_rep_prefix() || instruction.has_repne_prefix();
            rip == next || again && rip == instruction.ip()
        }
        FlowControl::UnconditionalBranch if instruction.is_jmp_short_or_near() => {
            rip == instruction.near_branch_target()
        }
        FlowControl::Call if instruction.is_call_near() => rip == instruction.near_branch_target(),
        FlowControl::ConditionalBranch => rip == next || rip == instruction.near_branch_target(),
        FlowControl::Return => popped(&instruction, from).is_none_or(|target| rip == target),
        FlowControl::Interrupt => instruction.mnemonic() == Mnemonic::Into && rip == next,
        FlowControl::Exception => false,
        // Where these lead is in memory, or in a register.
        _ => true,
    }
}

/// A write of SS holds off the trap of its own step (SDM 3A 6.8.3): two instructions at least.
fn blocks_traps(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
        && instruction.op0_register() == Register::SS
}

/// The target that a return pops. `None` for SYSRET and SYSEXIT, and for returns that were not looked at.
fn popped(instruction: &Instruction, from: &Place) -> Option<u64> {
    // IRET returns from a nested task (NT) elsewhere.
    if from.registers.core.rflags & 1 << 14 != 0 && bitness(&from.registers) != 64 {
        return None;
    }
    let size = match instruction.code() {
        Code::Retnw | Code::Retnw_imm16 | Code::Iretw | Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 | Code::Iretd | Code::Retfd | Code::Retfd_imm16 => 4,
        Code::Retnq | Code::Retnq_imm16 | Code::Iretq | Code::Retfq | Code::Retfq_imm16 => 8,
        _ => return None,
    };
    let bytes = from.stack.get(..size)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    )
}

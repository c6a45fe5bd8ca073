//! From bytecode to instructions. The opcodes are those of GDB's manual, "Bytecode Descriptions"; operands of
//! more than one byte are big-endian.

use super::format::Format;
use super::{FormatError, ProgramError};

/// An operation on the two values on top of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    DivSigned,
    DivUnsigned,
    RemSigned,
    RemUnsigned,
    ShiftLeft,
    ShiftRightSigned,
    ShiftRightUnsigned,
    And,
    Or,
    Xor,
    Equal,
    LessSigned,
    LessUnsigned,
}

impl Binary {
    /// Returns `true` if the right value must not be zero.
    pub(super) fn divides(self) -> bool {
        matches!(
            self,
            Self::DivSigned | Self::DivUnsigned | Self::RemSigned | Self::RemUnsigned
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    Binary(Binary),
    LogicalNot,
    Not,
    /// From this number of bits.
    SignExtend(u8),
    ZeroExtend(u8),
    /// This number of bytes, at the address on the stack.
    Load(u8),
    Constant(u64),
    Register(u16),
    /// To the instruction with this index.
    Jump(usize),
    JumpIf(usize),
    /// Copies the value below this number of others.
    Pick(u8),
    Pop,
    Swap,
    Rotate,
    Print(Box<Format>),
    End,
}

/// Why some instructions are refused.
const TRACE: &str = "it is for tracepoints";
const FLOAT: &str = "it is floating point";

pub(super) fn decode(code: &[u8]) -> Result<Vec<Instruction>, ProgramError> {
    let mut reader = Reader { code, at: 0 };
    let mut instructions = Vec::new();
    // Where each instruction begins, in ascending order.
    let mut starts = Vec::new();
    while let Some(opcode) = reader.byte() {
        let at = reader.at - 1;
        starts.push(at);
        instructions.push(reader.instruction(opcode, at)?);
    }
    // Jumps name bytes; they may lead forward.
    for (instruction, at) in instructions.iter_mut().zip(&starts) {
        if let Instruction::Jump(to) | Instruction::JumpIf(to) = instruction {
            *to = starts
                .binary_search(to)
                .map_err(|_| ProgramError::Jump { at: *at, to: *to })?;
        }
    }
    Ok(instructions)
}

struct Reader<'a> {
    code: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.code.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn number(&mut self, bytes: usize) -> Option<u64> {
        let mut value = 0;
        for _ in 0..bytes {
            value = (value << 8) | u64::from(self.byte()?);
        }
        Some(value)
    }

    fn half(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn instruction(&mut self, opcode: u8, at: usize) -> Result<Instruction, ProgramError> {
        let instruction = match opcode {
            0x34 => return self.print(at),
            _ => self.simple(opcode, at)?,
        };
        instruction.ok_or(ProgramError::Truncated { at })
    }

    /// `None` if the operands are cut short.
    fn simple(&mut self, opcode: u8, at: usize) -> Result<Option<Instruction>, ProgramError> {
        let refuse = |name, why| Err(ProgramError::NotSupported { name, at, why });
        let binary = |operation| Some(Instruction::Binary(operation));
        Ok(match opcode {
            0x01 => return refuse("float", FLOAT),
            0x02 => binary(Binary::Add),
            0x03 => binary(Binary::Sub),
            0x04 => binary(Binary::Mul),
            0x05 => binary(Binary::DivSigned),
            0x06 => binary(Binary::DivUnsigned),
            0x07 => binary(Binary::RemSigned),
            0x08 => binary(Binary::RemUnsigned),
            0x09 => binary(Binary::ShiftLeft),
            0x0a => binary(Binary::ShiftRightSigned),
            0x0b => binary(Binary::ShiftRightUnsigned),
            0x0c => return refuse("trace", TRACE),
            0x0d => return refuse("trace_quick", TRACE),
            0x0e => Some(Instruction::LogicalNot),
            0x0f => binary(Binary::And),
            0x10 => binary(Binary::Or),
            0x11 => binary(Binary::Xor),
            0x12 => Some(Instruction::Not),
            0x13 => binary(Binary::Equal),
            0x14 => binary(Binary::LessSigned),
            0x15 => binary(Binary::LessUnsigned),
            0x16 => self.byte().map(Instruction::SignExtend),
            0x17 => Some(Instruction::Load(1)),
            0x18 => Some(Instruction::Load(2)),
            0x19 => Some(Instruction::Load(4)),
            0x1a => Some(Instruction::Load(8)),
            0x1b => return refuse("ref_float", FLOAT),
            0x1c => return refuse("ref_double", FLOAT),
            0x1d => return refuse("ref_long_double", FLOAT),
            0x1e => return refuse("l_to_d", FLOAT),
            0x1f => return refuse("d_to_l", FLOAT),
            0x20 => self.half().map(|to| Instruction::JumpIf(to.into())),
            0x21 => self.half().map(|to| Instruction::Jump(to.into())),
            0x22 => self.number(1).map(Instruction::Constant),
            0x23 => self.number(2).map(Instruction::Constant),
            0x24 => self.number(4).map(Instruction::Constant),
            0x25 => self.number(8).map(Instruction::Constant),
            0x26 => self.half().map(Instruction::Register),
            0x27 => Some(Instruction::End),
            // "dup" is "pick 0".
            0x28 => Some(Instruction::Pick(0)),
            0x29 => Some(Instruction::Pop),
            0x2a => self.byte().map(Instruction::ZeroExtend),
            0x2b => Some(Instruction::Swap),
            0x2c => return refuse("getv", TRACE),
            0x2d => return refuse("setv", TRACE),
            0x2e => return refuse("tracev", TRACE),
            0x2f => return refuse("tracenz", TRACE),
            0x30 => return refuse("trace16", TRACE),
            0x32 => self.byte().map(Instruction::Pick),
            0x33 => Some(Instruction::Rotate),
            _ => return Err(ProgramError::Unknown { opcode, at }),
        })
    }

    /// `printf numargs string`: the string has its length before it, in two bytes, and a NUL at its end, which
    /// the length counts.
    fn print(&mut self, at: usize) -> Result<Instruction, ProgramError> {
        let truncated = ProgramError::Truncated { at };
        let header = self.byte().zip(self.half());
        let (arguments, length) = header.ok_or(truncated.clone())?;
        let end = self.at + usize::from(length);
        let text = self.code.get(self.at..end).ok_or(truncated)?;
        self.at = end;
        let format = match text.split_last() {
            Some((0, text)) => Format::new(text, usize::from(arguments)),
            _ => Err(FormatError::Unterminated),
        };
        format
            .map(|format| Instruction::Print(Box::new(format)))
            .map_err(|source| ProgramError::Format { at, source })
    }
}

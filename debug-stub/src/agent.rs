//! GDB's agent expressions: conditions and commands that the VMM evaluates, not the client.
//!
//! A client compiles an expression to bytecode for a stack of 64-bit values (GDB manual, appendix "The GDB Agent
//! Expression Mechanism") and sends it with a breakpoint. [`Program::new`] checks the bytecode and decodes it, and
//! [`Program::run`] evaluates it on a [`Machine`], which it only reads.
//!
//! # Limits
//! The bytecode is a client's, and may be hostile. A program has a bounded size and a bounded stack. The caller
//! bounds the steps of a run ([`Limits`]): each instruction is one, and so is each byte of a string that is
//! printed. No program panics.
//!
//! # Unsupported
//! Floating point, and what is for tracepoints only: `trace`, `tracev` and their like, and trace state variables
//! (`getv`, `setv`). [`Program::new`] refuses them by name.

mod decode;
mod format;

use std::fmt;

use thiserror::Error;

use decode::{Binary, Instruction};

/// How deep a program's stack may be. gdbserver has the same limit.
const STACK: usize = 100;

/// What a program reads.
pub trait Machine {
    /// Returns the register with the client's number, without sign extension. `None` if there is no such
    /// register, it cannot be read, or it has more than 64 bits.
    fn register(&mut self, number: u16) -> Option<u64>;

    /// Returns the `size` bytes at a virtual address as a number, in the machine's byte order. `size` is 1, 2, 4
    /// or 8. `None` if not all of them can be read.
    fn load(&mut self, address: u64, size: usize) -> Option<u64>;
}

/// What the runs of one hit may still cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instructions, and bytes of strings.
    pub steps: u32,
    /// Bytes printed.
    pub output: usize,
}

impl Limits {
    /// For all programs of one hit: under a millisecond.
    pub const HIT: Self = Self {
        steps: 10_000,
        output: 4096,
    };
}

/// Why bytecode is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProgramError {
    /// It is longer than [`Program::LONGEST`].
    #[error("bytecode of {0} bytes: more than {longest} are not supported", longest = Program::LONGEST)]
    TooLong(usize),
    /// There is no such instruction.
    #[error("bytecode {opcode:#04x} at {at} is not known")]
    Unknown {
        /// The instruction.
        opcode: u8,
        /// Where it is.
        at: usize,
    },
    /// The instruction is not supported: it is for tracepoints, or floating point.
    #[error("bytecode \"{name}\" at {at} is not supported: {why}")]
    NotSupported {
        /// The instruction's name in GDB's manual.
        name: &'static str,
        /// Where it is.
        at: usize,
        /// What it is for.
        why: &'static str,
    },
    /// The bytecode ends within the instruction.
    #[error("the bytecode ends within the instruction at {at}")]
    Truncated {
        /// Where it is.
        at: usize,
    },
    /// A jump to where no instruction begins.
    #[error("the jump at {at} leads to {to}, where no instruction begins")]
    Jump {
        /// Where the jump is.
        at: usize,
        /// Where it leads.
        to: usize,
    },
    /// The format of a `printf` is refused.
    #[error("the printf at {at}: {source}")]
    Format {
        /// Where it is.
        at: usize,
        /// Why.
        source: FormatError,
    },
}

/// Why the format of a `printf` is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    /// No NUL at its end.
    #[error("the format has no end")]
    Unterminated,
    /// An escape sequence that C does not have.
    #[error("the format has an unknown escape sequence")]
    Escape,
    /// A conversion of floating point, of wide characters, `%n`, or none at all.
    #[error("the format has a conversion that is not supported")]
    Conversion,
    /// The format wants another number of arguments.
    #[error("the format wants {wanted} arguments, and there are {given}")]
    Arguments {
        /// Conversions in the format.
        wanted: usize,
        /// Arguments of the instruction.
        given: usize,
    },
}

/// Why a run has no result. The machine is as it was: a program writes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RunError {
    /// Memory that cannot be read.
    #[error("memory at {0:#x} cannot be read")]
    Memory(u64),
    /// A register that cannot be read.
    #[error("register {0} cannot be read")]
    Register(u16),
    /// A division by zero.
    #[error("a division by zero")]
    DivisionByZero,
    /// The stack has too few values.
    #[error("the stack is empty")]
    StackEmpty,
    /// The stack has no room.
    #[error("more than {STACK} values on the stack")]
    StackFull,
    /// It has taken too many steps.
    #[error("it takes too long")]
    TooLong,
    /// It prints too much.
    #[error("it prints too much")]
    TooMuchOutput,
    /// It runs past its last instruction.
    #[error("it has no end")]
    NoEnd,
}

/// A program: bytecode that has been checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
    size: usize,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.instructions).finish()
    }
}

impl Program {
    /// The longest bytecode, in bytes.
    pub const LONGEST: usize = 4096;

    /// Checks bytecode.
    ///
    /// # Errors
    /// If it is too long, ends within an instruction, jumps into one, or has one that is not supported.
    pub fn new(code: &[u8]) -> Result<Self, ProgramError> {
        if code.len() > Self::LONGEST {
            return Err(ProgramError::TooLong(code.len()));
        }
        Ok(Self {
            instructions: decode::decode(code)?,
            size: code.len(),
        })
    }

    /// Returns the length of the bytecode.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Evaluates the program, within `limits`, of which the run's cost is taken. What it prints is appended to
    /// `output`. Returns the value on top of the stack at the end, if there is one.
    ///
    /// # Errors
    /// If a value cannot be computed, or a limit is exceeded. What was printed before stays in `output`.
    pub fn run(
        &self,
        machine: &mut impl Machine,
        limits: &mut Limits,
        output: &mut Vec<u8>,
    ) -> Result<Option<u64>, RunError> {
        let mut stack = Stack::default();
        let mut at = 0;
        loop {
            limits.step()?;
            let instruction = self.instructions.get(at).ok_or(RunError::NoEnd)?;
            at += 1;
            match instruction {
                Instruction::End => return Ok(stack.values.last().copied()),
                Instruction::Constant(value) => stack.push(*value)?,
                Instruction::Register(number) => {
                    let value = machine.register(*number);
                    stack.push(value.ok_or(RunError::Register(*number))?)?;
                }
                Instruction::Load(size) => {
                    let address = stack.pop()?;
                    let value = machine.load(address, usize::from(*size));
                    stack.push(value.ok_or(RunError::Memory(address))?)?;
                }
                Instruction::Binary(operation) => {
                    let right = stack.pop()?;
                    let left = stack.pop()?;
                    stack.push(binary(*operation, left, right)?)?;
                }
                Instruction::LogicalNot => {
                    let value = stack.pop()?;
                    stack.push(u64::from(value == 0))?;
                }
                Instruction::Not => {
                    let value = stack.pop()?;
                    stack.push(!value)?;
                }
                Instruction::SignExtend(bits) => {
                    let value = stack.pop()?;
                    stack.push(sign_extended(value, *bits))?;
                }
                Instruction::ZeroExtend(bits) => {
                    let value = stack.pop()?;
                    stack.push(value & low_bits(*bits))?;
                }
                Instruction::Jump(to) => at = *to,
                Instruction::JumpIf(to) => {
                    if stack.pop()? != 0 {
                        at = *to;
                    }
                }
                Instruction::Pick(depth) => {
                    let value = stack.peek(usize::from(*depth))?;
                    stack.push(value)?;
                }
                Instruction::Pop => {
                    stack.pop()?;
                }
                Instruction::Swap => {
                    let (b, a) = (stack.pop()?, stack.pop()?);
                    stack.push(b)?;
                    stack.push(a)?;
                }
                Instruction::Rotate => {
                    // "a b c => c a b".
                    let (c, b, a) = (stack.pop()?, stack.pop()?, stack.pop()?);
                    stack.push(c)?;
                    stack.push(a)?;
                    stack.push(b)?;
                }
                Instruction::Print(format) => {
                    // The function to print with, and its channel: there is one console.
                    stack.pop()?;
                    stack.pop()?;
                    let mut arguments = Vec::new();
                    for _ in 0..format.arguments() {
                        arguments.push(stack.pop()?);
                    }
                    format.print(&arguments, machine, limits, output)?;
                }
            }
        }
    }
}

impl Limits {
    fn step(&mut self) -> Result<(), RunError> {
        self.steps = self.steps.checked_sub(1).ok_or(RunError::TooLong)?;
        Ok(())
    }

    fn print(&mut self, output: &mut Vec<u8>, byte: u8) -> Result<(), RunError> {
        self.output = self.output.checked_sub(1).ok_or(RunError::TooMuchOutput)?;
        output.push(byte);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Stack {
    values: Vec<u64>,
}

impl Stack {
    fn push(&mut self, value: u64) -> Result<(), RunError> {
        if self.values.len() >= STACK {
            return Err(RunError::StackFull);
        }
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<u64, RunError> {
        self.values.pop().ok_or(RunError::StackEmpty)
    }

    /// The value below `depth` others.
    fn peek(&self, depth: usize) -> Result<u64, RunError> {
        let value = self.values.iter().rev().nth(depth);
        value.copied().ok_or(RunError::StackEmpty)
    }
}

/// The manual leaves shifts by more than the width, and the quotient that overflows, to the target: they are as
/// wide arithmetic cut to 64 bits gives them.
fn binary(operation: Binary, left: u64, right: u64) -> Result<u64, RunError> {
    let signed = (left.cast_signed(), right.cast_signed());
    let by = u32::try_from(right).unwrap_or(u32::MAX);
    if right == 0 && operation.divides() {
        return Err(RunError::DivisionByZero);
    }
    Ok(match operation {
        Binary::Add => left.wrapping_add(right),
        Binary::Sub => left.wrapping_sub(right),
        Binary::Mul => left.wrapping_mul(right),
        Binary::DivSigned => signed.0.wrapping_div(signed.1).cast_unsigned(),
        Binary::DivUnsigned => left.wrapping_div(right),
        Binary::RemSigned => signed.0.wrapping_rem(signed.1).cast_unsigned(),
        Binary::RemUnsigned => left.wrapping_rem(right),
        Binary::ShiftLeft => left.checked_shl(by).unwrap_or(0),
        Binary::ShiftRightSigned => (signed.0 >> by.min(u64::BITS - 1)).cast_unsigned(),
        Binary::ShiftRightUnsigned => left.checked_shr(by).unwrap_or(0),
        Binary::And => left & right,
        Binary::Or => left | right,
        Binary::Xor => left ^ right,
        Binary::Equal => u64::from(left == right),
        Binary::LessSigned => u64::from(signed.0 < signed.1),
        Binary::LessUnsigned => u64::from(left < right),
    })
}

/// The `bits` lowest bits, set.
fn low_bits(bits: u8) -> u64 {
    1u64.checked_shl(bits.into())
        .map_or(u64::MAX, |above| above - 1)
}

fn sign_extended(value: u64, bits: u8) -> u64 {
    let unused = u64::BITS.saturating_sub(bits.into());
    let up = value.checked_shl(unused).unwrap_or(0).cast_signed();
    (up >> unused.min(u64::BITS - 1)).cast_unsigned()
}

#[cfg(test)]
mod tests;

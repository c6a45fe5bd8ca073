//! Register writes: `P` and `G`.

use super::table::Rule;
use super::{RegisterId, WriteError, checks};
use crate::GuestMemory;
use crate::x86_64::{RegisterFile, StateComponents, View};

/// Sets one register.
pub(super) fn write_one(
    id: RegisterId,
    registers: &mut RegisterFile,
    memory: &impl GuestMemory,
    value: &[u8],
) -> Result<(), WriteError> {
    if let Rule::ZmmHigh(index) = id.row().rule {
        return write_zmm_high(id, index, registers, value);
    }
    let value = decode(id, value)?;
    if id.shown(registers) == Some(value) {
        // Also a value that could not be loaded now: a selector beyond the GDT, for instance, which was
        // loaded from another one. GDB writes registers back after a call of a function.
        return Ok(());
    }
    let mut after = registers.clone();
    checks::store(id, &mut after, memory, value)?;
    checks::settle(registers, &mut after)?;
    *registers = after;
    Ok(())
}

/// Sets bits 511:256 of a ZMM register.
fn write_zmm_high(
    id: RegisterId,
    index: usize,
    registers: &mut RegisterFile,
    value: &[u8],
) -> Result<(), WriteError> {
    let value = value.try_into().map_err(|_| length(id, value))?;
    let state = registers.fpu.avx512.as_mut();
    match state.and_then(|state| state.zmm_high.get_mut(index)) {
        Some(high) => *high = value,
        None => return Err(checks::not_enabled(id, StateComponents::AVX512)),
    }
    Ok(())
}

/// The data of a `G` packet: sets all registers, which must all be filled before.
///
/// Registers whose value the data does not change are not written: the parts of them that GDB does
/// not see stay. The values are checked together: a `G` may go from one mode to another. All or
/// nothing: after an error `registers` is unchanged.
///
/// # Errors
/// If the length or a value is wrong. Send the client an error.
pub fn write_all(
    view: View,
    registers: &mut RegisterFile,
    memory: &impl GuestMemory,
    data: &[u8],
) -> Result<(), WriteError> {
    if data.len() != view.total_bytes() {
        return Err(WriteError::TotalLength {
            expected: view.total_bytes(),
            actual: data.len(),
        });
    }
    let mut after = registers.clone();
    for stage in Stage::ORDER {
        let mut rest = data;
        for id in view.registers_in_g() {
            let Some((bytes, tail)) = rest.split_at_checked(id.size_bytes()) else {
                break;
            };
            rest = tail;
            if Stage::of(id) != stage {
                continue;
            }
            let value = decode(id, bytes)?;
            // Compared with the old value: a selector's load changes a base in `after`. A linear address is
            // compared with the new one: it moves with the base.
            let moved = stage == Stage::Linear && id.value(&after) != value;
            if moved || id.shown(registers) != Some(value) {
                checks::store(id, &mut after, memory, value)?;
            }
        }
    }
    checks::settle(registers, &mut after)?;
    *registers = after;
    Ok(())
}

/// When a register of a `G` is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Registers that decide the mode, and those that no other depends on.
    Mode,
    /// Selectors: how they load depends on the mode.
    Selectors,
    /// Bases: a new one in the packet wins over that of the selector.
    Bases,
    /// Linear addresses, which are stored without the base.
    Linear,
}

impl Stage {
    const ORDER: [Self; 4] = [Self::Mode, Self::Selectors, Self::Bases, Self::Linear];

    fn of(id: RegisterId) -> Self {
        match id.row().rule {
            Rule::Selector(..) => Self::Selectors,
            Rule::Address | Rule::SegmentBase => Self::Bases,
            Rule::ProgramCounter | Rule::StackPointer => Self::Linear,
            _ => Self::Mode,
        }
    }
}

fn decode(id: RegisterId, value: &[u8]) -> Result<u128, WriteError> {
    let mut bytes = [0; 16];
    match bytes.get_mut(..value.len()) {
        Some(low) if value.len() == id.size_bytes() => low.copy_from_slice(value),
        _ => return Err(length(id, value)),
    }
    Ok(u128::from_le_bytes(bytes))
}

fn length(id: RegisterId, value: &[u8]) -> WriteError {
    WriteError::Length {
        register: id.name(),
        expected: id.size_bytes(),
        actual: value.len(),
    }
}

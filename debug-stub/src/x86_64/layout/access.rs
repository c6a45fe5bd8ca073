//! Conversions between GDB's value of a register and the register file's.

use crate::x86_64::{RegisterFile, Segment};

/// Returns the low bits of a value for a smaller field. The caller has checked that it fits.
pub(super) fn truncate<T: Truncate>(value: u128) -> T {
    T::from_low(value)
}

/// Unsigned integers that registers are stored in.
pub(super) trait Truncate {
    fn from_low(value: u128) -> Self;
}

impl Truncate for u64 {
    fn from_low(value: u128) -> Self {
        let [low, _] = halves(value);
        low
    }
}

impl Truncate for u32 {
    fn from_low(value: u128) -> Self {
        let [a, b, c, d, ..] = value.to_le_bytes();
        Self::from_le_bytes([a, b, c, d])
    }
}

impl Truncate for u16 {
    fn from_low(value: u128) -> Self {
        let [a, b, ..] = value.to_le_bytes();
        Self::from_le_bytes([a, b])
    }
}

fn halves(value: u128) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = value.to_le_bytes();
    [
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u64::from_le_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// Access rights (SDM 3C table 25-2).
pub(super) fn rights(segment: &Segment) -> u32 {
    let bit = |set: bool, bit: u32| u32::from(set) << bit;
    u32::from(segment.kind & 0xf)
        | bit(segment.code_or_data, 4)
        | u32::from(segment.dpl & 3) << 5
        | bit(segment.present, 7)
        | bit(segment.available, 12)
        | bit(segment.long, 13)
        | bit(segment.default_big, 14)
        | bit(segment.granularity, 15)
        | bit(segment.unusable, 16)
}

/// An 80-bit x87 value as a number.
pub(super) fn extended(bytes: &[u8; 10]) -> u128 {
    let [a, b, c, d, e, f, g, h, i, j] = *bytes;
    u128::from_le_bytes([a, b, c, d, e, f, g, h, i, j, 0, 0, 0, 0, 0, 0])
}

/// A number as an 80-bit x87 value.
pub(super) fn to_extended(value: u128) -> [u8; 10] {
    let [a, b, c, d, e, f, g, h, i, j, ..] = value.to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j]
}

/// GDB splits an x87 pointer as FXSAVE without REX.W lays it out (SDM 1 table 10-2): offset in
/// bits 31:0, selector in bits 47:32. Of a 64-bit pointer, bits 63:48 are not shown.
pub(super) fn pointer_low(pointer: u64) -> u128 {
    u128::from(pointer & 0xffff_ffff)
}

/// Bits 47:32 of an x87 pointer.
pub(super) fn pointer_high(pointer: u64) -> u128 {
    u128::from((pointer >> 32) & 0xffff)
}

/// Sets bits 31:0 and keeps the others.
pub(super) fn with_pointer_low(pointer: u64, value: u128) -> u64 {
    let low: u32 = truncate(value);
    (pointer & !0xffff_ffff) | u64::from(low)
}

/// Sets bits 47:32 and keeps the others, also those that GDB does not see.
pub(super) fn with_pointer_high(pointer: u64, value: u128) -> u64 {
    let high: u16 = truncate(value);
    (pointer & !0xffff_0000_0000) | (u64::from(high) << 32)
}

/// Tags (SDM 1 8.1.7).
const TAG_VALID: u16 = 0;
const TAG_ZERO: u16 = 1;
const TAG_SPECIAL: u16 = 2;
const TAG_EMPTY: u16 = 3;

/// The full tag word: two bits for each *physical* register, from the abridged one and the
/// contents, as an FXSAVE image is read back (SDM 1 10.5.1.1 and table 10-1).
pub(super) fn full_tag(file: &RegisterFile) -> u128 {
    // FSW.TOP is bits 13:11. ST(i) is physical register (TOP + i) mod 8.
    let top = usize::from((file.fpu.fsw >> 11) & 7);
    let mut word = 0u16;
    for physical in 0..8usize {
        let stack_index = (physical + 8 - top) & 7;
        let tag = if file.fpu.ftw_abridged & (1 << physical) == 0 {
            TAG_EMPTY
        } else {
            file.fpu.st.get(stack_index).map_or(TAG_EMPTY, content_tag)
        };
        word |= tag << (physical * 2);
    }
    u128::from(word)
}

/// The abridged tag word: a register is empty or it is not.
pub(super) fn set_full_tag(file: &mut RegisterFile, value: u128) {
    let word: u16 = truncate(value);
    file.fpu.ftw_abridged = (0..8)
        .filter(|physical| (word >> (physical * 2)) & 3 != TAG_EMPTY)
        .fold(0, |abridged, physical| abridged | (1 << physical));
}

/// The tag of a register that is not empty (SDM 1 table 10-1).
fn content_tag(value: &[u8; 10]) -> u16 {
    let [mantissa @ .., low, high] = value;
    let exponent = u16::from_le_bytes([*low, *high]) & 0x7fff;
    let mantissa = u64::from_le_bytes(*mantissa);
    let integer_bit = mantissa >> 63 == 1;
    match exponent {
        0x7fff => TAG_SPECIAL,
        0 if mantissa == 0 => TAG_ZERO,
        0 => TAG_SPECIAL,
        _ if integer_bit => TAG_VALID,
        // Unnormal: not a number that the FPU makes.
        _ => TAG_SPECIAL,
    }
}

//! The formats of `printf`: C's, without floating point and wide characters.

use super::{FormatError, Limits, Machine, RunError, sign_extended};

/// The most that a width or a precision may be. More would exceed what a hit may print.
const WIDEST: usize = 4096;

/// The longest string of the guest's that is printed, in bytes.
const LONGEST_STRING: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pieces: Vec<Piece>,
    arguments: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Value(Conversion),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Conversion {
    left: bool,
    zeros: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
    /// Of an integer.
    bits: u8,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Signed,
    Unsigned,
    Octal,
    Hex,
    UpperHex,
    Character,
    String,
    Pointer,
}

impl Format {
    /// Parses a format as it is in C source: escape sequences are two characters or more.
    pub(super) fn new(text: &[u8], given: usize) -> Result<Self, FormatError> {
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut arguments = 0;
        let mut rest = text.iter().copied().peekable();
        while let Some(byte) = rest.next() {
            match byte {
                b'\\' => literal.push(escaped(&mut rest)?),
                b'%' if rest.peek() == Some(&b'%') => {
                    rest.next();
                    literal.push(b'%');
                }
                b'%' => {
                    pieces.push(Piece::Text(std::mem::take(&mut literal)));
                    pieces.push(Piece::Value(Conversion::parse(&mut rest)?));
                    arguments += 1;
                }
                _ => literal.push(byte),
            }
        }
        pieces.push(Piece::Text(literal));
        if arguments != given {
            return Err(FormatError::Arguments {
                wanted: arguments,
                given,
            });
        }
        Ok(Self { pieces, arguments })
    }

    pub(super) fn arguments(&self) -> usize {
        self.arguments
    }

    pub(super) fn print(
        &self,
        arguments: &[u64],
        machine: &mut impl Machine,
        limits: &mut Limits,
        output: &mut Vec<u8>,
    ) -> Result<(), RunError> {
        let mut arguments = arguments.iter();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => {
                    for byte in text {
                        limits.print(output, *byte)?;
                    }
                }
                Piece::Value(conversion) => {
                    let value = *arguments.next().ok_or(RunError::StackEmpty)?;
                    conversion.print(value, machine, limits, output)?;
                }
            }
        }
        Ok(())
    }
}

/// The escape sequences that GDB's `printf` takes.
fn escaped(rest: &mut std::iter::Peekable<impl Iterator<Item = u8>>) -> Result<u8, FormatError> {
    let byte = rest.next().ok_or(FormatError::Escape)?;
    Ok(match byte {
        b'a' => 7,
        b'b' => 8,
        b'e' => 27,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 11,
        b'\\' | b'"' | b'\'' | b'?' => byte,
        b'0'..=b'7' => {
            let mut value = byte - b'0';
            for _ in 0..2 {
                let Some(digit @ b'0'..=b'7') = rest.peek().copied() else {
                    break;
                };
                rest.next();
                value = value.wrapping_mul(8).wrapping_add(digit - b'0');
            }
            value
        }
        _ => return Err(FormatError::Escape),
    })
}

/// A decimal number, at most [`WIDEST`].
fn number(rest: &mut std::iter::Peekable<impl Iterator<Item = u8>>) -> usize {
    let mut value = 0usize;
    while let Some(digit @ b'0'..=b'9') = rest.peek().copied() {
        rest.next();
        value = (value * 10 + usize::from(digit - b'0')).min(WIDEST);
    }
    value
}

impl Conversion {
    /// Parses what follows `%`.
    fn parse(
        rest: &mut std::iter::Peekable<impl Iterator<Item = u8>>,
    ) -> Result<Self, FormatError> {
        let mut conversion = Self {
            bits: 32,
            ..Self::default()
        };
        while let Some(flag) = rest.peek().copied() {
            match flag {
                b'-' => conversion.left = true,
                b'0' => conversion.zeros = true,
                b'+' => conversion.plus = true,
                b' ' => conversion.space = true,
                b'#' => conversion.alternate = true,
                // Grouped digits: the C locale groups none.
                b'\'' => {}
                _ => break,
            }
            rest.next();
        }
        conversion.width = number(rest);
        if rest.peek() == Some(&b'.') {
            rest.next();
            conversion.precision = Some(number(rest));
        }
        let mut long = false;
        loop {
            match rest.peek() {
                // `h` is 16 bits and `hh` is 8.
                Some(b'h') => conversion.bits = if conversion.bits == 16 { 8 } else { 16 },
                Some(b'l' | b'j' | b'z' | b't') => {
                    conversion.bits = 64;
                    long = true;
                }
                _ => break,
            }
            rest.next();
        }
        conversion.kind = match rest.next() {
            Some(b'd' | b'i') => Kind::Signed,
            Some(b'u') => Kind::Unsigned,
            Some(b'o') => Kind::Octal,
            Some(b'x') => Kind::Hex,
            Some(b'X') => Kind::UpperHex,
            // Wide characters with `l`.
            Some(b'c') if !long => Kind::Character,
            Some(b's') if !long => Kind::String,
            Some(b'p') => Kind::Pointer,
            _ => return Err(FormatError::Conversion),
        };
        Ok(conversion)
    }

    fn print(
        &self,
        value: u64,
        machine: &mut impl Machine,
        limits: &mut Limits,
        output: &mut Vec<u8>,
    ) -> Result<(), RunError> {
        let cut = value & super::low_bits(self.bits);
        let (sign, body) = match self.kind {
            Kind::Signed => {
                let number = sign_extended(value, self.bits).cast_signed();
                let sign = match (number < 0, self.plus, self.space) {
                    (true, ..) => "-",
                    (false, true, _) => "+",
                    (false, false, true) => " ",
                    (false, false, false) => "",
                };
                (sign, number.unsigned_abs().to_string())
            }
            Kind::Unsigned => ("", cut.to_string()),
            Kind::Octal if self.alternate => ("0", format!("{cut:o}")),
            Kind::Octal => ("", format!("{cut:o}")),
            Kind::Hex if self.alternate && cut != 0 => ("0x", format!("{cut:x}")),
            Kind::Hex => ("", format!("{cut:x}")),
            Kind::UpperHex if self.alternate && cut != 0 => ("0X", format!("{cut:X}")),
            Kind::UpperHex => ("", format!("{cut:X}")),
            Kind::Pointer => ("0x", format!("{value:x}")),
            Kind::Character => {
                let [byte, ..] = value.to_le_bytes();
                return self.pad("", &[byte], false, limits, output);
            }
            Kind::String => {
                let text = self.string(value, machine, limits)?;
                return self.pad("", &text, false, limits, output);
            }
        };
        let digits = self.precision.unwrap_or(0).saturating_sub(body.len());
        let body = "0".repeat(digits) + &body;
        // "If a precision is given with a numeric conversion, the 0 flag is ignored" (C).
        let zeros = self.zeros && !self.left && self.precision.is_none();
        self.pad(sign, body.as_bytes(), zeros, limits, output)
    }

    /// Reads a string of the guest's. It cannot drive the terminal of the client's user: control characters are
    /// shown as dots.
    fn string(
        &self,
        address: u64,
        machine: &mut impl Machine,
        limits: &mut Limits,
    ) -> Result<Vec<u8>, RunError> {
        let longest = self.precision.unwrap_or(LONGEST_STRING).min(LONGEST_STRING);
        let mut text = Vec::new();
        while text.len() < longest {
            limits.step()?;
            let at = address.wrapping_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
            let byte = machine.load(at, 1).ok_or(RunError::Memory(at))?;
            let [byte, ..] = byte.to_le_bytes();
            text.push(match byte {
                0 => break,
                b'\n' | b'\r' | b'\t' => byte,
                byte if byte.is_ascii_control() => b'.',
                byte => byte,
            });
        }
        Ok(text)
    }

    /// Prints `sign` and `body` in at least the width.
    fn pad(
        &self,
        sign: &str,
        body: &[u8],
        zeros: bool,
        limits: &mut Limits,
        output: &mut Vec<u8>,
    ) -> Result<(), RunError> {
        let room = self.width.saturating_sub(sign.len() + body.len());
        let (before, between, after) = match (self.left, zeros) {
            (true, _) => (0, 0, room),
            (false, true) => (0, room, 0),
            (false, false) => (room, 0, 0),
        };
        let spaces = |count| std::iter::repeat_n(b' ', count);
        let zeros = std::iter::repeat_n(b'0', between);
        let bytes = spaces(before)
            .chain(sign.bytes())
            .chain(zeros)
            .chain(body.iter().copied())
            .chain(spaces(after));
        for byte in bytes {
            limits.print(output, byte)?;
        }
        Ok(())
    }
}

//! What a byte written to an 8259A means (8259A data sheet, "Programming the 8259A").

/// A write with A0 = 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Initialisation starts: ICW1, D4 = 1.
    Icw1(Icw1),
    /// OCW2, D4 D3 = 00: end of interrupt and rotation.
    Ocw2(Ocw2),
    /// OCW3, D4 D3 = 01: special mask, poll, register to read.
    Ocw3(Ocw3),
}

/// ICW1. The address bits of the 8080 and the call interval are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Icw1 {
    /// IC4: ICW4 will follow.
    pub(super) needs_icw4: bool,
    /// SNGL: no ICW3 will follow.
    pub(super) single: bool,
    /// LTIM: all inputs are level-triggered.
    pub(super) level_triggered: bool,
}

/// OCW2 by its bits R, SL, EOI; `u8` is the level L2 to L0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ocw2 {
    /// 000 and 100.
    RotateInAutoEoi(bool),
    /// 001.
    NonSpecificEoi,
    /// 010.
    NoOperation,
    /// 011.
    SpecificEoi(u8),
    /// 101.
    RotateOnNonSpecificEoi,
    /// 110.
    SetPriority(u8),
    /// 111.
    RotateOnSpecificEoi(u8),
}

/// OCW3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ocw3 {
    /// ESMM and SMM: set or reset special mask mode.
    pub(super) special_mask: Option<bool>,
    /// P: the next read is a poll.
    pub(super) poll: bool,
    /// RR and RIS: from now on reads give ISR (true) or IRR.
    pub(super) read_isr: Option<bool>,
}

const fn bit(value: u8, index: u8) -> bool {
    value >> index & 1 != 0
}

impl Command {
    pub(super) const fn decode(value: u8) -> Self {
        if bit(value, 4) {
            return Self::Icw1(Icw1 {
                needs_icw4: bit(value, 0),
                single: bit(value, 1),
                level_triggered: bit(value, 3),
            });
        }
        if bit(value, 3) {
            return Self::Ocw3(Ocw3 {
                special_mask: if bit(value, 6) {
                    Some(bit(value, 5))
                } else {
                    None
                },
                poll: bit(value, 2),
                read_isr: if bit(value, 1) {
                    Some(bit(value, 0))
                } else {
                    None
                },
            });
        }
        let level = value & 7;
        Self::Ocw2(match value >> 5 {
            0b000 => Ocw2::RotateInAutoEoi(false),
            0b001 => Ocw2::NonSpecificEoi,
            0b011 => Ocw2::SpecificEoi(level),
            0b100 => Ocw2::RotateInAutoEoi(true),
            0b101 => Ocw2::RotateOnNonSpecificEoi,
            0b110 => Ocw2::SetPriority(level),
            0b111 => Ocw2::RotateOnSpecificEoi(level),
            _ => Ocw2::NoOperation,
        })
    }
}

/// ICW4, without the buffered mode and the processor's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Icw4 {
    /// AEOI.
    pub(super) auto_eoi: bool,
    /// SFNM.
    pub(super) special_fully_nested: bool,
}

impl Icw4 {
    pub(super) const fn decode(value: u8) -> Self {
        Self {
            auto_eoi: bit(value, 1),
            special_fully_nested: bit(value, 4),
        }
    }
}

//! The 66 rows.

use super::access;
use crate::x86_64::bits::{CR3_DEFINED, CR4_DEFINED, EFER_DEFINED};
use crate::x86_64::{RegisterFile, RegisterGroups, Segment, SpecialRegisters};

/// What a register holds, for GDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::x86_64) enum Kind {
    /// 64-bit number.
    Int64,
    /// 32-bit number.
    Int32,
    /// 64-bit data address.
    DataPointer,
    /// 64-bit code address.
    CodePointer,
    /// 32-bit RFLAGS.
    Eflags,
    /// CR0.
    Cr0,
    /// CR3.
    Cr3,
    /// CR4.
    Cr4,
    /// IA32_EFER.
    Efer,
    /// x87 data, 80 bits.
    Extended,
    /// x87 control, 16 or 32 bits shown as 32.
    X87Control,
    /// XMM, 128 bits.
    Vector,
    /// MXCSR, 32 bits.
    Mxcsr,
}

impl Kind {
    pub(in crate::x86_64) const fn bytes(self) -> usize {
        match self {
            Self::Int32 | Self::Eflags | Self::X87Control | Self::Mxcsr => 4,
            Self::Int64
            | Self::DataPointer
            | Self::CodePointer
            | Self::Cr0
            | Self::Cr3
            | Self::Cr4
            | Self::Efer => 8,
            Self::Extended => 10,
            Self::Vector => 16,
        }
    }
}

/// Which values a register accepts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// All.
    Any,
    /// These bits; others are refused.
    Bits(u64),
    /// A linear address that the CPU checks.
    Address,
    /// RFLAGS: undefined bits are ignored.
    Flags,
    /// CR0: reserved bits below 32 are ignored, others refused (SDM 3A 2.5).
    Cr0,
    /// A selector: a write also loads the hidden part of its segment.
    Selector(SegmentName, fn(&mut SpecialRegisters) -> &mut Segment),
}

/// What is special about loading a segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentName {
    /// CS takes code.
    Code,
    /// SS takes writable data of the CPL.
    Stack,
    /// DS, ES, FS, GS take what can be read, or a null selector.
    Data,
}

/// One register.
#[derive(Debug)]
pub(in crate::x86_64) struct Row {
    pub(in crate::x86_64) name: &'static str,
    pub(in crate::x86_64) kind: Kind,
    pub(super) groups: RegisterGroups,
    pub(super) rule: Rule,
    /// The value as GDB sees it.
    pub(super) get: fn(&RegisterFile) -> u128,
    /// Stores a value of the right size without a check.
    pub(super) set: fn(&mut RegisterFile, u128),
}

/// A whole field of the register file.
macro_rules! plain {
    ($name:literal, $kind:ident, $groups:ident, $rule:expr, $($field:tt)+) => {
        Row {
            name: $name,
            kind: Kind::$kind,
            groups: RegisterGroups::$groups,
            rule: $rule,
            get: |file| u128::from(file.$($field)+),
            set: |file, value| file.$($field)+ = access::truncate(value),
        }
    };
}

macro_rules! core {
    ($name:literal, $kind:ident, $field:ident) => {
        plain!($name, $kind, CORE, Rule::Any, core.$field)
    };
    ($name:literal, $kind:ident, $field:ident, $rule:expr) => {
        plain!($name, $kind, CORE, $rule, core.$field)
    };
}

macro_rules! selector {
    ($name:literal, $segment:ident, $field:ident) => {
        plain!(
            $name,
            Int32,
            SPECIAL,
            Rule::Selector(SegmentName::$segment, |special| &mut special.$field),
            special.$field.selector
        )
    };
}

macro_rules! st {
    ($name:literal, $index:literal) => {
        Row {
            name: $name,
            kind: Kind::Extended,
            groups: RegisterGroups::FPU,
            rule: Rule::Any,
            get: |file| access::extended(&file.fpu.st[$index]),
            set: |file, value| file.fpu.st[$index] = access::to_extended(value),
        }
    };
}

macro_rules! x87 {
    ($name:literal, $bits:expr, $get:expr, $set:expr) => {
        Row {
            name: $name,
            kind: Kind::X87Control,
            groups: RegisterGroups::FPU,
            rule: Rule::Bits($bits),
            get: $get,
            set: $set,
        }
    };
}

macro_rules! xmm {
    ($name:literal, $index:literal) => {
        Row {
            name: $name,
            kind: Kind::Vector,
            groups: RegisterGroups::FPU,
            rule: Rule::Any,
            get: |file| u128::from_le_bytes(file.fpu.xmm[$index]),
            set: |file, value| file.fpu.xmm[$index] = value.to_le_bytes(),
        }
    };
}

pub(super) const RAX: Row = core!("rax", Int64, rax);

/// All registers. The order is QEMU's.
pub(in crate::x86_64) static TABLE: [Row; 66] = [
    RAX,
    core!("rbx", Int64, rbx),
    core!("rcx", Int64, rcx),
    core!("rdx", Int64, rdx),
    core!("rsi", Int64, rsi),
    core!("rdi", Int64, rdi),
    core!("rbp", DataPointer, rbp),
    core!("rsp", DataPointer, rsp),
    core!("r8", Int64, r8),
    core!("r9", Int64, r9),
    core!("r10", Int64, r10),
    core!("r11", Int64, r11),
    core!("r12", Int64, r12),
    core!("r13", Int64, r13),
    core!("r14", Int64, r14),
    core!("r15", Int64, r15),
    core!("rip", CodePointer, rip, Rule::Address),
    core!("eflags", Eflags, rflags, Rule::Flags),
    selector!("cs", Code, cs),
    selector!("ss", Stack, ss),
    selector!("ds", Data, ds),
    selector!("es", Data, es),
    selector!("fs", Data, fs),
    selector!("gs", Data, gs),
    plain!("fs_base", Int64, SPECIAL, Rule::Address, special.fs.base),
    plain!("gs_base", Int64, SPECIAL, Rule::Address, special.gs.base),
    plain!("k_gs_base", Int64, MSRS, Rule::Address, kernel_gs_base),
    plain!("cr0", Cr0, SPECIAL, Rule::Cr0, special.cr0),
    plain!("cr2", Int64, SPECIAL, Rule::Any, special.cr2),
    plain!("cr3", Cr3, SPECIAL, Rule::Bits(CR3_DEFINED), special.cr3),
    plain!("cr4", Cr4, SPECIAL, Rule::Bits(CR4_DEFINED), special.cr4),
    plain!("cr8", Int64, SPECIAL, Rule::Bits(0xf), special.cr8),
    plain!(
        "efer",
        Efer,
        SPECIAL,
        Rule::Bits(EFER_DEFINED),
        special.efer
    ),
    st!("st0", 0),
    st!("st1", 1),
    st!("st2", 2),
    st!("st3", 3),
    st!("st4", 4),
    st!("st5", 5),
    st!("st6", 6),
    st!("st7", 7),
    plain!("fctrl", X87Control, FPU, Rule::Bits(0xffff), fpu.fcw),
    plain!("fstat", X87Control, FPU, Rule::Bits(0xffff), fpu.fsw),
    x87!("ftag", 0xffff, access::full_tag, access::set_full_tag),
    x87!(
        "fiseg",
        0xffff,
        |file| access::pointer_high(file.fpu.fip),
        |file, value| {
            file.fpu.fip = access::with_pointer_high(file.fpu.fip, value);
        }
    ),
    x87!(
        "fioff",
        0xffff_ffff,
        |file| access::pointer_low(file.fpu.fip),
        |file, value| {
            file.fpu.fip = access::with_pointer_low(file.fpu.fip, value);
        }
    ),
    x87!(
        "foseg",
        0xffff,
        |file| access::pointer_high(file.fpu.fdp),
        |file, value| {
            file.fpu.fdp = access::with_pointer_high(file.fpu.fdp, value);
        }
    ),
    x87!(
        "fooff",
        0xffff_ffff,
        |file| access::pointer_low(file.fpu.fdp),
        |file, value| {
            file.fpu.fdp = access::with_pointer_low(file.fpu.fdp, value);
        }
    ),
    plain!("fop", X87Control, FPU, Rule::Bits(0x7ff), fpu.fop),
    xmm!("xmm0", 0),
    xmm!("xmm1", 1),
    xmm!("xmm2", 2),
    xmm!("xmm3", 3),
    xmm!("xmm4", 4),
    xmm!("xmm5", 5),
    xmm!("xmm6", 6),
    xmm!("xmm7", 7),
    xmm!("xmm8", 8),
    xmm!("xmm9", 9),
    xmm!("xmm10", 10),
    xmm!("xmm11", 11),
    xmm!("xmm12", 12),
    xmm!("xmm13", 13),
    xmm!("xmm14", 14),
    xmm!("xmm15", 15),
    plain!("mxcsr", Mxcsr, FPU, Rule::Bits(0xffff), fpu.mxcsr),
];

pub(super) const fn total_bytes() -> usize {
    let mut total = 0;
    let mut rest: &[Row] = &TABLE;
    while let [row, tail @ ..] = rest {
        total += row.kind.bytes();
        rest = tail;
    }
    total
}

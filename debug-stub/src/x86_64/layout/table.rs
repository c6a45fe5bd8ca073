//! The rows, and their order in each view.

use super::access;
use crate::x86_64::bits::{CR3_DEFINED, CR4_DEFINED, EFER_DEFINED};
use crate::x86_64::{
    RegisterFile, RegisterGroups, Segment, SpecialRegisters, StateComponents, View,
};

/// What a register holds, for GDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::x86_64) enum Kind {
    /// A number of the view's word size: 64 or 32 bits.
    Word,
    /// 32-bit number.
    Int32,
    /// Data address.
    DataPointer,
    /// Code address.
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
    /// Bits 255:128 of a YMM register.
    YmmHigh,
    /// Bits 511:256 of a ZMM register.
    ZmmHigh,
    /// An opmask register of AVX-512, 64 bits.
    Opmask,
    /// PKRU, 32 bits.
    Pkru,
    /// A segment's access rights, 32 bits.
    Rights,
    /// DR6.
    Dr6,
    /// DR7.
    Dr7,
}

impl Kind {
    pub(in crate::x86_64) const fn bytes(self, view: View) -> usize {
        match self {
            Self::Int32
            | Self::Eflags
            | Self::X87Control
            | Self::Mxcsr
            | Self::Rights
            | Self::Pkru => 4,
            Self::Word
            | Self::DataPointer
            | Self::CodePointer
            | Self::Cr0
            | Self::Cr3
            | Self::Cr4
            | Self::Efer
            | Self::Dr6
            | Self::Dr7 => {
                if view.is_wide() {
                    8
                } else {
                    4
                }
            }
            Self::Extended => 10,
            Self::Vector | Self::YmmHigh => 16,
            Self::ZmmHigh => 32,
            Self::Opmask => 8,
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
    /// RIP, as a linear address: with the base of CS outside 64-bit mode.
    ProgramCounter,
    /// RSP, as a linear address: with the base of SS outside 64-bit mode.
    StackPointer,
    /// RFLAGS: undefined bits are ignored.
    Flags,
    /// CR0: reserved bits below 32 are ignored, others refused (SDM 3A 2.5).
    Cr0,
    /// The base of a segment of code, a stack or data: 32 bits (SDM 3C 27.3.1.2).
    SegmentBase,
    /// DR6: bits that do not exist are ignored below 32, others refused.
    Dr6,
    /// DR7: the same.
    Dr7,
    /// All, if the guest has enabled this state component.
    Component(StateComponents),
    /// All 256 bits, if the guest has enabled AVX-512: of the ZMM register with this index. They are more than
    /// [`Row::get`] and [`Row::set`] carry.
    ZmmHigh(usize),
    /// Not written by a debugger, for this reason.
    ReadOnly(&'static str),
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
    /// Its name in the view with 64-bit registers.
    pub(in crate::x86_64) name: &'static str,
    /// Its name in the views with 32-bit registers, if it is there.
    pub(in crate::x86_64) narrow: Option<&'static str>,
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
            narrow: Some($name),
            kind: Kind::$kind,
            groups: RegisterGroups::$groups,
            rule: $rule,
            get: |file| u128::from(file.$($field)+),
            set: |file, value| file.$($field)+ = access::truncate(value),
        }
    };
}

/// A general-purpose register, with its name in the views with 32-bit registers.
macro_rules! general {
    ($name:literal, $narrow:expr, $kind:ident, $field:ident) => {
        Row {
            narrow: $narrow,
            ..plain!($name, $kind, CORE, Rule::Any, core.$field)
        }
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
            narrow: Some($name),
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
            narrow: Some($name),
            kind: Kind::X87Control,
            groups: RegisterGroups::FPU,
            rule: Rule::Bits($bits),
            get: $get,
            set: $set,
        }
    };
}

macro_rules! xmm {
    ($name:literal, $narrow:expr, $index:literal) => {
        Row {
            name: $name,
            narrow: $narrow,
            kind: Kind::Vector,
            groups: RegisterGroups::FPU,
            rule: Rule::Any,
            get: |file| u128::from_le_bytes(file.fpu.xmm[$index]),
            set: |file, value| file.fpu.xmm[$index] = value.to_le_bytes(),
        }
    };
}

pub(super) const RAX: Row = general!("rax", Some("eax"), Word, rax);

/// All registers. The order is that of the view with 64-bit registers, and QEMU's.
pub(in crate::x86_64) static TABLE: [Row; 66] = [
    RAX,
    general!("rbx", Some("ebx"), Word, rbx),
    general!("rcx", Some("ecx"), Word, rcx),
    general!("rdx", Some("edx"), Word, rdx),
    general!("rsi", Some("esi"), Word, rsi),
    general!("rdi", Some("edi"), Word, rdi),
    general!("rbp", Some("ebp"), DataPointer, rbp),
    Row {
        name: "rsp",
        narrow: Some("esp"),
        kind: Kind::DataPointer,
        groups: RegisterGroups::EXPEDITED,
        rule: Rule::StackPointer,
        get: |file| u128::from(file.linear_sp()),
        set: |file, value| file.core.rsp = access::truncate(value),
    },
    general!("r8", None, Word, r8),
    general!("r9", None, Word, r9),
    general!("r10", None, Word, r10),
    general!("r11", None, Word, r11),
    general!("r12", None, Word, r12),
    general!("r13", None, Word, r13),
    general!("r14", None, Word, r14),
    general!("r15", None, Word, r15),
    Row {
        name: "rip",
        narrow: Some("eip"),
        kind: Kind::CodePointer,
        groups: RegisterGroups::EXPEDITED,
        rule: Rule::ProgramCounter,
        get: |file| u128::from(file.linear_pc()),
        set: |file, value| file.core.rip = access::truncate(value),
    },
    plain!("eflags", Eflags, CORE, Rule::Flags, core.rflags),
    selector!("cs", Code, cs),
    selector!("ss", Stack, ss),
    selector!("ds", Data, ds),
    selector!("es", Data, es),
    selector!("fs", Data, fs),
    selector!("gs", Data, gs),
    plain!("fs_base", Word, SPECIAL, Rule::Address, special.fs.base),
    plain!("gs_base", Word, SPECIAL, Rule::Address, special.gs.base),
    plain!("k_gs_base", Word, MSRS, Rule::Address, kernel_gs_base),
    plain!("cr0", Cr0, SPECIAL, Rule::Cr0, special.cr0),
    plain!("cr2", Word, SPECIAL, Rule::Any, special.cr2),
    plain!("cr3", Cr3, SPECIAL, Rule::Bits(CR3_DEFINED), special.cr3),
    plain!("cr4", Cr4, SPECIAL, Rule::Bits(CR4_DEFINED), special.cr4),
    plain!("cr8", Word, SPECIAL, Rule::Bits(0xf), special.cr8),
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
    xmm!("xmm0", Some("xmm0"), 0),
    xmm!("xmm1", Some("xmm1"), 1),
    xmm!("xmm2", Some("xmm2"), 2),
    xmm!("xmm3", Some("xmm3"), 3),
    xmm!("xmm4", Some("xmm4"), 4),
    xmm!("xmm5", Some("xmm5"), 5),
    xmm!("xmm6", Some("xmm6"), 6),
    xmm!("xmm7", Some("xmm7"), 7),
    xmm!("xmm8", None, 8),
    xmm!("xmm9", None, 9),
    xmm!("xmm10", None, 10),
    xmm!("xmm11", None, 11),
    xmm!("xmm12", None, 12),
    xmm!("xmm13", None, 13),
    xmm!("xmm14", None, 14),
    xmm!("xmm15", None, 15),
    plain!("mxcsr", Mxcsr, FPU, Rule::Bits(0xffff), fpu.mxcsr),
];

/// What a segment register holds beside its selector.
macro_rules! hidden {
    ($limit:literal, $rights:literal, $field:ident) => {
        [
            plain!($limit, Int32, SPECIAL, LOADED, special.$field.limit),
            Row {
                name: $rights,
                narrow: Some($rights),
                kind: Kind::Rights,
                groups: RegisterGroups::SPECIAL,
                rule: LOADED,
                get: |file| u128::from(access::rights(&file.special.$field)),
                // The rule refuses every value.
                set: |_, _| {},
            },
        ]
    };
}

/// The hidden part of a segment register.
const LOADED: Rule = Rule::ReadOnly("only a load of its selector changes it");
/// LDTR and TR.
const BY_INSTRUCTION: Rule = Rule::ReadOnly("only LLDT, LTR and a task switch change it");

/// A segment whose base no other register shows.
macro_rules! segment {
    ($base:literal, $limit:literal, $rights:literal, $field:ident) => {{
        let [limit, rights] = hidden!($limit, $rights, $field);
        [
            plain!($base, Word, SPECIAL, Rule::SegmentBase, special.$field.base),
            limit,
            rights,
        ]
    }};
}

/// LDTR or TR.
macro_rules! system {
    ($name:literal, $base:literal, $limit:literal, $rights:literal, $field:ident) => {{
        let [limit, rights] = hidden!($limit, $rights, $field);
        [
            plain!(
                $name,
                Int32,
                SPECIAL,
                BY_INSTRUCTION,
                special.$field.selector
            ),
            plain!($base, Word, SPECIAL, BY_INSTRUCTION, special.$field.base),
            Row {
                rule: BY_INSTRUCTION,
                ..limit
            },
            Row {
                rule: BY_INSTRUCTION,
                ..rights
            },
        ]
    }};
}

macro_rules! dr {
    ($name:literal, $index:literal) => {
        Row {
            name: $name,
            narrow: Some($name),
            kind: Kind::Word,
            groups: RegisterGroups::DEBUG,
            rule: Rule::Any,
            get: |file| u128::from(file.debug.dr[$index]),
            set: |file, value| file.debug.dr[$index] = access::truncate(value),
        }
    };
}

/// Registers that QEMU's description lacks.
static SYSTEM: [Row; 34] = {
    let [a, b, c] = segment!("cs_base", "cs_limit", "cs_rights", cs);
    let [d, e, f] = segment!("ss_base", "ss_limit", "ss_rights", ss);
    let [g, h, i] = segment!("ds_base", "ds_limit", "ds_rights", ds);
    let [j, k, l] = segment!("es_base", "es_limit", "es_rights", es);
    let [m, n] = hidden!("fs_limit", "fs_rights", fs);
    let [o, p] = hidden!("gs_limit", "gs_rights", gs);
    let [q, r, s, t] = system!("ldtr", "ldtr_base", "ldtr_limit", "ldtr_rights", ldtr);
    let [u, v, w, x] = system!("tr", "tr_base", "tr_limit", "tr_rights", tr);
    [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        i,
        j,
        k,
        l,
        m,
        n,
        o,
        p,
        q,
        r,
        s,
        t,
        u,
        v,
        w,
        x,
        plain!("gdtr_base", Word, SPECIAL, Rule::Address, special.gdtr.base),
        plain!(
            "gdtr_limit",
            Int32,
            SPECIAL,
            Rule::Bits(0xffff),
            special.gdtr.limit
        ),
        plain!("idtr_base", Word, SPECIAL, Rule::Address, special.idtr.base),
        plain!(
            "idtr_limit",
            Int32,
            SPECIAL,
            Rule::Bits(0xffff),
            special.idtr.limit
        ),
        dr!("dr0", 0),
        dr!("dr1", 1),
        dr!("dr2", 2),
        dr!("dr3", 3),
        plain!("dr6", Dr6, DEBUG, Rule::Dr6, debug.dr6),
        plain!("dr7", Dr7, DEBUG, Rule::Dr7, debug.dr7),
    ]
};

macro_rules! ymm_high {
    ($name:literal, $narrow:expr, $index:literal) => {
        Row {
            name: $name,
            narrow: $narrow,
            kind: Kind::YmmHigh,
            groups: RegisterGroups::FPU,
            rule: Rule::Component(StateComponents::AVX),
            get: |file| match &file.fpu.ymm_high {
                Some(high) => u128::from_le_bytes(high[$index]),
                None => 0,
            },
            set: |file, value| {
                if let Some(high) = &mut file.fpu.ymm_high {
                    high[$index] = value.to_le_bytes();
                }
            },
        }
    };
}

/// The upper halves of the YMM registers. The first [`NARROW_YMM`] are in the views with 32-bit registers, too.
static AVX: [Row; 16] = [
    ymm_high!("ymm0h", Some("ymm0h"), 0),
    ymm_high!("ymm1h", Some("ymm1h"), 1),
    ymm_high!("ymm2h", Some("ymm2h"), 2),
    ymm_high!("ymm3h", Some("ymm3h"), 3),
    ymm_high!("ymm4h", Some("ymm4h"), 4),
    ymm_high!("ymm5h", Some("ymm5h"), 5),
    ymm_high!("ymm6h", Some("ymm6h"), 6),
    ymm_high!("ymm7h", Some("ymm7h"), 7),
    ymm_high!("ymm8h", None, 8),
    ymm_high!("ymm9h", None, 9),
    ymm_high!("ymm10h", None, 10),
    ymm_high!("ymm11h", None, 11),
    ymm_high!("ymm12h", None, 12),
    ymm_high!("ymm13h", None, 13),
    ymm_high!("ymm14h", None, 14),
    ymm_high!("ymm15h", None, 15),
];
const NARROW_YMM: usize = 8;

/// A register of AVX-512 of up to 128 bits, with the conversions to a number and back.
macro_rules! avx512 {
    ($name:literal, $narrow:expr, $kind:ident, $field:ident[$index:literal], $get:expr, $set:expr) => {
        Row {
            name: $name,
            narrow: $narrow,
            kind: Kind::$kind,
            groups: RegisterGroups::FPU,
            rule: Rule::Component(StateComponents::AVX512),
            get: |file| match &file.fpu.avx512 {
                Some(state) => $get(state.$field[$index]),
                None => 0,
            },
            set: |file, value| {
                if let Some(state) = &mut file.fpu.avx512 {
                    state.$field[$index] = $set(value);
                }
            },
        }
    };
}

macro_rules! opmask {
    ($name:literal, $index:literal) => {
        avx512!(
            $name,
            Some($name),
            Opmask,
            opmask[$index],
            u128::from,
            access::truncate
        )
    };
}

/// Of XMM16-XMM31, and the upper halves of YMM16-YMM31.
macro_rules! vector16 {
    ($name:literal, $kind:ident, $field:ident[$index:literal]) => {
        avx512!(
            $name,
            None,
            $kind,
            $field[$index],
            u128::from_le_bytes,
            u128::to_le_bytes
        )
    };
}

macro_rules! zmm_high {
    ($name:literal, $narrow:expr, $index:literal) => {
        Row {
            name: $name,
            narrow: $narrow,
            kind: Kind::ZmmHigh,
            groups: RegisterGroups::FPU,
            rule: Rule::ZmmHigh($index),
            get: |_| 0,
            set: |_, _| {},
        }
    };
}

/// The registers of AVX-512. The first [`NARROW_AVX512`] are in the views with 32-bit registers, too.
static AVX512: [Row; 72] = [
    opmask!("k0", 0),
    opmask!("k1", 1),
    opmask!("k2", 2),
    opmask!("k3", 3),
    opmask!("k4", 4),
    opmask!("k5", 5),
    opmask!("k6", 6),
    opmask!("k7", 7),
    zmm_high!("zmm0h", Some("zmm0h"), 0),
    zmm_high!("zmm1h", Some("zmm1h"), 1),
    zmm_high!("zmm2h", Some("zmm2h"), 2),
    zmm_high!("zmm3h", Some("zmm3h"), 3),
    zmm_high!("zmm4h", Some("zmm4h"), 4),
    zmm_high!("zmm5h", Some("zmm5h"), 5),
    zmm_high!("zmm6h", Some("zmm6h"), 6),
    zmm_high!("zmm7h", Some("zmm7h"), 7),
    zmm_high!("zmm8h", None, 8),
    zmm_high!("zmm9h", None, 9),
    zmm_high!("zmm10h", None, 10),
    zmm_high!("zmm11h", None, 11),
    zmm_high!("zmm12h", None, 12),
    zmm_high!("zmm13h", None, 13),
    zmm_high!("zmm14h", None, 14),
    zmm_high!("zmm15h", None, 15),
    zmm_high!("zmm16h", None, 16),
    zmm_high!("zmm17h", None, 17),
    zmm_high!("zmm18h", None, 18),
    zmm_high!("zmm19h", None, 19),
    zmm_high!("zmm20h", None, 20),
    zmm_high!("zmm21h", None, 21),
    zmm_high!("zmm22h", None, 22),
    zmm_high!("zmm23h", None, 23),
    zmm_high!("zmm24h", None, 24),
    zmm_high!("zmm25h", None, 25),
    zmm_high!("zmm26h", None, 26),
    zmm_high!("zmm27h", None, 27),
    zmm_high!("zmm28h", None, 28),
    zmm_high!("zmm29h", None, 29),
    zmm_high!("zmm30h", None, 30),
    zmm_high!("zmm31h", None, 31),
    vector16!("xmm16", Vector, xmm[0]),
    vector16!("xmm17", Vector, xmm[1]),
    vector16!("xmm18", Vector, xmm[2]),
    vector16!("xmm19", Vector, xmm[3]),
    vector16!("xmm20", Vector, xmm[4]),
    vector16!("xmm21", Vector, xmm[5]),
    vector16!("xmm22", Vector, xmm[6]),
    vector16!("xmm23", Vector, xmm[7]),
    vector16!("xmm24", Vector, xmm[8]),
    vector16!("xmm25", Vector, xmm[9]),
    vector16!("xmm26", Vector, xmm[10]),
    vector16!("xmm27", Vector, xmm[11]),
    vector16!("xmm28", Vector, xmm[12]),
    vector16!("xmm29", Vector, xmm[13]),
    vector16!("xmm30", Vector, xmm[14]),
    vector16!("xmm31", Vector, xmm[15]),
    vector16!("ymm16h", YmmHigh, ymm_high[0]),
    vector16!("ymm17h", YmmHigh, ymm_high[1]),
    vector16!("ymm18h", YmmHigh, ymm_high[2]),
    vector16!("ymm19h", YmmHigh, ymm_high[3]),
    vector16!("ymm20h", YmmHigh, ymm_high[4]),
    vector16!("ymm21h", YmmHigh, ymm_high[5]),
    vector16!("ymm22h", YmmHigh, ymm_high[6]),
    vector16!("ymm23h", YmmHigh, ymm_high[7]),
    vector16!("ymm24h", YmmHigh, ymm_high[8]),
    vector16!("ymm25h", YmmHigh, ymm_high[9]),
    vector16!("ymm26h", YmmHigh, ymm_high[10]),
    vector16!("ymm27h", YmmHigh, ymm_high[11]),
    vector16!("ymm28h", YmmHigh, ymm_high[12]),
    vector16!("ymm29h", YmmHigh, ymm_high[13]),
    vector16!("ymm30h", YmmHigh, ymm_high[14]),
    vector16!("ymm31h", YmmHigh, ymm_high[15]),
];
const NARROW_AVX512: usize = 16;

/// What the protection keys of user pages permit.
static PKEYS: [Row; 1] = [Row {
    name: "pkru",
    narrow: Some("pkru"),
    kind: Kind::Pkru,
    groups: RegisterGroups::FPU,
    rule: Rule::Component(StateComponents::PKRU),
    get: |file| file.fpu.pkru.map_or(0, u128::from),
    set: |file, value| {
        if let Some(pkru) = &mut file.fpu.pkru {
            *pkru = access::truncate(value);
        }
    },
}];

/// A feature of the description with registers behind those of the `g` packet. So `g` stays as long as QEMU's, whatever
/// the guest enables: GDB asks for each of these with `p` when its user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::x86_64) enum Feature {
    /// Registers that QEMU's description lacks.
    System,
    /// The upper halves of the YMM registers. GDB requires a feature for those of SSE with it.
    Avx,
    /// The registers of AVX-512.
    Avx512,
    /// PKRU.
    Pkeys,
}

impl Feature {
    /// In the order of their registers' numbers.
    const ALL: [Self; 4] = [Self::System, Self::Avx, Self::Avx512, Self::Pkeys];

    /// GDB's name ("i386 Features"), or one of our own.
    pub(in crate::x86_64) const fn name(self) -> &'static str {
        match self {
            Self::System => "org.rust-vmm.debug-stub.x86.system",
            Self::Avx => "org.gnu.gdb.i386.avx",
            Self::Avx512 => "org.gnu.gdb.i386.avx512",
            Self::Pkeys => "org.gnu.gdb.i386.pkeys",
        }
    }

    fn rows(self) -> &'static [Row] {
        match self {
            Self::System => &SYSTEM,
            Self::Avx => &AVX,
            Self::Avx512 => &AVX512,
            Self::Pkeys => &PKEYS,
        }
    }

    /// The state components that a view with it has.
    fn components(self) -> StateComponents {
        match self {
            Self::System => StateComponents::empty(),
            Self::Avx => StateComponents::AVX,
            Self::Avx512 => StateComponents::AVX512,
            Self::Pkeys => StateComponents::PKRU,
        }
    }

    /// Returns the number of its registers in a view.
    fn count(self, view: View) -> usize {
        if !view.components().contains(self.components()) {
            return 0;
        }
        match self {
            Self::Avx if !view.is_wide() => NARROW_YMM,
            Self::Avx512 if !view.is_wide() => NARROW_AVX512,
            _ => self.rows().len(),
        }
    }
}

/// The first registers of the views with 32-bit registers, in the order of machine encoding as in QEMU. The others
/// follow in the order of the table.
const NARROW_FIRST: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];

/// How many registers the views with 32-bit registers have.
const NARROW_COUNT: usize = {
    let mut count = 0;
    let mut rest: &[Row] = &TABLE;
    while let [row, tail @ ..] = rest {
        if row.narrow.is_some() {
            count += 1;
        }
        rest = tail;
    }
    count
};

/// For each register of the views with 32-bit registers its place in [`TABLE`].
static NARROW: [u8; NARROW_COUNT] = {
    let mut order = [0; NARROW_COUNT];
    let mut number = 0;
    let mut rest: &mut [u8] = &mut order;
    while let [entry, tail @ ..] = rest {
        *entry = narrow_place(number);
        number += 1;
        rest = tail;
    }
    order
};

/// The place in [`TABLE`] of the register with this number in the views with 32-bit registers.
const fn narrow_place(number: usize) -> u8 {
    let mut left = number;
    let mut first: &[&str] = &NARROW_FIRST;
    while let [name, tail @ ..] = first {
        if left == 0 {
            return place(name);
        }
        left -= 1;
        first = tail;
    }
    let mut index = 0;
    let mut table: &[Row] = &TABLE;
    while let [row, tail @ ..] = table {
        if let Some(name) = row.narrow {
            if !is_first(name) {
                if left == 0 {
                    return index;
                }
                left -= 1;
            }
        }
        index += 1;
        table = tail;
    }
    index
}

const fn is_first(name: &str) -> bool {
    let mut rest: &[&str] = &NARROW_FIRST;
    while let [first, tail @ ..] = rest {
        if is_same(first, name) {
            return true;
        }
        rest = tail;
    }
    false
}

/// The place of a register with this narrow name in [`TABLE`].
const fn place(name: &str) -> u8 {
    let mut index = 0;
    let mut rest: &[Row] = &TABLE;
    while let [row, tail @ ..] = rest {
        if let Some(narrow) = row.narrow {
            if is_same(narrow, name) {
                return index;
            }
        }
        index += 1;
        rest = tail;
    }
    index
}

const fn is_same(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    while let ([a, tail @ ..], [b, other_tail @ ..]) = (one, other) {
        if *a != *b {
            return false;
        }
        (one, other) = (tail, other_tail);
    }
    one.is_empty() && other.is_empty()
}

/// Returns the number of registers in a view's `g` packet.
pub(super) fn count_in_g(view: View) -> usize {
    if view.is_wide() {
        TABLE.len()
    } else {
        NARROW.len()
    }
}

/// Returns the number of registers of a view.
pub(super) fn count(view: View) -> usize {
    let behind_g: usize = Feature::ALL.iter().map(|feature| feature.count(view)).sum();
    count_in_g(view) + behind_g
}

/// Returns the register of a view that has this number if those of the `g` packet are not counted.
pub(super) fn behind_g(view: View, number: usize) -> Option<(Feature, &'static Row)> {
    let mut left = number;
    for feature in Feature::ALL {
        match left.checked_sub(feature.count(view)) {
            None => return feature.rows().get(left).map(|row| (feature, row)),
            Some(behind) => left = behind,
        }
    }
    None
}

/// Returns the row of a view's register with this number.
pub(super) fn row(view: View, number: usize) -> Option<&'static Row> {
    if let Some(number) = number.checked_sub(count_in_g(view)) {
        return behind_g(view, number).map(|(_, row)| row);
    }
    let place = if view.is_wide() {
        number
    } else {
        usize::from(*NARROW.get(number)?)
    };
    TABLE.get(place)
}

/// Length of the `g` packet's data of the view with 64-bit registers, in bytes.
pub(super) const fn wide_bytes() -> usize {
    let mut total = 0;
    let mut rest: &[Row] = &TABLE;
    while let [row, tail @ ..] = rest {
        total += row.kind.bytes(View::X86_64);
        rest = tail;
    }
    total
}

//! The target descriptions, generated from the register table.
//!
//! The feature `org.gnu.gdb.i386.core` has QEMU's registers, as in QEMU; with AVX those of SSE are in a feature
//! beside it, which GDB requires then. A feature with a name of our own has those that QEMU lacks. GDB rejects a
//! description whose core feature lacks a register that it requires (GDB manual, "i386 Features" and "Target
//! Description Format").

use core::fmt::Write as _;

use super::layout::{Feature, Kind};
use super::{RegisterId, StateComponents, View};

/// `target.xml` for a view, complete: it includes no other annex.
///
/// Each view is said to be compatible with programs of the other word size. GDB takes the view's architecture then,
/// and not the program's: a 32-bit kernel's file may be at hand while the vCPU is in 64-bit mode, and a 64-bit one's
/// before. Without this it refuses the description, and the connection is of no use.
#[must_use]
pub fn target_xml(view: View) -> String {
    let other = if view.is_wide() {
        View::I386
    } else {
        View::X86_64
    };
    let mut xml = format!(
        "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n\
         <target version=\"1.0\">\n<architecture>{}</architecture>\n",
        view.name()
    );
    if view.is_16_bit() {
        // GDB warns that it knows no Linux for this architecture otherwise.
        xml.push_str("<osabi>none</osabi>\n");
    }
    line(
        &mut xml,
        format_args!(
            "<compatible>{}</compatible>\n<feature name=\"org.gnu.gdb.i386.core\">",
            other.name()
        ),
    );
    for flags in &FLAGS {
        flags_type(&mut xml, flags, view);
    }
    vector_types(&mut xml);
    let is_sse = |id: &RegisterId| matches!(id.kind(), Kind::Vector | Kind::Mxcsr);
    for id in view.registers_in_g().filter(|id| !is_sse(id)) {
        register(&mut xml, id, view);
    }
    if view.components().contains(StateComponents::AVX) {
        // GDB wants a feature for SSE beside one for AVX.
        feature(&mut xml, "org.gnu.gdb.i386.sse");
        vector_types(&mut xml);
        flags_type(&mut xml, &MXCSR, view);
    }
    for id in view.registers_in_g().filter(is_sse) {
        register(&mut xml, id, view);
    }
    let mut current = None;
    for id in view.registers().skip(view.registers_in_g().count()) {
        let of = id.feature();
        if let (true, Some(of)) = (of != current, of) {
            feature(&mut xml, of.name());
            types_of(&mut xml, of, view);
        }
        current = of;
        register(&mut xml, id, view);
    }
    xml.push_str("</feature>\n</target>\n");
    xml
}

/// Ends a feature and begins the next one.
fn feature(xml: &mut String, name: &str) {
    line(xml, format_args!("</feature>\n<feature name=\"{name}\">"));
}

/// The types of a feature's registers: GDB knows those of no other feature.
fn types_of(xml: &mut String, feature: Feature, view: View) {
    match feature {
        Feature::System => {
            for flags in &SYSTEM_FLAGS {
                flags_type(xml, flags, view);
            }
        }
        Feature::Avx512 => {
            vector_types(xml);
            vector(xml, ZMM_HIGH);
        }
        Feature::Avx | Feature::Pkeys => {}
    }
}

fn register(xml: &mut String, id: RegisterId, view: View) {
    let (bits, name) = (id.size_bytes() * 8, id.name());
    let (kind, mut group) = gdb_type(id.kind(), view);
    if id.feature() == Some(Feature::System) {
        // GDB knows no groups of a description on x86 (13): it shows these with the general registers.
        group = " group=\"system\"";
    }
    line(
        xml,
        format_args!("<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"{group}/>"),
    );
}

fn line(xml: &mut String, text: core::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(xml, "{text}");
}

/// GDB's type, and its register group where the type does not imply it.
fn gdb_type(kind: Kind, view: View) -> (&'static str, &'static str) {
    match kind {
        Kind::Word if view.is_wide() => ("int64", ""),
        Kind::Word => ("int32", ""),
        Kind::Int32 => ("int32", ""),
        Kind::DataPointer => ("data_ptr", ""),
        Kind::CodePointer => ("code_ptr", ""),
        Kind::Eflags => (EFLAGS.id, ""),
        Kind::Cr0 => (CR0.id, ""),
        Kind::Cr3 => (CR3.id, ""),
        Kind::Cr4 => (CR4.id, ""),
        Kind::Efer => (EFER.id, ""),
        Kind::Extended => ("i387_ext", ""),
        Kind::X87Control => ("int", " group=\"float\""),
        Kind::Vector => ("vec128", ""),
        Kind::YmmHigh => ("uint128", ""),
        Kind::ZmmHigh => {
            let (id, _, _) = ZMM_HIGH;
            (id, "")
        }
        Kind::Opmask => ("uint64", ""),
        Kind::Pkru => ("uint32", ""),
        Kind::Mxcsr => (MXCSR.id, " group=\"vector\""),
        Kind::Rights => (RIGHTS.id, ""),
        Kind::Dr6 => (DR6.id, ""),
        Kind::Dr7 => (DR7.id, ""),
    }
}

/// A register that GDB shows bit by bit.
struct Flags {
    id: &'static str,
    kind: Kind,
    /// Name, lowest bit, highest bit. A field that a narrow register does not have is left out there.
    fields: &'static [(&'static str, u8, u8)],
}

fn flags_type(xml: &mut String, flags: &Flags, view: View) {
    let Flags { id, kind, fields } = flags;
    let size = kind.bytes(view);
    line(xml, format_args!("<flags id=\"{id}\" size=\"{size}\">"));
    for (name, start, end) in *fields {
        let last = u8::try_from(size * 8).unwrap_or(64).saturating_sub(1);
        if *start <= last {
            let end = last.min(*end);
            line(
                xml,
                format_args!("<field name=\"{name}\" start=\"{start}\" end=\"{end}\"/>"),
            );
        }
    }
    xml.push_str("</flags>\n");
}

fn vector_types(xml: &mut String) {
    for kind in VECTORS {
        vector(xml, kind);
    }
    xml.push_str("<union id=\"vec128\">\n");
    for (field, kind) in VECTOR_VIEWS {
        line(
            xml,
            format_args!("<field name=\"{field}\" type=\"{kind}\"/>"),
        );
    }
    xml.push_str("</union>\n");
}

fn vector(xml: &mut String, (id, element, count): VectorType) {
    line(
        xml,
        format_args!("<vector id=\"{id}\" type=\"{element}\" count=\"{count}\"/>"),
    );
}

const FLAGS: [Flags; 6] = [EFLAGS, CR0, CR3, CR4, EFER, MXCSR];

const SYSTEM_FLAGS: [Flags; 3] = [RIGHTS, DR6, DR7];

/// SDM 3C table 25-2.
const RIGHTS: Flags = Flags {
    id: "x86_segment_rights",
    kind: Kind::Rights,
    fields: &[
        ("TYPE", 0, 3),
        ("S", 4, 4),
        ("DPL", 5, 6),
        ("P", 7, 7),
        ("AVL", 12, 12),
        ("L", 13, 13),
        ("DB", 14, 14),
        ("G", 15, 15),
        ("UNUSABLE", 16, 16),
    ],
};

/// SDM 3B 19.2.3. BLD and RTM are 0 if the event has happened.
const DR6: Flags = Flags {
    id: "x86_dr6",
    kind: Kind::Dr6,
    fields: &[
        ("B0", 0, 0),
        ("B1", 1, 1),
        ("B2", 2, 2),
        ("B3", 3, 3),
        ("BLD", 11, 11),
        ("BD", 13, 13),
        ("BS", 14, 14),
        ("BT", 15, 15),
        ("RTM", 16, 16),
    ],
};

/// SDM 3B 19.2.4.
const DR7: Flags = Flags {
    id: "x86_dr7",
    kind: Kind::Dr7,
    fields: &[
        ("L0", 0, 0),
        ("G0", 1, 1),
        ("L1", 2, 2),
        ("G1", 3, 3),
        ("L2", 4, 4),
        ("G2", 5, 5),
        ("L3", 6, 6),
        ("G3", 7, 7),
        ("LE", 8, 8),
        ("GE", 9, 9),
        ("RTM", 11, 11),
        ("GD", 13, 13),
        ("RW0", 16, 17),
        ("LEN0", 18, 19),
        ("RW1", 20, 21),
        ("LEN1", 22, 23),
        ("RW2", 24, 25),
        ("LEN2", 26, 27),
        ("RW3", 28, 29),
        ("LEN3", 30, 31),
    ],
};

/// SDM 1 3.4.3.
const EFLAGS: Flags = Flags {
    id: "x64_eflags",
    kind: Kind::Eflags,
    fields: &[
        ("CF", 0, 0),
        ("", 1, 1),
        ("PF", 2, 2),
        ("", 3, 3),
        ("AF", 4, 4),
        ("", 5, 5),
        ("ZF", 6, 6),
        ("SF", 7, 7),
        ("TF", 8, 8),
        ("IF", 9, 9),
        ("DF", 10, 10),
        ("OF", 11, 11),
        ("IOPL", 12, 13),
        ("NT", 14, 14),
        ("", 15, 15),
        ("RF", 16, 16),
        ("VM", 17, 17),
        ("AC", 18, 18),
        ("VIF", 19, 19),
        ("VIP", 20, 20),
        ("ID", 21, 21),
        ("", 22, 31),
    ],
};

/// SDM 3A 2.5.
const CR0: Flags = Flags {
    id: "x64_cr0",
    kind: Kind::Cr0,
    fields: &[
        ("PE", 0, 0),
        ("MP", 1, 1),
        ("EM", 2, 2),
        ("TS", 3, 3),
        ("ET", 4, 4),
        ("NE", 5, 5),
        ("WP", 16, 16),
        ("AM", 18, 18),
        ("NW", 29, 29),
        ("CD", 30, 30),
        ("PG", 31, 31),
    ],
};

/// SDM 3A 2.5, with CR4.PCIDE set.
const CR3: Flags = Flags {
    id: "x64_cr3",
    kind: Kind::Cr3,
    fields: &[("PCID", 0, 11), ("PDBR", 12, 63)],
};

/// SDM 3A 2.5.
const CR4: Flags = Flags {
    id: "x64_cr4",
    kind: Kind::Cr4,
    fields: &[
        ("VME", 0, 0),
        ("PVI", 1, 1),
        ("TSD", 2, 2),
        ("DE", 3, 3),
        ("PSE", 4, 4),
        ("PAE", 5, 5),
        ("MCE", 6, 6),
        ("PGE", 7, 7),
        ("PCE", 8, 8),
        ("OSFXSR", 9, 9),
        ("OSXMMEXCPT", 10, 10),
        ("UMIP", 11, 11),
        ("LA57", 12, 12),
        ("VMXE", 13, 13),
        ("SMXE", 14, 14),
        ("FSGSBASE", 16, 16),
        ("PCIDE", 17, 17),
        ("OSXSAVE", 18, 18),
        ("SMEP", 20, 20),
        ("SMAP", 21, 21),
        ("PKE", 22, 22),
        ("CET", 23, 23),
        ("PKS", 24, 24),
        ("UINTR", 25, 25),
        ("LASS", 27, 27),
        ("LAM_SUP", 28, 28),
        ("FRED", 32, 32),
    ],
};

/// SDM 4 table 2-2, APM 2 3.1.7.
const EFER: Flags = Flags {
    id: "x64_efer",
    kind: Kind::Efer,
    fields: &[
        ("SCE", 0, 0),
        ("LME", 8, 8),
        ("LMA", 10, 10),
        ("NXE", 11, 11),
        ("SVME", 12, 12),
        ("LMSLE", 13, 13),
        ("FFXSR", 14, 14),
        ("TCE", 15, 15),
        ("MCOMMIT", 17, 17),
        ("INTWB", 18, 18),
        ("UAIE", 20, 20),
        ("AIBRSE", 21, 21),
    ],
};

/// SDM 1 10.2.3.
const MXCSR: Flags = Flags {
    id: "x64_mxcsr",
    kind: Kind::Mxcsr,
    fields: &[
        ("IE", 0, 0),
        ("DE", 1, 1),
        ("ZE", 2, 2),
        ("OE", 3, 3),
        ("UE", 4, 4),
        ("PE", 5, 5),
        ("DAZ", 6, 6),
        ("IM", 7, 7),
        ("DM", 8, 8),
        ("ZM", 9, 9),
        ("OM", 10, 10),
        ("UM", 11, 11),
        ("PM", 12, 12),
        ("RC", 13, 14),
        ("FZ", 15, 15),
    ],
};

/// Type, element, number of elements.
type VectorType = (&'static str, &'static str, u8);

/// Bits 511:256 of a ZMM register.
const ZMM_HIGH: VectorType = ("v2ui128", "uint128", 2);

const VECTORS: [VectorType; 6] = [
    ("v4f", "ieee_single", 4),
    ("v2d", "ieee_double", 2),
    ("v16i8", "int8", 16),
    ("v8i16", "int16", 8),
    ("v4i32", "int32", 4),
    ("v2i64", "int64", 2),
];

/// The names under which GDB shows an XMM register: QEMU's, which scripts use.
const VECTOR_VIEWS: [(&str, &str); 7] = [
    ("v4_float", "v4f"),
    ("v2_double", "v2d"),
    ("v16_int8", "v16i8"),
    ("v8_int16", "v8i16"),
    ("v4_int32", "v4i32"),
    ("v2_int64", "v2i64"),
    ("uint128", "uint128"),
];

#[cfg(test)]
mod tests;

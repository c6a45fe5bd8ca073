//! Registers behind those of QEMU: hidden parts of segments, descriptor tables, debug registers.

use core::ops::Range;

use super::*;
use crate::x86_64::{Avx512State, DebugRegisters, StateComponents};

/// Names and sizes in bytes with 64-bit registers, by number from 66 on.
const MORE: [(&str, usize); 34] = [
    ("cs_base", 8),
    ("cs_limit", 4),
    ("cs_rights", 4),
    ("ss_base", 8),
    ("ss_limit", 4),
    ("ss_rights", 4),
    ("ds_base", 8),
    ("ds_limit", 4),
    ("ds_rights", 4),
    ("es_base", 8),
    ("es_limit", 4),
    ("es_rights", 4),
    ("fs_limit", 4),
    ("fs_rights", 4),
    ("gs_limit", 4),
    ("gs_rights", 4),
    ("ldtr", 4),
    ("ldtr_base", 8),
    ("ldtr_limit", 4),
    ("ldtr_rights", 4),
    ("tr", 4),
    ("tr_base", 8),
    ("tr_limit", 4),
    ("tr_rights", 4),
    ("gdtr_base", 8),
    ("gdtr_limit", 4),
    ("idtr_base", 8),
    ("idtr_limit", 4),
    ("dr0", 8),
    ("dr1", 8),
    ("dr2", 8),
    ("dr3", 8),
    ("dr6", 8),
    ("dr7", 8),
];

fn kernel() -> RegisterFile {
    let mut file = long_mode();
    let special = &mut file.special;
    special.ldtr = Segment {
        unusable: true,
        ..Segment::default()
    };
    special.tr = Segment {
        selector: 0x40,
        base: 0xffff_fe00_0000_3000,
        limit: 0x4087,
        kind: 11,
        present: true,
        ..Segment::default()
    };
    special.gdtr = DescriptorTable {
        base: 0xffff_fe00_0000_1000,
        limit: 0x7f,
    };
    special.idtr = DescriptorTable {
        base: 0xffff_fe00_0000_0000,
        limit: 0xfff,
    };
    file.debug = DebugRegisters {
        dr: [0x1000, 0x2000, 0x3000, 0xffff_8000_0000_4000],
        dr6: 0xffff_0ff0,
        dr7: 0x400,
    };
    file
}

#[test]
fn numbers_and_sizes_are_these() {
    for (number, (name, size)) in (66..).zip(MORE) {
        let id = WIDE.register(number).unwrap();
        assert_eq!(
            (id.number(), id.name(), id.size_bytes()),
            (number, name, size)
        );
        let narrow = View::I386.register(number - 16).unwrap();
        assert_eq!((narrow.name(), narrow.size_bytes()), (name, 4));
    }
    assert_eq!(WIDE.count(), 100);
    assert_eq!(WIDE.total_bytes(), 608, "the g packet stays as it was");
}

#[test]
fn each_shows_its_own_field() {
    let file = kernel();
    for (name, value) in [
        ("cs_base", 0),
        ("cs_limit", 0xffff_ffff),
        // 64-bit code, DPL 0: accessed, readable; present; L; G (SDM 3C table 25-2).
        ("cs_rights", 0xa09b),
        ("ss_rights", 0xc093),
        ("fs_limit", 0xffff_ffff),
        ("ldtr_rights", 0x1_0000),
        ("tr", 0x40),
        ("tr_base", 0xffff_fe00_0000_3000),
        ("tr_limit", 0x4087),
        ("tr_rights", 0x8b),
        ("gdtr_base", 0xffff_fe00_0000_1000),
        ("gdtr_limit", 0x7f),
        ("idtr_base", 0xffff_fe00_0000_0000),
        ("idtr_limit", 0xfff),
        ("dr0", 0x1000),
        ("dr1", 0x2000),
        ("dr2", 0x3000),
        ("dr3", 0xffff_8000_0000_4000),
        ("dr6", 0xffff_0ff0),
        ("dr7", 0x400),
    ] {
        assert_eq!(get(&file, name), value, "{name}");
    }
    assert_eq!(id("dr3").groups(), RegisterGroups::DEBUG);
    assert_eq!(id("tr_limit").groups(), RegisterGroups::SPECIAL);
}

#[test]
fn what_only_an_instruction_loads_is_refused_and_may_be_written_back() {
    for (name, _) in MORE {
        let loaded = name.ends_with("_limit") || name.ends_with("_rights");
        let table = name.starts_with("gdtr") || name.starts_with("idtr");
        let system = name.starts_with("ldtr") || name.starts_with("tr");
        if !(loaded && !table || system) {
            continue;
        }
        let mut file = kernel();
        let value = get(&file, name);
        set(&mut file, name, value).unwrap();
        let error = set(&mut file, name, value ^ 1).unwrap_err();
        assert!(error.to_string().contains("change"), "{name}: {error}");
        assert_eq!(file, kernel(), "{name}");
    }
}

#[test]
fn bases_and_tables_are_checked() {
    let mut file = kernel();
    for (name, value) in [("gdtr_limit", 0xff), ("idtr_limit", 0x1ff)] {
        set(&mut file, name, value).unwrap();
        assert_eq!(get(&file, name), value);
        assert!(set(&mut file, name, 0x1_0000).is_err());
    }
    for name in ["gdtr_base", "idtr_base"] {
        set(&mut file, name, 0xffff_8000_0000_0000).unwrap();
        assert!(matches!(
            set(&mut file, name, 0x8000_0000_0000),
            Err(WriteError::Address { register, .. }) if register == name
        ));
    }
    for name in ["cs_base", "ss_base", "ds_base", "es_base"] {
        set(&mut file, name, 0x1234_0000).unwrap();
        assert_eq!(get(&file, name), 0x1234_0000);
        assert!(set(&mut file, name, 0x1_0000_0000).is_err());
    }
    // In virtual-8086 mode the selector decides.
    let mut file = RegisterFile::default();
    file.special.cr0 = 0x11;
    file.core.rflags = 0x2_3002;
    assert!(set(&mut file, "ds_base", 0x1000).is_err());
}

#[test]
fn a_base_of_cs_moves_the_linear_pc_with_it() {
    let mut file = RegisterFile::default();
    file.special.cr0 = 0x10;
    file.special.cs.limit = 0xffff;
    file.core.rip = 0x10;
    set(&mut file, "cs_base", 0x7_0000).unwrap();
    assert_eq!((get(&file, "rip"), file.core.rip), (0x7_0010, 0x10));
}

#[test]
fn the_upper_halves_of_ymm_registers_are_there_if_the_guest_has_avx() {
    let wide = View::X86_64.with(StateComponents::AVX);
    assert_eq!(wide.count(), 116);
    assert_eq!(wide.total_bytes(), 608);
    assert_eq!(wide.register(115).unwrap().name(), "ymm15h");
    assert_eq!(wide.register(116), None);
    let narrow = View::I386.with(StateComponents::AVX);
    assert_eq!(narrow.register(91).unwrap().name(), "ymm7h");
    assert_eq!(narrow.register(92), None);
    assert_eq!(View::X86_64.register_named("ymm0h"), None);

    let ymm5 = wide.register_named("ymm5h").unwrap();
    assert_eq!((ymm5.number(), ymm5.size_bytes()), (105, 16));
    let mut file = kernel();
    let mut value = [0; 32];
    assert_eq!(ymm5.read(&file, &mut value), None);
    let error = ymm5.write(&mut file, &Ram::new(0), &[7; 16]).unwrap_err();
    assert!(error.to_string().contains("has not enabled AVX"), "{error}");
    assert_eq!(file, kernel());

    file.fpu.ymm_high = Some([[0; 16]; 16]);
    ymm5.write(&mut file, &Ram::new(0), &[7; 16]).unwrap();
    assert_eq!(ymm5.read(&file, &mut value), Some(16));
    assert_eq!((&value[..16], &value[16..]), (&[7; 16][..], &[0; 16][..]));
    let high = file.fpu.ymm_high.unwrap();
    assert_eq!((high[4], high[5], high[6]), ([0; 16], [7; 16], [0; 16]));
    assert!(ymm5.write(&mut file, &Ram::new(0), &[7; 32]).is_err());
}

/// Names of AVX-512's registers and sizes in bytes, as GDB requires them.
fn avx512() -> Vec<(String, usize)> {
    let name = |prefix: &'static str, suffix: &'static str, numbers: Range<u8>, size: usize| {
        numbers.map(move |number| (format!("{prefix}{number}{suffix}"), size))
    };
    name("k", "", 0..8, 8)
        .chain(name("zmm", "h", 0..32, 32))
        .chain(name("xmm", "", 16..32, 16))
        .chain(name("ymm", "h", 16..32, 16))
        .collect()
}

/// A guest that has enabled all state components. Every register differs from all others.
fn enabled() -> RegisterFile {
    let mut file = kernel();
    let mut state = Avx512State::default();
    for (number, register) in (0..).zip(&mut state.opmask) {
        *register = 0x0807_0605_0403_0201 << number;
    }
    for (number, register) in (0x20..).zip(&mut state.zmm_high) {
        *register = [number; 32];
    }
    for (number, register) in (0x60..).zip(&mut state.xmm) {
        *register = [number; 16];
    }
    for (number, register) in (0x80..).zip(&mut state.ymm_high) {
        *register = [number; 16];
    }
    file.fpu.ymm_high = Some([[0; 16]; 16]);
    file.fpu.avx512 = Some(Box::new(state));
    file.fpu.pkru = Some(0x5555_5554);
    file
}

fn bytes(id: RegisterId, file: &RegisterFile) -> Option<Vec<u8>> {
    let mut value = [0; RegisterId::LONGEST];
    let length = id.read(file, &mut value)?;
    Some(value[..length].to_vec())
}

#[test]
fn the_registers_of_avx512_follow_those_of_avx() {
    let wide = View::X86_64.with(StateComponents::AVX | StateComponents::AVX512);
    let names = avx512();
    assert_eq!(wide.count(), 116 + names.len());
    assert_eq!(wide.total_bytes(), 608, "the g packet stays as it was");
    for (number, (name, size)) in (116..).zip(&names) {
        let id = wide.register(number).unwrap();
        assert_eq!((id.name(), id.size_bytes()), (&name[..], *size));
        assert_eq!(id.groups(), RegisterGroups::FPU);
    }
    let narrow = View::I386.with(wide.components());
    assert_eq!(narrow.count(), 92 + 16);
    for (number, (name, size)) in (92..).zip(&names[..16]) {
        let id = narrow.register(number).unwrap();
        assert_eq!((id.name(), id.size_bytes()), (&name[..], *size));
    }
    // XCR0 cannot enable AVX-512 without AVX.
    assert_eq!(View::I386.with(StateComponents::AVX512), View::I386);
}

#[test]
fn each_register_of_avx512_is_its_own_and_takes_all_values() {
    let view = View::X86_64.with(StateComponents::all());
    let mut seen = Vec::new();
    for (name, size) in avx512() {
        let id = view.register_named(&name).unwrap();
        let mut file = enabled();
        let value = bytes(id, &file).unwrap();
        assert_eq!(value.len(), size);
        assert!(!seen.contains(&value), "{name}");
        seen.push(value);
        let written: Vec<u8> = (0xc0..).take(size).collect();
        id.write(&mut file, &Ram::new(0), &written).unwrap();
        assert_eq!(bytes(id, &file), Some(written), "{name}");
        let others = |file: &RegisterFile| -> Vec<_> {
            let ids = view.registers().filter(|other| *other != id);
            ids.map(|other| bytes(other, file)).collect()
        };
        assert_eq!(others(&file), others(&enabled()), "{name}");
        let error = id.write(&mut file, &Ram::new(0), &[0; 33]).unwrap_err();
        assert!(matches!(error, WriteError::Length { actual: 33, .. }));

        // A guest that has not enabled AVX-512.
        assert_eq!(bytes(id, &kernel()), None, "{name}");
        let mut file = kernel();
        let error = id
            .write(&mut file, &Ram::new(0), &vec![0; size])
            .unwrap_err();
        assert!(error.to_string().contains("has not enabled AVX-512"));
        assert_eq!(file, kernel());
    }
}

#[test]
fn the_parts_of_a_zmm_register_are_in_four_registers() {
    let view = View::X86_64.with(StateComponents::all());
    let file = enabled();
    let part = |name| bytes(view.register_named(name).unwrap(), &file).unwrap();
    assert_eq!(part("xmm16"), [0x60; 16]);
    assert_eq!(part("xmm31"), [0x6f; 16]);
    assert_eq!(part("ymm16h"), [0x80; 16]);
    assert_eq!(part("zmm0h"), [0x20; 32]);
    assert_eq!(part("zmm16h"), [0x30; 32]);
    assert_eq!(part("k1"), 0x100e_0c0a_0806_0402_u64.to_le_bytes());
}

#[test]
fn pkru_is_there_if_the_guest_has_enabled_it() {
    for (view, number) in [
        (View::X86_64.with(StateComponents::PKRU), 100),
        (View::X86_64.with(StateComponents::all()), 188),
        (View::I386.with(StateComponents::PKRU), 84),
    ] {
        let id = view.register(number).unwrap();
        assert_eq!((id.name(), id.size_bytes()), ("pkru", 4));
        assert_eq!(view.register(number + 1), None);
        let mut file = enabled();
        assert_eq!(bytes(id, &file), Some(vec![0x54, 0x55, 0x55, 0x55]));
        id.write(&mut file, &Ram::new(0), &[0xff, 0, 0, 0xff])
            .unwrap();
        assert_eq!(file.fpu.pkru, Some(0xff00_00ff));
        let mut file = kernel();
        assert_eq!(bytes(id, &file), None);
        let error = id.write(&mut file, &Ram::new(0), &[0; 4]).unwrap_err();
        assert!(error.to_string().contains("has not enabled PKRU"));
    }
}

#[test]
fn debug_registers_take_what_the_cpu_takes() {
    let mut file = kernel();
    set(&mut file, "dr1", 0xffff_8000_0000_0008).unwrap();
    assert_eq!(file.debug.dr[1], 0xffff_8000_0000_0008);
    set(&mut file, "dr6", 0).unwrap();
    assert_eq!(file.debug.dr6, 0xffff_0ff0, "fixed bits stay");
    set(&mut file, "dr6", 0x400f).unwrap();
    assert_eq!(file.debug.dr6, 0xffff_4fff);
    set(&mut file, "dr7", 0).unwrap();
    assert_eq!(file.debug.dr7, 0x400);
    set(&mut file, "dr7", 0xffff_ffff).unwrap();
    assert_eq!(file.debug.dr7, 0xffff_2fff);
    for name in ["dr6", "dr7"] {
        assert!(matches!(
            set(&mut file, name, 1 << 32),
            Err(WriteError::ReservedBits { .. })
        ));
    }
}

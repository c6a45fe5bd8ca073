//! Registers behind those of QEMU: hidden parts of segments, descriptor tables, debug registers.

use super::*;
use crate::x86_64::DebugRegisters;

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
    let wide = View::X86_64.with_avx(true);
    assert_eq!(wide.count(), 116);
    assert_eq!(wide.total_bytes(), 608);
    assert_eq!(wide.register(115).unwrap().name(), "ymm15h");
    assert_eq!(wide.register(116), None);
    let narrow = View::I386.with_avx(true);
    assert_eq!(narrow.register(91).unwrap().name(), "ymm7h");
    assert_eq!(narrow.register(92), None);
    assert_eq!(View::X86_64.register_named("ymm0h"), None);

    let ymm5 = wide.register_named("ymm5h").unwrap();
    assert_eq!((ymm5.number(), ymm5.size_bytes()), (105, 16));
    let mut file = kernel();
    let mut value = [0; 16];
    assert_eq!(ymm5.read(&file, &mut value), None);
    let error = ymm5.write(&mut file, &Ram::new(0), &[7; 16]).unwrap_err();
    assert!(error.to_string().contains("has not enabled AVX"), "{error}");
    assert_eq!(file, kernel());

    file.fpu.ymm_high = Some([[0; 16]; 16]);
    ymm5.write(&mut file, &Ram::new(0), &[7; 16]).unwrap();
    assert_eq!(ymm5.read(&file, &mut value), Some(16));
    assert_eq!(value, [7; 16]);
    let high = file.fpu.ymm_high.unwrap();
    assert_eq!((high[4], high[5], high[6]), ([0; 16], [7; 16], [0; 16]));
    assert!(ymm5.write(&mut file, &Ram::new(0), &[7; 32]).is_err());
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

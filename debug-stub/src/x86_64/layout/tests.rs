use proptest::prelude::*;

use super::*;
use crate::x86_64::simulated::Ram;
use crate::x86_64::{DescriptorTable, Segment};

const WIDE: View = View::X86_64;

/// Names, sizes in bits: copied from QEMU 7.2's stub, not from the table under test.
const QEMU: [(&str, usize); 66] = [
    ("rax", 64),
    ("rbx", 64),
    ("rcx", 64),
    ("rdx", 64),
    ("rsi", 64),
    ("rdi", 64),
    ("rbp", 64),
    ("rsp", 64),
    ("r8", 64),
    ("r9", 64),
    ("r10", 64),
    ("r11", 64),
    ("r12", 64),
    ("r13", 64),
    ("r14", 64),
    ("r15", 64),
    ("rip", 64),
    ("eflags", 32),
    ("cs", 32),
    ("ss", 32),
    ("ds", 32),
    ("es", 32),
    ("fs", 32),
    ("gs", 32),
    ("fs_base", 64),
    ("gs_base", 64),
    ("k_gs_base", 64),
    ("cr0", 64),
    ("cr2", 64),
    ("cr3", 64),
    ("cr4", 64),
    ("cr8", 64),
    ("efer", 64),
    ("st0", 80),
    ("st1", 80),
    ("st2", 80),
    ("st3", 80),
    ("st4", 80),
    ("st5", 80),
    ("st6", 80),
    ("st7", 80),
    ("fctrl", 32),
    ("fstat", 32),
    ("ftag", 32),
    ("fiseg", 32),
    ("fioff", 32),
    ("foseg", 32),
    ("fooff", 32),
    ("fop", 32),
    ("xmm0", 128),
    ("xmm1", 128),
    ("xmm2", 128),
    ("xmm3", 128),
    ("xmm4", 128),
    ("xmm5", 128),
    ("xmm6", 128),
    ("xmm7", 128),
    ("xmm8", 128),
    ("xmm9", 128),
    ("xmm10", 128),
    ("xmm11", 128),
    ("xmm12", 128),
    ("xmm13", 128),
    ("xmm14", 128),
    ("xmm15", 128),
    ("mxcsr", 32),
];

fn segment(selector: u16, base: u64) -> Segment {
    Segment {
        selector,
        base,
        limit: 0xffff_ffff,
        kind: 3,
        present: true,
        code_or_data: true,
        default_big: true,
        granularity: true,
        ..Segment::default()
    }
}

/// A 64-bit kernel's registers; every one differs from all others.
fn long_mode() -> RegisterFile {
    let mut file = RegisterFile::default();
    let core = &mut file.core;
    core.rax = 0x1000_0000_0000_0a00;
    core.rbx = 0x1000_0000_0000_0b01;
    core.rcx = 0x1000_0000_0000_0c02;
    core.rdx = 0x1000_0000_0000_0d03;
    core.rsi = 0x1000_0000_0000_0e04;
    core.rdi = 0x1000_0000_0000_0f05;
    core.rbp = 0x1000_0000_0000_1006;
    core.rsp = 0x1000_0000_0000_1107;
    core.r8 = 0x1000_0000_0000_1208;
    core.r9 = 0x1000_0000_0000_1309;
    core.r10 = 0x1000_0000_0000_140a;
    core.r11 = 0x1000_0000_0000_150b;
    core.r12 = 0x1000_0000_0000_160c;
    core.r13 = 0x1000_0000_0000_170d;
    core.r14 = 0x1000_0000_0000_180e;
    core.r15 = 0x1000_0000_0000_190f;
    core.rip = 0xffff_8000_0000_1a10;
    core.rflags = 0x246;
    let special = &mut file.special;
    special.cs = Segment {
        kind: 0xb,
        long: true,
        default_big: false,
        ..segment(0x10, 0)
    };
    special.ss = segment(0x18, 0);
    special.ds = segment(0x28, 0);
    special.es = segment(0x30, 0);
    special.fs = segment(0x38, 0x0000_7000_0000_0024);
    special.gs = segment(0x40, 0xffff_8000_0000_0025);
    file.kernel_gs_base = 0x0000_6000_0000_0026;
    special.cr0 = 0x8005_0033;
    special.cr2 = 0x2000_0000_0000_0028;
    special.cr3 = 0x0000_0000_0012_9000;
    special.cr4 = 0x0000_0000_0000_06a0;
    special.cr8 = 0x9;
    special.efer = 0xd01;
    let fpu = &mut file.fpu;
    for (index, st) in fpu.st.iter_mut().enumerate() {
        *st = [0x50 + u8::try_from(index).unwrap(); 10];
    }
    fpu.fcw = 0x037f;
    // TOP = 5.
    fpu.fsw = 0x2901;
    fpu.ftw_abridged = 0b1110_0000;
    fpu.fop = 0x05dd;
    fpu.fip = 0xaaaa_0010_1234_5678;
    fpu.fdp = 0xbbbb_0018_8765_4321;
    for (index, xmm) in fpu.xmm.iter_mut().enumerate() {
        *xmm = [0x70 + u8::try_from(index).unwrap(); 16];
    }
    fpu.mxcsr = 0x1f80;
    file
}

/// What GDB must see of [`long_mode`], written out by hand.
fn expected(name: &str) -> u128 {
    let st = |index: u128| 0x0101_0101_0101_0101_0101 * (0x50 + index);
    let xmm = |index: u128| 0x0101_0101_0101_0101_0101_0101_0101_0101 * (0x70 + index);
    match name {
        "rax" => 0x1000_0000_0000_0a00,
        "rbx" => 0x1000_0000_0000_0b01,
        "rcx" => 0x1000_0000_0000_0c02,
        "rdx" => 0x1000_0000_0000_0d03,
        "rsi" => 0x1000_0000_0000_0e04,
        "rdi" => 0x1000_0000_0000_0f05,
        "rbp" => 0x1000_0000_0000_1006,
        "rsp" => 0x1000_0000_0000_1107,
        "r8" => 0x1000_0000_0000_1208,
        "r9" => 0x1000_0000_0000_1309,
        "r10" => 0x1000_0000_0000_140a,
        "r11" => 0x1000_0000_0000_150b,
        "r12" => 0x1000_0000_0000_160c,
        "r13" => 0x1000_0000_0000_170d,
        "r14" => 0x1000_0000_0000_180e,
        "r15" => 0x1000_0000_0000_190f,
        "rip" => 0xffff_8000_0000_1a10,
        "eflags" => 0x246,
        "cs" => 0x10,
        "ss" => 0x18,
        "ds" => 0x28,
        "es" => 0x30,
        "fs" => 0x38,
        "gs" => 0x40,
        "fs_base" => 0x0000_7000_0000_0024,
        "gs_base" => 0xffff_8000_0000_0025,
        "k_gs_base" => 0x0000_6000_0000_0026,
        "cr0" => 0x8005_0033,
        "cr2" => 0x2000_0000_0000_0028,
        "cr3" => 0x0000_0000_0012_9000,
        "cr4" => 0x06a0,
        "cr8" => 9,
        "efer" => 0xd01,
        "fctrl" => 0x037f,
        "fstat" => 0x2901,
        // ST0-ST2 are physical 5-7: 0x5050 and so on as exponent, mantissa without bit 63, so
        // special (2); the others are empty (3).
        "ftag" => 0xabff,
        "fiseg" => 0x0010,
        "fioff" => 0x1234_5678,
        "foseg" => 0x0018,
        "fooff" => 0x8765_4321,
        "fop" => 0x05dd,
        "mxcsr" => 0x1f80,
        other => match other.strip_prefix("xmm") {
            Some(index) => xmm(index.parse().unwrap()),
            None => st(other.strip_prefix("st").unwrap().parse().unwrap()),
        },
    }
}

fn id(name: &str) -> RegisterId {
    WIDE.register_named(name).unwrap()
}

fn get(file: &RegisterFile, name: &str) -> u128 {
    let mut value = [0xee; RegisterId::LONGEST];
    let length = id(name).read(file, &mut value).unwrap();
    assert!(value[length..].iter().all(|byte| *byte == 0));
    u128::from_le_bytes(*value.first_chunk().unwrap())
}

fn set(file: &mut RegisterFile, name: &str, value: u128) -> Result<(), WriteError> {
    let memory = Ram::new(0);
    let id = id(name);
    id.write(file, &memory, &value.to_le_bytes()[..id.size_bytes()])
}

#[test]
fn names_order_and_sizes_are_those_of_qemu() {
    assert_eq!(WIDE.registers_in_g().count(), 66);
    assert_eq!(WIDE.total_bytes(), 608);
    for (number, (name, bits)) in QEMU.into_iter().enumerate() {
        let id = WIDE.register(number).unwrap();
        assert_eq!((id.number(), id.name()), (number, name));
        assert_eq!(id.size_bytes() * 8, bits, "{name}");
    }
    assert_eq!(WIDE.register(WIDE.count()), None);
    assert_eq!(WIDE.register(usize::MAX), None);
    assert_eq!(WIDE.register_named("ymm0"), None);
    assert_eq!(WIDE.program_counter().unwrap().name(), "rip");
    let expedited: Vec<usize> = WIDE.expedited().map(RegisterId::number).collect();
    assert_eq!(expedited, Vec::from_iter(0..=18));
}

#[test]
fn every_register_shows_its_own_field() {
    let file = long_mode();
    for (name, _) in QEMU {
        assert_eq!(get(&file, name), expected(name), "{name}");
    }
}

#[test]
fn the_g_packet_holds_all_registers_in_order() {
    let file = long_mode();
    let mut data = vec![0xcc];
    read_all(WIDE, &file, &mut data);
    assert_eq!(data.len(), 1 + 608);
    let mut offset = 1;
    for (name, bits) in QEMU {
        let mut value = [0; 16];
        value[..bits / 8].copy_from_slice(&data[offset..offset + bits / 8]);
        assert_eq!(u128::from_le_bytes(value), expected(name), "{name}");
        offset += bits / 8;
    }
    // Independent anchors: rip at 128, eflags at 136, fs_base at 164, st0 at 236.
    assert_eq!(
        data[1 + 128..][..8],
        0xffff_8000_0000_1a10_u64.to_le_bytes()
    );
    assert_eq!(data[1 + 136..][..4], 0x246_u32.to_le_bytes());
    assert_eq!(
        data[1 + 164..][..8],
        0x0000_7000_0000_0024_u64.to_le_bytes()
    );
    assert_eq!(data[1 + 236..][..10], [0x50; 10]);
}

#[test]
fn the_p_packet_counts_in_gdb_order_not_the_architectures() {
    let mut file = long_mode();
    let memory = Ram::new(0);
    // In machine encoding 1 is RCX, 3 is RBX, 4 is RSP, 7 is RDI.
    for (number, value) in [(1, 0x11), (3, 0x33), (4, 0x44), (7, 0x77)] {
        WIDE.register(number)
            .unwrap()
            .write(&mut file, &memory, &u64::to_le_bytes(value))
            .unwrap();
    }
    assert_eq!(file.core.rbx, 0x11);
    assert_eq!(file.core.rdx, 0x33);
    assert_eq!(file.core.rsi, 0x44);
    assert_eq!(file.core.rsp, 0x77);
    assert_eq!(file.core.rcx, 0x1000_0000_0000_0c02);
    assert_eq!(file.core.rbp, 0x1000_0000_0000_1006);
    assert_eq!(file.core.rdi, 0x1000_0000_0000_0f05);
}

#[test]
fn a_write_changes_its_own_register_only() {
    // Each to a value that no register has and the architecture takes.
    for (name, _) in QEMU {
        let value = match name {
            "cs" | "ss" | "ds" | "es" | "fs" | "gs" => continue,
            "rip" | "fs_base" | "gs_base" | "k_gs_base" => 0x0000_1111_2222_3333,
            "eflags" => 0x893,
            "cr0" => 0x8005_0013,
            "cr3" => 0x7000,
            "cr4" => 0x0020,
            "cr8" => 3,
            "efer" => 0x500,
            "fctrl" | "fstat" | "mxcsr" | "fiseg" | "foseg" => 0x4321,
            "fop" => 0x0321,
            "fioff" | "fooff" => 0xfedc_ba98,
            "ftag" => 0xfffe,
            "cr2" => 0x99,
            other if other.starts_with("st") => 0x3fff_8000_0000_0000_0000,
            _ => 0x1234_5678_9abc_def0,
        };
        let mut file = long_mode();
        set(&mut file, name, value).unwrap();
        for (other, _) in QEMU {
            let want = match other {
                // The full tag word is made from TOP and the contents, too.
                "ftag" if name != other => continue,
                // Physical register 0 holds ST3 = 0x5353...
                "ftag" => 0xfffe,
                _ if other == name => value,
                _ => expected(other),
            };
            assert_eq!(get(&file, other), want, "{other} after {name}");
        }
    }
}

#[test]
fn groups_say_where_a_register_lives() {
    for (name, group) in [
        ("rbx", RegisterGroups::CORE),
        // With the base of its segment.
        ("rip", RegisterGroups::EXPEDITED),
        ("rsp", RegisterGroups::EXPEDITED),
        ("eflags", RegisterGroups::CORE),
        ("gs", RegisterGroups::SPECIAL),
        ("gs_base", RegisterGroups::SPECIAL),
        ("k_gs_base", RegisterGroups::MSRS),
        ("cr8", RegisterGroups::SPECIAL),
        ("st7", RegisterGroups::FPU),
        ("ftag", RegisterGroups::FPU),
        ("xmm15", RegisterGroups::FPU),
        ("mxcsr", RegisterGroups::FPU),
    ] {
        assert_eq!(id(name).groups(), group, "{name}");
        assert!(
            id(name)
                .groups_for_write()
                .contains(group | RegisterGroups::EXPEDITED)
        );
    }
}

#[test]
fn a_value_of_the_wrong_length_is_refused() {
    let mut file = long_mode();
    let memory = Ram::new(0);
    for (name, bits) in QEMU {
        for length in [0, bits / 8 - 1, bits / 8 + 1, 17, 4096] {
            let error = id(name)
                .write(&mut file, &memory, &vec![0; length])
                .unwrap_err();
            assert_eq!(
                error,
                WriteError::Length {
                    register: name,
                    expected: bits / 8,
                    actual: length
                }
            );
        }
    }
    for length in [0, 607, 609] {
        let error = write_all(WIDE, &mut file, &memory, &vec![0; length]).unwrap_err();
        assert!(
            matches!(error, WriteError::TotalLength { expected: 608, actual } if actual == length)
        );
    }
    assert_eq!(file, long_mode());
}

#[test]
fn writing_back_what_was_read_changes_nothing_at_all() {
    let mut file = long_mode();
    // What GDB does not see of these must survive.
    file.core.rflags |= 1 << 21;
    file.special.apic_base = 0xfee0_0900;
    let before = file.clone();
    let mut data = Vec::new();
    read_all(WIDE, &file, &mut data);
    // No memory: no descriptor may be needed.
    write_all(WIDE, &mut file, &Ram::new(0), &data).unwrap();
    assert_eq!(file, before);
}

#[test]
fn bits_that_are_no_flags_are_ignored() {
    let mut file = long_mode();
    set(&mut file, "eflags", 0).unwrap();
    assert_eq!(file.core.rflags, 0x2);
    set(&mut file, "eflags", 0xffff_ffff & !(1 << 17)).unwrap();
    assert_eq!(file.core.rflags, 0x003d_7fd7);
    assert!(matches!(
        set(&mut file, "eflags", 0x2_0002),
        Err(WriteError::State {
            register: "eflags",
            ..
        })
    ));
}

#[test]
fn bits_that_do_not_exist_are_refused() {
    for (name, value, bits) in [
        ("cr8", 0x10, 0x10),
        ("cr3", 1u128 << 63, 1 << 63),
        ("cr4", 0x8000 | 0x6a0, 0x8000),
        ("efer", 0xd03, 0x2),
        ("cr0", 0x1_8005_0033, 0x1_0000_0000),
        ("fop", 0x0800, 0x0800),
        ("fctrl", 0x1_037f, 0x1_0000),
        ("ftag", 0x1_0000, 0x1_0000),
        ("mxcsr", 0x8000_1f80, 0x8000_0000),
        ("ds", 0x1_0000, 0x1_0000),
    ] {
        let mut file = long_mode();
        assert_eq!(
            set(&mut file, name, value),
            Err(WriteError::ReservedBits {
                register: name,
                bits
            })
        );
        assert_eq!(file, long_mode());
    }
}

#[test]
fn addresses_that_would_kill_the_guest_are_refused() {
    for name in ["rip", "fs_base", "gs_base", "k_gs_base"] {
        let mut file = long_mode();
        assert!(matches!(
            set(&mut file, name, 0x0000_8000_0000_0000),
            Err(WriteError::Address { register, .. }) if register == name
        ));
        // Canonical with five levels.
        file.special.cr4 |= 1 << 12;
        set(&mut file, name, 0x0000_8000_0000_0000).unwrap();
    }
    let mut file = long_mode();
    file.special.cs.long = false;
    file.special.cs.limit = 0xffff_ffff;
    assert!(set(&mut file, "rip", 0x1_0000_0000).is_err());
    set(&mut file, "rip", 0xffff_ffff).unwrap();
}

#[test]
fn control_registers_stay_consistent() {
    let refused = |name, value, says: &str| {
        let mut file = long_mode();
        let error = set(&mut file, name, value).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(file, long_mode());
    };
    refused("cr0", 0x8005_0032, "PG needs PE");
    refused("cr0", 0xa005_0033, "NW needs CD");
    refused("cr0", 0x0005_0033, "CS.L");
    refused("cr4", 0x0680, "PAE");
    refused("cr4", 0x16a0, "LA57");
    refused("efer", 0xc01, "LME");

    // LMA is not the debugger's to choose.
    let mut file = long_mode();
    set(&mut file, "efer", 0x901).unwrap();
    assert_eq!(file.special.efer, 0xd01);

    let mut file = RegisterFile::default();
    file.special.cr0 = 0x11;
    file.special.cr4 = 0x20;
    file.special.efer = 0x100;
    set(&mut file, "cr0", 0x8000_0011).unwrap();
    assert_eq!(file.special.efer, 0x500);
    set(&mut file, "cr0", 0x11).unwrap();
    assert_eq!(file.special.efer, 0x100);
    assert!(set(&mut file, "cr3", 0x1_0000_0000).is_err());
    assert!(set(&mut file, "cr4", 0x2_0020).is_err());
}

#[test]
fn reserved_bits_of_cr0_are_ignored_and_et_stays() {
    let mut file = long_mode();
    set(&mut file, "cr0", 0x8005_0063).unwrap();
    assert_eq!(file.special.cr0, 0x8005_0033);
}

#[test]
fn a_real_mode_selector_brings_its_base() {
    for name in ["cs", "ss", "ds", "es", "fs", "gs"] {
        let mut file = RegisterFile::default();
        file.special.cr0 = 0x10;
        for segment in [
            &mut file.special.cs,
            &mut file.special.ss,
            &mut file.special.ds,
            &mut file.special.es,
            &mut file.special.fs,
            &mut file.special.gs,
        ] {
            *segment = Segment {
                limit: 0xffff,
                ..segment_real()
            };
        }
        set(&mut file, name, 0xf123).unwrap();
        let special = &file.special;
        let loaded = match name {
            "cs" => special.cs,
            "ss" => special.ss,
            "ds" => special.ds,
            "es" => special.es,
            "fs" => special.fs,
            _ => special.gs,
        };
        assert_eq!(
            (loaded.selector, loaded.base, loaded.limit),
            (0xf123, 0xf_1230, 0xffff)
        );
    }
}

fn segment_real() -> Segment {
    Segment {
        kind: 3,
        present: true,
        code_or_data: true,
        ..Segment::default()
    }
}

#[test]
fn unreal_mode_keeps_its_limit() {
    let mut file = RegisterFile::default();
    file.special.cr0 = 0x10;
    file.special.ds = Segment {
        limit: 0xffff_ffff,
        granularity: true,
        ..segment_real()
    };
    set(&mut file, "ds", 0x40).unwrap();
    assert_eq!(file.special.ds.base, 0x400);
    assert_eq!(file.special.ds.limit, 0xffff_ffff);
}

#[test]
fn a_virtual_8086_selector_brings_all_that_goes_with_it() {
    let mut file = RegisterFile::default();
    file.special.cr0 = 0x11;
    file.core.rflags = 0x2_3002;
    set(&mut file, "cs", 0x1234).unwrap();
    let cs = file.special.cs;
    assert_eq!(
        (cs.base, cs.limit, cs.dpl, cs.kind),
        (0x1_2340, 0xffff, 3, 3)
    );
    assert!(cs.present && cs.code_or_data && !cs.default_big && !cs.granularity);
}

/// Flat descriptors in a GDT at 0x1000: 0x08 code 32, 0x10 code 64, 0x18 data, 0x20 user data,
/// 0x28 data at 0x0012_3400 with a byte limit, 0x30 not present, 0x38 a TSS, 0x40 user code.
fn with_gdt(file: &mut RegisterFile) -> Ram {
    let memory = Ram::new(0x3000);
    for (selector, value) in [
        (0x08, 0x00cf_9b00_0000_ffff_u64),
        (0x10, 0x00af_9b00_0000_ffff),
        (0x18, 0x00cf_9300_0000_ffff),
        (0x20, 0x00cf_f300_0000_ffff),
        (0x28, 0x0040_9212_3400_0fff),
        (0x30, 0x00cf_1300_0000_ffff),
        (0x38, 0x0000_8900_0000_0067),
        (0x40, 0x00cf_fb00_0000_ffff),
    ] {
        memory.put_u64(0x1000 + selector, value);
    }
    file.special.gdtr = DescriptorTable {
        base: 0x1000,
        limit: 0x47,
    };
    memory
}

fn protected_mode() -> RegisterFile {
    let mut file = RegisterFile::default();
    file.core.rflags = 2;
    file.special.cr0 = 0x11;
    file.special.cs = Segment {
        kind: 0xb,
        ..segment(0x08, 0)
    };
    file.special.ss = segment(0x18, 0);
    file.special.ldtr.unusable = true;
    file
}

fn set_selector(
    file: &mut RegisterFile,
    memory: &Ram,
    name: &str,
    selector: u32,
) -> Result<(), WriteError> {
    id(name).write(file, memory, &selector.to_le_bytes())
}

#[test]
fn a_protected_mode_selector_brings_its_descriptor() {
    let mut file = protected_mode();
    let memory = with_gdt(&mut file);
    set_selector(&mut file, &memory, "fs", 0x28).unwrap();
    let fs = file.special.fs;
    assert_eq!(
        (fs.selector, fs.base, fs.limit, fs.dpl),
        (0x28, 0x0012_3400, 0xfff, 0)
    );
    // Accessed is set in the hidden part, and not in memory.
    assert_eq!(fs.kind, 3);
    assert!(fs.present && fs.code_or_data && fs.default_big && !fs.granularity && !fs.long);
    assert_eq!(memory.get_u64(0x1028), 0x0040_9212_3400_0fff);
    assert_eq!(memory.writes(), 0);

    set_selector(&mut file, &memory, "ds", 0x18).unwrap();
    assert_eq!(file.special.ds.limit, 0xffff_ffff);
    // From another value: the one that is there is not loaded again.
    set_selector(&mut file, &memory, "gs", 0x28).unwrap();
    set_selector(&mut file, &memory, "gs", 0).unwrap();
    assert!(file.special.gs.unusable);
    assert_eq!(file.special.gs.base, 0);
}

#[test]
fn a_selector_that_cannot_be_loaded_is_refused() {
    for (name, selector, says) in [
        ("fs", 0x48, "limit"),
        ("fs", 0x30, "not present"),
        ("fs", 0x38, "system"),
        ("fs", 0x1c, "no LDT"),
        ("fs", 0x1b, "privileged"),
        ("cs", 0x18, "not that of code"),
        ("cs", 0x0, "null"),
        ("cs", 0x40, "privilege"),
        ("ss", 0x08, "writable data"),
        ("ss", 0x0, "null"),
        ("ss", 0x23, "privilege"),
    ] {
        let mut file = protected_mode();
        let memory = with_gdt(&mut file);
        let before = file.clone();
        let error = set_selector(&mut file, &memory, name, selector).unwrap_err();
        assert!(
            error.to_string().contains(says),
            "{name} {selector:#x}: {error}"
        );
        assert_eq!(file, before);
    }
    let mut file = protected_mode();
    with_gdt(&mut file);
    let error = set_selector(&mut file, &Ram::new(0), "fs", 0x18).unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
}

#[test]
fn a_g_packet_may_change_the_privilege_level_as_a_whole() {
    let mut file = protected_mode();
    let memory = with_gdt(&mut file);
    let mut user = file.clone();
    user.special.cs.selector = 0x43;
    user.special.ss.selector = 0x23;
    let mut data = Vec::new();
    read_all(WIDE, &user, &mut data);
    write_all(WIDE, &mut file, &memory, &data).unwrap();
    assert_eq!((file.special.cs.dpl, file.special.ss.dpl), (3, 3));
}

#[test]
fn a_g_packet_with_a_selector_and_a_base_takes_both() {
    let mut file = protected_mode();
    let memory = with_gdt(&mut file);
    let mut wanted = file.clone();
    wanted.special.fs.selector = 0x28;
    wanted.special.fs.base = 0x7777;
    wanted.special.gs.selector = 0x28;
    let mut data = Vec::new();
    read_all(WIDE, &wanted, &mut data);
    write_all(WIDE, &mut file, &memory, &data).unwrap();
    assert_eq!(file.special.fs.base, 0x7777);
    assert_eq!(file.special.gs.base, 0x0012_3400);
}

#[test]
fn a_g_packet_with_one_bad_value_writes_nothing() {
    let mut file = long_mode();
    let mut bad = long_mode();
    bad.core.rax = 1;
    bad.special.cr8 = 0x20;
    let mut data = Vec::new();
    read_all(WIDE, &bad, &mut data);
    assert!(write_all(WIDE, &mut file, &Ram::new(0), &data).is_err());
    assert_eq!(file, long_mode());
}

#[test]
fn the_full_tag_word_follows_top_and_contents() {
    let mut file = RegisterFile::default();
    assert_eq!(get(&file, "ftag"), 0xffff);
    let one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
    let infinity = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f];
    let denormal = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let unnormal = [0, 0, 0, 0, 0, 0, 0, 0x40, 0xff, 0x3f];
    let pseudo_denormal = [0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0x80];
    let zero = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80];
    file.fpu.st = [
        one,
        zero,
        infinity,
        denormal,
        unnormal,
        pseudo_denormal,
        one,
        one,
    ];
    file.fpu.ftw_abridged = 0x7f;
    // TOP = 0: physical = stack; the last is empty.
    assert_eq!(get(&file, "ftag"), 0b11_00_10_10_10_10_01_00);
    // TOP = 6: ST0 is physical 6, ST1 is 7 (empty), ST2 is 0.
    file.fpu.fsw = 6 << 11;
    assert_eq!(get(&file, "ftag"), 0b11_00_00_00_10_10_10_10);
}

#[test]
fn the_tag_word_round_trips_as_empty_or_not() {
    let mut file = RegisterFile::default();
    set(&mut file, "ftag", 0xffff).unwrap();
    assert_eq!(file.fpu.ftw_abridged, 0);
    set(&mut file, "ftag", 0b11_00_01_10_11_11_00_11).unwrap();
    assert_eq!(file.fpu.ftw_abridged, 0b0111_0010);
}

#[test]
fn x87_pointers_are_split_and_keep_what_gdb_does_not_see() {
    let mut file = long_mode();
    set(&mut file, "fiseg", 0x33).unwrap();
    set(&mut file, "fioff", 0x4444_5555).unwrap();
    assert_eq!(file.fpu.fip, 0xaaaa_0033_4444_5555);
    set(&mut file, "foseg", 0x2b).unwrap();
    set(&mut file, "fooff", 0x6666_7777).unwrap();
    assert_eq!(file.fpu.fdp, 0xbbbb_002b_6666_7777);
}

proptest! {
    #[test]
    fn any_bytes_are_taken_whole_or_refused_whole(
        data in proptest::collection::vec(any::<u8>(), 608),
        flips in proptest::collection::vec((0usize..608, any::<u8>()), 0..4),
        random in any::<bool>(),
    ) {
        let mut file = long_mode();
        let data = if random {
            data
        } else {
            // Near a valid packet.
            let mut near = Vec::new();
            read_all(WIDE, &file, &mut near);
            for (at, value) in flips {
                near[at] = value;
            }
            near
        };
        let memory = Ram::new(64);
        match write_all(WIDE, &mut file, &memory, &data) {
            Err(_) => prop_assert_eq!(file, long_mode()),
            Ok(()) => {
                // What was written is what is shown, except for bits that are ignored.
                let mut shown = Vec::new();
                let mut before = Vec::new();
                read_all(WIDE, &long_mode(), &mut before);
                // A null selector in FS or GS brings a base, if the packet has the old one.
                let loads = data[156..164] != before[156..164];
                read_all(WIDE, &file, &mut shown);
                for (at, (got, want)) in shown.iter().zip(&data).enumerate() {
                    let eflags = (136..140).contains(&at);
                    let tag = (324..328).contains(&at);
                    let cr0 = (188..196).contains(&at);
                    let efer = (228..236).contains(&at);
                    let base = loads && (164..180).contains(&at);
                    prop_assert!(got == want || base || eflags || tag || cr0 || efer, "byte {}", at);
                }
            }
        }
        prop_assert_eq!(memory.writes(), 0);
    }

    #[test]
    fn any_single_write_is_taken_or_refused(
        number in 0usize..120,
        value in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut file = long_mode();
        if let Some(id) = WIDE.register(number) {
            if id.write(&mut file, &Ram::new(16), &value).is_err() {
                prop_assert_eq!(file, long_mode());
            }
        } else {
            prop_assert!(number >= 100);
        }
    }
}

mod narrow;
mod system;

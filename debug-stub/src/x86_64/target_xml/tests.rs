use std::io::Write;
use std::process::Command;

use super::*;

/// Names of the registers in a description, and the sum of their sizes.
fn described(view: View) -> (Vec<String>, usize) {
    let xml = target_xml(view);
    let names = xml
        .lines()
        .filter_map(|line| line.strip_prefix("<reg name=\""))
        .filter_map(|rest| rest.split('"').next().map(str::to_owned))
        .collect();
    let bits = xml
        .lines()
        .filter_map(|line| line.split_once("bitsize=\""))
        .filter_map(|(_, rest)| rest.split('"').next())
        .map(|bits| bits.parse::<usize>().unwrap())
        .sum();
    (names, bits)
}

#[test]
fn all_registers_are_described_in_order() {
    let (names, bits) = described(View::X86_64);
    assert_eq!(names.len(), 100);
    assert_eq!(names[..4], ["rax", "rbx", "rcx", "rdx"]);
    assert_eq!(names[16..19], ["rip", "eflags", "cs"]);
    assert_eq!(names[24..27], ["fs_base", "gs_base", "k_gs_base"]);
    assert_eq!(names[65], "mxcsr");
    assert_eq!(names[66..69], ["cs_base", "cs_limit", "cs_rights"]);
    assert_eq!(names[94..], ["dr0", "dr1", "dr2", "dr3", "dr6", "dr7"]);
    // The `g` packet, 14 more of 8 bytes, and 20 of 4.
    assert_eq!(bits, (608 + 14 * 8 + 20 * 4) * 8);

    for view in [View::I8086, View::I386] {
        let (names, bits) = described(view);
        assert_eq!(names.len(), 84);
        assert_eq!(names[..4], ["eax", "ecx", "edx", "ebx"]);
        assert_eq!(names[8..11], ["eip", "eflags", "cs"]);
        assert_eq!(names[49], "mxcsr");
        // 68 of 4 bytes, 8 of 10, 8 of 16.
        assert_eq!(bits, (68 * 4 + 8 * 10 + 8 * 16) * 8);
    }
}

#[test]
fn every_type_that_is_used_is_defined() {
    for view in View::ALL {
        every_type_of(view);
        every_type_of(view.with(StateComponents::all()));
    }
}

fn every_type_of(view: View) {
    let xml = target_xml(view);
    for line in xml.lines().filter(|line| line.contains("type=\"")) {
        let (_, rest) = line.split_once("type=\"").unwrap();
        let kind = rest.split('"').next().unwrap();
        let built_in = [
            "int",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint32",
            "uint64",
            "uint128",
            "code_ptr",
            "data_ptr",
            "i387_ext",
            "ieee_single",
            "ieee_double",
        ];
        let defined = ["flags", "vector", "union"]
            .iter()
            .any(|tag| xml.contains(&format!("<{tag} id=\"{kind}\"")));
        assert!(built_in.contains(&kind) || defined, "{kind}");
    }
}

#[test]
fn flag_fields_lie_within_their_register_and_do_not_overlap() {
    for flags in FLAGS.iter().chain(&SYSTEM_FLAGS) {
        let mut seen = 0u64;
        for (name, start, end) in flags.fields {
            let bits = flags.kind.bytes(View::X86_64) * 8;
            assert!(start <= end && usize::from(*end) < bits, "{name}");
            for bit in *start..=*end {
                assert_eq!(seen & (1 << bit), 0, "{} {name}", flags.id);
                seen |= 1 << bit;
            }
        }
    }
    let xml = target_xml(View::I386);
    assert!(xml.contains("<flags id=\"x64_cr3\" size=\"4\">"), "{xml}");
    assert!(xml.contains("<field name=\"PDBR\" start=\"12\" end=\"31\"/>"));
    assert!(!xml.contains("FRED"), "it is bit 32");
}

/// GDB, with a description in a file. Returns what it says.
fn gdb(view: View, program: Option<&str>, commands: &[&str]) -> String {
    let gdb = Command::new("gdb").arg("--version").output();
    assert!(gdb.is_ok(), "this test needs gdb: install the package gdb");
    let mut file = tempfile::Builder::new().suffix(".xml").tempfile().unwrap();
    file.write_all(target_xml(view).as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex"])
        .arg(format!("set tdesc filename {path}"));
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.args(program).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(errors, "", "{view:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The judge of a target description is GDB.
#[test]
fn gdb_accepts_the_descriptions_without_a_word() {
    let avx = StateComponents::AVX;
    let avx512 = avx | StateComponents::AVX512;
    for (view, known) in [
        (
            View::X86_64,
            [("rax", 0), ("k_gs_base", 26), ("mxcsr", 65), ("dr7", 99)],
        ),
        (
            View::I386,
            [("eax", 0), ("k_gs_base", 18), ("efer", 24), ("cs_base", 50)],
        ),
        (
            View::I8086,
            [("ebx", 3), ("eip", 8), ("st0", 25), ("xmm7", 48)],
        ),
        (
            View::X86_64.with(avx),
            [("rax", 0), ("xmm15", 64), ("mxcsr", 65), ("dr7", 99)],
        ),
        (
            View::I386.with(avx),
            [("eax", 0), ("xmm7", 48), ("mxcsr", 49), ("cs_base", 50)],
        ),
        (
            View::X86_64.with(avx512),
            [("rax", 0), ("k7", 123), ("xmm16", 156), ("ymm0h", 100)],
        ),
        (
            View::X86_64.with(StateComponents::all()),
            [("dr7", 99), ("k0", 116), ("xmm31", 171), ("pkru", 188)],
        ),
        (
            View::X86_64.with(StateComponents::PKRU),
            [("rax", 0), ("mxcsr", 65), ("dr7", 99), ("pkru", 100)],
        ),
        (
            View::I386.with(StateComponents::all()),
            [("eax", 0), ("k0", 92), ("k7", 99), ("pkru", 108)],
        ),
        (
            View::I8086.with(StateComponents::all()),
            [("eax", 0), ("k0", 92), ("zmm0h", 100), ("pkru", 108)],
        ),
    ] {
        let said = gdb(
            view,
            None,
            &[
                "show architecture",
                "maint print remote-registers",
                "maint print registers",
            ],
        );
        // GDB makes YMM and ZMM registers of the parts.
        let has = |name| {
            said.lines()
                .any(|line| line.split_whitespace().next() == Some(name))
        };
        let components = view.components();
        let has_avx512 = components.contains(StateComponents::AVX512);
        assert_eq!(has("ymm0"), components.contains(avx), "{said}");
        assert_eq!(has("zmm7"), has_avx512, "{said}");
        assert_eq!(has("zmm31"), has_avx512 && view.is_wide(), "{said}");
        let current = format!("(currently \"{}\")", view.name());
        assert!(said.contains(&current), "{said}");
        // Name, number in the protocol, size: GDB has taken them from the description.
        for (name, number) in known {
            let line = said
                .lines()
                .find(|line| line.split_whitespace().next() == Some(name))
                .unwrap_or_else(|| panic!("{name} is not known:\n{said}"));
            assert!(
                line.split_whitespace()
                    .any(|word| word == number.to_string()),
                "{line}"
            );
        }
    }
}

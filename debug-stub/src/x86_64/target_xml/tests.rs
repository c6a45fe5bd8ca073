use std::io::Write;
use std::process::Command;

use super::*;

#[test]
fn all_registers_are_described_in_order() {
    let xml = target_xml();
    let names: Vec<&str> = xml
        .lines()
        .filter_map(|line| line.strip_prefix("<reg name=\""))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert_eq!(names.len(), 66);
    assert_eq!(names[..4], ["rax", "rbx", "rcx", "rdx"]);
    assert_eq!(names[16..19], ["rip", "eflags", "cs"]);
    assert_eq!(names[24..27], ["fs_base", "gs_base", "k_gs_base"]);
    assert_eq!(names[65], "mxcsr");
    let bits: usize = xml
        .lines()
        .filter_map(|line| line.split_once("bitsize=\""))
        .filter_map(|(_, rest)| rest.split('"').next())
        .map(|bits| bits.parse::<usize>().unwrap())
        .sum();
    assert_eq!(bits, 608 * 8);
}

#[test]
fn every_type_that_is_used_is_defined() {
    let xml = target_xml();
    for line in xml.lines().filter(|line| line.contains("type=\"")) {
        let (_, rest) = line.split_once("type=\"").unwrap();
        let kind = rest.split('"').next().unwrap();
        let built_in = [
            "int",
            "int8",
            "int16",
            "int32",
            "int64",
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
    for flags in &FLAGS {
        let mut seen = 0u64;
        for (name, start, end) in flags.fields {
            assert!(
                start <= end && usize::from(*end) < flags.size_bytes * 8,
                "{name}"
            );
            for bit in *start..=*end {
                assert_eq!(seen & (1 << bit), 0, "{} {name}", flags.id);
                seen |= 1 << bit;
            }
        }
    }
}

/// The judge of a target description is GDB.
#[test]
fn gdb_accepts_the_description_without_a_word() {
    let gdb = Command::new("gdb").arg("--version").output();
    assert!(gdb.is_ok(), "this test needs gdb: install the package gdb");
    let mut file = tempfile::Builder::new().suffix(".xml").tempfile().unwrap();
    file.write_all(target_xml().as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let output = Command::new("gdb")
        .args([
            "-nx",
            "-batch",
            "-ex",
            &format!("set tdesc filename {path}"),
        ])
        .args([
            "-ex",
            "show architecture",
            "-ex",
            "maint print remote-registers",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(said.contains("i386:x86-64"), "{said}");
    // Name, number in the protocol, size: GDB has taken them from the description.
    for (name, number) in [("rax", 0), ("k_gs_base", 26), ("efer", 32), ("mxcsr", 65)] {
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

//! Kernels that cannot be used, and machines that cannot be created, through the command.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

use std::process::{Command, Stdio};

use vmm_reference::guests::TIMER;

// ELF64 (System V ABI, "ELF Header", "Program Header").
const E_MACHINE: usize = 18;
const E_ENTRY: usize = 24;
const E_PHOFF: usize = 32;
const P_OFFSET: usize = 8;
const P_VADDR: usize = 16;
const P_PADDR: usize = 24;
const P_FILESZ: usize = 32;
const P_MEMSZ: usize = 40;
const PHENTSIZE: usize = 56;

/// The timer guest with bytes changed.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut elf = TIMER.elf.to_vec();
    change(&mut elf);
    elf
}

fn put(elf: &mut [u8], at: usize, value: u64) {
    elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(elf: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(elf[at..at + 8].try_into().unwrap())
}

/// Where the program header of the `index`-th segment is.
fn segment(elf: &[u8], index: usize) -> usize {
    usize::try_from(get(elf, E_PHOFF)).unwrap() + index * PHENTSIZE
}

/// Sets one field of a program header.
fn segment_field(index: usize, field: usize, value: u64) -> Vec<u8> {
    changed(|elf| {
        let at = segment(elf, index) + field;
        put(elf, at, value);
    })
}

/// Status 2, one line on standard error that names the file, and nothing else.
#[track_caller]
fn assert_unusable(what: &str, kernel: &[u8], options: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kernel");
    std::fs::write(&path, kernel).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmm-reference"))
        .args(["run", "--serial", "none", "--kernel"])
        .arg(&path)
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A kernel that is run by mistake runs forever.
    let start = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed().as_secs() > 20 {
            child.kill().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{what}: {stderr}");
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    assert!(output.stdout.is_empty(), "{what}");
    stderr
}

#[test]
fn broken_kernels_are_refused_with_status_2() {
    let first = |field, value| segment_field(0, field, value);
    for (what, kernel) in [
        ("empty", Vec::new()),
        ("one byte", vec![0x7f]),
        ("only a magic number", b"\x7fELF".to_vec()),
        ("text", b"#!/bin/sh\nexit 0\n".repeat(1000)),
        ("zeroes", vec![0; 1 << 20]),
        // EM_AARCH64.
        ("another machine", changed(|elf| elf[E_MACHINE] = 183)),
        ("file size beyond the file", first(P_FILESZ, 1 << 40)),
        ("offset beyond the file", first(P_OFFSET, 1 << 40)),
        ("offset that overflows", first(P_OFFSET, u64::MAX)),
        ("memory beyond the machine", first(P_MEMSZ, 1 << 40)),
        ("memory that overflows", first(P_MEMSZ, u64::MAX)),
        ("memory less than file", first(P_MEMSZ, 1)),
        ("address beyond memory", first(P_PADDR, 1 << 40)),
        (
            "address at the end of all",
            first(P_PADDR, u64::MAX - 0xfff),
        ),
        ("address away from the entry", first(P_PADDR, 0)),
        (
            "header table beyond the file",
            changed(|elf| put(elf, E_PHOFF, u64::MAX - 8)),
        ),
    ] {
        let stderr = assert_unusable(what, &kernel, &[]);
        assert!(stderr.contains("kernel"), "{what}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    }
}

#[test]
fn overlapping_segments_are_refused() {
    let kernel = changed(|elf| {
        // The segments are text, note and data: data onto the text.
        let (text, data) = (segment(elf, 0), segment(elf, 2));
        let address = get(elf, text + P_PADDR);
        put(elf, data + P_PADDR, address);
        put(elf, data + P_VADDR, address);
    });
    let stderr = assert_unusable("overlap", &kernel, &[]);
    assert!(stderr.contains("overlap"), "{stderr}");
}

#[test]
fn an_entry_outside_the_kernel_is_refused() {
    // The PVH note's entry is what counts; the ELF entry is where it would be searched for.
    let kernel = changed(|elf| {
        let entry = TIMER.symbol("_start").unwrap();
        let name = b"Xen\0";
        let at = elf
            .windows(12)
            .position(|bytes| bytes[..4] == *name && bytes[4..] == entry.to_le_bytes())
            .expect("the note");
        put(elf, at + 4, 0x50_0000);
        put(elf, E_ENTRY, 0x50_0000);
    });
    let stderr = assert_unusable("entry", &kernel, &[]);
    assert!(stderr.contains("0x500000"), "{stderr}");
}

#[test]
fn every_truncation_is_refused_or_loads_whole() {
    // Only what follows the last segment's bytes (sections, symbols) may be missing.
    let needed = (0..3)
        .map(|index| {
            let at = segment(TIMER.elf, index);
            get(TIMER.elf, at + P_OFFSET) + get(TIMER.elf, at + P_FILESZ)
        })
        .max()
        .unwrap();
    let needed = usize::try_from(needed).unwrap();
    for length in [
        1,
        15,
        16,
        63,
        64,
        100,
        231,
        232,
        0x1000,
        needed / 2,
        needed - 1,
    ] {
        assert_unusable(&format!("{length} bytes"), &TIMER.elf[..length], &[]);
    }
}

#[test]
fn absurd_machines_are_refused() {
    for options in [
        &["--cpus", "0"][..],
        &["--cpus", "65536"],
        &["--cpus", "99999999999999999999"],
        &["--cpus", "two"],
        &["--memory", "0"],
        &["--memory", "1"],
        &["--memory", "4095"],
        &["--memory", "16777217"],
        &["--memory", "99999T"],
        &["--memory", "18446744073709551616"],
        &["--memory", "lots"],
        &["--irqchip", "none"],
    ] {
        let stderr = assert_unusable(&options.join(" "), TIMER.elf, options);
        assert!(stderr.contains(options[0]), "{options:?}: {stderr}");
    }
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let initrd = directory.path().join("initrd");
    std::fs::File::create(&initrd)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let options = ["--memory", "16M", "--initrd", initrd.to_str().unwrap()];
    let stderr = assert_unusable("initrd", TIMER.elf, &options);
    assert!(stderr.contains("initrd"), "{stderr}");
}

#[test]
fn a_command_line_that_does_not_fit_is_refused() {
    let long = "x".repeat(100_000);
    let stderr = assert_unusable("cmdline", TIMER.elf, &["--cmdline", &long]);
    assert!(stderr.contains("command line"), "{stderr}");
}

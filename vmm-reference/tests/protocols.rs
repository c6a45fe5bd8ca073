//! Boots little kernels of each protocol through the command. They write to the debug console what they were given,
//! and power off.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// OUT 0xE9, AL.
const PUT: [u8; 2] = [0xe6, 0xe9];
/// Power-off by ACPI: MOV DX, 0x604; MOV AX, 0x3400; OUT DX, AX. Then HLT, and again.
const POWER_OFF: [u8; 13] = [
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xf4, 0xeb, 0xfd,
];

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Runs a kernel until it powers off. Returns what it has written to the debug console.
#[track_caller]
fn run(directory: &Path, kernel: &[u8], options: &[&str]) -> Vec<u8> {
    let (path, console) = (directory.join("kernel"), directory.join("console"));
    std::fs::write(&path, kernel).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmm-reference"))
        .args(["run", "--serial", "none", "--memory", "16M", "--kernel"])
        .arg(&path)
        .arg("--debugcon")
        .arg(format!("file:{}", console.display()))
        .args(options)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
    std::fs::read(console).unwrap()
}

fn in_all_modes(kernel: &[u8], options: &[&str], expected: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    for mode in ["kernel", "split", "user"] {
        let options = [options, &["--irqchip", mode]].concat();
        let seen = run(directory.path(), kernel, &options);
        assert_eq!(
            String::from_utf8_lossy(&seen),
            String::from_utf8_lossy(expected),
            "{mode}"
        );
    }
}

/// A flat multiboot 2 kernel that is linked at `at`.
fn multiboot2(at: u32, code: &[u8]) -> Vec<u8> {
    const HEADER: u32 = 16 + 24 + 16 + 8;
    let magic = 0xe852_50d6_u32;
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(HEADER);
    let header = words(&[
        magic,
        0,
        HEADER,
        checksum,
        // The address tag: header, load, end of load, end of bss.
        2,
        24,
        at,
        at,
        0,
        0,
        // The entry tag, padded.
        3,
        12,
        at + HEADER,
        0,
        // The end tag.
        0,
        8,
    ]);
    [&header, code].concat()
}

/// What EAX holds, and the first letter of the bootloader's name.
fn multiboot2_code() -> Vec<u8> {
    [
        &[0x89, 0xc1][..],         // mov ecx, eax
        &[0x88, 0xc8],             // mov al, cl
        &PUT,                      // 0x89
        &[0x8b, 0x43, 0x0c], // mov eax, [ebx + 12]: the size of the first tag, the command line
        &[0x83, 0xc0, 0x07], // add eax, 7
        &[0x83, 0xe0, 0xf8], // and eax, ~7
        &[0x8a, 0x44, 0x03, 0x10], // mov al, [ebx + eax + 16]: the second tag's string
        &PUT,
        &POWER_OFF,
    ]
    .concat()
}

#[test]
fn a_multiboot_2_kernel_gets_its_information() {
    in_all_modes(&multiboot2(0x10_0000, &multiboot2_code()), &[], b"\x89v");
}

#[test]
fn a_kernel_that_is_linked_where_the_boot_data_usually_is_boots() {
    in_all_modes(&multiboot2(0x5000, &multiboot2_code()), &[], b"\x89v");
}

#[test]
fn a_compressed_kernel_boots() {
    let kernel = multiboot2(0x10_0000, &multiboot2_code());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&kernel).unwrap();
    in_all_modes(&gzip.finish().unwrap(), &[], b"\x89v");
}

#[test]
fn a_multiboot_kernel_gets_its_modules_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let module = |name: &str, content: &str, arguments: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        format!("{}{arguments}", path.display())
    };
    let (first, second) = (module("a", "1st", ",x=1"), module("b", "2nd", ""));
    let magic = 0x1bad_b002_u32;
    let flags = 1_u32 << 16;
    let header = words(&[
        magic,
        flags,
        0_u32.wrapping_sub(magic).wrapping_sub(flags),
        0x10_0000,
        0x10_0000,
        0,
        0,
        0x10_0020,
    ]);
    let put_first_byte = |module: u8| {
        [
            &[0x8b, 0x51, 16 * module][..], // mov edx, [ecx + 16 * module]
            &[0x8a, 0x02],                  // mov al, [edx]
            &PUT,
        ]
        .concat()
    };
    let code = [
        vec![0x8a, 0x43, 0x14], // mov al, [ebx + 20]: mods_count
        vec![0x04, b'0'],       // add al, '0'
        PUT.to_vec(),
        vec![0x8b, 0x4b, 0x18], // mov ecx, [ebx + 24]: mods_addr
        put_first_byte(0),
        put_first_byte(1),
        POWER_OFF.to_vec(),
    ];
    let kernel = [header, code.concat()].concat();
    in_all_modes(&kernel, &["--initrd", &first, "--initrd", &second], b"212");
}

#[test]
fn a_32_bit_linux_kernel_gets_its_zero_page() {
    let mut kernel = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &2_u32.to_le_bytes());
    put(0x1fe, &0xaa55_u16.to_le_bytes());
    put(0x200, &[0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x020c_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x00ff_ffff_u32.to_le_bytes());
    put(0x238, &255_u32.to_le_bytes());
    put(0x258, &0x10_0000_u64.to_le_bytes());
    put(0x260, &0x1_0000_u32.to_le_bytes());
    kernel.extend([0x8b, 0x9e, 0x28, 0x02, 0, 0]); // mov ebx, [esi + 0x228]: cmd_line_ptr
    kernel.extend([0x8a, 0x03]); // mov al, [ebx]
    kernel.extend(PUT);
    kernel.extend(POWER_OFF);
    in_all_modes(&kernel, &["--cmdline", "quiet"], b"q");
}

#[test]
fn a_debug_console_whose_file_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kernel");
    std::fs::write(&path, multiboot2(0x10_0000, &POWER_OFF)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-reference"))
        .args([
            "run",
            "--serial",
            "none",
            "--debugcon",
            "file:/no/such/place",
            "--kernel",
        ])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("the debug console to /no/such/place"),
        "{stderr}"
    );
}

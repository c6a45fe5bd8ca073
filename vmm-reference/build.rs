//! Assembles the guest programs in `guests/` with the system's C compiler.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const GUESTS: [&str; 7] = [
    "timer", "smp", "sleep", "fault", "reset", "script", "clocks",
];
/// Where the firmware is linked to: `FIRMWARE` in src/layout.rs.
const FIRMWARE: &str = "0xfff00";
/// Where the guests of the differential tests are linked to: `IMAGE` in guests/transparent/macros.inc.
const TRANSPARENT: &str = "0x8000";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=guests");
    let (Some(source), Some(out)) = (dir("CARGO_MANIFEST_DIR"), dir("OUT_DIR")) else {
        println!("cargo::error=build.rs runs under cargo only");
        return ExitCode::FAILURE;
    };
    let source = source.join("guests");
    let script = format!("-Wl,-T,{}", source.join("link.ld").display());
    let elf = [script.as_str(), "-Wl,-z,max-page-size=0x1000"];
    let script32 = format!("-Wl,-T,{}", source.join("link32.ld").display());
    let elf32 = ["-m32", script32.as_str(), "-Wl,-z,max-page-size=0x1000"];
    let flat = [&format!("-Wl,-Ttext={FIRMWARE}"), "-Wl,--oformat=binary"];
    // Not part of the library: tests/transparent includes it.
    let image = [&format!("-Wl,-Ttext={TRANSPARENT}"), "-Wl,--oformat=binary"];
    let guests = GUESTS.map(|guest| (guest, "elf", &elf[..]));
    let others = [
        ("modes", "elf", &elf32[..]),
        ("firmware", "bin", &flat[..]),
        ("transparent/image", "bin", &image[..]),
    ];
    for (guest, extension, options) in guests.into_iter().chain(others) {
        let name = guest.replace('/', "_");
        let output = out.join(name).with_extension(extension);
        if let Err(problem) = assemble(&source, guest, options, &output) {
            println!("cargo::error=cannot assemble guests/{guest}.S: {problem}");
            println!("cargo::error=a C compiler with binutils is needed (Debian: gcc)");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn dir(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from)
}

fn assemble(source: &Path, guest: &str, options: &[&str], output: &Path) -> Result<(), String> {
    // The `cc` crate finds the compiler ($CC, the target's). It builds libraries only, and none of its
    // flags apply to a program without an operating system.
    let compiler = cc::Build::new()
        .no_default_flags(true)
        .try_get_compiler()
        .map_err(|error| error.to_string())?;
    let mut command = Command::new(compiler.path());
    command
        .args(["-m64", "-nostdlib", "-static", "-no-pie", "-g"])
        // The same bytes for any location of the sources.
        .arg(format!("-ffile-prefix-map={}=guests", source.display()))
        .args(["-Wl,--build-id=none", "-Wl,-z,noexecstack"])
        .args(options)
        .arg("-o")
        .arg(output)
        .arg(source.join(format!("{guest}.S")));
    let output = command
        .output()
        .map_err(|error| format!("{}: {error}", compiler.path().display()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

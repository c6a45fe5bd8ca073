//! `monitor dump FILE`: a core file of the machine.

use std::fmt::{self, Write};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use debug_stub::x86_64::{Mappings, RegisterFile, RegisterGroups, mappings};
use debug_stub::{GuestVirtAddr, Host};
use thiserror::Error;
use vcpu_caps::VcpuId;

use crate::core_file::{Contents, MOST_MAPPINGS};
use crate::debug::{HostError, MachineHost};
use crate::error::with_causes;

const USAGE: &str = "dump FILE: a file that does not exist yet, relative to the directory in which the VMM was started";

/// Why there is no core file.
#[derive(Debug, Error)]
enum DumpError {
    /// It is not overwritten, or cannot be created.
    #[error("{path} could not be created")]
    Create {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the registers of {vcpu} cannot be read")]
    Registers {
        vcpu: VcpuId,
        #[source]
        source: HostError,
    },
    /// The part that was written is removed.
    #[error("{path} could not be written, and was removed")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Writes the core file, and says what is in it or why there is none. The client waits as long as it takes.
pub(super) fn dump(host: &mut MachineHost, file: &str, out: &mut dyn Write) -> fmt::Result {
    if file.is_empty() {
        return writeln!(out, "{USAGE}");
    }
    if !host.may_write_files() {
        return writeln!(
            out,
            "refused: {file} would be a file of the VMM's user, and every program of the host can connect to a TCP \
             port: use --gdb unix:PATH"
        );
    }
    match write_core(host, Path::new(file)) {
        Ok(text) => writeln!(out, "{text}"),
        Err(error) => writeln!(out, "refused: {}", with_causes(&error)),
    }
}

fn write_core(host: &mut MachineHost, path: &Path) -> Result<String, DumpError> {
    let mut vcpus = Vec::new();
    for vcpu in (0..host.vcpu_count()).map(VcpuId) {
        let mut registers = RegisterFile::default();
        host.read_registers(vcpu, RegisterGroups::all(), &mut registers)
            .map_err(|source| DumpError::Registers { vcpu, source })?;
        vcpus.push((vcpu, registers));
    }
    let Mappings { list, complete } = mapped(host, vcpus.first().map(|(_, registers)| registers));
    let ram = host.memory_ranges();
    let contents = Contents {
        vcpus: &vcpus,
        ram: &ram,
        mappings: &list,
        memory: &*host,
    };
    let shown = path.display().to_string();
    // Never one that exists, nor one behind a link. It holds the guest's secrets.
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| DumpError::Create {
            path: shown.clone(),
            source,
        })?;
    if let Err(source) = write_contents(&contents, file) {
        // It is ours: it did not exist.
        let removed = fs::remove_file(path);
        if let Err(error) = removed {
            tracing::warn!(path = shown, %error, "a part of a core file is left");
        }
        return Err(DumpError::Write {
            path: shown,
            source,
        });
    }
    let path = fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    let bytes: u64 = ram.iter().map(|range| range.end - range.start).sum();
    tracing::info!(path = %path.display(), bytes, "a core file was written");
    let more = if complete {
        ""
    } else {
        "; there are more mappings, which are left out"
    };
    Ok(format!(
        "{}: {} vCPUs, {} MiB of RAM in {} ranges{more}",
        path.display(),
        vcpus.len(),
        bytes >> 20,
        ram.len(),
    ))
}

fn write_contents(contents: &Contents<'_, MachineHost>, file: File) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    contents.write_to(&mut file)?;
    io::Write::flush(&mut file)
}

/// What the first vCPU's page tables map. The upper half, where kernels are, comes first if not all of it fits.
fn mapped(host: &MachineHost, registers: Option<&RegisterFile>) -> Mappings {
    const UPPER: u64 = 1 << 63;
    let Some(RegisterFile { special, .. }) = registers else {
        return Mappings::default();
    };
    let half = |first, last, most| {
        let within = GuestVirtAddr(first)..=GuestVirtAddr(last);
        mappings(special, host, within, most)
    };
    let mut upper = half(UPPER, u64::MAX, MOST_MAPPINGS);
    let left = MOST_MAPPINGS - upper.list.len();
    let lower = half(0, UPPER - 1, left);
    upper.list.extend(lower.list);
    upper.complete &= lower.complete;
    upper
}

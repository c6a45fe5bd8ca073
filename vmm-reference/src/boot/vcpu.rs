//! Applies an [`Entry`] to memory and to a vCPU.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vcpu_caps::VcpuId;
use vcpu_caps::cpuid::TopologyError;
use vm_memory::{Bytes, GuestAddress};

use super::BootData;
use super::cpuid::CpuidTables;
use super::state::Entry;
use crate::memory::GuestRam;

/// A vCPU could not be given its first state.
#[derive(Debug, Error)]
pub enum SetupError {
    /// An ioctl failed.
    #[error("{vcpu}: {call} failed")]
    Ioctl {
        /// Which vCPU.
        vcpu: VcpuId,
        /// Which ioctl.
        call: &'static str,
        /// The kernel's error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// No such vCPU.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// More CPUID entries than KVM takes.
    #[error("a CPUID table of {0} entries is longer than KVM takes")]
    CpuidTooLong(usize),
    /// The tables could not be written.
    #[error("cannot write {what} into the guest's memory")]
    Memory {
        /// Which table.
        what: &'static str,
        /// The error.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// Page-table entry bits (SDM 3A 4.5): present, writable, page size.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const TABLE: u64 = 0x1000;
const LARGE_PAGE: u64 = 2 << 20;
/// Entries in a table of 64-bit entries.
const ENTRIES: u64 = 512;
/// Page directories: 1 GiB each.
const DIRECTORIES: u64 = 4;

/// IA32_MISC_ENABLE (SDM 4, 0x1a0) bit 0: fast string operations.
const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE (SDM 3A 12.11.2.1): MTRRs enabled, and everything write-back.
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// x87 and SSE control words after FNINIT and at reset (SDM 1 8.1.5 and 10.2.3).
const X87_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// Writes the GDT and, for 64-bit mode, the page tables.
///
/// # Errors
/// [`SetupError::Memory`] if the memory does not reach that far; [`crate::memory::MIN_MEMORY`]
/// does.
pub fn prepare_memory(memory: &GuestRam, entry: Entry, data: BootData) -> Result<(), SetupError> {
    write_words(memory, "the GDT", data.gdt(), &entry.gdt())?;
    let Entry::Long { .. } = entry else {
        return Ok(());
    };
    let pml4 = data.page_tables().0;
    let pdpt = pml4 + TABLE;
    let directories = pdpt + TABLE;
    let what = "the page tables";
    write_words(
        memory,
        what,
        GuestAddress(pml4),
        &[pdpt | PRESENT | WRITABLE],
    )?;
    let pointers: Vec<u64> = (0..DIRECTORIES)
        .map(|n| (directories + n * TABLE) | PRESENT | WRITABLE)
        .collect();
    write_words(memory, what, GuestAddress(pdpt), &pointers)?;
    let pages: Vec<u64> = (0..DIRECTORIES * ENTRIES)
        .map(|n| (n * LARGE_PAGE) | PRESENT | WRITABLE | LARGE)
        .collect();
    write_words(memory, what, GuestAddress(directories), &pages)
}

fn write_words(
    memory: &GuestRam,
    what: &'static str,
    at: GuestAddress,
    words: &[u64],
) -> Result<(), SetupError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory
        .write_slice(&bytes, at)
        .map_err(|source| SetupError::Memory { what, source })
}

/// Gives a new vCPU its CPUID and, if it is the first one, its state at the kernel's entry.
///
/// The others stay as `KVM_CREATE_VCPU` made them: waiting for a SIPI from the first
/// (SDM 3A 9.4.3).
///
/// # Errors
/// [`SetupError::Ioctl`] with the call that failed.
pub(crate) fn setup_vcpu(
    vcpu: &VcpuFd,
    id: VcpuId,
    tables: &CpuidTables,
    entry: Entry,
    data: BootData,
) -> Result<(), SetupError> {
    let failed = |call| {
        move |source| SetupError::Ioctl {
            vcpu: id,
            call,
            source,
        }
    };
    vcpu.set_cpuid2(&tables.table(id)?)
        .map_err(failed("KVM_SET_CPUID2"))?;
    if id != VcpuId(0) {
        return Ok(());
    }
    let reset = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    vcpu.set_sregs(&entry.sregs(data, reset))
        .map_err(failed("KVM_SET_SREGS"))?;
    vcpu.set_regs(&entry.regs())
        .map_err(failed("KVM_SET_REGS"))?;
    vcpu.set_fpu(&kvm_fpu {
        fcw: X87_CONTROL,
        mxcsr: MXCSR,
        ..Default::default()
    })
    .map_err(failed("KVM_SET_FPU"))?;
    for (index, data) in [
        (IA32_MISC_ENABLE, FAST_STRINGS),
        (IA32_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        // One register at a time: KVM stops at the first one that the host lacks, and the guest can
        // boot without any of them.
        let set = Msrs::from_entries(&[entry])
            .ok()
            .map(|msrs| vcpu.set_msrs(&msrs));
        if !matches!(set, Some(Ok(1))) {
            tracing::debug!(%id, "this host does not allow MSR {index:#x} to be set");
        }
    }
    Ok(())
}

//! What can be wrong with a kernel, an initrd or a command line.

use std::ops::Range;

use thiserror::Error;

/// The file cannot be used as a kernel. The message follows the file's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ImageError {
    /// No bytes at all.
    #[error("the file is empty")]
    Empty,
    /// It ends too early.
    #[error("the file is truncated: {what} needs {needs} bytes and the file has {has}")]
    Truncated {
        /// The part that lies beyond the end.
        what: &'static str,
        /// How long the file would have to be, at least.
        needs: u64,
        /// How long it is.
        has: u64,
    },
    /// No known magic.
    #[error(
        "not a kernel: expected a bzImage, an ELF file or a multiboot header in the first 8 KiB"
    )]
    NotAKernel,
    /// An ELF file for another processor.
    #[error("built for another processor: ELF machine {machine}; x86 kernels have 62 or 3")]
    WrongMachine {
        /// `e_machine`.
        machine: u16,
    },
    /// A big-endian ELF file.
    #[error("a big-endian ELF file; x86 kernels are little-endian")]
    BigEndian,
    /// Not an executable.
    #[error(
        "not a kernel: ELF type {kind} is not an executable at a fixed address; \
         a program or a shared object cannot be booted"
    )]
    NotExecutable {
        /// `e_type`.
        kind: u16,
    },
    /// It asks for a dynamic linker.
    #[error("not a kernel: the file asks for a dynamic linker, so it is a program")]
    Dynamic,
    /// The ELF headers contradict themselves.
    #[error("the ELF headers are damaged: {0}")]
    BadElf(&'static str),
    /// There is nothing to load.
    #[error("the ELF file has nothing to load (no PT_LOAD segment)")]
    NoSegments,
    /// An ELF32 file with neither a PVH note nor a multiboot header.
    #[error("a 32-bit ELF file needs a PVH note or a multiboot header, and it has neither")]
    NoBootProtocol,
    /// A segment holds more than its memory takes.
    #[error("segment {index} has {file} bytes in the file but only {memory} in memory")]
    SegmentLarger {
        /// Which program header.
        index: usize,
        /// `p_filesz`.
        file: u64,
        /// `p_memsz`.
        memory: u64,
    },
    /// A segment's addresses wrap around.
    #[error("segment {index} at {start:#x} wraps around the address space")]
    SegmentWraps {
        /// Which program header.
        index: usize,
        /// Where it starts.
        start: u64,
    },
    /// Two segments claim the same memory.
    #[error("segments overlap: {first:#x?} and {second:#x?}")]
    SegmentsOverlap {
        /// The lower one.
        first: Range<u64>,
        /// The other.
        second: Range<u64>,
    },
    /// A segment is not in usable memory.
    #[error(
        "segment {segment:#x?} is outside the guest's memory; \
         give more --memory if it is too high, or link the kernel at 1 MiB or above"
    )]
    OutsideMemory {
        /// Guest-physical addresses.
        segment: Range<u64>,
    },
    /// A segment overlaps the boot data.
    #[error(
        "segment {segment:#x?} overlaps the boot data at {reserved:#x?}; \
         link the kernel at 1 MiB or above"
    )]
    OverlapsBootData {
        /// Guest-physical addresses.
        segment: Range<u64>,
        /// Where the boot data is.
        reserved: Range<u64>,
    },
    /// The kernel would start outside itself.
    #[error("the entry point {entry:#x} is in none of the loaded segments")]
    EntryOutside {
        /// The entry point.
        entry: u64,
    },
    /// The PVH note is too short for an address.
    #[error("the PVH note is damaged: its entry point has {0} bytes instead of 4 or 8")]
    BadPvhNote(usize),
    /// The multiboot header asks for what this VMM does not have.
    #[error(
        "the multiboot header requires features {0:#x} (bits 2 to 15) that this machine lacks; \
         it offers page-aligned modules (bit 0) and memory information (bit 1)"
    )]
    MultibootFlags(u32),
    /// The addresses in the multiboot header contradict one another.
    #[error("the addresses in the multiboot header are damaged: {0}")]
    MultibootAddresses(&'static str),
    /// A boot protocol older than we can use.
    #[error("Linux boot protocol {major}.{minor:02} is too old; 2.12 (Linux 3.8) is needed")]
    OldProtocol {
        /// The high byte of the version.
        major: u8,
        /// The low byte.
        minor: u8,
    },
    /// A zImage.
    #[error("a zImage, which loads below 1 MiB; build a bzImage")]
    ZImage,
    /// A 32-bit Linux kernel.
    #[error("a 32-bit Linux kernel (no 64-bit entry point); build it for x86_64")]
    No64BitEntry,
}

/// A kernel could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read {file}")]
    Read {
        /// Its path.
        file: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The kernel cannot be used.
    #[error("cannot boot {file}")]
    Kernel {
        /// Its path.
        file: String,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// The initrd is empty.
    #[error("the initrd {file} is empty")]
    InitrdEmpty {
        /// Its path.
        file: String,
    },
    /// The initrd has no room.
    #[error(
        "the initrd {file} has {size} bytes, and between the kernel and the end of low memory \
         there is room for {room}; give more --memory"
    )]
    InitrdTooBig {
        /// Its path.
        file: String,
        /// Its size.
        size: u64,
        /// The room for it.
        room: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {length} bytes, and this kernel takes at most {limit}")]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// The longest that can be passed.
        limit: u64,
    },
    /// The command line has a zero byte, which would end it.
    #[error("the command line has a zero byte at position {0}; remove it")]
    CmdlineZero(usize),
    /// linux-loader refused a kernel that passed the checks here.
    #[error("cannot load {file}")]
    Loader {
        /// The kernel.
        file: String,
        /// Its error.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// The boot parameters could not be written.
    #[error("cannot write the boot parameters")]
    Configurator(#[source] linux_loader::configurator::Error),
    /// The guest's memory could not be written.
    #[error("cannot write {what} into the guest's memory")]
    Memory {
        /// What was to be written.
        what: &'static str,
        /// The error.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

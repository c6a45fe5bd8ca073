//! What can be wrong with a kernel, an initrd or a command line.

use std::ops::Range;

use thiserror::Error;

use super::compressed::Compression;

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
        "not a kernel: expected a bzImage, an ELF file, or a multiboot header in the first 8 KiB \
         (multiboot 2: 32 KiB)"
    )]
    NotAKernel,
    /// Firmware.
    #[error(
        "{0}: firmware starts at the reset vector, and this VMM boots kernels directly; \
         give the kernel that the firmware would boot"
    )]
    Firmware(&'static str),
    /// It calls a BIOS.
    #[error(
        "{0} needs a BIOS, which this VMM does not have: it boots kernels directly; \
         give the kernel itself"
    )]
    NeedsBios(&'static str),
    /// Compressed in a format that is not supported.
    #[error(
        "the file is compressed with {format}, which this VMM does not open; use {command} first"
    )]
    Compressed {
        /// The format.
        format: Compression,
        /// What opens it.
        command: &'static str,
    },
    /// Compressed, and damaged.
    #[error(
        "the file is compressed with {format} and cannot be opened: {kind}; \
         it is damaged, truncated, or needs more than 256 MiB to open"
    )]
    DamagedCompression {
        /// The format.
        format: Compression,
        /// The decoder's error.
        kind: std::io::ErrorKind,
    },
    /// Compressed, and too long.
    #[error(
        "the file is compressed with {format} and opens to more than {limit} bytes; no kernel is that long"
    )]
    CompressedTooLong {
        /// The format.
        format: Compression,
        /// The longest content.
        limit: u64,
    },
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
    /// The kernel takes all memory.
    #[error(
        "the kernel leaves no 172 KiB of memory in one piece for the boot data; give more --memory"
    )]
    NoRoomForBootData,
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
    /// A multiboot 2 header for another architecture.
    #[error("the multiboot 2 header is for architecture {0}; x86 kernels have 0")]
    Multiboot2Architecture(u32),
    /// The multiboot 2 header contradicts itself.
    #[error("the multiboot 2 header is damaged: {0}")]
    Multiboot2Header(&'static str),
    /// The multiboot 2 header has an unknown tag that is not optional.
    #[error("the multiboot 2 header requires tag {0}, which this VMM does not know")]
    Multiboot2Tag(u16),
    /// The multiboot 2 header requires unknown information.
    #[error(
        "the multiboot 2 header requires information of type {0}; this VMM offers command line, \
         loader name, modules, memory sizes, memory map, ELF sections, ACPI RSDP and load address"
    )]
    Multiboot2Information(u32),
    /// The multiboot 2 header requires a console.
    #[error(
        "the multiboot 2 header requires a text or graphics console, and this machine has only a serial port"
    )]
    Multiboot2Console,
    /// A boot protocol older than we can use.
    #[error(
        "Linux boot protocol {major}.{minor:02} is too old; 2.10 (Linux 2.6.31) is needed. iPXE and other \
         programs with such a header need a BIOS, which this VMM does not have"
    )]
    OldProtocol {
        /// The high byte of the version.
        major: u8,
        /// The low byte.
        minor: u8,
    },
    /// A zImage.
    #[error("a zImage, which loads below 1 MiB; build a bzImage")]
    ZImage,
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
    /// An initrd or module is empty.
    #[error("the initrd {file} is empty")]
    ModuleEmpty {
        /// Its path.
        file: String,
    },
    /// Linux gets an initrd with arguments.
    #[error(
        "the initrd {file} has arguments, which Linux does not take; write ,, for a comma in a file's name"
    )]
    InitrdArguments {
        /// Its path.
        file: String,
    },
    /// Linux gets several initrds.
    #[error(
        "Linux takes one initrd, not {0}; concatenate them, or use a kernel that takes modules \
         (multiboot, PVH)"
    )]
    SeveralInitrds(usize),
    /// The modules' list and their arguments are too long.
    #[error(
        "the modules' names and arguments, and the command line, need more than the {room} bytes that \
         there are; give fewer or shorter --initrd"
    )]
    TooManyModules {
        /// The room for them.
        room: u64,
    },
    /// An initrd or module has no room.
    #[error(
        "the initrd {file} has {size} bytes, and between the kernel and the end of low memory \
         there is room for {room}, less what alignment takes; give more --memory"
    )]
    ModuleTooBig {
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

//! Kernels: parses a file, checks whether it can be loaded, and loads it.
//!
//! [`Kernel::parse`] is pure: it reads bytes, never memory or files, and returns a typed error for a
//! file that it cannot use. [`load`] then places the kernel, the initrd, the command line and the
//! boot protocol's structures in guest memory, and returns the entry of the first vCPU. Nothing is
//! written before everything is checked.
//!
//! # Which protocol
//! A file may offer several. They are tried in this order:
//! 1. **bzImage**: its magic is unambiguous. The 64-bit entry if it has one, the 32-bit one otherwise.
//! 2. **PVH** (an ELF note `XEN_ELFNOTE_PHYS32_ENTRY`): made for direct boot by a VMM, with a full
//!    memory map.
//! 3. **multiboot 2** (a header in the first 32 KiB), then **multiboot 1** (in the first 8 KiB): a kernel that
//!    carries one means it to be used. An ELF64 file may carry it too: it still starts in 32-bit mode.
//! 4. **Linux 64-bit**: an ELF64 file with neither counts as a `vmlinux`, which has no mark of its
//!    own.
//!
//! A file that is compressed as a whole is opened first, in memory, up to a limit.

mod bzimage;
mod compressed;
mod elf;
mod error;
mod foreign;
mod linux;
mod multiboot;
mod multiboot2;
mod placement;
mod pvh;
#[cfg(test)]
mod test_images;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

pub use bzimage::BzImage;
pub use compressed::Compression;
pub use elf::{ElfClass, ElfImage, SectionHeaders, Segment};
pub use error::{ImageError, LoadError};
pub use multiboot::{MultibootHeader, MultibootImage};
pub use multiboot2::{Multiboot2Header, Multiboot2Image};

use crate::boot::{BootData, Entry};
use crate::layout;
use crate::memory::{GuestRam, MemoryLayout};

/// A kernel or an initrd: its name, for messages, and its bytes.
#[derive(Clone)]
pub struct ImageFile {
    /// The path, or the name of an embedded guest.
    pub name: String,
    /// The content.
    pub bytes: Cow<'static, [u8]>,
}

impl ImageFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`LoadError::Read`] with the path and the system's error.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        match std::fs::read(path) {
            Ok(bytes) => Ok(Self {
                name,
                bytes: Cow::Owned(bytes),
            }),
            Err(source) => Err(LoadError::Read { file: name, source }),
        }
    }

    /// Returns `true` for a program of 64-bit code, whatever mode it starts in: a bzImage, or an ELF64 file.
    #[must_use]
    pub fn is_64_bit(&self) -> bool {
        let bytes = self.bytes.as_ref();
        BzImage::matches(bytes)
            || ElfImage::parse(bytes).is_ok_and(|elf| elf.class == ElfClass::Elf64)
    }

    /// A guest program that is part of this executable.
    #[must_use]
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self {
            name: name.to_owned(),
            bytes: Cow::Borrowed(bytes),
        }
    }
}

impl fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageFile({:?}, {} bytes)", self.name, self.bytes.len())
    }
}

/// A file for the kernel: Linux's initrd, or a module of a PVH or multiboot kernel.
#[derive(Clone, Debug)]
pub struct Module {
    /// The file.
    pub file: ImageFile,
    /// What the kernel gets with it.
    pub arguments: Option<String>,
}

impl From<ImageFile> for Module {
    fn from(file: ImageFile) -> Self {
        Self {
            file,
            arguments: None,
        }
    }
}

/// A kernel in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// How it starts.
    pub entry: Entry,
    /// Where its boot data is.
    pub data: BootData,
}

/// A parsed kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel<'a> {
    /// A compressed Linux kernel.
    BzImage(BzImage),
    /// An ELF file with a PVH entry.
    Pvh {
        /// The file.
        elf: ElfImage<'a>,
        /// Where it starts, in 32-bit mode.
        entry: u32,
    },
    /// A file with a multiboot 2 header.
    Multiboot2(Multiboot2Image<'a>),
    /// A file with a multiboot 1 header.
    Multiboot(MultibootImage<'a>),
    /// A 64-bit ELF file that counts as a Linux kernel.
    LinuxElf(ElfImage<'a>),
}

impl<'a> Kernel<'a> {
    /// Parses `image`.
    ///
    /// # Errors
    /// An [`ImageError`] that says what is wrong with the file. Never panics.
    pub fn parse(image: &'a [u8]) -> Result<Self, ImageError> {
        if image.is_empty() {
            return Err(ImageError::Empty);
        }
        if BzImage::matches(image) {
            return BzImage::parse(image).map(Self::BzImage);
        }
        if !ElfImage::matches(image) {
            // Without ELF headers only a header with its own addresses says what goes where.
            if let Some(header) = Multiboot2Header::find(image)? {
                return Multiboot2Image::from_raw(header, image).map(Self::Multiboot2);
            }
            return match MultibootHeader::find(image)? {
                Some(header) => {
                    let kernel = MultibootImage::from_raw(header, image)?;
                    // Such a ROM can be loaded by other firmware, which is there already.
                    let end = kernel.segments.last().map(|segment| segment.range().end);
                    if end == Some(layout::MMIO_HOLE_END) && foreign::is_rom(image) {
                        return Err(foreign::ROM);
                    }
                    Ok(Self::Multiboot(kernel))
                }
                None => Err(foreign::refusal(image)),
            };
        }
        let elf = ElfImage::parse(image)?;
        if let Some(entry) = elf.pvh_entry {
            return Ok(Self::Pvh { elf, entry });
        }
        if let Some(header) = Multiboot2Header::find(image)? {
            return Multiboot2Image::from_elf(header, elf, image).map(Self::Multiboot2);
        }
        if let Some(header) = MultibootHeader::find(image)? {
            return MultibootImage::from_elf(header, elf, image).map(Self::Multiboot);
        }
        match elf.class {
            ElfClass::Elf64 => Ok(Self::LinuxElf(elf)),
            ElfClass::Elf32 => Err(ImageError::NoBootProtocol),
        }
    }
}

/// Loads a kernel into the guest's memory.
///
/// # Errors
/// A [`LoadError`] that names the file, the value and what to do. The memory is untouched if the
/// kernel, a module or the command line cannot be used, but for [`LoadError::Loader`]:
/// linux-loader writes segments before it has looked at all headers.
pub fn load(
    memory: &GuestRam,
    layout: MemoryLayout,
    kernel: &ImageFile,
    modules: &[Module],
    cmdline: &str,
) -> Result<Loaded, LoadError> {
    let unusable = |source| LoadError::Kernel {
        file: kernel.name.clone(),
        source,
    };
    let opened = match Compression::of(&kernel.bytes) {
        Some(format) => Some(ImageFile {
            name: kernel.name.clone(),
            bytes: Cow::Owned(format.open(&kernel.bytes).map_err(unusable)?),
        }),
        None => None,
    };
    let kernel = opened.as_ref().unwrap_or(kernel);
    let parsed = Kernel::parse(&kernel.bytes).map_err(unusable)?;
    let request = Request {
        memory,
        layout,
        kernel,
        modules,
        cmdline,
    };
    match parsed {
        Kernel::BzImage(image) => linux::load_bzimage(&request, &image),
        Kernel::Pvh { elf, entry } => pvh::load(&request, &elf, entry),
        Kernel::Multiboot2(image) => multiboot2::load(&request, &image),
        Kernel::Multiboot(image) => multiboot::load(&request, &image),
        Kernel::LinuxElf(elf) => linux::load_elf(&request, &elf),
    }
}

/// What every protocol needs to load.
#[derive(Clone, Copy)]
struct Request<'a> {
    memory: &'a GuestRam,
    layout: MemoryLayout,
    kernel: &'a ImageFile,
    modules: &'a [Module],
    cmdline: &'a str,
}

impl Request<'_> {
    /// Names the kernel's file in an error about its content.
    fn kernel_error(&self, source: ImageError) -> LoadError {
        LoadError::Kernel {
            file: self.kernel.name.clone(),
            source,
        }
    }
}

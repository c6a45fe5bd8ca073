//! Kernels: parses a file, checks whether it can be loaded, and loads it.
//!
//! [`Kernel::parse`] is pure: it reads bytes, never memory or files, and returns a typed error for a
//! file that it cannot use. [`load`] then places the kernel, the initrd, the command line and the
//! boot protocol's structures in guest memory, and returns the entry of the first vCPU. Nothing is
//! written before everything is checked.
//!
//! # Which protocol
//! A file may offer several. They are tried in this order:
//! 1. **bzImage**: its magic is unambiguous.
//! 2. **PVH** (an ELF note `XEN_ELFNOTE_PHYS32_ENTRY`): made for direct boot by a VMM, with a full
//!    memory map.
//! 3. **multiboot 1** (a header in the first 8 KiB): a kernel that carries it means it to be used.
//!    An ELF64 file may carry it too: it still starts in 32-bit mode.
//! 4. **Linux 64-bit**: an ELF64 file with neither counts as a `vmlinux`, which has no mark of its
//!    own.

mod bzimage;
mod elf;
mod error;
mod linux;
mod multiboot;
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
pub use elf::{ElfClass, ElfImage, Segment};
pub use error::{ImageError, LoadError};
pub use multiboot::{MultibootHeader, MultibootImage};

use crate::boot::Entry;
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

/// A parsed kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel<'a> {
    /// A compressed Linux kernel with a 64-bit entry.
    BzImage(BzImage),
    /// An ELF file with a PVH entry.
    Pvh {
        /// The file.
        elf: ElfImage<'a>,
        /// Where it starts, in 32-bit mode.
        entry: u32,
    },
    /// A file with a multiboot header.
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
        let header = MultibootHeader::find(image)?;
        if !ElfImage::matches(image) {
            // Without ELF headers only a header with its own addresses says what goes where.
            return match header {
                Some(header) => MultibootImage::from_raw(header, image).map(Self::Multiboot),
                None => Err(ImageError::NotAKernel),
            };
        }
        let elf = ElfImage::parse(image)?;
        if let Some(entry) = elf.pvh_entry {
            return Ok(Self::Pvh { elf, entry });
        }
        if let Some(header) = header {
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
/// kernel, the initrd or the command line cannot be used, but for [`LoadError::Loader`]:
/// linux-loader writes segments before it has looked at all headers.
pub fn load(
    memory: &GuestRam,
    layout: MemoryLayout,
    kernel: &ImageFile,
    initrd: Option<&ImageFile>,
    cmdline: &str,
) -> Result<Entry, LoadError> {
    let parsed = Kernel::parse(&kernel.bytes).map_err(|source| LoadError::Kernel {
        file: kernel.name.clone(),
        source,
    })?;
    let request = Request {
        memory,
        layout,
        kernel,
        initrd,
        cmdline,
    };
    match parsed {
        Kernel::BzImage(image) => linux::load_bzimage(&request, &image),
        Kernel::Pvh { elf, entry } => pvh::load(&request, &elf, entry),
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
    initrd: Option<&'a ImageFile>,
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

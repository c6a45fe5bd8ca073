//! Multiboot 1 (Multiboot Specification 0.6.96).

use std::ops::Range;

use super::elf::{ElfImage, Segment};
use super::error::{ImageError, LoadError};
use super::{Loaded, Module, Request, placement};
use crate::boot::{BootData, Entry};
use crate::layout;

/// The header is within this many bytes of the file, on a 4-byte boundary (3.1).
const SEARCH: usize = 8192;
/// The header's first word (3.1.1).
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// EAX at the start (3.2).
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// Bits 0 and 1: modules on page boundaries, memory information. Both are always given.
const UNDERSTOOD: u32 = 0b11;
/// Bits 2 to 15: features that a loader must refuse if it does not know them (3.1.1).
const MANDATORY: u32 = 0xffff;
/// Bit 16: the header has the addresses to load at.
const HAS_ADDRESSES: u32 = 1 << 16;

/// Which fields of the information are valid (3.3): mem_*, cmdline, mods_*, mmap_*, the loader's
/// name.
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MAP: u32 = 1 << 6;
const INFO_LOADER: u32 = 1 << 9;

/// The bytes of an entry of the module list.
const MODULE_BYTES: usize = 16;

/// The name that kernels get.
pub(super) const LOADER_NAME: &str = "vmm-reference";

/// The multiboot header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultibootHeader {
    /// Where in the file it is.
    pub offset: usize,
    /// Its flags.
    pub flags: u32,
}

impl MultibootHeader {
    /// Looks for the header.
    ///
    /// # Errors
    /// [`ImageError::MultibootFlags`] if it requires an unsupported feature.
    pub fn find(image: &[u8]) -> Result<Option<Self>, ImageError> {
        let window = image.get(..SEARCH).unwrap_or(image);
        for (index, candidate) in window.windows(12).enumerate().step_by(4) {
            let [magic, flags, checksum] = [0, 4, 8].map(|at| word(candidate, at).unwrap_or(0));
            if magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0 {
                let unknown = flags & MANDATORY & !UNDERSTOOD;
                if unknown != 0 {
                    return Err(ImageError::MultibootFlags(unknown));
                }
                return Ok(Some(Self {
                    offset: index,
                    flags,
                }));
            }
        }
        Ok(None)
    }
}

/// A file with a multiboot header, ready to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultibootImage<'a> {
    /// What to load, by physical address.
    pub segments: Vec<Segment<'a>>,
    /// Where it starts: physical, in 32-bit mode.
    pub entry: u32,
}

impl<'a> MultibootImage<'a> {
    /// A kernel that is loaded by its ELF headers, or by the multiboot header if that has addresses
    /// (3.1.1, bit 16).
    ///
    /// # Errors
    /// What is wrong with the addresses.
    pub fn from_elf(
        header: MultibootHeader,
        elf: ElfImage<'a>,
        image: &'a [u8],
    ) -> Result<Self, ImageError> {
        if header.flags & HAS_ADDRESSES != 0 {
            return Self::from_raw(header, image);
        }
        let entry = elf.linked_entry()?;
        let entry = u32::try_from(entry).map_err(|_| ImageError::EntryOutside { entry })?;
        Ok(Self {
            segments: elf.segments,
            entry,
        })
    }

    /// A kernel that is loaded by the addresses in its multiboot header (3.1.2).
    ///
    /// # Errors
    /// What is wrong with the addresses.
    pub fn from_raw(header: MultibootHeader, image: &'a [u8]) -> Result<Self, ImageError> {
        if header.flags & HAS_ADDRESSES == 0 {
            return Err(ImageError::NotAKernel);
        }
        let fields = image.get(header.offset..).unwrap_or_default();
        let mut addresses = [0; 5];
        for (address, at) in addresses.iter_mut().zip((12..).step_by(4)) {
            *address = word(fields, at).ok_or(ImageError::Truncated {
                what: "the multiboot header",
                needs: header.offset as u64 + 32,
                has: image.len() as u64,
            })?;
        }
        let [header_address, load, load_end, bss_end, entry] = addresses;
        let addresses = Addresses {
            header: header_address,
            load,
            load_end,
            bss_end,
        };
        addresses.image(header.offset, entry, image)
    }
}

/// The addresses in a header, of either version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    /// Of the header itself.
    pub(super) header: u32,
    /// Of what is loaded.
    pub(super) load: u32,
    /// Its end; 0 for the end of the file.
    pub(super) load_end: u32,
    /// The end of the memory that is zero behind it; 0 for none.
    pub(super) bss_end: u32,
}

impl Addresses {
    /// The image of a file whose header is at `offset`.
    pub(super) fn image(
        self,
        offset: usize,
        entry: u32,
        image: &[u8],
    ) -> Result<MultibootImage<'_>, ImageError> {
        let Self {
            header,
            load,
            load_end,
            bss_end,
        } = self;
        let bad = ImageError::MultibootAddresses;
        let before = header
            .checked_sub(load)
            .ok_or(bad("load_addr is above header_addr"))?;
        let start = usize::try_from(before)
            .ok()
            .and_then(|before| offset.checked_sub(before))
            .ok_or(bad("load_addr lies before the start of the file"))?;
        let data = image.get(start..).unwrap_or_default();
        let data = if load_end == 0 {
            data
        } else {
            let length = load_end
                .checked_sub(load)
                .ok_or(bad("load_end_addr is below load_addr"))?;
            usize::try_from(length)
                .ok()
                .and_then(|length| data.get(..length))
                .ok_or(ImageError::Truncated {
                    what: "the kernel",
                    needs: (start as u64).saturating_add(u64::from(length)),
                    has: image.len() as u64,
                })?
        };
        let file_end = u64::from(load).saturating_add(data.len() as u64);
        let end = if bss_end == 0 {
            file_end
        } else {
            u64::from(bss_end)
        };
        if end < file_end {
            return Err(bad("bss_end_addr is below the end of what is loaded"));
        }
        let segment = Segment {
            physical: u64::from(load),
            linked: u64::from(load),
            data,
            memory_size: end - u64::from(load),
        };
        if !segment.range().contains(&u64::from(entry)) {
            return Err(ImageError::EntryOutside {
                entry: u64::from(entry),
            });
        }
        Ok(MultibootImage {
            segments: vec![segment],
            entry,
        })
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u32::from_le_bytes)
}

/// Loads the kernel, the modules, and the information for it.
pub(super) fn load(request: &Request<'_>, image: &MultibootImage<'_>) -> Result<Loaded, LoadError> {
    let ranges: Vec<Range<u64>> = image.segments.iter().map(Segment::range).collect();
    let plan =
        placement::Plan::new(request.layout, &ranges).map_err(|e| request.kernel_error(e))?;
    let data = plan.data;
    let cmdline = kernel_cmdline(request);
    let cmdline = placement::cmdline(&cmdline, BootData::CMDLINE_ROOM - 1)?;
    // Right above the kernel, where such kernels expect them, rather than at the top of memory.
    let places = plan.above(request)?;
    // The list of modules comes first: mod_start, mod_end, string, reserved (3.3, "mods").
    let mut strings = placement::Area::new(data.modules());
    let list = strings.add(&vec![0; places.len() * MODULE_BYTES])?;
    let loader_name = strings.add_string(LOADER_NAME)?;
    let mut modules = Vec::new();
    for (module, place) in request.modules.iter().zip(&places) {
        let string = strings.add_string(&module_string(module))?;
        modules.extend([low(place.start), low(place.end), low(string), 0]);
    }
    strings.set(list, &bytes_of(&modules));

    placement::write_segments(request, &image.segments)?;
    placement::write(request, "the command line", data.cmdline(), &cmdline)?;
    placement::write_modules(request, &places)?;
    strings.write(request, "the multiboot modules")?;

    let mut flags = INFO_MEMORY | INFO_CMDLINE | INFO_MAP | INFO_LOADER;
    if !places.is_empty() {
        flags |= INFO_MODULES;
    }
    // Each entry starts with the size of what follows (3.3, "mmap").
    let mut map = Vec::new();
    for entry in request.layout.map() {
        map.extend(20_u32.to_le_bytes());
        map.extend(entry.range.start.to_le_bytes());
        map.extend((entry.range.end - entry.range.start).to_le_bytes());
        map.extend(entry.kind.e820_type().to_le_bytes());
    }
    placement::write(request, "the multiboot memory map", data.memory_map(), &map)?;
    let [lower, upper] = memory_kib(request);
    let info = [
        flags,
        lower,
        upper,
        0, // boot_device
        low(data.cmdline().0),
        low(places.len() as u64),
        low(list),
        0, // syms
        0,
        0,
        0,
        low(map.len() as u64),
        low(data.memory_map().0),
        0, // drives_length, drives_addr
        0,
        0, // config_table
        low(loader_name),
    ];
    placement::write(
        request,
        "the multiboot information",
        data.start_info(),
        &bytes_of(&info),
    )?;
    Ok(Loaded {
        entry: Entry::Protected {
            rip: image.entry,
            eax: LOADER_MAGIC,
            ebx: low(data.start_info().0),
        },
        data,
    })
}

/// The first word is the kernel's own name, as boot loaders pass it.
pub(super) fn kernel_cmdline(request: &Request<'_>) -> String {
    format!("{} {}", request.kernel.name, request.cmdline)
}

/// The same for a module.
pub(super) fn module_string(module: &Module) -> String {
    match &module.arguments {
        Some(arguments) => format!("{} {arguments}", module.file.name),
        None => module.file.name.clone(),
    }
}

/// mem_lower and mem_upper: KiB below the EBDA, and from 1 MiB up to the first hole.
pub(super) fn memory_kib(request: &Request<'_>) -> [u32; 2] {
    [
        low(layout::EBDA.0 / 1024),
        low((request.layout.low_end() - layout::HIGH_MEMORY_START) / 1024),
    ]
}

/// An address below 4 GiB; everything that multiboot points to is.
pub(super) fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

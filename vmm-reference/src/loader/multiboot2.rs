//! Multiboot 2 (Multiboot2 Specification 2.0; the numbers in brackets are its sections).

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use super::elf::{ElfImage, SectionHeaders, Segment};
use super::error::{ImageError, LoadError};
use super::multiboot::{
    Addresses, LOADER_NAME, MultibootImage, kernel_cmdline, low, memory_kib, module_string, word,
};
use super::{Loaded, Request, placement};
use crate::boot::{BootData, Entry};
use crate::layout;

/// The header is whole within this many bytes of the file, on an 8-byte boundary (3.1.1).
const SEARCH: usize = 32_768;
/// The header's first word (3.1.2).
const HEADER_MAGIC: u32 = 0xe852_50d6;
/// Its architecture: 32-bit protected mode of i386.
const I386: u32 = 0;
/// Magic, architecture, length, checksum.
const HEADER_BYTES: usize = 16;
/// EAX at the start (3.3).
const LOADER_MAGIC: u32 = 0x36d7_6289;

/// Tags of the header (3.1.3): type, flags and size come first.
const TAG_BYTES: usize = 8;
/// Flags: a loader may ignore the tag.
const OPTIONAL: u16 = 1;
const TAG_END: u16 = 0;
const TAG_INFORMATION: u16 = 1;
const TAG_ADDRESS: u16 = 2;
const TAG_ENTRY: u16 = 3;
const TAG_CONSOLE: u16 = 4;
const TAG_FRAMEBUFFER: u16 = 5;
const TAG_ALIGNMENT: u16 = 6;
const TAG_EFI_BOOT_SERVICES: u16 = 7;
const TAG_EFI_ENTRY_32: u16 = 8;
const TAG_EFI_ENTRY_64: u16 = 9;
const TAG_RELOCATABLE: u16 = 10;
/// Console flags (3.1.9): one of the consoles must be there. There is none.
const CONSOLE_REQUIRED: u32 = 1;
/// `load_addr` of a file that is loaded from its beginning (3.1.5).
const FROM_THE_START: u32 = u32::MAX;

/// Information (3.4).
const INFO_END: u32 = 0;
const INFO_CMDLINE: u32 = 1;
const INFO_LOADER: u32 = 2;
const INFO_MODULE: u32 = 3;
const INFO_MEMORY: u32 = 4;
const INFO_MAP: u32 = 6;
const INFO_SECTIONS: u32 = 9;
const INFO_OLD_RSDP: u32 = 14;
const INFO_NEW_RSDP: u32 = 15;
const INFO_LOAD_BASE: u32 = 21;
/// What a kernel may require.
const OFFERED: [u32; 10] = [
    INFO_END,
    INFO_CMDLINE,
    INFO_LOADER,
    INFO_MODULE,
    INFO_MEMORY,
    INFO_MAP,
    INFO_SECTIONS,
    INFO_OLD_RSDP,
    INFO_NEW_RSDP,
    INFO_LOAD_BASE,
];

/// The RSDP of ACPI 1.0, and of later versions (ACPI 6.5, 5.2.5.3).
const RSDP_SIGNATURE: &[u8] = b"RSD PTR ";
const OLD_RSDP_BYTES: usize = 20;
const NEW_RSDP_BYTES: usize = 36;

/// The multiboot 2 header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiboot2Header {
    /// Where in the file it is.
    pub offset: usize,
    addresses: Option<[u32; 4]>,
    entry: Option<u32>,
    /// The kernel wants to know where it was loaded.
    relocatable: bool,
}

impl Multiboot2Header {
    /// Looks for the header.
    ///
    /// # Errors
    /// What is wrong with it, or what it requires and this VMM lacks.
    pub fn find(image: &[u8]) -> Result<Option<Self>, ImageError> {
        let window = image.get(..SEARCH).unwrap_or(image);
        for (offset, candidate) in window.windows(HEADER_BYTES).enumerate().step_by(8) {
            let [magic, architecture, length, checksum] =
                [0, 4, 8, 12].map(|at| word(candidate, at).unwrap_or(0));
            let sum = [architecture, length, checksum]
                .iter()
                .fold(magic, |sum, &word| sum.wrapping_add(word));
            if magic == HEADER_MAGIC && sum == 0 {
                if architecture != I386 {
                    return Err(ImageError::Multiboot2Architecture(architecture));
                }
                let header = usize::try_from(length)
                    .ok()
                    .and_then(|length| offset.checked_add(length))
                    .and_then(|end| window.get(offset..end))
                    .ok_or(ImageError::Multiboot2Header(
                        "its length reaches beyond the first 32 KiB or the file's end",
                    ))?;
                return Self::parse(offset, header).map(Some);
            }
        }
        Ok(None)
    }

    /// Reads the tags of a header.
    fn parse(offset: usize, header: &[u8]) -> Result<Self, ImageError> {
        let bad = ImageError::Multiboot2Header;
        let mut parsed = Self {
            offset,
            addresses: None,
            entry: None,
            relocatable: false,
        };
        let mut rest = header.get(HEADER_BYTES..).unwrap_or_default();
        loop {
            let first = word(rest, 0).ok_or(bad("it has no end tag"))?;
            let size = word(rest, 4).ok_or(bad("it has no end tag"))?;
            let [a, b, c, d] = first.to_le_bytes();
            let (kind, flags) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            if kind == TAG_END {
                return Ok(parsed);
            }
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size < TAG_BYTES {
                return Err(bad("a tag is shorter than its own size field"));
            }
            let tag = rest
                .get(TAG_BYTES..size)
                .ok_or(bad("a tag reaches beyond the header's end"))?;
            parsed.read_tag(kind, flags & OPTIONAL != 0, tag)?;
            // Tags begin on 8-byte boundaries.
            let next = size.checked_next_multiple_of(TAG_BYTES);
            rest = next.and_then(|next| rest.get(next..)).unwrap_or_default();
        }
    }

    fn read_tag(&mut self, kind: u16, optional: bool, tag: &[u8]) -> Result<(), ImageError> {
        let short = || ImageError::Multiboot2Header("a tag is too short for its type");
        match kind {
            TAG_INFORMATION => {
                let mut wanted = tag.chunks_exact(4).filter_map(|word_| word(word_, 0));
                match wanted.find(|kind| !OFFERED.contains(kind)) {
                    Some(kind) if !optional => Err(ImageError::Multiboot2Information(kind)),
                    _ => Ok(()),
                }
            }
            TAG_ADDRESS => {
                let mut addresses = [0; 4];
                for (address, at) in addresses.iter_mut().zip((0..).step_by(4)) {
                    *address = word(tag, at).ok_or_else(short)?;
                }
                self.addresses = Some(addresses);
                Ok(())
            }
            TAG_ENTRY => {
                self.entry = Some(word(tag, 0).ok_or_else(short)?);
                Ok(())
            }
            TAG_CONSOLE => {
                let required = word(tag, 0).ok_or_else(short)? & CONSOLE_REQUIRED != 0;
                if required && !optional {
                    return Err(ImageError::Multiboot2Console);
                }
                Ok(())
            }
            TAG_RELOCATABLE => {
                self.relocatable = true;
                Ok(())
            }
            // A preference; what is done in any case; what is for EFI firmware.
            TAG_FRAMEBUFFER
            | TAG_ALIGNMENT
            | TAG_EFI_BOOT_SERVICES
            | TAG_EFI_ENTRY_32
            | TAG_EFI_ENTRY_64 => Ok(()),
            _ if optional => Ok(()),
            _ => Err(ImageError::Multiboot2Tag(kind)),
        }
    }
}

/// A file with a multiboot 2 header, ready to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multiboot2Image<'a> {
    /// What to load, and where it starts.
    pub image: MultibootImage<'a>,
    /// The section headers of an ELF file.
    pub sections: Option<SectionHeaders<'a>>,
    relocatable: bool,
}

impl<'a> Multiboot2Image<'a> {
    /// A kernel that is loaded by its ELF headers, or by the address tag if there is one.
    ///
    /// # Errors
    /// What is wrong with the addresses.
    pub fn from_elf(
        header: Multiboot2Header,
        elf: ElfImage<'a>,
        image: &'a [u8],
    ) -> Result<Self, ImageError> {
        if header.addresses.is_some() {
            return Self::from_raw(header, image);
        }
        let entry = match header.entry {
            Some(entry) => elf.check_entry(entry.into())?,
            None => elf.linked_entry()?,
        };
        Ok(Self {
            sections: elf.sections,
            relocatable: header.relocatable,
            image: MultibootImage {
                entry: u32::try_from(entry).map_err(|_| ImageError::EntryOutside { entry })?,
                segments: elf.segments,
            },
        })
    }

    /// A kernel that is loaded by its address tag (3.1.5) and its entry tag (3.1.6).
    ///
    /// # Errors
    /// What is wrong with the addresses.
    pub fn from_raw(header: Multiboot2Header, image: &'a [u8]) -> Result<Self, ImageError> {
        let bad = ImageError::Multiboot2Header;
        let [header_address, load, load_end, bss_end] = header
            .addresses
            .ok_or(bad("a file that is not ELF needs an address tag"))?;
        let entry = header
            .entry
            .ok_or(bad("an address tag needs an entry tag"))?;
        let load = if load == FROM_THE_START {
            u32::try_from(header.offset)
                .ok()
                .and_then(|offset| header_address.checked_sub(offset))
                .ok_or(bad("header_addr is below the header's place in the file"))?
        } else {
            load
        };
        let addresses = Addresses {
            header: header_address,
            load,
            load_end,
            bss_end,
        };
        Ok(Self {
            image: addresses.image(header.offset, entry, image)?,
            sections: None,
            relocatable: header.relocatable,
        })
    }
}

/// Loads the kernel, the modules, and the information for it.
pub(super) fn load(
    request: &Request<'_>,
    kernel: &Multiboot2Image<'_>,
) -> Result<Loaded, LoadError> {
    let image = &kernel.image;
    let ranges: Vec<Range<u64>> = image.segments.iter().map(Segment::range).collect();
    let plan =
        placement::Plan::new(request.layout, &ranges).map_err(|e| request.kernel_error(e))?;
    let data = plan.data;
    let places = plan.above(request)?;
    let mut info = Information::new(data)?;
    let cmdline = kernel_cmdline(request);
    info.tag(
        INFO_CMDLINE,
        &placement::cmdline(&cmdline, BootData::CMDLINE_ROOM - 1)?,
    )?;
    info.tag(INFO_LOADER, &with_zero(LOADER_NAME))?;
    if let (true, Some(first)) = (kernel.relocatable, ranges.first()) {
        info.tag(INFO_LOAD_BASE, &low(first.start).to_le_bytes())?;
    }
    for (module, place) in request.modules.iter().zip(&places) {
        let mut tag = words(&[low(place.start), low(place.end)]);
        tag.extend(with_zero(&module_string(module)));
        info.tag(INFO_MODULE, &tag)?;
    }
    info.tag(INFO_MEMORY, &words(&memory_kib(request)))?;
    // The size and the version of an entry come first (3.6.8).
    let mut map = words(&[24, 0]);
    for entry in request.layout.map() {
        map.extend(entry.range.start.to_le_bytes());
        map.extend((entry.range.end - entry.range.start).to_le_bytes());
        map.extend(words(&[entry.kind.e820_type(), 0]));
    }
    info.tag(INFO_MAP, &map)?;
    if let Some(SectionHeaders {
        count,
        size,
        names,
        bytes,
    }) = kernel.sections
    {
        let mut tag = words(&[count, size, names]);
        tag.extend(bytes);
        info.tag(INFO_SECTIONS, &tag)?;
    }
    let mut rsdp = [0; NEW_RSDP_BYTES];
    let read = request.memory.read_slice(&mut rsdp, layout::RSDP);
    if read.is_ok() && rsdp.starts_with(RSDP_SIGNATURE) {
        let old = rsdp.get(..OLD_RSDP_BYTES).unwrap_or_default();
        info.tag(INFO_OLD_RSDP, old)?;
        info.tag(INFO_NEW_RSDP, &rsdp)?;
    }
    let info = info.finish()?;

    placement::write_segments(request, &image.segments)?;
    placement::write_modules(request, &places)?;
    info.write(request, "the multiboot 2 information")?;
    Ok(Loaded {
        entry: Entry::Protected {
            rip: image.entry,
            eax: LOADER_MAGIC,
            ebx: low(data.multiboot2().start),
        },
        data,
    })
}

/// The information: its size, a reserved word, and tags (3.6.1).
struct Information {
    area: placement::Area,
    start: GuestAddress,
}

impl Information {
    fn new(data: BootData) -> Result<Self, LoadError> {
        let range = data.multiboot2();
        let start = GuestAddress(range.start);
        let mut area = placement::Area::new(range);
        area.add(&[0; 8])?;
        Ok(Self { area, start })
    }

    /// Adds a tag: type, size with these two, content. Tags begin on 8-byte boundaries.
    fn tag(&mut self, kind: u32, content: &[u8]) -> Result<(), LoadError> {
        self.area.align(8)?;
        let size = (content.len() as u64).saturating_add(8);
        self.area.add(&words(&[kind, low(size)]))?;
        self.area.add(content)?;
        Ok(())
    }

    fn finish(mut self) -> Result<placement::Area, LoadError> {
        self.tag(INFO_END, &[])?;
        let size = low(self.area.length());
        self.area.set(self.start.0, &size.to_le_bytes());
        Ok(self.area)
    }
}

fn with_zero(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

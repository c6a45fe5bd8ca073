//! ELF files, 32 and 64 bits, as far as a loader needs them (System V gABI, chapters 4 and 5).

use std::ops::Range;

use object::LittleEndian;
use object::elf as raw;
use object::read::elf::{FileHeader, ProgramHeader};

use super::error::ImageError;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the physical address of the PVH entry (Xen `elfnote.h`).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// The width of an ELF file's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfClass {
    /// 32 bits.
    Elf32,
    /// 64 bits.
    Elf64,
}

/// A piece of a kernel that goes into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Guest-physical address.
    pub physical: u64,
    /// The address that the kernel was linked for.
    pub linked: u64,
    /// The bytes that the file has; the rest is zero.
    pub data: &'a [u8],
    /// Its size in memory, in bytes.
    pub memory_size: u64,
}

impl Segment<'_> {
    /// Its guest-physical addresses.
    ///
    /// Parsing has checked that they do not wrap.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.physical..self.physical.saturating_add(self.memory_size)
    }
}

/// The section headers of a file, as they are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionHeaders<'a> {
    /// How many there are.
    pub count: u32,
    /// Bytes of each.
    pub size: u32,
    /// Which of them is the table of names.
    pub names: u32,
    /// All of them.
    pub bytes: &'a [u8],
}

/// An ELF file that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElfImage<'a> {
    /// Its width.
    pub class: ElfClass,
    /// `e_entry`, as the file has it.
    pub entry: u64,
    /// What to load, by physical address, without overlaps; never empty.
    pub segments: Vec<Segment<'a>>,
    /// The PVH entry, if the file has the note.
    pub pvh_entry: Option<u32>,
    /// The section headers, if the file has them.
    pub sections: Option<SectionHeaders<'a>>,
}

impl<'a> ElfImage<'a> {
    /// Whether the file claims to be ELF.
    #[must_use]
    pub fn matches(image: &[u8]) -> bool {
        image.starts_with(&raw::ELFMAG)
    }

    /// Reads the headers.
    ///
    /// # Errors
    /// Why the file cannot be used as a kernel.
    pub fn parse(image: &'a [u8]) -> Result<Self, ImageError> {
        // e_ident comes first, and says how to read the rest (gABI 4, "ELF Identification").
        let (Some(&class), Some(&data)) = (image.get(4), image.get(5)) else {
            return Err(truncated(image, "the ELF header", 52));
        };
        if data == raw::ELFDATA2MSB.0 {
            return Err(ImageError::BigEndian);
        }
        if class == raw::ELFCLASS64.0 {
            parse_class::<raw::FileHeader64<LittleEndian>>(image, ElfClass::Elf64)
        } else if class == raw::ELFCLASS32.0 {
            parse_class::<raw::FileHeader32<LittleEndian>>(image, ElfClass::Elf32)
        } else {
            Err(ImageError::BadElf("its class is neither 32 nor 64 bits"))
        }
    }

    /// The entry as a physical address, for a protocol whose entry is physical.
    ///
    /// # Errors
    /// [`ImageError::EntryOutside`] if no segment has it.
    pub fn physical_entry(&self) -> Result<u64, ImageError> {
        self.check_entry(self.entry)
    }

    /// The entry as a physical address, for a protocol whose entry is an address that the file was
    /// linked for. They differ in a kernel linked for high addresses and loaded low.
    ///
    /// # Errors
    /// [`ImageError::EntryOutside`] if no segment has it.
    pub fn linked_entry(&self) -> Result<u64, ImageError> {
        self.segments
            .iter()
            .find_map(|segment| {
                let offset = self.entry.checked_sub(segment.linked)?;
                (offset < segment.memory_size).then(|| segment.physical.saturating_add(offset))
            })
            .map_or_else(|| self.physical_entry(), Ok)
    }

    /// Checks that a physical address is in a segment.
    ///
    /// # Errors
    /// [`ImageError::EntryOutside`] if it is not.
    pub fn check_entry(&self, entry: u64) -> Result<u64, ImageError> {
        if self
            .segments
            .iter()
            .any(|segment| segment.range().contains(&entry))
        {
            Ok(entry)
        } else {
            Err(ImageError::EntryOutside { entry })
        }
    }
}

fn truncated(image: &[u8], what: &'static str, needs: u64) -> ImageError {
    ImageError::Truncated {
        what,
        needs,
        has: image.len() as u64,
    }
}

fn parse_class<'a, H>(image: &'a [u8], class: ElfClass) -> Result<ElfImage<'a>, ImageError>
where
    H: FileHeader<Endian = LittleEndian>,
    H::Word: Into<u64>,
{
    let endian = LittleEndian;
    let header_size = size_of::<H>() as u64;
    if (image.len() as u64) < header_size {
        return Err(truncated(image, "the ELF header", header_size));
    }
    let header = H::parse(image).map_err(|_| ImageError::BadElf("the identification is wrong"))?;
    let expected = match class {
        ElfClass::Elf64 => raw::EM_X86_64,
        ElfClass::Elf32 => raw::EM_386,
    };
    if header.e_machine(endian) != expected {
        return Err(ImageError::WrongMachine {
            machine: header.e_machine(endian).0,
        });
    }
    if header.e_type(endian) != raw::ET_EXEC {
        return Err(ImageError::NotExecutable {
            kind: header.e_type(endian).0,
        });
    }
    let headers_end = header
        .e_phoff(endian)
        .into()
        .checked_add(u64::from(header.e_phnum(endian)) * u64::from(header.e_phentsize(endian)))
        .ok_or(ImageError::BadElf(
            "the program headers' offset is out of range",
        ))?;
    if headers_end > image.len() as u64 {
        return Err(truncated(image, "the program header table", headers_end));
    }
    let program_headers = header
        .program_headers(endian, image)
        .map_err(|_| ImageError::BadElf("the program headers have a wrong size"))?;

    let mut segments = Vec::new();
    let mut pvh_entry = None;
    for (index, program_header) in program_headers.iter().enumerate() {
        let kind = program_header.p_type(endian);
        if kind == raw::PT_LOAD {
            segments.extend(parse_load(program_header, image, index)?);
        } else if kind == raw::PT_INTERP {
            return Err(ImageError::Dynamic);
        } else if kind == raw::PT_NOTE && pvh_entry.is_none() {
            pvh_entry = find_pvh_entry::<H>(program_header, image)?;
        }
    }
    segments.sort_by_key(|segment| segment.physical);
    for pair in segments.windows(2) {
        if let [first, second] = pair {
            if first.range().end > second.physical {
                return Err(ImageError::SegmentsOverlap {
                    first: first.range(),
                    second: second.range(),
                });
            }
        }
    }
    if segments.is_empty() {
        return Err(ImageError::NoSegments);
    }
    Ok(ElfImage {
        class,
        entry: header.e_entry(endian).into(),
        segments,
        pvh_entry,
        sections: section_headers(header, image),
    })
}

/// Nothing that is loaded depends on them: a damaged table is none.
fn section_headers<'a, H>(header: &H, image: &'a [u8]) -> Option<SectionHeaders<'a>>
where
    H: FileHeader<Endian = LittleEndian>,
    H::Word: Into<u64>,
{
    let endian = LittleEndian;
    let start = usize::try_from(header.e_shoff(endian).into()).ok()?;
    let count = header.e_shnum(endian);
    let size = header.e_shentsize(endian);
    let length = usize::from(count) * usize::from(size);
    let bytes = image.get(start..start.checked_add(length)?)?;
    (start != 0 && length != 0).then_some(SectionHeaders {
        count: count.into(),
        size: size.into(),
        names: header.e_shstrndx(endian).0.into(),
        bytes,
    })
}

/// One PT_LOAD header; `None` if it takes no memory.
fn parse_load<'a, P>(
    header: &P,
    image: &'a [u8],
    index: usize,
) -> Result<Option<Segment<'a>>, ImageError>
where
    P: ProgramHeader<Endian = LittleEndian>,
    P::Word: Into<u64>,
{
    let endian = LittleEndian;
    let file_size: u64 = header.p_filesz(endian).into();
    let memory_size: u64 = header.p_memsz(endian).into();
    let physical: u64 = header.p_paddr(endian).into();
    if file_size > memory_size {
        return Err(ImageError::SegmentLarger {
            index,
            file: file_size,
            memory: memory_size,
        });
    }
    if memory_size == 0 {
        return Ok(None);
    }
    if physical.checked_add(memory_size).is_none() {
        return Err(ImageError::SegmentWraps {
            index,
            start: physical,
        });
    }
    let data = header.data(endian, image).map_err(|()| {
        let offset: u64 = header.p_offset(endian).into();
        truncated(image, "a segment", offset.saturating_add(file_size))
    })?;
    Ok(Some(Segment {
        physical,
        linked: header.p_vaddr(endian).into(),
        data,
        memory_size,
    }))
}

/// Looks for the PVH entry in a PT_NOTE segment.
///
/// Other notes, and all that follow a damaged one, are ignored.
fn find_pvh_entry<H>(header: &H::ProgramHeader, image: &[u8]) -> Result<Option<u32>, ImageError>
where
    H: FileHeader<Endian = LittleEndian>,
    H::Word: Into<u64>,
{
    let endian = LittleEndian;
    if header.data(endian, image).is_err() {
        let offset: u64 = header.p_offset(endian).into();
        let needs = offset.saturating_add(header.p_filesz(endian).into());
        return Err(truncated(image, "the notes", needs));
    }
    let Ok(Some(mut notes)) = header.notes(endian, image) else {
        return Ok(None);
    };
    while let Ok(Some(note)) = notes.next() {
        if note.name() == b"Xen" && note.n_type(endian).0 == XEN_ELFNOTE_PHYS32_ENTRY {
            // Linux writes as many bytes as its words have; the address is 32 bits in any case.
            let desc = note.desc();
            let Some(&[a, b, c, d]) = desc.get(..4).and_then(|low| low.first_chunk()) else {
                return Err(ImageError::BadPvhNote(desc.len()));
            };
            return Ok(Some(u32::from_le_bytes([a, b, c, d])));
        }
    }
    Ok(None)
}
